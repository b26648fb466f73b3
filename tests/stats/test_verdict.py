"""Intervals hold a planted truth as often as they say; the words follow from them."""

import math

import numpy as np
import pytest
from scipy import stats

from lmplay.errors import UserError
from lmplay.stats.prior import Prior, prior_from_runs
from lmplay.stats.verdict import PairedLosses, compare
from support.planted import LEVEL, TRUTH, holds, planted
from support.thorough import first

REPETITIONS = 1500
SPREADS = {  # standard deviations in nats a token: between seeds, between documents, of both together
    "seeds": dict(seeds=0.02, documents=0.02, rest=0.05),
    "documents": dict(seeds=0.0005, documents=0.2, rest=0.02),
    "both": dict(seeds=0.02, documents=0.14, rest=0.05),
    "neither": dict(seeds=0.005, documents=0.0, rest=0.15),
}


def verdicts(n_seeds, repetitions=REPETITIONS, seed=0, prior=None, margin=None, confidence=0.95, **spreads):
    random = np.random.default_rng(seed)
    for _ in range(repetitions):
        given = prior(random) if prior else None
        yield compare(PairedLosses(*planted(random, n_seeds, **spreads), range(n_seeds)), given, confidence, margin)


def covered(found, truth=TRUTH):
    return np.mean([v.low <= truth <= v.high for v in found])


@pytest.mark.parametrize("n_seeds", first(2, [3, 8, 2, 5]))
@pytest.mark.parametrize("spread", SPREADS)
def test_interval_holds_the_truth(spread, n_seeds):
    found = list(verdicts(n_seeds, **SPREADS[spread]))
    assert holds(covered(found), 0.95, REPETITIONS)
    # an interval that always holds is none: it is as wide as the estimates scatter, and as Student's t asks
    half = np.median([(v.high - v.low) / 2 for v in found])
    scatter = np.std([v.difference for v in found])
    assert half < 1.15 * stats.t.ppf(0.975, n_seeds - 1) * scatter
    if spread == "documents" and n_seeds > 2:
        assert half < 2.2 * scatter
    assert abs(np.mean([v.difference for v in found]) - TRUTH) < 4 * scatter / math.sqrt(REPETITIONS)
    assert {v.covers for v in found} == {"seeds and documents"}


@pytest.mark.parametrize("n_seeds, prior_df", first(3, [(1, 3), (2, 12), (5, 6), (1, 12), (2, 3), (3, 6)]))
@pytest.mark.parametrize("spread", SPREADS)
def test_interval_with_a_prior_holds_the_truth(spread, n_seeds, prior_df):
    spreads = SPREADS[spread]
    random = np.random.default_rng(1)
    many = PairedLosses(
        *planted(random, 4000, documents=0, **{k: v for k, v in spreads.items() if k != "documents"}), range(4000)
    )
    per_seed = (many.candidate - many.baseline).sum(
        1
    ) / many.tokens.sum()  # differs a little with the documents' lengths
    variance = per_seed.var()

    def prior(random):
        return Prior(variance * random.chisquare(prior_df) / prior_df, prior_df, "earlier runs")

    found = list(verdicts(n_seeds, prior=prior, **spreads))
    assert holds(covered(found), 0.95, REPETITIONS)
    alone = np.median([(v.high - v.low) / 2 for v in verdicts(n_seeds, repetitions=200, **spreads)])
    if n_seeds == 2 and spread == "seeds":
        assert np.median([(v.high - v.low) / 2 for v in found]) < 0.6 * alone


def test_interval_of_few_documents_holds_the_truth():
    for n_documents in (12, 25):
        assert holds(covered(verdicts(3, n_documents=n_documents, **SPREADS["both"])), 0.95, REPETITIONS)
        assert holds(covered(verdicts(3, n_documents=n_documents, **SPREADS["documents"])), 0.94, REPETITIONS)


