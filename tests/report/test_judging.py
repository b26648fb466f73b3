"""What a comparison judges, what it refuses to judge, and that every output says so."""

import csv
import io

from lmplay.report.arms import Arm
from lmplay.report.comparison import as_text, compare_arms
from lmplay.report.page import as_html
from lmplay.report.report import as_csv, as_markdown, of_comparison
from lmplay.stats.prior import Prior
from support.judged_runs import make_judged_run


def arm_of(folder, experiment, seeds=(0, 1, 2), effect=0.0, **more) -> Arm:
    """Return an arm with a run for each seed."""
    runs = {k: make_judged_run(folder / f"{experiment}{k}", experiment, k, effect, **more) for k in seeds}
    return Arm(f"{experiment}:tiny", {1e-3: runs})


def outputs_of(comparison) -> dict[str, str]:
    """Return the comparison as text, page, Markdown and CSV."""
    report = of_comparison(comparison)
    page = as_html(report)
    return {"text": as_text(comparison), "page": page, "markdown": as_markdown(report), "csv": as_csv(report)}


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_earlier_runs_and_their_share_stand_in_every_output(tmp_path):
    base, idea = arm_of(tmp_path, "gpt2ish"), arm_of(tmp_path, "idea", effect=-0.2)
    prior = Prior(1e-4, 6, "earlier runs in gpt_out (4 runs, under shared seeds)", ("older7", "older8"))
    found = outputs_of(compare_arms(base, [idea], prior_of=lambda one, other: prior))
    for kind in ("text", "page", "markdown"):
        assert "counts for 6 of 8 degrees of freedom (75%)" in found[kind], kind
        assert "older7, older8" in found[kind], kind
    first, second = rows_of(found["csv"])
    assert (second["prior_runs"], float(second["prior_share"])) == ("older7 older8", 0.75)
    assert first["prior_runs"] == ""
