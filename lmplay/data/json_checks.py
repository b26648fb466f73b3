"""Checked reading of JSON: every message names the file, the path of keys and what is wrong there."""

import json
import math
import re
from collections.abc import Callable

from lmplay.errors import UserError, did_you_mean


class Checked:
    """A JSON object with the place it comes from, for messages: file, path of keys, what is wrong."""

    def __init__(self, file, value, path="", keys=None):
        self.file, self.value, self.path = file, value, path
        if not isinstance(value, dict):
            raise self.error("", f"must be an object in braces, not {_show(value)}")
        if keys is not None:
            self.only(keys)

    def error(self, key: str, message: str) -> UserError:
        path = self.path + ("." if self.path and key else "") + key
        return UserError(f"{self.file}: {path}{': ' if path else ''}{message}")

    def only(self, keys):
        for key in self.value:
            if key not in keys:
                raise self.error("", f"unknown key {key!r}.{did_you_mean(key, keys)}")

    def take(self, key: str, check: Callable, *default):
        """The checked value at `key`, or the default; `check` returns the value or raises ValueError."""
        if key not in self.value:
            if default:
                return default[0]
            raise self.error("", f"the key {key!r} is missing")
        try:
            return check(self.value[key])
        except ValueError as error:
            raise self.error(key, str(error)) from None

    def inside(self, key: str) -> "Checked":
        return Checked(self.file, self.value[key], f"{self.path}.{key}" if self.path else key)

    def table(self, key: str) -> "Checked":
        self.take(key, lambda value: value)
        table = self.inside(key)
        if not table.value:
            raise table.error("", "is empty")
        return table

    def rows(self, key: str) -> list["Checked"]:
        rows = self.take(key, lambda value: value)
        if not isinstance(rows, list) or not rows:
            raise self.error(key, "is empty" if rows == [] else f"must be a list in brackets, not {_show(rows)}")
        return [Checked(self.file, row, f"{key}[{k}]") for k, row in enumerate(rows)]

    def safe_name(self, name: str, key: str = ""):
        """Names become parts of file names and column names."""
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
            raise self.error(key, f"the name {name!r} must be made of letters, digits, '_', '-' and '.'")


def _show(value) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _expect(right: bool, value, what: str):
    if not right:
        raise ValueError(f"must be {what}, not {_show(value)}")
    return value


def text(value):
    return _expect(isinstance(value, str) and bool(value.strip()), value, "a text in quotes")


def texts(value) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    right = bool(values) and all(isinstance(one, str) and one.strip() for one in values)
    _expect(right, value, "a text in quotes or a list of them")
    return tuple(values)


def boolean(value):
    return _expect(isinstance(value, bool), value, "true or false")


def _is_number(value, kinds) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def whole(value):
    return _expect(_is_number(value, int) and value >= 0, value, "a whole number, 0 or more")


def positive_int(value):
    return _expect(_is_number(value, int) and value > 0, value, "a whole number above 0")


def positive_number(value):
    return _expect(_is_number(value, (int, float)) and math.isfinite(value) and value > 0, value, "a number above 0")


def fraction(value):
    return _expect(_is_number(value, (int, float)) and 0 < value < 1, value, "a number between 0 and 1")


def one_of(names) -> Callable:
    def check(value):
        if value not in names:
            near = did_you_mean(value, names) if isinstance(value, str) else ""
            raise ValueError(f"unknown value {_show(value)}.{near}")
        return value

    return check
