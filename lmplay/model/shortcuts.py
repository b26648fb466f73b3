"""Note which shortcuts a model goes without, because they don't give what the model itself gives."""

import copy
import sys
import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_not_taken: "weakref.WeakKeyDictionary[torch.nn.Module, dict[str, str]]" = weakref.WeakKeyDictionary()
# The modes (training or not) in which forward ends with the head: `adapters.head_is_last`.
followed: "weakref.WeakKeyDictionary[torch.nn.Module, set[bool]]" = weakref.WeakKeyDictionary()

# The head is left out of forward; the loss is fused with it; what is derived is lent; a cache spares the past.
HEAD, LOSS, DERIVED, CACHE = "head", "fused loss", "derived tensors", "cache"


def go_without(model: "torch.nn.Module", shortcut: str, why: str) -> None:
    """Take the plain way from now on, and say so once, in one line on stderr."""
    noted = _not_taken.setdefault(model, {})
    if shortcut not in noted:
        noted[shortcut] = why
        print(f"note: {why}", file=sys.stderr)


def not_taken(model: "torch.nn.Module") -> dict[str, str]:
    """Return the shortcuts that the model goes without, and why."""
    return _not_taken.get(model, {})


def shadow(model: "torch.nn.Module") -> Any:
    """Return a copy that shares the parameters, and has attributes and buffers of its own.

    What calls leave behind stays there. What is known of the model, and what it goes without, is common to both. A
    model that can't be copied is returned as it is. Nothing of the copy is compiled.
    """
    derived = (getattr(model, "derived", None) or {}).values()
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *derived)}
    try:
        made = copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):
        return model
    if "body" in vars(made) and hasattr(type(made), "body"):  # the compiled one belongs to the original
        del made.body
    _not_taken[made] = _not_taken.setdefault(model, {})
    if model in followed:
        followed[made] = followed[model]
    return made
