"""Say which held-out documents are scored, at the end and midway, and how often. Nothing here loads torch."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lmplay.data.plan_spec import NEWEST_ORDER
from lmplay.data.store import TokenStore
from lmplay.runs.settings import Settings
from lmplay.train.phases import Phase

DOCUMENT_SHARE = 0.02  # of the validation tokens, that a long document may take
MIDWAY_SHARE = 0.02  # of what training costs, that validations midway may cost
STEP_COST = 3  # of a token in training, in forward passes
VALIDATIONS = 20  # in a run, where they may cost so much
ENOUGH_DOCUMENTS = 3  # of each dataset midway, if a quarter of the run pays for them
USUAL_INTERVAL = 50  # of earlier versions, and the longest of a run that a time limit ends
LEAST_INTERVAL = 5
FEWEST_DOCUMENTS = 2  # of each dataset midway: one does not tell how documents differ


def scored_spans(store: TokenStore, max_tokens: int, data_order: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where what is scored of each document begins and ends in the store: about `max_tokens` in all (0: all)."""
    offsets = np.asarray(store.document_offsets[: max_tokens + 1] if max_tokens else store.document_offsets)
    begins, ends = offsets[:-1], offsets[1:]
    if max_tokens and store.n_tokens > max_tokens:
        begins, ends = _cut(store, begins, ends, _longest(ends - begins, max_tokens), data_order)
        count = int(np.searchsorted(np.cumsum(ends - begins), max_tokens, "right"))
        begins, ends = begins[:count], ends[:count]
    return begins, ends


def count_midway(begins: np.ndarray, ends: np.ndarray, midway_tokens: int) -> int:
    """Return how many of these documents, from the first, are scored midway: all for 0 tokens, else at least one."""
    if not midway_tokens:
        return len(begins)
    return min(len(begins), max(1, int(np.searchsorted(np.cumsum(ends - begins), midway_tokens, "right"))))


def _longest(lengths: np.ndarray, max_tokens: int) -> int:
    """Return the most tokens that are taken of one document."""
    low, high = max(1, round(max_tokens * DOCUMENT_SHARE)), max_tokens
    while low < high:  # the most with which all documents fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(lengths, middle).sum() <= max_tokens else (low, middle - 1)
    return low


def _cut(
    store: TokenStore, begins: np.ndarray, ends: np.ndarray, longest: int, data_order: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return where what is taken of each document begins and ends: at most `longest` tokens, some of them scored."""
    cut = np.minimum(ends, begins + longest)
    first = store.first_scored(begins, ends)
    moved = first >= cut
    if data_order == 1 and not moved.all():
        return begins, cut
    begins = np.where(moved, np.maximum(begins, np.minimum(first - longest // 2, ends - longest)), begins)
    return begins, np.minimum(ends, begins + longest)


def choose_validations(
    settings: Settings,
    phases: Sequence[Phase],
    stores: Mapping[str, TokenStore],
    context_len: int,
) -> tuple[int, int]:
    """Return (steps between validations, tokens of each dataset that are scored midway; 0 for all).

    What the settings say stays. Else there are VALIDATIONS of them, fewer where ENOUGH_DOCUMENTS would cost more than
    MIDWAY_SHARE of the training. Where not even FEWEST_DOCUMENTS pay, there are four, midway on one document of each
    dataset, and none midway below 4 x LEAST_INTERVAL steps. It follows from lengths alone. So runs that differ in their
    seed or their model validate at the same steps, on the same documents.
    """
    data_order = settings.data_order or NEWEST_ORDER
    if settings.validation_interval is not None:
        return settings.validation_interval, settings.midway_tokens or 0
    if not phases:
        return USUAL_INTERVAL, 0
    steps = sum(phase.n_steps for phase in phases)
    lengths = {name: _lengths(store, settings.validation_tokens, data_order) for name, store in stores.items()}
    parts = [[lengths[name] for name in phase.datasets] for phase in phases]
    pays = MIDWAY_SHARE * STEP_COST * settings.batch_size * context_len  # scored tokens for each step
    most = max(1, USUAL_INTERVAL if settings.max_minutes is not None else steps // 4)
    wanted = max(sum(int(of[:ENOUGH_DOCUMENTS].sum()) for of in part) for part in parts)
    interval = max(math.ceil(steps / VALIDATIONS), LEAST_INTERVAL, math.ceil(wanted / pays))
    least = max(len(part) * max(int(of[:FEWEST_DOCUMENTS].sum()) for of in part) for part in parts)
    interval = max(min(interval, most), math.ceil(least / pays))
    if settings.max_minutes is None and interval > steps // 2:  # so short that it costs no time
        short = max(1, steps if most < LEAST_INTERVAL else most)
        return short, 1 if settings.midway_tokens is None else settings.midway_tokens
    midway = int(interval * pays / max(map(len, parts)))
    midway = midway if any(of.sum() > midway for of in lengths.values()) else 0
    return interval, midway if settings.midway_tokens is None else settings.midway_tokens


def _lengths(store: TokenStore, max_tokens: int, data_order: int) -> np.ndarray:
    """Return how many tokens of each document are scored at the end."""
    begins, ends = scored_spans(store, max_tokens, data_order)
    return ends - begins
