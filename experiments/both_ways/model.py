"""gpt2ish that reads each window forwards and backwards, told which by a marker.

Idea. One model learns both directions of reading, so that they can be compared within it.

Change. Each window becomes two sequences: as it is behind the token <forward>, and turned round behind <backward>. The
markers stand in place of the BOS token and are never predicted. So both losses compare with those of gpt2ish and
reverse_time token for token. They are recorded separately: x_loss_forward and x_loss_backward in train.csv,
loss_forward and loss_backward in validate.csv. The loss that is trained on, and every other figure, is their mean. A
step costs twice as much as gpt2ish's for the same text: tokens and bytes of text count once, FLOPs twice.

Claim. None of its own: it is there to compare the two losses within one model (see reverse_time).

Source. Papadopoulos, Wenger and Hongler 2024, "Arrows of Time for Large Language Models" (arXiv 2401.17505).

Differs from the source. There the head's vocabulary has the markers, too. Here only the embedding has them, so that no
probability is lost on what is never asked for. So the head can't be tied.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

parent = "gpt2ish"
ways = ("forward", "backward")  # make_batch returns a row for each


def make_batch(window, bos, generator, config):
    """window (B, T) -> inputs and targets (2B, T): each row forwards, then backwards, behind the marker of each."""
    targets = torch.stack([window, window.flip(1)], dim=1)  # (B, 2, T)
    markers = torch.arange(config.vocab_size, config.vocab_size + len(ways)).view(1, -1, 1).expand(len(window), -1, 1)
    return torch.cat([markers, targets[:, :, :-1]], dim=2).flatten(0, 1), targets.flatten(0, 1)


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
    tied: bool = False  # the head shares the token embedding's weights
    head_bias: bool = True
    # Below: for variants in extras.py.
    tanh_gelu: bool = False  # GPT-2's approximation instead of the exact GELU
    torch_init: bool = False  # torch's default initial values, zero positions
    embedding_std: float = 0.02  # of the token embedding's initial values, where torch_init is off
    embedding_lr: float = 1.0  # factor on the token embedding's learning rate


variants = {
    "6l": dict(),
    "12l": dict(n_layer=12),
    "med": dict(n_layer=24, n_head=16, n_embd=1024),
    "large": dict(n_layer=36, n_head=20, n_embd=1280),
    "small_deep": dict(n_layer=18, n_head=6, n_embd=288),
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        if config.tied:
            raise ValueError("tied: the embedding has rows for the markers, which the head must not predict")
        self.tokens_embedding = nn.Embedding(config.vocab_size + len(ways), config.n_embd)  # and the markers
        self.positions_embedding = nn.Embedding(config.max_len, config.n_embd)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tied:
            self.head.weight = self.tokens_embedding.weight
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
