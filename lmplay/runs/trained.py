"""Load a run's model, ready to use."""

from dataclasses import dataclass
from pathlib import Path

import torch

from lmplay import contract, registry
from lmplay.data.tokenizers import Tokenizer, load_tokenizer
from lmplay.errors import UserError
from lmplay.runs.run import read_meta


@dataclass
class TrainedRun:
    """A run's model with its weights, ready to be used, and what run.json says of it."""

    model: torch.nn.Module
    tokenizer: Tokenizer
    experiment: contract.Experiment
    context_len: int
    meta: dict
    checkpoint: Path


def load_run(folder: Path, device: torch.device) -> TrainedRun:
    """Loads a run from its folder alone: its own copy of the experiment and of the tokenizer, its newest weights, or those of the
    checkpoint that `folder` is.

    Raises UserError where something is missing, damaged or changed.
    """
    from lmplay.runs import checkpoints

    folder, checkpoint = checkpoints.of_run(folder)
    meta = read_meta(folder)
    if checkpoint is None:
        raise UserError(f"the run {folder} has no checkpoint yet: train it first, or choose another one with --run")
    entry = registry.read_entry(folder / "code" / meta["experiment"]["name"])
    if entry.error:
        raise UserError(f"the run's copy of its experiment can't be read: {entry.error} ({entry.folder / 'model.py'})")
    experiment = contract.load(entry)
    try:
        config = experiment.config(next(iter(experiment.variants)), **meta["config"])
        experiment = experiment.bound(config)
    except (UserError, TypeError) as error:
        raise UserError(
            f"{folder}: the settings in run.json are not those of its code/{experiment.name} ({error})"
        ) from error
    tokenizer = load_tokenizer(tokenizer_spec(folder, meta))
    if tokenizer.fingerprint != meta["tokenizer"]["fingerprint"]:
        raise UserError(
            f"{folder}: the tokenizer {tokenizer.spec} is not the one it was trained with: it has changed since"
        )
    model = experiment.build(config).to(device)
    checkpoints.load_weights(checkpoint, model)
    return TrainedRun(model.eval(), tokenizer, experiment, config.max_len, meta, checkpoint)


def tokenizer_spec(folder: Path, meta: dict) -> str:
    """The run's tokenizer: its own copy where there is one."""
    kind, _, _ = meta["tokenizer"]["spec"].partition(":")
    copy = folder / "tokenizer"
    if not copy.is_dir():
        return meta["tokenizer"]["spec"]
    return f"{kind}:{copy if kind == 'bpe' else next(copy.iterdir(), copy / 'tokenizer.model')}"
