"""What a model is fed, from real token stores."""

import contextlib
import random
from collections import Counter

import numpy as np
import pytest
import torch

from lmplay import contract, registry
from lmplay.data import store_writer
from lmplay.data.order import SampleOrder
from lmplay.data.plan_spec import ORDERS, PhaseSpec
from lmplay.data.tokenizers import load_tokenizer
from lmplay.errors import UserError
from lmplay.initial_values import seed_of
from lmplay.train.batches import TrainingFeed
from lmplay.train.validation import ValidationFeed, validate

CONTEXT, CPU = 8, torch.device("cpu")
TOKENIZER = load_tokenizer("bytes")
HIDE = """
def make_batch(window, bos, generator):
    hidden = torch.rand(window.shape, generator=generator) < 0.5
    return window.masked_fill(hidden, bos), window.masked_fill(~hidden, -100)
"""


def build(folder, name, documents):
    return store_writer.build(folder / name, documents, TOKENIZER)


@pytest.fixture
def stores(tmp_path):
    """Plain text with documents of 1 to 40 bytes, and prompts with answers."""
    draw = random.Random(0)
    texts = [[("".join(draw.choices("abcdef", k=draw.choice((1, 3, 20, 40)))), True)] for _ in range(60)]
    answers = [
        [("?" * draw.choice((1, 5, 30)), False), ("".join(draw.choices("xyz", k=draw.choice((1, 6)))), True)]
        for _ in range(40)
    ]
    return {"texts": build(tmp_path, "texts", texts), "answers": build(tmp_path, "answers", answers)}


def load(experiment, addition):
    return contract.load(registry.find(experiment("mine", addition))[0])


def training(experiment, stores, names=("texts", "answers"), addition="", seed=3):
    order = SampleOrder(PhaseSpec("step", list(names), 1.0), stores, CONTEXT, seed)
    return TrainingFeed(load(experiment, addition), order, TOKENIZER.eot, seed), order


def test_batches_are_the_windows_at_their_positions(experiment, stores):
    feed, order = training(experiment, stores)
    batch, windows = feed.batch(5, 7), order.windows(5, 7)
    assert batch.inputs[:, 0].eq(TOKENIZER.eot).all()
    assert batch.inputs[:, 1:].numpy().tolist() == windows.tokens[:, :-1].tolist()
    assert batch.targets.tolist() == np.where(windows.scored, windows.tokens, -100).tolist()
    assert batch.n_scored == windows.scored.sum() and batch.n_bytes == pytest.approx(windows.bytes.sum())
    again = feed.batch(5, 7)
    assert again.inputs.equal(batch.inputs) and again.targets.equal(batch.targets)
    one_by_one = [feed.batch(position, 1) for position in range(5, 12)]
    assert torch.cat([b.targets for b in one_by_one]).equal(batch.targets)


def test_random_batches_depend_on_seed_and_position(experiment, stores):
    feed, _ = training(experiment, stores, ["texts"], HIDE)
    batch = feed.batch(0, 6)
    assert feed.batch(0, 6).targets.equal(batch.targets)
    assert (batch.targets == -100).any() and batch.n_scored == (batch.targets != -100).sum()
    other = TrainingFeed(feed.experiment, feed.order, feed.bos, seed=4).batch(0, 6)
    assert not other.targets.equal(batch.targets)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_parts_are_the_batch(experiment, stores, size):
    feed, _ = training(experiment, stores)
    batch = feed.batch(0, 7)
    batch.labels = torch.arange(batch.targets.numel()).view_as(batch.targets)
    found = []
    for inputs, targets, rows, labels in batch.parts(size, CPU):
        assert len(inputs) <= size
        flat = targets.flatten()
        if rows is None:
            assert (flat != -100).all()
            rows = torch.arange(len(flat))
        assert (flat[rows] != -100).all() and len(rows) == (flat != -100).sum() > 0
        assert batch.targets.flatten()[labels].equal(flat[rows])
        found += labels.tolist()
    assert found == (batch.targets.flatten() != -100).nonzero().squeeze(1).tolist()


def test_seeds():
    assert seed_of(1, "a", 2) == seed_of(1, "a", 2)
    seeds = {seed_of(*parts) for parts in [(1,), (2,), ("1",), (1, 2), (12,), ("a", 1, 2), ("a", 12)]}
    assert len(seeds) == 7 and all(0 <= seed < 2**63 for seed in seeds)


def validation(experiment, stores, max_tokens=0, addition="", context=CONTEXT):
    return ValidationFeed(load(experiment, addition), stores, context, TOKENIZER.eot, max_tokens)


def tokens_by_document(feed):
    """How many scored targets carry each document's label, and the tokens themselves."""
    counts, tokens = Counter(), {}
    for batch in feed.batches():
        for _, targets, rows, labels in batch.parts(3, CPU):
            flat = targets.flatten() if rows is None else targets.flatten()[rows]
            for token, label in zip(flat.tolist(), labels.tolist()):
                counts[label] += 1
                tokens.setdefault(label, []).append(token)
    return counts, tokens


