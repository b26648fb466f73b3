"""The LSTM of `lstm` that reads and writes text from its end to its beginning.

Idea. Both directions factor the same joint probability. So their losses show whether text has an arrow of time, and
beside `lstm` whether a recurrent model sees it, too.

Change. Each window is turned round before it is predicted, as in `reverse_time`; the model is that of `lstm`. Every
token is still scored once, so the losses compare.

Claim. The reversed loss comes out slightly higher, for models and languages of every kind.

Source. Papadopoulos, Wenger and Hongler 2024, "Arrows of Time for Large Language Models" (arXiv 2401.17505), whose
sizes the variants `arrows_*` are.

Differs from the source. As `lstm` does: initial values of the layers are not the published code's.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

parent = "lstm"
reading_order = "reversed"  # so that the generator turns the prompt and what it writes round


def make_batch(window, bos, generator):
    """window (B, T) -> inputs (B, T), targets (B, T): its last token is predicted first, from `bos` alone."""
    targets = window.flip(1)
    return F.pad(targets[:, :-1], (1, 0), value=bos), targets


@dataclass
class Config:
    vocab_size: int = 50257
    max_len: int = 1024
    n_layer: int = 3
    n_hidden: int = 1376  # width of the state; 0: n_embd, and no linear layer after the last one
    n_embd: int = 768
    dropout: float = 0.0  # on the embeddings, and between layers
    embedding_dropout: float | None = None  # on the embeddings; none: dropout
    head_bias: bool = True
    embedding_std: float = 1.0
    forget_bias: float = 1.0  # of the forget gates' initial biases; arrows_* have torch's


variants = {
    "3l": dict(),
    "tiny": dict(n_layer=2, n_hidden=464, n_embd=256, max_len=256),
    "arrows_1x256": dict(n_layer=1, n_hidden=0, n_embd=256, max_len=256, head_bias=False, forget_bias=0.0),
    "arrows_1x512": dict(n_layer=1, n_hidden=0, n_embd=512, max_len=256, head_bias=False, forget_bias=0.0),
    "arrows_3x512": dict(n_layer=3, n_hidden=0, n_embd=512, max_len=256, head_bias=False, forget_bias=0.0),
    "arrows_5x768": dict(n_layer=5, n_hidden=0, n_embd=768, max_len=256, head_bias=False, forget_bias=0.0),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.n_hidden = config.n_hidden or config.n_embd
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.lstm = nn.LSTM(
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
        x, hidden = self.lstm(x, cache.hidden if cache else None)
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
        if self.config.forget_bias:
            for layer in range(self.config.n_layer):
                bias, other = getattr(self.lstm, f"bias_ih_l{layer}"), getattr(self.lstm, f"bias_hh_l{layer}")
                # rows: input, forget, ...
                nn.init.constant_(bias[self.n_hidden : 2 * self.n_hidden], self.config.forget_bias)
                nn.init.zeros_(other[self.n_hidden : 2 * self.n_hidden])

    def new_cache(self, batch: int) -> "State":
        """Return what is known of `batch` sequences before their first token: nothing."""
        return State()


@dataclass
class State:
    """The layers' outputs and cells, each (n_layer, B, n_hidden), after `length` tokens; None stands for zeros."""

    hidden: tuple[torch.Tensor, torch.Tensor] | None = None
    length: int = 0
