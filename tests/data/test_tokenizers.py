"""Tokenizers: lossless on any text, the same ids as the libraries' own, trained ones that come out the same again."""

import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import sysconfig
import unicodedata
from pathlib import Path

import pytest

from lmplay.data import tokenizer_training, tokenizers
from lmplay.data.tokenizer_training import PATTERN, train_tokenizer
from lmplay.data.tokenizers import load_tokenizer
from lmplay.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"
CACHED = SHARED / "tiktoken_cache"
STORIES = SHARED / "sentencepiece-tinystories-4096.model"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data folder")

SCRIPTS = [
    "The quick brown fox can't jump over 12345 lazy dogs; it's 3.14 metres (or so).\n\n\tIndented,  doubled   spaces. ",
    "Größere Übungen für Füße: „Straße“ – ja! Ça va très bien, œuvre naïve. Příliš žluťoučký kůň.",
    "Съешь же ещё этих мягких французских булок. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "זה היה יום יפה בירושלים. كان يومًا جميلًا في القاهرة، والسماء صافية.",
    "यह एक अच्छा दिन था और क्षेत्रीय कविता सुनाई गई। இது ஒரு நல்ல நாள். วันนี้อากาศดีมากที่กรุงเทพ",
    "今日は天気がいいですね。東京へ行きます。我们今天去北京看长城。오늘은 날씨가 참 좋습니다.",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 é ﬁ １２３ ² Ⅷ \u200b\u00a0\u3000\u2028 ▁ ␀ \x00\x7f\ufeff",
    "<|endoftext|> <s> </s> <unk> <pad> <0x41> [MASK] \\n &amp;",
    "def f(x):\n    if x:\n        return {'a': [1, 2]}\r\n\r\n# done\n" + " " * 300 + "x" * 300 + "\n" * 50 + "=" * 99,
    "",
    " ",
    "  ",
    "\n",
    "a",
    " a",
    "a ",
    "▁",
    "\U0010ffff",
]


def random_text(generator: random.Random) -> str:
    ranges = [range(32, 127), range(0x20, 0x30), range(0x700), range(0x3000, 0xA000), range(0xFFFE), range(0x110000)]
    signs = (chr(generator.choice(generator.choice(ranges))) for _ in range(generator.randrange(40)))
    return "".join(sign for sign in signs if not "\ud800" <= sign <= "\udfff")


@pytest.fixture(scope="module")
def corpus():
    library = Path(sysconfig.get_paths()["stdlib"])
    return [
        (library / name).read_text(encoding="utf-8")
        for name in ("ast.py", "argparse.py", "inspect.py", "typing.py", "json/decoder.py")
    ] + SCRIPTS * 20


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        kind: train_tokenizer({"train": kind, "vocab_size": 1200}, iter(corpus), folder / kind)
        for kind in tokenizers.TRAINABLE_KINDS
    }


@pytest.fixture(scope="module")
def every(trained):
    """All kinds of tokenizers that can be had here."""
    found = {"bytes": load_tokenizer("bytes"), **trained}
    if SHARED.is_dir():
        os.environ["TIKTOKEN_CACHE_DIR"] = str(CACHED)
        found["tiktoken"] = load_tokenizer("tiktoken:gpt2")
        found["stories"] = load_tokenizer(f"sentencepiece:{STORIES}")
    return found


def test_any_text_survives(every):
    generator = random.Random(0)
    texts = SCRIPTS + [random_text(generator) for _ in range(1500)]
    for name, tokenizer in every.items():
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
            assert tokenizer.decode(ids) == text, name
            assert all(0 <= i < tokenizer.vocab_size for i in ids) and tokenizer.eot not in ids, name
    # one by one gives what a batch gives
    for tokenizer in every.values():
        assert [tokenizer.encode(text) for text in SCRIPTS] == tokenizer.encode_batch(SCRIPTS)


