"""Find damage in a run's folder: what is not as it was when its checksums were noted."""

import itertools
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmplay.checksums import CHECKSUMS, of_file
from lmplay.errors import UserError
from lmplay.runs import checkpoints, names
from lmplay.runs.run import Run
from lmplay.text import counted

NOT_WRITTEN = "is not what was written"


def file_damage(folder: Path, name: str, noted: Any) -> str | None:
    """Return how a file of a run differs from what was noted of it, None if it does not.

    name: its path in the folder. noted: [size, checksum] of its content, or of its beginning if it still grew.
    """
    if not (isinstance(noted, list) and len(noted) == 2 and all(isinstance(number, int) for number in noted)):
        return None
    size, checksum = noted
    path = folder / name
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size < size:
        return f"{path} is damaged (it is shorter than the {counted(size, 'byte')} that were written)"
    return None if of_file(path, size) == checksum else f"{path} is damaged (its content {NOT_WRITTEN})"


def damage_among(folder: Path, noted: Any, parts: Iterable[str]) -> list[str]:
    """Return what is damaged among the files and folders `parts` of a run, one line each."""
    known = noted if isinstance(noted, dict) else {}
    chosen = [name for name in known if name.partition("/")[0] in parts]
    return [line for name in chosen if (line := file_damage(folder, name, known[name]))]


def check_intact(run: Run, *parts: str) -> None:
    """Raise UserError if one of these files and folders of a run is damaged; `parts`: their names in its folder."""
    wrong = damage_among(run.folder, run.get(CHECKSUMS), parts)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if wrong[1:] else ""
        raise UserError(
            f"{wrong[0]}{more}: bring it back from a copy, or, if it was changed on purpose, take it as it is with "
            f"lmp_trainer --verify {run.folder} --accept"
        )


def damage_before(folder: Path, checkpoint: Path) -> list[str]:
    """Return what is damaged of a checkpoint and of the rows, samples and losses before it, one line each."""
    if broken := checkpoints.damage_in(checkpoint):
        return [broken]
    noted = checkpoints.read_checksums(checkpoint).get("run")
    return damage_among(folder, noted, (*names.RECORDED, names.DOCUMENT_LOSSES))


def newest_intact(folder: Path) -> tuple[Path | None, dict[Path, str]]:
    """Return a run's newest checkpoint that is not damaged, None if it has none, and the newer ones with their damage.

    Raises UserError if all are damaged.
    """
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints.find_all(folder / names.CHECKPOINTS)):
        wrong = damage_before(folder, checkpoint)
        if not wrong:
            return checkpoint, damaged
        damaged[checkpoint] = wrong[0]
    if damaged:
        first = next(iter(damaged.values()))
        raise UserError(
            f"{first}, and no older checkpoint of {folder.name} is intact: bring the file back from a copy, choose "
            f"another --run-name, or type --fresh to start over (the old run is kept aside); lmp_trainer --verify "
            f"{folder} says all that is damaged"
        )
    return None, damaged


def set_aside(damaged: dict[Path, str], chosen: Path) -> None:
    """Rename damaged checkpoints, so that they count no more, and say from which one the run goes on."""
    for checkpoint, wrong in damaged.items():
        tries = (f"damaged_{checkpoint.name}{f'.{number}' if number > 1 else ''}" for number in itertools.count(1))
        aside = next(path for name in tries if not os.path.lexists(path := checkpoint.with_name(name)))
        checkpoint.rename(aside)
        print(f"{wrong}: {chosen.name} comes before that, the run goes on from there", file=sys.stderr)


def keep(checkpoint: Path) -> None:
    """Mark a checkpoint to stay for good. Raises UserError if it is damaged."""
    state, sums = checkpoints.read_state(checkpoint), checkpoints.read_checksums(checkpoint)
    if not state["keep"]:
        checkpoints.write_state(checkpoint, {**state, "keep": True}, sums.get("run", {}), sums.get("checkpoint"))
