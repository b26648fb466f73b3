"""Unified embedding and unified weights on one gpt2ish; all folds.

Idea. Two techniques that fold away should add up.

Change. The embedding of token t comes from a wide table E (V, multiple D) through two layers L1 and L2
(unified_embedding). These two, the linear layers of the blocks and the head all have vectors of their own
(unified_weights). W and b are a layer's matrix and bias; m, a, b are of its rows, n, c of its columns, and the primed
are one number each:

    e(t) = L2 gelu(L1 E[t])        L x = W_eff x + b_eff
    W_eff = ((W * (m + m')_row) + (a + a')_row) * (n + n')_column + (c + c')_column        b_eff = b + b'

or, with `shared_bias` (unified_weights_shared_bias), a row gain and a bias from a code e, a layer S that all share and
a map G:

    W_eff = W * (m + m')_row        b_eff = G gelu(S e) + b + b'

E is N(0, 1), W of L1 and L2 and all of S, G as torch has them. Gains are 1, offsets and biases 0, codes uniform within
1/sqrt(n_in). `fold()` computes e(t) of all tokens and stores W_eff and b_eff: a plain gpt2ish with the same logits. The
embeddings of the whole vocabulary are computed once per step, which at full size sees more tokens than there are words.

Claim. The techniques stack.

Source. jmward01/lmplay, `combined/sacrificial` 1 (sac1_0, sac1_0_1, sac1_1).

Differs from the source. None of the originals could be built any more. Here W of blocks and head starts as in gpt2ish.
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
    attention_dropout: float = 0.0  # on the probabilities of self-attention
    embedding_dropout: float | None = None  # on the embeddings; none: dropout
    multiple: int = 8  # width of the table behind the token embeddings, in n_embd
    shared_bias: bool = False  # biases from a layer that all share, in place of column gains and offsets
    folded: bool = False  # gpt2ish's own embedding and layers


variants = {
    "8x": dict(),  # sac1_0
    "16x": dict(multiple=16),  # sac1_0_1
    "16x_shared_bias": dict(multiple=16, shared_bias=True),  # sac1_1
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256),
    "tiny_16x": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, multiple=16),
    "tiny_shared_bias": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, shared_bias=True),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.derived = None  # what derive() returned, while the weights stay as they are
        self.tokens_embedding = (
            nn.Embedding(config.vocab_size, config.n_embd)
            if config.folded
            else UnifiedEmbedding(config.vocab_size, config)
        )
        self.positions_embedding = nn.Embedding(config.max_len, config.n_embd)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config, f"blocks.{i}") for i in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = (
            nn.Linear(config.n_embd, config.vocab_size)
            if config.folded
            else UnifiedLinear(config.n_embd, config.vocab_size, config)
        )
        self.shared = nn.Linear(config.n_embd, config.n_embd) if config.shared_bias and not config.folded else None
        self.initialise()

    def body(self, tokens, cache=None, derived=None):
        """tokens (B, T) int64 -> what the head reads, (B, T, n_embd). Raises ValueError beyond max_len."""
        past = cache[0].length if cache else 0
        end = past + tokens.size(1)
        if end > self.config.max_len:
            raise ValueError(f"{end} tokens are more than the model's max_len of {self.config.max_len}")
        derived = derived or self.derived or self.derive()
        x = self.dropout(
            F.embedding(tokens, derived["tokens_embedding.weight"]) + self.positions_embedding.weight[past:end]
        )
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

    def derive(self):
        """Return embeddings, W_eff and b_eff by gpt2ish's names: what forward takes from the parameters alone."""
        folded, e = self.config.folded, self.tokens_embedding
        derived = {"tokens_embedding.weight": e.weight if folded else e.effective(self.shared)}
        for name, layers in self.linears():
            pairs = [(layer.weight, layer.bias) if folded else layer.effective(self.shared) for layer in layers]
            for kind, parts in zip(("weight", "bias"), zip(*pairs)):
                derived[f"{name}.{kind}"] = torch.cat(parts) if len(parts) > 1 else parts[0]
        return derived

    def head_weights(self, derived=None):
        """Return the head's weight (vocab_size, n_embd) and bias (vocab_size,)."""
        derived = derived or self.derived or self.derive()
        return derived["head.weight"], derived["head.bias"]

    @torch.no_grad()
    def fold(self):
        """Return a gpt2ish with the same logits: the embeddings and each layer's W_eff and b_eff are stored."""
        with torch.device("meta"):
            folded = Model(replace(self.config, folded=True))
        weights = {**self.state_dict(), **self.derive()}
        folded.load_state_dict({name: weights[name].clone() for name in folded.state_dict()}, assign=True)
        return folded.train(self.training)

    def initialise(self):
        layers = [layer for _, parts in self.linears() for layer in parts]
        plain = [module for module in self.children() if isinstance(module, nn.Embedding)]
        for module in (*plain, *layers):
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
    """`size` numbers and one more that is added to all of them."""

    def __init__(self, size: int, start: float):
        super().__init__()
        self.values = nn.Parameter(torch.cat([torch.full((size,), start), torch.zeros(1)]))

    def forward(self):
        return self.values[:-1] + self.values[-1]


class UnifiedLinear(nn.Linear):
    def __init__(self, n_in: int, n_out: int, config: Config):
        super().__init__(n_in, n_out, bias=False)
        self.vectors = nn.ModuleDict({"row_gain": Vector(n_out, 1.0), "bias": Vector(n_out, 0.0)})
        if config.shared_bias:
            self.code = nn.Parameter(torch.empty(config.n_embd).uniform_(-1 / math.sqrt(n_in), 1 / math.sqrt(n_in)))
            self.to_bias = nn.Linear(config.n_embd, n_out, bias=False)
        else:
            self.vectors["row_offset"] = Vector(n_out, 0.0)
            self.vectors["column_gain"] = Vector(n_in, 1.0)
            self.vectors["column_offset"] = Vector(n_in, 0.0)

    def effective(self, shared):
        """Return W_eff (n_out, n_in) and b_eff (n_out,); `shared` is the S of all layers, or None."""
        vectors = {name: vector() for name, vector in self.vectors.items()}
        weight = self.weight * vectors["row_gain"][:, None]
        if shared is not None:
            return weight, vectors["bias"] + self.to_bias(F.gelu(shared(self.code)))
        weight = (weight + vectors["row_offset"][:, None]) * vectors["column_gain"] + vectors["column_offset"]
        return weight, vectors["bias"]


class UnifiedEmbedding(nn.Module):
    """In place of nn.Embedding(n_rows, n_embd): a table `multiple` times as wide, through two layers."""

    def __init__(self, n_rows: int, config: Config):
        super().__init__()
        self.table = nn.Embedding(n_rows, config.multiple * config.n_embd)
        self.first = UnifiedLinear(config.multiple * config.n_embd, config.n_embd, config)
        self.second = UnifiedLinear(config.n_embd, config.n_embd, config)

    def effective(self, shared):
        """Return the embeddings of all rows, (n_rows, n_embd)."""
        hidden = F.gelu(F.linear(self.table.weight, *self.first.effective(shared)))
        return F.linear(hidden, *self.second.effective(shared)).to(self.table.weight.dtype)


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
