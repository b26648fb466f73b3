"""Read, ask and write a run's run.json."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmplay import code_hash, registry
from lmplay.checksums import CHECKSUMS, broken_seal, seal
from lmplay.data.plan_spec import plan_key
from lmplay.errors import UserError
from lmplay.files import read_json, write_json
from lmplay.runs import checkpoints, names
from lmplay.runs.settings import settings_before
from lmplay.runs.shape import RUN, Misfit, fitting
from lmplay.runs.tables import read_table
from lmplay.text import printable

if TYPE_CHECKING:
    import pandas

FORMAT = 1
# What run.json must hold, and of which type, to be compared, loaded and continued; to be drawn, what `read_run` checks.
LEVELS: dict[str, dict[str, type]] = {
    "compare": {"experiment.name": str, "config": dict, "settings": dict, "plan.hash": str, "data.hash": str},
    "load": {"experiment.name": str, "config": dict, "tokenizer.spec": str, "tokenizer.fingerprint": str},
    "continue": {
        "settings": dict,
        "plan.hash": str,
        "data.hash": str,
        "tokenizer.spec": str,
        "tokenizer.fingerprint": str,
        "progress.step": int,
        "progress.phases": list,
    },
}


@dataclass
class Run:
    """A run's folder and its run.json.

    `info` is the content of run.json. `chosen` is a checkpoint that was asked for, None for the newest one. Tables are
    read on demand; `notes` says what was odd in them.
    """

    folder: Path
    info: dict[str, Any]
    chosen: Path | None = None
    notes: list[str] = field(default_factory=list)

    def get(self, *keys: str) -> Any:
        """Return the value at this path of keys in run.json, None if it is missing."""
        value: Any = self.info
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def number(self, *keys: str) -> float | None:
        """Return the value at this path of keys if it is a finite number, else None."""
        value = self.get(*keys)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return value if is_number and math.isfinite(value) else None

    def check(self, level: str) -> "Run":
        """Return the run. Raises UserError if run.json is damaged or lacks what `level`, a key of LEVELS, needs."""
        if broken := broken_seal(self.info):
            raise UserError(
                f"{self.file} is damaged ({broken}): bring it back from a copy, or, if it was changed on purpose, take "
                f"it as it is with lmp_trainer --verify {self.folder} --accept"
            )
        for path, kind in LEVELS[level].items():
            keys = path.split(".")
            if not isinstance(self.get(*keys), kind):
                missing = next(
                    (keys[:n] for n in range(1, len(keys)) if not isinstance(self.get(*keys[:n]), dict)), keys
                )
                raise UserError(f"{self.file} is damaged: {'.'.join(missing)!r} is missing or incomplete")
        return self

    def write(self) -> None:
        """Write run.json, whole or not at all."""
        self.info.setdefault(CHECKSUMS, {})
        write_json(self.file, seal(self.info))

    @property
    def plan_key(self) -> str:
        """What of the plan decides the training besides the data themselves, however their files are spelled."""
        return plan_key(self.get("plan", "content"), self.get("plan", "hash"))

    @property
    def last_datasets(self) -> list[dict[str, Any]]:
        """What the plan says of each dataset of the phase that was trained last; [] if run.json does not say."""
        reached = {str(one.get("name")) for one in self._objects("progress", "phases")}
        steps = [one for one in self._objects("plan", "content", "steps") if str(one.get("name")) in reached]
        named = steps[-1].get("datasets") if steps else None
        found = [self.get("plan", "content", "datasets", str(name)) for name in named or []]
        return found if all(isinstance(one, dict) for one in found) else []

    def _objects(self, *keys: str) -> list[dict[str, Any]]:
        value = self.get(*keys)
        return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings. One that the run is too old to have counts as its default, or as what runs then did."""
        own = self.get("settings")
        return settings_before() | (own if isinstance(own, dict) else {})

    @property
    def config(self) -> dict[str, Any]:
        """All fields of the Config. One that the run is too old to have counts as its default."""
        own = self.get("config")
        return self._config_defaults | (own if isinstance(own, dict) else {})

    def value(self, section: str, *keys: str) -> Any:
        """Return the value at this path of keys in run.json; a setting or a field of the Config may be its default."""
        if section == "settings" and len(keys) == 1:
            return self.settings.get(keys[0])
        if section == "config" and len(keys) == 1 and keys[0] not in self.keys("config"):
            return self._config_defaults.get(keys[0])
        return self.get(section, *keys)

    def keys(self, section: str) -> list[str]:
        """Return the keys of a section of run.json."""
        content = self.get(section)
        return list(content) if isinstance(content, dict) else []

    @cached_property
    def _config_defaults(self) -> dict[str, Any]:
        """The literal defaults of Config: those of the run's own code, then of the experiment as it is now."""
        try:
            now = registry.config_defaults(registry.find(self.experiment)[0])
        except UserError:
            now = {}
        own = registry.config_defaults(self.code) if self.code else {}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in (now | own).items()}

    @property
    def compiled(self) -> dict[str, Any]:
        """Whether the model is compiled ("mode": on or off), and why; an older run has it as a setting."""
        note = self.get(names.COMPILED)
        if isinstance(note, dict) and note.get("mode") in ("on", "off"):
            return note
        return {"mode": "on" if self.settings["compile"] in (True, "on") else "off", "why": "the run was begun so"}

    @property
    def file(self) -> Path:
        """The path of run.json."""
        return self.folder / names.RUN_JSON

    @property
    def name(self) -> str:
        """The run's name by run.json, else its folder's."""
        return printable(self.get("run") or self.folder.resolve().name)

    @property
    def experiment(self) -> str:
        """The experiment's name."""
        return printable(self.get("experiment", "name"))

    @property
    def spec(self) -> str:
        """NAME:VARIANT, or NAME if run.json names no variant."""
        variant = self.get("experiment", "variant")
        return self.experiment + (f":{printable(variant)}" if variant else "")

    @property
    def checkpoints(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return checkpoints.find_all(self.folder / names.CHECKPOINTS)

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint that was asked for, else the newest; None if there is none yet."""
        return self.chosen or checkpoints.latest(self.folder / names.CHECKPOINTS)

    def at_best(self) -> "Run":
        """Return the run at its checkpoint of the lowest validation loss, if it keeps that and no other was asked for.

        Raises UserError if the newest checkpoint is damaged.
        """
        newest = checkpoints.latest(self.folder / names.CHECKPOINTS)
        if self.chosen or newest is None or not self.value("settings", "keep_best"):
            return self
        best = checkpoints.read_state(newest).get(names.BEST) or {}
        there = [one for one in self.checkpoints if names.step_of(one) == best.get(names.STEP)]
        return replace(self, chosen=there[0]) if there else self

    @property
    def samples(self) -> Path:
        """The path of samples.txt."""
        return self.folder / names.SAMPLES

    @property
    def code(self) -> registry.Entry | None:
        """The run's own copy of its experiment, None if it has none."""
        name = self.get("experiment", "name")
        if not isinstance(name, str) or Path(name).name != name or name.startswith((".", "__")):
            return None  # a run.json names no folder elsewhere
        folder = self.folder / names.CODE / name
        return registry.read_entry(folder) if (folder / "model.py").is_file() else None

    @cached_property
    def code_hash(self) -> str:
        """The hash of what the run's code does. If the run is older than that hash, its copy of the code is hashed."""
        known = str(self.get("experiment", "code_hash"))
        entry = None if self.get("experiment", "code_hash_version") == code_hash.VERSION else self.code
        try:
            return entry.code_hash if entry else known
        except OSError:
            return known

    def table(self, split: str, columns: Iterable[str] | None = None) -> "pandas.DataFrame":
        """Return one row per step (`split` "train") or per validation ("validate"), by ascending step.

        Without the file there are no rows.
        `columns` limits what is read to those (if the file has them) and to what orders the rows; None reads all.
        Every column except plan_step is float64 with NaN for what is missing.
        """
        frame, notes = read_table(self.folder / names.TABLES[split], columns)
        self.notes += [note for note in notes if note not in self.notes]
        return frame


def is_run(folder: Path) -> bool:
    """Tell whether `folder` is that of a run."""
    return (folder / names.RUN_JSON).is_file()


def read_run(folder: Path, chosen: Path | None = None) -> Run:
    """Read the run in `folder`, as far as plots need it; `Run.check` asks for more.

    What is not of its shape (runs/shape.py) is left out with a note: it counts as missing.
    Raises UserError for a folder that no version of lmplay known here has written.
    """
    path = folder / names.RUN_JSON
    dropped: list[str] = []
    try:
        info = fitting(read_json(path), RUN, dropped)
    except FileNotFoundError:
        raise UserError(f"{folder} is not a run's folder (it has no {names.RUN_JSON})") from None
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged and can't be read ({printable(error)})") from None
    except Misfit:
        info = {}
    run = Run(folder, info, chosen)
    if dropped:
        more = f" and {len(dropped) - 3} more" if dropped[3:] else ""
        run.notes.append(f"{names.RUN_JSON}: what is no value of {', '.join(dropped[:3])}{more} is left out")
    version = run.number("format")
    if version is not None and version > FORMAT:
        raise UserError(f"{path} was written by a newer lmplay (format {version}, known is {FORMAT}): update lmplay")
    if version is None or not isinstance(run.get("experiment", "name"), str):
        raise UserError(f"{path} is not lmplay's (it needs the keys format and experiment.name)")
    return run
