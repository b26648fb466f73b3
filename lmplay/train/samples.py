"""Let the model write text at each validation, from the same prompts every time."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

from lmplay.contract import Experiment
from lmplay.data.plan_spec import ended_prompt
from lmplay.data.tokenizers import Tokenizer
from lmplay.generate.sampling import MASK, Sampling, fill, marked, mask_text, texts
from lmplay.model.loss import is_compiled
from lmplay.runs.names import sample_head
from lmplay.runs.settings import Settings
from lmplay.train.setup import Setup
from lmplay.train.state import TrainState
from lmplay.train.validation import ValidationFeed

SAMPLES = 4  # of a run, the one at its end included
SAMPLE_TOKENS, PROMPT_TOKENS, PROMPTS = 80, 16, 2  # a model that fills in reads SAMPLE_TOKENS, some of them hidden


def sample_interval(settings: Settings, n_steps: int) -> int:
    """Return the steps between samples: at each validation, or SAMPLES in a run where a part is scored midway."""
    interval = settings.validation_interval or n_steps
    if not settings.midway_tokens:
        return interval
    return interval * max(1, -(-n_steps // (interval * SAMPLES)))


def samples(
    model: torch.nn.Module,
    setup: Setup,
    precision: Callable[[], AbstractContextManager],
    feed: ValidationFeed,
    state: TrainState,
) -> str:
    """Return the text for samples.txt where the run stands, prompts in ⟦ ⟧.

    `precision` makes the context to compute in.
    """
    loss = math.nan if state.validation_loss is None else state.validation_loss
    lines = [sample_head(state.step, state.tokens, loss) + "\n"]
    # a compiled model would be compiled again for every length
    eager = torch.compiler.set_stance("force_eager") if is_compiled(model) else contextlib.nullcontext()
    write = _written if setup.experiment.mask_token is None else _filled
    model.eval()
    with precision(), eager:
        for name, text in write(model, setup, feed, state.step):
            lines.append(f"--- {name}\n{text}\n")
    model.train()
    return "".join(lines) + "\n"


def _written(model: torch.nn.Module, setup: Setup, feed: ValidationFeed, step: int) -> Iterator[tuple[str, str]]:
    """Yield names and texts of what the model adds to its prompts, in each direction that it reads."""
    directions = setup.experiment.directions(setup.data.tokenizer.eot, setup.context_len)
    # an order of its own takes no prompt: only the seed tells its samples apart
    in_own_order = not directions[0].goes_on
    wanted = [
        (number, direction, [] if in_own_order else prompt(direction.reversed))
        for number, prompt in _prompts(setup, feed, step)
        for direction in directions
    ]
    together: dict[tuple[str, int], list[int]] = {}  # a batch takes hardly longer than one of its texts
    for key, (_, direction, tokens) in enumerate(wanted):
        together.setdefault((direction.name, len(tokens)), []).append(key)
    found: dict[int, str] = {}
    for keys in together.values():
        written = texts(
            model,
            setup.data.tokenizer,
            wanted[keys[0]][1],
            [wanted[key][2] for key in keys],
            context_len=setup.context_len,
            max_len=SAMPLE_TOKENS,
            sampling=Sampling(),
            seeds=[(setup.settings.seed + (wanted[key][0] if in_own_order else 0)) % 2**64 for key in keys],
            check_cache=setup.experiment.causal,
        )
        found |= zip(keys, written, strict=True)
    for key, (number, direction, tokens) in enumerate(wanted):
        prompt_text = setup.data.tokenizer.decode(tokens)
        name = f"{number + 1}{direction.name and ', ' + direction.name}"
        yield name, marked(found[key], prompt_text, at_end=direction.reversed)


def _filled(model: torch.nn.Module, setup: Setup, feed: ValidationFeed, step: int) -> Iterator[tuple[str, str]]:
    """Yield names and texts of the first validation documents, the same tokens hidden and filled in every time.

    With --prompts, those of its prompts in turn that have a MASK.
    """
    masked = [prompt for prompt in setup.plan.prompts if MASK in prompt] if setup.settings.prompts else []
    for number in _in_turn(setup, len(masked), step):
        yield f"{number + 1}", _filled_in(model, setup, masked[number])
    for number, tokens in [] if masked else _documents(feed):
        tokens = tokens[: min(SAMPLE_TOKENS, setup.context_len)]
        if tokens:
            seed = (setup.settings.seed + number) % 2**64
            yield f"{number + 1}", filled(model, setup.data.tokenizer, setup.experiment, tokens=tokens, seed=seed)


def _filled_in(model: torch.nn.Module, setup: Setup, prompt: str) -> str:
    """Return a prompt whose MASKs are filled in with the likeliest tokens, as many as the model reads at once."""
    assert setup.experiment.mask_token is not None
    tokens = mask_text(setup.data.tokenizer, prompt)[: setup.context_len]
    written = fill(model, tokens, setup.experiment.mask_token, Sampling(do_sample=False), torch.Generator())
    return setup.data.tokenizer.decode(written)


def _in_turn(setup: Setup, n_prompts: int, step: int) -> list[int]:
    """Return the numbers of the prompts for the samples after `step`: PROMPTS at a time, in turn."""
    first = step // sample_interval(setup.settings, setup.n_steps) * PROMPTS
    return [(first + k) % n_prompts for k in range(min(PROMPTS, n_prompts))]


def _prompts(setup: Setup, feed: ValidationFeed, step: int) -> list[tuple[int, Callable[[bool], list[int]]]]:
    """Return numbers of prompts, and their tokens for a model that reads from the beginning (False) or the end (True).

    They are those of --prompts or the plan, PROMPTS at each validation, in turn. Without any, they are the first (last)
    tokens of the first validation documents, the same every time; so they are for a model that reads from the end and a
    plan's prompts, which are beginnings.
    """
    prompts, from_end = setup.plan.prompts, setup.experiment.reversed
    if prompts and (setup.settings.prompts or not from_end):
        chosen = _in_turn(setup, len(prompts), step)
        datasets = [setup.plan.datasets[name].content for name in feed.stores]
        texts = [prompts[number] if from_end else ended_prompt(prompts[number], datasets) for number in chosen]
        tokens = map(setup.data.tokenizer.encode, texts)
        return [(number, functools.partial(_whole, of)) for number, of in zip(chosen, tokens, strict=True)]
    return [(number, functools.partial(_end_of, tokens)) for number, tokens in _documents(feed)]


def _whole(tokens: list[int], from_end: bool) -> list[int]:
    return tokens


def _end_of(tokens: list[int], from_end: bool) -> list[int]:
    return tokens[-PROMPT_TOKENS:] if from_end else tokens[:PROMPT_TOKENS]


def _documents(feed: ValidationFeed) -> list[tuple[int, list[int]]]:
    """Return numbers and tokens of the first PROMPTS validation documents."""
    name, store = next(iter(feed.stores.items()))
    found = []
    for document in range(min(PROMPTS, feed.datasets[name][1])):
        start, stop = (int(x) for x in store.document_offsets[document : document + 2])
        found.append((document, store.tokens(start, stop - 1).tolist()))
    return found


def filled(model: torch.nn.Module, tokenizer: Tokenizer, experiment: Experiment, tokens: list[int], seed: int) -> str:
    """Return the text of `tokens` in which the model has filled in, with the likeliest, those that `seed` hides.

    They are marked: [right], or [wrong|hidden].
    """
    window = torch.tensor([tokens])
    _, _, chosen = experiment.make_batch(window, tokenizer.eot, seed, torch.zeros_like(window))
    assert chosen is not None and experiment.mask_token is not None  # it fills in
    hidden = [None if label >= 0 else token for token, label in zip(tokens, chosen[0].tolist(), strict=True)]
    written = fill(model, hidden, experiment.mask_token, Sampling(do_sample=False), torch.Generator())
    text = b""
    for token, new, known in zip(tokens, written, hidden, strict=True):
        piece, guess = tokenizer.decode_bytes([token]), tokenizer.decode_bytes([new])
        text += piece if known is not None else b"[%b]" % guess if token == new else b"[%b|%b]" % (guess, piece)
    return text.decode("utf-8", "replace")
