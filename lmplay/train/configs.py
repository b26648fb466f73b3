"""Find the configs that come along: published runs as files of settings, for --use-config."""

from dataclasses import dataclass
from pathlib import Path

from lmplay.errors import UserError, did_you_mean
from lmplay.files import read_json, shipped_files, typed_path
from lmplay.text import by_name


@dataclass(frozen=True)
class Listed:
    """A config that can be named. description: one line, or why the file can't be read."""

    name: str
    description: str


def list_configs() -> list[Listed]:
    """Return all configs that can be named, sorted by name."""
    return [Listed(name, _description(path)) for name, path in sorted(shipped_files("configs").items())]


def find_config(name_or_path: str) -> Path:
    """Return that file, else the file of the config of that name (`-` and `_` are the same). Raises UserError."""
    path = typed_path(name_or_path)
    if path.is_file() or path.suffix or len(path.parts) != 1:
        return path
    files = shipped_files("configs")
    named = by_name(files, name_or_path)
    if named is None:
        near = did_you_mean(name_or_path, files)
        raise UserError(
            f"--use-config {name_or_path} can't be read: No such file, nor a config of that name.{near} "
            "(--use-config list shows all)"
        )
    return named


def _description(path: Path) -> str:
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        return f"CAN NOT BE READ: {error}"
    return str(content.get("description", "")) if isinstance(content, dict) else "CAN NOT BE READ: no JSON object"
