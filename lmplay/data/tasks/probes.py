"""Probes: small synthetic tasks on which architectures differ by design. Only what can be known is scored, the answers.

This module has the tasks of recall, selection and states; reasoning.py has those of reasoning, knowledge and structure.

All documents of a task have the same length, so that each has a window to itself. What a document asks for is
determined by what was read before (except in `grammar`): the least loss is 0 and the best accuracy 1. `chance` is the
accuracy of guessing among the possible answers. Where some were shown, it is among those, because models stay at that
level for long.

Sources: MAD (arXiv 2403.17844), Zoology (arXiv 2312.04927), Repeat After Me (arXiv 2402.01032), Physics of Language
Models (arXiv 2305.13673, 2404.05405), state tracking (arXiv 2404.08819, 2411.12537).

Every task is next-token prediction: the model sees each correct answer after predicting it (teacher forcing). In many
of the papers it does not. So a copied prefix is visible while its rest is copied. A tracked state is queried at a few
positions only, and can be tracked on from a queried one.
"""

import math
import random
import string
from itertools import accumulate, permutations

from lmplay.data.tasks.parts import (
    BLANK,
    MARK,
    SYMBOLS,
    Part,
    all_of,
    at_most,
    certain,
    document,
    no_entropy,
    one_of,
)
from lmplay.data.tasks.task import Settings, Task
from lmplay.data.types import Document

# --- recall ---


def _copy(s: Settings, draw: random.Random) -> Document:
    text = "".join(draw.choices(SYMBOLS[: s["symbols"]], k=s["length"]))
    return document((text + MARK, False), (text, True))


def _induction(s: Settings, draw: random.Random) -> Document:
    """Make a block of different symbols, then random pieces of it; a piece's first symbol tells which it is."""
    block = "".join(draw.sample(SYMBOLS[: s["symbols"]], s["length"]))
    parts = [(block, False)]
    for _ in range(s["pieces"]):
        start = draw.randrange(s["length"] - s["piece"] + 1)
        parts += [(block[start], False), (block[start + 1 : start + s["piece"]], True)]
    return document(*parts)


def _induction_fault(s: Settings) -> str | None:
    if not 2 <= s["piece"] <= s["length"]:
        return f"piece must be from 2 to length ({s['length']})"
    if s["length"] <= s["symbols"]:
        return None
    return f"length must be at most symbols ({s['symbols']}): all are different"


