"""Make optimizers by name, torch's own except Muon, fused where the device has it; clip gradients.

A group of parameters may have another optimizer than the run's. So a run has several, and each parameter is in one.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from lmplay.errors import UserError
from lmplay.model.adapters import sparse_parameters
from lmplay.runs.settings import OPTIMIZERS, Settings
from lmplay.train.group_schedules import SCHEDULED, set_values, with_points
from lmplay.train.muon import MATCH_RMS, Muon
from lmplay.train.plain_steps import spare_dynamo, step_plainly
from lmplay.train.ranks import ALONE, Ranks

Group = dict[str, Any]  # "params", and perhaps what a group may have of its own, as torch.optim takes it
OF_A_GROUP = ("adamw", "muon")  # the optimizers that a group may name


def optimizers_of(model: torch.nn.Module, settings: Settings, ranks: Ranks = ALONE) -> list[torch.optim.Optimizer]:
    """Return the optimizers that a run's settings ask for. ranks: who share out Muon's matrices."""
    optimizers = make_optimizers(
        model,
        settings.optimizer,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        decay_all=settings.decay_all,
        muon_scale=settings.muon_scale,
        embedding_lr=settings.embedding_lr,
        head_lr=settings.head_lr,
    )
    for optimizer in optimizers:
        if isinstance(optimizer, Muon):
            optimizer.ranks = ranks
    return optimizers


def make_optimizers(
    model: torch.nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    decay_all: bool = False,
    *,
    muon_scale: str = MATCH_RMS,
    embedding_lr: float = 1.0,
    head_lr: float = 1.0,
) -> list[torch.optim.Optimizer]:
    """Return the optimizers that together train `model`. Schedules scale the `initial_lr` of each group.

    Groups are those of `parameter_groups`; with `decay_all` every parameter decays. `muon` (Keller Jordan, 2024; arXiv
    2502.16982) orthogonalizes the steps of the matrices inside the model; muon_scale says how they are scaled.
    Embeddings, head and vectors get AdamW. A module whose weight stacks several matrices says so with `row_blocks`.
    embedding_lr, head_lr: factors on the rates of all embeddings and of the head.

    Tables with row-sparse gradients (nn.Embedding with sparse=True) get an optimizer of their own. It changes only the
    rows of the batch and never decays: SparseAdam for the Adam family and muon, Adagrad for adagrad. sgd and rmsprop
    have no sparse form and use plain SGD without momentum.
    """
    spare_dynamo()
    groups = [_checked(group) for group in parameter_groups(model, lr, weight_decay)]
    if not groups:
        raise UserError("no parameter of the model is trainable: nothing would be trained (requires_grad is off)")
    if not any(group.get("lr", lr) > 0 for group in groups):
        raise UserError("param_groups gives every parameter a rate of 0: nothing would be trained")
    if decay_all:
        groups = [{**group, "weight_decay": weight_decay} for group in groups]
    factors = {id(p): head_lr for p in _head(model)} | dict.fromkeys(_embedding_weights(model), embedding_lr)
    groups = [group for whole in groups for group in _by_factor(whole, factors, lr)]
    tables = {id(p) for p in sparse_parameters(model)}
    sparse = [
        {"params": rows, **({"lr": g["lr"]} if "lr" in g else {})}
        for g in groups
        if (rows := [p for p in g["params"] if id(p) in tables])
    ]
    dense = [{**g, "params": rest} for g in groups if (rest := [p for p in g["params"] if id(p) not in tables])]
    optimizers: list[torch.optim.Optimizer] = []
    inner, dense = _split_inner(model, dense, by_default=name == "muon")
    if inner:
        inner = [with_points(group, muon=True) for group in inner]
        optimizers.append(_muon(inner, lr=lr, weight_decay=weight_decay, scale=muon_scale))
    apart = [g for g in dense if "optimizer" in g] if OPTIMIZERS[name].dense not in ("AdamW", "Muon") else []
    for kind, part in ((name, [g for g in dense if not any(g is one for one in apart)]), ("adamw", apart)):
        if part:
            optimizers.append(_dense(kind, part, lr=lr, betas=betas, eps=eps))
    if sparse:
        optimizers.append(_sparse(name, sparse, lr=lr, betas=betas, eps=eps))
    for optimizer in optimizers:
        step_plainly(optimizer)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def without_rate(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> str | None:
    """Return a line about the parameters that stay as they are since their rate is 0; None if there are none."""
    still = {id(p) for o in optimizers for g in o.param_groups if g["initial_lr"] == 0 for p in g["params"]}
    names = [name for name, p in model.named_parameters() if id(p) in still]
    if not names:
        return None
    more = f" and {len(names) - 1} more" if names[1:] else ""
    return f"param_groups gives {names[0]}{more} a rate of 0: not trained"


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float, progress: float = 0.0) -> None:
    """Set every group's learning rate to `factor` of its initial one, and what else changes over the steps.

    progress: where the schedule stands, from 0 to 1.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
    set_values(optimizers, progress)


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
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded gradients


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


