"""Sessions on conversations (--chat), and prompts of a file in training: with models of a step."""

import io
import json
import os
import sys
import time

import pytest

from lmplay.cli import generator, trainer
from lmplay.generate.conversation import Conversation
from support.small import TINY, make_text

HOW = ["--seed", "3", "--max-len", "9", "--device", "cpu"]
TURNS = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "two."}]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the runs `turns` and `questions`, and the plans that they were trained on."""
    folder = tmp_path_factory.mktemp("sessions")
    rows = {
        "turns": [{"messages": TURNS * 2}] * 60,
        "questions": [{"q": f"What is {k}?", "a": f"{k}."} for k in range(60)],
    }
    columns = {"turns": {"messages": "messages"}, "questions": {"prompt": "q", "answer": "a"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, of in rows.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of))
            plan = {"tokenizer": "bytes", "datasets": {name: {"files": f"{name}.jsonl", **columns[name]}}}
            (folder / f"{name}.json").write_text(json.dumps(plan | {"steps": [{"datasets": [name], "epochs": 1.0}]}))
            flags = [*TINY, "--context-len", "256", "--threads", "1", "--max-steps", "1", "--run-name", name]
            assert trainer.main([*flags, "--training-plan", f"./{name}.json"]) == 0
    return folder


@pytest.fixture
def lmp(runs, monkeypatch, capsys):
    """Run lmp_generator with these flags and lines of standard input; return (status, output, what was said)."""
    monkeypatch.chdir(runs)

    def run(*flags, lines: bytes = b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
        capsys.readouterr()
        return generator.main([*HOW, *map(str, flags)]), *capsys.readouterr()

    return run


def answer(lmp, run: str, prompt: str, seed: int) -> str:
    """What the model adds to the whole prompt."""
    status, text, _ = lmp("--run", run, "--seed", seed, "--", prompt)
    assert status == 0 and text.startswith(prompt)
    return text.removeprefix(prompt).removesuffix("\n")


def test_a_conversation_reads_what_was_said_and_forgets_it_at_an_empty_line(lmp):
    first = answer(lmp, "turns", "User: hé\n\nAssistant: ", 3)
    second = answer(lmp, "turns", f"User: hé\n\nAssistant: {first}\n\nUser: b\n\nAssistant: ", 4)
    third = answer(lmp, "turns", "User: c\n\nAssistant: ", 5)
    status, out, said = lmp("--run", "turns", "--chat", lines="hé\nb\r\n\nc".encode())
    assert status == 0 and out == f"{first}\n\n{second}\n\n{third}\n\n"
    assert "--seed 3" in said and "an empty line begins a new one" in said


def test_a_conversation_that_grows_too_long_forgets_its_beginning(lmp):
    lines = "\n".join("a question " * 9 for _ in range(4))
    status, out, _ = lmp("--run", "turns", "--chat", "--max-len", 2, lines=lines.encode())
    assert status == 0 and out.count("\n\n") >= 4
    conversation = Conversation("turns", [("a", "b"), ("c", "d")])
    assert conversation.fitting_prompt("e", len, 50) == "User: c\n\nAssistant: d\n\nUser: e\n\nAssistant: "


def test_questions_stand_alone(lmp):
    answers = [answer(lmp, "questions", f"{line}\n\n", seed) for line, seed in (("What?", 3), ("So?", 4))]
    assert lmp("--run", "questions", "--chat", lines=b"What?\nSo?\n")[1] == "".join(f"{one}\n\n" for one in answers)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_an_answer_ends_where_the_next_turn_begins(size):
    text = "User: a\n\nAssistant: b\n\nUse it.\n\nUser: more"
    parts = [text[k : k + size] for k in range(0, len(text), size)]
    conversation = Conversation("turns")
    assert "".join(conversation.answer_in(parts, "User: a\n\nAssistant: ")) == "b\n\nUse it."
    assert "".join(conversation.answer_in(parts[:-1], "")) == text[: (len(parts) - 1) * size].partition("\n\nUser: ")[0]


def test_what_a_session_does_not_go_with(lmp):
    for flags in (["on"], ["--prompts", "turns.json"], ["--num-samples", 2], ["--save-attention", "a.npz"]):
        status, out, said = lmp("--run", "turns", "--chat", *flags)
        assert status == 2 and out == "" and said.count("\n") == 1, said


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such terminals")
@pytest.mark.process
def test_a_terminal_shows_a_sign_and_ends_at_ctrl_d(runs):
    import pty

    child, terminal = pty.fork()
    if child == 0:
        os.chdir(runs)
        os.environ |= {"TERM": "screen", "NO_COLOR": "1"}
        command = "import sys; from lmplay.cli.generator import main; sys.exit(main(sys.argv[1:]))"
        os.execv(sys.executable, [sys.executable, "-c", command, *HOW, "--run", "questions", "--chat"])
    shown = b""
    deadline = time.monotonic() + 100
    for typed in (b"What?\n", b"So?\n", b"\x04"):
        while not shown.endswith(b"> ") and time.monotonic() < deadline:
            shown += os.read(terminal, 1000)
        shown += b"|"
        os.write(terminal, typed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, shown.decode()
    os.close(terminal)
    assert shown.count(b"> |") == 3 and b"So?" in shown


def samples_of(folder, name: str) -> str:
    return (folder / "gpt_out" / name / "samples.txt").read_text(encoding="utf-8")


def test_prompts_of_a_file_take_the_place_of_the_plan_s(runs, tmp_path, monkeypatch, capsys):
    """In samples, which they begin; a run goes on with others, since they decide nothing."""
    monkeypatch.chdir(tmp_path)
    for name in ("questions.json", "questions.jsonl"):
        (tmp_path / name).write_bytes((runs / name).read_bytes())
    (tmp_path / "text.txt").write_text(make_text(40, 1), encoding="utf-8")
    (tmp_path / "p.jsonl").write_text('{"prompt": "Who [MASK]?"}\n"Wo?"\n"Wann?"\n')
    (tmp_path / "q.txt").write_text("Why?\n")
    flags = [*TINY, "--training-plan", "./questions.json", "--validation-interval", "1", "--threads", "1"]
    plain = [*flags, "--lr-schedule", "constant", "--max-steps", "1"]
    assert trainer.main([*plain, "--prompts", "p.jsonl"]) == 0
    [name] = [path.name for path in (tmp_path / "gpt_out").iterdir() if (path / "run.json").exists()]
    assert "--- 3\n⟦Wann?\n\n⟧" in samples_of(tmp_path, name) and "--- 1\n⟦Who [MASK]?\n\n⟧" in samples_of(
        tmp_path, name
    )
    assert json.loads((tmp_path / "gpt_out" / name / "run.json").read_text())["settings"]["prompts"] == "p.jsonl"
    assert trainer.main([*plain[:-1], "2", "--prompts", "q.txt"]) == 0
    assert "after step 1" in capsys.readouterr().err and "⟦Why?\n\n⟧" in samples_of(tmp_path, name)
    for given, words in (("gone.txt", "gone.txt"), ("-", "takes a file")):
        assert trainer.main([*plain, "--prompts", given]) == 2 and words in capsys.readouterr().err
    text = [*TINY, "--data", "text.txt", "--tokenizer", "bytes", "--max-steps", "1", "--prompts", "p.jsonl"]
    assert trainer.main([*text, "--exp", "reverse_time", "--run-name", "b"]) == 0
    assert "Wann?⟧" in samples_of(tmp_path, "b")
    assert trainer.main([*text, "--exp", "bert", "--run-name", "m"]) == 0
    filled = samples_of(tmp_path, "m").split("--- ")[1]
    assert filled.startswith("1\nWho ") and "[MASK]" not in filled
