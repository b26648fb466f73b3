"""Fold away what a trained model has for training only.

The model's `fold()` does it. The logits are compared on real text before anything is written.
"""

from dataclasses import dataclass
from typing import Any

import torch

from lmplay import contract, registry
from lmplay.convert.checked_text import LARGEST_DIFFERENCE, Text, largest_difference
from lmplay.errors import UserError
from lmplay.model import adapters
from lmplay.runs.trained import TrainedRun


@dataclass
class Converted:
    """A model made from a run's, its experiment and Config, and how far its logits are from the run's."""

    model: torch.nn.Module
    experiment: contract.Experiment
    config: Any
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


class NotFoldable(UserError):
    """A model that has nothing to fold with its settings."""


def unchanged(run: TrainedRun) -> Converted:
    """Return the run's model as it is."""
    model: Any = run.model
    return Converted(model=model, experiment=run.experiment, config=model.config, difference=0.0)


def fold(run: TrainedRun, text: Text) -> Converted:
    """Return the run's model folded, as a model of the plainest of its experiment's ancestors that can hold it.

    If none can, it is a model of its own experiment. Raises UserError if the model offers no fold, or one with other
    logits.
    """
    name, model = run.experiment.name, run.model
    fold_model = adapters.offered(model, "fold")
    if fold_model is None:
        raise UserError(f"{name} has no fold(): there is nothing in it that is for training only")
    try:
        folded = fold_model().eval()
    except ValueError as error:
        raise NotFoldable(f"{name} can't be folded with these settings: {error}") from error
    _check_equal(f"the model that fold() of {name} returns", largest_difference(model, folded, run, text), text)
    for experiment in [*_ancestors(run.experiment), run.experiment]:
        fields = contract.config_values(getattr(folded, "config", None) or model.config)
        if experiment is not run.experiment:
            known = contract.config_values(experiment.Config())
            fields = {key: value for key, value in fields.items() if key in known}
        config = experiment.Config(**fields)
        holding = _holding(experiment, config, folded.state_dict(), adapters.device_of(model))
        if holding is None:
            continue
        difference = largest_difference(model, holding, run, text)
        if difference <= LARGEST_DIFFERENCE:
            return Converted(model=holding, experiment=experiment.bound(config), config=config, difference=difference)
    raise UserError(
        f"the model that fold() of {name} returns is no Model(config) of its own folder: "
        "give it a `config` that it can be built from again"
    )


def _holding(
    experiment: contract.Experiment, config: Any, weights: dict, device: torch.device
) -> torch.nn.Module | None:
    """Return a model of the experiment with these weights, None if they are not its own."""
    try:
        model = experiment.Model(config).to(device)
        model.load_state_dict(weights)
    except (ValueError, RuntimeError):  # sizes that don't go together; names or shapes
        return None
    return model.eval()


def _check_equal(what: str, difference: float, text: Text) -> None:
    """Raise UserError if the logits differ by more than LARGEST_DIFFERENCE."""
    if not difference <= LARGEST_DIFFERENCE:
        raise UserError(
            f"{what} has other logits: they differ by up to {difference:.2g} on {text.origin}, and "
            f"{LARGEST_DIFFERENCE:g} is allowed. Nothing was written"
        )


def _ancestors(experiment: contract.Experiment) -> list[contract.Experiment]:
    """Return the experiments that it was copied from, the plainest first; as far as they are there."""
    found: list[contract.Experiment] = []
    name = experiment.parent
    while name and name not in [experiment.name, *(known.name for known in found)]:
        try:
            entry, _ = registry.find(name)
        except UserError:
            break
        found.insert(0, contract.load(entry))
        name = entry.parent
    return found
