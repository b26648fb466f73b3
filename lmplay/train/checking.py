"""Check a run's model before it is trained, and its trained weights before a verdict; keep the answers.

The answers are in the data folder, by code hash, Config, device and torch version, or by checkpoint. What is known is
said without loading torch.
"""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmplay import contract, kept_answers, registry
from lmplay.errors import UserError
from lmplay.model.findings import FAULT, FIRST_LOSS, LEAK, QUESTIONS, VERSION, WARNING, Checked
from lmplay.random_numbers import apart_from_global_numbers
from lmplay.runs.run import Run
from lmplay.train.watchdog import watched

if TYPE_CHECKING:
    import torch

    from lmplay.train.setup import Setup

ALLOW = "--allow-leak"
KIND = "checks"  # of kept answers


def check_model(
    *, entry: registry.Entry, experiment: contract.Experiment, config: Any, bos: int, device: "torch.device"
) -> Checked:
    """Ask a new model what `model.checks` asks, or recall the answers. experiment: bound to `config`.

    Raises UserError if its forward does not return logits.
    """
    key = kept_answers.key_of(VERSION, entry.code_hash, contract.config_values(config), bos, _device_name(device))
    known = _recall(key)
    if known is None:
        from lmplay.model.checks import check_new

        with watched(f"the check of {entry.name}"), contextlib.redirect_stdout(sys.stderr):
            known = check_new(experiment, config, bos, device)
        kept_answers.keep(KIND, key, known.as_json())
    return known


def check_setup(setup: "Setup") -> "tuple[Setup, Checked]":
    """Check the model of a run before it is trained. Return the set-up with the answers, for run.json, and the answers.

    Raises UserError as `check_model` does, and for a model that doesn't fit into memory.
    """
    from lmplay.model.device import choose_device
    from lmplay.train.memory import check_memory

    device = choose_device(setup.settings.device)
    check_memory(setup, device)
    checked = check_model(
        entry=setup.entry,
        experiment=setup.experiment,
        config=setup.config,
        bos=setup.data.tokenizer.eot,
        device=device,
    )
    if setup.settings.initial_model:
        checked = without_first_loss(checked)
    return dataclasses.replace(setup, checked=checked.as_json()), checked


def refuse(checked: Checked, *kinds: str, why: str, allow_leak: bool) -> None:
    """Raise UserError for a finding of these kinds, with `why` after its sentence; say the other findings on stderr.

    allow_leak: say them all.
    """
    found = checked.sentences(*kinds)
    if found and not allow_leak:
        raise UserError(f"{found[0]}. {why} without {ALLOW}")
    for sentence in dict.fromkeys([*found, *checked.sentences(LEAK, FAULT, WARNING)]):
        print(f"warning: {sentence}", file=sys.stderr)


def answers(checked: Checked) -> list[str]:
    """Return a line for each question that was asked, with what was found."""
    lines = []
    for question in checked.asked:
        found = [finding for finding in checked.findings if finding.question == question]
        lines.append(f"{found[0].kind if found else 'right':<8} {QUESTIONS[question]}")
        lines += [f"         {finding.sentence}" for finding in found]
    return lines


def without_first_loss(checked: Checked) -> Checked:
    """Return the answers for a run that starts from trained weights: its first loss is not that of a new model."""
    return Checked(
        [question for question in checked.asked if question != FIRST_LOSS],
        [finding for finding in checked.findings if finding.question != FIRST_LOSS],
    )


def check_run(run: Run) -> Checked | None:
    """Ask the trained weights of a run what concerns its logits, or recall the answers. None: there is no checkpoint.

    The weights are those of its newest checkpoint, and the code is the run's own copy. Raises UserError if that is a
    stranger's.
    """
    from lmplay.runs import checkpoints

    checkpoint, entry = run.checkpoint, run.code
    bos = run.get("tokenizer", "eot")
    if checkpoint is None or entry is None or entry.error or not isinstance(bos, int):
        return None
    checkpoints.check_all(checkpoint)
    files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in checkpoint.iterdir())
    key = kept_answers.key_of(VERSION, run.code_hash, run.get("config"), bos, "cpu", checkpoint.name, files)
    known = _recall(key)
    if known is None:
        known = _ask_run(run, entry, checkpoint=checkpoint, bos=bos)
        if known is not None:
            kept_answers.keep(KIND, key, known.as_json())
    return known


def noted(run: Run) -> list[str]:
    """Return what a run's run.json says was not right with its model before the training, warnings aside."""
    try:
        return Checked.from_json(run.get("checks") or {"asked": [], "findings": []}).sentences(LEAK, FAULT)
    except (KeyError, TypeError):
        return []


def _ask_run(run: Run, entry: registry.Entry, *, checkpoint: Path, bos: int) -> Checked | None:
    import torch

    from lmplay.model.checks import check_trained
    from lmplay.runs import checkpoints, trust
    from lmplay.runs.trained import build_as_trained

    experiment, device = trust.load_code(run.folder, entry), torch.device("cpu")
    with apart_from_global_numbers(device):
        try:
            config = experiment.config(next(iter(experiment.variants)), **run.get("config"))
        except (UserError, TypeError):  # a run of an older Config: it is judged as before
            return None
        experiment = experiment.bound(config)
        model = build_as_trained(run, experiment, config)
        checkpoints.load_weights(checkpoint, model)
        with watched(f"the check of {entry.name}"), contextlib.redirect_stdout(sys.stderr):
            return check_trained(experiment, model, bos, device)


def _device_name(device: "torch.device") -> str:
    from lmplay.model.device import device_name

    return f"{device.type} {device_name(device)}"


def _recall(key: str) -> Checked | None:
    """Return answers that are kept; None if there are none, or none that can be read."""
    try:
        return Checked.from_json(kept_answers.recall(KIND, key))
    except (KeyError, TypeError, ValueError):
        return None
