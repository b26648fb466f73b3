"""lmp_generator --dump-tensors on runs that lmp_trainer has trained."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lmplay.cli import generator
from support.trainer_process import TrainerProcess

SMALL = [
    "--data",
    "text.txt",
    "--tokenizer",
    "bytes",
    "--max-steps",
    "2",
    "--device",
    "cpu",
    "--context-len",
    "32",
    "--batch-size",
    "4",
    *[word for field in ("n_layer=2", "n_embd=16", "n_head=2") for word in ("--set", field)],
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("\n".join(["every good boy deserves fudge"] * 200), encoding="utf-8")
    for name, exp in (("plain", "gpt2ish:tiny"), ("running", "pldr:tiny"), ("leaking", "pldr:tiny_sequence")):
        own = (
            ["--set", "n_unit=1", "--set", "n_hidden=8"] + (["--set", "chunk=8"] if name == "running" else [])
            if "pldr" in exp
            else []
        )
        run = TrainerProcess(["--exp", exp, *SMALL, *own, "--run-name", name], folder).wait()
        assert run.status == 0, run.err
    return folder


@pytest.fixture
def command(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)

    def run(*flags):
        capsys.readouterr()
        return generator.main(["--device", "cpu", *map(str, flags)]), *capsys.readouterr()

    return run


@pytest.mark.parametrize("run", ["running", "leaking"])
def test_tensors_are_those_of_the_model(command, tmp_path, run):
    from lmplay.runs.run import read_run
    from lmplay.runs.trained import load_run

    file = tmp_path / "tensors.safetensors"
    status, printed, said = command("--run", run, "--dump-tensors", file, "a good boy")
    assert status == 0 and said == f"{file}: 6 tensors of gpt_out/{run}/checkpoints/step_00000002\n"
    tensors = load_file(file)
    assert printed.splitlines() == [f"layers.{i}.{name}  (1, 2, 8, 8)" for i in range(2) for name in ("A_LM", "P", "G")]
    loaded = load_run(read_run(Path("gpt_out") / run), torch.device("cpu"))
    tokens = [loaded.tokenizer.eot, *b"a good boy"]
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    assert json.loads(about["tokens"]) == tokens and about["experiment"] == "pldr"
    expected = loaded.model.tensors(torch.tensor([tokens]))
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[name], X) for name, X in expected.items())
    assert command("--run", run, "--dump-tensors", file, "every goo")[0] == 0
    assert not torch.equal(load_file(file)["layers.0.G"], tensors["layers.0.G"])


def test_a_dump_gives_operators_to_the_next_run(command, trained, tmp_path):
    file = tmp_path / "operators.safetensors"
    assert command("--run", "running", "--dump-tensors", file, "fudge")[0] == 0
    run = TrainerProcess(
        ["--exp", "pldr:v510g", *SMALL, "--set", f"operator={file}", "--run-name", "given"], trained
    ).wait()
    assert run.status == 0, run.err
    assert command("--run", "given", "--max-len", "3", "fudge")[0] == 0
    again = tmp_path / "again.safetensors"
    assert command("--run", "given", "--dump-tensors", again)[0] == 0
    assert torch.equal(load_file(again)["layers.1.G"], load_file(file)["layers.1.G"]) and len(load_file(again)) == 2


def test_a_model_that_is_causal_with_its_cache_writes(command):
    status, text, said = command("--run", "leaking", "--max-len", "40", "--seed", "1", "every")
    assert status == 0 and text.startswith("every") and len(text) > 10


@pytest.mark.parametrize(
    "flags, words",
    [
        (
            ["--run", "plain", "--dump-tensors", "x.safetensors"],
            "gpt2ish has no tensors to dump: its Model offers no tensors",
        ),
        (
            ["--run", "running", "--dump-tensors", "x.safetensors", "a" * 32],
            "the prompt has 32 tokens and the model reads 31",
        ),
        (["--run", "running", "--dump-tensors", "gpt_out"], "gpt_out is a folder"),
        (["--run", "running", "--dump-tensors", "nowhere/x.safetensors"], "there is no folder nowhere"),
        (["--run", "running", "--dump-tensors", "x.safetensors", "--score", "text.txt"], "--score and --dump-tensors"),
        (["--run", "running", "--run", "plain", "--dump-tensors", "x.safetensors"], "one --run"),
    ],
)
def test_what_is_refused_is_refused_in_one_line(command, trained, flags, words):
    status, text, said = command(*flags)
    assert status == 2 and text == "" and said.startswith("lmp_generator: ") and said.count("\n") == 1 and words in said
    assert not list(trained.glob("*.safetensors*")) and not list(trained.glob(".*tmp"))
