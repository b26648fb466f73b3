"""lmp_tokenizer as it is typed: training, looking into, encoding and decoding, with text in many scripts."""

import json
import random
import re
import subprocess
import sys
import tomllib
import unicodedata
from pathlib import Path

import pytest

from lmplay.cli.tokenizer import main, parser
from lmplay.data import tokenizer_training
from lmplay.data.tokenizer_training import train_tokenizer
from lmplay.data.tokenizers import load_tokenizer
from support.small import make_text, write_plan

# the first article of the Universal Declaration of Human Rights; the beginning of Genesis with vowel points
SCRIPTS = {
    "thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ ต่างมีเหตุผลและมโนธรรม และควรปฏิบัติต่อกันด้วยเจตนารมณ์แห่งภราดรภาพ",
    "japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。"
    "人間は、理性と良心とを授けられており、"
    "互いに同胞の精神をもって行動しなければならない。",
    "chinese": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "arabic": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. "
    "وقد وهبوا عقلاً وضميرًا وعليهم أن يعامل بعضهم بعضًا بروح الإخاء.",
    "hebrew": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. בְּרֵאשִׁית בָּרָא אֱלֹהִים אֵת הַשָּׁמַיִם וְאֵת הָאָרֶץ",
    "hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। "
    "उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है।",
    "combining": unicodedata.normalize("NFD", "Čtyřicet žluťoučkých koní běželo přes Việt Nam a Ångström ještě včera."),
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👨🏽‍💻 🇯🇵🇹🇭 e\u0301 \u200f‏\u202bשלום\u202c",
}
ALL = "\n".join(SCRIPTS.values()) + "\n"


