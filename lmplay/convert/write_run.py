"""Write a converted model as a run."""

import shutil
import time
from pathlib import Path

from lmplay import code_hash, contract, registry
from lmplay.convert.fold import Clean
from lmplay.errors import UserError
from lmplay.files import written_beside
from lmplay.model.cost import cost_of
from lmplay.runs import checkpoints, names
from lmplay.runs.folder import copy_code
from lmplay.runs.run import Run
from lmplay.runs.trained import TrainedRun


def check_target(target: Path) -> None:
    """Raises UserError where there is something already, or nothing can be written."""
    if target.exists():
        raise UserError(f"there is something at {target} already: choose another -o, or delete it first")
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"{target} can't be written: {error.filename} is no folder") from error
    except NotADirectoryError as error:
        raise UserError(f"{target} can't be written: {error.filename} lies in a file") from error


def write_run(target: Path, clean: Clean, run: TrainedRun, key: str, facts: dict, *, command: list[str]) -> None:
    """Write the model as a run, whole or not at all. run.json is the run's, changed, with `facts` under `key` and what was typed."""
    entry = registry.read_entry(clean.experiment.folder)
    # a run's own copy of its experiment is no place to point to
    folder = (
        entry.folder if entry.name != run.experiment.name else run.run.info["experiment"].get("folder", entry.folder)
    )
    cost = cost_of(clean.experiment, clean.config)
    state = {**checkpoints.read_state(run.checkpoint), "keep": True}
    source = run.run.folder
    info = run.run.info | {
        "run": target.name,
        "status": "finished",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "experiment": {
            "name": entry.name,
            "variant": clean.variant,
            "parent": entry.parent,
            "folder": str(folder),
            "code_hash": entry.code_hash,
            "code_hash_version": code_hash.VERSION,
            "causal": clean.experiment.causal,
            "summary": entry.summary,
        },
        "config": contract.config_values(clean.config),
        "flops_per_token": cost.flops_per_token,
        names.FLOPS_PER_STEP: cost.flops_per_step,
        "parameters": {"total": cost.parameters, "trainable": cost.trainable},
        key: {
            "run": source.resolve().name,
            "folder": str(source.resolve()),
            "checkpoint": run.checkpoint.name,
            "experiment": run.run.get("experiment"),
            "config": run.run.get("config"),
            "parameters": run.run.get("parameters"),
            **facts,
        },
    }
    with written_beside(target) as beside:
        copy_code(entry, beside)
        if (source / names.TOKENIZER).is_dir():
            shutil.copytree(source / names.TOKENIZER, beside / names.TOKENIZER)
        checkpoints.save(beside / names.CHECKPOINTS, names.step_of(run.checkpoint), clean.model, [], state)
        Run(beside, info).write()
