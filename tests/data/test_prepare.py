"""From a plan to token stores, through real plans, files, tokenizers and processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lmplay.data.order import SampleOrder
from lmplay.data.plan_spec import PhaseSpec
from lmplay.data.plans import load_plan, plan_from_files
from lmplay.data.prepare import prepare
from lmplay.errors import UserError

STORIES = [
    f"Story {k}: " + " ".join(f"the {word} saw {k * 7 % 13} {word}s" for word in ("fox", "hen", "owl")[: 1 + k % 3])
    for k in range(200)
]


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LMPLAY_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def write_plan(folder, name="p", tokenizer="bytes", texts=STORIES, **dataset):
    folder.mkdir(exist_ok=True)
    if texts is not None:
        (folder / "stories.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    datasets = {"stories": {"files": "stories.jsonl", "validation": {"fraction": 0.1}, **dataset}}
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"tokenizer": tokenizer, "datasets": datasets, "steps": [{"datasets": ["stories"]}]}))
    return load_plan(str(path))


def texts_of(store, tokenizer):
    offsets = store.document_offsets
    return [tokenizer.decode(store.tokens(start, stop - 1)) for start, stop in zip(offsets, offsets[1:])]


def files_below(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*") if path.is_file()}


def test_a_size_asks_for_a_tokenizer_of_the_plans_own_documents(tmp_path):
    plan = write_plan(tmp_path / "p")
    asked = prepare(plan, "bpe:300", progress=False)
    same = write_plan(tmp_path / "p", tokenizer={"train": "bpe", "vocab_size": 300})
    assert asked.hash == prepare(same, progress=False).hash and asked.tokenizer.vocab_size <= 300
    with pytest.raises(UserError, match="at least 259"):
        prepare(plan, "bpe:100", progress=False)


def test_training_and_validation_share_out_the_documents(tmp_path):
    prepared = prepare(write_plan(tmp_path / "p"), progress=False)
    train, validation = (
        texts_of(split["stories"], prepared.tokenizer) for split in (prepared.train, prepared.validation)
    )
    assert len(validation) == 20 and len(train) == 180
    assert sorted(train + validation) == sorted(STORIES)
    assert train == [text for text in STORIES if text in set(train)]  # in the order of the source


@pytest.mark.thorough
def test_no_window_of_the_quick_plan_holds_a_validation_document():
    plan = load_plan("quick")
    prepared = prepare(plan, progress=False)
    (name,) = plan.datasets
    train, validation = prepared.train[name], prepared.validation[name]
    heldout = set(texts_of(validation, prepared.tokenizer))
    assert len(heldout) == validation.n_documents >= 10
    assert not heldout & set(texts_of(train, prepared.tokenizer))
    # and the windows of an epoch hold the training documents' tokens, each as often as they do
    order = SampleOrder(PhaseSpec("s", [name], epochs=1.0), prepared.train, 256, seed=0)
    windows = order.windows(0, order.n_windows)
    np.testing.assert_array_equal(
        np.bincount(windows.tokens[windows.scored]), np.bincount(train.tokens(0, train.n_tokens))
    )
    assert prepared.tokenizer.vocab_size == plan.tokenizer["vocab_size"] and train.dtype == np.uint16


def test_prompts_are_context_only(tmp_path):
    rows = [{"question": f"What is {k} times {k}?", "answer": f"It is {k * k}."} for k in range(60)]
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "stories.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare(write_plan(folder, texts=None, prompt="question", answer="answer"), progress=False)
    tokenizer = prepared.tokenizer
    for store in (prepared.train["stories"], prepared.validation["stories"]):
        tokens, scored = store.tokens(0, store.n_tokens), store.scored(0, store.n_tokens)
        answers = tokenizer.decode(tokens[scored]).split("<|endoftext|>")[:-1]
        assert answers and set(answers) <= {row["answer"] for row in rows}
        assert store.n_bytes == sum(map(len, answers)) and len(answers) == store.n_documents
        questions = tokenizer.decode(tokens[~scored])
        assert questions.count("What is") == store.n_documents and "It is" not in questions


def test_the_tokenizer_learns_from_training_documents_only(tmp_path):
    """In the held-out file one word abounds; a tokenizer that had read it would know that word."""
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "heldout.txt").write_text("xylophonist " * 2000)
    training = {"train": "bpe", "vocab_size": 400}
    plan = write_plan(folder, tokenizer=training, validation={"files": "heldout.txt"})
    prepared = prepare(plan, progress=False)
    assert len(prepared.tokenizer.encode(" xylophonist")) >= 8
    (folder / "stories.jsonl").write_text(json.dumps({"text": "xylophonist " * 2000}) + "\n")
    assert len(prepare(load_plan(str(plan.path)), progress=False).tokenizer.encode(" xylophonist")) <= 2


def test_the_tokenizer_learns_from_every_dataset(tmp_path, monkeypatch):
    """Only so much text is read: it is taken from all datasets in turn."""
    from lmplay.data import tokenizer_training

    monkeypatch.setitem(tokenizer_training.TRAINING_CHARACTERS, "bpe", 20_000)
    for name, word in (("a", "xylophonist"), ("b", "marzipan")):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{(word + " ") * 10}"}}\n' * 1000)
    (tmp_path / "p.json").write_text(
        json.dumps(
            {
                "tokenizer": {"train": "bpe", "vocab_size": 300},
                "datasets": {name: {"files": f"{name}.jsonl"} for name in "ab"},
                "steps": [{"datasets": ["a", "b"]}],
            }
        )
    )
    tokenizer = prepare(load_plan(str(tmp_path / "p.json")), progress=False).tokenizer
    assert [len(tokenizer.encode(f" {word}")) for word in ("xylophonist", "marzipan")] == [1, 1]


@pytest.mark.process
def test_what_is_there_is_opened_and_the_source_not_read(tmp_path, data_folder):
    plan = write_plan(tmp_path / "p", tokenizer={"train": "bpe", "vocab_size": 300})
    first = prepare(plan, progress=False)
    made = files_below(data_folder)
    source = tmp_path / "p" / "stories.jsonl"
    before = source.stat()
    source.write_bytes(b"\xff" * before.st_size)  # reading it would fail now
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\nfrom lmplay.data.plans import load_plan\nfrom lmplay.data.prepare import prepare\n"
            "print(prepare(load_plan(sys.argv[1])).hash)\n"
            "print({'datasets', 'torch', 'tokenizers', 'pandas'} & set(sys.modules))",
            str(plan.path),
        ],
        text=True,
        capture_output=True,
        check=True,
    )
    assert ran.stdout.splitlines() == [first.hash, "set()"]
    assert files_below(data_folder) == made


def test_prepared_data_can_be_carried_elsewhere(tmp_path, data_folder, monkeypatch):
    plan = write_plan(tmp_path / "p", tokenizer={"train": "bpe", "vocab_size": 300})
    first = prepare(plan, progress=False)
    shutil.copytree(data_folder, tmp_path / "elsewhere")
    shutil.rmtree(data_folder)
    monkeypatch.setenv("LMPLAY_DATA", str(tmp_path / "elsewhere"))
    made = files_below(tmp_path / "elsewhere")
    second = prepare(plan, progress=False)
    assert second.hash == first.hash and files_below(tmp_path / "elsewhere") == made
    assert second.train["stories"].folder.is_relative_to(tmp_path / "elsewhere")


def test_the_hash_tells_data_apart_and_nothing_else(tmp_path, data_folder):
    folder = tmp_path / "p"
    plan = write_plan(folder)
    base = prepare(plan, progress=False)
    others = [
        prepare(plan, "bpe:" + trained_on(tmp_path), progress=False),
        prepare(write_plan(folder, max_documents=150), progress=False),
        prepare(write_plan(folder, validation={"fraction": 0.2}), progress=False),
        prepare(write_plan(folder, texts=STORIES[:-1] + ["another end"]), progress=False),
    ]
    assert len({prepared.hash for prepared in [base, *others]}) == 5
    # the same text from a file with another time, prepared anew by another number of processes, is the same data
    plan = write_plan(folder)
    shutil.rmtree(data_folder)
    os.utime(folder / "stories.jsonl", ns=(10**18, 10**18))
    assert prepare(plan, processes=2, progress=False).hash == base.hash


def trained_on(tmp_path):
    from lmplay.data.tokenizer_training import train_tokenizer

    train_tokenizer({"train": "bpe", "vocab_size": 300}, STORIES, tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


def test_plans_with_an_equal_dataset_share_its_store(tmp_path):
    one = prepare(write_plan(tmp_path / "p", name="one"), progress=False)
    two = prepare(write_plan(tmp_path / "p", name="two", texts=None), progress=False)
    for split in ("train", "validation"):
        assert getattr(one, split)["stories"].folder == getattr(two, split)["stories"].folder
    assert one.hash == two.hash


def test_max_tokens_caps_training_alone(tmp_path):
    capped = prepare(write_plan(tmp_path / "p", max_tokens=1000), progress=False)
    whole = prepare(write_plan(tmp_path / "p"), progress=False)
    n_tokens = capped.train["stories"].n_tokens
    longest = max(map(len, STORIES)) + 1
    assert 1000 - longest < n_tokens <= 1000
    np.testing.assert_array_equal(
        capped.train["stories"].tokens(0, n_tokens), whole.train["stories"].tokens(0, n_tokens)
    )
    assert capped.validation["stories"].hash == whole.validation["stories"].hash


@pytest.mark.parametrize("tokenizer", ["bytes", {"train": "bpe", "vocab_size": 300}])
@pytest.mark.parametrize("texts, what", [(["only one"], ""), ([" ", ""], "train"), ([], "")])
def test_a_split_without_documents_is_one_clear_line(tmp_path, data_folder, texts, what, tokenizer):
    with pytest.raises(UserError) as error:
        prepare(write_plan(tmp_path / "p", texts=texts, tokenizer=tokenizer), progress=False)
    message = str(error.value)
    assert message.startswith("plan p: ") and "stories" in message and what in message and "\n" not in message
    assert not [
        path for path in data_folder.glob("stores/*") if "-train-" not in path.name and not path.name.endswith(".lock")
    ]
    assert not list(data_folder.glob("stores/.*.partial"))


def test_files_without_a_plan(tmp_path):
    (tmp_path / "book.txt").write_text("\n\n".join(STORIES))
    (tmp_path / "second.txt").write_text("\n\n".join(STORIES[:50]))
    prepared = prepare(
        plan_from_files([str(tmp_path / "book.txt"), str(tmp_path / "second.txt")]), "bytes", progress=False
    )
    (store,) = prepared.train.values()
    (validation,) = prepared.validation.values()
    assert store.n_documents and validation.n_documents
    assert "owl" in prepared.tokenizer.decode(store.tokens(0, store.n_tokens))


def test_what_was_made_is_said_and_nothing_else(tmp_path, capfd):
    """Where stderr is no terminal: a line for each dataset and split that was made, none for what was there."""
    plan = write_plan(tmp_path / "p")
    prepare(plan)
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["stories (train)", "stories (validation)"]
    assert "180 documents" in lines[0]
    prepare(plan)
    assert capfd.readouterr().err == ""


@pytest.mark.process
def test_killed_at_any_moment_and_prepared_again(tmp_path, data_folder, monkeypatch):
    texts = [f"{k} " + "lorem ipsum " * 200 for k in range(8000)]
    plan = write_plan(tmp_path / "p", texts=texts)
    monkeypatch.setenv("LMPLAY_DATA", str(tmp_path / "undisturbed"))
    undisturbed = prepare(plan, progress=False)
    monkeypatch.setenv("LMPLAY_DATA", str(data_folder))
    # the train split being written, and then the validation split
    for marker in (".stories-train-*.partial/tokens_00000.bin", ".stories-validation-*.partial"):
        with subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys\nfrom lmplay.data.plans import load_plan\nfrom lmplay.data.prepare import prepare\n"
                "prepare(load_plan(sys.argv[1]))",
                str(plan.path),
            ],
            stderr=subprocess.DEVNULL,
        ) as process:
            while process.poll() is None and not list((data_folder / "stores").glob(marker)):
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
        for folder in (data_folder / "stores").glob("stories-*"):  # what is there is whole
            (reference,) = (tmp_path / "undisturbed" / "stores").glob(folder.name)
            assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
                file.name: file.read_bytes() for file in reference.iterdir()
            }
    again = prepare(plan, progress=False)
    assert again.hash == undisturbed.hash
    assert not list(data_folder.glob("stores/.*.partial"))
