"""What an experiment folder must and may offer, and the adapters that let the harness use it.

A folder must have `model.py` with a dataclass `Config` and a `Model(config)` whose `forward(tokens)` maps (B, T) int64
to logits (B, T, V). Everything else is optional and found by name; `experiments/README.md` is the contract on a page.
"""

import dataclasses
import hashlib
import importlib
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lmplay.errors import UserError, did_you_mean
from lmplay.registry import Entry

GIVEN_BY_HARNESS = ("vocab_size", "max_len")
NOT_SCORED = -100


@dataclass(frozen=True)
class Experiment:
    """One loaded experiment folder."""

    name: str
    folder: Path
    docstring: str
    parent: str | None
    variants: dict[str, dict]
    module: ModuleType

    @property
    def Config(self) -> type:
        return self.module.Config

    @property
    def Model(self) -> type:
        return self.module.Model

    @property
    def causal(self) -> bool:
        return getattr(self.module, "causal", True)

    @property
    def reversed(self) -> bool:
        """Whether the model reads text from its end, so that the generator turns prompt and output round."""
        return getattr(self.module, "reading_order", "forward") == "reversed"

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
        the same to the labels, with the same random numbers.
        """
        import torch
        own = getattr(self.module, "make_batch", None)
        if own is None:
            inputs = torch.cat([window.new_full((len(window), 1), bos), window[:, :-1]], dim=1)
            targets = window if labels is None else window.masked_fill(labels < 0, NOT_SCORED)
            return inputs, targets, labels
        inputs, targets = own(window, bos, torch.Generator().manual_seed(seed))
        if labels is not None:
            labels = own(labels, bos, torch.Generator().manual_seed(seed))[1]
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


def code_hash(entry: Entry) -> str:
    """A hash of the folder's Python files: equal hashes, equal behaviour."""
    digest = hashlib.blake2b(digest_size=16)
    for path in entry.code_files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(entry.folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def split_output(output) -> tuple[Any, dict]:
    """(logits, extra) of what forward returned: extra is empty unless the experiment reports something."""
    return output if isinstance(output, tuple) else (output, {})


def fused_head(model):
    """The model's plain linear head, where the harness may fuse it with the cross-entropy; else None.

    That takes a `body` and a forward that is head(body(tokens)) and no more: each model is followed through it once, since a
    copy whose forward does something to the logits has the body and the head that it was copied with, too.
    """
    import torch
    head = getattr(model, "head", None)
    if type(head) is not torch.nn.Linear or not callable(getattr(model, "body", None)):
        return None
    if model not in _followed:
        _followed[model] = _is_head_of_body(model, head)
    return head if _followed[model] else None


_followed = weakref.WeakKeyDictionary()


def _is_head_of_body(model, head) -> bool:
    """Whether forward hands on the very tensors: what body returns to the head, what the head returns to its caller."""
    import torch
    body, training, own = model.body, model.training, "body" in vars(model)
    through_body, through_head = [], []

    def followed(*arguments, **named):
        through_body.append(body(*arguments, **named))
        return through_body[-1]

    hooks = [head.register_forward_hook(lambda _, inputs, output: through_head.append((inputs[0], output)))]
    if isinstance(body, torch.nn.Module):
        hooks.append(body.register_forward_hook(lambda _, inputs, output: through_body.append(output)))
    else:
        model.body = followed
    try:
        with torch.no_grad():
            logits, extra = split_output(model.eval()(torch.zeros(1, 1, dtype=torch.int64, device=head.weight.device)))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
        if own:
            model.body = body
        elif not isinstance(body, torch.nn.Module):
            del model.body
    if len(through_body) != 1 or len(through_head) != 1:
        return False
    hidden, reported = split_output(through_body[0])
    return (through_head[0][0] is hidden and through_head[0][1] is logits
            and extra.keys() == reported.keys() and all(extra[name] is reported[name] for name in extra))


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
    raise UserError(f"{experiment}: {field.name} takes {'an' if kind is int else 'a'} {kind.__name__} "
                    f"(its default is {default!r}), not {value!r}")


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
