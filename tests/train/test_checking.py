"""A model that looks ahead is not trained, compared or probed; run.json keeps what was asked."""

import json

import pytest

from lmplay.cli import compare as compare_command
from lmplay.cli import probe as probe_command
from lmplay.cli import trainer as trainer_command
from lmplay.model.findings import LEAK
from lmplay.runs.run import read_run
from lmplay.train.checking import check_run
from support.results import unseal
from support.small import TINY

# `body` is what looks ahead: forward, the fused loss and the generator all go through it
LOOKS_AHEAD = """
class Model(Model):
    def body(self, tokens, cache=None):
        return super().body(tokens, cache) + GATE * torch.roll(self.tokens_embedding(tokens), -1, 1)
"""
LEAKY = LOOKS_AHEAD.replace("GATE", "1.0")
BUDGET = ["--max-steps", "3", "--validation-tokens", "300"]


@pytest.fixture
def in_process(work, capfd):
    def run(command, *words):
        status = command.main([str(word) for word in words])
        return status, *capfd.readouterr()

    return run


def words_for(name, plan):
    return ["--exp", name, *TINY[2:], *BUDGET, "--training-plan", plan]


def test_a_model_that_looks_ahead_is_not_trained(in_process, experiment, plans, work):
    words = [*words_for(experiment("leaky", LEAKY), plans["plain"]), "--run-name", "r"]
    status, _, err = in_process(trainer_command, *words)
    [line] = [line for line in err.splitlines() if line.startswith("lmp_trainer:")]
    assert status == 2 and "leaky looks ahead" in line and "--allow-leak" in line and "Traceback" not in err
    assert not (work / "gpt_out" / "r").exists()

    status, _, err = in_process(trainer_command, *words, "--allow-leak")
    assert status == 0 and "warning: leaky looks ahead" in err
    checks = read_run(work / "gpt_out" / "r").get("checks")
    assert checks["passed"] is False and {"looks ahead"} <= {finding["question"] for finding in checks["findings"]}


def test_check_asks_and_trains_nothing(in_process, experiment, plans, work):
    status, out, _ = in_process(trainer_command, *words_for(experiment("leaky", LEAKY), plans["plain"]), "--check")
    assert status == 2 and "leaky looks ahead" in out and "right    make_batch scores each token once" in out
    status, out, _ = in_process(trainer_command, *words_for(experiment("sound"), plans["plain"]), "--check")
    assert status == 0 and len(out.splitlines()) == 13 and all(line.startswith("right") for line in out.splitlines())
    assert not list(work.glob("gpt_out/*/run.json"))


def test_weights_are_those_of_a_run_without_the_check(in_process, experiment, plans, work):
    from lmplay.train import settings as flags
    from lmplay.train.loop import Trainer
    from lmplay.train.setup import set_up

    words = [*words_for(experiment("sound"), plans["plain"]), "--set", "dropout=0.1"]
    status, _, err = in_process(trainer_command, *words, "--run-name", "checked")
    assert status == 0, err
    typed = trainer_command.parser().parse_args([*words, "--run-name", "plain"])
    Trainer(set_up(flags.from_flags(typed, None))).train()
    checked, plain = (
        sorted((work / "gpt_out" / name / "checkpoints").glob("step_*"))[-1] for name in ("checked", "plain")
    )
    assert (checked / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert read_run(work / "gpt_out" / "checked").get("checks", "passed") is True
    assert read_run(work / "gpt_out" / "plain").get("checks") is None


def test_answers_are_kept_by_code(in_process, experiment, plans, work, monkeypatch, tmp_path):
    monkeypatch.setenv("LMPLAY_DATA", str(tmp_path / "data"))
    words = [*words_for(experiment("sound"), plans["plain"]), "--check"]
    assert in_process(trainer_command, *words)[0] == 0
    [kept] = (tmp_path / "data" / "checks").glob("*.json")
    content = json.loads(kept.read_text())
    content["findings"] = [{"question": "rows", "kind": LEAK, "sentence": "as it was kept"}]
    kept.write_text(json.dumps(content))
    status, out, _ = in_process(trainer_command, *words)
    assert status == 2 and "as it was kept" in out
    kept.write_text("{}")  # of no use: asked again
    assert in_process(trainer_command, *words)[0] == 0
    path = work / "experiments" / "sound" / "model.py"
    path.write_text(path.read_text() + "\n\nUNUSED = 1\n")
    assert in_process(trainer_command, *words[:-1], "--set", "n_layer=2", "--check")[0] == 0
    assert len(list((tmp_path / "data" / "checks").glob("*.json"))) == 2


@pytest.mark.process
def test_no_verdict_for_a_model_that_looks_ahead(in_process, experiment, plans, work):
    words = [*words_for(experiment("leaky", LEAKY), plans["plain"]), "--seeds", "1", "--no-report"]
    status, out, err = in_process(compare_command, *words)
    assert status == 2 and "leaky looks ahead" in err and "There is no verdict without --allow-leak" in err
    assert not list(work.glob("gpt_out/*/run.json")), "nothing is trained for nothing"
    status, out, err = in_process(compare_command, *words, "--allow-leak")
    assert status == 0 and "95% interval" in out and "leaky looks ahead" in out
    # its runs are there now, and nothing has to be trained: still no verdict
    status, out, err = in_process(compare_command, *words)
    assert status == 2 and "leaky looks ahead" in err and not out


@pytest.mark.process
def test_a_probe_refuses_it_too(in_process, experiment, work):
    words = ["--exp", experiment("leaky", LEAKY), "--tasks", "copy", "--seeds", "1", "--max-steps", "2"]
    status, _, err = in_process(probe_command, *words)
    assert status == 2 and "leaky looks ahead" in err and "--allow-leak" in err
    assert not list(work.glob("gpt_out/*/run.json"))


@pytest.mark.process
def test_trained_weights_are_asked_again(in_process, experiment, plans, work):
    """A leak that opens in training only, as weights go: what was asked before it did not see it."""
    hidden = LOOKS_AHEAD.replace("GATE", "(self.norm.bias.abs().max() > 0.9)")
    name = experiment("opens", hidden)
    words = [*words_for(name, plans["plain"]), "--seeds", "1", "--no-report"]
    assert in_process(compare_command, *words)[0] == 0
    [folder] = [path for path in (work / "gpt_out").iterdir() if path.name.startswith("opens")]
    assert check_run(read_run(folder)).findings == []
    checkpoint = next((folder / "checkpoints").glob("step_*"))
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors")
    tensors["norm.bias"][0] = 1.0
    save_file(tensors, checkpoint / "model.safetensors")
    unseal(folder)  # as if training had come to these weights
    assert "opens looks ahead" in check_run(read_run(folder)).sentences(LEAK)[0]
    status, _, err = in_process(compare_command, *words)
    assert status == 2 and "opens looks ahead" in err


def test_a_run_without_checkpoint_is_not_asked(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "experiment": {"name": "gpt2ish"}}))
    assert check_run(read_run(tmp_path)) is None


def test_initial_weights_have_no_first_loss(in_process, experiment, plans, work):
    wild = """
class Model(Model):
    def __init__(self, config):
        super().__init__(config)
        nn.init.normal_(self.head.weight, std=3.0)
"""
    words = words_for(experiment("wild", wild), plans["plain"])
    status, _, err = in_process(trainer_command, *words, "--run-name", "first")
    assert status == 0 and "the first loss of wild is" in err
    status, _, err = in_process(trainer_command, *words, "--run-name", "second", "--initial-model", "first")
    assert status == 0 and "the first loss" not in err
