"""What people type and have: odd names, missing imports, no network; each is one clean line."""

import errno
import urllib.error

import pytest

from lmplay import contract, registry
from lmplay.cli import trainer
from lmplay.data.store_lock import only_builder
from lmplay.data.tokenizer_base import why_not_fetched
from lmplay.errors import UserError
from lmplay.files import data_folder, typed_path
from lmplay.runs.folder import only_trainer
from lmplay.text import escaped
from support.small import TINY


@pytest.mark.parametrize("where", ["top", "other file", "in a library"])
def test_a_missing_import_is_one_line_with_file_and_line(experiment, work, where, capsys):
    lines = {
        "top": "import nothing_such",
        "other file": "from . import other",
        "in a library": "from json import nothing",
    }
    name = experiment("mine", lines[where])
    file = work / "experiments" / name / "model.py"
    if where == "other file":
        file.with_name("other.py").write_text("\n\nimport nothing_such\n")
    wanted = "other.py:3" if where == "other file" else f"model.py:{len(file.read_text().splitlines()) - 0}"
    assert trainer.main(["--exp", name, "--describe"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert wanted in line and ("nothing_such" in line or "nothing" in line) and "install it" in line


def test_an_error_of_the_experiment_itself_stays_a_traceback(experiment, work):
    name = experiment("mine", "1 / 0")
    with pytest.raises(ZeroDivisionError):
        contract.load(registry.find(name)[0])


def test_an_experiment_in_a_folder_whose_name_is_no_text(tmp_path, monkeypatch):
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    monkeypatch.chdir(folder)
    registry.copy_experiment(registry.find("gpt2ish")[0], "mine")
    assert contract.load(registry.find("mine")[0]).name == "mine"


@pytest.mark.parametrize(
    "error, said",
    [
        (ConnectionError("HTTPSConnectionPool(host='x', port=443): Max retries exceeded"), "no connection"),
        (urllib.error.URLError(ConnectionRefusedError(111, "Connection refused")), "Connection refused"),
        (TimeoutError("HTTPSConnectionPool(host='x'): Read timed out"), "in time"),
        (RuntimeError("no such file"), "no such file"),
    ],
)
def test_why_a_download_failed_is_said_for_people(error, said):
    assert said in why_not_fetched(error) and "Pool" not in why_not_fetched(error)


def test_what_is_said_stays_on_one_line():
    assert escaped("a\nb\x1b[31m\u202e\udcff é \U0001f600") == "a\\nb\\x1b[31m\\u202e\\udcff é \U0001f600"


@pytest.mark.parametrize(
    "argv", [["\x1b[31m"], ["--run-name", "a\nb"], ["--run-name", "\x1b[31m"], ["--set", "a\nb=1"]]
)
def test_odd_words_are_shown_escaped(work, argv, capsys):
    try:
        status = trainer.main([*TINY, "--data", "x.txt", *argv])
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status == 2 and said.count("\n") == 1 and "\x1b" not in said


@pytest.mark.parametrize("where", ["data", "out"])
@pytest.mark.parametrize("number", ["ENOLCK", "EOPNOTSUPP"])
def test_a_disk_without_locks_is_named_with_the_way_out(work, monkeypatch, number, where):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(getattr(errno, number), "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=f"{work}.*without locks.*{'LMPLAY_DATA' if where == 'data' else '--out'}"):
        if where == "out":
            only_trainer(work / "gpt_out" / "run")
        with only_builder(work / "store"):
            pass


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_paths_that_no_system_has(text):
    with pytest.raises(UserError, match="no path has"):
        typed_path(text)


def test_without_a_home_prepared_data_have_no_folder(monkeypatch):
    monkeypatch.delenv("LMPLAY_DATA")
    monkeypatch.setenv("HOME", "~")
    with pytest.raises(UserError, match="set LMPLAY_DATA"):
        data_folder()


def test_a_home_that_is_unknown_in_the_list_of_experiments(monkeypatch, work):
    monkeypatch.setenv("LMPLAY_EXPERIMENTS", "~nobody_such:\U0001f600")
    assert registry.find("gpt2ish")
