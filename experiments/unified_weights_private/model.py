"""A network per linear layer predicts its bias or gains; can fold.

Idea. A layer's vectors are predicted from a long code of its own, instead of being learned directly.

Change. Every linear layer of gpt2ish (q, k, v, out, up, down and the head), from n_in to n_out, has a code e of
`expand` n_in numbers. The hidden layer h of a small network predicts vectors of the layer from it:

    h = gelu(A e + b_A)        each of  b, m, n  is  P h + v + v'  if predicted,  v + v'  if free,  or not there
    W_eff = ((W * n + c)_column * m + a)_row        b_eff = b

m are gains of rows, n of columns; a and c are free offsets, with `offsets`. v starts at 1 for gains and at 0 for b, v'
at 0. A is (`middle` min(n_in, n_out), expand n_in), and with `unified_hidden` has free gains and offsets of its own. A
and the matrices P start as torch has it, e uniform within 1/sqrt(n_in). `fold()` stores W_eff and b_eff; A, P and e,
about three quarters of all parameters, are gone. With the norms kept, a gpt2ish is left.

Claim. None; the author notes that training was unstable.

Source. jmward01/lmplay, `unified_weights` v3 to v5 (3_0 to 5_2, none registered, some that no longer ran).

Differs from the source. There v started near 0 for predicted gains, and so did W_eff. Here the first W_eff is W within
a few hundredths. 4_1 was to have no predictions at all. 5_1 and 5_2 have no LayerNorms inside the blocks, which is
another change than the weights': `all_norms` has them.
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
    expand: int = 8  # length of e, in the layer's inputs
    middle: float = 1.0  # hidden width, in the lesser of the layer's inputs and outputs
    bias: str = "predicted"  # or "free"
    row_gain: str = "free"  # or "predicted"
    column_gain: str = "none"  # or "predicted"
    offsets: bool = False  # of rows and of columns
    unified_hidden: bool = False
    keep_norms: bool = True  # the LayerNorms inside the blocks
    folded: bool = False  # plain linear layers


variants = {
    "bias": dict(),  # uw3_0
    "bias_narrow": dict(middle=0.25),  # uw3_1
    "bias_double": dict(middle=2.0),  # uw3_2
    "bias_16x": dict(expand=16),  # uw3_3
    "row_gain": dict(bias="free", row_gain="predicted"),  # uw4_0
    "free": dict(bias="free"),  # uw4_1
    "column_gain": dict(expand=16, bias="free", column_gain="predicted", unified_hidden=True),  # uw4_2
    "bias_and_column_gain": dict(expand=16, column_gain="predicted", unified_hidden=True),  # uw5_0
    # uw5_1, uw5_2
    "all": dict(expand=6, row_gain="predicted", column_gain="predicted", offsets=True, keep_norms=False),
    "all_norms": dict(expand=6, row_gain="predicted", column_gain="predicted", offsets=True),
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, expand=2),
    "tiny_column_gain": dict(
        n_layer=4,
        n_head=4,
        n_embd=256,
        max_len=256,
        expand=2,
        bias="free",
        column_gain="predicted",
        unified_hidden=True,
    ),
    "tiny_all": dict(
        n_layer=4,
        n_head=4,
        n_embd=256,
        max_len=256,
        expand=2,
        row_gain="predicted",
        column_gain="predicted",
        offsets=True,
        keep_norms=False,
    ),
    "tiny_all_norms": dict(
        n_layer=4,
        n_head=4,
        n_embd=256,
        max_len=256,
        expand=2,
        row_gain="predicted",
        column_gain="predicted",
        offsets=True,
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
            pairs = [(layer.weight, layer.bias) if self.config.folded else layer.effective() for layer in layers]
            for kind, parts in zip(("weight", "bias"), zip(*pairs)):
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


class UnifiedHidden(nn.Linear):
    """A e + b with free gains and offsets of rows, then columns: A = ((W * m + a)_row * n + c)_column."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, bias=False)
        self.row_gain, self.column_gain = Vector(n_out, 1.0), Vector(n_in, 1.0)
        self.row_offset, self.column_offset = Vector(n_out, 0.0), Vector(n_in, 0.0)
        self.constant = Vector(n_out, 0.0)

    def forward(self, e):
        m, a, n, c = self.row_gain(), self.row_offset(), self.column_gain(), self.column_offset()
        # multiplied out: W, the largest matrix there is, is read once and no copy of it made
        return m * F.linear(n * e, self.weight) + a * (n @ e) + c @ e + self.constant()


class UnifiedLinear(nn.Linear):
    def __init__(self, n_in: int, n_out: int, config: Config):
        super().__init__(n_in, n_out, bias=False)
        wide, hidden = config.expand * n_in, max(1, int(config.middle * min(n_in, n_out)))
        self.vectors, self.predictors = nn.ModuleDict(), nn.ModuleDict()
        for name, kind, size, start in (
            ("bias", config.bias, n_out, 0.0),
            ("row_gain", config.row_gain, n_out, 1.0),
            ("column_gain", config.column_gain, n_in, 1.0),
        ):
            known = ("predicted", "free") if name == "bias" else ("predicted", "free", "none")
            if kind not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {kind}")
            if kind != "none":
                self.vectors[name] = Vector(size, start)
            if kind == "predicted":
                self.predictors[name] = nn.Linear(hidden, size, bias=False)
        if self.predictors:
            self.code = nn.Parameter(torch.empty(wide).uniform_(-1 / math.sqrt(n_in), 1 / math.sqrt(n_in)))
            self.hidden = (UnifiedHidden if config.unified_hidden else nn.Linear)(wide, hidden)
        self.row_offset = nn.Parameter(torch.zeros(n_out)) if config.offsets else None
        self.column_offset = nn.Parameter(torch.zeros(n_in)) if config.offsets else None

    def effective(self):
        """Return W_eff (n_out, n_in) and b_eff (n_out,)."""
        vectors = {name: vector() for name, vector in self.vectors.items()}
        if self.predictors:
            hidden = F.gelu(self.hidden(self.code))
            vectors |= {name: vectors[name] + predictor(hidden) for name, predictor in self.predictors.items()}
        weight = self.weight
        if "column_gain" in vectors:
            weight = weight * vectors["column_gain"]
        if self.column_offset is not None:
            weight = weight + self.column_offset
        if "row_gain" in vectors:
            weight = weight * vectors["row_gain"][:, None]
        if self.row_offset is not None:
            weight = weight + self.row_offset[:, None]
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
