"""PLDR-LLM: attention through an operator made of the queries' density.

Idea. Between query and key stands an operator G. A network makes it of all queries, by a power law.

Change. A decoder with LayerNorm after each sub-layer, SwiGLU and rotary positions. Its scores are q G k^T / sqrt(dk),
with q and k of width dk. Each head's operator G (dk, dk) is made in four steps:

    A    = network(D),  D = sum_t q_t^T q_t        density of the rotated queries, and residual gated layers on its rows
    A_LM = Z silu(Z) + 1e-9,  Z = W A + b          metric tensor, positive
    P    = A_LM^p                                  potential tensor, elementwise powers, p learned
    G    = a P + ba                                energy-curvature tensor

W, b, p, a and ba are learned for each head, the network for each layer. q G goes into scaled_dot_product_attention as
the query, so that no (T, T) tensor is held. A_LM, P and G are the model's deductive outputs (`Model.tensors`). A
regularizer, off unless asked for, draws their weighted graphs towards acyclic ones. It is
mean |log(tr(exp(X X)) / dk)| with an elementwise square.

As published (`metric="sequence"`: v500, v510, v900) the density is that of the whole sequence. So in training every
position sees a summary of the tokens after it, and its loss is not that of a next token. A text that is written
from a prompt then takes the prompt's operator: another function than the one trained. Three forms don't look ahead:

    causal     position t takes the operator of the tokens before c, the last of chunk, 2 chunk, 4 chunk, ... not
               beyond t, and before the first of these that of `prompt`: parallel, a few operators per sequence
    prompt     the operator of a sequence of one EOT token, the same for all texts: made once per step
    constant   a learned G, no network

`v510g` has a G that is given and not learned; with the identity it is plain attention.

Claim. Losses are like those of models of the same size with plain attention. Deductive outputs tell models apart. Once
trained, G hardly depends on the text, so that it can be kept.

Source. Gokden, "Large language model from power law decoder representations" (arXiv 2410.16703 and 2502.13502), after
the power law graph transformer (arXiv 2107.02039). Code: burcgokden/LLM-from-Power-Law-Decoder-Representations (v500,
v900) and burcgokden/PLDR-LLM-with-KVG-cache (v510, v510G).

Differs from the source. q, k and v are one matrix, and so are the first two of each GLU. Operators are float32 under
autocast. The regularizer is computed without overflow. Nothing is taken for padding unless `pad_token` names it.
"""

import json
import math
import re
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

parent = "llama2"
writes = True  # what a cache makes of metric sequence: the operators of the prompt, kept


@dataclass
class Config:
    vocab_size: int = 50257
    max_len: int = 1024
    n_layer: int = 5
    n_head: int = 14
    n_embd: int = 896
    n_hidden: int = 0  # width of the feed-forward; 0: 8/3 n_embd, rounded down
    metric: str = (
        "causal"  # what the operator is made of: sequence, causal, prompt, constant (learned) or fixed (given)
    )
    chunk: int = 64  # causal: the first operator made of the text is that of N tokens
    prompt_token: int = -1  # the end-of-text token; -1: the last of the vocabulary
    n_unit: int = 8  # residual units of the metric network
    n_glu: int = 2  # gated layers of each
    metric_hidden: int = 0  # their hidden width; 0: 8/3 of the head's, rounded down
    metric_width: int = (
        0  # width of the network between a linear layer in and one out; 0: the head's, without these (v900 has them)
    )
    # initial or given G: identity, uniform (U(0, 1)), normal (N(0, 1)) or a .safetensors file with layers.0.G, ...
    operator: str = "identity"
    dag_metric: float = 0.0  # weight of the regularizer of A_LM, P and G; what is 0 costs nothing
    dag_potential: float = 0.0
    dag_operator: float = 0.0
    monitor: int = 1  # norms and regularizers of N sequences of each micro-batch become columns of train.csv
    rotary: str = (
        "half_split"  # pairs of channels that turn together: half_split (i, i + dk/2) or interleaved (2i, 2i + 1)
    )
    rope_base: float = 10000.0
    pad_token: int = -1  # a token that is not attended to; -1: none
    keras_init: bool = False  # initial values of v500 and v900 instead of v510's
    torch_v_init: bool = False  # v510 leaves the values' projection at torch's default


