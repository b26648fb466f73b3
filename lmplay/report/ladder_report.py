"""Write a ladder for people and programs: a page, Markdown, CSV, a picture, and plain values."""

import base64
import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmplay.errors import UserError
from lmplay.own_files import own_file
from lmplay.report.as_json import plain, verdict_json
from lmplay.report.ladder import ArmsOnLadder, notes_of, sentences, table
from lmplay.report.report import csv_cell, markdown_text
from lmplay.stats.choices import Choice
from lmplay.stats.multipliers import Interval
from lmplay.stats.ruler import Ruler
from lmplay.text import printable

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
img { max-width: 100% }
div { overflow-x: auto }
"""


def write_ladder(found: Sequence[ArmsOnLadder], page: Path) -> list[Path]:
    """Write `page` (.html), and beside it .md, .csv and, for each candidate with a result, a picture. Return the paths.

    Raises UserError if a file can't be written.
    """
    from lmplay.report.canvas import as_bytes
    from lmplay.report.ladder_picture import draw_ladder

    pictures = [as_bytes(draw_ladder(one)) if one.ladder else b"" for one in found]
    several = len(found) > 1
    names = [page.with_name(f"{page.stem}{f'_{k}' if several else ''}.png") for k in range(1, len(found) + 1)]
    content = {path: picture for path, picture in zip(names, pictures, strict=True) if picture}
    content[page.with_suffix(".md")] = as_markdown(found).encode("utf-8", errors="replace")
    content[page.with_suffix(".csv")] = as_csv(found).encode("utf-8", errors="replace")
    content[page] = as_page(found, pictures).encode("utf-8", errors="replace")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for path, data in content.items():
            with own_file(path) as beside:
                beside.write_bytes(data)
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"no report can be written to {page} ({error.strerror}): choose another path") from None
    return list(content)


def as_markdown(found: Sequence[ArmsOnLadder]) -> str:
    """Return the tables and what is said about them."""
    parts = []
    for one in found:
        header, rows = table(one)
        lines = [f"### {markdown_text(_title(one))}", "", "| " + " | ".join(map(markdown_text, header)) + " |"]
        lines.append("| --- |" + " ---: |" * (len(header) - 1))
        lines += ["| " + " | ".join(map(markdown_text, row)) + " |" for row in rows]
        lines += ["", *(f"- {markdown_text(said)}" for said in (*sentences(one), *notes_of(one)))]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def as_page(found: Sequence[ArmsOnLadder], pictures: Sequence[bytes]) -> str:
    """Return a page that needs no network. pictures: PNG files, b"" for none."""
    parts = []
    for one, picture in zip(found, pictures, strict=True):
        header, rows = table(one)
        cells = ["<tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in header) + "</tr>"]
        cells += ["<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows]
        image = base64.b64encode(picture).decode()
        said = "".join(f"<p>{_text(sentence)}</p>" for sentence in sentences(one))
        noted = "".join(f"<li>{_text(note)}</li>" for note in notes_of(one))
        drawn = f'<img alt="loss and M against FLOPs" src="data:image/png;base64,{image}">' if picture else ""
        parts.append(
            f"<h1>{_text(_title(one))}</h1>{said}{drawn}<div><table>{''.join(cells)}</table></div><ul>{noted}</ul>"
        )
    title = _text(", ".join(map(_title, found)))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def as_csv(found: Sequence[ArmsOnLadder]) -> str:
    """Return one row for each candidate and rung, unrounded."""
    rows = [row for one in found for row in _rows(one)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _rows(found: ArmsOnLadder) -> list[dict[str, object]]:
    multipliers = found.ladder.rungs if found.ladder else [None] * len(found.rungs)
    rows = []
    for rung, one, m in zip(found.rungs, found.candidates, multipliers, strict=True):
        verdict = m.verdict if m else one.verdict
        row: dict[str, object] = {"model": found.label, "baseline": found.baseline, "rung": rung.name}
        row |= {"parameters": rung.parameters, "tokens": rung.tokens, "batch_size": rung.batch_size}
        row |= {"pairs": len(one.pairs), "verdict": "arm not tuned" if rung.not_tuned else one.word}
        names = ("baseline_loss", "candidate_loss", "difference", "low", "high", "confidence")
        row |= {name: getattr(verdict, name, None) for name in names}
        row |= {name: getattr(m, name, None) for name in ("baseline_flops", "candidate_flops", "slope", "slope_error")}
        for axis in ("flops", "seconds"):
            interval = getattr(m, axis, None)
            row |= {f"ln_m_{axis}{end}": getattr(interval, name, None) for end, name in ENDS}
        rows.append(row | {"beyond": getattr(m, "beyond", None)})
    return rows


ENDS = (("", "value"), ("_low", "low"), ("_high", "high"))


def as_object(found: Sequence[ArmsOnLadder]) -> dict[str, Any]:
    """Return all candidates as one object for a program; ln M as in `stats.ladder`, FLOPs of `gone_at` as log10."""
    return plain({"ladders": [_object(one) for one in found]})


def _object(found: ArmsOnLadder) -> dict[str, Any]:
    ladder = found.ladder
    rungs = []
    for row, rung, one in zip(_rows(found), found.rungs, found.candidates, strict=True):
        own = {label: _values(choice) for label, choice in rung.own.items()}
        rungs.append(row | {"settings": own, "verdict_at_rung": verdict_json(one.verdict) if one.verdict else None})
    content: dict[str, Any] = {
        "model": found.label,
        "baseline": found.baseline,
        "tokens_per_parameter": found.per_parameter,
        "rungs": rungs,
        "below": [{"flops": flops, "loss": loss} for flops, loss in found.below],
        "law": _law(ladder.ruler) if ladder else None,
        "why_none": found.why or None,
        "word": ladder.word if ladder else None,
        "trend_word": ladder.trend_word if ladder else None,
        "sentences": sentences(found),
        "notes": notes_of(found),
    }
    for name in ("pooled", "trend", "gone_at"):
        content[name] = _interval(getattr(ladder, name, None))
    return content | {name: getattr(ladder, name, None) for name in ("smallest_trend", "more_runs")}


def _law(ruler: Ruler) -> dict[str, float]:
    """Return the baseline's law: loss = limit + factor * exp(-exponent * (ln FLOPs - center))."""
    return {name: getattr(ruler, name) for name in ("limit", "factor", "exponent", "center")}


def _values(choice: Choice) -> dict[str, Any]:
    return dict(choice.values)


def _interval(found: Interval | None) -> dict[str, float] | None:
    return {"value": found.value, "low": found.low, "high": found.high} if found else None


def _title(found: ArmsOnLadder) -> str:
    return f"{found.label} against {found.baseline} over {len(found.rungs)} sizes"


def _text(text: str) -> str:
    return html.escape(printable(text))
