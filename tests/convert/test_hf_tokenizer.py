"""SentencePiece models as tokenizer.json: the same ids, and text as it was."""

import random
from types import SimpleNamespace

import pytest
import torch

from lmplay.convert.hf_tokenizer import write_tokenizer
from lmplay.data.tokenizers import load_tokenizer
from support.small import make_text

TEXTS = [
    make_text(5, 9),
    "",
    " the cat  sat\n\n\ton the mat ",
    "Füße 漢字 🙂 \u2581 _",
    "<s></s> <unk> <0x41> [END] <|end",
    "".join(random.Random(0).choices("aeiounrst  ", k=4000)),
]


@pytest.mark.parametrize("more", [{"byte_fallback": True, "eos_id": -1}, {}], ids=["bytes of its own", "none"])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_models_are_written_as_they_cut(tmp_path, kind, more):
    sentencepiece, fast = pytest.importorskip("sentencepiece"), pytest.importorskip("transformers")
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(make_text(60, 1).splitlines()),
        model_prefix=str(tmp_path / "m"),
        model_type=kind,
        vocab_size=600,
        hard_vocab_limit=False,
        minloglevel=2,
        **more,
    )
    tokenizer = load_tokenizer(f"sentencepiece:{tmp_path / 'm.model'}")
    text = SimpleNamespace(tokens=torch.tensor(tokenizer.encode(make_text(9, 2))))
    (tmp_path / "hf").mkdir()
    run = SimpleNamespace(tokenizer=tokenizer, context_len=16)
    assert write_tokenizer(tmp_path / "hf", run, text) == "tokenizer.json"
    theirs = fast.AutoTokenizer.from_pretrained(str(tmp_path / "hf"))
    for one in TEXTS:
        ids = tokenizer.encode(one)
        assert theirs(one).input_ids == [tokenizer.eot, *ids] and theirs.decode(ids) == one