@pytest.mark.parametrize("context", [1, 8, 13, 10_000])
def test_every_validation_token_is_scored_once_under_its_document(experiment, stores, context):
    feed = validation(experiment, stores, context=context)
    _, tokens = tokens_by_document(feed)
    assert len(feed.documents) == stores["texts"].n_documents + stores["answers"].n_documents
    for label, document in enumerate(feed.documents):
        of = stores[document["dataset"]]
        start, stop = of.document_offsets[document["document"] : document["document"] + 2]
        scored = of.scored(start, stop)
        ids = of.tokens(start, stop)
        assert tokens[label] == (ids if scored is None else ids[scored]).tolist()
        assert document["tokens"] == stop - start and document["bytes"] == of.bytes_between([start], [stop])
    assert sum(batch.n_bytes for batch in feed.batches()) == pytest.approx(
        stores["texts"].n_bytes + stores["answers"].n_bytes
    )


@pytest.mark.parametrize("max_tokens", [100, 400])
def test_a_budget_takes_the_beginnings_of_many_documents(experiment, stores, max_tokens):
    """As runs of the first order do, however much of an answer is left then."""
    feed = ValidationFeed(load(experiment, ""), stores, CONTEXT, TOKENIZER.eot, max_tokens, data_order=1)
    counts, tokens = tokens_by_document(feed)
    for name, of in stores.items():
        taken = [d for d in feed.documents if d["dataset"] == name]
        lengths = np.diff(of.document_offsets)
        longest = max(d["tokens"] for d in taken)
        assert longest == max_tokens // 50 or len(taken) == of.n_documents
        assert [d["document"] for d in taken] == list(range(len(taken)))
        assert [d["tokens"] for d in taken] == np.minimum(lengths, longest)[: len(taken)].tolist()
        assert sum(d["tokens"] for d in taken) <= max_tokens < np.minimum(lengths, longest + 1)[: len(taken) + 1].sum()
        for label, document in enumerate(feed.documents):
            if document["dataset"] == name:
                start = of.document_offsets[document["document"]]
                stop = start + document["tokens"]
                scored = of.scored(start, stop)
                ids = of.tokens(start, stop)
                assert tokens.get(label, []) == (ids if scored is None else ids[scored]).tolist()
    assert len(ValidationFeed(feed.experiment, stores, CONTEXT, feed.bos, 10**9).documents) == 100


@pytest.mark.parametrize("max_tokens", [60, 250])
@pytest.mark.parametrize("data_order", ORDERS)
def test_long_prompts_are_cut_before_the_answer_not_after(tmp_path, experiment, max_tokens, data_order):
    """Each document has something to score, and the bytes are those of the tokens that are scored."""
    answers = ["yes", "certainly not", "x" * 40, "no"]
    long = [[("?" * (30 + k), False), (answer, True)] for k, answer in enumerate(answers * 10)]
    of = {"long": build(tmp_path, "long", long)}
    feed = ValidationFeed(load(experiment, ""), of, CONTEXT, TOKENIZER.eot, max_tokens, data_order=data_order)
    counts, tokens = tokens_by_document(feed)
    assert sorted(counts) == list(range(len(feed.documents))) and len(counts) > 1
    expected = 0.0
    for label, ids in tokens.items():
        answer = answers[label % 4].encode() + bytes(1)
        at = bytes(ids[:-1] if ids[-1] == TOKENIZER.eot else ids)
        assert at and at in answer
        expected += len(ids) * (len(answer) - 1) / len(answer)
        assert feed.documents[label]["tokens"] <= max(max_tokens // 50, max_tokens / len(counts))
    assert sum(batch.n_bytes for batch in feed.batches()) == pytest.approx(expected)
    assert sum(d["bytes"] for d in feed.documents) == pytest.approx(expected, abs=len(counts) / 2)


def test_a_validation_that_scores_nothing_is_no_loss_of_0(experiment, stores):
    nothing = "def make_batch(window, bos, generator):\n    return window, window * 0 - 100"
    feed = validation(experiment, stores, addition=nothing)
    with pytest.raises(UserError, match="none of the validation tokens is scored"):
        validate(torch.nn.Identity(), feed, 4, CPU, contextlib.nullcontext)


def test_where_documents_are_few_more_of_each_is_taken(tmp_path, experiment):
    long = {"long": build(tmp_path, "long", [[("a" * 100, True)], [("b" * 5, True)]])}
    feed = validation(experiment, long, max_tokens=36)
    counts, _ = tokens_by_document(feed)
    assert counts == {0: 30, 1: 6} and [d["tokens"] for d in feed.documents] == [30, 6]
    assert sum(batch.n_bytes for batch in feed.batches()) == pytest.approx(100 / 101 * 30 + 5)


def test_labels_follow_an_experiments_own_batch(experiment, stores):
    feed = validation(experiment, stores, addition=HIDE)
    counts, tokens = tokens_by_document(feed)
    for label, ids in tokens.items():
        document = feed.documents[label]
        letters = "abcdef" if document["dataset"] == "texts" else "xyz"
        assert set(ids) <= {*letters.encode(), TOKENIZER.eot}
    shown = ValidationFeed(contract.load(registry.find("gpt2ish")[0]), stores, CONTEXT, feed.bos, 0)
    n_scored = sum(tokens_by_document(shown)[0].values())
    assert 0.3 * n_scored < sum(counts.values()) < 0.7 * n_scored
    ratio = sum(batch.n_bytes for batch in feed.batches()) / sum(batch.n_bytes for batch in shown.batches())
    assert ratio == pytest.approx(sum(counts.values()) / n_scored, rel=0.1)  # bits per byte of what is scored
    assert tokens_by_document(feed)[1] == tokens  # the same hidden tokens each time
