"""Generate text with a trained model, token by token, or fill in the tokens that are masked."""

import codecs
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from lmplay.contract import Direction
from lmplay.data.tokenizers import Tokenizer
from lmplay.errors import UserError
from lmplay.model import adapters
from lmplay.model.cached import cache_is_right, last_logits, logits_at
from lmplay.model.left_out import run_forward

MASK = "[MASK]"  # in a prompt: a token to fill in


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: first the penalty, then temperature, top_k and top_p.

    temperature 0 or do_sample False takes the likeliest token. top_k 0 and top_p 1 keep all. top_p keeps the nucleus:
    the fewest tokens whose probabilities reach it (arXiv 1904.09751). repetition_penalty divides the positive logits of
    the tokens that occurred and multiplies the negative ones (arXiv 1909.05858). Raises UserError: out of range.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    do_sample: bool = True

    def __post_init__(self) -> None:
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
        """Whether the likeliest token is taken, so that the seed makes no difference."""
        return not self.do_sample or self.temperature == 0


def marked(text: str, prompt: str, at_end: bool) -> str:
    """Return a text with its prompt in ⟦ ⟧; as it is if the prompt is not at that end of it."""
    prompt = prompt.lstrip("\ufffd") if at_end else prompt.rstrip("\ufffd")  # half a character
    if not prompt:
        return text
    if at_end:
        return f"{text.removesuffix(prompt)}⟦{prompt}⟧" if text.endswith(prompt) else text
    return f"⟦{prompt}⟧{text.removeprefix(prompt)}" if text.startswith(prompt) else text


def text_parts(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    direction: Direction,
    prompt: list[int],
    context_len: int,
    max_len: int,
    sampling: Sampling,
    seed: int,
    use_cache: bool = True,
    check_cache: bool = True,
    written: list[int] | None = None,
) -> Iterator[str]:
    """Yield the text of `prompt` (token ids in the text's order) and of up to `max_len` tokens that the model adds.

    The text comes in parts, as they are ready. A model that reads from the end writes what comes before the prompt. One
    with an order of its own writes a whole window of `context_len` tokens, whatever prompt and max_len are. Both yield
    everything at once, in the text's order. written: gets the new tokens.
    """
    new = generate(
        model,
        _as_read(direction, prompt),
        context_len=context_len,
        max_len=max_len if direction.goes_on else context_len,
        sampling=sampling,
        generator=torch.Generator().manual_seed(seed),
        stop=tokenizer.eot if direction.goes_on else None,
        use_cache=use_cache,
        check_cache=check_cache,
    )
    new = _noted(new, [] if written is None else written)
    if direction.forward:
        yield from stream_text(tokenizer, chain(prompt, new))
    else:
        yield _in_order(direction, tokenizer, prompt, [*new])


def texts(
    model: torch.nn.Module,
    tokenizer: Tokenizer,
    direction: Direction,
    prompts: Sequence[list[int]],
    context_len: int,
    max_len: int,
    sampling: Sampling,
    seeds: Sequence[int],
    use_cache: bool = True,
    check_cache: bool = True,
    written: list[int] | None = None,
) -> list[str]:
    """Return the texts that `text_parts` gives for these prompts and their seeds: equal, rounding aside.

    They are written in one batch, so the prompts have the same length.
    """
    rows = generate_rows(
        model,
        [_as_read(direction, prompt) for prompt in prompts],
        [torch.Generator().manual_seed(seed) for seed in seeds],
        context_len=context_len,
        max_len=max_len if direction.goes_on else context_len,
        sampling=sampling,
        stop=tokenizer.eot if direction.goes_on else None,
        use_cache=use_cache,
        check_cache=check_cache,
    )
    found: list[list[int]] = [[] for _ in seeds]
    for step in rows:
        for new, token in zip(found, step, strict=True):
            if token is not None:
                new.append(token)
    if written is not None:
        written += chain(*found)
    return [_in_order(direction, tokenizer, prompt, new) for prompt, new in zip(prompts, found, strict=True)]


def _noted(tokens: Iterable[int], written: list[int]) -> Iterator[int]:
    for token in tokens:
        written.append(token)
        yield token


def _as_read(direction: Direction, prompt: list[int]) -> list[int]:
    """Return what a model of this direction reads before it writes."""
    if not direction.goes_on:
        return [direction.bos]
    return [direction.bos, *(prompt[::-1] if direction.reversed else prompt)]


def _in_order(direction: Direction, tokenizer: Tokenizer, prompt: list[int], new: list[int]) -> str:
    """Return the text of a prompt and of the new tokens, in the text's order."""
    if direction.forward:
        return "".join(stream_text(tokenizer, chain(prompt, new)))
    if direction.reversed:
        return tokenizer.decode(new[::-1] + prompt)
    return tokenizer.decode([token for _, token in sorted(zip(direction.order, new, strict=True))])


def generate(
    model: torch.nn.Module,
    prompt: list[int],
    context_len: int,
    max_len: int,
    sampling: Sampling,
    generator: torch.Generator,
    stop: int | None = None,
    use_cache: bool = True,
    check_cache: bool = True,
) -> Iterator[int]:
    """Yield the tokens that follow `prompt`, as `generate_rows` does for one generator."""
    rows = generate_rows(
        model,
        [prompt],
        [generator],
        context_len=context_len,
        max_len=max_len,
        sampling=sampling,
        stop=stop,
        use_cache=use_cache,
        check_cache=check_cache,
    )
    return (token for (token,) in rows if token is not None)


