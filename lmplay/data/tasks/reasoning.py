"""Probes of reasoning, knowledge and structure. See probes.py for what all probes have in common."""

import math
import random
import string
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate, product

from lmplay.data.tasks.parts import (
    BLANK,
    EQUALS,
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
from lmplay.data.tasks.task import MAP_SEED, Settings, Task
from lmplay.data.types import Document


def _hops(s: Settings, draw: random.Random) -> Document:
    """Make a random cycle through all nodes, as shuffled pairs; then ask for the node k steps on, and answer."""
    cycle = draw.sample(SYMBOLS[: s["nodes"]], s["nodes"])
    pairs = [a + b for a, b in zip(cycle, cycle[1:] + cycle[:1], strict=True)]
    parts = [("".join(draw.sample(pairs, len(pairs))), False)]
    for _ in range(s["questions"]):
        k, start = draw.randint(1, s["hops"]), draw.randrange(s["nodes"])
        parts += [(string.digits[k] + cycle[start], False), (cycle[(start + k) % s["nodes"]], True)]
    return document(*parts)


def _hops_fault(s: Settings) -> str | None:
    return None if s["hops"] < min(s["nodes"], 10) else f"hops must be below nodes ({s['nodes']}) and at most 9"


@lru_cache(maxsize=8)
def fact_table(facts: int, symbols: int, values: int, seed: int) -> list[tuple[str, str]]:
    """Return keys of two symbols, each with its value; the same in all documents."""
    draw = random.Random(f"facts\0{facts}\0{symbols}\0{values}\0{seed}")
    keys = draw.sample([a + b for a, b in product(SYMBOLS[:symbols], repeat=2)], facts)
    return [(key, draw.choice(SYMBOLS[symbols : symbols + values])) for key in keys]


def _facts(s: Settings, draw: random.Random) -> Document:
    table = fact_table(s["facts"], s["symbols"], s["values"], s[MAP_SEED])
    return document(
        *(part for key, value in draw.choices(table, k=s["questions"]) for part in ((key, False), (value, True)))
    )


def _facts_fault(s: Settings) -> str | None:
    return None if s["facts"] <= s["symbols"] ** 2 else f"facts must be at most symbols squared ({s['symbols'] ** 2})"


OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}


def _arithmetic(s: Settings, draw: random.Random) -> Document:
    """Make expressions in prefix notation, modulo `modulus`, with their values."""

    def expression(operators: int) -> tuple[str, int]:
        if not operators:
            value = draw.randrange(s["modulus"])
            return SYMBOLS[value], value
        name, left = draw.choice(list(OPERATORS)), draw.randrange(operators)
        (a_text, a), (b_text, b) = expression(left), expression(operators - 1 - left)
        return name + a_text + b_text, OPERATORS[name](a, b) % s["modulus"]

    parts: list[Part] = []
    for _ in range(s["expressions"]):
        text, value = expression(s["operators"])
        parts += [(text + EQUALS, False), (SYMBOLS[value], True)]
    return document(*parts)


@lru_cache(maxsize=8)
def _likeliest_value(modulus: int, operators: int) -> float:
    """Return the probability of the most frequent value, 0 (of products).

    Computed from the distribution of values of longer and longer expressions.
    """
    of = [[1 / modulus] * modulus]
    for n in range(1, operators + 1):
        next_ = [0.0] * modulus
        for left, operator in product(range(n), OPERATORS.values()):
            for a, b in product(range(modulus), repeat=2):
                next_[operator(a, b) % modulus] += of[left][a] * of[n - 1 - left][b] / (3 * n)
        of.append(next_)
    return max(of[-1])


@lru_cache(maxsize=8)
def language(depth: int, seed: int) -> dict[str, float]:
    """Return the probability of every sentence of a random grammar, its end included.

    A level has three symbols. Each becomes, by one of two rules, two or three symbols of the next level. The last level
    is what is read.
    """
    draw = random.Random(f"grammar\0{depth}\0{seed}")
    bodies = ["".join(body) for n in (2, 3) for body in product("abc", repeat=n)]
    below = {c: {c: 1.0} for c in "abc"}
    for level in range(depth, 0, -1):
        heads = "abc" if level > 1 else "a"
        rules = iter(draw.sample(bodies, 2 * len(heads)))  # all of a level are different
        here: dict[str, dict[str, float]] = {}
        for head in heads:
            here[head] = defaultdict(float)
            for rule in (next(rules), next(rules)):
                for expansion in product(*(below[c].items() for c in rule)):
                    here[head]["".join(text for text, _ in expansion)] += math.prod(p for _, p in expansion) / 2
        below = here
    return {text + BLANK: p for text, p in below["a"].items()}


@lru_cache(maxsize=8)
def grammar_figures(depth: int, seed: int) -> tuple[float, float, float, list[str], list[float]]:
    """Return nats per sentence, two accuracies, the sentences and their cumulative weights.

    The accuracies are the best of one guess for all tokens, and that of the best guess for each.
    """
    sentences = language(depth, seed)
    prefixes: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    symbols: dict[str, float] = defaultdict(float)
    for text, p in sentences.items():
        for k, symbol in enumerate(text):
            prefixes[text[:k]][symbol] += p
            symbols[symbol] += p
    length = sum(symbols.values())
    return (
        -sum(p * math.log(p) for p in sentences.values()),
        max(symbols.values()) / length,
        sum(max(after.values()) for after in prefixes.values()) / length,
        list(sentences),
        list(accumulate(sentences.values())),
    )


def _grammar(s: Settings, draw: random.Random) -> Document:
    *_, sentences, weights = grammar_figures(s["depth"], s[MAP_SEED])
    (text,) = draw.choices(sentences, cum_weights=weights)
    return document((text, True), (MARK * (max(map(len, sentences)) - len(text)), False))


TASKS: dict[str, Task] = {
    "hops": Task(
        settings={"nodes": 6, "hops": 2, "questions": 4},
        make=_hops,
        chance=lambda s: 1 / (s["nodes"] - 1),
        fault=all_of(at_most(nodes=52), _hops_fault),
        entropy=no_entropy,
        ceiling=certain,
    ),
    "facts": Task(
        settings={"facts": 512, "symbols": 32, "values": 32, "questions": 8, MAP_SEED: 0},
        make=_facts,
        chance=one_of("values"),
        fault=all_of(at_most(symbols=45, values=45), _facts_fault),
        entropy=no_entropy,
        ceiling=certain,
    ),
    "arithmetic": Task(
        settings={"modulus": 5, "operators": 2, "expressions": 4},
        make=_arithmetic,
        chance=lambda s: _likeliest_value(s["modulus"], s["operators"]),
        fault=at_most(modulus=52, operators=30),
        entropy=no_entropy,
        ceiling=certain,
    ),
    "grammar": Task(
        settings={"depth": 3, MAP_SEED: 0},
        make=_grammar,
        fault=at_most(depth=3),
        entropy=lambda s: grammar_figures(s["depth"], s[MAP_SEED])[0],
        chance=lambda s: grammar_figures(s["depth"], s[MAP_SEED])[1],
        ceiling=lambda s: grammar_figures(s["depth"], s[MAP_SEED])[2],
    ),
}
