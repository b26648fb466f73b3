"""A ladder of sizes: planted multipliers and trends are held by their intervals, and the words follow from them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize

from lmplay.errors import UserError
from lmplay.stats.evidence import document_covariance, weigh
from lmplay.stats.ladder import judge_ladder
from lmplay.stats.multipliers import fieller
from lmplay.stats.prior import Prior
from lmplay.stats.ruler import Point, fit_ruler
from support.planted import holds
from support.planted_ladder import FLOPS, LAW, Plan, draw, true_slope

REPETITIONS = 150


@pytest.mark.parametrize("n_seeds", [2, 3])
@pytest.mark.parametrize("plan", [Plan((0.2, 0.2, 0.2)), Plan((0.26, 0.13, 0.0), ratio=1.3)], ids=["holds", "shrinks"])
def test_intervals_hold_the_truth(plan, n_seeds):
    random = np.random.default_rng(n_seeds)
    held = []
    for _ in range(REPETITIONS):
        found = judge_ladder(*draw(random, replace(plan, seeds=(n_seeds,) * 4)))
        each = [one.flops.low <= truth <= one.flops.high for one, truth in zip(found.rungs, plan.truth)]
        trend = found.parts.slope() @ plan.truth
        pooled = found.parts.mean() @ plan.truth
        held.append(
            [*each, found.pooled.low <= pooled <= found.pooled.high, found.trend.low <= trend <= found.trend.high]
        )
    assert all(holds(share, 0.95, REPETITIONS) for share in np.mean(held, 0))


def test_m_leaves_out_1_exactly_when_the_verdict_leaves_out_0():
    random = np.random.default_rng(5)
    decided = []
    for number in range(60):
        plan = Plan((0.09, 0.06, -0.09), seeds=(2 + number % 3,) * 4, ruler_spread=0.3)
        for one in judge_ladder(*draw(random, plan)).rungs:
            assert one.flops.leaves_out_0 == (one.verdict.word in ("better", "worse"))
            assert not one.flops.leaves_out_0 or (one.flops.value > 0) == (one.verdict.word == "better")
            decided.append(one.flops.leaves_out_0)
    assert 20 < sum(decided) < len(decided) - 20


def test_ruler_is_the_law_and_its_slope():
    points = [Point(c, np.full((2, 1), LAW(c))) for c in FLOPS]
    found = fit_ruler(points, np.ones(1))
    assert found.limit == pytest.approx(1.0, rel=1e-3) and found.exponent == pytest.approx(0.15, rel=1e-3)
    assert found.slopes == pytest.approx([true_slope(c) for c in FLOPS], rel=1e-4)
    more = found.log_worth(1, LAW(FLOPS[1] * 1.7) - LAW(FLOPS[1]))
    assert more == pytest.approx(math.log(1.7), rel=1e-3)  # the loss of 1.7 times the FLOPs is worth 1.7


def test_ruler_agrees_with_scipy_where_the_law_is_not_exact():
    random = np.random.default_rng(2)
    losses = [LAW(c) + 0.004 * random.standard_normal((n, 1)) for c, n in zip(FLOPS, (5, 4, 3, 2))]
    found = fit_ruler([Point(c, one) for c, one in zip(FLOPS, losses)], np.ones(1))
    means, x = [one.mean() for one in losses], np.log(FLOPS / np.exp(np.log(FLOPS).mean()))
    (limit, factor, exponent), _ = optimize.curve_fit(
        lambda x, e, a, alpha: e + a * np.exp(-alpha * x), x, means, (1, 2, 0.1), 1 / np.sqrt([5, 4, 3, 2])
    )
    assert found.slopes == pytest.approx(exponent * (np.array(means) - limit), rel=1e-3)


def test_error_of_the_slope_is_how_far_slopes_scatter():
    random = np.random.default_rng(3)
    fits = [
        fit_ruler([Point(c, LAW(c) + 0.006 * random.standard_normal((3, 1))) for c in FLOPS], np.ones(1))
        for _ in range(200)
    ]
    scatter = np.std([np.log(one.slopes) for one in fits], axis=0)
    said = np.median([np.sqrt(np.diag(one.seed_covariance)) for one in fits], axis=0)
    assert (said / scatter > 0.7).all() and (said / scatter < 2).all()


def test_the_band_of_the_law_holds_the_law():
    random = np.random.default_rng(4)
    fits = [
        fit_ruler([Point(c, LAW(c) + 0.006 * random.standard_normal((4, 1))) for c in FLOPS], np.ones(1))
        for _ in range(150)
    ]
    flops = np.array([3e13, 5e14])
    losses, bands = (
        np.array([one for one in of]) for of in zip(*((f.loss_at(flops), f.band(flops, 0.95)) for f in fits))
    )
    assert holds((np.abs(losses - LAW(flops)) <= bands).mean(), 0.95, len(fits))
    assert (np.median(bands, 0) < 4 * losses.std(0)).all()


def test_ruler_refuses_what_measures_nothing():
    rising = [Point(c, np.full((1, 1), 3 + i)) for i, c in enumerate(FLOPS)]
    with pytest.raises(UserError, match="does not fall from size to size"):
        fit_ruler(rising, np.ones(1))
    with pytest.raises(UserError, match="at least 3 are needed"):
        fit_ruler(rising[:2], np.ones(1))


@pytest.mark.parametrize(
    "truth, seeds, word, trend",
    [
        ((0.5, 0.25, 0.0), 4, "better", "shrinks"),
        ((0.1, 0.3, 0.5), 4, "better", "grows"),
        ((0.4, 0.4, 0.4), 8, "better", "holds"),
        ((0.0, 0.0, 0.0), 4, "not decided", "not decided"),
        ((-0.4, -0.4, -0.4), 8, "worse", "holds"),
    ],
)
def test_words(truth, seeds, word, trend):
    plan = Plan(truth, seeds=(seeds,) * 4, spread=0.03, ruler_spread=0.005)
    found = judge_ladder(*draw(np.random.default_rng(3), plan))
    assert (found.word, found.trend_word) == (word, trend)
    assert (found.gone_at is not None) == (trend == "shrinks")
    if trend == "shrinks":  # about at the top rung
        assert found.gone_at.low < math.log10(FLOPS[-1]) < found.gone_at.high


def test_what_is_not_decided_says_what_it_takes():
    plan = Plan((0.3, 0.2, 0.1), seeds=(2,) * 4, spread=0.1)
    found = judge_ladder(*draw(np.random.default_rng(0), plan))
    assert found.trend_word == "not decided" and found.more_runs % 6 == 0 and found.more_runs > 0
    assert found.smallest_trend > (found.trend.high - found.trend.low) / 2
    more = found.more_runs // 6
    width = found.parts.half(found.parts.slope(), more)
    assert width < abs(found.trend.value) or abs(found.trend.value) + width < abs(found.pooled.value) / 2


def test_extrapolation_ends_at_ten_times_the_top():
    found = judge_ladder(*draw(np.random.default_rng(0), Plan((0.2, 0.2, 0.2), seeds=(3,) * 4)))
    far, near = found.extrapolated(10 * FLOPS[-1]), found.extrapolated(FLOPS[-2])
    assert far.low < 0.2 < far.high and far.high - far.low > 1.5 * (near.high - near.low)
    with pytest.raises(ValueError, match="more than 10 times"):
        found.extrapolated(11 * FLOPS[-1])


def test_beyond_what_the_baseline_has_seen():
    plan = Plan((5.0, 0.1, 0.1), seeds=(3,) * 4, spread=0.01)
    first = judge_ladder(*draw(np.random.default_rng(0), plan)).rungs[0]
    assert first.beyond and first.flops.value == pytest.approx(math.log(10 * FLOPS[-1] / FLOPS[1]))


def test_equal_to_the_bit():
    rungs, below = draw(np.random.default_rng(0), Plan((0.1, 0.1, 0.1), seeds=(2,) * 4))
    same = [replace(rung, losses=replace(rung.losses, candidate=rung.losses.baseline)) for rung in rungs]
    found = judge_ladder(same, below)
    assert found.word == "equal" and (found.pooled.low, found.pooled.high) == (0, 0)
    assert all((one.flops.low, one.flops.value, one.flops.high) == (0, 0, 0) for one in found.rungs)


def test_spread_is_pooled_unless_a_rung_differs():
    rungs, below = draw(np.random.default_rng(0), Plan((0.1, 0.1, 0.1), seeds=(3,) * 4))
    together = judge_ladder(rungs, below).rungs[0].verdict
    assert together.seed_df == 6 and "the other rungs" in together.notes[0]
    known = [replace(rung, prior=Prior(together.seed_sd**2, df=4, source="earlier runs")) for rung in rungs]
    assert judge_ladder(known, below).rungs[0].verdict.seed_df == 18
    apart = rungs[0].losses.candidate + np.array([[-1.0], [0.0], [1.0]]) * rungs[0].losses.tokens
    rungs[0] = replace(rungs[0], losses=replace(rungs[0].losses, candidate=apart))
    alone = judge_ladder(rungs, below).rungs[0].verdict
    assert alone.seed_df == 2 and "is not used" in alone.notes[0]


def test_one_seed_decides_nothing():
    found = judge_ladder(*draw(np.random.default_rng(0), Plan((0.3, 0.3, 0.3), seeds=(1,) * 4)))
    assert (found.word, found.trend_word) == ("not decided", "not decided")


def test_seconds_count_what_a_run_takes():
    rungs, below = draw(np.random.default_rng(0), Plan((0.2, 0.2, 0.2), seeds=(2,) * 4))
    rungs = [
        replace(rung, baseline_seconds=np.array([10.0, 10.0]), candidate_seconds=np.array([19.0, 21.0]))
        for rung in rungs
    ]
    one = judge_ladder(rungs, below).rungs[0]
    assert one.seconds.value == pytest.approx(one.flops.value - math.log(np.sqrt(19 * 21) / 10))
    assert one.seconds.high - one.seconds.low > one.flops.high - one.flops.low


def test_part_of_the_documents_is_the_verdicts():
    random = np.random.default_rng(0)
    tokens = random.integers(5, 900, 40).astype(float)
    shared = random.standard_normal((2, 1, 40)) + [[[0.0]], [[1.0]]] * random.standard_normal(40)
    losses = [(one + 0.1 * random.standard_normal((3, 40))) * tokens for one in shared]
    found = document_covariance(losses, tokens)
    one, other = (weigh(one, tokens, None)[0].documents_variance for one in losses)
    both = weigh(losses[0] - losses[1], tokens, None)[0].documents_variance
    assert np.diag(found) == pytest.approx([one, other])
    assert found[0, 1] == pytest.approx((one + other - both) / 2, rel=0.02)


@pytest.mark.parametrize("value, half, squared", [(0.3, 0.1, 0.04), (-0.2, 0.3, 0.1), (2.0, 1.0, 1.5), (0.1, 0.3, 1.5)])
def test_fieller_is_what_a_test_does_not_reject(value, half, squared):
    x = np.linspace(-6, 6, 240_001)  # the part that holds the estimate
    kept = (value - x) ** 2 <= half**2 + squared * x**2
    found = fieller(value, half, half, squared)
    ends = np.flatnonzero(~kept)
    below, above = ends[x[ends] < value], ends[x[ends] > value]
    assert max(found.low, -6) == pytest.approx(x[below[-1]] if len(below) else -6, abs=1e-3)
    assert min(found.high, 6) == pytest.approx(x[above[0]] if len(above) else 6, abs=1e-3)
