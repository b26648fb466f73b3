"""Kills, power losses, disks that fail, bits that turn, several processes at once: the same bits, or one line."""

import errno
import random
import shutil
import signal
from pathlib import Path

import pytest

from lmplay.errors import Locked
from support.fault_cases import Cases
from support.fault_server import KILLED, POWER_LOST, READS, WRITES, Fault, Job
from support.results import flip, results

pytestmark = pytest.mark.slow
SEED = 7


def points(n: int, wanted: int, seed: int) -> list[int]:
    """`wanted` of the operations 1 to n, at random and spread over all of them; all if there are fewer."""
    draw = random.Random(seed)
    if wanted >= n:
        return list(range(1, n + 1))
    return [int(n * (k + draw.random()) / wanted) + 1 for k in range(wanted)]


def test_kills(cases: Cases, full, tally):
    """Half of them before an operation on files, half after a random time of the processor."""
    draw = random.Random(SEED)
    for _ in range(200 if full else 4):
        seed = draw.random()
        if tally.passes_over():
            continue
        kill(cases, random.Random(seed), tally)


def kill(cases: Cases, draw: random.Random, tally) -> None:
    """Kill a run at random, then let it go on."""
    while True:
        root = cases.new()
        fault = Fault(str(root), at=draw.randint(1, cases.n_writes), kill=True)
        if draw.random() < 0.5:
            fault = Fault(str(root), cpu_seconds=draw.uniform(0.01, 0.4))
        if cases.train(root, fault).status in (KILLED, -signal.SIGPROF):  # else it ended before its time
            if draw.random() < 0.25:  # the one that goes on is killed, too
                cases.train(root, Fault(str(root), at=draw.randint(1, cases.n_writes // 2), kill=True))
            tally.add(fault, cases.wrong(root, cases.train(root)))
            cases.done(root)
            return
        cases.done(root)


def test_power_losses(cases: Cases, full, tally):
    for number, at in enumerate(points(cases.n_writes, 200 if full else 4, SEED)):
        if tally.passes_over():
            continue
        root, after = cases.new(), cases.folder / f"after_{at}"
        fault = Fault(str(root), at=at, lose_power=str(after), seed=number)
        ended = cases.train(root, fault)
        assert ended.status == POWER_LOST, ended.err
        tally.add(fault, cases.wrong(after, cases.train(after)))
        cases.done(root)
        cases.done(after)


@pytest.mark.parametrize("unsynced", ["/code/", "model.safetensors", "state.json", "train.csv", "/stores", "run.json"])
def test_what_is_not_synced_is_lost(cases: Cases, unsynced, full):
    """A sync that is left out is found: where paths with `unsynced` don't count as synced, some of them are lost."""
    if not full and unsynced != "/code/":
        pytest.skip("LMPLAY_FAULTS=full tries all")
    root = cases.new()
    for left_out in (None, unsynced):
        after = cases.folder / "after"
        fault = Fault(str(root), at=cases.n_writes, lose_power=str(after), seed=1, unsynced=left_out)
        assert cases.train(root, fault).status == POWER_LOST
        paths = [path for path in root.rglob("*") if path.is_file() and unsynced in f"/{path.relative_to(root)}"]
        there = [(path, after / path.relative_to(root)) for path in paths if ".tmp" not in str(path)]
        lost = [path for path, other in there if not other.exists() or other.read_bytes() != path.read_bytes()]
        assert bool(lost) == (left_out is not None), lost
        shutil.rmtree(after)
        shutil.rmtree(root)
        root.mkdir()


KINDS = {"ENOSPC": WRITES, "EIO": WRITES, "EROFS": WRITES, "EIO of reads": READS, "EROFS that lasts": WRITES}


@pytest.mark.parametrize("kind", KINDS)
def test_disk_errors(cases: Cases, kind, full, tally):
    """Each operation fails once (or all from one on): one line and status 2, or as if nothing had been."""
    n = cases.n_reads if KINDS[kind] == READS else cases.n_writes
    wanted = (n if "lasts" not in kind else 40) if full else 2
    number = getattr(errno, kind.split()[0])
    for at in points(n, wanted, SEED + len(kind)):
        if tally.passes_over():
            continue
        root = cases.new()
        fault = Fault(str(root), at=at, error=number, kinds=KINDS[kind], lasting="lasts" in kind)
        ended = cases.train(root, fault)
        wrong = [] if ended.is_one_line or ended.status == 0 else [f"status {ended.status}: {ended.err[-1500:]}"]
        if ended.status == 0:
            wrong += cases.wrong(root, ended)
        wrong += [f"then {line}" for line in cases.wrong(root, cases.train(root))]
        tally.add(fault, wrong)
        cases.done(root)


MORE = ("--max-steps", "6")


def generate(cases: Cases, root: Path):
    flags = ["--run", str(cases.run(root)), "ab", "--seed", "1", "--max-len", "4", "--device", "cpu"]
    return cases.server.run(Job("generator", flags, str(cases.folder), None, {"LMPLAY_DATA": str(root / "data")}))


def counts(path: Path) -> bool:
    """Whether a file is more than a lock, what Python makes of a file, and answers that are asked again."""
    return path.is_file() and path.stat().st_size > 0 and path.suffix != ".pyc" and "checks" not in path.parts


@pytest.mark.thorough
def test_flipped_bits(cases: Cases, full, tally):
    """A bit turns in a run or its data. In two of three cases the run goes on, in the third it writes text."""
    template, whole = cases.new(), cases.new()
    assert cases.train(template).status == cases.train(whole, None, *MORE).status == 0
    text, expected = generate(cases, template), results(cases.run(whole))
    assert text.status == 0, text.err
    files = [path.relative_to(template) for path in sorted(template.rglob("*")) if counts(path)]
    draw = random.Random(5)
    for number in range(1000 if full else 12):
        name = files[number % len(files)] if full else draw.choice(files)
        bit = draw.randrange(8 * (template / name).stat().st_size)
        if tally.passes_over():
            continue
        root = cases.new(template)
        flip(root / name, bit)
        if number // len(files) % 3 == 2:
            ended = generate(cases, root)
            wrong = [] if ended.status == 0 and ended.out == text.out else [ended.out]
        else:
            ended = cases.train(root, None, *MORE)
            if ended.is_one_line and "type the command again" in ended.err:
                ended = cases.train(root, None, *MORE)
            wrong = cases.wrong(root, ended, expected=expected)
        tally.add(f"bit {bit} of {name}", [] if ended.is_one_line else wrong)
        cases.done(root)


@pytest.mark.parametrize("n", [2, 3])
def test_one_run_at_once(cases: Cases, n, full, tally):
    """One trains; the others say that it is taken, or find it finished."""
    for _ in range(10 if full else 1):
        root = cases.new()
        ended = [cases.server.wait(one) for one in [cases.server.start(cases.job(root)) for _ in range(n)]]
        for one in ended:
            assert one.status == 0 or (one.status == Locked.status and "another lmp_trainer" in one.err), one.err
        assert any(one.status == 0 for one in ended)
        tally.add(f"{n} of one run", cases.wrong(root, cases.train(root)))
        cases.done(root)


@pytest.mark.parametrize("n", [2, 3])
def test_one_store_at_once(cases: Cases, n, full, tally):
    """Runs of other names that prepare the same data: one prepares it, and all train."""
    for _ in range(10 if full else 1):
        root = cases.new()
        started = [cases.server.start(cases.job(root, name=f"run{number}")) for number in range(n)]
        # all have ended before anything is looked at: what one is writing just now is not left behind
        for number, ended in enumerate([cases.server.wait(one) for one in started]):
            tally.add(f"{n} of one store", cases.wrong(root, ended, f"run{number}"))
        cases.done(root)


def test_one_comparison_beside_another(cases: Cases, full):
    """Two comparisons at once that share all of their runs: each ends with a verdict, or says what is taken."""
    if not full:
        pytest.skip("LMPLAY_FAULTS=full runs it")
    root = cases.new()
    job = cases.job(root)
    flags = ["--exp", "llama2", "--seeds", "1", "--out", str(root / "gpt_out"), "--no-report", "--device", "cpu"]
    flags += ["--training-plan", str(cases.folder / "plan.json"), "--max-steps", "4", "--context-len", "16"]
    flags += "--set n_layer=1 --set n_embd=16 --set n_head=2 --batch-size 4".split()
    job = Job("compare", flags, job.folder, None, job.env)
    for ended in [cases.server.wait(one) for one in [cases.server.start(job), cases.server.start(job)]]:
        assert ended.status in (0, Locked.status) and "Traceback" not in ended.err, ended.err
    again = cases.server.run(job)
    assert again.status == 0, again.err
    assert not list(root.rglob(".*.tmp"))