def _checked(group: Group) -> Group:
    """Return a group. Raises UserError where what it has of its own can't be used."""
    named, betas, eps = group.get("optimizer"), group.get("betas", (0.0, 0.0)), group.get("eps", 1.0)
    for name in ("lr", "weight_decay"):
        value = group.get(name, 0.0)
        scheduled = name in SCHEDULED and isinstance(value, Sequence)  # its points are looked at by themselves
        if not (scheduled or (_is_number(value) and 0 <= value < math.inf)):
            raise UserError(f"param_groups: {name} must be a number of at least 0, not {value!r}")
    if named is not None and named not in OF_A_GROUP:
        raise UserError(f"param_groups: optimizer {named!r} is not one of {', '.join(OF_A_GROUP)}")
    in_range = isinstance(betas, Sequence) and all(_is_number(beta) and 0 <= beta < 1 for beta in betas)
    if not (in_range and len(betas) == 2):
        raise UserError(f"param_groups: betas are two numbers from 0 to below 1, not {betas!r}")
    if not (_is_number(eps) and eps > 0):
        raise UserError(f"param_groups: eps must be more than 0, not {eps!r}")
    return group


def _is_number(value: Any) -> bool:
    whole = isinstance(value, torch.Tensor) and value.numel() == 1
    return whole or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _embedding_weights(model: torch.nn.Module) -> set[int]:
    """Return the ids of the weights of all embeddings."""
    return {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}


def _head(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters of the model's head."""
    head = getattr(model, "head", None)
    return list(head.parameters()) if isinstance(head, torch.nn.Module) else []


def _by_factor(group: Group, factors: dict[int, float], lr: float) -> list[Group]:
    """Return a group as several, where its parameters have different factors on the rate. lr: the run's."""
    of = {id(p): factors.get(id(p), 1.0) for p in group["params"]}
    return [
        group | {"params": [p for p in group["params"] if of[id(p)] == factor]} | _rate(group, factor, lr)
        for factor in dict.fromkeys(of.values())
    ]


def _rate(group: Group, factor: float, lr: float) -> Group:
    return {} if factor == 1.0 else {"lr": group.get("lr", lr) * factor}


def _split_inner(model: torch.nn.Module, groups: list[Group], by_default: bool) -> tuple[list[Group], list[Group]]:
    """Split groups into matrices for Muon, and the rest: embeddings, head and vectors.

    by_default: whether Muon takes the matrices inside the model also of groups that name no optimizer.
    """
    outer, blocks = _embedding_weights(model) | {id(p) for p in _head(model)}, _row_blocks(model)
    parts: tuple[list[Group], list[Group]] = ([], [])
    for group in groups:
        taken = group.get("optimizer", "muon" if by_default else "") == "muon"
        for part, inner in zip(parts, (True, False), strict=True):
            chosen = [p for p in group["params"] if (taken and p.ndim == 2 and id(p) not in outer) == inner]
            for n in dict.fromkeys(blocks.get(id(p), 1) if inner else 1 for p in chosen):
                same = [p for p in chosen if not inner or blocks.get(id(p), 1) == n]
                part.append({**({"row_blocks": n} if n > 1 else {}), **group, "params": same})
    return parts


def _muon(groups: list[Group], *, lr: float, weight_decay: float, scale: str) -> Muon:
    """Return Muon for groups of matrices. Raises UserError where row_blocks does not fit a matrix."""
    try:
        return Muon(groups, lr=lr, weight_decay=weight_decay, scale=scale)
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
    groups = [with_points(group, muon=False) for group in groups]
    return getattr(torch.optim, kind)(groups, lr=lr, **options)


def _sparse(
    name: str, groups: list[Group], *, lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    torch.sparse.check_sparse_tensor_invariants.disable()  # the default, but said aloud, it warns no more
    kind = OPTIMIZERS[name].sparse
    return getattr(torch.optim, kind)(groups, lr=lr, **({"betas": betas, "eps": eps} if kind == "SparseAdam" else {}))
