"""BERT: an encoder that reads to both sides and predicts hidden tokens.

Idea. A hidden token is predicted from both sides, not only from what comes before it.

Change. 15% of each window's tokens, at least one, are chosen at random, another choice each time. Of these 80% become
[MASK], 10% a random token and 10% stay as they are, each by itself. Only the chosen ones have a loss, each at its own
position. So attention has no mask, nothing is shifted, a window has no BOS token, and

    x = norm(embedding of the token + embedding of its position)
    x = attention_norm(x + attention(x))               LayerNorm after each addition, as in the original;
    x = feed_forward_norm(x + feed_forward(x))         pre_norm: gpt2ish's blocks, and `norm` after the last
    logits = head(output_norm(gelu(output(x))))

[MASK] is id vocab_size, one beyond the tokenizer's. It has an embedding, and the head knows nothing of it: no
probability is lost on it, and the vocabulary is that of every other run.

Claim. None here. Loss and accuracy are those of a hidden token with both sides to go by. They do not compare with a
causal model's, and are no probability of a text (`causal = False`). Nor do its tokens compare: train.csv counts the
scored ones, 15% of what is read. Samples, FLOPs and seconds count as everywhere. Runs of bert compare among themselves:
validation hides the same tokens each time and for each run. It learns slowly at first, since few tokens are scored; for
long it knows little more than how frequent each is. Measured once each on `quick` with 2 layers of 128, context 32 and
batches of 32: 6.60 nats per hidden token after 500 steps (learning rate 1e-3). gpt2ish has 5.14 per token after 250
(3e-3).

Source. Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers", arXiv 1810.04805.

Differs from the source. The next-sentence task is left out, with its segment embeddings. gpt2ish's are: initial values,
epsilon of LayerNorm, no dropout, an untied head. `base` has the published size, dropout and tied head. Parameters are
near gpt2ish's: 121,153,105 against 120,560,209 (6l).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

parent = "gpt2ish"
causal = False

# the share that is predicted; of these, shares that become [MASK] or a random token
CHOSEN, MASKED, RANDOM = (0.15, 0.8, 0.1)


def make_batch(window, bos, generator, config):
    """window (B, T) -> inputs (B, T), partly hidden, and targets (B, T): the chosen tokens, -100 elsewhere."""
    n_chosen = max(1, round(CHOSEN * window.size(1)))
    places = torch.rand(window.shape, generator=generator).argsort(1)[:, :n_chosen]
    fate = torch.rand(places.shape, generator=generator)
    random = torch.randint(config.vocab_size, places.shape, generator=generator)
    chosen = window.gather(1, places)
    hidden = torch.where(fate < MASKED, mask_token(config), torch.where(fate < MASKED + RANDOM, random, chosen))
    return window.scatter(1, places, hidden), torch.full_like(window, -100).scatter(1, places, chosen)


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
    pre_norm: bool = False  # LayerNorm before each branch instead of after each addition


def mask_token(config) -> int:
    """Return the id that stands for a hidden token in what the model reads."""
    return config.vocab_size


variants = {
    "6l": dict(),
    "12l": dict(n_layer=12),
    "pre_norm": dict(pre_norm=True),
    "base": dict(n_layer=12, max_len=512, tied=True, dropout=0.1),  # BERT_BASE
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256),
    "tiny_pre_norm": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, pre_norm=True),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.mask_embedding = nn.Parameter(torch.empty(config.n_embd))
        self.positions_embedding = nn.Embedding(config.max_len, config.n_embd)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)  # of the embeddings; with pre_norm, of the last block
        self.output = nn.Linear(config.n_embd, config.n_embd)
        self.gelu = nn.GELU()
        self.output_norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tied:
            self.head.weight = self.tokens_embedding.weight
        self.initialise()

    def body(self, tokens):
        """tokens (B, T) int64 with [MASK] -> what the head reads, (B, T, n_embd). Raises ValueError beyond max_len."""
        end = tokens.size(1)
        if end > self.config.max_len:
            raise ValueError(f"{end} tokens are more than the model's max_len of {self.config.max_len}")
        x = self.embed(tokens) + self.positions_embedding.weight[:end]
        x = self.dropout(x if self.config.pre_norm else self.norm(x))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x) if self.config.pre_norm else x
        return self.output_norm(self.gelu(self.output(x)))

    def forward(self, tokens):
        """tokens (B, T) int64, [MASK] among them -> logits (B, T, vocab_size) of the token at each position itself."""
        return self.head(self.body(tokens))

    def embed(self, tokens):
        """Return the tokens' embeddings (B, T, n_embd); [MASK] is in no table."""
        masked = tokens == mask_token(self.config)
        return torch.where(masked[..., None], self.mask_embedding, self.tokens_embedding(tokens.masked_fill(masked, 0)))

    def initialise(self):
        nn.init.normal_(self.mask_embedding, std=0.02)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        # 2 n_layer branches add up on the residual stream: keep its variance whatever the depth
        for block in self.blocks:
            for projection in (block.attention.out, block.feed_forward.down):
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config)

    def forward(self, x):
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x))
            return x + self.feed_forward(self.feed_forward_norm(x))
        x = self.attention_norm(x + self.attention(x))
        return self.feed_forward_norm(x + self.feed_forward(x))


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

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, D // self.n_head).permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        dropout = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
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