def test_the_simple_ways_do_not_hold_the_truth():
    """What the counts above would show of an interval that leaves out a source of variance, or the pairing."""
    random = np.random.default_rng(2)
    documents_only, seeds_only, one_t, unpaired = [], [], [], []
    for _ in range(REPETITIONS):
        candidate, baseline, tokens = planted(random, 2, seeds=0.02, documents=0.14, rest=0.02)
        difference = (candidate - baseline) / tokens.sum()
        per_seed = difference.sum(1)
        mean = per_seed.mean()
        pull = difference.mean(0) - mean * tokens / tokens.sum()
        by_documents, by_seeds = (pull**2).sum(), per_seed.var(ddof=1) / 2
        documents_only.append(abs(mean - TRUTH) < 1.97 * math.sqrt(by_documents))
        seeds_only.append(abs(mean - TRUTH) < 4.3 * math.sqrt(by_seeds))
        variance = by_documents + by_seeds
        df = variance**2 / (by_seeds**2 + by_documents**2 / 99)
        one_t.append(abs(mean - TRUTH) < stats.t.ppf(0.975, df) * math.sqrt(variance))  # Satterthwaite
        unpaired.append(stats.ttest_ind(candidate.sum(1), baseline.sum(1)).pvalue < 0.05)
    assert np.mean(documents_only) < 0.85
    assert np.mean(seeds_only) < 0.85
    assert np.mean(one_t) < 0.93
    assert np.mean(unpaired) < 0.1  # finds nothing, where paired ...
    clear = verdicts(3, repetitions=200, seeds=0.001, documents=0.02, rest=0.02)
    assert np.mean([v.word == "better" for v in clear]) > 0.95  # ... three seeds do


def test_more_seeds_do_not_make_documents_independent():
    few, many = ([(v.high - v.low) / 2 for v in verdicts(n, repetitions=100, **SPREADS["documents"])] for n in (4, 40))
    assert np.median(many) > 0.9 * np.median(few)


def test_equals_textbook_cases():
    """Documents all alike: the paired t test on seeds. One seed: the t interval of a mean over equal documents."""
    random = np.random.default_rng(3)
    per_seed = random.normal(-0.01, 0.02, 6)
    tokens = np.array([100.0, 300, 50, 800])
    baseline = np.outer(random.normal(3, 0.2, 6), tokens)
    v = compare(PairedLosses(baseline + np.outer(per_seed, tokens), baseline, tokens, range(6)))
    expected = stats.ttest_1samp(per_seed, 0).confidence_interval(0.95)
    assert (v.low, v.high) == pytest.approx(tuple(expected), rel=1e-6)
    assert v.seed_sd == pytest.approx(per_seed.std(ddof=1))

    per_document = random.standard_normal(50)
    v = compare(PairedLosses(7 * per_document[None] + 99, np.full((1, 50), 99.0), np.full(50, 7.0), ["only"]))
    expected = stats.ttest_1samp(per_document, 0).confidence_interval(0.95)
    wider = 1 / (1 - 1 / 50)  # the jackknife divides by 1 - share, the mean's formula by its root, twice over
    middle = per_document.mean()
    assert v.low - middle == pytest.approx((expected.low - middle) * math.sqrt(wider * 49 / 50), rel=1e-6)
    assert v.covers == "documents only"


def test_jackknife_of_the_ratio():
    random = np.random.default_rng(4)
    candidate, baseline, tokens = planted(random, 1, n_documents=20)
    difference = (candidate - baseline)[0]
    left_out = [(difference.sum() - x) / (tokens.sum() - n) for x, n in zip(difference, tokens)]
    v = compare(PairedLosses(candidate, baseline, tokens, [0]))
    assert v.document_se**2 == pytest.approx(19 / 20 * np.sum((np.array(left_out) - v.difference) ** 2))
    assert v.document_df == pytest.approx(tokens.sum() ** 2 / (tokens**2).sum() - 1)


