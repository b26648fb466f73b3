"""Read what a run's validations found, document by document."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmplay.errors import UserError
from lmplay.runs import names
from lmplay.runs.integrity import check_intact
from lmplay.runs.run import Run
from lmplay.stats.savings import Trajectory


@dataclass(frozen=True)
class Validations:
    """The validations in the last phase of a run's plan, one row of `trajectory` each.

    documents: (D,) names, "dataset/number". tokens: (D,) float64, how many of each were scored.

    `trajectory.tokens` counts the tokens fed (windows * context length), which is the same for every seed. The number
    of scored tokens is not: epoch ends and prompts differ.
    """

    documents: tuple[str, ...]
    tokens: np.ndarray
    trajectory: Trajectory


def read_validations(run: Run) -> Validations:
    """Read a run's validations. Raises UserError if it has none, or if files of them are missing or damaged."""
    check_intact(run, names.VALIDATE_CSV, names.DOCUMENT_LOSSES)
    table = run.table("validate")
    if not len(table):
        raise UserError(f"{run.folder} has no validation to compare")
    phase = str(table[names.PLAN_STEP].iloc[-1])
    table = table[table[names.PLAN_STEP] == phase].dropna(subset=["samples", "flops", "seconds", "loss"])
    folder = run.folder / names.DOCUMENT_LOSSES
    documents, tokens = _documents(folder / names.documents_name(phase))
    losses = np.empty((len(table), len(documents)))
    for row, step in enumerate(table["step"]):
        path = folder / names.losses_name(phase, int(step))
        try:
            losses[row] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} can't be read ({str(error).splitlines()[0]})") from None
    scored = float(table["validation_tokens"].iloc[-1])
    if tokens.sum() != scored:  # a run from before scored tokens were noted for each document
        tokens = tokens * (scored / tokens.sum())
    length = run.number("config", "max_len")
    if length is None:
        raise UserError(f"{run.folder}: its run.json does not say how long its sequences are")
    flops, seconds = (table[name].to_numpy(dtype=float) for name in ("flops", "seconds"))
    fed = table["samples"].to_numpy(dtype=float) * length
    trajectory = Trajectory(tokens=fed, flops=flops, seconds=seconds, losses=losses)
    return Validations(documents=documents, tokens=tokens, trajectory=trajectory)


def _documents(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the documents' names and how many tokens of each were scored, (D,) float64."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        documents = tuple(f"{row['dataset']}/{row['document']}" for row in rows)
        return documents, np.array([float(row.get("scored_tokens") or row["tokens"]) for row in rows])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error})") from None
