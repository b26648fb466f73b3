"""What an experiment folder must and may offer, and the adapters that let the harness use it.

A folder must have `model.py` with a dataclass `Config` and a `Model(config)` whose `forward(tokens)` maps (B, T) int64
to logits (B, T, V). Everything else is optional and found by name; `experiments/README.md` is the contract on a page.
"""

import dataclasses
import hashlib
import importlib
import inspect
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from lmplay.errors import UserError, did_you_mean
from lmplay.registry import Entry

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
        causal = getattr(self.module, "causal", True)
        return bool(causal(self.bound_config or self.Config()) if callable(causal) else causal)

    @property
    def can_write(self) -> bool:
        """Whether text can be written with it: it is causal, or says (`writes = True`) that with its cache it is."""
        return self.causal or getattr(self.module, "writes", False)

    @property
    def mask_token(self) -> int | None:
        """The id that stands for a hidden token in what the model reads, its logits there being those of the token itself: the folder's
        `mask_token(config)`. None: the model fills in nothing."""
        mask_token = getattr(self.module, "mask_token", None)
        return mask_token(self.bound_config) if mask_token else None

    @property
    def reversed(self) -> bool:
        """Whether the model reads text from its end, so that the generator turns prompt and output round."""
        return getattr(self.module, "reading_order", "forward") == "reversed"

    @property
    def ways(self) -> tuple[str, ...]:
        """Names of the ways in which each window is read, where there are several: make_batch returns a row for each."""
        return tuple(getattr(self.module, "ways", ()))

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

        own = getattr(self.module, "make_batch", None)
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


def split_output(output) -> tuple[Any, dict]:
    """(logits, extra) of what forward returned: extra is empty unless the experiment reports something."""
    return output if isinstance(output, tuple) else (output, {})


@contextmanager
def derived_once(model, precision=nullcontext) -> Iterator[None]:
    """Within the block the model has computed once what it derives from its parameters alone (`Model.derive`).

    `model.derived` holds leaves, cut off from the parameters. What backward passes within the block leave on them is summed and
    goes through derive's graph at the end of a block that ends well: by the chain rule the gradients are those of a model
    that derives anew in each forward pass. A tensor of less than float32 has its gradient summed in float32. `precision`
    makes the context to derive in. Without gradients, and for a model that derives nothing, there is nothing to send back.
    """
    import torch

    if not callable(getattr(model, "derive", None)) or getattr(model, "derived", None) is not None:
        yield
        return
    with precision():
        tensors = model.derive()
    trained = {name for name, tensor in tensors.items() if tensor.requires_grad and torch.is_grad_enabled()}
    leaves = {name: tensor.detach().requires_grad_(name in trained) for name, tensor in tensors.items()}
    sums: dict[str, Any] = {}

    def in_float32(name):
        def add(leaf):
            sums[name] = leaf.grad.float() if name not in sums else sums[name].add_(leaf.grad)
            leaf.grad = None

        return add

    for name, leaf in leaves.items():
        if name in trained and leaf.dtype.itemsize < 4:
            leaf.register_post_accumulate_grad_hook(in_float32(name))
    model.derived = leaves
    try:
        yield
    finally:
        model.derived = None
    sums |= {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    if sums:
        torch.autograd.backward([tensors[name] for name in sums], [sums[name].to(tensors[name].dtype) for name in sums])


class Head(NamedTuple):
    """A linear head's weight (V, D) and its bias (V,) or None."""

    weight: Any
    bias: Any


def fused_head(model):
    """What has the `weight` and the `bias` of the model's linear head, where the harness may fuse it with the cross-entropy; else None.

    That takes a `body`, a `head` that is a plain nn.Linear or `head_weights()`, and a forward that is F.linear(body(tokens), weight,
    bias) and no more: each model is followed through it once, since a copy whose forward does something to the logits has
    the body and the head that it was copied with, too.
    """
    import torch

    head, weights = getattr(model, "head", None), getattr(model, "head_weights", None)
    if type(head) is not torch.nn.Linear and not callable(weights) or not callable(getattr(model, "body", None)):
        return None
    if model not in _followed:
        _followed[model] = _is_head_of_body(model)
    if not _followed[model]:
        return None
    return Head(*model.head_weights()) if callable(weights) else head


_followed = weakref.WeakKeyDictionary()


def _is_head_of_body(model) -> bool:
    """Whether forward hands on the very tensors: what body returns to the product, what the product returns to its caller."""
    import torch
    from torch.overrides import TorchFunctionMode

    products = []

    class Products(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            output = func(*args, **(kwargs or {}))
            if func is torch.nn.functional.linear:
                given = dict(zip(("input", "weight", "bias"), args)) | (kwargs or {})
                products.append((given["input"], given["weight"], given.get("bias"), output))
            return output

    training, tokens = model.training, torch.zeros(1, 1, dtype=torch.int64, device=device_of(model))
    own = callable(getattr(model, "head_weights", None))
    try:
        with (
            torch.no_grad(),
            derived_once(model),
            _results(model, "body") as bodies,
            Products(),
            _results(model, "head_weights") if own else nullcontext() as weights,
        ):
            logits, extra = split_output(model.eval()(tokens))
            weight, bias = (weights or [model.head_weights()])[0] if own else (model.head.weight, model.head.bias)
    finally:
        model.train(training)
    if len(bodies) != 1:
        return False
    hidden, reported = split_output(bodies[0])
    heads = [product[1:] for product in products if product[0] is hidden]
    return (
        len(heads) == 1
        and heads[0][0] is weight
        and heads[0][1] is bias
        and heads[0][2] is logits
        and extra.keys() == reported.keys()
        and all(extra[name] is reported[name] for name in extra)
    )


@contextmanager
def _results(model, name: str) -> Iterator[list]:
    """What `model.name`, a method or a module, returns within the block."""
    import torch

    method, own, results = getattr(model, name), name in vars(model), []

    def followed(*arguments, **named):
        results.append(method(*arguments, **named))
        return results[-1]

    if isinstance(method, torch.nn.Module):
        hook = method.register_forward_hook(lambda _, inputs, output: results.append(output))
        try:
            yield results
        finally:
            hook.remove()
        return
    setattr(model, name, followed)
    try:
        yield results
    finally:
        if own:
            setattr(model, name, method)
        else:
            delattr(model, name)


def sparse_parameters(model) -> list:
    """The tables whose gradients are row-sparse (nn.Embedding with sparse=True). They may stay on the CPU whatever the device."""
    import torch

    kinds = (torch.nn.Embedding, torch.nn.EmbeddingBag)
    return list({id(m.weight): m.weight for m in model.modules() if isinstance(m, kinds) and m.sparse}.values())


def device_of(model):
    """The torch.device that the model computes on, and takes tokens on."""
    import torch

    aside = {id(p) for p in sparse_parameters(model)}
    parameters = list(model.parameters())
    return next(
        (p.device for p in parameters if id(p) not in aside),
        parameters[0].device if parameters else torch.device("cpu"),
    )


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
