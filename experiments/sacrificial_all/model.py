"""A 16x unified embedding, predicted vectors, no block norms; all folds away.

Idea. Parameters that are there for training only make a better model of the same size once they are folded away.

Change. gpt2ish with a wide table E behind its token embeddings (unified_embedding) and with linear layers whose vectors
are predicted by shared matrices (unified_weights_shared). For token t, two layers L1 and L2, and a layer's W and b:

    e(t) = L2 gelu(L1 E[t])        L x = W_eff x + b_eff,  W_eff = ((W * m + a)_row * n + c)_column,  b_eff = b

m, n and b are each Q z + u + u': a code z times a matrix Q that all vectors of the same size (with `by_purpose`, and
kind of layer) share, a free part u and one number u'. The layers of `embedding`, `blocks` and `head` are "predicted"
so, or "unified": u + u' only, and with offsets a and c (unified_weights). `limit` leaves those longer than the
feed-forward's width free. E is N(0, 1), Q and W of L1 and L2 as torch has them, codes uniform within 0.01, and u so
that gains are 1, offsets and biases 0.
The LayerNorms of the blocks are gone, as in the original; `norms` keeps them, to tell that from the rest. `fold()`
stores embeddings, W_eff and b_eff: with norms a gpt2ish, without them this model's own `folded` form. The embeddings of
the whole vocabulary are computed once per step, which at full size sees more tokens than there are words.

Claim. The techniques stack. A predicted head helps early and hurts later ("learns to drop loss, not knowledge").

Source. jmward01/lmplay, `combined/sacrificial` 2 (sac2_0 to sac2_4).

Differs from the source. None of the originals could be built any more. Here W of blocks and head starts as in gpt2ish,
biases at 0.
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
    multiple: int = 16  # width of the table behind the token embeddings, in n_embd
    expand: int = 64  # length of a code, in n_embd
    embedding: str = "unified"  # the layers of each part: "unified" or "predicted"
    blocks: str = "predicted"
    head: str = "unified"
    by_purpose: bool = False  # a matrix for each kind of layer
    limit: bool = False  # vectors longer than the feed-forward's width are not predicted
    keep_norms: bool = False  # the LayerNorms inside the blocks
    folded: bool = False  # plain embedding and linear layers


variants = {
    "blocks": dict(),  # sac2_0
    "med": dict(n_head=20, n_embd=1280),  # sac2_0_med
    "embedding": dict(embedding="predicted"),  # sac2_1
    "unified": dict(blocks="unified"),  # sac2_2
    "predicted_head": dict(embedding="predicted", head="predicted", by_purpose=True, limit=True),  # sac2_3
    "by_purpose": dict(embedding="predicted", by_purpose=True, limit=True),  # sac2_4
    "norms": dict(keep_norms=True),
    "by_purpose_norms": dict(embedding="predicted", by_purpose=True, limit=True, keep_norms=True),
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, multiple=8, expand=16),
    "tiny_norms": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, multiple=8, expand=16, keep_norms=True),
    "tiny_unified": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, multiple=8, expand=16, blocks="unified"),
    "tiny_by_purpose": dict(
        n_layer=4,
        n_head=4,
        n_embd=256,
        max_len=256,
        multiple=8,
        expand=16,
        embedding="predicted",
        by_purpose=True,
        limit=True,
    ),
    "tiny_by_purpose_norms": dict(
        n_layer=4,
        n_head=4,
        n_embd=256,
        max_len=256,
        multiple=8,
        expand=16,
        embedding="predicted",
        by_purpose=True,
        limit=True,
        keep_norms=True,
    ),
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
            else UnifiedLinear(config.n_embd, config.vocab_size, "head", config.head, config)
        )
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

    def predict(self):
        """Return the predicted part of every vector that has one: those of one matrix in one product."""
        predictions = {}
        for matrix, vectors in self.predicted.items():
            predictions.update(zip(vectors, self.matrices[matrix](torch.stack([vector.code for vector in vectors]))))
        return predictions

    def derive(self):
        """Return embeddings, W_eff and b_eff by gpt2ish's names: what forward takes from the parameters alone."""
        folded, e, predicted = self.config.folded, self.tokens_embedding, self.predict()
        derived = {"tokens_embedding.weight": e.weight if folded else e.effective(predicted)}
        for name, layers in self.linears():
            pairs = [(layer.weight, layer.bias) if folded else layer.effective(predicted) for layer in layers]
            for kind, parts in zip(("weight", "bias"), zip(*pairs)):
                derived[f"{name}.{kind}"] = torch.cat(parts) if len(parts) > 1 else parts[0]
        return derived

    def head_weights(self, derived=None):
        """Return the head's weight (vocab_size, n_embd) and bias (vocab_size,)."""
        derived = derived or self.derived or self.derive()
        return derived["head.weight"], derived["head.bias"]

    @torch.no_grad()
    def fold(self):
        """Return a new model with embeddings, W_eff and b_eff stored and the same logits; with norms, a gpt2ish."""
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
        self.attention_norm = nn.LayerNorm(config.n_embd) if config.keep_norms else nn.Identity()
        self.attention = Attention(config, f"{name}.attention")
        self.feed_forward_norm = nn.LayerNorm(config.n_embd) if config.keep_norms else nn.Identity()
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
            self.q, self.k, self.v, self.out = (
                UnifiedLinear(config.n_embd, config.n_embd, purpose, config.blocks, config)
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
            self.up = nn.Linear(config.n_embd, width)
            self.down = nn.Linear(width, config.n_embd)
        else:
            self.up = UnifiedLinear(config.n_embd, width, "up", config.blocks, config)
            self.down = UnifiedLinear(width, config.n_embd, "down", config.blocks, config)
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
    """W with free gains, offsets and bias ("unified") or predicted gains and bias ("predicted")."""

    def __init__(self, n_in: int, n_out: int, purpose: str, kind: str, config: Config):
        super().__init__(n_in, n_out, bias=False)
        if kind not in ("unified", "predicted"):
            raise ValueError(f"the layers of embedding, blocks and head must be unified or predicted, not {kind}")
        predicted = {"column_gain", "row_gain", "bias"} if kind == "predicted" else set()
        if purpose == "head":  # its rows are the vocabulary
            predicted &= {"column_gain"}
        self.vectors = nn.ModuleDict()
        offsets = ["row_offset", "column_offset"] if kind == "unified" else []
        for name in ("row_gain", "column_gain", "bias", *offsets):
            size, start = n_in if name.startswith("column") else n_out, 1.0 if name.endswith("gain") else 0.0
            matrix = f"{purpose}_{size}" if config.by_purpose else f"{size}"
            if name not in predicted or config.limit and size > max(1, config.mlp_ratio) * config.n_embd:
                matrix = ""
            self.vectors[name] = Vector(size, start, matrix, config.expand * config.n_embd)

    def effective(self, predicted):
        """Return W_eff (n_out, n_in) and b_eff (n_out,): rows first, then columns."""
        vectors = {name: vector(predicted) for name, vector in self.vectors.items()}
        weight = self.weight * vectors["row_gain"][:, None]
        if "row_offset" in vectors:
            weight = weight + vectors["row_offset"][:, None]
        weight = weight * vectors["column_gain"]
        if "column_offset" in vectors:
            weight = weight + vectors["column_offset"]
        return weight, vectors["bias"]


class UnifiedEmbedding(nn.Module):
    """In place of nn.Embedding(n_rows, n_embd): a table `multiple` times as wide, through two layers."""

    def __init__(self, n_rows: int, config: Config):
        super().__init__()
        wide = config.multiple * config.n_embd
        self.table = nn.Embedding(n_rows, wide)
        self.first = UnifiedLinear(wide, config.n_embd, "embedding_first", config.embedding, config)
        self.second = UnifiedLinear(config.n_embd, config.n_embd, "embedding_second", config.embedding, config)

    def effective(self, predicted):
        """Return the embeddings of all rows, (n_rows, n_embd)."""
        hidden = F.gelu(F.linear(self.table.weight, *self.first.effective(predicted)))
        return F.linear(hidden, *self.second.effective(predicted)).to(self.table.weight.dtype)


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
