"""Text to token ids and back.

A tokenizer is named by one string: `tiktoken:<name>`, `sentencepiece:<model file>`, `bpe:<folder>` (made by
`train_tokenizer`) or `bytes`. Each is lossless: `decode_bytes(encode(text)) == text.encode()` for any text, and every
token stands for the same bytes wherever it is, so that ids can be cut, joined and streamed.
"""

import base64
import hashlib
import io
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

from lmplay.data.folders import data_folder
from lmplay.errors import UserError, did_you_mean
from lmplay.files import write_json, written_beside

END_OF_TEXT = "<|endoftext|>"
KINDS = ("tiktoken:<name>", "sentencepiece:<model file>", "bpe:<folder>", "bytes")
TRAINABLE = ("bpe", "unigram", "sentencepiece-bpe")
# Training reads this much text and no more: word statistics have settled by then, and SentencePiece holds it in memory.
TRAINING_CHARACTERS = {"bpe": 200_000_000, "unigram": 30_000_000, "sentencepiece-bpe": 30_000_000}

# How text is cut before byte pairs are merged inside the parts: a word with the space before it, up to three digits, a
# run of other signs with the space before it, white space up to the last space before a word. The idea is GPT-2's
# (Radford et al. 2019); combining marks stay with their letters, so that Indic and Thai words are not cut at every vowel.
PATTERN = r" ?\p{L}[\p{L}\p{M}]*|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class Tokenizer:
    """What all tokenizers have in common.

    `spec` names it, `vocab_size` counts all ids, `eot` is the id of end-of-text (also the token that texts begin with):
    no text is encoded to it, and decoded it reads <|endoftext|>. `fingerprint` is a hash of what decides the ids. Pickles.
    """

    def __init__(self, spec: str, vocab_size: int, eot: int, fingerprint: str):
        self.spec, self.vocab_size, self.eot, self.fingerprint = spec, vocab_size, eot, fingerprint

    def __repr__(self) -> str:
        return f"<tokenizer {self.spec}: {self.vocab_size:,} ids>"

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        raise NotImplementedError

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes that the ids stand for; cut anywhere, the parts' bytes join to the whole's."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are no UTF-8 (a character cut in two) become replacement characters."""
        return self.decode_bytes(ids).decode("utf-8", "replace")


class _ByteTokenizer(Tokenizer):
    def __init__(self):
        super().__init__("bytes", 257, 256, _hash("bytes"))

    def encode_batch(self, texts):
        return [list(_utf8(text)) for text in texts]

    def decode_bytes(self, ids):
        return b"".join(_BYTES[i] if i < 256 else END_OF_TEXT.encode() for i in ids)


class _TiktokenTokenizer(Tokenizer):
    def __init__(self, spec, encoding, fingerprint):
        super().__init__(spec, encoding.n_vocab, encoding.eot_token, fingerprint)
        self._encoding = encoding

    def encode_batch(self, texts):
        parts = [_cut_long_space(text) for text in texts]
        encoded = iter(self._encoding.encode_ordinary_batch(list(chain.from_iterable(parts)), num_threads=_threads()))
        return [list(chain.from_iterable(islice(encoded, len(cut)))) if len(cut) > 1 else next(encoded) for cut in parts]

    def decode_bytes(self, ids):
        ids = list(ids)
        try:
            return self._encoding.decode_bytes(ids)
        except KeyError:  # some vocabularies have ids that stand for nothing
            return b"".join(map(self._token_bytes, ids))

    def _token_bytes(self, i):
        try:
            return self._encoding.decode_single_token_bytes(i)
        except KeyError:
            return "\N{REPLACEMENT CHARACTER}".encode()


def _cut_long_space(text: str, longest: int = 100_000) -> list[str]:
    """The text, cut inside longer runs of white space: tiktoken's regular expressions overflow their stack on a million."""
    if len(text) <= longest:
        return [text]
    cuts = [k for run in re.finditer(r"\s{1000,}", text) for k in range(run.start() + longest, run.end(), longest)]
    return [text[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(text)])]


class _SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, made lossless.

    The model's normalisation, the dummy space put before a text and the removal of doubled spaces all lose something,
    so they are switched off; what the model has no piece for is written as bytes. Ids: the model's own, then 256 bytes
    unless the model has byte pieces, then end-of-text unless the model has one. A text that normalisation would leave
    alone has the model's own ids, but for the dummy space: encode(" Once upon a time") here is what the model makes of
    "Once upon a time".
    """

    def __init__(self, spec, model: bytes):
        # Protobuf messages that are joined are merged, the later one's fields winning: normalizer_spec (field 3 of a
        # ModelProto) with precompiled_charsmap (2) empty, add_dummy_prefix (3) and remove_extra_whitespaces (4) false.
        self._model = model + bytes([3 << 3 | 2, 6, 2 << 3 | 2, 0, 3 << 3, 0, 4 << 3, 0])
        self._load()
        super().__init__(spec, len(self._bytes), self._eot, _hash("sentencepiece", hashlib.sha256(model).hexdigest()))

    def _load(self):
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
        self._eot = model.eos_id()
        if self._eot < 0:
            self._eot = len(self._bytes)
            self._bytes.append(b"")
        self._bytes[self._eot] = END_OF_TEXT.encode()
        usable = [not (model.IsControl(i) or model.IsUnknown(i) or model.IsUnused(i)) for i in range(len(pieces))]
        known = {piece for piece, use in zip(pieces, usable) if use and len(piece) == 1}
        if "\u2581" in known:
            known = known - {"\u2581"} | {" "}
        # alternate: what the model can write, what it cannot
        self._runs = re.compile(f"([{''.join(map(re.escape, sorted(known)))}]+)") if known else re.compile("(?!)")

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if not name.startswith("_") or name == "_model"}

    def __setstate__(self, state):
        vars(self).update(state)
        self._load()

    def encode_batch(self, texts):
        texts = [_utf8(text).decode() for text in texts]
        parts = [self._runs.split(text) for text in texts]
        runs = iter(self._processor.EncodeAsIds([run for split in parts for run in split[1::2]]))
        result = []
        for split in parts:
            ids = []
            for k, part in enumerate(split):
                if k % 2:
                    ids += next(runs)
                elif part:
                    ids += [self._byte_ids[byte] for byte in part.encode()]
            result.append(ids)
        return result

    def decode_bytes(self, ids):
        return b"".join(map(self._bytes.__getitem__, ids))


_BYTES = [bytes([byte]) for byte in range(256)]


def _utf8(text: str) -> bytes:
    """UTF-8 of a text; half a surrogate pair, which has none, becomes the replacement character."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _threads() -> int:
    """Threads for a batch: all cores in the main process, one in a worker, whose siblings have the other cores."""
    return 1 if multiprocessing.parent_process() else os.cpu_count() or 1


def load_tokenizer(spec: str) -> Tokenizer:
    """The tokenizer that `spec` names. Raises UserError: unknown kind or name, missing or broken file, no network."""
    kind, _, what = spec.partition(":")
    if spec == "bytes":
        return _ByteTokenizer()
    load = {"tiktoken": _load_tiktoken, "sentencepiece": _load_sentencepiece, "bpe": _load_bpe}.get(kind)
    known = f"a tokenizer is one of {', '.join(KINDS)}"
    if load is None:
        near = did_you_mean(kind, [name.partition(":")[0] for name in KINDS])
        raise UserError(f"unknown tokenizer {spec!r}:{near if 'mean' in near else ''} {known}")
    if not what:
        raise UserError(f"tokenizer {spec!r}: what follows the colon is missing; {known}")
    return load(spec, what)


def _load_tiktoken(spec, name):
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
        raise UserError(f"tokenizer {spec!r}: its vocabulary could not be downloaded ({_first_line(error)}); prepare it once "
                        "with a network, or use one that needs none: bytes, or a plan that trains its own, such as quick"
                        ) from error
    return _TiktokenTokenizer(spec, encoding, _hash("tiktoken", name, str(encoding.n_vocab)))


def _load_sentencepiece(spec, file):
    _import_sentencepiece(spec)
    model = _read(spec, Path(file).expanduser())
    try:
        return _SentencePieceTokenizer(spec, model)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"tokenizer {spec!r}: the file is no SentencePiece model") from error


def _import_sentencepiece(spec):
    try:
        import sentencepiece
    except ImportError:
        raise UserError(f"tokenizer {spec!r} needs the package sentencepiece: pip install 'lmplay[sentencepiece]'"
                        ) from None
    return sentencepiece


def _load_bpe(spec, folder):
    import tiktoken

    folder = Path(folder).expanduser()
    ranks_text = _read(spec, folder / "ranks.tiktoken")
    try:
        settings = json.loads(_read(spec, folder / "tokenizer.json"))
        pairs = [line.split() for line in ranks_text.splitlines()]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
        pattern = settings["pattern"]
        if not all(byte in ranks for byte in _BYTES) or sorted(ranks.values()) != list(range(len(ranks))):
            raise ValueError("incomplete")
        encoding = tiktoken.Encoding(name=spec, pat_str=pattern, mergeable_ranks=ranks,
                                     special_tokens={END_OF_TEXT: len(ranks)})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"tokenizer {spec!r}: the files in the folder are damaged; delete it and have it trained again"
                        ) from error
    return _TiktokenTokenizer(spec, encoding, _hash("bpe", pattern, hashlib.sha256(ranks_text).hexdigest()))


