"""How much sooner the goal is reached, on curves whose crossing is known."""

import math

import numpy as np
import pytest
from scipy.special import stdtrit

from lmplay.stats.prior import Prior
from lmplay.stats.savings import Trajectory, compare_at_equal, completed, savings
from lmplay.stats.verdict import PairedLosses, compare
from support.planted import holds
from support.thorough import first

END, VALIDATIONS = 1e6, 25


def curve(tokens, offset=0.0):
    """Loss over tokens: a straight line over the logarithm, as small models' curves nearly are."""
    return 5 - 0.3 * np.log(tokens / 1e4) + offset


def runs(
    random,
    n_seeds,
    ahead=0.0,
    flops=1.0,
    speed=1.0,
    seeds=0.0,
    documents=0.0,
    rest=0.0,
    jitter=0.0,
    n_documents=60,
    end=END,
    validations=VALIDATIONS,
    common=None,
):
    """Trajectories with a loss per token `ahead` below the curve, with effects of seeds and documents (`planted`)."""
    tokens = np.geomspace(end, end / 50, validations)[::-1]
    lengths = np.random.default_rng(99).integers(50, 800, n_documents).astype(float)
    by_document = documents * random.standard_normal(n_documents)
    found = []
    for seed in range(n_seeds):
        effect = seeds * random.standard_normal() + by_document + rest * random.standard_normal(n_documents)
        loss = curve(tokens)[:, None] - ahead + effect + (common[seed] if common is not None else 0)
        found.append(
            Trajectory(
                tokens,
                tokens * flops,
                tokens / 1000 / speed * math.exp(jitter * random.standard_normal()),
                loss * lengths,
            )
        )
    return found, lengths


def both(n_seeds, seed=0, baseline_end=END, **candidate):
    random = np.random.default_rng(seed)
    common = random.standard_normal((n_seeds, 60)) * 0.3
    baseline, lengths = runs(random, n_seeds, common=common, jitter=candidate.get("jitter", 0.0), end=baseline_end)
    return runs(random, n_seeds, common=common, **candidate)[0], baseline, lengths, tuple(range(n_seeds))


def test_finds_the_crossing():
    """With a loss 0.06 lower, the goal is reached exp(-0.06 / 0.3) as far; each token costs 1.5 times as much."""
    found = savings(*both(3, ahead=0.06, flops=1.5, speed=0.8))
    assert found["tokens"].factor == pytest.approx(math.exp(-0.2), rel=1e-6)
    assert found["tokens"].candidate == pytest.approx(END * math.exp(-0.2), rel=1e-6) and found[
        "tokens"
    ].baseline == pytest.approx(END)
    assert found["flops"].factor == pytest.approx(
        1.5 * math.exp(-0.2), rel=1e-3
    )  # lines over tokens are not lines over log tokens
    assert found["seconds"].factor == pytest.approx(math.exp(-0.2) / 0.8, rel=1e-3)
    for one in found.values():
        assert one.low == pytest.approx(one.factor, rel=1e-3) and one.high == pytest.approx(
            one.factor, rel=1e-3
        )  # nothing is random
    assert "82%" in found["tokens"].sentence() and "tokens" in found["tokens"].sentence()


@pytest.mark.parametrize(
    "spreads",
    first(1, [dict(seeds=0.01, documents=0.05, rest=0.05), dict(documents=0.1), dict(seeds=0.02)]),
    ids=["both", "documents", "seeds"],
)
@pytest.mark.parametrize("n_seeds", first(1, [2, 4]))
def test_interval_holds_the_truth(spreads, n_seeds):
    repetitions = 400
    held = {"tokens": [], "flops": [], "seconds": []}
    for seed in range(repetitions):
        found = savings(*both(n_seeds, seed=seed, ahead=0.06, flops=1.5, jitter=0.05, **spreads))
        for axis, truth in (("tokens", math.exp(-0.2)), ("flops", 1.5 * math.exp(-0.2)), ("seconds", math.exp(-0.2))):
            held[axis].append(found[axis].low * 0.999 <= truth <= found[axis].high * 1.001)
    for axis, kept in held.items():
        assert holds(np.mean(kept), 0.95, repetitions), axis


def test_a_worse_candidate_does_not_reach_the_goal():
    found = savings(*both(4, ahead=-0.3, seeds=0.01, documents=0.01))
    for one in found.values():
        assert math.isinf(one.factor) and math.isinf(one.low) and math.isinf(one.high) and math.isinf(one.candidate)
        assert "not reached" in one.sentence()


