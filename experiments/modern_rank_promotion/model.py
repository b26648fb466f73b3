"""modern whose tokens attend to few vectors: newest, and summaries.

Idea. Keep what proved useful. A token reads sum(w) vectors however long the text is, and generation keeps no more: the
windows, a count and a sum.

Change. Instead of all tokens before, a position reads the newest w_l items on each of a few levels. Level 0 holds a key
and a value for each token. A network rates the window of an item's own position:

    u = ELU(MLP(window)) + 1                                     its utility
    promoted  if it is among the first w_l items of its sequence, or  u >= utility_cut * mean u of the items before it
    promoted vector, an item of level l+1 at the same position:  MLP'(window)

The scales 3,5 and 7,11 take turns over the layers. Queries and keys are normed as in modern. There are no rotary
positions: a learned vector for each slot of the windows says how new an item is. The utilities learn from an extra
loss, the mean squared error between u and the attention that the position gave the window (detached).

Claim. None for this baseline. Over a GPT-2 the best of its kind (see rank_promotion).

Source. jmward01/lmplay (rank_promotion_attn, rpa1_12).

Differs from the source. The decoder is modern: norms and no biases. Keys are a quarter of n_embd wide and networks have
n_embd hidden units, whatever the size. See rank_promotion for what its description leaves open.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

parent = "modern"

recipe = {  # rates measured with d2, 196 steps of 16 sequences; matrices by Muon, the rest by AdamW
    "optimizer": "muon",
    "muon_scale": "rows",
    "lr": 0.045,
    "embedding_lr": 6.7,  # 0.30
    "head_lr": 0.45,  # 0.02
    "beta1": 0.8,
    "beta2": 0.95,
    "eps": 1e-10,
    "lr_schedule": "wsd",
    "warmup_steps": 8,
    "cooldown_fraction": 0.6,
    "weight_decay": 0.1,
    "grad_clip": 0.0,
}


@dataclass
class Config:
    vocab_size: int = 50257
    max_len: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    mlp_ratio: float = 4.0  # width of the feed-forward layer, in n_embd
    soft_cap: float = 15.0  # logits stay between -soft_cap and soft_cap; 0: as they come
    # Below: parts that only some recipes have.
    residual_scalars: bool = False  # a layer reads a x + b x0: a, b learned, x0 the normalized embedding
    smear: bool = False  # a token's embedding gets a gated part of the embedding before it
    swiglu: bool = False  # silu(gate) up instead of squared ReLU, 2/3 as wide
    scales: str = "3,5/7,11"  # windows of the levels from 0; several, joined by /, take turns over the layers
    key_dim: int = 0  # width of the keys of all heads together; 0: a quarter of n_embd
    n_hidden: int = 0  # hidden units of the networks that rate and summarize windows; 0: n_embd
    utility_cut: float = 1.0  # how much of the mean utility so far is enough


variants = {
    "d2": dict(n_layer=2, n_head=2, n_embd=128, max_len=256),
    "d3": dict(n_layer=3, n_head=3, n_embd=192, max_len=256),
    "d4": dict(n_layer=4, n_head=4, n_embd=256, max_len=256),
    "d6": dict(n_layer=6, n_head=6, n_embd=384),
    "d8": dict(n_layer=8, n_head=8, n_embd=512),
    "d12": dict(),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = c = config
        self.tokens_embedding = nn.Embedding(c.vocab_size, c.n_embd)
        self.smear = Smear(c) if c.smear else None
        scales = read_scales(c.scales)
        self.blocks = nn.ModuleList(Block(c, scales[layer % len(scales)]) for layer in range(c.n_layer))
        self.head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        self.scalars = None
        if c.residual_scalars:  # nanochat's initial values, on a line over the depth
            self.scalars = nn.Parameter(
                torch.stack([torch.linspace(1.15, 1.05, c.n_layer), torch.linspace(0.2, 0.05, c.n_layer)])
            )
        self.initialise()

    def forward(self, tokens, cache=None):
        """tokens (B, T) int64 -> logits (B, T, vocab_size), {"loss", "promoted"}. With a cache, `tokens` are new ones.

        Raises ValueError beyond max_len.
        """
        hidden, extra = self.hidden(tokens, cache)
        logits, cap = self.head(hidden), self.config.soft_cap
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return (cap * torch.tanh(logits / cap) if cap else logits), extra

    def hidden(self, tokens, cache):
        """tokens (B, T) -> what the head reads, (B, T, n_embd), and the extra values. No `body`: the cap follows it."""
        c = self.config
        past = cache.length if cache else 0
        end = past + tokens.size(1)
        if end > c.max_len:
            raise ValueError(f"{end} tokens are more than the model's max_len of {c.max_len}")
        x = norm(self.tokens_embedding(tokens))
        if self.smear is not None:
            x = self.smear(x, cache)
        first, losses, shares = x, [], []
        for i, block in enumerate(self.blocks):
            if self.scalars is not None:
                x = self.scalars[0, i] * x + self.scalars[1, i] * first
            x, loss, share = block(x, cache.states[i] if cache else None)
            losses.append(loss)
            shares.append(share)
        if cache:
            cache.length = end
        return norm(x), {"loss": torch.stack(losses).mean(), "promoted": torch.stack(shares).mean()}

    @torch.no_grad()
    def initialise(self):
        nn.init.normal_(self.tokens_embedding.weight)  # it is normalized: its size is how slowly it turns
        nn.init.normal_(self.head.weight, std=0.001)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.head:
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for block in self.blocks:
            for part in (block.attention, block.feed_forward):
                part.start()

    def param_groups(self, lr, weight_decay):
        """Return the exceptions: gates learn by AdamW, and so do single numbers, slots and utilities, slowly."""
        gates = [m.gate.weight for m in self.modules() if isinstance(m, Smear)]
        numbers = [p for p in self.parameters() if p.ndim < 2 or p is self.scalars]
        for block in self.blocks:
            numbers += [*block.attention.starts, block.attention.slots]
            numbers += [p for promotion in block.attention.promotions for p in promotion.utility.parameters()]
        return [
            {"params": gates, "weight_decay": 0.0, "optimizer": "adamw"},
            {"params": numbers, "weight_decay": 0.0, "optimizer": "adamw", "lr": 0.2 * lr, "betas": (0.9, 0.95)},
        ]

    def new_cache(self, batch: int) -> "Cache":
        """Return what `batch` sequences leave behind: of a size that does not depend on their length."""
        return Cache([block.attention.new_states(batch) for block in self.blocks])


class Block(nn.Module):
    def __init__(self, config: Config, scales: list[int]):
        super().__init__()
        self.attention = Attention(config, scales)
        self.feed_forward = SwiGLU(config) if config.swiglu else SquaredReLU(config)

    def forward(self, x, states=None):
        y, loss, share = self.attention(norm(x), states)
        x = x + y
        return x + self.feed_forward(norm(x)), loss, share


class Attention(nn.Module):
    def __init__(self, config: Config, scales: list[int]):
        super().__init__()
        c = config
        self.n_head, self.scales, self.key_dim = c.n_head, scales, c.key_dim or c.n_embd // 4
        for name, width in (("n_embd", c.n_embd), ("key_dim", self.key_dim)):
            if width % c.n_head or not width:
                raise ValueError(f"{name} {width} is not a multiple of n_head {c.n_head}")
        width = self.key_dim + c.n_embd
        self.query, self.key = (nn.Linear(c.n_embd, self.key_dim, bias=False) for _ in range(2))
        self.value, self.out = (nn.Linear(c.n_embd, c.n_embd, bias=False) for _ in range(2))
        self.starts = nn.ParameterList(torch.rand(w - 1, width) for w in scales)
        self.slots = nn.Parameter(torch.zeros(sum(scales), width))
        self.promotions = nn.ModuleList(Promotion(w, width, c) for w in scales[:-1])

    def start(self):
        nn.init.zeros_(self.out.weight)

    def forward(self, x, states=None):
        """x (B, T, n_embd) -> the same, the extra loss () and the share of items that were promoted ()."""
        B, T, _ = x.shape
        states = self.new_states(B) if states is None else states
        q, items = self.query(x), torch.cat((self.key(x), self.value(x)), dim=-1)
        held = torch.ones(B, T, dtype=torch.bool, device=x.device)
        windows, rated = [], []
        for level, (size, state) in enumerate(zip(self.scales, states)):
            windows.append(newest(items, held, size, state.window))
            state.window = windows[-1][:, -1]
            if level < len(self.promotions):
                utilities, items, promoted = self.promotions[level](windows[-1], held, state)
                rated.append((utilities, held, promoted))
                held = promoted
        y, attention = self.attend(q, windows)
        losses, shares = [], []
        for (utilities, held, promoted), weights in zip(rated, attention.detach().split(self.scales, -1)):
            wanted = weights.mean((2, 3)).to(utilities.dtype)
            n_items = held.sum(1).clamp(min=1)
            losses.append((((utilities - wanted).square() * held).sum(1) / n_items).mean())
            shares.append((promoted.sum(1) / n_items).mean())
        return self.out(y), torch.stack(losses).mean(), torch.stack(shares).mean()

    def attend(self, q, windows):
        """q (B, T, key_dim), windows (B, T, w, key_dim + D) per level -> y (B, T, D), weights (B, T, H, sum of w)."""

        def heads(vectors):  # (..., key_dim + D) -> keys and values (..., H, width / H)
            parts = vectors[..., : self.key_dim], vectors[..., self.key_dim :]
            return [part.unflatten(-1, (self.n_head, -1)) for part in parts]

        q = 1.2 * norm(q.unflatten(-1, (self.n_head, -1)))  # 1.2, the keys too: sharper than norms of 1 allow
        keys, values = zip(*map(heads, windows))
        slot_keys, slot_values = heads(self.slots)
        scores = torch.cat([torch.einsum("bthk,btwhk->bthw", q, 1.2 * norm(k)) for k in keys], -1)
        scores = scores + torch.einsum("bthk,whk->bthw", q, slot_keys)
        weights = (scores / math.sqrt(q.size(-1))).softmax(-1)
        y = torch.einsum("bthw,whv->bthv", weights, slot_values)
        for part, v in zip(weights.split(self.scales, -1), values):
            y = y + torch.einsum("bthw,btwhv->bthv", part, v)
        return y.flatten(2), weights

    def new_states(self, batch: int) -> list["LevelState"]:
        return [LevelState(start, batch) for start in self.starts]


class SquaredReLU(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        width = hidden_width(config.mlp_ratio * config.n_embd, config)
        self.up = nn.Linear(config.n_embd, width, bias=False)
        self.down = nn.Linear(width, config.n_embd, bias=False)

    def start(self):
        self.up.weight.mul_(0.4)
        nn.init.zeros_(self.down.weight)

    def forward(self, x):
        return self.down(F.relu(self.up(x)).square())


class SwiGLU(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        width = hidden_width(config.mlp_ratio * config.n_embd * 2 / 3, config)
        self.gate, self.up = (nn.Linear(config.n_embd, width, bias=False) for _ in range(2))
        self.down = nn.Linear(width, config.n_embd, bias=False)

    def start(self):
        nn.init.zeros_(self.down.weight)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Smear(nn.Module):
    """x_t + s sigmoid(W x_t) x_(t-1) on embeddings (B, T, n_embd); W reads 24 channels, s starts at 0."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate = nn.Linear(min(24, config.n_embd), 1, bias=False)
        self.share = nn.Parameter(torch.zeros(()))

    def forward(self, x, cache=None):
        before = torch.zeros_like(x[:, :1]) if cache is None or cache.last is None else cache.last
        if cache is not None:
            cache.last = x[:, -1:]
        gate = self.share * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))
        return x + gate * torch.cat((before, x[:, :-1]), dim=1)


