"""Documents from local files, the standard library and a hub on this machine that speaks the real one's protocol."""

import ast
import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import sysconfig
from itertools import islice
from pathlib import Path

import pytest

from lmplay.data.documents import documents, held_out_documents, origin
from lmplay.data.json_checks import Checked
from lmplay.data.plans import read_dataset
from lmplay.errors import UserError
from support.hub_server import HubServer
from support.thorough import first

pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

ROWS = [{"title": f"T{i}", "body": f"text number {i} é😀", "n": i} for i in range(50)]


def spec(name="d", **content):
    return read_dataset(Checked("plan.json", content, f"datasets.{name}"), name)


def all_of(folder, **content):
    """A dataset whose files are all trained on; validation has a file of its own."""
    (folder / "held.out").write_text("held out")
    return spec(validation={"files": "held.out"}, **content)


def texts(dataset, folder, split="train"):
    """The documents' texts; each has to be one scored segment."""
    found = list(documents(dataset, folder, split))
    assert all(len(document) == 1 and document[0][1] is True for document in found)
    return [document[0][0] for document in found]


def everything(dataset, folder):
    """Training and validation documents, which must be disjoint and both be there."""
    train, validation = list(documents(dataset, folder)), list(documents(dataset, folder, "validation"))
    assert train and validation and not [document for document in validation if document in train]
    return train + validation


def refusal(dataset, folder, split="train") -> str:
    with pytest.raises(UserError) as raised:
        list(documents(dataset, folder, split))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows, **settings) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pyarrow.Table.from_pylist(rows), buffer, **settings)
    return buffer.getvalue()


def csv_text(rows) -> bytes:
    return ("title,body,n\r\n" + "".join(f'"{row["title"]}","{row["body"]}",{row["n"]}\r\n' for row in rows)).encode()


