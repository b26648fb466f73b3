"""Probes: every answer by a slow reader of its own, the level of guessing by guessing, and what the plans promise."""

import inspect
import math
import random
from collections import Counter
from functools import lru_cache
from itertools import islice, permutations
from pathlib import Path

import numpy as np
import pytest

from lmplay.data import documents, tasks
from lmplay.data.order import SampleOrder
from lmplay.data.plans import load_plan
from lmplay.data.prepare import prepare
from lmplay.data.tasks import probes, reasoning
from lmplay.data.tasks.parts import SYMBOLS
from support.plan_files import write_task_plan

PLANS = sorted(path.stem for path in (Path(__file__).parents[2] / "plans").glob("probe_*.json"))
HARDER = {
    "copy": {"symbols": 90, "length": 30},
    "induction": {"symbols": 40, "length": 40, "pieces": 2, "piece": 40},
    "mqar": {"pairs": 9, "keys": 9, "questions": 12, "length": 60, "near": False},
    "fuzzy_recall": {"motif": 3, "pairs": 5, "noise": 40, "length": 150},
    "compress": {"symbols": 45, "length": 45, "questions": 45},
    "selective_copy": {"data": 10, "length": 64},
    "parity": {"modulus": 5},
    "permutations": {"points": 4, "length": 20},
    "brackets": {"kinds": 2, "depth": 3},
    "hops": {"nodes": 9, "hops": 8},
    "facts": {"facts": 50, "map_seed": 3},
    "arithmetic": {"modulus": 7, "operators": 4},
    "grammar": {"depth": 2, "map_seed": 1},
}
PROBES = probes.TASKS | reasoning.TASKS
BOTH = [(task, settings) for task in PROBES for settings in (None, HARDER[task])]


def made(folder, task, settings=None, count=100, split="train", **dataset):
    spec = load_plan(write_task_plan(folder, task, settings, count, dataset=dataset)).datasets["d"]
    return tasks.full_settings(task, spec.settings), list(islice(documents.documents(spec, folder, split), count))


def flat(document) -> tuple[str, list[bool]]:
    return "".join(text for text, _ in document), [scored for text, scored in document for _ in text]


# Each finds the answers from what comes before them, and nothing else: (place, answer) of every symbol that is scored.


def read_copy(text, s):
    first = text.split("|")[0]
    return [(s["length"] + 1 + k, c) for k, c in enumerate(first)]


def read_induction(text, s):
    n, found = s["length"], []
    for start in range(n, len(text), s["piece"]):
        for at in range(start + 1, start + s["piece"]):
            found.append((at, text[:n][text[:n].index(text[at - 1]) + 1]))
    return found


def read_mqar(text, s):
    keys, begin = SYMBOLS[: s["keys"]], 2 * s["pairs"]
    return [(at + 1, text[text.index(text[at]) + 1]) for at in range(begin, len(text)) if text[at] in keys]


