"""lmp_probe, with real runs of a moment: equal sizes, what is trained, what is reused, what the scorecard says."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmplay.cli import probe as command
from lmplay.compare.variants import find_variant
from lmplay.data.plans import load_plan
from lmplay.data.prepare import prepare
from lmplay.errors import UserError
from lmplay.probe.probe import find_tasks
from lmplay.probe.scorecard import COLUMNS, Cell, Scorecard, as_text, draw, write_csv
from lmplay.probe.sizes import SIZES, Size, sized_variants
from lmplay.runs.run import read_run

TINY = Size(n_layer=1, n_head=2, n_embd=16, steps=4, batch_size=4)
TWO = ["--exp", "gpt2ish", "llama2", "--tasks", "tiny.json", "--seeds"]


@pytest.fixture
def probe(work, monkeypatch, capfd):
    """Runs `lmp_probe` with models of a moment in the working folder: (exit status, stdout, stderr)."""
    monkeypatch.setitem(SIZES, "quick", TINY)
    (work / "tiny.json").write_text(
        json.dumps(
            {
                "description": "few bits",
                "tokenizer": "bytes",
                "context_len": 9,
                "datasets": {
                    "p": {
                        "synthetic": "parity",
                        "settings": {"length": 6, "questions": 2},
                        "max_documents": 60,
                        "validation": {"skip": 0, "documents": 30},
                    }
                },
                "steps": [{"datasets": ["p"], "epochs": 10000}],
            }
        )
    )

    prepare(load_plan("tiny.json"))  # what is said about it is no complaint
    capfd.readouterr()

    def run(*words):
        status = command.main([*map(str, words)])
        return status, *capfd.readouterr()

    return run


def rows_of(work: Path) -> list[dict]:
    (path,) = (work / "gpt_out").glob("probes_*.csv")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def trained_now(err: str) -> list[str]:
    return re.findall(r"^run \d+ of \d+: (\S+), (\S+), seed (\d+)", err, re.M)


def test_figures_are_those_of_the_runs_and_nothing_is_trained_twice(probe, work):
    status, out, err = probe(*TWO, 1)
    assert status == 0, err
    assert (
        trained_now(err) == [("tiny", f"{name}:tiny", "0") for name in ("gpt2ish", "llama2")]
        and "±" not in out.split("chance")[0]
    )
    status, out, err = probe(*TWO, 2, "--on", "processes:2")  # beside each other
    assert status == 0 and trained_now(err) == [("tiny", f"{name}:tiny", "1") for name in ("gpt2ish", "llama2")]
    rows = rows_of(work)
    assert [row["experiment"] for row in rows] == ["gpt2ish:tiny", "llama2:tiny"] and tuple(rows[0]) == COLUMNS
    for row in rows:
        accuracies, parameters = [], set()
        for seed, name in enumerate(row["runs"].split()):
            run = read_run(work / "gpt_out" / name)
            assert (
                run.get("settings", "seed") == seed
                and run.get("data", "datasets", "p", "chance") == 0.5
                and run.get("data", "datasets", "p", "ceiling") == 1
            )
            parameters.add(run.number("parameters", "total"))
            table = run.table("validate")
            accuracies.append(float(table["accuracy"].iloc[-1]))
            assert int(table["step"].iloc[-1]) == TINY.steps and set(table["validation_tokens"]) == {
                60
            }  # two answers each
        assert [float(a) for a in row["accuracies"].split()] == pytest.approx(accuracies, rel=1e-5)
        mean = np.mean(accuracies)
        assert float(row["accuracy"]) == pytest.approx(mean, rel=1e-5) and float(row["score"]) == pytest.approx(
            2 * mean - 1, abs=1e-5
        )
        # as many parameters as said, except the positions of contexts of another length
        count = int(row["parameters"])
        assert len(parameters) == 1 and all(0 <= count - n <= 55 * 32 for n in parameters)
        line = next(line for line in out.splitlines() if line.startswith(row["experiment"]))
        assert f"{mean:.3f} ±" in line
    (picture,) = (work / "gpt_out").glob("probes_*.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture.relative_to(work)) in out
    assert (
        "tiny: few bits" in out
        and re.search(r"^chance +0.500$", out, re.M)
        and re.search(r"^best possible +1.000$", out, re.M)
    )

    status, same, err = probe(*TWO, 2)
    assert status == 0 and same == out and trained_now(err) == []


@pytest.mark.thorough
@pytest.mark.process
def test_interrupted_it_shows_what_is_there_and_goes_on(probe, work):
    words = [*TWO, "2", "--updates", "100000", "--out", "out"]
    code = (
        "import sys\n"
        "from lmplay.probe import sizes\n"
        "sizes.SIZES['quick'] = sizes.Size(1, 2, 16, 4, 4)\n"
        "from lmplay.cli.probe import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    )
    (work / "start.py").write_text(code)
    process = subprocess.Popen(
        [sys.executable, "start.py", *words], cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    read = ""
    while "acc" not in read:  # it trains
        read += process.stderr.readline()
        assert process.poll() is None, read
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "the same command goes on" in err and "gpt2ish:tiny" in out, err
    (run,) = (work / "out").glob("*/run.json")
    assert json.loads(run.read_text())["status"] == "stopped"


def test_experiments_are_made_equally_large():
    size = SIZES["quick"]
    found = sized_variants(["gpt2ish", "llama2", "rank_promotion", "gpt2ish:tiny_8l"], size, 257)
    base = found[0]
    assert base.fields == ("n_layer=2", "n_head=4", "torch_init=True", "n_embd=64")
    # token table, head with bias, positions, two blocks of 12 d^2 + 13 d, norm
    assert base.parameters == 2 * 257 * 64 + 257 + 64 * 64 + 2 * (12 * 64**2 + 13 * 64) + 2 * 64
    assert (
        found[3].fields[0] == "n_layer=4" and abs(found[3].parameters / base.parameters - 1) < 0.2
    )  # twice as deep, and narrower
    for one in found[1:3]:
        width = next(int(field.split("=")[1]) for field in one.fields if field.startswith("n_embd"))
        assert width % 8 == 0 and abs(one.parameters / base.parameters - 1) < 0.2
    fields = dict(field.split("=") for field in found[2].fields)
    hidden = find_variant("rank_promotion:tiny").entry.variants["tiny"].get("n_hidden", 192)
    assert int(fields["n_hidden"]) == round(hidden * int(fields["n_embd"]) / 256)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--exp", "gpt2isch"], "no experiment named 'gpt2isch'. Did you mean 'gpt2ish'?"),
        (["--exp", "gpt2ish", "gpt2ish:tiny"], "--exp names gpt2ish:tiny twice"),
        (["--exp", "gpt2ish:nano"], "experiment 'gpt2ish' has no variant 'nano'"),
        (["--exp", "gpt2ish", "--tasks", "induktion"], "no probe named 'induktion'. Did you mean 'induction'?"),
        (["--exp", "gpt2ish", "--tasks", "mqar", "probe-mqar"], "--tasks names mqar twice"),
        (["--exp", "gpt2ish", "--tasks", "text.json"], "plan text is no probe"),
        (["--exp", "gpt2ish", "--tasks", "nothing.json"], "there is no plan file nothing.json"),
        (["--exp", "gpt2ish", "--seeds", "0"], "--seeds must be at least 1, not 0"),
        (["--exp", "gpt2ish", "--size", "quik"], "--size: there is no 'quik'. Did you mean 'quick'?"),
        (["--exp", "gpt2ish", "--updates", "0"], "--max-steps must be at least 1, not 0"),
        (["--exp", "gpt2ish", "--tasks", "tiny.json", "--updates", "1000000"], "tiny has data for 150000 steps only"),
        (["--exp", "gpt2ish", "--lr", "-1"], "--lr must be more than 0, not -1.0"),
        (["--exp", "backwards"], "backwards:tiny doesn't read text from its beginning to its end only"),
    ],
)
def test_bad_input_is_one_line(probe, work, experiment, words, said):
    experiment(
        "backwards",
        "def make_batch(window, bos, generator):\n    import torch\n    window = window.flip(1)\n"
        "    return torch.cat([torch.full_like(window[:, :1], bos), window[:, :-1]], 1), window\n"
        "reading_order = 'reversed'\n",
    )
    (work / "text.json").write_text(
        json.dumps({"tokenizer": "bytes", "datasets": {"t": {"embedded": "python"}}, "steps": [{"datasets": ["t"]}]})
    )
    status, out, err = probe(*words)
    assert status == 2 and out == "" and err.count("\n") == 1 and err.startswith("lmp_probe: ") and said in err, err
    assert not (work / "gpt_out").exists()


def test_tasks_are_found_by_name_all_and_in_the_working_folder(work):
    names = {task for task, _ in find_tasks(("all",))}
    assert {"copy", "induction", "mqar", "selective_copy", "compress", "parity"} <= names
    assert [task for task, _ in find_tasks(("selective-copy", "probe_mqar"))] == ["selective_copy", "mqar"]
    with pytest.raises(UserError, match="no probe named 'times3'"):
        find_tasks(("times3",))


def card(*rows) -> Scorecard:
    cells = [
        Cell("recall", f"e{k}", 0.25, 1.0, list(accuracies), [1.0] * len(accuracies), [None] * len(accuracies), 400)
        for k, accuracies in enumerate(rows)
    ]
    return Scorecard(
        {f"e{k}": 1000 for k in range(len(rows))}, {"recall": "what is it?"}, {"recall": (0.25, 1.0)}, cells
    )


def test_intervals_hold_the_truth():
    """Seeds about a mean, and answers right by chance at each seed's level: covered in at least 95% of all draws."""
    draw_, right = np.random.default_rng(0), 0
    for _ in range(600):
        levels = draw_.normal(0.6, 0.03, 3)
        low, high = Cell("t", "e", 0.0, 1.0, list(draw_.binomial(400, levels) / 400), n_documents=400).interval
        right += low <= 0.6 <= high
    assert right / 600 > 0.93
    assert Cell("t", "e", 0.0, 1.0, [0.5], n_documents=9).interval is None
    low, high = Cell("t", "e", 0.0, 1.0, [1.0, 0.9], n_documents=400).interval
    t = 12.706  # 97.5% of Student's t with one degree of freedom
    assert high == 1.0 and low == pytest.approx(
        0.95 - math.sqrt(t**2 * 0.005 / 2 + 1.96**2 * 0.95 * 0.05 / 400), abs=1e-3
    )


