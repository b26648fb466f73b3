"""sacrificial_all with learned residual weights; all but those folds away.

Idea. Put everything together: what folds away, and a learned weighting instead of the residual additions.

Change. Embeddings, gains and biases are sacrificial_all:by_purpose's. A token t has a row of a wide table E, which goes
through two layers L1 and L2. W and b are a layer's matrix and bias, and vectors scale and shift W's rows and columns:

    e(t) = L2 gelu(L1 E[t])    L x = W_eff x + b_eff
    W_eff = ((W * m + a)_row * n + c)_column    m, n, b_eff = Q z + u + u'

z is a vector's code, u its free part, u' one number. Q is a matrix that each kind of layer has for its vectors. Vectors
longer than the feed-forward's width are free: no Q z. a and c, free, are the head's only. Blocks have no LayerNorms.
New are the two additions of each block, with x the stream and y the branch:

    x + y   ->   alpha * x + beta * y,        (alpha, beta) = floor + (ceil - floor) sigmoid(P [x; y])

`simple`: P is a linear layer to two numbers per token. `full`: P is an MLP, n_embd ReLUs wide, to two per feature. P
depends on the data, so it stays: `fold()` stores embeddings, W_eff and b_eff in this model's `folded` form. P starts as
torch has it, the rest as in sacrificial_all.

Claim. None.

Source. jmward01/lmplay, `combined/all` (all1_0 to all1_4).

Differs from the source. None of the originals could be built any more. Initial values as in sacrificial_all.
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
    multiple: int = 16  # width of the table behind the token embeddings, in n_embd
    expand: int = 64  # length of a code, in n_embd
    hidden_multiple: int = 1  # width between the embedding's two layers, in n_embd
    add: str = "simple"  # one alpha and one beta a token; or "full": one each a feature
    floor: float = 0.4
    ceil: float = 1.5
    unified: bool = False  # column gain and offsets of the head; the shared matrices have gains and offsets, too
    keep_norms: bool = False  # the LayerNorms inside the blocks
    folded: bool = False  # plain embedding and linear layers


variants = {
    "simple": dict(),  # all1_0
    "full": dict(add="full", floor=0.7, ceil=1.4),  # all1_1
    "full_wider": dict(add="full", floor=0.6, ceil=1.4),  # all1_2
    "unified": dict(add="full", floor=0.6, ceil=1.4, unified=True),  # all1_3
    "hidden16": dict(add="full", floor=0.6, ceil=1.4, unified=True, multiple=8, hidden_multiple=16),  # all1_4
    "norms": dict(keep_norms=True),
    "full_norms": dict(add="full", floor=0.6, ceil=1.4, keep_norms=True),
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, multiple=8, expand=16),
    "tiny_norms": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, multiple=8, expand=16, keep_norms=True),
    "tiny_full": dict(
        n_layer=4, n_head=4, n_embd=256, max_len=256, multiple=8, expand=16, add="full", floor=0.6, ceil=1.4
    ),
    "tiny_full_norms": dict(
        n_layer=4,
        n_head=4,
        n_embd=256,
        max_len=256,
        multiple=8,
        expand=16,
        add="full",
        floor=0.6,
        ceil=1.4,
        keep_norms=True,
    ),
    "tiny_unified": dict(
        n_layer=4,
        n_head=4,
        n_embd=256,
        max_len=256,
        multiple=8,
        expand=16,
        add="full",
        floor=0.6,
        ceil=1.4,
        unified=True,
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
            else UnifiedLinear(config.n_embd, config.vocab_size, "head", config)
        )
        self.predicted = {}  # the vectors that each matrix predicts
        for module in self.modules():
            if isinstance(module, Vector) and module.matrix:
                self.predicted.setdefault(module.matrix, []).append(module)
        matrix_type = UnifiedMatrix if config.unified else partial(nn.Linear, bias=False)
        self.matrices = nn.ModuleDict(
            {
                matrix: matrix_type(config.expand * config.n_embd, len(vectors[0].values) - 1)
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
        """Return a new model with embeddings, W_eff and b_eff stored and the same logits."""
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
        self.attention_add = LearnedAdd(config)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd) if config.keep_norms else nn.Identity()
        self.feed_forward = FeedForward(config, f"{name}.feed_forward")
        self.feed_forward_add = LearnedAdd(config)

    def forward(self, x, derived, cache=None):
        x = self.attention_add(x, self.attention(self.attention_norm(x), derived, cache))
        return self.feed_forward_add(x, self.feed_forward(self.feed_forward_norm(x), derived))


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
                UnifiedLinear(config.n_embd, config.n_embd, purpose, config)
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
            self.up = UnifiedLinear(config.n_embd, width, "up", config)
            self.down = UnifiedLinear(width, config.n_embd, "down", config)
        self.gelu = nn.GELU()
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, derived):
        return self.dropout(linear(self.gelu(linear(x, derived, f"{self.name}.up")), derived, f"{self.name}.down"))


class Vector(nn.Module):
    """`size` numbers, one more that is added to all and, with a `matrix`, a part that it predicts from a code."""

    def __init__(self, size: int, start: float, matrix: str = "", code_size: int = 0):
        super().__init__()
        self.values = nn.Parameter(torch.cat([torch.full((size,), start), torch.zeros(1)]))
        self.matrix = matrix
        if matrix:
            self.code = nn.Parameter(torch.empty(code_size).uniform_(-0.01, 0.01))

    def forward(self, predicted=None):
        vector = self.values[:-1] + self.values[-1]
        return vector + predicted[self] if self.matrix else vector


class UnifiedMatrix(nn.Linear):
    """Q x with free gains and offsets: Q = ((W * m + a)_row * n + c)_column."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, bias=False)
        self.row_gain, self.column_gain = Vector(n_out, 1.0), Vector(n_in, 1.0)
        self.row_offset, self.column_offset = Vector(n_out, 0.0), Vector(n_in, 0.0)

    def forward(self, x):
        m, a, n, c = self.row_gain(), self.row_offset(), self.column_gain(), self.column_offset()
        # multiplied out: W, which is large, is read once and no copy of it made
        return m * F.linear(n * x, self.weight) + a * (x @ n)[:, None] + (x @ c)[:, None]


