"""Read what a run's validations found, document by document."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lmplay.errors import UserError
from lmplay.files import check_plain
from lmplay.runs import names
from lmplay.runs.integrity import check_intact
from lmplay.runs.run import Run
from lmplay.stats.savings import Trajectory, completed
from lmplay.text import printable

ROUNDING = 1e-5  # of a loss in validate.csv, which has 8 digits
NEEDED = (*names.COUNTERS, "loss", "bits_per_byte", "validation_tokens")


@dataclass(frozen=True)
class Validations:
    """The validations in the last phase of a run's plan, one row of `trajectory` each.

    documents: (D,) names, "dataset/number". tokens: (D,) float64, how many of each are scored at the end. Of a document
    that was left out midway, `trajectory.losses` has NaN; `completed` has an estimate.

    `trajectory.tokens` counts the tokens fed (windows * context length), which is the same for every seed. The number
    of scored tokens is not: epoch ends and prompts differ.
    """

    documents: tuple[str, ...]
    tokens: np.ndarray
    trajectory: Trajectory

    @property
    def completed(self) -> "Validations":
        """The same with losses of all documents at each validation, if all were scored at one of them."""
        losses = completed(self.trajectory.losses, self.tokens)
        return replace(self, trajectory=replace(self.trajectory, losses=losses))


def read_validations(run: Run) -> Validations:
    """Read a run's validations. Raises UserError if it has none, or if files of them are missing or damaged."""
    check_intact(run, names.VALIDATE_CSV, names.DOCUMENT_LOSSES)
    table = run.table("validate")
    if not len(table):
        raise UserError(f"{run.folder} has no validation to compare")
    missing = [name for name in NEEDED if name not in table]
    if missing:
        raise UserError(f"{run.folder / names.VALIDATE_CSV} has no column {missing[0]!r}: there is nothing to compare")
    phase = str(table[names.PLAN_STEP].iloc[-1])
    table = table[table[names.PLAN_STEP] == phase].dropna(subset=["samples", "flops", "seconds", "loss"])
    if Path(phase).name != phase or not len(table):
        raise UserError(f"{run.folder / names.VALIDATE_CSV} has no whole row of its last phase {phase!r}")
    folder = run.folder / names.DOCUMENT_LOSSES
    documents, tokens = _documents(folder / names.documents_name(phase))
    losses = np.empty((len(table), len(documents)))
    for row, (step, loss, n) in enumerate(table[["step", "loss", "validation_tokens"]].itertuples(index=False)):
        path = folder / names.losses_name(phase, int(step))
        losses[row] = _losses(path, len(documents))
        total = np.nansum(losses[row])
        if n > 0 and not abs(total / n - loss) <= ROUNDING * max(abs(loss), 1.0):
            raise UserError(
                f"{path} is not of this run: its losses come to {total / n:.6g} per token, and "
                f"{names.VALIDATE_CSV} says {loss:.6g}; train it again with --fresh"
            )
    scored = float(table["validation_tokens"].iloc[-1])
    if not scored > 0:
        raise UserError(f"{run.folder / names.VALIDATE_CSV} does not say how many tokens were scored")
    # a run from before scored tokens were noted for each document
    if tokens.sum() != scored and not np.isnan(losses[-1]).any():
        tokens = tokens * (scored / tokens.sum())
    length = run.number("config", "max_len")
    if length is None:
        raise UserError(f"{run.folder}: its run.json does not say how long its sequences are")
    flops, seconds = (table[name].to_numpy(dtype=float) for name in ("flops", "seconds"))
    fed = table["samples"].to_numpy(dtype=float) * length
    trajectory = Trajectory(tokens=fed, flops=flops, seconds=seconds, losses=losses)
    return Validations(documents=documents, tokens=tokens, trajectory=trajectory)


def _losses(path: Path, n_documents: int) -> np.ndarray:
    """Return the losses of the documents, (D,) float64, from a file of numpy's. Raises UserError."""
    try:
        check_plain(path)
        with np.errstate(over="ignore"):  # of a size that no file has
            found = np.load(path, mmap_mode="r", allow_pickle=False)  # the shape is compared with the file's size first
        if found.shape != (n_documents,) or found.dtype.kind != "f":
            raise ValueError(f"it holds {found.dtype} {found.shape}, not a loss for each of {n_documents} documents")
        return found.astype(np.float64)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise UserError(f"{path} can't be read ({printable(error)})") from None


def _documents(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the documents' names and how many tokens of each were scored, (D,) float64."""
    try:
        check_plain(path)
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        documents = tuple(f"{row['dataset']}/{row['document']}" for row in rows)
        tokens = np.array([float(row.get("scored_tokens") or row["tokens"]) for row in rows])
    except KeyError as error:
        raise UserError(f"{path} can't be read (it has no column {error})") from None
    except (OSError, TypeError, ValueError, csv.Error) as error:
        raise UserError(f"{path} can't be read ({printable(error)})") from None
    if not (tokens >= 0).all() or not 0 < tokens.sum() < np.inf:
        raise UserError(f"{path} can't be read (its numbers of tokens are not those of documents)")
    return documents, tokens
