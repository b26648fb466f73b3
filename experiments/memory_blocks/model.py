"""gpt2ish with blocks that add a mixture of learned vectors, not attention.

Idea. Some blocks read a learned memory instead of the other tokens.

Change. In a mixture block (N in `pattern`) a memory takes attention's part in a transformer block (B). Every token
reads it for itself: a small network s gives weights to `n_cell` learned vectors E_h in each of `n_expert_head` heads h:

    x = x + project(concat over heads h of  softmax(s_h(norm(x))) E_h),      x = x + feed_forward(norm(x))
    s(x) = S2 GELU(S1 x),   S1 from n_embd to m = (n_embd + n_cell) // 2,   S2 from m to n_cell * n_expert_head
    E_h (n_cell, n_embd / n_expert_head),   project from n_embd to n_embd

`pattern` lists the blocks in order and is repeated n_layer times; patterns joined by - take turns. Nothing can be
folded: what is chosen depends on the text. (memory_experts projects the vectors instead of each token's mixture. That
takes more than it saves here: there are more vectors than n_embd.)

Claim. 512 cells are a bit better than 256. Without the first LayerNorm the start is worse and results are mixed.
Without the softmax it is worse. Where the mixture blocks stand matters little; more than two in a row do not help. With
18 blocks none of these arms is matched to the baseline's 6 in parameters or FLOPs.

Source. jmward01/lmplay (nnm4_0 to nnm4_5).

Differs from the source. Dropout is 0 as in gpt2ish. The parts of gpt2ish, every feed-forward included, start with
gpt2ish's values, the vectors E at N(0, 1), the mixtures' linear layers with torch's values.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

parent = "gpt2ish"


@dataclass
class Config:
    vocab_size: int = 50257
    max_len: int = 1024
    n_layer: int = 6  # how often the pattern is repeated
    n_head: int = 12
    n_embd: int = 768
    mlp_ratio: float = 4.0  # width of the feed-forward layer, in n_embd
    dropout: float = 0.0  # most runs see each token once: there is nothing to overfit, and dropout only slows learning
    attention_dropout: float = 0.0  # on the probabilities of self-attention
    embedding_dropout: float | None = None  # on the embeddings; none: dropout
    head_bias: bool = True
    pattern: str = "BNN"  # blocks in order: B of the transformer, N with a mixture; several, joined by -, take turns
    n_cell: int = 256  # learned vectors to choose from, in each head
    n_expert_head: int = 6
    expert_norm: bool = True  # a LayerNorm before the mixture
    softmax: bool = True  # weights are positive and add up to 1 in each head


variants = {
    "6l": dict(),  # nnm4_0
    "no_norm": dict(expert_norm=False),  # nnm4_1
    "512_cells": dict(n_cell=512),  # nnm4_2
    "no_softmax": dict(softmax=False),  # nnm4_3
    "more_and_more": dict(pattern="BN-BN-BNN-BNN-BNNN-BNNN"),  # nnm4_4
    "more_in_the_middle": dict(pattern="BN-BNN-BNNN-BNNN-BNN-BN"),  # nnm4_5
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, n_expert_head=2),
    "tiny_1_in_2": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, n_expert_head=2, pattern="BN"),
    "tiny_more_and_more": dict(
        n_layer=4, n_head=4, n_embd=256, max_len=256, n_expert_head=2, pattern="BN-BN-BNNN-BNNN"
    ),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        patterns = config.pattern.split("-")
        if "B" not in config.pattern or not all(patterns) or not set(config.pattern) <= set("BN-"):
            raise ValueError(f"pattern {config.pattern!r} is not made of B (transformer block) and N (mixture block)")
        self.config = config
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions_embedding = nn.Embedding(config.max_len, config.n_embd)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.blocks = nn.ModuleList(
            Block(config) if kind == "B" else ExpertBlock(config)
            for i in range(config.n_layer)
            for kind in patterns[i % len(patterns)]
        )
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        self.initialise()

    def body(self, tokens, cache=None):
        """tokens (B, T) int64 -> what the head reads, (B, T, n_embd). Raises ValueError beyond max_len."""
        past = cache[0].length if cache else 0
        end = past + tokens.size(1)
        if end > self.config.max_len:
            raise ValueError(f"{end} tokens are more than the model's max_len of {self.config.max_len}")
        x = self.dropout(self.tokens_embedding(tokens) + self.positions_embedding.weight[past:end])
        caches = iter(cache or ())
        for block in self.blocks:
            x = block(x, next(caches, None)) if isinstance(block, Block) else block(x)
        return self.norm(x)

    def forward(self, tokens, cache=None):
        """tokens (B, T) int64 -> logits (B, T, vocab_size). With a cache, `tokens` are the new ones only."""
        return self.head(self.body(tokens, cache))

    def initialise(self):
        experts = {part for module in self.modules() if isinstance(module, Experts) for part in module.modules()}
        for module in self.modules():
            if module in experts:  # these keep torch's initial values
                continue
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # 2 branches per block add up on the residual stream: keep its variance whatever the depth
        for block in self.blocks:
            projections = [block.feed_forward.down] + ([block.attention.out] if isinstance(block, Block) else [])
            for projection in projections:
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * len(self.blocks)))

    def new_cache(self, batch: int) -> list["KeyValues"]:
        """Return an empty cache for `batch` sequences of up to max_len tokens: one KeyValues per transformer block."""
        c, weight = self.config, self.head.weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        shape = (batch, c.n_head, c.max_len, c.n_embd // c.n_head)
        return [
            KeyValues(*(torch.empty(shape, dtype=dtype, device=weight.device) for _ in range(2)))
            for block in self.blocks
            if isinstance(block, Block)
        ]


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config)

    def forward(self, x, cache=None):
        x = x + self.attention(self.attention_norm(x), cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd {config.n_embd} is not a multiple of n_head {config.n_head}")
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.out = nn.Linear(config.n_embd, config.n_embd)
        self.attention_dropout = nn.Dropout(config.attention_dropout).p  # nn.Dropout refuses what is no probability
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None):
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, D // self.n_head).permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.append(k, v)
        mask = None
        if past and T > 1:  # is_causal puts the first query beside the first key, which is right only without a past
            mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
        dropout = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=past == 0)
        return self.dropout(self.out(y.transpose(1, 2).reshape(B, T, D)))


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


class Experts(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        if config.n_embd % config.n_expert_head:
            raise ValueError(f"n_embd {config.n_embd} is not a multiple of n_expert_head {config.n_expert_head}")
        self.shape = config.n_expert_head, config.n_cell
        hidden = (config.n_embd + config.n_cell) // 2
        self.select = nn.Sequential(
            nn.Linear(config.n_embd, hidden), nn.GELU(), nn.Linear(hidden, math.prod(self.shape))
        )
        self.softmax = nn.Softmax(-1) if config.softmax else nn.Identity()
        self.cells = nn.Embedding(config.n_cell, config.n_embd)  # a cell of all heads in a row
        self.project = nn.Linear(config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        weights = self.softmax(self.select(x).unflatten(-1, self.shape))  # (B, T, heads, cells)
        cells = self.cells.weight.unflatten(1, (self.shape[0], -1))  # (cells, heads, D/heads)
        return self.dropout(self.project(torch.einsum("bthc,chw->bthw", weights, cells).flatten(-2)))


class ExpertBlock(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.experts_norm = nn.LayerNorm(config.n_embd) if config.expert_norm else nn.Identity()
        self.experts = Experts(config)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config)

    def forward(self, x):
        x = x + self.experts(self.experts_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


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
