"""modern with an operator of the text between queries and keys.

Idea. Between query and key stands an operator G. A network makes it of the queries so far, by a power law.

Change. A query q of width d becomes 1.2 norm(q G). Each head's G (d, d) is made in four steps:

    A    = network(D),  D = mean_t q_t^T q_t       density of the queries before, and residual gated layers on its rows
    A_LM = Z silu(Z) + 1e-9,  Z = W A + b          metric tensor, positive
    P    = A_LM^p                                  potential tensor, elementwise powers, p learned
    G    = a P + ba                                energy-curvature tensor

W, b, p, a and ba are learned for each head, the network for each layer. Queries at positions below `chunk` stay as they
are. The others take the operator of the tokens before c, the last of chunk, 2 chunk, 4 chunk, ... not beyond them: no
query sees what comes later. ba starts at the identity and a near 0, so that the model starts near modern. `d2_constant`
learns G itself, without a network.

Claim. None for this baseline. Over plain attention, losses like those of models of the same size (see pldr). In pldr's
own decoder it was worse by 0.50 than llama2 here. There the operator started far from the identity.

Source. Gokden, arXiv 2410.16703 and 2502.13502; burcgokden/LLM-from-Power-Law-Decoder-Representations.

Differs from the source. The decoder is modern: norms instead of biases in the network, queries normed after G. The
density is a mean, of the text before only, and no gradient flows through it. That of the power is unbounded near 0:
with it, 60 steps at 2 x 64 ended at 5.36 instead of 4.73, one run each. Regularizer and monitors are left out.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

parent = "modern"

recipe = {  # rates measured with d2, 196 steps of 16 sequences; matrices by Muon, the rest by AdamW
    "optimizer": "muon",
    "muon_scale": "rows",
    "lr": 0.045,
    "embedding_lr": 6.7,  # 0.30
    "head_lr": 0.45,  # 0.02
    "beta1": 0.8,
    "beta2": 0.95,
    "eps": 1e-10,
    "lr_schedule": "wsd",
    "warmup_steps": 8,
    "cooldown_fraction": 0.6,
    "weight_decay": 0.1,
    "grad_clip": 0.0,
}


@dataclass
class Config:
    vocab_size: int = 50257
    max_len: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    mlp_ratio: float = 4.0  # width of the feed-forward layer, in n_embd
    rope_base: float = 10000.0
    soft_cap: float = 15.0  # logits stay between -soft_cap and soft_cap; 0: as they come
    # Below: parts that only some recipes have.
    value_embeddings: bool = False  # every other layer adds a gated embedding of the token to its values
    residual_scalars: bool = False  # a layer reads a x + b x0: a, b learned, x0 the normalized embedding
    rotated: float = 1.0  # share of a head that turns with the position; the slow rest stands still
    smear: bool = False  # a token's embedding gets a gated part of the embedding before it
    swiglu: bool = False  # silu(gate) up instead of squared ReLU, 2/3 as wide
    metric: str = "causal"  # what the operator is made of: causal (the text before) or constant (learned)
    chunk: int = 16  # causal: the first operator made of the text is that of N tokens
    n_unit: int = 2  # residual units of the network
    window: float = 0.0  # three of four layers see this share of max_len only, the last layer all; 0: all see all


variants = {
    "d2": dict(n_layer=2, n_head=2, n_embd=128, max_len=256),
    "d3": dict(n_layer=3, n_head=3, n_embd=192, max_len=256),
    "d4": dict(n_layer=4, n_head=4, n_embd=256, max_len=256),
    "d6": dict(n_layer=6, n_head=6, n_embd=384),
    "d8": dict(n_layer=8, n_head=8, n_embd=512),
    "d12": dict(),
    "d2_constant": dict(n_layer=2, n_head=2, n_embd=128, max_len=256, metric="constant"),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = c = config
        if c.metric not in ("causal", "constant") or c.chunk < 1:
            raise ValueError(f"metric is causal or constant, chunk at least 1, not {c.metric!r} and {c.chunk}")
        self.tokens_embedding = nn.Embedding(c.vocab_size, c.n_embd)
        self.smear = Smear(c) if c.smear else None
        self.blocks = nn.ModuleList(Block(c, layer) for layer in range(c.n_layer))
        self.head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        self.scalars = None
        if c.residual_scalars:  # nanochat's initial values, on a line over the depth
            self.scalars = nn.Parameter(
                torch.stack([torch.linspace(1.15, 1.05, c.n_layer), torch.linspace(0.2, 0.05, c.n_layer)])
            )
        self.initialise()

    def forward(self, tokens, cache=None):
        """tokens (B, T) int64 -> logits (B, T, vocab_size). With a cache, `tokens` are the new ones only.

        Raises ValueError beyond max_len.
        """
        logits, cap = self.head(self.hidden(tokens, cache)), self.config.soft_cap
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return cap * torch.tanh(logits / cap) if cap else logits

    def hidden(self, tokens, cache):
        """tokens (B, T) -> what the head reads, (B, T, n_embd). No `body`: more than the head follows it, the cap."""
        c = self.config
        past = cache.length if cache else 0
        end = past + tokens.size(1)
        if end > c.max_len:
            raise ValueError(f"{end} tokens are more than the model's max_len of {c.max_len}")
        rotation = rotation_of(past, end, c, tokens.device)
        x = norm(self.tokens_embedding(tokens))
        if self.smear is not None:
            x = self.smear(x, cache)
        first = x
        for i, block in enumerate(self.blocks):
            if self.scalars is not None:
                x = self.scalars[0, i] * x + self.scalars[1, i] * first
            x = block(x, tokens, rotation, cache.layers[i] if cache else None)
        return norm(x)

    @torch.no_grad()
    def initialise(self):
        nn.init.normal_(self.tokens_embedding.weight)  # it is normalized: its size is how slowly it turns
        nn.init.normal_(self.head.weight, std=0.001)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module is not self.head:
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for block in self.blocks:
            for part in (block.attention, block.feed_forward):
                part.start()

    def param_groups(self, lr, weight_decay):
        """Return the exceptions: gates learn by AdamW, and so do single numbers, slowly."""
        gates = [m.gate.weight for m in self.modules() if isinstance(m, (Attention, Smear)) and m.gate is not None]
        numbers = [p for p in self.parameters() if p.ndim < 2 or p is self.scalars]
        operators = [p for p in self.parameters() if p.ndim == 3]
        return [
            {"params": operators, "weight_decay": 0.0, "optimizer": "adamw", "lr": 0.2 * lr},
            {"params": gates, "weight_decay": 0.0, "optimizer": "adamw"},
            {"params": numbers, "weight_decay": 0.0, "optimizer": "adamw", "lr": 0.2 * lr, "betas": (0.9, 0.95)},
        ]

    def new_cache(self, batch: int) -> "Cache":
        """Return an empty cache for `batch` sequences of up to max_len tokens."""
        c, weight = self.config, self.head.weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        shape = (batch, c.n_head, c.max_len, c.n_embd // c.n_head)
        return Cache(
            [
                KeyValues(*(torch.empty(shape, dtype=dtype, device=weight.device) for _ in range(2)))
                for _ in range(c.n_layer)
            ]
        )


class Block(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.attention = Attention(config, layer)
        self.feed_forward = SwiGLU(config) if config.swiglu else SquaredReLU(config)

    def forward(self, x, tokens, rotation, cache=None):
        x = x + self.attention(norm(x), tokens, rotation, cache)
        return x + self.feed_forward(norm(x))


class Attention(nn.Module):
    def __init__(self, config: Config, layer: int):
        super().__init__()
        c, last = config, config.n_layer - 1
        self.n_head, self.width = c.n_head, c.n_embd // c.n_head
        if c.n_embd % (2 * c.n_head):
            raise ValueError(f"n_embd {c.n_embd} is not an even multiple of n_head {c.n_head}")
        self.query, self.key, self.value, self.out = (nn.Linear(c.n_embd, c.n_embd, bias=False) for _ in range(4))
        self.chunk = c.chunk
        self.operator = Operator(c, self.width) if c.metric == "causal" else None
        if c.metric == "constant":
            self.constant = nn.Parameter(torch.eye(self.width).repeat(c.n_head, 1, 1))
        short = c.window > 0 and layer % 4 < 3 and layer != last
        self.window = max(1, int(c.window * c.max_len)) if short else 0  # tokens, its own included; 0: all
        self.table = self.gate = None
        if c.value_embeddings and layer % 2 == last % 2:
            self.table = nn.Embedding(c.vocab_size, c.n_embd)
            self.gate = nn.Linear(min(12, c.n_embd), c.n_head, bias=False)

    def start(self):
        nn.init.zeros_(self.out.weight)
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=self.out.in_features**-0.5)
            nn.init.uniform_(self.gate.weight, 0.0, 0.02)

    def forward(self, x, tokens, rotation, cache=None):
        B, T, D = x.shape
        q, k, v = (part(x).view(B, T, self.n_head, self.width) for part in (self.query, self.key, self.value))
        if self.table is not None:
            gate = 3 * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))
            v = v + gate[..., None] * self.table(tokens).view_as(v)
        q, k = (1.2 * norm(rotate(part, *rotation)) for part in (q, k))  # 1.2 each: sharper than norms of 1 allow
        q, k, v = (part.transpose(1, 2).to(v.dtype) for part in (q, k, v))  # (B, heads, T, width)
        q = self.operated(q, cache)
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.append(k, v)
        mask = self.mask(past, T, x.device)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.out(y.transpose(1, 2).reshape(B, T, D))

    def operated(self, q, cache=None):
        """Return the queries (B, H, T, width) by their operators. The cache keeps the newest and all densities' sum."""
        if self.operator is None:
            return 1.2 * norm(q @ self.constant.to(q.dtype)).to(q.dtype)
        past, T, starts, start = cache.length if cache else 0, q.size(2), [], self.chunk
        while start < past + T:
            starts += [start - past] if start >= past else []
            start *= 2
        total, G = (cache.density, cache.operator) if cache else (0.0, None)
        edges, parts = sorted({0, *starts}), []
        for begin, end in zip(edges, [*edges[1:], T]):
            part = q[:, :, begin:end]
            if begin in starts:
                G = self.operator(total / (past + begin))
            total = total + density(part.detach())  # else the power's unbounded gradient drowns that of the scores
            parts.append(part if G is None else 1.2 * norm(part @ G.to(q.dtype)).to(q.dtype))
        if cache is not None:
            cache.density, cache.operator = total, G
        return torch.cat(parts, dim=2)

    def mask(self, past: int, length: int, device):
        """Return which of `past` + `length` keys the new queries see; None: all from the start that is not later."""
        if not (self.window or past):
            return None
        queries = torch.arange(past, past + length, device=device)[:, None]
        back = queries - torch.arange(past + length, device=device)  # how far a key lies before its query
        return (back >= 0) & (back < self.window) if self.window else back >= 0


