"""Attention with a learned temperature, per query and head or per block.

Idea. Let the model learn how sharply its attention focuses.

Change. Scores of heads of width d are divided by s, which is sqrt(d) in gpt2ish.
`full`: s = 2 sqrt(d) sigmoid(W_s x_i + b_s)_h for query i and head h, where x is the block's normed input. So s is
between nothing and twice the usual. It starts near the usual: W_s and b_s have torch's default initial values.
`simple`: s = theta sqrt(d), with one number theta per block, 1 at first. `fold()` then divides the queries' weights and
biases by theta, which leaves a plain gpt2ish. `full` can't be folded: its temperature depends on the data.

Claim. `simple` has a tiny early gain that does not last, at the price of fused attention. Of `full`: "not sure what I
was thinking".

Source. jmward01/lmplay (focus, foc).

Differs from the source. Fused attention stays, since it is the query that is divided.
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
    temperature: str = "full"  # "full", "simple" or "none"


variants = {
    "full": dict(),  # foc1_0
    "simple": dict(temperature="simple"),  # foc1_1
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256),
    "tiny_simple": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, temperature="simple"),
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

    @torch.no_grad()
    def fold(self) -> "Model":
        """Return the same function as a plain gpt2ish. Raises ValueError for a temperature that depends on the data."""
        if self.config.temperature == "full":
            raise ValueError("the temperature full depends on the data and can't be folded away")
        weights = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        for i in range(self.config.n_layer):
            theta = weights.pop(f"blocks.{i}.attention.theta", 1.0)
            for name in ("weight", "bias"):
                weights[f"blocks.{i}.attention.qkv.{name}"][: self.config.n_embd] /= theta  # the rows of the queries
        with torch.device("meta"):
            folded = Model(replace(self.config, temperature="none"))
        folded.load_state_dict(weights, assign=True)
        return folded.train(self.training)

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
            if block.attention.focus is not None:
                block.attention.focus.reset_parameters()

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
        if config.temperature not in ("full", "simple", "none"):
            raise ValueError(f"temperature must be one of full, simple, none, not {config.temperature}")
        self.focus = nn.Linear(config.n_embd, config.n_head) if config.temperature == "full" else None
        self.theta = nn.Parameter(torch.ones(())) if config.temperature == "simple" else None
        self.out = nn.Linear(config.n_embd, config.n_embd)
        self.attention_dropout = nn.Dropout(config.attention_dropout).p  # nn.Dropout refuses what is no probability
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None):
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, D // self.n_head).permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        if self.focus is not None:  # 1 / (2 sigmoid(z)) is (1 + exp(-z)) / 2
            q = q * ((1 + torch.exp(-self.focus(x))) / 2).transpose(1, 2).unsqueeze(3).to(q.dtype)
        elif self.theta is not None:
            q = q / self.theta
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
