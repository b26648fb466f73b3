"""Ask a model, before it is trained, whether its loss means what it says: no look ahead, no mixed rows, no dead parts.

The main question goes from the window through make_batch to the logits: what predicts a token must not move when that
token, or one read after it, changes. The same question is asked in eval and in train mode. Zeros among the parameters
are replaced by small random numbers first, since a gate that starts at 0 hides what is behind it.
"""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lmplay import crashes
from lmplay.contract import NOT_SCORED, Experiment
from lmplay.errors import UserError
from lmplay.model.adapters import derived_once, offered, split_output
from lmplay.model.asking import Asked, random_window
from lmplay.model.findings import FAULT, FIRST_LOSS, LEAK, WARNING, Checked, Finding
from lmplay.model.hidden_layers import check_layers
from lmplay.model.look_ahead import LENGTH, looks_ahead, rows_apart, scored_once
from lmplay.model.own_parts import ask_parts, ask_seeds, say_surroundings
from lmplay.random_numbers import apart_from_global_numbers, seed_everything
from lmplay.surroundings import clock_noted, files_noted

FILL = 0.05  # of N(0, FILL), which replaces zeros
FEW_TOKENS = 1024  # a vocabulary of which all can be asked: time and memory of a model grow with its own
SAMPLED = 4096  # numbers of a gradient that are looked at before the rest
CACHE_NOISE = 3e-6  # a new model hardly attends: a cache that knows no positions moves its logits by 1e-4 and less
NEAR_LN_V = 0.1  # how far the first loss may be from ln(vocab_size), as a part of it


def check_new(experiment: Experiment, config: Any, bos: int, device: torch.device) -> Checked:
    """Build a model of `config` and ask everything. torch's, Python's and numpy's random numbers go on untouched.

    experiment: bound to `config`. Raises UserError if forward does not return logits (B, T, V), or where parameters are
    no part of the model, and whatever the model raises at an ordinary batch.
    """
    with files_noted(), apart_from_global_numbers(device):
        checked = _with_few_tokens(experiment, config, bos, device)
        return _check_new(experiment, config, bos, device) if checked is None else checked


def _with_few_tokens(experiment: Experiment, config: Any, bos: int, device: torch.device) -> Checked | None:
    """Ask the model with a small vocabulary. Return None if that is not an answer for the model with its own.

    Nothing that is asked is of a size. So what is right with few tokens is right with many, and so is a leak. Where
    anything else is found, or where the experiment refuses so few, it is asked with its own. Raises what goes wrong
    outside the experiment's code.
    """
    if config.vocab_size <= FEW_TOKENS:
        return None
    try:
        few = dataclasses.replace(config, vocab_size=FEW_TOKENS)
        checked = _check_new(experiment.bound(few), few, min(bos, FEW_TOKENS - 1), device)
    except UserError:
        return None
    except crashes.RAISED as error:
        if not crashes.is_of_experiment(error):
            raise
        return None  # what it raises with its own vocabulary is what is said
    return checked if checked.sentences(LEAK) or not checked.findings else None


def _check_new(experiment: Experiment, config: Any, bos: int, device: torch.device) -> Checked:
    seed_everything(0)
    model = experiment.build(config).to(device)
    asked = Asked(experiment, model, vocab_size=config.vocab_size, max_len=config.max_len, bos=bos, device=device)
    checked = Checked()
    ask_seeds(asked, checked)
    check_layers(asked.name, model, experiment.package)
    ask_parts(asked, checked)
    check_layers(asked.name, model, experiment.package)  # those that came with the first call
    _first_loss(asked, checked)
    with _zeros_filled(model):
        _ask_logits(asked, checked)
    say_surroundings(asked, checked)
    _gradients(asked, checked)
    return checked


def check_trained(experiment: Experiment, model: torch.nn.Module, bos: int, device: torch.device) -> Checked:
    """Ask a trained model, which ends in eval mode and is otherwise left as it is, what concerns its logits."""
    config = experiment.bound_config
    with apart_from_global_numbers(device):
        asked = Asked(experiment, model, vocab_size=config.vocab_size, max_len=config.max_len, bos=bos, device=device)
        checked = Checked()
        _ask_logits(asked, checked, trained=True)
    model.eval()
    return checked


