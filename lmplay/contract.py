"""What an experiment folder must and may offer, and the adapters that let the harness use it.

A folder must have `model.py` with a dataclass `Config` and a `Model(config)` whose `forward(tokens)` maps (B, T) int64
to logits (B, T, V). Everything else is optional and found by name; `experiments/README.md` is the contract on a page.
"""

import dataclasses
import hashlib
import importlib
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from lmplay.errors import UserError, did_you_mean
from lmplay.registry import EXTRAS, Entry

GIVEN_BY_HARNESS = ("vocab_size", "max_len")


NOT_SCORED = -100


class Reading(NamedTuple):
    """One way in which a window is read: its name ("" if it is the only one), the token it begins with, and the places in the window in
    the order in which they are predicted."""

    name: str
    beginning: int
    order: list[int]

    @property
    def forward(self) -> bool:
        return self.order == sorted(self.order)

    @property
    def reversed(self) -> bool:
        return len(self.order) > 1 and self.order == sorted(self.order, reverse=True)


@dataclass(frozen=True)
class Experiment:
    """One loaded experiment folder."""

    name: str
    folder: Path
    docstring: str
    parent: str | None
    variants: dict[str, dict]
    module: ModuleType
    bound_config: Any = None

    def hook(self, name: str, default: Any = None) -> Any:
        """Return what model.py, or else the folder's extras.py, has under this name; `default` if neither has it.

        extras.py is imported when a hook is asked for that model.py lacks, as a module of the same package.
        """
        if hasattr(self.module, name):
            return getattr(self.module, name)
        extras = f"{self.module.__package__}.{Path(EXTRAS).stem}"
        if extras not in sys.modules and not (self.folder / EXTRAS).is_file():
            return default
        return getattr(importlib.import_module(extras), name, default)

    def bound(self, config) -> "Experiment":
        """The experiment as it is run with this Config, which its make_batch and its `causal` may want to see."""
        return dataclasses.replace(self, bound_config=config)

    @property
    def Config(self) -> type:
        return self.module.Config

    @property
    def Model(self) -> type:
        return self.module.Model

    @property
    def causal(self) -> bool:
        """Whether no logit sees a later token: the folder's `causal`, a bool or a function of the Config; True without it."""
        causal = self.hook("causal", True)
        return bool(causal(self.bound_config or self.Config()) if callable(causal) else causal)

    @property
    def can_write(self) -> bool:
        """Whether text can be written with it: it is causal, or says (`writes = True`) that with its cache it is."""
        return self.causal or self.hook("writes", False)

    @property
    def mask_token(self) -> int | None:
        """The id that stands for a hidden token in what the model reads, its logits there being those of the token itself: the folder's
        `mask_token(config)`. None: the model fills in nothing."""
        mask_token = self.hook("mask_token")
        return mask_token(self.bound_config) if mask_token else None

    @property
    def reversed(self) -> bool:
        """Whether the model reads text from its end, so that the generator turns prompt and output round."""
        return self.hook("reading_order", "forward") == "reversed"

    @property
    def ways(self) -> tuple[str, ...]:
        """Names of the ways in which each window is read, where there are several: make_batch returns a row for each."""
        return tuple(self.hook("ways", ()))

    def readings(self, bos: int, length: int) -> list[Reading]:
        """How a window of `length` tokens is read, each way, as make_batch shows it. Of a causal experiment only."""
        import torch

        places = torch.arange(length)[None]
        inputs, _, order = self.make_batch(places, bos, 0, places)
        return [Reading(*row) for row in zip(self.ways or ("",), inputs[:, 0].tolist(), order.tolist())]

    def config(self, variant: str, vocab_size: int, max_len: int | None = None, **fields):
        """The variant's Config with `fields` changed. Without `max_len`, the variant's or the Config's own.

        Raises UserError for an unknown field and for values of the wrong type.
        """
        values = {**self.variants[variant], **fields, "vocab_size": vocab_size}
        if max_len is not None:
            values["max_len"] = max_len
        known = {f.name: f for f in dataclasses.fields(self.Config)}
        for name, value in values.items():
            if name not in known:
                raise UserError(f"{self.name} has no setting {name!r}.{did_you_mean(name, known)}")
            values[name] = _typed(self.name, known[name], value)
        try:
            return self.Config(**values)
        except ValueError as error:
            raise UserError(f"{self.name} can't have these settings: {error}") from error

    def build(self, config):
        """`Model(config)`; a ValueError that it raises about its settings becomes a UserError."""
        try:
            return self.Model(config)
        except ValueError as error:
            raise UserError(f"{self.name} can't be built with these settings: {error}") from error

    def make_batch(self, window, bos: int, seed: int, labels=None):
        """What is fed and what is predicted, of `window` (B, T) int64.

        Returns inputs (B, T), targets (B, T) and, for each target, its label. `labels` (B, T) says something of each token
        of the window (which document it is from, say), -100 if it is not scored; targets are -100 there. None: all are
        scored. The default batch predicts each token from those before it, the beginning token first, so that every token is
        scored once.

        An experiment's own make_batch moves or hides tokens as it likes. Where their labels went is seen by letting it do
        the same to the labels, with the same random numbers. One that reads a window in several ways returns so many rows for each,
        one after another. If it takes a fourth argument, that is the Config.
        """
        import torch

        own = self.hook("make_batch")
        if own is None:
            inputs = torch.cat([window.new_full((len(window), 1), bos), window[:, :-1]], dim=1)
            targets = window if labels is None else window.masked_fill(labels < 0, NOT_SCORED)
            return inputs, targets, labels
        config = (self.bound_config,) if len(inspect.signature(own).parameters) > 3 else ()
        inputs, targets = own(window, bos, torch.Generator().manual_seed(seed), *config)
        if labels is not None:
            labels = own(labels, bos, torch.Generator().manual_seed(seed), *config)[1]
            targets = targets.masked_fill(labels < 0, NOT_SCORED)
        return inputs, targets, labels


