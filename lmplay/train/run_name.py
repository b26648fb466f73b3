"""Name a run after its settings, without loading its experiment or torch."""

import hashlib
from pathlib import Path

from lmplay.runs.names import CHECKPOINTS
from lmplay.runs.settings import LONGEST_RUN_NAME, Settings
from lmplay.train.recipes import base_of, short_name, with_recipe

LONGEST_NAME = 200
OLD = {"validation_interval": 50}  # what was the default when runs got their names


def run_name(settings: Settings, name: str, variant: str, plan: str) -> str:
    """Join the experiment, its variant, the plan, and whatever decides the result and differs from its default."""
    return file_name([f"{name}-{variant}", plan, *not_by_default(settings)])


def not_by_default(settings: Settings) -> list[str]:
    """Return the recipe, and the settings that decide the result and differ from it or from their defaults.

    In words for a file's name.
    """
    recipe = base_of(settings)
    parts = [part for part in (short_name(recipe), *settings.set) if part]
    if settings.context_len:
        parts.append(f"context-len={settings.context_len}")
    if settings.tokenizer:
        parts.append(Path(settings.tokenizer).name)
    if settings.initial_model:
        source = Path(settings.initial_model)
        of_run = f"{source.parent.parent.name}-" if source.parent.name == CHECKPOINTS else ""
        parts.append(f"from={of_run}{source.name}")
    defaults = with_recipe(Settings(), recipe, given=())
    parts += [
        _assigned(key, value)
        for key, value in settings.identity.items()
        if key not in ("exp", "amp", "initial_model", "data_order")
        and value not in (getattr(defaults, key), OLD.get(key))
    ]
    return [*parts, "amp"] if settings.amp else parts


def budgets(settings: Settings) -> list[str]:
    """Return the limits that are set, in words for a file's name."""
    return [
        f"{key.replace('_', '-')}={value:g}"
        for key in ("epochs", "max_tokens", "max_steps", "max_minutes", "extra_steps")
        if (value := getattr(settings, key))
    ]


def file_name(parts: list[str]) -> str:
    """Join the parts to one name that every disk takes, not too long."""
    name = "".join(c if c.isalnum() or c in "._=-+" else "-" for c in "_".join(parts))
    if len(name) <= LONGEST_NAME and len(name.encode()) <= LONGEST_RUN_NAME:
        return name
    start = name[: LONGEST_NAME - 9].encode()[: LONGEST_RUN_NAME - 9].decode(errors="ignore")
    return f"{start}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _assigned(key: str, value: object) -> str:
    return f"{key.replace('_', '-')}={f'{value:g}' if isinstance(value, float) else value}"
