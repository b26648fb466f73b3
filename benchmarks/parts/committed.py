"""What became slower than the committed results, and the table of docs/performance.md that is made of them."""

import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- speed -->\n", "<!-- /speed -->"
MORE_IS_BETTER = ("MB/s", "times_as_fast_as", "commands", "training")  # in the names above a figure; else it is a time


def slower(found: Any, committed: Any, names: tuple[str, ...]) -> list[str]:
    """Return a line for each figure that is worse than the committed one by more than the quartiles of both.

    names: under which the figures are found, from the part on.
    """
    if not isinstance(found, dict) or not isinstance(committed, dict):
        return []
    kind = next((kind for kind in ("milliseconds", "median") if kind in found and kind in committed), None)
    if kind is None:
        return [line for name in found for line in slower(found[name], committed.get(name), (*names, name))]
    (low, high), (low_before, high_before) = _quartiles(found, kind), _quartiles(committed, kind)
    worse = high < low_before if set(names) & set(MORE_IS_BETTER) else low > high_before
    return [f"slower than committed: {', '.join(names)}: {found[kind]:g}, then {committed[kind]:g}"] if worse else []


def _quartiles(row: dict[str, Any], kind: str) -> tuple[float, float]:
    """Return the quartiles of a figure, which are the figure where they were not noted."""
    found = row.get(f"{kind}_quartiles") or ([row[kind]] * 2 if kind == "milliseconds" else row["quartiles"])
    return found[0], found[-1]


def table_rows() -> list[str]:
    """Return the lines of the tables of all machines whose results are there."""
    lines: list[str] = []
    for path in sorted(RESULTS.glob("speed_*.json")):
        results = json.loads(path.read_text("utf-8"))
        lines += ["", f"{results['machine']}, torch {results['torch'].partition('+')[0]}:", ""]
        lines += ["| part | of | side | ms | tokens/s | times the first side | quartiles |"]
        lines += ["| --- | --- | --- | ---: | ---: | ---: | --- |"]
        for part, rows in results.items():
            lines += _rows_of(part, rows) if isinstance(rows, dict) else []
        others = [line for part, rows in results.items() for line in _others(rows, (part,))]
        if others:
            lines += ["", "| other figures | median | quartiles, of ratios to the first side |", "| --- | ---: | --- |"]
            lines += others
    return lines[1:]


def _rows_of(part: str, rows: dict[str, Any]) -> list[str]:
    """Return the lines of sides that take steps in turns."""
    lines = []
    for key, row in rows.items():
        if not isinstance(row, dict) or "sides" not in row:
            continue
        sides = row["sides"]
        tokens = row.get("tokens", 1) if "shape" not in row else row["shape"]["rows"] * row["shape"]["context"]
        first = next((of["seconds"] for of in sides.values() if of.get("seconds")), [])
        for side, of in sides.items():
            if of.get("seconds"):
                ratios = sorted(a / b for a, b in zip(first, of["seconds"], strict=True))
                ms, speed = 1000 * statistics.median(of["seconds"]), statistics.median(ratios)
                low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
            elif "milliseconds" in of:
                ms, speed, (low, high) = of["milliseconds"], of["speed"], of["quartiles"]
            else:
                continue
            rate = f"{1000 * tokens / ms:,.0f}" if tokens > 1 else ""
            lines.append(f"| {part} | {key} | {side} | {ms:.4g} | {rate} | {speed:.2f} | {low:.2f} to {high:.2f} |")
    return lines


def _others(found: Any, names: tuple[str, ...]) -> list[str]:
    """Return a line for each figure that has a median and is no time of a step."""
    if not isinstance(found, dict) or "peers" in names:
        return []
    if "median" not in found:
        return [line for name in found for line in _others(found[name], (*names, name))]
    low, high = found["quartiles"]
    return [f"| {', '.join(names)} | {found['median']:g} | {low:.3f} to {high:.3f} |"]


def write_table() -> None:
    """Put the tables into docs/performance.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + "\n".join(table_rows()) + "\n" + END + after, encoding="utf-8")
