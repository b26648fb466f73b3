"""Files of a run that somebody else wrote, or damaged: one line, no reading without end, nothing written elsewhere."""

import json
import os

import numpy as np
import pytest

from lmplay.cli import trainer
from lmplay.code_diff import diff
from lmplay.errors import UserError
from lmplay.files import read_json
from lmplay.runs import checkpoints, trust
from lmplay.runs.evaluations import keep_evaluations, line_of, read_evaluations
from lmplay.runs.folder import check_links
from lmplay.runs.run import read_run
from lmplay.runs.tables import read_header, read_table
from lmplay.runs.validations import read_validations
from support.making_runs import make_run
from support.small import EXPERIMENTS, TINY

WRONG = [None, True, -1, 2.5, float("nan"), 10**200, "text", [], [[1]], {"a": 1}]


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "5000 digits"),
        ('{"a": ', "line 1, column 7"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_what_is_no_json_is_said(tmp_path, text, said):
    path = tmp_path / "a.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=said):
        read_json(path)


def test_pipes_devices_and_files_without_end_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="pipe or a device"):
            read_json(path)
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="larger than"):
        read_json(tmp_path / "large.json")
    run = make_run(tmp_path / "run", steps=3)
    for name in ("train.csv", "samples.txt"):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    assert read_header(run / "train.csv") == [] and not len(read_table(run / "train.csv")[0])


def test_every_value_of_run_json_may_be_wrong_and_then_counts_as_missing(tmp_path):
    folder = make_run(
        tmp_path / "a",
        steps=3,
        progress={"step": 3, "tokens": 5, "phases": [{"name": "x", "n_updates": 3}], "final": {"loss": 1.0}},
    )
    info = json.loads((folder / "run.json").read_text())
    kinds = {
        ("settings", "seed"): int,
        ("settings",): dict,
        ("progress",): dict,
        ("progress", "step"): int,
        ("progress", "phases"): list,
        ("data", "datasets"): dict,
        ("tokenizer", "fingerprint"): str,
        ("config",): dict,
    }
    for path, kind in kinds.items():
        for wrong in WRONG:
            changed = json.loads(json.dumps(info))
            parent = changed
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = wrong
            (folder / "run.json").write_text(json.dumps(changed))
            run = read_run(folder)
            value = run.get(*path)
            good = isinstance(value, kind) and not isinstance(value, bool)
            assert value is None or good, (path, wrong)
            assert wrong is None or value is not None or run.notes
    changed = json.loads(json.dumps(info))
    changed["progress"]["phases"] = [{"name": "x", "n_updates": "many"}]
    (folder / "run.json").write_text(json.dumps(changed))
    assert read_run(folder).get("progress", "phases") is None


@pytest.mark.parametrize("key", ["step", "files", "keep", "position", "final"])
def test_a_state_that_is_not_one_is_damaged(tmp_path, key):
    state = {"step": 1, "phase": 0, "position": 4, "samples": 4, "tokens": 9, "bytes": 9.5, "seconds": 0.1, "final": {}}
    state |= {
        "validation_loss": None,
        "scaler": {},
        "files": {"train.csv": 5},
        "keep": False,
        "of_a_newer_version": [1],
    }
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert checkpoints.read_state(tmp_path, whole=True) == state
    for wrong in ("x", [1], -1, 1.5):
        (tmp_path / "state.json").write_text(json.dumps({**state, key: wrong}))
        with pytest.raises(UserError, match=f"'{key}'.*delete the folder"):
            checkpoints.read_state(tmp_path)
    del state[key]
    (tmp_path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=key):
        checkpoints.read_state(tmp_path, whole=True)


@pytest.fixture
def judged(tmp_path):
    """A run with losses of two documents at each validation."""
    folder = make_run(tmp_path / "run", steps=10, every=5, loss=lambda tokens: 0 * tokens + 0.9, config={"max_len": 8})
    losses = folder / "validate_documents"
    losses.mkdir()
    (losses / "documents_main.csv").write_text("dataset,document,tokens,bytes,scored_tokens\na,0,4,4,4\na,1,6,6,6\n")
    for step in (5, 10):
        np.save(losses / f"main_{step:08d}.npy", np.array([4.0, 6.0]))
    assert read_validations(read_run(folder)).trajectory.losses.tolist() == [[4, 6], [4, 6]]
    return folder


def _header(shape):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': %s, }" % str(shape).encode()
    header = header.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(16)


@pytest.mark.parametrize(
    "content",
    [
        _header((2**50,)),
        _header((2**62, 2**62)),
        _header((1,)),
        _header(()),
        b"",
        b"\x80\x04.",
        b"\x93NUMPY\x01\x00\xff\xff{",
    ],
)
def test_losses_of_another_shape_are_refused_before_memory_is_taken(judged, content):
    path = judged / "validate_documents" / "main_00000010.npy"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"main_00000010.npy can't be read"):
        read_validations(read_run(judged))


def test_losses_that_are_objects_are_not_unpickled(judged):
    np.save(judged / "validate_documents" / "main_00000010.npy", np.array([{}, {}]), allow_pickle=True)
    with pytest.raises(UserError, match="can't be read"):
        read_validations(read_run(judged))


