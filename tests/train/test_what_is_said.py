"""What a run says of its length, and of what may be done with it; prompts that end as in training; --describe."""

import json
import re

import pytest

from lmplay.cli import generator, tokenizer
from lmplay.cli import trainer as command
from lmplay.data.plan_spec import PROMPT_END, ended_prompt
from lmplay.runs.run import read_run
from support.small import TINY, make_text

FLAGS = [*TINY, "--tokenizer", "bytes", "--validation-tokens", "300", "--run-name", "r", "--lr-schedule"]


@pytest.fixture
def train(work, capfd):
    """Trains on a small text with a schedule and returns the exit status and what was said."""
    (work / "t.txt").write_text(make_text(20, 3), encoding="utf-8")

    def run(*flags):
        status = command.main([*FLAGS, *flags, "--data", "t.txt"])
        return status, capfd.readouterr().err

    return run


def test_a_cool_down_says_so_and_what_comes_after_it(train):
    assert train("constant", "--max-steps", "4")[0] == 0
    status, said = train("constant", "--max-steps", "4")
    assert status == 0 and "is finished: 4 steps. Give it a larger budget (--max-steps, --max-tokens, --epochs)" in said
    status, said = train("constant", "--max-steps", "4", "--cooldown-now", "0.5")
    assert status == 0 and "cooling down over 2 steps; the run ends after step 6\n" in said
    after = "is finished: 6 steps. It has cooled down: --extra-steps goes back to before that and trains on; "
    after += "--initial-model gpt_out/r begins another run with its weights"
    for again in ([], ["--cooldown-now", "0.5"]):
        status, said = train("constant", "--max-steps", "4", *again)
        assert status == 0 and after in said and "cooling down" not in said
    status, said = train("constant", "--max-steps", "4", "--extra-steps", "3")
    assert status == 0 and "going back to step 4, before the cool-down, and on to step 7; what the run was is" in said


def test_a_schedule_that_has_ended_is_not_given_a_larger_budget(train):
    status, said = train("cosine", "--max-steps", "3")
    assert status == 0 and re.search(r"3 steps, \d+ tokens, |3 steps, \d+ tokens scored of 192 read, ", said), said
    assert " tokens to read\n" in said and "in all" not in said
    status, said = train("cosine", "--max-steps", "3")
    assert status == 0 and "Its cosine schedule has ended at a rate of 0: --initial-model gpt_out/r begins" in said


QUESTIONS = {"questions": {"files": "q.jsonl", "prompt": "q", "answer": "a"}}


@pytest.mark.parametrize(
    "prompt, datasets, ended",
    [
        ("What?", [{"prompt": ["q"], "answer": "a"}], "What?\n\n"),
        ("What?\n", [{"prompt": ["q"], "answer": "a"}], "What?\n\n"),
        ("What?\n\nThat", [{"prompt": ["q"], "answer": "a"}], "What?\n\nThat"),
        ("", [{"prompt": ["q"], "answer": "a"}], ""),
        ("What?", [{"text": ["t"]}], "What?"),
        ("What?", [{"prompt": ["q"]}, {"text": ["t"]}], "What?"),
        ("What?", [], "What?"),
    ],
)
def test_prompts_end_as_those_of_the_data(prompt, datasets, ended):
    assert ended_prompt(prompt, datasets) == ended


def test_samples_and_the_generator_end_prompts_as_the_data_do(work, capfd):
    rows = [json.dumps({"q": f"What is {k} + 1?", "a": f"{k + 1}."}) + "\n" for k in range(60)]
    (work / "q.jsonl").write_text("".join(rows), encoding="utf-8")
    (work / "t.txt").write_text(make_text(20, 3), encoding="utf-8")
    datasets = {"text": {"files": "t.txt"}, **QUESTIONS}
    steps = [{"name": "pre", "datasets": ["text"], "tokens": 64}, {"name": "fine", "datasets": ["questions"]}]
    plan = {"tokenizer": "bytes", "datasets": datasets, "steps": steps, "prompts": ["What is 3 + 4?"]}
    (work / "p.json").write_text(json.dumps(plan), encoding="utf-8")
    flags = [*TINY, "--training-plan", "./p.json", "--run-name", "r", "--validation-interval", "1"]
    assert command.main([*flags, "--max-steps", "2", "--validation-tokens", "300"]) == 0
    said = capfd.readouterr().err
    assert "validation loss of fine " in said
    samples = (work / "gpt_out" / "r" / "samples.txt").read_text(encoding="utf-8").split("=== ")[1:]
    assert "What is 3 + 4?" + PROMPT_END not in samples[0]  # in the first phase it is text
    assert f"--- 1\n⟦What is 3 + 4?{PROMPT_END}⟧" in samples[1]
    asked = [one["prompt"] for one in read_run(work / "gpt_out" / "r").last_datasets]
    assert asked == [["q"]]
    generator.main(["--run", "r", "--device", "cpu", "--max-len", "2", "--no-do-sample", "5 + 1?"])
    found = capfd.readouterr()
    assert found.out.startswith("5 + 1?\n\n") and "ends with a blank line" in found.err


