"""Read the text that a tokenizer is trained on or inspected with, and report what the tokenizer makes of it."""

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from lmplay.data import documents
from lmplay.data.plans import load_plan, plan_from_files
from lmplay.data.tokenizer_training import texts_in_turn
from lmplay.data.tokenizers import Tokenizer
from lmplay.errors import UserError

BATCH = 256  # texts that are encoded at a time


def texts_of_files(paths: list[str], column: str | None = None) -> Callable[[], Iterator[str]]:
    """Return a function that yields all texts of files at each call; none is held out for validation.

    column: that of the text.
    """
    # a tokenizer's own text may be short, so that a file is no reason to hold documents back
    specs = [
        dataclasses.replace(spec, validation={}) for spec in plan_from_files(paths, column=column).datasets.values()
    ]
    return lambda: texts_in_turn(documents.documents(spec, Path.cwd()) for spec in specs)


def texts_of_plan(name: str, split: str) -> Iterator[str]:
    """Yield the texts of a plan's documents, `split` "train" or "validation", of each dataset in turn."""
    plan = load_plan(name)
    return texts_in_turn(documents.documents(spec, plan.folder, split) for spec in plan.datasets.values())


def texts_by_dataset(name: str, split: str) -> dict[str, Iterable[str]]:
    """Return the texts of each dataset of a plan, as `texts_of_plan` yields them."""
    plan = load_plan(name)
    return {
        dataset: texts_in_turn([documents.documents(spec, plan.folder, split)])
        for dataset, spec in plan.datasets.items()
    }


@dataclass
class _Tally:
    """What was counted of texts. used: the count of each token."""

    used: Counter[int] = field(default_factory=Counter)
    n_texts: int = 0
    n_bytes: int = 0
    n_characters: int = 0

    def __add__(self, other: "_Tally") -> "_Tally":
        return _Tally(
            used=self.used + other.used,
            n_texts=self.n_texts + other.n_texts,
            n_bytes=self.n_bytes + other.n_bytes,
            n_characters=self.n_characters + other.n_characters,
        )

    def lines(self, n_known: int) -> list[str]:
        """Return what it says of a vocabulary of `n_known` tokens. Raises UserError if there is no text."""
        n_tokens, once = self.used.total(), sum(count == 1 for count in self.used.values())
        if not n_tokens:
            raise UserError("there is no text to inspect it with")
        return [
            f"text: {self.n_texts:,} texts, {self.n_bytes:,} bytes, {self.n_characters:,} characters; every one comes "
            "back as it was",
            f"tokens: {n_tokens:,}, {self.n_bytes / n_tokens:.3f} bytes and {self.n_characters / n_tokens:.3f} "
            "characters each",
            f"vocabulary used: {len(self.used):,} of {n_known:,} ({len(self.used) / n_known:.1%}), {once:,} of them "
            "once",
        ]


def describe(tokenizer: Tokenizer, texts: Mapping[str, Iterable[str]], n_longest: int) -> list[str]:
    """Return lines about a tokenizer and about what it makes of texts, by the name of their dataset, if any.

    Raises UserError if a text does not come back as it was.
    """
    tokens = {i: tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size) if i != tokenizer.eot}
    lines = [
        f"{tokenizer.spec}: {tokenizer.vocab_size:,} ids, the EOT token is {tokenizer.eot}, "
        f"fingerprint {tokenizer.fingerprint}",
        f"bytes of its tokens: {_counts(Counter(map(len, tokens.values())))}",
    ]
    tallies = {name: _inspect(tokenizer, of) for name, of in texts.items()}
    if len(tallies) > 1:
        lines += [f"{name}: {line}" for name, tally in tallies.items() for line in tally.lines(len(tokens))]
    whole = sum(tallies.values(), _Tally())
    if tallies:
        lines += whole.lines(len(tokens))
    used = whole.used
    shown = sorted(used or tokens, key=lambda i: (-len(tokens[i]), i))[:n_longest]
    lines.append(f"longest tokens{' in the text' if used else ''}:")
    lines += [
        f"  {i:>7} {len(tokens[i]):>4} bytes  {_readable(tokens[i])}" + (f"  {used[i]:,} times" if used else "")
        for i in shown
    ]
    return lines


def _inspect(tokenizer: Tokenizer, texts: Iterable[str]) -> _Tally:
    """Return what is counted of the texts. Raises UserError if one does not come back as it was."""
    found = _Tally()
    for batch in _batches(texts):
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            _check_comes_back(tokenizer, text, ids)
            found.used.update(ids)
            found.n_texts += 1
            found.n_characters += len(text)
            found.n_bytes += len(text.encode())
    return found


def _check_comes_back(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    found = tokenizer.decode(ids)
    if found == text:
        return
    shorter = min(len(text), len(found))
    at = next((k for k in range(shorter) if text[k] != found[k]), shorter)
    around = slice(max(0, at - 10), at + 10)
    raise UserError(f"{tokenizer.spec} changes a text: {text[around]!r} becomes {found[around]!r}")


def _counts(lengths: Counter[int]) -> str:
    parts = [f"{length}: {lengths[length]:,}" for length in range(1, 9) if lengths[length]]
    more = sum(count for length, count in lengths.items() if length > 8)
    return ", ".join([*parts, f"more: {more:,}"] if more else parts)


def _readable(token: bytes) -> str:
    """Return a token to be read: a lone combining mark on a dotted circle, what is not text as bytes."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return repr(token)
    return repr("\N{DOTTED CIRCLE}" + text if text and unicodedata.combining(text[0]) else text)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while batch := list(islice(texts, BATCH)):
        yield batch
