"""gpt2ish whose linear layers look up a learned memory that every token attends to.

Idea. One shared memory answers what each linear layer would compute.

Change. Each of a block's six linear layers f from a to b wide (q, k, v, out, up, down) becomes a narrow question to one
memory that all of them share, with an answer as wide as f's:

    f(x) = out(softmax(query(x) K^T / sqrt(head width)) V),    query from a to n_embd, out from n_embd to b wide

It has n_memory_head heads over n_cell cells. With `direct` the plain linear layer is added. Keys K and values V are
computed from a table of learned vectors, `memory_multiple` times as wide as a cell, whatever the text is:

    M = I2(GELU(I1(table))),   K = key(M),   V = value(M)                             (n_cell, n_embd)

They depend on the parameters alone. derive() computes them, and fold() stores them as two constants, which drops the
table and its network. The folded model is no gpt2ish. Without `direct` a block's answers are mixtures of the same
n_cell values whatever is asked, and at first near their mean.

Claim. None that is written down.

Source. jmward01/lmplay, nnm2_0 and nnm2_1 ("shadow"), after nnm1 (see neural_memory).

Differs from the source. Neither of its variants runs any more. Dropout is 0 as in gpt2ish. The parts of gpt2ish,
`direct` included, start with gpt2ish's values. The table starts at N(0, 1) and the memory's own linear layers with
torch's values, as there.
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
    n_cell: int = 128
    memory_multiple: int = 32  # width of the table's rows in cells; a network brings them down
    n_memory_head: int = 6
    direct: bool = False  # the plain linear layers are there, too
    folded: bool = False  # keys and values are constants: what fold() makes


variants = {
    "6l": dict(),  # nnm2_0
    "direct": dict(direct=True),  # nnm2_1
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, n_memory_head=2),
    "tiny_direct": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, n_memory_head=2, direct=True),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.derived = None
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions_embedding = nn.Embedding(config.max_len, config.n_embd)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        if config.folded:
            self.memory_keys = nn.Parameter(torch.randn(config.n_cell, config.n_embd) * 0.02)
            self.memory_values = nn.Parameter(torch.randn(config.n_cell, config.n_embd) * 0.02)
        else:
            self.memory = Memory(config)
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
        memory = derived["memory_keys"], derived["memory_values"]
        for i, block in enumerate(self.blocks):
            x = block(x, memory, cache[i] if cache else None)
        return self.norm(x)

    def forward(self, tokens, cache=None):
        """tokens (B, T) int64 -> logits (B, T, vocab_size). With a cache, `tokens` are the new ones only."""
        return self.head(self.body(tokens, cache))

    def derive(self):
        """Return keys and values of the memory, each (n_cell, n_embd): of the parameters alone."""
        keys, values = (self.memory_keys, self.memory_values) if self.config.folded else self.memory()
        return {"memory_keys": keys, "memory_values": values}

    @torch.no_grad()
    def fold(self) -> "Model":
        """Return the same function with the keys and values as constants, without what they were computed from."""
        folded = Model(replace(self.config, folded=True)).to(self.head.weight)
        rest = {name: p for name, p in self.state_dict().items() if not name.startswith("memory.")}
        folded.load_state_dict(rest | self.derive())
        return folded.train(self.training)

    def initialise(self):
        for name, module in self.named_modules():
            if name.startswith("memory.") or name.endswith((".query", ".out")):
                continue
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # 2 n_layer branches add up on the residual stream: keep its variance whatever the depth
        for block in self.blocks:
            for layer in (block.attention.out, block.feed_forward.down):
                if layer.direct is not None:
                    nn.init.normal_(layer.direct.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

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
    def __init__(self, config: Config):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config)

    def forward(self, x, memory, cache=None):
        x = x + self.attention(self.attention_norm(x), memory, cache)
        return x + self.feed_forward(self.feed_forward_norm(x), memory)


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd {config.n_embd} is not a multiple of n_head {config.n_head}")
        self.n_head = config.n_head
        self.qkv = nn.ModuleList(MemoryLinear(config.n_embd, config.n_embd, config) for _ in range(3))
        self.out = MemoryLinear(config.n_embd, config.n_embd, config)
        self.attention_dropout = nn.Dropout(config.attention_dropout).p  # nn.Dropout refuses what is no probability
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, memory, cache=None):
        B, T, D = x.shape
        q, k, v = (f(x, memory).view(B, T, self.n_head, D // self.n_head).transpose(1, 2) for f in self.qkv)
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.append(k, v)
        mask = None
        if past and T > 1:  # is_causal puts the first query beside the first key, which is right only without a past
            mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
        dropout = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=past == 0)
        return self.dropout(self.out(y.transpose(1, 2).reshape(B, T, D), memory))


class FeedForward(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        width = int(config.mlp_ratio * config.n_embd)
        if width < 1:
            raise ValueError(f"mlp_ratio {config.mlp_ratio} leaves a feed-forward layer of width {width}")
        self.up = MemoryLinear(config.n_embd, width, config)
        self.gelu = nn.GELU()
        self.down = MemoryLinear(width, config.n_embd, config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, memory):
        return self.dropout(self.down(self.gelu(self.up(x, memory)), memory))


class Memory(nn.Module):
    """Keys and values of the cells, each (n_cell, n_embd), from a table of the cells."""

    def __init__(self, config: Config):
        super().__init__()
        D = config.n_embd
        self.cells = nn.Embedding(config.n_cell, config.memory_multiple * D)
        self.network = nn.Sequential(nn.Linear(config.memory_multiple * D, D), nn.GELU(), nn.Linear(D, D))
        self.key = nn.Linear(D, D)  # with a bias as in the original, though a softmax does not see it
        self.value = nn.Linear(D, D)

    def forward(self):
        cells = self.network(self.cells.weight)
        return self.key(cells), self.value(cells)


class MemoryLinear(nn.Module):
    """In place of nn.Linear(n_in, n_out)."""

    def __init__(self, n_in: int, n_out: int, config: Config):
        super().__init__()
        if config.n_embd % config.n_memory_head:
            raise ValueError(f"n_embd {config.n_embd} is not a multiple of n_memory_head {config.n_memory_head}")
        self.n_head = config.n_memory_head
        self.query = nn.Linear(n_in, config.n_embd)
        self.out = nn.Linear(config.n_embd, n_out)
        self.dropout = nn.Dropout(config.dropout)
        self.direct = nn.Linear(n_in, n_out) if config.direct else None

    def forward(self, x, memory):
        """x (B, T, n_in), memory: keys and values (n_cell, D) -> (B, T, n_out)."""
        B, T, _ = x.shape
        # all tokens in one row, (1, H, B T, D/H): they share keys and values
        q, k, v = (
            y.reshape(1, -1, self.n_head, y.size(-1) // self.n_head).transpose(1, 2) for y in (self.query(x), *memory)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, -1)
        y = self.dropout(self.out(y))
        return y if self.direct is None else y + self.direct(x)


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
