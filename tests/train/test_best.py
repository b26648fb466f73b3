"""The checkpoint of the lowest validation loss is kept, and a run ends where the loss has not come down for a while."""

import csv
import json
import signal

import pytest

from lmplay.cli import compare, generator
from support.trainer_process import At

FLAGS = (
    "--exp gpt2ish --set n_layer=1 --set n_embd=16 --set n_head=2 --tokenizer bytes --context-len 16 --batch-size 4 "
    "--optimizer adamw --lr 3 --lr-schedule constant --warmup-steps 20 --max-steps 20 --validation-interval 2 "
    "--validation-tokens 500 --save-interval 4 --device cpu --run-name run"
).split()


def losses(run) -> dict[int, float]:
    with open(run / "validate.csv", newline="", encoding="utf-8") as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}


def steps_kept(run) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (run / "checkpoints").iterdir())


@pytest.mark.parametrize("killed", [False, True])
def test_the_best_checkpoint_stays_and_writes(trainer, plans, work, capsys, killed):
    flags = [*FLAGS, "--training-plan", plans["plain"], "--keep-best"]
    if killed:
        assert (
            trainer(*flags, at=At(event="os.rename", path="step_00000016", signals=(signal.SIGKILL,))).status
            == -signal.SIGKILL
        )
    assert trainer(*flags).status == 0
    run = work / "gpt_out" / "run"
    found = losses(run)
    best = min(found, key=found.get)
    assert best < 16, "the rate is so high that the loss goes up again"
    assert best in steps_kept(run) and len(steps_kept(run)) == 3
    assert json.loads((run / "checkpoints/step_00000020/state.json").read_text())["best"]["step"] == best
    for asked, step in (([], best), (["--run", str(run / "checkpoints/step_00000020")], 20)):
        assert generator.main(["--device", "cpu", *asked, "--max-len", "3", "one"]) == 0
        assert f"step_{step:08d}" in capsys.readouterr().err


def test_a_run_ends_early(trainer, plans, work):
    flags = [*FLAGS, "--training-plan", plans["plain"]]
    assert trainer(*flags, "--run-name", "whole").status == 0
    whole = losses(work / "gpt_out" / "whole")
    best, since, end = float("inf"), 0, None
    for step, loss in whole.items():
        best, since = (loss, 0) if loss < best else (best, since + 1)
        if since == 2:
            end = step
            break
    assert end is not None and end < 20
    assert trainer(*flags, "--early-stop", "2").status == 0
    run = work / "gpt_out" / "run"
    assert losses(run) == {step: loss for step, loss in whole.items() if step <= end}
    info = json.loads((run / "run.json").read_text())
    assert (info["status"], info["progress"]["step"]) == ("finished", end) and steps_kept(run)[-1] == end
    assert "is finished" in trainer(*flags, "--early-stop", "2").err
    assert trainer(*flags).status == 0, "without the flag it goes on"
    assert losses(run) == whole


def test_a_comparison_refuses_to_end_early(work, plans, capsys):
    flags = ["--exp", "llama2", "--training-plan", plans["plain"], "--early-stop", "2"]
    assert compare.main(flags) == 2
    assert "--early-stop ends a run while its learning rate is still high" in capsys.readouterr().err
    assert not (work / "gpt_out").exists()
