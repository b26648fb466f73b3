"""Turn numbers and names into text for people."""

import functools
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeVar

T = TypeVar("T")

KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object in braces",
    type(None): "null",
}
LONGEST_WHOLE = 24  # digits of the whole numbers that are read: more than any use has


def printable(text: object) -> str:
    """Return `text` on one line without control characters, since texts from runs go to terminals and pictures."""
    return re.sub(r"\s+", " ", "".join(c if c.isprintable() else " " for c in str(text))).strip()


def escaped(text: object) -> str:
    """Return `text` on one line, with "\\n" for a line break: what was typed, or is in a file, is shown as it is."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def in_words(kind: type) -> str:
    """Return what a value of this kind is, for a message: "a whole number" of int."""
    return KINDS.get(kind, kind.__name__)


def name_key(name: str) -> str:
    """Return a key that is equal for names that a user may mix up: `-` and `_`, upper and lower case."""
    return name.replace("-", "_").lower()


def by_name(known: Mapping[str, T], name: str) -> T | None:
    """Return what is known by that name, in which `-` and `_` are the same; None if there is none."""
    return known.get(name) or {name_key(one): value for one, value in known.items()}.get(name_key(name))


def without_half_surrogates(text: str) -> str:
    """Return a text whose half surrogate pairs, which JSON can hold and UTF-8 cannot, are replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def read_whole(text: str) -> int | None:
    """Return the whole number that `text` is, every digit as it is written, also as 1e6 or 2_000_000; else None."""
    try:
        number = Decimal(text.replace("_", ""))
        exact = number.is_finite() and abs(number.adjusted()) < LONGEST_WHOLE and number == number.to_integral_value()
    except ArithmeticError:
        return None
    return int(number) if exact else None


def whole_number(value: Any) -> Any:
    """Return a number of JSON such as 1e6, which Python reads as a float, as the whole number that it is.

    Other values stay; so do floats that do not hold every whole number of their size.
    """
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53 else value


@functools.lru_cache(maxsize=16)
def whole_numbers(text: str) -> frozenset[int] | None:
    """Return the numbers from 1 of a list such as "1000,5e3", no number of ""; None where it is no such list."""
    numbers = [read_whole(part.strip()) for part in text.split(",")] if text else []
    if any(number is None or number < 1 for number in numbers):
        return None
    return frozenset(number for number in numbers if number)


def count(value: float | None) -> str:
    """Return a number with its unit: 120560209 as "120.6M"; "-" for None."""
    if value is None:
        return "-"
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.99995 * size:  # 999,999 is 1M, not 1000k
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def fixed(value: float | None, digits: int, sign: str = "") -> str:
    """Return a number with `digits` after the point and commas between thousands. sign: "+" for differences."""
    return "-" if value is None else f"{value:{sign},.{digits}f}"


def mebibytes(value: float | None) -> str:
    """Return a number of bytes in MiB; "-" for None."""
    return "-" if value is None else f"{value / 2**20:,.0f} MiB"


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table: columns as wide as their widest cell, the first aligned left, the others right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def counted(number: int, noun: str) -> str:
    """Return "1 seed", "2 seeds"."""
    return f"{number} {noun}{'s' * (number != 1)}"