def causal(config: Config) -> bool:
    return config.metric != "sequence"


variants = {
    "causal": dict(),
    "prompt": dict(metric="prompt"),
    "constant": dict(metric="constant"),
    "v500": dict(metric="sequence", keras_init=True),
    "v510": dict(metric="sequence", rotary="interleaved", torch_v_init=True),
    "v900": dict(
        metric="sequence", n_layer=4, n_head=15, n_embd=960, metric_hidden=300, metric_width=112, keras_init=True
    ),
    "v900_3x17": dict(
        metric="sequence", n_layer=3, n_head=17, n_embd=1088, metric_hidden=300, metric_width=112, keras_init=True
    ),
    "v510g": dict(metric="fixed", rotary="interleaved", torch_v_init=True),
    "tiny": dict(n_layer=4, n_head=4, n_embd=256, n_hidden=527, n_unit=2, metric_hidden=64, max_len=256),
    "tiny_prompt": dict(
        n_layer=4, n_head=4, n_embd=256, n_hidden=527, n_unit=2, metric_hidden=64, max_len=256, metric="prompt"
    ),
    "tiny_sequence": dict(
        n_layer=4, n_head=4, n_embd=256, n_hidden=527, n_unit=2, metric_hidden=64, max_len=256, metric="sequence"
    ),
    "tiny_constant": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, metric="constant"),
    "tiny_identity": dict(n_layer=4, n_head=4, n_embd=256, max_len=256, metric="fixed"),
}


