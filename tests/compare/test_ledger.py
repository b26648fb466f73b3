"""The ledger: one line per verdict, one hypothesis per pair of arms, judged together."""

import dataclasses
import json
import threading

import numpy as np
import pytest

from lmplay.cli import compare as command
from lmplay.compare.ledger import note_verdicts, read_ledger
from lmplay.compare.request import ComparisonRequest
from lmplay.errors import UserError
from lmplay.report.comparison import Arm, compare_arms
from lmplay.runs.run import read_run
from lmplay.runs.settings import Settings
from lmplay.stats.sequential import Looks
from support.judged_runs import make_judged_run

PHASES = {"progress": {"phases": [{"name": "main", "n_updates": 120}], "step": 120}}


@pytest.fixture
def judged(work):
    """Judges ideas of known effect, each of code of its own, as lmp_compare does, and notes the verdicts."""
    seeds = (0, 1, 2)

    def arm(name, effect=0.0, code=None, **more):
        runs = {}
        for seed in seeds:
            folder = work / "gpt_out" / f"{name}_{code}_{'_'.join(more)}_s{seed}"
            if not folder.exists():
                file = make_judged_run(folder, name, seed, effect, **{**PHASES, **more}).file
                info = json.loads(file.read_text())
                info["experiment"] |= {"code_hash": code or name, "code_hash_version": 2}
                file.write_text(json.dumps(info))
            runs[seed] = read_run(folder)
        return Arm(f"{name}:tiny", {0.001: runs})

    def judge(*effects, aa=False, looks=None, code=None, **more):
        ideas = [arm(f"idea{'x' * i}", effect, code=code, **more) for i, effect in enumerate(effects)]
        confidence = looks.confidence_at(3) if looks else 0.95
        found = compare_arms(arm("gpt2ish", **more), ideas, confidence_of=lambda pairs: confidence)
        request = ComparisonRequest("gpt2ish", () if aa else ("idea",), Settings(), aa=aa)
        note_verdicts(found, request, looks)
        return found

    return judge


def test_one_hypothesis_per_pair_of_arms(judged, work):
    out = work / "gpt_out"
    first = judged(-0.1, 0.1, 0.0)
    judged(-0.1)  # again: it replaces the first
    judged(-0.1, code="other")
    judged(-0.1, config={"max_len": 256, "n_layer": 9})
    judged(-0.1, settings={"lr": 0.01})
    judged(-0.1, aa=True)
    ledger = read_ledger(out)
    assert len((out / "verdicts.jsonl").read_text().splitlines()) == 8
    assert ledger.n_verdicts == 7 and len(ledger.hypotheses) == 6 and not ledger.damaged
    # the most certain first, and each with the figures of its verdict
    p = [one.entry["p"] for one in ledger.hypotheses]
    assert p == sorted(p) and all(one.q >= one.entry["p"] for one in ledger.hypotheses)
    worst = next(one for one in ledger.hypotheses if one.entry["candidate"]["label"] == "ideax:tiny")
    assert worst.entry["verdict"]["difference"] == pytest.approx(first.candidates[1].verdict.difference)
    assert worst.found == "worse" and worst.entry["verdict"]["word"] == "worse"
    # shrunk towards the mean of all
    effects = np.array([one.entry["verdict"]["difference"] for one in ledger.hypotheses])
    shrunk = np.array([one.effect for one in ledger.hypotheses])
    assert np.all(np.abs(shrunk - ledger.mean) <= np.abs(effects - ledger.mean) + 1e-12)


def test_a_look_counts_at_its_own_level(judged, work):
    judged(-0.01)
    alone = read_ledger(work / "gpt_out").hypotheses[0].entry
    looks = Looks(3)
    judged(-0.01, looks=looks)
    (again,) = read_ledger(work / "gpt_out").hypotheses
    assert again.entry["looks"] == {"max_seeds": 3, "first": 2, "confidence": 0.95}
    assert again.entry["p"] > alone["p"]


def test_what_diverged_alone_is_no_finding(judged, work):
    found = judged(-0.1)
    found.candidates[0].held_back = True
    note_verdicts(found, ComparisonRequest("gpt2ish", ("idea",), Settings()), None)
    assert read_ledger(work / "gpt_out").hypotheses[0].entry["p"] == 1


def test_many_at_once_lose_no_line(judged, work):
    found, out = judged(-0.1, 0.1), work / "gpt_out"
    request = ComparisonRequest("gpt2ish", ("idea",), Settings())
    threads = [threading.Thread(target=note_verdicts, args=(found, request, None)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [json.loads(line)["format"] for line in (out / "verdicts.jsonl").read_text().splitlines()] == [1] * 18


def test_damaged_lines_are_left_out_and_nothing_is_lost_behind_them(judged, work, capsys):
    judged(-0.1)
    file = work / "gpt_out" / "verdicts.jsonl"
    text = file.read_text()
    strange = json.loads(text) | {"p": "small", "verdict": []}
    file.write_text(f"{text}[1, 2]\n{json.dumps(strange)}\n{text[:50]}")  # the last was cut off by a kill
    judged(0.1, code="other")
    ledger = read_ledger(work / "gpt_out")
    assert ledger.damaged == [2, 3, 4] and len(ledger.hypotheses) == 2 and ledger.mean is None
    assert command.main(["--ledger", "--json", "ledger.json"]) == 0
    out = capsys.readouterr().out
    assert "2 ideas, 2 verdicts: " in out and "left out: 3 lines that can't be read" in out
    told = json.loads((work / "ledger.json").read_text())
    assert [row["found"] for row in told["hypotheses"]] == [one.found for one in ledger.hypotheses]


@pytest.mark.parametrize("key", ["difference", "low", "seeds", "seed_sd", "p", "tokens", "candidate"])
def test_no_value_of_a_line_ends_in_a_traceback(judged, work, key, capsys):
    judged(-0.1)
    file = work / "gpt_out" / "verdicts.jsonl"
    text = file.read_text()
    for wrong in ("0.5", "", [], {"a": 1}, True, 10**200, float("nan"), -1e300):
        strange = json.loads(text)
        (strange if key in strange else strange["verdict"])[key] = wrong
        file.write_text(text + json.dumps(strange) + "\n")
        assert command.main(["--ledger"]) == 0
        assert "left out: 1 line that can't be read, the first 2" in capsys.readouterr().out, wrong


def test_there_is_none_yet(work, capsys):
    assert command.main(["--ledger"]) == 2
    assert "there is no ledger gpt_out/verdicts.jsonl" in capsys.readouterr().err
    with pytest.raises(UserError):
        read_ledger(work)


def test_where_it_cannot_be_written_the_verdict_stands(judged, work, capsys):
    found = judged(-0.1)
    (work / "file").write_text("")
    request = ComparisonRequest("gpt2ish", ("idea",), dataclasses.replace(Settings(), out="file/x"))
    note_verdicts(found, request, None)
    assert "the verdict is not in the ledger" in capsys.readouterr().err
