"""Find training plans and read them, checked: which text, cut by which tokenizer, in which phases.

plans/README.md describes the format. A plan file calls its phases "steps".
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from lmplay.data.package_sources import check_distributions
from lmplay.data.plan_spec import DatasetSpec, PhaseSpec, Plan
from lmplay.data.tokenizers import KINDS, TRAINABLE_KINDS
from lmplay.errors import UserError, did_you_mean
from lmplay.files import read_json, shipped_files, typed_path
from lmplay.text import by_name

DEFAULT_TOKENIZER = "tiktoken:gpt2"
SMALLEST_VOCABULARY = 259  # 256 bytes and the special tokens
STOPS = ("first_exhausted", "all_exhausted")
# what plans of jmward01/lmplay are here that have another name there
FORMER_NAMES = {
    "bigpretrain": "pretrain",
    "l_wiki_en_es": "default",
    "smoltalk_all": "smoltalk",
    "wiki_en_es": "default",
}
EMBEDDED = ("python", "packages")
# Held out by default. Local data is often small, so a larger share of it.
DEFAULT_VALIDATION: dict[str, dict[str, float]] = {
    "hub": {"fraction": 0.01, "max_documents": 2000},
    "files": {"fraction": 0.1, "max_documents": 2000},
    "embedded": {"fraction": 0.05},
    "synthetic": {"skip": 0, "documents": 2000},
}


@dataclass
class BrokenPlan:
    """A plan file that can't be read. `error` says why, in one line."""

    name: str
    path: Path
    error: str


def list_plans() -> list[Plan | BrokenPlan]:
    """Return all plans that can be named, sorted by name; a broken file as a `BrokenPlan`."""
    rows: list[Plan | BrokenPlan] = []
    for name, path in sorted(shipped_files("plans").items()):
        try:
            rows.append(_read_plan(path))
        except UserError as error:
            rows.append(BrokenPlan(name, path, str(error)))
    return rows


def load_plan(name_or_path: str) -> Plan:
    """Load the plan in that file, else the plan of that name (`-` and `_` are the same) or former name.

    Raises UserError.
    """
    path = typed_path(name_or_path)
    if path.is_file():
        return _read_plan(path)
    if path.suffix == ".json" or len(path.parts) != 1:
        raise UserError(f"there is no plan file {name_or_path}")
    files = shipped_files("plans")
    named = by_name(files, name_or_path) or files.get(by_name(FORMER_NAMES, name_or_path) or "")
    if named is None:
        raise UserError(f"there is no plan {name_or_path!r}.{did_you_mean(name_or_path, files)}")
    return _read_plan(named)


def plan_from_files(
    paths: list[str], separator: str | None = None, column: str | None = None, held_out: Sequence[str] = ()
) -> Plan:
    """Return the plan of `--data FILE...`: one phase over these files, with a tokenizer trained on them.

    separator: what stands between the documents of a text file. column: that of the text. held_out: files for
    validation. It needs no network.
    """
    given: dict[str, Any] = {"files": list(paths)}
    given |= {"separator": separator} if separator is not None else {}
    given |= {"text": column} if column is not None else {}
    given |= {"validation": {"files": list(held_out)}} if held_out else {}
    first = paths[0].rpartition("/")[2].partition(".")[0]
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", first).strip("._-") or "data"
    return Plan(
        name=name,
        description=f"files given on the command line: {' '.join(paths)}",
        tokenizer={"train": "bpe", "vocab_size": 4096},
        datasets={name: read_dataset(Checked("--data", given), name)},
        phases=[PhaseSpec(name, [name], epochs=1.0)],
        title=f"{name} and {len(paths) - 1} more" if len(paths) > 1 else "",
    )


