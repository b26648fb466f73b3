"""Unified embeddings: a wide table and a small network; folds to gpt2ish.

Idea. All tokens share the network behind the table, so rare ones, whose rows are seldom moved, learn from common ones.

Change. With V tokens and D = n_embd, the embedding of token t is not a row of a table but

    e(t) = W2 gelu(W1 E[t] + b1) + b2        (then a LayerNorm with `output_norm`)

with E (V, multiple D) from N(0, 1), W1 (hidden_multiple D, multiple D) and W2 (D, hidden_multiple D) with torch's
initial values. So e(t) starts with a standard deviation of about 0.2. Blocks, head and positions are gpt2ish's;
`positions` does the same to the positions instead. `value_norm_from` puts a LayerNorm on each head's values from that
block on.
E, W1 and W2 are there for training only. `fold` computes e(t) of all V tokens once and leaves a plain gpt2ish with the
same logits. `bolt_on` is the reverse: it fits the network to the embeddings of a trained gpt2ish, to train on.

Claim. Validation loss on Wikipedia at 6 M documents, one run each: 8x at 6 layers is 0.16 nats below the plain model of
12 layers. 8x at 12 layers is 0.27 and 16x 0.36 below it. 1x helps a little, positions gain nothing. That baseline's
embeddings start with a standard deviation of 1, five times that of e(t): part of the gain may be that.
gpt2ish:std02, std1 and fast_embedding are there to tell.

Source. jmward01/lmplay, `unified_embeddings` v1 (ue8x and so on) and v2.

Differs from the source. The other initial values and the dropout are our gpt2ish's. ue1_9 normalizes the values of
every block, as was meant (there a True taken for 1 made it ue1_10). ue1_4 runs. There the distinct tokens of a batch
are found with Python's sets and dicts; for ours see UnifiedEmbedding.forward.
"""

import math
from dataclasses import dataclass, replace

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
    head_bias: bool = True
    multiple: int = 8  # width of the table behind the token embeddings, in n_embd; 0: a plain embedding
    position_multiple: int = 0  # the same for the positions
    hidden_multiple: int = 1  # width between the network's two layers, in n_embd
    gains: bool = False  # the two layers are ULinears
    output_norm: bool = False  # a LayerNorm on what the network computes
    value_norm_from: int = -1  # the first block whose values are normalized; -1: none
    table_on_cpu: bool = False  # the table stays in the CPU's memory, only the rows of a batch go to the model's device


variants = {
    "8x": dict(),  # ue8x
    "16x": dict(multiple=16),  # ue16x
    "1x": dict(multiple=1),  # ue1x
    "1x_gains": dict(multiple=1, gains=True),  # ue1_4
    "positions": dict(multiple=0, position_multiple=8),  # ue1_5
    "4x_hidden64": dict(multiple=4, hidden_multiple=64),  # ue1_6
    "16x_hidden4": dict(multiple=16, hidden_multiple=4),  # ue1_7
    "8x_hidden32": dict(hidden_multiple=32),  # ue1_8
    "8x_hidden32_value_norm": dict(hidden_multiple=32, value_norm_from=0),  # ue1_9
    "8x_hidden32_late_value_norm": dict(hidden_multiple=32, value_norm_from=1),  # ue1_10
    "version2": dict(multiple=1, hidden_multiple=8, output_norm=True),  # unified embeddings 2.0, not registered there
    "12l": dict(n_layer=12),  # ue8x at 12 layers
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, max_len=256),
    "tiny_1x": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, multiple=1),
    "tiny_16x": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, multiple=16),
    "tiny_positions": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, multiple=0, position_multiple=8),
    "tiny_version2": dict(
        n_layer=4, n_head=4, n_embd=256, max_len=256, multiple=1, hidden_multiple=8, output_norm=True
    ),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.tokens_embedding = embedding(config.vocab_size, config.multiple, config)
        self.positions_embedding = embedding(config.max_len, config.position_multiple, config)
        self.dropout = nn.Dropout(config.dropout if config.embedding_dropout is None else config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=config.head_bias)
        self.initialise()

    def body(self, tokens, cache=None):
        """tokens (B, T) int64 -> what the head reads, (B, T, n_embd). Raises ValueError beyond max_len."""
        past = cache[0].length if cache else 0
        end = past + tokens.size(1)
        if end > self.config.max_len:
            raise ValueError(f"{end} tokens are more than the model's max_len of {self.config.max_len}")
        x = self.dropout(
            self.tokens_embedding(tokens) + self.positions_embedding(torch.arange(past, end, device=tokens.device))
        )
        for i, block in enumerate(self.blocks):
            x = block(x, cache[i] if cache else None)
        return self.norm(x)

    def forward(self, tokens, cache=None):
        """tokens (B, T) int64 -> logits (B, T, vocab_size). With a cache, `tokens` are the new ones only."""
        return self.head(self.body(tokens, cache))

    def fold(self):
        """Return a new model with the same logits and plain embeddings; without value norms it is a gpt2ish."""
        with torch.device("meta"):
            folded = Model(replace(self.config, **PLAIN))
        unified = {name: module for name, module in self.named_children() if isinstance(module, UnifiedEmbedding)}
        weights = {
            name: tensor.clone() for name, tensor in self.state_dict().items() if name.split(".")[0] not in unified
        }
        weights |= {f"{name}.weight": module.weights() for name, module in unified.items()}
        folded.load_state_dict(weights, assign=True)
        return folded.train(self.training)

    def initialise(self):
        unified = {
            part for module in self.modules() if isinstance(module, UnifiedEmbedding) for part in module.modules()
        }
        for module in self.modules():
            if module in unified:  # torch's: N(0, 1) and uniform
                continue
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
    def __init__(self, config: Config, layer: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config, value_norm=0 <= config.value_norm_from <= layer)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd)
        self.feed_forward = FeedForward(config)

    def forward(self, x, cache=None):
        x = x + self.attention(self.attention_norm(x), cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Attention(nn.Module):
    def __init__(self, config: Config, value_norm: bool):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd {config.n_embd} is not a multiple of n_head {config.n_head}")
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.value_norm = nn.LayerNorm(config.n_embd // config.n_head) if value_norm else nn.Identity()
        self.out = nn.Linear(config.n_embd, config.n_embd)
        self.attention_dropout = nn.Dropout(config.attention_dropout).p  # nn.Dropout refuses what is no probability
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None):
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, D // self.n_head).permute(2, 0, 3, 1, 4)  # each (B, H, T, D/H)
        v = self.value_norm(v).to(q.dtype)  # under autocast a LayerNorm returns float32
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.append(k, v)
        mask = None
        if past and T > 1:  # is_causal puts the first query beside the first key, which is right only without a past
            mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
        dropout = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=past == 0)
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


