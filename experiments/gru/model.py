"""GRU: gated recurrent layers instead of attention, with a state of fixed size.

Idea. A recurrent layer carries all it knows of the past in a state h of fixed size.

Change. torch.nn.GRU (cuDNN on a GPU) on token embeddings, then LayerNorm and an untied head. No positions, no residual
connections. For an input x the state h of each layer, zero at first, becomes h':

    r = sigmoid(W_r x + b_r + U_r h + c_r)          the `reset` gate
    z = sigmoid(W_z x + b_z + U_z h + c_z)          the `update` gate
    n = tanh(W_n x + b_n + r (U_n h + c_n))         the candidate
    h' = (1 - z) n + z h

A stack of 12 layers as wide as gpt2ish has its parameters (`12l`). The default has few and wide layers instead, since
nothing carries a gradient past a layer here. A linear layer leads back to n_embd before the norm, so that embedding and
head are gpt2ish's. The counts are near whatever the vocabulary: 120,591,313 against 120,560,209 (6l) and 29,009,617
against 29,006,929 (tiny, vocabulary 50257).

Claim. The arrow of time shows in recurrent models as in attention (arXiv 2401.17505). Also known: a state of
fixed size tracks states that attention of fixed depth cannot (parity), and recalls less (arXiv 2312.04927, 2402.01032).

Source. Cho et al. 2014 (arXiv 1406.1078). It is the recurrent model of "Arrows of Time for Large Language Models"
(arXiv 2401.17505), whose sizes the variants `arrows_*` are. Its published code calls it MinGRU. It is no minGRU: that
is `mingru` here.

Differs from the source. Initial values of the layers are torch's. Embeddings are N(0, 1), as in the published code,
since nothing but the state's gates scales them.
"""

from dataclasses import dataclass

import torch
from torch import nn

parent = "gpt2ish"


@dataclass
class Config:
    vocab_size: int = 50257
    max_len: int = 1024
    n_layer: int = 3
    n_hidden: int = 1600  # width of the state; 0: n_embd, and no linear layer after the last one
    n_embd: int = 768
    dropout: float = 0.0  # on the embeddings, and between layers
    embedding_dropout: float | None = None  # on the embeddings; none: dropout
    head_bias: bool = True
    embedding_std: float = 1.0


variants = {
    "3l": dict(),
    "12l": dict(n_layer=12, n_hidden=0),  # gpt2ish's width and parameters, by depth
    "tiny": dict(n_layer=2, n_hidden=544, n_embd=256, max_len=256),
    "tiny_8l": dict(n_layer=8, n_hidden=0, n_embd=256, max_len=256),
    "arrows_1x256": dict(n_layer=1, n_hidden=0, n_embd=256, max_len=256, head_bias=False),
    "arrows_1x512": dict(n_layer=1, n_hidden=0, n_embd=512, max_len=256, head_bias=False),
    "arrows_3x512": dict(n_layer=3, n_hidden=0, n_embd=512, max_len=256, head_bias=False),
    "arrows_5x768": dict(n_layer=5, n_hidden=0, n_embd=768, max_len=256, head_bias=False),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.n_hidden = config.n_hidden or config.n_embd
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.gru = nn.GRU(
            config.n_embd,
            self.n_hidden,
            config.n_layer,
            batch_first=True,
            dropout=config.dropout if config.n_layer > 1 else 0.0,
        )
        self.out = nn.Linear(self.n_hidden, config.n_embd) if config.n_hidden else None
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        self.initialise()

    def body(self, tokens, cache=None):
        """tokens (B, T) int64 -> what the head reads, (B, T, n_embd). Raises ValueError beyond max_len."""
        end = tokens.size(1) + (cache.length if cache else 0)
        if end > self.config.max_len:
            raise ValueError(f"{end} tokens are more than the model's max_len of {self.config.max_len}")
        x = self.dropout(self.tokens_embedding(tokens))
        x, hidden = self.gru(x, cache.hidden if cache else None)
        if cache:
            cache.hidden, cache.length = hidden, end
        return self.norm(x if self.out is None else self.out(x))

    def forward(self, tokens, cache=None):
        """tokens (B, T) int64 -> logits (B, T, vocab_size). With a cache, `tokens` are the new ones only."""
        return self.head(self.body(tokens, cache))

    def initialise(self):
        nn.init.normal_(self.tokens_embedding.weight, std=self.config.embedding_std)
        for module in (self.out, self.head):
            if module is not None:
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def new_cache(self, batch: int) -> "State":
        """Return what is known of `batch` sequences before their first token: nothing."""
        return State()


@dataclass
class State:
    """The layers' states (n_layer, B, n_hidden) after `length` tokens; None stands for zeros."""

    hidden: torch.Tensor | None = None
    length: int = 0
