"""lmp_compare, with real runs of a moment: what is trained, what is reused, and what it says."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmplay.cli import compare as command
from lmplay.report.comparison import Arm, compare_arms
from lmplay.runs import names
from lmplay.runs.run import read_run
from support.results import unseal, unsealed
from support.small import TINY
from support.thorough import first

pytestmark = pytest.mark.process  # runs are trained in processes of their own

SIDES = ["--exp", "llama2:tiny", "--baseline", "gpt2ish:tiny"]
SMALL = [*TINY[2:], "--max-steps", "24", "--validation-tokens", "3000"]


@pytest.fixture(scope="module")
def flags(plans):
    return ["--training-plan", plans["plain"], *SMALL]


@pytest.fixture
def compare(flags, work, monkeypatch, capfd):
    """Runs `lmp_compare` in the working folder: (exit status, stdout, stderr)."""

    def run(*words, settings=flags):
        status = command.main([*settings, *map(str, words)])
        return status, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def trained(flags, tmp_path_factory):
    """A folder with two seeds of both sides, and what lmp_compare said about them. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "gpt_out").mkdir()
    (folder / "gpt_out" / "README.md").write_text("no run")
    done = subprocess.run(
        [sys.executable, "-m", "lmplay.cli.compare", *SIDES, "--seeds", "2", *flags],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "gpt_out", done


@pytest.fixture
def there(trained, work):
    """The two seeds of both sides, as if they had been trained in the working folder."""
    shutil.copytree(trained[0], work / "gpt_out")
    return work / "gpt_out"


def runs_in(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob("*/run.json"))


def state_of(out: Path) -> dict[str, tuple]:
    """Every file of every run, and when it was written."""
    return {
        str(path.relative_to(out)): (path.stat().st_mtime_ns, path.stat().st_ino)
        for run in runs_in(out)
        for path in run.rglob("*")
        if path.is_file()
    }


def last_loss(run: Path) -> float:
    with open(run / "validate.csv", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["loss"])


def row_of(text: str, label: str) -> list[str]:
    return next(re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line.startswith(f"{label} "))


def trained_now(err: str) -> list[str]:
    return re.findall(r"^run \d+ of .*?: (\S+), seed (\d+)", err, re.M)


def test_figures_are_those_of_the_runs(trained):
    out, done = trained
    assert sorted(trained_now(done.stderr)) == [
        (f"{name}:tiny", seed) for name in ("gpt2ish", "llama2") for seed in "01"
    ]
    # seed by seed, both sides
    assert [seed for _, seed in trained_now(done.stderr)] == ["0", "0", "1", "1"]
    runs = {name: [next(out.glob(f"{name}-*_s{seed}")) for seed in (0, 1)] for name in ("gpt2ish", "llama2")}
    losses = {name: [last_loss(run) for run in of] for name, of in runs.items()}
    differences = [ours - theirs for ours, theirs in zip(losses["llama2"], losses["gpt2ish"])]
    row, base = row_of(done.stdout, "llama2:tiny"), row_of(done.stdout, "gpt2ish:tiny")
    assert base[5] == f"{np.mean(losses['gpt2ish']):.4f}" and base[-1] == "baseline"
    assert row[5] == f"{np.mean(losses['llama2']):.4f}" and row[6] == f"{np.mean(differences):+.4f}"
    low, high = map(float, row[7].split(" to "))
    assert low < np.mean(differences) < high and low <= min(differences) and max(differences) <= high
    meta = {name: json.loads((of[0] / "run.json").read_text()) for name, of in runs.items()}
    peaks = [json.loads((run / "run.json").read_text())["progress"]["peak_memory_bytes"] for run in runs["llama2"]]
    assert peaks[0] > 2**20 and row[4] == f"{max(peaks) / 2**20:,.0f} MiB"
    assert row[1] == f"{meta['llama2']['parameters']['total'] / 1000:.4g}k"
    assert "2.6% more parameters" in done.stdout
    for axis in ("flops", "seconds"):
        assert f"at equal {axis}: " in done.stdout
    # several validations a run, so that a point on the way can be found; data and order are the same on both sides
    for name in runs:
        assert len((runs[name][0] / "validate.csv").read_text().splitlines()) >= 5
    assert meta["gpt2ish"]["data"]["hash"] == meta["llama2"]["data"]["hash"]
    assert meta["gpt2ish"]["settings"]["same_init"] is True
    # the run says which command makes it again
    assert meta["llama2"]["command"][:3] == ["lmp_trainer", "--exp", "llama2:tiny"]


def test_nothing_is_trained_twice(compare, there, trained):
    before = state_of(there)
    status, out, err = compare("--exp", "llama2:tiny", "--seeds", 2)  # the baseline: gpt2ish, of the same variant
    assert status == 0 and out == trained[1].stdout and trained_now(err) == []
    assert state_of(there) == before
    status, out, err = compare(*SIDES, "--seeds", 3)
    assert status == 0 and trained_now(err) == [("gpt2ish:tiny", "2"), ("llama2:tiny", "2")]
    after = state_of(there)
    assert {name: after[name] for name in before} == before
    assert len(runs_in(there)) == 6 and "(3 seeds," in out
    # one seed of another setting: the spread between seeds is known from these runs
    status, out, err = compare(*SIDES, "--seeds", 1, "--lr", "2e-3")
    assert status == 0 and len(trained_now(err)) == 2
    assert "measured on earlier runs in gpt_out (6 runs" in out and "over seeds and documents (1 seed," in out


@pytest.mark.process
def test_answers_without_torch(flags, there):
    """A comparison whose runs are all there loads neither torch nor any experiment."""
    code = (
        "import sys; from lmplay.cli.compare import main; status = main(); "
        "assert 'torch' not in sys.modules, 'torch was loaded'; sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *SIDES, "--seeds", "2", *flags], cwd=there.parent, capture_output=True, text=True
    )
    assert done.returncode == 0 and "llama2:tiny" in done.stdout, done.stderr


def test_runs_of_the_trainer_count(compare, trainer, flags, work):
    own = ["--exp", "gpt2ish:tiny", *flags, "--set", "n_layer=1"]
    assert trainer(*own, "--same-init", "--run-name", "mine").status == 0
    assert trainer(*own, "--run-name", "other-initial-values").status == 0
    assert trainer(*own, "--same-init", "--lr", "2e-3", "--run-name", "other-rate").status == 0
    before = state_of(work / "gpt_out")
    status, out, err = compare(*SIDES, "--seeds", 1)
    assert status == 0 and trained_now(err) == [("llama2:tiny", "0")]
    assert {name: state for name, state in state_of(work / "gpt_out").items() if name in before} == before
    assert row_of(out, "gpt2ish:tiny")[5] == f"{last_loss(work / 'gpt_out' / 'mine'):.4f}"
    assert "documents only" in out or "earlier runs" in out


@pytest.mark.thorough
def test_changed_code_is_trained_beside_the_old(compare, there, experiment, work):
    experiment("mine")
    sides = ["--exp", "mine:tiny", "--baseline", "gpt2ish:tiny", "--seeds", 2]
    status, out, err = compare(*sides)
    assert status == 0 and trained_now(err) == [("mine:tiny", "0"), ("mine:tiny", "1")]
    assert row_of(out, "mine:tiny")[6:] == [
        "+0.0000",
        "+0.0000 to +0.0000",
        "exactly equal",
    ]  # a copy, and initial values by name
    before = state_of(there)
    with open(work / "experiments" / "mine" / "model.py", "a") as file:
        file.write("\nanother_thought = 1\n")
    status, out, err = compare(*sides)
    assert status == 0 and trained_now(err) == [("mine:tiny", "0"), ("mine:tiny", "1")]
    after = state_of(there)
    assert {name: after[name] for name in before} == before and len(runs_in(there)) == 8
    # each says which run it would have been
    assert "model.py" not in err and err.count("its code changed since") == 2
    said = re.findall(r"^(\S+, seed \d): its code changed since (\S+) was trained; training it again$", err, re.M)
    assert [label for label, _ in said] == ["mine:tiny, seed 0", "mine:tiny, seed 1"]
    assert all(work / folder in [path.parent for path in there.glob("mine*/run.json")] for _, folder in said)


def test_a_setting_younger_than_a_run_is_its_default(compare, there):
    """A run from before a setting is what is asked for by default; under another value of it it is not."""
    for run in runs_in(there):
        info = json.loads((run / "run.json").read_text())
        for name in ("validation_interval", "warmup_from", "restart_shrink", "clip_value", "extra_steps"):
            info["settings"].pop(name, None)
        (run / "run.json").write_text(json.dumps(unsealed(info)))
    status, out, err = compare(*SIDES, "--seeds", 2)
    assert status == 0 and trained_now(err) == []
    status, out, err = compare(*SIDES, "--seeds", 1, "--clip-value", "1")
    assert status == 0 and len(trained_now(err)) == 2


IS_SENT_A_SIGNAL = """
import os, signal, time

class Model(Model):
    passes = 0

    def body(self, tokens, cache=None):
        Model.passes += self.training
        if Model.passes == 30 and os.path.exists("signal"):
            process, number = map(int, open("signal").read().split())
            os.remove("signal")
            seen, stop = [], signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, lambda *a: (seen.append(a), stop(*a)))
            os.kill(process, number)
            while not seen:     # or until it is ended itself
                time.sleep(0.01)
        return super().body(tokens, cache)
"""


@pytest.mark.process
@pytest.mark.parametrize("number", first(1, [signal.SIGKILL, signal.SIGINT]), ids=lambda n: n.name)
def test_killed_or_stopped_and_continued(compare, flags, there, work, experiment, number):
    """In the middle of a run. Its model computes what the baseline does, so it must come out the same to the bit."""
    experiment("mine", IS_SENT_A_SIGNAL)
    sides = ["--exp", "mine:tiny", "--baseline", "gpt2ish:tiny", "--seeds", "2", "--save-interval", "10"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lmplay.cli.compare", *flags, *sides],
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    (work / "signal").write_text(f"{process.pid} {int(number)}")
    _, err = process.communicate(timeout=100)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130) and not (work / "signal").exists(), err
    run = next(there.glob("mine*"))
    assert 0 < len(list((run / "checkpoints").glob("step_*"))) and not list(
        run.glob("validate_documents/*_00000024.npy")
    )
    if number == signal.SIGINT:
        assert "the same command goes on" in err and "Traceback" not in err
        assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    before = {name: state for name, state in state_of(there).items() if not name.startswith("mine")}
    status, out, err = compare(*sides)
    assert status == 0 and trained_now(err) == [("mine:tiny", "0"), ("mine:tiny", "1")]
    after = state_of(there)
    assert {name: after[name] for name in before} == before
    assert row_of(out, "mine:tiny")[6:] == ["+0.0000", "+0.0000 to +0.0000", "exactly equal"]
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


@pytest.mark.thorough
def test_baseline_against_itself(compare, there):
    status, out, err = compare("--aa", "--baseline", "gpt2ish:tiny", "--seeds", 2)
    assert status == 0 and trained_now(err) == [("gpt2ish:tiny", "2"), ("gpt2ish:tiny", "3")]
    runs = [next(there.glob(f"gpt2ish*_s{seed}")) for seed in range(4)]
    losses = [last_loss(run) for run in runs]
    assert row_of(out, "gpt2ish:tiny (other seeds)")[6] == f"{np.mean(losses[2:]) - np.mean(losses[:2]):+.4f}"
    assert "the same model under other seeds" in out


def test_same_runs_are_exactly_equal(trained):
    runs = [read_run(next(trained[0].glob(f"llama2*_s{seed}"))) for seed in (0, 1)]
    arm = Arm("llama2:tiny", {1e-3: dict(enumerate(runs))})
    candidate = compare_arms(arm, [arm]).candidates[0]
    verdict = candidate.verdict
    assert (verdict.word, verdict.difference, verdict.low, verdict.high) == ("equal", 0.0, 0.0, 0.0)
    assert all(v.difference == 0.0 for v in candidate.at_equal.values())
    assert candidate.savings["tokens"].factor == pytest.approx(1.0) and candidate.warnings == []


@pytest.mark.thorough
def test_each_side_at_its_best_rate(compare, there):
    status, out, err = compare(*SIDES, "--seeds", 2, "--lr", "1e-2,1e-3")
    assert status == 0 and len(trained_now(err)) == 4 and err.count(", lr 0.01 ->") == 4
    rates = {}
    for name in ("gpt2ish", "llama2"):
        mean = {
            rate: np.mean([last_loss(next(there.glob(f"{name}*{part}*_s{seed}"))) for seed in (0, 1)])
            for rate, part in ((0.01, "lr=0.01"), (0.001, "validation-tokens"))
        }
        rates[name] = min(mean, key=mean.get)
        assert f"{name}:tiny lr {rates[name]:g}" in out
    assert out.count("at the edge of its grid") == 2


def test_until_sure(compare, there, experiment, work):
    # the difference is large: two seeds are enough where the spread is known, and no more are trained
    status, out, err = compare("--exp", "gpt2ish:tiny", "--baseline", "llama2:tiny", "--until-sure", "--max-seeds", 2)
    assert status == 0 and trained_now(err) == [] and "looked at after 2 seeds" in out
    # a difference that nobody can see: seeds are added up to the limit, both sides
    experiment("mine")
    model = work / "experiments" / "mine" / "model.py"
    source = model.read_text()
    model.write_text(source.replace("std=0.02 / math", "std=0.02003 / math", 1))
    assert model.read_text() != source
    status, out, err = compare("--exp", "mine:tiny", "--baseline", "gpt2ish:tiny", "--until-sure", "--max-seeds", 3)
    assert status == 0 and "(3 seeds," in out and "not decided" in out
    assert trained_now(err) == [("mine:tiny", "0"), ("mine:tiny", "1"), ("gpt2ish:tiny", "2"), ("mine:tiny", "2")]
    assert "mine:tiny after 2 seeds: not decided" in err
    # within a margin that is wide enough it is equal, and no further seed is needed
    shutil.rmtree(next(there.glob("mine*_s2")))
    status, out, err = compare(
        "--exp", "mine:tiny", "--baseline", "gpt2ish:tiny", "--until-sure", "--max-seeds", 3, "--within", 3
    )
    assert status == 0 and trained_now(err) == [] and row_of(out, "mine:tiny")[-1] == "equal within 3"


def test_models_that_look_ahead_get_no_verdict(compare, there, experiment):
    experiment("leak", "causal = False")
    sides = ["--exp", "leak:tiny", "--baseline", "gpt2ish:tiny", "--seeds", 1]
    status, out, err = compare(*sides)
    assert status == 2 and "leak:tiny is not causal" in err and trained_now(err) == [] and not list(there.glob("leak*"))
    status, out, err = compare(*sides, "--allow-leak")
    assert status == 0 and "leak:tiny is not causal" in out and trained_now(err) == [("leak:tiny", "0")]
    status, out, err = compare(*sides)
    assert status == 2 and "leak:tiny is not causal" in err


def test_a_model_that_diverges(compare, there, experiment):
    experiment(
        "wild",
        """
class Model(Model):
    def body(self, tokens, cache=None):
        hidden = super().body(tokens, cache)
        self.calls = getattr(self, "calls", 0) + (self.training and hidden.requires_grad)
        return hidden * float("nan") if self.calls > 30 else hidden
""",
    )
    sides = ["--exp", "wild:tiny", "llama2:tiny", "--baseline", "gpt2ish:tiny", "--seeds", 2]
    status, out, err = compare(*sides)
    assert status == 4 and err.count("the loss is not finite") == 2  # no seed is left to judge it by
    assert out.count("wild:tiny, seed number") == 2 and row_of(out, "wild:tiny")[-1] == "none"
    assert row_of(out, "llama2:tiny")[-1] != "none"
    status, again, err = compare(*sides)
    assert status == 4 and again == out and trained_now(err) == []


def test_damaged_folders_are_named(compare, there):
    for name, content in (
        ("broken", "{"),
        ("foreign", '{"a": 1}'),
        ("newer", '{"format": 99, "experiment": {"name": "gpt2ish"}}'),
    ):
        (there / name).mkdir()
        (there / name / "run.json").write_text(content)
    half = next(there.glob("gpt2ish*_s1"))
    next(half.glob("validate_documents/*.npy")).write_bytes(b"half")
    status, out, err = compare(*SIDES, "--seeds", 2)
    assert status == 0 and trained_now(err) == [("gpt2ish:tiny", "1")]
    for name in ("broken", "foreign", "newer", half.name):
        assert f"left out: {Path('gpt_out') / name}" in err
    assert (next(there.glob("gpt2ish*_s1_2")) / "validate.csv").exists() and half.exists()


@pytest.mark.thorough
def test_runs_with_a_time_limit_are_reused(compare, flags):
    settings = [*flags, "--max-minutes", "0.005", "--max-steps", "100000", "--validation-interval", "2"]
    status, out, err = compare(*SIDES, "--seeds", 1, settings=settings)
    assert status == 0 and len(trained_now(err)) == 2
    status, again, err = compare(*SIDES, "--seeds", 1, settings=settings)
    assert status == 0 and again == out and trained_now(err) == []


def end_one_validation_earlier(folder):
    """Let a run have scored all documents at its last validation but one, with what it found at the end."""
    path = folder / "validate.csv"
    with open(path, newline="") as file:
        *before, then, last = rows = list(csv.DictReader(file))
    losses = {
        row["step"]: folder / names.DOCUMENT_LOSSES / names.losses_name(row["plan_step"], int(row["step"]))
        for row in (then, last)
    }
    losses[then["step"]].write_bytes(losses.pop(last["step"]).read_bytes())
    counters = {name: then[name] for name in names.COUNTERS}
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([*before, last | counters])


def test_runs_of_different_length_meet_where_the_first_ends(there):
    """As a time limit leaves them."""
    folders = {name: next(there.glob(f"{name}*_s0")) for name in ("gpt2ish", "llama2")}
    for folder in folders.values():
        unseal(folder)
    runs = {name: read_run(folder) for name, folder in folders.items()}
    end_one_validation_earlier(runs["gpt2ish"].folder)
    candidate = compare_arms(
        Arm("b", {1e-3: {0: runs["gpt2ish"]}}), [Arm("c", {1e-3: {0: runs["llama2"]}})]
    ).candidates[0]
    with open(runs["llama2"].folder / "validate.csv", newline="") as file:
        *_, then, last = csv.DictReader(file)
    # what the loss had still to fall on the documents of midway, all had
    there = float(last["loss"]) + float(then["loss"]) - float(last["midway_loss"])
    expected = there - last_loss(runs["gpt2ish"].folder)
    assert candidate.verdict.difference == pytest.approx(expected, abs=1e-6)
    assert any("ended after different numbers of tokens" in warning for warning in candidate.warnings)
    # before the other's first validation there is nothing to compare
    (runs["llama2"].folder / "validate.csv").write_text(
        "".join((runs["llama2"].folder / "validate.csv").read_text().splitlines(keepends=True)[:1])
        + (runs["llama2"].folder / "validate.csv").read_text().splitlines(keepends=True)[-1]
    )
    candidate = compare_arms(
        Arm("b", {1e-3: {0: runs["gpt2ish"]}}), [Arm("c", {1e-3: {0: runs["llama2"]}})]
    ).candidates[0]
    assert candidate.verdict is None and any("no verdict" in warning for warning in candidate.warnings)


@pytest.mark.thorough
def test_plan_of_two_steps(compare, plans, work):
    """The last step's documents count, those of both of its datasets."""
    settings = ["--training-plan", plans["two_steps"], *TINY[2:], "--validation-tokens", "1000"]
    status, out, err = compare(*SIDES, "--seeds", 1, settings=settings)
    run = next((work / "gpt_out").glob("llama2*"))
    n_documents = len((run / "validate_documents" / "documents_second.csv").read_text().splitlines()) - 1
    assert (
        status == 0
        and row_of(out, "llama2:tiny")[5] == f"{last_loss(run):.4f}"
        and f"1 seed, {n_documents} documents" in out
    )


def test_settings_from_a_file(compare, trainer, there, flags, work):
    dumped = trainer("--exp", "llama2:tiny", *flags, "--same-init", "--dump-config")
    (work / "settings.json").write_text(dumped.out)
    status, out, err = compare("--use-config", "settings.json", "--seeds", 2, settings=[])
    assert status == 0 and trained_now(err) == [] and row_of(out, "llama2:tiny")[-1] != "none"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--exp", "lama2:tiny"], "no experiment named 'lama2'. Did you mean 'llama2'?"),
        (["--exp", "llama2:tinny"], "no variant 'tinny'. Did you mean 'tiny'?"),
        (["--exp", "llama2:tiny", "--baseline", "gpt3ish"], "no experiment named 'gpt3ish'"),
        ([*SIDES, "--seeds", "0"], "--seeds must be at least 1"),
        (["--exp", "gpt2ish:tiny", "--baseline", "gpt2ish:tiny"], "gpt2ish:tiny is the baseline"),
        (["--exp", "gpt2ish", "--baseline", "gpt2ish:6l"], "gpt2ish:6l is the baseline"),
        (["--exp", "gpt2ish:tiny"], "gpt2ish:tiny is the baseline"),
        (["--exp", "llama2:tiny", "llama2:tiny"], "names llama2:tiny twice"),
        ([], "Name it with --exp"),
        (["--aa", "--exp", "llama2:tiny"], "leave out --exp"),
        ([*SIDES, "--until-sure", "--max-seeds", "1"], "at least 2"),
        ([*SIDES, "--until-sure", "--seeds", "5", "--max-seeds", "3"], "--seeds"),
        ([*SIDES, "--within", "0"], "--within must be more than 0"),
        ([*SIDES, "--set", "n_lyer=2"], "no setting 'n_lyer'"),
        ([*SIDES, "--training-plan", "quik"], "quik"),
        ([*SIDES, "--device", "cuda:77"], "--device cuda:77"),
    ],
)
def test_bad_input_is_one_line(compare, words, message):
    status, out, err = compare(*words)
    lines = [line for line in err.splitlines() if line.startswith("lmp_compare: ")]
    assert status == 2 and out == "" and len(lines) == 1 and message in lines[0] and "Traceback" not in err


