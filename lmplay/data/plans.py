"""Training plans: which text, cut by which tokenizer, in which steps. plans/README.md is the format."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lmplay.data import tasks
from lmplay.data.json_checks import (
    Checked,
    boolean,
    fraction,
    one_of,
    positive_int,
    positive_number,
    text,
    texts,
    whole,
)
from lmplay.errors import UserError, did_you_mean
from lmplay.text import name_key

DEFAULT_TOKENIZER = "tiktoken:gpt2"
STOPS = ("first_exhausted", "all_exhausted")
EMBEDDED = ("python",)
TOKENIZER_KINDS = ("tiktoken", "sentencepiece", "bpe", "bytes")
TRAINABLE_TOKENIZERS = ("bpe", "unigram", "sentencepiece-bpe")
# Held out where a plan does not say: local data is often small, so a larger share of it.
DEFAULT_VALIDATION = {
    "hub": {"fraction": 0.01, "max_documents": 2000},
    "files": {"fraction": 0.1, "max_documents": 2000},
    "embedded": {"fraction": 0.05},
    "synthetic": {"skip": 0, "documents": 2000},
}


@dataclass(frozen=True)
class DatasetSpec:
    """Where documents come from, which fields they are made of, and which of them are for validation.

    kind and source: "hub" and the dataset's id, "files" and a tuple of names or patterns, "embedded" and "python", "synthetic" and a
    task, with its `settings` and `seed`. Of
    `text` (columns), `prompt` (columns) with `answer`, and `messages` exactly one is set. `max_documents` counts documents
    of the source, validation ones included, but for {"skip": ...}, whose validation documents lie beyond. `validation` has
    the keys that plans/README.md lists.
    """

    name: str
    kind: str
    source: str | tuple[str, ...]
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    stream: bool = False
    text: tuple[str, ...] = ()
    prompt: tuple[str, ...] = ()
    answer: str | None = None
    messages: str | None = None
    max_documents: int | None = None
    max_tokens: int | None = None
    validation: dict = field(default_factory=dict)
    settings: dict | None = None
    seed: int | None = None

    @property
    def columns(self) -> list[str]:
        """The columns that documents are made of."""
        return list(dict.fromkeys([*self.text, *self.prompt, *filter(None, (self.answer, self.messages))]))

    @property
    def content(self) -> dict:
        """What decides the documents, as plain JSON values; the same for equal specs."""
        said = {key: value for key, value in asdict(self).items() if value not in (None, (), False)}
        return json.loads(json.dumps(said))


@dataclass
class StepSpec:
    """One step of training: exactly one of `epochs` and `tokens` is set; `weights` None interleaves by document."""

    name: str
    datasets: list[str]
    epochs: float | None = None
    tokens: int | None = None
    stop: str = "first_exhausted"
    weights: dict[str, float] | None = None


@dataclass
class Plan:
    """A checked plan. `path` is its file, None where there is none (--data). `prompts`: what samples begin with. `context_len`: the
    context length of runs that don't say."""

    name: str
    description: str
    tokenizer: str | dict
    datasets: dict[str, DatasetSpec]
    steps: list[StepSpec]
    path: Path | None = None
    prompts: tuple[str, ...] = ()
    context_len: int | None = None

    @property
    def folder(self) -> Path:
        """What the names of files in the plan are relative to, before the working folder is tried."""
        return self.path.parent if self.path else Path.cwd()

    @property
    def content(self) -> dict:
        """The plan as plain JSON values with every default filled in."""
        return {
            "tokenizer": self.tokenizer,
            "datasets": {name: spec.content for name, spec in self.datasets.items()},
            "steps": [asdict(step) for step in self.steps],
        }

    @property
    def hash(self) -> str:
        """Hex hash of the content: equal for plans that ask for the same data, whatever they are called."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()[:32]


@dataclass
class BrokenPlan:
    """A plan file that cannot be read; `error` says why, in one line."""

    name: str
    path: Path
    error: str


def plan_folders() -> list[Path]:
    """Return the folders that hold plans, in the order in which a name is looked up.

    `./plans`, then those of the repository, then those that an installed wheel brought.
    """
    package = Path(__file__).resolve().parents[1]
    folders = [Path("plans"), package.parent / "plans", package / "_plans"]
    return [folder for folder in folders if folder.is_dir()]


def list_plans() -> list[Plan | BrokenPlan]:
    """All plans that can be named, by name; a broken file is a `BrokenPlan`."""
    rows = []
    for name, path in sorted(_plan_files().items()):
        try:
            rows.append(_read_plan(path))
        except UserError as error:
            rows.append(BrokenPlan(name, path, str(error)))
    return rows


def load_plan(name_or_path: str) -> Plan:
    """The plan in that file, else the one of that name (`-` and `_` and case are the same). Raises UserError."""
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return _read_plan(path)
    if path.suffix == ".json" or len(path.parts) != 1:
        raise UserError(f"there is no plan file {name_or_path}")
    files = _plan_files()
    named = files.get(name_or_path) or {name_key(n): file for n, file in files.items()}.get(name_key(name_or_path))
    if named is None:
        raise UserError(f"there is no plan {name_or_path!r}.{did_you_mean(name_or_path, files)}")
    return _read_plan(named)


def plan_from_files(paths: list[str]) -> Plan:
    """The plan of `--data FILE...`: one step over these files, with a tokenizer trained on them, which needs no network."""
    first = paths[0].rpartition("/")[2].partition(".")[0]
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", first).strip("._-") or "data"
    spec = _read_dataset(Checked("--data", {"files": list(paths)}), name)
    return Plan(
        name,
        f"files given on the command line: {' '.join(paths)}",
        {"train": "bpe", "vocab_size": 4096},
        {name: spec},
        [StepSpec(name, [name], epochs=1.0)],
    )


def _plan_files() -> dict[str, Path]:
    files = {}
    for folder in plan_folders():
        for path in sorted(folder.glob("*.json")):
            files.setdefault(path.stem, path)
    return files


def _read_plan(path: Path) -> Plan:
    try:
        raw = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constants
        )
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a plan: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply to be a plan") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    plan = Checked(path, raw, keys=("description", "tokenizer", "datasets", "steps", "prompts", "context_len"))
    tokenizer = _read_tokenizer(plan)
    named = plan.table("datasets")
    for name in named.value:
        named.safe_name(name)
    datasets = {name: _read_dataset(named.inside(name), name) for name in named.value}
    steps = [_read_step(step, list(datasets)) for step in plan.rows("steps")]
    for k, step in enumerate(steps):
        if step.name in [other.name for other in steps[:k]]:
            raise plan.error(f"steps[{k}].name", f"there is a step {step.name!r} already; each needs a name of its own")
    used = {name: datasets[name] for name in datasets if any(name in step.datasets for step in steps)}
    return Plan(
        path.stem,
        plan.take("description", text, ""),
        tokenizer,
        used,
        steps,
        path,
        plan.take("prompts", texts, ()),
        plan.take("context_len", positive_int, None),
    )


def _no_duplicates(pairs):
    keys = [key for key, _ in pairs]
    for k, key in enumerate(keys):
        if key in keys[:k]:
            raise ValueError(f"the key {key!r} is there twice")
    return dict(pairs)


def _no_constants(name):
    raise ValueError(f"{name} is not a number that a plan can use")


def _read_tokenizer(plan: Checked) -> str | dict:
    value = plan.value.get("tokenizer", DEFAULT_TOKENIZER)
    if isinstance(value, dict):
        trained = Checked(plan.file, value, "tokenizer", keys=("train", "vocab_size"))
        kind = trained.take("train", one_of(TRAINABLE_TOKENIZERS))
        vocab_size = trained.take("vocab_size", positive_int)
        if vocab_size < 259:
            raise trained.error(
                "vocab_size", f"must be at least 259 (256 bytes and the special tokens), not {vocab_size}"
            )
        return {"train": kind, "vocab_size": vocab_size}
    spec = plan.take("tokenizer", text, DEFAULT_TOKENIZER)
    kind = spec.partition(":")[0]
    if kind not in TOKENIZER_KINDS:
        raise plan.error("tokenizer", f"unknown tokenizer {spec!r}.{did_you_mean(kind, TOKENIZER_KINDS)}")
    return spec


# of a DatasetSpec: how each is checked, and its default
_SETTINGS = {
    "config": (text, None),
    "revision": (text, None),
    "split": (text, "train"),
    "stream": (boolean, False),
    "text": (texts, ()),
    "prompt": (texts, ()),
    "answer": (text, None),
    "messages": (text, None),
    "max_documents": (positive_int, None),
    "max_tokens": (positive_int, None),
}
_FIELDS = ("text", "prompt", "answer", "messages")
_CAPS = ("max_documents", "max_tokens", "validation")
_DATASET_KEYS = {
    "hub": ("hub", "config", "revision", "split", "stream", *_FIELDS, *_CAPS),
    "files": ("files", *_FIELDS, *_CAPS),
    "embedded": ("embedded", *_CAPS),
    "synthetic": ("synthetic", "settings", "seed", *_CAPS),
}


def _read_dataset(dataset: Checked, name: str) -> DatasetSpec:
    kinds = [key for key in _DATASET_KEYS if key in dataset.value]
    if len(kinds) != 1:
        unknown = [key for key in dataset.value if not any(key in keys for keys in _DATASET_KEYS.values())]
        near = f" (unknown key {unknown[0]!r}).{did_you_mean(unknown[0], _DATASET_KEYS)}" if unknown else ""
        raise dataset.error(
            "",
            f"needs exactly one of {', '.join(map(repr, _DATASET_KEYS))}, has "
            f"{' and '.join(map(repr, kinds)) or 'none' + near}",
        )
    (kind,) = kinds
    dataset.only(_DATASET_KEYS[kind])
    source = dataset.take(
        kind, {"hub": text, "files": texts, "embedded": one_of(EMBEDDED), "synthetic": one_of(tasks.TASKS)}[kind]
    )
    spec = {key: dataset.take(key, check, default) for key, (check, default) in _SETTINGS.items()}
    if bool(spec["prompt"]) != bool(spec["answer"]):
        raise dataset.error("", "'prompt' and 'answer' go together")
    chosen = [key for key in ("text", "prompt", "messages") if spec[key]]
    if len(chosen) > 1:
        raise dataset.error("", f"{' and '.join(map(repr, chosen))} exclude each other")
    if not chosen and kind in ("hub", "files"):
        spec["text"] = ("text",)
    if kind == "synthetic":
        if spec["max_documents"] is None:
            raise dataset.error("", "a synthetic task has no end: needs 'max_documents'")
        spec["settings"] = dataset.take("settings", lambda given: tasks.check_settings(source, given), None)
        spec["seed"] = dataset.take("seed", whole, None)
    return DatasetSpec(name, kind, source, **spec, validation=_read_validation(dataset, kind, spec))


def _read_validation(dataset: Checked, kind: str, spec: dict) -> dict:
    if "validation" not in dataset.value:
        return dict(DEFAULT_VALIDATION[kind])
    # how documents are held out, what else may or must be said with it, and which sources know it
    ways = {
        "fraction": (fraction, "max_documents", _DATASET_KEYS),
        "skip": (whole, "documents", _DATASET_KEYS),
        "split": (text, "max_documents", ("hub",)),
        "files": (texts, "max_documents", ("files",)),
    }
    held_out = dataset.table("validation")
    held_out.only({key for way, (_, also, kinds) in ways.items() if kind in kinds for key in (way, also)})
    chosen = [way for way in ways if way in held_out.value]
    if len(chosen) != 1:
        raise held_out.error("", f"needs exactly one of {', '.join(repr(way) for way in ways if kind in ways[way][2])}")
    (way,) = chosen
    check, also, _ = ways[way]
    held_out.only((way, also))
    result = {way: held_out.take(way, check)}
    if way == "skip":
        result[also] = held_out.take(also, positive_int)
        if spec["max_documents"] is None:
            raise held_out.error("skip", "needs the dataset's 'max_documents', from whose end it counts")
    elif also in held_out.value:
        result[also] = held_out.take(also, positive_int)
    if result.get("split") == spec["split"]:
        raise held_out.error("split", f"{spec['split']!r} is what is trained on")
    return result


def _read_step(step: Checked, datasets: list[str]) -> StepSpec:
    step.only(("name", "datasets", "epochs", "tokens", "stop", "weights"))
    names = list(step.take("datasets", texts))
    for k, name in enumerate(names):
        if name not in datasets:
            raise step.error(
                f"datasets[{k}]", f"there is no dataset {name!r} in the plan.{did_you_mean(name, datasets)}"
            )
        if name in names[:k]:
            raise step.error(f"datasets[{k}]", f"{name!r} is there twice; 'weights' takes more of one than of another")
    epochs, tokens = step.take("epochs", positive_number, None), step.take("tokens", positive_int, None)
    if epochs is not None and tokens is not None:
        raise step.error("", "'epochs' and 'tokens' exclude each other")
    weights = None
    if "weights" in step.value:
        table = step.table("weights")
        table.only(names)
        missing = [name for name in names if name not in table.value]
        if missing:
            raise table.error("", f"has no weight for the dataset {missing[0]!r}")
        weights = {name: table.take(name, positive_number) for name in names}
    step_name = step.take("name", text, "_".join(names))
    step.safe_name(step_name, "name")
    if epochs is None and tokens is None:
        epochs = 1.0
    return StepSpec(
        step_name, names, epochs and float(epochs), tokens, step.take("stop", one_of(STOPS), STOPS[0]), weights
    )