class ULinear(nn.Module):
    """A linear layer with trained gains and offsets of rows, columns and bias, each a vector (or none) plus a scalar:

    W_eff = (W * (m + m') + (a + a')) * (n + n') + (c + c'),  b_eff = b + b'

    with m, a of the rows (outputs) and n, c of the columns (inputs). Source: lmplay's unified weights 1.
    """

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        plain = nn.Linear(n_in, n_out)
        self.weight, self.bias = plain.weight, plain.bias
        self.row_gain, self.row_gain_all = nn.Parameter(torch.ones(n_out)), nn.Parameter(torch.zeros(1))
        self.row_offset, self.row_offset_all = nn.Parameter(torch.zeros(n_out)), nn.Parameter(torch.zeros(1))
        self.column_gain, self.column_gain_all = nn.Parameter(torch.ones(n_in)), nn.Parameter(torch.zeros(1))
        self.column_offset, self.column_offset_all = nn.Parameter(torch.zeros(n_in)), nn.Parameter(torch.zeros(1))
        self.bias_all = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        weight = (
            self.weight * (self.row_gain + self.row_gain_all)[:, None]
            + (self.row_offset + self.row_offset_all)[:, None]
        )
        weight = weight * (self.column_gain + self.column_gain_all) + (self.column_offset + self.column_offset_all)
        return F.linear(x, weight, self.bias + self.bias_all)


class CPUTable(nn.Embedding):
    """A table that stays in the CPU's memory wherever the model goes; its gradients hold the rows of the batch only."""

    def __init__(self, n_rows: int, width: int):
        super().__init__(n_rows, width, sparse=True)

    def _apply(self, fn, recurse=True):  # what .to(), .cuda(), .double() and so on are made of
        return super()._apply(lambda t: fn(t) if t.is_meta else t.to(fn(torch.empty(0, dtype=t.dtype)).dtype), recurse)


