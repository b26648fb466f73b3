"""Map what each token of a text costs a trained model, or two: the map shows where they differ.

For a model that reads forward and one that reads backward this is a map of time's arrow. Both score the same windows.
Over a window their losses add up to two factorizations of one joint probability. What a single token costs depends on
which of its neighbors come before it in the direction of reading.
"""

import codecs
import csv
import html
import io
import itertools
import math
import os
import re
import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lmplay.own_files import own_file

SUFFIXES = (".csv", ".html", ".png")
LONGEST_BASE = 200  # bytes of a file's name
COLUMNS = 100  # characters per line of the picture


PICTURE_CHARACTERS = 6000


SEEN = 0.001  # nats; smaller differences are not listed


LEAST_SCALE = 0.5  # nats; the color is never full below it, so that noise stays pale


TEXT_SIZE, LINE_HEIGHT = 9, 1.5  # points; in text sizes


ADVANCE = 0.602  # of a character of DejaVu Sans Mono, in text sizes


MARGIN = 0.3  # inches


@dataclass
class Piece:
    """A piece of text of whole characters, from one token or a few, and what it costs each model, in nats.

    n_tokens: how many tokens it is from. losses: their sum, for each model.
    """

    text: str
    losses: tuple[float, ...]
    n_tokens: int = 1


@dataclass
class TextMap:
    """A text by one or two models.

    names: of the models. pieces: in the order of the text. n_tokens, n_bytes: of the whole text.
    """

    names: list[str]
    pieces: list[Piece]
    n_tokens: int
    n_bytes: int

    @cached_property
    def values(self) -> np.ndarray:
        """What is drawn, (pieces,), in nats per token: the loss of one model, or the second's minus the first's."""
        losses = np.array([np.array(piece.losses) / piece.n_tokens for piece in self.pieces])
        return losses[:, 1] - losses[:, 0] if len(self.names) == 2 else losses[:, 0]

    @cached_property
    def scale(self) -> float:
        """The value at which the color is full: 19 of 20 pieces have less."""
        return max(LEAST_SCALE, float(np.quantile(np.abs(self.values), 0.95)))

    def totals(self) -> list[float]:
        """Return the nats that the whole text costs each model."""
        return [math.fsum(piece.losses[k] for piece in self.pieces) for k in range(len(self.names))]


def map_text(names: list[str], pieces: list[bytes], losses: np.ndarray) -> TextMap:
    """Return the map of a text by one or two models.

    names: of the models. pieces: the bytes of each token. losses: (tokens, models), nats per token. Tokens that hold a
    part of a character are drawn together.
    """
    decoder, found, waiting = codecs.getincrementaldecoder("utf-8")("replace"), [], np.zeros(len(names))
    n_waiting = 0
    for number, (piece, of_token) in enumerate(zip(pieces, losses, strict=True), 1):
        text = decoder.decode(piece, final=number == len(pieces))
        waiting, n_waiting = waiting + of_token, n_waiting + 1
        if text:
            found.append(Piece(text, tuple(waiting.tolist()), n_waiting))
            waiting, n_waiting = np.zeros(len(names)), 0
    return TextMap(names, found, n_tokens=len(pieces), n_bytes=sum(map(len, pieces)))


def summary(found: TextMap, most: int = 8) -> str:
    """Return a few lines for the terminal: what the text costs, and where two models differ most."""
    lines, totals, width = [], found.totals(), max(map(len, found.names))
    for name, total in zip(found.names, totals, strict=True):
        nats, bits = total / found.n_tokens, total / math.log(2) / found.n_bytes
        lines.append(f"{name:<{width}}  {nats:.4f} nats per token  {bits:.4f} bits per byte")
    if len(totals) == 2:
        difference = (totals[1] - totals[0]) / found.n_tokens
        lines.append(
            f"second minus first: {difference:+.4f} nats per token ({100 * (totals[1] / totals[0] - 1):+.2f}%)"
        )
    order = np.argsort(found.values).tolist()
    if len(totals) == 2:
        first, second = (f"cheapest for {name} against the other:" for name in found.names)
        seen = [i for i in order if abs(found.values[i]) >= SEEN]
        if not seen:
            return "\n".join([*lines, f"no token costs one of them {SEEN:g} nats more than the other"])
        dearer, cheaper = ([i for i in seen if sign * found.values[i] > 0] for sign in (1, -1))
        chosen = [(first, dearer[::-1]), (second, cheaper)]
    else:
        chosen = [("most likely (nats per token):", order), ("most surprising (nats per token):", order[::-1])]
    for title, indices in chosen:
        lines.append(title if len(indices) else f"{title} none")
        lines += [f"  {found.values[i]:+8.3f}  {_around(found, int(i))}{_of(found, int(i))}" for i in indices[:most]]
    return "\n".join(lines)


