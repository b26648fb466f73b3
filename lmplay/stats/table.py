"""Figures as a table of text."""

from collections.abc import Sequence


def count(value: float | None, digits: int = 4) -> str:
    """120560209 -> "120.6M"."""
    if value is None:
        return "-"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.{digits}g}{unit}"
    return f"{value:.{digits}g}"


def fixed(digits: int, signed: bool = False):
    """The function value -> text with so many digits after the point, thousands set apart."""
    sign = "+" if signed else ""
    return lambda value: "-" if value is None else f"{value:{sign},.{digits}f}"


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, the first to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))).rstrip()
                     for line in lines)