def test_every_code_point_survives(every):
    signs = [
        chr(code)
        for code in [*range(0x32000), *range(0xE0000, 0xE0200), *range(0x32000, 0x110000, 97)]
        if not 0xD800 <= code < 0xE000
    ]
    texts = ["x".join(signs[start : start + 2000]) for start in range(0, len(signs), 2000)]
    for name, tokenizer in every.items():
        assert [tokenizer.decode_bytes(ids) for ids in tokenizer.encode_batch(texts)] == [
            text.encode() for text in texts
        ], name


def test_ids_cut_anywhere_join_again(every):
    for tokenizer in every.values():
        ids = tokenizer.encode(" ".join(SCRIPTS))
        assert b"".join(tokenizer.decode_bytes([i]) for i in ids) == " ".join(SCRIPTS).encode()


def test_half_a_character_and_half_a_surrogate_pair(every):
    for tokenizer in every.values():
        assert tokenizer.decode(tokenizer.encode("a\ud83db")) == "a\ufffdb"
    assert load_tokenizer("bytes").decode([0xC3, 0x61, 0xF0, 0x9F]) == "\ufffda\ufffd"


def test_end_of_text_is_a_token_of_its_own(every):
    for name, tokenizer in every.items():
        assert tokenizer.decode([tokenizer.eot]) == "<|endoftext|>"
        assert tokenizer.decode(tokenizer.encode("a") + [tokenizer.eot] + tokenizer.encode("b")) == "a<|endoftext|>b", (
            name
        )
        assert len(tokenizer.encode("<|endoftext|>")) > 1, name


@pytest.mark.process
def test_they_pickle_and_work_in_a_spawned_process(every):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for tokenizer in every.values():
            copy = pickle.loads(pickle.dumps(tokenizer))
            assert (copy.spec, copy.vocab_size, copy.eot, copy.fingerprint) == (
                tokenizer.spec,
                tokenizer.vocab_size,
                tokenizer.eot,
                tokenizer.fingerprint,
            )
            assert (
                copy.encode_batch(SCRIPTS)
                == pool.apply(tokenizer.encode_batch, (SCRIPTS,))
                == tokenizer.encode_batch(SCRIPTS)
            )


def test_fingerprints_tell_tokenizers_apart(every):
    fingerprints = {tokenizer.fingerprint for tokenizer in every.values()}
    assert len(fingerprints) == len(every)
    assert all(load_tokenizer(tokenizer.spec).fingerprint == tokenizer.fingerprint for tokenizer in every.values())


@pytest.mark.thorough
def test_megabytes_without_a_break(every):
    for name, tokenizer in every.items():
        for text in (" " * 1_200_000 + "x", "a" * 300_000, "\n \t" * 200_000, "é^" * 200_000):
            assert tokenizer.decode(tokenizer.encode(text)) == text, name


# ---------------------------------------------------------------- against the libraries themselves


@needs_shared
def test_tiktoken_ids_are_tiktokens(every):
    import tiktoken

    reference = tiktoken.get_encoding("gpt2")
    texts = SCRIPTS + [(SHARED / "tinyshakespeare.txt").read_text()]
    tokenizer = every["tiktoken"]
    assert tokenizer.encode_batch(texts) == [reference.encode_ordinary(text) for text in texts]
    assert (tokenizer.vocab_size, tokenizer.eot) == (50257, 50256)
    assert tokenizer.encode("Hello world") == [15496, 995]


@needs_shared
def test_sentencepiece_ids_are_the_models_own_where_it_loses_nothing(every):
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(STORIES))
    tokenizer = every["stories"]
    texts = [
        "Once upon a time, there was a little girl named Lily.",
        "\"I can't!\" he said. It was three o'clock",
        "x",
        "zzz qqq",
    ]
    for text in texts:
        assert model.unk_id() not in model.encode(text)
        assert tokenizer.encode(" " + text) == model.encode(text)  # the space that the model puts before every text
    assert tokenizer.eot == model.eos_id() == 3 and tokenizer.vocab_size == 4096 + 256
    # a line end is lost on the model; here it is a byte between two texts of the model
    assert tokenizer.encode(" One day\n the dog") == model.encode("One day") + [4096 + 10] + model.encode("the dog")
    assert model.unk_id() in model.encode("Füße") and model.unk_id() not in tokenizer.encode("Füße")


