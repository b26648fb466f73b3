"""Define what a synthetic task is."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmplay.data.types import Document

MAP_SEED = "map_seed"  # the setting that draws what all documents have in common: a matrix, a table

Settings = dict[str, Any]  # of a task: whole numbers and booleans by name


@dataclass(frozen=True)
class Task:
    """One kind of document.

    settings: names and defaults, whole numbers or booleans.
    make(settings, draw): one document, with all its randomness from `draw`, a random.Random.
    entropy(settings): in nats, the mean over documents of the least summed loss on the scored text for any model.
    fault(settings): what is wrong with them, or None.
    chance(settings): the accuracy of guessing among the possible answers, where it is known.
    ceiling(settings): the best possible accuracy, where it is known.
    """

    settings: dict[str, int | bool]
    make: Callable[[Settings, random.Random], Document]
    entropy: Callable[[Settings], float]
    fault: Callable[[Settings], str | None] = lambda settings: None
    chance: Callable[[Settings], float] | None = None
    ceiling: Callable[[Settings], float] | None = None