class Model(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        choices = {
            "metric": ("causal", "prompt", "constant", "fixed", "sequence"),
            "rotary": ("half_split", "interleaved"),
        }
        for name, values in choices.items():
            if getattr(config, name) not in values:
                raise ValueError(f"{name} is one of {', '.join(values)}, not {getattr(config, name)!r}")
        for name in ("prompt_token", "pad_token"):
            if not -1 <= getattr(config, name) < config.vocab_size:
                raise ValueError(f"{name} {getattr(config, name)} is not in the vocabulary of {config.vocab_size}")
        if config.chunk < 1:
            raise ValueError(f"chunk must be at least 1, not {config.chunk}")
        self.config = config
        self.tokens_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.embedding_norm = nn.LayerNorm(config.n_embd, eps=1e-6)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.head = nn.Linear(config.n_embd, config.vocab_size)
        self.derived = None
        self.initialise()

    def body(self, tokens, cache=None, operator=None):
        """tokens (B, T) int64 -> what the head reads, (B, T, n_embd); in training also what is added to the loss.

        `operator`: a G for each layer, (H, dk, dk) or (B, H, dk, dk), taken instead of the metric's. A cache keeps the
        operators with which it began (sequence) or the running density (causal), and so is causal whatever the metric.
        Raises ValueError beyond max_len.
        """
        c = self.config
        coefficients = {"A_LM": c.dag_metric, "P": c.dag_potential, "G": c.dag_operator}
        if not self.training or cache or c.metric == "fixed" or not (c.monitor or any(coefficients.values())):
            return self.layers(tokens, cache, operator)
        seen, extra, watched = [], {}, {}
        x = self.layers(tokens, None, operator, seen)
        for j, (name, coefficient) in enumerate(coefficients.items()):
            # those made of the text, where there are any
            tensors = [[tensors[j] for _, tensors in (taken[1:] or taken)] for taken, *_ in seen]
            tensors = [X if X.ndim == 4 else X[None] for layer in tensors for X in layer if X is not None]
            if coefficient and tensors:
                value = log_trace_exp(torch.cat(tensors)).mean()
                extra["loss"] = extra.get("loss", 0.0) + coefficient * value
                extra[f"dag_{name}"] = value.detach()
            if c.monitor and tensors:
                watched[name] = torch.cat([X.detach()[: c.monitor] for X in tensors])
        extra |= {f"norm_{name}": X.norm(dim=(-2, -1)).mean() for name, X in watched.items()}
        if watched := {name: X for name, X in watched.items() if f"dag_{name}" not in extra}:
            # at once: it is many small steps
            values = log_trace_exp(torch.stack([*watched.values()])).flatten(1).mean(1)
            extra |= {f"dag_{name}": value for name, value in zip(watched, values)}
        return x, extra

    def forward(self, tokens, cache=None, operator=None):
        """tokens (B, T) int64 -> logits (B, T, vocab_size). With a cache, `tokens` are the new ones only."""
        x = self.body(tokens, cache, operator)
        return (self.head(x[0]), x[1]) if isinstance(x, tuple) else self.head(x)

    def derive(self) -> dict:
        """Return the prompt's A_LM, P and G of all layers, (n_layer, H, dk, dk) each, if the metric takes them."""
        c = self.config
        if c.metric not in ("prompt", "causal"):
            return {}
        x = self.embed(torch.full((1, 1), c.prompt_token % c.vocab_size, device=self.head.weight.device))
        cos, sin = self.rotation(0, 1)
        seen = []
        for block in self.blocks:  # a lone token attends to itself whatever the operator
            x = block(x, cos, sin, None, None, None, None, seen)
        tensors = zip(*(taken[-1][1] for taken, *_ in seen))
        return {name: torch.cat(X) for name, X in zip(("A_LM", "P", "G"), tensors)}

    def embed(self, tokens):
        return self.embedding_norm(math.sqrt(self.config.n_embd) * self.tokens_embedding(tokens))

    def rotation(self, start: int, end: int):
        return rotation(start, end, self.config.n_embd // self.config.n_head, self.config.rope_base, self.head.weight)

    def layers(self, tokens, cache=None, operator=None, seen=None):
        """tokens (B, T) int64 -> what the head reads, (B, T, n_embd)."""
        c = self.config
        past = cache[0].length if cache else 0
        end = past + tokens.size(1)
        if end > c.max_len:
            raise ValueError(f"{end} tokens are more than the model's max_len of {c.max_len}")
        derived = None
        if operator is None and c.metric in ("prompt", "causal"):
            derived = self.derive() if self.derived is None else self.derived
        cos, sin = self.rotation(past, end)
        mask = self.mask(tokens, past, cache)
        x = self.embed(tokens)
        for i, block in enumerate(self.blocks):
            first = derived and tuple(derived[name][i][None] for name in ("A_LM", "P", "G"))
            supplied = None if operator is None else operator[i]
            x = block(x, cos, sin, mask, first, supplied, cache[i] if cache else None, seen)
        return x

    def mask(self, tokens, past: int, cache):
        """Return what may be attended to, (T, past + T) or (B, 1, T, past + T); None where is_causal says it."""
        T, pad = tokens.size(1), self.config.pad_token
        if pad < 0 and (past == 0 or T == 1):
            return None
        mask = torch.ones(T, past + T, dtype=torch.bool, device=tokens.device).tril(past)
        if pad < 0:
            return mask
        real = tokens != pad
        if cache:
            cache[0].real = real = torch.cat([cache[0].real, real], dim=1) if past else real
        return mask & real[:, None, None]

    @torch.no_grad()
    def tensors(self, tokens, scores: bool = False) -> dict:
        """Return the deductive outputs of tokens (B, T): layers.I.A_LM, .P and .G, (B or 1, H, dk, dk), of layer I.

        They are those that go on from the last token. A learned or given operator has a G only. `scores` adds
        layers.I.S (B, H, T, T), the scaled scores q G k^T / sqrt(dk) before the mask.
        """
        seen, tensors = [], {}
        self.layers(tokens, seen=seen)
        for i, (taken, query, k) in enumerate(seen):
            for name, X in zip(("A_LM", "P", "G"), taken[-1][1]):
                if X is not None:
                    tensors[f"layers.{i}.{name}"] = X if X.ndim == 4 else X[None]
            if scores:
                tensors[f"layers.{i}.S"] = query @ k.mT / math.sqrt(k.size(-1))
        return tensors

    @torch.no_grad()
    def fold(self, operator=None) -> "Model":
        """Return this model with a given operator and no network; `operator`: one per layer, (H, dk, dk).

        Without it the operator must be the same for all texts: metric prompt or constant. Else raises ValueError.
        """
        c = self.config
        if operator is None:
            if c.metric not in ("prompt", "constant", "fixed"):
                raise ValueError(
                    f"the operator of metric {c.metric!r} depends on the text: give fold() the one to keep"
                )
            operator = (
                self.derive()["G"] if c.metric == "prompt" else [block.attention.operator for block in self.blocks]
            )
        weight = self.head.weight
        folded = Model(replace(c, metric="fixed", operator="identity")).to(weight.device, weight.dtype)
        kept = {name: tensor for name, tensor in self.state_dict().items() if name in folded.state_dict()}
        kept |= {f"blocks.{i}.attention.operator": G for i, G in enumerate(operator)}
        folded.load_state_dict(kept)
        return folded.train(self.training)

    def initialise(self):
        c = self.config
        linear = [module for module in self.modules() if isinstance(module, nn.Linear)]
        for module in linear:
            glorot_uniform(module.weight)
            nn.init.zeros_(module.bias)
        nn.init.uniform_(self.tokens_embedding.weight, -0.05, 0.05) if c.keras_init else nn.init.normal_(
            self.tokens_embedding.weight
        )
        operators = given_operators(c) if c.metric in ("fixed", "constant") else None
        for i, block in enumerate(self.blocks):
            attention = block.attention
            for part in attention.qkv.weight.chunk(3):
                glorot_uniform(part)
            if c.torch_v_init:
                for values in attention.qkv.weight, attention.qkv.bias:
                    nn.init.uniform_(values.chunk(3)[2], -(c.n_embd**-0.5), c.n_embd**-0.5)
            for module in block.modules():
                if isinstance(module, GLU):
                    for part in module.gate_up.weight.chunk(2):
                        glorot_uniform(part)
                if isinstance(module, PowerLaw):
                    for values in module.weight, module.exponent, module.coupling:
                        if c.keras_init:  # 0.8796: what cutting off at two leaves of the standard deviation
                            std = (c.n_head * values.size(1)) ** -0.5 / 0.87962566103423978
                            nn.init.trunc_normal_(values, std=std, a=-2 * std, b=2 * std)
                        else:
                            nn.init.xavier_normal_(values)
            if operators is not None:
                with torch.no_grad():
                    attention.operator.copy_(operators(i))

    def new_cache(self, batch: int) -> list["Cache"]:
        """Return an empty cache for `batch` sequences of up to max_len tokens: one Cache per layer."""
        c, weight = self.config, self.head.weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        shape = (batch, c.n_head, c.max_len, c.n_embd // c.n_head)
        return [
            Cache(*(torch.empty(shape, dtype=dtype, device=weight.device) for _ in range(2))) for _ in range(c.n_layer)
        ]


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = nn.LayerNorm(config.n_embd, eps=1e-6)
        self.feed_forward = GLU(config.n_embd, config.n_hidden or 8 * config.n_embd // 3)
        self.feed_forward_norm = nn.LayerNorm(config.n_embd, eps=1e-6)

    def forward(self, x, *arguments):
        x = self.attention_norm(self.attention(x, *arguments) + x)
        return self.feed_forward_norm(self.feed_forward(x) + x)


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        if config.n_embd % (2 * config.n_head):
            raise ValueError(f"n_embd {config.n_embd} is not an even multiple of n_head {config.n_head}")
        self.n_head, self.width = config.n_head, config.n_embd // config.n_head
        self.metric, self.chunk, self.interleaved = config.metric, config.chunk, config.rotary == "interleaved"
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.out = nn.Linear(config.n_embd, config.n_embd)
        shape = self.n_head, self.width, self.width
        if config.metric == "fixed":
            self.register_buffer("operator", torch.empty(shape))
        elif config.metric == "constant":
            self.operator = nn.Parameter(torch.empty(shape))
        else:
            self.network = MetricNetwork(config)
            self.power_law = PowerLaw(config)

    def forward(self, x, cos, sin, mask=None, first=None, supplied=None, cache=None, seen=None):
        """`first`: A_LM, P and G of the prompt; None: this is the prompt. `supplied`: a G to take whatever the metric.

        What was taken is appended to `seen`, as `operators` returns it.
        """
        B, T, D = x.shape
        qk, v = self.qkv(x).view(B, T, -1, self.width).split((2 * self.n_head, self.n_head), dim=2)
        q, k = rotate(qk, cos, sin, self.interleaved).transpose(1, 2).chunk(2, dim=1)  # (B, H, T, dk)
        v = v.transpose(1, 2)
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.append(k, v)
        taken = self.operators(q, past, first, supplied, cache)
        sizes = [size for size, _ in taken]
        query = [part @ tensors[-1].to(q.dtype) for part, (_, tensors) in zip(q.split(sizes, dim=2), taken)]
        query = torch.cat(query, dim=2) if len(query) > 1 else query[0]
        y = F.scaled_dot_product_attention(query, k, v, attn_mask=mask, is_causal=mask is None and past == 0)
        if seen is not None:
            seen.append((taken, query, k))
        return self.out(y.transpose(1, 2).reshape(B, T, D))

    def operators(self, q, past, first, supplied, cache):
        """Return [(n, (A_LM, P, G)), ...]: the operators of the first n queries of q (B, H, T, dk), of the next, ...

        G is (H, dk, dk) or (B or 1, H, dk, dk), as are A_LM and P, which may be None. The first query is at position
        `past`.
        """
        T = q.size(2)
        if supplied is not None:
            return [(T, (None, None, supplied))]
        if self.metric in ("fixed", "constant"):
            return [(T, (None, None, self.operator))]
        if self.metric == "prompt" and first is not None:
            return [(T, first)]
        if self.metric == "sequence" or first is None:  # with a cache: made of the first tokens that it gets, and kept
            tensors = cache and cache.operators or self.power_law(self.network(density(q)))
            if cache is not None:
                cache.operators = tensors
            return [(T, tensors)]
        starts, start = [], self.chunk
        while start < past + T:
            if start >= past:
                starts.append(start - past)
            start *= 2
        edges = starts if starts and starts[0] == 0 else [0, *starts]
        sizes = [end - start for start, end in zip(edges, [*edges[1:], T])]
        total, densities = cache.density if cache else 0, []
        for start, part in zip(edges, q.split(sizes, dim=2)):
            if start in starts:
                densities.append(total)
            if cache is not None or start != edges[-1]:
                total = total + density(part)
        made = [(cache and cache.operators) or first] if edges != starts else []
        if densities:
            tensors = self.power_law(self.network(torch.cat(densities)))
            made += zip(*(X.chunk(len(densities)) for X in tensors))
        if cache is not None:
            cache.density, cache.operators = total, made[-1]
        return list(zip(sizes, made))


def rotation(start: int, end: int, width: int, base: float, like):
    """Return cosines and sines (T, 1, width/2) of the angles position * base^(-2i/width), float32 or wider."""
    options = dict(device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    frequencies = base ** (-torch.arange(0, width, 2, **options) / width)
    angles = torch.arange(start, end, **options)[:, None, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x, cos, sin, interleaved: bool):
    """Turn each pair of channels of x (B, T, H, width) by its angle, in float32 whatever the dtype of x."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1) if interleaved else x.chunk(2, dim=-1)
    parts = a * cos - b * sin, b * cos + a * sin
    return (torch.stack(parts, dim=-1).flatten(-2) if interleaved else torch.cat(parts, dim=-1)).to(x.dtype)


class GLU(nn.Module):
    """(silu(x U1 + c1) * (x U2 + c2)) U3 + c3"""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class ResidualUnit(nn.Module):
    def __init__(self, width: int, hidden: int, n_glu: int):
        super().__init__()
        self.glus = nn.Sequential(*(GLU(width, hidden) for _ in range(n_glu)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        return self.norm(self.glus(x) + x)


class MetricNetwork(nn.Sequential):
    """The same map of each row (dk,) of a density, for all heads of a layer."""

    def __init__(self, config: Config):
        head = config.n_embd // config.n_head
        width, hidden = config.metric_width or head, config.metric_hidden or 8 * head // 3
        super().__init__()
        if config.metric_width:
            self.input = nn.Linear(head, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.units = nn.Sequential(*(ResidualUnit(width, hidden, config.n_glu) for _ in range(config.n_unit)))
        if config.metric_width:
            self.output = nn.Linear(width, head)
            self.output_norm = nn.LayerNorm(head, eps=1e-6)


class PowerLaw(nn.Module):
    """A (N, H, dk, dk) -> A_LM, P and G, of the same shape."""

    def __init__(self, config: Config):
        super().__init__()
        width = config.n_embd // config.n_head
        shape = config.n_head, width, width
        self.weight, self.bias, self.exponent, self.coupling, self.coupling_bias = (
            nn.Parameter(torch.zeros(shape)) for _ in range(5)
        )

    def forward(self, A):
        # Without autocast: x silu(x) + 1e-9 to a power is ill-conditioned near 0. N is beside the columns, so that
        # a head is one product however many operators there are.
        with torch.autocast(A.device.type, enabled=False):
            A = A.to(self.weight.dtype).permute(1, 2, 0, 3)
            product, per_row = A.shape[:2] + (-1,), (slice(None), slice(None), None)
            Z = (self.weight @ A.reshape(product)).view(A.shape) + self.bias[per_row]
            A_LM = Z * F.silu(Z) + 1e-9
            P = (self.exponent[per_row] * A_LM.log()).exp()
            G = (self.coupling @ P.view(product)).view(A.shape) + self.coupling_bias[per_row]
        return tuple(X.permute(2, 0, 1, 3) for X in (A_LM, P, G))


def density(q):
    """Return sum_t q_t^T q_t of q (B, H, T, dk), in float32 under autocast: (B, H, dk, dk)."""
    with torch.autocast(q.device.type, enabled=False):
        q = q.to(torch.promote_types(q.dtype, torch.float32))
        return q.mT @ q


def glorot_uniform(weight):
    bound = math.sqrt(6 / sum(weight.shape))
    nn.init.uniform_(weight, -bound, bound)


SQUARINGS = 24


class LogTraceExp(torch.autograd.Function):
    """log(tr(exp(X * X)) / n) of X (..., n, n), elementwise square; >= 0, and 0 only where the graph of X has no cycle.

    Scaling and squaring without overflow: exp(M) = exp(log_scale) (d I + R) with all factors >= 0, so that nothing
    cancels, either. Exact up to row sums of 2^SQUARINGS. The gradient, 2 X * exp(M)^T / tr(exp(M)), comes of the same
    product.
    """

    @staticmethod
    def forward(ctx, X):
        M, n = X * X, X.size(-1)
        halvings = (M.sum(-1).amax(-1).log2().ceil() + 1).clamp(0, SQUARINGS)[..., None, None]
        M = M * torch.exp2(-halvings)
        order = 14 if X.dtype == torch.float64 else 8
        R = M / order
        for i in range(order - 1, 0, -1):
            R = torch.baddbmm(M.view(-1, n, n), M.view(-1, n, n), R.view(-1, n, n)).view(M.shape) / i
        d, log_scale = torch.ones_like(halvings), torch.zeros_like(halvings)
        # How many are due is asked on a CPU only: a GPU would have to be waited for, and traced shapes have no values.
        asked = type(M) is torch.Tensor and M.device.type == "cpu" and not torch.compiler.is_compiling()
        for i in range(int(halvings.max().nan_to_num()) if asked else SQUARINGS):
            squared = torch.baddbmm((2 * d * R).view(-1, n, n), R.view(-1, n, n), R.view(-1, n, n)).view(M.shape)
            largest = torch.maximum(squared.amax((-2, -1), keepdim=True), d * d)
            due = halvings > i
            R = torch.where(due, squared / largest, R)
            log_scale = torch.where(due, 2 * log_scale + largest.log(), log_scale)
            d = torch.where(due, d * d / largest, d)
        d, log_scale = d[..., 0, 0], log_scale[..., 0, 0]
        mean = R.diagonal(dim1=-2, dim2=-1).mean(-1)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(X, R, d, n * (d + mean).clamp(min=torch.finfo(X.dtype).tiny))
        return torch.where(d == 1, mean.log1p(), log_scale + (d + mean).log()).clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        X, R, d, trace = ctx.saved_tensors
        exp = R.mT + d[..., None, None] * torch.eye(X.size(-1), dtype=X.dtype, device=X.device)
        return (gradient / trace)[..., None, None] * exp * 2 * X


def log_trace_exp(X):
    """Return LogTraceExp of X, in its own precision whatever the autocast."""
    with torch.autocast(X.device.type, enabled=False):
        return LogTraceExp.apply(X)


def given_operators(config: Config):
    """Return a function from a layer's number to its operator (H, dk, dk), by `operator`. Raises ValueError."""
    shape = (config.n_head, *[config.n_embd // config.n_head] * 2)
    if config.operator == "identity":
        return lambda i: torch.eye(shape[-1]).expand(shape)
    if config.operator in ("uniform", "normal"):
        return lambda i: torch.rand(shape) if config.operator == "uniform" else torch.randn(shape)
    try:
        with open(config.operator, "rb") as file:  # safetensors: length of the header, header, content
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            content = bytearray(file.read())
        entries = [header[f"layers.{i}.G"] for i in range(config.n_layer)]
        if any(
            entry["dtype"] != "F32" or tuple(entry["shape"][-3:]) != shape or math.prod(entry["shape"][:-3]) != 1
            for entry in entries
        ):
            raise ValueError(f"its layers.0.G to layers.{config.n_layer - 1}.G must be float32 of shape {shape}")
        operators = [
            torch.frombuffer(content[slice(*entry["data_offsets"])], dtype=torch.float32).view(shape)
            for entry in entries
        ]
    except OSError as error:
        raise ValueError(
            f"the operator file {config.operator} can't be read: {error.strerror} (operator is identity, uniform, "
            "normal or a .safetensors file)"
        ) from error
    except (KeyError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(
            f"the operator file {config.operator} has no layers.0.G to layers.{config.n_layer - 1}.G"
        ) from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the operator file {config.operator} can't be used: {error}") from error
    return lambda i: operators[i]


_LAYER = "blocks.#.", "decoder.dec_layers.#."


_NAMES = {  # ours, and the reference's: what is one matrix here is two or three there; # is a number
    "tokens_embedding": "decoder.embedding",
    "embedding_norm": "decoder.layernorm1",
    "head": "final_layer",
} | {
    _LAYER[0] + ours: " ".join(_LAYER[1] + part for part in theirs.split())
    for ours, theirs in {
        "attention.qkv": "mha1.wq mha1.wk mha1.wv",
        "attention.out": "mha1.dense",
        "attention_norm": "layernorm1",
        "feed_forward.gate_up": "ffn.gluw1 ffn.gluw2",
        "feed_forward.down": "ffn.gluw3",
        "feed_forward_norm": "layernorm2",
        "attention.network.input": "mha1.res_inp_ffn",
        "attention.network.norm": "mha1.layernorm1",
        "attention.network.output": "mha1.res_final_ffn",
        "attention.network.output_norm": "mha1.layernorm2",
        "attention.network.units.#.glus.#.gate_up": "mha1.reslayerAs.#.denseAs.#.gluw1 "
        "mha1.reslayerAs.#.denseAs.#.gluw2",
        "attention.network.units.#.glus.#.down": "mha1.reslayerAs.#.denseAs.#.gluw3",
        "attention.network.units.#.norm": "mha1.reslayerAs.#.layernormA",
    }.items()
}


_NAMES = {
    f"{ours}.{kind}": [f"{part}.{kind}" for part in theirs.split()]
    for ours, theirs in _NAMES.items()
    for kind in ("weight", "bias")
} | {
    f"{_LAYER[0]}attention.power_law.{ours}": [f"{_LAYER[1]}mha1.plgatt_layer.{theirs}"]
    for ours, theirs in {
        "weight": "Wlst",
        "bias": "blst",
        "exponent": "pwlst",
        "coupling": "alst",
        "coupling_bias": "balst",
    }.items()
}


def _template(name: str) -> tuple[str, list[str]]:
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", name), re.findall(r"(?<=\.)\d+(?=\.)", name)


def _filled(template: str, numbers: list[str]) -> str:
    return template.replace("#", "{}").format(*numbers)


def import_weights(state_dict: dict) -> dict:
    """Return this model's state dict from that of the reference's v500, v510, v900 or v510G.

    v510G's operators are not in its file. Raises ValueError for a name that these lack, and for a part of a parameter.
    """
    templates = {part: ours for ours, theirs in _NAMES.items() for part in theirs}
    weights = {}
    for name in state_dict:
        template, numbers = _template(name)
        if template not in templates:
            raise ValueError(f"not the weights of a PLDR-LLM: it has no {name}")
        parts = [_filled(part, numbers) for part in _NAMES[templates[template]]]
        if missing := [part for part in parts if part not in state_dict]:
            raise ValueError(f"not the weights of a whole PLDR-LLM: {name} is there, {missing[0]} is not")
        ours = _filled(templates[template], numbers)
        if ours not in weights:
            weights[ours] = torch.cat([state_dict[part] for part in parts]) if len(parts) > 1 else state_dict[name]
    return weights


def export_weights(model: Model) -> dict:
    """Return the model's weights under the reference's names (v500, v510 or v900; without operators: v510G).

    Raises ValueError for a learned operator, which the reference's format cannot hold: export what fold() returns.
    """
    if model.config.metric == "constant":
        raise ValueError("the reference's format cannot hold a learned operator: export what fold() returns")
    weights = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith("attention.operator"):
            template, numbers = _template(name)
            parts = [_filled(part, numbers) for part in _NAMES[template]]
            weights.update(zip(parts, (part.clone() for part in tensor.chunk(len(parts)))))
    return weights


def paired(model: Model, rotary: str) -> Model:
    """Return the same function with the other pairing of the channels that turn together (`rotary`).

    The channels are in another order. All that reads them follows: the metric's network, W, b, p, a, ba and G.
    """
    c = model.config
    converted = Model(replace(c, rotary=rotary, operator="identity")).to(
        model.head.weight.device, model.head.weight.dtype
    )
    width = c.n_embd // c.n_head
    order = torch.arange(width)
    if rotary != c.rotary:  # the pairs (2i, 2i + 1) are put where (i, i + width/2) were, or the reverse
        order = order.view(-1, 2).t().flatten() if rotary == "half_split" else order.view(2, -1).t().flatten()
    weights = model.state_dict()
    for name, tensor in weights.items():
        last = name.rsplit("attention.", 1)[-1]
        if last.startswith("qkv."):
            q, k, v = tensor.chunk(3)
            tensor = torch.cat([x.view(c.n_head, width, -1)[:, order].view(x.shape) for x in (q, k)] + [v])
        elif last == "operator" or last.startswith("power_law."):
            tensor = tensor[:, order][:, :, order]
        elif last.startswith(("network.output.", "network.output_norm.")):
            tensor = tensor[order]
        elif last == "network.input.weight":
            tensor = tensor[:, order]
        elif last.startswith("network.") and not c.metric_width:
            if last.endswith("gate_up.weight"):
                tensor = tensor[:, order]
            elif ".gate_up." not in last:
                tensor = tensor[order]
        weights[name] = tensor
    converted.load_state_dict(weights)
    return converted.train(model.training)


class Cache:
    """Keys and values (B, H, max_len, dk) of one layer, filled up to `length`; operators, density of all queries."""

    def __init__(self, keys, values):
        self.keys, self.values, self.length = keys, values, 0
        self.operators, self.density, self.real = None, 0, None

    def append(self, keys, values):
        """Store those of the new tokens in place; return those of all tokens so far, (B, H, length, dk)."""
        start, self.length = self.length, self.length + keys.size(2)
        self.keys[:, :, start : self.length] = keys
        self.values[:, :, start : self.length] = values
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]
