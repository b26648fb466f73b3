"""List runs and their checkpoints (--list of lmp_generator)."""

import sys
from pathlib import Path

from lmplay.errors import UserError


def list_runs(out: Path) -> None:
    """Print every checkpoint with its run's experiment and plan; those that later ones don't replace are marked."""
    from lmplay.runs import checkpoints, names
    from lmplay.runs.alive import state_of
    from lmplay.runs.folder import trained_folders
    from lmplay.runs.run import read_run
    from lmplay.text import aligned, fixed, printable

    rows = []
    for folder in trained_folders(out):
        try:
            run = read_run(folder)
        except UserError as error:
            print(f"lmp_generator: {error}: left out", file=sys.stderr)
            continue
        about = run.spec, printable(run.get("plan", names.PLAN_TITLE) or run.get("plan", "name") or "-")
        for checkpoint in checkpoints.find_all(folder / names.CHECKPOINTS):
            try:
                state = checkpoints.read_state(checkpoint)
            except UserError as error:
                print(f"lmp_generator: {error}: left out", file=sys.stderr)
                continue
            loss = state.get("validation_loss")
            kept = " (kept)" if state["keep"] else ""
            rows.append(
                [
                    f"{checkpoint}{kept}",
                    *about,
                    f"{names.step_of(checkpoint):,}",
                    fixed(loss if isinstance(loss, (int, float)) else None, 4),
                    printable(state_of(run) or "-"),
                ]
            )
    print(aligned(["checkpoint", "experiment", "plan", "steps", "val. loss", "status of the run"], rows))
