"""Define what a synthetic task is."""

import random
from collections.abc import Callable
from dataclasses import dataclass

Document = list[tuple[str, bool]]  # segments of (text, scored)


MAP_SEED = "map_seed"  # the setting that draws what all documents have in common: a matrix, a table


@dataclass(frozen=True)
class Task:
    """One kind of document. `settings`: names and defaults, whole numbers or booleans.

    make(settings, draw) -> Document: one document, all that is random in it from `draw`, a random.Random.
    entropy(settings) -> nats: the mean over documents of the least summed loss that any model can reach on the scored text.
    fault(settings) -> what is wrong with them, or None. chance(settings) -> the accuracy of guessing among the possible
    answers, ceiling(settings) -> the best accuracy that is possible, where that is known.
    """

    settings: dict[str, int | bool]
    make: Callable[[dict, random.Random], Document]
    entropy: Callable[[dict], float]
    fault: Callable[[dict], str | None] = lambda settings: None
    chance: Callable[[dict], float] | None = None
    ceiling: Callable[[dict], float] | None = None
