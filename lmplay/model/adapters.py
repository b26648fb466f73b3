"""Use the optional parts of any Model: extra outputs, derived tensors, the head, sparse tables, its device."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from lmplay.model.shortcuts import DERIVED, followed, not_taken, shadow
from lmplay.random_numbers import apart_from_global_numbers

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


def split_output(output: Any) -> tuple[Any, dict]:
    """Return (logits, extra) of what forward returned: extra is empty unless the experiment reports something."""
    return output if isinstance(output, tuple) else (output, {})


def offered(model: "nn.Module", name: str) -> Callable | None:
    """Return the method that the model offers under this name, or None."""
    method = getattr(model, name, None)
    return method if callable(method) else None


@contextmanager
def derived_once(model: "nn.Module", precision: Callable[[], AbstractContextManager] = nullcontext) -> Iterator[None]:
    """Compute once for the block what the model derives from its parameters alone (`Model.derive`).

    `model.derived` holds leaves, cut off from the parameters. Backward passes in the block leave gradients on them.
    If the block ends well, the sums of these go through derive's graph. By the chain rule the gradients are those of a
    model that derives anew in each forward pass. A tensor of less than float32 has its gradient summed in float32.
    `precision` makes the context to derive in. Without gradients there is nothing to send back. A model that derives
    nothing is left as it is.
    """
    import torch

    derive = offered(model, "derive")
    if derive is None or getattr(model, "derived", None) is not None or DERIVED in not_taken(model):
        yield
        return
    with precision():
        tensors: dict[str, Tensor] = derive()
    trained = {name for name, tensor in tensors.items() if tensor.requires_grad and torch.is_grad_enabled()}
    leaves = {name: tensor.detach().requires_grad_(name in trained) for name, tensor in tensors.items()}
    sums: dict[str, Tensor] = {}

    def in_float32(name: str) -> "Callable[[Tensor], None]":
        def add(leaf: "Tensor") -> None:
            assert leaf.grad is not None
            sums[name] = leaf.grad.float() if name not in sums else sums[name].add_(leaf.grad)
            leaf.grad = None

        return add

    for name, leaf in leaves.items():
        if name in trained and leaf.dtype.itemsize < 4:
            leaf.register_post_accumulate_grad_hook(in_float32(name))
    holder: Any = model
    holder.derived = leaves
    try:
        yield
    finally:
        holder.derived = None
    sums |= {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    if sums:
        torch.autograd.backward([tensors[name] for name in sums], [sums[name].to(tensors[name].dtype) for name in sums])


class Head(NamedTuple):
    """A linear head's weight (V, D) and its bias (V,) or None."""

    weight: "Tensor"
    bias: "Tensor | None"


def fused_head(model: "nn.Module") -> "Head | nn.Linear | None":
    """Return the linear head (weight, bias) if it can be fused with the cross-entropy, else None."""
    weights = offered(model, "head_weights")
    own: Any = getattr(model, "head", None)
    return (Head(*weights()) if weights else own) if head_is_last(model) else None


def head_is_last(model: "nn.Module") -> bool:
    """Tell whether forward, in the model's present mode, is F.linear(body(tokens), weight, bias) and no more.

    The model needs a `body`, and a `head` that is a plain nn.Linear or `head_weights()`. Asked once per model and mode
    by following forward with one token and with two: a copied experiment may change the logits in `forward` yet still
    have its parent's `body` and `head`. What forward does at other times, `left_out` sees.
    """
    import torch

    own, weights = getattr(model, "head", None), offered(model, "head_weights")
    head = own if type(own) is torch.nn.Linear else None
    if (head is None and weights is None) or offered(model, "body") is None:
        return False
    if weights is None and head is not None and (head._backward_hooks or head._backward_pre_hooks):
        return False
    if model not in followed:
        followed[model] = _modes_of_head(model)
    return model.training in followed[model] and model._compiled_call_impl is None


def _modes_of_head(model: "nn.Module") -> set[bool]:
    """Return the modes (training or not) in which the head is last, followed on a copy."""
    import torch

    copied, found, device = shadow(model), set(), device_of(model)
    training = copied.training
    plain = torch.inference_mode(mode=False)  # which counts changes in place
    with plain, torch.no_grad(), apart_from_global_numbers(device), derived_once(copied):
        for mode in (False, True):
            copied.train(mode)
            if all(_is_head_of_body(copied, torch.zeros(1, n, dtype=torch.int64, device=device)) for n in (1, 2)):
                found.add(mode)
    copied.train(training)
    return found


def _is_head_of_body(model: Any, tokens: "Tensor") -> bool:
    """Whether forward hands on the very tensors: body's to the product, the product's to its caller."""
    import torch
    from torch.overrides import TorchFunctionMode

    products = []

    class Products(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            output = func(*args, **(kwargs or {}))
            if func is torch.nn.functional.linear:
                given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
                products.append((given["input"], given["weight"], given.get("bias"), output, output._version))
            return output

    own = offered(model, "head_weights") is not None
    own_weights: AbstractContextManager[list] = _results(model, "head_weights") if own else nullcontext([])
    with _results(model, "body") as bodies, Products(), own_weights as weights:
        logits, extra = split_output(model(tokens))
        weight, bias = (weights or [model.head_weights()])[0] if own else (model.head.weight, model.head.bias)
    if len(bodies) != 1:
        return False
    hidden, reported = split_output(bodies[0])
    heads = [product[1:] for product in products if product[0] is hidden]
    return (
        len(heads) == 1
        and heads[0][0] is weight
        and heads[0][1] is bias
        and heads[0][2] is logits
        and heads[0][3] == logits._version  # not changed in place
        and extra.keys() == reported.keys()
        and all(extra[name] is reported[name] for name in extra)
    )


@contextmanager
def _results(model: "nn.Module", name: str) -> Iterator[list]:
    """Collect what `model.name`, a method or a module, returns within the block."""
    import torch

    method, own = getattr(model, name), name in vars(model)
    results: list = []

    def traced(*arguments: Any, **named: Any) -> Any:
        results.append(method(*arguments, **named))
        return results[-1]

    if isinstance(method, torch.nn.Module):
        hook = method.register_forward_hook(lambda _, inputs, output: results.append(output))
        try:
            yield results
        finally:
            hook.remove()
        return
    setattr(model, name, traced)
    try:
        yield results
    finally:
        if own:
            setattr(model, name, method)
        else:
            delattr(model, name)


def sparse_parameters(model: "nn.Module") -> "list[Tensor]":
    """Return the tables whose gradients are row-sparse (nn.Embedding with sparse=True).

    They may stay on the CPU whatever the device.
    """
    import torch

    kinds = (torch.nn.Embedding, torch.nn.EmbeddingBag)
    return list({id(m.weight): m.weight for m in model.modules() if isinstance(m, kinds) and m.sparse}.values())


def device_of(model: "nn.Module") -> "torch.device":
    """Return the device that the model computes on, and takes tokens on."""
    import torch

    aside = {id(p) for p in sparse_parameters(model)}
    parameters = list(model.parameters())
    return next(
        (p.device for p in parameters if id(p) not in aside),
        parameters[0].device if parameters else torch.device("cpu"),
    )