def load(entry: Entry) -> Experiment:
    """Imports one experiment folder, by path, as a package of its own, so that it can hold several files.

    What its own code raises is not caught: its traceback is what its author needs to see.
    """
    if entry.error:
        raise UserError(f"experiment {entry.name!r} can't be read: {entry.error}")
    folder = entry.folder.resolve()
    package = f"lmplay_experiment_{hashlib.blake2b(str(folder).encode(), digest_size=6).hexdigest()}"
    if f"{package}.model" not in sys.modules:
        holder = ModuleType(package)
        holder.__path__ = [str(folder)]
        sys.modules[package] = holder
        try:
            module = importlib.import_module(f"{package}.model")
        except BaseException:
            sys.modules.pop(package, None)
            raise
    module = sys.modules[f"{package}.model"]
    if not dataclasses.is_dataclass(module.Config):
        raise UserError(f"experiment {entry.name!r}: Config is not a dataclass ({folder / 'model.py'})")
    missing = [f for f in GIVEN_BY_HARNESS if f not in {x.name for x in dataclasses.fields(module.Config)}]
    if missing:
        raise UserError(f"experiment {entry.name!r}: Config has no field {missing[0]} ({folder / 'model.py'})")
    return Experiment(entry.name, folder, entry.docstring, entry.parent, entry.variants, module)


def config_values(config) -> dict:
    """The fields that a Config is made from."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init}


def parse_fields(assignments: list[str]) -> dict[str, str]:
    """{"n_layer": "8"} of ["n_layer=8"]; values are typed when the Config is made. Raises UserError."""
    fields = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise UserError(f"--set takes FIELD=VALUE, for example --set n_layer=8, not {assignment!r}")
        if name in GIVEN_BY_HARNESS:
            flag = "--tokenizer" if name == "vocab_size" else "--context-len"
            raise UserError(f"{name} is given by the harness: use {flag}")
        fields[name] = value
    return fields


def _typed(experiment: str, field: dataclasses.Field, value):
    """`value` as the type of the field's default; strings (from the command line) are read."""
    default = field.default
    kind = type(default)
    if default is dataclasses.MISSING or default is None:
        return _guess(value)
    if type(value) is kind and kind is not str:
        return value
    try:
        if kind is bool and str(value).lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
            return str(value).lower() in ("true", "yes", "on", "1")
        if kind is int and not isinstance(value, bool) and float(value) == int(float(value)):
            return int(float(value))
        if kind is float and not isinstance(value, bool):
            return float(value)
        if kind is str:
            return str(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise UserError(
        f"{experiment}: {field.name} takes {'an' if kind is int else 'a'} {kind.__name__} "
        f"(its default is {default!r}), not {value!r}"
    )


def _guess(value):
    """A string without a type to go by: None, a bool, a number, else itself."""
    if not isinstance(value, str):
        return value
    special = {"none": None, "true": True, "false": False}
    if value.lower() in special:
        return special[value.lower()]
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value
