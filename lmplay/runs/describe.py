"""Describe a run's model, and the time of its start, for run.json."""

import time
from pathlib import Path
from typing import Any

from lmplay import code_hash
from lmplay.contract import Experiment, config_values
from lmplay.registry import Entry
from lmplay.runs.names import FLOPS_PER_STEP


def describe_model(
    *,
    experiment: Experiment,
    entry: Entry,
    variant: str,
    config: Any,
    folder: Path,
    n_parameters: int,
    n_trainable: int,
    flops_per_token: float,
    flops_per_step: float,
) -> dict[str, Any]:
    """Return the keys of run.json that say which experiment a model is of, with which Config, and what it costs.

    entry: the folder whose code the run copies. folder: where the experiment is to be found.
    """
    return {
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "experiment": {
            "name": entry.name,
            "variant": variant,
            "parent": entry.parent,
            "folder": str(folder),
            "code_hash": entry.code_hash,
            "code_hash_version": code_hash.VERSION,
            "causal": experiment.causal,
            "summary": entry.summary,
        },
        "config": config_values(config),
        "parameters": {"total": n_parameters, "trainable": n_trainable},
        "flops_per_token": flops_per_token,
        FLOPS_PER_STEP: flops_per_step,
    }
