"""Text from a trained model, token by token."""

import codecs
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from lmplay import contract
from lmplay.data.tokenizers import Tokenizer
from lmplay.errors import UserError
from lmplay.model import adapters

MASK = "[MASK]"  # in a prompt: a token to fill in


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: first the penalty, then temperature, top_k and top_p.

    temperature 0 or do_sample False takes the likeliest token. top_k 0 and top_p 1 keep all; top_p keeps the nucleus, the fewest
    tokens whose probabilities reach top_p (arXiv 1904.09751). repetition_penalty divides the positive and multiplies the negative
    logits of the tokens that occurred (arXiv 1909.05858). Raises UserError for a value out of range.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    do_sample: bool = True

    def __post_init__(self):
        for name, good, range_ in (
            ("temperature", 0 <= self.temperature < math.inf, "at least 0"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
        ):
            if not good:
                raise UserError(f"--{name.replace('_', '-')} must be {range_}, not {getattr(self, name)}")

    @property
    def greedy(self) -> bool:
        return not self.do_sample or self.temperature == 0


def text_parts(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    reading: contract.Direction,
    prompt: list[int],
    context_len: int,
    max_len: int,
    sampling: Sampling,
    seed: int,
    use_cache: bool = True,
) -> Iterator[str]:
    """The text of `prompt` (token ids in the text's order) and of up to `max_len` tokens that the model adds, in parts as they come.

    A model that reads from the end writes what comes before the prompt, and one with an order of its own a whole window of `context_len`
    tokens, without regard to prompt and max_len: all of it is yielded at once, in the text's order.
    """
    generator = torch.Generator().manual_seed(seed)
    order = slice(None, None, -1 if reading.reversed else 1)
    if not reading.forward and not reading.reversed:
        new = list(generate(model, [reading.bos], context_len, context_len, sampling, generator, None, use_cache))
        yield tokenizer.decode([token for _, token in sorted(zip(reading.order, new))])
        return
    new = generate(
        model, [reading.bos, *prompt[order]], context_len, max_len, sampling, generator, tokenizer.eot, use_cache
    )
    if reading.reversed:
        yield tokenizer.decode([*new][::-1] + prompt)
    else:
        yield from stream_text(tokenizer, chain(prompt, new))


@torch.inference_mode()
def generate(
    model: torch.nn.Module,
    prompt: list[int],
    context_len: int,
    max_len: int,
    sampling: Sampling,
    generator: torch.Generator,
    stop: int | None = None,
    use_cache: bool = True,
) -> Iterator[int]:
    """Yields up to `max_len` tokens that follow `prompt`, whose first is the beginning token; ends before `stop`.

    With the model's cache, if it offers one, or by computing the context anew: the same text. When the context is full its
    older half is dropped, but for the beginning token, with which all that the model was trained on began. `generator` is
    on the CPU, so that what a seed draws does not depend on the device.
    """
    device = adapters.device_of(model)
    beginning, tokens = prompt[0], prompt[1:]
    cached = use_cache and callable(getattr(model, "new_cache", None))
    context, cache = None, None
    with adapters.derived_once(model):
        for _ in range(max_len):
            if context is None or len(context) > context_len:
                n_kept = len(tokens) if len(tokens) < context_len else context_len // 2
                context = [beginning, *tokens[len(tokens) - n_kept :]]
                cache, fed = model.new_cache(1) if cached else None, 0
            new = torch.tensor([context[fed:]], device=device)
            if cached:
                fed = len(context)
            token = next_token(_logits(model, new, [-1], cache)[0], tokens, sampling, generator)
            if token == stop:
                return
            tokens.append(token)
            context.append(token)
            yield token


def _logits(model: torch.nn.Module, tokens: Tensor, places: list[int], cache=None) -> Tensor:
    """Logits (n, V) on the CPU at n places of `tokens` (1, T)."""
    head = adapters.fused_head(model)
    if cache is not None:
        logits = adapters.split_output(model(tokens, cache=cache))[0][0, places]
    elif head is not None:  # without a cache most of the time would go into logits that nobody asked for
        logits = torch.nn.functional.linear(
            adapters.split_output(model.body(tokens))[0][0, places], head.weight, head.bias
        )
    else:
        logits = adapters.split_output(model(tokens))[0][0, places]
    return logits.cpu()


def mask_text(tokenizer: Tokenizer, text: str) -> list[int | None]:
    """The tokens of a text, None for each MASK in it. A space before one belongs to the hidden token where tokens begin with spaces."""
    parts = text.split(MASK)
    if any(
        len(piece) > 1 and piece.startswith(b" ")
        for piece in (tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size))
    ):
        parts[:-1] = [part.removesuffix(" ") for part in parts[:-1]]
    return [*chain.from_iterable([None, *tokenizer.encode(part)] for part in parts)][1:]


@torch.inference_mode()
def fill(
    model: torch.nn.Module, tokens: list[int | None], mask_token: int, sampling: Sampling, generator: torch.Generator
) -> list[int]:
    """`tokens` with those that are None filled in, one after another, each time the one that the model is surest of: each sees those
    before it. Surest is where its largest probability is the largest."""
    tokens, device = list(tokens), adapters.device_of(model)
    with adapters.derived_once(model):
        while places := [place for place, token in enumerate(tokens) if token is None]:
            known = [token for token in tokens if token is not None]
            inputs = torch.tensor([[mask_token if token is None else token for token in tokens]], device=device)
            logits = _logits(model, inputs, places)
            surest = int(logits.double().softmax(-1).amax(-1).argmax())
            tokens[places[surest]] = next_token(logits[surest], known, sampling, generator)
    return tokens


def next_token(logits: Tensor, occurred: list[int], sampling: Sampling, generator: torch.Generator) -> int:
    """Draws from logits (V,) on the CPU; `occurred` are the tokens that the repetition penalty is for."""
    logits = logits.double()
    if sampling.repetition_penalty != 1.0 and occurred:
        seen = torch.tensor(occurred)
        values = logits[seen]
        logits = logits.scatter(
            0, seen, torch.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
        )
    highest = logits.max()
    if not highest.isfinite():
        raise UserError(
            "the model's logits are not finite: its weights are of no use; take an earlier checkpoint or train it again"
        )
    if sampling.greedy:
        return int(logits.argmax())
    logits = (logits - highest) / sampling.temperature
    tokens = torch.arange(len(logits))
    if 0 < sampling.top_k < len(logits):
        logits, tokens = logits.topk(sampling.top_k)
    p = logits.softmax(0)
    if sampling.top_p < 1:
        # Tokens below this add up to less than 1 - top_p, so the nucleus is among the others: few, and quickly sorted.
        likely = p >= min((1 - sampling.top_p) / len(p), p.max())
        p, order = p[likely].sort(descending=True)
        p = p[p.cumsum(0) - p < sampling.top_p]
        tokens = tokens[likely][order[: len(p)]]
    return int(tokens[torch.multinomial(p, 1, generator=generator)])


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """The text of tokens as they come: a character appears when its last byte is there."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        if text := decoder.decode(tokenizer.decode_bytes([token])):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest
