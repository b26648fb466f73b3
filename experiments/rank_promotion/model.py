"""gpt2ish whose tokens attend to few vectors: the newest, and past summaries.

Idea. Keep what proved useful. A token reads sum(w) vectors however long the text is, and generation keeps no more: the
windows, a count and a sum.

Change. A block keeps its past on levels. Level 0 holds one vector, key and value, per token. A position sees the newest
w_l items of level l, its window. Before there are that many, a learned start buffer fills it. On each level except the
last, the window of an item's own position decides whether the item is promoted:

    u = ELU(MLP(window)) + 1                                     its utility
    promoted  if it is among the first w_l items of its sequence, or  u >= utility_cut * mean u of the items before it
    promoted vector, an item of level l+1 at the same position:  sum over the window of  softmax(MLP'(window)) * vectors

MLP' gives each of n_distil_head parts of the vector weights of its own. In n_distil_group groups it sees its group's
part only. With `direct` the promoted vector is MLP'(window) itself.
Each token asks one query (n_head heads, keys key_dim wide) of its windows on all levels at once. A learned position
table is added to their slots.
Promotion is a decision and has no gradient. The utilities learn from an extra loss: the mean squared error between u
and the attention that the position really gave the window, its mean over heads and slots (detached). `promoted` in
train.csv is the share of items that were promoted.

Claim. "Now the best", of rpa1_11: scales 3,5 and 7,11 alternate, with direct promotion and unified embeddings. There
are no figures and no inference.

Source. jmward01/lmplay (rank_promotion_attn, rpa1_0 to rpa1_13, since removed).

Differs from the source. It worked on unpadded batches, and probably took off other sequences' utilities wrongly. Here
each sequence stands alone. It added the extra loss to the summed loss of a batch's tokens, beside which it is nothing.
Here the extra loss is a mean over the items of a level, the levels, blocks and sequences, whatever the batch's size. It
is added to the mean loss per token. It reaches the utility networks alone, whose input is detached, so it needs no
weight.
Its description leaves some things open. Here a window ends with the position's own item, on every level. The running
mean is of the items before, of the same level and sequence. An item at the mean within rounding is promoted (in a
repeated text all utilities are equal). MLPs are Linear, GELU, Linear with n_hidden units. Keys are as wide as n_embd
unless key_dim says otherwise. The settings of rpa1_4 (narrow keys, four distil heads in two groups) stay from there on,
absolute positions as listed. Scales take turns over the layers. The "layer projection" of rpa1_9 is the attention's
output, made an MLP.
Start buffers are U(0, 1), position tables 0, MLPs have torch's initial values, all else gpt2ish's.
"""

import math
from dataclasses import dataclass, replace

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
    mlp_ratio: float = 4.0  # width of the feed-forward layer, in n_embd
    dropout: float = 0.0  # most runs see each token once: there is nothing to overfit, and dropout only slows learning
    embedding_dropout: float | None = None  # on the embeddings; none: dropout
    head_bias: bool = True
    scales: str = (
        "3,3,3,3,3,3,3,3,3,3"  # windows of the levels from 0; several, joined by /, take turns over the layers
    )
    key_dim: int = 0  # width of the keys of all heads together; 0: n_embd
    n_hidden: int = 192  # hidden units of the networks that rate and summarize windows
    direct: bool = False  # the network writes the promoted vector itself
    n_distil_head: int = 1  # parts of a vector that are summarized with weights of their own
    n_distil_group: int = 1  # groups of such parts with a network of their own
    utility_cut: float = 1.0  # how much of the mean utility so far is enough
    positions: bool = True  # absolute positions as in gpt2ish
    out_mlp: bool = False  # an MLP makes the attention's output
    embedding_multiple: int = 0  # unified embeddings: width of the table behind them in n_embd; 0: a plain embedding
    embedding_hidden: int = 1  # and between their two layers


