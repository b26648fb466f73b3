"""Show what one experiment folder changes of another."""

import ast
import difflib
import io
import re
from pathlib import Path

from lmplay.code_hash import encoding_of, parse, read_code
from lmplay.registry import EXTRAS, Entry


def diff(entry: Entry, other: Entry) -> str:
    """Return the unified difference between two folders' Python files, from `other` to `entry`.

    extras.py and the docstrings of modules are passed over: they describe, and each folder has its own.
    """
    ours, theirs = (
        {p.relative_to(one.folder): p for p in one.code_files if p != one.folder / EXTRAS} for one in (entry, other)
    )
    lines: list[str] = []
    for relative in sorted(ours.keys() | theirs.keys()):
        (n_before, before), (n_after, after) = (
            _behind_docstring(files[relative]) if relative in files else (0, []) for files in (theirs, ours)
        )
        for line in difflib.unified_diff(before, after, f"{other.name}/{relative}", f"{entry.name}/{relative}"):
            if hunk := re.fullmatch(r"@@ -(\d+)(\S*) \+(\d+)(\S*) @@\n", line):
                line = f"@@ -{int(hunk[1]) + n_before}{hunk[2]} +{int(hunk[3]) + n_after}{hunk[4]} @@\n"
            lines.append(line)
    return "".join(line if line.endswith("\n") else line + "\n" for line in lines)


def _behind_docstring(file: Path) -> tuple[int, list[str]]:
    """Return the number of lines up to the end of the file's docstring, and the lines after it."""
    content = read_code(file)
    try:
        source = content.decode(encoding_of(content), "replace")
    except SyntaxError:
        source = content.decode("utf-8", "replace")
    lines = io.StringIO(source).readlines()  # as ast counts them: str.splitlines also splits at form feeds
    try:
        tree = parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return 0, lines
    end = tree.body[0].end_lineno or 0 if ast.get_docstring(tree, clean=False) is not None else 0
    return end, lines[end:]
