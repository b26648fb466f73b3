"""lmp_generator on runs that lmp_trainer has trained: small models that know the alphabet, forwards or backwards."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lmplay
from lmplay.cli import generator
from support.results import unsealed
from support.small import TINY
from support.trainer_process import TrainerProcess

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
COMMAND = [Path(sys.executable).with_name("lmp_generator")]
OWN_EXPERIMENT = """

causal = {causal}
"""


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A folder with gpt_out: the runs `forwards` (trained first), `backwards`, `bpe` and `masked`."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "alphabet.txt").write_text("\n".join([ALPHABET * 80] * 30), encoding="utf-8")
    (folder / "words.txt").write_text(
        "\n\n".join(f"{word} one two three four five six seven" for word in ALPHABET * 4), encoding="utf-8"
    )
    learn = [
        "--set",
        "n_layer=1",
        "--set",
        "n_embd=32",
        "--set",
        "n_head=2",
        "--context-len",
        "32",
        "--batch-size",
        "16",
        "--lr",
        "0.01",
        "--warmup-steps",
        "5",
        "--max-steps",
        "60",
        "--data",
        "alphabet.txt",
        "--tokenizer",
        "bytes",
        "--device",
        "cpu",
    ]
    for name, causal in (("mine", True), ("masked", False)):
        own = folder / "experiments" / name
        shutil.copytree(
            Path(__file__).parents[2] / "experiments/gpt2ish", own, ignore=shutil.ignore_patterns("__pycache__")
        )
        with open(own / "model.py", "a", encoding="utf-8") as file:
            file.write(OWN_EXPERIMENT.format(causal=causal))
    runs = {
        "forwards": ["--exp", "gpt2ish", *learn],
        "backwards": ["--exp", "reverse_time", *learn],
        "bpe": [*TINY, "--exp", "mine", "--max-steps", "3", "--data", "words.txt"],
        "masked": [*TINY, "--exp", "masked", "--max-steps", "1", "--data", "alphabet.txt", "--tokenizer", "bytes"],
    }
    for name, flags in runs.items():
        run = TrainerProcess([*flags, "--run-name", name], folder).wait()
        assert run.status == 0, run.err
    return folder


@pytest.fixture
def out(trained, tmp_path, monkeypatch) -> Path:
    """A copy of gpt_out in an empty working folder, free to be spoilt."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained / "gpt_out", tmp_path / "gpt_out")


