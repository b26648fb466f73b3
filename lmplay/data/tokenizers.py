"""Turn text into token ids and back.

A tokenizer is named by one string: `tiktoken:<name>`, `sentencepiece:<model file>`, `bpe:<folder>` (made by
lmplay.data.tokenizer_training) or `bytes`. Each is lossless: `decode_bytes(encode(text)) == text.encode()`.
Every token stands for the same bytes wherever it is, so that ids can be cut, joined and streamed.
"""

import base64
import codecs
import hashlib
import multiprocessing
import os
import re
from collections.abc import Iterable
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmplay.data.published import TOKENIZER_JSON, PublishedTokenizer, published_folder
from lmplay.data.tokenizer_base import END_OF_TEXT, Tokenizer, why_not_fetched
from lmplay.data.tokenizer_names import full_name
from lmplay.errors import UserError, did_you_mean
from lmplay.files import check_plain, data_folder, parse_json, typed_path
from lmplay.machine import cores
from lmplay.text import without_half_surrogates

if TYPE_CHECKING:
    import numpy as np
    import tiktoken

LARGEST = 2**28  # bytes of a vocabulary's file; that of 200,000 tokens has a few million
KINDS = {  # by the word that a name begins with
    "tiktoken": "tiktoken:<name>",
    "sentencepiece": "sentencepiece:<model file>",
    "bpe": "bpe:<folder>",
    "bytes": "bytes",
    "hf": "hf:<folder or id>",
}
TRAINABLE_KINDS = ("bpe", "unigram", "sentencepiece-bpe")


class _ByteTokenizer(Tokenizer):
    def __init__(self) -> None:
        super().__init__("bytes", 257, 256, _hash("bytes"))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [list(without_half_surrogates(text).encode()) for text in texts]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(_BYTES[i] if i < 256 else END_OF_TEXT.encode() for i in ids)


class _TiktokenTokenizer(Tokenizer):
    def __init__(self, spec: str, encoding: "tiktoken.Encoding", fingerprint: str):
        super().__init__(spec, encoding.n_vocab, encoding.eot_token, fingerprint)
        self._encoding = encoding
        self.pattern = encoding._pat_str

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        parts = [_cut_long_space(text) for text in texts]
        encoded = iter(self._encoding.encode_ordinary_batch(list(chain.from_iterable(parts)), num_threads=_threads()))
        return [
            list(chain.from_iterable(islice(encoded, len(cut)))) if len(cut) > 1 else next(encoded) for cut in parts
        ]

    def encode_arrays(self, texts: list[str]) -> "list[np.ndarray]":
        import numpy as np

        if _threads() > 1 or not hasattr(self._encoding, "encode_to_numpy"):  # not in all of its versions
            return super().encode_arrays(texts)
        encode = partial(self._encoding.encode_to_numpy, disallowed_special=())  # it makes no object for each id
        try:
            return [np.concatenate([*map(encode, _cut_long_space(text))]) for text in texts]
        except UnicodeEncodeError:  # half of a surrogate pair, which encode_batch replaces
            return super().encode_arrays(texts)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = list(ids)
        try:
            return self._encoding.decode_bytes(ids)
        except KeyError:  # some vocabularies have ids that stand for nothing
            return b"".join(map(self._token_bytes, ids))

    def _token_bytes(self, i: int) -> bytes:
        try:
            return self._encoding.decode_single_token_bytes(i)
        except KeyError:
            return "\N{REPLACEMENT CHARACTER}".encode()


LONGEST_SPACE = 100_000  # characters


