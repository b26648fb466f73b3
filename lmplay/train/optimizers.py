"""Optimisers by name, all of torch's own, fused where the device has it."""

import torch

from lmplay.errors import UserError



def make_optimizers(model: torch.nn.Module, name: str, lr: float, weight_decay: float, betas: tuple[float, float],
                    eps: float, decay_all: bool = False) -> list[torch.optim.Optimizer]:
    """The optimisers that together train `model`; each group's `initial_lr` is what schedules scale.

    Groups are the model's own (`param_groups(lr, weight_decay)`), or weight decay on matrices and none on vectors and
    embeddings; with `decay_all` every parameter decays. `muon` (Keller Jordan, 2024; arXiv 2502.16982) orthogonalises the updates of the matrices inside the model,
    scaled so that AdamW's learning rates fit; embeddings, head and vectors get AdamW.
    """
    groups = parameter_groups(model, lr, weight_decay)
    if decay_all:
        groups = [{**group, "weight_decay": weight_decay} for group in groups]
    if name == "muon":
        optimizers = _muon(model, groups, lr, weight_decay, betas, eps)
    else:
        fused = {"fused": True} if _can_fuse(model, name) else {}
        adam = {"betas": betas, "eps": eps, **fused}
        make, options = {
            "adamw": (torch.optim.AdamW, adam),
            "adam": (torch.optim.Adam, adam),
            "adagrad": (torch.optim.Adagrad, fused),
            "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, **fused}),
            "rmsprop": (torch.optim.RMSprop, {"alpha": betas[1]}),
        }[name]
        optimizers = [make(groups, lr=lr, **options)]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def parameter_groups(model: torch.nn.Module, lr: float, weight_decay: float) -> list[dict]:
    """The model's own groups, or the default ones; each trainable parameter is in exactly one."""
    trainable = {id(p): n for n, p in model.named_parameters() if p.requires_grad}
    own = getattr(model, "param_groups", None)
    if own is not None:
        groups = [dict(g, params=list(g["params"])) for g in own(lr, weight_decay)]
        seen = [id(p) for g in groups for p in g["params"]]
        if sorted(seen) != sorted(trainable):
            missing = [name for key, name in trainable.items() if key not in seen]
            raise UserError("param_groups must hold every trainable parameter once; "
                            + (f"it leaves out {missing[0]}" if missing else "some are in two groups or not trainable"))
        return groups
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2 and id(p) not in embeddings]
    others = [p for p in model.parameters() if p.requires_grad and (p.ndim < 2 or id(p) in embeddings)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]


def _can_fuse(model: torch.nn.Module, name: str) -> bool:
    kinds = {p.device.type for p in model.parameters()}
    if name == "adagrad":
        return kinds == {"cpu"}
    return name in ("adamw", "adam", "sgd") and kinds <= {"cpu", "cuda", "mps"}


def _muon(model, groups, lr, weight_decay, betas, eps) -> list[torch.optim.Optimizer]:
    outer = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    head = getattr(model, "head", None)
    if isinstance(head, torch.nn.Linear):
        outer.add(id(head.weight))

    def is_inner(p):
        return p.ndim == 2 and id(p) not in outer

    inner = [{**g, "params": [p for p in g["params"] if is_inner(p)]} for g in groups]
    rest = [{**g, "params": [p for p in g["params"] if not is_inner(p)]} for g in groups]
    inner, rest = [g for g in inner if g["params"]], [g for g in rest if g["params"]]
    optimizers = []
    if inner:
        optimizers.append(torch.optim.Muon(inner, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    if rest:
        fused = {"fused": True} if _can_fuse(model, "adamw") else {}
        optimizers.append(torch.optim.AdamW(rest, lr=lr, betas=betas, eps=eps, **fused))
    return optimizers
