"""Probes: small synthetic tasks on which architectures differ by design. Only what can be known is scored, the answers.

Documents of a task are all equally long, so that each has a window to itself, and what is asked in one is determined by what was
read before (but for `grammar`): the least loss is 0 and the best accuracy 1. `chance` is what guessing among the possible answers
reaches: where some were shown, among those, since that is the level at which models stay for long.

Sources: MAD (arXiv 2403.17844), Zoology (arXiv 2312.04927), Repeat After Me (arXiv 2402.01032), Physics of Language Models
(arXiv 2305.13673, 2404.05405), state tracking (arXiv 2404.08819, 2411.12537). All are asked as a language model is: the answer
is the next token, and is read after it was predicted. In the papers it often is not; hence a copy's first half is read again
while it is written, and a tracked state is asked for at a few places only, from which it can be tracked on.
"""

import math
import random
import string
from collections import defaultdict
from functools import lru_cache
from itertools import accumulate, permutations, product

Document = list[tuple[str, bool]]  # segments of (text, scored)


BLANK, MARK, EQUALS = ".", "|", "="


SYMBOLS = (
    string.ascii_letters + string.digits + "".join(c for c in string.punctuation if c not in BLANK + MARK + EQUALS)
)


def document(*parts: tuple[str, bool]) -> Document:
    """Parts of (text, scored) as segments, neighbours of a kind joined; what ends the document is not scored."""
    segments: Document = []
    for text, scored in (*parts, ("", False)):
        if segments and segments[-1][1] == scored:
            segments[-1] = segments[-1][0] + text, scored
        else:
            segments.append((text, scored))
    return segments


# --- recall ---


def _copy(s, draw):
    text = "".join(draw.choices(SYMBOLS[: s["symbols"]], k=s["length"]))
    return document((text + MARK, False), (text, True))


def _induction(s, draw):
    """Different symbols, then pieces of them from random places: the first symbol of a piece says which."""
    block = "".join(draw.sample(SYMBOLS[: s["symbols"]], s["length"]))
    parts = [(block, False)]
    for _ in range(s["pieces"]):
        start = draw.randrange(s["length"] - s["piece"] + 1)
        parts += [(block[start], False), (block[start + 1 : start + s["piece"]], True)]
    return document(*parts)


def _induction_fault(s):
    if not 2 <= s["piece"] <= s["length"]:
        return f"piece must be from 2 to length ({s['length']})"
    return (
        None if s["length"] <= s["symbols"] else f"length must be at most symbols ({s['symbols']}): all are different"
    )