variants = {
    "6l": dict(),  # rpa1_0
    "keys_240": dict(key_dim=240),  # rpa1_1
    "keys_240_12_distil_heads": dict(key_dim=240, n_distil_head=12, n_distil_group=3),  # rpa1_2
    "keys_384": dict(key_dim=384),  # rpa1_3
    "keys_36": dict(key_dim=36, n_distil_head=4, n_distil_group=2),  # rpa1_4
    "no_positions": dict(key_dim=36, n_distil_head=4, n_distil_group=2, positions=False),  # rpa1_5
    # rpa1_6
    "scales_by_layer": dict(
        key_dim=36, n_distil_head=4, n_distil_group=2, positions=False, scales="3,3/3,3,3/3,3,3/3,3,3,3,3/5,3,3/5,3"
    ),
    # rpa1_7
    "fewer_scales": dict(key_dim=36, n_distil_head=4, n_distil_group=2, positions=False, scales="5,5,3/5,3/5,3"),
    # rpa1_8
    "scales_by_layer_embedding": dict(
        key_dim=36,
        n_distil_head=4,
        n_distil_group=2,
        positions=False,
        scales="3,3/3,3,3/3,3,3/3,3,3,3,3/5,3,3/5,3",
        embedding_multiple=3,
        embedding_hidden=3,
    ),
    # rpa1_9
    "scales_by_layer_embedding_out_mlp": dict(
        key_dim=36,
        n_distil_head=4,
        n_distil_group=2,
        positions=False,
        scales="3,3/3,3,3/3,3,3/3,3,3,3,3/5,3,3/5,3",
        embedding_multiple=3,
        embedding_hidden=3,
        out_mlp=True,
    ),
    "direct": dict(key_dim=36, direct=True, n_hidden=768, positions=False, scales="3,3/3,5,5"),  # rpa1_10
    # rpa1_11
    "alternating_embedding": dict(
        key_dim=36, direct=True, n_hidden=768, scales="3,5/7,11", embedding_multiple=4, embedding_hidden=16
    ),
    "alternating": dict(key_dim=36, direct=True, n_hidden=768, scales="3,5/7,11"),  # rpa1_12
    # rpa1_13
    "three_levels_embedding": dict(
        key_dim=36,
        direct=True,
        n_hidden=768,
        scales="3,5,7/5,7,11",
        utility_cut=0.5,
        embedding_multiple=4,
        embedding_hidden=16,
    ),
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, n_hidden=64, scales="3,3,3,3,3,3"),
    "tiny_direct": dict(
        n_layer=4, n_head=4, n_embd=256, max_len=256, n_hidden=256, key_dim=64, direct=True, scales="3,3/3,5,5"
    ),
    "tiny_alternating": dict(
        n_layer=4, n_head=4, n_embd=256, max_len=256, n_hidden=256, key_dim=64, direct=True, scales="3,5/7,11"
    ),
    "tiny_alternating_embedding": dict(
        n_layer=4,
        n_head=4,
        n_embd=256,
        max_len=256,
        n_hidden=256,
        key_dim=64,
        direct=True,
        scales="3,5/7,11",
        embedding_multiple=4,
        embedding_hidden=4,
    ),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        scales = read_scales(config.scales)
        self.tokens_embedding = (
            UnifiedEmbedding(config) if config.embedding_multiple else nn.Embedding(config.vocab_size, config.n_embd)
        )
        self.positions_embedding = nn.Embedding(config.max_len, config.n_embd) if config.positions else None
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config, scales[i % len(scales)]) for i in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        self.initialise()

    def body(self, tokens, cache=None):
        """tokens (B, T) -> what the head reads, (B, T, n_embd), {"loss", "promoted"}; ValueError beyond max_len."""
        past = cache.length if cache else 0
        end = past + tokens.size(1)
        if end > self.config.max_len:
            raise ValueError(f"{end} tokens are more than the model's max_len of {self.config.max_len}")
        x = self.tokens_embedding(tokens)
        if self.positions_embedding is not None:
            x = x + self.positions_embedding.weight[past:end]
        x, losses, shares = self.dropout(x), [], []
        for i, block in enumerate(self.blocks):
            x, loss, promoted = block(x, cache.states[i] if cache else None)
            losses.append(loss)
            shares.append(promoted)
        if cache:
            cache.length = end
        return self.norm(x), {"loss": torch.stack(losses).mean(), "promoted": torch.stack(shares).mean()}

    def forward(self, tokens, cache=None):
        """tokens (B, T) -> logits (B, T, vocab_size), and what body reports. With a cache, `tokens` are new ones."""
        hidden, extra = self.body(tokens, cache)
        return self.head(hidden), extra

    @torch.no_grad()
    def fold(self) -> "Model":
        """Return the same function with a plain token embedding. Raises ValueError for a model that has one."""
        if not self.config.embedding_multiple:
            raise ValueError("its token embedding is plain already")
        folded = Model(replace(self.config, embedding_multiple=0)).to(self.head.weight)
        rest = {name: p for name, p in self.state_dict().items() if not name.startswith("tokens_embedding.")}
        rows = self.tokens_embedding.table.weight.split(8192)
        table = torch.cat([self.tokens_embedding.network(part) for part in rows])
        folded.load_state_dict(rest | {"tokens_embedding.weight": table})
        return folded.train(self.training)

    def initialise(self):
        own = {
            part
            for module in self.modules()
            if isinstance(module, (UnifiedEmbedding, Promotion))
            for part in module.modules()
        }
        for module in self.modules():
            if module in own:  # these keep torch's initial values
                continue
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # 2 n_layer branches add up on the residual stream: keep its variance whatever the depth
        for block in self.blocks:
            out = block.attention.out
            for projection in (out[-1] if self.config.out_mlp else out, block.feed_forward.down):
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def new_cache(self, batch: int) -> "Cache":
        """Return what `batch` sequences leave behind: of a size that does not depend on their length."""
        return Cache([block.attention.new_states(batch) for block in self.blocks])


