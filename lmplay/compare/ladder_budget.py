"""Make a ladder fit into a budget of time: how many tokens each parameter gets, and how many pairs there are.

Each arm's speed is measured first, by a few steps or by runs that are there. What is chosen is the most tokens per
parameter of which at least two pairs at each rung fit, then as many pairs as fit. When the time is over, training is
stopped, and the same command goes on where it was.
"""

import dataclasses

from lmplay.compare.budget import shown_seconds
from lmplay.compare.ladder import Climber, LadderRequest
from lmplay.compare.ladder_outlook import minutes_of, needed
from lmplay.compare.rungs import TOKENS_PER_PARAMETER
from lmplay.errors import OutOfTime
from lmplay.stats.share_out import FEWEST

FITS = 0.85  # of the budget, by the estimate: the rest is for validations, for starting runs and for a busy machine
MOST_SEEDS = 8  # whose time is shared out


def within(asked: LadderRequest, budget: float) -> tuple[Climber, str]:
    """Return the ladder that fits into `budget` seconds, and a line that says so. asked: its budget is left out.

    Raises OutOfTime if not even the shortest one fits.
    """
    comparison = dataclasses.replace(asked.comparison, budget=None, timeout=budget)
    typed = asked.tokens_per_parameter or comparison.settings.max_tokens
    lengths = [asked.tokens_per_parameter] if typed else sorted(map(float, TOKENS_PER_PARAMETER), reverse=True)
    shortest = 0.0
    for length in lengths:
        request = dataclasses.replace(asked, comparison=comparison, tokens_per_parameter=length)
        climber = Climber(request)
        minutes = minutes_of(climber)
        for seeds in range(min(MOST_SEEDS, max(FEWEST, comparison.seeds)), FEWEST - 1, -1):
            pairs = climber.shared_out(seeds)
            shortest = 60 * needed(climber, minutes, pairs).whole
            if shortest <= FITS * budget:
                climber.pairs = pairs
                said = f"budget {shown_seconds(budget)}: {climber.per_parameter:.3g} tokens per parameter, pairs at the"
                return (
                    climber,
                    f"{said} rungs {', '.join(map(str, pairs))}: about {shown_seconds(shortest)} of training",
                )
    raise OutOfTime(
        f"--budget is too short: the shortest ladder would take about {shown_seconds(shortest)}; give more time, or "
        "fewer or smaller sizes"
    )
