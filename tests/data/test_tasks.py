"""Synthetic tasks: what documents say, that their entropy is what is claimed, and that windows begin with documents."""

import json
import math
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from lmplay.data import documents, tasks
from lmplay.data.order import SampleOrder
from lmplay.data.plans import load_plan
from lmplay.data.prepare import prepare
from lmplay.data.tasks import arrows
from support.plan_files import refusal, write_task_plan

PLANS = sorted(path.stem for path in (Path(__file__).parents[2] / "plans").glob("arrow_*.json"))


def texts(folder, task, settings=None, count=2000, split="train", **dataset):
    spec = load_plan(write_task_plan(folder, task, settings, count, dataset=dataset)).datasets["d"]
    found = list(islice(documents.documents(spec, folder, split), count))
    assert all(len(document) == 1 and document[0][1] is True for document in found)
    return spec, [document[0][0] for document in found]


def number(bits: str) -> int:
    return int(bits[::-1], 2)


def test_times(tmp_path):
    spec, found = texts(tmp_path, "times", {"bits": 10, "factor": 5})
    assert all(len(t) == 20 and number(t[10:]) == 5 * number(t[:10]) % 1024 for t in found)
    ones = np.mean([[c == "1" for c in t] for t in found], axis=0)
    assert abs(ones - 0.5).max() < 5 * 0.5 / math.sqrt(len(found))
    assert tasks.entropy(spec.source, spec.settings) == pytest.approx(10 * math.log(2))
    assert (
        texts(tmp_path, "times", {"bits": 10, "factor": 1}, 20)[1][0][:10]
        == texts(tmp_path, "times", {"bits": 10, "factor": 1}, 20)[1][0][10:]
    )


@pytest.mark.parametrize("ones", [1, 2, 3, 5])
def test_linear(tmp_path, ones):
    rows = arrows.linear_map(12, ones, 0)
    matrix = np.array([[row >> k & 1 for k in range(12)] for row in rows])
    assert matrix.sum(1).tolist() == ([1] + [2] * 11 if ones == 2 else [ones] * 12)
    assert round(np.linalg.det(matrix)) % 2 == 1
    _, found = texts(tmp_path, "linear", {"bits": 12, "ones": ones}, 200)
    bits = np.array([[int(c) for c in t] for t in found])
    np.testing.assert_array_equal(bits[:, 12:], bits[:, :12] @ matrix.T % 2)
    assert arrows.linear_map(12, 3, 1) != arrows.linear_map(12, 3, 0)


def test_primes_and_addition(tmp_path):
    for text in texts(tmp_path, "primes", {"digits": 3}, 100)[1]:
        p, q = map(int, text[:7].split("*"))
        assert (
            p <= q
            and all(n % k for n in (p, q) for k in range(2, n))
            and int(text[8:][::-1]) == p * q
            and len(text) == 14
        )
    for text in texts(tmp_path, "addition", None, 100)[1]:
        assert text[3] == "+" and text[7] == "=" and int(text[:3]) + int(text[4:7]) == int(text[8:]) and len(text) == 12


def exact(counts) -> float:
    total = sum(counts.values())
    return -sum(n / total * math.log(n / total) for n in counts.values())


def test_entropy_of_primes_is_that_of_all_pairs(tmp_path):
    primes = (2, 3, 5, 7)
    spec, _ = texts(tmp_path, "primes", {"digits": 1}, 1)
    assert tasks.entropy(spec.source, spec.settings) == pytest.approx(
        exact(Counter(tuple(sorted((p, q))) for p in primes for q in primes)), abs=1e-12
    )


@pytest.mark.parametrize(
    "task, settings",
    [
        ("times", {"bits": 4}),
        ("times", {"bits": 4, "mirrored": True}),
        ("linear", {"bits": 4}),
        ("linear", {"bits": 4, "ones": 2}),
        ("primes", {"digits": 1}),
        ("addition", {"digits": 1}),
        ("reversible", {"symbols": 3, "length": 3}),
    ],
)
def test_entropy_is_that_of_the_documents(tmp_path, task, settings):
    spec, found = texts(tmp_path, task, settings, 20000)
    assert exact(Counter(found)) == pytest.approx(tasks.entropy(spec.source, spec.settings), abs=0.02)


def test_a_reversible_chain_is_the_same_in_both_directions(tmp_path):
    first, steps, of_first, of_step = arrows.reversible_chain(16, 0)
    joint = np.diff(np.array(steps), axis=1, prepend=0)
    np.testing.assert_allclose(joint, joint.T, rtol=0, atol=1e-9)
    joint /= joint.sum()
    stationary = joint.sum(1)
    np.testing.assert_allclose(stationary, np.diff(first, prepend=0) / first[-1], atol=1e-12)
    assert of_first == pytest.approx(-(stationary * np.log(stationary)).sum(), abs=1e-9)
    assert of_step == pytest.approx(-(joint * np.log(joint / stationary[:, None])).sum(), abs=1e-9)
    _, found = texts(tmp_path, "reversible", {"symbols": 4, "length": 8}, 20000)
    pairs = Counter(t[k : k + 2] for t in found for k in range(7))
    assert all(abs(n - pairs[pair[::-1]]) < 5 * math.sqrt(n + pairs[pair[::-1]]) for pair, n in pairs.items())
    assert set("".join(found)) == set("ABCD")


