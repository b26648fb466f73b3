"""A disk that is full when something else than a training writes: one line, status 2, and what was there is kept."""

import errno
import json
from pathlib import Path

import pytest

from support.fault_cases import Cases
from support.fault_server import Fault, Job
from support.small import TINY, make_text
from support.thorough import first

pytestmark = pytest.mark.slow
CPU = ["--device", "cpu"]
COMPARE = ["--exp", "llama2", *TINY[2:], "--training-plan", "plan.json", "--max-steps", "4", "--seeds", "1"]
WRITERS = {
    "attention": ("generator", ["--run", "run", *CPU, "--save-attention", "there.npz", "a"]),
    "export": ("compare", [*COMPARE, "--no-report", "--export", "there.zip", "--json", "there.json"]),
    "report": ("plotstats", ["run", "--report", "--csv", "--split", "validate", "--to", "there"]),
    "prune": ("trainer", ["--prune", "run"]),
    "score": ("generator", ["--run", "run", *CPU, "--score", "text.txt", "-o", "there"]),
    "figures": ("plotstats", ["run", "--each-run", "--split", "validate", "--to", "there"]),
    "verdict": ("compare", COMPARE),
    "hf": ("cleanmodel", ["run", "-o", "there", "--format", "hf", "--text", "text.txt", *CPU]),
    "gguf": ("cleanmodel", ["run", "-o", "there.gguf", "--format", "gguf", "--text", "text.txt", *CPU]),
    "tokenizer": ("tokenizer", ["train", "--vocab-size", "270", "-o", "there", "text.txt"]),
    "copy": ("trainer", ["--exp", "gpt2ish", "--copy", "there"]),
    "fresh": ("trainer", [*TINY, "--training-plan", "plan.json", "--run-name", "run", "--max-steps", "2", "--fresh"]),
    "verify": ("trainer", ["--verify", "run"]),
}
GROWING = ("written.txt", "verdicts.jsonl", ".csv")  # what a command may have added a line to, or drawn anew


@pytest.fixture(scope="module")
def template(cases: Cases):
    """A folder with a finished run and the baseline and the candidate of a comparison."""
    root = cases.new()
    assert cases.train(root).status == 0
    (root / "text.txt").write_text(make_text(20, 1), encoding="utf-8")
    (root / "plan.json").write_bytes((cases.folder / "plan.json").read_bytes())
    (root / "one.txt").write_bytes((cases.folder / "one.txt").read_bytes())
    done = cases.server.run(job(root, "compare", [*COMPARE, "--no-report"]))
    assert done.status == 0, done.err
    return root


def job(root: Path, command: str, flags: list[str], fault: Fault | None = None) -> Job:
    return Job(command, flags, str(root), fault, {"LMPLAY_DATA": str(root / "data"), "LMPLAY_OUT": "gpt_out"})


def files_in(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in found
        if ".locks" not in path.parts and path.suffix != ".pyc"
    }


def lost(before: dict[str, bytes], after: dict[str, bytes], aside: bool) -> list[str]:
    """Return the files that are gone or were cut off. aside: a run may lie in .replaced/ then."""
    wrong = []
    for name, content in before.items():
        now = after.get(name)
        moved = after.get(name.replace("gpt_out/", "gpt_out/.replaced/", 1)) if aside else None
        if content in (now, moved):
            continue
        if now is not None and name.endswith("run.json"):
            json.loads(now)  # it may say more
        elif now is None or not (name.endswith(GROWING) and now.startswith(content)):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("name", first(1, list(WRITERS)))
def test_a_full_disk(cases: Cases, template, name, full, tally):
    command, flags = WRITERS[name]
    root = cases.new(template)
    whole = cases.server.run(job(root, command, flags, Fault(str(root))))
    if "pip install" in whole.err:
        pytest.skip(whole.err)
    assert whole.status == 0 and whole.count > 0, whole.err
    points = range(1, whole.count + 1) if full else (2 * whole.count // 3,)
    for at in points:
        if tally.passes_over():
            continue
        root = cases.new(template)
        before = files_in(root)
        fault = Fault(str(root), at=at, error=errno.ENOSPC, lasting=True)
        ended = cases.server.run(job(root, command, flags, fault))
        after = files_in(root)
        wrong = [] if ended.is_one_line or ended.status == 0 else [f"status {ended.status}: {ended.err[-1500:]}"]
        wrong += [f"{one} is lost" for one in lost(before, after, aside=name == "fresh")]
        again = cases.server.run(job(root, command, flags))
        if again.status != 0 and "there is" not in again.err:  # what a first command has written whole
            wrong.append(f"then status {again.status}: {again.err[-1500:]}")
        left = [one for one in files_in(root) if one.endswith(".tmp") or ".partial" in one]
        tally.add(fault, wrong + [f"{one} is left" for one in left])
        cases.done(root)
