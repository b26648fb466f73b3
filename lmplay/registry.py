"""Finds experiment folders and reads them without running them.

An experiment is a folder with a `model.py`. It is read with `ast`, so that listing is quick, needs no torch, and a
folder with a syntax error is a row that says so.
"""

import ast
import difflib
import io
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from lmplay.code_hash import code_hash
from lmplay.errors import UserError, did_you_mean
from lmplay.text import name_key

DEFAULT_EXPERIMENT = "gpt2ish"
_NOT_COPIED = ("__pycache__", "*.pyc", "README.md", "*.png")


@dataclass(frozen=True)
class Entry:
    """What can be said of an experiment folder without running it. `error` is why it can't be used, if so."""

    name: str
    folder: Path
    docstring: str = ""
    parent: str | None = None
    variants: dict[str, dict] = field(default_factory=lambda: {"default": {}})
    error: str | None = None

    @property
    def summary(self) -> str:
        return self.docstring.strip().split("\n", 1)[0]

    @property
    def code_files(self) -> list[Path]:
        """The Python files of the folder, sorted: what decides how the experiment behaves."""
        return sorted(p for p in self.folder.rglob("*.py") if "__pycache__" not in p.parts)

    @property
    def code_hash(self) -> str:
        """The hash of what the folder's code does: equal hashes, equal behaviour."""
        return code_hash(self.folder, self.code_files)


def search_path() -> list[Path]:
    """Return the folders that hold experiments, in the order in which a name is looked up.

    `./experiments`, then those of the repository, those that an installed wheel brought, those in $LMPLAY_EXPERIMENTS.
    """
    package = Path(__file__).resolve().parent
    folders = [Path("experiments"), package.parent / "experiments", package / "_experiments"]
    folders += [Path(p).expanduser() for p in os.environ.get("LMPLAY_EXPERIMENTS", "").split(os.pathsep) if p]
    unique = {}
    for folder in folders:
        if folder.is_dir():
            unique.setdefault(folder.resolve(), folder.resolve())
    return list(unique)


def list_experiments() -> list[Entry]:
    """Every experiment on the search path, by name; broken ones have `error` set."""
    return sorted(map(read_entry, _folders().values()), key=lambda entry: entry.name)


def _folders() -> dict[str, Path]:
    """The folders of all experiments by what their names come to."""
    found: dict[str, Path] = {}
    for root in search_path():
        for folder in sorted(root.iterdir()):
            if (folder / "model.py").is_file() and not folder.name.startswith((".", "_")):
                found.setdefault(name_key(folder.name), folder)
    return found


def find(spec: str) -> tuple[Entry, str]:
    """The entry and the variant that `NAME[:VARIANT]` stands for; without a variant the first one.

    Raises UserError for an unknown name or variant and for a folder that can't be read.
    """
    name, _, variant = spec.partition(":")
    folders = _folders()
    if name_key(name) not in folders:
        raise UserError(
            f"no experiment named {name!r}.{did_you_mean(name, [folder.name for folder in folders.values()])}"
            " (lmp_trainer --exp list shows all)"
        )
    entry = read_entry(folders[name_key(name)])
    if entry.error:
        raise UserError(f"experiment {entry.name!r} can't be read: {entry.error} ({entry.folder / 'model.py'})")
    names = {name_key(v): v for v in entry.variants}
    if variant and name_key(variant) not in names:
        raise UserError(f"experiment {entry.name!r} has no variant {variant!r}.{did_you_mean(variant, entry.variants)}")
    return entry, names[name_key(variant)] if variant else next(iter(entry.variants))


