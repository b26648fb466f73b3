"""Many prompts for one model: what is read from the file, and what is written."""

import json

import pytest

from lmplay.cli import generator, trainer
from lmplay.data.prompts import read_prompts
from lmplay.errors import UserError
from support.small import TINY, make_text


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.txt", "one two\n\n  three\n"),
        ("a.json", '["one two", {"prompt": "  three"}]'),
        ("a.jsonl", '"one two"\n\n{"prompt": "  three", "id": 7}\n'),
        ("a.json", '{"description": "a plan", "prompts": ["one two", "  three"]}'),
    ],
)
def test_prompts_of_a_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_prompts(str(tmp_path / name)) == ["one two", "  three"]


def test_prompts_of_a_plan_by_its_name(work):
    found = read_prompts("tinystories")
    assert len(set(found)) == 25 and found[0].startswith("Mila had a red kite")
    (work / "tinystories").write_text("a file comes first\n")
    assert read_prompts("tinystories") == ["a file comes first"]
    with pytest.raises(UserError, match=r"quick\.json holds no prompt"):
        read_prompts("quick")
    with pytest.raises(UserError, match="neither a file nor a plan"):
        read_prompts("tinystoriez")


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.txt", "\n"),
        ("a.json", '{"prompt": 1}'),
        ("a.json", "[1]"),
        ("a.jsonl", "{"),
        ("a.json", "[" * 100_000),
        ("a.jsonl", "9" * 5000),
    ],
)
def test_what_holds_no_prompt(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"a\.json|a\.txt"):
        read_prompts(str(tmp_path / name))


def test_each_prompt_is_continued_as_it_is_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(make_text(40, 1), encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("on\nthe é\n", encoding="utf-8")
    flags = [*TINY, "--data", "text.txt", "--tokenizer", "bytes", "--threads", "1", "--max-steps", "2"]
    assert trainer.main([*flags, "--run-name", "r"]) == 0
    how = ["--run", "r", "--seed", "3", "--max-len", "6", "--device", "cpu"]
    alone = {}
    for prompt in ("on", "the é"):
        for seed in (3, 4):
            capsys.readouterr()
            assert generator.main([*how, "--seed", str(seed), prompt]) == 0
            alone[prompt, seed] = capsys.readouterr().out.removesuffix("\n")
    assert generator.main([*how, "--prompts", "prompts.txt", "--num-samples", "2", "--jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(row["prompt"], row["seed"]): row["text"] for row in rows} == alone
    assert [row["sample"] for row in rows] == [1, 2, 1, 2]
    assert generator.main([*how, "--prompts", "prompts.txt"]) == 0
    out = capsys.readouterr().out
    assert out == f"--- prompt 1 of 2\n{alone['on', 3]}\n--- prompt 2 of 2\n{alone['the é', 3]}\n"
    for words in (["--prompts", "prompts.txt", "more"], ["--jsonl"], ["--prompts", "gone.txt"]):
        assert generator.main([*how, *words]) == 2
