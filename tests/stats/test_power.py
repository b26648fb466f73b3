"""The difference that is found with a power of 80%, counted."""

import numpy as np
import pytest
from scipy import stats

from lmplay.stats.power import detectable


@pytest.mark.parametrize("pairs", [2, 3, 8])
def test_it_is_found_four_times_out_of_five(pairs):
    difference = detectable(0.5, pairs)
    draws = np.random.default_rng(pairs).normal(difference, 0.5, size=(40_000, pairs))
    found = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_more_pairs_and_more_knowledge_find_less():
    known = [detectable(1, pairs) for pairs in (2, 3, 5, 20)]
    assert known == sorted(known, reverse=True) and detectable(1, 1) == float("inf")
    assert detectable(1, 3, prior_df=20) < detectable(1, 3) < detectable(1, 3, confidence=0.99)
