"""Read, ask and write a run's run.json."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lmplay import code_hash, registry
from lmplay.errors import UserError
from lmplay.files import write_json

if TYPE_CHECKING:
    import pandas
from lmplay.runs.tables import FILES, read_table
from lmplay.text import printable


def read_meta(folder: Path) -> dict:
    """The run.json of a run. Raises UserError where there is none, or not what a run's says of itself."""
    file = folder / "run.json"
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder} is no run: {error.strerror} (run.json)") from error
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error})") from error
    for section, keys in {"experiment": ["name"], "config": [], "tokenizer": ["spec", "fingerprint"]}.items():
        content = meta.get(section) if isinstance(meta, dict) else None
        if not isinstance(content, dict) or not all(isinstance(content.get(key), str) for key in keys):
            raise UserError(f"{file} is damaged: {section!r} is missing or incomplete")
    return meta


FORMAT = 1


@dataclass
class Run:
    """A run's folder and its run.json. Tables are read on demand; what was odd in them is added to `notes`."""

    folder: Path
    info: dict
    notes: list[str] = field(default_factory=list)

    def get(self, *keys: str):
        """The value at this path of keys in run.json; None where it is missing."""
        value = self.info
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def number(self, *keys: str) -> float | None:
        """As `get`, but None for everything that is no finite number."""
        value = self.get(*keys)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if is_number and math.isfinite(value) else None

    @property
    def name(self) -> str:
        return printable(self.get("run") or self.folder.resolve().name)

    @property
    def experiment(self) -> str:
        return printable(self.get("experiment", "name"))

    @property
    def spec(self) -> str:
        """NAME:VARIANT, or NAME where run.json names no variant."""
        variant = self.get("experiment", "variant")
        return self.experiment + (f":{printable(variant)}" if variant else "")

    @cached_property
    def code_hash(self) -> str:
        """The hash of what the run's code does. Runs from before that hash have it computed from their copy of the code."""
        known = str(self.get("experiment", "code_hash"))
        name = self.get("experiment", "name")
        if self.get("experiment", "code_hash_version") == code_hash.VERSION or Path(name).name != name:
            return known
        entry = registry.Entry(name, self.folder / "code" / name)
        try:
            return entry.code_hash if entry.code_files else known
        except OSError:
            return known

    def table(self, split: str, columns: Iterable[str] | None = None) -> "pandas.DataFrame":
        """One row an update (`split` "train") or a validation ("validate"), by ascending step; a missing file gives none.

        `columns` limits what is read to those (where the file has them) and to what orders the rows; None reads all.
        Every column but plan_step is float64 with NaN for what is missing.
        """
        frame, notes = read_table(self.folder / FILES[split], columns)
        self.notes += [note for note in notes if note not in self.notes]
        return frame


def is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file()


def read_run(folder: Path) -> Run:
    """The run in `folder`; raises UserError for a folder that no version of lmplay known here has written."""
    path = folder / "run.json"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is not a run's folder (it has no run.json)") from None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, no JSON
        raise UserError(f"{path} cannot be read ({printable(error)})") from None
    except RecursionError:
        raise UserError(f"{path} cannot be read (nested too deeply)") from None
    run = Run(folder, info if isinstance(info, dict) else {})
    version = run.number("format")
    if version is None or not isinstance(run.get("experiment", "name"), str):
        raise UserError(f"{path} is not lmplay's (it needs the keys format and experiment.name)")
    if version > FORMAT:
        raise UserError(f"{path} was written by a newer lmplay (format {version}, known is {FORMAT}): update lmplay")
    return run


def save_run_json(folder: Path, meta: dict) -> None:
    write_json(folder / "run.json", meta)
