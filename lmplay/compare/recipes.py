"""Let each arm of a comparison be trained by its own recipe, and say in what the arms then differ."""

from collections.abc import Collection
from typing import Any

from lmplay.errors import UserError
from lmplay.registry import Entry
from lmplay.runs.settings import OWN_RECIPE, TUNED_RECIPE, Settings
from lmplay.train.recipes import LEARNING, given_in, in_words, recipe_of, with_recipe


def arm_settings(settings: Settings, entry: Entry, given: Collection[str] | None) -> Settings:
    """Return the settings of all runs as an arm has them: by its recipe, except those that the user gave.

    given: their names; None: those that are not at their defaults. Raises UserError for a recipe with a batch size.
    """
    given = given_in(settings) if given is None else given
    recipe = recipe_of(entry, settings.recipe)
    if "batch_size" in recipe and "batch_size" not in given:
        raise UserError(
            f"the recipe of {entry.name} has a batch size, and the arms of a comparison see the same batches: give all "
            f"of them one, --batch-size {recipe['batch_size']}"
        )
    return with_recipe(settings, recipe, given)


def recipe_notes(arms: dict[str, tuple[Entry, Settings]]) -> list[str]:
    """Return what a comparison says of how its arms learn, the baseline first: in what they differ, who is untuned.

    arms: by label, each with its experiment and the settings of its runs.
    """
    (base, (_, of_base)), *others = arms.items()
    notes = []
    for label, (_, own) in others:
        if names := [name for name in LEARNING if getattr(own, name) != getattr(of_base, name)]:
            notes.append(f"recipes differ: {label} has {in_words(own, names)}; {base} has {in_words(of_base, names)}")
    asked = {own.recipe for _, own in arms.values()} == {OWN_RECIPE}
    untuned = [label for label, (entry, _) in arms.items() if asked and not entry.recipe and _tuned(entry)]
    if notes and untuned:
        notes.append(f"{', '.join(untuned)}: trained by the defaults; --recipe {TUNED_RECIPE} takes the tuned recipe")
    return notes


def _tuned(entry: Entry) -> dict[str, Any]:
    try:
        return recipe_of(entry, TUNED_RECIPE)
    except UserError:
        return {}