def test_a_sentencepiece_model_with_special_tokens_of_its_own(tmp_path):
    """As the tokenizers of PLDR-LLMs: [PAD] [UNK] [START] [END] [SEP] [CLS], then the bytes; texts end with [END]."""
    import sentencepiece

    (tmp_path / "text").write_text("the cat sat on the mat and the dog sat on the log\n" * 50)
    sentencepiece.SentencePieceTrainer.Train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "m"),
        model_type="unigram",
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        unk_id=1,
        bos_id=2,
        eos_id=3,
        pad_piece="[PAD]",
        unk_piece="[UNK]",
        bos_piece="[START]",
        eos_piece="[END]",
        control_symbols=["[SEP]", "[CLS]"],
        split_digits=True,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    assert [model.IdToPiece(i) for i in range(7)] == ["[PAD]", "[UNK]", "[START]", "[END]", "[SEP]", "[CLS]", "<0x00>"]
    tokenizer = load_tokenizer(f"sentencepiece:{tmp_path / 'm.model'}")
    assert tokenizer.eot == 3 and tokenizer.vocab_size == model.GetPieceSize()
    text = "the cat sat on the [END] of 12 [SEP] mats \u732b"  # a special token's name in a text is text
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and not {0, 1, 2, 3, 4, 5} & set(ids)
    assert tokenizer.encode(" the cat sat on the mat") == model.EncodeAsIds("the cat sat on the mat")


def test_a_sentencepiece_model_with_byte_pieces_and_without_an_end(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["the cat sat on the mat", "a dog and a cat", "the end of the day"] * 50),
        model_prefix=str(tmp_path / "m"),
        vocab_size=300,
        byte_fallback=True,
        eos_id=-1,
        bos_id=-1,
        pad_id=-1,
        unk_id=0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    tokenizer = load_tokenizer(f"sentencepiece:{tmp_path / 'm.model'}")
    assert tokenizer.vocab_size == model.get_piece_size() + 1 and tokenizer.eot == model.get_piece_size()
    assert tokenizer.encode(" the dog 日") == model.encode("the dog 日")
    assert [tokenizer.decode(tokenizer.encode(text)) for text in SCRIPTS] == SCRIPTS


def known_since_long(text: str) -> bool:
    """Unicode grows: regular-expression libraries may differ about characters that are newer than their tables."""
    return all(unicodedata.ucd_3_2_0.category(sign) != "Cn" for sign in text)


def test_trained_byte_pairs_give_the_ids_of_the_library_that_trained_them(corpus, tmp_path):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    # trained here and kept: the reference encodes with merges, ours with ranks through tiktoken
    kept = Tokenizer(models.BPE())
    kept.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    kept.train_from_iterator(
        iter(corpus),
        trainers.BpeTrainer(vocab_size=1999, initial_alphabet=alphabet, special_tokens=[], show_progress=False),
    )
    assert len(alphabet) == 256
    ours = train_tokenizer({"train": "bpe", "vocab_size": 2000}, iter(corpus), tmp_path / "t")
    generator = random.Random(1)
    library = Path(sysconfig.get_paths()["stdlib"])
    unseen = [
        (library / name).read_text(encoding="utf-8") for name in ("_pydecimal.py", "pydoc_data/topics.py", "this.py")
    ]
    unseen += [text.read_text() for text in SHARED.glob("*.txt")]
    texts = corpus + unseen + [text for text in (random_text(generator) for _ in range(3000)) if known_since_long(text)]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert ids == kept.encode(text).ids
    assert ours.vocab_size == 2000 and ours.eot == 1999


# ---------------------------------------------------------------- training


def test_the_vocabulary_is_as_large_as_asked_for(trained):
    for tokenizer in trained.values():
        assert tokenizer.vocab_size == 1200
        assert tokenizer.eot == (1199 if tokenizer.spec.startswith("bpe:") else 1)


def test_trained_tokenizers_shorten_text_and_use_what_they_learned(trained, corpus):
    for tokenizer in trained.values():
        ids = [i for text in tokenizer.encode_batch(corpus[:5]) for i in text]
        assert len(ids) < 0.5 * sum(len(text.encode()) for text in corpus[:5])
        assert len(set(ids)) > 600


