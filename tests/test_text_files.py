"""Text files as people have them: a byte order mark, line ends of Windows, names and locales without UTF-8."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lmplay
from lmplay import code_diff, registry
from lmplay.data.plans import load_plan
from lmplay.data.tokenizer_training import train_tokenizer
from lmplay.data.tokenizers import load_tokenizer
from lmplay.files import read_clean, write_json
from lmplay.runs.run import read_run
from lmplay.train.settings import read_config
from support.making_runs import make_run
from support.small import TINY, write_plan

BOM = b"\xef\xbb\xbf"
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def add_bom(path: Path) -> Path:
    path.write_bytes(BOM + path.read_bytes())
    return path


def trainer(*words, cwd, **env):
    command = [sys.executable, "-m", "lmplay.cli.trainer", *TINY, *words]
    root = str(Path(lmplay.__file__).parents[1])
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | {"PYTHONPATH": root} | env, capture_output=True, timeout=300, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_text_is_read_as_training_reads_it(tmp_path):
    (tmp_path / "a.txt").write_bytes(BOM + "one\r\ntwo\rgröße\n".encode())
    assert read_clean(tmp_path / "a.txt") == "one\ntwo\ngröße\n"


def test_a_plan_and_a_config_with_a_byte_order_mark(tmp_path):
    plan = write_plan(tmp_path, "mine", {"d": {"files": "d.txt"}}, [{"datasets": ["d"]}])
    before = load_plan(plan).hash
    add_bom(Path(plan))
    assert load_plan(plan).hash == before
    (tmp_path / "config.json").write_bytes(BOM + b'{"lr": 0.5}')
    assert read_config(str(tmp_path / "config.json")) == {"lr": 0.5}


def test_a_model_with_a_byte_order_mark_is_copied_and_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = registry.copy_experiment(registry.find("gpt2ish")[0], "first_copy")
    known = registry.read_entry(first).code_hash
    add_bom(first / "model.py")
    assert registry.read_entry(first).code_hash == known
    second = registry.copy_experiment(registry.find("first_copy")[0], "second_copy")
    assert not (second / "model.py").read_bytes().startswith(BOM)
    assert registry.read_entry(second).parent == "first_copy"
    assert "\ufeff" not in code_diff.diff(registry.find("first_copy")[0], registry.find("gpt2ish")[0])


def test_a_run_with_byte_order_marks(tmp_path):
    make_run(tmp_path / "r")
    before = read_run(tmp_path / "r").table("train")
    for name in ("run.json", "train.csv", "validate.csv"):
        add_bom(tmp_path / "r" / name)
    run = read_run(tmp_path / "r")
    assert run.table("train").equals(before) and len(run.table("validate")) and not run.notes


def test_a_tokenizer_with_byte_order_marks(tmp_path):
    made = train_tokenizer(
        {"train": "bpe", "vocab_size": 300}, lambda: iter(["the cat sat on the mat " * 40]), tmp_path / "t"
    )
    for name in ("ranks.tiktoken", "tokenizer.json"):
        add_bom(tmp_path / "t" / name)
    assert load_tokenizer(made.spec).fingerprint == made.fingerprint


def test_json_keeps_names_that_are_not_utf8(tmp_path):
    content = {"file": os.fsdecode(b"caf\xe9"), "größe": 1}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == content


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names or locales")
def test_a_locale_without_utf8_and_a_name_that_is_not(tmp_path):
    text = "Die Größe der Tür.\n\n" * 60
    name = os.fsdecode(b"T\xfcr.txt")
    (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "größe.txt").write_text(text, encoding="utf-8")
    data = {"LMPLAY_DATA": str(tmp_path / "data")}
    for file in (name, "größe.txt"):
        for env in (ASCII, {}):  # made in one locale, read in the other
            words = [
                "--data",
                os.fsencode(file),
                "--tokenizer",
                "bytes",
                "--max-steps",
                "1",
                "--run-name",
                "r",
                "--fresh",
            ]
            status, said = trainer(*words, cwd=tmp_path, **data, **env)
            assert status == 0, said.decode(errors="replace")


def test_every_file_is_opened_with_an_encoding():
    """Without one, Python takes that of the machine's locale."""
    faults = []
    for path in Path(lmplay.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call) and _is_text(node):
                faults.append(f"{path}:{node.lineno}")
    assert not faults


def _is_text(call: ast.Call) -> bool:
    """Whether a call opens a text file without saying its encoding."""
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if isinstance(call.func, ast.Attribute):
        return call.func.attr in ("read_text", "write_text")
    if not (isinstance(call.func, ast.Name) and call.func.id == "open"):
        return False
    modes = [*call.args[1:2], *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    return not any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in modes)


def test_code_in_another_encoding_is_copied_and_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = registry.copy_experiment(registry.find("gpt2ish")[0], "first_copy")
    source = (first / "model.py").read_text().replace("import math\n", "import math  # größe\n", 1)
    (first / "model.py").write_bytes(f"# -*- coding: latin-1 -*-\n{source}".encode("latin-1"))
    second = registry.copy_experiment(registry.find("first_copy")[0], "second_copy")
    assert "größe".encode("latin-1") in (second / "model.py").read_bytes()
    assert "+import math  # größe" in code_diff.diff(registry.find("second_copy")[0], registry.find("gpt2ish")[0])
