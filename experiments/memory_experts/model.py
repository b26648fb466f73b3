"""gpt2ish whose linear layers add a mixture of learned vectors by their input.

Idea. Every linear layer gets a memory of its own, whose keys are a network.

Change. Beside a linear layer (W, b) from a to b wide stands a small network s. It gives each input x weights for
`n_cell` learned vectors E_h in each of `n_expert_head` heads h:

    y = W x + b + project(concat over heads h of  softmax(s_h(x)) E_h)
    s(x) = S2 GELU(S1 x),   S1 from a to m = (a + n_cell) // 2,   S2 from m to n_cell * n_expert_head
    E_h (n_cell, b / n_expert_head),   project from b to b wide

`layers` says which of q, k, v, o(ut), u(p), d(own) have it. The projection of a mixture is the mixture of the
projections. So derive() projects the few vectors E once per step, and no token is multiplied by the b by b matrix of
`project`. fold() stores the projected vectors instead of both and drops the matrix. The networks s remain: what is
chosen depends on the text.

Claim. None beyond being tried. The later folder, memory_blocks, keeps the mixture and gives it a block of its own.

Source. jmward01/lmplay (NNELinear, nnm3_0 to nnm3_3).

Differs from the source. The original projects every token, and has no folding. Two of its variants do other than they
say, so both readings are here: the one with more cells is described with 20 and coded with 64, the one "without value"
is coded with it. Dropout is 0 as in gpt2ish. The parts of gpt2ish start with gpt2ish's values, the vectors E at N(0,
1), the mixtures' linear layers with torch's values.
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
    head_bias: bool = True
    layers: str = "qkvoud"  # the linear layers that have a mixture: q, k, v, o(ut), u(p), d(own)
    n_cell: int = 10  # learned vectors to choose from, in each head
    n_expert_head: int = 3
    folded: bool = False  # the projected vectors are constants: what fold() makes


variants = {
    "6l": dict(),  # nnm3_0
    "64_cells": dict(n_cell=64),  # nnm3_1 as coded
    "20_cells": dict(n_cell=20),  # nnm3_1 as described
    "feed_forward": dict(layers="ud"),  # nnm3_2
    "qkv": dict(layers="qkv"),  # nnm3_3 as coded
    "qk": dict(layers="qk"),  # nnm3_3 as described
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, n_expert_head=2),
    "tiny_feed_forward": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, n_expert_head=2, layers="ud"),
    "tiny_qkv": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, n_expert_head=2, layers="qkv"),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        if not set(config.layers) <= set("qkvoud"):
            raise ValueError(f"layers {config.layers!r} has other letters than q, k, v, o, u, d")
        self.config = config
        self.derived = None
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions_embedding = nn.Embedding(config.max_len, config.n_embd)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        self.initialise()

    def body(self, tokens, cache=None):
        """tokens (B, T) int64 -> what the head reads, (B, T, n_embd). Raises ValueError beyond max_len."""
        past = cache[0].length if cache else 0
        end = past + tokens.size(1)
        if end > self.config.max_len:
            raise ValueError(f"{end} tokens are more than the model's max_len of {self.config.max_len}")
        derived = self.derive() if self.derived is None else self.derived
        x = self.dropout(self.tokens_embedding(tokens) + self.positions_embedding.weight[past:end])
        for i, block in enumerate(self.blocks):
            x = block(x, derived, cache[i] if cache else None)
        return self.norm(x)

    def forward(self, tokens, cache=None):
        """tokens (B, T) int64 -> logits (B, T, vocab_size). With a cache, `tokens` are the new ones only."""
        return self.head(self.body(tokens, cache))

    def mixed(self) -> list["MixedLinear"]:
        return [module for module in self.modules() if isinstance(module, MixedLinear) and module.experts is not None]

    def derive(self):
        """Return the projected cells of each mixture by its layer's name: of the parameters alone."""
        return {linear.name: linear.experts.derive() for linear in self.mixed()}

    @torch.no_grad()
    def fold(self) -> "Model":
        """Return the same function with the projected cells as constants; their bias joins the linear layer's."""
        folded = Model(replace(self.config, folded=True)).to(self.head.weight)
        kept = folded.state_dict().keys()
        folded.load_state_dict({name: p for name, p in self.state_dict().items() if name in kept}, strict=False)
        for linear, ours in zip(folded.mixed(), self.mixed()):
            linear.experts.answers.copy_(ours.experts.derive())
            if ours.experts.project is not None:
                linear.bias += ours.experts.project.bias
        return folded.train(self.training)

    def initialise(self):
        experts = {part for module in self.modules() if isinstance(module, Experts) for part in module.modules()}
        for module in self.modules():
            if module in experts:  # these keep torch's initial values
                continue
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
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config, layer)

    def forward(self, x, derived, cache=None):
        x = x + self.attention(self.attention_norm(x), derived, cache)
        return x + self.feed_forward(self.feed_forward_norm(x), derived)


