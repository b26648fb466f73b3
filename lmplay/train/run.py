"""A run from its settings: the experiment, the data, the folder, and whether it can be continued."""

import dataclasses
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from lmplay import __version__, code_hash, contract, registry
from lmplay.data import synthetic
from lmplay.data.plans import Plan
from lmplay.data.prepare import Prepared, prepare
from lmplay.errors import UserError
from lmplay.files import write_json
from lmplay.generate import find_run, read_meta
from lmplay.stats.reading import read_run
from lmplay.stats.recording import FILES
from lmplay.train import checkpoints
from lmplay.train.device import choose_device
from lmplay.train.budget import continued
from lmplay.train.layout import Phase, choose_plan, lay_out, run_name
from lmplay.train.measure import OPTIMIZER_STATES, Cost, cost_of
from lmplay.train.settings import Settings, flag_of

WRITTEN = {"run.json", "code", "tokenizer", "checkpoints", "validate_documents", *FILES}  # what is in a run's folder


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


def set_up(settings: Settings) -> Setup:
    """Checks everything, prepares the data and lays out the run. Raises UserError."""
    entry, variant, experiment = choose_experiment(settings)
    settings = dataclasses.replace(settings, exp=f"{entry.name}:{variant}")
    # a typing mistake need not wait for the data
    choose_device(settings.device)
    fields = contract.parse_fields(list(settings.set))
    experiment.config(variant, vocab_size=2, **fields)
    plan = choose_plan(settings)
    folder = Path(settings.out) / (settings.run_name or run_name(settings, entry.name, variant, plan.name))
    if settings.initial_model and checkpoints.latest(folder / "checkpoints") is None:
        find_run(Path(settings.out), settings.initial_model)
    data = prepare(plan, settings.tokenizer)
    config = experiment.config(variant, data.tokenizer.vocab_size, settings.context_len or plan.context_len, **fields)
    cost = cost_of(experiment, config)
    cost = dataclasses.replace(cost, flops_per_token=cost.flops_per_token * (len(experiment.ways) or 1))
    phases = lay_out(settings, plan, data, config.max_len)
    return Setup(settings, entry, variant, experiment.bound(config), plan, data, config, cost, phases, folder)


def to_continue(setup: Setup) -> Path | None:
    """The checkpoint from which the run goes on; None where it has to start.

    Raises UserError where what was trained so far does not fit what is asked for now.
    """
    checkpoint = checkpoints.latest(setup.folder / "checkpoints")
    if checkpoint is not None:
        check_unchanged(setup, read_meta(setup.folder))
        for leftover in list(setup.folder.rglob(".*.tmp")):  # of what a killed trainer was writing
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    return checkpoint


