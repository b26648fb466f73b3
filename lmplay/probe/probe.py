"""Train every experiment on every task under each seed, as far as that is missing, and read what they have reached."""

import dataclasses
import functools
from dataclasses import dataclass, field

from lmplay.compare.backends import backend_of, how_to_train
from lmplay.compare.data_order import choose_order
from lmplay.compare.job_trainer import JobTrainer
from lmplay.compare.jobs import Job, RunIndex, Stopped
from lmplay.compare.model_checks import check_before
from lmplay.data import tasks as data_tasks
from lmplay.data.plan_spec import Plan
from lmplay.data.plans import list_plans, load_plan
from lmplay.data.tokenizers import load_tokenizer
from lmplay.errors import UserError, check_at_least, did_you_mean
from lmplay.model.device import choose_device
from lmplay.probe.scorecard import SOLVED, Cell, Scorecard
from lmplay.probe.sizes import CONTEXT_LEN, Size, SizedVariant, sized_variants
from lmplay.runs.run import Run
from lmplay.runs.settings import NO_RECIPE, Settings, default_out
from lmplay.text import name_key
from lmplay.train.phases import lay_out

PREFIX = "probe_"  # of the names of plans that are probes
DEFAULT_TASKS = ("copy", "induction", "mqar", "selective_copy", "compress", "parity")
VALIDATIONS = 8  # per run
VALIDATION_TOKENS = 20_000  # per validation