def test_the_scorecard_shows_scores_failures_and_gaps(tmp_path):
    shown = card([0.25, 0.25], [1.0, 1.0], [0.6], [])
    shown.cells[1].solved_at = [250, None]
    shown.cells[3].n_failed = 1
    text = as_text(shown).splitlines()
    assert (
        text[1].split()[1:3] == ["1k", "0.250"]
        and text[3].split() == ["e2", "1k", "0.600"]
        and text[4].split()[-1] == "failed"
    )
    assert any(line.strip() == "e1 on recall: 250, not" for line in text)
    assert [cell.score for cell in shown.cells[:3]] == pytest.approx([0.0, 1.0, (0.6 - 0.25) / 0.75])
    write_csv(shown, tmp_path / "c.csv")
    with open(tmp_path / "c.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (
        [row["score"] for row in rows] == ["0", "1", "0.466667", ""]
        and rows[3]["failed"] == "1"
        and rows[2]["accuracy_low"] == ""
    )
    assert [row["solved_at"] for row in rows] == ["", "250 -", "", ""]
    draw(shown, tmp_path / "c.png", "title")
    import matplotlib.image

    pixels = matplotlib.image.imread(tmp_path / "c.png")[..., :3]
    from matplotlib import colormaps

    for score in (0.0, 1.0, (0.6 - 0.25) / 0.75):  # each colour fills a good part of the picture
        near = np.abs(pixels - np.array(colormaps["cividis"](score)[:3])).max(-1) < 0.02
        assert near.mean() > 0.02, score
    assert os.listdir(tmp_path) and sorted(os.listdir(tmp_path)) == ["c.csv", "c.png"]


def test_a_card_at_chance_says_that_nothing_is_learned_yet():
    shown = card([0.25, 0.27], [0.3])
    assert "Nothing learned yet on recall" in as_text(shown)
    assert "Nothing learned" not in as_text(card([0.25], [0.9]))


def test_the_parameters_are_those_of_the_runs(tmp_path):
    shown = card([0.25, 0.5])
    assert " 1k " in as_text(shown)
    shown.cells[0].parameters = [135_489, 136_193]
    assert "135.5k to 136.2k" in as_text(shown) and " 1k " not in as_text(shown)
    write_csv(shown, tmp_path / "c.csv")
    with open(tmp_path / "c.csv", newline="") as file:
        assert [row["parameters"] for row in csv.DictReader(file)] == ["135489"]
