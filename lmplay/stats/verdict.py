"""Is the candidate better than the baseline? The paired difference of their validation losses, with an interval.

Model. x[s, d] is the candidate's loss minus the baseline's, summed over the tokens of document d, both trained with seed s (the
same data in the same order). Seeds and documents are random draws and crossed: every seed is measured on the same documents, so

    x[s, d] / tokens[d] = difference + a[s] + b[d] + e[s, d]

(the decomposition of any array that is exchangeable in both directions: A. B. Owen, "The pigeonhole bootstrap", Annals of
Applied Statistics 1, 2007). The estimate is the ratio sum x / sum tokens, and its variance has three parts: var(a) / S, the
documents' part of b, which more seeds do not make smaller, and e's, over both.

Estimates.
- Seeds: the variance A of the S differences of whole validation losses, divided by S. It holds a and e; S - 1 degrees of freedom.
- Documents: the jackknife over documents of the ratio (B. Efron, C. Stein, "The jackknife estimate of variance", Annals of
  Statistics 9, 1981; it errs to the wide side), from which the part of e, which A holds already, is taken off; not below 0. Its
  degrees of freedom are Kish's effective number of documents, less one: 1 / sum (share of the tokens)^2 - 1 (L. Kish, "Survey
  Sampling", 1965); that is Satterthwaite's number where a document's variance grows with its length. A few long documents
  count as few.
- Prior: with the spread between seeds measured on other runs, both estimates of it are averaged by their degrees of freedom,
  which add up: the pooled variance. It assumes that the true spread is the same; where the present one is larger than an F test
  at 5% lets pass, the prior is left out, and `notes` says so.

Interval. difference +- sqrt(t_A^2 A + t_B^2 B), each part with the quantile of Student's t at its own degrees of freedom
(S. K. Banerjee, Sankhya 22, 1960; W. G. Howe, Journal of the American Statistical Association 69, 1974). For normal data and
independent estimates it never covers less than stated: the chance is E G(w_A y_A + w_B y_B) with G the distribution function of
chi^2 with one degree of freedom, w the true shares of the variance and y = t^2 * estimate / truth; G is concave, so it is at least
w_A E G(y_A) + w_B E G(y_B), and each of these is the confidence. It is exact where one part outweighs, and somewhat wide between.
Satterthwaite's single t has no such floor: with two seeds and both parts alike it covers 90% instead of 95%. tests/stats/test_verdict.py
draws data with a known difference and counts.

Not covered: another plan, size or length of training than the one measured; a difference between very long and other documents
where a handful of documents holds most tokens; several candidates looked at for the best one (each verdict is on its own).
"""

import bisect
import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from lmplay.errors import UserError
from lmplay.stats.prior import PRIOR_TEST, Prior
from lmplay.text import counted

MOST_SEEDS = 1000


@dataclass(frozen=True)
class PairedLosses:
    """Losses of candidate and baseline under the same seeds, on the same documents.

    candidate, baseline: (S, D) float64, summed nats of each validation document d under each seed s.
    tokens: (D,) scored tokens of each document (or its bytes, where tokenizers differ: then `unit` is "nats a byte").
    seeds: the S seeds, in the order of the rows.
    Raises UserError if shapes do not fit, a loss is not finite, a seed is there twice, or there is nothing to compare.
    """

    candidate: np.ndarray
    baseline: np.ndarray
    tokens: np.ndarray
    seeds: tuple[Hashable, ...]
    unit: str = "nats a token"

    def __post_init__(self):
        for name in ("candidate", "baseline", "tokens"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        object.__setattr__(self, "seeds", tuple(self.seeds))
        shape = (len(self.seeds), self.tokens.size)
        if self.tokens.ndim != 1 or self.candidate.shape != shape or self.baseline.shape != shape:
            raise UserError(
                f"losses of {len(self.seeds)} seed(s) on {self.tokens.size} document(s) are wanted, but the candidate's "
                f"are {self.candidate.shape} and the baseline's {self.baseline.shape}: the runs were validated on "
                "different documents"
            )
        if not self.seeds or not np.all(self.tokens >= 0) or not 0 < self.tokens.sum() < math.inf:
            raise UserError("nothing to compare: no seed that both have, or no validation document with a token")
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"a seed is there twice among {list(self.seeds)}")
        for name, losses in (("candidate", self.candidate), ("baseline", self.baseline)):
            broken = ~np.isfinite(losses).all(1)
            if broken.any():
                raise UserError(
                    f"a validation loss of the {name} with seed {self.seeds[int(broken.argmax())]} is not finite: the "
                    "run has diverged, leave that seed out on both sides or train it with a lower --lr"
                )


