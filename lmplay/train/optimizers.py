"""Make optimizers by name, torch's own except Muon, fused where the device has it; clip gradients."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from lmplay.errors import UserError
from lmplay.model.adapters import sparse_parameters
from lmplay.runs.settings import OPTIMIZERS, Settings
from lmplay.train.muon import Muon

Group = dict[str, Any]  # "params", and perhaps "lr" and "weight_decay", as torch.optim takes it


def optimizers_of(model: torch.nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Return the optimizers that a run's settings ask for."""
    return make_optimizers(
        model,
        settings.optimizer,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        decay_all=settings.decay_all,
    )


def make_optimizers(
    model: torch.nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    decay_all: bool = False,
) -> list[torch.optim.Optimizer]:
    """Return the optimizers that together train `model`. Schedules scale the `initial_lr` of each group.

    Groups are those of `parameter_groups`; with `decay_all` every parameter decays. `muon` (Keller Jordan, 2024; arXiv
    2502.16982) orthogonalizes the steps of the matrices inside the model and scales them to fit AdamW's learning rates.
    Embeddings, head and vectors get AdamW. A module whose weight stacks several matrices says so with `row_blocks`.

    Tables with row-sparse gradients (nn.Embedding with sparse=True) get an optimizer of their own. It changes only the
    rows of the batch and never decays: SparseAdam for the Adam family and muon, Adagrad for adagrad. sgd and rmsprop
    have no sparse form and use plain SGD without momentum.
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
    dense = [{**g, "params": rest} for g in groups if (rest := [p for p in g["params"] if id(p) not in tables])]
    optimizers: list[torch.optim.Optimizer] = []
    if name == "muon":
        inner, dense = _split_inner(model, dense)
        if inner:
            optimizers.append(_muon(inner, lr=lr, weight_decay=weight_decay))
    if dense:
        optimizers.append(_dense(name, dense, lr=lr, betas=betas, eps=eps))
    if sparse:
        optimizers.append(_sparse(name, sparse, lr=lr, betas=betas, eps=eps))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to `factor` of its initial one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


def parameter_groups(model: torch.nn.Module, lr: float, weight_decay: float) -> list[Group]:
    """Return groups that hold each trainable parameter once: the default groups, then the model's own.

    `model.param_groups(lr, weight_decay)` needs to name the exceptions only. All others are in the default groups:
    weight decay on matrices, none on vectors and embeddings. Raises UserError where the model names a parameter twice,
    or one that is not trainable.
    """
    own = _own_groups(model, lr, weight_decay)
    named, embeddings = {id(p) for g in own for p in g["params"]}, _embedding_weights(model)
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in named]
    decayed = [p for p in rest if p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in rest if p.ndim < 2 or id(p) in embeddings]
    default = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [g for g in [*default, *own] if g["params"]]


def clip_gradients(parameters: Sequence[torch.Tensor], max_norm: float, max_value: float = math.inf) -> torch.Tensor:
    """Scale all gradients together to at most `max_norm`, then clip each number to `max_value`.

    Returns the norm before clipping. Row-sparse gradients are summed up row by row first.
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


def _own_groups(model: torch.nn.Module, lr: float, weight_decay: float) -> list[Group]:
    """Return the groups that the model names. Raises UserError where they can't be used."""
    own = getattr(model, "param_groups", None)
    groups = [] if own is None else [dict(g, params=list(g["params"])) for g in own(lr, weight_decay)]
    names, seen = {id(p): name for name, p in model.named_parameters()}, set()
    for p in (p for g in groups for p in g["params"]):
        name = names.get(id(p), "a tensor that is no parameter of the model")
        if id(p) in seen:
            raise UserError(f"param_groups names {name} twice: put it into one group")
        if id(p) not in names or not p.requires_grad:
            raise UserError(f"param_groups names {name}, which is not trainable: leave it out")
        seen.add(id(p))
    return groups


def _embedding_weights(model: torch.nn.Module) -> set[int]:
    """Return the ids of the weights of all embeddings."""
    return {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}


def _split_inner(model: torch.nn.Module, groups: list[Group]) -> tuple[list[Group], list[Group]]:
    """Split groups into matrices inside the model, and embeddings, head and vectors."""
    outer, head, blocks = _embedding_weights(model), getattr(model, "head", None), _row_blocks(model)
    if isinstance(head, torch.nn.Module):
        outer |= {id(p) for p in head.parameters()}
    parts: tuple[list[Group], list[Group]] = ([], [])
    for group in groups:
        for part, inner in zip(parts, (True, False), strict=True):
            chosen = [p for p in group["params"] if (p.ndim == 2 and id(p) not in outer) == inner]
            for n in dict.fromkeys(blocks.get(id(p), 1) if inner else 1 for p in chosen):
                same = [p for p in chosen if not inner or blocks.get(id(p), 1) == n]
                part.append({**({"row_blocks": n} if n > 1 else {}), **group, "params": same})
    return parts


def _muon(groups: list[Group], *, lr: float, weight_decay: float) -> Muon:
    """Return Muon for groups of matrices. Raises UserError where row_blocks does not fit a matrix."""
    try:
        return Muon(groups, lr=lr, weight_decay=weight_decay)
    except ValueError as error:
        raise UserError(f"{error}: mend the model's row_blocks") from error


def _row_blocks(model: torch.nn.Module) -> dict[int, int]:
    """Return the `row_blocks` of modules that name it, by the ids of their weights."""
    modules: list[Any] = [m for m in model.modules() if hasattr(m, "row_blocks") and hasattr(m, "weight")]
    return {id(m.weight): int(m.row_blocks) for m in modules}


def _dense(
    name: str, groups: list[Group], *, lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    kind = OPTIMIZERS[name].dense
    kind = "AdamW" if kind == "Muon" else kind  # what Muon does not take
    options: Group = {
        "SGD": {"momentum": 0.9, "nesterov": True},
        "RMSprop": {"alpha": betas[1]},
        "Adagrad": {},
    }.get(kind, {"betas": betas, "eps": eps})
    devices = {p.device.type for g in groups for p in g["params"]}
    if devices <= {"Adagrad": {"cpu"}, "RMSprop": set()}.get(kind, {"cpu", "cuda", "mps"}):
        options["fused"] = True
    return getattr(torch.optim, kind)(groups, lr=lr, **options)


def _sparse(
    name: str, groups: list[Group], *, lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    torch.sparse.check_sparse_tensor_invariants.disable()  # the default, but said aloud, it warns no more
    kind = OPTIMIZERS[name].sparse
    return getattr(torch.optim, kind)(groups, lr=lr, **({"betas": betas, "eps": eps} if kind == "SparseAdam" else {}))
