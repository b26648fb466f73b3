"""A hash of what an experiment folder's code does: the same for reformatted code, and on every supported Python."""

import ast
import errno
import functools
import hashlib
import io
import os
import re
import threading
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

RECIPES = ("recipe", "tuned_recipe")  # literals that say how a folder's model is trained: no code of the model
LARGEST = 2**24  # bytes of a Python file
LARGEST_NAMED = 2**28  # bytes of a file that code reads
VERSION = 2  # version 1, of the files' bytes, has no number in run.json


_parsing = threading.Lock()  # Python 3.11 confuses the depths of trees that two threads make at once


def parse(source: str | bytes) -> ast.Module:
    """Return the syntax tree of Python source, in any thread. Raises as ast.parse does."""
    with _parsing:
        return ast.parse(source)


def code_files(folder: Path) -> list[Path]:
    """Return the Python files of a folder, sorted. Hidden ones, and what an editor or Python left, are no code."""
    return _files(folder, "*.py")


def named_files(folder: Path) -> list[Path]:
    """Return the other files of a folder that its code names in a string, sorted: a table, say, that it reads.

    "table.txt" names every file that is called so, and so does "data/table.txt".
    """
    others = [path for path in _files(folder, "*") if path.suffix not in (".py", ".pyc")]
    if not others:
        return []
    named = set().union(*(_last_parts(read_code(path)) for path in code_files(folder)))
    return [path for path in others if path.name in named]


def _files(folder: Path, pattern: str) -> list[Path]:
    found = (path for path in folder.rglob(pattern) if path.is_file())  # a pipe or a device has no end
    return sorted(path for path in found if not any(map(_no_code, path.relative_to(folder).parts)))


def _no_code(part: str) -> bool:
    """Tell whether a part of a path is one that Python, a notebook or an editor left."""
    return part.startswith(".") or part == "__pycache__"


@functools.lru_cache(maxsize=128)
def _last_parts(content: bytes) -> frozenset[str]:
    """Return what each string of a Python file names if it is a path: its last part."""
    try:
        nodes = list(ast.walk(parse(content)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    strings = (node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return frozenset(re.split(r"[/\\]", text)[-1] for text in strings)


def code_hash(folder: Path, files: Iterable[Path]) -> str:
    """Return the hex hash of `files` below `folder`: of their paths, and of the syntax trees of Python files.

    Positions, comments, docstrings and formatting leave it as it is. So do recipes, which a run's settings
    record. A file that does not parse, or is no Python file, counts with its bytes.
    Raises OSError.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(files):
        digest.update(_with_length(os.fsencode(path.relative_to(folder).as_posix())))
        content = read_code(path)
        digest.update(_encoded(content) if path.suffix == ".py" else _bytes_of(content))
    return digest.hexdigest()


def read_code(path: Path) -> bytes:
    """Return the bytes of a file of an experiment, which may have come with a run.

    Raises OSError for more than any has.
    """
    if path.stat().st_size > (LARGEST if path.suffix == ".py" else LARGEST_NAMED):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return path.read_bytes()


def encoding_of(source: bytes) -> str:
    """Return the encoding of Python source, as Python reads it: utf-8-sig with a byte order mark.

    Raises SyntaxError for one that is not known.
    """
    return tokenize.detect_encoding(io.BytesIO(source).readline)[0]


@functools.lru_cache(maxsize=128)  # a start asks several times for the same files
def _encoded(content: bytes) -> bytes:
    """Return the parts of a file's syntax tree, each with its length before it."""
    try:
        return b"".join(map(_with_length, _tokens(_without_recipes(parse(content)))))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _bytes_of(content)


def _bytes_of(content: bytes) -> bytes:
    return _with_length(b"bytes") + _with_length(content)


def _with_length(part: bytes) -> bytes:
    return len(part).to_bytes(8, "little") + part


def _tokens(tree: ast.Module) -> Iterator[bytes]:
    """Yield the tree's nodes and values in order. The work list replaces recursion: long sums nest deeply."""
    work: list = [tree]
    while work:
        item = work.pop()
        if isinstance(item, ast.AST):
            yield type(item).__name__.encode()
            for name, value in reversed(_fields(item)):
                work += [value, _Name(name)]
        elif isinstance(item, list):
            yield b"[%d" % len(item)
            work += reversed(item)
        else:
            yield _literal(item)


def _without_recipes(tree: ast.Module) -> ast.Module:
    """Return a file's tree without the recipes that it assigns and does not read itself."""
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    tree.body = [node for node in tree.body if not _assigns(node, set(RECIPES) - read)]
    return tree


def _assigns(node: ast.stmt, names: set[str]) -> bool:
    """Tell whether a statement assigns to one of these names, and to nothing else."""
    if not isinstance(node, (ast.Assign, ast.AnnAssign)):
        return False
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return len(targets) == 1 and isinstance(targets[0], ast.Name) and targets[0].id in names


class _Name(str):
    """The name of a node's field."""


def _fields(node: ast.AST) -> list[tuple[str, object]]:
    """Return a node's fields by name, without those that are empty, newer than a Python, or without effect."""
    if isinstance(node, ast.Constant):
        return [("value", node.value)]
    fields = []
    for name, value in sorted(ast.iter_fields(node)):
        if name in ("ctx", "kind", "type_comment") or value is None or value == []:
            continue
        if name == "body" and isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            value = value[1:] if ast.get_docstring(node, clean=False) is not None else value
        if isinstance(node, ast.JoinedStr):
            value = _joined(value)
        fields.append((name, value))
    return fields


def _joined(parts: list) -> list:
    """Return an f-string's parts with neighboring texts as one: Pythons cut them differently."""
    joined: list = []
    for part in parts:
        is_text = isinstance(part, ast.Constant)
        if is_text and joined and isinstance(joined[-1], ast.Constant):
            joined[-1] = ast.Constant(joined[-1].value + part.value)
        elif not (is_text and part.value == ""):
            joined.append(part)
    return joined


def _literal(value: object) -> bytes:
    """Return a constant's type and value as bytes. `repr` of a string depends on Python's Unicode tables."""
    if isinstance(value, _Name):
        return b"." + value.encode()
    kind = type(value).__name__.encode()
    if isinstance(value, str):
        return kind + value.encode("utf-8", "surrogatepass")
    if isinstance(value, int) and not isinstance(value, bool):
        return kind + hex(value).encode()
    return kind + repr(value).encode()
