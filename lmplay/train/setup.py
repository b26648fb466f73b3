"""Settle all that a run needs before it trains: the experiment, the data, the phases, the folder."""

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmplay import contract, registry
from lmplay.data.carried import CarriedData
from lmplay.data.plan_spec import NEWEST_ORDER, ORDERS, Plan
from lmplay.data.prepare import Prepared, prepare
from lmplay.data.published import is_published
from lmplay.errors import UserError
from lmplay.files import typed_path
from lmplay.model.cost import Cost, known_cost
from lmplay.model.device import choose_device
from lmplay.runs import checkpoints, trust
from lmplay.runs.folder import find_run
from lmplay.runs.names import CHECKPOINTS
from lmplay.runs.published import check_readable
from lmplay.runs.run import is_run, read_run
from lmplay.runs.settings import OPTIMIZERS, Settings
from lmplay.text import mebibytes, whole_numbers
from lmplay.train.capture_choice import check_asked
from lmplay.train.held_out import choose_validations
from lmplay.train.phases import DATA_SETTINGS, Phase, choose_plan, lay_out
from lmplay.train.run_name import file_name, run_name


@dataclass(frozen=True)
class Setup:
    """All that is settled before the training begins.

    phases: as they are planned; they end where the budget does. command: the words that were typed, for run.json.
    """

    settings: Settings
    entry: registry.Entry
    variant: str
    experiment: contract.Experiment
    plan: Plan
    data: Prepared
    config: Any
    cost: Cost
    phases: list[Phase]
    folder: Path
    command: list[str]
    checked: dict[str, Any] | None = None  # what `train.checking` found of the model, for run.json

    @property
    def context_len(self) -> int:
        """Tokens per window."""
        return self.config.max_len

    @property
    def n_steps(self) -> int:
        """The planned steps of all phases together."""
        return sum(phase.n_steps for phase in self.phases)

    @property
    def n_windows(self) -> int:
        """The planned windows of all phases together."""
        return sum(phase.n_windows for phase in self.phases)


def choose_experiment(settings: Settings, kept: Path | None = None) -> tuple[registry.Entry, str, contract.Experiment]:
    """Find and load the experiment of --exp. Returns its entry, the variant and the experiment.

    kept: the folder of a run, whose own copy it is then.
    """
    if kept is not None:
        run = read_run(kept)
        entry, variant = run.code, run.get("experiment", "variant")
        if entry is None:
            raise UserError(f"{kept} keeps no code of {run.spec}: name an experiment instead")
        return entry, variant, trust.load_code(kept, entry)
    entry, variant = registry.find(settings.exp)
    return entry, variant, contract.load(entry)


def set_up(
    settings: Settings,
    command: Sequence[str] = (),
    fresh: bool = False,
    kept: Path | None = None,
    carried: CarriedData | None = None,
) -> Setup:
    """Check everything, prepare the data and lay out the run. Raises UserError.

    command: the words that were typed, for run.json. fresh: what is in the run's folder says nothing. kept: the folder
    of a run whose own copy of the experiment is trained. carried: data that were prepared on another machine.
    """
    entry, variant, experiment = choose_experiment(settings, kept)
    settings = dataclasses.replace(settings, exp=f"{entry.name}:{variant}")
    # a typing mistake need not wait for the data
    check_asked(settings, choose_device(settings.device))
    fields: dict[str, Any] = contract.parse_fields(list(settings.set))
    experiment.config(variant, vocab_size=2, **fields)
    plan = carried.plan if carried else choose_plan(settings)
    folder = settings.out_folder / (settings.run_name or run_name(settings, entry.name, variant, plan.name))
    if settings.initial_model and checkpoints.latest(folder / CHECKPOINTS) is None:
        if is_published(settings.initial_model):
            check_readable(settings.initial_model, experiment)
        else:
            find_run(settings.initial_model, settings.out_folder)
    data = carried.open() if carried else prepare(plan, settings.tokenizer)
    if settings.run_name is None:
        folder = own_folder(folder, settings, plan, data)
    settings = with_data_order(settings, folder, fresh)
    config = experiment.config(variant, data.tokenizer.vocab_size, settings.context_len or plan.context_len, **fields)
    cost = known_cost(entry.code_hash, experiment, config)
    phases = lay_out(settings, plan, data, config.max_len)
    settings = with_validations(
        settings, folder, fresh, choose_validations(settings, phases, data.validation, config.max_len)
    )
    return Setup(
        settings=settings,
        entry=entry,
        variant=variant,
        experiment=experiment.bound(config),
        plan=plan,
        data=data,
        config=config,
        cost=dataclasses.replace(cost, flops_per_token=cost.flops_per_token * (len(experiment.direction_names) or 1)),
        phases=phases,
        folder=folder,
        command=list(command),
    )


