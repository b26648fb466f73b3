"""Remove the checkpoints of finished runs, and keep the rest: the curves, the code, the samples."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from lmplay.errors import UserError
from lmplay.runs import names
from lmplay.runs.alive import state_of, time_now
from lmplay.runs.folder import only_trainer
from lmplay.runs.run import Run
from lmplay.text import counted, mebibytes

ENDED = ("finished", "failed", "crashed", "hung")


def prune(runs: Sequence[Run]) -> list[str]:
    """Remove all checkpoints of these runs, and return a line for each. run.json says so from then on.

    Raises UserError for a run that could still go on from its checkpoints, and then removes nothing; Locked for one
    that is being trained.
    """
    for run in runs:
        if state_of(run) not in ENDED:
            raise UserError(
                f"{run.folder} is not finished ({state_of(run) or 'it has no status'}): without its checkpoints it "
                "could not go on; finish it first, or delete its folder"
            )
    locks = [only_trainer(run.folder) for run in runs]
    try:
        return [_prune_one(run) for run in runs]
    finally:
        for lock in locks:
            lock.release()


def pruned(run: Run) -> str:
    """Return that a run has no checkpoints since they were removed on purpose, and when; "" if they were not."""
    noted = run.get(names.PRUNED)
    when = noted.get("time") if isinstance(noted, dict) else None
    if not isinstance(when, str) or run.checkpoints:
        return ""
    return f"its checkpoints were removed by lmp_trainer --prune ({when[:10]}), and its curves are kept"


def _prune_one(run: Run) -> str:
    there = run.checkpoints
    if not there:
        return f"{run.folder}: there are no checkpoints to remove"
    size = sum(path.stat().st_size for folder in there for path in folder.rglob("*") if path.is_file())
    run.info[names.PRUNED] = {"time": time_now(), names.STEP: names.step_of(there[-1])}
    run.write()  # first: a run without checkpoints that does not say so would look damaged
    for folder in there:
        _remove(folder)
    return f"{run.folder}: {counted(len(there), 'checkpoint')} removed, {mebibytes(size)}; its curves are kept"


def _remove(folder: Path) -> None:
    """Remove a checkpoint, or the link to one. Without its state, which goes first, it is none."""
    if folder.is_symlink():
        folder.unlink()
        return
    (folder / names.STATE).unlink()
    shutil.rmtree(folder)
