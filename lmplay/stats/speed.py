"""How steady the speed of training was: what equal times are worth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STEADY = 0.03  # the largest spread of tokens/s at which times are compared
PARTS = 8  # of a run, among which the spread within it is taken
ROWS = 2  # of train.csv that a part needs


@dataclass(frozen=True)
class SpeedSpread:
    """The spread of tokens/s over the runs of two arms, as standard deviation over mean; NaN if it is not known.

    within: between parts of a run, the largest of all runs. between: between the runs of an arm, the larger of both
    arms; two arms may well differ. machines: what differs between the machines, "" if nothing does.
    """

    within: float
    between: float
    machines: str = ""

    @property
    def comparable(self) -> bool:
        """Whether equal times say something about the models."""
        return not self.machines and self.within <= STEADY and self.between <= STEADY

    def sentence(self) -> str:
        """Return the spread in words."""
        return f"the spread of tokens/s is {_percent(self.within)} within runs, {_percent(self.between)} between runs"

    def refusal(self) -> str:
        """Return why times are not compared, with the spread."""
        why = f", {self.machines}" if self.machines else ""
        return f"times are not comparable here: {self.sentence()}; at most {STEADY:.0%} is needed{why}"


def _percent(spread: float) -> str:
    return "not known" if math.isnan(spread) else f"{spread:.1%}"


def speed_spread(
    arms: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]],
    machines: str = "",
) -> SpeedSpread:
    """Return the spread of tokens/s in two arms.

    arms: for each arm its runs, for each run (tokens, seconds): what it had used after each recorded step, ascending,
    (K,) each. A run's first part is left out of the spread within it: compiling and filling caches belong to it.
    """
    within = [_within(*run) for arm in arms for run in arm]
    between = [_spread(np.array([_rate(*run) for run in arm])) for arm in arms]
    return SpeedSpread(within=_largest(within), between=_largest(between), machines=machines)


def _largest(spreads: list[float]) -> float:
    """Return the largest spread; NaN if one is not known."""
    return float(np.max(spreads)) if spreads else math.nan


def _rate(tokens: np.ndarray, seconds: np.ndarray) -> float:
    return float(tokens[-1] / seconds[-1]) if len(seconds) and seconds[-1] > 0 else math.nan


def _within(tokens: np.ndarray, seconds: np.ndarray) -> float:
    """Return the spread of tokens/s between parts of equal length of a run."""
    parts = min(PARTS, len(tokens) // ROWS)
    if parts < 3:
        return math.nan
    ends = np.linspace(0, len(tokens) - 1, parts + 1).round().astype(int)[1:]
    took = np.diff(seconds[ends])
    return _spread(np.diff(tokens[ends]) / took) if np.all(took > 0) else math.nan


def _spread(rates: np.ndarray) -> float:
    """Return the standard deviation of rates over their mean; NaN for fewer than two."""
    return float(rates.std(ddof=1) / rates.mean()) if len(rates) > 1 else math.nan
