"""Load a run's model, ready to use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmplay import contract
from lmplay.data.tokenizers import Tokenizer, load_tokenizer
from lmplay.errors import UserError
from lmplay.initial_values import build_by_name
from lmplay.random_numbers import apart_from_global_numbers, seed_everything
from lmplay.runs import checkpoints, names, trust
from lmplay.runs.integrity import check_intact
from lmplay.runs.prune import pruned
from lmplay.runs.run import Run


@dataclass
class TrainedRun:
    """A run and its model with its weights, ready to be used."""

    model: torch.nn.Module
    tokenizer: Tokenizer
    experiment: contract.Experiment
    context_len: int
    run: Run
    checkpoint: Path
    bos: int | None = None  # the token that texts begin with, if that is not the tokenizer's EOT token

    @property
    def first_token(self) -> int:
        """The token that each text begins with."""
        return self.tokenizer.eot if self.bos is None else self.bos


def load_run(run: Run, device: torch.device) -> TrainedRun:
    """Load a run from its folder alone: the weights of its checkpoint, its own copies of experiment and tokenizer.

    Raises UserError if something is missing, damaged or changed, and if its code is a stranger's.
    """
    folder, checkpoint = run.folder, run.checkpoint
    run.check("load")
    check_intact(run, names.CODE, names.TOKENIZER)
    if checkpoint is None:
        raise UserError(
            f"the run {folder} has no checkpoint: {pruned(run) or 'train it first'}; choose another one with --run"
        )
    entry = run.code
    if entry is None or entry.error:
        name = run.get("experiment", "name")
        path = folder / names.CODE / name / "model.py"
        why = entry.error if entry else "No such file or directory"
        raise UserError(f"the run's copy of its experiment can't be read: {why} ({path})")
    experiment = trust.load_code(folder, entry)
    try:
        config = experiment.config(next(iter(experiment.variants)), **run.get("config"))
        experiment = experiment.bound(config)
    except (UserError, TypeError) as error:
        raise UserError(
            f"{folder}: the settings in {names.RUN_JSON} are not those of its {names.CODE}/{experiment.name} ({error})"
        ) from error
    tokenizer = load_tokenizer(tokenizer_spec(run))
    if tokenizer.fingerprint != run.get("tokenizer", "fingerprint"):
        raise UserError(
            f"{folder}: the tokenizer {tokenizer.spec} is not the one it was trained with: it has changed since"
        )
    model = build_as_trained(run, experiment, config).to(device)
    checkpoints.load_weights(checkpoint, model)
    return TrainedRun(
        model=model.eval(),
        tokenizer=tokenizer,
        experiment=experiment,
        context_len=config.max_len,
        run=run,
        checkpoint=checkpoint,
    )


def build_as_trained(run: Run, experiment: contract.Experiment, config: Any) -> torch.nn.Module:
    """Build the model of a run with the random numbers of its training, which drew what no checkpoint may have.

    That is what __init__ keeps as a plain tensor or a number.
    """
    seed = run.settings["seed"]
    with apart_from_global_numbers():
        if run.settings["same_init"]:
            return build_by_name(lambda: experiment.build(config), seed)
        seed_everything(seed)
        return experiment.build(config)


def tokenizer_spec(run: Run) -> str:
    """Return the run's tokenizer: its own copy if it has one."""
    spec: str = run.get("tokenizer", "spec")
    kind, _, _ = spec.partition(":")
    copy = run.folder / names.TOKENIZER
    if not copy.is_dir():
        return spec
    return f"{kind}:{copy if kind in ('bpe', 'hf') else next(copy.iterdir(), copy / 'tokenizer.model')}"
