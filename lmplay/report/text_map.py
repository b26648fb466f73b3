"""What each token of a text costs a trained model, or two of them: a map of the text, in which one sees where they differ.

Of a model that reads forwards and one that reads backwards this is a map of time's arrow. Both score the same windows, so that over a
window their losses sum up to two factorisations of one joint probability; what a single token costs depends on which of its neighbours
came before it in the order of reading.
"""

import codecs
import csv
import html
import io
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmplay.files import written_beside

COLUMNS = 100  # characters a line of the picture


PICTURE_CHARACTERS = 6000


LEAST_SCALE = 0.5  # nats at which the colour is full, at the least: noise stays pale


@dataclass
class Cell:
    """A piece of text that is whole characters, of one token or a few, and what it costs each model, in nats."""

    text: str
    losses: tuple[float, ...]


@dataclass
class TextMap:
    """`names` of one or two models; `cells` in the order of the text; tokens and bytes of all."""

    names: list[str]
    cells: list[Cell]
    n_tokens: int
    n_bytes: int

    @property
    def values(self) -> np.ndarray:
        """(cells,) what is drawn: the loss of one model, of two the second's minus the first's."""
        losses = np.array([cell.losses for cell in self.cells])
        return losses[:, 1] - losses[:, 0] if len(self.names) == 2 else losses[:, 0]

    @property
    def scale(self) -> float:
        """The value at which the colour is full: 19 of 20 cells have less."""
        return max(LEAST_SCALE, float(np.quantile(np.abs(self.values), 0.95)))

    def totals(self) -> list[float]:
        """Nats that all of the text costs each model."""
        return [math.fsum(cell.losses[k] for cell in self.cells) for k in range(len(self.names))]


def map_text(names: list[str], pieces: list[bytes], losses: np.ndarray) -> TextMap:
    """Return the map of a text by one or two models.

    names: of the models. pieces: the bytes of each token. losses: (tokens, models), nats per token. Tokens that hold a
    part of a character are drawn together.
    """
    decoder, cells, waiting = codecs.getincrementaldecoder("utf-8")("replace"), [], np.zeros(len(names))
    for number, (piece, of_token) in enumerate(zip(pieces, losses), 1):
        text = decoder.decode(piece, final=number == len(pieces))
        waiting = waiting + of_token
        if text:
            cells.append(Cell(text, tuple(waiting.tolist())))
            waiting = np.zeros(len(names))
    return TextMap(names, cells, len(pieces), sum(map(len, pieces)))


def summary(found: TextMap, most: int = 8) -> str:
    """A few lines for the terminal: what the text costs, and where two models differ most."""
    lines, totals, width = [], found.totals(), max(map(len, found.names))
    for name, total in zip(found.names, totals):
        lines.append(
            f"{name:<{width}}  {total / found.n_tokens:.4f} nats a token  {total / math.log(2) / found.n_bytes:.4f} bits per byte"
        )
    if len(totals) == 2:
        difference = (totals[1] - totals[0]) / found.n_tokens
        lines.append(
            f"second minus first: {difference:+.4f} nats a token ({100 * difference * found.n_tokens / totals[0]:+.2f}%)"
        )
    order = np.argsort(found.values)
    chosen = [
        (found.names[0] if len(totals) == 2 else "likely", order[::-1] if len(totals) == 2 else order),
        (found.names[1] if len(totals) == 2 else "surprising", order if len(totals) == 2 else order[::-1]),
    ]
    for name, cells in chosen:
        lines.append(f"cheapest for {name} against the other:" if len(totals) == 2 else f"most {name}:")
        lines += [f"  {found.values[i]:+8.3f}  {_around(found, int(i))}" for i in cells[:most]]
    return "\n".join(lines)


def _around(found: TextMap, i: int) -> str:
    """A cell in brackets among its neighbours, on one line without control characters."""
    before = "".join(cell.text for cell in found.cells[max(0, i - 8) : i])[-24:]
    after = "".join(cell.text for cell in found.cells[i + 1 : i + 9])[:24]
    return "".join(_visible(part) for part in (before, "[", found.cells[i].text, "]", after))


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else "⏎" if c == "\n" else "·" for c in text)


