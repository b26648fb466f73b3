"""The baseline: GPT-2's decoder with an untied head, well initialised.

Pre-LayerNorm blocks, learned positions, exact GELU, every bias kept (Radford et al. 2019, "Language Models are
Unsupervised Multitask Learners"). Gains over a weak baseline are worth nothing, so the initial values are GPT-2's:
N(0, 0.02), the two projections that write to the residual stream scaled down by sqrt(2 n_layer), zero biases. The first
loss is then near ln(vocab_size).

`gpt2` is the published architecture (tied, no head bias, tanh GELU) and reads and writes Hugging Face weights.
`historical` is the baseline of jmward01/lmplay with torch's default initial values, for comparison with its figures.

The rest are fair opponents. `std02`, `std1` and `fast_embedding` give an idea that works on the embeddings a baseline whose
embeddings start as large, or learn as fast (ten times the rate: in muP, arXiv 2203.03466, the rate of the matrices falls with
the width and that of the embeddings does not, which at a width of 768 comes to a factor of 12 on a base of 64; nanochat takes
about 50). `tiny_6l`, `tiny_8l` and `tiny_wide` are for ideas that add parameters or FLOPs of their own.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

parent = None


@dataclass
class Config:
    vocab_size: int = 50257
    max_len: int = 1024
    n_layer: int = 6
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0  # most runs see each token once: there is nothing to overfit, and dropout only slows learning
    tied: bool = False  # the head shares the token embedding's weights
    head_bias: bool = True
    tanh_gelu: bool = False  # GPT-2's approximation instead of the exact GELU
    torch_init: bool = False  # torch's default initial values, zero positions
    embedding_std: float = 0.02  # of the token embedding's initial values, where torch_init is off
    embedding_lr: float = 1.0  # factor on the token embedding's learning rate


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
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.append(k, v)
        mask = None
        if past and T > 1:  # is_causal puts the first query beside the first key, which is right only without a past
            mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=past == 0)
        return self.dropout(self.out(y.transpose(1, 2).reshape(B, T, D)))


class FeedForward(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.gelu = nn.GELU("tanh" if config.tanh_gelu else "none")
        self.down = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.down(self.gelu(self.up(x))))


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


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions_embedding = nn.Embedding(config.max_len, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        if config.tied:
            self.head.weight = self.tokens_embedding.weight
        if config.torch_init:
            nn.init.zeros_(self.positions_embedding.weight)
        else:
            self.initialise()
        if config.embedding_lr != 1:
            self.param_groups = self.groups_by_rate

    def initialise(self):
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(
                    module.weight, std=self.config.embedding_std if module is self.tokens_embedding else 0.02
                )
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for (
            block
        ) in self.blocks:  # 2 n_layer branches add up on the residual stream: keep its variance whatever the depth
            for projection in (block.attention.out, block.feed_forward.down):
                nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def groups_by_rate(self, lr, weight_decay):
        """Decay on matrices and none on vectors and embeddings, as ever; the token embedding at a rate of its own."""
        embedding, positions = self.tokens_embedding.weight, self.positions_embedding.weight
        rest = [p for p in self.parameters() if p.requires_grad and p is not embedding]
        return [
            {"params": [p for p in rest if p.ndim >= 2 and p is not positions], "weight_decay": weight_decay},
            {"params": [p for p in rest if p.ndim < 2 or p is positions], "weight_decay": 0.0},
            {"params": [embedding], "weight_decay": 0.0, "lr": lr * self.config.embedding_lr},
        ]

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

    def new_cache(self, batch: int) -> list["KeyValues"]:
        """An empty cache for `batch` sequences of up to max_len tokens, one KeyValues a layer."""
        c, weight = self.config, self.head.weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        shape = (batch, c.n_head, c.max_len, c.n_embd // c.n_head)
        return [
            KeyValues(*(torch.empty(shape, dtype=dtype, device=weight.device) for _ in range(2)))
            for _ in range(c.n_layer)
        ]


class KeyValues:
    """Keys and values (B, H, max_len, D/H) of one layer, filled up to `length`."""

    def __init__(self, keys, values):
        self.keys, self.values, self.length = keys, values, 0

    def append(self, keys, values):
        """Stores those of the new tokens in place; returns those of all tokens so far, (B, H, length, D/H)."""
        start, self.length = self.length, self.length + keys.size(2)
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


_HF_NAMES = {  # Hugging Face's name of each module, and ours
    "wte": "tokens_embedding",
    "wpe": "positions_embedding",
    "ln_f": "norm",
    "ln_1": "attention_norm",
    "attn.c_attn": "attention.qkv",
    "attn.c_proj": "attention.out",
    "ln_2": "feed_forward_norm",
    "mlp.c_fc": "feed_forward.up",
    "mlp.c_proj": "feed_forward.down",
}


def import_weights(state_dict: dict) -> dict:
    """This model's state dict from that of a Hugging Face GPT-2, with or without `transformer.` before the names.

    Raises ValueError for names that GPT-2 does not have.
    """
    weights = {}
    for name, tensor in state_dict.items():
        module, kind = name.removeprefix("transformer.").rsplit(".", 1)
        if module == "lm_head":
            weights["head.weight"] = tensor
            continue
        if module.endswith(".attn") and kind in ("bias", "masked_bias"):  # causal masks that old checkpoints carry
            continue
        layer = ""
        if module.startswith("h."):
            _, number, module = module.split(".", 2)
            layer = f"blocks.{number}."
        if module not in _HF_NAMES:
            raise ValueError(f"not the weights of a GPT-2: it has no {name}")
        if kind == "weight" and ".c_" in module:  # its Conv1D keeps (in, out)
            tensor = tensor.t()
        weights[f"{layer}{_HF_NAMES[module]}.{kind}"] = tensor
    if "tokens_embedding.weight" in weights:
        weights.setdefault("head.weight", weights["tokens_embedding.weight"])
    return weights


def export_weights(model: Model) -> dict:
    """The state dict of a Hugging Face `GPT2LMHeadModel` with the model's weights.

    Its config says the rest: n_inner is 4 n_embd, activation_function "gelu_new" for tanh_gelu and "gelu" without,
    tie_word_embeddings as tied. Raises ValueError for a head with a bias: GPT-2's format has no place for one.
    """
    if model.config.head_bias:
        raise ValueError("GPT-2's format has no place for the bias of the head: train with --set head_bias=false")
    names = {ours: theirs for theirs, ours in _HF_NAMES.items()}
    weights = {}
    for name, tensor in model.state_dict().items():
        module, kind = name.rsplit(".", 1)
        if module == "head":
            weights["lm_head.weight"] = tensor
            continue
        layer = ""
        if module.startswith("blocks."):
            _, number, module = module.split(".", 2)
            layer = f"h.{number}."
        if kind == "weight" and ".c_" in names[module]:
            tensor = tensor.t().contiguous()
        weights[f"transformer.{layer}{names[module]}.{kind}"] = tensor
    return weights


variants = {
    "6l": dict(),
    "12l": dict(n_layer=12),
    "med": dict(n_layer=24, n_head=16, n_embd=1024),
    "large": dict(n_layer=36, n_head=20, n_embd=1280),
    "small_deep": dict(n_layer=18, n_head=6, n_embd=288),
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256),
    "tiny_6l": dict(n_layer=6, n_head=4, n_embd=256, max_len=256),
    "tiny_8l": dict(n_layer=8, n_head=4, n_embd=256, max_len=256),
    "tiny_wide": dict(n_layer=4, n_head=5, n_embd=320, max_len=256),
    "tiny_std02": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, embedding_std=0.2),
    "tiny_std1": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, embedding_std=1.0),
    "tiny_fast_embedding": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, embedding_lr=10.0),
    "std02": dict(embedding_std=0.2),
    "std1": dict(embedding_std=1.0),
    "fast_embedding": dict(embedding_lr=10.0),
    "historical": dict(torch_init=True, dropout=0.1),
    "gpt2": dict(n_layer=12, tied=True, head_bias=False, tanh_gelu=True),
}
