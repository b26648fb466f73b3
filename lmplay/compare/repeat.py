"""Train one run of a verdict's file anew here, and say how near its losses come."""

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmplay.compare.judged_again import Judged
from lmplay.compare.seed_spread import group_of
from lmplay.data.prepare import prepare
from lmplay.errors import UserError
from lmplay.files import typed_path
from lmplay.report.as_json import plain
from lmplay.report.provenance import OTHERS
from lmplay.runs import trust
from lmplay.runs.folder import find_runs
from lmplay.runs.names import CUDA_GRAPH, MICRO_BATCH_SIZE
from lmplay.runs.run import Run, is_run, read_run
from lmplay.runs.setting import json_value
from lmplay.runs.settings import Settings
from lmplay.runs.validations import Validations, read_validations
from lmplay.stats.machines import MachineSpread, machine_spread
from lmplay.text import counted, printable
from lmplay.train.checking import noted
from lmplay.train.phases import choose_plan
from lmplay.train.run_name import file_name
from lmplay.train.settings import FIELDS, as_flags
from lmplay.train.worker import train_apart

MACHINE = {"device": ("device", "name"), "threads": ("device", "threads"), "torch": OTHERS["torch"]}
NOT_TAKEN = ("out", "run_name", "device", "threads", "compile", "cuda_graph", "mini_batch_size")
MOST_THREADS = 1024
WITHIN = 2.0  # standard deviations


