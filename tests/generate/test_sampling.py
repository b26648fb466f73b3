"""How tokens are drawn and fed, on models and vocabularies small enough to be computed by hand."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from lmplay import contract, registry
from lmplay.contract import Direction
from lmplay.data.plans import load_plan
from lmplay.data.tokenizers import load_tokenizer
from lmplay.errors import UserError
from lmplay.generate.sampling import Sampling, generate, generate_rows, next_token, stream_text, text_parts
from support.small import EXPERIMENTS, TINY

VOCABULARY, CONTEXT, BEGIN = 40, 16, 39
GREEDY = Sampling(do_sample=False)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def lively_model(name: str) -> torch.nn.Module:
    """A small model with random weights that are large enough for its text to be no loop of a few tokens."""
    experiment = contract.load(registry.read_entry(EXPERIMENTS / name))
    torch.manual_seed(1)
    model = experiment.build(experiment.config("tiny", VOCABULARY, CONTEXT, n_layer=2, n_embd=16, n_head=2)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(20)
    return model


class ForwardOnly(torch.nn.Module):
    """What an experiment that offers nothing optional looks like."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, tokens):
        return self.inner(tokens), {"loss": 0.0}


@pytest.mark.parametrize("name", ["gpt2ish", "llama2"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_texts_of_one_batch_are_those_of_their_generators(name, use_cache):
    """Some end early, and some go on beyond the context."""
    model, how = lively_model(name), {"context_len": CONTEXT, "max_len": 3 * CONTEXT, "use_cache": use_cache}
    how |= {"sampling": Sampling(temperature=1.5, repetition_penalty=1.1), "stop": 7}
    prompts = [[BEGIN, 3, 5]] * 5 + [[BEGIN, 8, 2]]
    alone = [list(generate(model, prompt, generator=seeded(n), **how)) for n, prompt in enumerate(prompts)]
    rows = zip(*generate_rows(model, prompts, [seeded(seed) for seed in range(6)], **how), strict=True)
    assert [[token for token in row if token is not None] for row in rows] == alone
    assert min(map(len, alone)) < 3 * CONTEXT and max(map(len, alone)) > CONTEXT


@pytest.mark.parametrize("name", ["gpt2ish", "llama2", "reverse_time"])
@pytest.mark.parametrize("n_prompt", [0, 5, CONTEXT - 1, CONTEXT, 3 * CONTEXT])
def test_same_text_with_and_without_cache(name, n_prompt):
    model, prompt = lively_model(name), [BEGIN, *random.Random(n_prompt).choices(range(VOCABULARY), k=n_prompt)]
    texts = [
        list(generate(m, prompt, CONTEXT, 4 * CONTEXT, GREEDY, seeded(), use_cache=use_cache))
        for m, use_cache in ((model, True), (model, False), (ForwardOnly(model), True))
    ]
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0]) == 4 * CONTEXT and len(set(texts[0])) > 5
    drawn = [
        list(generate(model, prompt, CONTEXT, 3 * CONTEXT, Sampling(), seeded(7), use_cache=use_cache))
        for use_cache in (True, False)
    ]
    assert drawn[0] == drawn[1] != texts[0][: 3 * CONTEXT]