class UnifiedLinear(nn.Linear):
    """W with gains of rows and columns and a bias. They are predicted, except long ones and the head's."""

    def __init__(self, n_in: int, n_out: int, purpose: str, config: Config):
        super().__init__(n_in, n_out, bias=False)
        names = ["row_gain", "column_gain", "bias"]
        if purpose == "head":
            names = ["row_gain", "bias", *(["column_gain", "row_offset", "column_offset"] if config.unified else [])]
        self.vectors = nn.ModuleDict()
        for name in names:
            size, start = n_in if name.startswith("column") else n_out, 1.0 if name.endswith("gain") else 0.0
            matrix = "" if purpose == "head" or size > max(1, config.mlp_ratio) * config.n_embd else f"{purpose}_{size}"
            self.vectors[name] = Vector(size, start, matrix, config.expand * config.n_embd)

    def effective(self, predicted):
        """Return W_eff (n_out, n_in) and b_eff (n_out,): rows first, then columns."""
        vectors = {name: vector(predicted) for name, vector in self.vectors.items()}
        weight = self.weight * vectors["row_gain"][:, None]
        if "row_offset" in vectors:
            weight = weight + vectors["row_offset"][:, None]
        if "column_gain" in vectors:
            weight = weight * vectors["column_gain"]
        if "column_offset" in vectors:
            weight = weight + vectors["column_offset"]
        return weight, vectors["bias"]


class UnifiedEmbedding(nn.Module):
    """In place of nn.Embedding(n_rows, n_embd): a table `multiple` times as wide, through two layers."""

    def __init__(self, n_rows: int, config: Config):
        super().__init__()
        wide, hidden = config.multiple * config.n_embd, config.hidden_multiple * config.n_embd
        self.table = nn.Embedding(n_rows, wide)
        self.first = UnifiedLinear(wide, hidden, "embedding_first", config)
        self.second = UnifiedLinear(hidden, config.n_embd, "embedding_second", config)

    def effective(self, predicted):
        """Return the embeddings of all rows, (n_rows, n_embd)."""
        hidden = F.gelu(F.linear(self.table.weight, *self.first.effective(predicted)))
        return F.linear(hidden, *self.second.effective(predicted)).to(self.table.weight.dtype)


def linear(x, derived, name):
    return F.linear(x, derived[f"{name}.weight"], derived[f"{name}.bias"])


class LearnedAdd(nn.Module):
    """Stream x and branch y -> alpha x + beta y."""

    def __init__(self, config: Config):
        super().__init__()
        D = config.n_embd
        if config.add not in ("simple", "full"):
            raise ValueError(f"add must be simple or full, not {config.add}")
        self.predict = (
            nn.Linear(2 * D, 2)
            if config.add == "simple"
            else nn.Sequential(nn.Linear(2 * D, D), nn.ReLU(), nn.Linear(D, 2 * D))
        )
        self.floor, self.ceil = config.floor, config.ceil

    def forward(self, x, y):
        weights = self.floor + (self.ceil - self.floor) * self.predict(torch.cat([x, y], -1)).sigmoid()
        alpha, beta = weights.chunk(2, -1)
        return alpha * x + beta * y


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