@dataclass(frozen=True)
class ProbeRequest:
    """Which experiments to probe on which tasks.

    experiments: NAME[:VARIANT] each. tasks: names of probes, plan files, or "all". jobs: processes side by side;
    together: seeds of an experiment in one of them; None: auto. on: where they are trained, as --on has it.
    """

    experiments: tuple[str, ...]
    tasks: tuple[str, ...] = DEFAULT_TASKS
    seeds: int = 2
    size: Size = field(kw_only=True)
    lr: float = 3e-3
    device: str = "auto"
    out: str = field(default_factory=default_out)
    allow_leak: bool = False
    retry_crashed: bool = False
    jobs: int | None = 1
    together: int | None = 1
    on: str | None = None

    def __post_init__(self) -> None:
        backend_of(self.on, self.jobs)
        check_at_least(1, seeds=self.seeds, jobs=self.jobs, together=self.together)

    def settings(self, plan: str) -> Settings:
        """Return the settings of every run on one plan, except experiment and seed."""
        return Settings(
            training_plan=plan,
            recipe=NO_RECIPE,  # the rate of a probe is tuned to its tasks
            batch_size=self.size.batch_size,
            lr=self.lr,
            max_steps=self.size.steps,
            device=self.device,
            out=self.out,
            validation_interval=max(1, self.size.steps // VALIDATIONS),
            validation_tokens=VALIDATION_TOKENS,
        )


def run_probe(request: ProbeRequest) -> Scorecard:
    """Train the runs that are missing and read what all of them reached.

    Raises UserError, and Stopped if the user asks to stop; its `result` is the scorecard of what is there.
    """
    tasks = dict(find_tasks(request.tasks))
    if backend_of(request.on, request.jobs).is_here:
        choose_device(request.device)
    models = sized_variants(list(request.experiments), request.size, load_tokenizer("bytes").vocab_size)
    asked = {task: request.settings(str(plan.path)) for task, plan in tasks.items()}
    how, first = how_to_train(next(iter(asked.values())), backend_of(request.on, request.jobs), request.together)
    indexes = {
        task: RunIndex(
            dataclasses.replace(settings, threads=first.threads),
            any_interval=False,
            retry_crashed=request.retry_crashed,
        )
        for task, settings in asked.items()
    }
    for task, index in indexes.items():
        _check_length(task, index, request.size.steps)
    for task, index in indexes.items():
        choose_order(index, None, functools.partial(_jobs, index, task, models=models, seeds=request.seeds))
    jobs = {
        (task, model.label, seed): _job(index, task, model=model, seed=seed)
        for seed in range(request.seeds)
        for task, index in indexes.items()
        for model in models
    }
    _check_models(jobs, request)
    try:
        JobTrainer(how).train(list(jobs.values()))
    except Stopped:
        raise Stopped(_scorecard(tasks, models, jobs)) from None
    return _scorecard(tasks, models, jobs)


def find_tasks(names: tuple[str, ...]) -> list[tuple[str, Plan]]:
    """Find the (task, plan) of each name: of a probe, a plan file, or "all". Raises UserError if a plan is no probe."""
    known = [plan.name.removeprefix(PREFIX) for plan in list_plans() if plan.name.startswith(PREFIX)]
    found: dict[str, Plan] = {}
    for name in known if "all" in names else names:
        plan = _find_plan(name, known)
        task = plan.name.removeprefix(PREFIX)
        _levels(plan)
        if task in found:
            raise UserError(f"--tasks names {task} twice")
        found[task] = plan
    return list(found.items())


def _find_plan(name: str, known: list[str]) -> Plan:
    if name.endswith(".json"):
        return load_plan(name)
    short = name_key(name).removeprefix(PREFIX)
    if short not in map(name_key, known):
        raise UserError(f"no probe named {name!r}.{did_you_mean(short, known)}")
    return load_plan(PREFIX + short)


def _levels(plan: Plan) -> tuple[float, float]:
    """Return (chance, ceiling) of a plan's task. Raises UserError if the plan is no probe."""
    specs = list(plan.datasets.values())
    if len(specs) == 1 and specs[0].kind == "synthetic":
        chance = data_tasks.chance(specs[0].source_id, specs[0].settings)
        ceiling = data_tasks.ceiling(specs[0].source_id, specs[0].settings)
        if chance is not None and ceiling is not None:
            return chance, ceiling
    raise UserError(
        f"plan {plan.name} is no probe: it takes one synthetic dataset, of a task whose chance and ceiling are known"
    )


def _check_length(task: str, index: RunIndex, steps: int) -> None:
    """Raise UserError if a task's plan has not enough data for the steps that are asked for."""
    context_len = index.plan.context_len or CONTEXT_LEN
    there = sum(
        phase.n_steps for phase in lay_out(index.settings, index.plan, data=index.data, context_len=context_len)
    )
    if there < steps:
        raise UserError(
            f"{task} has data for {there} steps only: ask for fewer --max-steps, or give its plan more epochs"
        )


def _check_models(jobs: dict[tuple[str, str, int], Job], request: ProbeRequest) -> None:
    """Ask each model that is to be trained whether its loss means what it says. Raises UserError if it does not."""
    missing = {(task, label): job for (task, label, _), job in jobs.items() if job.is_missing}
    for job in missing.values():
        check_before(job.index, job.variant, job.settings, why="It is not probed", allow_leak=request.allow_leak)


def _jobs(index: RunIndex, task: str, *, models: list[SizedVariant], seeds: int) -> list[Job]:
    """Return the jobs of one task."""
    return [_job(index, task, model=model, seed=seed) for model in models for seed in range(seeds)]


def _job(index: RunIndex, task: str, *, model: SizedVariant, seed: int) -> Job:
    settings = dataclasses.replace(index.settings, exp=model.label, set=model.fields, seed=seed)
    return Job(index=index, variant=model.variant, settings=settings, label=f"{task}, {model.label}, seed {seed}")


def _scorecard(tasks: dict[str, Plan], models: list[SizedVariant], jobs: dict[tuple[str, str, int], Job]) -> Scorecard:
    """Return what all runs that are there have reached. jobs: {(task, experiment, seed): job}."""
    cells = [
        _cell(task, plan, model.label, jobs=[job for key, job in jobs.items() if key[:2] == (task, model.label)])
        for model in models
        for task, plan in tasks.items()
    ]
    return Scorecard(
        parameters={model.label: model.parameters for model in models},
        tasks={task: plan.description for task, plan in tasks.items()},
        levels={task: _levels(plan) for task, plan in tasks.items()},
        cells=cells,
        skipped=sorted({line for job in jobs.values() for line in job.index.skipped}),
    )


def _cell(task: str, plan: Plan, experiment: str, jobs: list[Job]) -> Cell:
    """Return what one experiment reached on one task, its jobs in the order of their seeds."""
    chance, ceiling = _levels(plan)
    cell = Cell(task=task, experiment=experiment, chance=chance, ceiling=ceiling)
    for match in (job.find() for job in jobs):
        if match is None or match.state == "begun":
            continue
        cell.runs.append(match.run.name)
        if match.state == "failed":
            cell.n_failed += 1
        else:
            _read(cell, match.run)
    return cell


def _read(cell: Cell, run: Run) -> None:
    """Add a run's final figures, and when it solved the task, to a cell."""
    table = run.table("validate", ("accuracy", "loss", "validation_documents"))
    scores = [cell.scaled_of(accuracy) for accuracy in table["accuracy"]]
    solved = (int(step) for step, score in zip(table["step"], scores, strict=True) if score >= SOLVED)
    cell.accuracies.append(float(table["accuracy"].iloc[-1]))
    cell.losses.append(float(table["loss"].iloc[-1]))
    if parameters := run.number("parameters", "total"):
        cell.parameters.append(int(parameters))
    cell.n_documents = int(table["validation_documents"].iloc[-1])
    cell.solved_at.append(next(solved, None))
