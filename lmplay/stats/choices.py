"""Points of a grid of settings, of which each arm gets its own best."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Choice:
    """One point of a grid: {field: value}, as pairs in the order of the fields."""

    values: tuple[tuple[str, float | str], ...] = ()

    def __str__(self) -> str:
        return ", ".join(f"{field} {shown_value(value)}" for field, value in self.values)

    def with_(self, other: "Choice") -> "Choice":
        """Return both together; what `other` says comes first."""
        return Choice(tuple((dict(self.values) | dict(other.values)).items()))

    @property
    def of_rates(self) -> bool:
        """Whether the learning rate is all that was tuned."""
        return [field for field, _ in self.values] == ["lr"]

    @property
    def key(self) -> tuple[tuple[bool, float, str], ...]:
        """What choices are sorted by: numbers by their size, before words."""
        return tuple(
            (isinstance(value, str), 0.0 if isinstance(value, str) else value, str(value)) for _, value in self.values
        )


NOTHING_CHOSEN = Choice()


class Edge(NamedTuple):
    """A field whose best value is the lowest (direction -1) or the highest (1) that was tried."""

    field: str
    value: float
    direction: int

    def sentence(self, arm: str) -> str:
        """Return what to try, for the arm that is called `arm` ("the candidate")."""
        name = "learning rate" if self.field == "lr" else self.field
        further = f"{'below' if self.direction < 0 else 'above'} {self.value:g}"
        return f"{arm}'s best {name} {self.value:g} is at the edge of its grid: try some {further}"


def as_choice(point: float | Choice) -> Choice:
    """Return a point of a grid as a choice: a number is a learning rate."""
    return point if isinstance(point, Choice) else Choice((("lr", float(point)),))


def edges_of(best: Choice, grid: Iterable[Choice]) -> tuple[Edge, ...]:
    """Return the fields in which the best choice has the lowest or the highest number of the grid."""
    found = []
    for field, value in best.values:
        tried = {dict(choice.values)[field] for choice in grid}
        numbers = [one for one in tried if not isinstance(one, str)]
        if isinstance(value, str) or len(numbers) < max(2, len(tried)):
            continue
        if value in (min(numbers), max(numbers)):
            found.append(Edge(field, value, -1 if value == min(numbers) else 1))
    return tuple(found)


def shown_value(value: float | str) -> str:
    """Return a value as it is shown and typed."""
    return value if isinstance(value, str) else f"{value:.10g}"