def test_order_and_empty_documents_do_not_matter():
    random = np.random.default_rng(5)
    candidate, baseline, tokens = planted(random, 3)
    v = compare(PairedLosses(candidate, baseline, tokens, range(3)))
    order = random.permutation(100)
    shuffled = compare(
        PairedLosses(candidate[[2, 0, 1]][:, order], baseline[[2, 0, 1]][:, order], tokens[order], (2, 0, 1))
    )
    assert (shuffled.low, shuffled.high) == pytest.approx((v.low, v.high))
    nothing = np.zeros((3, 1))
    with_empty = compare(
        PairedLosses(np.hstack([candidate, nothing]), np.hstack([baseline, nothing]), np.append(tokens, 0), range(3))
    )
    assert (with_empty.low, with_empty.high) == (v.low, v.high) and with_empty.n_documents == 100
    other_way = compare(PairedLosses(baseline, candidate, tokens, range(3)))
    assert (other_way.low, other_way.high) == pytest.approx((-v.high, -v.low))


@pytest.mark.parametrize("n_seeds", [1, 2, 5])
def test_baseline_against_itself_is_exactly_equal(n_seeds):
    _, baseline, tokens = planted(np.random.default_rng(6), n_seeds)
    v = compare(PairedLosses(baseline, baseline.copy(), tokens, range(n_seeds)), Prior(1e-4, 5, "earlier runs"))
    assert (v.word, v.difference, v.low, v.high, v.more_seeds) == ("equal", 0, 0, 0, None)
    assert v.label == "exactly equal" and "exactly equal" in v.sentence()


def test_no_false_difference():
    """Models that are the same except for their seeds."""
    for n_seeds in (2, 3, 5):
        found = verdicts(n_seeds, truth=0, seeds=0.01, documents=0, rest=0.1)
        assert holds(np.mean([v.word == "not decided" for v in found]), 0.95, REPETITIONS)


def test_words():
    quiet = dict(seeds=0.001, documents=0.01, rest=0.01, n_seeds=4, repetitions=1)
    for truth, margin, word, label in [
        (-0.05, None, "better", "better"),
        (0.05, None, "worse", "worse"),
        (0.05, 0.2, "worse", "worse"),
        (0.0, 0.02, "equal", "equal within 0.02"),
    ]:
        (v,) = verdicts(truth=truth, margin=margin, **quiet)
        assert (v.word, v.label, v.decided, v.more_seeds) == (word, label, True, None)
        assert v.sentence().startswith(word)
        assert bool(v.notes) == (margin == 0.2)  # worse, but by less than the margin
    (v,) = verdicts(truth=-0.05, **quiet)
    assert v.difference == pytest.approx(v.candidate_loss - v.baseline_loss)
    share = 100 * -v.difference / v.baseline_loss
    assert (
        f"({share:.2g}%)" in v.sentence()
        and abs(v.baseline_loss - LEVEL) < 1
        and "4 seeds, 100 documents" in v.sentence()
    )
    (v,) = verdicts(truth=0.0, **quiet)
    assert (
        v.word == "not decided"
        and v.bound == max(-v.low, v.high)
        and f"no difference larger than {v.bound:.4f}" in v.sentence()
    )


def test_equal_is_seldom_said_of_what_differs_by_the_margin():
    found = verdicts(3, truth=0.03, margin=0.03, seeds=0.01, documents=0.02, rest=0.02)
    assert np.mean([v.word == "equal" for v in found]) <= 0.025 + 3 * math.sqrt(0.025 / REPETITIONS)


def test_one_seed_decides_nothing_and_says_so():
    (v,) = verdicts(1, repetitions=1, truth=-0.5)
    assert v.high < 0 and v.covers == "documents only" and v.word == "not decided" and v.more_seeds is None
    assert math.isnan(v.seed_sd) and any("other seeds" in note for note in v.notes)
    assert "documents only" in v.sentence() and "no difference larger" not in v.sentence()
    (v,) = verdicts(1, repetitions=1, truth=-0.5, prior=lambda random: Prior(1e-4, 8, "6 runs"))
    assert v.word == "better" and v.covers == "seeds and documents" and v.prior_share == 1