class UnifiedEmbedding(nn.Module):
    """In place of nn.Embedding(n_rows, n_embd): rows of a table `multiple` times as wide, through two layers."""

    def __init__(self, n_rows: int, multiple: int, config: Config):
        super().__init__()
        wide, hidden, n_embd = multiple * config.n_embd, config.hidden_multiple * config.n_embd, config.n_embd
        linear = ULinear if config.gains else nn.Linear
        self.table = (CPUTable if config.table_on_cpu else nn.Embedding)(n_rows, wide)
        self.first = linear(wide, hidden)
        self.second = linear(hidden, n_embd)
        self.norm = nn.LayerNorm(n_embd) if config.output_norm else nn.Identity()

    def network(self, rows):
        """rows (n, multiple D) of the table, anywhere -> embeddings (n, D) on the network's device."""
        return self.norm(self.second(F.gelu(self.first(rows.to(self.second.weight.device)))))

    def forward(self, tokens):
        """tokens (...) int64 -> embeddings (..., D). The network sees each distinct token once.

        A GPU would have to be waited for before it could say how many those are. So it computes whichever has fewer
        rows, the batch or the whole table, which then serves every token.
        """
        table = self.table.weight
        # tensors without content have no distinct values
        if table.device.type == "cpu" and type(tokens) is torch.Tensor:
            distinct, at = tokens.cpu().unique(return_inverse=True)
            rows, at = self.table(distinct), at.to(tokens.device)
        elif tokens.numel() < len(table):
            return self.network(self.table(tokens))
        else:
            rows, at = table, tokens
        # not in autocast's type: the gradients of a token's many occurrences are summed here
        return F.embedding(at, self.network(rows).to(table.dtype))

    @torch.no_grad()
    def weights(self):
        """Return the embeddings of all rows, (n_rows, D), as nn.Embedding holds them: a part of the table at a time."""
        return torch.cat([self.network(rows) for rows in self.table.weight.split(8192)])

    def fit(self, target, progress):
        """Fit `weights()` to target (n_rows, D); return the mean squared error. See bolt_on.

        The fit is to the target in units of its standard deviation, by which the last layer is multiplied at the end:
        rate and initial values are made for embeddings near 1, and ours start at 0.02.
        """
        table, scale = self.table.weight, target.std()
        target = target / scale
        batch = min(8192, math.ceil(len(target) / 7))  # the original's 8192 are 7 batches of GPT-2's tokens
        with torch.no_grad():
            table[:, : target.size(1)] = target
        optimizer = torch.optim.Adagrad(self.parameters(), lr=5e-3)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.9)
        for epoch in range(50):
            for part in torch.randperm(len(target)).split(batch):
                optimizer.zero_grad()
                # Adagrad leaves rows without a gradient as they are: sparse gradients come to the same, sooner
                rows = F.embedding(part.to(table.device), table, sparse=True)
                loss = F.mse_loss(self.network(rows), target[part.to(target.device)])
                loss.backward()
                with torch.sparse.check_sparse_tensor_invariants(enable=False):
                    optimizer.step()
            schedule.step()
            progress(epoch + 1, 50, loss.item())
        optimizer.zero_grad()
        last = self.second if isinstance(self.norm, nn.Identity) else self.norm
        with torch.no_grad():
            for (
                name,
                parameter,
            ) in last.named_parameters():  # of ULinear all but the column gains, which multiply the rest
                if not name.startswith("column_gain"):
                    parameter.mul_(scale)
        return F.mse_loss(self.weights(), target * scale).item()


def embedding(n_rows: int, multiple: int, config: Config):
    return UnifiedEmbedding(n_rows, multiple, config) if multiple else nn.Embedding(n_rows, config.n_embd)


PLAIN = dict(multiple=0, position_multiple=0, hidden_multiple=1, gains=False, output_norm=False, table_on_cpu=False)


def bolt_on(state_dict: dict, config: Config, progress=None) -> tuple[Model, float]:
    """Return a Model(config) that carries on from a plain gpt2ish, and the mean squared error that is left.

    Everything is copied, and the unified embedding is fitted to the plain table. Its first n_embd columns start as that
    table, at a standard deviation of 1. Then table and network are fitted by mean squared error with Adagrad: learning
    rate 5e-3, times 0.9 every 10 epochs, 50 epochs of shuffled batches of 8192 rows, as in the original. A vocabulary
    smaller than GPT-2's takes fewer rows, for as many steps. `progress(epoch, n_epochs, loss)` is called after each
    epoch. The model is on the weights' device. Raises ValueError for weights that no gpt2ish of these sizes has.
    """
    with torch.device("meta"):
        plain = Model(replace(config, **PLAIN, value_norm_from=-1)).state_dict()
    for name in {**plain, **state_dict}:
        has, wanted = (tuple(weights[name].shape) if name in weights else "absent" for weights in (state_dict, plain))
        if has != wanted:
            raise ValueError(f"not the weights of a gpt2ish with these settings: {name} is {has}, not {wanted}")
    model = Model(config).to(state_dict["head.weight"].device)
    unified = {name: module for name, module in model.named_children() if isinstance(module, UnifiedEmbedding)}
    if not unified:
        raise ValueError("multiple and position_multiple are 0: there is no unified embedding to fit")
    model.load_state_dict(
        {name: tensor for name, tensor in state_dict.items() if name.removesuffix(".weight") not in unified},
        strict=False,
    )
    errors = [
        module.fit(state_dict[f"{name}.weight"].detach(), progress or (lambda epoch, n_epochs, loss: None))
        for name, module in unified.items()
    ]
    return model, sum(errors) / len(errors)


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
