"""Write a run's tokenizer as the library tokenizers reads it."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from lmplay.convert.checked_text import Text
from lmplay.data.tokenizer_base import END_OF_TEXT, Tokenizer, byte_level_alphabet
from lmplay.files import write_json
from lmplay.runs.trained import TrainedRun

if TYPE_CHECKING:
    import tokenizers


def write_tokenizer(folder: Path, run: TrainedRun, text: Text) -> str:
    """Write tokenizer.json for a tokenizer of bytes or byte pairs; return what was done."""
    tokenizer = run.tokenizer
    if tokenizer.pattern is None and tokenizer.spec != "bytes":
        return _no_tokenizer(folder, f"{tokenizer.spec} is not a tokenizer of byte pairs")
    made = _byte_pairs(tokenizer)
    sample = tokenizer.decode([token for token in text.tokens.tolist() if token != tokenizer.eot])
    if made.encode(sample, add_special_tokens=False).ids != tokenizer.encode(sample):
        return _no_tokenizer(folder, f"the library tokenizers cuts text otherwise than {tokenizer.spec}")
    made.save(str(folder / "tokenizer.json"))
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


def _no_tokenizer(folder: Path, why: str) -> str:
    """Let AutoTokenizer refuse the folder, which would make something unusable of it; return what was done."""
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "NoTokenizerWasExported"})
    return f"no tokenizer.json: {why}; lmplay.load_run(RUN).tokenizer makes the token ids"


def _byte_pairs(tokenizer: Tokenizer) -> "tokenizers.Tokenizer":
    """Return the same tokenizer, made with the library `tokenizers`. It puts the BOS token before each text."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as Built

    vocabulary, merges = byte_pair_merges(tokenizer)
    built = Built(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False))
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    cuts = [] if tokenizer.pattern is None else [pre_tokenizers.Split(Regex(tokenizer.pattern), "isolated")]
    built.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytes_of])
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    begin = (END_OF_TEXT, tokenizer.eot)  # a text begins with the token that every context began with in training
    built.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B", special_tokens=[begin]
    )
    return built


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
