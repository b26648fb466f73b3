"""What a run will train on and be called, found out without loading its experiment or torch."""

import hashlib
from pathlib import Path

from lmplay.runs.names import CHECKPOINTS
from lmplay.runs.settings import Settings

LONGEST_NAME = 200


def run_name(settings: Settings, name: str, variant: str, plan: str) -> str:
    """The experiment, its variant, the plan, and whatever decides the result and is not as by default."""
    return file_name([f"{name}-{variant}", plan, *not_by_default(settings)])


def not_by_default(settings: Settings) -> list[str]:
    """The settings that decide the result and are not as by default, in words for a file's name."""
    parts = [*settings.set]
    if settings.context_len:
        parts.append(f"context-len={settings.context_len}")
    if settings.tokenizer:
        parts.append(Path(settings.tokenizer).name)
    if settings.initial_model:
        source = Path(settings.initial_model)
        of_run = f"{source.parent.parent.name}-" if source.parent.name == CHECKPOINTS else ""
        parts.append(f"from={of_run}{source.name}")
    for key, value in settings.identity.items():
        if key not in ("exp", "amp", "initial_model") and value != getattr(Settings(), key):
            parts.append(
                f"{key.replace('_', '-')}={value:g}" if isinstance(value, float) else f"{key.replace('_', '-')}={value}"
            )
    if settings.amp:
        parts.append("amp")
    return parts


def budgets(settings: Settings) -> list[str]:
    """The limits that were set, in words for a file's name."""
    return [
        f"{key.replace('_', '-')}={value:g}"
        for key in ("max_tokens", "max_steps", "max_minutes", "extra_steps")
        if (value := getattr(settings, key))
    ]


def file_name(parts: list[str]) -> str:
    """The parts as one name that every disk takes, not too long."""
    name = "".join(c if c.isalnum() or c in "._=-+" else "-" for c in "_".join(parts))
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
