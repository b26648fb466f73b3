"""Has every experiment trained on every task that it is not trained on yet, under each seed, and reads what they have reached."""

import dataclasses
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from lmplay.compare.jobs import Job, RunIndex
from lmplay.data import tasks as data_tasks
from lmplay.data.plans import Plan, list_plans, load_plan
from lmplay.data.tokenizers import load_tokenizer
from lmplay.errors import UserError, check_at_least, did_you_mean
from lmplay.model.device import choose_device
from lmplay.probe.scorecard import SOLVED, Cell, Scorecard
from lmplay.probe.sizes import CONTEXT_LEN, Size, SizedVariant, sized_variants
from lmplay.runs.run import Run, is_run
from lmplay.runs.settings import Settings
from lmplay.text import name_key
from lmplay.train.phases import lay_out
from lmplay.train.settings import as_flags
from lmplay.train.worker import train_apart

PREFIX = "probe_"


DEFAULT_TASKS = ("copy", "induction", "mqar", "selective_copy", "compress", "parity")


VALIDATIONS, VALIDATION_TOKENS = 8, 20_000  # of a run, of each


@dataclass(frozen=True)
class ProbeRequest:
    """What is asked. `tasks`: names of probes, plan files, or "all"; `updates`, `batch_size`: instead of the size's."""

    experiments: tuple[str, ...]
    tasks: tuple[str, ...] = DEFAULT_TASKS
    seeds: int = 2
    size: Size = field(kw_only=True)
    lr: float = 3e-3
    device: str = "auto"
    out: str = "gpt_out"

    def __post_init__(self):
        check_at_least(1, seeds=self.seeds)

    def settings(self, plan: str) -> Settings:
        return Settings(
            training_plan=plan,
            batch_size=self.size.batch_size,
            lr=self.lr,
            max_steps=self.size.updates,
            device=self.device,
            out=self.out,
            validation_interval=max(1, self.size.updates // VALIDATIONS),
            validation_tokens=VALIDATION_TOKENS,
        )


class Stopped(Exception):
    """Asked to stop by Ctrl-C or SIGTERM. `scorecard`: of what is there so far."""

    def __init__(self, scorecard: Scorecard):
        self.scorecard = scorecard


def find_tasks(names: tuple[str, ...]) -> list[tuple[str, Plan]]:
    """(task, plan) of each name. Raises UserError: no such probe, or a plan that is none."""
    known = [plan.name.removeprefix(PREFIX) for plan in list_plans() if plan.name.startswith(PREFIX)]
    found: dict[str, Plan] = {}
    for name in known if "all" in names else names:
        short = name_key(name).removeprefix(PREFIX)
        if name.endswith(".json"):
            plan = load_plan(name)
        elif short in map(name_key, known):
            plan = load_plan(PREFIX + short)
        else:
            raise UserError(f"no probe named {name!r}.{did_you_mean(short, known)}")
        short = plan.name.removeprefix(PREFIX)
        specs = list(plan.datasets.values())
        if (
            len(specs) != 1
            or specs[0].kind != "synthetic"
            or data_tasks.ceiling(specs[0]) is None
            or data_tasks.chance(specs[0]) is None
        ):
            raise UserError(
                f"plan {plan.name} is no probe: it takes one synthetic dataset, of a task whose chance and ceiling are known"
            )
        if found.setdefault(short, plan) is not plan:
            raise UserError(f"--tasks names {short} twice")
    return list(found.items())


def run_probe(request: ProbeRequest) -> Scorecard:
    """Trains what is missing. Raises UserError, and Stopped where it was asked to stop."""
    tasks = find_tasks(request.tasks)
    choose_device(request.device)
    models = sized_variants(list(request.experiments), request.size, load_tokenizer("bytes").vocab_size)
    places = {task: RunIndex(request.settings(str(plan.path)), any_interval=False) for task, plan in tasks}
    for task, place in places.items():
        n_updates = sum(
            phase.n_updates for phase in lay_out(place.settings, place.plan, place.data, _context_len(place.plan))
        )
        if n_updates < request.size.updates:
            raise UserError(
                f"{task} has data for {n_updates} updates only: ask for fewer --updates, or give its plan more epochs"
            )

    def job(task: str, contestant: SizedVariant, seed: int) -> Job:
        return Job(
            contestant.model,
            dataclasses.replace(places[task].settings, exp=contestant.label, set=contestant.fields, seed=seed),
        )

    wanted = [(task, c, seed) for seed in range(request.seeds) for task in places for c in models]
    missing = [one for one in wanted if (found := places[one[0]].find(job(*one))) is None or found.state == "begun"]
    stopped, began = False, time.monotonic()
    for number, one in enumerate(missing):
        left = (
            f" (all done in about {(time.monotonic() - began) / number * (len(missing) - number) / 60:.0f} min)"
            if number
            else ""
        )
        print(
            f"run {number + 1} of {len(missing)}: {one[0]}, {one[1].label}, seed {one[2]}{left}",
            file=sys.stderr,
            flush=True,
        )
        if stopped := _train(places[one[0]], job(*one), _context_len(places[one[0]].plan)) == "stopped":
            break
    cells = [
        _cell(task, c, places[task], [places[task].find(job(task, c, seed)) for seed in range(request.seeds)])
        for c in models
        for task in places
    ]
    known = {task: next(iter(plan.datasets.values())) for task, plan in tasks}
    scorecard = Scorecard(
        {c.label: c.parameters for c in models},
        {task: plan.description for task, plan in tasks},
        {task: (data_tasks.chance(spec), data_tasks.ceiling(spec)) for task, spec in known.items()},
        cells,
        sorted({line for place in places.values() for line in place.skipped}),
    )
    if stopped:
        raise Stopped(scorecard)
    return scorecard


def _context_len(plan: Plan) -> int:
    return plan.context_len or CONTEXT_LEN


def _train(place: RunIndex, job: Job, context_len: int) -> str:
    settings = place.to_train(job, context_len)
    folder = Path(settings.out) / settings.run_name
    try:
        return train_apart(settings, ["lmp_trainer", *as_flags(settings)])
    except UserError as error:
        if is_run(folder):
            place.take_in(folder)
        if (found := place.find(job)) is None or found.state != "failed":
            raise
        print(f"lmp_probe: {error}", file=sys.stderr)
        return "failed"
    finally:
        if is_run(folder):
            place.take_in(folder)


def _cell(task: str, contestant: SizedVariant, place: RunIndex, found: list) -> Cell:
    (spec,) = place.plan.datasets.values()
    chance, ceiling = data_tasks.chance(spec), data_tasks.ceiling(spec)
    cell = Cell(task, contestant.label, chance, ceiling)
    for one in found:
        if one is None or one.state == "begun":
            continue
        cell.runs.append(one.run.name)
        if one.state == "failed":
            cell.n_failed += 1
            continue
        _read(cell, one.run)
    return cell


def _read(cell: Cell, run: Run) -> None:
    table = run.table("validate", ("accuracy", "loss", "validation_documents"))
    scores = [cell.scaled_of(accuracy) for accuracy in table["accuracy"]]
    cell.accuracies.append(float(table["accuracy"].iloc[-1]))
    cell.losses.append(float(table["loss"].iloc[-1]))
    cell.n_documents = int(table["validation_documents"].iloc[-1])
    cell.solved_at.append(next((int(step) for step, score in zip(table["step"], scores) if score >= SOLVED), None))
