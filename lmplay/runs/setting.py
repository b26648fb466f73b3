"""Declare one setting: its default, its help, its flag, and how a value of a JSON file becomes it."""

import argparse
import dataclasses
from dataclasses import field
from typing import Any

from lmplay.data.json_checks import shown
from lmplay.text import in_words, whole_number

THREE = ("auto", "on", "off")


def setting(default: Any, help: str, *, identity: bool = True, before: Any = None, **flag: Any) -> Any:
    """Return a field of Settings. `flag` goes to argparse; its `aliases` are further spellings.

    `identity`: the setting decides what the run computes, so it cannot change on resume. Settings of the data and of
    the experiment's Config are not marked: the data and the Config themselves are compared. `before`: what runs did
    that are older than the setting, if not its default.
    """
    given: dict[str, Any] = {"default_factory": default} if callable(default) else {"default": default}
    return field(**given, metadata={"help": help, "identity": identity, "flag": flag, "before": before})


def switch(default: bool, help: str, *, identity: bool = True) -> Any:
    """Return a field of Settings that --NAME turns on and --no-NAME turns off."""
    return setting(default, help, identity=identity, action=argparse.BooleanOptionalAction)


def flag_of(name: str) -> str:
    """Return the flag of a setting: "--batch-size" of "batch_size"."""
    return "--" + name.replace("_", "-")


def json_value(field: dataclasses.Field, value: Any) -> Any:
    """Return a JSON value as the setting has it. Raises ValueError where its type or its choice is wrong."""
    kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)
    if kind == "str" and isinstance(value, bool) and field.metadata["flag"].get("choices") == THREE:
        value = "on" if value else "off"  # as runs have it that are older than "auto"
    if value is None and "None" in kind:
        return None
    if kind.startswith("tuple"):
        expected = "a list of texts"
        good = isinstance(value, list) and all(isinstance(v, str) for v in value)
        value = tuple(value) if good else value
    elif kind.startswith("int"):
        expected = in_words(int)
        value = whole_number(value)
        good = isinstance(value, int) and not isinstance(value, bool)
    elif kind.startswith("float"):
        expected = in_words(float)
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
    elif kind.startswith("bool"):
        expected = in_words(bool)
        good = isinstance(value, bool)
    else:
        expected = in_words(str)
        good = isinstance(value, str)
    choices = field.metadata["flag"].get("choices")
    choices = None if kind.startswith("bool") else choices
    chosen = value if isinstance(value, tuple) else (value,)
    if not good or (choices and not all(one in choices for one in chosen)):
        expected = f"one of {', '.join(map(str, choices))}" if choices else expected
        raise ValueError(f"must be {expected}, not {shown(value)}")
    return value
