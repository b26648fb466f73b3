"""What is damaged is noticed when it is read, named, and answered by what is intact."""

import json
import shutil

import numpy as np
import pytest

from lmplay.cli import generator, trainer
from lmplay.errors import UserError
from lmplay.runs import checkpoints
from lmplay.runs.run import read_run
from lmplay.runs.validations import read_validations
from support.small import TINY, make_text, write_plan

MORE = "--run-name run --validation-interval 2 --validation-tokens 300 --save-interval 2 --max-steps 6".split()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """A folder with a plan and a finished run of 6 steps, checkpoints after 4 and 6; and the flags that made it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "one.txt").write_text(make_text(60, 1), encoding="utf-8")
    plan = write_plan(folder, "plain", {"one": {"files": "one.txt"}}, [{"datasets": ["one"]}])
    flags = [*TINY, *MORE, "--training-plan", plan]
    assert trainer.main([*flags, "--out", str(folder / "gpt_out")]) == 0
    return folder, flags


@pytest.fixture
def run(trained, work):
    """A copy of the run in the working folder."""
    shutil.copytree(trained[0] / "gpt_out", work / "gpt_out")
    return work / "gpt_out" / "run"


@pytest.fixture
def again(trained, run, capsys):
    """Types the command again: (status, stderr)."""

    def train(*more):
        capsys.readouterr()
        status = trainer.main([*trained[1], *more])
        return status, capsys.readouterr().err

    return train


def flip(path, at=0.5, bit=3):
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[min(int(at * len(content)), len(content) - 1)] ^= 1 << bit
    path.write_bytes(content)


def results(run):
    """What a run found, times aside."""
    rows = {}
    for name in ("train.csv", "validate.csv"):
        header, *lines = [line.split(",") for line in (run / name).read_text(encoding="utf-8").splitlines()]
        kept = [k for k, column in enumerate(header) if column not in ("seconds", "tokens_per_second", "mfu")]
        rows[name] = [[line[k] for k in kept] for line in lines]
    files = [*run.glob("validate_documents/*"), *run.glob("code/**/*.py"), run / "samples.txt"]
    files += run.glob("checkpoints/step_00000006/*.safetensors")
    return rows, {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_answered_by_the_one_before(run, again, name):
    before = results(run)
    flip(run / "checkpoints" / "step_00000006" / name, 0.9)
    status, said = again()
    assert status == 0 and f"step_00000006/{name}" in said and "step_00000004" in said, said
    assert results(run) == before
    assert (run / "checkpoints" / "damaged_step_00000006").is_dir()
    assert "is finished" in again()[1]


@pytest.mark.parametrize("name", ["train.csv", "validate.csv", "samples.txt", "validate_documents/plan_00000006.npy"])
def test_damaged_statistics_are_answered_by_the_checkpoint_before(run, again, name):
    before = results(run)
    path = next(iter(run.glob(name.replace("plan_", "*_"))))
    flip(path, 0.999)
    status, said = again()
    assert status == 0 and path.name in said and "step_00000004" in said, said
    assert results(run) == before


@pytest.mark.parametrize("name", ["train.csv", "validate_documents/*_00000002.npy"])
def test_what_no_checkpoint_answers_is_one_line(run, again, name):
    path = next(iter(run.glob(name)))
    flip(path, 0.3)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    status, said = again()
    assert status == 2 and path.name in said and "--fresh" in said and "Traceback" not in said
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_the_only_checkpoint(run, again):
    shutil.rmtree(run / "checkpoints" / "step_00000004")
    flip(run / "checkpoints" / "step_00000006" / "model.safetensors")
    status, said = again()
    assert status == 2 and "model.safetensors" in said and "--fresh" in said


def test_a_damaged_copy_of_the_code_is_copied_anew(run, again):
    copy = run / "code" / "gpt2ish" / "model.py"
    good = copy.read_bytes()
    flip(copy, 0.01, 1)  # in the docstring: the hash of the code does not see it
    status, said = again()
    assert status == 0 and "model.py" in said and "copied anew" in said
    assert copy.read_bytes() == good and "copied anew" not in again()[1]


@pytest.mark.parametrize("name", ["checkpoints/step_00000006/model.safetensors", "code/gpt2ish/model.py"])
def test_other_commands_refuse_what_is_damaged(run, name, capsys):
    flip(run / name, 0.9 if name.endswith("s") else 0.01, 1)
    assert generator.main(["--run", str(run), "x", "--max-len", "2", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert name in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("name", ["validate.csv", "validate_documents/*_00000004.npy"])
def test_losses_are_checked_when_they_are_compared(run, name):
    read_validations(read_run(run))
    path = next(iter(run.glob(name)))
    flip(path, 0.97, 0)
    with pytest.raises(UserError, match=path.name):
        read_validations(read_run(run))


def without_checksums(run):
    """Make a run look as one of an earlier version."""
    for path in (run / "run.json", *run.glob("checkpoints/*/state.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        rest = {key: value for key, value in content.items() if key not in ("checksum", "checksums")}
        path.write_text(json.dumps(rest), encoding="utf-8")


def test_a_run_without_checksums_gets_them(run, again, capsys):
    new = {p: p.read_bytes() for p in [run / "run.json", *run.glob("checkpoints/*/state.json")]}
    without_checksums(run)
    assert "is finished" in again()[1]
    without_checksums(run)
    capsys.readouterr()
    assert trainer.main(["--verify", "run"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert all(line.startswith("intact") for line in shown) and sum("the data of" in line for line in shown) == 2
    for path, content in new.items():
        told = json.loads(path.read_text(encoding="utf-8"))
        assert told["checksums"] == json.loads(content)["checksums"]
    assert all(checkpoints.damage_in(path) is None for path in run.glob("checkpoints/*"))
    flip(run / "checkpoints" / "step_00000006" / "optimizer.safetensors")
    assert trainer.main(["--verify", "run"]) == 2
    caught = capsys.readouterr()
    assert "DAMAGED: checkpoints/step_00000006" in caught.out and "optimizer.safetensors" in caught.err


def test_verify_names_a_run_that_is_damaged_and_takes_it_on_demand(run, again, capsys):
    flip(run / "train.csv", 0.3, 0)
    assert trainer.main(["--verify", "run"]) == 2
    assert "DAMAGED: train.csv" in capsys.readouterr().out
    assert again()[0] == 2
    assert trainer.main(["--verify", "run", "--accept"]) == 0
    assert "is finished" in again()[1]


def test_a_name_of_a_key_that_is_damaged_does_not_make_a_file_older(run):
    saved = run / "checkpoints" / "step_00000006"
    content = (saved / "state.json").read_text(encoding="utf-8")
    for name in ('"checksum":', '"checksums":'):
        (saved / "state.json").write_text(content.replace(name, name.replace("sum", "sun")), encoding="utf-8")
        assert "state.json" in checkpoints.damage_in(saved)


def test_losses_that_are_read_are_those_that_were_written(run):
    """The checksums leave what is read as it is."""
    read = read_validations(read_run(run)).trajectory.losses
    files = sorted(run.glob("validate_documents/*.npy"))
    np.testing.assert_array_equal(read, [np.load(path) for path in files])