def write(found: TextMap, title: str, base: Path) -> list[Path]:
    """Writes `base`.csv (every cell), .html (the text, coloured) and .png (its beginning, coloured); returns their paths."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["text", *found.names])
    writer.writerows([cell.text, *(f"{loss:.6g}" for loss in cell.losses)] for cell in found.cells)
    contents = {
        ".csv": table.getvalue().encode(),
        ".html": as_html(found, title).encode(),
        ".png": as_png(found, title),
    }
    for suffix, content in contents.items():
        with written_beside(base.with_name(base.name + suffix)) as beside:
            beside.write_bytes(content)
    return [base.with_name(base.name + suffix) for suffix in contents]


def _colors(found: TextMap) -> list[str]:
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
            f"blue: cheaper for {found.names[0]}; red: cheaper for {found.names[1]}; full colour from {found.scale:.2g} nats of "
            "difference on"
        )
    return f"darker: costs {found.names[0]} more; full colour from {found.scale:.2g} nats on"


def as_html(found: TextMap, title: str) -> str:
    """A page that opens without a network: the text, every cell with its losses as a hint."""
    spans = []
    for cell, color in zip(found.cells, _colors(found)):
        hint = "&#10;".join(html.escape(f"{name}: {loss:.3f} nats") for name, loss in zip(found.names, cell.losses))
        mark = (
            "⏎" * cell.text.count("\n") if not cell.text.strip("\n\r") else ""
        )  # a line break alone would not be seen
        spans.append(f'<span style="background:{color}" title="{hint}">{mark}{html.escape(cell.text)}</span>')
    totals = "".join(
        f"<li>{html.escape(name)}: {total / found.n_tokens:.4f} nats a token</li>"
        for name, total in zip(found.names, found.totals())
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>body{font:15px sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color:#000;background:#fff}"
        "pre{font:14px/1.6 monospace;white-space:pre-wrap;overflow-wrap:anywhere}</style>"
        f"<h1>{html.escape(title)}</h1><ul>{totals}</ul><p>{html.escape(_legend(found))}</p><pre>{''.join(spans)}</pre></html>\n"
    )


def as_png(found: TextMap, title: str) -> bytes:
    """The picture of the text's first PICTURE_CHARACTERS characters, in lines of COLUMNS, each cell on its colour."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    pieces, row, column, shown = [], 0, 0, 0  # (row, column, text, colour)
    for cell, color in zip(found.cells, _colors(found)):
        if shown > PICTURE_CHARACTERS:
            break
        for k, line in enumerate(cell.text.replace("\t", "    ").split("\n")):
            if k:
                pieces.append((row, column, "⏎", color))
                row, column = row + 1, 0
            while line:
                if column == COLUMNS:
                    row, column = row + 1, 0
                part, line = line[: COLUMNS - column], line[COLUMNS - column :]
                pieces.append((row, column, _visible(part), color))
                column += len(part)
        shown += len(cell.text)
    size, line_height = 9, 1.5
    width, height = (
        COLUMNS * 0.602 * size / 72,
        (row + 1) * line_height * size / 72,
    )  # 0.602: DejaVu Sans Mono's advance, in ems
    head = 0.95
    with matplotlib.rc_context(
        {"text.parse_math": False, "text.usetex": False, "font.monospace": ["DejaVu Sans Mono"]}
    ):
        figure = Figure(figsize=(width + 0.6, height + head + 0.3), dpi=110)
        FigureCanvasAgg(figure)
        axes = figure.add_axes(
            (0.3 / (width + 0.6), 0.3 / (height + head + 0.3), width / (width + 0.6), height / (height + head + 0.3))
        )
        axes.set_xlim(0, COLUMNS)
        axes.set_ylim(row + 1, 0)
        axes.axis("off")
        for line, at, text, color in pieces:
            axes.add_patch(Rectangle((at, line + 0.05), len(text), 0.9, facecolor=color, linewidth=0, clip_on=False))
            grey = {"color": "#888888"} if text == "⏎" else {}
            axes.text(at, line + 0.5, text, family="monospace", size=size, va="center_baseline", clip_on=False, **grey)

        def inches(y):
            return 1 - y / (height + head + 0.3)

        left = 0.3 / (width + 0.6)
        whole = f" (the first {shown:,} characters)" if shown < sum(len(cell.text) for cell in found.cells) else ""
        figure.text(left, inches(0.3), title + whole, size=12, weight="bold")
        costs = "   ".join(
            f"{name}: {total / found.n_tokens:.4f} nats a token" for name, total in zip(found.names, found.totals())
        )
        figure.text(left, inches(0.55), costs, size=9)
        figure.text(left, inches(0.78), _legend(found), size=9, color="#666666")
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(buffer, format="png")
    return buffer.getvalue()