class Attention(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd {config.n_embd} is not a multiple of n_head {config.n_head}")
        self.n_head = config.n_head
        self.qkv = nn.ModuleList(MixedLinear(f"{layer}.{name}", config.n_embd, config.n_embd, config) for name in "qkv")
        self.out = MixedLinear(f"{layer}.out", config.n_embd, config.n_embd, config)
        self.attention_dropout = nn.Dropout(config.attention_dropout).p  # nn.Dropout refuses what is no probability
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, derived, cache=None):
        B, T, D = x.shape
        q, k, v = (linear(x, derived).view(B, T, self.n_head, D // self.n_head).transpose(1, 2) for linear in self.qkv)
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.append(k, v)
        mask = None
        if past and T > 1:  # is_causal puts the first query beside the first key, which is right only without a past
            mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
        dropout = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=past == 0)
        return self.dropout(self.out(y.transpose(1, 2).reshape(B, T, D), derived))


class FeedForward(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        width = int(config.mlp_ratio * config.n_embd)
        if width < 1:
            raise ValueError(f"mlp_ratio {config.mlp_ratio} leaves a feed-forward layer of width {width}")
        self.up = MixedLinear(f"{layer}.up", config.n_embd, width, config)
        self.gelu = nn.GELU()
        self.down = MixedLinear(f"{layer}.down", width, config.n_embd, config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, derived):
        return self.dropout(self.down(self.gelu(self.up(x, derived)), derived))


class Experts(nn.Module):
    """What is added to a linear layer from n_in to n_out."""

    def __init__(self, n_in: int, n_out: int, config: Config):
        super().__init__()
        if n_out % config.n_expert_head:
            raise ValueError(f"the width {n_out} is not a multiple of n_expert_head {config.n_expert_head}")
        self.shape = config.n_expert_head, config.n_cell
        hidden = (n_in + config.n_cell) // 2
        self.select = nn.Sequential(nn.Linear(n_in, hidden), nn.GELU(), nn.Linear(hidden, math.prod(self.shape)))
        self.answers = self.cells = self.project = None
        if config.folded:
            self.answers = nn.Parameter(torch.randn(n_out, math.prod(self.shape)) * 0.02)
        else:
            self.cells = nn.Embedding(config.n_cell, n_out)  # a cell of all heads in a row
            self.project = nn.Linear(n_out, n_out)

    def derive(self):
        """Return the projected cells of all heads, one per column: (n_out, n_expert_head * n_cell)."""
        if self.answers is not None:
            return self.answers
        cells, weight = (t.unflatten(1, (self.shape[0], -1)) for t in (self.cells.weight, self.project.weight))
        return torch.einsum("chw,ohw->ohc", cells, weight).flatten(1)

    def forward(self, x, answers):
        """x (..., n_in), answers from derive() -> (..., n_out)."""
        weights = self.select(x).unflatten(-1, self.shape).softmax(-1)  # (..., heads, cells)
        return F.linear(weights.flatten(-2), answers, self.project.bias if self.project is not None else None)


class MixedLinear(nn.Linear):
    """A linear layer and, if `name` ("0.q", "3.down") is one of those that have it, its mixture."""

    def __init__(self, name: str, n_in: int, n_out: int, config: Config):
        super().__init__(n_in, n_out)
        self.name = name
        self.experts = Experts(n_in, n_out, config) if name.split(".")[1][0] in config.layers else None

    def forward(self, x, derived):
        y = super().forward(x)
        return y if self.experts is None else y + self.experts(x, derived[self.name])


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
