"""A trained run in fewer parameters, and the other way round: a plain run carried on by an experiment that has more.

What an experiment has for training only, its `fold()` folds away. Nothing is believed: the logits are compared on real text
before anything is written.
"""

import math
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lmplay import code_hash, contract, registry
from lmplay.data.folders import data_folder
from lmplay.data.store import TokenStore
from lmplay.errors import UserError
from lmplay.files import write_json, written_beside
from lmplay.generate import TrainedRun
from lmplay.train import checkpoints
from lmplay.train.measure import cost_of
from lmplay.train.objective import score

LARGEST_DIFFERENCE = 1e-4  # of two logits that count as equal, in float32
CHECKED_TOKENS = 8192


@dataclass
class Text:
    """Real text to compare models on: token ids (n,) int64 in reading order, and where they are from."""

    tokens: Tensor
    origin: str

    def batches(self, run: TrainedRun, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets of each context, as the run's experiment makes them: (ways of reading, T)."""
        for window in self.tokens.split(run.context_len):
            inputs, targets, _ = run.experiment.make_batch(window[None], run.tokenizer.eot, 0)
            yield inputs.to(device), targets.to(device)


def text_for(run: TrainedRun, folder: Path, file: Path | None) -> Text:
    """CHECKED_TOKENS of the file, else of the validation documents that the run was scored on, else of its samples.

    Raises UserError where there is none of them, and for a file that is no text.
    """
    if file is None and (stores := _validation_stores(run)):
        share = CHECKED_TOKENS // len(stores)
        return Text(
            torch.cat([torch.from_numpy(store.tokens(0, min(share, store.n_tokens))) for store in stores]),
            "validation text",
        )
    if file is None:
        file = folder / "samples.txt"
        if not file.is_file():
            raise UserError(
                "the run's validation text is not on this machine and it has no samples: name a text with --text FILE"
            )
    try:
        with open(file, encoding="utf-8") as lines:
            text = lines.read(16 * CHECKED_TOKENS)
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no UTF-8 text (byte {error.start})") from error
    tokens = run.tokenizer.encode(text)[:CHECKED_TOKENS]
    if not tokens:
        raise UserError(f"{file} is empty: there is nothing to compare on")
    return Text(torch.tensor(tokens), file.name)


def _validation_stores(run: TrainedRun) -> list[TokenStore]:
    found = []
    for name, splits in (run.meta.get("data") or {}).get("datasets", {}).items():
        for folder in sorted((data_folder() / "stores").glob(f"{name}-validation-*")):
            try:
                store = TokenStore.open(folder)
            except UserError:
                continue
            if (
                store.hash == splits["validation"]["hash"]
                and store.vocab_size == run.tokenizer.vocab_size
                and store.n_tokens
            ):
                found.append(store)
                break
    return found


@torch.no_grad()
def largest_difference(one: torch.nn.Module, other: torch.nn.Module, run: TrainedRun, text: Text) -> float:
    """Of the two models' logits on the text; infinite where one of them is not finite."""
    largest = 0.0
    with contract.derived_once(one), contract.derived_once(other):
        for inputs, _ in text.batches(run, contract.device_of(one)):
            ours, theirs = (contract.split_output(model(inputs))[0].float() for model in (one, other))
            if ours.shape != theirs.shape:
                return math.inf
            difference = float((ours - theirs).abs().max())
            largest = max(largest, difference if math.isfinite(difference) else math.inf)
    return largest


@torch.no_grad()
def loss_on(model: torch.nn.Module, run: TrainedRun, text: Text) -> float:
    """Nats a token."""
    losses = []
    with contract.derived_once(model):
        for inputs, targets in text.batches(run, contract.device_of(model)):
            rows = (targets.flatten() != contract.NOT_SCORED).nonzero().squeeze(1)
            losses.append(score(model, inputs, targets, rows).losses.double().cpu())
    return float(torch.cat(losses).mean())


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
        model = _holding(experiment, config, folded.state_dict(), contract.device_of(run.model))
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


def bolt_on(run: TrainedRun, spec: str, seed: int, progress=None) -> tuple[Clean, float]:
    """A model of `spec`, NAME[:VARIANT], that carries on from the run's, and the error with which it was fitted to it.

    The variant says what is new; of the fields that both Configs have, the run's count. Raises UserError where the experiment
    has no `bolt_on`, or can't carry on from such a model.
    """
    entry, variant = registry.find(spec)
    experiment = contract.load(entry)
    make = getattr(experiment.module, "bolt_on", None)
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


def write_run(target: Path, clean: Clean, run: TrainedRun, source: Path, key: str, facts: dict) -> None:
    """Writes the model as a run, whole or not at all. run.json is the run's, changed, with `facts` under `key`."""
    entry = registry.read_entry(clean.experiment.folder)
    # a run's own copy of its experiment is no place to point to
    folder = entry.folder if entry.name != run.experiment.name else run.meta["experiment"].get("folder", entry.folder)
    cost = cost_of(clean.experiment, clean.config)
    state = {**checkpoints.read_state(run.checkpoint), "keep": True}
    meta = run.meta | {
        "run": target.name,
        "status": "finished",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
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
        "flops_per_update": cost.flops_per_update,
        "parameters": {"total": cost.parameters, "trainable": cost.trainable},
        key: {
            "run": source.resolve().name,
            "folder": str(source.resolve()),
            "checkpoint": run.checkpoint.name,
            "experiment": run.meta["experiment"],
            "config": run.meta["config"],
            "parameters": run.meta.get("parameters"),
            **facts,
        },
    }
    with written_beside(target) as beside:
        for path in entry.code_files:
            copy = beside / "code" / entry.name / path.relative_to(entry.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        if (source / "tokenizer").is_dir():
            shutil.copytree(source / "tokenizer", beside / "tokenizer")
        checkpoints.save(beside / "checkpoints", int(run.checkpoint.name.removeprefix("step_")), clean.model, [], state)
        write_json(beside / "run.json", meta)


def n_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
