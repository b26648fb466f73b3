"""lmp_cleanmodel on runs that lmp_trainer has trained: what is folded, what is refused, who can go on with it."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lmplay.cli import cleanmodel
from lmplay.convert import checked_text, fold
from lmplay.model import adapters
from lmplay.model.cost import n_parameters
from lmplay.runs.run import read_run
from lmplay.runs.trained import load_run
from support.results import unsealed
from support.small import EXPERIMENTS, TINY, make_text
from support.trainer_process import TrainerProcess

# gpt2ish with a gain on each feature of the token embeddings that folds into their table
GAINS = """

@dataclass
class Config(Config):
    gains: bool = True

class Scaled(nn.Embedding):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.linspace(0.5, 2, sizes[1]))

    def forward(self, tokens):
        return super().forward(tokens) * self.gain

class Model(Model):
    def __init__(self, config):
        super().__init__(config)
        if config.gains:
            self.tokens_embedding = Scaled(config.vocab_size, config.n_embd)

    def fold(self):
        from dataclasses import replace
        model = Model(replace(self.config, gains=False))
        weights = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        weights["tokens_embedding.weight"] *= weights.pop("tokens_embedding.gain")
        model.load_state_dict(weights)
        return model
"""
# the same with a cap on the logits, which no gpt2ish has
CAPPED = (
    GAINS.replace(
        "class Model(Model):",
        """class Capped(Model):
    def forward(self, tokens, cache=None):
        return 3 * torch.tanh(super().forward(tokens, cache) / 3)

class Model(Capped):""",
    )
    + """

def export_config(config):
    return {"model_type": "gpt2", "vocab_size": config.vocab_size, "n_positions": config.max_len,
            "n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd,
            "activation_function": "gelu", "tie_word_embeddings": False}
"""
)
WRONG = GAINS.replace('*= weights.pop("tokens_embedding.gain")', '*= 1.01 * weights.pop("tokens_embedding.gain")')
REFUSING = GAINS.replace("        from dataclasses import replace\n", '        raise ValueError("nothing here")\n')
# carries on from a plain gpt2ish: the gains start at 1, so that nothing changes, or with an error that shows
BOLTED = """

def bolt_on(state_dict, config, progress=None):
    model = Model(config)
    table = state_dict["tokens_embedding.weight"] * (1 + 0.001 * torch.randn(()))
    with torch.no_grad():
        model.tokens_embedding.gain.fill_(1)
    model.load_state_dict({**state_dict, "tokens_embedding.weight": table}, strict=False)
    for epoch in range(3):
        progress(epoch + 1, 3, 0.5 / (epoch + 1))
    return model, 0.125
"""


def make_experiment(folder: Path, name: str, addition: str) -> None:
    source = (EXPERIMENTS / "gpt2ish" / "model.py").read_text(encoding="utf-8")
    (folder / "experiments" / name).mkdir(parents=True)
    shutil.copy(EXPERIMENTS / "gpt2ish" / "extras.py", folder / "experiments" / name)
    (folder / "experiments" / name / "model.py").write_text(
        source.replace("parent = None", 'parent = "gpt2ish"') + addition, encoding="utf-8"
    )
    shutil.copy(EXPERIMENTS / "gpt2ish" / "extras.py", folder / "experiments" / name)  # weights for Hugging Face


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A folder with gpt_out: runs by the name of their experiment, `plain` of gpt2ish, `no_bias` whose head has
    none.
    """
    folder = tmp_path_factory.mktemp("trained")
    (folder / "words.txt").write_text(make_text(150, 1), encoding="utf-8")
    for name, addition in (("gains", GAINS + BOLTED), ("capped", CAPPED), ("wrong", WRONG), ("refusing", REFUSING)):
        make_experiment(folder, name, addition)
    runs = {name: ["--exp", name, "--tokenizer", "bytes"] for name in ("gains", "capped", "wrong", "refusing")}
    runs["capped"] += ["--set", "head_bias=false"]
    runs |= {
        "plain": ["--tokenizer", "bytes"],
        "no_bias": ["--set", "head_bias=false"],
        "tied": ["--set", "tied=true", "--tokenizer", "bytes"],
    }
    runs["llama2"] = [
        "--exp",
        "llama2",
        "--tokenizer",
        "bytes",
        "--set",
        "rope_base=300",
        "--set",
        "n_kv_head=1",
        "--set",
        "hidden_multiple=8",
    ]
    for name, flags in runs.items():
        run = TrainerProcess(
            [*TINY, *flags, "--lr", "0.02", "--max-steps", "12", "--data", "words.txt", "--run-name", name], folder
        ).wait()
        assert run.status == 0, run.err
    return folder


