"""Figures as a table of text."""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmplay.stats.comparing import difference_at_end
from lmplay.stats.reading import printable

if TYPE_CHECKING:
    from lmplay.stats.overlays import Group


def count(value: float | None) -> str:
    """120560209 -> "120.6M"."""
    if value is None:
        return "-"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def fixed(value: float | None, digits: int, sign: str = "") -> str:
    """So many digits after the point, thousands set apart; `sign` "+" for differences."""
    return "-" if value is None else f"{value:{sign},.{digits}f}"


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, the first to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def final_table(groups: "list[Group]", loss: str, x: str) -> str:
    """`final_figures` as text."""
    header, rows, notes = final_figures(groups, loss, x)
    return "\n".join([aligned(header, rows), *notes])


def final_figures(groups: "list[Group]", loss: str, x: str) -> tuple[list[str], list[list[str]], list[str]]:
    """(header, rows, what they are) of the final figures of all groups of runs, best first.

    `groups[0]` is the baseline; `loss` ("loss" or "bits_per_byte") is what counts, and `x` ("tokens" or "bytes") what both have had
    equally much of where they are compared.
    """
    validated = all(one.figures[f"validate_{loss}"] is not None for group in groups for one in group.members)
    split, name = ("validate", "validation") if validated else ("train", "training")
    baseline, several, seeds = groups[0], len(groups) > 1, any(len(group.members) > 1 for group in groups)
    header = [
        "run",
        "parameters",
        "tokens",
        "train loss",
        "val. loss",
        *["± seeds"] * seeds,
        "accuracy",
        "bits/byte",
        *["difference"] * several,
        "tokens/s",
        "seconds",
        "status",
    ]
    rows = []
    for group in sorted(groups, key=lambda group: _none_last(group.figure(f"{split}_{loss}"))):
        f = group.figure
        apart = "baseline" if group is baseline else fixed(_difference(group, baseline, split, x, loss), 4, "+")
        rows.append(
            [
                group.label,
                count(f("parameters")),
                count(f("tokens")),
                fixed(f("train_loss"), 4),
                fixed(f("validate_loss"), 4),
                *[fixed(_deviation(group, "validate_loss"), 4)] * seeds,
                fixed(f(f"{split}_accuracy"), 4),
                fixed(f(f"{split}_bits_per_byte"), 4),
                *[apart] * several,
                fixed(f("tokens_per_second"), 0),
                fixed(f("seconds"), 0 if (f("seconds") or 0) >= 100 else 1),
                _status(group),
            ]
        )
    notes = ["one run: there are no differences to draw"]
    if several:
        words = "bits per byte" if loss == "bits_per_byte" else loss
        notes = [f"difference: {name} {words} minus {baseline.label}'s at equal {x}, below 0 is better"]
    if seeds:
        notes.append("n: means over so many seeds; ± seeds: standard deviation of the validation loss between them")
    notes.append(f"accuracy, bits/byte: {name}; train loss: mean over the last 2% of the updates")
    return header, rows, notes


def _difference(group: "Group", baseline: "Group", split: str, x: str, loss: str) -> float | None:
    """The mean over the runs that are beside one another."""
    found = [
        difference_at_end(one.tables[split], other.tables[split], x, loss, noisy=split == "train")
        for one, others in group.beside(baseline)
        for other in others
    ]
    found = [value for value in found if value is not None]
    return sum(found) / len(found) if found else None


def _deviation(group: "Group", figure: str) -> float | None:
    values = [one.figures[figure] for one in group.members if one.figures[figure] is not None]
    return statistics.stdev(values) if len(values) > 1 else None


def _status(group: "Group") -> str:
    found = Counter(printable(one.run.get("status") or "-") for one in group.members)
    return ", ".join(status if len(found) == 1 else f"{number} {status}" for status, number in found.items())


def _none_last(value: float | None) -> float:
    return float("inf") if value is None else value