def norm(x):
    """x over the root of its mean square, over the last dimension."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


def hidden_width(width: float, config: Config) -> int:
    if not width >= 1:
        raise ValueError(f"mlp_ratio {config.mlp_ratio} leaves a feed-forward layer of no width")
    return int(width)


class Promotion(nn.Module):
    """Rate the windows of one level and summarize those that are promoted."""

    def __init__(self, window: int, width: int, config: Config):
        super().__init__()
        n_hidden = config.n_hidden or config.n_embd
        self.window, self.utility_cut = window, config.utility_cut
        self.utility = mlp(window * width, n_hidden, 1)
        self.distil = mlp(window * width, n_hidden, width)

    def rate(self, windows):
        """windows (n, w, width) -> utilities (n,), in the parameters' precision: their mean is near."""
        hidden, weight = self.utility[:2](windows.detach().flatten(1)), self.utility[2].weight[0]
        return F.elu((hidden.to(weight.dtype) * weight).sum(-1)) + 1

    def forward(self, windows, held, state):
        """Take one level's windows (B, T, w, width), and where an item was added to it, (B, T) bool.

        Return utilities (B, T), 0 where there is no item; what is promoted, (B, T, width), and where, (B, T) bool.
        """
        B, T = held.shape
        flat = windows.flatten(0, 1)
        at = self.rows(held)
        rates = self.rate(flat.index_select(0, at))
        utilities = rates.new_zeros(B * T).index_copy(0, at, rates).view(B, T) * held
        rated = utilities.detach()
        n_before = held.cumsum(1) - held.long() + state.n_items[:, None]
        sum_before = rated.cumsum(1) - rated + state.utility_sum[:, None]
        # at the mean within rounding is at the mean: a cached text and a whole one are to come to the same
        enough = rated >= self.utility_cut * (1 - 1e-5) * sum_before / n_before.clamp(min=1)
        promoted = held & (enough | (n_before < self.window))
        at = self.rows(promoted)
        vectors = self.distil(flat.index_select(0, at).flatten(1)).to(flat.dtype)
        summaries = vectors.new_zeros(B * T, flat.size(-1)).index_copy(0, at, vectors).view(B, T, -1)
        state.n_items, state.utility_sum = state.n_items + held.sum(1), state.utility_sum + rated.sum(1)
        return utilities, summaries, promoted

    def rows(self, held):
        """Return which of the B T positions hold an item, (n,): nothing is computed for the others.

        Where shapes may not depend on values all are taken, and what is computed for too many is never looked at."""
        if has_numbers(held):
            return held.flatten().nonzero().squeeze(1)
        return torch.arange(held.numel(), device=held.device)


