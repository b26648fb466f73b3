"""Ask what a model does to what it is given and to itself: tokens, parameters, modes, random numbers, surroundings."""

import os

import torch
from torch import Tensor

from lmplay.code_hash import code_files, named_files
from lmplay.errors import UserError
from lmplay.model.adapters import split_output
from lmplay.model.asking import Asked, random_window
from lmplay.model.findings import LEAK, WARNING, Checked, Finding
from lmplay.model.hidden_layers import check_reached, check_registered
from lmplay.random_numbers import seed_everything
from lmplay.surroundings import WITHOUT_SEED, clock_noted, files_read

MOVED = 1e-3  # what is added to a parameter at most


def ask_seeds(asked: Asked, checked: Checked) -> None:
    """Tell by torch's seed, which was 0 before the model was built, whether its code has seeded."""
    checked.asked.append("seeds")
    if torch.initial_seed() != 0:
        sentence = (
            f"__init__ of {asked.name} seeds torch's random numbers itself, so runs of several seeds begin with "
            "the same weights and differ less than they should: leave out manual_seed, and use --seed"
        )
        checked.findings.append(Finding("seeds", WARNING, sentence))


def say_surroundings(asked: Asked, checked: Checked) -> None:
    """Say what the model takes from its surroundings, as far as it was seen in what was asked before."""
    checked.asked.append("surroundings")
    for what, where in asked.clocks.items():
        seedless = what in WITHOUT_SEED
        sentence = (
            f"forward of {asked.name} "
            + (f"draws random numbers that no seed repeats ({what}" if seedless else f"asks for the time ({what}")
            + f", {where}): if logits depend on it, no run repeats another, and one that goes on is another model: "
            + ("draw them with torch" if seedless else "leave it out")
        )
        checked.findings.append(Finding("surroundings", WARNING, sentence))
    folder = asked.experiment.folder
    hashed = {os.path.realpath(path) for path in [*code_files(folder), *named_files(folder)]}
    for file, where in files_read(asked.experiment.package).items():
        if os.path.realpath(file) not in hashed:
            sentence = (
                f"{asked.name} reads {file} ({where}), which is no part of its code: another file there would be "
                "another model, and nothing would say so: put it beside model.py, and name it there in a string"
            )
            checked.findings.append(Finding("surroundings", WARNING, sentence))


def ask_parts(asked: Asked, checked: Checked) -> None:
    """Call forward as in training: does it use parameters that are no part of the model, or change its own?

    Each parameter is a little off its initial value, as after a step: copies of weights then differ.
    """
    checked.asked += ["own parameters", "tokens"]
    asked.model.train()
    parameters = dict(asked.model.named_parameters())
    initial = {name: p.detach().clone() for name, p in parameters.items()}
    moved = _moved_a_little(parameters)
    _apart(asked, checked, parameters)
    modes = [module.training for module in asked.model.modules()]
    inputs = asked.inputs(random_window(asked, rows=2, length=8))
    tokens = inputs.clone()
    seed_everything(0)
    try:
        with clock_noted(asked.clocks):
            output = asked.model(inputs)
        logits = asked.checked_output(output, tokens)
        check_registered(asked.name, asked.model, {id(p) for p in parameters.values()})
        check_reached(asked.name, asked.model, [logits, split_output(output)[1].get("loss")])
        _own_parameters(asked, checked, parameters, moved, logits)
    finally:
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(initial[name])
    if not torch.equal(inputs, tokens):
        sentence = f"forward of {asked.name} changes the tokens that it reads, in place: change a copy, tokens.clone()"
        checked.findings.append(Finding("tokens", LEAK, sentence))
    if modes != [module.training for module in asked.model.modules()]:
        sentence = (
            f"forward of {asked.name} switches between train and eval mode, so that dropout is off or on at the wrong "
            "time: leave out self.eval() and self.train(), and ask self.training"
        )
        checked.findings.append(Finding("tokens", WARNING, sentence))


def _apart(asked: Asked, checked: Checked, parameters: dict[str, torch.nn.Parameter]) -> None:
    """Tell of two parameters in one memory: each has an optimizer's state and takes a step of its own."""
    first: dict[tuple[int, int], str] = {}
    for name, p in parameters.items():
        other = first.setdefault((p.data_ptr(), p.numel()), name)
        if other != name and p.numel():
            sentence = (
                f"{name} and {other} of {asked.name} are two parameters in one memory, each with a step of its own: "
                f"tie them as one, self.{name} = self.{other}"
            )
            checked.findings.append(Finding("own parameters", WARNING, sentence))
            return


def _moved_a_little(parameters: dict[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """Add to each parameter a number of its own, in place; return what they are then."""
    moved = {}
    with torch.no_grad():
        for number, (name, p) in enumerate(parameters.items(), 1):
            if p.is_floating_point():
                p.add_(MOVED * number / len(parameters))
            moved[name] = p.detach().clone()
    return moved


def _own_parameters(
    asked: Asked, checked: Checked, parameters: dict[str, torch.nn.Parameter], before: dict[str, Tensor], logits: Tensor
) -> None:
    """Tell whether forward has changed a parameter that is trained; one that is not may be an average, say."""
    changed = [name for name, p in parameters.items() if p.requires_grad and not _same(p.detach(), before[name])]
    if changed:
        sentence = (
            f"forward of {asked.name} changes its own parameters ({changed[0]}"
            + (f" and {len(changed) - 1} more" if changed[1:] else "")
            + "): what the optimizer has learned is overwritten, in validations too; make initial values in __init__"
        )
        try:
            logits.sum().backward()
        except RuntimeError as error:  # what was changed is needed for the gradient
            raise UserError(sentence) from error
        finally:
            asked.model.zero_grad()
        checked.findings.append(Finding("own parameters", WARNING, sentence))


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())
