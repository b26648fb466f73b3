"""Settings that a comparison tunes for each arm: the grid, its points, and how it is extended at an edge."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lmplay.contract import GIVEN_BY_HARNESS
from lmplay.errors import UserError
from lmplay.runs.setting import flag_of, json_value
from lmplay.runs.settings import Settings
from lmplay.stats.choices import Choice, Edge, shown_value

# What a run sees, how it is measured, and where it runs: the same for all arms.
SAME_FOR_ALL = (
    *("exp", "set", "seed", "same_init", "shuffle", "initial_model", "batch_size", "validation_interval"),
    *("validation_tokens", "data_order"),
)
FIELDS = {f.name: f for f in dataclasses.fields(Settings)}
TUNABLE = tuple(name for name, f in FIELDS.items() if f.metadata["identity"] and name not in SAME_FOR_ALL)


@dataclass(frozen=True)
class Axis:
    """A field of the settings, or of the experiments' Config, and the values to try."""

    field: str
    values: tuple[float | str, ...]

    def __str__(self) -> str:
        return f"{self.field}={','.join(map(shown_value, self.values))}"


def axis_of(text: str) -> Axis:
    """Return the axis in "FIELD=A,B,C"; each value once, numbers ascending. Raises UserError."""
    name, equals, values = text.partition("=")
    field = name.strip().removeprefix("--").replace("-", "_")
    parts = [part.strip() for part in values.split(",")]
    if not equals or not field or not all(parts):
        raise UserError(f"--tune takes FIELD=A,B,C, for example --tune lr=1e-3,2e-3, not {text!r}")
    if field in GIVEN_BY_HARNESS or (field in FIELDS and field not in TUNABLE):
        raise UserError(f"--tune {field}: it is the same for all arms, so that they see and score the same text")
    found = {_value(part): None for part in parts}
    if field in FIELDS:
        for value in found:
            setting(field, value)
    if not any(isinstance(value, str) for value in found):
        return Axis(field, tuple(sorted(found)))
    return Axis(field, tuple(found))


def axes_of(texts: Sequence[str]) -> tuple[Axis, ...]:
    """Return the axes of all --tune. Raises UserError, also for a field that is named twice."""
    axes = tuple(map(axis_of, texts))
    for number, axis in enumerate(axes):
        if axis.field in [other.field for other in axes[:number]]:
            raise UserError(f"--tune {axis.field} is there twice: give all its values at once")
    return axes


def points(axes: Sequence[Axis]) -> list[Choice]:
    """Return every combination of the values of axes with several; a single choice of nothing if there is none."""
    several = [axis for axis in axes if len(axis.values) > 1]
    fields = [axis.field for axis in several]
    return [
        Choice(tuple(zip(fields, values, strict=True)))
        for values in itertools.product(*(axis.values for axis in several))
    ]


def fixed(axes: Sequence[Axis], settings: Settings) -> Settings:
    """Return settings with the value of each axis that has only one."""
    return applied(settings, Choice(tuple((axis.field, axis.values[0]) for axis in axes if len(axis.values) == 1)))


def applied(settings: Settings, choice: Choice) -> Settings:
    """Return settings with a choice's values; what is no setting is a field of the Config. Raises UserError."""
    own: dict[str, Any] = {field: setting(field, value) for field, value in choice.values if field in FIELDS}
    others = {field: shown_value(value) for field, value in choice.values if field not in FIELDS}
    kept = [one for one in settings.set if one.partition("=")[0] not in others]
    return dataclasses.replace(settings, **own, set=(*kept, *(f"{field}={value}" for field, value in others.items())))


def setting(field: str, value: float | str) -> Any:
    """Return the value of a setting in its own type. Raises UserError."""
    given = {"true": True, "false": False, "on": True, "off": False, "none": None}
    plain = value if not isinstance(value, str) else given.get(value.lower(), value)
    try:
        found = json_value(FIELDS[field], plain)
    except ValueError as error:
        raise UserError(f"--tune {field}={shown_value(value)}: {flag_of(field)} {error}") from None
    dataclasses.replace(Settings(), **{field: found})
    return found


def extended(axes: Sequence[Axis], edges: Iterable[Edge]) -> tuple[Axis, ...]:
    """Return the axes with one value more beyond each edge, in the ratio of the two values at that end.

    Of values at or below 0 in the difference of the two; never across 0. An axis that can't be extended stays.
    """
    at_edge = {(edge.field, edge.direction) for edge in edges}
    return tuple(_extended(axis, [d for d in (-1, 1) if (axis.field, d) in at_edge]) for axis in axes)


def _extended(axis: Axis, directions: Sequence[int]) -> Axis:
    numbers = [value for value in axis.values if not isinstance(value, str)]
    for direction in directions if len(numbers) == len(axis.values) > 1 else ():
        end, next_to_it = numbers[::direction][-1], numbers[::direction][-2]
        new = end**2 / next_to_it if min(end, next_to_it) > 0 else 2 * end - next_to_it
        if new * end > 0 and math.isfinite(new):
            numbers = sorted([*numbers, float(f"{new:.3g}")])
    return Axis(axis.field, tuple(numbers) or axis.values)


def _value(text: str) -> float | str:
    try:
        value = float(text)
    except ValueError:
        return text
    if not math.isfinite(value):
        raise UserError(f"--tune: {text!r} is no value to try")
    return value