def described(capfd, *flags):
    assert command.main(["--exp", "gpt2ish:tiny", "--describe", *flags]) == 0
    return capfd.readouterr().out


def test_describe_knows_the_vocabulary_and_context_that_are_named(work, capfd):
    (work / "t.txt").write_text(make_text(20, 3), encoding="utf-8")
    plain = described(capfd)
    assert "vocab_size=50257" in plain and "vocabulary:" not in plain
    by_bytes = described(capfd, "--tokenizer", "bytes", "--data", "t.txt")
    assert "vocab_size=257" in by_bytes and "vocabulary: 257 ids of bytes" in by_bytes
    trained = described(capfd, "--data", "t.txt", "--set", "n_layer=1")
    flags = [*TINY[2:], "--data", "t.txt", "--run-name", "r", "--max-steps", "1", "--validation-tokens", "300"]
    assert command.main(["--exp", "gpt2ish:tiny", *flags]) == 0
    vocab_size = read_run(work / "gpt_out" / "r").get("tokenizer", "vocab_size")
    assert 257 < vocab_size < 4096 and f"vocab_size={vocab_size}" in trained
    plan = {"tokenizer": "bytes", "context_len": 48, "datasets": {"d": {"files": "t.txt"}}}
    (work / "p.json").write_text(json.dumps({**plan, "steps": [{"datasets": ["d"]}]}), encoding="utf-8")
    assert "max_len=48" in described(capfd, "--training-plan", "p.json")
    assert "max_len=32" in described(capfd, "--training-plan", "p.json", "--context-len", "32")
    remote = {"tokenizer": {"train": "bpe", "vocab_size": 999}, "datasets": {"d": {"hub": "nobody/nothing"}}}
    (work / "h.json").write_text(json.dumps({**remote, "steps": [{"datasets": ["d"]}]}), encoding="utf-8")
    assert "vocabulary: 999 ids of bpe, at most: it is trained with the data" in described(
        capfd, "--training-plan", "h.json"
    )


def test_a_tokenizer_is_inspected_dataset_by_dataset(work, capfd):
    for name in ("one", "two"):
        (work / f"{name}.txt").write_text(make_text(20, len(name)), encoding="utf-8")
    (work / "two.txt").write_text("ж" * 900 + "\n\n" + "z" * 900 + "\n\n" + make_text(40, 1), encoding="utf-8")
    datasets = {name: {"files": f"{name}.txt"} for name in ("one", "two")}
    plan = {"tokenizer": "bytes", "datasets": datasets, "steps": [{"datasets": ["one", "two"]}]}
    (work / "p.json").write_text(json.dumps(plan), encoding="utf-8")
    assert tokenizer.main(["inspect", "bytes", "--training-plan", "p.json"]) == 0, capfd.readouterr()
    out = capfd.readouterr().out
    counts = [int(n.replace(",", "")) for n in re.findall(r"^(?:one: |two: |)text: [\d,]+ texts, ([\d,]+)", out, re.M)]
    assert len(counts) == 3 and counts[0] + counts[1] == counts[2]
    assert "one: tokens: " in out and "two: vocabulary used: " in out
    assert tokenizer.main(["inspect", "bytes", "one.txt"]) == 0
    assert "one: " not in capfd.readouterr().out
    assert tokenizer.main(["train", "one.txt", "--vocab-size", "4000", "-o", "tok"]) == 0
    assert "the text has too few different words for 4,000" in capfd.readouterr().err


def test_several_files_are_not_shown_under_the_name_of_the_first(work, capfd):
    for seed, name in enumerate(("a.txt", "b.txt")):
        (work / name).write_text(make_text(20, seed), encoding="utf-8")
    assert command.main([*FLAGS, "constant", "--max-steps", "2", "--data", "a.txt", "b.txt"]) == 0
    said = capfd.readouterr().err
    assert "plan a and 1 more" in said and "steps  a and 1 more: 2 steps" in said and "\na and 1 more 2/2: " in said
