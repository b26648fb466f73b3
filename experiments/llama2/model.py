"""Llama 2: RMSNorm, SwiGLU and rotary positions, no biases.

Idea. Take the decoder that came after GPT-2's, as the baseline that an idea is up against today.

Change. RMSNorm before each sub-layer (arXiv 1910.07467). A gated feed-forward, SwiGLU (arXiv 2002.05202). Positions are
rotations of queries and keys, RoPE (arXiv 2104.09864). Optionally there are fewer key and value heads than query heads
(arXiv 2305.13245). The head is untied; there are no biases.

Claim. A lower loss than GPT-2's blocks at the same size and data.

Source. Touvron et al. 2023 (arXiv 2307.09288).

Differs from the source. Nothing in the architecture: extras.py reads and writes Hugging Face weights. Initial values
are gpt2ish's. The fields l2_norm, silu_sum and scores_by_width are parts of another model, `mpacl_12m` in extras.py.
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
    n_layer: int = 6
    n_head: int = 12
    n_kv_head: int = 0  # heads of keys and values, each shared by n_head / n_kv_head queries; 0: as many as n_head
    n_embd: int = 768
    mlp_ratio: float = 4.0  # the feed-forward's hidden width is 2/3 of it, in n_embd, ...
    hidden_multiple: int = 256  # ... rounded up to a multiple of this
    rope_base: float = 10000.0
    dropout: float = 0.0  # on the embeddings only
    tied: bool = False  # the head shares the token embedding's weights
    head_bias: bool = False
    l2_norm: bool = False  # the three parts of mpacl_12m that Llama does otherwise
    silu_sum: bool = False
    scores_by_width: bool = False


variants = {
    "6l": dict(),
    "12l": dict(n_layer=12),
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, hidden_multiple=64, max_len=256),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = new_norm(config)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tied:
            self.head.weight = self.tokens_embedding.weight
        self.initialise()

    def body(self, tokens, cache=None):
        """tokens (B, T) int64 -> what the head reads, (B, T, n_embd). Raises ValueError beyond max_len."""
        c = self.config
        past = cache[0].length if cache else 0
        end = past + tokens.size(1)
        if end > c.max_len:
            raise ValueError(f"{end} tokens are more than the model's max_len of {c.max_len}")
        cos, sin = rotation(past, end, c.n_embd // c.n_head, c.rope_base, tokens.device)
        x = self.dropout(self.tokens_embedding(tokens))
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, cache[i] if cache else None)
        return self.norm(x)

    def forward(self, tokens, cache=None):
        """tokens (B, T) int64 -> logits (B, T, vocab_size). With a cache, `tokens` are the new ones only."""
        return self.head(self.body(tokens, cache))

    def initialise(self):
        for module in self.modules():
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
        shape = (batch, c.n_kv_head or c.n_head, c.max_len, c.n_embd // c.n_head)
        return [
            KeyValues(*(torch.empty(shape, dtype=dtype, device=weight.device) for _ in range(2)))
            for _ in range(c.n_layer)
        ]


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        if config.mlp_ratio * config.n_embd < 1:
            raise ValueError(f"mlp_ratio {config.mlp_ratio} leaves a feed-forward layer of no width")
        self.attention_norm = new_norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = new_norm(config)
        self.feed_forward = SiLUSum(config) if config.silu_sum else SwiGLU(config)

    def forward(self, x, cos, sin, cache=None):
        x = x + self.attention(self.attention_norm(x), cos, sin, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.n_head, self.n_kv_head = config.n_head, config.n_kv_head or config.n_head
        self.width = config.n_embd // config.n_head
        if config.n_embd % (2 * config.n_head):
            raise ValueError(f"n_embd {config.n_embd} is not an even multiple of n_head {config.n_head}")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}")
        self.scale = config.n_embd**-0.5 if config.scores_by_width else self.width**-0.5
        self.qkv = nn.Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * self.width, bias=False)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x, cos, sin, cache=None):
        B, T, D = x.shape
        qkv = self.qkv(x).view(B, T, -1, self.width)
        qk, v = qkv.split((self.n_head + self.n_kv_head, self.n_kv_head), dim=2)
        q, k = rotate(qk, cos, sin).split((self.n_head, self.n_kv_head), dim=2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T, width)
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.append(k, v)
        mask = None
        if past and T > 1:  # is_causal puts the first query beside the first key, which is right only without a past
            mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=past == 0, scale=self.scale, enable_gqa=self.n_kv_head < self.n_head
        )
        return self.out(y.transpose(1, 2).reshape(B, T, D))


class L2Norm(nn.Module):
    """sqrt(D) g x / (||x||_2 + eps): RMSNorm, except where eps goes in."""

    def __init__(self, width: int, eps: float = 1.19e-7):
        super().__init__()
        self.scale, self.eps = math.sqrt(width), eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.scale * self.weight * x / (x.norm(dim=-1, keepdim=True) + self.eps)


def new_norm(config: Config) -> nn.Module:
    return L2Norm(config.n_embd) if config.l2_norm else nn.RMSNorm(config.n_embd, eps=1e-5)


def rotation(start: int, end: int, width: int, base: float, device):
    """Return cosines and sines (T, 1, width/2) of the angles position * base^(-2i/width), in float32."""
    frequencies = base ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angles = torch.arange(start, end, device=device, dtype=torch.float32)[:, None, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turn each pair (x_i, x_{i + width/2}) of x (B, T, H, width) by its angle, in float32 whatever the dtype of x."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class SwiGLU(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        hidden = math.ceil(2 * config.mlp_ratio * config.n_embd / (3 * config.hidden_multiple)) * config.hidden_multiple
        self.gate_up = nn.Linear(config.n_embd, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, config.n_embd, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class SiLUSum(nn.Module):
    """mpacl_12m's: a sum where SwiGLU has a product, after one more linear layer, mlp_ratio n_embd wide."""

    def __init__(self, config: Config):
        super().__init__()
        hidden = int(config.mlp_ratio * config.n_embd)
        self.up = nn.Linear(config.n_embd, hidden, bias=False)
        self.split = nn.Linear(hidden, 2 * hidden)
        self.down = nn.Linear(hidden, config.n_embd, bias=False)

    def forward(self, x):
        a, b = self.split(self.up(x)).chunk(2, dim=-1)
        return self.down(F.silu(a) + b)


# Optional below: delete what you don't need, and `new_cache` above with it.


class KeyValues:
    """Keys and values (B, heads, max_len, width) of one layer, filled up to `length`."""

    def __init__(self, keys, values):
        self.keys, self.values, self.length = keys, values, 0

    def append(self, keys, values):
        """Store those of the new tokens in place; return those of all tokens so far, (B, heads, length, width)."""
        start, self.length = self.length, self.length + keys.size(2)
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]