def _mqar(s, draw):
    """Zoology's: keys and values in turn, then keys, each followed by its value, and values at random between.

    Keys are asked for at random, not each once: else what is left would be known, since answers are read. `near`: the power law of
    the paper, most questions soon after the pairs; else they are anywhere."""
    n, pairs = s["keys"], s["pairs"]
    values = dict(zip(draw.sample(SYMBOLS[:n], pairs), draw.sample(SYMBOLS[n : 2 * n], pairs)))
    slots = range((s["length"] - 2 * pairs) // 2)
    power = (
        0.99 if s["near"] else 0.0
    )  # weights (j + 1)^-power; the largest of u^(1 / weight) are a draw without replacement
    asked = sorted(slots, key=lambda j: math.log(1 - draw.random()) * (j + 1) ** power)[-s["questions"] :]
    parts = [("".join(k + v for k, v in values.items()), False)]
    for j in slots:
        if j in asked:
            key = draw.choice(list(values))
            parts += [(key, False), (values[key], True)]
        else:
            parts.append(("".join(draw.choices(SYMBOLS[n : 2 * n], k=2)), False))
    return document(*parts)


def _mqar_fault(s):
    if s["pairs"] > s["keys"]:
        return f"pairs must be at most keys ({s['keys']})"
    least = 2 * (s["pairs"] + s["questions"])
    return (
        None
        if s["length"] % 2 == 0 and s["length"] >= least
        else f"length must be even and at least 2 * (pairs + questions) ({least})"
    )


def _fuzzy_recall(s, draw):
    """MAD's: keys and values of one or more symbols, each pair several times, noise between. Values of known keys are scored."""
    n, table = s["symbols"], {}
    while len(table) < s["pairs"]:
        table["".join(draw.choices(SYMBOLS[:n], k=draw.randint(1, s["motif"])))] = "".join(
            draw.choices(SYMBOLS[n : 2 * n], k=draw.randint(1, s["motif"]))
        )
    pairs, known, parts = list(table.items()), set(), []
    while len(parts) < s["length"]:
        key, value = draw.choice(pairs)
        for symbol, scored in [*((c, False) for c in key), *((c, key in known) for c in value)]:
            while 100 * draw.random() < s["noise"]:
                parts.append((draw.choice(SYMBOLS[2 * n :]), False))
            parts.append((symbol, scored))
        known.add(key)
    return document(*parts[: s["length"]])


def _fuzzy_recall_fault(s):
    if not 5 <= s["symbols"] <= 40 or s["motif"] > 8 or s["noise"] > 90:
        return "symbols must be from 5 to 40, motif at most 8 and noise, in percent, at most 90"
    if s["pairs"] > s["symbols"]:
        return f"pairs must be at most symbols ({s['symbols']})"
    shortest = 10 * s["pairs"] * s["motif"]
    return (
        None
        if s["length"] >= shortest
        else f"length must be at least 10 * pairs * motif ({shortest}), so that pairs return"
    )


def _compress(s, draw):
    """All of a random text must be kept: it is asked for place by place, in any order.

    MAD decodes the text from the state of its last token; a language model is asked instead."""
    text = draw.choices(SYMBOLS[: s["symbols"]], k=s["length"])
    parts = [("".join(text) + MARK, False)]
    for place in draw.sample(range(s["length"]), s["questions"]):
        parts += [(SYMBOLS[s["symbols"] + place], False), (text[place], True)]
    return document(*parts)


def _compress_fault(s):
    return None if s["questions"] <= s["length"] else f"questions must be at most length ({s['length']})"


# --- selection, states ---


def _selective_copy(s, draw):
    symbols = draw.choices(SYMBOLS[: s["symbols"]], k=s["data"])
    before = [BLANK] * (s["length"] - s["data"] - 1)
    for place, symbol in zip(sorted(draw.sample(range(len(before)), s["data"])), symbols):
        before[place] = symbol
    return document(("".join(before) + MARK, False), ("".join(symbols), True))


def _selective_copy_fault(s):
    return None if s["length"] > 2 * s["data"] else f"length must be more than 2 * data ({2 * s['data']})"


def _parity(s, draw):
    """The sum of all digits so far, modulo `modulus`; asked for at random places, in letters."""
    m = s["modulus"]
    steps = [draw.randrange(m) for _ in range(s["length"])]
    totals = [total % m for total in accumulate(steps)]
    return _tracked(s, draw, [string.digits[step] for step in steps], [SYMBOLS[total] for total in totals])


def _permutations(s, draw):
    """The product of all elements of the symmetric group so far, the newest applied last."""
    group = list(permutations(range(s["points"])))
    number = {element: k for k, element in enumerate(group)}
    steps = draw.choices(group, k=s["length"])
    products = accumulate(steps, lambda so_far, step: tuple(step[place] for place in so_far))
    return _tracked(
        s, draw, [SYMBOLS[number[step]] for step in steps], [SYMBOLS[len(group) + number[p]] for p in products]
    )


def _tracked(s, draw, steps, states):
    asked = set(draw.sample(range(s["length"]), s["questions"]))
    return document(
        *(
            (text, scored)
            for k, step in enumerate(steps)
            for text, scored in ((step, False), (states[k], True))
            if not scored or k in asked
        )
    )


def _brackets(s, draw):
    """Closing brackets are scored: their kind is that of the last one open."""
    openers, closers = SYMBOLS[: s["kinds"]], SYMBOLS[26 : 26 + s["kinds"]]
    parts, stack = [], []
    for left in range(s["length"], 0, -1):
        if not stack or len(stack) < min(s["depth"], left) and draw.random() < 0.5:
            stack.append(draw.randrange(s["kinds"]))
            parts.append((openers[stack[-1]], False))
        else:
            parts.append((closers[stack.pop()], True))
    return document(*parts)


# --- reasoning, knowledge, structure ---


def _hops(s, draw):
    """A random cycle through all nodes, as shuffled pairs; then: the node so many steps on? Its answer follows."""
    cycle = draw.sample(SYMBOLS[: s["nodes"]], s["nodes"])
    pairs = [a + b for a, b in zip(cycle, cycle[1:] + cycle[:1])]
    parts = [("".join(draw.sample(pairs, len(pairs))), False)]
    for _ in range(s["questions"]):
        k, start = draw.randint(1, s["hops"]), draw.randrange(s["nodes"])
        parts += [(string.digits[k] + cycle[start], False), (cycle[(start + k) % s["nodes"]], True)]
    return document(*parts)


def _hops_fault(s):
    return None if s["hops"] < min(s["nodes"], 10) else f"hops must be below nodes ({s['nodes']}) and at most 9"


@lru_cache(maxsize=8)
def fact_table(facts: int, symbols: int, values: int, seed: int) -> list[tuple[str, str]]:
    """Keys of two symbols and the value of each, the same in all documents."""
    draw = random.Random(f"facts\0{facts}\0{symbols}\0{values}\0{seed}")
    keys = draw.sample([a + b for a, b in product(SYMBOLS[:symbols], repeat=2)], facts)
    return [(key, draw.choice(SYMBOLS[symbols : symbols + values])) for key in keys]


def _facts(s, draw):
    table = fact_table(s["facts"], s["symbols"], s["values"], s["map_seed"])
    return document(
        *(part for key, value in draw.choices(table, k=s["questions"]) for part in ((key, False), (value, True)))
    )


def _facts_fault(s):
    return None if s["facts"] <= s["symbols"] ** 2 else f"facts must be at most symbols squared ({s['symbols'] ** 2})"


OPERATORS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def _arithmetic(s, draw):
    """Expressions in prefix notation, modulo `modulus`, with their values."""

    def expression(operators):
        if not operators:
            value = draw.randrange(s["modulus"])
            return SYMBOLS[value], value
        name, left = draw.choice(list(OPERATORS)), draw.randrange(operators)
        (a_text, a), (b_text, b) = expression(left), expression(operators - 1 - left)
        return name + a_text + b_text, OPERATORS[name](a, b) % s["modulus"]

    parts = []
    for _ in range(s["expressions"]):
        text, value = expression(s["operators"])
        parts += [(text + EQUALS, False), (SYMBOLS[value], True)]
    return document(*parts)


@lru_cache(maxsize=8)
def _likeliest_value(modulus: int, operators: int) -> float:
    """The probability of the most frequent value (0: products). By the distribution of values of ever longer expressions."""
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
    """The probability of every sentence of a random grammar, its end included: three symbols a level, each of which becomes, by one of
    two rules, two or three symbols of the next; the last level is what is read."""
    draw = random.Random(f"grammar\0{depth}\0{seed}")
    bodies = ["".join(body) for n in (2, 3) for body in product("abc", repeat=n)]
    below = {c: {c: 1.0} for c in "abc"}
    for level in range(depth, 0, -1):
        heads = "abc" if level > 1 else "a"
        rules = iter(draw.sample(bodies, 2 * len(heads)))  # all of a level are different
        here = {}
        for head in heads:
            here[head] = defaultdict(float)
            for rule in (next(rules), next(rules)):
                for expansion in product(*(below[c].items() for c in rule)):
                    here[head]["".join(text for text, _ in expansion)] += math.prod(p for _, p in expansion) / 2
        below = here
    return {text + BLANK: p for text, p in below["a"].items()}


@lru_cache(maxsize=8)
def _grammar_figures(depth: int, seed: int) -> tuple[float, float, float, list[str], list[float]]:
    """Nats a sentence; the best accuracy of one guess for all tokens, and of the best guess for each; sentences, cumulative weights."""
    sentences = language(depth, seed)
    prefixes, symbols = defaultdict(lambda: defaultdict(float)), defaultdict(float)
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


def _grammar(s, draw):
    *_, sentences, weights = _grammar_figures(s["depth"], s["map_seed"])
    (text,) = draw.choices(sentences, cum_weights=weights)
    return document((text, True), (MARK * (max(map(len, sentences)) - len(text)), False))


def _at_most(**limits):
    """A fault of settings above their limits."""

    def fault(s):
        return next((f"{name} must be at most {limit}" for name, limit in limits.items() if s[name] > limit), None)

    return fault


def _all_of(*faults):
    return lambda s: next(filter(None, (fault(s) for fault in faults)), None)


def _one_of(name):
    return lambda s: 1 / s[name]


_QUESTIONS = _compress_fault


# settings and their defaults; make(settings, draw); chance, ceiling: accuracies; entropy: nats a document; fault: as in synthetic.Task
TASKS: dict[str, dict] = {
    "copy": dict(
        settings={"symbols": 16, "length": 16}, make=_copy, chance=_one_of("symbols"), fault=_at_most(symbols=90)
    ),
    "induction": dict(
        settings={"symbols": 16, "length": 10, "pieces": 6, "piece": 4},
        make=_induction,
        chance=_one_of("length"),
        fault=_all_of(_at_most(symbols=90), _induction_fault),
    ),
    "mqar": dict(
        settings={"pairs": 4, "keys": 8, "questions": 16, "length": 40, "near": True},
        make=_mqar,
        chance=_one_of("pairs"),
        fault=_all_of(_at_most(keys=45), _mqar_fault),
    ),
    "fuzzy_recall": dict(
        settings={"symbols": 8, "motif": 2, "pairs": 3, "noise": 20, "length": 64},
        make=_fuzzy_recall,
        chance=_one_of("symbols"),
        fault=_fuzzy_recall_fault,
    ),
    "compress": dict(
        settings={"symbols": 16, "length": 16, "questions": 8},
        make=_compress,
        chance=_one_of("symbols"),
        fault=_all_of(_at_most(symbols=45, length=45), _compress_fault),
    ),
    "selective_copy": dict(
        settings={"symbols": 16, "data": 6, "length": 32},
        make=_selective_copy,
        chance=_one_of("symbols"),
        fault=_all_of(_at_most(symbols=90), _selective_copy_fault),
    ),
    "parity": dict(
        settings={"modulus": 2, "length": 40, "questions": 5},
        make=_parity,
        chance=_one_of("modulus"),
        fault=_all_of(_at_most(modulus=10), _QUESTIONS),
    ),
    "permutations": dict(
        settings={"points": 3, "length": 40, "questions": 5},
        make=_permutations,
        chance=lambda s: 1 / math.factorial(s["points"]),
        fault=_all_of(_at_most(points=4), _QUESTIONS),
    ),
    "brackets": dict(
        settings={"kinds": 4, "depth": 8, "length": 48},
        make=_brackets,
        chance=_one_of("kinds"),
        fault=_all_of(_at_most(kinds=26), lambda s: "length must be even" if s["length"] % 2 else None),
    ),
    "hops": dict(
        settings={"nodes": 6, "hops": 2, "questions": 4},
        make=_hops,
        chance=lambda s: 1 / (s["nodes"] - 1),
        fault=_all_of(_at_most(nodes=52), _hops_fault),
    ),
    "facts": dict(
        settings={"facts": 512, "symbols": 32, "values": 32, "questions": 8, "map_seed": 0},
        make=_facts,
        chance=_one_of("values"),
        fault=_all_of(_at_most(symbols=45, values=45), _facts_fault),
    ),
    "arithmetic": dict(
        settings={"modulus": 5, "operators": 2, "expressions": 4},
        make=_arithmetic,
        chance=lambda s: _likeliest_value(s["modulus"], s["operators"]),
        fault=_at_most(modulus=52, operators=30),
    ),
    "grammar": dict(
        settings={"depth": 3, "map_seed": 0},
        make=_grammar,
        fault=_at_most(depth=3),
        entropy=lambda s: _grammar_figures(s["depth"], s["map_seed"])[0],
        chance=lambda s: _grammar_figures(s["depth"], s["map_seed"])[1],
        ceiling=lambda s: _grammar_figures(s["depth"], s["map_seed"])[2],
    ),
}