@pytest.mark.process
@pytest.mark.parametrize("kind", tokenizers.TRAINABLE_KINDS)
def test_training_again_gives_the_same(corpus, tmp_path, trained, kind):
    code = (
        "import json, sys; from pathlib import Path; from lmplay.data.tokenizer_training import train_tokenizer\n"
        f"texts = json.load(open({str(tmp_path / 'texts.json')!r}))\n"
        f"how, folder = {{'train': {kind!r}, 'vocab_size': 1200}}, Path({str(tmp_path / 'again')!r})\n"
        "print(train_tokenizer(how, iter(texts), folder).fingerprint)"
    )
    (tmp_path / "texts.json").write_text(json.dumps(corpus))
    again = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout.strip() == trained[kind].fingerprint


def test_a_short_text_gives_a_smaller_vocabulary(tmp_path):
    small = train_tokenizer({"train": "bpe", "vocab_size": 4096}, ["abababab"], tmp_path / "b")
    assert small.vocab_size == 256 + 3 + 1 and small.eot == 259  # ab, abab, abababab
    assert small.encode("abababab") == [258]
    unigram = train_tokenizer(
        {"train": "unigram", "vocab_size": 4096}, ["some words, some more words"] * 9, tmp_path / "u"
    )
    assert 259 <= unigram.vocab_size < 4096 and unigram.decode(unigram.encode("some Wörter\n")) == "some Wörter\n"
    for kind in ("unigram", "sentencepiece-bpe"):
        with pytest.raises(UserError, match="Vocabulary size is smaller than required_chars"):
            train_tokenizer(
                {"train": kind, "vocab_size": 270}, ["".join(map(chr, range(0x4E00, 0x4F00)))], tmp_path / "s"
            )
        with pytest.raises(UserError, match="there is no text"):
            train_tokenizer({"train": kind, "vocab_size": 270}, [], tmp_path / "s")
    with pytest.raises(UserError, match="vocab_size 200 is too small"):
        train_tokenizer({"train": "bpe", "vocab_size": 200}, ["ab"], tmp_path / "z")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "u"]


def test_a_finished_training_is_not_repeated_and_an_interrupted_one_leaves_nothing(tmp_path):
    def interrupted():
        yield "some text"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tokenizer({"train": "bpe", "vocab_size": 300}, interrupted(), tmp_path / "t")
    assert not list(tmp_path.iterdir())

    def never():
        raise AssertionError("read")
        yield

    first = train_tokenizer({"train": "bpe", "vocab_size": 300}, ["some text"], tmp_path / "t")
    assert (
        train_tokenizer({"train": "bpe", "vocab_size": 300}, never(), tmp_path / "t").fingerprint == first.fingerprint
    )


@pytest.mark.parametrize("kind", tokenizers.TRAINABLE_KINDS)
def test_what_is_wrong_with_the_texts_is_said_as_it_is(tmp_path, kind):
    def broken():
        yield "some text"
        raise UserError("a.txt: is not text")

    with pytest.raises(UserError, match="^a.txt: is not text$"):
        train_tokenizer({"train": kind, "vocab_size": 300}, broken(), tmp_path / "t")
    assert not list(tmp_path.iterdir())


