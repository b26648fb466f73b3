"""Train a tokenizer on text: byte pairs and unigram pieces, learned by the field's libraries."""

import base64
import io
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

from lmplay.data.tokenizer_base import END_OF_TEXT, byte_level_alphabet, first_line
from lmplay.data.tokenizers import (
    Tokenizer,
    import_sentencepiece,
    load_tokenizer,
)
from lmplay.data.types import Document
from lmplay.errors import UserError
from lmplay.files import make_folder, write_json, written_beside
from lmplay.text import without_half_surrogates

# Training learns from at most this much text: word statistics settle by then, and SentencePiece keeps it in memory.
TRAINING_CHARACTERS = {"bpe": 200_000_000, "unigram": 30_000_000, "sentencepiece-bpe": 30_000_000}
# Of files, which can be read twice, all of the text if possible.
ALL_CHARACTERS = {**TRAINING_CHARACTERS, "bpe": 2_000_000_000}
# `tokenizers` needs about 105 bytes of memory for each byte of the different words (measured). In a language without
# spaces a word is a clause, and nearly every one is different.
DISTINCT_BYTES = 40_000_000
LONGEST_WORD = 1000  # characters; longer runs (DNA, base64) are cut, since merging inside a word takes memory, too
PIECE = 2**16  # characters of text that are taken or left out together

# Cuts text before byte pairs are merged inside the parts: a word with the space before it, up to three digits, a run of
# other signs with the space before it, white space up to the last space before a word. The idea is GPT-2's
# (Radford et al. 2019); combining marks stay with their letters, so that Indic and Thai words stay whole.
PATTERN = r" ?\p{L}[\p{L}\p{M}]*|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train_tokenizer(how: dict, texts: Iterable[str] | Callable[[], Iterable[str]], folder: Path) -> Tokenizer:
    """Train a tokenizer on `texts` into `folder`; if the folder is there already, load it and read no text.

    how: {"train": "bpe" | "unigram" | "sentencepiece-bpe", "vocab_size": N}. N counts every id, the EOT token included.
    Too little text for N ids gives a smaller vocabulary. The result depends only on `how` and the texts.
    texts: used from the beginning, up to `TRAINING_CHARACTERS` and `DISTINCT_BYTES`. A function is called twice: its
    texts are used whole, or an even share of them, one piece of "every" N (noted in the folder's tokenizer.json).

    Byte-pair encoding (Sennrich et al. 2016) runs over the bytes of UTF-8, learned by `tokenizers` and encoded by
    `tiktoken`. "unigram" (Kudo 2018) and "sentencepiece-bpe" are SentencePiece's, without normalization and with byte
    fallback. Raises UserError: a vocabulary that is too small, or too large for the text.
    """
    kind, vocab_size, folder = how["train"], how["vocab_size"], Path(folder)
    spec = f"bpe:{folder}" if kind == "bpe" else f"sentencepiece:{folder / 'tokenizer.model'}"
    if folder.is_dir():
        return load_tokenizer(spec)
    smallest = 257 if kind == "bpe" else 259
    if vocab_size < smallest:
        raise UserError(f"vocab_size {vocab_size} is too small: 256 bytes and the special tokens need {smallest}")
    train = _train_bpe if kind == "bpe" else _train_sentencepiece
    every = thinning(texts, kind) if callable(texts) else 1
    chosen = thinned(texts, every) if callable(texts) else beginning(texts, kind)
    make_folder(folder.parent)
    with written_beside(folder) as beside:
        beside.mkdir()
        settings = train(kind, vocab_size, _shown(chosen, kind), beside)
        write_json(beside / "tokenizer.json", {"format": 1, **how, "every": every, **settings})
    return load_tokenizer(spec)


def texts_in_turn(datasets: Iterable[Iterator[Document]]) -> Iterator[str]:
    """Yield the texts of one document of each dataset in turn, until all are at their end.

    Training reads a limited amount of text, which should hold some of each dataset.
    """
    datasets = list(datasets)
    while datasets:
        for documents in list(datasets):
            document = next(documents, None)
            if document is None:
                datasets.remove(documents)
            else:
                yield from (text for text, _ in document)


def _shown(texts: Iterable[str], kind: str) -> Iterator[str]:
    from tqdm import tqdm

    with tqdm(desc=f"text for the {kind} tokenizer", unit="char", unit_scale=True, delay=1, disable=None) as bar:
        for text in texts:
            yield without_half_surrogates(text)
            bar.update(len(text))


