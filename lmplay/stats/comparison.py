"""What lmp_compare finds out: models side by side, each with its runs, one a seed. What a report is made of."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmplay.stats.reading import Run

if TYPE_CHECKING:
    from lmplay.stats.verdict import Verdict


@dataclass
class Side:
    """One model of a comparison. `runs` are its finished runs, one a seed, in the order of `seeds`.

    flops_per_token in training; tokens_per_second the median over the runs; peak_memory_bytes the largest; None: not recorded.
    """

    label: str                          # NAME:VARIANT, and the learning rate where that was chosen
    runs: list[Run]
    seeds: list[int]
    loss: float                         # validation loss, mean over the runs, where the sides have had equally many tokens
    parameters: float | None = None
    flops_per_token: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: float | None = None


@dataclass
class Candidate:
    """A model and how it does against the baseline, on the seeds that both have.

    `verdict` is about the validation loss at equal tokens. `at_equal` has the verdicts at equal "flops" and "seconds",
    `savings` how much less of "tokens", "flops" and "seconds" reaches the baseline's final loss; None where it can't be told.
    """

    side: Side
    verdict: "Verdict | None"           # None: refused, `warnings` say why
    at_equal: dict[str, "Verdict | None"] = field(default_factory=dict)
    savings: dict[str, object] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """Candidates against one baseline. `warnings`: what is not like with like; `notes`: how it was done."""

    baseline: Side
    candidates: list[Candidate]
    plan: str
    tokens: float                       # where the losses are compared
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)      # folders that could not be read, and why