def _ask_logits(asked: Asked, checked: Checked, trained: bool = False) -> None:
    """Ask what can be seen from logits alone, the simplest first: a model that never repeats itself answers nothing.

    What is derived from the parameters is derived once for all questions in a mode: it may take seconds.
    """
    causal = asked.experiment.causal
    with torch.no_grad():
        asked.model.eval()
        with derived_once(asked.model):
            repeats = _repeats(asked, checked)
            if not trained:
                _lengths(asked, checked)
            in_order = causal and scored_once(asked, checked)
            if not repeats:
                return
            _ask_in_mode(asked, checked, "eval", in_order)
            if causal and not trained and offered(asked.model, "new_cache") is not None:
                _cache(asked, checked)
        if not checked.sentences(LEAK):
            asked.model.train()
            with derived_once(asked.model):
                _ask_in_mode(asked, checked, "train", in_order)
        asked.model.eval()


def _ask_in_mode(asked: Asked, checked: Checked, mode: str, in_order: bool) -> None:
    """Ask of rows and of looking ahead in one mode, unless nothing makes equal calls give equal logits."""
    caller = asked.caller(mode)
    if caller is not None and rows_apart(asked, caller, checked) and in_order:
        looks_ahead(asked, caller, checked)


def _repeats(asked: Asked, checked: Checked) -> bool:
    checked.asked.append("repeats")
    window = random_window(asked, rows=2, length=8)
    # a model that draws random numbers draws others for another seed
    with clock_noted(asked.clocks):
        moved = asked.moved(lambda model: (asked.logits(window, model, seed=1), asked.logits(window, model, seed=2)))
    if not moved:
        return True
    sentence = (
        f"{asked.name} gives other logits for the same tokens when it is called again in eval mode: make what is "
        "random depend on self.training"
    )
    checked.findings.append(Finding("repeats", LEAK, sentence))
    return False


def _lengths(asked: Asked, checked: Checked) -> None:
    checked.asked.append("lengths")
    for rows, length in ((1, 1), (2, 1), (1, min(LENGTH, asked.max_len))):
        try:
            asked.logits(random_window(asked, rows=rows, length=length))
        except (ValueError, RuntimeError, IndexError, TypeError, AssertionError) as error:
            what = f"{rows} row{'s' if rows > 1 else ''} of {length} token{'s' if length > 1 else ''}"
            why = str(error).strip().splitlines()
            checked.findings.append(
                Finding(
                    "lengths",
                    FAULT,
                    f"{asked.name} can't read {what}, with which every text begins: {type(error).__name__}"
                    + (f": {why[0]}" if why else ""),
                )
            )
            return


def _cache(asked: Asked, checked: Checked) -> None:
    checked.asked.append("cache")
    window = random_window(asked, rows=2, length=min(16, asked.max_len))
    inputs = asked.inputs(window)
    length = inputs.size(1)
    sizes = [size for size in (5, 1, 1) if length > 7] + [length - 7 if length > 7 else length]

    def pair(model: Any) -> tuple[Tensor, Tensor]:
        cache = model.new_cache(len(inputs))
        parts = [asked.checked_output(model(part, cache=cache), part) for part in inputs.split(sizes, dim=1)]
        return asked.checked_output(model(inputs), inputs), torch.cat(parts, 1)

    try:
        wrong = asked.moved(pair, sure=1e-2, noise=CACHE_NOISE)
    except (ValueError, RuntimeError, IndexError, TypeError, AssertionError, AttributeError) as error:
        why = f"fails ({type(error).__name__}: {error})"
        wrong = True
    else:
        why = "gives other logits than forward without it"
    if wrong:
        sentence = (
            f"the cache of {asked.name} {why}, so its samples are not what the model would write: mend new_cache and "
            "what forward does with it, or delete new_cache"
        )
        checked.findings.append(Finding("cache", WARNING, sentence))