@pytest.mark.parametrize("words", [["--lr", "1e-3,x"], ["--lr", "0"], ["--seeds", "1.5"], ["--seed", "3"]])
def test_bad_flags(compare, words):
    with pytest.raises(SystemExit) as end:
        compare(*SIDES, *words)
    assert end.value.code == 2


def test_other_contexts_are_refused(compare, plans, experiment, work):
    experiment("wide")
    model = work / "experiments" / "wide" / "model.py"
    model.write_text(model.read_text().replace("n_embd=256, max_len=256", "n_embd=256, max_len=64"))
    settings = [
        "--training-plan",
        plans["plain"],
        "--set",
        "n_layer=1",
        "--set",
        "n_embd=16",
        "--set",
        "n_head=2",
        "--device",
        "cpu",
    ]
    status, out, err = compare("--exp", "wide:tiny", "--baseline", "gpt2ish:tiny", settings=settings)
    assert status == 2 and "wide:tiny reads 64 tokens at once and gpt2ish:tiny 256" in err and "--context-len" in err


def test_other_context_lengths_in_runs_that_are_there(there):
    """Runs that were not validated alike can't be paired."""
    from lmplay.errors import UserError

    ours, theirs = (next(there.glob(f"{name}*_s0")) for name in ("gpt2ish", "llama2"))
    unseal(theirs)
    names = next(theirs.glob("validate_documents/documents_*.csv"))
    names.write_text(names.read_text().replace("one,0,", "one,99,"))
    one, other = read_run(ours), read_run(theirs)
    with pytest.raises(UserError, match="not validated on the same tokens"):
        compare_arms(Arm("a", {1e-3: {0: one}}), [Arm("b", {1e-3: {0: other}})])