def own_folder(folder: Path, settings: Settings, plan: Plan, data: Prepared) -> Path:
    """Return the folder of a run without a name of its own: another one if a run on other files has this one.

    Files that lie elsewhere under the same name are other files. Files that changed are not: their run is refused.
    """
    try:
        before = read_run(folder) if is_run(folder) else None
    except UserError:  # opening the run says what is wrong with it
        before = None
    if before is None or (before.get("data", "hash") == data.hash and before.plan_key == plan.key):
        return folder
    named = tuple(settings.data) or (settings.training_plan,)
    had = before.settings["data"] or [before.settings["training_plan"]]
    same_files = len(named) == len(had) and all(
        typed_path(one).resolve() == typed_path(str(other)).resolve() for one, other in zip(named, had, strict=True)
    )
    same_files &= all(list(before.settings[n] or ()) == list(getattr(settings, n) or ()) for n in DATA_SETTINGS)
    return folder if same_files else folder.with_name(file_name([folder.name, data.hash[:8]]))


def with_data_order(settings: Settings, folder: Path, fresh: bool = False) -> Settings:
    """Return the settings with the order of the samples: the one asked for, else the run's own, else the newest."""
    if settings.data_order is not None:
        return settings
    own = None if fresh or not is_run(folder) else read_run(folder).settings["data_order"]
    return dataclasses.replace(settings, data_order=own if own in ORDERS else NEWEST_ORDER)


def with_validations(settings: Settings, folder: Path, fresh: bool, chosen: tuple[int, int]) -> Settings:
    """Return the settings with what decides on validations: what was typed, else the run's own, else the chosen.

    chosen: (steps between them, tokens of each dataset midway).
    """
    before = None if fresh or not is_run(folder) else read_run(folder).settings
    own = {} if before is None else {name: before[name] for name in ("validation_interval", "midway_tokens")}
    if settings.validation_interval is None and own.get("validation_interval"):
        chosen = own["validation_interval"], own["midway_tokens"] or 0
    interval = chosen[0] if settings.validation_interval is None else settings.validation_interval
    midway = chosen[1] if settings.midway_tokens is None else settings.midway_tokens
    return dataclasses.replace(settings, validation_interval=interval, midway_tokens=midway)


def check_room(setup: Setup) -> None:
    """Raise UserError where --out has no room for this model's checkpoints.

    Two are kept while a third is written, and the backups.
    """
    out, cost = setup.settings.out_folder, setup.cost
    free = shutil.disk_usage(next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())).free
    there = len(checkpoints.find_all(setup.folder / CHECKPOINTS))
    backups = setup.n_steps // setup.settings.backup_interval if setup.settings.backup_interval else 0
    backups += len(whole_numbers(setup.settings.backup_at) or ())
    numbers = cost.parameters + cost.trainable * OPTIMIZERS[setup.settings.optimizer].states
    needed = 4 * numbers * max(1, 3 + backups - there)
    if free < needed:
        raise UserError(
            f"{setup.settings.out} has {mebibytes(free)} left and checkpoints of this model need about "
            f"{mebibytes(needed)}: free some space or choose another --out"
        )
