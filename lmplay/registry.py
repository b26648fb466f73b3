"""Find experiment folders and read them without running them.

An experiment is a folder with a `model.py`, and maybe an `extras.py` with what its copies do not need. Both are read
with `ast`: listing is quick and needs no torch, and a folder with a syntax error is a row that says so.
"""

import ast
import io
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmplay.code_hash import RECIPES, code_files, code_hash, encoding_of, named_files, parse, read_code
from lmplay.errors import UserError, did_you_mean
from lmplay.files import read_json, typed_path
from lmplay.text import name_key

DEFAULT_EXPERIMENT = "gpt2ish"
STUB = '''"""{new}: {parent}, changed. Say here in one line what is new.

Idea: what the change should bring, and why.
Change: what is other than in {parent}.
Claim: by how much it should be better, and where.
Source: a paper or an experiment, or your own.
"""'''  # the docstring of a copy


LONGEST_NAME = 100  # of a copy; the names of its runs begin with it
EXTRAS = "extras.py"  # hooks and variants that a copy does not need
NOT_COPIED = (".*", "__pycache__", "*.pyc", "README.md", "*.png")


@dataclass(frozen=True)
class Entry:
    """An experiment folder as it can be described without running it. `error`: why it can't be used, if so.

    recipe, tuned_recipe: settings by which it is trained, and those to which it was tuned, where they are asked for.
    """

    name: str
    folder: Path
    docstring: str = ""
    parent: str | None = None
    variants: dict[str, dict] = field(default_factory=lambda: {"default": {}})
    error: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    tuned_recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.docstring.strip().split("\n", 1)[0]

    @property
    def code_files(self) -> list[Path]:
        """The Python files of the folder, sorted."""
        return code_files(self.folder)

    @property
    def files(self) -> list[Path]:
        """What decides how the experiment behaves: its Python files, and the files that they name."""
        return [*self.code_files, *named_files(self.folder)]

    @property
    def code_hash(self) -> str:
        """The hash of what the folder's code does: equal hashes, equal behavior."""
        return code_hash(self.folder, self.files)


def use_of_harness(entry: Entry) -> str | None:
    """Return where the folder's code imports lmplay, "model.py line 3", or names one of its modules; None: nowhere.

    A file that can't be parsed fails when it is imported.
    """
    for file in entry.code_files:
        try:
            tree = _parse(file)
        except _Unreadable:
            continue
        for node in ast.walk(tree):
            found = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.append(node.module)
            if isinstance(node, ast.Constant) and isinstance(node.value, str):  # of import_module, of sys.modules
                found.append(node.value)
            if any(re.fullmatch(r"lmplay(\.\w+)*", name) for name in found):
                return f"{file.relative_to(entry.folder)} line {getattr(node, 'lineno', 1)}"
    return None


def search_path() -> list[Path]:
    """Return the folders that hold experiments, in the order in which a name is looked up.

    `./experiments`, then those of the repository, those that an installed wheel brought, those in $LMPLAY_EXPERIMENTS.
    """
    package = Path(__file__).resolve().parent
    folders = [Path("experiments"), package.parent / "experiments", package / "_experiments"]
    folders += [typed_path(p) for p in os.environ.get("LMPLAY_EXPERIMENTS", "").split(os.pathsep) if p]
    return list(dict.fromkeys(folder.resolve() for folder in folders if os.path.isdir(folder)))


def list_experiments() -> list[Entry]:
    """Return every experiment on the search path, by name; broken ones have `error` set."""
    return sorted(map(read_entry, all_folders().values()), key=lambda entry: entry.name)


def all_folders() -> dict[str, Path]:
    """Return the folders of all experiments by `name_key` of their names."""
    found: dict[str, Path] = {}
    for root in search_path():
        for folder in sorted(root.iterdir()):
            if (folder / "model.py").is_file() and not folder.name.startswith((".", "_")):
                found.setdefault(name_key(folder.name), folder)
    return found