class Operator(nn.Module):
    """Densities (B, H, d, d) -> G of the same shape: the network and the power law."""

    def __init__(self, config: Config, width: int):
        super().__init__()
        self.units = nn.ModuleList(Unit(width) for _ in range(config.n_unit))
        shape = config.n_head, width, width
        self.weight, self.exponent = (nn.Parameter(width**-0.5 * torch.randn(shape)) for _ in range(2))
        self.coupling = nn.Parameter(0.1 * width**-0.5 * torch.randn(shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        self.coupling_bias = nn.Parameter(torch.eye(width).repeat(config.n_head, 1, 1))

    def forward(self, D):
        A = norm(D)
        for unit in self.units:
            A = A + unit(norm(A))
        with torch.autocast(A.device.type, enabled=False):  # a power of something near 0 is ill-conditioned
            Z = self.weight @ norm(A).to(self.weight.dtype) + self.bias
            P = (self.exponent * (Z * F.silu(Z) + 1e-9).log()).exp()
            return self.coupling @ P + self.coupling_bias


class Unit(nn.Module):
    """(silu(x U1) * (x U2)) U3 of rows (..., d)."""

    def __init__(self, width: int):
        super().__init__()
        hidden = 8 * width // 3
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


def density(q):
    """Return sum_t q_t^T q_t of q (B, H, T, d), in float32 under autocast: (B, H, d, d)."""
    with torch.autocast(q.device.type, enabled=False):
        q = q.to(torch.promote_types(q.dtype, torch.float32))
        return q.mT @ q


class SquaredReLU(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        width = hidden_width(config.mlp_ratio * config.n_embd, config)
        self.up = nn.Linear(config.n_embd, width, bias=False)
        self.down = nn.Linear(width, config.n_embd, bias=False)

    def start(self):
        self.up.weight.mul_(0.4)
        nn.init.zeros_(self.down.weight)

    def forward(self, x):
        return self.down(F.relu(self.up(x)).square())


class SwiGLU(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        width = hidden_width(config.mlp_ratio * config.n_embd * 2 / 3, config)
        self.gate, self.up = (nn.Linear(config.n_embd, width, bias=False) for _ in range(2))
        self.down = nn.Linear(width, config.n_embd, bias=False)

    def start(self):
        nn.init.zeros_(self.down.weight)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Smear(nn.Module):
    """x_t + s sigmoid(W x_t) x_(t-1) on embeddings (B, T, n_embd); W reads 24 channels, s starts at 0."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate = nn.Linear(min(24, config.n_embd), 1, bias=False)
        self.share = nn.Parameter(torch.zeros(()))

    def forward(self, x, cache=None):
        before = torch.zeros_like(x[:, :1]) if cache is None or cache.last is None else cache.last
        if cache is not None:
            cache.last = x[:, -1:]
        gate = self.share * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))
        return x + gate * torch.cat((before, x[:, :-1]), dim=1)


def norm(x):
    """x over the root of its mean square, over the last dimension."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


def hidden_width(width: float, config: Config) -> int:
    if not width >= 1:
        raise ValueError(f"mlp_ratio {config.mlp_ratio} leaves a feed-forward layer of no width")
    return int(width)


def rotation_of(start: int, end: int, config: Config, device):
    """Return cosines and sines (T, 1, width/2) of position * base^(-2i/width), or of 0 beyond the rotated share."""
    width = config.n_embd // config.n_head
    pairs = torch.arange(width // 2, device=device, dtype=torch.float32)
    frequencies = config.rope_base ** (-2 * pairs / width) * (pairs < config.rotated * (width // 2))
    angles = torch.arange(start, end, device=device, dtype=torch.float32)[:, None, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turn each pair (x_i, x_{i + width/2}) of x (B, T, H, width) by its angle, in float32 whatever the dtype of x."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


# Optional below: delete what you don't need, and `new_cache` above with it.


class Cache:
    """Keys and values of each layer, and the embedding (B, 1, n_embd) of the last token, for `smear`."""

    def __init__(self, layers: list["KeyValues"]):
        self.layers, self.last = layers, None

    @property
    def length(self) -> int:
        return self.layers[0].length


class KeyValues:
    """Keys and values (B, heads, max_len, width) of one layer, filled up to `length`."""

    def __init__(self, keys, values):
        self.keys, self.values, self.length = keys, values, 0
        self.density, self.operator = 0.0, None

    def append(self, keys, values):
        """Store those of the new tokens in place; return those of all tokens so far, (B, heads, length, width)."""
        start, self.length = self.length, self.length + keys.size(2)
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]