def _read(spec, path):
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"tokenizer {spec!r}: there is no file {path}") from None
    except IsADirectoryError:
        raise UserError(f"tokenizer {spec!r}: {path} is a folder, not a model file") from None


def _first_line(error):
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else text[:197] + "..."


def train_tokenizer(how: dict, texts: Iterable[str], folder: Path) -> Tokenizer:
    """Trains a tokenizer on `texts` and leaves it in `folder`; one that is there already is loaded, and no text read.

    how: {"train": "bpe" | "unigram" | "sentencepiece-bpe", "vocab_size": N}. N counts every id, end-of-text included;
    texts that are too few for N ids give a smaller vocabulary. The first `TRAINING_CHARACTERS` of the texts are used. The
    result depends on nothing but `how` and the texts. Byte-pair encoding (Sennrich et al. 2016) runs over the bytes of
    UTF-8 and is learned by `tokenizers`, encoded by `tiktoken`; "unigram" (Kudo 2018) and "sentencepiece-bpe" are
    SentencePiece's, without normalisation and with byte fallback.
    """
    kind, vocab_size, folder = how["train"], how["vocab_size"], Path(folder)
    spec = f"bpe:{folder}" if kind == "bpe" else f"sentencepiece:{folder / 'tokenizer.model'}"
    if folder.is_dir():
        return load_tokenizer(spec)
    smallest = 257 if kind == "bpe" else 259
    if vocab_size < smallest:
        raise UserError(f"vocab_size {vocab_size} is too small: 256 bytes and the special tokens need {smallest}")
    train = _train_bpe if kind == "bpe" else _train_sentencepiece
    folder.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(folder) as beside:
        beside.mkdir()
        settings = train(kind, vocab_size, _some(texts, kind), beside)
        write_json(beside / "tokenizer.json", {"format": 1, **how, **settings})
    return load_tokenizer(spec)


def _some(texts: Iterable[str], kind: str) -> Iterator[str]:
    from tqdm import tqdm

    limit = TRAINING_CHARACTERS[kind]
    with tqdm(desc=f"text for the {kind} tokenizer", unit="char", unit_scale=True, delay=1, disable=None) as bar:
        for text in texts:
            text = text[:limit - bar.n] if bar.n + len(text) > limit else text
            if text:
                yield _utf8(text).decode()
            bar.n += len(text)
            bar.update(0)
            if bar.n >= limit:
                return


def _train_bpe(kind, vocab_size, texts, folder):
    from tokenizers import Regex, Tokenizer as Trained, models, pre_tokenizers, trainers

    trained = Trained(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=[], show_progress=sys.stderr.isatty())
    trained.train_from_iterator(texts, trainer)
    byte_of = byte_level_alphabet()
    ranks = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    lines = [base64.b64encode(bytes(byte_of[sign] for sign in token)).decode() + f" {rank}\n" for token, rank in ranks]
    (folder / "ranks.tiktoken").write_text("".join(lines))
    return {"pattern": PATTERN}


def byte_level_alphabet() -> dict[str, int]:
    """How `tokenizers` writes bytes (GPT-2's table: printable Latin-1 as itself, the rest from U+0100 on)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + k): byte for k, byte in enumerate(others)}


def _train_sentencepiece(kind, vocab_size, texts, folder):
    sentencepiece = _import_sentencepiece(kind)
    # It skips sentences of more than max_sentence_length bytes: texts are handed over line by line, long lines in parts.
    # As a list, because it would turn an error of the texts' source into one of its own.
    sentences = [part for text in texts for part in re.findall(r"\n*[^\n]{1,1000}|\n+", text)]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=iter(sentences), model_writer=model, vocab_size=vocab_size,
            model_type="unigram" if kind == "unigram" else "bpe", normalization_rule_name="identity",
            add_dummy_prefix=False, remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, byte_fallback=True,
            character_coverage=0.9995, hard_vocab_limit=False, unk_id=0, eos_id=1, bos_id=-1, pad_id=-1,
            eos_piece=END_OF_TEXT, max_sentence_length=8000, num_threads=4, minloglevel=2)
    except RuntimeError as error:
        why = _first_line(error).rpartition("] ")[2] or "there is no text"
        raise UserError(f"no {kind} tokenizer of {vocab_size} ids can be trained on this text: {why} "
                        "Try another vocab_size, or more text") from error
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return {}
