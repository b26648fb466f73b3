"""Use the optional parts of any Model: extra outputs, derived tensors, the head, sparse tables, its device."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple


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
