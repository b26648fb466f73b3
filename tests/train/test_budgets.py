"""Budgets and the plan: a run goes on into further epochs, ends where its data do, and says so; old runs stay."""

import csv
import dataclasses
import json
import types

import numpy as np
import pytest

from lmplay.cli import trainer as command
from lmplay.data.plans import load_plan
from lmplay.data.prepare import prepare
from lmplay.errors import UserError
from lmplay.runs.settings import Settings
from lmplay.train.describe import on_length
from lmplay.train.phases import lay_out
from lmplay.train.progress import Progress
from lmplay.train.setup import with_data_order
from lmplay.train.state import TrainState
from support.plan_files import write_task_plan
from support.results import unsealed
from support.small import TINY

SETTINGS = Settings(batch_size=4)
CONTEXT = 16


@pytest.fixture
def layout(plans):
    """Lays out a plan's phases under settings; remembers them for `said`."""

    def lay(plan, **given):
        loaded = load_plan(plans.get(plan, plan))
        settings = dataclasses.replace(SETTINGS, **given)
        lay.plan, lay.settings = loaded, settings
        lay.phases = lay_out(settings, loaded, prepare(loaded, "bytes", progress=False), CONTEXT)
        return [(phase.name, phase.n_steps) for phase in lay.phases]

    def said():
        setup = types.SimpleNamespace(
            settings=lay.settings,
            phases=lay.phases,
            plan=lay.plan,
            context_len=CONTEXT,
            n_steps=sum(phase.n_steps for phase in lay.phases),
            n_windows=sum(phase.n_windows for phase in lay.phases),
        )
        return list(on_length(setup))

    lay.said = said
    return lay


def test_a_budget_takes_the_last_phase_into_further_epochs_and_says_so(layout):
    ((_, by_plan),) = layout("plain")
    assert layout.said() == []
    assert layout("plain", max_steps=3 * by_plan + 1) == [("one", 3 * by_plan + 1)]
    assert layout.said() == [f"one goes on into further epochs: {by_plan:,} of its steps are the plan's"]
    order, n = layout.phases[0].order, layout.phases[0].n_in_plan
    first, second = (set(order.windows(epoch * n, n).tokens[:, 0].tolist()) for epoch in (0, 1))
    starts = [order.windows(epoch * n, n).tokens[:20].tolist() for epoch in (0, 1)]
    assert first and second and starts[0] != starts[1]  # another order
    tokens = 5 * by_plan * 4 * CONTEXT
    assert layout("plain", max_tokens=tokens) == [("one", 5 * by_plan)]
    assert layout("plain", max_tokens=tokens, max_steps=7) == [("one", 7)]
    assert layout("plain", max_steps=7, extra_steps=2) == [("one", 9)] and layout.said() == []
    # a phase given in tokens goes on as well, the first of two is cut only
    assert layout("two_steps", max_steps=33) == [("first", 10), ("second", 23)]
    assert layout("two_steps", max_steps=6) == [("first", 6)]
    assert layout.said() == ["the budget ends before second"]


def test_a_time_limit_alone_takes_the_last_phase_on(layout):
    by_plan = layout("plain")
    assert layout("plain", max_minutes=2.0) == by_plan  # of which the schedule is made
    assert layout.said() == ["one goes on into further epochs until 2 minutes are over"]
    state = TrainState(layout.phases, position=10**9)
    assert state.current is layout.phases[0]
    layout("plain", max_minutes=2.0, max_steps=5)
    assert not layout.phases[0].is_open and layout.said() == []


