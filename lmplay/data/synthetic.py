"""Synthetic tasks: documents made on the spot from a seed, with what can be reached on them known by construction.

A task is a row of TASKS: a function that makes one document, the settings that make it harder or easier, and its figures. Document
number i depends on the task, its settings, the seed and i only, so that training and validation documents, which have different
numbers, come from the same distribution and are never the same draw.

Those here have an arrow of time that is known (or known to be none): a bijection f is written as x, f(x) with x uniform, so that
both directions have the entropy of x, and only the learning differs (Papadopoulos, Wenger and Hongler 2024, arXiv 2401.17505).
Those of probes.py tell architectures apart.
"""

import bisect
import hashlib
import inspect
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, count
from typing import TYPE_CHECKING

from lmplay.data import probes
from lmplay.errors import did_you_mean

if TYPE_CHECKING:
    from lmplay.data.plans import DatasetSpec

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


def documents(spec: "DatasetSpec", start: int, stop: int | None) -> Iterator[tuple[str, Document]]:
    """(where, document) of the documents number `start` to `stop` (None: without end)."""
    task, settings = TASKS[spec.source], full_settings(spec)
    key = f"{spec.source}\0{sorted(settings.items())}\0{spec.seed or 0}"
    for number in count(start) if stop is None else range(start, stop):
        yield spec.source, task.make(settings, random.Random(f"{key}\0{number}"))


def full_settings(spec: "DatasetSpec") -> dict:
    """The task's settings, those of the plan above the defaults."""
    return TASKS[spec.source].settings | (spec.settings or {})


def entropy(spec: "DatasetSpec") -> float:
    """Nats a document (see Task)."""
    return TASKS[spec.source].entropy(full_settings(spec))


def chance(spec: "DatasetSpec") -> float | None:
    """The accuracy of guessing (see Task)."""
    guess = TASKS[spec.source].chance
    return guess and guess(full_settings(spec))


def ceiling(spec: "DatasetSpec") -> float | None:
    """The best accuracy that is possible (see Task)."""
    best = TASKS[spec.source].ceiling
    return best and best(full_settings(spec))


def check_settings(task: str, given) -> dict:
    """The settings of a plan as they are; raises ValueError with what is wrong with them."""
    if not isinstance(given, dict):
        raise ValueError("must be an object in braces")
    defaults = TASKS[task].settings
    for name, value in given.items():
        if name not in defaults:
            raise ValueError(f"the task {task!r} has no setting {name!r}.{did_you_mean(name, defaults)}")
        if type(value) is not type(defaults[name]):
            raise ValueError(
                f"{name} must be {'true or false' if isinstance(defaults[name], bool) else 'a whole number'}, not {value!r}"
            )
        if value < (name != MAP_SEED) and not isinstance(value, bool):
            raise ValueError(f"{name} must be at least {int(name != MAP_SEED)}, not {value}")
    if fault := TASKS[task].fault(defaults | given):
        raise ValueError(fault)
    return given


def code_of(task: str) -> str:
    """A hash of the file that makes the task's documents."""
    return hashlib.sha256(inspect.getsource(inspect.getmodule(TASKS[task].make)).encode()).hexdigest()


# --- tasks with a known arrow ---


def _written(text: str, settings: dict) -> Document:
    return [(text[::-1] if settings["mirrored"] else text, True)]


def _bits(value: int, n: int) -> str:
    """The lowest `n` bits, least significant first."""
    return format(value & (1 << n) - 1, f"0{n}b")[::-1]


def _times(settings, draw):
    n = settings["bits"]
    x = draw.getrandbits(n)
    return _written(_bits(x, n) + _bits(x * settings["factor"], n), settings)


def _linear(settings, draw):
    n = settings["bits"]
    x = draw.getrandbits(n)
    y = "".join("01"[(row & x).bit_count() % 2] for row in linear_map(n, settings["ones"], settings[MAP_SEED]))
    return _written(_bits(x, n) + y, settings)


@lru_cache(maxsize=8)
def linear_map(n: int, ones: int, seed: int) -> tuple[int, ...]:
    """The rows of an invertible matrix over F2, as bit masks, each with `ones` ones.

    Rows of an even weight are singular together, so `ones` is odd; but for 2, which is a chain over a random permutation p of the
    bits: y_1 = x_p1 and y_i = x_pi + x_p(i-1).
    """
    draw = random.Random(f"linear\0{n}\0{ones}\0{seed}")
    order = draw.sample(range(n), n)
    if ones == 1:
        return tuple(1 << k for k in order)
    if ones == 2:
        return tuple(1 << a | (1 << b if b is not None else 0) for a, b in zip(order, [None, *order]))
    while True:
        rows = [sum(1 << k for k in draw.sample(range(n), ones)) for _ in range(n)]
        if _rank(rows) == n:
            return tuple(rows)


