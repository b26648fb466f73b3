"""Find the runs that a comparison needs, whatever made them.

Nothing here loads an experiment or torch, so that a comparison answers at once if all its runs are there.
"""

import dataclasses
import itertools
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lmplay.compare.matching import LEFT_TO_US, Asked, Difference
from lmplay.compare.outlook import PlannedRun
from lmplay.compare.recipes import arm_settings
from lmplay.compare.tuning import applied
from lmplay.compare.variants import Variant
from lmplay.data.plan_spec import NEWEST_ORDER
from lmplay.data.prepare import prepare
from lmplay.errors import UserError
from lmplay.runs.folder import find_runs, is_being_trained
from lmplay.runs.names import N_STEPS
from lmplay.runs.run import Run, is_run, read_run
from lmplay.runs.settings import Settings
from lmplay.runs.validations import read_validations
from lmplay.stats.choices import NOTHING_CHOSEN, Choice
from lmplay.text import counted
from lmplay.train.held_out import choose_validations
from lmplay.train.phases import choose_plan, lay_out
from lmplay.train.recipes import given_in
from lmplay.train.run_name import budgets, file_name, run_name


class Stopped(Exception):
    """Ctrl-C or SIGTERM asked to stop, or the time is over. `result` is what could be said so far, None if nothing."""

    def __init__(self, result: Any = None, out_of_time: bool = False):
        self.result, self.out_of_time = result, out_of_time


@dataclass
class Match:
    """The run of a job as it stands.

    state: "finished", "failed" (its loss was not finite), "crashed" (its model did, or hung) or "begun".
    """

    run: Run
    state: str


@dataclass(frozen=True)
class NearMiss:
    """A finished run that is nearly what a job asks for, and what it lacks."""

    run: Run
    differences: list[Difference]

    def __str__(self) -> str:
        first, more = self.differences[0], len(self.differences) - 1
        said = f"{first.text}, and {counted(more, 'more difference')}" if more else str(first)
        return f"{self.run.folder}: {said}"


