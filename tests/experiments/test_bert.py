import json
import math

import pytest
import torch
import torch.nn.functional as F

from lmplay import contract, registry
from lmplay.cli import compare, generator
from lmplay.contract import NOT_SCORED
from lmplay.data import store_writer
from lmplay.data.tokenizer_training import train_tokenizer
from lmplay.data.tokenizers import load_tokenizer
from lmplay.generate.sampling import Sampling, fill, mask_text
from lmplay.train.samples import filled
from lmplay.train.validation import ValidationFeed, validate
from support.small import EXPERIMENTS
from support.trainer_process import TrainerProcess

VOCABULARY, LENGTH, BOS = 97, 24, 96
MASK = VOCABULARY
LIKELIEST = Sampling(do_sample=False)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bert():
    return contract.load(registry.read_entry(EXPERIMENTS / "bert"))


def build(bert, variant="tiny", **fields):
    """A small model in float64 whose every parameter is random, and the experiment bound to its Config."""
    torch.manual_seed(0)
    config = bert.config(variant, VOCABULARY, LENGTH, **{"n_layer": 2, "n_head": 2, "n_embd": 16, **fields})
    model = bert.build(config).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(torch.randn_like(p) * (0.1 if "norm" in name else 0.3))
    return bert.bound(config), model


def window(rows=4, seed=0, length=LENGTH):
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def hide(experiment, tokens, seed=0):
    return experiment.make_batch(tokens, BOS, seed)[:2]


@pytest.mark.parametrize(
    "variant, vocabulary, parameters",
    [
        ("6l", 50257, 121_153_105),
        ("12l", 50257, 163_680_337),
        ("pre_norm", 50257, 121_153_105),
        ("tiny", 50257, 29_073_489),
        # BertForMaskedLM's 109,514,298, with a mask that is not one of the 30,522, without two segment embeddings
        ("base", 30522, 109_514_298 - 2 * 768 + 768),
    ],
)
def test_parameters(bert, variant, vocabulary, parameters):
    with torch.device("meta"):
        model = bert.build(bert.config(variant, vocabulary))
    assert sum(p.numel() for p in model.parameters()) == parameters


def layer_norm(x, weights, name):
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]


def plain_logits(weights, tokens, pre_norm, n_layer=2, n_head=2):
    """Logits (T, V) of one window, token by token and head by head."""
    x = [
        (weights["mask_embedding"] if token == MASK else weights["tokens_embedding.weight"][token])
        + weights["positions_embedding.weight"][t]
        for t, token in enumerate(tokens.tolist())
    ]
    x = x if pre_norm else [layer_norm(row, weights, "norm") for row in x]
    for layer in range(n_layer):
        at = f"blocks.{layer}."

        def attention(rows, at=at):
            q, k, v = zip(*(linear(row, weights, at + "attention.qkv").chunk(3) for row in rows))
            size, out = len(rows[0]) // n_head, []
            for t in range(len(rows)):
                heads = []
                for h in range(n_head):
                    part = slice(h * size, (h + 1) * size)
                    score = torch.stack([q[t][part] @ k[s][part] / math.sqrt(size) for s in range(len(rows))])
                    p = score.exp() / score.exp().sum()
                    heads.append(sum(p[s] * v[s][part] for s in range(len(rows))))
                out.append(linear(torch.cat(heads), weights, at + "attention.out"))
            return out

        def feed_forward(rows, at=at):
            up = [linear(row, weights, at + "feed_forward.up") for row in rows]
            return [linear(h * 0.5 * (1 + torch.erf(h / math.sqrt(2))), weights, at + "feed_forward.down") for h in up]

        for branch, norm in ((attention, at + "attention_norm"), (feed_forward, at + "feed_forward_norm")):
            if pre_norm:
                x = [row + new for row, new in zip(x, branch([layer_norm(row, weights, norm) for row in x]))]
            else:
                x = [layer_norm(row + new, weights, norm) for row, new in zip(x, branch(x))]
    x = [layer_norm(row, weights, "norm") for row in x] if pre_norm else x
    h = [linear(row, weights, "output") for row in x]
    return torch.stack(
        [
            linear(layer_norm(row * 0.5 * (1 + torch.erf(row / math.sqrt(2))), weights, "output_norm"), weights, "head")
            for row in h
        ]
    )


