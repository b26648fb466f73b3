"""gpt2ish with minGRU instead of attention; training is a parallel scan.

Idea. If a GRU's gates see the input only, its state can be had for all tokens without stepping through time.

Change. Gate z_t and candidate of a minGRU don't see the state h. The rest is linear in the state, for inputs x_t:

    z_t = sigmoid(W_z x_t + b_z)
    h_t = (1 - z_t) h_(t-1) + z_t g(W_h x_t + b_h)          h_0 = 0
    g(x) = x + 1/2 where x >= 0, else sigmoid(x)

Only attention is exchanged: feed-forward, norms and residual connections are gpt2ish's. There are no positions, which
the order of the steps makes needless. The state is 4/3 n_embd wide, which gives gpt2ish's parameters except the
positions: 119,772,241 against 120,560,209 (6l).

Claim. As good as Mamba and near attention at small sizes, with training in parallel and generation from a state of
fixed size. Measured: a step of `tiny` at context 512 on two cores takes a 17.7th of the time of stepping the model
through its tokens. It takes about as long (1 / 1.06) as stepping through the states alone with all products in parallel
(benchmarks/mingru_scan.py).

Source. Feng et al. 2024, "Were RNNs All We Needed?" (arXiv 2410.01201).

Differs from the source. The paper takes the sum in logarithms, which is what g is for: it makes candidates positive.
Ours has chunks that go side by side, as products and sums of the numbers themselves. Nothing is divided and no factor
exceeds 1, so that float32 does. So `signed` is possible, too, with g(x) = x as in the plain definition of minGRU. The
paper's convolution before each minGRU is left out.
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
    n_embd: int = 768
    mlp_ratio: float = 4.0  # width of the feed-forward layer, in n_embd
    n_hidden: int = 1024  # width of the state of each layer
    dropout: float = 0.0  # most runs see each token once: there is nothing to overfit, and dropout only slows learning
    embedding_dropout: float | None = None  # on the embeddings; none: dropout
    head_bias: bool = True
    signed: bool = False  # candidates as they come, instead of g of them


variants = {
    "6l": dict(),
    "12l": dict(n_layer=12),
    "signed": dict(signed=True),
    "tiny": dict(n_layer=4, n_embd=256, n_hidden=344, max_len=256),
    "tiny_signed": dict(n_layer=4, n_embd=256, n_hidden=344, max_len=256, signed=True),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        self.initialise()

    def body(self, tokens, cache=None):
        """tokens (B, T) int64 -> what the head reads, (B, T, n_embd). Raises ValueError beyond max_len."""
        end = tokens.size(1) + (cache[0].length if cache else 0)
        if end > self.config.max_len:
            raise ValueError(f"{end} tokens are more than the model's max_len of {self.config.max_len}")
        x = self.dropout(self.tokens_embedding(tokens))
        for i, block in enumerate(self.blocks):
            x = block(x, cache[i] if cache else None)
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
            for projection in (block.mingru.out, block.feed_forward.down):
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def new_cache(self, batch: int) -> list["State"]:
        """Return what is known of `batch` sequences before their first token: nothing, one State per layer."""
        return [State() for _ in range(self.config.n_layer)]


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.mingru_norm = nn.LayerNorm(config.n_embd)
        self.mingru = MinGRU(config)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config)

    def forward(self, x, cache=None):
        x = x + self.mingru(self.mingru_norm(x), cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


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


def recur(factors, terms, start, reverse=False):
    """Return h_t = factors_t h_(t-1) + terms_t: factors and terms (B, T, D), start (B, D) -> (B, T, D).

    In reverse the recurrence runs from the end.

    Chunks of about sqrt(T) go side by side: once to see what each does to the state it begins with; then, with those
    states known, to fill them in. So there are about 3 sqrt(T) short operations, not T, and the rounding is that of
    steps.
    """
    B, T, D = terms.shape
    size = 1 << math.ceil(math.log2(T) / 2)
    if T % size:
        factors, terms = (F.pad(x, (0, 0, 0, size - T % size)) for x in (factors, terms))
    factors, terms = (x.view(B, -1, size, D) for x in (factors, terms))
    order = range(size - 1, -1, -1) if reverse else range(size)
    n_chunk = terms.size(1)
    if n_chunk == 1:
        states = start[:, None]
    else:
        ends = torch.zeros_like(terms[:, :, 0])
        for t in order:
            ends = torch.addcmul(terms[:, :, t], factors[:, :, t], ends)
        decays, states = factors.prod(2), [start]
        for i in range(n_chunk - 1, 0, -1) if reverse else range(n_chunk - 1):
            states.append(torch.addcmul(ends[:, i], decays[:, i], states[-1]))
        states = torch.stack(states[::-1] if reverse else states, dim=1)
    h = torch.empty_like(terms)
    for t in order:
        states = torch.addcmul(terms[:, :, t], factors[:, :, t], states)
        h[:, :, t] = states
    return h.view(B, -1, D)[:, :T]


class Scan(torch.autograd.Function):
    """`recur` with gradients, which are a recurrence, too: g_t = dh_t + factors_(t+1) g_(t+1), from the end."""

    @staticmethod
    def forward(ctx, factors, terms, start):
        h = recur(factors, terms, start)
        ctx.save_for_backward(factors, h, start)
        return h

    @staticmethod
    def backward(ctx, dh):
        factors, h, start = ctx.saved_tensors
        later = F.pad(factors[:, 1:], (0, 0, 0, 1))
        g = recur(later, dh.contiguous(), torch.zeros_like(start), reverse=True)
        return g * torch.cat([start[:, None], h[:, :-1]], dim=1), g, g[:, 0] * factors[:, 0]


class MinGRU(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.signed = config.signed
        self.gate_candidate = nn.Linear(config.n_embd, 2 * config.n_hidden)
        self.out = nn.Linear(config.n_hidden, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None):
        gate, candidate = self.gate_candidate(x).chunk(2, dim=-1)  # each (B, T, n_hidden)
        gate, candidate = (y.to(torch.promote_types(y.dtype, torch.float32)) for y in (gate, candidate))
        if not self.signed:
            candidate = torch.where(candidate >= 0, candidate + 0.5, candidate.sigmoid())
        start = torch.zeros_like(gate[:, 0]) if cache is None or cache.hidden is None else cache.hidden
        h = Scan.apply((-gate).sigmoid(), gate.sigmoid() * candidate, start)
        if cache is not None:
            cache.hidden, cache.length = h[:, -1], cache.length + x.size(1)
        return self.dropout(self.out(h.to(x.dtype)))


@dataclass
class State:
    """The state (B, n_hidden) of one layer after `length` tokens; None stands for zeros."""

    hidden: torch.Tensor | None = None
    length: int = 0