@pytest.fixture
def work(trained, tmp_path, monkeypatch) -> Path:
    """A working folder with a copy of gpt_out and the experiments."""
    for name in ("gpt_out", "experiments"):
        shutil.copytree(trained / name, tmp_path / name)
    shutil.copy(trained / "words.txt", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(work, monkeypatch, capsys):
    """Runs lmp_cleanmodel; returns (status, stdout, stderr)."""

    def run(*flags):
        capsys.readouterr()
        return cleanmodel.main(["--device", "cpu", *map(str, flags)]), *capsys.readouterr()

    return run


@pytest.fixture
def write(command):
    """What it prints."""

    def run(*flags) -> str:
        status, text, said = command(*flags)
        assert status == 0, said
        return text

    return run


@pytest.fixture
def complaint(command, work):
    """The one line with which it refuses; and nothing is left behind."""

    def run(*flags) -> str:
        before = sorted(work.rglob("*"))
        status, _, said = command(*flags)
        assert status == 2 and said.startswith("lmp_cleanmodel: ") and said.count("\n") == 1, (status, said)
        assert [p for p in sorted(work.rglob("*")) if "__pycache__" not in p.parts] == [
            p for p in before if "__pycache__" not in p.parts
        ]
        return said

    return run


def run_at(folder) -> object:
    return load_run(read_run(Path(folder)), torch.device("cpu"))


@torch.no_grad()
def logits(model, seed=0):
    tokens = torch.randint(250, (4, 16), generator=torch.Generator().manual_seed(seed))
    return adapters.split_output(model(tokens))[0]


def test_folded_into_a_plain_gpt2ish(write, work):
    said = write("gains", "-o", "small")
    before, after = run_at("gpt_out/gains"), run_at("small")
    count = n_parameters(before.model)
    assert (
        f"{count:,} parameters" in said and f"small: gpt2ish, {count - 16:,} parameters; logits differ by up to" in said
    )
    assert "tokens of validation text" in said
    assert (logits(before.model) - logits(after.model)).abs().max() < 1e-5
    assert after.experiment.name == "gpt2ish" and n_parameters(after.model) == count - 16
    assert after.model.tokens_embedding.weight.allclose(
        before.model.tokens_embedding.weight * before.model.tokens_embedding.gain
    )
    meta, old = after.run.info, before.run.info
    assert meta["parameters"] == {"total": count - 16, "trainable": count - 16}
    assert meta["config"]["n_embd"] == 16 and "gains" not in meta["config"] and meta["experiment"]["parent"] is None
    assert meta["run"] == "small" and meta["tokenizer"] == old["tokenizer"] and meta["progress"] == old["progress"]
    source = meta["folded_from"]
    assert source["run"] == "gains" and source["experiment"] == old["experiment"] and source["config"] == old["config"]
    assert source["largest_difference"] <= 1e-5 and source["tokens"] > 500 and source["text"] == "validation text"
    assert sorted(p.name for p in Path("small").iterdir()) == ["checkpoints", "code", "run.json"]
    assert json.loads((work / "gpt_out/gains/run.json").read_text()) == old


@pytest.mark.process
def test_goes_on_as_a_run(write, work):
    """Trained further as a plain gpt2ish, read by lmp_plotstats, written with; and the run it is from is still to be
    continued.
    """
    write("gains", "-o", "gpt_out/small")
    validated = run_at("gpt_out/gains").run.info["progress"]["validation_loss"]
    further = TrainerProcess(
        [
            *TINY,
            "--tokenizer",
            "bytes",
            "--initial-model",
            "small",
            "--lr",
            "1e-9",
            "--max-steps",
            "1",
            "--data",
            "words.txt",
            "--run-name",
            "further",
        ],
        work,
    ).wait()
    assert further.status == 0, further.err
    assert run_at("gpt_out/further").run.info["progress"]["validation_loss"] == pytest.approx(validated, abs=1e-4)
    for name, flags in {"lmp_generator": ["--run", "small", "--max-len", "9", "the"], "lmp_plotstats": []}.items():
        done = subprocess.run([Path(sys.executable).with_name(name), *flags], capture_output=True, text=True, cwd=work)
        assert done.returncode == 0, done.stderr
    assert (work / "gpt_out/log_loss.png").is_file()


def test_an_architecture_of_its_own_stays_its_own(write):
    said = write("capped", "-o", "small")
    before, after = run_at("gpt_out/capped"), run_at("small")
    assert (
        "small: capped, " in said and after.experiment.name == "capped" and after.run.info["config"]["gains"] is False
    )
    assert (logits(before.model) - logits(after.model)).abs().max() < 1e-5
    assert logits(after.model).abs().max() < 3
    assert after.run.info["experiment"]["folder"] == before.run.info["experiment"]["folder"]
    assert Path("small/code/capped/model.py").read_bytes() == Path("gpt_out/capped/code/capped/model.py").read_bytes()


def change_code(run, old, new):
    """Change a run's copy of its code on purpose."""
    [code] = run.glob("code/*/model.py")
    code.write_text(code.read_text().replace(old, new), encoding="utf-8")
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(unsealed(info)), encoding="utf-8")