class LevelState:
    """What a level passes on from one piece of text to the next.

    Its window (B, w, width), or at first the start buffer, one row shorter; the number of items (B,) and the sum of
    their utilities (B,)."""

    def __init__(self, start, batch: int):
        self.window = start.expand(batch, -1, -1)
        self.n_items = torch.zeros(batch, dtype=torch.int64, device=start.device)
        self.utility_sum = torch.zeros(batch, dtype=start.dtype, device=start.device)


def newest(items, held, size: int, past):
    """Return the newest `size` items at each position: (B, T, size, width), the oldest first.

    items (B, T, width), those positions that hold one (B, T) bool, and what came before them, `past` (B, p, width).
    """
    B, T, width = items.shape
    p = past.size(1)
    n_items = held.cumsum(1)  # up to and with each position
    # positions of the items in their order, (B, T): those without one are sent to a column that is cut off
    positions = torch.arange(T, device=items.device).expand(B, T)
    ordered = positions.new_zeros(B, T + 1).scatter(1, torch.where(held, n_items - 1, T), positions)[:, :T]
    number = n_items[..., None] - size + torch.arange(size, device=items.device)  # (B, T, size), negative: of the past
    found = ordered.gather(1, number.clamp(min=0).flatten(1)).view_as(number)
    row = torch.where(number < 0, p + number, p + found) + (p + T) * torch.arange(B, device=items.device)[:, None, None]
    return F.embedding(row, torch.cat([past.to(items.dtype), items], 1).flatten(0, 1))


def read_scales(text: str) -> list[list[int]]:
    """Return [[3, 5], [7, 11]] of "3,5/7,11"."""
    try:
        scales = [[int(size) for size in layer.split(",")] for layer in text.split("/")]
    except ValueError:
        scales = []
    if not scales or any(len(layer) < 2 or min(layer) < 2 for layer in scales):
        raise ValueError(
            f"scales {text!r} are not window sizes of two levels at least, each 2 at least, such as 3,5 or 3,5/7,11"
        )
    return scales


def mlp(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, n_hidden, bias=False), nn.GELU(), nn.Linear(n_hidden, n_out, bias=False))


def has_numbers(tensor) -> bool:
    """Return whether shapes may depend on the tensor's values: not while compiling, nor if it has a shape only."""
    return type(tensor) is torch.Tensor and not tensor.is_meta and not torch.compiler.is_compiling()


class Cache:
    """The state of each level of each layer after `length` tokens; the last embedding (B, 1, n_embd), for `smear`."""

    def __init__(self, states: list[list[LevelState]]):
        self.states, self.length, self.last = states, 0, None
