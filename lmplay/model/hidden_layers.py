"""Find parameters that torch does not know of: they would be neither trained nor saved."""

from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn

from lmplay.attributes import Known, Walk, of_files, of_modules
from lmplay.errors import UserError

KINDS = "nn.ModuleList, nn.ModuleDict, nn.ParameterList or nn.ParameterDict"
SAY = {
    "list": ("a plain list", "make it an nn.ModuleList, or an nn.ParameterList"),
    "tuple": ("a tuple", "make it an nn.ModuleList, or an nn.ParameterList"),
    "dict": ("a plain dict", "make it an nn.ModuleDict, or an nn.ParameterDict"),
    "tensor": ("a plain tensor", "make it an nn.Parameter (several: an nn.ParameterList)"),
}
ELSE = ("no nn.Module", f"make it one, or keep the layers in an {KINDS}")
OUTSIDE = ("outside of the model", f"make it in __init__, as an attribute of the model, or in an {KINDS}")


def check_layers(name: str, model: nn.Module, package: str) -> None:
    """Raise UserError where attributes, classes or globals hold trainable parameters that are no part of the model."""
    saved = model.state_dict()
    if left_out := [key for key, _ in model.named_parameters() if key not in saved]:
        raise UserError(
            f"{name}: state_dict() has no {left_out[0]}, so no checkpoint would: leave out a state_dict of your own, "
            "or let it return all parameters"
        )
    known = Known(model, package)
    for path, value, where in _attribute_paths(model, package):
        walk = Walk(known, value)
        if walk.layers:
            what, remedy = where or SAY.get("tensor" if isinstance(value, Tensor) else type(value).__name__, ELSE)
            n = sum(tensor.numel() for tensor in walk.layers.values())
            raise UserError(
                f"{name}: {path} is {what}, where torch does not see its {n:,} parameters: {remedy}, else they are "
                "neither trained nor saved nor counted (what is not to be trained: requires_grad_(False))"
            )


def _attribute_paths(model: nn.Module, package: str) -> Iterator[tuple[str, Any, tuple[str, str] | None]]:
    for path, attribute, value in of_modules(model):
        yield f"{path}.{attribute}" if path else attribute, value, None
    for path, value in of_files(package):
        yield path, value, OUTSIDE


def check_registered(name: str, model: nn.Module, before: Collection[int]) -> None:
    """Raise UserError if forward has given the model parameters that it did not have when it was built."""
    new = {key: parameter for key, parameter in model.named_parameters() if id(parameter) not in before}
    if new:
        raise UserError(
            f"{name}: {next(iter(new))}{f' and {len(new) - 1} more' if len(new) > 1 else ''} came with the first call "
            "of forward, too late to be trained: make all layers in __init__"
        )


def check_reached(name: str, model: nn.Module, outputs: list[Any]) -> None:
    """Raise UserError if `outputs` of forward depend on parameters that are no part of the model.

    They were made in forward, or are kept where `check_layers` does not look.
    """
    known = {id(parameter) for parameter in model.parameters()}
    starts = [output.grad_fn for output in outputs if isinstance(output, Tensor) and output.grad_fn is not None]
    seen, waiting, foreign = set(starts), list(starts), {}
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter) and id(leaf) not in known:
            foreign[id(leaf)] = leaf
        for follower, _ in node.next_functions:
            if follower is not None and follower not in seen:
                seen.add(follower)
                waiting.append(follower)
    if foreign:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in list(foreign.values())[:3])
        raise UserError(
            f"{name}: forward computes with {sum(leaf.numel() for leaf in foreign.values()):,} parameters that are no "
            f"part of the model and are not trained ({shapes}): make layers in __init__, as attributes or in an "
            "nn.ModuleList, nn.ModuleDict or nn.ParameterList"
        )
