"""Make documents with a known arrow of time, or known to have none.

A bijection f is written as x, f(x) with x uniform. Both directions then have the entropy of x, and only the learning
differs (Papadopoulos, Wenger and Hongler 2024, arXiv 2401.17505).
"""

import bisect
import math
import random
from functools import lru_cache
from itertools import accumulate

from lmplay.data.tasks.task import MAP_SEED, Settings, Task
from lmplay.data.types import Document


def _written(text: str, settings: Settings) -> Document:
    return [(text[::-1] if settings["mirrored"] else text, True)]


def _bits(value: int, n: int) -> str:
    """Return the lowest `n` bits, least significant first."""
    return format(value & (1 << n) - 1, f"0{n}b")[::-1]


def _times(settings: Settings, draw: random.Random) -> Document:
    n = settings["bits"]
    x = draw.getrandbits(n)
    return _written(_bits(x, n) + _bits(x * settings["factor"], n), settings)


def _linear(settings: Settings, draw: random.Random) -> Document:
    n = settings["bits"]
    x = draw.getrandbits(n)
    y = "".join("01"[(row & x).bit_count() % 2] for row in linear_map(n, settings["ones"], settings[MAP_SEED]))
    return _written(_bits(x, n) + y, settings)


@lru_cache(maxsize=8)
def linear_map(n: int, ones: int, seed: int) -> tuple[int, ...]:
    """Return the rows of an invertible matrix over F2, as bit masks, each with `ones` ones.

    Rows of an even weight are singular together, so `ones` is odd. The exception is 2, a chain over a random
    permutation p of the bits: y_1 = x_p1 and y_i = x_pi + x_p(i-1).
    """
    draw = random.Random(f"linear\0{n}\0{ones}\0{seed}")
    order = draw.sample(range(n), n)
    if ones == 1:
        return tuple(1 << k for k in order)
    if ones == 2:
        return tuple(1 << a | (1 << b if b is not None else 0) for a, b in zip(order, [None, *order[:-1]], strict=True))
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


def _product(settings: Settings, draw: random.Random) -> Document:
    d, primes = settings["digits"], _primes(settings["digits"])
    p, q = sorted((draw.choice(primes), draw.choice(primes)))
    return _written(f"{p}*{q}=" + f"{p * q:0{2 * d}d}"[::-1], settings)


def _product_entropy(settings: Settings) -> float:
    n = len(_primes(settings["digits"]))
    return 2 * math.log(n) - math.log(2) * (n - 1) / n  # unordered pairs, two different primes twice as likely


def _addition(settings: Settings, draw: random.Random) -> Document:
    d = settings["digits"]
    a, b = draw.randrange(10**d), draw.randrange(10**d)
    return _written(f"{a:0{d}d}+{b:0{d}d}={a + b:0{d + 1}d}", settings)


def _reversible(settings: Settings, draw: random.Random) -> Document:
    first, steps = reversible_chain(settings["symbols"], settings[MAP_SEED])[:2]
    state = bisect.bisect(first, draw.random() * first[-1])
    states = [state]
    for _ in range(settings["length"] - 1):
        row = steps[state]
        state = bisect.bisect(row, draw.random() * row[-1])
        states.append(state)
    return _written("".join(chr(ord("A") + state) for state in states), settings)


@lru_cache(maxsize=8)
def reversible_chain(symbols: int, seed: int) -> tuple[list[float], list[list[float]], float, float]:
    """Return a stationary Markov chain in detailed balance, the same in both directions.

    Its weights W are symmetric, P_ij = W_ij / sum_j W_ij, the stationary distribution is proportional to the row sums.
    Returns cumulative weights of the first state and of each step, and the entropy of both, in nats.
    """
    draw = random.Random(f"reversible\0{symbols}\0{seed}")
    weights = [[0.0] * symbols for _ in range(symbols)]
    for i in range(symbols):
        for j in range(i + 1):
            weights[i][j] = weights[j][i] = draw.gammavariate(0.3, 1.0) + 1e-6
    sums = [sum(row) for row in weights]
    total = sum(sums)
    of_first = -sum(s / total * math.log(s / total) for s in sums)
    of_step = -sum(w / total * math.log(w / s) for row, s in zip(weights, sums, strict=True) for w in row)
    return list(accumulate(sums)), [list(accumulate(row)) for row in weights], of_first, of_step


def _reversible_entropy(settings: Settings) -> float:
    *_, of_first, of_step = reversible_chain(settings["symbols"], settings[MAP_SEED])
    return of_first + (settings["length"] - 1) * of_step


def _bits_entropy(settings: Settings) -> float:
    return settings["bits"] * math.log(2)


def _times_fault(settings: Settings) -> str | None:
    if settings["factor"] % 2:
        return None
    return "factor must be odd: else x can't be told from factor * x, and the entropy differs"


def _linear_fault(settings: Settings) -> str | None:
    n, ones = settings["bits"], settings["ones"]
    if ones > n or ones == n > 1:
        return f"ones must be below bits ({n})"
    return None if ones == 2 or ones % 2 else "ones must be 2 or odd: rows of even weight have no inverse"


def _digits_fault(settings: Settings) -> str | None:
    return None if settings["digits"] <= 6 else "digits must be at most 6"


def _reversible_fault(settings: Settings) -> str | None:
    return None if settings["symbols"] <= 58 else "symbols must be at most 58"


TASKS: dict[str, Task] = {
    # x and factor * x mod 2^bits, least significant bit first: forwards a carry, backwards a long division
    "times": Task({"bits": 14, "factor": 3, "mirrored": False}, _times, _bits_entropy, _times_fault),
    # x and A x over the field of two elements, A sparse: backwards its inverse, which is dense
    "linear": Task({"bits": 16, "ones": 3, MAP_SEED: 0, "mirrored": False}, _linear, _bits_entropy, _linear_fault),
    # p*q=product of two primes, the product's digits from the last: backwards a factorization
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