@pytest.fixture
def command(out, monkeypatch, capsys):
    """Runs lmp_generator; returns (status, stdout, stderr)."""

    def run(*flags, stdin: bytes = b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        return generator.main(["--device", "cpu", *map(str, flags)]), *capsys.readouterr()

    return run


@pytest.fixture
def write(command):
    """What lmp_generator prints."""

    def run(*flags, **options) -> str:
        status, text, said = command(*flags, **options)
        assert status == 0, said
        return text

    return run


@pytest.fixture
def complaint(command):
    """The one line with which it refuses."""

    def run(*flags, **options) -> str:
        status, text, said = command(*flags, **options)
        assert status == 2 and text == "" and said.startswith("lmp_generator: ") and said.count("\n") == 1, (
            status,
            text,
            said,
        )
        return said

    return run


GREEDY = ("--run", "forwards", "--no-do-sample", "--max-len", "60")
WILD = ("--run", "forwards", "--temperature", "3", "--top-p", "1", "--max-len", "30")


def test_goes_on_with_what_it_learned(write):
    assert write(*GREEDY, "klmn") == (ALPHABET * 5)[10 : 10 + 64] + "\n"
    assert write(*GREEDY, "--no-cache", "klmn") == write(*GREEDY, "klmn")
    assert write(*GREEDY[:2], "--temperature", "0", "--max-len", "60", "klmn") == write(*GREEDY, "klmn")
    assert write(*GREEDY, "--amp", "klmn") == write(*GREEDY, "klmn")


def test_a_reversed_model_writes_what_comes_before(write):
    text = write("--run", "backwards", "--no-do-sample", "--max-len", "60", "klmn")
    assert text == (ALPHABET * 5)[: ALPHABET.index("n") + 1 + 26 * 3][-64:] + "\n"
    assert text.endswith("klmn\n") and len(text) == 65


def test_a_session_continues_each_line_and_goes_on_after_one_that_is_no_prompt(command):
    status, text, said = command(*GREEDY, "--chat", stdin=b"klmn\r\n\nuv")
    assert status == 0 and text == f"{(ALPHABET * 5)[10:74]}\n\n{(ALPHABET * 5)[20:82]}\n\n" and "is continued" in said
    status, text, said = command("--run", "masked", "--chat", stdin=b"one\ntwo\xff\n")
    assert status == 0 and text == "" and said.count("not causal") == 2


@pytest.mark.parametrize("run", ["forwards", "backwards"])
def test_maps_of_the_text_that_was_written(command, out, tmp_path, run):
    status, text, said = command("--run", run, "--save-attention", "a.npz", "--no-do-sample", "--max-len", "20", "klmn")
    assert status == 0 and "a.npz: tokens 25, attention 1 x 2 x 25 x 25" in said
    saved = np.load(tmp_path / "a.npz")
    inside = lmplay.load_run(out / run, "cpu").look_inside(text.removesuffix("\n"))
    np.testing.assert_array_equal(saved["tokens"], inside.tokens)
    np.testing.assert_allclose(saved["attention"], np.stack(inside.attention), rtol=1e-5, atol=1e-7)


def test_maps_of_a_given_text_are_not_written_over_a_file(command, tmp_path):
    assert command("--run", "forwards", "--save-attention", "a.npz", "--max-len", 0, "klm")[:2] == (0, "klm\n")
    assert list(np.load("a.npz")["tokens"]) == ["<BOS>", "k", "l", "m"]
    assert command("--run", "forwards", "--save-attention", "b.npz", "--max-len", 0, ALPHABET * 3)[0] == 0
    assert np.load("b.npz")["attention"].shape == (1, 2, 32, 32)
    Path("mine.npz").write_text("mine")
    for name, words in (
        ("mine.npz", "another file is there"),
        ("no/a.npz", "no folder"),
        (".", "is a folder"),
        ("a.txt", ".npz"),
    ):
        status, text, said = command("--run", "forwards", "--save-attention", name, "klm")
        assert status == 2 and text == "" and words in said, said


def test_prompts_come_as_text_from_files_and_from_standard_input(write, tmp_path):
    (tmp_path / "prompt").write_bytes(b"\xef\xbb\xbfklmn\r\n")
    texts = [
        write(*GREEDY, "klmn"),
        write(*GREEDY, "prompt"),
        write(*GREEDY, tmp_path / "prompt"),
        write(*GREEDY, "-", stdin=b"klmn\n"),
        write(*GREEDY, "-", stdin=b"klmn"),
    ]
    assert texts == texts[:1] * 5
    assert write(*GREEDY, "-", stdin=b"klmn\n\n").startswith("klmn\n")
    assert write(*GREEDY) == write(*GREEDY, "") == write(*GREEDY, "-")


@pytest.mark.parametrize(
    "prompt", ["Zoë 日本 👩\u200d👩\u200d👧", "-- x", "e\u0301", "two\nlines", "x" * 5000, "a/b", "README"]
)
def test_any_text_is_a_prompt(write, prompt):
    assert write(*GREEDY, "--", prompt).startswith(prompt)
    assert write(*GREEDY, "-", stdin=prompt.encode()).startswith(prompt)
    assert write("--run", "bpe", "--", prompt).startswith(prompt)
    assert write("--run", "backwards", "--max-len", 5, "--", prompt).endswith(prompt + "\n")


def test_says_which_run_and_that_a_long_prompt_is_cut(command):
    status, text, said = command(*GREEDY, ALPHABET + ALPHABET)
    lines = said.splitlines()
    assert lines[:2] == [
        f"{Path('gpt_out/forwards')}, step_00000060",
        "the prompt has 52 tokens and the model reads 31: the last 16 are used",
    ]
    assert re.fullmatch(r"60 tokens in [\d.]+ s: [\d,]+ tokens/s", lines[2]) and len(lines) == 3
    assert text == (ALPHABET * 5)[: 52 + 60] + "\n"
    status, text, said = command("--run", "backwards", "--no-do-sample", "--max-len", 5, "abcdef" + "?" * 40)
    assert "the first 16 are used" in said
    assert [command(*GREEDY, "a" * n)[2].count("\n") for n in (31, 32)] == [2, 3]


def test_the_run_is_the_last_that_was_written_to(command, out):
    for name in ("forwards", "backwards"):
        later = max(path.stat().st_mtime_ns for path in out.glob("*/run.json")) + 10**9
        os.utime(out / name / "run.json", ns=(later, later))
        assert command("a")[2].startswith(f"{Path('gpt_out') / name},")
    shutil.rmtree(out / "backwards" / "checkpoints")  # it has only just been started
    (out / "backwards" / "checkpoints").mkdir()
    assert not command("a")[2].startswith(f"{Path('gpt_out/backwards')},")


def test_a_run_is_named_by_its_folder_too(write, out):
    moved = out.rename(out.with_name("elsewhere"))
    expected = write("--run", moved / "forwards", "--no-do-sample", "ab")
    assert expected == write("--run", "forwards", "--out", moved, "--no-do-sample", "ab")


def test_a_seed_repeats_a_text(command, write):
    assert write(*WILD, "--seed", 5) == write(*WILD, "--seed", 5) != write(*WILD, "--seed", 6)
    _, text, said = command(*WILD)
    seed = said.rpartition("--seed ")[2].split()[0]
    assert write(*WILD, "--seed", seed) == text
    assert command(*WILD)[1] != text
    assert write(*WILD, "--seed", 2**63 - 1)


def test_samples_differ_and_each_has_its_seed(write):
    text = write(*WILD, "--seed", 7, "--num-samples", 3, "abc")
    assert text == "\n".join(
        f"--- {k + 1} of 3, seed {7 + k}\n{write(*WILD, '--seed', 7 + k, 'abc')}" for k in range(3)
    )
    assert len({write(*WILD, "--seed", seed) for seed in (7, 8, 9)}) == 3


def test_the_settings_of_drawing_arrive(write):
    greedy, wild = write(*GREEDY, "abc"), ("--run", "forwards", "--max-len", 60, "--temperature", 50, "--seed", 1)
    assert write(*wild, "--top-k", 1, "--top-p", 1, "abc") == greedy == write(*wild, "--top-p", 1e-9, "abc")
    assert write(*wild, "--top-p", 1, "abc") != greedy
    assert len(set(write(*GREEDY, "--repetition-penalty", 1e9, "--max-len", 26).strip())) >= 26


@pytest.mark.process
def test_a_run_needs_its_folder_alone(trained, tmp_path, write):
    """Far from its experiment and its text, with the tokenizer it was trained with gone."""
    before = write("--run", "bpe", "--seed", 3, "a one two")
    alone = tmp_path / "alone"
    shutil.copytree(trained / "gpt_out/bpe", alone / "bpe")
    spec = json.loads((alone / "bpe/run.json").read_text())["tokenizer"]["spec"]
    assert spec.startswith("bpe:")
    hidden = Path(spec.removeprefix("bpe:"))
    hidden.rename(hidden.with_name("hidden"))
    try:
        env = os.environ | {"LMPLAY_DATA": str(tmp_path / "nothing")}
        done = subprocess.run(
            [*COMMAND, "--device", "cpu", "--run", "bpe", "--out", ".", "--seed", "3", "a one two"],
            cwd=alone,
            env=env,
            capture_output=True,
        )
    finally:
        hidden.with_name("hidden").rename(hidden)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == before
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--run", "forward"), ["no run 'forward'", "Did you mean 'forwards'?"]),
        (("--out", "empty"), ["no trained run", "lmp_trainer"]),
        (("missing.txt",), ["no file missing.txt"]),
        (("./missing",), ["no file ./missing"]),
        (("--max-len", "0"), ["--max-len", "at least 1"]),
        (("--num-samples", "0"), ["--num-samples"]),
        (("--seed", "-1"), ["--seed"]),
        (("--seed", 2**63), ["--seed", "below"]),
        (("--temperature", "-1"), ["--temperature"]),
        (("--temperature", "nan"), ["--temperature"]),
        (("--top-p", "0"), ["--top-p"]),
        (("--top-k", "-3"), ["--top-k"]),
        (("--repetition-penalty", "0"), ["--repetition-penalty"]),
        (("--device", "tpu"), ["--device", "tpu"]),
        (("--no-do-sample", "--num-samples", "2"), ["--num-samples", "the same"]),
        (("--run", "masked"), ["masked", "not causal"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_bad_input_is_refused_in_one_line(complaint, flags, words):
    said = complaint(*flags)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    "flags, words", [(("--temprature", "1"), "Did you mean '--temperature'?"), (("--top-k", "few"), "--top-k")]
)
def test_flags_that_are_none_are_refused_in_one_line(command, capsys, flags, words):
    with pytest.raises(SystemExit) as ended:
        command(*flags)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and words in said


def test_prompts_that_are_no_text_are_refused(complaint, tmp_path):
    (tmp_path / "picture").write_bytes(b"ab\xff\x00")
    assert "picture is not UTF-8 text (byte 2)" in complaint("picture")
    assert "standard input is not UTF-8 text" in complaint("-", stdin=b"\xff")


def edit_run_json(run: Path, **sections):
    meta = json.loads((run / "run.json").read_text())
    for section, values in sections.items():
        meta[section] = {**meta[section], **values} if isinstance(values, dict) else values
    (run / "run.json").write_text(json.dumps(unsealed(meta)))


def without_checksums(run: Path):
    edit_run_json(run)


DAMAGES = {
    "no run.json": (lambda run: (run / "run.json").unlink(), "no run 'bpe'"),
    "half a run.json": (lambda run: os.truncate(run / "run.json", 300), "run.json is damaged"),
    "a binary run.json": (lambda run: (run / "run.json").write_bytes(b"\xff\xfe\x00"), "run.json is damaged"),
    "a run.json of something else": (lambda run: (run / "run.json").write_text("[1, 2]"), "is not lmplay's"),
    "no tokenizer in run.json": (lambda run: edit_run_json(run, tokenizer=None), "'tokenizer' is missing"),
    "an unknown setting": (lambda run: edit_run_json(run, config={"n_layers": 2}), "Did you mean 'n_layer'?"),
    "a setting of the wrong kind": (
        lambda run: edit_run_json(run, config={"n_layer": "two"}),
        "n_layer takes a whole number",
    ),
    "no vocabulary size": (lambda run: edit_run_json(run, config=0), "'config' is missing"),
    "settings that can't be": (
        lambda run: edit_run_json(run, config={"n_head": 5}),
        "can't be built with these settings",
    ),
    "settings of another model": (lambda run: edit_run_json(run, config={"n_embd": 32}), "weights don't fit"),
    "no checkpoint": (lambda run: shutil.rmtree(run / "checkpoints"), "has no checkpoint: train it first"),
    "no weights": (lambda run: weights(run).unlink(), "model.safetensors can't be read"),
    "half the weights": (lambda run: os.truncate(weights(run), 500), "model.safetensors can't be read"),
    "weights of nothing": (
        lambda run: weights(run).write_bytes(b"not weights at all"),
        "model.safetensors can't be read",
    ),
    "no code": (lambda run: shutil.rmtree(run / "code"), ".py is missing"),
    "code with a mistake": (
        lambda run: (without_checksums(run), (run / "code/mine/model.py").write_text("def")),
        "copy of its experiment can't be read",
    ),
    "code of another model": (
        lambda run: (without_checksums(run), (run / "code/mine/model.py").write_text(OTHER_CODE)),
        "are not those of its code",
    ),
    "no tokenizer": (
        lambda run: [path.unlink() for path in (run / "tokenizer").iterdir()],
        "ranks.tiktoken is missing",
    ),
    "another tokenizer": (
        lambda run: edit_run_json(run, tokenizer={"fingerprint": "0"}),
        "not the one it was trained with",
    ),
}
OTHER_CODE = """
from dataclasses import dataclass
import torch

@dataclass
class Config:
    vocab_size: int = 2
    max_len: int = 8

class Model(torch.nn.Module):
    pass
"""


def weights(run: Path) -> Path:
    return next(run.glob("checkpoints/*/model.safetensors"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_refused_in_one_line(complaint, out, damage):
    spoil, words = DAMAGES[damage]
    spoil(out / "bpe")
    assert words in complaint("--run", "bpe", "a")


def process(out: Path, *flags, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, "--device", "cpu", *flags], cwd=out.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


ENDLESS = ("--run", "forwards", "--no-do-sample", "--max-len", "1000000000", "abc")


@pytest.mark.process
def test_text_streams_and_ctrl_c_ends_it(out):
    with process(out, *ENDLESS, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)) as running:
        begun = running.stdout.read(60)
        running.send_signal(signal.SIGINT)
        rest, said = running.communicate(timeout=60)
    assert begun.decode() == (ALPHABET * 3)[:60]
    assert rest.endswith(b"\n") and running.returncode == 130
    assert said.decode().splitlines()[1:] == ["lmp_generator: interrupted"]


@pytest.mark.process
def test_a_reader_that_has_seen_enough_is_no_error(out):
    with process(out, *ENDLESS) as running:
        running.stdout.read(10)
        running.stdout.close()
        said = running.stderr.read().decode()
        assert running.wait(60) == 0
    assert said.count("\n") == 1, said


@pytest.mark.process
def test_a_terminal_that_knows_few_characters(out):
    with process(
        out, "--run", "forwards", "--max-len", "3", "Zoë 日本", env=os.environ | {"PYTHONIOENCODING": "ascii"}
    ) as running:
        text, said = running.communicate(timeout=60)
    assert running.returncode == 0 and text.startswith(b"Zo? ??"), said


@pytest.mark.process
def test_help_needs_no_torch():
    code = (
        "import sys; from lmplay.cli.generator import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted(sys.modules.keys() & {'torch', 'numpy', 'tiktoken', 'tokenizers', 'pandas'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("usage: lmp_generator") and done.stdout.endswith("[]\n"), done.stderr
