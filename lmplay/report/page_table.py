"""Write the tables of a report's page in HTML: cells, verdicts, intervals on one scale."""

import html
import math
import re
from collections.abc import Sequence

from lmplay.stats.verdict import Verdict

escape = html.escape


SIGNS = {
    "better": "✓",
    "worse": "✗",
    "equal": "=",
    "not decided": "?",
}  # a verdict is seen without words and colors, too


def swatch(color: str) -> str:
    """Return a small square of a color."""
    return f'<i class="swatch" style="background:{color}"></i>'


def grid(kind: str, header: list[str], rows: list[str]) -> str:
    """Return a table whose cells are HTML."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join(rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def table_row(name: str, cells: list[str], header: Sequence[str] = ()) -> str:
    """Return a row. header: the names of the cells, for a narrow screen that shows them one below the other."""
    labels = [f' data-label="{escape(label)}"' for label in header] or [""] * len(cells)
    shown = [f"<td{label}><div>{cell}</div></td>" for label, cell in zip(labels, cells, strict=True)]
    return f'<tr><th scope="row">{name}</th>' + "".join(shown) + "</tr>"


def _name(label: str) -> str:
    """Return a name that breaks where its parts begin, if it must."""
    return re.sub(r"([:=_,])(?!\b[a-z]+;)", r"\1<wbr>", escape(label))


def table(
    header: list[str], rows: list[list[str]], verdicts: Sequence[Verdict | None] | None, colors: dict[str, str]
) -> str:
    """Return the table of a report. Its parts are as in `page.Report`. colors: of each row's label."""
    judged = verdicts or [None] * len(rows)
    ends = [abs(end) for v in judged if v for end in (v.low, v.high) if math.isfinite(end)]
    made = []
    for texts, verdict in zip(rows, judged, strict=True):
        cells = [_cell(cell) for cell in texts[1:]]
        if verdicts:
            cells[0] = _badge(texts[1], verdict)
        if verdict:
            cells[2] = (
                _bar(verdict, max(ends, default=0) or 1.0, colors[texts[0]]) + f"<small>{escape(texts[3])}</small>"
            )
        made.append(table_row(swatch(colors[texts[0]]) + _name(texts[0]), cells, header[1:]))
    names = [escape(name) for name in header]
    if verdicts and ends:
        names[3] += _axis(max(ends) or 1.0)
    return grid("verdicts" if verdicts else "figures", names, made)


def _cell(text: str) -> str:
    """Return a cell; what is in brackets goes below, smaller."""
    main, _, rest = text.partition(" (")
    return escape(main) + (f"<small>{escape(rest.removesuffix(')'))}</small>" if rest else "")


def _badge(text: str, verdict: Verdict | None) -> str:
    text, _, aside = text.partition(" (")
    word, _, more = text.partition(":")
    more = "; ".join(filter(None, (more.strip(), aside.removesuffix(")"))))
    kind = verdict.word if verdict else "none"
    sign = f"<b>{SIGNS[kind]}</b> " if kind in SIGNS else ""
    return f'<span class="verdict {kind.replace(" ", "-")}">{sign}{escape(word)}</span>' + (
        f"<small>{escape(more.strip())}</small>" if more else ""
    )


def _bar(verdict: Verdict, widest: float, color: str) -> str:
    """Return the interval as a line with a dot, on a scale that all rows share: 0 in the middle, better on the left."""
    low, middle, high = (
        75 + 70 * max(-1.0, min(1.0, value / widest)) for value in (verdict.low, verdict.difference, verdict.high)
    )
    return (
        f'<svg class="bar" viewBox="0 0 150 16" width="150" height="16" aria-hidden="true">'
        f'<path d="M75 0V16" class="zero"/><path d="M{low:.1f} 8H{high:.1f}" stroke="{color}"/>'
        f'<circle cx="{middle:.1f}" cy="8" r="4" fill="{color}"/></svg>'
    )


def _axis(widest: float) -> str:
    """Return the numbers of the scale that all intervals share."""
    marks = ((5, "start", f"{-widest:+.2g}"), (75, "middle", "0"), (145, "end", f"{widest:+.2g}"))
    ticks = "".join(f'<path d="M{x} 11V16" class="tick"/>' for x, _, _ in marks)
    texts = "".join(f'<text x="{x}" y="9" text-anchor="{anchor}">{text}</text>' for x, anchor, text in marks)
    return f'<svg class="bar scale" viewBox="0 0 150 16" width="150" height="16">{ticks}{texts}</svg>'
