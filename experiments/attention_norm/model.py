"""LayerNorm over each head's values (or keys, or queries) before attention.

Idea. With normed values, V no longer has to keep values that matter little small.

Change. v = W_v x + b_v is cut into heads of d = n_embd / n_head. Each head's v becomes LayerNorm(v) over its d
elements. The heads of a block share gain and offset (d each). Keys and queries are treated likewise if they are
switched on. The norm comes before the cache, so that each token is normed once.

Claim. Normed values are a "respectable boost": about 0.06 nats at 6 million documents against gpt2ish at 6 layers.
Normed keys are worse than none early on. Keys and values together are better than none but worse than values alone.
Normed queries are worse.

Source. jmward01/lmplay (attn_norm).

Differs from the source. The original registered its variants for values only. Those for keys lay beside them
unregistered, and queries were a remark. It can't be folded away: what LayerNorm divides by depends on the data.
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
    norm_values: bool = True
    norm_keys: bool = False
    norm_queries: bool = False
    norm_blocks: str = "all"  # "all", "not_first" (all but the first) or "first"


variants = {
    "values": dict(),  # normv1_0
    "values_not_first": dict(norm_blocks="not_first"),  # normv1_1: "let embeddings avoid it"
    "values_first": dict(norm_blocks="first"),  # normv1_2
    "keys": dict(norm_values=False, norm_keys=True),  # normk
    "both": dict(norm_keys=True),  # normkv
    "queries": dict(norm_values=False, norm_queries=True),
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256),
    "tiny_not_first": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, norm_blocks="not_first"),
    "tiny_first": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, norm_blocks="first"),
    "tiny_keys": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, norm_values=False, norm_keys=True),
    "tiny_both": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, norm_keys=True),
    "tiny_queries": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, norm_values=False, norm_queries=True),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions_embedding = nn.Embedding(config.max_len, config.n_embd)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        blocks = {"all": range(config.n_layer), "not_first": range(1, config.n_layer), "first": range(1)}
        if config.norm_blocks not in blocks:
            raise ValueError(f"norm_blocks must be one of {', '.join(blocks)}, not {config.norm_blocks}")
        self.blocks = nn.ModuleList(Block(config, i in blocks[config.norm_blocks]) for i in range(config.n_layer))
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
    def __init__(self, config: Config, normed: bool):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config, normed)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config)

    def forward(self, x, cache=None):
        x = x + self.attention(self.attention_norm(x), cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Attention(nn.Module):
    def __init__(self, config: Config, normed: bool):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd {config.n_embd} is not a multiple of n_head {config.n_head}")
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        width = config.n_embd // config.n_head
        self.queries_norm = nn.LayerNorm(width) if normed and config.norm_queries else nn.Identity()
        self.keys_norm = nn.LayerNorm(width) if normed and config.norm_keys else nn.Identity()
        self.values_norm = nn.LayerNorm(width) if normed and config.norm_values else nn.Identity()
        self.out = nn.Linear(config.n_embd, config.n_embd)
        self.attention_dropout = nn.Dropout(config.attention_dropout).p  # nn.Dropout refuses what is no probability
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None):
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, D // self.n_head).permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        q, k, v = self.queries_norm(q), self.keys_norm(k), self.values_norm(v)
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
