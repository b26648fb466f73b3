"""A copy-paste playground for language-model experiments with plotting tools.

For notebooks and scripts: `list_runs`, `curves`, `load_run`, `plot_runs` and `run_comparison` (docs/python-api.md).
They are looked up in lmplay.api when they are first asked for, so that `import lmplay` loads nothing heavy.
"""

import importlib
from typing import Any

from lmplay.version import __version__

_API = ("curves", "list_runs", "load_run", "plot_runs", "run_comparison")
__all__ = ["__version__", *_API]


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("lmplay.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
