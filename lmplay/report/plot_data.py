"""Write what a picture shows as data: one row for each point of each of its curves."""

import csv
import io
import math
from collections.abc import Iterator

from lmplay.report.figure import Line, Picture
from lmplay.stats.curves import Curve
from lmplay.text import printable

HEADER = ("picture", "run", "curve")


def csv_cell(value: object) -> object:
    """Return the cell of a CSV file: a name is never a formula; what is not known is empty."""
    if isinstance(value, str):
        return f"'{printable(value)}" if value.startswith(("=", "+", "-", "@")) else printable(value)
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def as_csv(picture: Picture) -> str:
    """Return all curves of a picture and of those below it, with its columns picture, run, curve, x and y.

    curve: "line", "run 1", "run 2" ... (those it is the mean of), "points" (not smoothed) or "training" (behind).
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*HEADER, picture.x_label, picture.y_label])
    for panel in (picture, *picture.below):
        for line in panel.lines:
            for name, curve in _curves(line):
                begin = [csv_cell(panel.title), csv_cell(line.label), name]
                writer.writerows([*begin, f"{x:.8g}", f"{y:.8g}"] for x, y in zip(curve.x, curve.y, strict=True))
    return text.getvalue()


def _curves(line: Line) -> Iterator[tuple[str, Curve]]:
    yield "line", line.curve
    yield from ((f"run {i}", curve) for i, curve in enumerate(line.seeds, start=1))
    if line.raw is not None:
        yield "points", line.raw
    if line.behind is not None:
        yield "training", line.behind
