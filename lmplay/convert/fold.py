"""A trained run in fewer parameters, and the other way round: a plain run carried on by an experiment that has more.

What an experiment has for training only, its `fold()` folds away. Nothing is believed: the logits are compared on real text
before anything is written.
"""

from dataclasses import dataclass

import torch

from lmplay import contract, registry
from lmplay.convert.checked_text import LARGEST_DIFFERENCE, Text, largest_difference
from lmplay.errors import UserError
from lmplay.model import adapters
from lmplay.runs.trained import TrainedRun


@dataclass
class Clean:
    """A model, the experiment and Config that it is one of, and how far its logits are from the run's."""

    model: torch.nn.Module
    experiment: contract.Experiment
    config: object
    difference: float

    @property
    def variant(self) -> str:
        """The variant with just this Config, else "folded"."""
        same = (
            name
            for name in self.experiment.variants
            if self.experiment.config(name, self.config.vocab_size, self.config.max_len) == self.config
        )
        return next(same, "folded")


def fold(run: TrainedRun, text: Text) -> Clean:
    """The run's model folded, as a model of the plainest of its experiment's ancestors that can hold it, else of its own experiment.

    Raises UserError where the model offers no fold, or one whose logits are others.
    """
    name = run.experiment.name
    if not callable(getattr(run.model, "fold", None)):
        raise UserError(f"{name} has no fold(): there is nothing in it that is for training only")
    try:
        folded = run.model.fold().eval()
    except ValueError as error:
        raise UserError(f"{name} can't be folded with these settings: {error}") from error
    _equal(f"the model that fold() of {name} returns", largest_difference(run.model, folded, run, text), text)
    for experiment in [*_ancestors(run.experiment), run.experiment]:
        fields = contract.config_values(getattr(folded, "config", None) or run.model.config)
        if experiment is not run.experiment:
            known = contract.config_values(experiment.Config())
            fields = {key: value for key, value in fields.items() if key in known}
        config = experiment.Config(**fields)
        model = _holding(experiment, config, folded.state_dict(), adapters.device_of(run.model))
        if model is None:
            continue
        difference = largest_difference(run.model, model, run, text)
        if difference <= LARGEST_DIFFERENCE:
            return Clean(model, experiment.bound(config), config, difference)
    raise UserError(
        f"the model that fold() of {name} returns is no Model(config) of its own folder: give it a `config` that it can be "
        "built from again"
    )


def _holding(experiment: contract.Experiment, config, weights: dict, device: torch.device) -> torch.nn.Module | None:
    """A model of the experiment with these weights, None where they are not its own."""
    try:
        model = experiment.Model(config).to(device)
        model.load_state_dict(weights)
    except (ValueError, RuntimeError):  # sizes that don't go together; names or shapes
        return None
    return model.eval()


def _equal(what: str, difference: float, text: Text) -> None:
    if not difference <= LARGEST_DIFFERENCE:
        raise UserError(
            f"{what} has other logits: they differ by up to {difference:.2g} on {text.origin}, and {LARGEST_DIFFERENCE:g} "
            "is allowed. Nothing was written"
        )


def _ancestors(experiment: contract.Experiment) -> list[contract.Experiment]:
    """The experiments that it was copied from, the plainest first; as far as they are there."""
    found, name = [], experiment.parent
    while name and name not in [experiment.name, *(known.name for known in found)]:
        try:
            entry, _ = registry.find(name)
        except UserError:
            break
        found.insert(0, contract.load(entry))
        name = entry.parent
    return found


def n_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
