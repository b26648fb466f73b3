"""Optimisers by name, all of torch's own, fused where the device has it."""

import math

import torch

from lmplay.errors import UserError
from lmplay.model.adapters import sparse_parameters


def make_optimizers(
    model: torch.nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    decay_all: bool = False,
) -> list[torch.optim.Optimizer]:
    """The optimisers that together train `model`; each group's `initial_lr` is what schedules scale.

    Groups are those of `parameter_groups`: weight decay on matrices and none on vectors and embeddings, except where the
    model's `param_groups(lr, weight_decay)` says otherwise; with `decay_all` every parameter decays. `muon` (Keller Jordan, 2024; arXiv 2502.16982) orthogonalises the updates
    of the matrices inside the model, scaled so that AdamW's learning rates fit; embeddings, head and vectors get AdamW.

    Tables with row-sparse gradients (nn.Embedding with sparse=True) get an optimiser of their own, which changes only the rows of
    the batch and never decays: SparseAdam for the Adam family and muon, Adagrad for adagrad, and plain SGD, without momentum,
    for sgd and rmsprop, which have no sparse form.
    """
    groups = parameter_groups(model, lr, weight_decay)
    if decay_all:
        groups = [{**group, "weight_decay": weight_decay} for group in groups]
    tables = {id(p) for p in sparse_parameters(model)}
    sparse = [
        {"params": rows, **({"lr": g["lr"]} if "lr" in g else {})}
        for g in groups
        if (rows := [p for p in g["params"] if id(p) in tables])
    ]
    groups = [{**g, "params": rest} for g in groups if (rest := [p for p in g["params"] if id(p) not in tables])]
    if not groups:
        optimizers = []
    elif name == "muon":
        optimizers = _muon(model, groups, lr, weight_decay, betas, eps)
    else:
        fused = {"fused": True} if _can_fuse(groups, name) else {}
        adam = {"betas": betas, "eps": eps, **fused}
        make, options = {
            "adamw": (torch.optim.AdamW, adam),
            "adam": (torch.optim.Adam, adam),
            "adagrad": (torch.optim.Adagrad, fused),
            "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, **fused}),
            "rmsprop": (torch.optim.RMSprop, {"alpha": betas[1]}),
        }[name]
        optimizers = [make(groups, lr=lr, **options)]
    if sparse:
        torch.sparse.check_sparse_tensor_invariants.disable()  # as it is by default, but without a warning
        adam = (torch.optim.SparseAdam, {"betas": betas, "eps": eps})
        make, options = {
            "adagrad": (torch.optim.Adagrad, {}),
            "sgd": (torch.optim.SGD, {}),
            "rmsprop": (torch.optim.SGD, {}),
        }.get(name, adam)
        optimizers.append(make(sparse, lr=lr, **options))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def parameter_groups(model: torch.nn.Module, lr: float, weight_decay: float) -> list[dict]:
    """Return the default groups and those of the model's `param_groups`; each trainable parameter is in exactly one.

    Default: weight decay on matrices, none on vectors and embeddings. The model's own groups may name the exceptions only.
    Raises UserError if one of theirs is in two groups or not trainable.
    """
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    hook = getattr(model, "param_groups", None)
    own = [dict(g, params=list(g["params"])) for g in hook(lr, weight_decay)] if hook is not None else []
    seen = [id(p) for g in own for p in g["params"]]
    if len(seen) != len(set(seen)) or not trainable.issuperset(seen):
        raise UserError("param_groups may name each trainable parameter once; some are in two groups or not trainable")
    rest = [p for p in model.parameters() if id(p) in trainable.difference(seen)]
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    decayed = [p for p in rest if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in rest if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}, *own]
    return [g for g in groups if g["params"]]


def clip_gradients(parameters: list[torch.Tensor], max_norm: float, max_value: float = math.inf) -> torch.Tensor:
    """Scales all gradients together down to `max_norm` where they are longer, then cuts each number down to `max_value`.

    Returns the norm that they had. Row-sparse gradients are summed up row by row first.
    """
    gradients = [p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse]
    for p in parameters:
        if p.grad is not None and p.grad.is_sparse:
            p.grad = p.grad.coalesce()
            gradients.append(p.grad.values())
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm < math.inf:
        factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
        for device in {g.device for g in gradients}:
            torch._foreach_mul_([g for g in gradients if g.device == device], factor.to(device))
    if max_value < math.inf:
        for gradient in gradients:
            gradient.clamp_(-max_value, max_value)
    return norm


def _can_fuse(groups: list[dict], name: str) -> bool:
    kinds = {p.device.type for g in groups for p in g["params"]}
    if name == "adagrad":
        return kinds == {"cpu"}
    return name in ("adamw", "adam", "sgd") and kinds <= {"cpu", "cuda", "mps"}


def _muon(model, groups, lr, weight_decay, betas, eps) -> list[torch.optim.Optimizer]:
    outer = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    head = getattr(model, "head", None)
    if isinstance(head, torch.nn.Module):
        outer |= {id(p) for p in head.parameters()}

    def is_inner(p):
        return p.ndim == 2 and id(p) not in outer

    inner = [{**g, "params": [p for p in g["params"] if is_inner(p)]} for g in groups]
    rest = [{**g, "params": [p for p in g["params"] if not is_inner(p)]} for g in groups]
    inner, rest = [g for g in inner if g["params"]], [g for g in rest if g["params"]]
    optimizers = []
    if inner:
        optimizers.append(torch.optim.Muon(inner, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    if rest:
        fused = {"fused": True} if _can_fuse(rest, "adamw") else {}
        optimizers.append(torch.optim.AdamW(rest, lr=lr, betas=betas, eps=eps, **fused))
    return optimizers