@pytest.mark.parametrize("pre_norm", [False, True])
def test_logits_and_gradients_are_those_of_the_formula(bert, pre_norm):
    experiment, model = build(bert, pre_norm=pre_norm)
    inputs, targets = hide(experiment, window(1, length=9), seed=1)
    assert (inputs == MASK).any()
    logits = model(inputs)
    expected = plain_logits(dict(model.named_parameters()), inputs[0], pre_norm)
    torch.testing.assert_close(logits[0], expected, rtol=0, atol=1e-10)
    parameters = list(model.parameters())
    ours, theirs = (
        torch.autograd.grad(F.cross_entropy(one.view(-1, VOCABULARY), targets[0]), parameters)
        for one in (logits, expected)
    )
    for (name, _), gradient, wanted in zip(model.named_parameters(), ours, theirs):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_is_hugging_faces_bert_for_masked_tokens(bert, tied):
    transformers = pytest.importorskip("transformers")
    _, ours = build(bert, tied=tied)
    theirs = (
        transformers.BertForMaskedLM(
            transformers.BertConfig(
                vocab_size=VOCABULARY + 1,
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                type_vocab_size=1,
                max_position_embeddings=LENGTH,
                layer_norm_eps=1e-5,
                tie_word_embeddings=tied,
            )
        )
        .double()
        .eval()
    )
    names = {
        "tokens_embedding": "bert.embeddings.word_embeddings",
        "positions_embedding": "bert.embeddings.position_embeddings",
        "norm": "bert.embeddings.LayerNorm",
        "output": "cls.predictions.transform.dense",
        "output_norm": "cls.predictions.transform.LayerNorm",
        "head": "cls.predictions.decoder",
        "attention.out": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "feed_forward.up": "intermediate.dense",
        "feed_forward.down": "output.dense",
        "feed_forward_norm": "output.LayerNorm",
    }
    weights = {"bert.embeddings.token_type_embeddings.weight": torch.zeros(1, 16)}
    for name, tensor in ours.state_dict().items():
        module, _, kind = name.rpartition(".")
        layer = ""
        if module.startswith("blocks."):
            _, number, module = module.split(".", 2)
            layer = f"bert.encoder.layer.{number}."
        if module == "attention.qkv":
            weights |= {
                f"{layer}attention.self.{one}.{kind}": part
                for one, part in zip(("query", "key", "value"), tensor.chunk(3))
            }
        elif module in ("tokens_embedding", "head"):  # the mask is a row of theirs; its logit is not looked at
            last = ours.mask_embedding[None] if kind == "weight" else torch.zeros(1)
            weights[f"{names[module]}.{kind}"] = torch.cat([tensor, last])
        elif module:
            weights[f"{layer}{names[module]}.{kind}"] = tensor
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected and set(missing) <= {"bert.embeddings.position_ids", "cls.predictions.bias"}
    theirs.cls.predictions.bias.copy_(weights["cls.predictions.decoder.bias"])
    tokens = window()
    tokens[:, ::5] = MASK
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits[..., :VOCABULARY], rtol=0, atol=1e-10)


def test_hides_15_percent_by_the_80_10_10_rule(bert):
    experiment, _ = build(bert)
    tokens = window(4000)
    global_state = torch.get_rng_state()
    inputs, targets = hide(experiment, tokens)
    assert torch.equal(torch.get_rng_state(), global_state)
    chosen = targets != NOT_SCORED
    assert chosen.sum(1).eq(round(0.15 * LENGTH)).all() and torch.equal(targets[chosen], tokens[chosen])
    assert torch.equal(inputs[~chosen], tokens[~chosen])
    n, masked, kept = int(chosen.sum()), inputs[chosen] == MASK, inputs[chosen] == tokens[chosen]
    assert masked.sum().item() / n == pytest.approx(0.8, abs=0.02)
    assert kept.sum().item() / n == pytest.approx(0.1 + 0.1 / VOCABULARY, abs=0.015)
    random = inputs[chosen][~masked & ~kept]
    assert random.max() == VOCABULARY - 1 and random.bincount().min() > 0
    by_place = chosen.sum(0) / len(tokens)
    assert by_place.min() > 4 / LENGTH - 0.04 and by_place.max() < 4 / LENGTH + 0.04
    assert all(
        hide(experiment, window(3, length=length))[1].ne(NOT_SCORED).sum(1).tolist() == [1] * 3 for length in (1, 2, 9)
    )


