"""Check JSON values: every message names the file, the path of keys, and what is wrong there.

Values are checked by hand, here and in two more modules, and not by pydantic: a few lines do it, `--help` stays quick,
and a message is one line that ends with the nearest valid name. The three differ on purpose. A plan file has nested
keys, so its checks carry the path of keys. Settings (runs/setting.py) know their types and choices from a dataclass.
An experiment's Config (contract.py) reads strings of the command line as the type of the field's default.
"""

import json
import math
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from lmplay.errors import UserError, did_you_mean
from lmplay.text import whole_number

LARGEST = 2**63  # whole numbers below it fit wherever numpy and torch take one


class Checked:
    """A JSON object, with its file and its path of keys for messages."""

    def __init__(self, file: str | Path, value: Any, path: str = "", keys: Collection[str] | None = None):
        self.file, self.path = file, path
        if not isinstance(value, dict):
            raise self.error("", f"must be an object in braces, not {shown(value)}")
        self.value: dict[str, Any] = value
        if keys is not None:
            self.only(keys)

    def error(self, key: str, message: str) -> UserError:
        """Return an error about the value at `key` ("": about the object)."""
        path = self.path + ("." if self.path and key else "") + key
        return UserError(f"{self.file}: {path}{': ' if path else ''}{message}")

    def only(self, keys: Collection[str]) -> None:
        """Raise UserError if the object has another key than `keys`."""
        for key in self.value:
            if key not in keys:
                raise self.error("", f"unknown key {key!r}.{did_you_mean(key, keys)}")

    def take(self, key: str, check: Callable[[Any], Any], *default: Any) -> Any:
        """Return the checked value at `key`, or the default. `check` returns the value or raises ValueError."""
        if key not in self.value:
            if default:
                return default[0]
            raise self.error("", f"the key {key!r} is missing")
        try:
            return check(self.value[key])
        except ValueError as error:
            raise self.error(key, str(error)) from None

    def inside(self, key: str) -> "Checked":
        """Return the object at `key`."""
        return Checked(self.file, self.value[key], f"{self.path}.{key}" if self.path else key)

    def table(self, key: str) -> "Checked":
        """Return the object at `key`, which must be there and not empty."""
        self.take(key, lambda value: value)
        table = self.inside(key)
        if not table.value:
            raise table.error("", "is empty")
        return table

    def rows(self, key: str) -> list["Checked"]:
        """Return the objects of the list at `key`, which must be there and not empty."""
        rows = self.take(key, lambda value: value)
        if not isinstance(rows, list) or not rows:
            raise self.error(key, "is empty" if rows == [] else f"must be a list in brackets, not {shown(rows)}")
        return [Checked(self.file, row, f"{key}[{k}]") for k, row in enumerate(rows)]

    def safe_name(self, name: str, key: str = "") -> None:
        """Raise UserError for a name that cannot become part of file names and column names."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
            raise self.error(key, f"the name {name!r} must be made of letters, digits, '_', '-' and '.'")


def shown(value: object) -> str:
    """Return a JSON value for a message, 60 characters at most, on one line whatever is in it."""
    text = json.dumps(value, ensure_ascii=False)
    text = text if text.isprintable() else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _expect(right: bool, value: Any, what: str) -> Any:
    if not right:
        raise ValueError(f"must be {what}, not {shown(value)}")
    return value


def text(value: Any) -> str:
    """Return a text that is not blank."""
    return _expect(isinstance(value, str) and bool(value.strip()), value, "a text in quotes")


def texts(value: Any) -> tuple[str, ...]:
    """Return one text or a list of them as a tuple."""
    values = value if isinstance(value, list) else [value]
    right = bool(values) and all(isinstance(one, str) and one.strip() for one in values)
    _expect(right, value, "a text in quotes or a list of them")
    return tuple(values)


def string(value: Any) -> str:
    """Return a text, which may be empty."""
    return _expect(isinstance(value, str), value, "a text in quotes")


def boolean(value: Any) -> bool:
    """Return true or false."""
    return _expect(isinstance(value, bool), value, "true or false")


def _is_number(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def whole(value: Any) -> int:
    """Return a whole number from 0 on, also where it is written as 1e6."""
    value = whole_number(value)
    _expect(_is_number(value, int) and value >= 0, value, "a whole number, 0 or more")
    return _expect(value < LARGEST, value, "below 2**63")


def positive_int(value: Any) -> int:
    """Return a whole number from 1 on, also where it is written as 1e6."""
    value = whole_number(value)
    _expect(_is_number(value, int) and value > 0, value, "a whole number above 0")
    return _expect(value < LARGEST, value, "below 2**63")


def number(value: Any) -> float:
    """Return a number that a float holds; it may be infinite or NaN."""
    return _expect(_is_number(value, int, float), value, "a number")


def positive_number(value: Any) -> float:
    """Return a finite number above 0."""
    return _expect(_is_number(value, int, float) and math.isfinite(value) and value > 0, value, "a number above 0")


def fraction(value: Any) -> float:
    """Return a number between 0 and 1, both excluded."""
    return _expect(_is_number(value, int, float) and 0 < value < 1, value, "a number between 0 and 1")


def optional(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a check that also takes null."""
    return lambda value: None if value is None else check(value)


def one_of(names: Collection[str]) -> Callable[[Any], str]:
    """Return a check that a value is one of `names`."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            near = did_you_mean(value, names) if isinstance(value, str) else ""
            raise ValueError(f"unknown value {shown(value)}.{near}")
        return value

    return check
