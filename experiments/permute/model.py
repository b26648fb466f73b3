"""gpt2ish that reads each window in another order: middle out, shuffled, ...

Idea. Every order of the tokens factors the same joint probability. So losses show which order is easy to predict in.

Change. The tokens of a window are moved before they are predicted, always in the same way; the model stays as it is.
`order` is a permutation of the window's positions. The token at order[0] is predicted from the BOS token alone, the one
at order[1] from that, and so on. Losses compare with gpt2ish's token for token. Position k of the model is position
order[k] of the window. A window shorter than the context, the last of a validation set, leaves out the positions that
it has not. It writes whole windows only.

Claim. Reading forwards is the easiest of all. Shuffled orders are far worse than reversal.

Source. Papadopoulos, Wenger and Hongler 2024, "Arrows of Time for Large Language Models" (arXiv 2401.17505).

Differs from the source. `order` is one of the paper's 18, the same with another seed (uniform:7), or a list of
positions (3,0,2,1). Seeds are the paper's; what they draw is not.
"""

import math
import random
from dataclasses import dataclass
from functools import lru_cache

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
    order: str = "middle_out"  # in which the positions of a window are read: see ORDERS
    tied: bool = False  # the head shares the token embedding's weights
    head_bias: bool = True
    # Below: for variants in extras.py.
    tanh_gelu: bool = False  # GPT-2's approximation instead of the exact GELU
    torch_init: bool = False  # torch's default initial values, zero positions
    embedding_std: float = 0.02  # of the token embedding's initial values, where torch_init is off
    embedding_lr: float = 1.0  # factor on the token embedding's learning rate


variants = {  # the paper's orders; the seeds of "uniform" and "chunks" are its own, the draws are not
    "middle_out": dict(),
    "forward": dict(order="forward"),
    "backward": dict(order="backward"),
    "end_in": dict(order="end_in"),
    "even_odd": dict(order="even_odd"),
    "odd_even": dict(order="odd_even"),
    "backward_forward": dict(order="backward_forward"),
    "forward_backward": dict(order="forward_backward"),
    "middle_out_concatenated": dict(order="middle_out_concatenated"),
    "end_in_concatenated": dict(order="end_in_concatenated"),
    "middle_out_interleaved": dict(order="middle_out_interleaved"),
    "end_in_interleaved": dict(order="end_in_interleaved"),
    "chunks_0": dict(order="chunks:0"),
    "chunks_5": dict(order="chunks:5"),
    "uniform_0": dict(order="uniform:0"),
    "uniform_5": dict(order="uniform:5"),
    "uniform_10": dict(order="uniform:10"),
    "uniform_15": dict(order="uniform:15"),
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256),  # with --set order=NAME
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions_embedding = nn.Embedding(config.max_len, config.n_embd)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tied:
            self.head.weight = self.tokens_embedding.weight
        places(config.order, config.max_len)
        self.initialise()

    def body(self, tokens, cache=None):
        """tokens (B, T) int64 -> what the head reads, (B, T, n_embd). Raises ValueError beyond max_len."""
        past = cache[0].length if cache else 0
        end = past + tokens.size(1)
        if end > self.config.max_len:
            raise ValueError(f"{end} tokens are more than the model's max_len of {self.config.max_len}")
        x = self.dropout(self.tokens_embedding(tokens) + self.positions_embedding.weight[past:end])
        for i, block in enumerate(self.blocks):
            x = block(x, cache[i] if cache else None)
        return self.norm(x)

    def forward(self, tokens, cache=None):
        """tokens (B, T) int64 -> logits (B, T, vocab_size). With a cache, `tokens` are the new ones only."""
        return self.head(self.body(tokens, cache))

    def initialise(self):
        if self.config.torch_init:
            nn.init.zeros_(self.positions_embedding.weight)
            return
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                std = self.config.embedding_std if module is self.tokens_embedding else 0.02
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # 2 n_layer branches add up on the residual stream: keep its variance whatever the depth
        for block in self.blocks:
            for projection in (block.attention.out, block.feed_forward.down):
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def param_groups(self, lr, weight_decay):
        """Return the exceptions: the token embedding has a rate of its own. The harness groups the other parameters."""
        rate = lr * self.config.embedding_lr
        return [{"params": [self.tokens_embedding.weight], "weight_decay": 0.0, "lr": rate}]

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
        self.gelu = nn.GELU("tanh" if config.tanh_gelu else "none")
        self.down = nn.Linear(width, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.down(self.gelu(self.up(x))))


def middle_out(x):
    """Return x from the middle in turn to the left and to the right."""
    left, right = x[: len(x) // 2][::-1], x[len(x) // 2 + 1 :]
    return x[len(x) // 2 : len(x) // 2 + 1] + [p for pair in zip(left, right) for p in pair] + left[len(right) :]


def end_in(x):
    """Return x from both ends in turn to the middle."""
    return [p for pair in zip(x, x[::-1]) for p in pair][: len(x)]


def interleaved(x, y):
    return [p for pair in zip(x, y) for p in pair] + y[len(x) :]


def shuffled(x, seed):
    return random.Random(seed).sample(x, len(x))


CHUNK = 8


ORDERS = {  # of the positions x of a window, with its first half a and its second half b
    "forward": lambda x, a, b, seed: x,
    "backward": lambda x, a, b, seed: x[::-1],
    "middle_out": lambda x, a, b, seed: middle_out(x),
    "end_in": lambda x, a, b, seed: end_in(x),
    "even_odd": lambda x, a, b, seed: x[::2] + x[1::2],
    "odd_even": lambda x, a, b, seed: x[1::2] + x[::2],
    "backward_forward": lambda x, a, b, seed: a[::-1] + b,
    "forward_backward": lambda x, a, b, seed: a + b[::-1],
    "middle_out_concatenated": lambda x, a, b, seed: middle_out(a) + middle_out(b),
    "end_in_concatenated": lambda x, a, b, seed: end_in(a) + end_in(b),
    "middle_out_interleaved": lambda x, a, b, seed: interleaved(middle_out(a), middle_out(b)),
    "end_in_interleaved": lambda x, a, b, seed: interleaved(end_in(a), end_in(b)),
    "chunks": lambda x, a, b, seed: [p for i in shuffled(range(0, len(x), CHUNK), seed) for p in x[i : i + CHUNK]],
    "uniform": lambda x, a, b, seed: shuffled(x, seed),
}


@lru_cache
def places(order: str, length: int) -> tuple[int, ...]:
    """Return positions 0 to length - 1 in the order in which they are read. Raises ValueError for an unknown order."""
    name, _, seed = order.partition(":")
    x, half = list(range(length)), length // 2
    if name in ORDERS and (not seed or seed.isdecimal() and name in ("chunks", "uniform")):
        return tuple(ORDERS[name](x, x[:half], x[half:], int(seed or 0)))
    listed = [int(part) for part in order.split(",") if part.strip().isdecimal()]
    if sorted(listed) != x or len(listed) != order.count(",") + 1:
        raise ValueError(
            f"order must be one of {', '.join(ORDERS)} (chunks and uniform also with a seed, uniform:5), or a list of "
            f"the positions 0 to {length - 1} with commas between them, not {order[:60]!r}"
        )
    return tuple(listed)


def make_batch(window, bos, generator, config):
    """window (B, T) -> inputs (B, T), targets (B, T): moved to `config.order`; the first sees `bos` alone."""
    order = [place for place in places(config.order, config.max_len) if place < window.size(1)]
    targets = window[:, order]
    return F.pad(targets[:, :-1], (1, 0), value=bos), targets


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