def start_folder(setup: Setup) -> None:
    """Makes the run's folder. One that is there is kept aside if there is a checkpoint in it (--fresh), else written over.

    Raises UserError where it is not a run's folder.
    """
    folder = setup.folder
    if checkpoints.latest(folder / "checkpoints") is not None:
        replaced = folder.parent / ".replaced" / folder.name
        shutil.rmtree(replaced, ignore_errors=True)
        replaced.parent.mkdir(exist_ok=True)
        folder.rename(replaced)
        print(f"the run that was in {folder} is kept in {replaced} until the next --fresh", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    others = [path.name for path in folder.iterdir() if path.name not in WRITTEN and not path.name.endswith(".tmp")]
    if others and not (folder / "run.json").exists():
        raise UserError(f"{folder} is not a run's folder (it holds {others[0]}): choose another --run-name or --out")
    for path in folder.iterdir():  # what a run left that was killed before its first checkpoint
        if path.name not in others:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in setup.entry.code_files:
        target = folder / "code" / setup.entry.name / path.relative_to(setup.entry.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    _copy_tokenizer(setup.data.tokenizer.spec, folder / "tokenizer")
    return None


def check_unchanged(setup: Setup, meta: dict) -> None:
    """Refuses to continue a run as something else than it was; `setup.phases` become those that it goes on with."""
    way_out = "choose another --run-name, or --fresh to start this one over"
    name = setup.folder.name
    if meta["tokenizer"]["fingerprint"] != setup.data.tokenizer.fingerprint:
        raise UserError(
            f"the run {name} was trained with the tokenizer {meta['tokenizer']['spec']} (vocabulary "
            f"{meta['tokenizer']['vocab_size']}), not {setup.data.tokenizer.spec} (vocabulary "
            f"{setup.data.tokenizer.vocab_size}): {way_out}"
        )
    now = setup.settings.as_json()
    # a setting that is younger than the run was as by default
    pairs = [
        (flag_of(key), meta["settings"].get(key, getattr(Settings(), key)), now[key]) for key in setup.settings.identity
    ]
    pairs += [
        (key, meta["config"].get(key, value), value) for key, value in contract.config_values(setup.config).items()
    ]
    changed = [f"{name} was {before}, now {after}" for name, before, after in pairs if before != after]
    if changed:
        raise UserError(f"the run {name} was started with other settings ({'; '.join(changed)}): {way_out}")
    if meta["data"]["hash"] != setup.data.hash or meta["plan"]["hash"] != setup.plan.hash:
        raise UserError(f"the data of the run {name} changed since it was started (plan {setup.plan.name}): {way_out}")
    if read_run(setup.folder).code_hash != setup.entry.code_hash:
        raise UserError(f"the code in {setup.entry.folder} changed since the run {name} was started: {way_out}")
    setup.phases = continued(setup.phases, setup.settings, meta["progress"], name, way_out)


def describe_run(setup: Setup, device) -> dict:
    """The content of run.json when a run begins."""
    import torch

    from lmplay.train.device import device_name

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
        "created": _now(),
        "command": sys.argv,
        "experiment": {
            "name": entry.name,
            "variant": setup.variant,
            "parent": entry.parent,
            "folder": str(entry.folder),
            "code_hash": entry.code_hash,
            "code_hash_version": code_hash.VERSION,
            "causal": setup.experiment.causal,
            "summary": entry.summary,
        },
        "config": contract.config_values(setup.config),
        "settings": setup.settings.as_json(),
        "plan": {"name": setup.plan.name, "hash": setup.plan.hash, "content": setup.plan.content},
        "tokenizer": {
            "spec": tokenizer.spec,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eot": tokenizer.eot,
        },
        "data": {"hash": setup.data.hash, "datasets": stores},
        "parameters": {"total": setup.cost.parameters, "trainable": setup.cost.trainable},
        "flops_per_token": setup.cost.flops_per_token,
        "flops_per_update": setup.cost.flops_per_update,
        "device": {"type": device.type, "name": device_name(device), "threads": torch.get_num_threads()},
        "versions": {"lmplay": __version__, "python": platform.python_version(), "torch": str(torch.__version__)},
        "git": _git(),
        "progress": {},
    }


def initial_model(setup: Setup):
    """The model with the initial values that its own code gives it (--same-init: by its parameters' names)."""
    import torch

    if setup.settings.same_init:
        from lmplay.train.initial import build_by_name

        return build_by_name(lambda: setup.experiment.build(setup.config), setup.settings.seed)
    torch.manual_seed(setup.settings.seed)
    return setup.experiment.build(setup.config)


def check_room(setup: Setup) -> None:
    """Raises UserError where --out has no room for checkpoints of this model: two are kept while a third is written, and backups."""
    out, cost = Path(setup.settings.out), setup.cost
    free = shutil.disk_usage(next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())).free
    there = len(checkpoints.find_all(setup.folder / "checkpoints"))
    backups = setup.n_updates // setup.settings.backup_interval if setup.settings.backup_interval else 0
    needed = (
        4
        * (cost.parameters + cost.trainable * OPTIMIZER_STATES[setup.settings.optimizer])
        * max(1, 3 + backups - there)
    )
    if free < needed:
        raise UserError(
            f"{out} has {free / 2**20:,.0f} MiB left and checkpoints of this model need about "
            f"{needed / 2**20:,.0f} MiB: free some space or choose another --out"
        )


def initial_weights(setup: Setup, model) -> None:
    """Starts from the weights of --initial-model."""
    if setup.settings.initial_model is None:
        return
    folder = find_run(Path(setup.settings.out), setup.settings.initial_model)
    folder, checkpoint = checkpoints.of_run(folder)
    meta = read_meta(folder)
    if meta["tokenizer"]["fingerprint"] != setup.data.tokenizer.fingerprint:
        raise UserError(
            f"--initial-model {folder}: its tokenizer {meta['tokenizer']['spec']} is not this run's "
            f"{setup.data.tokenizer.spec}, so that its tokens mean something else"
        )
    if checkpoint is None:
        raise UserError(f"--initial-model {folder}: this run has no checkpoint")
    checkpoints.load_weights(checkpoint, model)


def save_run_json(folder: Path, meta: dict) -> None:
    write_json(folder / "run.json", meta)


def only_trainer(folder: Path) -> FileLock:
    """Holds a run's folder for this process, as long as the lock is referred to. Raises UserError if another has it."""
    locks = folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / folder.name, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another lmp_trainer is training {folder} right now: wait for it, or choose another --run-name"
        ) from None
    return lock


def _copy_tokenizer(spec: str, target: Path) -> None:
    kind, _, place = spec.partition(":")
    if kind == "bpe":
        shutil.copytree(place, target)
    elif kind == "sentencepiece":
        target.mkdir()
        shutil.copy(place, target)


def _known_figures(setup: Setup, name: str) -> dict:
    """Of a synthetic dataset: `entropy`, the lowest loss that is possible, in nats a scored token, and, where the task knows them,
    `chance`, the accuracy of guessing, and `ceiling`, the best one that is possible."""
    spec, store = setup.plan.datasets[name], setup.data.validation[name]
    if spec.kind != "synthetic":
        return {}
    scored = store.scored(0, store.n_tokens)
    n_scored = store.n_tokens if scored is None else int(scored.sum())
    figures = {
        "entropy": synthetic.entropy(spec) * store.n_documents / n_scored,
        "chance": synthetic.chance(spec),
        "ceiling": synthetic.ceiling(spec),
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


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
