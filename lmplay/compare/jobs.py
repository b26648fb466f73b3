"""The runs that a comparison needs: which of them are there, whatever made them, and what is to be trained.

Nothing here loads an experiment or torch, so that a comparison whose runs are all there answers at once.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lmplay import contract, registry
from lmplay.data.prepare import prepare
from lmplay.errors import UserError
from lmplay.runs.folder import find_runs
from lmplay.runs.names import N_STEPS
from lmplay.runs.run import Run, read_run
from lmplay.runs.settings import Settings
from lmplay.runs.validations import read_validations
from lmplay.train.phases import choose_plan, lay_out
from lmplay.train.run_name import budgets, run_name


@dataclass(frozen=True)
class Variant:
    """An experiment's variant; `code_hash` of its code as it was at the start."""

    entry: registry.Entry
    variant: str
    code_hash: str

    @property
    def spec(self) -> str:
        return f"{self.entry.name}:{self.variant}"


def find_variant(spec: str) -> Variant:
    """The model that NAME[:VARIANT] stands for. Raises UserError."""
    entry, variant = registry.find(spec)
    return Variant(entry, variant, entry.code_hash)


@dataclass(frozen=True)
class Job:
    """One run that is needed: a model under settings that hold its seed and learning rate."""

    model: Variant
    settings: Settings


@dataclass
class Match:
    """The run of a job as it stands: `state` is "finished", "failed" (its loss was not finite) or "begun"."""

    run: Run
    state: str


@dataclass
class RunIndex:
    """The runs in --out, and the data that all runs of a comparison share.

    `any_interval`: a run counts as the same however often it validated. `skipped`: folders that can't be read, and why.
    """

    settings: Settings
    any_interval: bool
    runs: list[Run] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.plan = choose_plan(self.settings)
        self.data = prepare(self.plan, self.settings.tokenizer)
        out = Path(self.settings.out)
        if out.is_dir() and any(path.is_dir() and not path.name.startswith((".", "__")) for path in out.iterdir()):
            runs, self.skipped = find_runs([], out)
            for run in runs:
                try:
                    self.runs.append(run.check("compare"))
                except UserError as error:
                    self.skipped.append(str(error))
        self._updates = cache(self._updates_of)
        self._whole: dict[int, tuple[Run, bool]] = {}

    def job(self, model: Variant, seed: int, rate: float) -> Job:
        return Job(model, dataclasses.replace(self.settings, exp=model.spec, seed=seed, lr=rate))

    def find(self, job: Job) -> Match | None:
        """The run that is what `job` asks for: finished ones first, of these the one validated most often."""
        rank = {"finished": 2, "failed": 1, "begun": 0}
        found = [Match(run, state) for run in self.runs if (state := self._state(run, job))]
        return max(found, key=lambda f: (rank[f.state], -f.run.value("settings", "validation_interval")), default=None)

    def _state(self, run: Run, job: Job) -> str | None:
        if not self._is_same(run, job):
            return None
        if run.get("status") == "failed":
            return "failed"
        updates = sum(phase[N_STEPS] for phase in run.get("progress", "phases"))
        by_time = job.settings.max_minutes is not None
        if run.get("status") != "finished" or not (by_time or run.get("progress", "step") == updates):
            return "begun"
        return "finished" if self._is_whole(run) else None

    def _is_whole(self, run: Run) -> bool:
        if id(run) not in self._whole:
            try:
                read_validations(run)
                self._whole[id(run)] = run, True
            except UserError as error:
                self.skipped.append(str(error))
                self._whole[id(run)] = run, False
        return self._whole[id(run)][1]

    def _is_same(self, run: Run, job: Job) -> bool:
        settings, wanted = run.settings, job.settings
        same = {"plan": run.get("plan", "hash") == self.plan.hash, "data": run.get("data", "hash") == self.data.hash}
        for key, value in {
            **wanted.identity,
            "max_minutes": wanted.max_minutes,
            "context_len": wanted.context_len,
        }.items():
            same[key] = settings[key] == value
        if self.any_interval:
            same["validation_interval"] = isinstance(settings.get("validation_interval"), int)
        same["set"] = _fields(settings.get("set")) == _fields(list(wanted.set))
        if not all(same.values()):
            return False
        length = run.get("config", "max_len")
        return (
            isinstance(length, int)
            and run.get("progress", "phases") == self._updates(wanted.seed, length)
            and run.code_hash == job.model.code_hash
        )

    def _updates_of(self, seed: int, context_len: int) -> list[dict]:
        phases = lay_out(dataclasses.replace(self.settings, seed=seed), self.plan, self.data, context_len)
        return [{"name": phase.name, N_STEPS: phase.n_updates} for phase in phases]

    def validation_interval(self, context_len: int) -> int:
        """Twenty validations a run, but no more than take about a sixth of the training time, and at least four."""
        updates = sum(phase[N_STEPS] for phase in self._updates(0, context_len))
        limit = self.settings.validation_tokens
        scored = sum(min(store.n_tokens, limit or store.n_tokens) for store in self.data.validation.values())
        # a training step costs about three times what scoring the same tokens does
        paying = scored / 3 / (self.settings.batch_size * context_len / 6)
        return max(1, min(Settings.validation_interval, updates // 4, round(max(updates / 20, paying))))

    def to_train(self, job: Job, context_len: int) -> Settings:
        """The settings that continue what is there of `job`, or begin it in a folder that is free."""
        found = self.find(job)
        if found is not None:
            return dataclasses.replace(
                job.settings,
                run_name=found.run.folder.name,
                validation_interval=found.run.value("settings", "validation_interval"),
            )
        settings = job.settings
        if self.any_interval:
            settings = dataclasses.replace(settings, validation_interval=self.validation_interval(context_len))
        return dataclasses.replace(settings, run_name=self._free_name(job))

    def _free_name(self, job: Job) -> str:
        settings = job.settings
        plain = dataclasses.replace(settings, seed=0, same_init=False, validation_interval=Settings.validation_interval)
        parts = [run_name(plain, job.model.entry.name, job.model.variant, self.plan.name)]
        parts += budgets(settings)
        parts += [] if settings.same_init else ["own-init"]
        name = "_".join([*parts, f"s{settings.seed}"])
        names = [name, *(f"{name}_{number}" for number in range(2, 1000))]
        return next(name for name in names if not (Path(self.settings.out) / name).exists())

    def take_in(self, folder: Path) -> None:
        """Reads a run's folder again, after it was trained."""
        self.runs = [run for run in self.runs if run.folder.resolve() != folder.resolve()] + [read_run(folder)]


def group_of(run: Run) -> str:
    """What all runs that differ in their seed only have in common, as text."""
    settings = {key: run.settings[key] for key in Settings().identity if key not in ("seed", "validation_interval")}
    return json.dumps([run.code_hash, run.config, settings], sort_keys=True, default=str)


def _fields(assignments) -> dict | None:
    """{"n_layer": 2.0} of ["n_layer=2"]."""
    try:
        fields = contract.parse_fields(assignments)
    except (UserError, AttributeError, TypeError):
        return None
    return {name: _number(text) for name, text in fields.items()}


def _number(text: str):
    try:
        return float(text)
    except ValueError:
        return text.lower()