class RunIndex:
    """The runs in --out, the data that all runs of a comparison share, and which run is what a job asks for.

    settings: those of every run, except experiment, seed and what is tuned. any_interval: a run counts as the same
    however often it validated. retry_crashed: a run that crashed counts as begun, to be trained again. prefix: what the
    names of new runs begin with. given: the names of the settings that come before an arm's recipe; None: of those that
    are not at their defaults. skipped: one line for each folder that can't be read.
    """

    def __init__(
        self,
        settings: Settings,
        any_interval: bool,
        retry_crashed: bool = False,
        prefix: str = "",
        given: Collection[str] | None = None,
    ):
        self.settings = dataclasses.replace(settings, data_order=settings.data_order or NEWEST_ORDER)
        self.any_interval, self.retry_crashed, self.prefix = any_interval, retry_crashed, prefix
        self.given = given_in(settings) if given is None else frozenset(given)
        self.plan = choose_plan(settings)
        self.data = prepare(self.plan, settings.tokenizer)
        self.runs: list[Run] = []
        self.skipped: list[str] = []
        out = settings.out_folder
        if out.is_dir() and any(path.is_dir() and not path.name.startswith((".", "__")) for path in out.iterdir()):
            runs, self.skipped = find_runs([], out)
            for run in runs:
                self._add(run)
        # of runs that are begun from now on
        self.new_validations = settings.validation_interval, settings.midway_tokens
        self._steps = cache(self._steps_of)
        self.asked = Asked(self.plan.key, data_hash=self.data.hash, any_interval=any_interval, phases_of=self._steps)
        self._whole: dict[int, tuple[Run, bool]] = {}
        self.compiled = ""  # on or off, as the first run of the comparison has it: the others are taken like it

    def job(self, variant: Variant, seed: int, choice: Choice = NOTHING_CHOSEN, label: str = "") -> "Job":
        """Return the job of training a variant under a seed and a choice. `label` is what messages call it."""
        settings = dataclasses.replace(applied(self.arm_settings(variant), choice), exp=variant.spec, seed=seed)
        return Job(index=self, variant=variant, settings=settings, label=label or f"{variant.label}, seed {seed}")

    def arm_settings(self, variant: Variant) -> Settings:
        """Return the settings of a variant's runs: by its recipe where the user gave none."""
        return arm_settings(self.settings, variant.entry, self.given)

    def find(self, job: "Job") -> Match | None:
        """Find the run of a job: a finished one first, and of several finished ones the one validated most often."""
        rank = {"finished": 3, "failed": 2, "crashed": 1, "begun": 0}
        same_seed = [run for run in self.runs if run.settings["seed"] == job.settings.seed]  # the rest takes longer
        found = [Match(run, state) for run in same_seed if (state := self._state(run, job))]
        return max(found, key=lambda m: (rank[m.state], -m.run.settings["validation_interval"]), default=None)

    def find_outdated(self, job: "Job") -> Run | None:
        """Find the newest finished run that differs from what a job asks for by the experiment's code only."""
        older = [
            run
            for run in self.runs
            if run.get("status") == "finished"
            and self._is_same_but_code(run, job)
            and run.code_hash != job.variant.code_hash
        ]
        return max(older, key=lambda run: str(run.get("created")), default=None)

    def nearest(self, job: "Job") -> NearMiss | None:
        """Find the finished run of a job's model and seed that lacks the fewest things to be the job's."""
        misses = []
        for run in self.runs:
            if run.get("status") != "finished" or run.spec != job.variant.spec:
                continue
            if run.settings["seed"] != job.settings.seed:
                continue
            code = [] if run.code_hash == job.variant.code_hash else [Difference("code", "its code is another")]
            if differences := [*code, *self.asked.differences(run, job.settings)]:
                misses.append(NearMiss(run, differences))
        return min(misses, key=lambda miss: len(miss.differences), default=None)

    def settings_to_train(self, job: "Job") -> Settings:
        """Return the settings that continue the run of a job, or begin it in a folder that is free."""
        settings = job.settings
        if settings.compile == "auto" and self.compiled:
            settings = dataclasses.replace(settings, compile=self.compiled)
        if found := self.find(job):
            return dataclasses.replace(
                settings,
                run_name=found.run.folder.name,
                validation_interval=found.run.settings["validation_interval"],
                midway_tokens=found.run.settings["midway_tokens"],
            )
        interval, midway = self.new_validations
        name = self._free_name(job)
        return dataclasses.replace(settings, run_name=name, validation_interval=interval, midway_tokens=midway)

    def choose_interval(self, context_len: int) -> None:
        """Choose how often new runs are validated, all at the same steps, where the user left it to us."""
        if not self.any_interval:
            return
        settings = dataclasses.replace(self.settings, validation_interval=None)
        phases = lay_out(settings, self.plan, self.data, context_len)
        self.new_validations = choose_validations(settings, phases, self.data.validation, context_len)

    def steps(self, context_len: int) -> int:
        """Return the steps of each run whose model reads `context_len` tokens at once."""
        order = self.settings.data_order or NEWEST_ORDER
        return sum(phase[N_STEPS] for phase in self._steps(0, context_len, order))

    def use_length(self, tokens: int | None) -> None:
        """Let all runs of the comparison read this many tokens; None: as many as the plan has."""
        self.settings = dataclasses.replace(self.settings, max_tokens=tokens)
        self._steps.cache_clear()

    def use_order(self, order: int) -> None:
        """Let all runs of the comparison have this data order."""
        self.settings = dataclasses.replace(self.settings, data_order=order)

    def take_in(self, folder: Path) -> None:
        """Read a run's folder again after it was trained; a folder without a run changes nothing."""
        if is_run(folder):
            self.runs = [run for run in self.runs if run.folder.resolve() != folder.resolve()]
            self._add(read_run(folder))

    def _add(self, run: Run) -> None:
        try:
            self.runs.append(run.check("compare"))
        except UserError as error:
            if str(error) not in self.skipped:
                self.skipped.append(str(error))

    def _state(self, run: Run, job: "Job") -> str | None:
        if not (self._is_same_but_code(run, job) and run.code_hash == job.variant.code_hash):
            return None
        if run.get("status") == "failed":
            return "failed"
        if run.get("status") in ("crashed", "hung") and not self.retry_crashed:
            return "crashed"
        steps = sum(phase[N_STEPS] for phase in run.get("progress", "phases"))
        by_time = job.settings.max_minutes is not None
        if run.get("status") != "finished" or not (by_time or run.get("progress", "step") == steps):
            return "begun"
        if not self._is_whole(run):
            return None
        self.compiled = self.compiled or run.compiled["mode"]
        return "finished"

    def _is_whole(self, run: Run) -> bool:
        if id(run) not in self._whole:
            try:
                read_validations(run)
                self._whole[id(run)] = run, True
            except UserError as error:
                self.skipped.append(str(error))
                self._whole[id(run)] = run, False
        return self._whole[id(run)][1]

    def _is_same_but_code(self, run: Run, job: "Job") -> bool:
        """Tell whether data, settings and length of a run are a job's."""
        return next(self.asked.differences(run, job.settings), None) is None

    def _steps_of(self, seed: int, context_len: int, order: int) -> list[dict[str, Any]]:
        """Return the phases' names and steps as run.json's progress has them."""
        settings = dataclasses.replace(self.settings, seed=seed, data_order=order)
        phases = lay_out(settings, self.plan, data=self.data, context_len=context_len)
        return [{"name": phase.name, N_STEPS: phase.n_steps} for phase in phases]

    def look_again(self, job: "Job") -> Path | None:
        """Read again the folders that the job's run may have got meanwhile; return one that is only being made."""
        for folder in itertools.takewhile(Path.exists, (self.settings.out_folder / name for name in self._names(job))):
            if not is_run(folder) and is_being_trained(folder):
                return folder
            self.take_in(folder)
        return None

    def _free_name(self, job: "Job") -> str:
        return next(name for name in self._names(job) if not (self.settings.out_folder / name).exists())

    def _names(self, job: "Job") -> Iterator[str]:
        """Yield the names that the folder of a job's run may have."""
        settings = job.settings
        plain = dataclasses.replace(settings, seed=0, same_init=False, validation_interval=Settings.validation_interval)
        parts = [run_name(plain, job.variant.entry.name, variant=job.variant.name, plan=self.plan.name)]
        parts += budgets(settings)
        parts += [] if settings.same_init else ["own-init"]
        name = "_".join([*parts, f"s{settings.seed}"])
        name = file_name([self.prefix, name]) if self.prefix else name
        yield name
        yield from (f"{name}_{number}" for number in range(2, 1000))


