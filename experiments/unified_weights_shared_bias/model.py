"""Biases predicted by a network that layers share; folds to gpt2ish.

Idea. One layer is the same for all, so that what one layer learns of a good bias reaches the others.

Change. Every linear layer of gpt2ish (q, k, v, out, up, down and the head) has, in place of its bias, a short code e of
its own and a map G to its outputs. Between them is one layer S that all share. W is the layer's matrix, b a free bias:

    b_eff = G gelu(S e) + b        with `row_gain`:  W_eff = W * (m + m')_row,  b_eff = G gelu(S e) + b + b'

m are gains of rows, m' and b' one number each. `vector` turns sharing round: one e for all, S and G of each layer's
own. S and G start as torch has it, e uniform within 1/sqrt(n_in), b, b' and m' at 0, m at 1. `fold()` evaluates b_eff
and scales the rows: a plain gpt2ish.

Claim. None, except that it was worth five more versions.

Source. jmward01/lmplay, `unified_weights` v2 (uw2_0, uw2_1 and the unregistered 2_3 to 2_6).

Differs from the source. Variants are as they were meant: 2_3 created m but never used it, 2_6 handed the head the
common S instead of one of its own. 2_2, whose sizes can't be told any more, is left out. W and b start as in gpt2ish.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

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
    attention_dropout: float = 0.0  # on the probabilities of self-attention
    embedding_dropout: float | None = None  # on the embeddings; none: dropout
    shared: str = "network"  # what all layers share: the network S, or the vector e
    expand: int = 1  # length of e, in n_embd
    row_gain: bool = False
    head: str = "shared"  # the head takes part; or "own": with an S of its own; or "plain": not at all
    folded: bool = False  # gpt2ish's own layers


variants = {
    "bias": dict(),  # uw2_0
    "gain": dict(row_gain=True),  # uw2_1
    "vector": dict(row_gain=True, expand=8, shared="vector"),  # uw2_3
    "wide": dict(row_gain=True, expand=8),  # uw2_4
    "wide_plain_head": dict(row_gain=True, expand=8, head="plain"),  # uw2_5
    "wide_own_head": dict(row_gain=True, expand=8, head="own"),  # uw2_6
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256),
    "tiny_gain": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, row_gain=True),
    "tiny_vector": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, row_gain=True, expand=8, shared="vector"),
    "tiny_wide": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, row_gain=True, expand=8),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        for field, known in (("shared", ("network", "vector")), ("head", ("shared", "own", "plain"))):
            if getattr(config, field) not in known:
                raise ValueError(f"{field} must be one of {', '.join(known)}, not {getattr(config, field)}")
        self.config = config
        self.derived = None  # what derive() returned, while the weights stay as they are
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions_embedding = nn.Embedding(config.max_len, config.n_embd)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config, f"blocks.{i}") for i in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        plain_head = config.folded or config.head == "plain"
        self.head = (nn.Linear if plain_head else partial(UnifiedLinear, config=config))(
            config.n_embd, config.vocab_size
        )
        if not config.folded:
            wide = config.expand * config.n_embd
            vector = config.shared == "vector"
            self.shared = code(wide, config.n_embd) if vector else nn.Linear(wide, config.n_embd)
            if config.head == "own":
                self.shared_by_head = code(wide, config.n_embd) if vector else nn.Linear(wide, config.n_embd)
        self.initialise()

    def body(self, tokens, cache=None, derived=None):
        """tokens (B, T) int64 -> what the head reads, (B, T, n_embd). Raises ValueError beyond max_len."""
        past = cache[0].length if cache else 0
        end = past + tokens.size(1)
        if end > self.config.max_len:
            raise ValueError(f"{end} tokens are more than the model's max_len of {self.config.max_len}")
        derived = derived or self.derived or self.derive()
        x = self.dropout(self.tokens_embedding(tokens) + self.positions_embedding.weight[past:end])
        for i, block in enumerate(self.blocks):
            x = block(x, derived, cache[i] if cache else None)
        return self.norm(x)

    def forward(self, tokens, cache=None):
        """tokens (B, T) int64 -> logits (B, T, vocab_size). With a cache, `tokens` are the new ones only."""
        derived = self.derived or self.derive()
        return F.linear(self.body(tokens, cache, derived), *self.head_weights(derived))

    def linears(self):
        """Return gpt2ish's name of each linear layer, and the layers that it is made of here."""
        for block in self.blocks:
            a, f = block.attention, block.feed_forward
            yield f"{a.name}.qkv", (a.qkv,) if self.config.folded else (a.q, a.k, a.v)
            yield f"{a.name}.out", (a.out,)
            yield f"{f.name}.up", (f.up,)
            yield f"{f.name}.down", (f.down,)
        yield "head", (self.head,)

    def effective(self, layer):
        if not isinstance(layer, UnifiedLinear):
            return layer.weight, layer.bias
        own = layer is self.head and self.config.head == "own"
        return layer.effective(self.shared_by_head if own else self.shared)

    def derive(self):
        """Return each linear layer's W_eff and b_eff by gpt2ish's names: what forward takes from parameters alone."""
        derived = {}
        for name, layers in self.linears():
            for kind, parts in zip(("weight", "bias"), zip(*map(self.effective, layers))):
                derived[f"{name}.{kind}"] = torch.cat(parts) if len(parts) > 1 else parts[0]
        return derived

    def head_weights(self, derived=None):
        """Return the head's weight (vocab_size, n_embd) and bias (vocab_size,)."""
        derived = derived or self.derived or self.derive()
        return derived["head.weight"], derived["head.bias"]

    @torch.no_grad()
    def fold(self):
        """Return a new model with each layer's W_eff and b_eff stored: a gpt2ish with the same logits."""
        with torch.device("meta"):
            folded = Model(replace(self.config, folded=True))
        weights = {**self.state_dict(), **self.derive()}
        folded.load_state_dict({name: weights[name].clone() for name in folded.state_dict()}, assign=True)
        return folded.train(self.training)

    def initialise(self):
        layers = [layer for _, parts in self.linears() for layer in parts]
        for module in (self.tokens_embedding, self.positions_embedding, *layers):
            nn.init.normal_(module.weight, std=0.02)
        for layer in layers:
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        # 2 n_layer branches add up on the residual stream: keep its variance whatever the depth
        for block in self.blocks:
            for projection in (block.attention.out, block.feed_forward.down):
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
    def __init__(self, config: Config, name: str):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config, f"{name}.attention")
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config, f"{name}.feed_forward")

    def forward(self, x, derived, cache=None):
        x = x + self.attention(self.attention_norm(x), derived, cache)
        return x + self.feed_forward(self.feed_forward_norm(x), derived)


