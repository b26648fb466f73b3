"""Continue a prompt with the model of a run, or fill in the masked tokens of the prompt."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lmplay.contract import Direction
from lmplay.data.plan_spec import ended_prompt
from lmplay.errors import UserError, did_you_mean
from lmplay.generate.sampling import MASK, Sampling, fill, mask_text, text_parts, texts
from lmplay.runs.trained import TrainedRun

AT_ONCE = 32  # texts of one batch
FAINT, PLAIN = "\033[2m", "\033[0m"  # on a terminal


@dataclass(frozen=True)
class Writer:
    """A model with a prompt, ready to write.

    parts: the parts of the text for a seed, as they come. texts: the whole texts for several seeds, written in one
    batch; None if they are written one by one. note: what to tell about the prompt, "" for nothing. prompt:
    the text of the prompt as it comes in the parts; at_end: whether it comes last. prompt_tokens: those of the prompt,
    None where a text is not the prompt and what was added. written: the tokens that it added.
    """

    parts: Callable[[int], Iterable[str]]
    note: str = ""
    prompt: str = ""
    at_end: bool = False
    prompt_tokens: list[int] | None = None
    written: list[int] = field(default_factory=list)
    texts: Callable[[Sequence[int]], list[str]] | None = None

    @property
    def tokens(self) -> list[int] | None:
        """The tokens of the prompt and what was added so far, in the text's order; None where they are not known."""
        if self.prompt_tokens is None:
            return None
        return self.written[::-1] + self.prompt_tokens if self.at_end else self.prompt_tokens + self.written

    def some(self, seeds: Sequence[int]) -> Iterator[tuple[int, Iterable[str]]]:
        """Yield each seed and the parts of its text: several of them from one batch."""
        if len(seeds) == 1 or self.texts is None:
            yield from ((seed, self.parts(seed)) for seed in seeds)
            return
        for start in range(0, len(seeds), AT_ONCE):
            few = seeds[start : start + AT_ONCE]
            yield from ((seed, [text]) for seed, text in zip(few, self.texts(few), strict=True))


def with_faint_prompt(writer: Writer, parts: Iterable[str]) -> Iterator[str]:
    """Yield the parts with the prompt faint, as terminals show it."""
    prompt = writer.prompt.strip("\ufffd")
    if not prompt:
        yield from parts
    elif writer.at_end:
        text = "".join(parts)
        yield f"{text.removesuffix(prompt)}{FAINT}{prompt}{PLAIN}" if text.endswith(prompt) else text
    else:
        left = len(prompt)
        yield FAINT
        for part in parts:
            shown, rest = part[:left], part[left:]
            ends = left > 0 and len(shown) == left
            left -= len(shown)
            yield f"{shown}{PLAIN if ends else ''}{rest}"
        if left:
            yield PLAIN


def make_writer(
    run: TrainedRun,
    prompt: str,
    sampling: Sampling,
    *,
    direction: str | None = None,
    max_len: int = 200,
    use_cache: bool = True,
) -> Writer:
    """Return a writer that continues the prompt, or fills in its MASKs if the model is a masked one.

    direction: the name of one of the model's directions, None for its first. max_len: how many tokens it adds at most.
    Raises UserError if the model can't write, doesn't know the direction or has no use for the prompt.
    """
    if run.experiment.mask_token is not None:
        return _filler(run, prompt, sampling, direction)
    name = run.experiment.name
    if not run.experiment.can_write:
        raise UserError(f"{name} is not causal: it needs the text after a token to predict it, so it can't write any")
    chosen = choose_direction(run, direction)
    if prompt and not chosen.goes_on:
        raise UserError(f"{name} writes whole windows in an order of its own: it can't go on from a prompt")
    typed, notes = prompt, []
    if not chosen.reversed:
        prompt = ended_prompt(prompt, run.run.last_datasets)
    if prompt != typed:
        notes.append("the prompt ends with a blank line, as those that the run was trained on")
    tokens = run.tokenizer.encode(prompt)
    if len(tokens) >= run.context_len:
        notes.append(
            f"the prompt has {len(tokens):,} tokens and the model reads {run.context_len - 1:,}: "
            f"the {'first' if chosen.reversed else 'last'} {run.context_len // 2:,} are used"
        )

    written: list[int] = []
    how: Any = dict(
        context_len=run.context_len,
        max_len=max_len,
        sampling=sampling,
        use_cache=use_cache,
        check_cache=run.experiment.causal,
        written=written,
    )

    def parts(seed: int) -> Iterable[str]:
        return text_parts(run.model, run.tokenizer, chosen, tokens, seed=seed, **how)

    def of_seeds(seeds: Sequence[int]) -> list[str]:
        return texts(run.model, run.tokenizer, chosen, [tokens] * len(seeds), seeds=seeds, **how)

    from_prompt = "" if not chosen.goes_on else run.tokenizer.decode(tokens)
    return Writer(
        parts,
        note="\n".join(notes),
        prompt=from_prompt,
        at_end=chosen.reversed,
        prompt_tokens=tokens if chosen.goes_on else None,
        written=written,
        texts=of_seeds,
    )


def choose_direction(run: TrainedRun, name: str | None) -> Direction:
    """Return the model's direction of this name, None for its first. Raises UserError if it has no such direction."""
    directions = {one.name: one for one in run.experiment.directions(run.first_token, run.context_len)}
    if name is None:
        return next(iter(directions.values()))
    if not run.experiment.direction_names:
        raise UserError(f"--direction: {run.experiment.name} reads in one direction only")
    if name not in directions:
        raise UserError(f"--direction: {run.experiment.name} knows no {name!r}.{did_you_mean(name, directions)}")
    return directions[name]


def _filler(run: TrainedRun, prompt: str, sampling: Sampling, direction: str | None) -> Writer:
    """Return a writer that fills in the MASKs of the prompt. Raises UserError if it has none or is too long."""
    name, mask_token = run.experiment.name, run.experiment.mask_token
    assert mask_token is not None
    if MASK not in prompt:
        raise UserError(
            f"{name} does not write on, it fills in hidden tokens: put {MASK} into the prompt for each, "
            f"as in 'The {MASK} sat on the {MASK}.'"
        )
    if direction is not None:
        raise UserError(f"--direction: {name} reads in one direction only")
    tokens = mask_text(run.tokenizer, prompt)
    if len(tokens) > run.context_len:
        raise UserError(f"the prompt has {len(tokens):,} tokens and {name} reads {run.context_len:,}: shorten it")

    def parts(seed: int) -> Iterable[str]:
        generator = torch.Generator().manual_seed(seed)
        return [run.tokenizer.decode(fill(run.model, tokens, mask_token, sampling, generator))]

    return Writer(parts)
