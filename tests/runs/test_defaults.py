"""A setting or a field of the Config that a run is too old to have counts as its default."""

import json
import shutil
from pathlib import Path

import pytest

from lmplay.compare.seed_spread import group_of
from lmplay.report.groups import group_seeds, labels
from lmplay.report.provenance import settings_of
from lmplay.runs.run import Run, read_run
from support.making_runs import make_run

OLD = Path(__file__).resolve().parents[1] / "fixtures" / "runs" / "by_plan"


@pytest.fixture
def run(tmp_path):
    """A function that makes a copy of an old run with these changes of its run.json; None takes a key away."""

    def make(name: str, seed: int, settings=None, config=None) -> Run:
        folder = tmp_path / name
        shutil.copytree(OLD, folder)
        info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        info["run"] = name
        for section, changes in (("settings", {"seed": seed} | (settings or {})), ("config", config or {})):
            merged = info[section] | changes
            info[section] = {key: value for key, value in merged.items() if value != "gone"}
        (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
        return read_run(folder)

    return make


OLDER = {"settings": {"clip_value": "gone", "warmup_from": "gone"}, "config": {"embedding_lr": "gone", "tied": "gone"}}


def test_runs_that_lack_what_is_younger_are_grouped_with_those_that_have_its_default(run):
    runs = [run("old", 0, **OLDER), run("new", 1)]
    assert "tied" not in runs[0].info["config"] and "tied" in runs[1].info["config"]
    assert group_seeds(runs, [1.0, 1.0]) == [[0, 1]]
    assert labels(runs) == ["seed 0", "seed 1"]
    assert labels(runs[:1], [2]) == ["frozen:6l (n=2)"]
    assert group_of(runs[0]) == group_of(runs[1])
    differing, common = settings_of([runs])
    assert common["tied"] == "false" and common["clip_value"] == "0" and set(differing) == {"seed"}


@pytest.mark.parametrize(
    "changes, label",
    [({"settings": {"clip_value": 1.0}}, "clip_value"), ({"config": {"embedding_lr": 0.5}}, "embedding_lr")],
    ids=["a setting", "a field"],
)
def test_another_value_than_the_default_is_another_model(run, changes, label):
    runs = [run("old", 0, **OLDER), run("new", 0, **changes), run("again", 1, **changes)]
    assert group_seeds(runs, [1.0] * 3) == [[0], [1, 2]]
    value = {"clip_value": ("0", "1"), "embedding_lr": ("1", "0.5")}[label]
    assert labels(runs[:2]) == [f"{label}={one}" for one in value]
    assert group_of(runs[0]) != group_of(runs[1])


def test_a_field_that_the_code_had_not_yet_has_the_default_of_the_experiment_as_it_is_now(run, tmp_path, monkeypatch):
    one, other = run("old", 0), run("new", 0, config={"wings": 2})
    model = tmp_path / "experiments" / "frozen" / "model.py"
    model.parent.mkdir(parents=True)
    source = (OLD / "code" / "frozen" / "model.py").read_text(encoding="utf-8")
    model.write_text(source.replace("    tied: bool", "    wings: int = 2\n    tied: bool"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert one.value("config", "wings") == 2 and one.config["wings"] == 2
    assert labels([one, other]) == ["old", "new"]


def test_a_run_without_code_or_experiment_lacks_the_value(run, tmp_path, monkeypatch):
    one = run("old", 0, **OLDER)
    shutil.rmtree(one.folder / "code")
    monkeypatch.chdir(tmp_path)
    assert one.value("config", "tied") is None and one.value("settings", "clip_value") == 0
    one.info |= {"settings": None, "config": 3}
    assert one.config == {} and one.keys("config") == [] and one.value("config", "tied") is None


def test_what_came_of_compile_is_shown_not_what_was_asked(tmp_path):
    """auto was decided once, and a comparison's later runs are taken like its first."""
    asked = [("auto", {"compiled": {"mode": "off", "why": "short"}}), ("off", {})]
    runs = [
        read_run(make_run(tmp_path / name, steps=3, settings={"seed": 0, "lr": 0.001, "compile": name}, **more))
        for name, more in asked
    ]
    differing, common = settings_of([[run] for run in runs])
    assert "compile" not in {**differing, **common} and common["compiled"] == "off"
