"""Define what every tokenizer offers, and say why a vocabulary was not fetched."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """The base of all tokenizers. Tokenizers can be pickled.

    spec: its name. vocab_size: counts all ids. fingerprint: a hash of what decides the ids.
    eot: the id of the EOT token, which is the BOS token, too. No text is encoded to it; decoded it is <|endoftext|>.
    pattern: the regular expression that cuts text before byte pairs are merged; None for other tokenizers.
    """

    pattern: str | None = None

    def __init__(self, spec: str, vocab_size: int, eot: int, fingerprint: str):
        self.spec, self.vocab_size, self.eot, self.fingerprint = spec, vocab_size, eot, fingerprint

    def __repr__(self) -> str:
        return f"<tokenizer {self.spec}: {self.vocab_size:,} ids>"

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text."""
        raise NotImplementedError

    def encode_arrays(self, texts: list[str]) -> "list[np.ndarray]":
        """Return the ids of each text, (n,) of some integer type each."""
        import numpy as np

        return [np.array(ids, np.uint32) for ids in self.encode_batch(texts)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the UTF-8 bytes of the ids. Ids may be cut anywhere: the parts' bytes join to the whole's."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of the ids, with U+FFFD for bytes that are not UTF-8 (a character cut in two)."""
        return self.decode_bytes(ids).decode("utf-8", "replace")


def byte_level_alphabet() -> dict[int, str]:
    """Return the character that byte-level vocabularies write for each byte (GPT-2's table).

    Printable Latin-1 is written as itself, the rest from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + k) for k, byte in enumerate(others)}


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, 200 characters at most."""
    text = (str(error) or type(error).__name__).splitlines()[0]
    return text if len(text) <= 200 else text[:197] + "..."


def why_not_fetched(error: BaseException) -> str:
    """Return why a download failed, for people: libraries of HTTP tell of pools and objects."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    kinds = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    if kinds & {"ConnectionError", "ConnectError", "gaierror", "MaxRetryError", "NewConnectionError", "ProxyError"}:
        return "there is no connection to its server"
    if kinds & {"TimeoutError", "Timeout", "TimeoutException"}:
        return "its server does not answer in time"
    return first_line(error)