def test_its_own_where_its_ancestors_are_gone(write, work):
    change_code(work / "gpt_out/gains", 'parent = "gpt2ish"', 'parent = "gone"')
    assert "small: gains, " in write("gains", "-o", "small")
    assert run_at("small").experiment.name == "gains"


def test_a_variant_keeps_its_name(write):
    run = run_at("gpt_out/plain")
    config = run.experiment.config("tiny", 257)
    made = fold.Converted(model=run.model, experiment=run.experiment, config=config, difference=0.0)
    assert (
        made.variant == "tiny"
        and fold.Converted(model=run.model, experiment=run.experiment, config=run.model.config, difference=0.0).variant
        == "folded"
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["plain", "-o", "x"], "gpt2ish has no fold(): there is nothing in it that is for training only"),
        (["wrong", "-o", "x"], "that fold() of wrong returns has other logits: they differ by up to"),
        (["wrong", "-o", "x", "--format", "hf"], "has other logits"),
        (["refusing", "-o", "x"], "refusing can't be folded with these settings: nothing here"),
        (["gain", "-o", "x"], "there is no run 'gain' in gpt_out. Did you mean 'gains'"),
        (["gains", "-o", "words.txt"], "there is something at words.txt already"),
        (["gains", "-o", "gpt_out/plain"], "there is something at gpt_out/plain already"),
        (["gains", "-o", "words.txt/x"], "words.txt/x can't be written"),
        (["gains", "-o", "x", "--text", "nowhere.txt"], "nowhere.txt can't be read"),
        (["gains", "-o", "x", "--text", "gpt_out"], "gpt_out can't be read"),
        (["gains", "-o", "x", "--device", "cuda:99"], "--device cuda:99"),
        (["gains", "-o", "x", "--bolt-on", "unified_embedding:tiny"], "unified_embedding can't carry on from gains: "),
        (["plain", "-o", "x", "--bolt-on", "gpt2ish"], "gpt2ish has no bolt_on()"),
        (["plain", "-o", "x", "--bolt-on", "gainz"], "no experiment named 'gainz'. Did you mean 'gains'"),
        (["plain", "-o", "x", "--bolt-on", "gains", "--format", "hf"], "don't go together"),
        (["plain", "-o", "x", "--bolt-on", "gains", "--seed", "-1"], "--seed must be at least 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(complaint, flags, message):
    assert message in complaint(*flags)


def test_texts_that_are_no_texts(complaint, work):
    (work / "empty").write_bytes(b"")
    (work / "binary").write_bytes(b"abc\xff\xfe")
    assert "empty is empty" in complaint("gains", "-o", "x", "--text", "empty")
    assert "binary is not UTF-8 text (byte 3)" in complaint("gains", "-o", "x", "--text", "binary")


def test_checked_on_the_text_that_there_is(write, complaint, work, monkeypatch):
    assert "tokens of words.txt" in write("gains", "-o", "by_file", "--text", "words.txt")
    monkeypatch.setenv("LMPLAY_DATA", str(work / "elsewhere"))
    assert "tokens of samples.txt" in write("gains", "-o", "by_samples")
    (work / "gpt_out/gains/samples.txt").unlink()
    assert "name a text with --text FILE" in complaint("gains", "-o", "x")


def test_a_damaged_run(complaint, work):
    weights = work / "gpt_out/gains/checkpoints/step_00000012/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert "checkpoint is damaged" in complaint("gains", "-o", "x")


@pytest.mark.process
def test_bad_flags(work):
    for flags in ([], ["gains"], ["gains", "-o", "x", "--format", "onnx"], ["gains", "-o", "x", "--bolton", "y"]):
        done = subprocess.run(
            [Path(sys.executable).with_name("lmp_cleanmodel"), *flags], capture_output=True, text=True, cwd=work
        )
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("lmp_cleanmodel: "), (
            done.stderr
        )


@pytest.mark.process
def test_both_spellings_are_installed(work):
    for name, flags in (
        ("lmp_cleanmodel", ["--help"]),
        ("lmp-cleanmodel", ["gains", "-o", "small", "--device", "cpu"]),
    ):
        done = subprocess.run([Path(sys.executable).with_name(name), *flags], capture_output=True, text=True, cwd=work)
        assert done.returncode == 0 and done.stdout, done.stderr
    assert (work / "small/run.json").is_file()


@pytest.mark.process
def test_a_full_disk_leaves_nothing(complaint, work, tmp_path):
    disk = work / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small disk takes rights")
    try:
        assert "no space left on device" in complaint("gains", "-o", disk / "small")
        assert "no space left on device" in complaint("no_bias", "-o", disk / "small", "--format", "hf")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def transformers(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers")


@pytest.mark.parametrize("name", ["no_bias", "tied", "plain", "gains"])
def test_hugging_face(transformers, write, name):
    said = write(name, "-o", "hf", "--format", "hf")
    assert "transformers' logits differ by up to" in said
    config, weights = json.loads(Path("hf/config.json").read_text()), load_file("hf/model.safetensors")
    biased = name != "no_bias"
    assert (config["model_type"] == "gpt2") != biased and ("lm_head.bias" in weights) == biased == bool(
        list(Path("hf").glob("*.py"))
    )
    assert config["tie_word_embeddings"] == (name == "tied") == ("lm_head.weight" not in weights)
    model = transformers.AutoModelForCausalLM.from_pretrained("hf", trust_remote_code=biased).eval()
    run = run_at(f"gpt_out/{name}")
    with torch.no_grad():
        difference = (
            (logits(run.model) - model(torch.randint(250, (4, 16), generator=torch.Generator().manual_seed(0))).logits)
            .abs()
            .max()
        )
    assert difference < 1e-5
    assert model.config.eos_token_id == run.tokenizer.eot and model.config.n_positions == 16
    if biased:  # loaded as a plain GPT-2 it would lose its bias without a word
        with pytest.raises(ValueError, match="custom code|trust_remote_code"):
            transformers.AutoModelForCausalLM.from_pretrained("hf", trust_remote_code=False)


def test_an_experiment_with_a_config_of_its_own_for_hugging_face(transformers, write):
    assert "hf: llama2, " in write("llama2", "-o", "hf", "--format", "hf")
    model, run = transformers.AutoModelForCausalLM.from_pretrained("hf").eval(), run_at("gpt_out/llama2")
    assert type(model).__name__ == "LlamaForCausalLM" and model.config.num_key_value_heads == 1
    with torch.no_grad():
        theirs = model(torch.randint(250, (4, 16), generator=torch.Generator().manual_seed(0))).logits
    torch.testing.assert_close(theirs, logits(run.model), rtol=0, atol=1e-5)


def test_tokenizer_of_byte_pairs_for_hugging_face(transformers, write, work):
    assert write("no_bias", "-o", "hf", "--format", "hf").rstrip().endswith("tokenizer.json")
    theirs, ours = transformers.AutoTokenizer.from_pretrained("hf"), run_at("gpt_out/no_bias").tokenizer
    for text in ((work / "words.txt").read_text(), " Zoë 日本 👩‍👧\n\n\t x  y", "", "don't 12345"):
        # every context began with this token in training
        assert theirs(text).input_ids == [ours.eot, *ours.encode(text)] and theirs.decode(ours.encode(text)) == text
        assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text)
    assert theirs.eos_token_id == ours.eot and len(theirs) == ours.vocab_size


def test_without_transformers_nothing_is_claimed(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "transformers is not installed, so that its logits are not compared" in write(
        "no_bias", "-o", "hf", "--format", "hf"
    )
    assert Path("hf/model.safetensors").is_file()


def test_hugging_face_gets_no_other_logits(transformers, complaint):
    """A GPT-2 has no cap."""
    assert "transformers computes other logits from what would be written" in complaint(
        "capped", "-o", "x", "--format", "hf"
    )


def test_an_architecture_of_its_own_brings_its_code(transformers, write, work):
    """Also one that can't be folded with its settings."""
    (work / "gpt_out/capped").rename(work / "gpt_out/other")  # code is imported once from a place
    change_code(work / "gpt_out/other", "def export_config", "def other")
    for name in ("other", "refusing"):
        assert "transformers' logits differ by up to" in write(name, "-o", f"hf_{name}", "--format", "hf")
    model = transformers.AutoModelForCausalLM.from_pretrained("hf_other", trust_remote_code=True).eval()
    with torch.no_grad():
        theirs = model(torch.randint(250, (4, 16), generator=torch.Generator().manual_seed(0))).logits
    torch.testing.assert_close(theirs, logits(run_at("gpt_out/other").model), rtol=0, atol=1e-5)
    card = Path("hf_other/README.md").read_text(encoding="utf-8")
    assert "| plan | words |" in card and "| lr | 0.02 |" in card and "bits per byte" in card


def test_losses_are_of_what_is_scored_only(write):
    plain = run_at("gpt_out/plain")
    tokens = torch.randint(250, (40,), generator=torch.Generator().manual_seed(1))
    scored = torch.arange(40) % 3 == 0
    text = checked_text.Text(tokens, "a text", scored)
    losses = []
    for k, window in enumerate(tokens.split(plain.context_len)):
        inputs, targets, _ = plain.experiment.make_batch(window[None], plain.tokenizer.eot, 0)
        with torch.no_grad():
            of_window = torch.nn.functional.cross_entropy(plain.model(inputs)[0].double(), targets[0], reduction="none")
        losses.append(of_window[scored.split(plain.context_len)[k]])
    assert checked_text.loss_on(plain.model, plain, text) == pytest.approx(torch.cat(losses).mean().item(), rel=1e-6)
    assert text.n_scored == 14 and checked_text.Text(tokens, "a text").n_scored == 40


def test_bolted_on(write, work):
    said = write("plain", "-o", "gpt_out/big", "--bolt-on", "gains")
    plain, big = run_at("gpt_out/plain"), run_at("gpt_out/big")
    count = n_parameters(plain.model)
    assert f"big: gains, {count + 16:,} parameters; mean squared error 0.125; loss " in said
    facts = big.run.info["bolted_from"]
    text = checked_text.text_for(plain, None)
    losses = []
    for inputs, targets in text.batches(plain, torch.device("cpu")):
        with torch.no_grad():
            losses.append(
                torch.nn.functional.cross_entropy(plain.model(inputs)[0].double(), targets[0], reduction="none")
            )
    assert facts["loss_before"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-6) and facts["error"] == 0.125
    assert 0 < abs(facts["loss_after"] - facts["loss_before"]) < 0.01 < math.log(257) - facts["loss_before"]
    assert (
        big.run.info["config"]["n_embd"] == 16
        and big.run.info["config"]["gains"] is True
        and big.run.info["experiment"]["name"] == "gains"
    )
    write("plain", "-o", "again", "--bolt-on", "gains")
    write("plain", "-o", "other", "--bolt-on", "gains", "--seed", "1")
    one, two, three = (
        load_file(f"{name}/checkpoints/step_00000012/model.safetensors")["tokens_embedding.weight"]
        for name in ("gpt_out/big", "again", "other")
    )
    assert one.equal(two) and not one.equal(three)
    further = TrainerProcess(
        [
            *TINY,
            "--exp",
            "gains",
            "--tokenizer",
            "bytes",
            "--initial-model",
            "big",
            "--lr",
            "1e-9",
            "--max-steps",
            "1",
            "--data",
            "words.txt",
            "--run-name",
            "further",
        ],
        work,
    ).wait()
    assert further.status == 0, further.err
    assert run_at("gpt_out/further").run.info["progress"]["validation_loss"] == pytest.approx(
        plain.run.info["progress"]["validation_loss"], abs=0.01
    )


@pytest.mark.thorough
def test_bolted_on_and_folded_again(write):
    """A unified embedding fitted to a trained gpt2ish, and folded back into one: the loss it was fitted with."""
    said = write("plain", "-o", "big", "--bolt-on", "unified_embedding:tiny")
    assert "big: unified_embedding" in said
    write("big", "-o", "small")
    big, small, plain = run_at("big"), run_at("small"), run_at("gpt_out/plain")
    assert small.experiment.name == "gpt2ish" and n_parameters(small.model) == n_parameters(plain.model)
    assert (logits(big.model) - logits(small.model)).abs().max() < 1e-5
    text = checked_text.text_for(plain, None)
    assert checked_text.loss_on(small.model, plain, text) == pytest.approx(
        big.run.info["bolted_from"]["loss_after"], abs=1e-5
    )
    assert big.run.info["bolted_from"]["loss_after"] < math.log(257)
    assert big.run.info["config"]["multiple"] == 8 and big.run.info["config"]["n_layer"] == 1
