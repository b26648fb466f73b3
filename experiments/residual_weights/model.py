"""Residual connections that weight stream and branch: alpha x + beta y.

Idea. Let a block learn how much of the stream x and of the branch y it keeps, instead of x + y.

Change. Both additions of a block become alpha x + beta y, with [alpha; beta] = floor + (ceil - floor) sigmoid(z). D is
n_embd. o is 2D (one alpha and one beta per feature) or 2 (one of each). z comes from
    linear  Linear(2D -> o) of [x; y],
    mlp     Linear(2D -> D), ReLU, Linear(D -> o) of [x; y],
    free    o parameters.
z is 0 at first. With floor 0.4 and ceil 1.5 all weights then are 0.95, which is no identity: 12 additions multiply the
stream by 0.54.
`free` with o = 2 folds to a plain gpt2ish. LayerNorm does not see the scale of what it normalizes. So the stream can be
kept divided by c, the product of the alphas so far: x/c + (beta / (c alpha)) y. The factor goes into the branch's last
projection.

Claim. None with figures.

Source. jmward01/lmplay (connections, LRAdd, lra1).

Differs from the source. The original's predicted z was near 0 at first, not 0. LayerNorm's eps does see the scale. So
`free` with o = 2 is computed as it folds, and its eps is 1e-5 in units of the divided stream (1e-5 c^2 in the
original's): what is trained is exactly what is folded. With eps as in the original no gpt2ish would be equal. Logits of
tiny_scalar_free would differ by up to 1e-3 at first, while variances are small, and by 4e-7 after 150 steps (measured
on `quick`).
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
    weights: str = "linear"  # where alpha and beta come from: "linear", "mlp", "free", or "none" for x + y
    per_feature: bool = True  # weights for every feature, instead of one alpha and one beta
    floor: float = 0.4
    ceil: float = 1.5


variants = {
    "linear": dict(),  # lra1_0
    "free": dict(weights="free"),  # lra1_1
    "scalar_linear": dict(per_feature=False),  # lra1_2
    "scalar_free": dict(weights="free", per_feature=False),  # lra1_3
    "mlp": dict(weights="mlp"),  # lra1_4
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256),
    "tiny_free": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, weights="free"),
    "tiny_scalar_linear": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, per_feature=False),
    "tiny_scalar_free": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, weights="free", per_feature=False),
    "tiny_mlp": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, weights="mlp"),
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
        unit = 1.0
        for i, block in enumerate(self.blocks):
            x, unit = block(x, unit, cache[i] if cache else None)
        return self.norm(x)

    def forward(self, tokens, cache=None):
        """tokens (B, T) int64 -> logits (B, T, vocab_size). With a cache, `tokens` are the new ones only."""
        return self.head(self.body(tokens, cache))

    @torch.no_grad()
    def fold(self) -> "Model":
        """Return the same function as a plain gpt2ish. Raises ValueError for weights predicted or by feature."""
        c = self.config
        if c.weights != "none" and (c.weights != "free" or c.per_feature):
            raise ValueError("only weights=free with per_feature=false can be folded away")
        weights = {name: tensor.clone() for name, tensor in self.state_dict().items() if not name.endswith("_add.z")}
        unit = 1.0
        for i, block in enumerate(self.blocks if c.weights == "free" else ()):
            for add, projection in (
                (block.attention_add, "attention.out"),
                (block.feed_forward_add, "feed_forward.down"),
            ):
                alpha, beta = add.weights(add.z)
                unit = unit * alpha
                for name in ("weight", "bias"):
                    weights[f"blocks.{i}.{projection}.{name}"] *= beta / unit
        with torch.device("meta"):
            folded = Model(replace(c, weights="none"))
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
            for add in (block.attention_add, block.feed_forward_add):
                if add.predicted:
                    add.predict[0].reset_parameters()
                    nn.init.zeros_(add.predict[-1].weight)
                    nn.init.zeros_(add.predict[-1].bias)

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
        self.attention_add = ResidualAdd(config)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config)
        self.feed_forward_add = ResidualAdd(config)

    def forward(self, x, unit, cache=None):
        x, unit = self.attention_add(x, self.attention(self.attention_norm(x), cache), unit)
        return self.feed_forward_add(x, self.feed_forward(self.feed_forward_norm(x)), unit)


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


class ResidualAdd(nn.Module):
    """alpha x + beta y of the stream x and a branch's y, both (B, T, D)."""

    def __init__(self, config: Config):
        super().__init__()
        D = config.n_embd
        n_weights = 2 * D if config.per_feature else 2
        if config.weights not in ("linear", "mlp", "free", "none"):
            raise ValueError(f"weights must be one of linear, mlp, free, none, not {config.weights}")
        self.floor, self.ceil, self.plain = config.floor, config.ceil, config.weights == "none"
        self.predicted = config.weights in ("linear", "mlp")
        self.scalar = config.weights == "free" and not config.per_feature
        if config.weights == "free":
            self.z = nn.Parameter(torch.zeros(n_weights))
        elif config.weights == "linear":
            self.predict = nn.Sequential(nn.Linear(2 * D, n_weights))
        elif config.weights == "mlp":
            self.predict = nn.Sequential(nn.Linear(2 * D, D), nn.ReLU(), nn.Linear(D, n_weights))

    def weights(self, z):
        """Return alpha and beta of z (..., 2D) or (..., 2): each (..., D) or (..., 1)."""
        return (self.floor + (self.ceil - self.floor) * z.sigmoid()).chunk(2, dim=-1)

    def forward(self, x, y, unit):
        """Return the new stream and its unit: 1, or for free scalars the product of the alphas so far."""
        if self.plain:
            return x + y, unit
        if self.scalar:
            alpha, beta = self.weights(self.z)
            unit = unit * alpha
            return x + beta / unit * y, unit
        z = self.predict(torch.cat((x.to(y.dtype), y), dim=-1)) if self.predicted else self.z
        alpha, beta = self.weights(z.to(x.dtype))
        return alpha * x + beta * y, unit


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