@dataclass(frozen=True)
class Verdict:
    """What `compare` found. All losses in `unit`; a difference is candidate - baseline: below 0 is better.

    [low, high] holds the true difference with `confidence`, over what `covers` says: "seeds and documents", "documents only"
    (one seed, no prior: then only equality to the bit is decided), "seeds only" (one document) or "nothing" (neither: the
    interval is infinite).
    word: "better", "worse", "equal" (within `margin`, or to the bit) or "not decided"; `label` is the same for a table.
    seed_sd: between seeds, of the paired difference (NaN if unknown); seed_df: its degrees of freedom;
    prior_share: how much of these come from earlier runs, 0..1. document_se: what documents add to the standard error;
    document_df. more_seeds: about how many more seeds would decide, by the present estimates; None if decided, if it
    cannot be said, or if seeds would not help (`notes` says which). notes: sentences for the reader.
    """

    difference: float
    low: float
    high: float
    confidence: float
    margin: float | None
    covers: str
    word: str
    candidate_loss: float
    baseline_loss: float
    n_seeds: int
    n_documents: int
    seed_sd: float
    seed_df: float
    prior_share: float
    document_se: float
    document_df: float
    more_seeds: int | None
    notes: tuple[str, ...]
    unit: str

    @property
    def decided(self) -> bool:
        return self.word != "not decided"

    @property
    def bound(self) -> float:
        """No difference larger than this, with `confidence`."""
        return max(abs(self.low), abs(self.high))

    @property
    def label(self) -> str:
        """A few words for a cell of a table, such as "better", "equal within 0.01", "not decided: about 3 more seeds"."""
        if self.word == "equal":
            return "exactly equal" if self.bound == 0 else f"equal within {self.margin:g}"
        if self.more_seeds:
            return f"not decided: about {self.more_seeds} more seed{'s' * (self.more_seeds > 1)}"
        return self.word

    def sentence(self) -> str:
        """The verdict with its figures, in one sentence of plain text."""
        half = (self.high - self.low) / 2
        digits = min(8, max(2, 1 - math.floor(math.log10(half)))) if 0 < half < math.inf else 4
        interval = (
            f"{100 * self.confidence:.4g}% interval of the difference {self.low:+.{digits}f} to {self.high:+.{digits}f} over "
            f"{self.covers} ({counted(self.n_seeds, 'seed')}, {counted(self.n_documents, 'document')})"
        )
        if self.word == "equal" and self.bound == 0:
            return (
                f"exactly equal: the same loss on every document ({counted(self.n_seeds, 'seed')}, "
                f"{counted(self.n_documents, 'document')})"
            )
        if self.word == "equal":
            return f"{self.label} {self.unit}: {interval}"
        if self.decided:
            share = f" ({100 * abs(self.difference) / self.baseline_loss:.2g}%)" if self.baseline_loss > 0 else ""
            return f"{self.word} by {abs(self.difference):.{digits}f} {self.unit}{share}: {interval}"
        text = f"not decided: {interval}"
        if self.covers.startswith("seeds"):
            text += f", so no difference larger than {self.bound:.{digits}f} {self.unit}"
        return text + (f"; about {counted(self.more_seeds, 'more seed')} would decide" if self.more_seeds else "")


