"""Curves of runs that score a part of the validation documents midway."""

import numpy as np
import pandas
import pytest

from lmplay.report.phase_curves import curve_of
from lmplay.stats.curves import difference

TOKENS = [100.0, 200.0, 300.0, 400.0]


def drawn(loss, part, text="all", phases=("p",) * 4):
    """The curve of a table: `part` is the loss on the documents of midway, known where all are scored."""
    rows = {"plan_step": pandas.Categorical(phases), "tokens": TOKENS[: len(loss)], "loss": loss, "midway_loss": part}
    return curve_of(pandas.DataFrame(rows), "tokens", "loss", True, lambda phase, midway: (text, phase, midway))


def test_midway_figures_are_moved_to_the_level_of_all_documents():
    curve = drawn([5.0, 4.0, 3.0, 2.5], [np.nan, np.nan, np.nan, 2.0])
    assert curve.y.tolist() == [5.5, 4.5, 3.5, 2.5] and curve.texts == (("all", "p", False),)
    assert curve.midway.y.tolist() == [5.0, 4.0, 3.0, 2.0] and curve.midway.texts == (("all", "p", True),)


def test_each_phase_has_a_level_of_its_own():
    curve = drawn([5.0, 4.0, 8.0, 7.0], [np.nan, 3.0, np.nan, np.nan], phases=("p", "p", "q", "q"))
    assert curve.y.tolist() == [6.0, 4.0, 8.0, 7.0]
    assert curve.texts == (("all", "p", False), ("all", "q", True))


def test_a_run_that_still_trains_is_subtracted_on_the_documents_of_midway():
    ended, trains = (
        drawn([5.0, 4.0, 3.0, 2.5], [np.nan, np.nan, np.nan, 2.0]),
        drawn([4.5, 3.5], [np.nan] * 2, phases=("p", "p")),
    )
    assert difference(trains, ended).y.tolist() == pytest.approx([-0.5, -0.5])
    assert difference(ended, ended).y.tolist() == [0.0] * 4
    # of a run that always scored all, only what is known of all documents
    always = curve_of(
        pandas.DataFrame({"plan_step": pandas.Categorical(["p"] * 4), "tokens": TOKENS, "loss": [5.0, 4.0, 3.0, 2.0]}),
        "tokens",
        "loss",
        True,
        lambda phase, midway: ("all", phase, midway),
    )
    assert difference(ended, always).y.tolist() == [0.5] * 4
    assert not len(difference(trains, always))
