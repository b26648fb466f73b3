"""Prepare a plan's tokenizer and token stores: made once, and opened by every run after."""

import dataclasses
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lmplay.data import documents, store, store_writer
from lmplay.data.beforehand import Beforehand
from lmplay.data.exported import imported
from lmplay.data.local_files import held_out_files, training_files
from lmplay.data.plan_spec import DatasetSpec, Plan
from lmplay.data.plans import SMALLEST_VOCABULARY
from lmplay.data.store import TokenStore
from lmplay.data.tokenizer_training import texts_in_turn, train_tokenizer
from lmplay.data.tokenizers import Tokenizer, load_tokenizer
from lmplay.data.types import Bookmark, Document
from lmplay.errors import UserError
from lmplay.files import data_folder
from lmplay.machine import cores

MOST_WORKERS = 32  # one process reads for all

_MARK = re.compile(r"<\|[a-z][a-z_ ]{0,30}\|>")


@dataclass
class Prepared:
    """A plan's data, open for reading.

    train, validation: the store of each dataset. hash: a hex hash of the tokenizer and of all stores.
    """

    plan: Plan
    tokenizer: Tokenizer
    train: dict[str, TokenStore]
    validation: dict[str, TokenStore]
    hash: str


def prepare(
    plan: Plan, tokenizer_spec: str | None = None, processes: int | None = None, progress: bool = True
) -> Prepared:
    """Return the data of a plan, made where it is missing. `tokenizer_spec` replaces the plan's tokenizer.

    Existing data is opened without reading it and without a network, at the same cost whatever its size. What was
    imported for the plan is opened first.
    Raises UserError: no such tokenizer, a source that can't be read or has no documents for training or validation.
    """
    stores: dict[str, dict[str, TokenStore]] = {"train": {}, "validation": {}}
    plan, tokenizer_spec = trained_on(plan, tokenizer_spec)
    if there := imported(plan, tokenizer_spec):
        tokenizer, stores, data_hash = there
        return Prepared(plan, tokenizer, stores["train"], stores["validation"], data_hash)
    chosen = load_tokenizer(tokenizer_spec) if tokenizer_spec else None
    try:
        _check_held_out(plan)
        origins = _origins(plan)
        tokenizer = chosen or _tokenizer(plan, origins)
        folder, workers = data_folder() / "stores", processes or min(cores(), MOST_WORKERS)
        for name, spec in plan.datasets.items():
            for split, opened in stores.items():
                label = f"{name} ({split})"
                made_by = {
                    "dataset": origins[name],
                    "split": split,
                    "tokenizer": tokenizer.fingerprint,
                    "format": store.FORMAT,
                }
                text = SplitDocuments(spec, plan.folder, split)
                opened[name] = store_writer.build(
                    folder / f"{name}-{split}-{_hash(made_by)}",
                    text,
                    tokenizer,
                    processes=workers,
                    progress=progress,
                    max_tokens=spec.max_tokens if split == "train" else None,
                    label=label,
                    made_by=made_by,
                    beforehand=Beforehand(plan, spec, split, label, tokenizer, workers, folder) if progress else None,
                )
                if text.marks and progress:
                    print(f"{label}: {text.note()}", file=sys.stderr)
    except UserError as error:
        raise UserError(f"plan {plan.name}: {error}") from error
    content = {split: {name: opened.hash for name, opened in of_split.items()} for split, of_split in stores.items()}
    return Prepared(
        plan=plan,
        tokenizer=tokenizer,
        train=stores["train"],
        validation=stores["validation"],
        hash=_hash({"tokenizer": tokenizer.fingerprint, **content}),
    )


def trained_on(plan: Plan, tokenizer_spec: str | None) -> tuple[Plan, str | None]:
    """Return the plan with the tokenizer that "bpe:2048" asks for: one of that size, trained on its own documents."""
    kind, _, size = (tokenizer_spec or "").partition(":")
    if kind != "bpe" or not (size.isascii() and size.isdigit()) or Path(size).exists():
        return plan, tokenizer_spec
    if int(size) < SMALLEST_VOCABULARY:
        raise UserError(f"--tokenizer {tokenizer_spec}: a vocabulary has at least {SMALLEST_VOCABULARY} ids")
    return dataclasses.replace(plan, tokenizer={"train": kind, "vocab_size": int(size)}), None