def compare(
    losses: PairedLosses, prior: Prior | None = None, confidence: float = 0.95, margin: float | None = None
) -> Verdict:
    """The verdict on a candidate: the module's docstring says how it is found.

    Better or worse: the interval does not hold 0. `margin` (in the losses' unit): the interval lies within +-margin, which is what
    two one-sided tests ask for (D. J. Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987), here each at half
    of 1 - confidence, so that one interval serves both questions. An interval that does both is better or worse; `notes` says it.
    For looks after each added seed, take the confidence from `sequential.Looks`.
    """
    if not 0 < confidence < 1:
        raise UserError(f"a confidence lies between 0 and 1, not at {confidence}")
    if margin is not None and not 0 < margin < math.inf:
        raise UserError(f"a margin of equality is above 0, not {margin}")
    scored = losses.tokens > 0
    tokens, total = losses.tokens[scored], losses.tokens[scored].sum()
    per_seed, documents_variance = _documents((losses.candidate - losses.baseline)[:, scored], tokens)
    n_seeds, n_documents = len(per_seed), len(tokens)
    documents_df = max(1.0, float(1 / np.sum((tokens / total) ** 2)) - 1)
    seed_variance, seed_df, prior_share, notes = _seeds(per_seed, prior)

    difference = float(per_seed.mean())
    knows_seeds, knows_documents = seed_df > 0, n_documents > 1
    covers = {
        (True, True): "seeds and documents",
        (False, True): "documents only",
        (True, False): "seeds only",
        (False, False): "nothing",
    }[knows_seeds, knows_documents]

    def half_width(seeds):
        """With so many seeds, by the present estimates."""
        squared = _t(documents_df, confidence) ** 2 * documents_variance
        if knows_seeds:
            squared = squared + _t(seed_df + seeds - n_seeds, confidence) ** 2 * seed_variance / seeds
        return np.sqrt(squared)

    def word_for(half):
        if not knows_seeds:
            return "not decided"
        if abs(difference) > half:
            return "better" if difference < 0 else "worse"
        return "equal" if margin is not None and abs(difference) + half < margin else "not decided"

    half = float(half_width(n_seeds)) if covers != "nothing" else math.inf
    identical = np.array_equal(losses.candidate, losses.baseline)
    word = "equal" if identical else word_for(half)
    if identical:
        half, notes = 0.0, []
    elif not knows_seeds:
        notes.append("one seed: the interval says nothing about other seeds; train at least one more")
    elif n_seeds > 1 and np.ptp(per_seed) < 1e-12:
        notes.append("all seeds give the same difference: does the seed change anything in these runs?")
    if not identical and not knows_documents:
        notes.append("one validation document: the interval says nothing about other text")
    if word in ("better", "worse") and margin is not None and abs(difference) + half < margin:
        notes.append(f"{word}, but by less than the margin {margin:g}")

    more_seeds = None
    if word == "not decided" and knows_seeds:

        def enough(more):
            half_then = half_width(n_seeds + more)
            return half_then < abs(difference) or half_then < (margin or 0) - abs(difference)

        other = "or say within what margin the two count as equal" if margin is None else "or widen the margin"
        if enough(MOST_SEEDS):
            more_seeds = bisect.bisect_left(range(1, MOST_SEEDS), True, key=enough) + 1
        elif knows_documents and _t(documents_df, confidence) ** 2 * documents_variance > abs(difference) ** 2:
            notes.append(
                "more seeds would not decide: the documents alone leave more open than the difference; validate on more "
                f"documents, {other}"
            )
        else:
            notes.append(
                f"not even {MOST_SEEDS} more seeds would decide, so small is the difference; take it as none, {other}"
            )
    return Verdict(
        difference,
        difference - half,
        difference + half,
        confidence,
        margin,
        covers,
        word,
        float(losses.candidate[:, scored].sum(1).mean() / total),
        float(losses.baseline[:, scored].sum(1).mean() / total),
        n_seeds,
        n_documents,
        math.sqrt(seed_variance) if knows_seeds else math.nan,
        seed_df,
        prior_share,
        math.sqrt(documents_variance) if knows_documents else math.nan,
        documents_df,
        more_seeds,
        tuple(notes),
        losses.unit,
    )


def _documents(difference: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, float]:
    """difference (S, D), tokens (D,) > 0 -> (difference a token of each seed (S,), the documents' part of the variance of the mean)."""
    n_seeds, n_documents = difference.shape
    share = tokens / tokens.sum()
    per_seed = difference.sum(1) / tokens.sum()
    if n_documents == 1:
        return per_seed, 0.0
    pull = difference / tokens.sum() - per_seed[:, None] * share  # (S, D): how a document pulls at its seed's figure
    mean = pull.mean(0)
    squares = mean**2
    if n_seeds > 1:
        squares = squares - ((pull - mean) ** 2).sum(0) / (n_seeds * (n_seeds - 1))
    without = (
        (n_documents - 1) / n_documents / (1 - share) ** 2
    )  # jackknife: the figure without d differs by pull / (1 - share)
    return per_seed, max(0.0, float(np.sum(without * squares)))


def _seeds(per_seed: np.ndarray, prior: Prior | None) -> tuple[float, float, float, list[str]]:
    """(variance between seeds, its degrees of freedom, the prior's part in these, notes); (0, 0, 0, ...) if nothing is known."""
    from scipy.special import fdtri

    df = len(per_seed) - 1
    own = float(per_seed.var(ddof=1)) if df else 0.0
    if prior is None:
        return own, df, 0.0, []
    spread = f"the spread between seeds measured on {prior.source}"
    if df and own > prior.seed_variance * fdtri(df, prior.df, 1 - PRIOR_TEST):
        return (
            own,
            df,
            0.0,
            [
                f"{spread} ({math.sqrt(prior.seed_variance):.2g}) is not used: these runs differ more ({math.sqrt(own):.2g})"
            ],
        )
    together = df + prior.df
    pooled = (df * own + prior.df * prior.seed_variance) / together
    return (
        pooled,
        together,
        prior.df / together,
        [f"{spread} is used: it counts for {prior.df:.3g} of {together:.3g} degrees of freedom"],
    )


def _t(df, confidence: float):
    """The two-sided quantile of Student's t."""
    from scipy.special import stdtrit

    return -stdtrit(df, (1 - confidence) / 2)
