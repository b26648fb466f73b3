"""Look inside a model while it reads a text: attention maps and the residual stream, of any experiment."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from lmplay.errors import UserError
from lmplay.generate.writing import choose_direction
from lmplay.model import adapters
from lmplay.runs.trained import TrainedRun

BOS = "<BOS>"


@dataclass(frozen=True)
class Inside:
    """What a model computed while it read a text of T tokens, the BOS token included. All are on the CPU.

    tokens: the text of each token, in the order in which they were read. logits (T, V), float32. attention: a tensor
    (heads, T, T) for each call of torch's scaled_dot_product_attention, in their order: row i is what token i looked
    at (a memory layer has its cells in place of the columns). residual (blocks + 1, T, n_embd): the stream before the
    first block and after each; None for a model without a ModuleList `blocks`.
    """

    tokens: list[str]
    logits: torch.Tensor
    attention: list[torch.Tensor]
    residual: torch.Tensor | None


def inputs_of(run: TrainedRun, text: str, direction: str | None = None) -> torch.Tensor:
    """Return what the model is fed to read `text`, (1, T) int64 on its device: the BOS token, then the text's tokens.

    The tokens are in the order in which the model reads; a masked model has no BOS token. Raises UserError for a text
    that is too long, and for an unknown direction.
    """
    return inputs_of_tokens(run, run.tokenizer.encode(text), direction)


def inputs_of_tokens(run: TrainedRun, ids: list[int], direction: str | None = None) -> torch.Tensor:
    """Return what the model is fed to read these tokens of a text, in the text's order, as inputs_of does."""
    if run.experiment.mask_token is None:
        chosen = choose_direction(run, direction)
        orders = {one.name: one.order for one in run.experiment.directions(run.tokenizer.eot, len(ids))} if ids else {}
        ids = [chosen.bos, *(ids[position] for position in orders.get(chosen.name, []))]
    if not 0 < len(ids) <= run.context_len:
        raise UserError(f"the text makes {len(ids):,} tokens, and the model reads 1 to {run.context_len:,}")
    return torch.tensor([ids], device=adapters.device_of(run.model))


def look_inside(run: TrainedRun, text: str, direction: str | None = None) -> Inside:
    """Let the model read `text` once and return what it computed. Raises UserError as inputs_of does."""
    return read_once(run, inputs_of(run, text, direction))


@torch.no_grad()
def read_once(run: TrainedRun, inputs: torch.Tensor) -> Inside:
    """Let the model read what inputs_of returns, (1, T), and return what it computed."""
    with adapters.derived_once(run.model), _AttentionMaps() as attention, _stream(run.model) as stream:
        logits, _ = adapters.split_output(run.model(inputs))
    first = 0 if run.experiment.mask_token is not None else 1
    tokens = [BOS] * first + [run.tokenizer.decode([token]) for token in inputs[0, first:].tolist()]
    residual = torch.stack(stream) if stream else None
    return Inside(tokens=tokens, logits=logits[0].float().cpu(), attention=attention.maps, residual=residual)


@contextmanager
def _stream(model: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the stream before the first of the model's `blocks` and after each, (T, n_embd) float32, while open."""
    seen: list[torch.Tensor] = []
    blocks = getattr(model, "blocks", None)
    blocks = list(blocks) if isinstance(blocks, torch.nn.ModuleList) else []

    def keep(value: Any) -> None:
        x = value[0] if isinstance(value, tuple) else value
        seen.append(x[0].float().cpu())

    hooks = [block.register_forward_hook(lambda _module, _inputs, output: keep(output)) for block in blocks]
    if blocks:
        hooks.append(blocks[0].register_forward_pre_hook(lambda _module, inputs: keep(inputs)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


class _AttentionMaps(TorchFunctionMode):
    """Collect the weights of each call of scaled_dot_product_attention, which itself returns none."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.maps.append(_weights(*args, **kwargs)[0].cpu())
        return func(*args, **kwargs)


def _weights(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Return the probabilities (B, heads, T, keys), float32, by the definition in torch's documentation."""
    if enable_gqa:
        key = key.repeat_interleave(query.size(-3) // key.size(-3), dim=-3)
    scores = query.float() @ key.float().mT * (1 / math.sqrt(query.size(-1)) if scale is None else scale)
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if masked else scores + attn_mask.float()
    return scores.softmax(-1)