def _rank(rows: list[int]) -> int:
    basis: dict[int, int] = {}
    for row in rows:
        while row and (top := row.bit_length()) in basis:
            row ^= basis[top]
        if row:
            basis[row.bit_length()] = row
    return len(basis)


@lru_cache(maxsize=8)
def _primes(digits: int) -> list[int]:
    limit = 10**digits
    sieve = bytearray([1]) * limit
    sieve[:2] = bytes(2)
    for p in range(2, math.isqrt(limit) + 1):
        if sieve[p]:
            sieve[p * p :: p] = bytes(len(range(p * p, limit, p)))
    return [p for p in range(limit // 10, limit) if sieve[p]]


def _product(settings, draw):
    d, primes = settings["digits"], _primes(settings["digits"])
    p, q = sorted((draw.choice(primes), draw.choice(primes)))
    return _written(f"{p}*{q}=" + f"{p * q:0{2 * d}d}"[::-1], settings)


def _product_entropy(settings):
    n = len(_primes(settings["digits"]))
    return 2 * math.log(n) - math.log(2) * (n - 1) / n  # unordered pairs, two different primes twice as likely


def _addition(settings, draw):
    d = settings["digits"]
    a, b = draw.randrange(10**d), draw.randrange(10**d)
    return _written(f"{a:0{d}d}+{b:0{d}d}={a + b:0{d + 1}d}", settings)


def _reversible(settings, draw):
    first, steps = _chain(settings["symbols"], settings[MAP_SEED])[:2]
    state = bisect.bisect(first, draw.random() * first[-1])
    states = [state]
    for _ in range(settings["length"] - 1):
        row = steps[state]
        state = bisect.bisect(row, draw.random() * row[-1])
        states.append(state)
    return _written("".join(chr(ord("A") + state) for state in states), settings)


@lru_cache(maxsize=8)
def _chain(symbols: int, seed: int):
    """A stationary Markov chain in detailed balance, so that it is the same in both directions: weights W symmetric, P_ij = W_ij / sum_j
    W_ij, stationary distribution proportional to the row sums. Cumulative weights of the first state and of each step; the
    entropy of the first state and of a step, in nats.
    """
    draw = random.Random(f"reversible\0{symbols}\0{seed}")
    weights = [[0.0] * symbols for _ in range(symbols)]
    for i in range(symbols):
        for j in range(i + 1):
            weights[i][j] = weights[j][i] = draw.gammavariate(0.3, 1.0) + 1e-6
    sums = [sum(row) for row in weights]
    total = sum(sums)
    of_first = -sum(s / total * math.log(s / total) for s in sums)
    of_step = -sum(w / total * math.log(w / s) for row, s in zip(weights, sums) for w in row)
    return list(accumulate(sums)), [list(accumulate(row)) for row in weights], of_first, of_step


def _reversible_entropy(settings):
    *_, of_first, of_step = _chain(settings["symbols"], settings[MAP_SEED])
    return of_first + (settings["length"] - 1) * of_step


def _bits_entropy(settings):
    return settings["bits"] * math.log(2)


def _times_fault(settings):
    return (
        None
        if settings["factor"] % 2
        else "factor must be odd: else x can't be told from factor * x, and the entropy is another one"
    )


def _linear_fault(settings):
    n, ones = settings["bits"], settings["ones"]
    if ones > n or ones == n > 1:
        return f"ones must be below bits ({n})"
    return None if ones == 2 or ones % 2 else "ones must be 2 or odd: rows of even weight have no inverse"


def _digits_fault(settings):
    return None if settings["digits"] <= 6 else "digits must be at most 6"


def _reversible_fault(settings):
    return None if settings["symbols"] <= 58 else "symbols must be at most 58"


TASKS: dict[str, Task] = {
    # x and factor * x mod 2^bits, least significant bit first: forwards a carry, backwards a long division
    "times": Task({"bits": 14, "factor": 3, "mirrored": False}, _times, _bits_entropy, _times_fault),
    # x and A x over the field of two elements, A sparse: backwards its inverse, which is dense
    "linear": Task({"bits": 16, "ones": 3, MAP_SEED: 0, "mirrored": False}, _linear, _bits_entropy, _linear_fault),
    # p*q=product of two primes, the product's digits from the last: backwards a factorisation
    "primes": Task({"digits": 4, "mirrored": False}, _product, _product_entropy, _digits_fault),
    "addition": Task(
        {"digits": 3, "mirrored": False}, _addition, lambda s: 2 * s["digits"] * math.log(10), _digits_fault
    ),
    # a Markov chain that is the same in both directions: no arrow
    "reversible": Task(
        {"symbols": 16, "length": 24, MAP_SEED: 0, "mirrored": False},
        _reversible,
        _reversible_entropy,
        _reversible_fault,
    ),
}
_DETERMINED = {"entropy": lambda settings: 0.0, "ceiling": lambda settings: 1.0}
TASKS |= {name: Task(**_DETERMINED | row) for name, row in probes.TASKS.items()}