@pytest.mark.process
def test_help_answers_at_once():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lmplay.cli.compare", "--help"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    loaded = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.count("|") == 2}
    assert done.returncode == 0 and "--until-sure" in done.stdout and "%%" not in done.stdout
    assert not loaded & {"torch", "numpy", "pandas", "scipy", "tokenizers", "tiktoken"}


def test_a_report_is_written(trained):
    out, done = trained
    (page,) = out.glob(
        "compare_*.html"
    )  # its name says the settings: another comparison of the two does not overwrite it
    assert (
        page.name.startswith("compare_llama2-tiny_vs_gpt2ish-tiny_plain_n_layer=1")
        and "_context-len=16_batch-size=4_" in page.name
    )
    assert page.name.endswith("_max-steps=24.html") and "own-init" not in page.name
    assert done.stdout.rstrip().endswith(f"report: gpt_out/{page.name}")
    text = page.read_text(encoding="utf-8")
    # the code as it ran, the samples, and what is different between seeds
    assert '<span class="plus">+class SwiGLU(nn.Module):</span>' in text and "code against gpt2ish as it ran" in text
    assert "=== step" not in text and "=== update" not in text
    assert "validation loss" in text and '<th scope="row">seed</th><td><div>0, 1</div></td>' in text
    (row,) = [line for line in page.with_suffix(".md").read_text().splitlines() if line.startswith("| llama2:tiny ")]
    printed = row_of(done.stdout, "llama2:tiny")
    assert row.split(" | ")[2:5] == [printed[6], printed[7], printed[5]]
    figures = list(csv.DictReader(page.with_suffix(".csv").open()))
    assert [figure["model"] for figure in figures] == [
        "gpt2ish:tiny",
        "llama2:tiny",
    ] and f"{float(figures[1]['low']):+.4f}" == printed[7].split()[0]


@pytest.mark.thorough
@pytest.mark.process
def test_no_report_and_no_plotly(flags, there):
    for page in there.glob("compare_*"):
        page.unlink()
    for words, blocked in (["--no-report"], ""), ([], "sys.modules['plotly'] = None; "):
        code = f"import sys; {blocked}from lmplay.cli.compare import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", code, *SIDES, "--seeds", "2", *flags, *words],
            cwd=there.parent,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and "llama2:tiny" in done.stdout and "report:" not in done.stdout
        assert ("pip install 'lmplay[report]'" in done.stderr) == bool(blocked)
        assert sorted(path.suffix for path in there.glob("compare_*")) == ([".csv", ".md"] if blocked else [])
