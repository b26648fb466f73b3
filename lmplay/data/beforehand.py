"""Say how large a dataset is, how long its preparation takes and what it needs of the disk, before it begins.

How much text there is, files and the hub say without being read; what becomes of it is measured on the first part.
"""

import shutil
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from lmplay.data.documents import embedded_bytes
from lmplay.data.encoding import FirstPart, dtype_of
from lmplay.data.local_files import held_out_files, training_files
from lmplay.data.opened_files import Size, size_of_files
from lmplay.data.plan_spec import DatasetSpec, PhaseSpec, Plan
from lmplay.data.tokenizers import Tokenizer
from lmplay.errors import UserError
from lmplay.text import count

BYTES_OF_DOCUMENT = 16  # of its two offsets
SURELY = 0.9  # of the space that seems to be needed: what is not there of it is missing, however rough the estimate
NEVER_READ = 0.5  # of the documents: with more, it is said


@dataclass(frozen=True)
class Expected:
    """What a preparation comes to, about. left: the part of it that is still to be done, 0 to 1."""

    documents: float
    n_bytes: float
    tokens: float
    seconds: float
    disk: float
    left: float = 1.0

    def __str__(self) -> str:
        minutes = self.seconds / 60
        took = f"{minutes:.0f} min" if minutes >= 1.5 else f"{self.seconds:.0f} s"
        took = f"{minutes / 60:.1f} hours" if minutes >= 90 else took
        return (
            f"about {count(round(self.documents))} documents, {self.n_bytes / 1e9:.3g} GB of text, "
            f"{count(round(self.tokens))} tokens: {took} and {self.disk / 1e9:.3g} GB of disk"
        )


def expected(
    source: Size, part: FirstPart, spec: DatasetSpec, split: str, *, processes: int, token_bytes: int
) -> Expected:
    """Return what the preparation of a split comes to, where its source is as large as `source` says."""
    documents = source.documents + source.n_bytes / max(1.0, part.n_bytes / part.documents)
    documents = _of_split(documents, spec, split)
    per_document = part.tokens / part.documents
    if split == "train" and spec.max_tokens is not None:
        documents = min(documents, spec.max_tokens / per_document)
    characters = documents * part.characters / part.documents
    left = max(0.0, 1 - part.before / documents) if documents else 0.0
    tokens = documents * per_document
    return Expected(
        documents=documents,
        n_bytes=documents * part.n_bytes / part.documents,
        tokens=tokens,
        seconds=left * characters * max(part.read_s, part.encode_s / processes),
        disk=left * (tokens * token_bytes + documents * BYTES_OF_DOCUMENT),
        left=left,
    )


def _of_split(documents: float, spec: DatasetSpec, split: str) -> float:
    """Return how many of a source's documents a split has."""
    held_out, cap = spec.validation, spec.max_documents
    share = float(Fraction(str(held_out["fraction"]))) if "fraction" in held_out else 0.0
    if split == "train":
        return min(documents, cap if cap is not None else documents) * (1 - share)
    most = held_out.get("documents", held_out.get("max_documents", documents))
    return min(most, documents * share if share else documents)


def source_size(spec: DatasetSpec, folder: Path, split: str = "train") -> Size | None:
    """Return how large the source of a split is; None if that is not known without reading it."""
    own = split == "validation"
    if spec.kind == "hub":
        from lmplay.data.hub import hub_size

        return hub_size(spec, spec.validation.get("split", spec.split) if own else spec.split)
    if spec.kind == "files":
        held_out = held_out_files(spec, folder) if own else []
        return size_of_files(held_out or training_files(spec, folder))
    if spec.kind == "synthetic":
        return Size(documents=spec.validation["documents"] if own else spec.max_documents or 0)
    return embedded_bytes(spec)


def documents_read(plan: Plan, name: str) -> float | None:
    """Return how many documents of a dataset a plan reads; None if that can't be said of its source, or is all."""
    read = 0.0
    for phase in plan.phases:
        if name not in phase.datasets:
            continue
        of_phase = _read_in_phase(plan, phase)
        if of_phase is None:
            return None
        read += of_phase
    return read


def _read_in_phase(plan: Plan, phase: PhaseSpec) -> float | None:
    """Return the documents that a phase reads of each of its datasets: it ends with the smallest of them."""
    if len(phase.datasets) < 2 or phase.epochs is None or phase.weights or phase.stop != "first_exhausted":
        return None
    sizes = [source_size(plan.datasets[name], plan.folder) for name in phase.datasets]
    known = [
        _of_split(size.documents, plan.datasets[name], "train")
        for name, size in zip(phase.datasets, sizes, strict=True)
        if size and not size.n_bytes
    ]
    return phase.epochs * min(known) if len(known) == len(sizes) else None


@dataclass(frozen=True)
class Beforehand:
    """Says what a preparation comes to when its first part is measured, and refuses one that can't fit on the disk.

    label: names the dataset. stores: the folder that the store is made in.
    """

    plan: Plan
    spec: DatasetSpec
    split: str
    label: str
    tokenizer: Tokenizer
    processes: int
    stores: Path

    def __call__(self, part: FirstPart) -> None:
        """Say it on stderr. Raises UserError if the disk has too little room."""
        size = source_size(self.spec, self.plan.folder, self.split)
        if size is None:
            return
        token_bytes = dtype_of(self.tokenizer).itemsize
        found = expected(size, part, self.spec, self.split, processes=self.processes, token_bytes=token_bytes)
        free = shutil.disk_usage(self.stores).free
        if SURELY * found.disk > free:
            raise UserError(
                f"dataset {self.spec.name!r} needs about {found.disk / 1e9:.3g} GB of disk, and {self.stores} has "
                f"{free / 1e9:.3g} GB: set LMPLAY_DATA to a folder on another disk, or give the dataset a "
                "'max_documents' in a plan"
            )
        rest = "" if found.left == 1 else " for the rest"
        print(f"{self.label}: {found}{rest} ({free / 1e9:.3g} GB are free){self._never_read(found)}", file=sys.stderr)

    def _never_read(self, found: Expected) -> str:
        """Say that most of the documents are never read, and what leaves them out."""
        read = documents_read(self.plan, self.spec.name) if self.split == "train" else None
        if read is None or read > (1 - NEVER_READ) * found.documents:
            return ""
        return (
            f"; {self.plan.shown} reads about {count(round(read))} of the documents: a plan with "
            f"'max_documents': {round(1.05 * read)} prepares no others"
        )
