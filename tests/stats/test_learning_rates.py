"""A learning rate chosen on other seeds and documents does not flatter the side that had more to choose from."""

import math

import numpy as np
import pytest

from lmplay.errors import UserError
from lmplay.stats.learning_rates import choose_rates
from lmplay.stats.verdict import PairedLosses, compare
from support.planted import holds

REPETITIONS = 1000
TOKENS = np.random.default_rng(0).integers(50, 800, 40).astype(float)
NAMES = [f"text/{i}" for i in range(40)]


def side(random, rates, n_seeds, common, seeds=0.02, documents=0.05):
    """{rate: (S, D)}; `rates` gives the true loss of each, and each has its own luck with seeds and documents."""
    return {
        rate: (common + loss + seeds * random.standard_normal((n_seeds, 1)) + documents * random.standard_normal(40))
        * TOKENS
        for rate, loss in rates.items()
    }


def common_part(random, n_seeds):
    return 3 + 0.3 * random.standard_normal((n_seeds, 1)) + random.standard_normal(40)


@pytest.mark.parametrize("n_seeds", [2, 3, 6])
def test_choosing_among_many_does_not_flatter(n_seeds):
    """Six rates that are all as good as the baseline's only one: better in nothing but luck."""
    random = np.random.default_rng(1)
    judged, flattered, held = [], [], []
    for _ in range(REPETITIONS):
        common = common_part(random, n_seeds)
        candidate = side(random, {0.001 * 2**i: 0.0 for i in range(6)}, n_seeds, common)
        baseline = side(random, {0.001: 0.0}, n_seeds, common)
        v = compare(choose_rates(candidate, baseline, TOKENS, range(n_seeds), NAMES).losses)
        judged.append(v.difference)
        held.append(v.low <= 0 <= v.high)
        best = min(candidate.values(), key=np.sum)
        flattered.append((best - baseline[0.001]).sum() / TOKENS.sum() / n_seeds)
    assert abs(np.mean(judged)) < 4 * np.std(judged) / math.sqrt(REPETITIONS)
    assert np.mean(flattered) < -0.5 * np.std(judged)  # what choosing on the same data makes of it
    assert holds(np.mean(held), 0.95, REPETITIONS)


@pytest.mark.parametrize("n_seeds", [2, 4])
def test_each_side_at_its_own_best(n_seeds):
    """A difference of 0.03 between the best of both, at different rates, where all others are far worse."""
    random = np.random.default_rng(2)
    held = []
    for _ in range(REPETITIONS):
        common = common_part(random, n_seeds)
        candidate = side(random, {0.001: 0.5, 0.002: 0.0, 0.004: 0.4}, n_seeds, common)
        baseline = side(random, {0.001: 0.03, 0.002: 0.6, 0.0005: 0.3}, n_seeds, common)
        found = choose_rates(candidate, baseline, TOKENS, range(n_seeds), NAMES)
        v = compare(found.losses)
        held.append(v.low <= -0.03 <= v.high)
        assert (found.candidate, found.baseline) == (0.002, 0.001) and not found.notes
        assert v == compare(PairedLosses(candidate[0.002], baseline[0.001], TOKENS, range(n_seeds)))
    assert holds(np.mean(held), 0.95, REPETITIONS)


def test_no_loss_has_a_say_in_the_rate_it_is_judged_at():
    """One seed's losses on one document, made incredibly low at one rate, change the choice for others only."""
    random = np.random.default_rng(3)
    common = common_part(random, 3)
    baseline = side(random, {0.1: 0.0}, 3, common)
    candidate = side(random, {0.1: 0.0, 0.2: 0.5, 0.3: 0.5}, 3, common, seeds=0.001, documents=0.001)
    before = choose_rates(candidate, baseline, TOKENS, range(3), NAMES).losses.candidate
    assert np.array_equal(before, candidate[0.1])
    candidate[0.2][1, 7] = -1e6
    after = choose_rates(candidate, baseline, TOKENS, range(3), NAMES)
    assert np.array_equal(after.losses.candidate[1], candidate[0.1][1])  # the seed itself
    assert after.losses.candidate[0, 7] == candidate[0.1][0, 7]  # the document itself
    moved = (after.losses.candidate[[0, 2]] == candidate[0.2][[0, 2]]).sum(1)
    assert list(moved) == [20, 20]  # the other half, under the other seeds
    assert any("not settled" in note for note in after.notes)


@pytest.mark.parametrize("best, edge", [(0.001, True), (0.002, False), (0.004, True)])
def test_says_when_the_best_is_at_the_edge(best, edge):
    random = np.random.default_rng(4)
    common = common_part(random, 2)
    candidate = side(random, {rate: 0.0 if rate == best else 0.5 for rate in (0.004, 0.001, 0.002)}, 2, common)
    found = choose_rates(candidate, side(random, {0.01: 0.0}, 2, common), TOKENS, range(2), NAMES)
    assert found.candidate == best and found.candidate_at_edge == edge and not found.baseline_at_edge
    assert any("edge" in note for note in found.notes) == edge


def test_one_seed_is_split_by_documents():
    random = np.random.default_rng(5)
    common = common_part(random, 1)
    candidate = side(random, {0.001: 0.0, 0.002: 0.0}, 1, common)
    found = choose_rates(candidate, side(random, {0.001: 0.0}, 1, common), TOKENS, ["only"], NAMES)
    assert any("same seed" in note for note in found.notes)
    better = {rate: losses[0] for rate, losses in candidate.items()}
    judged = found.losses.candidate[0]
    first = judged == better[0.001]
    assert first.sum() in (0, 20, 40)


def test_rates_that_diverge_are_not_chosen():
    random = np.random.default_rng(6)
    common = common_part(random, 3)
    baseline = side(random, {0.001: 0.0}, 3, common)
    candidate = side(random, {0.001: 0.1, 0.002: 0.0, 0.1: -9.0}, 3, common)
    candidate[0.1][:] = math.nan
    assert choose_rates(candidate, baseline, TOKENS, range(3), NAMES).candidate == 0.002
    candidate[0.002][1, 3] = math.inf
    with pytest.raises(UserError, match="diverges under seed 1"):
        choose_rates(candidate, baseline, TOKENS, range(3), NAMES)
    with pytest.raises(UserError, match="every learning rate"):
        choose_rates({0.1: candidate[0.1]}, baseline, TOKENS, range(3), NAMES)
