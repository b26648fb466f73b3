"""Make curves of a run's tables: their parts are the phases of the plan, each on one text."""

from collections.abc import Callable, Hashable

import pandas

from lmplay.runs.names import MIDWAY_PREFIX, PLAN_STEP
from lmplay.stats.curves import Curve, make_curve


def curve_of(
    table: pandas.DataFrame, x: str, y: str, log: bool, text_of: Callable[[str, bool], Hashable] | None = None
) -> Curve:
    """Return the curve of `y` over `x`, its parts the plan's phases; without points if a column is missing.

    text_of: (phase, whether midway) -> what its figures were measured on (`measured_text`); None is not known. Where
    only a part of the documents is scored midway, its figures are moved by what the part differs from all of them at
    the end of the phase.
    """
    if x not in table or y not in table:
        return make_curve([], [], log=log)
    if PLAN_STEP not in table:
        return make_curve(table[x], table[y], log=log)
    phases = table[PLAN_STEP].cat
    names = list(map(str, phases.categories))
    texts = [text_of(name, False) for name in names] if text_of else []
    part = MIDWAY_PREFIX + y
    if part not in table:
        return make_curve(table[x], table[y], phases.codes, log, texts)
    texts_midway = [text_of(name, True) for name in names] if text_of else []
    moved, ended = _moved(table, y, part)
    texts = [text if code in ended else of for code, (text, of) in enumerate(zip(texts, texts_midway, strict=True))]
    curve = make_curve(table[x], moved, phases.codes, log, texts)
    curve.midway = make_curve(table[x], table[part].fillna(table[y]), phases.codes, log, texts_midway)
    return curve


def _moved(table: pandas.DataFrame, y: str, part: str) -> tuple[pandas.Series, set[int]]:
    """Return (figures as of all documents, codes of the phases in which all were scored at least once)."""
    codes = table[PLAN_STEP].cat.codes
    by_phase = (table[y] - table[part]).groupby(codes)
    apart = by_phase.bfill().fillna(by_phase.ffill())
    whole = table[part].notna()
    return table[y].where(whole, table[y] + apart.fillna(0.0)), set(codes[whole])


def phase_starts(table: pandas.DataFrame) -> pandas.DataFrame:
    """Return the rows of a table at which a phase of the plan begins; none if the table names no phases."""
    if PLAN_STEP not in table:
        return table.iloc[:0]
    codes = table[PLAN_STEP].cat.codes
    return table[codes != codes.shift()]
