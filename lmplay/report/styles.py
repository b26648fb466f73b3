"""Styles of pictures: for a screen, for a paper, for a dark page."""

from dataclasses import dataclass
from typing import Any

BASELINE = "black"  # the baseline's color, whatever a style makes of it


@dataclass(frozen=True)
class Style:
    """Colors and sizes of a picture. width, height, left: in inches; height is the least. titled: it has a title.

    A picture for a paper has none, since there a caption says it, and no notes except on what runs out of it.
    """

    paper: str = "white"
    ink: str = "black"
    quiet: str = "#666666"
    grid: str = "#e4e4e4"
    note: str = "#a03000"
    shade: float = 0.8  # of a line's color, for text
    width: float = 11.0
    height: float = 6.2
    left: float = 1.0
    titled: bool = True

    @property
    def settings(self) -> dict[Any, Any]:
        """The settings of matplotlib."""
        inks = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
        return dict.fromkeys(inks, self.ink) | dict.fromkeys(("figure.facecolor", "axes.facecolor"), self.paper)

    def color(self, color: str) -> str:
        """Return the color of a line: the baseline's is that of the text."""
        return self.ink if color == BASELINE else color


STYLES = {
    "screen": Style(),
    "paper": Style(width=6.5, height=3.6, titled=False),
    "dark": Style(paper="#14181c", ink="#e4e8ec", quiet="#9aa6b2", grid="#2b333b", note="#f0a070", shade=1.2),
}
