"""A ladder for people and programs: text, Markdown, CSV, JSON, a page and a picture, from planted losses."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from lmplay.report.arms import ArmSummary, Candidate, Comparison
from lmplay.report.ladder import ArmsOnLadder, RungFound, as_text
from lmplay.report.ladder_picture import draw_ladder
from lmplay.report.ladder_report import as_csv, as_markdown, as_object, as_page, write_ladder
from lmplay.stats.choices import Choice
from lmplay.stats.ladder import judge_ladder
from support.planted_ladder import FLOPS, Plan, draw


def planted_arms(plan: Plan, seed: int = 1) -> ArmsOnLadder:
    rungs, below = draw(np.random.default_rng(seed), plan)
    ladder = judge_ladder(rungs, below)
    base = ArmSummary("base:tiny", runs=[], seeds=[0, 1], loss=3.0)
    candidates = [
        Candidate(ArmSummary("idea_<b>:tiny", runs=[], seeds=[0, 1], loss=3.0), one.verdict) for one in ladder.rungs
    ]
    found = [
        RungFound(
            f"d{k}", 10**6 * k, 10**6 * k, 8, {"base:tiny": Choice((("lr", 1e-3),))}, Comparison(base, [one], "p", 1e6)
        )
        for k, one in enumerate(candidates, 2)
    ]
    points = [(one.flops, float(one.losses.sum(1).mean() / rungs[0].losses.tokens.sum())) for one in below]
    return ArmsOnLadder("idea_<b>:tiny", "base:tiny", found, candidates, ladder, "", 1.0, points)


@pytest.fixture(scope="module")
def shrinking():
    return planted_arms(Plan((0.4, 0.2, 0.0), seeds=(4,) * 4, spread=0.03, ruler_spread=0.01))


def test_text_says_what_was_found(shrinking):
    text = as_text(shrinking)
    assert "better over the ladder" in text and "the gain shrinks" in text and "gone at about" in text
    assert "continued to 10 times the top rung's FLOPs (7e+15)" in text
    assert "1 for each parameter" in text and "below 5 models are far" in text
    assert "d2: batch 8; base:tiny lr 0.001" in text
    first = shrinking.ladder.rungs[0]
    assert f"{np.exp(first.flops.value):.3f} ({np.exp(first.flops.low):.3f} to " in text


def test_an_arm_that_got_another_rate_is_named(shrinking):
    top = replace(shrinking.rungs[-1], not_tuned=("base:tiny",))
    found = replace(shrinking, rungs=[*shrinking.rungs[:-1], top])
    assert "arm not tuned at d4: base:tiny was better with half the carried rate" in as_text(found)
    assert [row["verdict"] for row in csv.DictReader(io.StringIO(as_csv([found])))][-1] == "arm not tuned"


def test_tables_hold_all_figures(shrinking):
    rows = list(csv.DictReader(io.StringIO(as_csv([shrinking]))))
    assert [float(row["baseline_flops"]) for row in rows] == list(FLOPS[1:])
    assert float(rows[0]["ln_m_flops_low"]) == shrinking.ladder.rungs[0].flops.low
    assert "| d2 |" in as_markdown([shrinking]) and "idea\\_\\<b\\>" in as_markdown([shrinking])
    (one,) = json.loads(json.dumps(as_object([shrinking]), allow_nan=False))["ladders"]
    assert one["word"] == "better" and one["trend_word"] == "shrinks" and len(one["rungs"]) == 3
    assert one["pooled"]["low"] == pytest.approx(shrinking.ladder.pooled.low)
    assert one["rungs"][0]["settings"] == {"base:tiny": {"lr": 0.001}}


def test_a_page_and_a_picture_are_written(shrinking, tmp_path):
    paths = write_ladder([shrinking], tmp_path / "ladder.html")
    assert sorted(path.suffix for path in paths) == [".csv", ".html", ".md", ".png"]
    page = (tmp_path / "ladder.html").read_text()
    assert "idea_&lt;b&gt;" in page and "<b>" not in page and "http" not in page.replace("data:image", "")
    assert (tmp_path / "ladder.png").read_bytes()[:4] == b"\x89PNG"


def test_without_a_result_there_is_a_reason_and_no_picture(shrinking):
    none = replace(shrinking, ladder=None, why="no verdict at d3: it crashed")
    assert "no verdict over the ladder: no verdict at d3: it crashed" in as_text(none)
    assert "<img" not in as_page([none], [b""]) and as_object([none])["ladders"][0]["word"] is None
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_ladder(none)