def beginning(texts: Iterable[str], kind: str) -> Iterator[str]:
    """Yield the texts until training has enough of them."""
    left, distinct = TRAINING_CHARACTERS[kind], _DistinctWords()
    for text in texts:
        text = text[:left]
        left -= len(text)
        yield from _without_long_words(text, words := _WORDS.findall(text))
        distinct.add(distinct.choose(words))
        if left <= 0 or (kind == "bpe" and distinct.n_bytes > DISTINCT_BYTES):
            return


def thinning(read: Callable[[], Iterable[str]], kind: str) -> int:
    """Return N such that every N-th piece of the texts fits into training: 1 for all, 2 for every second, 4, 8, ..."""
    halvings = 12
    characters, distinct = [0] * halvings, [_DistinctWords() for _ in range(halvings)]
    for number, piece in enumerate(_pieces(read())):
        chosen = _DistinctWords.choose(_WORDS.findall(piece))
        for halving in range(halvings):
            if number % 2**halving == 0:
                characters[halving] += len(piece)
                distinct[halving].add(chosen)
    return 2 ** next(
        (
            h
            for h in range(halvings)
            if characters[h] <= ALL_CHARACTERS[kind] and (kind != "bpe" or distinct[h].n_bytes <= DISTINCT_BYTES)
        ),
        halvings,
    )


def thinned(read: Callable[[], Iterable[str]], step: int) -> Iterator[str]:
    """Yield every `step`-th piece of the texts."""
    for piece in islice(_pieces(read()), 0, None, step):
        yield from _without_long_words(piece, _WORDS.findall(piece))


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts, short ones joined line by line, long ones cut, to about `PIECE` characters each."""
    joined: list[str] = []
    length = 0
    for text in texts:
        for start in range(0, len(text), PIECE):
            part = text[start : start + PIECE]
            joined.append(part)
            length += len(part)
            if length >= PIECE:
                yield "\n".join(joined)
                joined, length = [], 0
    if joined:
        yield "\n".join(joined)


# ASCII letters and whatever is not ASCII, punctuation aside: close to what PATTERN makes of a text, and much faster
_WORDS = re.compile("[A-Za-z\x80-\u1fff\u2070-\u2fff\u3040-\uff00\uff10-\U0010ffff]+|[!-/:-@\\[-`{-~]+")


class _DistinctWords:
    """An estimate of the bytes in the different words of a text, from the 64th of them that a hash chooses."""

    def __init__(self) -> None:
        self._found: set[bytes] = set()
        self.n_bytes = 0

    def add(self, chosen: list[bytes]) -> None:
        for word in chosen:
            if word not in self._found:
                self._found.add(word)
                self.n_bytes += 64 * len(word)

    @staticmethod
    def choose(words: list[str]) -> list[bytes]:
        codes = [word.encode("utf-8", "replace") for word in set(words)]
        return [code for code in codes if zlib.crc32(code) % 64 == 0]


def _without_long_words(text: str, words: list[str]) -> Iterator[str]:
    if words and max(map(len, words)) > LONGEST_WORD:
        return (text[start : start + LONGEST_WORD] for start in range(0, len(text), LONGEST_WORD))
    return iter([text] if text else [])


def _train_bpe(kind: str, vocab_size: int, texts: Iterator[str], folder: Path) -> dict[str, str]:
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Trained

    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=sys.stderr.isatty(),
    )
    trained.train_from_iterator(texts, trainer)
    byte_of = {sign: byte for byte, sign in byte_level_alphabet().items()}
    ranks = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    lines = [base64.b64encode(bytes(byte_of[sign] for sign in token)).decode() + f" {rank}\n" for token, rank in ranks]
    (folder / "ranks.tiktoken").write_text("".join(lines), encoding="utf-8")
    return {"pattern": PATTERN}


def _train_sentencepiece(kind: str, vocab_size: int, texts: Iterator[str], folder: Path) -> dict[str, str]:
    sentencepiece = import_sentencepiece(kind)
    # It skips sentences of more than max_sentence_length bytes: texts are given line by line, long lines in parts.
    # They are a list, because it would turn an error of the texts' source into one of its own.
    sentences = [part for text in texts for part in re.findall(r"\n*[^\n]{1,1000}|\n+", text)]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram" if kind == "unigram" else "bpe",
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            character_coverage=0.9995,
            hard_vocab_limit=False,
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            eos_piece=END_OF_TEXT,
            max_sentence_length=8000,
            num_threads=16,
            minloglevel=2,
        )
    except RuntimeError as error:
        why = first_line(error).rpartition("] ")[2] or "there is no text"
        raise UserError(
            f"no {kind} tokenizer of {vocab_size} ids can be trained on this text: {why} "
            "Try another vocab_size, or more text"
        ) from error
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return {}