def test_one_document():
    v = compare(PairedLosses([[3.0], [3.1], [3.05]], [[4.0], [4.1], [4.2]], [2.0], range(3)))
    expected = stats.ttest_rel([1.5, 1.55, 1.525], [2, 2.05, 2.1]).confidence_interval(0.95)
    assert (
        (v.low, v.high) == pytest.approx(tuple(expected))
        and v.covers == "seeds only"
        and any("other text" in n for n in v.notes)
    )
    v = compare(PairedLosses([[3.0]], [[4.0]], [2.0], [0]))
    assert (v.low, v.high, v.covers, v.word) == (-math.inf, math.inf, "nothing", "not decided") and v.sentence()


def test_more_seeds_is_how_many_would_do():
    """With the number of seeds that was asked for, and the same spreads, the interval just excludes 0."""
    random = np.random.default_rng(7)
    candidate, baseline, tokens = planted(random, 40, seeds=0.02, documents=0.01, rest=0.01, truth=0.0)
    per_seed = (candidate - baseline).sum(1) / tokens.sum()
    standard = (per_seed - per_seed.mean()) / per_seed.std(ddof=1)  # so that the spread is known
    baseline = np.outer(np.full(4, 3.0), tokens)

    def verdict(n, prior=None):
        scores = standard[:n] - standard[:n].mean()
        scores = scores / scores.std(ddof=1) * 0.02 - 0.015
        base = np.outer(np.full(n, 3.0), tokens)
        return compare(PairedLosses(base + np.outer(scores, tokens), base, tokens, range(n)), prior)

    for prior in (None, Prior(0.02**2, 6, "earlier runs")):
        v = verdict(4, prior)
        assert (
            v.word == "not decided"
            and f"about {v.more_seeds} more seeds" in v.label
            and v.label in v.sentence() + v.label
        )
        assert verdict(4 + v.more_seeds, prior).word == "better"
        assert verdict(4 + v.more_seeds - 1, prior).word == "not decided"
    few = verdict(4, Prior(0.02**2, 6, "earlier runs")).more_seeds
    assert few < verdict(4).more_seeds


def test_says_when_seeds_would_not_help():
    (v,) = verdicts(5, repetitions=1, truth=0.0, seeds=0.0, documents=0.5, rest=0.0)
    assert v.more_seeds is None and any("validate on more documents" in note for note in v.notes)


def test_a_prior_that_does_not_fit_is_left_out_and_named():
    (v,) = verdicts(
        5, repetitions=1, seeds=0.05, documents=0.01, prior=lambda random: Prior(1e-6, 20, "6 runs of gpt2ish")
    )
    assert v.prior_share == 0 and v.seed_df == 4 and any("6 runs of gpt2ish" in n and "not used" in n for n in v.notes)
    (v,) = verdicts(
        5, repetitions=1, seeds=0.05, documents=0.01, prior=lambda random: Prior(0.05**2, 20, "6 runs of gpt2ish")
    )
    assert v.prior_share == pytest.approx(20 / 24) and v.seed_df == 24 and any("20 of 24" in n for n in v.notes)


