"""Build the model that a run trains: its initial values, compiled, how much of a batch fits at once, its gradients."""

from typing import Any

import torch

from lmplay.data.published import is_published
from lmplay.errors import UserError
from lmplay.initial_values import build_by_name
from lmplay.model.adapters import derived_once, head_is_last
from lmplay.model.loss import compile_scores, score
from lmplay.random_numbers import seed_everything
from lmplay.runs import checkpoints
from lmplay.runs.folder import find_run
from lmplay.runs.prune import pruned
from lmplay.runs.published import load_into
from lmplay.train.batches import TrainingFeed
from lmplay.train.setup import Setup


def build_model(setup: Setup) -> torch.nn.Module:
    """Build the model with the initial values of its own code, or with --same-init by its parameters' names."""
    if setup.settings.same_init:
        return build_by_name(lambda: setup.experiment.build(setup.config), setup.settings.seed)
    seed_everything(setup.settings.seed)
    return setup.experiment.build(setup.config)


def load_initial_weights(setup: Setup, model: torch.nn.Module) -> None:
    """Load the weights of --initial-model, if it is given. Raises UserError where they don't fit."""
    if setup.settings.initial_model is None:
        return
    if is_published(setup.settings.initial_model):
        return load_into(
            model,
            setup.settings.initial_model,
            experiment=setup.experiment,
            tokenizer=setup.data.tokenizer,
            flag="--initial-model",
        )
    run = find_run(setup.settings.initial_model, setup.settings.out_folder).check("load")
    if run.get("tokenizer", "fingerprint") != setup.data.tokenizer.fingerprint:
        raise UserError(
            f"--initial-model {run.folder}: its tokenizer {run.get('tokenizer', 'spec')} is not this run's "
            f"{setup.data.tokenizer.spec}, so that its tokens mean something else"
        )
    if run.checkpoint is None:
        raise UserError(f"--initial-model {run.folder}: {pruned(run) or 'this run has no checkpoint'}")
    checkpoints.load_weights(run.checkpoint, model)


def compile_model(model: Any) -> None:
    """Compile the model in place; with a head that is fused with the loss, only its body."""
    compile_scores(model)
    body = model.body if head_is_last(model) else model
    if isinstance(body, torch.nn.Module):
        body.compile()  # in place: wrapped, its weights would have other names
    else:
        model.body = torch.compile(body)


def gradient_faults(setup: Setup) -> list[str]:
    """Return a line for each parameter without a gradient, or with one that is not finite, on the first sequences."""
    model = build_model(setup)
    phase = setup.phases[0]
    feed = TrainingFeed(setup.experiment, phase.order, setup.data.tokenizer.eot, setup.settings.seed)
    with derived_once(model):
        for inputs, targets, rows, _ in feed.batch(0, min(8, phase.n_windows)).parts(8, torch.device("cpu")):
            result = score(model, inputs, targets, rows)
            (result.losses.numel() ** -1 * result.loss_sum + result.extra.get("loss", 0.0)).backward()
    faults = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        gradient = parameter.grad
        if gradient is not None and gradient.is_sparse:
            gradient = gradient.coalesce().values()
        if gradient is None or not gradient.any():
            faults.append(f"{name} gets no gradient")
        elif not gradient.isfinite().all():
            faults.append(f"the gradient of {name} is not finite")
    return faults