@pytest.mark.parametrize("name", ["plan_step", "samples", "loss", "validation_tokens"])
def test_validations_without_a_column_are_refused(judged, name):
    path = judged / "validate.csv"
    path.write_text(path.read_text().replace(name, "other", 1))
    with pytest.raises(UserError, match=r"validate.csv"):
        read_validations(read_run(judged))


@pytest.mark.parametrize(
    "text",
    ["dataset,document\na,0\na,1\n", "dataset,document,tokens\na,0,-1\na,1,nan\n", "dataset,document,tokens\n", "\0"],
)
def test_a_table_of_documents_that_is_none_is_refused(judged, text):
    (judged / "validate_documents" / "documents_main.csv").write_text(text)
    with pytest.raises(UserError, match=r"documents_main.csv can't be read"):
        read_validations(read_run(judged))


@pytest.mark.parametrize("name", ["samples.txt", "train.csv", "validate_documents"])
def test_links_in_a_run_are_not_written_through(work, plans, name, capsys):
    flags = [*TINY, "--training-plan", plans["plain"], "--run-name", "r", "--validation-interval", "2"]
    flags += ["--lr-schedule", "constant"]
    assert trainer.main([*flags, "--max-steps", "2"]) == 0
    theirs, ours = work / "mine", work / "gpt_out" / "r" / name
    ours.rename(theirs)
    ours.symlink_to(theirs)
    before = theirs.read_bytes() if theirs.is_file() else sorted(os.listdir(theirs))
    assert trainer.main([*flags, "--max-steps", "4"]) == 2
    assert f"{name} is a link" in capsys.readouterr().err
    assert before == (theirs.read_bytes() if theirs.is_file() else sorted(os.listdir(theirs)))


def test_a_pipe_in_a_run_is_not_written_to(tmp_path):
    make_run(tmp_path / "r", steps=3)
    os.mkfifo(tmp_path / "r" / "samples.txt")
    with pytest.raises(UserError, match="samples.txt is a pipe"):
        check_links(tmp_path / "r")


def test_a_link_to_checkpoints_of_the_same_owner_is_followed(work, plans):
    flags = [*TINY, "--training-plan", plans["plain"], "--run-name", "r", "--lr-schedule", "constant"]
    assert trainer.main([*flags, "--max-steps", "2"]) == 0
    saved = work / "gpt_out" / "r" / "checkpoints"
    saved.rename(work / "large disk")
    saved.symlink_to(work / "large disk")
    assert trainer.main([*flags, "--max-steps", "4"]) == 0
    assert saved.is_symlink() and (work / "large disk" / "step_00000004").is_dir()
    if os.geteuid() == 0:
        os.chown(work / "large disk", 12345, -1)
        assert trainer.main([*flags, "--max-steps", "6"]) == 2


@pytest.mark.parametrize("shape, end", [([2**40], 2**42), ([2**62, 2**62], 16), ([4], 2**60), ([-4], 16), ([4], 16)])
def test_weights_of_a_size_that_the_file_only_claims(tmp_path, shape, end):
    import torch

    header = json.dumps({"weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    model = torch.nn.Linear(4, 1, bias=False)
    with pytest.raises(UserError, match=r"can't be read|don't fit"):
        checkpoints.load_weights(tmp_path, model)
    (tmp_path / "model.safetensors").write_bytes((2**60).to_bytes(8, "little"))
    with pytest.raises(UserError, match="can't be read"):
        checkpoints.load_weights(tmp_path, model)


def test_code_without_an_end_is_not_read(tmp_path, monkeypatch):
    monkeypatch.delenv(trust.ENVIRONMENT, raising=False)
    folder = make_run(tmp_path / "run", steps=3)
    code = folder / "code" / "gpt2ish"
    code.mkdir(parents=True, exist_ok=True)
    (code / "model.py").write_bytes((EXPERIMENTS / "gpt2ish" / "model.py").read_bytes())
    entry = read_run(folder).code
    before = entry.code_hash
    os.mkfifo(code / "pipe.py")
    (code / "zero.py").symlink_to("/dev/zero")
    assert entry.code_hash == before and diff(entry, entry) == ""
    with pytest.raises(UserError, match="look at it"):
        trust.check_trusted(folder, entry)
    with open(code / "large.py", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(OSError, match="large"):
        read_run(folder).code.code_hash  # noqa: B018


@pytest.mark.parametrize("wrong", [*WRONG, {"results": 5}, {"format": 1, "results": [{"task": 1, "metrics": {}}]}])
def test_results_of_another_shape_are_kept_aside(tmp_path, wrong, capsys):
    run = read_run(make_run(tmp_path / "run", steps=3))
    file, result = run.folder / "evaluations.json", {"task": "a", "metrics": {"acc": 0.5}, "documents": 5}
    file.write_text(json.dumps(wrong))
    assert read_evaluations(run) == []
    keep_evaluations(run, [result])
    keep_evaluations(run, [result | {"task": "b"}])
    assert [line_of(one) for one in read_evaluations(run)] == [f"{name}: acc 0.5000 (5 documents)" for name in "ab"]
    assert json.loads((run.folder / "evaluations.kept.json").read_text()) == wrong or wrong != wrong
    assert capsys.readouterr().err.count("kept as") == 1