def test_training_reads_no_more_than_it_says(tmp_path, monkeypatch):
    monkeypatch.setitem(tokenizer_training.TRAINING_CHARACTERS, "bpe", 1000)
    read = []

    def texts():
        for i in range(100):
            read.append(i)
            yield "word " * 20

    train_tokenizer({"train": "bpe", "vocab_size": 300}, texts(), tmp_path / "t")
    assert len(read) <= 11


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "spec, said",
    [
        ("byte", "unknown tokenizer 'byte': Did you mean 'bytes'? a tokenizer is one of tiktoken:<name>, "),
        ("gpt2.5", "unknown tokenizer 'gpt2.5': a tokenizer is one of tiktoken:<name>, "),
        ("sentencpiece:x", "unknown tokenizer 'sentencpiece:x': Did you mean 'sentencepiece'?"),
        ("tiktoken:gpt3", "tokenizer 'tiktoken:gpt3': tiktoken has no 'gpt3'. Did you mean 'gpt2'?"),
        ("tiktoken:", "tokenizer 'tiktoken:': what follows the colon is missing"),
        ("sentencepiece:{0}/none.model", "tokenizer 'sentencepiece:{0}/none.model': there is no file {0}/none.model"),
        ("sentencepiece:{0}", "tokenizer 'sentencepiece:{0}': {0} is a folder, not a model file"),
        ("sentencepiece:{0}/junk", "tokenizer 'sentencepiece:{0}/junk': the file is no SentencePiece model"),
        ("sentencepiece:{0}/empty", "tokenizer 'sentencepiece:{0}/empty': the file is no SentencePiece model"),
        ("bpe:{0}/none", "tokenizer 'bpe:{0}/none': there is no file {0}/none/ranks.tiktoken"),
        ("bpe:{0}", "tokenizer 'bpe:{0}': the files in the folder are damaged"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(tmp_path, spec, said):
    (tmp_path / "junk").write_bytes(b"\x00junk" * 100)
    (tmp_path / "empty").touch()
    (tmp_path / "ranks.tiktoken").write_text("YQ== 0\nYg== 1\n")
    (tmp_path / "tokenizer.json").write_text('{"pattern": "."}')
    with pytest.raises(UserError) as raised:
        load_tokenizer(spec.format(tmp_path))
    assert str(raised.value).startswith(said.format(tmp_path)) and "\n" not in str(raised.value)


def test_a_damaged_trained_tokenizer_is_not_used(trained, tmp_path):
    folder = Path(trained["bpe"].spec.removeprefix("bpe:"))
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    lines = good["ranks.tiktoken"].splitlines(keepends=True)
    for name, content in [
        ("ranks.tiktoken", b"".join(lines[:100])),
        ("ranks.tiktoken", b"".join(lines[:700] + lines[701:])),
        ("ranks.tiktoken", b"\xff"),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b'{"pattern": "("}'),
        ("tokenizer.json", b'{"pattern": 5}'),
    ]:
        for other, whole in {**good, name: content}.items():
            (tmp_path / other).write_bytes(whole)
        with pytest.raises(UserError, match="the files in the folder are damaged"):
            load_tokenizer(f"bpe:{tmp_path}")


@pytest.mark.process
def test_a_vocabulary_that_cannot_be_downloaded(tmp_path):
    code = (
        "from lmplay.data.tokenizers import load_tokenizer; from lmplay.errors import UserError\n"
        "try:\n    load_tokenizer('tiktoken:gpt2')\nexcept UserError as error:\n    print(error)"
    )
    environment = {
        key: value for key, value in os.environ.items() if key not in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")
    }
    environment |= {
        "LMPLAY_DATA": str(tmp_path),
        "https_proxy": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
    }
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (
        result.stdout.startswith("tokenizer 'tiktoken:gpt2': its vocabulary could not be downloaded (")
        and result.stdout.count("\n") == 1
    )
    assert "bytes" in result.stdout and "quick" in result.stdout


def test_arrays_are_the_ids_of_a_batch(tmp_path, monkeypatch):
    """Also where a worker encodes texts one by one."""
    training = {"train": "bpe", "vocab_size": 300}
    train_tokenizer(training, ["some text of words, words and more words"] * 20, tmp_path / "tokenizer")
    texts = ["words and <|endoftext|> more", "", "half \ud800 of a pair", "\u65e5\u672c " * 9, " " * 100_001 + "x"]
    for spec in (f"bpe:{tmp_path / 'tokenizer'}", "bytes"):
        tokenizer = load_tokenizer(spec)
        expected = tokenizer.encode_batch(texts)
        for threads in (1, 2):
            monkeypatch.setattr(tokenizers, "_threads", lambda threads=threads: threads)
            for some in (texts, texts[:2], texts[3:4]):
                found = [ids.tolist() for ids in tokenizer.encode_arrays(some)]
                assert found == [expected[texts.index(text)] for text in some]
