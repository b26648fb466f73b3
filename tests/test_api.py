"""The Python API, in this process and in scripts that guard nothing with `if __name__ == "__main__"`."""

import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lmplay
from lmplay import contract, registry
from lmplay.api import LoadedRun
from lmplay.data.encoding import IN_PROCESS_CHARACTERS
from lmplay.data.tokenizers import load_tokenizer
from lmplay.errors import UserError
from lmplay.runs.run import Run, read_run
from lmplay.runs.trained import TrainedRun
from support.making_runs import make_run
from support.small import make_text

FIXTURES = Path(__file__).resolve().parent / "fixtures"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))
FUNCTIONS = ("curves", "list_runs", "load_run", "plot_runs", "run_comparison")
TINY = {
    "set": ["n_layer=1", "n_head=2", "n_embd=16"],
    "context_len": 16,
    "batch_size": 4,
    "max_steps": 6,
    "warmup_steps": 2,
    "validation_interval": 2,
    "validation_tokens": 1000,
    "device": "cpu",
}


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A working folder with the old runs in gpt_out."""
    shutil.copytree(FIXTURES / "runs", tmp_path / "gpt_out")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def script(folder: Path, text: str) -> subprocess.CompletedProcess:
    """Run a script in `folder` as a user does, and return the finished process."""
    (folder / "script.py").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(FIXTURES.parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_no_module_hides_a_function(old):
    for module in pkgutil.walk_packages(lmplay.__path__, "lmplay."):
        importlib.import_module(module.name)
    assert set(FUNCTIONS) <= set(dir(lmplay)) and set(FUNCTIONS) <= set(lmplay.__all__)
    for name in FUNCTIONS:
        assert callable(getattr(lmplay, name)) and getattr(lmplay, name).__doc__
        assert importlib.util.find_spec(f"lmplay.{name}") is None
    assert len(lmplay.list_runs()) == 4
    assert len(lmplay.curves("by_plan")) == 2
    assert lmplay.load_run("by_plan", "cpu").generate("one", 4)
    assert lmplay.plot_runs("by_plan", x="steps", split="train").axes
    with pytest.raises(UserError, match="is the baseline"):
        lmplay.run_comparison("gpt2ish")
    with pytest.raises(AttributeError, match="has no attribute 'compare_runs'"):
        lmplay.compare_runs  # noqa: B018


@pytest.mark.process
def test_importing_lmplay_is_quick():
    code = "import sys, lmplay; print(lmplay.__version__, sorted(m for m in sys.modules if m.startswith('lmplay')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"{lmplay.__version__} ['lmplay', 'lmplay.version']\n"


def test_runs_are_listed_with_what_they_differ_in(old):
    table = lmplay.list_runs()
    assert list(table["name"]) == ["by_data", "by_plan", "gpt2ish", "llama2"]
    row = table.set_index("name").loc["by_plan"]
    assert (row["experiment"], row["variant"], row["plan"], row["status"]) == ("frozen", "6l", "frozen_plan", "stopped")
    assert (row["step"], row["tokens"], row["parameters"], row["seed"], row["lr"]) == (20, 5120, 43201, 0, 0.01)
    assert row["train_loss"] == pytest.approx(2.347577) and row["validation_loss"] == pytest.approx(2.361598)
    assert row["seconds"] == 0.16 and row["path"] == Path("gpt_out/by_plan")
    assert [path.name for path in row["checkpoints"]] == ["step_00000020"]
    assert {"lr_schedule", "max_steps", "vocab_size"} <= set(table.columns)  # they differ
    assert not {"beta1", "exp", "out", "backup_interval", "n_layer", "n_kv_head"} & set(table.columns)
    assert lmplay.list_runs("gpt_out").equals(table) and len(set(table.columns)) == len(table.columns)


def test_what_is_no_run_is_said_and_left_out(old):
    (old / "gpt_out" / "broken").mkdir()
    (old / "gpt_out" / "broken" / "run.json").write_text("{")
    with pytest.warns(UserWarning, match="broken/run.json is damaged"):
        assert len(lmplay.list_runs()) == 4
    with pytest.raises(UserError, match="no runs in nothing"):
        lmplay.list_runs("nothing")


def test_curves_are_the_tables_of_the_run(old):
    for run in ("by_plan", "gpt_out/by_plan", Path("gpt_out/by_plan"), read_run(Path("gpt_out/by_plan"))):
        table = lmplay.curves(run)
        assert list(table["step"]) == [10, 20] and table["loss"].iloc[-1] == pytest.approx(2.361598)
    assert len(lmplay.curves("by_plan", "train")) == 20
    assert lmplay.curves("by_plan", folder="gpt_out").equals(table)
    with pytest.raises(UserError, match="split is one of train, validate, not 'test'"):
        lmplay.curves("by_plan", "test")
    with pytest.raises(UserError, match="Did you mean 'by_plan'"):
        lmplay.curves("by_plam")


@pytest.mark.parametrize("name", ["by_plan", "llama2"])
def test_a_run_is_loaded_writes_and_scores(old, name):
    loaded = lmplay.load_run(name, "cpu")
    greedy = EXPECTED[name]["greedy"].removesuffix("\n")
    assert loaded.generate("one", 24, do_sample=False) == greedy
    assert loaded.generate("one", 8, seed=3) == loaded.generate("one", 8, seed=3)
    assert {loaded.generate("one", 8, temperature=2.0) for _ in range(4)} != {loaded.generate("one", 8, seed=3)}
    scored = loaded.score("one by one")
    assert list(scored.columns) == ["token", "bytes", "loss"] and "".join(scored["token"]) == "one by one"
    assert scored["bytes"].sum() == 10 and np.isfinite(scored["loss"]).all() and (scored["loss"] > 0).all()
    assert name in repr(loaded) and not loaded.model.training
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("one")) == "one" and loaded.run.name == name
    with pytest.raises(UserError, match="generate takes no 'temprature'. Did you mean 'temperature'"):
        loaded.generate("one", temprature=1)


def test_the_run_trained_last_and_a_checkpoint_are_loaded(old):
    os.utime("gpt_out/by_data/run.json", (2e9, 2e9))
    assert lmplay.load_run(device="cpu").run.name == "by_data"
    checkpoint = next(Path("gpt_out/llama2/checkpoints").iterdir())
    assert lmplay.load_run(checkpoint, "cpu").trained.checkpoint == checkpoint


def test_runs_are_plotted(tmp_path):
    for name, seed in (("gpt2ish", 0), ("llama2", 0), ("llama2", 1)):
        make_run(tmp_path / f"{name}{seed}", experiment=name, seed=seed, steps=50, columns={"x_gate": lambda t: t})
    figure = lmplay.plot_runs(folder=tmp_path)
    assert figure.axes and figure.get_size_inches()[0] > 3
    figure.savefig(tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 10_000
    one = read_run(tmp_path / "gpt2ish0")
    for wanted in (one, [one, tmp_path / "llama20"], tmp_path, "llama21"):
        assert lmplay.plot_runs(wanted, "accuracy", folder=tmp_path, log=False).axes
    assert lmplay.plot_runs(None, "x_gate", folder=tmp_path).axes
    assert lmplay.plot_runs(folder=tmp_path, diff=True, baseline="gpt2ish").axes
    with pytest.raises(UserError, match="plot_runs takes no 'basline'. Did you mean 'baseline'"):
        lmplay.plot_runs(folder=tmp_path, basline="gpt2ish")
    with pytest.raises(UserError, match="no run has a column"):
        lmplay.plot_runs(None, "x_gates", folder=tmp_path)


def test_a_comparison_refuses_what_it_does_not_know():
    with pytest.raises(UserError, match="run_comparison takes no 'max_step'. Did you mean 'max_steps'"):
        lmplay.run_comparison("llama2", max_step=3)


@pytest.mark.process
@pytest.mark.thorough
def test_a_script_without_a_guard_compares_and_prints_once(tmp_path):
    (tmp_path / "one.txt").write_text(make_text(60, 1), encoding="utf-8")
    settings = {**TINY, "data": ["one.txt"], "tokenizer": "bytes"}
    done = script(
        tmp_path,
        f"""
