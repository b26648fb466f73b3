"""Color what people read on a terminal: the words of a verdict, names in a list. In a pipe or a file nothing is."""

import re
import sys

from lmplay.output import shows_colors

BOLD, FAINT, PLAIN = "\033[1m", "\033[2m", "\033[0m"
# Blue and orange are told apart by every kind of color vision, and readable on black and on white.
BETTER, WORSE = "\033[1;38;5;33m", "\033[1;38;5;166m"
# A cell of a table, which two spaces divide, or the beginning of a sentence; the word elsewhere is prose.
VERDICT = re.compile(r"(?m)(?<=  |: )(?:better|worse)(?= by | over |  |$)")
WARNING = re.compile(r"(?m)^ *warning:")


def styled(text: str, style: str) -> str:
    """Return a text in this style, where standard output is a terminal with colors."""
    return f"{style}{text}{PLAIN}" if text and shows_colors(sys.stdout) else text


def with_verdicts(text: str) -> str:
    """Return a report in which better, worse and warnings stand out, where standard output has colors."""
    if not shows_colors(sys.stdout):
        return text
    text = VERDICT.sub(lambda word: f"{BETTER if word[0] == 'better' else WORSE}{word[0]}{PLAIN}", text)
    return WARNING.sub(lambda word: f"{BOLD}{word[0]}{PLAIN}", text)
