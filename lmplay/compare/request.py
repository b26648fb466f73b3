"""What to compare, and how."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lmplay.compare.backends import Backend, backend_of
from lmplay.compare.job_trainer import Progress
from lmplay.compare.tuning import Axis
from lmplay.errors import UserError, check_at_least
from lmplay.runs.settings import Settings
from lmplay.stats.choices import Choice


@dataclass(frozen=True)
class ComparisonRequest:
    """What to compare, and how.

    baseline, candidates: NAME[:VARIANT] each, or a run, which stands for the code that it keeps. settings: those of
    every run, except experiment, seed and what is tuned. seeds: pairs of runs; with `until_sure` the first ones, and
    more are added up to max_seeds. tune: values to try; of several, each arm gets its own best. extend: how often the
    grid may grow where an arm's best value is at its edge. within: differences
    below it, in nats per token, count as equal. aa: compare the baseline with itself under other seeds. any_interval:
    the user left --validation-interval to us. retry_crashed: train runs again that crashed under the same code.
    confidence: of the intervals, under `until_sure` of all looks together. prefix: what the names of new runs' folders
    begin with. given: the names of the settings that the user gave, which come before an arm's recipe; None: those that
    are not at their defaults. budget: seconds, into which the runs are made to fit; `seeds` is then the most pairs.
    timeout: seconds after which it is stopped. on_progress: is told before and after each run that is trained.
    first_seed: of the first pair. own: {label: choice} of settings that an arm has for itself. alone: the baseline is
    trained without candidates. jobs: processes side by side; together: seeds of an
    arm in one of them; None: auto. on: where they are trained, as --on has it; None: as `jobs` says.
    """

    baseline: str
    candidates: tuple[str, ...]
    settings: Settings
    seeds: int = 3
    tune: tuple[Axis, ...] = ()
    extend: int = 0
    aa: bool = False
    allow_leak: bool = False
    until_sure: bool = False
    within: float | None = None
    max_seeds: int = 8
    any_interval: bool = True
    retry_crashed: bool = False
    confidence: float = 0.95
    prefix: str = ""
    given: frozenset[str] | None = None
    budget: float | None = None
    timeout: float | None = None
    on_progress: Callable[[Progress], None] | None = None
    first_seed: int = 0
    own: Mapping[str, Choice] = field(default_factory=dict)
    alone: bool = False
    jobs: int | None = 1
    together: int | None = 1
    on: str | None = None

    def __post_init__(self) -> None:
        check_at_least(1, seeds=self.seeds, max_seeds=self.max_seeds, jobs=self.jobs, together=self.together)
        check_at_least(0, extend=self.extend)
        if self.within is not None and not self.within > 0:
            raise UserError(f"--within must be more than 0, not {self.within:g}")
        self._check_time()
        if not 0 < self.confidence < 1:
            raise UserError(f"--confidence lies between 0 and 1, not at {self.confidence:g}")
        backend_of(self.on, self.jobs)
        if self.until_sure and self.max_seeds < 2:
            raise UserError("--until-sure needs --max-seeds of at least 2: one seed says nothing about others")
        if self.until_sure and self.seeds > self.max_seeds:
            raise UserError(f"--seeds {self.seeds} are more than --max-seeds {self.max_seeds}")
        if self.aa and self.candidates:
            raise UserError("--aa compares the baseline with itself: leave out --exp")
        if not self.aa and not self.candidates and not self.alone:
            raise UserError(
                "what is to be compared with the baseline? Name it with --exp NAME[:VARIANT], or ask for --aa"
            )

    @property
    def backend(self) -> Backend:
        """Where runs are trained. Raises UserError."""
        return backend_of(self.on, self.jobs)

    def _check_time(self) -> None:
        """Raise UserError for limits of time that make no sense."""
        for name in ("budget", "timeout"):
            if (limit := getattr(self, name)) is not None and not limit > 0:
                raise UserError(f"{name} must be more than 0 seconds, not {limit:g}")
        if self.budget and self.settings.max_minutes:
            raise UserError("--budget is for all runs together and --max-minutes for each: give one of them")
        if self.settings.early_stop:
            raise UserError(
                "--early-stop ends a run while its learning rate is still high, which says nothing about the end of a "
                "full one: leave it out of comparisons"
            )
        if self.budget and self.extend:
            raise UserError("--extend needs more runs than a --budget can plan: leave one of them out")
