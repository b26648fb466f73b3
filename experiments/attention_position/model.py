"""Attention scores with a learned term for the distance between query and key.

Idea. Let a head know directly how far back a key is.

Change. Each block learns a vector P of d = n_embd / n_head elements for each distance and head. For key j <= query i

    r_ij = q_i . P_{i-j},    score_ij = (q_i . k_j + r_ij) / sqrt(d)    or, multiplied,    (q_i . k_j * r_ij) / sqrt(d)

in all blocks or in the last ones only. The learned absolute positions stay. P starts as N(0, 1). It can't be folded.

Claim. "Position matters more than you think". Multiplying looked better at first. It came out worse in the long run, at
more memory.

Source. jmward01/lmplay (attn_pos, apos). The added term is that of Shaw et al. 2018 (arXiv 1803.02155) for the keys,
with vectors of every head's own and without clipping.

Differs from the source. The original left the term out when it generated token by token, so that the model that wrote
was not the one that was trained. Here it is always there. The original gathered r with an index of max_len x max_len
int64, kept like its mask in every block and every checkpoint (72 MB). Here r comes from one product, with the distances
in falling order. It is read a row at a time with a shift (Huang et al. 2018, arXiv 1809.04281), without index or copy.
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
    multiply: bool = False  # the term multiplies q . k, instead of being added
    last_blocks: int = 0  # the term is in that many last blocks; 0: in all


variants = {
    "add": dict(),  # apos1_0
    "multiply": dict(multiply=True),  # apos1_1
    "last_blocks": dict(last_blocks=2),  # apos1_2
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256),
    "tiny_multiply": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, multiply=True),
    "tiny_last_blocks": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, last_blocks=2),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions_embedding = nn.Embedding(config.max_len, config.n_embd)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        first = config.n_layer - config.last_blocks if config.last_blocks else 0
        self.blocks = nn.ModuleList(Block(config, i >= first) for i in range(config.n_layer))
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
            if block.attention.distances_embedding is not None:
                nn.init.normal_(block.attention.distances_embedding.weight)

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
    def __init__(self, config: Config, by_distance: bool):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config, by_distance)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config)

    def forward(self, x, cache=None):
        x = x + self.attention(self.attention_norm(x), cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Attention(nn.Module):
    def __init__(self, config: Config, by_distance: bool):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd {config.n_embd} is not a multiple of n_head {config.n_head}")
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.multiply = config.multiply
        self.distances_embedding = nn.Embedding(config.max_len, config.n_embd) if by_distance else None
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
        dropout = self.attention_dropout if self.training else 0.0
        if self.distances_embedding is not None:
            y = self.attend_by_distance(q, k, v, past, dropout)
        else:
            mask = None
            # is_causal puts the first query beside the first key, which is right only without a past
            if past and T > 1:
                mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=past == 0)
        return self.dropout(self.out(y.transpose(1, 2).reshape(B, T, D)))

    def attend_by_distance(self, q, k, v, past, dropout):
        """Return what queries (B, H, T, d) of tokens from `past` on find in keys and values (B, H, past + T, d)."""
        T = q.size(2)
        later = torch.ones(T, past + T, dtype=torch.bool, device=q.device).triu(past + 1)
        if self.multiply:
            scores = (q @ k.transpose(2, 3) * self.distance_scores(q, past)).masked_fill(later, -math.inf)
            return F.dropout(scores.softmax(-1), dropout).to(v.dtype) @ v
        mask = self.distance_scores(q, past).masked_fill(later, -math.inf)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)

    def distance_scores(self, q, past):
        """Return r / sqrt(d) of the queries, (B, H, T, past + T): finite but meaningless where the key is later."""
        H, T, d = q.shape[1:]
        end = past + T
        # Column c of the product is distance end-1-c. That of query i and key j, past+i-j, is in column j + T-1-i. Each
        # row has to begin one column earlier than the row before. It does if rows of end+1 elements are read as rows of
        # end.
        table = F.pad(self.distances_embedding.weight[:end].flip(0), (0, 0, 0, 1)).view(end + 1, H, d)
        r = torch.einsum("bhtd,chd->bhtc", q / math.sqrt(d), table)
        return r.flatten(2)[..., T - 1 : -1].unflatten(2, (T, end))


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
