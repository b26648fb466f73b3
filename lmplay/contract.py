"""Load an experiment folder and use it: its Config, its Model, its batches and the order in which it reads tokens.

A folder must have `model.py` with a dataclass `Config` and a `Model(config)` whose `forward(tokens)` maps (B, T) int64
to logits (B, T, V). Everything else is optional and found by name; `experiments/README.md` is the contract on a page.
"""

import dataclasses
import hashlib
import importlib
import inspect
import os
import sys
import threading
import traceback
from dataclasses import dataclass
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from lmplay.config_fields import typed
from lmplay.crashes import PACKAGE
from lmplay.errors import UserError, did_you_mean
from lmplay.random_numbers import apart_from_global_numbers, seed_everything
from lmplay.registry import EXTRAS, Entry, use_of_harness
from lmplay.surroundings import files_noted

if TYPE_CHECKING:
    from torch import Tensor, nn

GIVEN_BY_HARNESS = ("vocab_size", "max_len")
_loading = threading.RLock()  # another thread must not see a module that is half imported
NOT_SCORED = -100  # the target and the label of a token that is not scored


@dataclass(frozen=True)
class Direction:
    """A token order in which a window is read.

    name: "" if it is the only one. bos: the id of the token that is fed first. order: the positions in the window, in
    the order in which they are predicted.
    """

    name: str
    bos: int
    order: list[int]

    @property
    def forward(self) -> bool:
        """Whether it reads in the text's order."""
        return self.order == sorted(self.order)

    @property
    def reversed(self) -> bool:
        """Whether it reads from the text's end."""
        return len(self.order) > 1 and self.order == sorted(self.order, reverse=True)

    @property
    def goes_on(self) -> bool:
        """Whether it can go on from a prompt: one with an order of its own reads whole windows."""
        return self.forward or self.reversed


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

    def bound(self, config: Any) -> "Experiment":
        """Return the experiment with the Config that it is run with, for its make_batch and its `causal` to see."""
        return dataclasses.replace(self, bound_config=config)

    @property
    def package(self) -> str:
        """The name under which the folder was imported."""
        return self.module.__package__ or self.module.__name__

    @property
    def Config(self) -> type:
        """The folder's Config."""
        return self.module.Config

    @property
    def Model(self) -> "type[nn.Module]":
        """The folder's Model."""
        return self.module.Model

    @property
    def causal(self) -> bool:
        """Whether no logit sees a later token: the folder's `causal`, a bool or a function of the Config."""
        causal = self.hook("causal", True)
        return bool(causal(self.bound_config or self.Config()) if callable(causal) else causal)

    @property
    def can_write(self) -> bool:
        """Whether it can generate text: it is causal, or says (`writes = True`) that with its cache it is."""
        return self.causal or self.hook("writes", False)

    @property
    def mask_token(self) -> int | None:
        """The id of a hidden token in the input, from the folder's `mask_token(config)`. None: it fills in no tokens.

        The logits at such a position are those of the hidden token itself.
        """
        mask_token = self.hook("mask_token")
        return mask_token(self.bound_config) if mask_token else None

    @property
    def reversed(self) -> bool:
        """Whether the model reads text from its end: the generator then reverses prompt and output."""
        return self.hook("reading_order", "forward") == "reversed"

    @property
    def direction_names(self) -> tuple[str, ...]:
        """Names of the directions, the folder's `ways`, if it has several: make_batch returns a row for each."""
        return tuple(self.hook("ways", ()))

    def directions(self, bos: int, length: int) -> list[Direction]:
        """Return the directions in which make_batch feeds a window of `length` tokens, if the experiment is causal."""
        import torch

        positions = torch.arange(length)[None]
        inputs, _, order = self.make_batch(positions, bos, 0, positions)
        assert order is not None
        rows = zip(self.direction_names or ("",), inputs[:, 0].tolist(), order.tolist(), strict=True)
        return [Direction(name=name, bos=first, order=order) for name, first, order in rows]

    def config(self, variant: str, vocab_size: int, max_len: int | None = None, **fields: Any) -> Any:
        """Return the variant's Config with `fields` changed. Without `max_len` it is the variant's or the Config's own.

        Raises UserError for an unknown field and for values of the wrong type.
        """
        values = {**self.variants[variant], **fields, "vocab_size": vocab_size}
        if max_len is not None:
            values["max_len"] = max_len
        known = {f.name: f for f in dataclasses.fields(self.Config)}
        for name, value in values.items():
            if name not in known:
                raise UserError(f"{self.name} has no setting {name!r}.{did_you_mean(name, known)}")
            given = tuple(value) if isinstance(value, list) and isinstance(known[name].default, tuple) else value
            values[name] = typed(self.name, known[name], given)
        try:
            return self.Config(**values)
        except ValueError as error:
            raise UserError(f"{self.name} can't have these settings: {error}") from error

    def build(self, config: Any) -> "nn.Module":
        """Return `Model(config)`. Raises UserError for a ValueError that it raises about its settings."""
        try:
            return self.Model(config)
        except ValueError as error:
            raise UserError(f"{self.name} can't be built with these settings: {error}") from error

    def make_batch(
        self, window: "Tensor", bos: int, seed: int, labels: "Tensor | None" = None
    ) -> "tuple[Tensor, Tensor, Tensor | None]":
        """Return the inputs (B, T) and the targets (B, T) of `window` (B, T) int64, and the label of each target.

        `labels` (B, T) says something of each token of the window, for example its document. It is -100 for a token
        that is not scored, and so is the target. None: all are scored. By default each token is predicted from those
        before it, and the BOS token comes first: every token is scored once.

        An experiment's own make_batch moves or hides tokens as it likes. The harness lets it do the same to the labels,
        with the same random numbers, and so sees where they went. An experiment with several directions returns a row
        for each, one after another. If its make_batch takes a fourth argument, that is the Config.
        """
        import torch

        own = self.hook("make_batch")
        if own is None:
            inputs = torch.cat([window.new_full((len(window), 1), bos), window[:, :-1]], dim=1)
            targets = window if labels is None else window.masked_fill(labels < 0, NOT_SCORED)
            return inputs, targets, labels
        config = (self.bound_config,) if len(inspect.signature(own).parameters) > 3 else ()
        with apart_from_global_numbers():
            seed_everything(seed)  # for one that draws elsewhere than from `generator`
            inputs, targets = own(window, bos, torch.Generator().manual_seed(seed), *config)
            if labels is not None:
                seed_everything(seed)
                labels = own(labels, bos, torch.Generator().manual_seed(seed), *config)[1]
                targets = targets.masked_fill(labels < 0, NOT_SCORED)
        return inputs, targets, labels


