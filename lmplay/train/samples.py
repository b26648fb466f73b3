"""What a model writes at each validation: the same prompts every time."""

import contextlib
from collections.abc import Callable, Iterator

import torch

from lmplay.contract import Experiment
from lmplay.data.tokenizers import Tokenizer
from lmplay.generate.sampling import Sampling, fill, text_parts
from lmplay.train.setup import Setup
from lmplay.train.validation import ValidationFeed

SAMPLE_TOKENS, PROMPT_TOKENS, PROMPTS = 80, 16, 2  # a model that fills in reads SAMPLE_TOKENS, some of them hidden


def samples(model: torch.nn.Module, setup: Setup, precision, feed: ValidationFeed, state: dict) -> str:
    """The text for samples.txt where the run stands at `state`. `precision` makes the context to compute in."""
    lines = [
        f"=== update {state['step']}, {state['tokens']:,} tokens, validation loss {state['validation_loss']:.4f}\n"
    ]
    # a compiled model would be compiled again for every length
    eager = torch.compiler.set_stance("force_eager") if setup.settings.compile else contextlib.nullcontext()
    model.eval()
    with precision(), eager:
        for name, text in (_written if setup.experiment.mask_token is None else _filled)(
            model, setup, feed, state["step"]
        ):
            lines.append(f"--- {name}\n{text}\n")
    model.train()
    return "".join(lines) + "\n"


def _written(model: torch.nn.Module, setup: Setup, feed: ValidationFeed, step: int) -> Iterator[tuple[str, str]]:
    """Names and texts of what the model adds to its prompts, in each way that it reads."""
    readings = setup.experiment.directions(setup.data.tokenizer.eot, setup.context_len)
    in_own_order = (
        not readings[0].forward and not readings[0].reversed
    )  # without a prompt: only the seed tells samples apart
    for number, prompt in _prompts(setup, feed, step):
        for reading in readings:
            yield (
                f"{number + 1}{reading.name and ', ' + reading.name}",
                "".join(
                    text_parts(
                        model,
                        setup.data.tokenizer,
                        reading,
                        prompt(reading.reversed),
                        setup.context_len,
                        SAMPLE_TOKENS,
                        Sampling(),
                        setup.settings.seed + (number if in_own_order else 0),
                    )
                ),
            )


def _filled(model: torch.nn.Module, setup: Setup, feed: ValidationFeed, step: int) -> Iterator[tuple[str, str]]:
    """Names and texts of the first validation documents, always with the same tokens hidden, and filled in with the likeliest."""
    for number, tokens in _documents(feed):
        tokens = tokens[: min(SAMPLE_TOKENS, setup.context_len)]
        if tokens:
            yield (
                f"{number + 1}",
                filled(model, setup.data.tokenizer, setup.experiment, tokens, setup.settings.seed + number),
            )


def _prompts(setup: Setup, feed: ValidationFeed, step: int) -> list[tuple[int, Callable[[bool], list[int]]]]:
    """Numbers of prompts, and their tokens for a model that reads from the beginning (False) or from the end (True): the plan's in turn,
    PROMPTS at each validation; or else, and for a model that reads from the end, the first (last) tokens of the first validation
    documents, always the same."""
    prompts = setup.plan.prompts
    if prompts and not setup.experiment.reversed:
        first = step // setup.settings.validation_interval * PROMPTS
        chosen = [(first + k) % len(prompts) for k in range(min(PROMPTS, len(prompts)))]
        return [(number, lambda from_end, text=prompts[number]: setup.data.tokenizer.encode(text)) for number in chosen]
    return [
        (number, lambda from_end, ids=ids: ids[-PROMPT_TOKENS:] if from_end else ids[:PROMPT_TOKENS])
        for number, ids in _documents(feed)
    ]


def _documents(feed: ValidationFeed) -> list[tuple[int, list[int]]]:
    """Numbers and tokens of the first PROMPTS validation documents."""
    name, store = next(iter(feed.stores.items()))
    found = []
    for document in range(min(PROMPTS, feed.datasets[name][1])):
        start, stop = (int(x) for x in store.document_offsets[document : document + 2])
        found.append((document, store.tokens(start, stop - 1).tolist()))
    return found


def filled(model: torch.nn.Module, tokenizer: Tokenizer, experiment: Experiment, tokens: list[int], seed: int) -> str:
    """The text of `tokens`, in which those that the experiment chooses under this seed were hidden and filled in with the likeliest:
    [right], or [wrong|hidden]."""
    window = torch.tensor([tokens])
    _, _, chosen = experiment.make_batch(window, tokenizer.eot, seed, torch.zeros_like(window))
    hidden = [None if label >= 0 else token for token, label in zip(tokens, chosen[0].tolist())]
    written = fill(model, hidden, experiment.mask_token, Sampling(do_sample=False), torch.Generator())
    text = b""
    for token, new, known in zip(tokens, written, hidden):
        piece, guess = tokenizer.decode_bytes([token]), tokenizer.decode_bytes([new])
        text += piece if known is not None else b"[%b]" % guess if token == new else b"[%b|%b]" % (guess, piece)
    return text.decode("utf-8", "replace")