def _of(found: TextMap, i: int) -> str:
    """Return how many tokens a piece is of, if more than one."""
    n = found.pieces[i].n_tokens
    return f"  ({n} tokens)" if n > 1 else ""


def _around(found: TextMap, i: int) -> str:
    """Return a piece in brackets among its neighbors, on one line without control characters."""
    before = "".join(piece.text for piece in found.pieces[max(0, i - 8) : i])[-24:]
    after = "".join(piece.text for piece in found.pieces[i + 1 : i + 9])[:24]
    return "".join(_visible(part) for part in (before, "[", found.pieces[i].text, "]", after))


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else "⏎" if c == "\n" else "·" for c in text)


def _table(found: TextMap) -> bytes:
    """Return the content of the CSV file."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["text", *found.names, "tokens"])
    writer.writerows([piece.text, *(f"{loss:.6g}" for loss in piece.losses), piece.n_tokens] for piece in found.pieces)
    return table.getvalue().encode()


def write(found: TextMap, title: str, base: Path) -> list[Path]:
    """Write `base`.csv (every piece), .html (the text, colored) and .png (its start, colored). Return their paths."""
    contents = {
        ".csv": _table(found),
        ".html": as_html(found, title).encode(),
        ".png": as_png(found, title),
    }
    for suffix, content in contents.items():
        with own_file(base.with_name(base.name + suffix)) as beside:
            beside.write_bytes(content)
    return [base.with_name(base.name + suffix) for suffix in contents]


def free_base(folder: Path, text: str, found: TextMap) -> Path:
    """Return where a map goes: a path without a suffix, named after the text and the models.

    Nothing is at that path yet, or the same map.
    """
    name = re.sub(r"[^\w.=+-]+", "-", f"score_{text}_{'_and_'.join(found.names)}")
    name = name.encode()[:LONGEST_BASE].decode(errors="ignore")
    for number in itertools.count(1):
        base = folder / f"{name}{f'_{number}' if number > 1 else ''}"
        if not taken(base) or _holds(base, found):
            return base
    raise AssertionError("itertools.count ended")


def _holds(base: Path, found: TextMap) -> bool:
    """Tell whether the files at `base` are of this very map."""
    try:
        return base.with_name(base.name + ".csv").read_bytes() == _table(found)
    except OSError:
        return False


def taken(base: Path) -> list[Path]:
    """Return what is already there of the files that `write` writes."""
    paths = [base.with_name(base.name + suffix) for suffix in SUFFIXES]
    return [path for path in paths if os.path.lexists(path)]


def colors(found: TextMap) -> list[str]:
    """Return the color of each piece."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if len(found.names) == 2:  # to 0.85 of the map, so that black text stays readable
        shades = colormaps["RdBu"](0.5 + 0.35 * np.clip(found.values / found.scale, -1, 1))
    else:
        shades = colormaps["Oranges"](0.6 * np.clip(found.values / found.scale, 0, 1))
    return [to_hex(shade) for shade in shades]


def _legend(found: TextMap) -> str:
    if len(found.names) == 2:
        return (
            f"blue: cheaper for {found.names[0]}; red: cheaper for {found.names[1]}; "
            f"full color from {found.scale:.2g} nats of difference on"
        )
    return f"darker: costs {found.names[0]} more; full color from {found.scale:.2g} nats on"


def _costs(found: TextMap) -> list[str]:
    totals = zip(found.names, found.totals(), strict=True)
    return [f"{name}: {total / found.n_tokens:.4f} nats per token" for name, total in totals]


