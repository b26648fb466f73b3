"""Answer what is typed, line by line, with a model that is loaded once (--chat of lmp_generator)."""

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from lmplay.cli.written_text import begin
from lmplay.errors import UserError
from lmplay.output import reader_left, shows_colors
from lmplay.text import escaped

if TYPE_CHECKING:
    import torch

    from lmplay.generate.conversation import Conversation
    from lmplay.generate.writing import Writer
    from lmplay.runs.trained import TrainedRun

SIGN = "> "


def hold_session(
    run: "TrainedRun", make: Callable[[str], "Writer"], typed: argparse.Namespace, device: "torch.device"
) -> None:
    """Print an answer to each line of standard input until it ends, each with the next seed.

    make: makes a writer for a prompt. What can't be a prompt is said, and the session goes on; Ctrl-C ends an answer.
    """
    from lmplay.generate.conversation import SAID, TURNS, Conversation
    from lmplay.model.device import precision

    conversation = Conversation.of(run.run)
    seed = begin(run, typed, ", --seed {}", SAID[conversation.form])
    with precision(device, typed.amp, run.context_len):
        for line in typed_lines():
            if not line.strip():
                conversation.said.clear()
                continue
            room = max(run.context_len - typed.max_len, run.context_len // 2)
            prompt = conversation.fitting_prompt(line, lambda text: len(run.tokenizer.encode(text)), room)
            try:
                writer = make(prompt)
            except UserError as error:
                print(escaped(error), file=sys.stderr)
                continue
            answer = print_answer(conversation, writer, seed)
            if reader_left():
                return
            if conversation.form == TURNS:
                conversation.said.append((line, answer))
            seed += 1


def print_answer(conversation: "Conversation", writer: "Writer", seed: int) -> str:
    """Print one answer as it is written, and an empty line; return it. Ctrl-C ends it."""
    text = ""
    try:
        for part in shown_parts(conversation, writer, seed):
            text += part
            print(part, end="", flush=True)
            if reader_left():
                break
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    finally:
        print("\n", flush=True)
    return text


def shown_parts(conversation: "Conversation", writer: "Writer", seed: int) -> Iterable[str]:
    """Return what is shown of a text: the answer alone, or the line and how it goes on."""
    from lmplay.generate.conversation import TEXT
    from lmplay.generate.writing import with_faint_prompt

    parts = writer.parts(seed)
    if conversation.form != TEXT:
        return conversation.answer_in(parts, writer.prompt)
    return with_faint_prompt(writer, parts) if shows_colors(sys.stdout) else parts


def typed_lines() -> Iterator[str]:
    """Yield the lines of standard input without their ends; a terminal shows a sign, and edits them."""
    if sys.stdin is None:
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # whatever a pipe holds
    if not sys.stdin.isatty():
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  # input() then edits and remembers lines
    while True:
        try:
            if sys.stdout.isatty():
                yield input(SIGN)
            else:
                print(SIGN, end="", file=sys.stderr, flush=True)
                yield input()
        except EOFError:
            print(file=sys.stderr)
            return