def test_epochs_multiply_the_phases_in_epochs(layout, tmp_path):
    windows = {times: layout("plain", epochs=times) and layout.phases[0].n_windows for times in (1.0, 3.0, 0.5)}
    assert windows[3.0] == 3 * windows[1.0] and windows[0.5] == -(-windows[1.0] // 2)
    with pytest.raises(UserError, match="no phase of the plan two_steps is given in epochs; --max-tokens"):
        layout("two_steps", epochs=2.0)
    assert layout("plain", epochs=2.0, max_steps=3) == [("one", 3)]


def test_synthetic_tasks_are_not_repeated(layout, tmp_path):
    plan = write_task_plan(tmp_path, "times", documents=50)
    ((_, by_plan),) = layout(plan)
    for budget in ({"max_steps": 10**4}, {"max_tokens": 10**7}):
        assert layout(plan, **budget) == [("d", by_plan)]
        assert layout.said() == ["the data end before the budget: synthetic tasks are not repeated"]
    layout(plan, max_minutes=1.0)
    assert not layout.phases[0].is_open
    with pytest.raises(UserError, match="d is a synthetic task, which is not repeated: raise its 'max_documents'"):
        layout(plan, epochs=2.0)


def test_the_first_data_order_ends_with_the_data(layout):
    by_plan = layout("plain")
    for budget in ({"max_steps": 10**4}, {"max_tokens": 10**8}, {"max_minutes": 1.0}):
        assert layout("plain", data_order=1, **budget) == by_plan
    assert layout("plain", data_order=1, max_steps=10**4) == by_plan
    assert layout.said() == ["the data end before the budget: data order 1 does not repeat them"]


def test_the_progress_of_a_run_beyond_its_plan_counts_down_the_time():
    progress = Progress()
    progress._terminal = False
    progress.start(10, 0, 0)
    progress.update("one", 15, loss=1.0, accuracy=0.5, tokens=100, seconds_left=90.0)
    assert progress._text().startswith("one 15/15: ") and "01:30 left" in progress._text()


def train(*flags, plan):
    return command.main([*TINY, "--run-name", "r", "--validation-tokens", "500", "--training-plan", plan, *flags])


def losses(run):
    with open(run / "train.csv", encoding="utf-8", newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def edit(run, change):
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    change(info)
    (run / "run.json").write_text(json.dumps(unsealed(info)), encoding="utf-8")


@pytest.fixture
def short_plan(tmp_path):
    (tmp_path / "s.txt").write_text("\n\n".join(f"line {k} of a short text" * 2 for k in range(60)), encoding="utf-8")
    path = tmp_path / "short.json"
    plan = {"tokenizer": "bytes", "datasets": {"d": {"files": "s.txt"}}, "steps": [{"datasets": ["d"]}]}
    path.write_text(json.dumps(plan), encoding="utf-8")
    return str(path)


def test_an_older_run_keeps_its_order_and_its_end(work, short_plan, capfd):
    """A run of the first order that ended with its data is finished for its own command, and it goes on to the bit."""
    run = work / "gpt_out" / "r"
    budget = ["--max-steps", "500", "--lr-schedule", "constant"]
    assert train("--data-order", "1", *budget, plan=short_plan) == 0
    n_steps = len(losses(run))
    assert n_steps < 500 and "data order 1 does not repeat" in capfd.readouterr().err
    edit(run, lambda info: info["settings"].pop("data_order"))  # as an older version wrote it
    edit(run, lambda info: info["settings"].pop("epochs"))
    assert train(*budget, plan=short_plan) == 0
    assert "is finished" in capfd.readouterr().err and len(losses(run)) == n_steps
    # another order is another run
    assert train(*budget, "--data-order", "2", plan=short_plan) == 2
    assert "--data-order was 1, now 2" in capfd.readouterr().err
    assert json.loads((run / "run.json").read_text())["settings"]["data_order"] == 1
    # one that goes on reads on in its order
    whole = losses(run)
    assert train("--data-order", "1", "--lr-schedule", "constant", "--max-steps", "9", "--fresh", plan=short_plan) == 0
    edit(run, lambda info: info["settings"].pop("data_order"))
    assert train("--lr-schedule", "constant", "--max-steps", "12", plan=short_plan) == 0
    assert losses(run) == whole[:12]
    # begun anew it has the order of today
    assert train("--lr-schedule", "constant", "--max-steps", "2", "--fresh", plan=short_plan) == 0
    assert json.loads((run / "run.json").read_text())["settings"]["data_order"] == 2


def test_the_order_of_a_run_is_asked_for_its_own_or_the_newest(tmp_path):
    assert with_data_order(Settings(), tmp_path).data_order == 2
    (tmp_path / "run.json").write_text('{"format": 1, "experiment": {"name": "x"}, "settings": {}}', encoding="utf-8")
    assert with_data_order(Settings(), tmp_path).data_order == 1
    assert with_data_order(Settings(), tmp_path, fresh=True).data_order == 2
    assert with_data_order(Settings(data_order=2), tmp_path).data_order == 2


def test_windows_of_further_epochs_hold_every_token_again(layout):
    layout("plain", max_steps=2000)
    order, n = layout.phases[0].order, layout.phases[0].n_in_plan
    counts = []
    for epoch in range(3):
        windows = order.windows(epoch * n, n)
        scored = windows.tokens if windows.scored is None else windows.tokens[windows.scored]
        counts.append(np.bincount(scored.ravel(), minlength=257).tolist())
    assert counts[0] == counts[1] == counts[2]