def zst(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


# ---------------------------------------------------------------- what is held out


def test_every_block_of_documents_has_its_share_at_a_place_of_its_own():
    picks = list(islice(held_out_documents("a", 0.1), 1000))
    assert [pick // 10 for pick in picks] == list(range(1000))
    assert {pick % 10 for pick in picks} == set(range(10))
    assert picks == list(islice(held_out_documents("a", 0.1), 1000)) != list(islice(held_out_documents("b", 0.1), 1000))
    third = list(islice(held_out_documents("a", 0.3), 300))
    assert all(a < b for a, b in zip(third, third[1:])) and abs(third[-1] - 1000) < 5


def test_the_ways_to_hold_out(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "held.jsonl").write_bytes(jsonl({"body": f"other {i}"} for i in range(9)))
    body = [row["body"] for row in ROWS]

    fraction = spec(files="a.jsonl", text="body", validation={"fraction": 0.1})
    held = texts(fraction, tmp_path, "validation")
    assert len(held) == 5 and texts(fraction, tmp_path) == [text for text in body if text not in held]
    few = spec(files="a.jsonl", text="body", validation={"fraction": 0.1, "max_documents": 2})
    assert texts(few, tmp_path, "validation") == held[:2] and texts(few, tmp_path) == [
        text for text in body if text not in held[:2]
    ]
    capped = spec(files="a.jsonl", text="body", max_documents=20, validation={"fraction": 0.1})
    assert texts(capped, tmp_path, "validation") == held[:2] and len(texts(capped, tmp_path)) == 18

    skip = spec(files="a.jsonl", text="body", max_documents=10, validation={"skip": 15, "documents": 4})
    assert texts(skip, tmp_path) == body[:10] and texts(skip, tmp_path, "validation") == body[25:29]
    beyond = spec(files="a.jsonl", text="body", max_documents=10, validation={"skip": 400, "documents": 4})
    assert "no documents to validate on" in refusal(beyond, tmp_path, "validation")

    own = spec(files="a.jsonl", text="body", validation={"files": "held.jsonl", "max_documents": 3})
    assert texts(own, tmp_path) == body and texts(own, tmp_path, "validation") == ["other 0", "other 1", "other 2"]


# ---------------------------------------------------------------- the standard library


def test_the_embedded_text_is_the_standard_librarys_own():
    dataset = spec(embedded="python")
    found = everything(dataset, Path())
    assert found == everything(dataset, Path())
    assert sum(len(document[0][0].encode()) for document in found) > 5_000_000
    library = Path(sysconfig.get_paths()["stdlib"])
    all_texts = {document[0][0] for document in found}
    for name in ("ast.py", "json/decoder.py", "this.py"):
        assert (library / name).read_text() in all_texts
    assert not any("import turtle\n" in text and "turtledemo" in text.lower() for text in all_texts)
    for text in list(all_texts)[:20]:
        ast.parse(text)


# ---------------------------------------------------------------- text files


def test_one_book_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
    paragraphs = [
        f"Paragraph {i}. " + "Some words, and more of them.\n" * (1 + i % 7) + "\n" * (1 + i % 3) for i in range(3000)
    ]
    (tmp_path / "book.txt").write_text("".join(paragraphs))
    found = texts(all_of(tmp_path, files="book.txt"), tmp_path)
    assert "".join(found) == "".join(paragraphs)
    size = len("".join(paragraphs)) // 200
    assert 100 < len(found) <= 200 and max(map(len, found)) < 2 * size
    assert all(text.startswith("Paragraph") and text.endswith("\n\n") for text in found)
    everything(spec(files="book.txt"), tmp_path)


def test_text_without_blank_lines_or_any_line_ends(tmp_path):
    lines = "".join(f"line {i} of many\n" for i in range(20000))
    (tmp_path / "lines.txt").write_text(lines)
    (tmp_path / "words.txt").write_text("word " * 60000)
    (tmp_path / "letters.txt").write_text("x" * 300000)
    for name, end in [("lines.txt", "\n"), ("words.txt", " "), ("letters.txt", "x")]:
        found = texts(all_of(tmp_path, files=name), tmp_path)
        assert "".join(found) == (tmp_path / name).read_text() and 90 < len(found) < 210
        assert all(text.endswith(end) for text in found)


def test_small_files_among_many_stay_whole(tmp_path):
    for i in range(300):
        (tmp_path / f"{i:03}.txt").write_text(f"file {i}\n\n" + "word " * (i % 5))
    found = texts(all_of(tmp_path, files="*.txt"), tmp_path)
    assert found == [(tmp_path / f"{i:03}.txt").read_text() for i in range(300)]


def test_line_ends_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\r\n".encode())
    assert texts(all_of(tmp_path, files="a.txt"), tmp_path) == ["one\ntwo\n"]


# ---------------------------------------------------------------- tables, compressed or not


@pytest.mark.parametrize(
    "compress, suffix",
    [(bytes, ""), (gzip.compress, ".gz"), (bz2.compress, ".bz2"), (lzma.compress, ".xz"), (zst, ".zst")],
)
@pytest.mark.parametrize("write, kind", [(jsonl, "jsonl"), (parquet, "parquet"), (csv_text, "csv")])
def test_tables_give_the_same_documents_in_every_format(tmp_path, write, kind, compress, suffix):
    (tmp_path / f"a.{kind}{suffix}").write_bytes(compress(write(ROWS)))
    dataset = spec(files=f"a.{kind}{suffix}", text=["title", "body"])
    assert sorted(everything(dataset, tmp_path)) == sorted([(f"T{i}\n\ntext number {i} é😀", True)] for i in range(50))


@pytest.mark.parametrize(
    "compress, suffix", [(gzip.compress, ".gz"), (bz2.compress, ".bz2"), (lzma.compress, ".xz"), (zst, ".zst")]
)
def test_compressed_text(tmp_path, compress, suffix):
    (tmp_path / f"a.txt{suffix}").write_bytes(compress("eins\n\nzwei ß\n".encode()))
    assert texts(all_of(tmp_path, files=f"a.txt{suffix}"), tmp_path) == ["eins\n\nzwei ß\n"]


def test_files_are_found_in_the_plans_folder_then_in_the_working_folder(tmp_path, monkeypatch):
    here, plans = tmp_path / "here", tmp_path / "plans"
    for folder, word in [(here, "here"), (plans, "plan")]:
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "both.txt").write_text(word)
    (here / "deep" / "er" / "only.txt").write_text("only")
    (here / "odd[1].txt").write_text("odd")
    monkeypatch.chdir(here)
    assert texts(all_of(plans, files=["both.txt", "**/only.txt", "odd[1].txt", "b*.txt"]), plans) == [
        "plan",
        "only",
        "odd",
    ]
    assert refusal(spec(files="no*.txt"), plans) == "dataset 'd': no file matches 'no*.txt'"
    assert texts(all_of(plans, files=["deep"]), plans) == ["only"]


def test_the_origin_follows_the_files(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    dataset = spec(files="a.txt")
    first = origin(dataset, tmp_path)
    assert first == origin(dataset, tmp_path)
    file.write_text("three")
    assert origin(dataset, tmp_path) != first
    assert origin(spec(embedded="python"), tmp_path) == origin(spec(embedded="python"), Path())


# ---------------------------------------------------------------- fields


def documents_of(tmp_path, row, **fields):
    (tmp_path / "a.jsonl").write_bytes(jsonl([row]))
    return list(documents(all_of(tmp_path, files="a.jsonl", **fields), tmp_path))


def test_prompt_and_answer(tmp_path):
    row = {"system": "Be brief.", "question": "Why?", "answer": "Because."}
    assert documents_of(tmp_path, row, prompt=["system", "question"], answer="answer") == [
        [("Be brief.\nWhy?\n\n", False), ("Because.", True)]
    ]
    assert documents_of(
        tmp_path, row | {"system": "", "question": None}, prompt=["system", "question"], answer="answer"
    ) == [[("Because.", True)]]


def test_a_conversation_scores_the_assistant(tmp_path):
    turns = [
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", "Hello!"),
        ("user", "Bye"),
        ("assistant", "Bye."),
        ("user", "Still there?"),
    ]
    row = {"turns": [{"role": role, "content": content} for role, content in turns]}
    assert documents_of(tmp_path, row, messages="turns") == [
        [
            ("System: Be kind.\n\nUser: Hi\n\nAssistant: ", False),
            ("Hello!", True),
            ("\n\nUser: Bye\n\nAssistant: ", False),
            ("Bye.", True),
        ]
    ]


def test_rows_without_text_are_left_out_and_broken_characters_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": ""}\n\n{"text": null}\n{"text": "  "}\n{"text": "half \\ud83d pair"}\n{"text": "\\ud83d\\ude00"}\n'
    )
    found = texts(all_of(tmp_path, files="a.jsonl"), tmp_path)
    assert found == ["half \ufffd pair", "😀"]
    (tmp_path / "a.jsonl").write_bytes(b'{"text": ""}\n')
    assert "no documents to train on" in refusal(spec(files="a.jsonl"), tmp_path)


# ---------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.txt", b"", "{file}: the data file is empty"),
        ("a.jsonl", b"", "{file}: the data file is empty"),
        ("a.txt", b"text\n\0\0\1binary", "{file}: is not text (it has NUL bytes)"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\xff\xd8", "{file}: is not UTF-8 text"),
        ("a.txt", "größe".encode("latin-1"), "{file}: is not UTF-8 text"),
        ("a.txt", " \n \n".encode(), "dataset 'd': no documents to train on"),
        ("a.txt.gz", gzip.compress(b"word " * 9999, mtime=0)[:-30], "{file}: the compressed file is cut short"),
        ("a.txt.gz", b"no gzip at all", "{file}: can't be read (Not a gzipped file"),
        ("a.txt.bz2", bz2.compress(b"word " * 9999)[:-10], "{file}: the compressed file is cut short"),
        ("a.txt.bz2", b"no bzip at all", "{file}: can't be read (Invalid data stream)"),
        ("a.txt.xz", b"no xz at all", "{file}: the compressed file is damaged"),
        ("a.txt.zst", b"no zstd at all", "{file}: can't be read ("),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', "{file}:2: not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n["b"]\n', "{file}:2: each line must be a JSON object, this one is a list"),
        (
            "a.jsonl",
            b'{"text": "a"}\n{"txt": "b"}\n',
            "{file}:2: dataset 'd' wants the column 'text', which is not there. Did you mean 'txt'?",
        ),
        ("a.jsonl", b'{"text": 5}\n', "{file}:1: the column 'text' holds a whole number, not text"),
        ("a.jsonl", b'{"text": "\xff"}\n', "{file}: is not UTF-8 text"),
        ("a.csv", b"text,n\na,1\nb\n", "{file}:3: has 1 columns, the header has 2"),
        (
            "a.csv",
            b"test,n\na,1\n",
            "{file}:2: dataset 'd' wants the column 'text', which is not there. Did you mean 'test'?",
        ),
        ("a.csv", b'text,n\n"a,1\n', "{file}: damaged csv ("),
        ("a.parquet", parquet([{"text": "a" * 999}])[:-300], "{file}: can't be read ("),
        ("a.parquet", b"no parquet at all, but long enough to be", "{file}: can't be read ("),
        (
            "a.parquet",
            parquet([{"txt": "a"}]),
            "{file}: dataset 'd' wants the column 'text', which is not there. Did you mean 'txt'?",
        ),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    assert refusal(all_of(tmp_path, files=name), tmp_path).startswith(said.format(file=tmp_path / name))


def test_a_damaged_page_inside_a_parquet_file(tmp_path):
    content = bytearray(parquet([{"text": os.urandom(500).hex()} for _ in range(2000)], compression="snappy"))
    content[500_000:501_000] = bytes(1000)
    (tmp_path / "a.parquet").write_bytes(content)
    dataset = all_of(tmp_path, files="a.parquet")
    try:
        found = texts(dataset, tmp_path)
    except UserError as error:
        assert str(error).startswith(str(tmp_path / "a.parquet"))
    else:  # snappy has no checksum: damage inside a literal is not seen
        assert len(found) == 2000


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.txt").chmod(0)
    assert "can't be read (Permission denied)" in refusal(spec(files="a.txt"), tmp_path)


@pytest.mark.parametrize(
    "messages, said",
    [
        ("hi", "the column 'm' holds a text, not a list of messages"),
        ([{"role": "user"}, {"content": "x"}], "message 2 is not an object with the texts 'role' and 'content'"),
        ([["user", "hi"]], "message 1 is not an object"),
    ],
)
def test_bad_conversations(tmp_path, messages, said):
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"m": messages}]))
    assert said in refusal(all_of(tmp_path, files="a.jsonl", messages="m"), tmp_path)