def lmp_tokenizer(*words, given: bytes = b"", status: int = 0, cwd=None) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "lmplay.cli.tokenizer", *map(str, words)], input=given, capture_output=True, cwd=cwd
    )
    assert done.returncode == status, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    if status == 2:
        assert len(done.stderr.decode().splitlines()) == 1
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with text in many scripts, and tokenizers that were trained on it by the command."""
    folder, draw = tmp_path_factory.mktemp("tokenizers"), random.Random(0)
    for name, text in SCRIPTS.items():
        parts = [
            text[start : start + draw.randint(10, 60)] for start in (draw.randrange(len(text)) for _ in range(150))
        ]
        (folder / f"{name}.txt").write_text("\n\n".join(parts) + f"\n\n{text}\n", encoding="utf-8")
    (folder / "english.jsonl").write_text(
        "".join(json.dumps({"text": line}) + "\n" for line in make_text(20, 5).splitlines() if line)
    )
    for kind in ("bpe", "unigram"):
        done = lmp_tokenizer(
            "train",
            "--kind",
            kind,
            "--vocab-size",
            1000,
            "-o",
            kind,
            *[f"{name}.txt" for name in SCRIPTS],
            "english.jsonl",
            cwd=folder,
        )
        assert b"1,000 ids" in done.stderr and not done.stdout, done.stderr
    return folder


@pytest.mark.process
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_every_script_survives_and_becomes_shorter(place, kind):
    ids = lmp_tokenizer("encode", kind, given=ALL.encode(), cwd=place).stdout
    assert re.fullmatch(rb"\d+( \d+)*\n", ids)
    assert lmp_tokenizer("decode", kind, given=ids, cwd=place).stdout == ALL.encode()
    tokenizer = load_tokenizer(f"{'bpe' if kind == 'bpe' else 'sentencepiece'}:{place / kind}")
    for name, text in SCRIPTS.items():
        encoded = tokenizer.encode(text)
        assert tokenizer.decode(encoded) == text
        assert len(encoded) < len(text) * (0.8 if name != "emoji" else 2), name
    # marks stay with their letters: no token of a learned word begins with one
    whole = [tokenizer.decode([i]) for i in tokenizer.encode(SCRIPTS["hindi"])]
    assert any(any(unicodedata.category(sign).startswith("M") for sign in token[1:]) for token in whole)


@pytest.mark.process
def test_a_trained_folder_is_a_tokenizer_of_lmp_trainer(place, trainer, plans):
    for spec in (f"bpe:{place / 'bpe'}", f"sentencepiece:{place / 'unigram'}"):
        done = trainer(
            "--exp",
            "gpt2ish",
            "--set",
            "n_layer=1",
            "--set",
            "n_embd=16",
            "--set",
            "n_head=2",
            "--context-len",
            16,
            "--batch-size",
            4,
            "--device",
            "cpu",
            "--max-steps",
            2,
            "--training-plan",
            plans["plain"],
            "--tokenizer",
            spec,
            "--run-name",
            "run",
            "--fresh",
        )
        assert done.status == 0, done.err
        copy = load_tokenizer(f"{spec.partition(':')[0]}:gpt_out/run/tokenizer")
        assert copy.fingerprint == load_tokenizer(spec).fingerprint


@pytest.mark.process
def test_inspect_counts_what_there_is(place):
    text = (place / "thai.txt").read_text(encoding="utf-8")
    tokenizer = load_tokenizer(f"bpe:{place / 'bpe'}")
    ids = tokenizer.encode(text)
    shown = lmp_tokenizer("inspect", "bpe:bpe", "thai.txt", "--longest", 3, cwd=place).stdout.decode()
    assert f"bpe:bpe: 1,000 ids, the EOT token is 999, fingerprint {tokenizer.fingerprint}" in shown
    assert f"{len(text.encode()):,} bytes, {len(text):,} characters; every one comes back as it was" in shown
    n_tokens = int(re.search(r"tokens: ([\d,]+),", shown)[1].replace(",", ""))
    assert abs(n_tokens - len(ids)) <= 0.02 * len(ids)  # the file is cut into several texts
    assert f"{len(text.encode()) / n_tokens:.3f} bytes" in shown
    used = int(re.search(r"vocabulary used: ([\d,]+) of 999", shown)[1].replace(",", ""))
    assert abs(used - len(set(ids))) <= 3
    longest = max(set(ids), key=lambda i: len(tokenizer.decode_bytes([i])))
    assert len(re.findall(r"^ +\d+ +\d+ bytes  .* times$", shown, re.MULTILINE)) == 3
    assert (
        f"{len(tokenizer.decode_bytes([longest]))} bytes  {tokenizer.decode([longest])!r}  {ids.count(longest):,} times"
        in shown
    )
    alone = lmp_tokenizer("inspect", "bytes", cwd=place).stdout.decode()
    assert "bytes: 257 ids" in alone and "bytes of its tokens: 1: 256" in alone and "vocabulary used" not in alone


@pytest.mark.process
def test_a_plan_gives_its_training_documents_to_train_and_the_others_to_inspect(tmp_path):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": "training words " * 20}) + "\n" for _ in range(30)))
    (tmp_path / "v.jsonl").write_text(json.dumps({"text": "held out " * 20}) + "\n")
    plan = write_plan(
        tmp_path, "p", {"d": {"files": "t.jsonl", "validation": {"files": "v.jsonl"}}}, [{"datasets": ["d"]}]
    )
    lmp_tokenizer("train", "--vocab-size", 300, "--training-plan", plan, "-o", "t", cwd=tmp_path)
    tokenizer = load_tokenizer(f"bpe:{tmp_path / 't'}")
    assert len(tokenizer.encode(" training words")) == 2 and len(tokenizer.encode(" held out")) > 4
    assert (
        "text: 1 texts, 180 bytes"
        in lmp_tokenizer("inspect", "t", "--training-plan", plan, cwd=tmp_path).stdout.decode()
    )


def test_the_text_is_in_a_column_of_any_name(tmp_path, capsys):
    rows = [{"内容": line} for line in make_text(5, 3).splitlines() if line]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    train = ["train", "--vocab-size", "270", "-o", str(tmp_path / "new"), str(tmp_path / "rows.jsonl")]
    assert main(train) == 2 and "wants the column 'text'" in capsys.readouterr().err
    assert main([*train, "--text-column", "内容"]) == 0
    assert main(["inspect", str(tmp_path / "new"), str(tmp_path / "rows.jsonl"), "--text-column", "内容"]) == 0
    assert f"text: {len(rows)} texts" in capsys.readouterr().out
    assert main(["inspect", "bytes", "--training-plan", "quick", "--text-column", "x"]) == 2


@pytest.mark.process
@pytest.mark.parametrize(
    "words, given, said",
    [
        (["train", "--vocab-size", 300, "-o", "new"], b"", "name either files or a --training-plan"),
        (
            ["train", "--vocab-size", 300, "-o", "new", "thai.txt", "--training-plan", "quick"],
            b"",
            "name either files or a --training-plan",
        ),
        (["train", "--vocab-size", 300, "-o", "bpe", "thai.txt"], b"", "-o bpe is there already"),
        (["train", "--vocab-size", 30, "-o", "new", "thai.txt"], b"", "vocab_size 30 is too small"),
        (["train", "--vocab-size", 300, "-o", "new", "tahi.txt"], b"", "no file matches 'tahi.txt'"),
        (["train", "--kind", "bep", "--vocab-size", 300, "-o", "new", "thai.txt"], b"", "invalid choice: 'bep'"),
        (["train", "--vocab-sise", 300, "-o", "new", "thai.txt"], b"", "Did you mean '--vocab-size'?"),
        (["inspect", "bep:bpe"], b"", "unknown tokenizer 'bep:bpe': Did you mean 'bpe'?"),
        (["inspect", "bpe:nowhere"], b"", "there is no file nowhere/ranks.tiktoken"),
        (["encode", "bpe", "nowhere.txt"], b"", "nowhere.txt can't be read: No such file"),
        (["encode", "bpe"], b"caf\xe9", "standard input is not UTF-8 text (byte 3)"),
        (["decode", "bpe"], b"1 2 1000", "standard input: '1000' is no id of bpe:bpe, whose ids are 0 to 999"),
        (["decode", "bpe"], b"1 -2", "standard input: '-2' is no id"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_in_one_line(place, words, given, said):
    assert said in lmp_tokenizer(*words, given=given, status=2, cwd=place).stderr.decode()
    assert not (place / "new").exists()


def test_both_spellings_are_commands():
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["lmp_tokenizer"] == scripts["lmp-tokenizer"] == "lmplay.cli.tokenizer:main"


@pytest.mark.parametrize("flag", ["-o", "--output", "--out"])
def test_the_folder_has_three_spellings(flag):
    typed = parser().parse_args(["train", "--vocab-size", "300", flag, "new", "thai.txt"])
    assert typed.output == Path("new") and typed.files == ["thai.txt"]


def even_share(read, kind):
    return tokenizer_training.thinned(read, tokenizer_training.thinning(read, kind))


def test_an_even_share_of_what_is_too_much(monkeypatch, tmp_path):
    """Text whose words all differ is not learned from whole: memory would grow. What is used comes from all of it."""
    monkeypatch.setattr(tokenizer_training, "PIECE", 1000)
    monkeypatch.setattr(tokenizer_training, "DISTINCT_BYTES", 150_000)

    def clauses(seed):  # three bytes a character, no spaces
        draw = random.Random(seed)
        return ["".join(chr(0x4E00 + draw.randrange(3000)) for _ in range(12)) + "。" for _ in range(100)]

    documents = ["".join(clauses(seed)) for seed in range(128)]  # 128 x 100 clauses of 36 bytes and more
    taken = list(even_share(lambda: iter(documents), "bpe"))
    step = round(len("".join(documents)) / len("".join(taken)))
    assert step == 4  # 460,800 bytes of words, more or less: a quarter fits, a half does not
    assert taken[0][:500] == documents[0][:500] and "".join(documents).find(taken[-1][:50]) > 120 * 1300
    few = ["the same words again " * 60 for _ in range(128)]
    assert sum(map(len, even_share(lambda: iter(few), "bpe"))) >= sum(map(len, few))
    monkeypatch.setitem(tokenizer_training.ALL_CHARACTERS, "bpe", 70_000)
    assert 30_000 < sum(map(len, even_share(lambda: iter(few), "bpe"))) <= 70_000
    train_tokenizer({"train": "bpe", "vocab_size": 300}, lambda: iter(documents), tmp_path / "t")
    assert json.loads((tmp_path / "t" / "tokenizer.json").read_text())["every"] == 4
    begun = list(tokenizer_training.beginning(iter(documents), "bpe"))
    assert begun == documents[: len(begun)] and 20 <= len(begun) <= 60


def test_a_word_without_an_end(tmp_path):
    dna = "ACGT" * 250_000
    tokenizer = train_tokenizer({"train": "bpe", "vocab_size": 300}, lambda: iter([dna, "words"]), tmp_path / "t")
    assert tokenizer.decode(tokenizer.encode(dna)) == dna and len(tokenizer.encode(dna)) < len(dna) / 8
    assert max(map(len, even_share(lambda: iter([dna]), "bpe"))) <= tokenizer_training.LONGEST_WORD
