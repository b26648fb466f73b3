"""Choose which parameters of a test every run of the tests takes."""

from collections.abc import Iterable
from typing import Any

import pytest


def first(often: int, values: Iterable[Any]) -> list[Any]:
    """Return the values for `parametrize`; those after the first `often` are marked thorough. A tuple is one row."""
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=() if number < often else pytest.mark.thorough
        )
        for number, value in enumerate(values)
    ]
