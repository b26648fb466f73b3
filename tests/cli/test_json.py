"""What a command says to a program: one object, whatever happens, and nothing stale."""

import json

import pytest

from lmplay.cli import plotstats
from lmplay.cli.json_output import told
from lmplay.errors import Diverged, UserError
from lmplay.report.as_json import plain
from support.making_runs import fall, make_run


def content(path):
    def refused(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refused)


def test_plain_values_hold_no_nan_and_no_path(tmp_path):
    inner = {"a": float("nan"), "b": (tmp_path, float("inf"), 1.5)}
    assert plain({"x": inner, 1: None}) == {"x": {"a": None, "b": [str(tmp_path), None, 1.5]}, "1": None}


def test_the_file_is_never_stale(tmp_path):
    file = tmp_path / "out.json"
    with told("lmp_x", str(file)) as to_program:
        assert content(file)["state"] == "running" and content(file)["status"] is None
        to_program.content = {"answer": 1}
    assert content(file)["state"] == "done" and content(file)["answer"] == 1
    with pytest.raises(Diverged), told("lmp_x", str(file)):
        raise Diverged("not finite")
    assert content(file)["status"] == 4 and content(file)["error"] == "not finite" and "answer" not in content(file)
    with pytest.raises(KeyboardInterrupt), told("lmp_x", str(file)):
        raise KeyboardInterrupt
    assert content(file)["state"] == "stopped" and content(file)["status"] == 130
    with pytest.raises(UserError, match="--json .* can't be written"), told("lmp_x", str(tmp_path / "no" / "x.json")):
        raise AssertionError("nothing is done before it is known that the file can be written")


def test_a_file_of_somebody_else_is_kept(tmp_path, capsys):
    file = tmp_path / "out.json"
    file.write_text("mine")
    with told("lmp_x", str(file)):
        pass
    assert content(file)["state"] == "done" and (tmp_path / "out.kept.json").read_text() == "mine"


def test_plotstats_on_standard_output(work, capsys):
    make_run(work / "gpt_out" / "base")
    make_run(work / "gpt_out" / "idea", experiment="idea", loss=lambda t: fall(t) - 0.125)
    assert plotstats.main(["--json", "-"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    (panel,) = found["panels"]
    assert panel["baseline"].startswith("gpt2ish:tiny") and "wrote " in err
    losses = {group["label"]: group["figures"]["validate_loss"] for group in panel["groups"]}
    assert losses["idea:tiny"] == pytest.approx(losses["gpt2ish:tiny"] - 0.125)
    assert found["command"] == "lmp_plotstats" and found["status"] == 0 and len(found["files"]) == 4
    assert [run["folder"] for group in panel["groups"] for run in group["runs"]] == ["gpt_out/base", "gpt_out/idea"]


def test_the_folder_of_all_runs(work, monkeypatch, capsys):
    monkeypatch.setenv("LMPLAY_OUT", "elsewhere")
    make_run(work / "elsewhere" / "base")
    assert plotstats.main([]) == 0
    assert (work / "elsewhere" / "log_loss.png").is_file()