@pytest.mark.parametrize("n_prompt", [0, CONTEXT - 1, CONTEXT, 50])
def test_greedy_text_is_the_likeliest_token_of_each_context(n_prompt):
    """Against a loop that says the rule in its own words: the beginning token and, when all is full, the newer half."""
    model, tokens = lively_model("gpt2ish"), random.Random(3).choices(range(VOCABULARY), k=n_prompt)
    generated = list(generate(model, [BEGIN, *tokens], CONTEXT, 40, GREEDY, seeded()))
    read = tokens if n_prompt < CONTEXT else tokens[-CONTEXT // 2 :]
    expected = []
    for _ in range(40):
        if len(read) == CONTEXT:
            read = read[CONTEXT // 2 :]
        with torch.no_grad():
            expected.append(int(model(torch.tensor([[BEGIN] + read]))[0, -1].argmax()))
        read = read + expected[-1:]
    assert generated == expected


class Fixed(torch.nn.Module):
    """Gives the same logits whatever it reads, and remembers what that was."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.read = torch.nn.Parameter(torch.tensor(logits)), []

    def forward(self, tokens):
        self.read.append(tokens[0].tolist())
        return self.logits.expand(*tokens.shape, -1)


@pytest.mark.parametrize("context_len", [1, 2, 3, 8])
def test_every_context_fits_and_begins_at_the_beginning(context_len):
    model = Fixed([1.0, 1.0, 1.0, 0.0])
    tokens = [0, 1, 2]
    tokens += list(generate(model, [3, *tokens], context_len, 30, Sampling(top_p=1.0), seeded()))
    assert len(model.read) == 30
    for step, read in enumerate(model.read):
        assert read[0] == 3 and len(read) <= context_len
        assert read[1:] == tokens[3 + step - (len(read) - 1) : 3 + step]
        assert len(read) > min(context_len // 2, 3)


def test_ends_at_end_of_text_and_at_max_len():
    def text(last, **how):
        return list(generate(Fixed([0.0, 0.0, last]), [2], 8, 20, Sampling(top_p=1.0, **how), seeded(), stop=2))

    assert text(9.0, do_sample=False) == []
    assert len(text(-9.0)) == 20
    assert 0 < len(text(-2.0)) < 20 and 2 not in text(-2.0)


def test_the_repetition_penalty_is_for_the_text_not_for_the_beginning_token():
    model = Fixed([3.0, 2.0, 1.0])
    penalised = Sampling(do_sample=False, repetition_penalty=1e9)
    assert list(generate(model, [2], 8, 9, penalised, seeded(), stop=2)) == [0, 1]
    assert list(generate(model, [2, 0, 0], 8, 9, penalised, seeded(), stop=2)) == [1]


def probabilities(logits, occurred, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0):
    """The distribution by the definitions, in plain Python."""
    scores = [
        (s / repetition_penalty if s > 0 else s * repetition_penalty) if token in occurred else s
        for token, s in enumerate(logits)
    ]
    ranked = sorted(range(len(scores)), key=lambda token: -scores[token])[: top_k or None]
    weights = {token: math.exp(scores[token] / temperature) for token in ranked}
    total = sum(weights.values())
    kept, reached = [], 0.0
    for token in ranked:
        if reached < top_p:
            kept.append(token)
        reached += weights[token] / total
    total = sum(weights[token] for token in kept)
    return [weights[token] / total if token in kept else 0.0 for token in range(len(logits))]


@pytest.mark.parametrize(
    "how",
    [
        dict(),
        dict(temperature=0.5),
        dict(temperature=2.5),
        dict(top_k=1),
        dict(top_k=4),
        dict(top_k=500),
        dict(top_p=0.3),
        dict(top_p=0.8),
        dict(top_p=0.99),
        dict(repetition_penalty=1.8),
        dict(repetition_penalty=0.6),
        dict(temperature=1.4, top_k=7, top_p=0.75, repetition_penalty=1.3),
    ],
    ids=str,
)
def test_tokens_are_drawn_with_the_probabilities_of_the_definitions(how):
    n, logits, occurred = 4000, torch.randn(12, generator=seeded(5)) * 1.5, [2, 7, 7, 0]
    before = logits.clone()
    expected = probabilities(logits.tolist(), occurred, **how)
    generator, counts = seeded(11), [0] * 12
    sampling = Sampling(**{"temperature": 1.0, "top_p": 1.0, **how})
    for _ in range(n):
        counts[next_token(logits, occurred, sampling, generator)] += 1
    possible = [token for token, p in enumerate(expected) if p]
    assert sum(counts[token] for token in possible) == n
    if len(possible) > 1:
        assert (
            chisquare([counts[token] for token in possible], [n * expected[token] for token in possible]).pvalue > 1e-3
        )
    assert torch.equal(logits, before)


def test_the_nucleus_of_a_large_vocabulary():
    """Every token is of the nucleus of the definition, and nearly all of the nucleus comes up."""
    logits = torch.randn(5000, generator=seeded(2)) * 4
    nucleus = {token for token, p in enumerate(probabilities(logits.tolist(), [], top_p=0.9)) if p}
    generator = seeded(3)
    drawn = {next_token(logits, [], Sampling(temperature=1.0, top_p=0.9), generator) for _ in range(3000)}
    assert drawn <= nucleus and len(nucleus) < 2500
    assert len(drawn) > 0.5 * len(nucleus)


def test_a_nucleus_with_a_long_tail():
    """One token has 0.2, 999 share the rest: 0.5 is reached by the one and 375 others."""
    logits = torch.tensor([math.log(0.2), *[math.log(0.8 / 999)] * 999])
    generator = seeded(4)
    drawn = [next_token(logits, [], Sampling(temperature=1.0, top_p=0.5), generator) for _ in range(5000)]
    assert 370 < len(set(drawn)) <= 376
    assert abs(drawn.count(0) / 5000 - 0.2 / 0.5) < 0.03


@pytest.mark.parametrize(
    "how",
    [dict(temperature=0.0), dict(do_sample=False), dict(temperature=1e-300), dict(top_k=1), dict(top_p=1e-300)],
    ids=str,
)
def test_what_leaves_only_the_likeliest_token(how):
    generator = seeded(0)
    for seed in range(50):
        logits = torch.randn(30, generator=generator)
        assert next_token(logits, [], Sampling(**how), seeded(seed)) == logits.argmax()


@pytest.mark.parametrize("how", [dict(), dict(top_p=1e-18), dict(temperature=1e30)], ids=str)
def test_equal_logits_are_no_special_case(how):
    assert next_token(torch.zeros(1000), [], Sampling(**how), seeded()) in range(1000)


def test_tokens_that_the_model_rules_out_are_not_drawn():
    logits = torch.tensor([0.0, -math.inf, 1.0, -math.inf])
    generator = seeded()
    drawn = {
        next_token(logits, [1], Sampling(top_p=1.0, temperature=5.0, repetition_penalty=2.0), generator)
        for _ in range(200)
    }
    assert drawn == {0, 2}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_said_so(bad):
    with pytest.raises(UserError, match="not finite"):
        next_token(torch.tensor([0.0, bad, 1.0]), [], Sampling(), seeded())


@pytest.mark.parametrize(
    "how",
    [
        dict(temperature=-0.1),
        dict(temperature=math.nan),
        dict(temperature=math.inf),
        dict(top_k=-1),
        dict(top_p=0.0),
        dict(top_p=1.1),
        dict(repetition_penalty=0.0),
        dict(repetition_penalty=math.inf),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(how):
    with pytest.raises(UserError, match="--" + next(iter(how)).replace("_", "-")):
        Sampling(**how)


TEXTS = ["naïve", "日本語の文", "e\u0301 👩\u200d👩\u200d👧 \U0001f1e9\U0001f1ea", "a\x00b\r\n\ufeff", "\ufffd", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_a_character_appears_with_its_last_byte(text):
    tokenizer = load_tokenizer("bytes")
    parts, given = [], 0

    def tokens():
        nonlocal given
        for given, token in enumerate(tokenizer.encode(text), start=1):
            yield token

    for part in stream_text(tokenizer, tokens()):
        parts.append(part)
        assert len("".join(parts).encode()) == given
    assert parts == list(text)


def test_streamed_bytes_that_are_no_text_read_as_in_one_piece():
    tokenizer, draw = load_tokenizer("bytes"), random.Random(1)
    for _ in range(300):
        tokens = draw.choices([*range(256), 0xF0, 0x9F, 0x98, 0x80, 0xE2, 0x82, 65], k=draw.randint(0, 12))
        assert "".join(stream_text(tokenizer, tokens)) == tokenizer.decode(tokens)


@pytest.mark.parametrize("reversed_", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_the_prompt_is_read_and_written_in_its_order(text, reversed_):
    tokenizer = load_tokenizer("bytes")
    model = Fixed([1.0 if token == 65 else 0.0 for token in range(tokenizer.vocab_size)])
    ids = tokenizer.encode(text)
    reading = Direction("", tokenizer.eot, [1, 0] if reversed_ else [0, 1])
    written = list(text_parts(model, tokenizer, reading, ids, 64, 5, GREEDY, seed=0))
    assert "".join(written) == ("AAAAA" + text if reversed_ else text + "AAAAA")
    assert model.read[0] == [tokenizer.eot, *(ids[::-1] if reversed_ else ids)]


def test_a_seed_decides_the_text():
    tokenizer = load_tokenizer("bytes")
    model = Fixed([float(32 <= token < 127) * 9 for token in range(tokenizer.vocab_size)])
    texts = [
        "".join(text_parts(model, tokenizer, Direction("", tokenizer.eot, [0, 1]), [], 8, 40, Sampling(), seed))
        for seed in (0, 1, 0, 1, 2**63 - 1)
    ]
    assert texts[0] == texts[2] != texts[1] == texts[3] != texts[4]


PROMPTS = ["One", "Two", "Drei", "Vier", "Fünf"]


def with_prompts(path: str, prompts) -> str:
    plan = json.loads(Path(path).read_text())
    copy = Path(path).with_name("prompted.json")
    copy.write_text(json.dumps(plan | {"prompts": prompts}))
    return str(copy)


@pytest.mark.process
def test_prompts_of_a_plan_take_turns_in_samples(plans, trainer, work):
    plan = with_prompts(plans["plain"], PROMPTS)
    flags = [
        *TINY,
        "--training-plan",
        plan,
        "--validation-interval",
        "3",
        "--validation-tokens",
        "100",
        "--run-name",
        "r",
    ]
    assert trainer(*flags, "--max-steps", "10").status == 0
    samples = (work / "gpt_out/r/samples.txt").read_text(encoding="utf-8").split("=== step ")[1:]
    numbers = [
        [int(line.removeprefix("--- ")) for line in sample.splitlines() if line.startswith("--- ")]
        for sample in samples
    ]
    assert [int(sample.split(",")[0]) for sample in samples] == [3, 6, 9, 10]
    assert numbers == [[3, 4], [5, 1], [2, 3], [2, 3]]
    for sample, chosen in zip(samples, numbers):
        for number in chosen:
            assert f"--- {number}\n⟦{PROMPTS[number - 1]}⟧" in sample


def test_prompts_do_not_decide_the_data(plans):
    assert load_plan(with_prompts(plans["plain"], PROMPTS)).hash == load_plan(plans["plain"]).hash


@pytest.mark.parametrize("prompts", [3, [], ["a", 1], {"a": "b"}])
def test_prompts_that_are_no_texts_are_refused(plans, prompts):
    with pytest.raises(UserError, match="prompts"):
        load_plan(with_prompts(plans["plain"], prompts))


def test_tinystories_has_its_own_prompts():
    prompts = load_plan("tinystories").prompts
    assert len(prompts) == len(set(prompts)) == 25