def find(spec: str) -> tuple[Entry, str]:
    """Return the entry and the variant of `NAME[:VARIANT]`; without a variant the first one. Takes former names, too.

    Raises UserError for an unknown name or variant and for a folder that can't be read.
    """
    name, _, variant = spec.partition(":")
    folders = all_folders()
    if name_key(name) not in folders and (now := _former_name(spec)):
        return find(now)
    if name_key(name) not in folders:
        raise UserError(
            f"no experiment named {name!r}.{did_you_mean(name, [folder.name for folder in folders.values()])}"
            " (lmp_trainer --exp list shows all)"
        )
    entry = read_entry(folders[name_key(name)])
    if entry.error:
        raise UserError(f"experiment {entry.name!r} can't be read: {entry.error} ({entry.folder})")
    names = {name_key(v): v for v in entry.variants}
    if variant and name_key(variant) not in names:
        raise UserError(f"experiment {entry.name!r} has no variant {variant!r}.{did_you_mean(variant, entry.variants)}")
    return entry, names[name_key(variant)] if variant else next(iter(entry.variants))


def _former_name(name: str) -> str | None:
    """Return the NAME:VARIANT of a run of jmward01/lmplay by its name there, "ue8x"; None for another name."""
    files = (root / "former_names.json" for root in search_path())
    return next((names[name] for file in files if file.is_file() and name in (names := read_json(file))), None)


class _Unreadable(Exception):
    """A file that can't be used. The message says why, in one line."""


def read_entry(folder: Path) -> Entry:
    """Read the files of an experiment's folder without running them; `error` is set if they can't be used.

    The variants are those of model.py, then those that only extras.py has. So it is with a recipe.
    """
    name, docstring = folder.name, ""
    try:
        tree = _parse(folder / "model.py")
        docstring = ast.get_docstring(tree) or ""
        for wanted in ("Config", "Model"):
            if not _classes(tree, wanted) and _imported_from(tree, wanted) is None:
                raise _Unreadable(f"it has no class {wanted}")
        parent = _assigned_literal(tree, "parent")
        if not (parent is None or isinstance(parent, str)):
            raise _Unreadable("parent is not a name")
        variants = _variants(tree) or {"default": {}}
        recipes = [_recipe(tree, name) for name in RECIPES]
    except _Unreadable as error:
        return Entry(name, folder, docstring, error=str(error))
    if (folder / EXTRAS).is_file():
        try:
            tree = _parse(folder / EXTRAS)
            variants = variants | {k: v for k, v in _variants(tree).items() if k not in variants}
            recipes = [own or _recipe(tree, name) for own, name in zip(recipes, RECIPES, strict=True)]
        except _Unreadable as error:
            return Entry(name, folder, docstring, error=f"{EXTRAS}: {error}")
    return Entry(name, folder, docstring, parent, variants, None, *recipes)


def config_defaults(entry: Entry) -> dict[str, object]:
    """Return the literal defaults of the folder's `Config` by field, without running it.

    Fields without a default, or with one that is computed, are left out. A folder that can't be read gives none.
    """
    try:
        tree = _parse(entry.folder / "model.py")
        if file := _file_of_import(entry.folder, tree, "Config"):
            tree = _parse(file)
    except _Unreadable:
        return {}
    defaults = {}
    for node in [statement for found in _classes(tree, "Config") for statement in found.body]:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            try:
                defaults[node.target.id] = _evaluate(node.value)
            except (ValueError, TypeError):
                continue
    return defaults


def copy_experiment(entry: Entry, new: str) -> Path:
    """Copy a folder without its extras.py to `./experiments/<new>`, with the original as its parent; return the copy.

    Raises UserError if the name is not usable or taken.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", new):
        raise UserError(f"{new!r} is not a usable name: take letters, digits, _ and -, a letter first")
    if len(new) > LONGEST_NAME:
        raise UserError(f"the name {new[:20]!r}... is too long: take at most {LONGEST_NAME} letters")
    if name_key(new) in all_folders():
        raise UserError(f"there is an experiment named {new!r} already: choose another name")
    target = Path("experiments") / new
    if target.exists():
        raise UserError(f"there is something at {target} already: choose another name")
    beside = target.with_name(f".{new}.copying")
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(beside, ignore_errors=True)
    try:
        shutil.copytree(entry.folder, beside, ignore=shutil.ignore_patterns(*NOT_COPIED))
        (beside / EXTRAS).unlink(missing_ok=True)
        model_file = beside / "model.py"
        encoding = encoding_of(model_file.read_bytes())
        text = _with_parent(_with_stub(model_file.read_text(encoding=encoding), new, entry.name), entry.name)
        model_file.write_text(text, encoding=encoding.removesuffix("-sig"))
        beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


def _parse(file: Path) -> ast.Module:
    """Return the syntax tree of a file. Raises _Unreadable."""
    try:
        return parse(read_code(file))
    except SyntaxError as error:
        raise _Unreadable(f"{error.msg}{f' (line {error.lineno})' if error.lineno else ''}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # the last two: nested too deeply
        raise _Unreadable(str(error) or "nested too deeply") from error
    except OSError as error:
        raise _Unreadable(error.strerror) from error


def _classes(tree: ast.Module, name: str) -> list[ast.ClassDef]:
    """Return the classes of this name in order. The last one counts; it may derive from earlier ones."""
    return [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]


def _imported_from(tree: ast.Module, name: str) -> ast.ImportFrom | None:
    """Return the `from ... import` that brings this name."""
    imports = (node for node in tree.body if isinstance(node, ast.ImportFrom))
    return next((node for node in imports if name in [a.asname or a.name for a in node.names]), None)


def _file_of_import(folder: Path, tree: ast.Module, name: str) -> Path | None:
    """Return the file of the folder that a relative import brings this name from."""
    node = _imported_from(tree, name)
    if node is None or node.level != 1 or not node.module:
        return None
    file = folder.joinpath(*node.module.split(".")).with_suffix(".py")
    return file if file.is_file() else None


def _variants(tree: ast.Module) -> dict[str, dict]:
    """Return the file's `variants`, {} if it has none. Raises _Unreadable."""
    variants = _assigned_literal(tree, "variants") or {}
    if not isinstance(variants, dict) or not all(
        isinstance(k, str) and isinstance(v, dict) for k, v in variants.items()
    ):
        raise _Unreadable("variants is not a dictionary of names and dictionaries")
    return variants