@torch.inference_mode()
def generate_rows(
    model: torch.nn.Module,
    prompts: Sequence[list[int]],
    generators: Sequence[torch.Generator],
    *,
    context_len: int,
    max_len: int,
    sampling: Sampling,
    stop: int | None = None,
    use_cache: bool = True,
    check_cache: bool = True,
) -> Iterator[list[int | None]]:
    """Yield up to `max_len` times a token for each prompt, drawn with its generator: as many texts, in one batch.

    The prompts have the same length and begin with the BOS token. A text ends before `stop`: from then on its token is
    None. The model's cache, if it offers one, must give the logits of the whole text. This is tried first, on the first
    prompt (`check_cache`; False for a model whose text is that of its cache). One that does not is not used. When the
    context is full, drop its older half but keep the BOS token, because every training window starts with it. The
    generators are on the CPU: what a seed draws does not depend on the device.
    """
    device = adapters.device_of(model)
    bos, texts = prompts[0][0], [prompt[1:] for prompt in prompts]
    ended = [False for _ in generators]
    new_cache = adapters.offered(model, "new_cache") if use_cache else None
    contexts: list[list[int]] = []
    cache, fed = None, 0
    with adapters.derived_once(model):
        if new_cache and check_cache:
            begin = [bos, *texts[0][max(0, len(texts[0]) + 1 - context_len) :]]
            if not cache_is_right(model, begin, min(context_len, len(begin) + max_len)):
                new_cache = None
        for _ in range(max_len):
            if not contexts or len(contexts[0]) > context_len:
                n_kept = len(texts[0]) if len(texts[0]) < context_len else context_len // 2
                contexts = [[bos, *text[len(text) - n_kept :]] for text in texts]
                cache, fed = new_cache(len(texts)) if new_cache else None, 0
            new = torch.tensor([context[fed:] for context in contexts], device=device)
            if new_cache:
                fed = len(contexts[0])
            logits, found = _last_logits(model, new, cache), list[int | None]()
            for row, (text, generator) in enumerate(zip(texts, generators, strict=True)):
                # a text that ended is fed on with `stop`, so that all rows stay as long as one another
                token = bos if ended[row] else next_token(logits[row], text, sampling, generator)
                ended[row] |= stop is not None and token == stop
                found.append(None if ended[row] else token)
                text.append(token)
                contexts[row].append(token)
            if all(ended):
                return
            yield found


def _last_logits(model: Any, tokens: Tensor, cache: Any = None) -> Tensor:
    """Return the logits (B, V), on the CPU, at the last position of `tokens` (B, T)."""
    if cache is not None:
        return adapters.split_output(model(tokens, cache=cache))[0][:, -1].cpu()
    return last_logits(run_forward(model, tokens)[0]).cpu()


def mask_text(tokenizer: Tokenizer, text: str) -> list[int | None]:
    """Return the tokens of a text, None for each MASK in it.

    If the tokenizer has tokens that begin with a space, a space before a MASK belongs to the hidden token.
    """
    parts = text.split(MASK)
    pieces = (tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size))
    if any(len(piece) > 1 and piece.startswith(b" ") for piece in pieces):
        parts[:-1] = [part.removesuffix(" ") for part in parts[:-1]]
    return [*chain.from_iterable([None, *tokenizer.encode(part)] for part in parts)][1:]


@torch.inference_mode()
def fill(
    model: torch.nn.Module, tokens: list[int | None], mask_token: int, sampling: Sampling, generator: torch.Generator
) -> list[int]:
    """Fill the masked positions (None) one at a time, most confident first (highest maximum probability).

    Later fills see earlier ones. Returns all tokens.
    """
    filled, device = dict(enumerate(tokens)), adapters.device_of(model)
    with adapters.derived_once(model):
        while masked := [position for position, token in filled.items() if token is None]:
            known = [token for token in filled.values() if token is not None]
            fed = [mask_token if token is None else token for token in filled.values()]
            logits = logits_at(run_forward(model, torch.tensor([fed], device=device))[0], masked).cpu()
            surest = int(logits.double().softmax(-1).amax(-1).argmax())
            filled[masked[surest]] = next_token(logits[surest], known, sampling, generator)
    return [token for token in filled.values() if token is not None]


def next_token(logits: Tensor, occurred: list[int], sampling: Sampling, generator: torch.Generator) -> int:
    """Draw a token from logits (V,) on the CPU; `occurred` are the tokens that the repetition penalty is for.

    Raises UserError if the logits are not finite.
    """
    logits = logits.double()
    if sampling.repetition_penalty != 1.0 and occurred:
        seen = torch.tensor(occurred)
        values, penalty = logits[seen], sampling.repetition_penalty
        logits = logits.scatter(0, seen, torch.where(values > 0, values / penalty, values * penalty))
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
        likely = p >= p.max().clamp(max=(1 - sampling.top_p) / len(p))
        p, order = p[likely].sort(descending=True)
        p = p[p.cumsum(0) - p < sampling.top_p]
        tokens = tokens[likely][order[: len(p)]]
    return int(tokens[torch.multinomial(p, 1, generator=generator)])


def stream_text(tokenizer: Tokenizer, tokens: Iterable[int]) -> Iterator[str]:
    """Yield the text of tokens as they come: a character appears when its last byte is there."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        if text := decoder.decode(tokenizer.decode_bytes([token])):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest
