"""gpt2ish with blocks that look up a learned memory that every token attends to.

Idea. Some blocks attend to learned cells instead of the other tokens.

Change. A memory is a table of `n_cell` learned vectors. Its keys K and values V are computed from the table, whatever
the text is:

    M = table, or I2(GELU(I1(table))) with rows `memory_multiple` times as wide        (n_cell, cell_multiple n_embd)
    K = key(M), V = value(M)                                                           (n_cell, n_embd)

A memory layer attends to the cells with `n_memory_head` heads, without a mask, since no cell knows of a position. A
memory block (M in `pattern`) is a transformer block (B) with a memory layer in place of the attention:

    memory(x) = out(softmax(query(x) K^T / sqrt(head width)) V)
    x = x + memory(norm(x)),   x = x + feed_forward(norm(x))

Every memory block uses the same memory and the same layer, unless `own_memories` or `own_layers`. K and V depend on the
parameters alone. derive() computes them, and fold() stores them as two constants, which drops the tables and their
networks. The folded model is no gpt2ish. (Going on, K would melt into query and V into out, head by head. A memory
layer is a feed-forward layer with n_memory_head * n_cell hidden units whose activation is a softmax within each head.)

Claim. Cheaper than a transformer block and more valuable, as long as some attention remains. Memories of their own are
better than layers of their own, which are better than all shared. More memory blocks help. Half the depth, no residual
and more heads do not. None of these arms has as many parameters or FLOPs as its baseline.

Source. jmward01/lmplay (nnm1_0 to nnm1_12).

Differs from the source. Ten of its thirteen variants no longer run. Dropout is 0 as in gpt2ish. The parts of gpt2ish,
the second feed-forward included, start with gpt2ish's values. Tables start at N(0, 1) and the memory's own linear
layers with torch's values, as there.
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
    n_layer: int = 6  # how often the pattern is repeated
    n_head: int = 12
    n_embd: int = 768
    mlp_ratio: float = 4.0  # width of the feed-forward layer, in n_embd
    dropout: float = 0.0  # most runs see each token once: there is nothing to overfit, and dropout only slows learning
    attention_dropout: float = 0.0  # on the probabilities of self-attention
    embedding_dropout: float | None = None  # on the embeddings; none: dropout
    head_bias: bool = True
    pattern: str = "BM"  # blocks in order: B of the transformer, M with a memory layer
    n_cell: int = 128
    cell_multiple: int = 1  # width of a cell in n_embd
    memory_multiple: int = (
        32  # width of the table's rows in cells, brought down by a network; 0: the rows are the cells
    )
    n_memory_head: int = 6
    own_memories: bool = False  # a table, keys and values for each memory block
    own_layers: bool = False  # query and out for each memory block
    memory_residual: bool = True  # False: what the feed-forward of a memory block reads is the memory's answer alone
    folded: bool = False  # keys and values are constants: what fold() makes


variants = {
    "6l": dict(),  # nnm1_0
    "own_layers": dict(own_layers=True),  # nnm1_1
    "own_memories": dict(own_layers=True, own_memories=True),  # nnm1_2
    "memory_first": dict(pattern="MB"),  # nnm1_3
    "two_memory_blocks": dict(pattern="BMM"),  # nnm1_4
    "3l_own_memories": dict(n_layer=3, own_layers=True, own_memories=True),  # nnm1_5
    "no_residual": dict(memory_residual=False),  # nnm1_6
    "12_heads": dict(n_memory_head=12),  # nnm1_7
    "64_cells": dict(n_cell=64),  # nnm1_8
    "multiple_64": dict(memory_multiple=64),  # nnm1_9
    "plain_cells": dict(memory_multiple=0),  # nnm1_10
    "plain_wide_cells": dict(memory_multiple=0, cell_multiple=8),  # nnm1_11
    # nnm1_12
    "two_own_plain_wide": dict(pattern="BMM", own_layers=True, own_memories=True, memory_multiple=0, cell_multiple=8),
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, n_memory_head=2),
    "tiny_own_memories": dict(
        n_layer=4, n_head=4, n_embd=256, max_len=256, n_memory_head=2, own_layers=True, own_memories=True
    ),
    "tiny_plain_cells": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, n_memory_head=2, memory_multiple=0),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        if set(config.pattern) != {"B", "M"}:
            raise ValueError(f"pattern {config.pattern!r} is not made of B (transformer block) and M (memory block)")
        self.config = config
        self.derived = None
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions_embedding = nn.Embedding(config.max_len, config.n_embd)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.blocks = nn.ModuleList(
            Block(config) if kind == "B" else MemoryBlock(config) for kind in config.pattern * config.n_layer
        )
        n_memory_block = config.n_layer * config.pattern.count("M")
        n_memory = n_memory_block if config.own_memories else 1
        self.memory_layers = nn.ModuleList(
            MemoryLayer(config) for _ in range(n_memory_block if config.own_layers else 1)
        )
        self.memories = nn.ModuleList(Memory(config) for _ in range(0 if config.folded else n_memory))
        if config.folded:
            self.memory_keys = nn.Parameter(torch.randn(n_memory, config.n_cell, config.n_embd) * 0.02)
            self.memory_values = nn.Parameter(torch.randn(n_memory, config.n_cell, config.n_embd) * 0.02)
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
        caches, n_asked = iter(cache or ()), 0
        for block in self.blocks:
            if isinstance(block, Block):
                x = block(x, next(caches, None))
                continue
            keys, values = (derived[name][n_asked % len(derived[name])] for name in ("memory_keys", "memory_values"))
            x = block(x, self.memory_layers[n_asked % len(self.memory_layers)], keys, values)
            n_asked += 1
        return self.norm(x)

    def forward(self, tokens, cache=None):
        """tokens (B, T) int64 -> logits (B, T, vocab_size). With a cache, `tokens` are the new ones only."""
        return self.head(self.body(tokens, cache))

    def derive(self):
        """Return keys and values of the memories, each (n_memories, n_cell, n_embd): of the parameters alone."""
        if self.config.folded:
            return {"memory_keys": self.memory_keys, "memory_values": self.memory_values}
        keys, values = zip(*(memory() for memory in self.memories))
        return {"memory_keys": torch.stack(keys), "memory_values": torch.stack(values)}

    @torch.no_grad()
    def fold(self) -> "Model":
        """Return the same function with the keys and values as constants, without what they were computed from."""
        folded = Model(replace(self.config, folded=True)).to(self.head.weight)
        rest = {name: p for name, p in self.state_dict().items() if not name.startswith("memories.")}
        folded.load_state_dict(rest | self.derive())
        return folded.train(self.training)

    def initialise(self):
        own = {*self.memories.modules(), *self.memory_layers.modules()}  # these keep torch's initial values
        for module in self.modules():
            if module in own:
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


class Memory(nn.Module):
    """Keys and values of the cells, each (n_cell, n_embd), from a table of the cells."""

    def __init__(self, config: Config):
        super().__init__()
        width = config.cell_multiple * config.n_embd
        multiple = config.memory_multiple
        self.cells = nn.Embedding(config.n_cell, (multiple or 1) * width)
        self.network = nn.Identity()
        if multiple:
            self.network = nn.Sequential(nn.Linear(multiple * width, width), nn.GELU(), nn.Linear(width, width))
        self.key = nn.Linear(width, config.n_embd)  # with a bias as in the original, though a softmax does not see it
        self.value = nn.Linear(width, config.n_embd)

    def forward(self):
        cells = self.network(self.cells.weight)
        return self.key(cells), self.value(cells)


class MemoryLayer(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        if config.n_embd % config.n_memory_head:
            raise ValueError(f"n_embd {config.n_embd} is not a multiple of n_memory_head {config.n_memory_head}")
        self.n_head = config.n_memory_head
        self.query = nn.Linear(config.n_embd, config.n_embd)
        self.out = nn.Linear(config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, keys, values):
        """x (B, T, D), keys and values (n_cell, D) -> (B, T, D)."""
        B, T, D = x.shape
        q, k, v = (
            y.reshape(1, -1, self.n_head, D // self.n_head).transpose(1, 2) for y in (self.query(x), keys, values)
        )
        # all tokens in one row (1, H, B T, D/H): they share keys and values
        y = F.scaled_dot_product_attention(q, k, v)
        return self.dropout(self.out(y.transpose(1, 2).reshape(B, T, D)))


class MemoryBlock(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.residual = config.memory_residual
        self.memory_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config)

    def forward(self, x, memory, keys, values):
        answer = memory(self.memory_norm(x), keys, values)
        if not self.residual:
            return x + self.feed_forward(self.feed_forward_norm(answer))
        x = x + answer
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
