"""Read the Python sources of installed distributions: more text than the standard library has, and no network.

The distributions are a fixed list, of which constraints.txt pins the versions; another version is other text, and other
data. Whole distributions are held out. A file that nearly repeats what was read before is left out: at least half of
its shingles (5 lines that follow one another, without blank ones and without indentation: A. Z. Broder, "On the
resemblance and containment of documents", 1997) stand elsewhere. Held-out files are read first, so no training file
repeats one of them.
"""

import hashlib
import importlib.metadata
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from lmplay.data.types import Row, Where
from lmplay.errors import UserError, did_you_mean
from lmplay.text import counted

# What an installed lmplay needs, and what that needs. Not transformers and plotly, which repeat themselves.
DISTRIBUTIONS = (
    *("torch", "sympy", "scipy", "pandas", "matplotlib", "fonttools", "numpy", "networkx", "huggingface_hub"),
    *("mpmath", "setuptools", "pillow", "fsspec", "filelock", "Jinja2", "packaging", "pyparsing", "python-dateutil"),
    *("tqdm", "tokenizers", "safetensors", "tiktoken", "contourpy", "typing_extensions"),
)
NOT_READ = {"test", "tests", "testing", "__pycache__", "_vendor", "_vendored", "vendored"}
SHINGLE = 5  # lines
REPEATED = 0.5  # of a file's shingles: it is left out
MOST_OVERLAP = 0.03  # of the held-out shingles that stand in training text, too


def check_distributions(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of distributions that are held out. Raises ValueError for others than those of the list."""
    for name in names:
        if name not in DISTRIBUTIONS:
            raise ValueError(f"{name!r} is none of the distributions that are read.{did_you_mean(name, DISTRIBUTIONS)}")
    if len(set(names)) >= len(DISTRIBUTIONS):
        raise ValueError("leaves nothing to train on")
    return tuple(names)


def package_rows(held_out: Sequence[str], validation: bool) -> Iterator[tuple[Where, Row]]:
    """Yield (where, text) of the files to train on, or of those held out. Raises UserError if something is missing."""
    kept = _kept(tuple(held_out))
    if not validation:
        print(kept.note, file=sys.stderr)
    yield from kept.held_out if validation else kept.trained


def package_origin(names: Sequence[str] = DISTRIBUTIONS) -> list[tuple[str, str]]:
    """Return what decides the text: each file and its hash, as it was installed, with its size as it is.

    Raises UserError if a distribution is missing.
    """
    found = []
    for name in names:
        for path, file in _files(name):
            found.append((f"{name}/{path}", f"{file.hash.value if file.hash else ''} {_size(Path(file.locate()))}"))
    return found


class Kept:
    """The files that are read of these distributions, and how much of the held-out text stands in the training text.

    held_out, trained: (distribution/path, text) each. dropped: near-duplicates. overlap: 0 to 1.
    """

    def __init__(self, held_out: Sequence[str], names: Sequence[str] = DISTRIBUTIONS):
        self.dropped = 0
        seen: set[bytes] = set()
        self.held_out = self._read(held_out, seen)
        ours = set(seen)
        self.trained = self._read([name for name in names if name not in held_out], seen)
        theirs = {shingle for _, text in self.trained for shingle in shingles(text)}
        self.overlap = len(ours & theirs) / max(1, len(ours))

    @property
    def note(self) -> str:
        """Say what was left out and what is left in common."""
        return (
            f"packages: {counted(len(self.trained), 'file')} to train on, {counted(len(self.held_out), 'file')} "
            f"held out, {self.dropped} near-duplicates left out; {self.overlap:.2%} of the held-out text "
            f"({SHINGLE} lines at a time) stands in the training text, too"
        )

    def _read(self, names: Sequence[str], seen: set[bytes]) -> list[tuple[str, str]]:
        rows = []
        for name in names:
            for path, file in _files(name):
                try:
                    text = Path(file.locate()).read_text(encoding="utf-8")
                except UnicodeDecodeError:
                    continue
                except OSError as error:
                    raise UserError(
                        f"{file.locate()} can't be read ({error.strerror}): install {name} again"
                    ) from error
                own = shingles(text)
                if not text.strip() or (own and len(own & seen) >= REPEATED * len(own)):
                    self.dropped += bool(text.strip())
                    continue
                seen |= own
                rows.append((f"{name}/{path}", text))
        return rows


@cache
def _kept(held_out: tuple[str, ...]) -> Kept:
    kept = Kept(held_out)
    if kept.overlap > MOST_OVERLAP:
        raise UserError(f"{kept.note}, more than {MOST_OVERLAP:.0%}: hold out other distributions")
    return kept


def shingles(text: str) -> set[bytes]:
    """Return a hash of every SHINGLE lines of a text that follow one another, without blank lines and indentation."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return {
        hashlib.blake2b("\n".join(lines[i : i + SHINGLE]).encode(errors="replace"), digest_size=8).digest()
        for i in range(len(lines) - SHINGLE + 1)
    }


def _files(name: str) -> list[tuple[str, importlib.metadata.PackagePath]]:
    """Return (path, file) of a distribution's Python sources, without tests and other people's copies, by path."""
    try:
        files = importlib.metadata.distribution(name).files or []
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"the data 'packages' need {name}, which is not installed: pip install -c constraints.txt {name}"
        ) from None
    sources = [(file.as_posix(), file) for file in files if file.suffix == ".py" and ".." not in file.parts]
    return sorted((path, file) for path, file in sources if not NOT_READ & set(file.parts))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
