"""Fit an experiment's new parts to the weights of a trained run."""

import math
from collections.abc import Callable
from typing import Any

import torch

from lmplay import contract, registry
from lmplay.convert.fold import Converted
from lmplay.errors import UserError
from lmplay.runs.trained import TrainedRun


def bolt_on(
    run: TrainedRun, spec: str, seed: int, progress: Callable[[int, int, float], None] | None = None
) -> tuple[Converted, float]:
    """Return a model of `spec`, NAME[:VARIANT], that goes on from the run's, and the error with which it was fitted.

    The variant says what is new. Fields that both Configs have are the run's. `progress` is called with the epoch, the
    number of epochs and the error. Raises UserError if the experiment has no `bolt_on`, or can't go on from this model.
    """
    entry, variant = registry.find(spec)
    experiment = contract.load(entry)
    make = experiment.hook("bolt_on")
    if make is None:
        raise UserError(
            f"{experiment.name} has no bolt_on(): it can't carry on from a trained model of another experiment"
        )
    model: Any = run.model
    ours = contract.config_values(experiment.config(variant, run.tokenizer.vocab_size, run.context_len))
    theirs = contract.config_values(model.config)
    try:
        config = experiment.Config(**{key: theirs.get(key, value) for key, value in ours.items()})
        torch.manual_seed(seed)
        made, error = make(model.state_dict(), config, progress)
    except ValueError as wrong:
        raise UserError(f"{experiment.name} can't carry on from {run.experiment.name}: {wrong}") from wrong
    converted = Converted(model=made.eval(), experiment=experiment.bound(config), config=config, difference=math.nan)
    return converted, float(error)
