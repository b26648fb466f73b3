"""Figures as a table of text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmplay.stats.comparing import difference_at_end
from lmplay.stats.reading import printable

if TYPE_CHECKING:
    from lmplay.stats.overlays import Loaded


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


def final_table(loaded: "list[Loaded]", loss: str, x: str) -> str:
    """Final figures of all runs, best first, and what they are. `loaded[0]` is the baseline; `loss` ("loss" or
    "bits_per_byte") is what counts, and `x` ("tokens" or "bytes") what both have had equally much of where they are compared.
    """
    validated = all(one.figures[f"validate_{loss}"] is not None for one in loaded)
    split, name = ("validate", "validation") if validated else ("train", "training")
    baseline, several = loaded[0], len(loaded) > 1
    header = ["run", "parameters", "tokens", "train loss", "val. loss", "accuracy", "bits/byte", *["difference"] * several,
              "tokens/s", "seconds", "status"]
    rows = []
    for one in sorted(loaded, key=lambda one: _none_last(one.figures[f"{split}_{loss}"])):
        f = one.figures
        apart = "baseline" if one is baseline else fixed(
            difference_at_end(one.tables[split], baseline.tables[split], x, loss, noisy=not validated), 4, "+")
        measured = [f["train_loss"], f["validate_loss"], f[f"{split}_accuracy"], f[f"{split}_bits_per_byte"]]
        rows.append([one.label, count(f["parameters"]), count(f["tokens"]), *[fixed(value, 4) for value in measured],
                     *[apart] * several, fixed(f["tokens_per_second"], 0),
                     fixed(f["seconds"], 0 if (f["seconds"] or 0) >= 100 else 1), printable(one.run.get("status") or "-")])
    lines = [aligned(header, rows)]
    if several:
        words = "bits per byte" if loss == "bits_per_byte" else loss
        lines.append(f"difference: {name} {words} minus {baseline.label}'s at equal {x}, below 0 is better")
    else:
        lines.append("one run: there are no differences to draw")
    lines.append(f"accuracy, bits/byte: {name}; train loss: mean over the last 2% of the updates")
    return "\n".join(lines)


def _none_last(value: float | None) -> float:
    return float("inf") if value is None else value
