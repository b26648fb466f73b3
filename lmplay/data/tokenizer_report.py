"""The text that a tokenizer is trained on and looked at with, and what can be said of it."""

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from lmplay.data import documents
from lmplay.data.plans import load_plan, plan_from_files
from lmplay.data.tokenizer_training import texts_in_turn
from lmplay.data.tokenizers import Tokenizer
from lmplay.errors import UserError

BATCH = 256  # texts that are encoded at a time


def texts_of_files(paths: list[str]) -> Callable[[], Iterator[str]]:
    """What gives all texts of files, as often as it is called: none is held out for validation."""
    # a tokenizer's own text may be short, so that a file is no reason to hold documents back
    specs = [dataclasses.replace(spec, validation={}) for spec in plan_from_files(paths).datasets.values()]
    return lambda: texts_in_turn(documents.documents(spec, Path.cwd()) for spec in specs)


def texts_of_plan(name: str, split: str) -> Iterator[str]:
    """The texts of a plan's documents, `split` "train" or "validation", of each dataset in turn."""
    plan = load_plan(name)
    return texts_in_turn(documents.documents(spec, plan.folder, split) for spec in plan.datasets.values())


def describe(tokenizer: Tokenizer, texts: Iterable[str] | None, n_longest: int) -> list[str]:
    """Lines that say what a tokenizer is and, given texts, what it makes of them. Raises UserError where a text doesn't survive."""
    tokens = {i: tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size) if i != tokenizer.eot}
    lengths = Counter(len(token) for token in tokens.values())
    lines = [
        f"{tokenizer.spec}: {tokenizer.vocab_size:,} ids, end-of-text is {tokenizer.eot}, fingerprint {tokenizer.fingerprint}",
        f"bytes of its tokens: {_counts(lengths)}",
    ]
    used = None
    if texts is not None:
        used = Counter()
        n_texts = n_bytes = n_characters = 0
        for batch in _batches(texts):
            for text, ids in zip(batch, tokenizer.encode_batch(batch)):
                if (found := tokenizer.decode(ids)) != text:
                    at = next((k for k, (a, b) in enumerate(zip(text, found)) if a != b), min(len(text), len(found)))
                    raise UserError(
                        f"{tokenizer.spec} changes a text: {text[max(0, at - 10) : at + 10]!r} becomes {found[max(0, at - 10) : at + 10]!r}"
                    )
                used.update(ids)
                n_texts, n_characters, n_bytes = n_texts + 1, n_characters + len(text), n_bytes + len(text.encode())
        n_tokens = used.total()
        if not n_tokens:
            raise UserError("there is no text to inspect it with")
        once = sum(count == 1 for count in used.values())
        lines += [
            f"text: {n_texts:,} texts, {n_bytes:,} bytes, {n_characters:,} characters; every one comes back as it was",
            f"tokens: {n_tokens:,}, {n_bytes / n_tokens:.3f} bytes and {n_characters / n_tokens:.3f} characters each",
            f"vocabulary used: {len(used):,} of {len(tokens):,} ({len(used) / len(tokens):.1%}), {once:,} of them once",
        ]
    shown = sorted(used or tokens, key=lambda i: (-len(tokens[i]), i))[:n_longest]
    lines.append(f"longest tokens{' in the text' if used else ''}:")
    lines += [
        f"  {i:>7} {len(tokens[i]):>4} bytes  {_readable(tokens[i])}" + (f"  {used[i]:,} times" if used else "")
        for i in shown
    ]
    return lines


def _counts(lengths: Counter) -> str:
    parts = [f"{length}: {lengths[length]:,}" for length in range(1, 9) if lengths[length]]
    more = sum(count for length, count in lengths.items() if length > 8)
    return ", ".join(parts + [f"more: {more:,}"] * bool(more))


def _readable(token: bytes) -> str:
    """A token for the eye: a lone combining mark gets a letter's place to stand on, what is no text stays bytes."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return repr(token)
    return repr("\N{DOTTED CIRCLE}" + text if text and unicodedata.combining(text[0]) else text)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while batch := list(islice(texts, BATCH)):
        yield batch
