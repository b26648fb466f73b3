"""What a model writes at each validation: the same prompts every time."""

import contextlib
from collections.abc import Callable

import torch

from lmplay.generate import Sampling, text_parts
from lmplay.train.feed import ValidationFeed
from lmplay.train.run import Setup

SAMPLE_TOKENS, PROMPT_TOKENS, PROMPTS = 80, 16, 2


def samples(model: torch.nn.Module, setup: Setup, precision, feed: ValidationFeed, state: dict) -> str:
    """The text for samples.txt where the run stands at `state`. `precision` makes the context to compute in."""
    lines = [f"=== update {state['step']}, {state['tokens']:,} tokens, validation loss {state['validation_loss']:.4f}\n"]
    # a compiled model would be compiled again for every length
    readings = setup.experiment.readings(setup.data.tokenizer.eot, setup.context_len)
    in_own_order = not readings[0].forward and not readings[0].reversed     # without a prompt: only the seed tells samples apart
    eager = torch.compiler.set_stance("force_eager") if setup.settings.compile else contextlib.nullcontext()
    model.eval()
    with precision(), eager:
        for number, prompt in _prompts(setup, feed, state["step"]):
            for reading in readings:
                text = "".join(text_parts(model, setup.data.tokenizer, reading, prompt(reading.reversed), setup.context_len,
                                          SAMPLE_TOKENS, Sampling(), setup.settings.seed + (number if in_own_order else 0)))
                lines.append(f"--- {number + 1}{reading.name and ', ' + reading.name}\n{text}\n")
    model.train()
    return "".join(lines) + "\n"


def _prompts(setup: Setup, feed: ValidationFeed, step: int) -> list[tuple[int, Callable[[bool], list[int]]]]:
    """Numbers of prompts, and their tokens for a model that reads from the beginning (False) or from the end (True): the plan's in turn,
    PROMPTS at each validation; or else, and for a model that reads from the end, the first (last) tokens of the first validation
    documents, always the same."""
    prompts = setup.plan.prompts
    if prompts and not setup.experiment.reversed:
        first = step // setup.settings.validation_interval * PROMPTS
        chosen = [(first + k) % len(prompts) for k in range(min(PROMPTS, len(prompts)))]
        return [(number, lambda from_end, text=prompts[number]: setup.data.tokenizer.encode(text)) for number in chosen]
    name, store = next(iter(feed.stores.items()))
    found = []
    for document in range(min(PROMPTS, feed.datasets[name][1])):
        start, stop = (int(x) for x in store.document_offsets[document:document + 2])
        ids = store.tokens(start, stop - 1).tolist()
        found.append((document, lambda from_end, ids=ids: ids[-PROMPT_TOKENS:] if from_end else ids[:PROMPT_TOKENS]))
    return found
