"""Is the candidate better than the baseline? The paired difference of their validation losses, with an interval.

Model. x[s, d] is the candidate's loss minus the baseline's, summed over the tokens of document d. Both were trained
with seed s: the same data in the same order. Seeds and documents are random draws and crossed, since every seed is
measured on the same documents:

    x[s, d] / tokens[d] = difference + a[s] + b[d] + e[s, d]

This is the decomposition of any array that is exchangeable in both directions (A. B. Owen, "The pigeonhole
bootstrap", Annals of Applied Statistics 1, 2007). The estimate is the ratio sum x / sum tokens. Its variance has
three parts: var(a) / S, the documents' part of b, which more seeds do not make smaller, and e's, over both.

Estimates.
- Seeds: the variance A of the S differences of whole validation losses, divided by S. It holds a and e; S - 1 degrees
  of freedom.
- Documents: the jackknife over documents of the ratio (B. Efron, C. Stein, "The jackknife estimate of variance",
  Annals of Statistics 9, 1981; it errs to the wide side). The part of e that A already holds is subtracted; the
  result is at least 0. Its degrees of freedom are Kish's effective number of documents minus one, 1 / sum (share of
  the tokens)^2 - 1 (L. Kish, "Survey Sampling", 1965). That is Satterthwaite's number if a document's variance grows
  with its length. A few long documents count as few.
- Prior: given the spread between seeds measured on other runs, both estimates are averaged, weighted by their degrees
  of freedom, which add up: the pooled variance. This assumes that the true spread is the same. If the present spread
  is larger than an F test at 5% accepts, the prior is left out, and `notes` says so.

Interval. difference +- sqrt(t_A^2 A + t_B^2 B), each part with the quantile of Student's t at its own degrees of
freedom (S. K. Banerjee, Sankhya 22, 1960; W. G. Howe, Journal of the American Statistical Association 69, 1974). For
normal data and independent estimates it never covers less than stated: the chance is E G(w_A y_A + w_B y_B) with G
the distribution function of chi^2 with one degree of freedom, w the true shares of the variance and y = t^2 *
estimate / truth. G is concave, so it is at least w_A E G(y_A) + w_B E G(y_B), and each of these is the confidence. It
is exact if one part dominates, and somewhat wide in between. Satterthwaite's single t has no such floor: with two
seeds and equal parts it covers 90% instead of 95%. tests/stats/test_verdict.py draws data with a known difference and
counts.

Not covered: another plan, size or length of training than the one measured; a difference between very long and other
documents if a handful of documents holds most tokens; the choice of the best of several candidates (each verdict
stands alone).
"""

import bisect
import math
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from lmplay.errors import UserError
from lmplay.stats.evidence import Evidence, weigh
from lmplay.stats.prior import Prior
from lmplay.text import counted

MOST_SEEDS = 1000


@dataclass(frozen=True)
class PairedLosses:
    """Losses of candidate and baseline under the same seeds, on the same documents.

    candidate, baseline: (S, D) float64, summed nats of each validation document d under each seed s.
    tokens: (D,) scored tokens of each document, or its bytes if tokenizers differ (`unit` is then "nats per byte").
    seeds: the S seeds, in the order of the rows.
    Raises UserError if shapes do not match, a loss is not finite, a seed occurs twice, or there is nothing to compare.
    """

    candidate: np.ndarray
    baseline: np.ndarray
    tokens: np.ndarray
    seeds: tuple[Hashable, ...]
    unit: str = "nats per token"

    def __post_init__(self) -> None:
        for name in ("candidate", "baseline", "tokens"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        object.__setattr__(self, "seeds", tuple(self.seeds))
        shape = (len(self.seeds), self.tokens.size)
        if self.tokens.ndim != 1 or self.candidate.shape != shape or self.baseline.shape != shape:
            raise UserError(
                f"losses of {counted(len(self.seeds), 'seed')} on {counted(self.tokens.size, 'document')} are needed, "
                f"but the candidate's are {self.candidate.shape} and the baseline's {self.baseline.shape}: "
                "the runs were validated on different documents"
            )
        if not self.seeds or not np.all(self.tokens >= 0) or not 0 < self.tokens.sum() < math.inf:
            raise UserError("nothing to compare: no seed in common, or no validation document with a token")
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"a seed occurs twice among {list(self.seeds)}")
        for name, losses in (("candidate", self.candidate), ("baseline", self.baseline)):
            broken = ~np.isfinite(losses).all(1)
            if broken.any():
                raise UserError(
                    f"a validation loss of the {name} with seed {self.seeds[int(broken.argmax())]} is not finite: the "
                    "run has diverged, leave that seed out of both arms or train it with a lower --lr"
                )