def test_what_is_hidden_depends_on_the_seed_alone(bert):
    experiment, _ = build(bert)
    (inputs, targets), again, other = (hide(experiment, window(), seed) for seed in (5, 5, 6))
    assert torch.equal(inputs, again[0]) and torch.equal(targets, again[1])
    assert not torch.equal(targets, other[1])
    unlike = hide(experiment, window(seed=1), 5)
    assert torch.equal(unlike[1] == NOT_SCORED, targets == NOT_SCORED)
    assert torch.equal(unlike[0] == MASK, inputs == MASK)
    labels = torch.arange(window().numel()).view(window().shape)
    labels[:, :6] = NOT_SCORED  # a prompt, say
    same, fewer, where = experiment.make_batch(window(), BOS, 5, labels)
    assert torch.equal(same, inputs) and torch.equal(fewer, targets.masked_fill(labels < 0, NOT_SCORED))
    assert torch.equal(window().flatten()[where[where >= 0]], fewer[where >= 0])


@torch.no_grad()
def test_sees_both_sides_but_nothing_of_what_is_hidden(bert):
    experiment, model = build(bert)
    assert experiment.causal is experiment.can_write is False and experiment.mask_token == VOCABULARY
    tokens = window(1)
    logits = model(tokens)
    for changed in (0, LENGTH - 1):
        other = tokens.clone()
        other[0, changed] = (other[0, changed] + 1) % VOCABULARY
        assert (model(other) - logits).abs().amax(-1).min() > 1e-6
    assert logits.shape[-1] == VOCABULARY and model(torch.full_like(tokens, MASK)).isfinite().all()


def test_validation_hides_the_same_tokens_every_time(bert, tmp_path):
    tokenizer = load_tokenizer("bytes")
    documents = [[(chr(97 + k % 26) * (k % 7 + 1) * 5, True)] for k in range(60)]
    stores = {"text": store_writer.build(tmp_path / "text", documents, tokenizer)}
    config = bert.config("tiny", tokenizer.vocab_size, 16, n_layer=1, n_head=1, n_embd=8)
    experiment = bert.bound(config)
    found = []
    for seed, size in ((0, 3), (0, 64), (1, 3)):
        torch.manual_seed(seed)
        feed = ValidationFeed(experiment, stores, 16, tokenizer.eot, 0)
        found.append(validate(experiment.build(config).double(), feed, size, CPU, torch.no_grad))
        torch.rand(seed + 1)
    one, other_size, other_model = found
    assert (
        torch.tensor(one.losses).allclose(torch.tensor(other_size.losses), rtol=1e-12) and one.loss != other_model.loss
    )
    assert one.tokens.tolist() == other_size.tokens.tolist() == other_model.tokens.tolist()
    n_windows, rest = divmod(stores["text"].n_tokens, 16)
    assert one.n_tokens == n_windows * 2 + (max(1, round(0.15 * rest)) if rest else 0)


class Counting(torch.nn.Module):
    """Knows that each token is one more than the token before it, is the less sure the further right it is, and is
    least sure after a hidden token.
    """

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, tokens):
        before = F.pad(tokens[:, :-1], (1, 0), value=MASK)
        sure = torch.where(before == MASK, 0.5, 9 - 0.1 * torch.arange(tokens.size(1)))
        return self.scale * F.one_hot((before + 1) % VOCABULARY, VOCABULARY) * sure[..., None]