print("the script runs")
import lmplay
found = lmplay.run_comparison("llama2:tiny", "gpt2ish:tiny", seeds=2, together=2, **{settings!r})
verdict = found.candidates[0].verdict
print(found)
import json, pathlib
files = pathlib.Path("gpt_out").glob("*/run.json")
print(verdict.difference, len(lmplay.list_runs()), sum("together" in json.loads(file.read_text()) for file in files))
""",
    )
    lines = done.stdout.splitlines()
    assert lines.count("the script runs") == 1 and lines[-1].split()[1:] == ["4", "4"]
    assert float(lines[-1].split()[0]) == pytest.approx(float(lines[-1].split()[0]))
    assert any(line.startswith("llama2:tiny") for line in lines)
    assert done.stderr.count(" -> gpt_out/") == 4


@pytest.mark.process
@pytest.mark.thorough
def test_a_script_without_a_guard_prepares_text_in_many_processes(tmp_path):
    """Enough text for the pool that cuts it into tokens."""
    (tmp_path / "one.txt").write_text(make_text(2000, 1) * 120, encoding="utf-8")
    assert (tmp_path / "one.txt").stat().st_size > 2 * IN_PROCESS_CHARACTERS
    done = script(
        tmp_path,
        """
print("the script runs")
from lmplay.data import plans, prepare
data = prepare.prepare(plans.plan_from_files(["one.txt"]), "bytes", processes=2, progress=False)
print(data.train["one"].n_tokens)
""",
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "the script runs" and len(lines) == 2 and int(lines[1]) > IN_PROCESS_CHARACTERS


@pytest.mark.thorough
@pytest.mark.process
@pytest.mark.slow
def test_the_examples_of_the_page_run(old):
    page = (FIXTURES.parents[1] / "docs" / "python-api.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 7 and all(f"lmplay.{name}" in page for name in FUNCTIONS)
    *others, last = examples  # the last trains, too: with runs that are there it would have no progress to show
    done = script(old, "".join([*others, 'settings["max_steps"] = 3\n', last]))
    assert "llama2:tiny" in done.stdout and "nats per token" in done.stdout
    lines = done.stdout.splitlines()
    assert lines[-1] in ("better", "worse", "equal", "not decided")
    for state in ("begins", "finished"):
        assert len([line for line in lines if re.match(rf"run \d of 4 .*{state}", line)]) == 4
    assert (old / "loss.png").stat().st_size > 10_000 and (old / "accuracy.png").exists()


def untrained(name: str) -> LoadedRun:
    """A model of an experiment with its first values, as if it had been loaded."""
    experiment = contract.load(registry.find(name)[0])
    tokenizer = load_tokenizer("bytes")
    config = experiment.config("tiny", tokenizer.vocab_size, 16, n_layer=1, n_head=2, n_embd=16)
    torch.manual_seed(0)
    trained = TrainedRun(
        model=experiment.build(config).eval(),
        tokenizer=tokenizer,
        experiment=experiment.bound(config),
        context_len=16,
        run=Run(Path(name), {}),
        checkpoint=Path(name),
    )
    return LoadedRun(trained, torch.device("cpu"))


def test_a_model_with_two_directions_is_asked_in_one():
    both = untrained("both_ways")
    first, *_, last = both.trained.experiment.direction_names
    losses = {name: list(both.score("one by one", direction=name)["loss"]) for name in (None, first, last)}
    assert losses[None] == losses[first] != losses[last]
    assert both.generate("one", 4, seed=1, direction=last).endswith("one")
    with pytest.raises(UserError, match="knows no 'sideways'"):
        both.score("one", direction="sideways")


def test_a_masked_model_fills_in_and_does_not_score():
    masked = untrained("bert")
    assert masked.generate("The [MASK] sat", seed=1).startswith("The ")
    with pytest.raises(UserError, match="not causal"):
        masked.score("The cat sat")