class SplitDocuments:
    """The documents of a split of a dataset, from the first one each time they are read.

    marks: how often marks such as <|endoftext|> stand in their texts. bookmark: of the document that was read last in a
    stream, its row and the stream's commit; None where all rows are at hand and are read again instead.
    """

    def __init__(self, spec: DatasetSpec, folder: Path, split: str) -> None:
        self._spec, self._folder, self._split = spec, folder, split
        self.marks: Counter[str] = Counter()
        self.bookmark: Bookmark | None = None
        self._counted = "times"

    def __iter__(self) -> Iterator[Document]:
        spec = self._spec
        if spec.kind == "hub" and spec.stream:
            from lmplay.data.hub import commit_of  # what only the hub needs

            spec = dataclasses.replace(spec, revision=commit_of(spec) or spec.revision)
        return self._from(spec, 0)

    def again(self, bookmark: Bookmark) -> Iterator[Document]:
        """Read from the document at a bookmark on, of its commit."""
        row, commit = bookmark
        self._counted = f"times after row {row:,}"
        return self._from(dataclasses.replace(self._spec, revision=commit), row)

    def _from(self, spec: DatasetSpec, first_row: int) -> Iterator[Document]:
        self.marks.clear()
        for row, document in documents.documents_from(spec, self._folder, self._split, first_row):
            for text, _ in document:
                if "<|" in text:
                    self.marks.update(_MARK.findall(text))
            if spec.kind == "hub" and spec.stream and spec.revision:
                self.bookmark = row, spec.revision
            yield document

    def note(self) -> str:
        """Return a line on the most frequent mark."""
        ((mark, times),) = self.marks.most_common(1)
        how = f'; a plan\'s "separator": "{mark}" makes it part documents' if self._spec.kind == "files" else ""
        times_there = f"{times:,} {self._counted}"
        return f"{mark} stands in the text, {times_there}, and is text like any other there: it ends no document{how}"


def _check_held_out(plan: Plan) -> None:
    """Raise UserError where a dataset trains on a file that another one holds out."""
    specs = [spec for spec in plan.datasets.values() if spec.kind == "files"]
    held_out = {file.resolve(): spec for spec in specs for file in held_out_files(spec, plan.folder)}
    for spec in specs if held_out else ():
        for file in training_files(spec, plan.folder):
            if other := held_out.get(file.resolve()):
                raise UserError(f"dataset {spec.name!r} trains on {file}, which dataset {other.name!r} holds out")


@dataclass(frozen=True)
class Vocabulary:
    """How many ids a tokenizer has. exact: False for one that is still to be trained, which may have fewer."""

    spec: str
    size: int
    exact: bool = True

    def __str__(self) -> str:
        return f"{self.size:,} ids of {self.spec}" + ("" if self.exact else ", at most: it is trained with the data")


def vocabulary(plan: Plan | None, tokenizer_spec: str | None) -> Vocabulary | None:
    """Return the vocabulary of the tokenizer that is named, else of the plan's; None if neither is given.

    A plan's own tokenizer is trained if the text is local, as the run will. Raises UserError.
    """
    if plan:
        plan, tokenizer_spec = trained_on(plan, tokenizer_spec)
        if there := imported(plan, tokenizer_spec):
            return Vocabulary(there[0].spec, there[0].vocab_size)
    named = tokenizer_spec or (plan.tokenizer if plan and isinstance(plan.tokenizer, str) else None)
    if named:
        tokenizer = load_tokenizer(named)
        return Vocabulary(tokenizer.spec, tokenizer.vocab_size)
    if plan is None:
        return None
    assert isinstance(plan.tokenizer, dict)
    if any(spec.kind == "hub" for spec in plan.datasets.values()):
        return Vocabulary(plan.tokenizer["train"], plan.tokenizer["vocab_size"], exact=False)
    tokenizer = _tokenizer(plan, _origins(plan))
    return Vocabulary(tokenizer.spec.partition(":")[0], tokenizer.vocab_size)


def _origins(plan: Plan) -> dict[str, dict]:
    return {
        name: {**spec.content, "origin": documents.origin(spec, plan.folder)} for name, spec in plan.datasets.items()
    }


def _tokenizer(plan: Plan, origins: dict[str, dict]) -> Tokenizer:
    if isinstance(plan.tokenizer, str):
        return load_tokenizer(plan.tokenizer)
    folder = data_folder() / "tokenizers" / _hash({"training": plan.tokenizer, "origins": origins})
    return train_tokenizer(
        plan.tokenizer,
        texts_in_turn(documents.documents(spec, plan.folder, "train") for spec in plan.datasets.values()),
        folder,
    )


def _hash(content: dict) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