@pytest.mark.process
def test_without_pyarrow_the_extra_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(parquet(ROWS))
    code = (
        "import sys; sys.modules['pyarrow'] = None; sys.modules['datasets'] = None\n"
        + CLIENT
        + "said(files='a.parquet', text='body'); said(hub='x/y')"
    )
    result = client(code, tmp_path)
    assert result == [
        "a.parquet: reading this kind of file needs pyarrow: pip install 'lmplay[hub]'",
        "dataset 'd' is on the hub, for which the package datasets is needed: pip install 'lmplay[hub]'",
    ]


# ---------------------------------------------------------------- the hub

CLIENT = """
import json, sys
from pathlib import Path
from lmplay.data.json_checks import Checked
from lmplay.data.plans import read_dataset
from lmplay.data.documents import documents
from lmplay.errors import UserError
def read(part="train", limit=None, **content):
    from itertools import islice
    dataset = read_dataset(Checked("p", {"validation": {"fraction": 0.1}} | content), "d")
    return [document[0][0] for document in islice(documents(dataset, Path(), part), limit)]
def said(part="train", **content):
    try:
        read(part, **content)
        print(json.dumps("nothing"))
    except UserError as error:
        print(json.dumps(str(error)))
def show(*values):
    print(json.dumps(values))
def documents_of(split, **content):
    from lmplay.data.hub import hub_size
    size = hub_size(read_dataset(Checked("p", content), "d"), split)
    return size and size.documents
"""