class Block(nn.Module):
    def __init__(self, config: Config, scales: list[int]):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config, scales)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config)

    def forward(self, x, states=None):
        y, loss, promoted = self.attention(self.attention_norm(x), states)
        x = x + y
        return x + self.feed_forward(self.feed_forward_norm(x)), loss, promoted


class Attention(nn.Module):
    def __init__(self, config: Config, scales: list[int]):
        super().__init__()
        self.n_head, self.scales, self.key_dim = config.n_head, scales, config.key_dim or config.n_embd
        for name, width in (("n_embd", config.n_embd), ("key_dim", self.key_dim)):
            if width % config.n_head:
                raise ValueError(f"{name} {width} is not a multiple of n_head {config.n_head}")
        width = self.key_dim + config.n_embd
        self.qkv = nn.Linear(config.n_embd, self.key_dim + width)
        self.starts = nn.ParameterList(torch.rand(w - 1, width) for w in scales)
        self.slots = nn.Parameter(torch.zeros(sum(scales), width))
        self.promotions = nn.ModuleList(Promotion(w, config) for w in scales[:-1])
        D = config.n_embd
        self.out = mlp(D, D, D) if config.out_mlp else nn.Linear(D, D)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, states=None):
        """x (B, T, D) -> the same, the extra loss () and the share of items that were promoted ()."""
        B, T, D = x.shape
        states = self.new_states(B) if states is None else states
        q, items = self.qkv(x).split((self.key_dim, self.key_dim + D), -1)
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
        return self.dropout(self.out(y)), torch.stack(losses).mean(), torch.stack(shares).mean()

    def attend(self, q, windows):
        """q (B, T, key_dim), windows (B, T, w, key_dim + D) per level -> y (B, T, D), weights (B, T, H, sum of w)."""

        def heads(vectors):  # (..., key_dim + D) -> keys and values (..., H, width / H)
            return [
                vectors[..., part].unflatten(-1, (self.n_head, -1))
                for part in (slice(self.key_dim), slice(self.key_dim, None))
            ]

        q = q.unflatten(-1, (self.n_head, -1))
        keys, values = zip(*map(heads, windows))
        slot_keys, slot_values = heads(self.slots)
        scores = torch.cat([torch.einsum("bthk,btwhk->bthw", q, k) for k in keys], -1)
        scores = scores + torch.einsum("bthk,whk->bthw", q, slot_keys)
        weights = (scores / math.sqrt(q.size(-1))).softmax(-1)
        y = torch.einsum("bthw,whv->bthv", weights, slot_values)
        for part, v in zip(weights.split(self.scales, -1), values):
            y = y + torch.einsum("bthw,btwhv->bthv", part, v)
        return y.flatten(2), weights

    def new_states(self, batch: int) -> list["LevelState"]:
        return [LevelState(start, batch) for start in self.starts]