def test_prior_from_runs_equals_a_two_way_analysis_of_variance():
    """Balanced and the pair apart: the residual sum of squares of the others around their row and column means."""
    random = np.random.default_rng(8)
    table = 3 + random.normal(0, 0.1, (5, 1)) + random.normal(0, 0.05, 4) + random.normal(0, 0.01, (5, 4))
    runs = {group: dict(enumerate(row)) for group, row in zip("abcde", table)}

    def residual(rows):
        return ((rows - rows.mean(0) - rows.mean(1, keepdims=True) + rows.mean()) ** 2).sum()

    prior = prior_from_runs(runs, ("x", "y"))
    assert prior.df == 12 and prior.seed_variance == pytest.approx(2 * residual(table) / 12)
    prior = prior_from_runs(runs, ("a", "b"))
    assert prior.df == 9 and prior.seed_variance == pytest.approx(2 * (residual(table) - residual(table[:2])) / 9)
    assert "12 runs" in prior.source


def test_prior_and_present_runs_are_independent_and_unbiased():
    """Candidate and baseline under seeds 0 and 1, others under more: the variance is found, the interval holds."""
    random = np.random.default_rng(9)
    variances, held, own, tokens = [], [], [], np.array([100.0, 200.0])
    for _ in range(REPETITIONS):
        table = 3 + random.normal(0, 0.1, 6) + random.normal(0, 0.01, (4, 6))
        runs = {
            "new": dict(enumerate(table[0, :2])),
            "base": dict(enumerate(table[1])),
            "other": dict(enumerate(table[2, :5])),
            "third": {seed: table[3, seed] for seed in (1, 3, 5)},
        }
        prior = prior_from_runs(runs, ("new", "base"))
        v = compare(PairedLosses(*(np.outer(row[:2], tokens) for row in table[:2]), tokens, (0, 1)), prior)
        variances.append(prior.seed_variance)
        own.append((table[0, :2] - table[1, :2]).var(ddof=1))
        held.append(v.low <= 0 <= v.high)
    assert prior.df == 6
    assert np.mean(variances) == pytest.approx(2 * 0.01**2, rel=0.06)
    assert abs(np.corrcoef(variances, own)[0, 1]) < 0.1
    assert holds(np.mean(held), 0.95, REPETITIONS)


def test_prior_from_unpaired_runs():
    runs = {"base": {0: 3.0, 1: 3.1, 2: 3.3, 3: 2.9}, "new": {0: 2.9}, "failed": {0: math.nan}}
    prior = prior_from_runs(runs, ("new", "base"))
    assert (
        prior.df == 2
        and prior.seed_variance == pytest.approx(2 * np.var([3.1, 3.3, 2.9], ddof=1))
        and "not paired" in prior.source
    )
    assert prior_from_runs({"base": {0: 3.0, 1: 3.1}, "new": {0: 3.0, 1: 3.0}}, ("new", "base")) is None
    assert prior_from_runs({}, ("new", "base")) is None


@pytest.mark.parametrize(
    "candidate, baseline, tokens, seeds, said",
    [
        ([[1.0, 2]], [[1.0, 2, 3]], [1, 1], [0], "different documents"),
        ([[1.0, math.nan]], [[1.0, 2]], [1, 1], [7], "candidate with seed 7 is not finite"),
        ([[1.0, 2]], [[1.0, math.inf]], [1, 1], [7], "baseline with seed 7 is not finite"),
        ([[1.0, 2], [1, 2]], [[1.0, 2], [1, 2]], [1, 1], [7, 7], "twice"),
        ([[1.0, 2]], [[1.0, 2]], [0, 0], [0], "nothing to compare"),
        (np.zeros((0, 2)), np.zeros((0, 2)), [1, 1], [], "nothing to compare"),
    ],
)
def test_refuses_what_cannot_be_compared(candidate, baseline, tokens, seeds, said):
    with pytest.raises(UserError, match=said):
        PairedLosses(candidate, baseline, tokens, seeds)


@pytest.mark.parametrize(
    "wrong", [dict(confidence=1.0), dict(confidence=0), dict(margin=0), dict(margin=-1), dict(margin=math.nan)]
)
def test_refuses_impossible_settings(wrong):
    with pytest.raises(UserError):
        compare(PairedLosses([[1.0, 2]], [[1.0, 3]], [1, 1], [0]), **wrong)