class _SourceLoader(SourceFileLoader):
    """Loads Python files from their source, whatever bytecode lies beside them."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the compiled source."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _find_source_only(folder: Path) -> None:
    """Let imports from `folder` and below find Python source, no bytecode and no libraries."""
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sys.path_importer_cache[str(path)] = FileFinder(str(path), (_SourceLoader, SOURCE_SUFFIXES))


def load(entry: Entry, source_only: bool = False) -> Experiment:
    """Import one experiment folder, by path, as a package of its own, so that it can hold several files.

    source_only: nothing but Python source is executed, which is what a run's code was trusted by (runs/trust.py).
    Raises UserError if it can't be read, imports what is not there, or its Config lacks a field. Other errors of its
    own code are not caught: the commands say them in one line and keep their traceback.
    """
    if entry.error:
        raise UserError(f"experiment {entry.name!r} can't be read: {entry.error}")
    if where := use_of_harness(entry):
        raise UserError(
            f"experiment {entry.name!r} uses lmplay ({where}): an experiment imports the standard library, torch and "
            "files of its own folder; the harness finds what it offers by name"
        )
    folder = entry.folder.resolve()
    package = f"{PACKAGE}{hashlib.blake2b(os.fsencode(folder), digest_size=6).hexdigest()}"
    with _loading:
        if f"{package}.model" not in sys.modules:
            holder = ModuleType(package)
            holder.__path__ = [str(folder)]
            if source_only:
                _find_source_only(folder)
            sys.modules[package] = holder
            import torch  # noqa: F401  its random numbers are seeded too

            try:
                with (
                    files_noted(),
                    apart_from_global_numbers(),
                ):  # what is drawn as the file is read is drawn alike in each process
                    seed_everything(0)
                    importlib.import_module(f"{package}.model")
            except BaseException as error:
                sys.modules.pop(package, None)
                if isinstance(error, ImportError) and (where := _line_in(folder, error)):
                    raise UserError(f"{where}: {error}: install it, or import something else") from error
                raise
    module = sys.modules[f"{package}.model"]
    if not dataclasses.is_dataclass(module.Config):
        raise UserError(f"experiment {entry.name!r}: Config is not a dataclass ({folder / 'model.py'})")
    missing = [f for f in GIVEN_BY_HARNESS if f not in {x.name for x in dataclasses.fields(module.Config)}]
    if missing:
        raise UserError(f"experiment {entry.name!r}: Config has no field {missing[0]} ({folder / 'model.py'})")
    return Experiment(
        name=entry.name,
        folder=folder,
        docstring=entry.docstring,
        parent=entry.parent,
        variants=entry.variants,
        module=module,
    )


def _line_in(folder: Path, error: BaseException) -> str | None:
    """Return FILE:LINE of the last line of a folder's files that an error has come through, None if there is none."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(folder)
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def config_values(config: Any) -> dict[str, Any]:
    """Return the fields that a Config is made from, as run.json holds them."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.init}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def parse_fields(assignments: list[str]) -> dict[str, str]:
    """Return {"n_layer": "8"} for ["n_layer=8"]; values are typed when the Config is made. Raises UserError."""
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