def read_entry(folder: Path) -> Entry:
    """Reads `folder/model.py` without running it."""
    name = folder.name
    try:
        tree = ast.parse((folder / "model.py").read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        line = f" (line {error.lineno})" if getattr(error, "lineno", None) else ""
        return Entry(name, folder, error=f"{getattr(error, 'msg', None) or str(error) or 'nested too deeply'}{line}")
    except OSError as error:
        return Entry(name, folder, error=error.strerror)
    docstring = ast.get_docstring(tree) or ""
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    imported = {a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
    missing = [c for c in ("Config", "Model") if c not in classes | imported]
    if missing:
        return Entry(name, folder, docstring, error=f"it has no class {missing[0]}")
    values = {}
    for wanted in ("parent", "variants"):
        node = _assigned(tree, wanted)
        if node is not None:
            try:
                values[wanted] = _evaluate(node.value)
            except (ValueError, TypeError):
                return Entry(name, folder, docstring, error=f"{wanted} is not a plain literal (line {node.lineno})")
    parent, variants = values.get("parent"), values.get("variants") or {"default": {}}
    if not isinstance(variants, dict) or not all(
        isinstance(k, str) and isinstance(v, dict) for k, v in variants.items()
    ):
        return Entry(name, folder, docstring, error="variants is not a dictionary of names and dictionaries")
    if not (parent is None or isinstance(parent, str)):
        return Entry(name, folder, docstring, error="parent is not a name")
    return Entry(name, folder, docstring, parent, variants)


def copy_experiment(entry: Entry, new: str) -> Path:
    """Copies a folder to `./experiments/<new>` and makes the original its parent. Returns the new folder.

    Raises UserError where the name is not usable or taken.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", new):
        raise UserError(f"{new!r} is not a usable name: take letters, digits, _ and -, a letter first")
    if name_key(new) in _folders():
        raise UserError(f"there is an experiment named {new!r} already: choose another name")
    target = Path("experiments") / new
    if target.exists():
        raise UserError(f"there is something at {target} already: choose another name")
    beside = target.with_name(f".{new}.copying")
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(beside, ignore_errors=True)
    try:
        shutil.copytree(entry.folder, beside, ignore=shutil.ignore_patterns(*_NOT_COPIED))
        model_file = beside / "model.py"
        source = model_file.read_text(encoding="utf-8")
        model_file.write_text(_with_parent(source, entry.name), encoding="utf-8")
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def diff(entry: Entry, other: Entry) -> str:
    """The unified difference between two folders' Python files, from `other` to `entry`."""
    ours = {p.relative_to(entry.folder): p for p in entry.code_files}
    theirs = {p.relative_to(other.folder): p for p in other.code_files}
    lines = []
    for relative in sorted(ours.keys() | theirs.keys()):
        sides = [
            side[relative].read_text(encoding="utf-8").splitlines(keepends=True) if relative in side else []
            for side in (theirs, ours)
        ]
        lines += difflib.unified_diff(*sides, f"{other.name}/{relative}", f"{entry.name}/{relative}")
    return "".join(line if line.endswith("\n") else line + "\n" for line in lines)


def _assigned(tree: ast.Module, name: str) -> ast.Assign | ast.AnnAssign | None:
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(t, ast.Name) and t.id == name for t in targets) and node.value is not None:
            return node
    return None


def _evaluate(node: ast.expr):
    """A literal, where `dict(a=1)` counts as one too."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        if all(k.arg for k in node.keywords):
            return {k.arg: _evaluate(k.value) for k in node.keywords}
    if isinstance(node, ast.Dict) and all(node.keys):
        return {_evaluate(k): _evaluate(v) for k, v in zip(node.keys, node.values)}
    return ast.literal_eval(node)


def _with_parent(source: str, parent: str) -> str:
    tree = ast.parse(source)
    node = _assigned(tree, "parent")
    lines = io.StringIO(source).readlines()  # as ast counts them: str.splitlines also splits at form feeds
    statement = f'parent = "{parent}"\n'
    if node is not None:
        lines[node.lineno - 1 : node.end_lineno] = [statement]
    else:
        after = 0  # of the docstring and of imports from __future__, which have to come first
        for node in tree.body:
            if not (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                or isinstance(node, ast.ImportFrom)
                and node.module == "__future__"
            ):
                break
            after = node.end_lineno
        lines.insert(after, f"\n{statement}")
    return "".join(lines)
