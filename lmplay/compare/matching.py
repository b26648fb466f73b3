"""Say what keeps a run from being the one that a comparison asks for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lmplay import contract
from lmplay.data.plan_spec import ORDERS
from lmplay.errors import UserError
from lmplay.runs.run import Run
from lmplay.runs.setting import flag_of
from lmplay.runs.settings import Settings

# lmp_compare's defaults for these are not the trainer's, or not those of the trainer when the run was made.
LEFT_TO_US = ("same_init", "validation_interval", "data_order")


@dataclass(frozen=True)
class Difference:
    """One thing in which a run is not what was asked for: its name, and both values in words."""

    name: str
    text: str
    hint: str = ""

    def __str__(self) -> str:
        return self.text + (f" ({self.hint})" if self.hint else "")


@dataclass(frozen=True)
class Asked:
    """What all runs of a comparison must have: the key of the plan, the hash of the data, and their phases.

    any_interval: however often they validated. phases_of(seed, context length, data order): as run.json's progress has
    them.
    """

    plan_key: str
    data_hash: str
    any_interval: bool
    phases_of: Callable[[int, int, int], list[dict[str, Any]]]

    def differences(self, run: Run, settings: Settings) -> Iterator[Difference]:
        """Yield in what, except its code, a run is not what `settings` ask for; the plainest differences first."""
        if run.plan_key != self.plan_key:
            yield Difference("plan", "another plan")
        elif run.get("data", "hash") != self.data_hash:
            yield Difference("data", "other data")
        same_text = run.plan_key == self.plan_key and run.get("data", "hash") == self.data_hash
        have = run.settings
        decisive = settings.identity | {"max_minutes": settings.max_minutes, "context_len": settings.context_len}
        if not isinstance(have["validation_interval"], int):
            yield Difference("validation_interval", "its validation_interval is no number")
        elif self.any_interval:
            del decisive["validation_interval"]
        different = [name for name, value in decisive.items() if have[name] != value]
        for name in sorted(different, key=lambda name: name in LEFT_TO_US):
            text = f"{name} is {_shown(have[name])} instead of {_shown(decisive[name])}"
            yield Difference(name, text, hint=_hint(name, have[name]))
        if _fields(have["set"]) != _fields(list(settings.set)):
            own, asked = (" ".join(map(str, of)) or "nothing" for of in (have["set"] or [], settings.set))
            yield Difference("set", f"--set is {own} instead of {asked}")
        length = run.get("config", "max_len")
        if not isinstance(length, int):
            yield Difference("context_len", "it does not say how many tokens it reads at once")
        elif not same_text or have["data_order"] not in ORDERS:
            return
        elif run.get("progress", "phases") != self.phases_of(settings.seed, length, have["data_order"]):
            yield Difference("length", "it was to train for another number of steps")


def _hint(name: str, value: object) -> str:
    """Return the flag under which the run counts, for the settings in which the trainer's default is another."""
    if name == "same_init":
        return f"{'--same-init' if value else '--no-same-init'} uses it"
    return f"{flag_of(name)} {value} uses it" if name in LEFT_TO_US else ""


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


def _fields(assignments: Any) -> dict[str, float | str] | None:
    """Return {"n_layer": 2.0} for ["n_layer=2"], None for what is no list of assignments."""
    try:
        fields = contract.parse_fields(assignments)
    except (UserError, AttributeError, TypeError):
        return None
    return {name: _number(text) for name, text in fields.items()}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.lower()