def _mqar(s: Settings, draw: random.Random) -> Document:
    """Make Zoology's multi-query associative recall: keys and values in turn, then keys, each followed by its value.

    Random values stand between the questions. Keys are queried at random, not each once: answers are read, so the last
    ones would be known by elimination. `near`: most questions come soon after the pairs, by the paper's power law; else
    they come anywhere.
    """
    n, pairs = s["keys"], s["pairs"]
    values = dict(zip(draw.sample(SYMBOLS[:n], pairs), draw.sample(SYMBOLS[n : 2 * n], pairs), strict=True))
    slots = range((s["length"] - 2 * pairs) // 2)
    # weights (j + 1)^-power; the largest of u^(1 / weight) are a draw without replacement
    power = 0.99 if s["near"] else 0.0
    asked = sorted(slots, key=lambda j: math.log(1 - draw.random()) * (j + 1) ** power)[-s["questions"] :]
    parts = [("".join(k + v for k, v in values.items()), False)]
    for j in slots:
        if j in asked:
            key = draw.choice(list(values))
            parts += [(key, False), (values[key], True)]
        else:
            parts.append(("".join(draw.choices(SYMBOLS[n : 2 * n], k=2)), False))
    return document(*parts)


def _mqar_fault(s: Settings) -> str | None:
    if s["pairs"] > s["keys"]:
        return f"pairs must be at most keys ({s['keys']})"
    least = 2 * (s["pairs"] + s["questions"])
    if s["length"] % 2 == 0 and s["length"] >= least:
        return None
    return f"length must be even and at least 2 * (pairs + questions) ({least})"


def _fuzzy_recall(s: Settings, draw: random.Random) -> Document:
    """Make MAD's fuzzy recall: keys and values of one or more symbols, each pair several times, with noise between.

    Values of known keys are scored.
    """
    n = s["symbols"]
    table: dict[str, str] = {}
    while len(table) < s["pairs"]:
        table["".join(draw.choices(SYMBOLS[:n], k=draw.randint(1, s["motif"])))] = "".join(
            draw.choices(SYMBOLS[n : 2 * n], k=draw.randint(1, s["motif"]))
        )
    pairs = list(table.items())
    known: set[str] = set()
    parts: list[Part] = []
    while len(parts) < s["length"]:
        key, value = draw.choice(pairs)
        for symbol, scored in [*((c, False) for c in key), *((c, key in known) for c in value)]:
            while 100 * draw.random() < s["noise"]:
                parts.append((draw.choice(SYMBOLS[2 * n :]), False))
            parts.append((symbol, scored))
        known.add(key)
    return document(*parts[: s["length"]])


def _fuzzy_recall_fault(s: Settings) -> str | None:
    if not 5 <= s["symbols"] <= 40 or s["motif"] > 8 or s["noise"] > 90:
        return "symbols must be from 5 to 40, motif at most 8 and noise, in percent, at most 90"
    if s["pairs"] > s["symbols"]:
        return f"pairs must be at most symbols ({s['symbols']})"
    shortest = 10 * s["pairs"] * s["motif"]
    if s["length"] >= shortest:
        return None
    return f"length must be at least 10 * pairs * motif ({shortest}), so that pairs return"


def _compress(s: Settings, draw: random.Random) -> Document:
    """Make a random text that must be kept whole: it is queried position by position, in any order.

    MAD decodes the text from the state of its last token; a language model is queried instead.
    """
    text = draw.choices(SYMBOLS[: s["symbols"]], k=s["length"])
    parts = [("".join(text) + MARK, False)]
    for position in draw.sample(range(s["length"]), s["questions"]):
        parts += [(SYMBOLS[s["symbols"] + position], False), (text[position], True)]
    return document(*parts)


def _compress_fault(s: Settings) -> str | None:
    return None if s["questions"] <= s["length"] else f"questions must be at most length ({s['length']})"


# --- selection, states ---


def _selective_copy(s: Settings, draw: random.Random) -> Document:
    symbols = draw.choices(SYMBOLS[: s["symbols"]], k=s["data"])
    before = [BLANK] * (s["length"] - s["data"] - 1)
    positions = sorted(draw.sample(range(len(before)), s["data"]))
    for position, symbol in zip(positions, symbols, strict=True):
        before[position] = symbol
    return document(("".join(before) + MARK, False), ("".join(symbols), True))


def _selective_copy_fault(s: Settings) -> str | None:
    return None if s["length"] > 2 * s["data"] else f"length must be more than 2 * data ({2 * s['data']})"


def _parity(s: Settings, draw: random.Random) -> Document:
    """Ask for the sum of all digits so far, modulo `modulus`, at random positions; answers are letters."""
    m = s["modulus"]
    steps = [draw.randrange(m) for _ in range(s["length"])]
    totals = [total % m for total in accumulate(steps)]
    return _tracked(s, draw, [string.digits[step] for step in steps], [SYMBOLS[total] for total in totals])


def _permutations(s: Settings, draw: random.Random) -> Document:
    """Ask for the product of all elements of the symmetric group so far, the newest applied last."""
    group = list(permutations(range(s["points"])))
    number = {element: k for k, element in enumerate(group)}
    steps = draw.choices(group, k=s["length"])
    products = accumulate(steps, lambda so_far, step: tuple(step[point] for point in so_far))
    return _tracked(
        s, draw, [SYMBOLS[number[step]] for step in steps], [SYMBOLS[len(group) + number[p]] for p in products]
    )


def _tracked(s: Settings, draw: random.Random, inputs: list[str], states: list[str]) -> Document:
    """Return the inputs with the state after each of `questions` random ones."""
    asked = set(draw.sample(range(s["length"]), s["questions"]))
    return document(
        *(
            (text, scored)
            for k, symbol in enumerate(inputs)
            for text, scored in ((symbol, False), (states[k], True))
            if not scored or k in asked
        )
    )


def _brackets(s: Settings, draw: random.Random) -> Document:
    """Make brackets. The closing ones are scored: their kind is that of the last one open."""
    openers, closers = SYMBOLS[: s["kinds"]], SYMBOLS[26 : 26 + s["kinds"]]
    parts: list[Part] = []
    stack: list[int] = []
    for left in range(s["length"], 0, -1):
        if not stack or (len(stack) < min(s["depth"], left) and draw.random() < 0.5):
            stack.append(draw.randrange(s["kinds"]))
            parts.append((openers[stack[-1]], False))
        else:
            parts.append((closers[stack.pop()], True))
    return document(*parts)


TASKS: dict[str, Task] = {
    "copy": Task(
        settings={"symbols": 16, "length": 16},
        make=_copy,
        chance=one_of("symbols"),
        fault=at_most(symbols=90),
        entropy=no_entropy,
        ceiling=certain,
    ),
    "induction": Task(
        settings={"symbols": 16, "length": 10, "pieces": 6, "piece": 4},
        make=_induction,
        chance=one_of("length"),
        fault=all_of(at_most(symbols=90), _induction_fault),
        entropy=no_entropy,
        ceiling=certain,
    ),
    "mqar": Task(
        settings={"pairs": 4, "keys": 8, "questions": 16, "length": 40, "near": True},
        make=_mqar,
        chance=one_of("pairs"),
        fault=all_of(at_most(keys=45), _mqar_fault),
        entropy=no_entropy,
        ceiling=certain,
    ),
    "fuzzy_recall": Task(
        settings={"symbols": 8, "motif": 2, "pairs": 3, "noise": 20, "length": 64},
        make=_fuzzy_recall,
        chance=one_of("symbols"),
        fault=_fuzzy_recall_fault,
        entropy=no_entropy,
        ceiling=certain,
    ),
    "compress": Task(
        settings={"symbols": 16, "length": 16, "questions": 8},
        make=_compress,
        chance=one_of("symbols"),
        fault=all_of(at_most(symbols=45, length=45), _compress_fault),
        entropy=no_entropy,
        ceiling=certain,
    ),
    "selective_copy": Task(
        settings={"symbols": 16, "data": 6, "length": 32},
        make=_selective_copy,
        chance=one_of("symbols"),
        fault=all_of(at_most(symbols=90), _selective_copy_fault),
        entropy=no_entropy,
        ceiling=certain,
    ),
    "parity": Task(
        settings={"modulus": 2, "length": 40, "questions": 5},
        make=_parity,
        chance=one_of("modulus"),
        fault=all_of(at_most(modulus=10), _compress_fault),
        entropy=no_entropy,
        ceiling=certain,
    ),
    "permutations": Task(
        settings={"points": 3, "length": 40, "questions": 5},
        make=_permutations,
        chance=lambda s: 1 / math.factorial(s["points"]),
        fault=all_of(at_most(points=4), _compress_fault),
        entropy=no_entropy,
        ceiling=certain,
    ),
    "brackets": Task(
        settings={"kinds": 4, "depth": 8, "length": 48},
        make=_brackets,
        chance=one_of("kinds"),
        fault=all_of(at_most(kinds=26), lambda s: "length must be even" if s["length"] % 2 else None),
        entropy=no_entropy,
        ceiling=certain,
    ),
}
