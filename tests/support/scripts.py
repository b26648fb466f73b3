"""The scripts of benchmarks/ as modules."""

import importlib.util
from types import ModuleType

from support.small import ROOT


def script(name: str) -> ModuleType:
    """Return a script of benchmarks/ as a module, without running its command."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_families(families: ModuleType, candidate: str = "llama2:tiny", **settings) -> list[str]:
    """Judge two rows of benchmarks/families.py with runs of a moment; return the rows that have a verdict.

    settings: of all runs, and `on`, where they are trained.
    """
    on = settings.pop("on")
    small = {"amp": False, "set": ("n_layer=1", "n_embd=16", "n_head=2"), "context_len": 16, "batch_size": 4}
    small |= {
        "warmup_steps": 2,
        "validation_interval": 30,
        "validation_tokens": 200,
        "device": "cpu",
        "threads": 1,
        "compile": "off",
    }
    size = families.Size("gpt2ish:tiny", "gpt2ish:tiny_wide", {candidate: "another"}, {}, small | settings, seeds=2)
    return [row for row, _ in families.verdicts(size, size.rows, {}, on)]
