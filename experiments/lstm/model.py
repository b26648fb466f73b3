"""LSTM: recurrent layers with memory cells instead of attention, fixed state.

Idea. A recurrent layer carries all it knows of the past in a state of fixed size, with a cell that gates protect.

Change. torch.nn.LSTM (cuDNN on a GPU, oneDNN on a CPU) on token embeddings, then LayerNorm and an untied head. No
positions, no residual connections. For an input x each layer's output h and cell c, zero at first, become h' and c':

    i = sigmoid(W_i x + b_i + U_i h + d_i)          input gate
    f = sigmoid(W_f x + b_f + U_f h + d_f)          forget gate
    g = tanh(W_g x + b_g + U_g h + d_g)             candidate
    o = sigmoid(W_o x + b_o + U_o h + d_o)          output gate
    c' = f c + i g,  h' = o tanh(c')

A stack of 9 layers as wide as gpt2ish has its parameters (`9l`). The default has few and wide layers instead, since
nothing carries a gradient past a layer here. A linear layer leads back to n_embd before the norm, so that embedding and
head are gpt2ish's. The counts are near whatever the vocabulary: 120,431,697 against 120,560,209 (6l) and 28,967,505
against 29,006,929 (tiny, vocabulary 50257).

Claim. The arrow of time shows in it as in attention (arXiv 2401.17505). Also known: a state of fixed size
tracks states that attention of fixed depth cannot (parity), and recalls less (arXiv 2312.04927, 2402.01032).

Source. Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000. With the sizes `arrows_*` it is the
LSTM of "Arrows of Time for Large Language Models" (arXiv 2401.17505).

Differs from the source. Initial values of the layers are torch's, except the forget gates' bias of 1 (Jozefowicz et al.
2015): a cell that forgets half of itself each step passes no gradient on. Embeddings are N(0, 1), as in the published
code, since nothing but the state's gates scales them.
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
    n_hidden: int = 1376  # width of the state; 0: n_embd, and no linear layer after the last one
    n_embd: int = 768
    dropout: float = 0.0  # on the embeddings, and between layers
    embedding_dropout: float | None = None  # on the embeddings; none: dropout
    head_bias: bool = True
    embedding_std: float = 1.0
    forget_bias: float = 1.0  # of the forget gates' initial biases; arrows_* have torch's


variants = {
    "3l": dict(),
    "9l": dict(n_layer=9, n_hidden=0),  # gpt2ish's width and parameters, by depth
    "tiny": dict(n_layer=2, n_hidden=464, n_embd=256, max_len=256),
    "tiny_6l": dict(n_layer=6, n_hidden=0, n_embd=256, max_len=256),
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