class Attention(nn.Module):
    def __init__(self, config: Config, name: str):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd {config.n_embd} is not a multiple of n_head {config.n_head}")
        self.n_head = config.n_head
        self.name = name
        if config.folded:
            self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
            self.out = nn.Linear(config.n_embd, config.n_embd)
        else:
            self.q, self.k, self.v, self.out = (UnifiedLinear(config.n_embd, config.n_embd, config) for _ in range(4))
        self.attention_dropout = nn.Dropout(config.attention_dropout).p  # nn.Dropout refuses what is no probability
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, derived, cache=None):
        B, T, D = x.shape
        qkv = linear(x, derived, f"{self.name}.qkv")
        q, k, v = qkv.view(B, T, 3, self.n_head, D // self.n_head).permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.append(k, v)
        mask = None
        if past and T > 1:  # is_causal puts the first query beside the first key, which is right only without a past
            mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
        dropout = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=past == 0)
        return self.dropout(linear(y.transpose(1, 2).reshape(B, T, D), derived, f"{self.name}.out"))


class FeedForward(nn.Module):
    def __init__(self, config: Config, name: str):
        super().__init__()
        width = int(config.mlp_ratio * config.n_embd)
        if width < 1:
            raise ValueError(f"mlp_ratio {config.mlp_ratio} leaves a feed-forward layer of width {width}")
        self.name = name
        if config.folded:
            self.up = nn.Linear(config.n_embd, width)
            self.down = nn.Linear(width, config.n_embd)
        else:
            self.up = UnifiedLinear(config.n_embd, width, config)
            self.down = UnifiedLinear(width, config.n_embd, config)
        self.gelu = nn.GELU()
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, derived):
        return self.dropout(linear(self.gelu(linear(x, derived, f"{self.name}.up")), derived, f"{self.name}.down"))


class Vector(nn.Module):
    """`size` numbers and, with `shift`, one more that is added to all of them."""

    def __init__(self, size: int, start: float, shift: bool = True):
        super().__init__()
        self.shift = shift
        self.values = nn.Parameter(torch.cat([torch.full((size,), start), torch.zeros(int(shift))]))

    def forward(self):
        return self.values[:-1] + self.values[-1] if self.shift else self.values


class UnifiedLinear(nn.Linear):
    def __init__(self, n_in: int, n_out: int, config: Config):
        super().__init__(n_in, n_out, bias=False)
        wide, hidden = config.expand * config.n_embd, config.n_embd
        if config.shared == "vector":
            hidden = max(1, min(n_in, n_out) ** 2 // wide)
            self.network = nn.Linear(wide, hidden)
        else:
            self.code = code(wide, n_in)
        self.to_bias = nn.Linear(hidden, n_out, bias=False)
        self.constant = Vector(n_out, 0.0, shift=config.row_gain)  # where gpt2ish has its bias
        self.row_gain = Vector(n_out, 1.0) if config.row_gain else None

    def effective(self, shared):
        """Return W_eff (n_out, n_in) and b_eff (n_out,); `shared` is the S or the e that all have in common."""
        hidden = shared(self.code) if isinstance(shared, nn.Module) else self.network(shared)
        bias = self.to_bias(F.gelu(hidden)) + self.constant()
        return self.weight if self.row_gain is None else self.weight * self.row_gain()[:, None], bias


def code(size: int, n_in: int):
    return nn.Parameter(torch.empty(size).uniform_(-1 / math.sqrt(n_in), 1 / math.sqrt(n_in)))


def linear(x, derived, name):
    return F.linear(x, derived[f"{name}.weight"], derived[f"{name}.bias"])


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
