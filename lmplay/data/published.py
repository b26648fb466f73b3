"""Find models that others published: a folder, or an id on the Hugging Face hub; and read their tokenizers."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmplay.data.json_checks import whole
from lmplay.data.tokenizer_base import END_OF_TEXT, Tokenizer, byte_level_alphabet, first_line, why_not_fetched
from lmplay.errors import UserError
from lmplay.files import read_json, typed_path
from lmplay.text import without_half_surrogates

HF = "hf:"
TOKENIZER_JSON, MODEL_CONFIG = "tokenizer.json", "config.json"
TOKENIZER_FILES = (
    TOKENIZER_JSON,
    "tokenizer_config.json",
    "generation_config.json",
    MODEL_CONFIG,
)  # what decides the ids
SPACE = "\u2581"  # how SentencePiece writes a space
MOST_IDS = 2**24
PROBE = " Zoë  日本\n\n\t x  y\r 👩‍👧 "


def is_published(name: str | None) -> bool:
    """Tell whether a model is named by hf:FOLDER_OR_ID."""
    return (name or "").startswith(HF)


def published_folder(spec: str) -> Path:
    """Return the folder of hf:FOLDER_OR_ID; an id is downloaded once. Raises UserError if there is none."""
    name = spec.removeprefix(HF)
    path = typed_path(name)
    if path.is_dir():
        return path
    if not name or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{spec}: there is no folder {name!r}; it takes a folder, or an id of the Hugging Face hub")
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{spec} is on the hub, for which a package is needed: pip install 'lmplay[hub]'") from None
    try:
        small = ["*.json", "*.model", "*.safetensors"]
        found = Path(huggingface_hub.snapshot_download(name, allow_patterns=small))
        if not any(found.glob("*.safetensors")):
            found = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*small, "*.bin"]))
    except Exception as error:  # whatever HTTP library it has, each with its own exceptions
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise
        raise UserError(
            f"{spec}: there is no folder of this name, and the hub has not given it ({why_not_fetched(error)})"
        ) from error
    return found


def json_of(folder: Path, name: str) -> dict[str, Any]:
    """Return the object in a JSON file of a folder, {} without the file. Raises UserError for a damaged one."""
    try:
        content = read_json(folder / name)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / name} can't be read ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{folder / name} can't be read: a JSON object is expected")
    return content


class PublishedTokenizer(Tokenizer):
    """A tokenizer.json, made lossless: without normalization, dummy spaces and tokens around a text."""

    def __init__(self, spec: str, folder: Path):
        try:
            self._read(spec, folder)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise UserError(
                f"tokenizer {spec!r}: its files hold what no tokenizer's do ({first_line(error)})"
            ) from error
        if self.decode(self.encode(PROBE)) != PROBE:
            raise UserError(f"tokenizer {spec!r}: it does not give a text back as it was, which lmplay needs")

    def _read(self, spec: str, folder: Path) -> None:
        content = json_of(folder, TOKENIZER_JSON)
        self._source = json.dumps(_lossless(content))
        self._end = self._n_ids = 0
        self._load(spec)
        ids = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
        self._end = _end_token(folder, ids, self._built.get_vocab(), spec)
        self._n_ids = max(len(self._pieces), whole(json_of(folder, MODEL_CONFIG).get("vocab_size") or 0))
        if max(self._n_ids, self._end) > MOST_IDS:
            raise ValueError(f"no vocabulary has {max(self._n_ids, self._end):,} ids")
        parts = repr([self._source, self._end, self._n_ids]).encode()
        super().__init__(f"{HF}{folder}", self._n_ids, self._end, hashlib.sha256(b"hf\0" + parts).hexdigest()[:32])
        self._finish()

    def _load(self, spec: str) -> None:
        import tokenizers

        try:
            self._built = tokenizers.Tokenizer.from_str(self._source)
        except Exception as error:  # it raises Exception itself
            raise UserError(f"tokenizer {spec!r}: {TOKENIZER_JSON} can't be used ({error})") from error
        self._built.encode_special_tokens = True  # <|endoftext|> in a text is text
        content = json.loads(self._source)
        names = {id: token for token, id in self._built.get_vocab(with_added_tokens=True).items()}
        added = {token["id"] for token in content.get("added_tokens", ()) if token["id"] in names}
        as_bytes = {character: byte for byte, character in byte_level_alphabet().items()}
        byte_level = '"ByteLevel"' in self._source

        def piece(id: int) -> bytes:
            token = names.get(id, "")
            if id in added:
                return token.encode()
            if byte_level and all(character in as_bytes for character in token):
                return bytes(as_bytes[character] for character in token)
            if len(token) == 6 and token.startswith("<0x"):
                return bytes([int(token[3:5], 16)])
            return token.replace(SPACE, " ").encode()

        if max(names, default=0) > MOST_IDS:
            raise ValueError(f"no vocabulary has {max(names):,} ids")
        self._pieces = [piece(id) for id in range(max(names, default=-1) + 1)]

    def _finish(self) -> None:
        self._pieces += [b""] * (self._n_ids - len(self._pieces))
        self._pieces[self._end] = END_OF_TEXT.encode()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_built", "_pieces")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._load(self.spec)
        self._finish()

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        encode = self._built.encode
        return [encode(without_half_surrogates(text), add_special_tokens=False).ids for text in texts]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(map(self._pieces.__getitem__, ids))


def _lossless(content: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer.json's content without what changes a text before its tokens are found."""
    normalizer = content.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    kept = [step for step in steps if step.get("type") == "Replace" and step.get("content") == SPACE]

    def without_prefix(part: Any) -> Any:
        if isinstance(part, list):
            return [without_prefix(one) for one in part]
        if not isinstance(part, dict):
            return part
        part = {key: without_prefix(value) for key, value in part.items()}
        if part.get("type") == "ByteLevel":
            part["add_prefix_space"] = False
        if part.get("type") == "Metaspace":
            part = {**part, "prepend_scheme": "never"}
            part.pop("add_prefix_space", None)
        return part

    return {
        **content,
        "normalizer": {"type": "Sequence", "normalizers": kept} if kept else None,
        "pre_tokenizer": without_prefix(content.get("pre_tokenizer")),
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }


def _end_token(folder: Path, added: dict[str, int], vocabulary: dict[str, int], spec: str) -> int:
    """Return the id of the EOT token. Raises UserError if the folder names none."""
    named = json_of(folder, "tokenizer_config.json").get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    known = {**vocabulary, **added}
    if isinstance(named, str) and named in known:
        return known[named]
    for file in (MODEL_CONFIG, "generation_config.json"):
        number = json_of(folder, file).get("eos_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int) and number >= 0:
            return number
    if END_OF_TEXT in known:
        return known[END_OF_TEXT]
    raise UserError(f"tokenizer {spec!r}: {os.path.basename(folder)} does not say which token ends a text (eos_token)")


def first_token(folder: Path, tokenizer: Tokenizer) -> int:
    """Return the id of the token that a published model's texts begin with; that of the EOT token if none is named."""
    number = json_of(folder, MODEL_CONFIG).get("bos_token_id")
    return number if isinstance(number, int) and 0 <= number < tokenizer.vocab_size else tokenizer.eot