@dataclass(frozen=True)
class Repeated:
    """A run that was trained anew.

    equal: each loss of each document is, to the bit. difference: of the final validation losses, new minus the file's,
    nats per token. unlike: in what the machines differ. spread: between machines, None if none was measured.
    """

    label: str
    run: Run
    equal: bool
    n_losses: int
    difference: float
    unlike: tuple[str, ...]
    spread: MachineSpread | None
    warnings: tuple[str, ...]

    @property
    def within(self) -> bool | None:
        """Whether the difference is one that machines make; None if that is not known."""
        if self.equal:
            return True
        return None if self.spread is None or not self.unlike else abs(self.difference) <= WITHIN * self.spread.sd

    @property
    def lines(self) -> list[str]:
        """What came out, for people."""
        lines = [f"repeated: {self.label}, trained anew here in {self.run.folder}"]
        machine = "another machine" if self.unlike else "the same kind of machine"
        where = f"{machine} ({'; '.join(self.unlike)})" if self.unlike else machine
        if self.equal:
            lines.append(f"equal to the bit: all {self.n_losses} losses of documents, on {where}")
        else:
            lines.append(f"not equal to the bit, on {where}: {self.difference:+.2g} nats per token at the end")
            lines.append(self._judgement())
        return [*lines, *(f"warning: {warning}" for warning in self.warnings)]

    def _judgement(self) -> str:
        if not self.unlike:
            return "on the same kind of machine that is no repetition: the file's numbers may come from something else"
        if self.spread is None:
            return (
                "how far machines lie apart at one seed is not measured for this model and plan, so this says neither "
                "yes nor no: train the run on further machines, or with other --threads, into --out, and repeat"
            )
        measured = (
            f"{WITHIN:g} standard deviations of the difference between two machines at one seed, {self.spread.sd:.2g} "
            f"nats per token by {counted(self.spread.n_runs, 'run')} in --out"
        )
        return f"within {measured}" if self.within else f"beyond {measured}: machines alone do not explain it"

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a program."""
        return plain(
            {
                "run": self.label,
                "folder": self.run.folder,
                "equal": self.equal,
                "within": self.within,
                "difference": self.difference,
                "machine_differs": list(self.unlike),
                "spread_sd": self.spread and self.spread.sd,
                "spread_runs": self.spread and self.spread.n_runs,
                "warnings": list(self.warnings),
            }
        )


def repeat(found: Judged, wanted: str, file: Path, here: Settings, given: Mapping[str, Any]) -> Repeated:
    """Train a run of a file anew into --out. wanted: its number in the file; "": the first candidate's first.

    here, given: the settings that are typed, and their values by name: where to train, where the data lie. Raises
    UserError: no such run, code that is not trusted, other data.
    """
    number = wanted.zfill(4) if wanted else found.comparison.candidates[0].arm.runs[0].folder.name
    if number not in found.runs or number not in found.labels:
        known = "; ".join(f"{one}: {label}" for one, label in found.labels.items())
        raise UserError(f"--repeat {number}: {file} has no such run, but {known}")
    run = found.runs[number]
    _check_trusted(run, file)
    settings = _settings(run, here, given)
    _check_data(run, settings, file)
    name = file_name(["repeat", printable(run.name)])
    settings = dataclasses.replace(settings, run_name=_free(settings.out_folder, name))
    if train_apart(settings, ["lmp_trainer", *as_flags(settings)], kept=run.folder) != "finished":
        raise UserError("the repetition was stopped: type the command again to go on")
    new = read_run(settings.out_folder / (settings.run_name or ""))
    return _compared(found.labels[number], run, new)


def _compared(label: str, run: Run, new: Run) -> Repeated:
    """Compare a run with the one that was trained anew. Raises UserError where they were not validated alike."""
    theirs, ours = read_validations(run), read_validations(new)
    if ours.documents != theirs.documents or not np.array_equal(ours.tokens, theirs.tokens):
        raise UserError(f"{new.folder} was not validated on the same tokens as the file's run: they can't be compared")
    there, here = theirs.trajectory.losses, ours.trajectory.losses
    return Repeated(
        label=label,
        run=new,
        equal=np.array_equal(there, here, equal_nan=True),
        n_losses=int(np.isfinite(there).sum()),
        difference=_final(ours) - _final(theirs),
        unlike=tuple(_unlike(run, new)),
        spread=_spread(run, new),
        warnings=tuple(noted(new)),
    )


def _final(one: Validations) -> float:
    return float(one.trajectory.losses[-1].sum() / one.tokens.sum())


def _unlike(run: Run, new: Run) -> list[str]:
    """Return in what two machines differ that changes the last digits."""
    found = {what: (printable(run.get(*keys)), printable(new.get(*keys))) for what, keys in MACHINE.items()}
    found["compiled"] = (str(run.compiled["mode"]), str(new.compiled["mode"]))
    return [f"{what} {here} instead of {there}" for what, (there, here) in found.items() if here != there]


def _spread(run: Run, new: Run) -> MachineSpread | None:
    """Return how far machines lie apart, by finished runs in --out that differ from `run` in seed and machine alone."""
    try:
        others, _ = find_runs([], new.folder.parent)
    except UserError:
        return None
    by_seed: dict[Any, dict[tuple[str, ...], float]] = {}  # without the file's: what it says is in question
    for other in others:
        same = group_of(other) == group_of(run) and other.plan_key == run.plan_key
        if not same or other.get("data", "hash") != run.get("data", "hash") or other.get("status") != "finished":
            continue
        if other.folder.resolve() != new.folder.resolve() and other.get("progress", "phases") == run.get(
            "progress", "phases"
        ):
            by_seed.setdefault(other.settings["seed"], {}).setdefault(_machine(other), _loss(other))
    return machine_spread([list(filter(np.isfinite, losses.values())) for losses in by_seed.values()])


def _machine(run: Run) -> tuple[str, ...]:
    return (*(str(run.get(*keys)) for keys in MACHINE.values()), str(run.compiled["mode"]))


def _loss(run: Run) -> float:
    return run.number("progress", "validation_loss") or float("nan")


def _check_trusted(run: Run, file: Path) -> None:
    """Raise UserError unless the code of a run may be run here."""
    entry = run.code
    try:
        assert entry is not None  # the runs of a file have their code
        trust.check_trusted(run.folder, entry)
    except UserError:
        raise UserError(
            f"--repeat runs the code in {file}, which was not made here: unpack it, look at it, and trust it with "
            "--trust-code FOLDER, then type the command again"
        ) from None


def _settings(run: Run, here: Settings, given: Mapping[str, Any]) -> Settings:
    """Return the settings of a run as it is trained anew here. Raises UserError."""
    noted = {name: value for name, value in run.settings.items() if name in FIELDS and name not in NOT_TAKEN}
    noted["compile"] = run.compiled["mode"]
    noted["cuda_graph"] = run.get(CUDA_GRAPH, "mode") or here.cuda_graph
    noted["mini_batch_size"] = run.get(MICRO_BATCH_SIZE) or run.settings["mini_batch_size"]
    if run.get("device", "type") == "cpu" and run.get("device", "name") == _cpu():
        noted["threads"] = run.get("device", "threads")
    values: dict[str, Any] = {}
    for name, value in noted.items():
        try:
            values[name] = json_value(FIELDS[name], value)
        except ValueError as error:
            raise UserError(f"{run.name}: its setting {name} {error}") from None
    if values.get("threads", 0) > MOST_THREADS:
        del values["threads"]
    for name, other in (("data", "training_plan"), ("training_plan", "data")):
        if name in given and other not in given:
            values.pop(other)
    return Settings(**{**values, "out": here.out, "device": here.device, **given})


def _cpu() -> str:
    import torch

    from lmplay.model.device import device_name

    return device_name(torch.device("cpu"))


def _check_data(run: Run, settings: Settings, file: Path) -> None:
    """Raise UserError unless the data of a run are here."""
    where = f"the run of {file} was trained on {printable(run.get('plan', 'name'))}"
    ask = "name the same data with --training-plan or --data"
    try:
        plan = choose_plan(settings)
        data = prepare(plan, settings.tokenizer)
    except UserError as error:
        raise UserError(f"{where}, which is not here ({error}): {ask}") from None
    if data.hash != run.get("data", "hash") or plan.key != run.plan_key:
        raise UserError(f"{where}, and here that means other data: {ask}")


def _free(out: Path, name: str) -> str:
    """Return the name of a run that is not there yet, or that was stopped before its end."""
    for n in itertools.count(1):
        chosen = name if n == 1 else f"{name}_{n}"
        folder = typed_path(out) / chosen
        if not folder.exists() or (is_run(folder) and read_run(folder).get("status") != "finished"):
            return chosen
    raise AssertionError
