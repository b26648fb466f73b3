"""Texts scored token by token: right losses at the right places, pictures of what is there, bad input in one line."""

import csv
import html
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lmplay import contract, registry
from lmplay.cli import generator
from lmplay.data.tokenizers import load_tokenizer
from lmplay.generate import token_losses
from lmplay.report import text_map
from lmplay.runs.run import Run
from lmplay.runs.trained import TrainedRun
from support.small import TINY
from support.trainer_process import TrainerProcess

ROOT = Path(__file__).resolve().parents[2]
BYTES = load_tokenizer("bytes")
TEXT = "O <b>Romeo</b> & $x_1$\n\tnaïve 日本 — \x1b[31m end"


def run_of(name: str, context_len: int = 8, **fields) -> TrainedRun:
    experiment = contract.load(registry.read_entry(ROOT / "experiments" / name))
    config = experiment.config("tiny", BYTES.vocab_size, context_len, n_layer=1, n_head=2, n_embd=16, **fields)
    torch.manual_seed(0)
    model = experiment.build(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return TrainedRun(model.eval(), BYTES, experiment.bound(config), context_len, Run(Path(), {}), Path())


def readings(run: TrainedRun):
    return run.experiment.directions(BYTES.eot, run.context_len)


@pytest.mark.parametrize(
    "name, fields",
    [("gpt2ish", {}), ("reverse_time", {}), ("permute", {"order": "end_in"}), ("both_ways", {})],
    ids=str,
)
@pytest.mark.parametrize("n", [1, 5, 8, 9, 12, 30])
def test_losses_are_those_of_overlapping_windows(name, fields, n):
    run = run_of(name, **fields)
    ids = torch.randint(256, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    length = min(8, n)
    starts = sorted({s for s in range(0, n, max(1, length // 2)) if s + length < n} | {n - length})
    for way, reading in enumerate(readings(run)):
        places = (
            sorted(range(length), key=reading.order.index)
            if length == 8
            else {
                "gpt2ish": range(n),
                "reverse_time": range(n)[::-1],
                "both_ways": range(n)[:: 1 - 2 * way],
                "permute": [p for p in reading.order if p < n],
            }[name]
        )
        order = [p for p in reading.order if p < length] if length == 8 else list(places)
        sums, counts = np.zeros(n), np.zeros(n)
        for start in starts:
            fed = [ids[start + place] for place in order]
            with torch.no_grad():
                logits = run.model(torch.tensor([[reading.bos, *fed[:-1]]]))[0].double()
            losses = F.cross_entropy(logits, torch.tensor(fed), reduction="none")
            for place, loss in zip(order, losses.tolist()):
                sums[start + place] += loss
                counts[start + place] += 1
        np.testing.assert_allclose(token_losses.token_losses(run, reading, ids, 8), sums / counts, rtol=1e-5)
        assert (counts > 0).all()


def tracks(*names):
    return [(name, run := run_of(name), readings(run)[0]) for name in names]


def test_cells_are_the_text_and_all_its_losses():
    two = tracks("gpt2ish", "reverse_time")
    found = map_of(TEXT, two)
    assert "".join(cell.text for cell in found.pieces) == TEXT
    assert len(found.pieces) == len(TEXT) and found.n_tokens == found.n_bytes == len(TEXT.encode())
    for k, (_, run, reading) in enumerate(two):
        losses = token_losses.token_losses(run, reading, list(TEXT.encode()), 8)
        assert found.totals()[k] == pytest.approx(losses.sum())
        at = len(TEXT[: TEXT.index("日")].encode())
        assert found.pieces[TEXT.index("日")].losses[k] == pytest.approx(
            losses[at : at + 3].sum()
        )  # three bytes, one character
    np.testing.assert_allclose(found.values, [(c.losses[1] - c.losses[0]) / c.n_tokens for c in found.pieces])
    assert sum(c.n_tokens for c in found.pieces) == found.n_tokens and found.pieces[TEXT.index("日")].n_tokens == 3


def test_what_is_written_is_escaped_and_whole(tmp_path):
    found = map_of(TEXT * 3, tracks("gpt2ish", "reverse_time"))
    paths = text_map.write(found, "a <title> $x$", tmp_path / "map")
    assert [path.name for path in paths] == ["map.csv", "map.html", "map.png"]
    rows = list(csv.reader(io.StringIO(paths[0].read_text(encoding="utf-8"), newline="")))
    assert rows[0] == ["text", "gpt2ish", "reverse_time", "tokens"]
    assert "".join(row[0] for row in rows[1:]) == TEXT * 3
    per_token = sum(float(row[1]) for row in rows[1:]) / sum(int(row[3]) for row in rows[1:])
    assert f"{per_token:.4f} nats per token" in text_map.summary(found).splitlines()[0]
    page = paths[1].read_text(encoding="utf-8")
    assert (
        page.count("<title>") == 1
        and "a &lt;title&gt;" in page
        and ">日<" in page
        and ">&lt;<" in page
        and ">&amp;<" in page
    )
    spans = page.split("<pre>")[1].split("</pre>")[0]
    shown = html.unescape("".join(part.split(">", 1)[1] for part in spans.split("</span>")[:-1]))
    assert shown.replace("⏎", "") == TEXT * 3
    assert paths[2].read_bytes().startswith(b"\x89PNG")
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_colours_say_who_pays_less():
    cells = [text_map.Piece(c, losses) for c, losses in (("a", (1.0, 4.0)), ("b", (4.0, 1.0)), ("c", (2.0, 2.0)))]
    blue, red, neutral = (
        tuple(int(color[k : k + 2], 16) for k in (1, 3, 5))
        for color in text_map.colors(text_map.TextMap(["one", "two"], cells, 3, 3))
    )
    assert blue[2] > blue[0] + 50 and red[0] > red[2] + 50 and max(neutral) - min(neutral) < 10
    said = text_map.summary(text_map.TextMap(["one", "two"], cells, 3, 3)).splitlines()
    assert said[0].startswith("one  2.3333") and "second minus first: +0.0000" in said[2]
    assert (
        said[4].strip().startswith("+3.000  [a]bc")
        and "-3.000  a[b]c" in said[said.index("cheapest for two against the other:") + 1]
    )


def test_values_are_per_token_and_equal_models_list_nothing():
    smile, a = "🙂".encode(), b"a"
    found = text_map.map_text(["one"], [*(smile[k : k + 1] for k in range(4)), a], np.array([[3.0]] * 4 + [[5.0]]))
    said = text_map.summary(found)
    assert "3.4000 nats per token" in said and "+3.000  [🙂]a  (4 tokens)" in said and "12.000" not in said
    same = text_map.map_text(["one", "two"], [a, a], np.array([[1.0, 1.0], [2.0, 2.0002]]))
    assert "0.000  " not in text_map.summary(same) and "no token costs one of them" in text_map.summary(same)


def test_long_names_are_not_cut_off_in_the_picture():
    from matplotlib.image import imread

    names = ["a_run_with_a_long_name_" * 4, "another_run_" * 8]
    found = text_map.map_text(names, [b"a", b"b"], np.array([[1.0, 2.0], [2.0, 1.0]]))
    pixels = imread(io.BytesIO(text_map.as_png(found, f"text: {' and '.join(names)}")))
    assert pixels[:, -20:, :3].min() == 1.0 and pixels[:30, :, :3].min() < 0.5  # white at the right, text on top


def map_of(text, tracks):
    return text_map.map_text([name for name, _, _ in tracks], *token_losses.losses_of_text(text, tracks))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Runs that know the alphabet one way, the other way, and both; one with another tokenizer, one that looks
    ahead.
    """
    folder = tmp_path_factory.mktemp("scored")
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    (folder / "alphabet.txt").write_text("\n".join([alphabet * 80] * 30), encoding="utf-8")
    own = folder / "experiments" / "ahead"
    shutil.copytree(ROOT / "experiments/gpt2ish", own, ignore=shutil.ignore_patterns("__pycache__"))
    with open(own / "model.py", "a", encoding="utf-8") as file:
        file.write("\n\ncausal = False\n")
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
        "--data",
        "alphabet.txt",
        "--device",
        "cpu",
    ]
    for name, flags in {
        "forwards": ["--exp", "gpt2ish", *learn, "--max-steps", "60", "--tokenizer", "bytes"],
        "both": ["--exp", "both_ways", *learn, "--max-steps", "60", "--tokenizer", "bytes"],
        "odd_even": [
            "--exp",
            "permute",
            *learn,
            "--set",
            "order=odd_even",
            "--max-steps",
            "90",
            "--tokenizer",
            "bytes",
        ],
        "bpe": [*TINY, "--max-steps", "1", "--data", "alphabet.txt"],
        "ahead": [*TINY, "--exp", "ahead", "--max-steps", "1", "--data", "alphabet.txt", "--tokenizer", "bytes"],
    }.items():
        run = TrainerProcess([*flags, "--run-name", name], folder).wait()
        assert run.status == 0, run.err
    (folder / "odd.txt").write_text(alphabet + "abcdXfghijklmnopqrstuvwxyz", encoding="utf-8")
    return folder


@pytest.fixture
def command(trained, monkeypatch, capsys):
    def run(*flags):
        monkeypatch.chdir(trained)
        capsys.readouterr()
        return generator.main(["--device", "cpu", *map(str, flags)]), *capsys.readouterr()

    return run


def test_one_run_and_a_model_of_both_ways(command, trained):
    status, text, said = command("--score", "odd.txt", "--run", "forwards")
    assert status == 0, said
    surprising = text[text.index("most surprising") :].splitlines()[1:3]
    assert any("[X]" in line or "[f]" in line for line in surprising)  # what is odd, or what comes after it
    wrote = {f"wrote gpt_out/score_odd_forwards.{suffix}" for suffix in ("csv", "html", "png")}
    assert wrote <= set(text.splitlines())
    status, text, said = command("--score", "odd.txt", "--run", "both")
    assert status == 0 and text.startswith("both forward ") and "both backward" in text.splitlines()[1]
    status, text, said = command("--score", "odd.txt", "--run", "both", "--way", "backward")
    assert (status, text) == command("--score", "odd.txt", "--run", "both", "--direction", "backward")[:2]
    assert status == 0 and text.startswith("both backward ") and "second" not in text
    Path("elsewhere").mkdir()
    Path("elsewhere/odd.txt").write_text("abc", encoding="utf-8")
    assert "wrote gpt_out/score_odd_forwards_2.csv" in command("--score", "elsewhere/odd.txt", "--run", "forwards")[1]
    assert "wrote gpt_out/score_odd_forwards_2.csv" in command("--score", "elsewhere/odd.txt", "--run", "forwards")[1]
    assert "wrote mine.csv" in command("--score", "odd.txt", "--run", "forwards", "-o", "mine.png")[1]
    status, _, said = command("--score", "odd.txt", "--run", "forwards", "-o", "mine")
    assert status == 2 and "there is mine.csv already" in said
    assert command("-o", "x", "a prompt")[0] == 2
    status, text, said = command("--score", "odd.txt", "--run", "forwards", "--run", "odd_even")
    assert status == 0 and "second minus first" in text, said


def test_every_way_writes(command):
    alphabet = "abcdefghijklmnopqrstuvwxyz" * 4
    flags = ("--no-do-sample", "--max-len", "26")
    assert command("--run", "both", *flags, "klmn")[1] == alphabet[10:40] + "\n"
    assert command("--run", "both", "--way", "backward", *flags, "klmn")[1] == alphabet[26 + 14 - 30 : 26 + 14] + "\n"
    status, text, said = command("--run", "odd_even", "--max-len", "5", "--no-do-sample")
    assert status == 0 and len(text) == 33, said
    assert sum(b == alphabet[alphabet.index(a) + 1] for a, b in zip(text, text[1:-1]) if a in alphabet) > 25


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--score", "nothing.txt"], "nothing.txt can't be read: No such file"),
        (["--score", "."], "can't be read: Is a directory"),
        (["--score", "picture"], "the text in picture is not UTF-8 text (byte 2)"),
        (["--score", "empty.txt", "--run", "forwards"], "there is no text to score"),
        (["--score", "odd.txt", "prompt"], "leave out the prompt"),
        (["--score", "odd.txt", "--run", "forwards", "--run", "forward"], "no run 'forward'"),
        (["--score", "odd.txt", "--run", "forwards", "--run", "bpe"], "cut text into different tokens"),
        (["--score", "odd.txt", "--run", "forwards", "--run", "forwards"], "named twice"),
        (["--score", "odd.txt", "--run", "forwards", "--run", "both", "--run", "bpe"], "two runs at most, not 3"),
        (["--score", "odd.txt", "--run", "ahead"], "is not causal"),
        (["--score", "odd.txt", "--run", "both", "--way", "sideways"], "knows no 'sideways'"),
        (["--score", "odd.txt", "--run", "forwards", "--way", "forward"], "reads in one direction only"),
        (["--run", "forwards", "--run", "both"], "one --run writes"),
        (["--run", "odd_even", "abc"], "can't go on from a prompt"),
    ],
)
def test_bad_input_is_refused_in_one_line(command, trained, flags, words):
    (trained / "picture").write_bytes(b"ab\xff\xd8")
    (trained / "empty.txt").write_bytes(b"")
    before = sorted((trained / "gpt_out").iterdir())
    status, text, said = command(*flags)
    assert (
        status == 2 and text == "" and said.startswith("lmp_generator: ") and said.count("\n") == 1 and words in said
    ), said
    assert sorted((trained / "gpt_out").iterdir()) == before
