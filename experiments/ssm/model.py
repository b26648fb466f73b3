"""A selective state-space model in the Mamba line: no attention, fixed state.

Idea. A state of fixed size takes in and forgets as fast as each token says.

Change. A block is one residual branch instead of attention and feed-forward. Of its normed input u it makes a gate z.
By a short causal convolution and SiLU it makes what is stored (x, n_head heads), where (B) and what is asked for (C).
Each head has a state H (n_state, head width) and a rate D_t = softplus(W_D u_t + b) at which it takes in and forgets:

    H_t = exp(-exp(a) D_t) H_(t-1) + D_t B_t x_t^T          H_0 = 0
    y_t = C_t H_t + d x_t
    out = W_o RMSNorm(y silu(z))

where a, b, d and the matrices W are learned. No positions. Two blocks have about the parameters of one of gpt2ish's:
121,252,273 against 120,560,209 (12l against 6l).

Claim. Selection (rates, B and C that depend on the token) is what earlier state-space models lacked to match attention.
The cost grows with the length and not its square, and generation has a state of fixed size.

Source. Mamba (Gu & Dao 2023, arXiv 2312.00752) with the state-space layer of Mamba-2 (Dao & Gu 2024, arXiv 2405.21060).

Differs from the source. In plain torch. The rate is one number per head, as in Mamba-2, and not one per channel and
state, as in Mamba. So the states within a chunk of tokens needn't be written down. Within a chunk a matrix product
carries from token to token, decayed by exp of a difference of cumulative sums, never positive. From chunk to chunk the
state goes in a short loop. Sums and state are float32 also under autocast.
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
    n_layer: int = 12
    n_head: int = 24
    n_embd: int = 768
    expand: int = 2  # the heads together are expand * n_embd wide
    n_state: int = 64  # each channel of a head has N numbers to remember by
    n_conv: int = 4  # tokens that the convolution sees
    chunk: int = 64  # tokens that are computed side by side: of no effect on the function
    dropout: float = 0.0  # most runs see each token once: there is nothing to overfit, and dropout only slows learning
    head_bias: bool = True


variants = {
    "12l": dict(),
    "24l": dict(n_layer=24),
    "tiny": dict(n_layer=8, n_head=8, n_embd=256, n_state=32, max_len=256),
    "tiny_no_conv": dict(n_layer=8, n_head=8, n_embd=256, n_state=32, max_len=256, n_conv=1),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
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
        # n_layer branches add up on the residual stream: keep its variance whatever the depth
        for block in self.blocks:
            nn.init.normal_(block.state_space.out.weight, std=0.02 / math.sqrt(self.config.n_layer))

    def new_cache(self, batch: int) -> list["State"]:
        """Return what is known of `batch` sequences before their first token: nothing, one State per layer."""
        return [State() for _ in range(self.config.n_layer)]


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.state_space_norm = nn.LayerNorm(config.n_embd)
        self.state_space = StateSpace(config)

    def forward(self, x, cache=None):
        return x + self.state_space(self.state_space_norm(x), cache)


def scan(x, log_decay, B, C, chunk: int, start=None):
    """Return y_t = C_t H_t for all t and the last state, with H_t = exp(log_decay_t) H_(t-1) + B_t x_t^T.

    x (batch, T, heads, P), log_decay (batch, T, heads) float, at most 0, B and C (batch, T, N) for all heads alike,
    start (batch, heads, N, P) or None for zeros -> y (batch, T, heads, P), H_T (batch, heads, N, P).
    """
    batch, T, heads, P = x.shape
    size = min(chunk, T)
    if T % size:  # nothing stored and nothing forgotten: the state stays
        x, log_decay, B, C = (F.pad(y, (0, 0) * (y.ndim - 2) + (0, size - T % size)) for y in (x, log_decay, B, C))
    x = x.unflatten(1, (-1, size)).transpose(2, 3)  # (batch, chunks, heads, size, P)
    sums = log_decay.unflatten(1, (-1, size)).transpose(2, 3).cumsum(-1)  # (batch, chunks, heads, size)
    B, C = (y.unflatten(1, (-1, size)) for y in (B, C))  # (batch, chunks, size, N)
    later = torch.ones(size, size, dtype=torch.bool, device=x.device).triu(1)
    decay = (sums[..., :, None] - sums[..., None, :]).masked_fill(later, -math.inf).exp()  # (..., to, from)
    y = (C @ B.mT)[:, :, None] * decay @ x
    added = B.mT[:, :, None] @ (x * (sums[..., -1:] - sums).exp()[..., None])  # to the state, by each chunk
    kept = sums[..., -1].exp()[..., None, None]
    state = added.new_zeros((), dtype=sums.dtype).expand_as(added[:, 0]) if start is None else start
    states = []
    for i in range(added.size(1)):
        states.append(state)
        state = kept[:, i] * state + added[:, i]
    y = y + (C[:, :, None] @ torch.stack(states, dim=1)) * sums.exp()[..., None]
    return y.transpose(2, 3).flatten(1, 2)[:, :T], state


class StateSpace(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        width = config.expand * config.n_embd
        if width % config.n_head:
            raise ValueError(
                f"expand {config.expand} times n_embd {config.n_embd} is not a multiple of n_head {config.n_head}"
            )
        self.sizes = (width, width + 2 * config.n_state, config.n_head)
        self.n_head, self.n_state, self.chunk = config.n_head, config.n_state, config.chunk
        self.gate_input_rate = nn.Linear(config.n_embd, sum(self.sizes), bias=False)
        self.conv = nn.Conv1d(self.sizes[1], self.sizes[1], config.n_conv, groups=self.sizes[1])
        first_rates = torch.exp(torch.empty(config.n_head).uniform_(math.log(0.001), math.log(0.1)))
        # what softplus makes them of
        self.rate_bias = nn.Parameter(first_rates + torch.log(-torch.expm1(-first_rates)))
        self.log_decay = nn.Parameter(torch.empty(config.n_head).uniform_(1, 16).log())  # a in the formula
        self.skip = nn.Parameter(torch.ones(config.n_head))  # d
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.out = nn.Linear(width, config.n_embd, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, u, cache=None):
        gate, x, rate = self.gate_input_rate(u).split(self.sizes, dim=-1)
        before = self.conv.kernel_size[0] - 1
        past = x.new_zeros(x.size(0), before, x.size(2)) if cache is None or cache.inputs is None else cache.inputs
        seen = torch.cat([past.to(x.dtype), x], dim=1)
        x = F.silu(self.conv(seen.mT).mT)
        x, B, C = x.split((self.sizes[0], self.n_state, self.n_state), dim=-1)
        x = x.unflatten(-1, (self.n_head, -1))
        # (batch, T, n_head)
        rate = F.softplus(rate.to(torch.promote_types(rate.dtype, torch.float32)) + self.rate_bias)
        y, state = scan(
            x * rate[..., None], -self.log_decay.exp() * rate, B, C, self.chunk, cache.state if cache else None
        )
        if cache is not None:
            cache.inputs, cache.state, cache.length = seen[:, seen.size(1) - before :], state, cache.length + u.size(1)
        y = (y + self.skip[:, None] * x).flatten(-2)
        return self.dropout(self.out(self.norm(y * F.silu(gate))))


@dataclass
class State:
    """The state of one layer after `length` tokens; None stands for zeros.

    What the convolution still sees (B, n_conv - 1, channels), the heads' states (B, n_head, n_state, head width)."""

    inputs: torch.Tensor | None = None
    state: torch.Tensor | None = None
    length: int = 0
