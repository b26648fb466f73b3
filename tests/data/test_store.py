"""The token store: real tokenizers, real processes, real kills, a really full disk."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lmplay.data import encoding, store_files
from lmplay.data.store import TokenStore
from lmplay.data.store_writer import build
from lmplay.data.tokenizer_training import train_tokenizer
from lmplay.data.tokenizers import load_tokenizer
from lmplay.errors import UserError
from support.thorough import first

BYTES = load_tokenizer("bytes")
TEXTS = ["first document", "zweites, länger: äöü", "", "日本語 4", "x", "fifth " * 20]
CONVERSATION = [("Q: one?", False), (" A", True), (" Q: two?", False), (" Bé", True)]


def plain(texts):
    return [[(text, True)] for text in texts]


def reference(documents, tokenizer):
    """Tokens, scored, offsets and bytes of documents, the plain way."""
    tokens, scored, offsets, n_bytes = [], [], [0], []
    for document in documents:
        if not any(text for text, _ in document):
            continue
        for text, is_scored in document:
            ids = tokenizer.encode(text)
            tokens += ids
            scored += [is_scored] * len(ids)
        tokens.append(tokenizer.eot)
        scored.append(document[-1][1])
        offsets.append(len(tokens))
        n_bytes.append(sum(len(text.encode()) for text, is_scored in document if is_scored))
    return np.array(tokens), np.array(scored), np.array(offsets), np.array(n_bytes)


def check_equal(store, documents, tokenizer):
    tokens, scored, offsets, n_bytes = reference(documents, tokenizer)
    assert store.tokens(0, store.n_tokens).dtype == np.int64
    np.testing.assert_array_equal(store.tokens(0, store.n_tokens), tokens)
    np.testing.assert_array_equal(store.document_offsets, offsets)
    np.testing.assert_array_equal(store.bytes_between(offsets[:-1], offsets[1:]), n_bytes)
    assert (store.n_tokens, store.n_documents, store.n_bytes) == (len(tokens), len(n_bytes), n_bytes.sum())
    for start in range(0, len(tokens), 3):
        for stop in range(start, min(start + 40, len(tokens)) + 1, 5):
            mask = store.scored(start, stop)
            assert (mask is None) == scored[start:stop].all()
            if mask is not None:
                np.testing.assert_array_equal(mask, scored[start:stop])


def test_a_store_holds_what_the_documents_say(tmp_path):
    documents = plain(TEXTS)
    store = build(tmp_path / "s", documents, BYTES)
    check_equal(store, documents, BYTES)
    assert store.scored(0, store.n_tokens) is None
    check_equal(TokenStore.open(tmp_path / "s"), documents, BYTES)


def test_prompts_are_not_scored(tmp_path):
    documents = plain(TEXTS) + [
        CONVERSATION,
        [("only prompt", False)],
        [("", False), ("answer", True)],
        [("prompt", False), ("", True)],
        [("scored", True), ("end not", False)],
        [("begins not", False), ("then", True)],
    ]
    check_equal(build(tmp_path / "s", documents, BYTES), documents, BYTES)


@pytest.mark.parametrize("n_ids, dtype", [(300, "uint16"), (None, "uint32")])
def test_token_type_follows_the_vocabulary(tmp_path, n_ids, dtype):
    text = " ".join(f"word{k} and {k * k}" for k in range(3000))
    if n_ids:
        tokenizer = train_tokenizer({"train": "bpe", "vocab_size": n_ids}, [text], tmp_path / "tokenizer")
    else:  # one of many ids, made of the 256 bytes and every pair of them: its largest ids do not fit 16 bits
        import base64

        (tmp_path / "tokenizer").mkdir()
        tokens = [bytes([a]) for a in range(256)] + [bytes([a, b]) for a in range(256) for b in range(256)]
        (tmp_path / "tokenizer" / "ranks.tiktoken").write_text(
            "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))
        )
        (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps({"pattern": r"[\s\S]+"}))
        tokenizer = load_tokenizer(f"bpe:{tmp_path / 'tokenizer'}")
        assert tokenizer.vocab_size == 65793
    documents = plain([text, "a second one"])
    store = build(tmp_path / "s", documents, tokenizer)
    assert store.dtype == np.dtype(dtype)
    tokens = reference(documents, tokenizer)[0]
    np.testing.assert_array_equal(store.tokens(0, store.n_tokens), tokens)
    assert sum(file.stat().st_size for file in store.folder.glob("tokens_*")) == len(tokens) * np.dtype(dtype).itemsize
    assert tokens.max() == tokenizer.eot == store.eot == tokenizer.vocab_size - 1


def test_reads_cross_the_borders_of_shards(tmp_path, monkeypatch):
    documents = plain(TEXTS) * 3
    whole = build(tmp_path / "whole", documents, BYTES)
    monkeypatch.setattr(store_files, "SHARD_TOKENS", 50)
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 30)
    sharded = build(tmp_path / "sharded", documents, BYTES)
    assert len(list(sharded.folder.glob("tokens_*"))) == -(-whole.n_tokens // 50) > 3
    for start in range(0, whole.n_tokens, 7):
        for stop in (start, start + 1, min(start + 120, whole.n_tokens), whole.n_tokens):
            np.testing.assert_array_equal(sharded.tokens(start, stop), whole.tokens(start, stop))
    assert sharded.hash == whole.hash  # of the content, however it lies on the disk
    with pytest.raises(IndexError):
        sharded.tokens(0, whole.n_tokens + 1)


def test_bytes_between_is_linear_over_scored_tokens_and_adds_up(tmp_path):
    prompts = [[("why? ", False), ("so", True)], [("a", True), (" b? ", False), ("c", True), ("never", False)]]
    documents = prompts + plain(TEXTS) + [CONVERSATION] + prompts
    store = build(tmp_path / "s", documents, BYTES)
    _, scored, offsets, n_bytes = reference(documents, BYTES)
    expected = [0.0]
    for start, stop, n in zip(offsets, offsets[1:], n_bytes):
        share = n / scored[start:stop].sum()
        expected += (expected[-1] + np.cumsum(scored[start:stop] * share)).tolist()
    expected = np.array(expected)
    positions = np.arange(store.n_tokens + 1)
    np.testing.assert_allclose(store.bytes_between(np.zeros_like(positions), positions), expected, rtol=1e-12)
    starts, stops = positions[:-10], positions[10:]
    np.testing.assert_allclose(store.bytes_between(starts, stops), expected[10:] - expected[:-10], rtol=1e-9)
    assert store.bytes_between(offsets[:-1], offsets[1:]) == pytest.approx(n_bytes)
    first = [next((i for i in range(a, b) if scored[i]), b) for a, b in zip(offsets, offsets[1:])]
    np.testing.assert_array_equal(store.first_scored(offsets[:-1], offsets[1:]), first)


def test_processes_change_nothing_but_the_speed(tmp_path):
    """Above the in-process limit, so that workers are really started; the last batch is a partial one."""
    documents = [[(f"{k} prompt ", False), (chr(97 + k % 26) * 40_000, True)] for k in range(450)]
    assert sum(len(text) for document in documents for text, _ in document) > encoding.IN_PROCESS_CHARACTERS
    one, two = (build(tmp_path / str(n), documents, BYTES, processes=n) for n in (1, 2))
    assert one.hash == two.hash
    for file in one.folder.iterdir():
        assert file.read_bytes() == (two.folder / file.name).read_bytes()


@pytest.mark.parametrize("max_tokens, n_documents", [(1, 1), (10, 1), (29, 2), (30, 3), (44, 4), (59, 5), (10_000, 6)])
def test_max_tokens_keeps_whole_documents(tmp_path, max_tokens, n_documents, monkeypatch):
    texts = ["a" * 9, "b" * 9, "c" * 9, "d" * 13, "e" * 14, "f" * 14]
    assert [len(text) + 1 for text in texts] == [10, 10, 10, 14, 15, 15]
    for batch in (1, 10**6):
        monkeypatch.setattr(encoding, "BATCH_CHARACTERS", batch)
        store = build(tmp_path / str(batch), plain(texts), BYTES, max_tokens=max_tokens)
        check_equal(store, plain(texts[:n_documents]), BYTES)


def test_max_tokens_stops_reading_the_source(tmp_path):
    def endless():
        while True:
            yield [("x" * 1000, True)]

    assert build(tmp_path / "s", endless(), BYTES, max_tokens=5 * 1001 + 500).n_documents == 5


def test_the_hash_is_of_the_content(tmp_path):
    def hash_of(documents):
        folder = tmp_path / hashlib.sha1(repr(documents).encode()).hexdigest()
        shutil.rmtree(folder, ignore_errors=True)
        return build(folder, documents, BYTES).hash

    base = plain(["one", "two"])
    assert hash_of(base) == hash_of(base)
    others = [
        plain(["one", "twp"]),
        plain(["two", "one"]),
        plain(["one"]),
        [[("one", True)], [("two", False)]],
        [[("one", False)], [("two", True)]],
    ]
    assert len({hash_of(documents) for documents in [base, *others]}) == len(others) + 1


def test_a_store_without_documents_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="plan p, dataset d: no document"):
        build(tmp_path / "s", plain(["", ""]), BYTES, label="plan p, dataset d")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_an_error_of_the_source_leaves_nothing(tmp_path):
    def broken():
        yield [("text", True)]
        raise UserError("line 2 is no JSON")

    with pytest.raises(UserError, match="line 2"):
        build(tmp_path / "s", broken(), BYTES)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert build(tmp_path / "s", plain(["text"]), BYTES).n_documents == 1


@pytest.mark.parametrize(
    "name", ["tokens_00000.bin", "document_offsets.bin", "byte_offsets.bin", "unscored.bin", "meta.json"]
)
@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_a_damaged_store_is_one_clear_line(tmp_path, name, how):
    folder = build(tmp_path / "s", [CONVERSATION], BYTES).folder
    if how == "missing":
        (folder / name).unlink()
    else:
        os.truncate(folder / name, (folder / name).stat().st_size - 1)
        if name == "meta.json":
            os.truncate(folder / name, 20)
    with pytest.raises(UserError, match="type the command again, it is prepared anew") as error:
        TokenStore.open(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


BUILDER = """
import sys
from pathlib import Path
from lmplay.data import encoding, store_files
from lmplay.data.store_writer import build
from lmplay.data.tokenizers import load_tokenizer

