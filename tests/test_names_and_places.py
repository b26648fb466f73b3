"""Names and places as people have them: brackets, a home, long names, files in the way, hidden files, odd phases."""

from pathlib import Path

import pytest

from lmplay import registry
from lmplay.data.local_files import data_files
from lmplay.data.plans import load_plan, plan_from_files
from lmplay.errors import UserError
from lmplay.files import data_folder, read_text, usable_folder
from lmplay.runs.folder import find_run, find_runs
from lmplay.runs.settings import Settings
from lmplay.runs.tables import read_table
from lmplay.train.run_name import LONGEST_NAME, file_name
from support.making_runs import make_run
from support.small import TINY, write_plan


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty working folder, with a home in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path


def found(pattern, folder):
    spec = plan_from_files([pattern]).datasets.popitem()[1]
    return [path.resolve().relative_to(Path.cwd()).as_posix() for path in data_files(spec, spec.files, folder)]


@pytest.mark.parametrize("name", ["run[1]", "a*b", "what?", "[!x]", "[[]"])
def test_a_folder_whose_name_looks_like_a_pattern(empty, name):
    for folder in (name, "run1", "axb", "whatx", "y", "["):
        (empty / folder / "books").mkdir(parents=True, exist_ok=True)
        (empty / folder / "books" / "a.txt").write_text("text", encoding="utf-8")
    wanted = [f"{name}/books/a.txt"]
    assert found("books/*.txt", empty / name) == wanted
    assert found(f"{name}/books/*.txt", empty) == wanted
    assert found(f"{empty}/{name}/*/a.txt", empty / "run1") == wanted
    assert found("run[12]/books/*.txt", empty) == ["run1/books/a.txt"]  # a pattern still


def test_home_is_expanded_wherever_a_path_is_typed(empty):
    home = empty / "home"
    (home / "a.txt").write_text("text", encoding="utf-8")
    write_plan(home, "mine", {"d": {"files": "a.txt"}}, [{"datasets": ["d"]}])
    make_run(home / "runs" / "r")
    assert found("~/*.txt", empty) == ["home/a.txt"]
    assert load_plan("~/mine.json").name == "mine"
    assert read_text("~/a.txt") == "text"
    assert Settings(out="~/runs").out_folder == home / "runs"
    assert find_run("~/runs/r", empty).folder == home / "runs" / "r"
    assert [run.name for run in find_runs(["~/runs"], empty)[0]] == ["r"]
    for unknown in ("~nobody_of_this_name/a.txt", "~nobody_of_this_name/plan.json"):
        with pytest.raises(UserError):
            found(unknown, empty)
        with pytest.raises(UserError):
            load_plan(unknown)


def test_files_in_the_place_of_folders(empty, monkeypatch):
    (empty / "file").write_text("", encoding="utf-8")
    for path in ("file", "file/below", "file/far/below"):
        with pytest.raises(UserError, match=r"--out .*file is no folder"):
            Settings(out=path).out_folder  # noqa: B018  # it raises
        monkeypatch.setenv("LMPLAY_DATA", path)
        with pytest.raises(UserError, match=r"LMPLAY_DATA .*file is no folder"):
            data_folder()
    assert usable_folder(Path("new/below"), "--out") == Path("new/below")


def test_the_trainer_says_that_a_file_is_in_the_way(work, trainer):
    (work / "file").write_text("", encoding="utf-8")
    refused = trainer(*TINY, "--training-plan", "quick", "--out", "file/below", "--max-steps", "1")
    assert refused.status == 2 and "--out" in refused.complaint


def test_long_names(empty):
    for name in ("r" * 241, "ü" * 121):
        with pytest.raises(UserError, match="--run-name is too long"):
            Settings(run_name=name)
    assert Settings(run_name="r" * 240).run_name
    with pytest.raises(UserError, match="too long"):
        registry.copy_experiment(registry.find("gpt2ish")[0], "x" * 300)
    assert file_name(["a" * LONGEST_NAME]) == "a" * LONGEST_NAME
    short = {file_name(["語" * 90, str(number)]) for number in range(3)}
    assert len(short) == 3 and all(len(name.encode()) <= 240 for name in short)


@pytest.mark.parametrize("left", [".ipynb_checkpoints/model-checkpoint.py", ".model.py", "parts/.cache/x.py"])
def test_hidden_files_are_no_code(empty, left):
    copy = registry.copy_experiment(registry.find("gpt2ish")[0], "mine")
    entry = registry.read_entry(copy)
    before = entry.code_hash
    (copy / left).parent.mkdir(parents=True, exist_ok=True)
    (copy / left).write_text("import nothing", encoding="utf-8")
    assert entry.code_hash == before
    again = registry.copy_experiment(registry.find("mine")[0], "again")
    assert not (again / left).exists()


@pytest.mark.parametrize("name", ["NA", "null", "nan", "None", "N/A", "", "1"])
@pytest.mark.parametrize("loss", ["2.5", ""])
def test_a_phase_of_any_name_is_read_back(tmp_path, name, loss):
    (tmp_path / "train.csv").write_text(f"plan_step,step,loss\n{name},1,{loss}\n{name},2,2.5\n", encoding="utf-8")
    table, _ = read_table(tmp_path / "train.csv")
    assert list(table["plan_step"].astype(str)) == [name, name] and not table["plan_step"].isna().any()
    assert list(table["step"]) == [1, 2] and table["loss"].isna().sum() == (not loss)