def read_fuzzy_recall(text, s):
    n = s["symbols"]
    kinds = ["kv"[SYMBOLS.index(c) // n] if SYMBOLS.index(c) < 2 * n else "n" for c in text]
    quiet = [at for at, kind in enumerate(kinds) if kind != "n"]
    runs, known, found = [], {}, []
    for at in quiet:
        if not runs or kinds[at] != kinds[runs[-1][-1]]:
            runs.append([])
        runs[-1].append(at)
    for key, value in zip(runs[::2], runs[1::2]):
        name = "".join(text[at] for at in key)
        if name in known:
            found += [(at, c) for at, c in zip(value, known[name])]
        elif value[-1] < quiet[-1]:
            known[name] = "".join(text[at] for at in value)
    return found


def read_compress(text, s):
    n = s["length"]
    return [(at + 1, text[SYMBOLS.index(text[at]) - s["symbols"]]) for at in range(n + 1, len(text), 2)]


def read_selective_copy(text, s):
    begin = s["length"] - s["data"]
    assert text[begin - 1] == "|"
    return [(begin + k, c) for k, c in enumerate(text[: begin - 1].replace(".", ""))]


def read_parity(text, s):
    return [
        (at, SYMBOLS[sum(int(b) for b in text[:at] if b.isdigit()) % s["modulus"]])
        for at, c in enumerate(text)
        if not c.isdigit()
    ]


def read_permutations(text, s):
    group = list(permutations(range(s["points"])))
    matrices = [np.eye(s["points"], dtype=int)[list(element)] for element in group]  # composition is the matrix product
    state, found = np.eye(s["points"], dtype=int), []
    for at, c in enumerate(text):
        if SYMBOLS.index(c) < len(group):
            state = state @ matrices[SYMBOLS.index(c)]
        else:
            (number,) = (k for k, m in enumerate(matrices) if (m == state).all())
            found.append((at, SYMBOLS[len(group) + number]))
    return found


def read_brackets(text, s):
    assert Counter(text.lower()).total() == s["length"]
    depths, found = [0], []
    for at, c in enumerate(text):
        if c.isupper():
            opened = max(k for k in range(at) if text[k].islower() and depths[k] == depths[-1] - 1)
            found.append((at, text[opened].upper()))
        depths.append(depths[-1] + (1 if c.islower() else -1))
    assert depths[-1] == 0 and 0 <= min(depths) and max(depths) <= s["depth"]
    return found


def read_hops(text, s):
    successor, found = {}, []
    for at in range(0, 2 * s["nodes"], 2):
        successor[text[at]] = text[at + 1]
    for at in range(2 * s["nodes"], len(text), 3):
        node = text[at + 1]
        for _ in range(int(text[at])):
            node = successor[node]
        found.append((at + 2, node))
    assert len(successor) == s["nodes"]
    return found


@lru_cache
def facts_of_other_documents(settings) -> dict[str, str]:
    """What all documents have in common shows in others, too."""
    found = {}
    for number in range(300):
        other = flat(tasks.TASKS["facts"].make(dict(settings), random.Random(f"other {number}")))[0]
        found |= {other[k : k + 2]: other[k + 2] for k in range(0, len(other), 3)}
    return found


def read_facts(text, s):
    known = facts_of_other_documents(tuple(s.items()))
    assert len(known) > 0.95 * s["facts"]
    return [(k + 2, known.get(text[k : k + 2], text[k + 2])) for k in range(0, len(text), 3)]


def read_arithmetic(text, s):
    found, at = [], 0
    while at < len(text):
        end = text.index("=", at)
        stack = []
        for c in reversed(text[at:end]):
            if c in "+-*":
                a, b = stack.pop(), stack.pop()
                stack.append({"+": a + b, "-": a - b, "*": a * b}[c])
            else:
                stack.append(SYMBOLS.index(c))
        (value,) = stack
        found.append((end + 1, SYMBOLS[value % s["modulus"]]))
        at = end + 2
    return found


def read_grammar(text, s):
    end = text.index(".")
    assert set(text[:end]) <= set("abc") and set(text[end + 1 :]) <= {"|"}
    return list(enumerate(text[: end + 1]))


@pytest.mark.parametrize("task, settings", BOTH, ids=[f"{task}-{'harder' if s else 'default'}" for task, s in BOTH])
def test_answers_follow_from_what_was_read(tmp_path, task, settings):
    s, documents = made(tmp_path, task, settings)
    lengths = {len(flat(document)[0]) for document in documents}
    assert len(lengths) == 1
    for document in documents:
        text, scored = flat(document)
        assert not document[-1][1]  # the end of the text is no answer
        found = dict(globals()[f"read_{task}"](text, s))
        assert {at: text[at] for at, is_scored in enumerate(scored) if is_scored} == found and found
    assert len({flat(document)[0] for document in documents}) > (5 if task == "grammar" else 90)


def guesses(task, s, text, answers):
    """Among what does the level of chance guess? The symbols that can be an answer here, or those that were shown."""
    n = s.get("symbols", 0)
    return {
        "copy": SYMBOLS[:n],
        "induction": text[: s.get("length", 0)],
        "mqar": text[1 : 2 * s.get("pairs", 0) : 2],
        "fuzzy_recall": SYMBOLS[n : 2 * n],
        "compress": SYMBOLS[:n],
        "selective_copy": SYMBOLS[:n],
        "parity": SYMBOLS[: s.get("modulus", 0)],
        "permutations": SYMBOLS[math.factorial(s.get("points", 0)) :][: math.factorial(s.get("points", 0))],
        "brackets": SYMBOLS[26 : 26 + s.get("kinds", 0)],
        "facts": SYMBOLS[n : n + s.get("values", 0)],
    }.get(task)


@pytest.mark.parametrize("task, settings", BOTH, ids=[f"{task}-{'harder' if s else 'default'}" for task, s in BOTH])
def test_chance_is_what_guessing_reaches(tmp_path, task, settings):
    s, documents = made(tmp_path, task, settings, count=400)
    level = tasks.TASKS[task].chance(s)
    draw, right, n, constant = np.random.default_rng(0), 0, 0, Counter()
    for document in documents:
        text, scored = flat(document)
        answers = [(at, text[at]) for at, is_scored in enumerate(scored) if is_scored]
        constant.update(c for _, c in answers)
        for at, answer in answers:
            among = guesses(task, s, text, answers)
            if task == "hops":  # any node but the one asked about
                among = [c for c in SYMBOLS[: s["nodes"]] if c != text[at - 1]]
            if among is not None:
                right += among[draw.integers(len(among))] == answer
            n += 1
    if among is None:  # the most frequent answer
        right = constant.most_common(1)[0][1]
    assert right / n == pytest.approx(level, abs=5 * math.sqrt(level * (1 - level) / n) + 1e-3)


def test_grammar_figures_are_those_of_its_sentences(tmp_path):
    for depth, seed in ((2, 0), (3, 0)):
        sentences = reasoning.language(depth, seed)
        assert sum(sentences.values()) == pytest.approx(1)
        nats, constant, best, *_ = reasoning.grammar_figures(depth, seed)
        lengths = sum(p * len(text) for text, p in sentences.items())
        # symbol by symbol instead of sentence by sentence: the best guess and the surprise after each prefix
        prefixes = {text[:k] for text in sentences for k in range(len(text))} if depth == 2 else set()
        right = surprise = 0.0
        for prefix in prefixes:
            after = Counter()
            for text, p in sentences.items():
                if text.startswith(prefix):
                    after[text[len(prefix)]] += p
            right += max(after.values())
            surprise -= sum(p * math.log(p / after.total()) for p in after.values())
        if depth == 2:
            assert best == pytest.approx(right / lengths) and nats == pytest.approx(surprise)
        assert 1 / 4 <= constant < best < 1
    _, documents = made(tmp_path, "grammar", {"depth": 1}, 4000)
    counts = Counter(flat(document)[0].split("|")[0] for document in documents)
    assert {text: n / 4000 for text, n in counts.items()} == pytest.approx(reasoning.language(1, 0), abs=0.05)


def test_a_grammar_derives_its_sentences():
    """By the rules themselves: two a symbol, all different, of two or three symbols."""
    sentences = reasoning.language(1, 0)
    assert len(sentences) == 2 and all(
        p == 0.5 and text[-1] == "." and 2 <= len(text[:-1]) <= 3 for text, p in sentences.items()
    )
    deep = reasoning.language(3, 5)
    assert min(map(len, deep)) >= 2**3 + 1 and max(map(len, deep)) <= 3**3 + 1 and len(deep) > 100
    assert reasoning.language(3, 5) != reasoning.language(3, 6)


@pytest.mark.parametrize("task", PROBES)
def test_same_seed_same_documents_and_validation_is_another_draw(tmp_path, task):
    _, train = made(tmp_path, task, count=100)
    assert train == made(tmp_path, task, count=100)[1] and train != made(tmp_path, task, count=100, seed=1)[1]
    _, held_out = made(tmp_path, task, count=100, split="validation")
    assert len(held_out) == 20 and held_out == made(tmp_path, task, count=120)[1][100:]
    if task not in ("grammar", "arithmetic", "facts"):  # so few documents are possible that some come twice
        assert not {flat(d)[0] for d in train} & {flat(d)[0] for d in held_out}


def test_pairs_are_asked_for_early_if_near():
    near, far = (
        [flat(tasks.TASKS["mqar"].make(s | {"near": n}, random.Random(k)))[1] for k in range(300)]
        for s in [tasks.TASKS["mqar"].settings | {"length": 128, "questions": 4}]
        for n in (True, False)
    )
    early = [np.mean([sum(scored[:40]) for scored in of]) for of in (near, far)]
    weights = 1 / (np.arange(60) + 1) ** 0.99
    draw = np.random.default_rng(0)
    expected = [
        np.mean([(draw.choice(60, 4, replace=False, p=p / p.sum()) < 16).sum() for _ in range(2000)])
        for p in (weights, np.ones(60))
    ]
    assert early == pytest.approx(expected, abs=0.25) and expected[0] - expected[1] > 1


@pytest.mark.parametrize(
    "task, settings, said",
    [
        ("mqar", {"pairs": 9}, "pairs must be at most keys (8)"),
        ("mqar", {"length": 15}, "length must be even and at least"),
        ("mqar", {"near": 1}, "near must be true or false"),
        ("copy", {"symbols": 91}, "symbols must be at most 90"),
        ("induction", {"piece": 11}, "piece must be from 2 to length (10)"),
        ("induction", {"length": 17}, "length must be at most symbols (16)"),
        ("compress", {"questions": 17}, "questions must be at most length (16)"),
        ("selective_copy", {"length": 12}, "length must be more than 2 * data (12)"),
        ("parity", {"modulus": 11}, "modulus must be at most 10"),
        ("permutations", {"points": 5}, "points must be at most 4"),
        ("brackets", {"length": 7}, "length must be even"),
        ("hops", {"hops": 6}, "hops must be below nodes (6)"),
        ("facts", {"facts": 1025}, "facts must be at most symbols squared (1024)"),
        ("grammar", {"depth": 4}, "depth must be at most 3"),
        ("fuzzy_recall", {"pairs": 9}, "pairs must be at most symbols (8)"),
        ("fuzzy_recall", {"noise": 95}, "symbols must be from 5 to 40"),
        ("fuzzy_recall", {"length": 50}, "length must be at least"),
        ("parity", {"questions": 41}, "questions must be at most length (40)"),
    ],
)
def test_wrong_settings_are_refused(task, settings, said):
    with pytest.raises(ValueError, match="^" + said.replace("(", r"\(").replace(")", r"\)").replace("*", r"\*")):
        tasks.check_settings(task, settings)


@pytest.mark.parametrize("task", PROBES)
def test_defaults_are_allowed(task):
    assert tasks.check_settings(task, tasks.TASKS[task].settings)
    assert set(inspect.signature(tasks.TASKS[task].make).parameters) == {"s", "draw"}


def test_every_task_has_a_plan_whose_windows_are_documents(tmp_path):
    assert [name.removeprefix("probe_") for name in PLANS] == sorted(PROBES)
    for name in PLANS:
        plan = load_plan(name)
        (spec,) = plan.datasets.values()
        text, _ = flat(next(documents.documents(spec, plan.folder)))
        assert len(text) + 1 == plan.context_len and spec.source == name.removeprefix("probe_") and plan.description
        assert spec.settings.keys() == tasks.TASKS[spec.source].settings.keys()  # the file says all of them
        assert spec.max_documents * plan.context_len < 10_000_000


def test_only_answers_are_scored_in_the_store(tmp_path):
    data = prepare(load_plan(write_task_plan(tmp_path, "parity", context_len=46)), progress=False)
    windows = SampleOrder(data.plan.phases[0], data.train, 46, seed=0).windows(0, 20)
    assert windows.scored.sum(1).tolist() == [5] * 20
    answers = windows.tokens[windows.scored]
    assert set(answers.tolist()) == {ord("a"), ord("b")} and (windows.tokens[:, -1] == data.tokenizer.eot).all()