def test_not_certain_to_reach_the_goal():
    found = savings(*both(2, ahead=0.01, seeds=0.02, seed=3))["tokens"]
    assert math.isinf(found.high) and found.low < 1


def test_the_machines_speed_widens_only_the_seconds():
    steady, unsteady = (savings(*both(3, ahead=0.06, jitter=jitter)) for jitter in (0.0, 0.1))
    assert unsteady["tokens"] == steady["tokens"]
    assert unsteady["seconds"].high / unsteady["seconds"].low > 1.1 > steady["seconds"].high / steady["seconds"].low
    alone = savings(*both(1, ahead=0.06, documents=0.02))
    assert any("speed" in note for note in alone["seconds"].notes) and any(
        "documents only" in note for note in alone["tokens"].notes
    )


def test_a_prior_narrows():
    sides = both(2, ahead=0.06, seeds=0.005, seed=1)
    wide, narrow = savings(*sides)["tokens"], savings(*sides, prior=Prior(0.005**2, 30, "earlier runs"))["tokens"]
    assert narrow.high < wide.high and narrow.low > wide.low and narrow.factor == wide.factor


def test_goal_reached_at_the_first_validation():
    found = savings(*both(3, ahead=3.0))["tokens"]
    assert found.factor == pytest.approx(1 / 50) and any("first validation" in note for note in found.notes)


def test_a_run_against_itself_needs_as_much():
    _, baseline, lengths, seeds = both(3)
    found = savings(baseline, baseline, lengths, seeds)
    assert [one.factor for one in found.values()] == pytest.approx([1, 1, 1])
    v, _ = compare_at_equal("seconds", baseline, baseline, lengths, seeds)
    assert v.label == "exactly equal"


def test_at_equal_tokens_is_the_plain_verdict():
    candidate, baseline, lengths, seeds = both(3, ahead=0.06, seeds=0.01, documents=0.05)
    v, amount = compare_at_equal("tokens", candidate, baseline, lengths, seeds, margin=0.001)
    ends = PairedLosses(*(np.stack([run.losses[-1] for run in side]) for side in (candidate, baseline)), lengths, seeds)
    assert amount == pytest.approx(END) and v == compare(ends, margin=0.001)


def test_at_equal_cost():
    """Half as fast, the candidate has seen half the tokens by the time the baseline ends."""
    sides = both(3, ahead=0.06, speed=0.5, flops=0.25)
    v, amount = compare_at_equal("seconds", *sides)
    assert amount == pytest.approx(END / 1000) and v.difference == pytest.approx(-0.06 + 0.3 * math.log(2), rel=1e-6)
    v, amount = compare_at_equal("flops", *sides)
    assert amount == pytest.approx(END / 4) and v.difference == pytest.approx(-0.06 - 0.3 * math.log(4), rel=1e-6)
    assert compare_at_equal("seconds", *both(3, speed=0.5, validations=1)) is None
    v, amount = compare_at_equal("tokens", *both(3, ahead=0.06, baseline_end=END / 2))
    assert amount == pytest.approx(END / 2) and v.difference == pytest.approx(-0.06, rel=1e-6)


def test_losses_that_were_not_scored_midway_are_estimated():
    """What the scored documents changed, all changed; its variance is that of two-phase sampling, by simulation."""
    tokens = np.full(40, 100.0)
    draw = np.random.default_rng(0)
    estimates, variances = [], []
    for _ in range(400):
        final = draw.normal(400, 30, 40)
        midway = final + 20 + draw.normal(0, 10, 40)
        losses = np.stack([midway, final])
        losses[0, 8:] = np.nan
        whole = completed(losses, tokens)
        assert np.array_equal(whole[1], final) and np.isfinite(whole).all()
        assert whole[0].sum() == pytest.approx(final.sum() + 40 / 8 * (midway - final)[:8].sum())
        estimates.append(whole[0].mean())
        variances.append(whole[0].var(ddof=1) / 40)
    wide = stdtrit(7, 0.975) / 1.959964
    truth = 30**2 / 40 + wide**2 * 10**2 / 8
    assert np.mean(variances) == pytest.approx(truth, rel=0.05)
    assert np.var(estimates) == pytest.approx(30**2 / 40 + 10**2 / 8, rel=0.25)


def test_a_run_that_never_scored_all_stays_as_it_is():
    losses = np.array([[1.0, np.nan], [2.0, np.nan]])
    assert np.array_equal(completed(losses, np.ones(2)), losses, equal_nan=True)
    after = np.array([[1.0, 5.0], [2.0, np.nan]])  # trained on after its end
    assert completed(after, np.ones(2)).tolist() == [[1.0, 5.0], [2.0, 6.0]]
