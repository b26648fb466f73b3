"""Write a run's tokenizer as the library tokenizers reads it."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from lmplay.convert.checked_text import Text
from lmplay.data.tokenizer_base import END_OF_TEXT, Tokenizer, byte_level_alphabet
from lmplay.data.tokenizers import SentencePieceTokenizer
from lmplay.files import write_json
from lmplay.runs.trained import TrainedRun

if TYPE_CHECKING:
    import tokenizers

ODD_TEXTS = ("  two  spaces\n\n\tand a tab ", "Ünïcödé 漢字 🙂 \u2581_", "<unk></s><s><0x41> a<0x0A>", "x" * 300)
NEVER = 1e6  # below the lowest score: of pieces into which no text is cut


def write_tokenizer(folder: Path, run: TrainedRun, text: Text) -> str:
    """Write tokenizer.json for a tokenizer of bytes, byte pairs or SentencePiece; return what was done.

    It is written only if it cuts the run's validation text and ODD_TEXTS into the same ids, and back.
    """
    tokenizer = run.tokenizer
    if isinstance(tokenizer, SentencePieceTokenizer):
        made = _sentence_pieces(tokenizer)
    elif tokenizer.pattern is not None or tokenizer.spec == "bytes":
        made = _byte_pairs(tokenizer)
    else:
        return _no_tokenizer(folder, f"{tokenizer.spec} is not a tokenizer of byte pairs or SentencePiece")
    sample = tokenizer.decode([token for token in text.tokens.tolist() if token != tokenizer.eot])
    if not all(_same_ids(made, tokenizer, one) for one in (sample, *ODD_TEXTS)):
        return _no_tokenizer(folder, f"the library tokenizers cuts text otherwise than {tokenizer.spec}")
    (folder / "tokenizer.json").write_text(made.to_str(pretty=True), encoding="utf-8")  # a path may be no UTF-8
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "model_max_length": run.context_len,
            "clean_up_tokenization_spaces": False,
        },
    )
    return "tokenizer.json"


def _same_ids(made: "tokenizers.Tokenizer", tokenizer: Tokenizer, text: str) -> bool:
    ids = tokenizer.encode(text)
    return made.encode(text, add_special_tokens=False).ids == ids and made.decode(ids) == text


def _no_tokenizer(folder: Path, why: str) -> str:
    """Let AutoTokenizer refuse the folder, which would make something unusable of it; return what was done."""
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "NoTokenizerWasExported"})
    return f"no tokenizer.json: {why}; lmplay.load_run(RUN).tokenizer makes the token ids"


def _byte_pairs(tokenizer: Tokenizer) -> "tokenizers.Tokenizer":
    """Return the same tokenizer, made with the library `tokenizers`. It puts the BOS token before each text."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Built

    vocabulary, merges = byte_pair_merges(tokenizer)
    built = Built(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False))
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cuts = [] if tokenizer.pattern is None else [pre_tokenizers.Split(Regex(tokenizer.pattern), "isolated")]
    built.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytes_of])
    built.decoder = decoders.ByteLevel()
    return _with_bos(built, tokenizer)


def _with_bos(built: "tokenizers.Tokenizer", tokenizer: Tokenizer) -> "tokenizers.Tokenizer":
    """Let a text begin with the token that every context began with in training."""
    from tokenizers import AddedToken, processors

    built.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    built.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, tokenizer.eot)],
    )
    return built


def _sentence_pieces(tokenizer: SentencePieceTokenizer) -> "tokenizers.Tokenizer":
    """Return the same tokenizer, made with the library `tokenizers`.

    What the model has pieces for is cut apart from each other character, which is written in bytes. Pieces hold spaces
    as they are: so no text is changed on the way. A model of byte pairs scores its pieces by rank, in whole numbers.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Built

    pieces = tokenizer.pieces()
    scores = {name: score for name, score in pieces if score is not None}
    vocabulary = {name: i for i, (name, _) in enumerate(pieces)}
    unknown = pieces[tokenizer.unknown][0]
    if all(score.is_integer() for score in scores.values()):
        halves = [
            (name[:k], name[k:]) for name in sorted(scores, key=lambda name: -scores[name]) for k in range(1, len(name))
        ]
        merges = [(first, second) for first, second in halves if first in scores and second in scores]
        model: models.Model = models.BPE(
            vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    else:
        never = min(scores.values()) - NEVER
        listed = [(name, never if score is None else score) for name, score in pieces]
        model = models.Unigram(listed, unk_id=tokenizer.unknown, byte_fallback=True)
    built = Built(model)
    if tokenizer.characters:
        written = "".join(f"\\x{{{ord(character):x}}}" for character in sorted(tokenizer.characters))
        built.pre_tokenizer = pre_tokenizers.Split(Regex(f"[{written}]+|[^{written}]"), "isolated")
    built.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return _with_bos(built, tokenizer)


def byte_pair_merges(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the ids of the tokens, spelled by `byte_level_alphabet`, and the merges in their order.

    Each token is the merge of the two tokens that the merges before it make of its bytes.
    """
    tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.eot)]
    ranks = {token: i for i, token in enumerate(tokens)}
    shown = byte_level_alphabet()

    def name(token: bytes) -> str:
        return "".join(shown[byte] for byte in token)

    halves = [_halves(token, ranks) for token in tokens if len(token) > 1]
    return {name(token): i for token, i in ranks.items()}, [(name(first), name(second)) for first, second in halves]


def _halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """Return the two tokens that merge to this one."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(a + b, len(ranks)) for a, b in pairwise(parts)]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
