"""Predicted gains and biases, shared by layers; no block norms; folds.

Idea. All layers share what predicts their vectors, so that each learns from the others.

Change. Each linear layer (W, b) of gpt2ish's blocks has gains m of its rows and n of its columns and a bias. Each of
these vectors v is predicted from a code z of its own (`expand` n_embd numbers) by a matrix Q. It shares Q with all
vectors of its size, or with `by_purpose` only with those of the same kind of layer (query, up, ...):

    v = Q z + u + u'        W_eff = (W * n_column) * m_row        b_eff = b        (n, m, b such vectors)

u is the vector's free part, u' one number. Codes start uniform within 0.01, Q as torch has it, and u so that gains are
1 and biases 0. That ended the instability of predicted gains (unified_weights_private). The head is "unified", with
free gains, offsets and bias (unified_weights:offsets), "plain", or "predicted": free row gain and bias, predicted
column gain.
The LayerNorms of the blocks are gone, only the last one stays. A column gain can do what their weights did, but nothing
normalizes. That is another idea than the predicted vectors, so `norms` keeps them and tells the two apart. `fold()`
stores W_eff and b_eff: with norms a gpt2ish, without them this model's own `folded` form.

Claim. "Big boost and fewer params so not cheating", said of the form without norms against gpt2ish with them.

Source. jmward01/lmplay, `unified_weights` v6 (uw6_0 to uw6_6, SDULinear).

Differs from the source. W starts as in gpt2ish, and biases at 0 instead of within 0.01.
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
    expand: int = 32  # length of a code, in n_embd
    by_purpose: bool = False  # a matrix for each kind of layer
    bias: bool = True  # in the blocks
    head: str = "unified"  # or "plain", or "predicted"
    keep_norms: bool = False  # the LayerNorms inside the blocks
    final_norm: bool = True
    folded: bool = False  # plain linear layers


variants = {
    "32x": dict(),  # uw6_0
    "16x": dict(expand=16),  # uw6_1
    "16x_plain_head": dict(expand=16, head="plain"),  # uw6_2
    "no_bias": dict(bias=False),  # uw6_3
    "by_purpose": dict(by_purpose=True),  # uw6_4
    "predicted_head": dict(by_purpose=True, head="predicted"),  # uw6_5
    "no_norms": dict(by_purpose=True, head="predicted", final_norm=False),  # uw6_6
    "norms": dict(keep_norms=True),
    "predicted_head_norms": dict(by_purpose=True, head="predicted", keep_norms=True),
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, expand=16),
    "tiny_norms": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, expand=16, keep_norms=True),
    "tiny_by_purpose": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, expand=16, by_purpose=True),
    "tiny_predicted_head": dict(
        n_layer=4, n_head=4, n_embd=256, max_len=256, expand=16, by_purpose=True, head="predicted"
    ),
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
        self.norm = norm(config, config.final_norm)
        self.head = head(config)
        self.predicted = {}  # the vectors that each matrix predicts
        for module in self.modules():
            if isinstance(module, Vector) and module.matrix:
                self.predicted.setdefault(module.matrix, []).append(module)
        self.matrices = nn.ModuleDict(
            {
                matrix: nn.Linear(config.expand * config.n_embd, len(vectors[0].values) - 1, bias=False)
                for matrix, vectors in self.predicted.items()
            }
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

    def predict(self):
        """Return the predicted part of every vector that has one: those of one matrix in one product."""
        predictions = {}
        for matrix, vectors in self.predicted.items():
            predictions.update(zip(vectors, self.matrices[matrix](torch.stack([vector.code for vector in vectors]))))
        return predictions

    def derive(self):
        """Return each linear layer's W_eff and b_eff by gpt2ish's names: what forward takes from parameters alone."""
        derived, predicted = {}, self.predict()
        for name, layers in self.linears():
            pairs = [
                layer.effective(predicted) if isinstance(layer, UnifiedLinear) else (layer.weight, layer.bias)
                for layer in layers
            ]
            for kind, parts in zip(("weight", "bias"), zip(*pairs)):
                if parts[0] is not None:
                    derived[f"{name}.{kind}"] = torch.cat(parts) if len(parts) > 1 else parts[0]
        return derived

    def head_weights(self, derived=None):
        """Return the head's weight (vocab_size, n_embd) and bias (vocab_size,)."""
        derived = derived or self.derived or self.derive()
        return derived["head.weight"], derived["head.bias"]

    @torch.no_grad()
    def fold(self):
        """Return a new model with each layer's W_eff and b_eff stored and the same logits; with norms, a gpt2ish."""
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
        with torch.no_grad():
            for vector, prediction in self.predict().items():
                vector.values[:-1] -= prediction

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
        self.attention_norm = norm(config, config.keep_norms)
        self.attention = Attention(config, f"{name}.attention")
        self.feed_forward_norm = norm(config, config.keep_norms)
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
            self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
            self.out = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        else:
            self.q, self.k, self.v, self.out = (
                predicted_linear(config.n_embd, config.n_embd, purpose, config)
                for purpose in ("query", "key", "value", "out")
            )
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
            self.up = nn.Linear(config.n_embd, width, bias=config.bias)
            self.down = nn.Linear(width, config.n_embd, bias=config.bias)
        else:
            self.up = predicted_linear(config.n_embd, width, "up", config)
            self.down = predicted_linear(width, config.n_embd, "down", config)
        self.gelu = nn.GELU()
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, derived):
        return self.dropout(linear(self.gelu(linear(x, derived, f"{self.name}.up")), derived, f"{self.name}.down"))