class Documents:
    def __init__(self, count, wait_after):
        self.count, self.wait_after = count, wait_after

    def __iter__(self):
        for k in range(self.count):
            if k == self.wait_after:
                print("waiting", flush=True)
                sys.stdin.readline()
            yield [(f"{k} " + "x" * 40_000, True)]

if __name__ == "__main__":
    folder, count, wait_after, processes, commit = sys.argv[1], *map(int, sys.argv[2:])
    if commit:
        store_files.COMMIT_TOKENS, store_files.COMMIT_SECONDS = commit, 0
        encoding.IN_PROCESS_CHARACTERS = 1_000_000
    source, tokenizer = Documents(count, wait_after), load_tokenizer("bytes")
    print(build(Path(folder), source, tokenizer, processes=processes, label="d", progress=True).hash, flush=True)
"""


def start_builder(tmp_path, folder, count, wait_after, processes, commit=0):
    script = tmp_path / "builder.py"
    script.write_text(BUILDER)
    return subprocess.Popen(
        [sys.executable, script, folder, str(count), str(wait_after), str(processes), str(commit)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def children(pid):
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def wait_until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


class Source:
    """Documents that can be read again. The first reading ends after `stop` of them with `error`."""

    def __init__(self, documents, stop, error):
        self.documents, self.stop, self.error = documents, stop, error

    def __iter__(self):
        for k, document in enumerate(self.documents):
            if k == self.stop:
                self.stop = None
                raise self.error
            yield document


MIXED = [document for k in range(12) for document in ([(f"{k} " + "a" * 3 * k, True)], [("", True)], CONVERSATION)]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def often(monkeypatch):
    """How far it is is noted after every few documents, and shards are small."""
    monkeypatch.setattr(store_files, "COMMIT_TOKENS", 1)
    monkeypatch.setattr(store_files, "COMMIT_SECONDS", 0)
    monkeypatch.setattr(store_files, "SHARD_TOKENS", 100)
    monkeypatch.setattr(encoding, "IN_PROCESS_CHARACTERS", 1)  # a first part is held until it is so large
    monkeypatch.setattr(encoding, "BATCH_CHARACTERS", 30)


def interrupted(folder, documents, stop, error=KeyboardInterrupt, **more):
    """Build until the source ends in an error; return the source, which goes on from there."""
    source = Source(documents, stop, error)
    with pytest.raises(error):
        build(folder, source, BYTES, **more)
    assert not folder.exists()
    return source


@pytest.mark.parametrize("stop", [7, 20, 35])
@pytest.mark.parametrize("max_tokens", [None, 300])
def test_what_was_interrupted_goes_on(tmp_path, often, capfd, stop, max_tokens):
    whole = build(tmp_path / "whole", MIXED, BYTES, max_tokens=max_tokens)
    if max_tokens and stop > 30:
        return  # it is whole by then
    source = interrupted(tmp_path / "s", MIXED, stop, max_tokens=max_tokens)
    (tmp_path / ".s.partial" / "tokens_00099.bin").write_bytes(b"written after the last note")
    store = build(tmp_path / "s", source, BYTES, max_tokens=max_tokens, progress=True, label="d")
    assert contents(store.folder) == contents(whole.folder)
    assert "d: goes on after" in capfd.readouterr().err
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize("what", first(3, ["text", "damage", "one shot", "scored", "shorter", "max_tokens", "made_by"]))
def test_what_has_changed_is_prepared_anew(tmp_path, often, capfd, what):
    source = interrupted(tmp_path / "s", MIXED, 24)
    more, documents = {}, list(MIXED)
    if what == "text":
        documents[3] = [("others", True)]
    elif what == "scored":
        documents[3] = [(documents[3][0][0], False)]
    elif what == "shorter":
        documents = documents[:9]
    elif what == "damage":
        path = tmp_path / ".s.partial" / "tokens_00001.bin"
        path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    elif what != "one shot":
        more = {what: {"made_by": {"other": 1}, "max_tokens": 10_000}[what]}
    source.documents = documents
    whole = build(tmp_path / "whole", documents, BYTES, **more)
    given = iter(documents) if what == "one shot" else source
    store = build(tmp_path / "s", given, BYTES, progress=True, **more)
    assert contents(store.folder) == contents(whole.folder)
    assert "goes on" not in capfd.readouterr().err


def test_what_may_be_gone_on_with_is_kept_for_a_week(tmp_path, often):
    interrupted(tmp_path / "s", MIXED, 24, error=UserError)
    build(tmp_path / "other", plain(["text"]), BYTES)
    progress = tmp_path / ".s.partial" / "progress.json"
    assert progress.exists()
    week_ago = time.time() - 8 * 24 * 3600
    os.utime(progress, (week_ago, week_ago))
    build(tmp_path / "another", plain(["text"]), BYTES)
    assert not progress.parent.exists()


class Counting(type(BYTES)):
    """Counts the texts that it encodes in this process, and no other."""

    n_texts = 0

    def encode_arrays(self, texts):
        self.n_texts += len(texts)
        return super().encode_arrays(texts)

    def __reduce__(self):
        return load_tokenizer, ("bytes",)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.process)])
def test_what_the_time_is_taken_with_is_not_encoded_twice(tmp_path, often, monkeypatch, processes):
    monkeypatch.setattr(encoding, "IN_PROCESS_CHARACTERS", 200)
    whole = build(tmp_path / "whole", MIXED, BYTES)
    counting, parts = Counting(), []
    store = build(tmp_path / "s", MIXED, counting, processes=processes, beforehand=parts.append)
    assert contents(store.folder) == contents(whole.folder)
    assert parts[0].tokens > 0 and parts[0].encode_s > 0
    n_texts = sum(len(document) for document in MIXED if any(text for text, _ in document))
    assert counting.n_texts == n_texts if processes == 1 else 0 < counting.n_texts < n_texts / 2


@pytest.mark.process
def test_a_builder_that_was_killed_is_gone_on_with(tmp_path):
    folder = tmp_path / "stores" / "s"
    with start_builder(tmp_path, folder, 150, 120, 1, commit=2**20) as builder:
        assert builder.stdout.readline() == "waiting\n"
        builder.send_signal(signal.SIGKILL)
    with start_builder(tmp_path, folder, 150, -1, 1, commit=2**20) as builder:
        said = builder.communicate()[1]
    assert 20 < int(re.search(r"d: goes on after (\d+) documents", said)[1]) < 120
    whole = build(tmp_path / "whole", plain([f"{k} " + "x" * 40_000 for k in range(150)]), BYTES)
    assert contents(folder) == contents(whole.folder)


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_a_killed_builder_leaves_nothing_that_counts(tmp_path):
    folder = tmp_path / "stores" / "s"
    with start_builder(tmp_path, folder, 900, 800, 2) as builder:
        assert builder.stdout.readline() == "waiting\n"
        workers = children(builder.pid)
        assert len(workers) >= 2  # two workers and their resource tracker
        assert (folder.parent / ".s.partial").is_dir() and not folder.exists()
        # one builder at work is left alone by the builder of another store beside it
        build(folder.parent / "other", plain(["text"]), BYTES)
        assert (folder.parent / ".s.partial").is_dir()
        builder.send_signal(signal.SIGKILL)
    assert not folder.exists()
    wait_until(
        lambda: (
            not any(
                Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
                for pid in workers
            )
        )
    )
    # the remains of the dead go with the next build of any store beside them
    build(folder.parent / "another", plain(["text"]), BYTES)
    assert not (folder.parent / ".s.partial").exists()
    with start_builder(tmp_path, folder, 900, -1, 1) as builder:
        rebuilt = builder.stdout.readline().strip()
    assert rebuilt == TokenStore.open(folder).hash
    assert TokenStore.open(folder).n_documents == 900


@pytest.mark.process
def test_two_builders_of_one_store_at_once(tmp_path):
    folder = tmp_path / "s"
    with start_builder(tmp_path, folder, 20, 10, 1) as first:
        assert first.stdout.readline() == "waiting\n"
        with start_builder(tmp_path, folder, 20, 10, 1) as second:
            assert "waiting for it" in second.stderr.readline()
            hash_of_first, _ = first.communicate("\n")
            hash_of_second, _ = second.communicate()
    assert first.returncode == second.returncode == 0
    assert hash_of_first == hash_of_second == TokenStore.open(folder).hash + "\n"
    assert "waiting" not in hash_of_second  # it read no document


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        sys.platform != "linux"
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("mounting a small disk takes root on Linux")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.process
@pytest.mark.parametrize("n_documents", [3, 100])  # both: in the last flush, and while documents still come
def test_a_full_disk_leaves_nothing(small_disk, n_documents):
    with pytest.raises(OSError) as error:
        build(small_disk / "s", plain(["x" * 500_000] * n_documents), BYTES)
    assert error.value.errno == errno.ENOSPC
    assert [path.name for path in small_disk.iterdir()] in ([], [".s.lock"])
    assert build(small_disk / "s", plain(["x" * 50_000]), BYTES).n_tokens == 50_001


@pytest.mark.thorough
@pytest.mark.process
def test_memory_does_not_grow_with_the_documents(tmp_path):
    script = tmp_path / "memory.py"
    script.write_text("""