@dataclass(frozen=True)
class Verdict:
    """The result of `compare`. All losses are in `unit`; a difference is candidate - baseline: below 0 is better.

    low, high: the interval that holds the true difference with `confidence`, over what `covers` says:
        "seeds and documents", "documents only" (one seed, no prior: only equality to the bit is decided), "seeds only"
        (one document) or "nothing" (neither: the interval is infinite).
    word: "better", "worse", "equal" (within `margin`, or to the bit) or "not decided". `label` is the same for a
    table. seed_sd: standard deviation between seeds of the paired difference (NaN if unknown); seed_df: its degrees
    of freedom. prior_share: the part of seed_df that comes from earlier runs, 0..1. document_se: what documents add
    to the standard error; document_df: its degrees of freedom. more_seeds: about how many more seeds would decide, by
    the present estimates. None if decided, if it
        cannot be said, or if seeds would not help (`notes` says which).
    notes: sentences for the reader.
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
        """Whether the verdict is better, worse or equal."""
        return self.word != "not decided"

    @property
    def bound(self) -> float:
        """The largest difference that `confidence` allows, in either direction."""
        return max(abs(self.low), abs(self.high))

    @property
    def interval(self) -> str:
        """The interval for a table."""
        return f"{self.low:+.4f} to {self.high:+.4f}"

    @property
    def label(self) -> str:
        """A few words for a table: "better", "equal within 0.01", "not decided: about 3 more seeds"."""
        if self.word == "equal":
            return "exactly equal" if self.bound == 0 else f"equal within {self.margin:g}"
        if self.more_seeds:
            return f"not decided: about {counted(self.more_seeds, 'more seed')}"
        return self.word

    def sentence(self) -> str:
        """Return the verdict with its figures in one sentence of plain text."""
        n = f"{counted(self.n_seeds, 'seed')}, {counted(self.n_documents, 'document')}"
        if self.word == "equal" and self.bound == 0:
            return f"exactly equal: the same loss on every document ({n})"
        half = (self.high - self.low) / 2
        digits = min(8, max(2, 1 - math.floor(math.log10(half)))) if 0 < half < math.inf else 4
        interval = (
            f"{100 * self.confidence:.4g}% interval of the difference {self.low:+.{digits}f} to "
            f"{self.high:+.{digits}f} over {self.covers} ({n})"
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
    """Return the verdict on a candidate: the module's docstring says how it is found.

    Better or worse: the interval does not hold 0. Equal: the interval lies within +-`margin` (in the losses' unit).
    That is two one-sided tests (D. J. Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987), here
    each at half of 1 - confidence, so that one interval answers both questions. An interval that does both is better
    or worse; `notes` says so. For looks after each added seed, take the confidence from `sequential.Looks`. Raises
    UserError for a confidence outside (0, 1) and a margin that is not above 0.
    """
    if not 0 < confidence < 1:
        raise UserError(f"a confidence lies between 0 and 1, not at {confidence}")
    if margin is not None and not 0 < margin < math.inf:
        raise UserError(f"a margin of equality is above 0, not {margin}")
    scored = losses.tokens > 0
    tokens, total = losses.tokens[scored], losses.tokens[scored].sum()
    evidence, notes = weigh((losses.candidate - losses.baseline)[:, scored], tokens, prior)
    half, more_seeds = evidence.half_width(confidence, evidence.n_seeds), None
    if np.array_equal(losses.candidate, losses.baseline):
        word, half, notes = "equal", 0.0, []
    else:
        word = _word(evidence, half, margin)
        notes += _reservations(evidence, word, half, margin)
        if word == "not decided" and evidence.knows_seeds:
            more_seeds, advice = _outlook(evidence, confidence, margin)
            notes += advice
    return Verdict(
        difference=evidence.difference,
        low=evidence.difference - half,
        high=evidence.difference + half,
        confidence=confidence,
        margin=margin,
        covers=evidence.covers,
        word=word,
        candidate_loss=float(losses.candidate[:, scored].sum(1).mean() / total),
        baseline_loss=float(losses.baseline[:, scored].sum(1).mean() / total),
        n_seeds=evidence.n_seeds,
        n_documents=evidence.n_documents,
        seed_sd=math.sqrt(evidence.seed_variance) if evidence.knows_seeds else math.nan,
        seed_df=evidence.seed_df,
        prior_share=evidence.prior_share,
        document_se=math.sqrt(evidence.documents_variance) if evidence.knows_documents else math.nan,
        document_df=evidence.documents_df,
        more_seeds=more_seeds,
        notes=tuple(notes),
        unit=losses.unit,
    )


def _word(evidence: Evidence, half: float, margin: float | None) -> str:
    """Return the word for an interval of half-width `half`."""
    if not evidence.knows_seeds:
        return "not decided"
    if abs(evidence.difference) > half:
        return "better" if evidence.difference < 0 else "worse"
    return "equal" if margin is not None and abs(evidence.difference) + half < margin else "not decided"


def _reservations(evidence: Evidence, word: str, half: float, margin: float | None) -> list[str]:
    """Return what the reader of the verdict should keep in mind."""
    notes = []
    if not evidence.knows_seeds:
        notes.append("one seed: the interval says nothing about other seeds; train at least one more")
    elif evidence.n_seeds > 1 and np.ptp(evidence.per_seed) < 1e-12:
        notes.append("all seeds give the same difference: does the seed change anything in these runs?")
    if not evidence.knows_documents:
        notes.append("one validation document: the interval says nothing about other text")
    if word in ("better", "worse") and margin is not None and abs(evidence.difference) + half < margin:
        notes.append(f"{word}, but by less than the margin {margin:g}")
    return notes


def _outlook(evidence: Evidence, confidence: float, margin: float | None) -> tuple[int | None, list[str]]:
    """Return (how many more seeds would decide, advice if seeds alone would not)."""
    size = abs(evidence.difference)

    def enough(more: int) -> bool:
        half = evidence.half_width(confidence, evidence.n_seeds + more)
        return half < size or half < (margin or 0) - size

    if enough(MOST_SEEDS):
        return bisect.bisect_left(range(1, MOST_SEEDS), True, key=enough) + 1, []
    other = "or say within what margin the two count as equal" if margin is None else "or widen the margin"
    if evidence.knows_documents and evidence.squared_by_documents(confidence) > size**2:
        return None, [
            "more seeds would not decide: the documents alone leave more open than the difference; validate on more "
            f"documents, {other}"
        ]
    return None, [f"not even {MOST_SEEDS} more seeds would decide such a small difference: take it as none, {other}"]
