"""Looking after each added seed, and stopping at the first verdict, goes wrong in 5% of all cases, not more."""

import numpy as np
import pytest

from lmplay.errors import UserError
from lmplay.stats.prior import Prior
from lmplay.stats.sequential import Looks
from lmplay.stats.verdict import PairedLosses, compare
from support.planted import holds, planted
from support.thorough import first

REPETITIONS = 1500


def stopping(max_seeds, confidence_at, repetitions=REPETITIONS, seed=0, prior=None, margin=None, **spreads):
    """The verdict at which each repetition stops, and whether all its intervals up to there held the truth."""
    random = np.random.default_rng(seed)
    for _ in range(repetitions):
        candidate, baseline, tokens = planted(random, max_seeds, n_documents=40, **spreads)
        given = prior(random) if prior else None
        held = True
        for n in range(2, max_seeds + 1):
            v = compare(PairedLosses(candidate[:n], baseline[:n], tokens, range(n)), given, confidence_at(n), margin)
            held &= v.low <= spreads["truth"] <= v.high
            if v.decided:
                break
        yield v, held


def same_model(**more):
    return dict(truth=0.0, documents=0.0, **more)


@pytest.mark.parametrize("max_seeds", first(1, [8, 3, 10]))
def test_seldom_wrong_in_all(max_seeds):
    """A/A, and nothing but independent seeds: the case for which the levels are made."""
    looks = Looks(max_seeds)
    found = list(stopping(max_seeds, looks.confidence_at, **same_model(seeds=0.02, rest=0.0)))
    right = np.mean([v.word == "not decided" for v, _ in found])
    assert holds(right, 0.95, REPETITIONS)
    assert right < 0.97  # the error that is allowed is used


@pytest.mark.thorough
@pytest.mark.parametrize(
    "spreads",
    [
        dict(truth=0.0, seeds=0.01, documents=0.1, rest=0.05),
        dict(truth=0.0, seeds=0.0, documents=0.1, rest=0.0),
        same_model(seeds=0.005, rest=0.1),
    ],
    ids=["both", "documents", "rest"],
)
def test_seldom_wrong_with_documents(spreads):
    found = stopping(8, Looks(8).confidence_at, **spreads)
    assert holds(np.mean([v.word == "not decided" for v, _ in found]), 0.95, REPETITIONS)


@pytest.mark.thorough
@pytest.mark.parametrize("df", first(1, [3, 12]))
def test_seldom_wrong_with_a_prior(df):
    found = stopping(
        8,
        Looks(8).confidence_at,
        **same_model(seeds=0.02, rest=0.0),
        prior=lambda random: Prior(0.02**2 * random.chisquare(df) / df, df, "earlier runs"),
    )
    assert holds(np.mean([v.word == "not decided" for v, _ in found]), 0.95, REPETITIONS)


def test_all_intervals_hold_the_truth_where_there_is_a_difference():
    found = list(stopping(8, Looks(8).confidence_at, truth=-0.02, seeds=0.01, documents=0.02, rest=0.02))
    assert holds(np.mean([held for _, held in found]), 0.95, REPETITIONS)
    assert np.mean([v.word == "better" for v, _ in found]) > 0.7
    assert np.mean([v.n_seeds for v, _ in found if v.decided]) < 7  # sooner than at the last look


def test_seldom_equal_where_the_difference_is_the_margin():
    found = stopping(8, Looks(8).confidence_at, truth=-0.03, seeds=0.01, documents=0.02, rest=0.02, margin=0.03)
    assert holds(np.mean([v.word != "equal" for v, _ in found]), 0.975, REPETITIONS)


def test_looking_again_and_again_at_95_percent_is_wrong_far_more_often():
    found = stopping(8, lambda n: 0.95, repetitions=400, **same_model(seeds=0.02, rest=0.0))
    assert np.mean([v.decided for v, _ in found]) > 0.12


def test_a_single_look_is_the_plain_interval():
    assert Looks(5, first=5).confidence_at(5) == pytest.approx(0.95, abs=1e-9)
    assert Looks(2, confidence=0.9).confidence_at(2) == pytest.approx(0.9, abs=1e-9)


def test_levels():
    looks = Looks(10)
    wrong = [1 - looks.confidence_at(n) for n in range(2, 11)]
    assert wrong[0] == pytest.approx(0.05 * (2 / 10) ** 2)  # what the power family spends by then, exactly
    assert 0.05 < sum(wrong) < 0.2 and max(wrong) < 0.05  # more than a union bound would give, no look all of it
    assert np.all(np.diff(wrong) > 0)
    assert wrong == [1 - Looks(10).confidence_at(n) for n in range(2, 11)]
    strict = [1 - Looks(60, confidence=0.999).confidence_at(n) for n in range(2, 61)]
    assert min(strict) > 0 and max(strict) < 0.001


@pytest.mark.parametrize(
    "wrong",
    [dict(max_seeds=1), dict(max_seeds=5, first=1), dict(max_seeds=3, first=4), dict(max_seeds=3, confidence=1)],
)
def test_refuses_plans_without_a_look(wrong):
    with pytest.raises(UserError):
        Looks(**wrong)


@pytest.mark.parametrize("n", [1, 6])
def test_refuses_looks_that_were_not_planned(n):
    with pytest.raises(UserError, match="planned"):
        Looks(5).confidence_at(n)
