"""Many ideas: p-values, false discoveries, shrunk effects, each against an independent reference."""

import numpy as np
import pytest
from scipy import optimize, stats

from lmplay.stats.many import expected_false, false_discovery_rates, p_value, shrink
from lmplay.stats.sequential import Looks
from lmplay.stats.verdict import PairedLosses, compare


def losses(seeds=3, documents=40, effect=-0.02, draw=0):
    random = np.random.default_rng(draw)
    tokens = random.integers(20, 200, documents).astype(float)
    base = tokens * (3 + 0.2 * random.normal(size=documents)) + random.normal(size=(seeds, documents))
    apart = effect + 0.01 * random.normal(size=(seeds, 1)) + 0.03 * random.normal(size=documents)
    return PairedLosses(base + tokens * apart, base, tokens, range(seeds))


@pytest.mark.parametrize("draw", range(4))
def test_p_is_where_the_interval_just_leaves_out_0(draw):
    data = losses(draw=draw)
    p = p_value(compare(data))
    assert 0 < p < 1
    for factor, leaves_out in ((1.001, True), (0.999, False)):
        verdict = compare(data, confidence=1 - p * factor)
        assert (verdict.low > 0 or verdict.high < 0) == leaves_out


def test_p_of_one_document_is_the_t_test():
    random = np.random.default_rng(1)
    base = 300 + random.normal(size=(5, 1))
    data = PairedLosses(base + random.normal(-1, 1, size=(5, 1)), base, [100.0], range(5))
    reference = stats.ttest_1samp((data.candidate - data.baseline)[:, 0], 0).pvalue
    assert p_value(compare(data)) == pytest.approx(reference, rel=1e-6)


def test_nothing_is_claimed_without_seeds():
    assert p_value(compare(losses(seeds=1))) == 1
    same = losses()
    assert p_value(compare(PairedLosses(same.baseline, same.baseline, same.tokens, same.seeds))) == 1


def test_p_where_documents_add_nothing_to_what_seeds_say():
    apart = np.array([[-0.1], [-0.02], [0.05]]) + np.array([[1, -1, 1, -1], [-1, 1, -1, 1], [1, -1, -1, 1]]) * 0.01
    data = PairedLosses(300 + 100 * apart, np.full((3, 4), 300.0), np.full(4, 100.0), range(3))
    verdict = compare(data)
    assert verdict.document_se == 0
    assert p_value(verdict) == pytest.approx(stats.ttest_1samp(apart.mean(1), 0).pvalue, rel=1e-6)


def test_p_of_a_look_is_that_of_the_whole_plan():
    looks = Looks(4)
    for effect in (-0.02, -0.09):
        data = losses(effect=effect)
        verdict = compare(data, confidence=looks.confidence_at(3))
        p, alone = p_value(verdict, looks), p_value(verdict)
        assert p > alone and (p <= 0.05) == (verdict.word == "better")
        if p < 0.9:
            there = Looks(4, confidence=1 - p).confidence_at(3)
            assert 1 - there == pytest.approx(alone, rel=0.05)


def test_false_discoveries_are_benjamini_and_yekutielis():
    p = np.array([0.001, 0.02, 0.03, 0.5, 0.9])
    n = len(p)
    raw = p * n / np.arange(1, n + 1) * np.sum(1 / np.arange(1, n + 1))
    by_hand = np.minimum(1, [raw[i:].min() for i in range(n)])
    assert false_discovery_rates(p[::-1])[::-1] == pytest.approx(by_hand)
    assert len(false_discovery_rates([])) == 0


def test_shrunk_effects_are_the_posterior_means():
    random = np.random.default_rng(2)
    errors = random.uniform(0.5, 2, 200)
    truth = random.normal(-1, 1.5, 200)
    found = shrink(truth + errors * random.normal(size=200), errors)
    assert found.mean == pytest.approx(-1, abs=0.3) and found.spread == pytest.approx(1.5, abs=0.3)
    raw = truth + errors * np.random.default_rng(3).normal(size=200)
    found = shrink(raw, errors)
    assert np.mean((found.effects - truth) ** 2) < 0.8 * np.mean((raw - truth) ** 2)
    # close to the maximum of the marginal likelihood, found another way
    fit = optimize.minimize(
        lambda at: -stats.norm.logpdf(raw, at[0], np.hypot(errors, at[1])).sum(), [0, 1], method="Nelder-Mead"
    )
    assert (found.mean, found.spread) == pytest.approx((fit.x[0], abs(fit.x[1])), abs=0.15)
    # one of them by Bayes's rule on a grid
    grid = np.linspace(-15, 15, 20001)
    weight = stats.norm.pdf(grid, found.mean, found.spread) * stats.norm.pdf(raw[0], grid, errors[0])
    mean = np.sum(grid * weight) / weight.sum()
    assert found.effects[0] == pytest.approx(mean, abs=1e-3)
    assert found.errors[0] == pytest.approx(np.sqrt(np.sum((grid - mean) ** 2 * weight) / weight.sum()), abs=1e-3)


def test_effects_that_agree_are_one():
    found = shrink([1.0, 1.1, 0.9], [1.0, 1.0, 1.0])
    assert found.spread == 0 and found.effects == pytest.approx([1, 1, 1])


def test_how_many_are_false_by_chance():
    """Models without an effect, judged by t tests: half of those that are called different are called better."""
    random = np.random.default_rng(4)
    called = stats.ttest_1samp(random.normal(size=(4000, 3)), 0, axis=1)
    better = int(((called.pvalue < 0.05) & (called.statistic < 0)).sum())
    assert better == pytest.approx(expected_false(4000, 0.95), abs=4 * np.sqrt(100))
