"""The arms of a comparison: the runs of one model each, and what is found out about them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lmplay.errors import DIVERGED, DONE
from lmplay.runs.run import Run
from lmplay.stats.choices import Choice, Edge
from lmplay.stats.prior import Prior
from lmplay.stats.savings import Saving
from lmplay.stats.speed import SpeedSpread
from lmplay.stats.verdict import Verdict
from lmplay.text import counted


@dataclass
class Arm:
    """The runs of one model. runs: {choice: {number of the pair: run, or None if its loss was not finite}}.

    A choice is a point of the grid of settings that were tuned; a number is a learning rate.
    Runs of two arms with the same number are paired: they have one seed, or two if a model is compared with itself.
    """

    label: str  # NAME:VARIANT
    runs: Mapping[float | Choice, dict[int, Run | None]]
    first_seed: int = 0  # pair number k has seed first_seed + k

    def failed(self, rate: float | Choice) -> list[int]:
        """Return the numbers of the pairs in which this arm's loss was not finite."""
        return [number for number, run in self.runs[rate].items() if run is None]


@dataclass
class ArmSummary:
    """One model of a comparison, as it is shown.

    label: NAME:VARIANT, and the choice of settings if there was one, `choice`. edges: where that lies at the edge of
    its grid. runs: its finished runs, one per seed, in the order of `seeds`. failed: the seeds under which its loss was
    not finite. loss: validation loss, mean over the runs, when the arms have had equally many tokens.
    flops_per_token: in training. tokens_per_second: median over the runs. peak_memory_bytes: the largest. mfu: FLOPs
    per second as a part of the peak, median. None: not recorded.
    """

    label: str
    runs: list[Run]
    seeds: list[int]
    loss: float
    parameters: float | None = None
    flops_per_token: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: float | None = None
    failed: list[int] = field(default_factory=list)
    choice: Choice | None = None
    edges: tuple[Edge, ...] = ()
    mfu: float | None = None

    @property
    def failures(self) -> str:
        """How many seeds diverged, and which; "" if none did."""
        if not self.failed:
            return ""
        which = ", ".join(map(str, self.failed))
        return f"diverged (the loss was not finite): {counted(len(self.failed), 'seed')}, {which}"


@dataclass
class Candidate:
    """A model and how it does against the baseline, on the pairs of runs that both have.

    verdict: on the validation loss at equal tokens; None if there is none, `warnings` say why. at_equal: the verdicts
    at equal "flops" and "seconds". savings: how much less of "tokens", "flops" and "seconds" reaches the baseline's
    final loss; empty without a verdict. pairs: the runs that were compared, the candidate's first. crashed: why its
    training ended, if it crashed; crash_status: the exit status for it. timing: how steady the speed was. held_back:
    the verdict's word was taken back, since seeds diverged.
    """

    arm: ArmSummary
    verdict: Verdict | None
    at_equal: dict[str, Verdict] = field(default_factory=dict)
    savings: dict[str, Saving] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    pairs: list[tuple[Run, Run]] = field(default_factory=list)
    prior: Prior | None = None
    crashed: str = ""
    crash_status: int = DONE
    timing: SpeedSpread | None = None
    held_back: bool = False

    @property
    def word(self) -> str:
        """The verdict's word; without a verdict "crashed", "refused" (there are runs to judge) or "none"."""
        if self.verdict:
            return self.verdict.word
        if self.crashed:
            return "crashed"
        return "refused" if self.arm.runs else "none"

    @property
    def status(self) -> int:
        """The exit status of a comparison with this candidate."""
        if self.crashed:
            return self.crash_status
        return DIVERGED if self.verdict is None and self.arm.failed else DONE


@dataclass
class Comparison:
    """Candidates against one baseline.

    tokens: of training, at which the losses are compared. warnings: what is not like with like. notes: how it was done.
    skipped: folders that could not be read, and why. arms: all runs that were judged, the baseline's first.
    """

    baseline: ArmSummary
    candidates: list[Candidate]
    plan: str
    tokens: float
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    arms: list[Arm] = field(default_factory=list)