class Vector(nn.Module):
    """`size` numbers, one more that is added to all and, with a `matrix`, a part that it predicts from a code."""

    def __init__(self, size: int, start: float, matrix: str, code_size: int):
        super().__init__()
        self.values = nn.Parameter(torch.cat([torch.full((size,), start), torch.zeros(1)]))
        self.matrix = matrix
        if matrix:
            self.code = nn.Parameter(torch.empty(code_size).uniform_(-0.01, 0.01))

    def forward(self, predicted):
        vector = self.values[:-1] + self.values[-1]
        return vector + predicted[self] if self.matrix else vector


class UnifiedLinear(nn.Linear):
    """W with the `predicted` and the `free` ones of row_gain, row_offset, column_gain, column_offset and bias."""

    def __init__(self, n_in: int, n_out: int, purpose: str, config: Config, predicted=(), free=()):
        super().__init__(n_in, n_out, bias=False)
        self.vectors = nn.ModuleDict()
        for name in (*predicted, *free):
            size, start = n_in if name.startswith("column") else n_out, 1.0 if name.endswith("gain") else 0.0
            matrix = f"{purpose}_{size}" if config.by_purpose else f"{size}"
            self.vectors[name] = Vector(size, start, matrix if name in predicted else "", config.expand * config.n_embd)

    def effective(self, predicted):
        """Return W_eff (n_out, n_in) and b_eff (n_out,) or None: rows first, then columns."""
        vectors = {name: vector(predicted) for name, vector in self.vectors.items()}
        weight = self.weight
        if "row_gain" in vectors:
            weight = weight * vectors["row_gain"][:, None]
        if "row_offset" in vectors:
            weight = weight + vectors["row_offset"][:, None]
        if "column_gain" in vectors:
            weight = weight * vectors["column_gain"]
        if "column_offset" in vectors:
            weight = weight + vectors["column_offset"]
        return weight, vectors.get("bias")


def predicted_linear(n_in: int, n_out: int, purpose: str, config: Config):
    vectors = ("column_gain", "row_gain", "bias") if config.bias else ("column_gain", "row_gain")
    return UnifiedLinear(n_in, n_out, purpose, config, predicted=vectors)


def head(config: Config):
    if config.folded or config.head == "plain":
        return nn.Linear(config.n_embd, config.vocab_size)
    if config.head == "unified":
        vectors = dict(free=("row_gain", "row_offset", "column_gain", "column_offset", "bias"))
    elif config.head == "predicted":
        vectors = dict(predicted=("column_gain",), free=("row_gain", "bias"))
    else:
        raise ValueError(f"head must be one of unified, plain, predicted, not {config.head}")
    return UnifiedLinear(config.n_embd, config.vocab_size, "head", config, **vectors)


def norm(config: Config, keep: bool):
    return nn.LayerNorm(config.n_embd) if keep else nn.Identity()


def linear(x, derived, name):
    return F.linear(x, derived[f"{name}.weight"], derived.get(f"{name}.bias"))


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