def test_mirrored_documents_are_the_others_from_their_end(tmp_path):
    for task in [name for name, task in tasks.TASKS.items() if "mirrored" in task.settings]:
        straight, mirrored = (texts(tmp_path, task, {"mirrored": m} if m else None, 200)[1] for m in (False, True))
        assert {len(t) for t in straight} == {len(t) for t in mirrored} == {len(straight[0])}
    found = texts(tmp_path, "times", {"mirrored": True}, 50)[1]
    assert all(number(t[::-1][14:]) == 3 * number(t[::-1][:14]) % 2**14 for t in found)


def test_a_document_depends_on_its_number_and_the_seed_alone(tmp_path):
    _, train = texts(tmp_path, "times", count=30)
    _, held_out = texts(tmp_path, "times", count=30, split="validation")
    assert train + held_out == texts(tmp_path, "times", count=60)[1][:50]
    assert texts(tmp_path, "times", count=30, seed=1)[1] != train
    assert texts(tmp_path, "times", {"bits": 14}, count=30)[1] == train


@pytest.mark.parametrize(
    "dataset, said",
    [
        (
            {"synthetic": "time", "max_documents": 5},
            "datasets.d.synthetic: unknown value \"time\". Did you mean 'times'?",
        ),
        ({"synthetic": "times"}, "datasets.d: a synthetic task has no end: needs 'max_documents'"),
        (
            {"synthetic": "times", "max_documents": 5, "settings": {"bit": 3}},
            "datasets.d.settings: the task 'times' has no setting 'bit'. Did you mean 'bits'?",
        ),
        (
            {"synthetic": "times", "max_documents": 5, "settings": {"bits": "3"}},
            "datasets.d.settings: bits must be a whole number, not '3'",
        ),
        (
            {"synthetic": "times", "max_documents": 5, "settings": {"bits": True}},
            "datasets.d.settings: bits must be a whole number, not True",
        ),
        (
            {"synthetic": "times", "max_documents": 5, "settings": {"bits": 0}},
            "datasets.d.settings: bits must be at least 1, not 0",
        ),
        (
            {"synthetic": "times", "max_documents": 5, "settings": {"factor": 4}},
            "datasets.d.settings: factor must be odd",
        ),
        (
            {"synthetic": "linear", "max_documents": 5, "settings": {"ones": 4}},
            "datasets.d.settings: ones must be 2 or odd",
        ),
        (
            {"synthetic": "linear", "max_documents": 5, "settings": {"bits": 3, "ones": 3}},
            "datasets.d.settings: ones must be below bits (3)",
        ),
        (
            {"synthetic": "primes", "max_documents": 5, "settings": {"digits": 9}},
            "datasets.d.settings: digits must be at most 6",
        ),
        (
            {"synthetic": "reversible", "max_documents": 5, "settings": {"symbols": 99}},
            "datasets.d.settings: symbols must be at most 58",
        ),
        ({"synthetic": "times", "max_documents": 5, "settings": 3}, "datasets.d.settings: must be an object in braces"),
        ({"synthetic": "times", "max_documents": 5, "text": "t"}, "datasets.d: unknown key 'text'"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(tmp_path, dataset, said):
    assert refusal(tmp_path, {"datasets": {"d": dataset}, "steps": [{"datasets": ["d"]}]}).startswith(said)


@pytest.mark.parametrize("context_len", [29, 87])
def test_windows_begin_with_documents(tmp_path, context_len):
    data = prepare(load_plan(write_task_plan(tmp_path, "times", documents=50)), progress=False)
    order = SampleOrder(data.plan.phases[0], data.train, context_len, seed=3)
    windows = order.windows(0, 2 * order.n_windows)  # two epochs, each cut at a place of its own
    tokens = windows.tokens.reshape(-1, 29)
    eot = data.tokenizer.eot
    assert (tokens[:, 28] == eot).all() and (tokens[:, :28] != eot).all()
    n_scored = windows.tokens.size if windows.scored is None else windows.scored.sum()
    assert n_scored == 2 * data.train["d"].n_tokens
    assert len({bytes(row) for row in tokens[:50, :28].astype(np.uint8)}) > 45
    elsewhere = SampleOrder(data.plan.phases[0], data.train, 32, seed=3).windows(0, 50).tokens
    assert (elsewhere == eot).any(0).sum() > 20  # a context that holds no whole documents is cut anywhere


@pytest.mark.parametrize("name", PLANS)
def test_the_context_of_the_shipped_plans_is_a_document(name, tmp_path):
    plan = load_plan(name)
    (spec,) = plan.datasets.values()
    text = next(documents.documents(spec, plan.folder))[0][0]
    assert len(text) + 1 == plan.context_len and plan.description
    assert spec.max_documents * plan.context_len < 10_000_000


def test_a_run_knows_context_and_entropy(tmp_path, trainer, work):
    plan = write_task_plan(tmp_path, "times", {"bits": 5}, 200, context_len=11)
    run = trainer(
        "--exp",
        "gpt2ish",
        "--set",
        "n_layer=1",
        "--set",
        "n_embd=16",
        "--set",
        "n_head=2",
        "--batch-size",
        "8",
        "--device",
        "cpu",
        "--training-plan",
        plan,
        "--max-steps",
        "3",
        "--run-name",
        "r",
    )
    assert run.status == 0, run.err
    meta = json.loads((work / "gpt_out/r/run.json").read_text())
    assert meta["config"]["max_len"] == 11
    assert meta["data"]["datasets"]["d"]["entropy"] == pytest.approx(5 * math.log(2) / 11)