def as_html(found: TextMap, title: str) -> str:
    """Return a page that needs no network: the text, every piece with its losses as a hint."""
    spans = []
    for piece, color in zip(found.pieces, colors(found), strict=True):
        costs = zip(found.names, piece.losses, strict=True)
        hint = "&#10;".join(html.escape(f"{name}: {loss:.3f} nats") for name, loss in costs)
        # a line break alone would not be seen
        mark = "" if piece.text.strip("\n\r") else "⏎" * piece.text.count("\n")
        spans.append(f'<span style="background:{color}" title="{hint}">{mark}{html.escape(piece.text)}</span>')
    totals = "".join(f"<li>{html.escape(cost)}</li>" for cost in _costs(found))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>body{font:15px sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#000;background:#fff}"
        "pre{font:14px/1.6 monospace;white-space:pre-wrap;overflow-wrap:anywhere}</style>"
        f"<h1>{html.escape(title)}</h1><ul>{totals}</ul><p>{html.escape(_legend(found))}</p>"
        f"<pre>{''.join(spans)}</pre></html>\n"
    )


def as_png(found: TextMap, title: str) -> bytes:
    """Return a picture of the text's first PICTURE_CHARACTERS characters, each piece on its color."""
    from matplotlib.patches import Rectangle

    from lmplay.report.canvas import as_bytes, blank, drawing, put_axes, put_text

    stamps, rows, shown = _stamps(found)
    whole = f" (the first {shown:,} characters)" if shown < sum(len(piece.text) for piece in found.pieces) else ""
    heads: list[tuple[str, dict[str, Any]]] = [
        *((line, {"size": 12, "weight": "bold"}) for line in textwrap.wrap(title + whole, 66)),
        *((line, {"size": 9}) for cost in _costs(found) for line in textwrap.wrap(cost, 100)),
        *((line, {"size": 9, "color": "#666666"}) for line in textwrap.wrap(_legend(found), 100)),
    ]
    head = 0.15 + 0.23 * len(heads)
    width, height = COLUMNS * ADVANCE * TEXT_SIZE / 72, rows * LINE_HEIGHT * TEXT_SIZE / 72
    with drawing():
        figure = blank(width + 2 * MARGIN, height + head + MARGIN, dpi=110)
        axes = put_axes(figure, left=MARGIN, bottom=MARGIN, width=width, height=height)
        axes.set_xlim(0, COLUMNS)
        axes.set_ylim(rows, 0)
        axes.axis("off")
        for stamp in stamps:
            at, row, text = stamp.column, stamp.row, stamp.text
            axes.add_patch(
                Rectangle((at, row + 0.05), len(text), 0.9, facecolor=stamp.color, linewidth=0, clip_on=False)
            )
            ink = "#888888" if text == "⏎" else "black"
            style: dict[str, Any] = {
                "family": "monospace",
                "size": TEXT_SIZE,
                "va": "center_baseline",
                "clip_on": False,
                "color": ink,
            }
            axes.text(at, row + 0.5, text, **style)
        for k, (line, look) in enumerate(heads, 1):
            put_text(figure, MARGIN, 0.07 + 0.23 * k, line, **look)
        return as_bytes(figure)


@dataclass(frozen=True)
class _Stamp:
    """A text of one color within one line of the picture."""

    row: int
    column: int
    text: str
    color: str


def _stamps(found: TextMap) -> tuple[list[_Stamp], int, int]:
    """Return (what is drawn, rows, characters of the text that it covers)."""
    stamps, row, column, shown = [], 0, 0, 0
    for piece, color in zip(found.pieces, colors(found), strict=True):
        if shown > PICTURE_CHARACTERS:
            break
        for k, line in enumerate(piece.text.replace("\t", "    ").split("\n")):
            if k:
                stamps.append(_Stamp(row, column, "⏎", color))
                row, column = row + 1, 0
            while line:
                if column == COLUMNS:
                    row, column = row + 1, 0
                part, line = line[: COLUMNS - column], line[COLUMNS - column :]
                stamps.append(_Stamp(row, column, _visible(part), color))
                column += len(part)
        shown += len(piece.text)
    return stamps, row + 1, shown