CARD = b"""---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/train-*
  - split: test
    path: en/test-*
- config_name: es
  data_files:
  - split: train
    path: es/train-*
---
"""

SIZED = b"""---
dataset_info:
  splits:
  - name: train
    num_bytes: 1000
    num_examples: 400
  download_size: 2000000
  dataset_size: 1000
---
"""


def client(code, folder, hub=None, **variables):
    """Return what a new Python prints, JSON by lines: the hub's address is fixed when its library is imported."""
    environment = {**os.environ, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", **variables}
    environment.pop("HF_HUB_OFFLINE", None)
    if hub:
        environment["HF_ENDPOINT"] = hub
    result = subprocess.run(
        [sys.executable, "-c", code if CLIENT in code else CLIENT + code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def table(word, count, start=0):
    return parquet(
        [{"text": f"{word} {i}", "noise": os.urandom(2000).hex()} for i in range(start, start + count)],
        row_group_size=100,
    )


@pytest.fixture(scope="module")
def repositories():
    main = {
        "README.md": CARD,
        "en/train-0.parquet": table("one", 400),
        "en/train-1.parquet": table("one", 400, 400),
        "en/test-0.parquet": table("test", 20),
        "es/train-0.parquet": table("uno", 30),
    }
    old = {**main, "en/train-0.parquet": table("old", 400)}
    lines = {"train.jsonl": jsonl({"text": f"line {i}"} for i in range(50))}
    sized = {"README.md": SIZED, "train-0.parquet": table("one", 400)}
    return {
        "who/text": {"main": main, "v1": old},
        "who/lines": {"main": lines},
        "who/gated": {"main": main},
        "who/sized": {"main": sized},
    }


@pytest.mark.process
@pytest.mark.parametrize("stream", first(1, [True, False]))
@pytest.mark.thorough
def test_the_hub_gives_config_split_and_revision(tmp_path, repositories, stream):
    with HubServer(repositories, gated=("who/gated",)) as hub:
        train, held, test, skipped, beyond, old, spanish, lines, *refused = client(
            f"""
source = dict(hub="who/text", config="en", stream={stream})
for split in ("train", "validation"):
    show(*read(split, **source))
show(*read("validation", **source | dict(validation={{"split": "test", "max_documents": 5}})))
show(*read("validation", **source | dict(max_documents=100, validation={{"skip": 450, "documents": 7}})))
said("validation", **source | dict(max_documents=790, validation={{"skip": 50, "documents": 7}}))
show(*read(limit=3, **source, revision="v1"))
show(*read(**source | dict(config="es")))
show(*read(hub="who/lines", stream={stream}))
said(**source | dict(config="fr"))
said(**source | dict(split="nope"))
said(**source, revision="v2")
said(**source | dict(hub="who/nobody"))
said(**source | dict(hub="who/gated"))
said(**source, text="txt")
""",
            tmp_path,
            hub.url,
        )
    assert len(held) == 80 and sorted(train + held) == sorted(f"one {i}" for i in range(800))
    assert test == [f"test {i}" for i in range(5)]
    assert skipped == [f"one {i}" for i in range(550, 557)]
    assert "no documents to validate on" in beyond
    assert all(text.startswith("old") for text in old)
    assert len(spanish) == 27 and all(text.startswith("uno") for text in spanish)
    assert len(lines) == 45
    config, split, revision, unknown, gated, column = refused
    assert "'fr' not found" in config and "'en', 'es'" in config
    assert "split" in split and "nope" in split and "'train', 'test'" in split
    assert "Revision" in revision and "v2" in revision
    assert "'who/nobody' doesn't exist on the Hub or cannot be accessed" in unknown
    assert "is gated: accept its terms at" in gated
    assert column == "dataset 'd': who/text has no column 'txt'. Did you mean 'text'?"


@pytest.mark.process
def test_only_what_is_needed_is_downloaded(tmp_path, repositories):
    with HubServer(repositories) as hub:
        code = (
            "show(*(documents_of(split, hub=name) for split in ('train', 'test') for name in ('who/sized', 'no/one')))"
        )
        (sizes,) = client(f"read(hub='who/text', config='en')\n{code}", tmp_path, hub.url)
        assert sizes == [400, None, None, None] and "train-0.parquet" not in hub.sent_bytes
        assert not any("/es/" in path for _, path in hub.requests)
        hub.sent_bytes.clear()
        # past the first file: its footer is read, not its rows
        (rows,) = client(
            """show(*read("validation", hub="who/text", config="en", stream=True, max_documents=100,
                               validation={"skip": 350, "documents": 5}))""",
            tmp_path,
            hub.url,
        )
        assert rows == [f"one {i}" for i in range(450, 455)]
        assert (
            0 < hub.sent_bytes["en/train-0.parquet"] < len(repositories["who/text"]["main"]["en/train-0.parquet"]) / 5
        )


PREPARED_UNTIL = """
from lmplay.data import encoding, store_files
from lmplay.data.prepare import SplitDocuments
from lmplay.data.store_writer import build
from lmplay.data.tokenizers import load_tokenizer
store_files.COMMIT_TOKENS, store_files.COMMIT_SECONDS = 1, 0
encoding.IN_PROCESS_CHARACTERS, encoding.BATCH_CHARACTERS = 1, 200
class Stopping(SplitDocuments):
    def _from(self, spec, first_row):
        for document in super()._from(spec, first_row):
            if self.bookmark[0] >= self.stop:
                raise KeyboardInterrupt
            yield document
def prepared(name, stop=10**9, split="train"):
    spec = read_dataset(Checked("p", {"validation": {"fraction": 0.1}, "hub": "who/text", "config": "en",
                                      "stream": True}), "d")
    source = Stopping(spec, Path(), split)
    source.stop = stop
    try:
        return build(Path(name), source, load_tokenizer("bytes"), progress=True, label=name).hash
    except KeyboardInterrupt:
        return None
"""


@pytest.mark.process
def test_a_stream_goes_on_without_what_was_read(tmp_path, repositories):
    with HubServer(dict(repositories)) as hub:
        code = """show(prepared('whole'), prepared('held', split='validation'))
show(prepared('t', 700), prepared('v', 700, 'validation'), prepared('changed', 300))"""
        (whole, held), stopped = client(PREPARED_UNTIL + code, tmp_path, hub.url)
        assert stopped == [None, None, None]
        hub.sent_bytes.clear()
        (after,) = client(PREPARED_UNTIL + "show(prepared('t'), prepared('v', split='validation'))", tmp_path, hub.url)
        assert after == [whole, held]
        size = len(repositories["who/text"]["main"]["en/train-0.parquet"])
        assert 0 < hub.sent_bytes["en/train-0.parquet"] < size / 5  # the footers
        # what the last document was is another one now: all is read anew
        files = hub.repositories["who/text"]["main"]
        hub.repositories["who/text"] = {"main": {**files, "en/train-0.parquet": table("new", 400)}}
        (after,) = client(PREPARED_UNTIL + "show(prepared('changed'), prepared('new'))", tmp_path, hub.url)
        assert after[0] == after[1] != whole


@pytest.mark.process
@pytest.mark.parametrize("stream", first(1, [False, True]))
def test_a_download_that_breaks_off_is_resumed(tmp_path, repositories, stream):
    with HubServer(repositories) as hub:
        hub.break_off("en/train-0.parquet", after=30_000, times=2)
        (rows,) = client(f"show(*read(hub='who/text', config='en', stream={stream}))", tmp_path, hub.url)
        assert len(rows) == 720
        assert hub.allowed("en/train-0.parquet", 10**9) == 10**9  # both breaks have been


@pytest.mark.process
@pytest.mark.thorough
def test_a_download_that_cannot_be_ended_is_said_and_done_the_next_time(tmp_path, repositories):
    with HubServer(repositories) as hub:
        hub.break_off("en/train-1.parquet", after=50, times=10**6)
        (message,) = client("said(hub='who/text', config='en')", tmp_path, hub.url)
        assert (
            message.startswith("dataset 'd' (who/text on the hub): the download broke off (")
            and "type the command again" in message
        )
        hub.break_off("en/train-1.parquet", after=0, times=0)
        hub.sent_bytes.clear()
        (rows,) = client("show(*read(hub='who/text', config='en'))", tmp_path, hub.url)
        assert len(rows) == 720 and "en/train-0.parquet" not in hub.sent_bytes


@pytest.mark.process
def test_without_a_hub_the_message_names_what_works_and_what_was_downloaded_is_read(tmp_path, repositories):
    with HubServer(repositories) as hub:
        client("read(hub='who/text', config='es')", tmp_path, hub.url)
    again, *refused = client(
        """
show(*read(hub='who/text', config='es'))
said(hub='who/other')
said(hub='who/other', stream=True)
said(hub='who/text', config='es', revision='v1')
""",
        tmp_path,
        hub.url,
    )
    assert len(again) == 27 and len(refused) == 3
    for message in refused:
        assert (
            f"{hub.url} cannot be reached" in message
            and "the plan quick, --data FILE" in message
            and "\n" not in message
        )