def test_fills_in_the_surest_first():
    asked = []
    model = Counting()
    model.register_forward_pre_hook(
        lambda module, inputs: asked.append((inputs[0][0] == MASK).nonzero().flatten().tolist())
    )
    tokens = [3, None, None, 6, None, 20, None]
    assert fill(model, tokens, MASK, LIKELIEST, torch.Generator()) == [3, 4, 5, 6, 7, 20, 21]
    assert asked == [[1, 2, 4, 6], [2, 4, 6], [4, 6], [6]]
    assert tokens.count(None) == 4, "the caller's list is left alone"
    drawn = [
        fill(model, tokens, MASK, Sampling(temperature=5.0, top_p=1.0), torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2] and all(text[0] == 3 and None not in text for text in drawn)


def test_where_a_mask_stands_in_a_text(tmp_path):
    letters = load_tokenizer("bytes")
    assert mask_text(letters, "[MASK]") == [None]
    assert mask_text(letters, "a [MASK][MASK]b") == [97, 32, None, None, 98]
    words = train_tokenizer({"train": "bpe", "vocab_size": 300}, ["the cat sat on the mat"] * 20, tmp_path / "bpe")
    the, cat = words.encode("the"), words.encode(" cat")
    assert len(cat) == 1
    for text in ("the [MASK] cat", "the[MASK] cat"):  # the space is the hidden token's own
        assert mask_text(words, text) == [*the, None, *cat]
    assert mask_text(words, "the  [MASK]") == [*words.encode("the "), None]


def test_shows_what_was_hidden(bert):
    class Always(torch.nn.Module):
        def __init__(self, token):
            super().__init__()
            self.scale, self.token = torch.nn.Parameter(torch.ones(())), token

        def forward(self, tokens):
            return self.scale * F.one_hot(torch.full_like(tokens, self.token), 257).double()

    tokenizer = load_tokenizer("bytes")
    experiment = bert.bound(bert.config("tiny", tokenizer.vocab_size, 16))
    text = [filled(Always(ord(letter)), tokenizer, experiment, list(b"aaaaaaaaaaaaa"), seed=3) for letter in "ab"]
    assert [one.count("[a]") for one in text] == [2, 0] and text[1] == text[0].replace("[a]", "[b|a]")
    assert text[0].replace("[", "").replace("]", "") == "a" * 13


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with gpt_out/bert, trained on documents that are one letter each, many times."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "letters.txt").write_text(
        "\n\n".join("abcdefghij"[k * 7 % 10] * 40 for k in range(1600)), encoding="utf-8"
    )
    run = TrainerProcess(
        [
            "--exp",
            "bert",
            "--set",
            "n_layer=1",
            "--set",
            "n_embd=32",
            "--set",
            "n_head=2",
            "--context-len",
            "16",
            "--batch-size",
            "16",
            "--lr",
            "0.01",
            "--warmup-steps",
            "5",
            "--max-steps",
            "200",
            "--validation-interval",
            "100",
            "--data",
            "letters.txt",
            "--tokenizer",
            "bytes",
            "--device",
            "cpu",
            "--run-name",
            "bert",
        ],
        folder,
    ).wait()
    assert run.status == 0, run.err
    return folder


@pytest.fixture
def command(trained, monkeypatch, capsys):
    def run(module, *flags):
        monkeypatch.chdir(trained)
        capsys.readouterr()
        return module.main(["--device", "cpu", *flags]), *capsys.readouterr()

    return run


def test_the_generator_fills_in_masks(command):
    fills = ("--run", "bert", "--no-do-sample")
    assert command(generator, *fills, "aaa[MASK]aaaa[MASK][MASK]aa")[:2] == (0, "aaaaaaaaaaaa\n")
    assert command(generator, *fills, "[MASK]ggggggggg[MASK]")[:2] == (0, "ggggggggggg\n")
    _, text, said = command(generator, "--run", "bert", "--num-samples", "2", "--seed", "4", "eeeee[MASK]eeeee")
    assert (
        text.startswith("--- 1 of 2, seed 4\neeeee") and said.startswith("gpt_out/bert, step_") and "--seed 4" in said
    )
    drawn = [
        command(generator, "--run", "bert", "--seed", seed, "--temperature", "9", "--top-p", "1", "[MASK]" * 9)[1]
        for seed in "112"
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["aaaa"], "put [MASK] into the prompt"),
        ([], "put [MASK] into the prompt"),
        (["a[MASK]" + "a" * 15], "has 17 tokens and bert reads 16"),
        pytest.param(["--way", "forward", "[MASK]"], "--direction", id="['--way', 'forward', '[MASK]']---way"),
        (["--score", "letters.txt"], "is not causal"),
    ],
    ids=str,
)
def test_what_it_can_not_fill_in_is_one_line(command, flags, words):
    status, text, said = command(generator, "--run", "bert", *flags)
    assert status == 2 and text == "" and said.count("\n") == 1 and words in said


def test_samples_show_filled_masks(trained):
    text = (trained / "gpt_out/bert/samples.txt").read_text(encoding="utf-8")
    blocks = text.split("=== step ")[1:]
    assert len(blocks) >= 2 and all("\n--- 1\n" in block and "\n--- 2\n" in block for block in blocks)
    assert all(block.count("[") == 4 for block in blocks), "15% of 16 tokens, of two documents"
    assert json.loads((trained / "gpt_out/bert/run.json").read_text())["experiment"]["causal"] is False


def test_gets_no_verdict_against_a_causal_model(command, trained):
    status, _, said = command(
        compare,
        "--exp",
        "bert:tiny",
        "--baseline",
        "gpt2ish:tiny",
        "--seeds",
        "1",
        "--data",
        "letters.txt",
        "--tokenizer",
        "bytes",
        "--context-len",
        "16",
        "--max-steps",
        "2",
    )
    assert status == 2 and "bert:tiny is not causal" in said
    assert [path.name for path in (trained / "gpt_out").glob("*/run.json")] == ["run.json"]