def _read_plan(path: Path) -> Plan:
    plan = Checked(
        path, _read_json(path), keys=("description", "tokenizer", "datasets", "steps", "prompts", "context_len")
    )
    tokenizer = _read_tokenizer(plan)
    named = plan.table("datasets")
    for name in named.value:
        named.safe_name(name)
    datasets = {name: read_dataset(named.inside(name), name) for name in named.value}
    phases = [_read_phase(phase, list(datasets)) for phase in plan.rows("steps")]
    for k, phase in enumerate(phases):
        if phase.name in [other.name for other in phases[:k]]:
            raise plan.error(
                f"steps[{k}].name", f"there is a phase {phase.name!r} already; each needs a name of its own"
            )
    return Plan(
        name=path.stem,
        description=plan.take("description", text, ""),
        tokenizer=tokenizer,
        datasets={name: datasets[name] for name in datasets if any(name in phase.datasets for phase in phases)},
        phases=phases,
        path=path,
        prompts=plan.take("prompts", texts, ()),
        context_len=plan.take("context_len", positive_int, None),
    )


def _read_json(path: Path) -> Any:
    try:
        return read_json(path, constants=False)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _read_tokenizer(plan: Checked) -> str | dict:
    value = plan.value.get("tokenizer", DEFAULT_TOKENIZER)
    if isinstance(value, dict):
        trained = Checked(plan.file, value, "tokenizer", keys=("train", "vocab_size"))
        kind = trained.take("train", one_of(TRAINABLE_KINDS))
        vocab_size = trained.take("vocab_size", positive_int)
        if vocab_size < SMALLEST_VOCABULARY:
            why = f"must be at least {SMALLEST_VOCABULARY} (256 bytes and the special tokens), not {vocab_size}"
            raise trained.error("vocab_size", why)
        return {"train": kind, "vocab_size": vocab_size}
    spec = plan.take("tokenizer", text, DEFAULT_TOKENIZER)
    kind = spec.partition(":")[0]
    if kind not in KINDS:
        raise plan.error("tokenizer", f"unknown tokenizer {spec!r}.{did_you_mean(kind, KINDS)}")
    return spec


# the check and the default of each key of a dataset
_CHECKS: dict[str, tuple[Callable[[Any], Any], Any]] = {
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
    "separator": (text, None),
}
_FIELDS = ("text", "prompt", "answer", "messages")
_CAPS = ("max_documents", "max_tokens", "validation")
_DATASET_KEYS = {
    "hub": ("hub", "config", "revision", "split", "stream", *_FIELDS, *_CAPS),
    "files": ("files", "separator", *_FIELDS, *_CAPS),
    "embedded": ("embedded", *_CAPS),
    "synthetic": ("synthetic", "settings", "seed", *_CAPS),
}
_SOURCE_CHECKS: dict[str, Callable[[Any], Any]] = {
    "hub": text,
    "files": texts,
    "embedded": one_of(EMBEDDED),
    "synthetic": one_of(tasks.TASKS),
}


def read_dataset(dataset: Checked, name: str) -> DatasetSpec:
    """Return the checked dataset `name` of a plan. Raises UserError."""
    kind = _kind_of(dataset)
    dataset.only(_DATASET_KEYS[kind])
    source = dataset.take(kind, _SOURCE_CHECKS[kind])
    values = {key: dataset.take(key, check, default) for key, (check, default) in _CHECKS.items()}
    if bool(values["prompt"]) != bool(values["answer"]):
        raise dataset.error("", "'prompt' and 'answer' go together")
    chosen = [key for key in ("text", "prompt", "messages") if values[key]]
    if len(chosen) > 1:
        raise dataset.error("", f"{' and '.join(map(repr, chosen))} exclude each other")
    if not chosen and kind in ("hub", "files"):
        values["text"] = ("text",)
    if kind == "synthetic":
        if values["max_documents"] is None:
            raise dataset.error("", "a synthetic task has no end: needs 'max_documents'")
        values["settings"] = dataset.take("settings", lambda given: tasks.check_settings(source, given), None)
        values["seed"] = dataset.take("seed", whole, None)
    validation = _read_validation(dataset, kind, source, values)
    return DatasetSpec(name=name, kind=kind, source=source, validation=validation, **values)


