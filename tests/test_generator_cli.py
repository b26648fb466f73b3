"""lmp_generator as it is typed, on runs that lmp_trainer made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = Path(sys.executable).parent
ALPHABET = "abcdefghijklmnopqrstuvwxyz" * 400
MODEL = ["--set", "n_layer=1", "--set", "n_embd=32", "--set", "n_head=2", "--tokenizer", "bytes", "--context-len", "32", "--batch-size",
         "16", "--lr", "1e-2", "--warmup-steps", "5", "--max-steps", "60", "--validation-interval", "60", "--device", "cpu"]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """A folder with a run that reads the alphabet forward and one that reads it from its end."""
    folder = tmp_path_factory.mktemp("generator")
    text = folder / "alphabet.jsonl"
    text.write_text("\n".join(f'{{"text": "{ALPHABET[k:k + 520]}"}}' for k in range(0, 8000, 520)))
    for name in ("gpt2ish", "reverse_time"):
        done = run("lmp_trainer", "--exp", name, *MODEL, "--data", text, "--out", folder / "runs", "--run-name", name)
        assert done.returncode == 0, done.stderr
    return folder / "runs"


def run(command: str, *words, **options) -> subprocess.CompletedProcess:
    return subprocess.run([COMMANDS / command, *map(str, words)], capture_output=True, text=True, timeout=120, **options)


def generated(out: Path, *words, **options) -> str:
    done = run("lmp_generator", "--out", out, "--max-len", 6, "--no-do-sample", *words, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_writes_on(out, tmp_path):
    (tmp_path / "prompt.txt").write_text("klmnop\n")
    assert generated(out, "--run", "gpt2ish", "defghi") == "defghijklmno\n"
    assert generated(out, "--run", "gpt2ish", "--no-cache", "defghi") == "defghijklmno\n"
    assert generated(out, "--run", "gpt2ish", tmp_path / "prompt.txt") == "klmnopqrstuv\n"
    assert generated(out, "--run", "gpt2ish", "-", input="uvwxyz") == "uvwxyzabcdef\n"


def test_a_reversed_model_writes_what_comes_before(out):
    assert generated(out, "--run", out / "reverse_time", "defghi") == "xyzabcdefghi\n"


def test_the_last_run_is_taken_and_needs_nothing_but_its_folder(out, tmp_path):
    shutil.copytree(out / "gpt2ish", tmp_path / "elsewhere" / "moved")
    environment = {**os.environ, "LMPLAY_DATA": str(tmp_path / "empty")}
    assert generated(tmp_path / "elsewhere", "defghi", cwd=tmp_path, env=environment) == "defghijklmno\n"
    assert "reverse_time" in run("lmp_generator", "--out", out, "--max-len", 1, "a").stderr


def test_seeds_and_samples(out):
    words = ["--out", out, "--run", "gpt2ish", "--temperature", 3, "--top-p", 1, "--max-len", 20, "--num-samples", 2, "a"]
    first, again, other = (run("lmp_generator", *words, "--seed", seed).stdout for seed in (1, 1, 2))
    assert first == again != other
    samples = first.split("--- ")[1:]
    assert len(samples) == 2 and samples[0].split("\n", 1)[1] != samples[1].split("\n", 1)[1]


@pytest.mark.parametrize("words, said", [
    (["--run", "gpt2is", "a"], "Did you mean 'gpt2ish'?"),
    (["--run", "gpt2ish", "there/is/none.txt"], "there is no file"),
    (["--run", "gpt2ish", "--top-p", "0", "a"], "--top-p"),
    (["--run", "gpt2ish", "--max-len", "0", "a"], "--max-len"),
    (["--run", "gpt2ish", "--device", "abacus", "a"], "abacus"),
    (["--run", "no_json", "a"], "run.json"),
    (["--run", "no_weights", "a"], "checkpoint"),
    (["--run", "broken_weights", "a"], "model.safetensors can't be read")])
def test_bad_input_is_one_line(out, words, said):
    for name in ("no_json", "no_weights", "broken_weights"):
        if not (out / name).exists():
            shutil.copytree(out / "gpt2ish", out / name)
            os.utime(out / name / "run.json", (0, 0))
    (out / "no_json" / "run.json").write_text("{")
    shutil.rmtree(out / "no_weights" / "checkpoints", ignore_errors=True)
    for weights in (out / "broken_weights").rglob("model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-100])
    done = run("lmp_generator", "--out", out, *words)
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_nothing_trained_yet(tmp_path):
    done = run("lmp_generator", "--out", tmp_path, "a")
    assert done.returncode == 2 and "lmp_trainer" in done.stderr
