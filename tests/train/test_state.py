"""Where a run stands: what is asked of it changes nothing, and its files keep their keys."""

import dataclasses
import json

import pytest

from lmplay.runs.settings import Settings
from lmplay.train.phases import Cooldown, Phase
from lmplay.train.resume import check_unchanged, open_run
from lmplay.train.setup import set_up
from lmplay.train.state import TrainState

STATE_KEYS = ["step", "phase", "position", "samples", "tokens", "bytes", "seconds", "final", "validation_loss"]


def phase(name, n_windows):
    return Phase(name, ["data"], order=None, n_windows=n_windows, n_steps=n_windows // 2)


def test_asking_for_the_phase_changes_nothing():
    state = TrainState([phase("one", 4), phase("two", 6)], position=4)
    before = dataclasses.replace(state)
    assert state.current is None and state.current is None and state == before
    state.advance()
    assert (state.phase, state.position, state.current.name) == (1, 0, "two")
    state.advance()
    assert (state.phase, state.position) == (1, 0)
    state.position = 6
    state.advance()
    assert state.current is None and (state.phase, state.position) == (1, 6)  # the end


def test_a_budget_that_is_smaller_now_is_an_end():
    state = TrainState([phase("one", 4)], phase=1, position=2)
    state.advance()
    assert state.current is None and (state.phase, state.position) == (1, 2)


def test_keys_of_the_files():
    cooldown = Cooldown(start=2, n_steps=3, level=0.5, windows=10)
    one = dataclasses.replace(phase("one", 10), n_scheduled=8, cooldown=cooldown)
    state = TrainState([one], step=3, seconds=1.23456, peak_memory=7, final={"loss": 1.0})
    assert list(state.as_json()) == STATE_KEYS
    assert state.progress() == {
        "step": 3,
        "tokens": 0,
        "seconds": 1.23,
        "final": {"loss": 1.0},
        "validation_loss": None,
        "phases": [
            {
                "name": "one",
                "n_updates": 5,
                "n_scheduled": 8,
                "cooldown": {"start": 2, "updates": 3, "level": 0.5, "windows": 10},
            }
        ],
        "peak_memory_bytes": 7,
    }
    again = TrainState([one])
    again.restore(json.loads(json.dumps(state.as_json())))
    assert again.as_json() == state.as_json()
    assert Cooldown.from_json(json.loads(json.dumps(cooldown.as_json()))) == cooldown


def test_a_setup_is_frozen_and_checks_change_nothing(plans, tmp_path):
    from lmplay.runs.run import read_run
    from lmplay.train.loop import Trainer

    settings = Settings(
        exp="gpt2ish:tiny",
        training_plan=plans["plain"],
        context_len=16,
        batch_size=2,
        max_steps=2,
        validation_tokens=64,
        device="cpu",
        out=str(tmp_path / "runs"),
        run_name="run",
    )
    setup = set_up(settings)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setup.phases = []
    assert Trainer(setup).train() == "finished"
    leftover = setup.folder / ".half.tmp"
    leftover.touch()
    before = dataclasses.replace(setup)
    check_unchanged(setup, read_run(setup.folder))
    assert setup == before and leftover.exists()
    state = open_run(setup)
    assert state.step == 2 and state.current is None and not leftover.exists()
