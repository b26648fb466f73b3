"""gpt2ish with Kolmogorov-Arnold feed-forward layers: functions, not weights.

Idea. Each edge between an input and an output learns a function of one variable instead of a weight.

Change. Between n inputs and m outputs there are n m functions phi, each a smooth base and cubic B-splines on a grid of
G intervals over a range. Outputs are sums of them. Both linear layers of the feed-forward and the GELU between become

    y_j = sum_i phi_ij(x_i),   phi_ij(x) = w_ij silu(x) + sum_k c_ijk B_k((x - center_i) / exp(s_i)),   k = 1 .. G + 3

where the B_k are splines on [-1, 1] and w, c are learned. The range of each input is learned by its center and its
half-width exp(s). It begins as [-2, 2]; `fixed_range` leaves it there. Knots reach three intervals beyond; farther out
only the base is left. The basis is dense, (B, T, n, G + 4) with the base, and one product does the rest. Initial
values: N(0, 0.02) for w and c, scaled down where they write to the residual stream.

Claim. Fewer parameters for smooth functions, at slower training than an MLP. An edge has G + 4 numbers. So n_hidden is
4/9 n_embd where gpt2ish has 4 n_embd, for the same parameters within 1%: 120,771,697 against 120,560,209 (6l).

Source. Liu et al. 2024, "KAN: Kolmogorov-Arnold Networks" (arXiv 2404.19756).

Differs from the source. A learned range replaces KAN's way of refitting the grid to the data.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

parent = "gpt2ish"


@dataclass
class Config:
    vocab_size: int = 50257
    max_len: int = 1024
    n_layer: int = 6
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0  # most runs see each token once: there is nothing to overfit, and dropout only slows learning
    head_bias: bool = True
    n_hidden: int = 344  # width between the two layers of functions
    grid: int = 5  # intervals
    learned_range: bool = True


variants = {
    "6l": dict(),
    "12l": dict(n_layer=12),
    "fixed_range": dict(learned_range=False),
    "grid10": dict(grid=10, n_hidden=220),
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, n_hidden=114, max_len=256),
    "tiny_fixed_range": dict(n_layer=4, n_head=4, n_embd=256, n_hidden=114, max_len=256, learned_range=False),
    "tiny_grid3": dict(n_layer=4, n_head=4, n_embd=256, grid=3, n_hidden=146, max_len=256),
    "tiny_grid10": dict(n_layer=4, n_head=4, n_embd=256, grid=10, n_hidden=73, max_len=256),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions_embedding = nn.Embedding(config.max_len, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        self.initialise()

    def body(self, tokens, cache=None):
        """tokens (B, T) int64 -> what the head reads, (B, T, n_embd). Raises ValueError beyond max_len."""
        past = cache[0].length if cache else 0
        end = past + tokens.size(1)
        if end > self.config.max_len:
            raise ValueError(f"{end} tokens are more than the model's max_len of {self.config.max_len}")
        x = self.dropout(self.tokens_embedding(tokens) + self.positions_embedding.weight[past:end])
        for i, block in enumerate(self.blocks):
            x = block(x, cache[i] if cache else None)
        return self.norm(x)

    def forward(self, tokens, cache=None):
        """tokens (B, T) int64 -> logits (B, T, vocab_size). With a cache, `tokens` are the new ones only."""
        return self.head(self.body(tokens, cache))

    def initialise(self):
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # 2 n_layer branches add up on the residual stream: keep its variance whatever the depth
        for block in self.blocks:
            for projection in (block.attention.out, block.feed_forward.down.weigh):
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def new_cache(self, batch: int) -> list["KeyValues"]:
        """Return an empty cache for `batch` sequences of up to max_len tokens: one KeyValues per layer."""
        c, weight = self.config, self.head.weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        shape = (batch, c.n_head, c.max_len, c.n_embd // c.n_head)
        return [
            KeyValues(*(torch.empty(shape, dtype=dtype, device=weight.device) for _ in range(2)))
            for _ in range(c.n_layer)
        ]


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config)

    def forward(self, x, cache=None):
        x = x + self.attention(self.attention_norm(x), cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd {config.n_embd} is not a multiple of n_head {config.n_head}")
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.out = nn.Linear(config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None):
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, D // self.n_head).permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.append(k, v)
        mask = None
        if past and T > 1:  # is_causal puts the first query beside the first key, which is right only without a past
            mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=past == 0)
        return self.dropout(self.out(y.transpose(1, 2).reshape(B, T, D)))


class FeedForward(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.up = Functions(config.n_embd, config.n_hidden, config)
        self.down = Functions(config.n_hidden, config.n_embd, config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.down(self.up(x)))


class Basis(torch.autograd.Function):
    """silu(x) and the cubic B-splines of `place`, x in intervals from the range's lower end.

    Both (..., n) -> (..., n, n_spline + 1). On a uniform grid all splines are one bump,
    (max(0, 2 - d)^3 - 4 max(0, 1 - d)^3) / 6 at d intervals from its middle. Written by hand to keep only x and `place`
    for the backward pass: what is between them and the basis is n_spline times as large.
    """

    @staticmethod
    def distances(place, n_spline):
        return place[..., None] - torch.arange(-1, n_spline - 1, device=place.device, dtype=place.dtype)

    @staticmethod
    def forward(ctx, x, place, n_spline: int):
        ctx.save_for_backward(x, place)
        ctx.n_spline = n_spline
        basis = torch.empty(*x.shape, n_spline + 1, dtype=x.dtype, device=x.device)
        basis[..., 0] = F.silu(x)
        d = Basis.distances(place, n_spline).abs_()
        wide, narrow = (2 - d).clamp_(min=0), (1 - d).clamp_(min=0)
        basis[..., 1:] = (wide.pow_(3) - narrow.pow_(3).mul_(4)).div_(6)
        return basis

    @staticmethod
    def backward(ctx, gradient):
        x, place = ctx.saved_tensors
        d = Basis.distances(place, ctx.n_spline)
        wide, narrow = (2 - d.abs()).clamp_(min=0), (1 - d.abs()).clamp_(min=0)
        slopes = (narrow.square_().mul_(4) - wide.square_()).mul_(d.sign_()).div_(2)
        s = x.sigmoid()
        return gradient[..., 0] * s * (1 + x * (1 - s)), (gradient[..., 1:] * slopes).sum(-1).to(place.dtype), None


class Functions(nn.Module):
    """A layer of learned functions, (..., n_in) -> (..., n_out): one on each edge."""

    def __init__(self, n_in: int, n_out: int, config: Config):
        super().__init__()
        self.grid = config.grid
        # for each input its base and grid + 3 splines
        self.weigh = nn.Linear(n_in * (config.grid + 4), n_out, bias=False)
        for name, value in (("centre", 0.0), ("log_half_width", math.log(2))):
            if config.learned_range:
                self.register_parameter(name, nn.Parameter(torch.full((n_in,), value)))
            else:
                self.register_buffer(name, torch.full((n_in,), value))

    def forward(self, x):
        place = ((x - self.centre) * torch.exp(-self.log_half_width) + 1) * (self.grid / 2)
        return self.weigh(Basis.apply(x, place, self.grid + 3).flatten(-2))


# Optional below: delete what you don't need, and `new_cache` above with it.


class KeyValues:
    """Keys and values (B, H, max_len, D/H) of one layer, filled up to `length`."""

    def __init__(self, keys, values):
        self.keys, self.values, self.length = keys, values, 0

    def append(self, keys, values):
        """Store those of the new tokens in place; return those of all tokens so far, (B, H, length, D/H)."""
        start, self.length = self.length, self.length + keys.size(2)
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]
