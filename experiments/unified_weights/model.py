"""Gains and offsets of rows and columns on every linear layer; folds to gpt2ish.

Idea. A weight sees few of the tokens. A gain over a whole row or column of weights sees all that pass through it, and
moves them together.

Change. Each linear layer of gpt2ish (q, k, v, out, up, down and the head) has a matrix W and a bias b, gains m and n
and offsets a and c of its rows and columns. The primed are one number per layer:

    W_eff = ((W * (m + m')_row) + (a + a')_row) * (n + n')_column + (c + c')_column        b_eff = b + b'

m, n start at 1, everything else beside W at 0. `rows` has m and b', `columns` also n, `offsets` also a and c. Some of
it can do nothing: the next LayerNorm takes off again what is added to all features of the stream alike. `fold()` stores
W_eff and b_eff: a plain gpt2ish, the same logits.

Claim. uw1_0 is about 0.10 nats below the baseline at 6 layers after 850,000 documents, at no cost once folded.

Source. jmward01/lmplay, `unified_weights` v1 (uw1_0 to uw1_2, ULinear).

Differs from the source. W and b start as in gpt2ish (there as in torch), so that the gains are the only difference.
Weight decay leaves gains and offsets alone (there it pulled the gains of the feed-forward layers and of the head to 0).
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
    column_gain: bool = False
    offsets: bool = False  # of rows and of columns
    folded: bool = False  # gpt2ish's own layers


variants = {
    "rows": dict(),  # uw1_0
    "columns": dict(column_gain=True),  # uw1_1
    "offsets": dict(column_gain=True, offsets=True),  # uw1_2
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256),
    "tiny_columns": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, column_gain=True),
    "tiny_offsets": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, column_gain=True, offsets=True),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.derived = None  # what derive() returned, while the weights stay as they are
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions_embedding = nn.Embedding(config.max_len, config.n_embd)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config, f"blocks.{i}") for i in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = (
            nn.Linear(config.n_embd, config.vocab_size)
            if config.folded
            else UnifiedLinear(config.n_embd, config.vocab_size, config)
        )
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

    def derive(self):
        """Return each linear layer's W_eff and b_eff by gpt2ish's names: what forward takes from parameters alone."""
        derived = {}
        for name, layers in self.linears():
            if self.config.folded:
                pairs = [(layer.weight, layer.bias) for layer in layers]
            else:
                pairs = [layer.effective() for layer in layers]
            for kind, parts in zip(("weight", "bias"), zip(*pairs)):
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
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
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
        if config.column_gain:
            self.vectors["column_gain"] = Vector(n_in, 1.0)
        if config.offsets:
            self.vectors["row_offset"] = Vector(n_out, 0.0)
            self.vectors["column_offset"] = Vector(n_in, 0.0)

    def effective(self):
        """Return W_eff (n_out, n_in) and b_eff (n_out,)."""
        vectors = {name: vector() for name, vector in self.vectors.items()}
        weight = self.weight * vectors["row_gain"][:, None]
        if "row_offset" in vectors:
            weight = weight + vectors["row_offset"][:, None]
        if "column_gain" in vectors:
            weight = weight * vectors["column_gain"]
        if "column_offset" in vectors:
            weight = weight + vectors["column_offset"]
        return weight, vectors["bias"]


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
