"""Read how an experiment is meant to be trained: its recipe, or one that the user names.

Defaults < recipe < config file < typed flags. A recipe is a literal in the experiment's folder. It says how a model
learns, never what it sees: runs of one comparison see the same text, whatever their recipes.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection
from typing import Any

from lmplay import registry
from lmplay.errors import UserError, did_you_mean
from lmplay.registry import Entry
from lmplay.runs.setting import flag_of, json_value
from lmplay.runs.settings import NO_RECIPE, OWN_RECIPE, TUNED_RECIPE, Settings

FIELDS = {f.name: f for f in dataclasses.fields(Settings)}
LEARNING = (  # the settings that a recipe may hold
    "optimizer",
    "lr",
    "lr_schedule",
    "warmup_steps",
    "warmup_from",
    "cooldown_fraction",
    "final_lr_fraction",
    "restart_steps",
    "restart_shrink",
    "weight_decay",
    "decay_all",
    "beta1",
    "beta2",
    "eps",
    "grad_clip",
    "clip_value",
    "muon_scale",
    "embedding_lr",
    "head_lr",
    "batch_size",
)


def recipe_of(entry: Entry, asked: str = OWN_RECIPE) -> dict[str, Any]:
    """Return the settings of the recipe by which an experiment is trained where `--recipe` is `asked`.

    `own`: its `recipe`, {} if it has none. `none`: {}. `tuned`: the nearest of its and its ancestors' `tuned_recipe` or
    `recipe`. Else that of the experiment of this name. Raises UserError where there is none or a key can't be used.
    """
    if asked == NO_RECIPE:
        return {}
    if asked == OWN_RECIPE:
        return _checked(entry, entry.recipe)
    holder = entry
    if asked != TUNED_RECIPE:
        holder = registry.find(asked)[0]
    while not (holder.tuned_recipe or holder.recipe):
        parent = _entry(holder.parent) if holder.parent else None
        if parent is None or asked != TUNED_RECIPE:
            raise UserError(f"--recipe {asked}: {holder.name} has no recipe; --recipe none takes the defaults")
        holder = parent
    return _checked(holder, holder.recipe or holder.tuned_recipe)


def base_of(settings: Settings) -> dict[str, Any]:
    """Return the settings of the recipe of --exp and --recipe; {} where there is no such experiment."""
    entry = _entry(settings.exp)
    return {} if entry is None else recipe_of(entry, settings.recipe)


def with_recipe(settings: Settings, recipe: dict[str, Any], given: Collection[str]) -> Settings:
    """Return the settings with those of a recipe that the user has not given."""
    return dataclasses.replace(settings, **{name: value for name, value in recipe.items() if name not in given})


def given_in(settings: Settings) -> frozenset[str]:
    """Return the names of the settings that are not at their defaults."""
    defaults = Settings()
    return frozenset(name for name in FIELDS if getattr(settings, name) != getattr(defaults, name))


def short_name(recipe: dict[str, Any]) -> str:
    """Return what stands for a recipe in the name of a run, `recipe-1a2b3c`; nothing for one that changes nothing."""
    defaults = Settings()
    changed = {name: value for name, value in recipe.items() if value != getattr(defaults, name)}
    if not changed:
        return ""
    return f"recipe-{hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:6]}"


def off_recipe(settings: Settings, recipe: dict[str, Any]) -> list[str]:
    """Return the names of the settings of learning in which a run is not as its recipe has it. Without one: none."""
    if not recipe:
        return []
    base = dataclasses.replace(Settings(), **recipe)
    return [name for name in LEARNING if name != "batch_size" and getattr(settings, name) != getattr(base, name)]


def in_words(settings: Settings, names: Collection[str] = LEARNING) -> str:
    """Return settings of learning in words: "optimizer muon, lr 0.045"."""
    return ", ".join(f"{name} {shown(getattr(settings, name))}" for name in LEARNING if name in names)


def shown(value: object) -> str:
    """Return a setting's value in words."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _entry(spec: str) -> Entry | None:
    """Return the entry of NAME[:VARIANT]; None where it can't be found or read, which is said elsewhere."""
    try:
        return registry.find(spec)[0]
    except UserError:
        return None


def _checked(entry: Entry, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the values of an experiment's recipe as settings have them. Raises UserError."""
    values = {}
    for name, value in recipe.items():
        if name not in LEARNING:
            what = f"no setting {name!r}.{did_you_mean(name, LEARNING)}"
            if name in FIELDS:
                what = f"{name} is none of how a model learns: leave it out, and type {flag_of(name)}"
            raise UserError(f"the recipe of {entry.name}: {what}")
        try:
            values[name] = json_value(FIELDS[name], value)
        except ValueError as error:
            raise UserError(f"the recipe of {entry.name}: {name} {error}") from None
    try:
        Settings(**values)
    except UserError as error:
        raise UserError(f"the recipe of {entry.name}: {error}") from None
    return values
