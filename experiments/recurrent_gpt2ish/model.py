"""gpt2ish trained one token at a time through its key/value cache.

Idea. A control for models that can only be trained step by step.

Change. Weights, loss and gradients are gpt2ish's; only the order of the arithmetic differs. While gradients are wanted,
each token goes through all blocks before the next one starts. Gradients flow through the cache. Without gradients
(validation, generation) the tokens of a call go side by side, which is the same function sooner.

Claim. Training step by step does not hurt. It costs max_len times as many kernels, each of them small. Every weight is
read, and its gradient added, once per token. Measured with `tiny` on one CPU core: 3.2 times gpt2ish's time with 32
sequences per micro-batch, 7.7 times with 4. Memory grows with the length, not with its square: the cache is
written in place, and so are the sums of the gradients of keys and values. Not for --compile, which leaves it as it is.

Source. jmward01/lmplay (rgpt2ish).

Differs from the source. There every step except the first had the position n_head, whatever its number, and it could
not generate. Here positions are right and it can. It also pruned finished sequences from the cache; windows here are
all of one length.
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
    embedding_dropout: float | None = None  # on the embeddings; none: dropout
    head_bias: bool = True


variants = {
    "6l": dict(),  # rgpt2ish
    "micro": dict(n_head=2, n_embd=64),  # rtest_runner
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256),
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

    @torch.compiler.disable  # compiled, every step would be compiled on its own
    def body(self, tokens, cache=None):
        """tokens (B, T) int64 -> what the head reads, (B, T, n_embd). Raises ValueError beyond max_len."""
        past = cache[0].length if cache else 0
        end = past + tokens.size(1)
        if end > self.config.max_len:
            raise ValueError(f"{end} tokens are more than the model's max_len of {self.config.max_len}")
        x = self.dropout(self.tokens_embedding(tokens) + self.positions_embedding.weight[past:end])
        # on meta the products are counted: gpt2ish's, without all the steps
        if torch.is_grad_enabled() and not x.is_meta:
            cache = cache or self.new_cache(len(tokens))
            x = torch.cat([self.step(new, cache) for new in x.split(1, dim=1)], dim=1)
        else:
            x = self.step(x, cache)
        return self.norm(x)

    def forward(self, tokens, cache=None):
        """tokens (B, T) int64 -> logits (B, T, vocab_size). With a cache, `tokens` are the new ones only."""
        return self.head(self.body(tokens, cache))

    def step(self, x, cache):
        """Take new tokens, (B, t, D), through all blocks."""
        for i, block in enumerate(self.blocks):
            x = block(x, cache[i] if cache else None)
        return x

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
        self.out = nn.Linear(config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None):
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, D // self.n_head).permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        if cache is not None and torch.is_grad_enabled():  # T is 1
            y = cache.attend(q, k, v)
        else:
            past = 0
            if cache is not None:
                past = cache.length
                k, v = cache.append(k, v)
            mask = None
            # is_causal puts the first query beside the first key, which is right only without a past
            if past and T > 1:
                mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=past == 0)
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


class Attend(torch.autograd.Function):
    """Attention of one token to those so far, which later tokens neither copy nor change.

    Backward, the last token comes first: `order` makes every step wait for the one after it. Each adds the gradients of
    all keys and values so far to the sums in `gradients`. Then it has that of its own key and value: no earlier token
    sees them.
    """

    @staticmethod
    def forward(ctx, q, k, v, order, so_far, gradients):
        ctx.save_for_backward(q)
        # not saved: autograd would object to the tokens stored behind them
        ctx.so_far, ctx.gradients = (so_far, gradients)
        return F.scaled_dot_product_attention(q, *so_far), order.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, _):
        inputs = [tensor.detach().requires_grad_() for tensor in (*ctx.saved_tensors, *ctx.so_far)]
        with torch.enable_grad():
            dq, dk, dv = torch.autograd.grad(F.scaled_dot_product_attention(*inputs), inputs, dy)
        sums, length = ctx.gradients, dk.size(2)
        if not sums:
            sums += [torch.zeros_like(d, dtype=torch.promote_types(d.dtype, torch.float32)) for d in (dk, dv)]
        own = []
        for total, d in zip(sums, (dk, dv)):
            total[:, :, :length] += d
            own.append(total[:, :, length - 1 : length].to(d.dtype, copy=True))
            total[:, :, length - 1] = 0  # as it was, for another backward pass through the same graph
        return dq, *own, None, None, None


# Optional below: delete what you don't need, and `new_cache` above with it.


class KeyValues:
    """Keys and values (B, H, max_len, D/H) of one layer, filled up to `length`."""

    def __init__(self, keys, values):
        self.keys, self.values, self.length = keys, values, 0
        self.order, self.gradients = keys.new_zeros(()), []

    def append(self, keys, values):
        """Store those of the new tokens in place; return those of all tokens so far, (B, H, length, D/H)."""
        start, self.length = self.length, self.length + keys.size(2)
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def attend(self, q, k, v):
        """Store k and v of one new token, return what its q finds: all (B, H, 1, D/H), all with gradients."""
        so_far = self.append(k.detach(), v.detach())
        y, self.order = Attend.apply(q, k, v, self.order, so_far, self.gradients)
        return y
