"""Published weights: read as transformers read them, trained on, written with; and what is refused."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from lmplay.cli import generator, trainer
from lmplay.data.tokenizers import load_tokenizer
from lmplay.runs.published import load_published
from lmplay.runs.run import read_run
from lmplay.runs.trained import load_run
from support.published import GPT2, LLAMA, publish
from support.small import make_text

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def gpt2(transformers, tmp_path_factory) -> Path:
    return publish(transformers, tmp_path_factory.mktemp("published") / "gpt2", "GPT2", **GPT2)


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("GPT2", GPT2),
        ("GPT2", GPT2 | dict(tie_word_embeddings=False, activation_function="gelu", n_inner=None)),
        ("Llama", LLAMA),
        ("Llama", LLAMA | dict(tie_word_embeddings=True, num_key_value_heads=4, intermediate_size=48)),
    ],
    ids=["gpt2", "gpt2-untied", "llama", "llama-tied"],
)
def test_logits_are_those_of_transformers(transformers, tmp_path, kind, settings):
    folder = publish(transformers, tmp_path / "model", kind, bos=1, **settings)
    run = load_published(f"hf:{folder}", CPU)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokens = torch.randint(257, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(run.model(tokens), theirs(tokens).logits, rtol=0, atol=1e-4)
    assert (run.first_token, run.tokenizer.eot, run.context_len) == (1, 256, 32)


def test_the_tokenizer(gpt2):
    tokenizer = load_tokenizer(f"hf:{gpt2}")
    text = " Zoë <|endoftext|> 日本\n"
    assert tokenizer.encode(text) == list(text.encode()) and tokenizer.decode(tokenizer.encode(text)) == text
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(text) == tokenizer.encode(text) and again.fingerprint == tokenizer.fingerprint
    assert tokenizer.decode([97, 256]) == "a<|endoftext|>"


def test_spaces_of_sentencepiece_are_kept(transformers, tmp_path):
    """As Llama's tokenizer.json: a space before each text, bytes for what it has no piece for."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u2581a"]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, [("\u2581", "a")], byte_fallback=True)
    built = Tokenizer(model)
    built.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    built.decoder = decoders.ByteFallback()
    built.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 2, "vocab_size": 300}))
    tokenizer = load_tokenizer(f"hf:{tmp_path}")
    assert tokenizer.encode(" ab") == [262, 261] and tokenizer.encode("ab") == [260, 261]
    assert tokenizer.decode(tokenizer.encode("a  é\n")) == "a  é\n" and tokenizer.vocab_size == 300


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
    """Runs lmp_trainer for a step from a published model; returns (status, stderr)."""
    (tmp_path / "words.txt").write_text(make_text(60, 1), encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        always = "--data words.txt --run-name one --max-steps 1 --lr 1e-9 --batch-size 4 --device cpu".split()
        status = trainer.main([*always, *map(str, flags)])
        return status, capsys.readouterr().err

    return run


SHAPE = "--exp gpt2ish:gpt2 --set n_layer=1 --set n_head=2 --set n_embd=16 --set mlp_ratio=2.25".split()


def test_train_on_and_write(train, gpt2, transformers, tmp_path, capsys):
    """A run starts from the weights, keeps the tokenizer, and writes as the published model does."""
    status, said = train(*SHAPE, "--initial-model", f"hf:{gpt2}", "--tokenizer", f"hf:{gpt2}", "--context-len", 32)
    assert status == 0, said
    trained, published = load_run(read_run(Path("gpt_out/one")), CPU), load_published(f"hf:{gpt2}", CPU)
    for name, tensor in published.model.state_dict().items():
        torch.testing.assert_close(trained.model.state_dict()[name], tensor, rtol=0, atol=1e-6)
    assert sorted(path.name for path in Path("gpt_out/one/tokenizer").iterdir())[-1] == "tokenizer_config.json"
    texts = []
    for run in ("one", f"hf:{gpt2}"):
        capsys.readouterr()
        assert generator.main(["--run", run, "--no-do-sample", "--max-len", "9", "--device", "cpu", "ab"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].startswith("ab")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(gpt2).eval()
    ids = theirs.generate(torch.tensor([[256, 97, 98]]), do_sample=False, max_new_tokens=9, pad_token_id=0)[0, 1:]
    assert published.tokenizer.decode(ids.tolist()).replace("<|endoftext|>", "") == texts[0].removesuffix("\n")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--context-len", "16"], ""),  # reads the first positions
        (["--set", "n_layer=2"], "another n_layer: its settings are --set n_layer=1 --set n_head=2"),
        (["--set", "tanh_gelu=false"], "another tanh_gelu"),
        (["--set", "mlp_ratio=3"], "feed_forward.up.bias is (36,), not (48,)"),
        (["--context-len", "64"], "positions_embedding.weight is (32, 16), not (64, 16)"),
        (["--tokenizer", "bpe:300"], "train with --tokenizer hf:"),
        (["--exp", "gru"], "gru has no import_weights"),
        (["--initial-model", "hf:/nowhere"], "there is no folder '/nowhere'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(train, gpt2, flags, message):
    shape = SHAPE if "--exp" not in flags else []
    given = ["--initial-model", f"hf:{gpt2}", "--tokenizer", "bytes", "--context-len", 32, *flags]
    status, said = train(*shape, *given)
    assert (status == 0) if not message else (status == 2 and message in said.splitlines()[-1]), said


def test_architectures_that_nothing_has(transformers, gpt2, tmp_path, capsys):
    content = json.loads((gpt2 / "config.json").read_text())
    for file in gpt2.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for change, message in (
        ({"model_type": "gpt_neo"}, "no experiment is known to have its architecture (gpt_neo)"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon is 0.001"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content | change))
        assert generator.main(["--run", f"hf:{tmp_path}", "a"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "file, change",
    [
        ("config.json", {"n_layer": "many"}),
        ("config.json", {"n_embd": 0}),
        ("config.json", {"n_head": [2]}),
        ("config.json", {"n_layer": 10**9}),
        ("config.json", {"n_positions": 10**12}),
        ("config.json", {"n_positions": -1}),
        ("config.json", {"vocab_size": 10**15}),
        ("config.json", {"vocab_size": "x"}),
        ("config.json", {"model_type": ["gpt2"]}),
        ("config.json", {"activation_function": {}}),
        ("config.json", {"eos_token_id": 10**9}),
        ("config.json", {"tie_word_embeddings": "yes"}),
        ("tokenizer.json", {"normalizer": [1]}),
        ("tokenizer.json", {"added_tokens": 7}),
        ("tokenizer.json", {"added_tokens": [{"content": []}]}),
        ("tokenizer.json", {"model": None}),
        ("tokenizer_config.json", {"eos_token": 5}),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value)[:30],
)
def test_published_files_of_any_shape(gpt2, tmp_path, capsys, file, change):
    for one in gpt2.iterdir():
        (tmp_path / one.name).write_bytes(one.read_bytes())
    content = json.loads((gpt2 / file).read_text())
    (tmp_path / file).write_text(json.dumps(content | change))
    status = generator.main(["--run", f"hf:{tmp_path}", "--max-len", "1", "--device", "cpu", "a"])
    assert status == (0 if "eos_token" in change or "eos_token_id" in change else 2)
    assert len([line for line in capsys.readouterr().err.splitlines() if line.startswith("lmp_")]) == (status == 2)


def test_a_pldr_llm_by_its_variant(transformers, gpt2, tmp_path):
    """An architecture that transformers does not have, named by --exp and --set."""
    from safetensors.torch import save_file

    from lmplay import contract, registry

    experiment = contract.load(registry.find("pldr")[0])
    fields = "n_layer=1 n_head=2 n_embd=16 metric_hidden=8".split()
    values = dict(field.split("=") for field in fields)
    model = experiment.build(experiment.config(next(iter(experiment.variants)), 257, 32, **values)).eval()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((gpt2 / name).read_bytes())
    weights = experiment.hook("export_weights")(model)
    save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 32}')
    run = load_published(f"hf:{tmp_path}", CPU, "pldr", fields)
    tokens = torch.randint(257, (1, 32))
    with torch.no_grad():
        torch.testing.assert_close(run.model(tokens), model(tokens))