class FeedForward(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        width = int(config.mlp_ratio * config.n_embd)
        if width < 1:
            raise ValueError(f"mlp_ratio {config.mlp_ratio} leaves a feed-forward layer of width {width}")
        self.up = nn.Linear(config.n_embd, width)
        self.gelu = nn.GELU()
        self.down = nn.Linear(width, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.down(self.gelu(self.up(x))))


def mlp(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, n_hidden), nn.GELU(), nn.Linear(n_hidden, n_out))


class UnifiedEmbedding(nn.Module):
    """In place of nn.Embedding(vocab_size, n_embd): rows of a wide table through two layers (see unified_embedding)."""

    def __init__(self, config: Config):
        super().__init__()
        wide = config.embedding_multiple * config.n_embd
        self.table = nn.Embedding(config.vocab_size, wide)
        self.network = mlp(wide, config.embedding_hidden * config.n_embd, config.n_embd)

    def forward(self, tokens):
        """tokens (...) -> (..., D).

        Computes the distinct tokens where they can be had without waiting for a GPU; elsewhere the batch or the whole
        table, whichever has fewer rows."""
        rows, at = self.table.weight, tokens
        if has_numbers(tokens) and tokens.device.type == "cpu":
            distinct, at = tokens.unique(return_inverse=True)
            rows = self.table(distinct)
        elif tokens.numel() < len(rows):
            return self.network(self.table(tokens))
        return F.embedding(at, self.network(rows).to(rows.dtype))


def has_numbers(tensor) -> bool:
    """Return whether shapes may depend on the tensor's values: not while compiling, nor if it has a shape only."""
    return type(tensor) is torch.Tensor and not tensor.is_meta and not torch.compiler.is_compiling()


class Promotion(nn.Module):
    """Rate the windows of one level and summarize those that are promoted."""

    def __init__(self, window: int, config: Config):
        super().__init__()
        width = config.n_embd + (config.key_dim or config.n_embd)
        heads, groups = config.n_distil_head, config.n_distil_group
        if width % heads or heads % groups:
            raise ValueError(
                f"the width {width} of keys and values is not a multiple of n_distil_head {heads}, "
                f"or that not one of n_distil_group {groups}"
            )
        self.window, self.direct, self.utility_cut = window, config.direct, config.utility_cut
        self.shape = groups, heads // groups, width // heads
        self.utility = mlp(window * width, config.n_hidden, 1)
        n_out = width if config.direct else heads // groups * window
        self.distil = nn.ModuleList(mlp(window * width // groups, config.n_hidden, n_out) for _ in range(groups))

    def rate(self, windows):
        """windows (n, w, width) -> utilities (n,), in the parameters' precision: their mean is near."""
        hidden = self.utility[:2](windows.detach().flatten(1))
        weight, bias = self.utility[2].weight[0], self.utility[2].bias
        return F.elu((hidden.to(weight.dtype) * weight).sum(-1) + bias) + 1

    def summarise(self, windows):
        """windows (n, w, width) -> promoted vectors (n, width)."""
        if self.direct:
            return self.distil[0](windows.flatten(1))
        parts = windows.unflatten(-1, self.shape)  # (n, w, groups, heads of a group, width / heads)
        logits = torch.stack([f(parts[:, :, g].flatten(1)) for g, f in enumerate(self.distil)], 1)
        # (n, groups, heads, w)
        weights = logits.unflatten(-1, (self.shape[1], self.window)).softmax(-1).to(windows.dtype)
        return (weights.permute(0, 3, 1, 2)[..., None] * parts).sum(1).flatten(1)

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
        vectors = self.summarise(flat.index_select(0, at)).to(flat.dtype)
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


class Cache:
    """The state of each level of each layer after `length` tokens."""

    def __init__(self, states: list[list[LevelState]]):
        self.states, self.length = states, 0
