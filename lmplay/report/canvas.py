"""What all pictures share: an empty figure, text and axes at positions in inches, and the bytes of a file."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Text

DPI = 150  # dots per inch
# Names of runs may hold $ and _. The same figures make the same file.
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "lmplay",
    "text.parse_math": False,
    "text.usetex": False,
    "font.monospace": ["DejaVu Sans Mono"],
}
METADATA = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with the same settings everywhere, and without warnings of characters that no font has."""
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


class ShownFigure(Figure):
    """A figure that a notebook shows as the last line of a cell, also before pyplot is imported."""

    def _repr_png_(self) -> bytes:
        return as_bytes(self)


def blank(width: float, height: float, dpi: int = DPI) -> Figure:
    """Return an empty figure of that size in inches. Draw on it within `drawing`."""
    figure = ShownFigure(figsize=(width, height), dpi=dpi)
    FigureCanvasAgg(figure)  # keeps one renderer; without it every measured text makes its own
    return figure


def put_text(figure: Figure | SubFigure, left: float, top: float, text: str, **style: Any) -> Text:
    """Put a text on a figure or a part of one, at inches from its left and its top."""
    width, height = figure.bbox.width / figure.dpi, figure.bbox.height / figure.dpi
    return figure.text(left / width, 1 - top / height, text, **style)


def put_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes to a figure; all sizes in inches, `bottom` from the figure's bottom."""
    whole_width, whole_height = figure.get_size_inches()
    return figure.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))


def as_bytes(figure: Figure, kind: str = "png") -> bytes:
    """Return the content of a file with the figure, "png", "svg" or "pdf"."""
    buffer = io.BytesIO()
    with drawing():
        figure.savefig(buffer, format=kind, metadata=METADATA.get(kind))
    return buffer.getvalue()
