"""Losses on other data are another measure: a panel for each plan, and no difference across data."""

import pytest

from lmplay.errors import UserError
from lmplay.report.figure import figure_of
from lmplay.report.overlay import overlay
from lmplay.report.plot_options import PlotOptions
from lmplay.report.report import as_csv, as_html, of_overlay
from support.making_runs import fall, make_run


@pytest.fixture
def three_plans(tmp_path):
    for name, shift in (("gpt2ish", 0.0), ("idea", -0.1)):
        make_run(
            tmp_path / f"{name}_wiki", experiment=name, plan="wiki", data_hash="w", loss=lambda t, s=shift: fall(t) + s
        )
        make_run(
            tmp_path / f"{name}_code", experiment=name, plan="code", data_hash="c", loss=lambda t, s=shift: fall(t) / 2
        )
    make_run(tmp_path / "alone", experiment="idea", plan="more", data_hash="m")
    make_run(tmp_path / "probed", experiment="idea", plan="probe_copy", data_hash="p")
    return tmp_path


def test_a_folder_of_several_plans_is_a_panel_for_each_without_probes(three_plans):
    found = overlay([], three_plans, PlotOptions())
    assert [panel.name for panel in found.panels] == ["code", "wiki", "more"]
    for panel in found.panels[:2]:
        assert [group.label for group in panel.groups] == ["gpt2ish:tiny", "idea:tiny"]
    picture = found.pictures["log_loss"]
    assert [one.title for one in (picture, *picture.below)] == [
        f"Validation loss, plan {plan} (python)" for plan in ("code", "wiki", "more")
    ]
    assert len(found.pictures["log_diff_loss"].below) == 1 and not picture.notes
    figure = figure_of(picture)
    assert len(figure.subfigs) == 3 and figure.get_figheight() > 15
    assert any("1 run of lmp_probe left out" in line for line in found.warnings)
    assert found.table.count("baseline") == 2 and "plan wiki\n" in found.table
    assert "-0.1000" in found.table.split("plan wiki\n")[1].split("plan more")[0]


def test_one_plan_of_a_folder(three_plans):
    found = overlay([], three_plans, PlotOptions(training_plan="probe-copy"))
    assert [group.run.name for group in found.groups] == ["probed"]
    with pytest.raises(UserError, match="no run on the plan 'wki'.*Did you mean 'wiki'"):
        overlay([], three_plans, PlotOptions(training_plan="wki"))


def test_the_page_has_a_choice_of_plans_and_subtracts_within_one_only(three_plans):
    report = of_overlay(overlay([], three_plans, PlotOptions()))
    assert report.panels == [("code", 2), ("wiki", 2), ("more", 1)]
    assert [len(group.pairs) for group in report.groups] == [0, 1, 0, 1, 0]
    assert [row[0] for row in report.rows].count("idea:tiny, wiki") == 1
    assert ",wiki," in as_csv(report) and '"name":"wiki","first":2,"size":2' in as_html(report)


def test_runs_that_are_named_are_drawn_together_but_not_subtracted_across_data(three_plans):
    found = overlay(["gpt2ish_wiki", "gpt2ish_code", "idea_wiki"], three_plans, PlotOptions(baseline="gpt2ish_wiki"))
    picture = found.pictures["log_loss"]
    assert len(picture.lines) == 3 and not picture.below
    assert any("other data" in note and "no difference is drawn" in note for note in picture.notes)
    assert [line.label for line in found.pictures["log_diff_loss"].lines] == ["idea:tiny"]
    (row,) = [line for line in found.table.splitlines() if " code " in line]
    assert " - " in row


def test_phases_are_subtracted_from_the_same_phase_only(tmp_path):
    phases = ("wiki", "chat")

    def long(tokens):
        return fall(tokens) + (tokens > 100 * 12_800)  # the second phase's text is harder

    make_run(tmp_path / "long", steps=200, every=10, plan_steps=phases, loss=long)
    make_run(
        tmp_path / "short", experiment="idea", steps=120, every=10, plan_steps=phases, loss=lambda t: fall(t) - 0.2
    )
    found = overlay([tmp_path], tmp_path, PlotOptions(baseline="long"))
    (line,) = found.pictures["log_diff_loss"].lines
    # from 60 steps on the short run is in its second phase, and the long one still in its first
    assert max(line.curve.y) < 0 and line.curve.x[-1] > 60 * 12_800
    assert all(x <= 60 * 12_800 or x > 100 * 12_800 for x in line.curve.x)
    make_run(tmp_path / "shorter", experiment="other", steps=90, every=10, plan_steps=phases)
    table = overlay(["long", "shorter"], tmp_path, PlotOptions()).table
    (row,) = [line for line in table.splitlines() if line.startswith("other")]
    assert " - " in row  # where it ended, the other was in another phase