def _recipe(tree: ast.Module, name: str) -> dict[str, Any]:
    """Return the file's recipe of this name, {} if it has none. Raises _Unreadable."""
    recipe = _assigned_literal(tree, name)
    if recipe is not None and not (isinstance(recipe, dict) and all(isinstance(key, str) for key in recipe)):
        raise _Unreadable(f"{name} is not a dictionary of settings")
    return recipe or {}


def _assigned(tree: ast.Module, name: str) -> tuple[ast.stmt, ast.expr] | None:
    """Return the statement that assigns to `name`, and the expression that it assigns."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        else:
            continue
        if node.value is not None and any(isinstance(t, ast.Name) and t.id == name for t in targets):
            return node, node.value
    return None


def _assigned_literal(tree: ast.Module, name: str) -> object:
    """Return the literal that the file assigns to `name`, or None. Raises _Unreadable if it is none."""
    found = _assigned(tree, name)
    if found is None:
        return None
    try:
        return _evaluate(found[1])
    except (ValueError, TypeError) as error:
        raise _Unreadable(f"{name} is not a plain literal (line {found[0].lineno})") from error


def _evaluate(node: ast.expr) -> object:
    """Return the value of a literal; `dict(a=1)` counts as one too. Raises ValueError or TypeError for all else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        named = {k.arg: k.value for k in node.keywords}
        if None not in named:
            return {name: _evaluate(value) for name, value in named.items()}
    if isinstance(node, ast.Dict):
        keys = [key for key in node.keys if key is not None]
        if len(keys) == len(node.keys):
            return {_evaluate(k): _evaluate(v) for k, v in zip(keys, node.values, strict=True)}
    return ast.literal_eval(node)


def _with_stub(source: str, new: str, parent: str) -> str:
    """Return the source of a model.py with a docstring to fill in, in place of its own."""
    tree = parse(source)
    lines = io.StringIO(source).readlines()
    first = tree.body[0] if tree.body else None
    stub = STUB.format(new=new, parent=parent)
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        rest = lines[(first.end_lineno or 1) - 1].encode()[first.end_col_offset or 0 :].decode()
        lines[first.lineno - 1 : first.end_lineno] = [f"{stub}{rest}"]
        return "".join(lines)
    return "".join([f"{stub}\n", *lines])


def _with_parent(source: str, parent: str) -> str:
    """Return the source of a model.py with this parent in place of its own."""
    tree = parse(source)
    lines = io.StringIO(source).readlines()  # as ast counts them: str.splitlines also splits at form feeds
    statement = f'parent = "{parent}"\n'
    if found := _assigned(tree, "parent"):
        lines[found[0].lineno - 1 : found[0].end_lineno] = [statement]
        return "".join(lines)
    after = 0  # of the docstring and of imports from __future__, which have to come first
    for node in tree.body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if not (is_docstring or (isinstance(node, ast.ImportFrom) and node.module == "__future__")):
            break
        after = node.end_lineno or 0
    lines.insert(after, f"\n{statement}")
    return "".join(lines)
