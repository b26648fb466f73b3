"""Fit an experiment's new parts to the weights of a trained run."""

import math

import torch

from lmplay import contract, registry
from lmplay.convert.fold import Clean
from lmplay.errors import UserError
from lmplay.runs.trained import TrainedRun


def bolt_on(run: TrainedRun, spec: str, seed: int, progress=None) -> tuple[Clean, float]:
    """A model of `spec`, NAME[:VARIANT], that carries on from the run's, and the error with which it was fitted to it.

    The variant says what is new; of the fields that both Configs have, the run's count. Raises UserError where the experiment
    has no `bolt_on`, or can't carry on from such a model.
    """
    entry, variant = registry.find(spec)
    experiment = contract.load(entry)
    make = experiment.hook("bolt_on")
    if make is None:
        raise UserError(
            f"{experiment.name} has no bolt_on(): it can't carry on from a trained model of another experiment"
        )
    ours = contract.config_values(experiment.config(variant, run.tokenizer.vocab_size, run.context_len))
    theirs = contract.config_values(run.model.config)
    try:
        config = experiment.Config(**{key: theirs.get(key, value) for key, value in ours.items()})
        torch.manual_seed(seed)
        model, error = make(run.model.state_dict(), config, progress)
    except ValueError as wrong:
        raise UserError(f"{experiment.name} can't carry on from {run.experiment.name}: {wrong}") from wrong
    return Clean(model.eval(), experiment.bound(config), config, math.nan), float(error)