def _cut_long_space(text: str) -> list[str]:
    """Return the text, cut inside longer runs of white space.

    The regular expressions of tiktoken overflow their stack on a million spaces.
    """
    if len(text) <= LONGEST_SPACE:
        return [text]
    runs = re.finditer(r"\s{1000,}", text)
    cuts = [k for run in runs for k in range(run.start() + LONGEST_SPACE, run.end(), LONGEST_SPACE)]
    return [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)]


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, made lossless.

    The model's normalization, the dummy space before a text and the removal of doubled spaces all lose something, so
    they are switched off. What the model has no piece for is written as bytes. Ids: the model's own, then 256 bytes
    unless the model has byte pieces, then the EOT token unless the model has one. A text that normalization would not
    change has the model's own ids, except for the dummy space: encode(" Once upon a time") here is what the model makes
    of "Once upon a time".
    """

    def __init__(self, spec: str, model: bytes):
        # Protobuf messages that are joined are merged, the later one's fields winning: normalizer_spec (field 3 of a
        # ModelProto) with precompiled_charsmap (2) empty, add_dummy_prefix (3) and remove_extra_whitespaces (4) false.
        self._model = model + bytes([3 << 3 | 2, 6, 2 << 3 | 2, 0, 3 << 3, 0, 4 << 3, 0])
        self._load()
        super().__init__(spec, len(self._bytes), self._eot, _hash("sentencepiece", hashlib.sha256(model).hexdigest()))

    def _load(self) -> None:
        import sentencepiece

        self._processor = model = sentencepiece.SentencePieceProcessor()
        model.LoadFromSerializedProto(self._model)
        pieces = [model.IdToPiece(i) for i in range(model.GetPieceSize())]
        own_bytes = {int(piece[3:5], 16): i for i, piece in enumerate(pieces) if model.IsByte(i)}
        self._bytes = [piece.replace("\u2581", " ").encode() for piece in pieces]
        for byte, i in own_bytes.items():
            self._bytes[i] = _BYTES[byte]
        if len(own_bytes) < 256:
            own_bytes = {byte: len(pieces) + byte for byte in range(256)}
            self._bytes += _BYTES
        self._byte_ids = [own_bytes[byte] for byte in range(256)]
        self.unknown = max(0, model.unk_id())
        self._eot = model.eos_id()
        if self._eot < 0:
            self._eot = len(self._bytes)
            self._bytes.append(b"")
        self._bytes[self._eot] = END_OF_TEXT.encode()
        usable = [not (model.IsControl(i) or model.IsUnknown(i) or model.IsUnused(i)) for i in range(len(pieces))]
        known = {piece for piece, use in zip(pieces, usable, strict=True) if use and len(piece) == 1}
        if "\u2581" in known:
            known = known - {"\u2581"} | {" "}
        self.characters = known  # what it has pieces for; all else is written in bytes
        # alternate: what the model can write, what it cannot
        self._runs = re.compile(f"([{''.join(map(re.escape, sorted(known)))}]+)") if known else re.compile("(?!)")

    def __getstate__(self) -> dict[str, Any]:
        left_out = {name for name in vars(self) if name.startswith("_")} - {"_model"} | {"characters", "unknown"}
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._load()

    def pieces(self) -> list[tuple[str, float | None]]:
        """Return how each id is spelled, with its score; None for one that no text is cut into. Bytes are "<0x41>"."""
        model = self._processor
        pieces: list[tuple[str, float | None]] = [("", None)] * self.vocab_size
        for i in range(model.GetPieceSize()):
            kept = model.IsControl(i) or model.IsUnknown(i) or model.IsUnused(i)
            name = model.IdToPiece(i)
            pieces[i] = (name, None) if kept else (name.replace("\u2581", " "), model.GetScore(i))
        for byte, i in enumerate(self._byte_ids):
            pieces[i] = f"<0x{byte:02X}>", None
        pieces[self.eot] = END_OF_TEXT, None
        return pieces

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        texts = [without_half_surrogates(text) for text in texts]
        parts = [self._runs.split(text) for text in texts]
        runs = iter(self._processor.EncodeAsIds([run for split in parts for run in split[1::2]]))
        result = []
        for split in parts:
            ids: list[int] = []
            for k, part in enumerate(split):
                if k % 2:
                    ids += next(runs)
                elif part:
                    ids += [self._byte_ids[byte] for byte in part.encode()]
            result.append(ids)
        return result

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(map(self._bytes.__getitem__, ids))


_BYTES = [bytes([byte]) for byte in range(256)]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _threads() -> int:
    """Return the threads for a batch: all cores in the main process, one in a worker beside others."""
    return 1 if multiprocessing.parent_process() else cores()


def load_tokenizer(spec: str) -> Tokenizer:
    """Load the tokenizer that `spec` names.

    Raises UserError: unknown kind or name, missing or broken file, no network.
    """
    spec = full_name(spec)
    kind, _, what = spec.partition(":")
    if spec == "bytes":
        return _ByteTokenizer()
    loaders = {"tiktoken": _load_tiktoken, "sentencepiece": _load_sentencepiece, "bpe": _load_bpe}
    load = {**loaders, "hf": _load_published}.get(kind)
    known = f"a tokenizer is one of {', '.join(KINDS.values())}"
    if load is None:
        near = did_you_mean(kind, KINDS)
        raise UserError(f"unknown tokenizer {spec!r}:{near if 'mean' in near else ''} {known}")
    if not what:
        raise UserError(f"tokenizer {spec!r}: what follows the colon is missing; {known}")
    return load(spec, what)


def _load_published(spec: str, _: str) -> Tokenizer:
    folder = published_folder(spec)
    if (folder / TOKENIZER_JSON).is_file():
        return PublishedTokenizer(spec, folder)
    if (folder / "tokenizer.model").is_file():
        return _load_sentencepiece(f"sentencepiece:{folder / 'tokenizer.model'}", str(folder / "tokenizer.model"))
    raise UserError(f"tokenizer {spec!r}: there is no {TOKENIZER_JSON} and no tokenizer.model in {folder}")


def _load_tiktoken(spec: str, name: str) -> Tokenizer:
    import tiktoken

    names = tiktoken.list_encoding_names()
    if name not in names:
        raise UserError(f"tokenizer {spec!r}: tiktoken has no {name!r}.{did_you_mean(name, names)}")
    if not any(variable in os.environ for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")):
        os.environ["TIKTOKEN_CACHE_DIR"] = str(data_folder() / "tiktoken")
    try:
        encoding = tiktoken.get_encoding(name)
    except Exception as error:  # whatever HTTP library it has, each with its own exceptions
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise
        raise UserError(
            f"tokenizer {spec!r}: its vocabulary could not be downloaded ({why_not_fetched(error)}); prepare it once "
            "with a network, or use one that needs none: bytes, or a plan that trains its own, such as quick"
        ) from error
    return _TiktokenTokenizer(spec, encoding, _hash("tiktoken", name, str(encoding.n_vocab)))


def _load_sentencepiece(spec: str, file: str) -> Tokenizer:
    import_sentencepiece(spec)
    if (typed_path(file) / "tokenizer.model").is_file():  # a folder that training left
        spec, file = f"{spec}/tokenizer.model", f"{file}/tokenizer.model"
    model = _read(spec, typed_path(file))
    try:
        return SentencePieceTokenizer(spec, model)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"tokenizer {spec!r}: the file is no SentencePiece model") from error


def import_sentencepiece(spec: str) -> Any:
    """Return the package sentencepiece. Raises UserError if it is not installed; `spec` names what needs it."""
    try:
        import sentencepiece
    except ImportError:
        raise UserError(
            f"tokenizer {spec!r} needs the package sentencepiece: pip install 'lmplay[sentencepiece]'"
        ) from None
    return sentencepiece


def _load_bpe(spec: str, folder: str) -> Tokenizer:
    import tiktoken

    path = typed_path(folder)
    ranks_text = _read(spec, path / "ranks.tiktoken").removeprefix(codecs.BOM_UTF8)
    try:
        settings = parse_json(_read(spec, path / "tokenizer.json"))
        pairs = [line.split() for line in ranks_text.splitlines()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
        pattern = settings["pattern"]
        if not all(byte in ranks for byte in _BYTES) or sorted(ranks.values()) != list(range(len(ranks))):
            raise ValueError("incomplete")
        encoding = tiktoken.Encoding(
            name=spec, pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)}
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"tokenizer {spec!r}: the files in the folder are damaged; delete it and have it trained again"
        ) from error
    return _TiktokenTokenizer(spec, encoding, _hash("bpe", pattern, hashlib.sha256(ranks_text).hexdigest()))


def _read(spec: str, path: Path) -> bytes:
    try:
        check_plain(path)
        size = path.stat().st_size
        if size > LARGEST:
            raise UserError(f"tokenizer {spec!r}: {path} has {size:,} bytes, which no vocabulary has")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"tokenizer {spec!r}: there is no file {path}") from None
    except IsADirectoryError:
        raise UserError(f"tokenizer {spec!r}: {path} is a folder, not a model file") from None
    except OSError as error:
        raise UserError(f"tokenizer {spec!r}: {path} can't be read ({error.strerror})") from None