def _first_loss(asked: Asked, checked: Checked) -> None:
    checked.asked.append(FIRST_LOSS)
    asked.model.eval()
    with torch.no_grad(), derived_once(asked.model):
        logits, mean_loss, _ = _loss(asked, random_window(asked, rows=4, length=32), seed=0)
        loss = mean_loss.item()
        _probabilities(asked, logits.float(), checked)
    expected = math.log(asked.vocab_size)
    if abs(loss - expected) > NEAR_LN_V * expected or not math.isfinite(loss):
        sentence = (
            f"the first loss of {asked.name} is {loss:.3f}, and guessing gives ln(vocab_size) = {expected:.3f}: its "
            "initial values are not right, or the model knows more than it should"
        )
        checked.findings.append(Finding(FIRST_LOSS, WARNING, sentence))


def _probabilities(asked: Asked, logits: Tensor, checked: Checked) -> None:
    checked.asked.append("logits")
    if bool((logits >= 0).all()) and bool(((logits.sum(-1) - 1).abs() < 1e-3).all()):
        sentence = (
            f"what forward of {asked.name} returns sums to 1 over the vocabulary, as probabilities do: return logits, "
            "without the softmax, which the loss takes itself"
        )
        checked.findings.append(Finding("logits", WARNING, sentence))


def _loss(asked: Asked, window: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits (B, T, V), the mean loss of the scored tokens, and what is minimized."""
    inputs, targets, _ = asked.experiment.make_batch(window, asked.bos, seed)
    seed_everything(seed)
    inputs, targets = inputs.to(asked.device), targets.to(asked.device)
    output = asked.model(inputs)
    logits, extra = asked.checked_output(output, inputs), split_output(output)[1]
    loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=NOT_SCORED)
    return logits, loss, loss + extra.get("loss", 0.0)


def _gradients(asked: Asked, checked: Checked) -> None:
    """Take steps of Adam's first size, 0.001 sign(gradient): what is behind a zero gets its gradient in the second.

    A third and fourth step, on more tokens, are for parameters that few tokens reach.
    """
    checked.asked.append("gradients")
    asked.model.train()
    waiting = {name: p for name, p in asked.model.named_parameters() if p.requires_grad}
    n_all = len(waiting)
    for step in range(4):
        if not waiting:
            return
        window = random_window(asked, rows=4 if step < 2 else 16, length=32, seed=step)
        with derived_once(asked.model):
            *_, objective = _loss(asked, window, seed=step)
            if not objective.requires_grad:
                break
            _backward(asked.name, objective)
        for name, parameter in list(waiting.items()):
            if parameter.grad is not None and _any(_values(parameter.grad)):
                del waiting[name]
        _step(asked.model)
    if waiting:
        names = ", ".join([*waiting][:3]) + (f" and {len(waiting) - 3} more" if len(waiting) > 3 else "")
        sentence = (
            f"{len(waiting)} of {n_all} parameters of {asked.name} get no gradient in two steps: {names}; nothing that "
            "the loss depends on uses them"
        )
        checked.findings.append(Finding("gradients", FAULT, sentence))


def _backward(name: str, objective: Tensor) -> None:
    """Raise UserError, or what the experiment's own code raises, where the gradient can't be taken."""
    try:
        objective.backward()
    except RuntimeError as error:
        if crashes.is_of_experiment(error):
            raise
        why = next(iter(str(error).strip().splitlines()), "")
        raise UserError(f"{name}: the gradient of its loss can't be taken ({why})") from error


def _any(gradient: Tensor) -> bool:
    """Tell whether a gradient is anywhere other than 0. Mostly its beginning says so."""
    return bool(gradient.flatten()[:SAMPLED].any()) or bool(torch.count_nonzero(gradient))


def _values(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


@torch.no_grad()
def _step(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            parameter.index_add_(0, gradient.indices()[0], gradient.values().sign(), alpha=-1e-3)
        else:
            parameter.sub_(gradient.sign_(), alpha=1e-3)
        parameter.grad = None


@contextmanager
def _zeros_filled(model: torch.nn.Module) -> Iterator[None]:
    """Replace the zeros among the parameters by small random numbers within the block."""
    zeros: list[tuple[Tensor, Tensor]] = []
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            n_zeros = parameter.numel() - int(torch.count_nonzero(parameter))
            if parameter.is_floating_point() and n_zeros:
                where = parameter == 0
                zeros.append((parameter, where))
                small = FILL * torch.randn(n_zeros, generator=generator)
                parameter[where] = small.to(parameter)
        try:
            yield
        finally:
            for tensor, where in zeros:
                tensor[where] = 0
