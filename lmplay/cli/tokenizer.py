"""lmp_tokenizer: train tokenizers, inspect them, and use them."""

import argparse
import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from lmplay.cli.command import Parser, command_parser, run_command, whole
from lmplay.errors import UserError
from lmplay.files import read_clean, read_text, typed_path

if TYPE_CHECKING:
    from lmplay.data.tokenizers import Tokenizer

EXAMPLES = """\
  lmp_tokenizer train --kind bpe --vocab-size 8192 books/*.txt -o my_tokenizer
  lmp_tokenizer train --kind unigram --vocab-size 32000 --training-plan refinedweb -o web32k
  lmp_tokenizer inspect bpe:my_tokenizer unseen.txt           does it shorten text it has not seen?
  lmp_tokenizer encode bpe:my_tokenizer story.txt | lmp_tokenizer decode bpe:my_tokenizer
  lmp_trainer --exp gpt2ish:tiny --data books/*.txt --tokenizer bpe:my_tokenizer
A tokenizer is tiktoken:NAME, sentencepiece:FILE, bpe:FOLDER, bytes, or just the folder that train made."""


def main(argv: list[str] | None = None) -> int:
    """Run lmp_tokenizer with `argv` (default: the command line's) and return its exit status."""
    return run_command("lmp_tokenizer", command, argv)


def parser() -> argparse.ArgumentParser:
    """Return the parser of lmp_tokenizer's four actions."""
    p = command_parser(
        "lmp_tokenizer",
        description="Train tokenizers, inspect them, and use them.",
        examples=EXAMPLES,
    )
    actions = p.add_subparsers(required=True, metavar="train|inspect|encode|decode", parser_class=Parser)
    train = actions.add_parser(
        "train",
        help="train a tokenizer on a text",
        description="Train a tokenizer on files, all of their text, or on the training documents of a plan.",
    )
    inspect = actions.add_parser(
        "inspect",
        help="show what a tokenizer is, and what it makes of a text",
        description="Show what a tokenizer is, and what it makes of files or of a plan's validation documents.",
    )
    encode = actions.add_parser("encode", help="print the ids of a text", description="Print the ids of a text.")
    decode = actions.add_parser(
        "decode", help="print the text of ids", description="Print the text of ids, as encode prints them."
    )
    _add_training_flags(train)
    for action, function in ((inspect, inspect_one), (encode, encode_text), (decode, decode_ids)):
        action.add_argument(
            "tokenizer", metavar="TOKENIZER", help="tiktoken:NAME, sentencepiece:FILE, bpe:FOLDER, bytes, or a folder"
        )
        action.set_defaults(action=function)
    inspect.add_argument(
        "--longest", type=whole, default=20, metavar="N", help="show the N longest tokens (default: %(default)s)"
    )
    for action in (train, inspect):
        action.add_argument("files", nargs="*", metavar="FILE", help="txt, jsonl, csv or parquet, also compressed")
        action.add_argument("--training-plan", metavar="NAME|FILE", help="take the text of this plan instead of files")
        action.add_argument(
            "--text-column", metavar="NAME", help="column of the files that holds the text (default: text)"
        )
    for action in (encode, decode):
        action.add_argument(
            "file", nargs="?", default="-", metavar="FILE", help="file to read, - for standard input (default: -)"
        )
    return p


def _add_training_flags(train: argparse.ArgumentParser) -> None:
    from lmplay.data.tokenizers import TRAINABLE_KINDS

    train.add_argument(
        "--kind", choices=TRAINABLE_KINDS, default="bpe", help="how to learn the vocabulary (default: %(default)s)"
    )
    train.add_argument(
        "--vocab-size", type=whole, required=True, metavar="N", help="number of ids, the EOT token included"
    )
    train.add_argument(
        "-o",
        "--output",
        "--out",
        dest="output",
        type=typed_path,
        required=True,
        metavar="FOLDER",
        help="write the tokenizer to this new folder",
    )
    train.set_defaults(action=train_one)


def command(argv: list[str]) -> None:
    """Run the action that was typed."""
    typed = parser().parse_args(argv)
    typed.action(typed)


def train_one(typed: argparse.Namespace) -> None:
    """Train a tokenizer and say how to use it (train)."""
    from lmplay.data.tokenizer_report import texts_of_files, texts_of_plan
    from lmplay.data.tokenizer_training import train_tokenizer

    if typed.output.exists():
        raise UserError(f"-o {typed.output} is there already: choose another folder, or delete it")
    _files_or_plan(typed)
    texts = (
        texts_of_plan(typed.training_plan, "train")
        if typed.training_plan
        else texts_of_files(typed.files, typed.text_column)
    )
    tokenizer = train_tokenizer({"train": typed.kind, "vocab_size": typed.vocab_size}, texts, typed.output)
    fewer = (
        f" (the text has too few different words for {typed.vocab_size:,})"
        if tokenizer.vocab_size < typed.vocab_size
        else ""
    )
    print(f"{tokenizer.spec}: {tokenizer.vocab_size:,} ids{fewer}", file=sys.stderr)
    every = json.loads((typed.output / "tokenizer.json").read_text(encoding="utf-8-sig"))["every"]
    if every > 1:
        print(
            f"learned from an even share of the text, 1/{every}: more of it would not fit into memory", file=sys.stderr
        )
    print(f"use it with lmp_trainer --tokenizer {tokenizer.spec}", file=sys.stderr)


def inspect_one(typed: argparse.Namespace) -> None:
    """Print what a tokenizer is and what it makes of a text (inspect)."""
    from lmplay.data.tokenizer_report import describe, texts_by_dataset, texts_of_files

    tokenizer = _load(typed.tokenizer)
    texts: dict[str, Iterable[str]] = {}
    if typed.files or typed.training_plan:
        _files_or_plan(typed)
        by_dataset = texts_by_dataset(typed.training_plan, "validation") if typed.training_plan else None
        texts = by_dataset or {"": texts_of_files(typed.files, typed.text_column)()}
    print("\n".join(describe(tokenizer, texts, typed.longest)))


def encode_text(typed: argparse.Namespace) -> None:
    """Print the ids of a text (encode)."""
    text = read_text(typed.file)  # exactly: decode gives the same bytes back
    print(*_load(typed.tokenizer).encode(text))


def decode_ids(typed: argparse.Namespace) -> None:
    """Write the bytes of the text of ids (decode)."""
    tokenizer = _load(typed.tokenizer)
    words = read_clean(typed.file).split()
    for word in words:
        if not (word.isascii() and word.isdigit()) or int(word) >= tokenizer.vocab_size:
            name = "standard input" if typed.file == "-" else typed.file
            raise UserError(
                f"{name}: {word[:40]!r} is no id of {tokenizer.spec}, whose ids are 0 to {tokenizer.vocab_size - 1}"
            )
    sys.stdout.flush()
    sys.stdout.buffer.write(tokenizer.decode_bytes(map(int, words)))


def _load(spec: str) -> "Tokenizer":
    from lmplay.data.tokenizers import load_tokenizer

    path = typed_path(spec)
    if (path / "ranks.tiktoken").is_file():
        spec = f"bpe:{spec}"
    elif (path / "tokenizer.model").is_file() or path.is_file():
        spec = f"sentencepiece:{spec}"
    return load_tokenizer(spec)


def _files_or_plan(typed: argparse.Namespace) -> None:
    if bool(typed.files) == bool(typed.training_plan):
        raise UserError("name either files or a --training-plan")
    if typed.text_column and typed.training_plan:
        raise UserError("--text-column is of files; a plan names its columns itself")


if __name__ == "__main__":
    sys.exit(main())