import resource, sys
from pathlib import Path
from lmplay.data.store_writer import build
from lmplay.data.tokenizers import load_tokenizer
if __name__ == "__main__":
    documents = ([("x" * 2_000, True)] for _ in range(int(sys.argv[2])))
    build(Path(sys.argv[1]), documents, load_tokenizer("bytes"), processes=int(sys.argv[3]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
""")

    def peak(count, processes):
        ran = subprocess.run(
            [sys.executable, script, tmp_path / f"{count}_{processes}", str(count), str(processes)],
            text=True,
            capture_output=True,
            check=True,
        )
        return int(ran.stdout) * (1 if sys.platform == "darwin" else 1024)

    for processes in (1, 2):
        small, large = peak(10_000, processes), peak(50_000, processes)
        # 80 MB more text, 160 MB more of tokens
        assert large - small < 20e6, (processes, small, large)


@pytest.mark.process
def test_opening_a_gigabyte_costs_what_opening_nothing_does(tmp_path):
    """Two stores that differ in size alone; files with holes, so that they take no space."""
    script = tmp_path / "open.py"
    script.write_text("""
import resource, sys
from pathlib import Path
import numpy as np
from lmplay.data.store import TokenStore
def cost():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_minflt + used.ru_majflt
before = cost()
store = TokenStore.open(Path(sys.argv[1]))
for start in np.linspace(0, store.n_tokens - 1024, 50).astype(int):
    store.tokens(start, start + 1024)
print(cost() - before)
""")

    def page_faults(n_tokens):
        n_documents = n_tokens // 100
        folder = build(tmp_path / str(n_tokens), plain(["text"]), BYTES).folder
        meta = json.loads((folder / "meta.json").read_text())
        meta = {key: value for key, value in meta.items() if "checksum" not in key}
        (folder / "meta.json").write_text(json.dumps({**meta, "n_tokens": n_tokens, "n_documents": n_documents}))
        os.truncate(folder / "document_offsets.bin", 8 * (n_documents + 1))
        os.truncate(folder / "byte_offsets.bin", 8 * (n_documents + 1))
        (folder / "tokens_00000.bin").unlink()
        for number, begin in enumerate(range(0, n_tokens, store_files.SHARD_TOKENS)):
            (folder / f"tokens_{number:05d}.bin").touch()
            os.truncate(folder / f"tokens_{number:05d}.bin", 2 * min(n_tokens - begin, store_files.SHARD_TOKENS))
        return int(subprocess.run([sys.executable, script, folder], text=True, capture_output=True, check=True).stdout)

    # both have whole blocks of 1 MiB to check
    small, large = page_faults(5_000_000), page_faults(500_000_000)
    # a fault brings in up to 16 pages of 4 kB: walking through the 40 MB of document offsets alone would take 600
    assert large < small + 200, (small, large)


UNGUARDED = """
import sys
from pathlib import Path
from lmplay.data import encoding, store_writer
from lmplay.data.tokenizers import load_tokenizer

print("once", flush=True)
encoding.IN_PROCESS_CHARACTERS = 1_000_000
documents = ([(f"{k} " + "x" * 40_000, True)] for k in range(60))
store = store_writer.build(Path(sys.argv[1]), documents, load_tokenizer("bytes"), processes=2)
print(store.n_documents)
"""


@pytest.mark.process
def test_workers_do_not_run_the_script_again(tmp_path):
    """A script without `if __name__ == "__main__"` that prepares enough text for the pool prints once."""
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    done = subprocess.run([sys.executable, script, tmp_path / "s"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.split() == ["once", "60"], done.stderr
