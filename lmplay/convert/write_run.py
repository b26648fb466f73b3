"""Write a converted model as a run."""

from pathlib import Path

from lmplay import registry
from lmplay.checksums import CHECKSUMS
from lmplay.convert.fold import Converted
from lmplay.errors import UserError
from lmplay.files import copy_files, written_beside
from lmplay.model.cost import cost_of
from lmplay.runs import checkpoints, names, trust
from lmplay.runs.describe import describe_model
from lmplay.runs.folder import copy_code
from lmplay.runs.recorder import checksums_of
from lmplay.runs.run import Run
from lmplay.runs.trained import TrainedRun


def check_target(target: Path) -> None:
    """Make the folder that `target` will be in. Raises UserError if `target` exists or can't be written."""
    if target.exists():
        raise UserError(f"there is something at {target} already: choose another -o, or delete it first")
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"{target} can't be written: {error.filename} is no folder") from error
    except NotADirectoryError as error:
        raise UserError(f"{target} can't be written: {error.filename} lies in a file") from error


def write_run(
    target: Path, converted: Converted, trained: TrainedRun, *, key: str, facts: dict, command: list[str]
) -> None:
    """Write the model as a run, whole or not at all.

    run.json is that of the run it was made from, changed. `key` holds `facts` and where the model is from, "command"
    what was typed.
    """
    run, entry = trained.run, registry.read_entry(converted.experiment.folder)
    # a run's own copy of its experiment is nothing to point to
    known = run.get("experiment", "folder") if entry.name == trained.experiment.name else None
    cost = cost_of(converted.experiment, converted.config)
    state = {**checkpoints.read_state(trained.checkpoint), "keep": True}
    info = run.info | {
        "run": target.name,
        "status": "finished",
        "command": command,
        names.SAVED_STEP: names.step_of(trained.checkpoint),
        **describe_model(
            experiment=converted.experiment,
            entry=entry,
            variant=converted.variant,
            config=converted.config,
            folder=known or entry.folder,
            n_parameters=cost.parameters,
            n_trainable=cost.trainable,
            flops_per_token=cost.flops_per_token,
            flops_per_step=cost.flops_per_step,
        ),
        key: {
            "run": run.folder.resolve().name,
            "folder": str(run.folder.resolve()),
            "checkpoint": trained.checkpoint.name,
            "experiment": run.get("experiment"),
            "config": run.get("config"),
            "parameters": run.get("parameters"),
            **facts,
        },
    }
    with written_beside(target) as beside:
        copy_code(entry, beside)
        trust.remember(beside)
        if (run.folder / names.TOKENIZER).is_dir():
            copy_files(run.folder / names.TOKENIZER, beside / names.TOKENIZER)
        step = names.step_of(trained.checkpoint)
        kept = checkpoints.read_attributes(trained.checkpoint)
        checkpoints.save(beside / names.CHECKPOINTS, step, converted.model, [], state, kept=kept)
        Run(beside, info | {CHECKSUMS: checksums_of(beside, {})}).write()
