"""A run from its settings: the experiment, the data, the folder, and whether it can be continued."""

import dataclasses
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmplay import contract, registry
from lmplay.data import tasks
from lmplay.data.plan_spec import Plan
from lmplay.data.prepare import Prepared, prepare
from lmplay.errors import UserError
from lmplay.model.cost import Cost, cost_of
from lmplay.model.device import choose_device
from lmplay.runs import checkpoints
from lmplay.runs.describe import describe_model
from lmplay.runs.folder import find_run
from lmplay.runs.names import CHECKPOINTS
from lmplay.runs.settings import OPTIMIZERS, Settings
from lmplay.train.phases import Phase, choose_plan, lay_out
from lmplay.train.run_name import run_name
from lmplay.version import __version__


@dataclass
class Setup:
    """All that is settled before the training begins. `phases` end where the budget does."""

    settings: Settings
    entry: registry.Entry
    variant: str
    experiment: contract.Experiment
    plan: Plan
    data: Prepared
    config: object
    cost: Cost
    phases: list[Phase]
    folder: Path
    command: list[str] = field(default_factory=list)  # what was typed, for run.json

    @property
    def context_len(self) -> int:
        return self.config.max_len

    @property
    def n_updates(self) -> int:
        return sum(phase.n_updates for phase in self.phases)

    @property
    def n_windows(self) -> int:
        return sum(phase.n_windows for phase in self.phases)


def choose_experiment(settings: Settings) -> tuple[registry.Entry, str, contract.Experiment]:
    """Finds and loads the experiment of --exp."""
    entry, variant = registry.find(settings.exp)
    return entry, variant, contract.load(entry)


def set_up(settings: Settings, command: Sequence[str] = ()) -> Setup:
    """Check everything, prepare the data and lay out the run. `command` is what run.json notes as typed. Raises UserError."""
    entry, variant, experiment = choose_experiment(settings)
    settings = dataclasses.replace(settings, exp=f"{entry.name}:{variant}")
    # a typing mistake need not wait for the data
    choose_device(settings.device)
    fields = contract.parse_fields(list(settings.set))
    experiment.config(variant, vocab_size=2, **fields)
    plan = choose_plan(settings)
    folder = Path(settings.out) / (settings.run_name or run_name(settings, entry.name, variant, plan.name))
    if settings.initial_model and checkpoints.latest(folder / CHECKPOINTS) is None:
        find_run(settings.initial_model, Path(settings.out))
    data = prepare(plan, settings.tokenizer)
    config = experiment.config(variant, data.tokenizer.vocab_size, settings.context_len or plan.context_len, **fields)
    cost = cost_of(experiment, config)
    cost = dataclasses.replace(cost, flops_per_token=cost.flops_per_token * (len(experiment.direction_names) or 1))
    phases = lay_out(settings, plan, data, config.max_len)
    return Setup(
        settings=settings,
        entry=entry,
        variant=variant,
        experiment=experiment.bound(config),
        plan=plan,
        data=data,
        config=config,
        cost=cost,
        phases=phases,
        folder=folder,
        command=list(command),
    )


def describe_run(setup: Setup, device) -> dict:
    """The content of run.json when a run begins."""
    import torch

    from lmplay.model.device import device_name

    tokenizer, entry = setup.data.tokenizer, setup.entry
    stores = {
        name: {
            "train": _store_facts(setup.data.train[name]),
            "validation": _store_facts(setup.data.validation[name]),
            **_known_figures(setup, name),
        }
        for phase in setup.phases
        for name in phase.datasets
    }
    return {
        "format": 1,
        "run": setup.folder.name,
        "status": "running",
        "command": setup.command,
        **describe_model(
            experiment=setup.experiment,
            entry=entry,
            variant=setup.variant,
            config=setup.config,
            folder=entry.folder,
            n_parameters=setup.cost.parameters,
            n_trainable=setup.cost.trainable,
            flops_per_token=setup.cost.flops_per_token,
            flops_per_step=setup.cost.flops_per_step,
        ),
        "settings": setup.settings.as_json(),
        "plan": {"name": setup.plan.name, "hash": setup.plan.hash, "content": setup.plan.content},
        "tokenizer": {
            "spec": tokenizer.spec,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eot": tokenizer.eot,
        },
        "data": {"hash": setup.data.hash, "datasets": stores},
        "device": {"type": device.type, "name": device_name(device), "threads": torch.get_num_threads()},
        "versions": {"lmplay": __version__, "python": platform.python_version(), "torch": str(torch.__version__)},
        "git": _git(),
        "progress": {},
    }


def build_model(setup: Setup):
    """The model with the initial values that its own code gives it (--same-init: by its parameters' names)."""
    import torch

    if setup.settings.same_init:
        from lmplay.model.initial_values import build_by_name

        return build_by_name(lambda: setup.experiment.build(setup.config), setup.settings.seed)
    torch.manual_seed(setup.settings.seed)
    return setup.experiment.build(setup.config)


def check_room(setup: Setup) -> None:
    """Raises UserError where --out has no room for checkpoints of this model: two are kept while a third is written, and backups."""
    out, cost = Path(setup.settings.out), setup.cost
    free = shutil.disk_usage(next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())).free
    there = len(checkpoints.find_all(setup.folder / CHECKPOINTS))
    backups = setup.n_updates // setup.settings.backup_interval if setup.settings.backup_interval else 0
    needed = (
        4
        * (cost.parameters + cost.trainable * OPTIMIZERS[setup.settings.optimizer].states)
        * max(1, 3 + backups - there)
    )
    if free < needed:
        raise UserError(
            f"{out} has {free / 2**20:,.0f} MiB left and checkpoints of this model need about "
            f"{needed / 2**20:,.0f} MiB: free some space or choose another --out"
        )


def load_initial_weights(setup: Setup, model) -> None:
    """Starts from the weights of --initial-model."""
    if setup.settings.initial_model is None:
        return
    run = find_run(setup.settings.initial_model, Path(setup.settings.out)).check("load")
    folder, checkpoint = run.folder, run.checkpoint
    if run.get("tokenizer", "fingerprint") != setup.data.tokenizer.fingerprint:
        raise UserError(
            f"--initial-model {folder}: its tokenizer {run.get('tokenizer', 'spec')} is not this run's "
            f"{setup.data.tokenizer.spec}, so that its tokens mean something else"
        )
    if checkpoint is None:
        raise UserError(f"--initial-model {folder}: this run has no checkpoint")
    checkpoints.load_weights(checkpoint, model)


def _known_figures(setup: Setup, name: str) -> dict:
    """Of a synthetic dataset: `entropy`, the lowest loss that is possible, in nats a scored token, and, where the task knows them,
    `chance`, the accuracy of guessing, and `ceiling`, the best one that is possible."""
    spec, store = setup.plan.datasets[name], setup.data.validation[name]
    if spec.kind != "synthetic":
        return {}
    scored = store.scored(0, store.n_tokens)
    n_scored = store.n_tokens if scored is None else int(scored.sum())
    figures = {
        "entropy": tasks.entropy(spec.source_id, spec.settings) * store.n_documents / n_scored,
        "chance": tasks.chance(spec.source_id, spec.settings),
        "ceiling": tasks.ceiling(spec.source_id, spec.settings),
    }
    return {name: value for name, value in figures.items() if value is not None}


def _store_facts(store) -> dict:
    return {"hash": store.hash, "tokens": store.n_tokens, "documents": store.n_documents, "bytes": store.n_bytes}


def _git() -> dict | None:
    def ask(*words):
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=5).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
