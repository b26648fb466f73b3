"""Read the value of a field of an experiment's Config, as it was typed or as run.json holds it."""

import dataclasses
import types
import typing
from typing import Any

from lmplay.errors import UserError
from lmplay.text import in_words


def typed(experiment: str, field: dataclasses.Field, value: Any) -> Any:
    """Return `value` as the type of the field's default; strings (from the command line) are read.

    experiment: its name, for the message. Raises UserError. A default of None says nothing: then the annotation does
    if it is `float | None` or the like, else it is guessed.
    """
    default = field.default
    kind = _optional(field.type) if default is dataclasses.MISSING or default is None else type(default)
    if kind is None:
        return _guess(value)
    if default is None and str(value).lower() == "none":
        return None
    if type(value) is kind and kind is not str:
        return value
    try:
        if kind is str:
            return str(value)
        if kind is bool and str(value).lower() in _BOOLS:
            return _BOOLS[str(value).lower()]
        if kind is int and str(value).lstrip("+-").isdigit():  # to the last digit, which a float does not hold
            return int(value)
        if kind is int and not isinstance(value, bool) and float(value) == int(float(value)):
            return int(float(value))
        if kind is float and not isinstance(value, bool):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"{experiment}: {field.name} takes {in_words(kind)} (its default is {default!r}), not {value!r}")


def _optional(annotation: object) -> type | None:
    """Return the plain type T of an annotation `T | None`; None of any other."""
    kinds = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    return kinds[0] if union and len(kinds) == 1 and kinds[0] in (bool, int, float, str) else None


_BOOLS = {word: True for word in ("true", "yes", "on", "1")} | {word: False for word in ("false", "no", "off", "0")}


def _guess(value: Any) -> Any:
    """Return a string that has no type to go by as None, a bool, a number, or itself; other values as they are."""
    if not isinstance(value, str):
        return value
    if value.lower() in (special := {"none": None, "true": True, "false": False}):
        return special[value.lower()]
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
