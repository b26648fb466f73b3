"""Use the optional parts of any Model: extra outputs, derived tensors, the head, sparse tables, its device."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

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
    if derive is None or getattr(model, "derived", None) is not None:
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
    """Return the linear head (weight, bias) if it can be fused with the cross-entropy, else None.

    The model needs a `body`, and a `head` that is a plain nn.Linear or `head_weights()`. Its forward must be
    F.linear(body(tokens), weight, bias) and no more. Checked once per model by tracing a forward pass: a copied
    experiment may change the logits in `forward` yet still have its parent's `body` and `head`.
    """
    import torch

    own, weights = getattr(model, "head", None), offered(model, "head_weights")
    head = own if type(own) is torch.nn.Linear else None
    if (head is None and weights is None) or offered(model, "body") is None:
        return None
    if model not in _traced:
        _traced[model] = _is_head_of_body(model)
    if not _traced[model]:
        return None
    return Head(*weights()) if weights else head


_traced: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


def _is_head_of_body(model: Any) -> bool:
    """Whether forward hands on the very tensors: body's to the product, the product's to its caller."""
    import torch
    from torch.overrides import TorchFunctionMode

    products = []

    class Products(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            output = func(*args, **(kwargs or {}))
            if func is torch.nn.functional.linear:
                given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
                products.append((given["input"], given["weight"], given.get("bias"), output))
            return output

    training, tokens = model.training, torch.zeros(1, 1, dtype=torch.int64, device=device_of(model))
    own = offered(model, "head_weights") is not None
    own_weights: AbstractContextManager[list] = _results(model, "head_weights") if own else nullcontext([])
    try:
        with (
            torch.no_grad(),
            derived_once(model),
            _results(model, "body") as bodies,
            Products(),
            own_weights as weights,
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


def storage_id(tensor: "Tensor") -> int:
    """Return what tells a tensor's memory from that of others, as long as it is alive: views share it."""
    return tensor.untyped_storage()._cdata  # private to torch; tried on 2.13