def _kind_of(dataset: Checked) -> str:
    kinds = [key for key in _DATASET_KEYS if key in dataset.value]
    if len(kinds) == 1:
        return kinds[0]
    unknown = [key for key in dataset.value if not any(key in keys for keys in _DATASET_KEYS.values())]
    near = f" (unknown key {unknown[0]!r}).{did_you_mean(unknown[0], _DATASET_KEYS)}" if unknown else ""
    has = " and ".join(map(repr, kinds)) or f"none{near}"
    raise dataset.error("", f"needs exactly one of {', '.join(map(repr, _DATASET_KEYS))}, has {has}")


# how documents are held out: its check, what else may or must be given with it, and which sources know it
_HELD_OUT: dict[str, tuple[Callable[[Any], Any], str, tuple[str, ...]]] = {
    "fraction": (fraction, "max_documents", tuple(_DATASET_KEYS)),
    "skip": (whole, "documents", tuple(_DATASET_KEYS)),
    "split": (text, "max_documents", ("hub",)),
    "files": (texts, "max_documents", ("files",)),
    "distributions": (texts, "max_documents", ("embedded",)),
}


def _read_validation(dataset: Checked, kind: str, source: Any, values: dict[str, Any]) -> dict:
    if "validation" not in dataset.value and source == "packages":
        raise dataset.error("", "the packages need 'validation': {'distributions': [...]}, which are held out")
    if "validation" not in dataset.value:
        return dict(DEFAULT_VALIDATION[kind])
    known = {how: (check, also) for how, (check, also, kinds) in _HELD_OUT.items() if kind in kinds}
    held_out = dataset.table("validation")
    held_out.only({key for how, (_, also) in known.items() for key in (how, also)})
    chosen = [how for how in known if how in held_out.value]
    if len(chosen) != 1:
        raise held_out.error("", f"needs exactly one of {', '.join(map(repr, known))}")
    (how,) = chosen
    check, also = known[how]
    held_out.only((how, also))
    result = {how: held_out.take(how, check)}
    if (how == "distributions") != (source == "packages"):
        raise held_out.error(how, "the packages hold out 'distributions', and nothing else does")
    if how == "distributions":
        result[how] = list(held_out.take(how, lambda given: check_distributions(texts(given))))
    if how == "skip":
        result[also] = held_out.take(also, positive_int)
        if values["max_documents"] is None:
            raise held_out.error("skip", "needs the dataset's 'max_documents', from whose end it counts")
    elif also in held_out.value:
        result[also] = held_out.take(also, positive_int)
    if result.get("split") == values["split"]:
        raise held_out.error("split", f"{values['split']!r} is what is trained on")
    return result


def _read_phase(phase: Checked, datasets: list[str]) -> PhaseSpec:
    phase.only(("name", "datasets", "epochs", "tokens", "stop", "weights"))
    names = list(phase.take("datasets", texts))
    for k, name in enumerate(names):
        if name not in datasets:
            near = did_you_mean(name, datasets)
            raise phase.error(f"datasets[{k}]", f"there is no dataset {name!r} in the plan.{near}")
        if name in names[:k]:
            raise phase.error(f"datasets[{k}]", f"{name!r} is there twice; 'weights' takes more of one than of another")
    epochs, tokens = phase.take("epochs", positive_number, None), phase.take("tokens", positive_int, None)
    if epochs is not None and tokens is not None:
        raise phase.error("", "'epochs' and 'tokens' exclude each other")
    if epochs is None and tokens is None:
        epochs = 1.0
    phase_name = phase.take("name", text, "_".join(names))
    phase.safe_name(phase_name, "name")
    return PhaseSpec(
        name=phase_name,
        datasets=names,
        epochs=epochs and float(epochs),
        tokens=tokens,
        stop=phase.take("stop", one_of(STOPS), STOPS[0]),
        weights=_read_weights(phase, names),
    )


def _read_weights(phase: Checked, names: list[str]) -> dict[str, float] | None:
    if "weights" not in phase.value:
        return None
    table = phase.table("weights")
    table.only(names)
    missing = [name for name in names if name not in table.value]
    if missing:
        raise table.error("", f"has no weight for the dataset {missing[0]!r}")
    return {name: table.take(name, positive_number) for name in names}