@dataclass(frozen=True, eq=False)
class Job:
    """One run that is needed: a variant under settings that hold its seed and learning rate."""

    index: RunIndex
    variant: Variant
    settings: Settings
    label: str

    def find(self) -> Match | None:
        """Find the job's run, None if there is none."""
        return self.index.find(self)

    @property
    def is_missing(self) -> bool:
        """Whether its run has neither finished nor failed."""
        found = self.find()
        return found is None or found.state == "begun"

    def own_run_unused(self) -> NearMiss | None:
        """Find a run of the user's that is not used only because the trainer has other defaults than a comparison."""
        miss = None if self.find() else self.index.nearest(self)
        return miss if miss and {one.name for one in miss.differences} <= set(LEFT_TO_US) else None

    def outlook(self) -> PlannedRun:
        """Say what would become of this job: which run is there, or what would be trained, and why."""
        found = self.find()
        if found and found.state != "begun":
            state = {"failed": " (its loss was not finite)", "crashed": " (its model crashed)"}.get(found.state, "")
            line = f"{self.label}: is there{state}: {found.run.folder}"
            return PlannedRun(self.label, found.state, found.run.folder, line)
        folder = folder_of(self.index.settings_to_train(self))
        if found:
            return PlannedRun(self.label, "begun", folder, f"{self.label}: would go on: {folder}")
        miss = self.index.nearest(self)
        why = f"nearest is {miss}" if miss else "no run of this model and seed is there"
        return PlannedRun(self.label, "missing", folder, f"{self.label}: would be trained -> {folder}; {why}")

    def differs_in_seed_alone(self, other: "Job") -> bool:
        """Whether it is another job with no more than another seed."""
        same_seed = dataclasses.replace(self.settings, seed=other.settings.seed)
        return self.index is other.index and self.variant == other.variant and same_seed == other.settings

    def take_in(self, settings: Settings, outcome: str | Exception) -> str:
        """Take the job's run into the index. outcome: how its training ended, or the error that ended it.

        Return "finished", "stopped", or "failed" if the loss was not finite, which is said on stderr. Raises UserError
        if the trainer refused, Locked while another trains the run, ModelCrashed, and UserError if its run is not what
        was asked for.
        """
        folder = folder_of(settings)
        self.index.take_in(folder)
        if isinstance(outcome, Exception):
            found = self.find()
            if not isinstance(outcome, UserError) or found is None or found.state != "failed":
                raise outcome
            print(f"{self.label}: {outcome}", file=sys.stderr)
            return "failed"
        if outcome != "stopped" and self.find() is None:
            raise UserError(
                f"{folder} is not what was asked for: the code of {self.variant.entry.name} or the data changed "
                "meanwhile; type the command again"
            )
        return outcome


def folder_of(settings: Settings) -> Path:
    """Return the folder of a run whose settings name it."""
    return settings.out_folder / (settings.run_name or "")
