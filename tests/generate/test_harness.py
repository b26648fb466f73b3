"""lmp_eval: the harness's own numbers, kept in the run's folder and told in the report."""

import json
import math
import sys

import pytest
import torch

from lmplay.cli import eval as lmp_eval
from lmplay.cli import plotstats, trainer
from lmplay.errors import UserError
from lmplay.generate.harness import _check_file, _fitting, _name_in, evaluate
from lmplay.runs.evaluations import line_of, read_evaluations
from lmplay.runs.published import load_published
from lmplay.runs.run import read_run
from support.published import GPT2, publish
from support.small import TINY, make_text

CPU = torch.device("cpu")
HEAD = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: "{{{{text}}}}"
"""
TASKS = {
    "choices": """
output_type: multiple_choice
doc_to_target: "{{label}}"
doc_to_choice: "{{choices}}"
metric_list:
  - metric: acc
  - metric: acc_norm
""",
    "last_word": """
output_type: loglikelihood
doc_to_target: "{{word}}"
metric_list:
  - metric: perplexity
  - metric: acc
""",
    "whole_text": """
output_type: loglikelihood_rolling
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
""",
    "written": """
output_type: generate_until
doc_to_target: "{{word}}"
generation_kwargs:
  until: ["q"]
  max_gen_toks: 6
  do_sample: false
metric_list:
  - metric: exact_match
""",
}


@pytest.fixture
def tasks(tmp_path):
    """The files of four tasks, with 12 documents beside them."""
    words = make_text(12, 3).split()
    rows = [
        {
            "text": "" if k == 0 else " ".join(words[3 * k : 3 * k + 4])[:40],
            "word": words[k],
            "choices": [words[k + j] for j in range(3)],
            "label": k % 3,
        }
        for k in range(12)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, more in TASKS.items():
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(HEAD.format(name=f"lmplay_{name}", data=data) + more)
    return {name: str(tmp_path / "tasks" / f"{name}.yaml") for name in TASKS}, rows


@pytest.fixture
def harness(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("LMPLAY_DATA", str(tmp_path / "data"))
    return pytest.importorskip("lm_eval")


@pytest.mark.extra
@pytest.mark.slow
def test_as_the_harness_evaluates_the_same_weights(harness, tasks, tmp_path):
    """Its `hf` model of a GPT-2 with random weights, and gpt2ish with them, on tasks of four kinds."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    pytest.importorskip("peft")
    from lm_eval.tasks import TaskManager

    files, rows = tasks
    folder = publish(transformers, tmp_path / "gpt2", "GPT2", **GPT2 | dict(n_positions=96))
    run = load_published(f"hf:{folder}", CPU)
    ours = {one["task"]: one for one in evaluate(run, list(files.values()), batch_size=5)}
    theirs = {}
    for bos in (True, False):  # its rolling windows begin with a BOS token of their own
        theirs |= harness.simple_evaluate(
            model="hf",
            model_args=dict(pretrained=str(folder), add_bos_token=bos, device="cpu", dtype="float32"),
            tasks=[f"lmplay_{name}" for name in TASKS if (name != "whole_text") == bos],
            task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
            batch_size=1,
        )["results"]
    for name, found in theirs.items():
        numbers = {key.removesuffix(",none"): value for key, value in found.items() if key.endswith(",none")}
        numbers = {key: value for key, value in numbers.items() if isinstance(value, float) and math.isfinite(value)}
        assert numbers and ours[name]["documents"] == 12
        for key, value in numbers.items():
            assert ours[name]["metrics"][key] == pytest.approx(value, rel=2e-4), (name, key)
    bits = ours["lmplay_choices"]["metrics"]["answer_bits_per_byte"]
    total, size = 0.0, 0
    for row in rows:
        answer = list(f" {row['choices'][row['label']]}".encode())
        tokens = torch.tensor([[256, *row["text"].encode(), *answer]])
        with torch.no_grad():
            scores = run.model(tokens[:, :-1])[0].log_softmax(-1)[-len(answer) :]
        total -= float(scores.gather(1, tokens[0, -len(answer) :, None]).sum()) / math.log(2)
        size += len(answer)
    assert bits == pytest.approx(total / size, rel=1e-5)


@pytest.mark.extra
def test_a_run_from_its_folder(harness, tasks, tmp_path, monkeypatch, capsys):
    """Results are kept beside the run, replaced when asked again, and lines of the report."""
    monkeypatch.chdir(tmp_path)
    files, _ = tasks
    (tmp_path / "words.txt").write_text(make_text(60, 1), encoding="utf-8")
    given = ["--tokenizer", "bytes", "--max-steps", "2", "--data", "words.txt", "--run-name", "one"]
    assert trainer.main([*TINY, *given]) == 0
    for limit in ("3", "3", "4"):
        capsys.readouterr()
        assert lmp_eval.main(["one", "--tasks", files["choices"], "--limit", limit, "--device", "cpu"]) == 0
        assert "lmplay_choices: acc " in capsys.readouterr().out
    kept = read_evaluations(read_run(tmp_path / "gpt_out" / "one"))
    assert [one["limit"] for one in kept] == [3, 4] and kept[0]["documents"] == 3
    assert kept[0]["checkpoint"] == "step_00000002" and "bits per byte of the answers (3 documents, a part)" in line_of(
        kept[0]
    )
    pytest.importorskip("plotly")
    assert plotstats.main(["one", "--report", "page.html"]) == 0
    assert "lmp_eval, one: lmplay_choices" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.extra
@pytest.mark.slow
def test_what_is_refused(harness, transformers_model, tmp_path):
    with pytest.raises(UserError, match="lm_eval has no task 'no_such_task'"):
        evaluate(transformers_model, ["no_such_task"])
    with pytest.raises(UserError, match="there is no task file none.yaml"):
        evaluate(transformers_model, ["none.yaml"])


@pytest.fixture
def transformers_model(tmp_path):
    return load_published(f"hf:{publish(pytest.importorskip('transformers'), tmp_path / 'gpt2', 'GPT2', **GPT2)}", CPU)


def test_without_the_package(transformers_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install 'lmplay\[eval\]'"):
        evaluate(transformers_model, ["arc_easy"])


def test_what_fits_into_the_context():
    """The BOS token stays, then come the last tokens; all of the answer is predicted if it fits."""
    assert _fitting([9, 1, 2], [3, 4], 4) == ([9, 1, 2, 3], [3, 4])
    assert _fitting([9, 1, 2, 3, 4], [5, 6], 4) == ([9, 3, 4, 5], [5, 6])
    assert _fitting([9, 1], [2, 3, 4, 5, 6], 4) == ([9, 3, 4, 5], [3, 4, 5, 6])


def test_a_task_file_may_be_written_in_any_way():
    pytest.importorskip("yaml")
    for text in (
        "task: a_b\nx: !function m.f\n",
        '{"x": 1, "task": "a_b"}',
        "x: [1]\n'task'  :  a_b # so\n",
        "group: a_b\ntask: [c]",
    ):
        assert _name_in("t.yaml", text) == "a_b"
    for text in ("", "task:", "task: 3", "- task", "x: 1"):
        with pytest.raises(UserError, match="a task file has a line 'task: NAME'"):
            _name_in("t.yaml", text)
    for text in ("task: [", "a: b: c", "[" * 100_000, "\x01", "x: 2001-99-99"):
        with pytest.raises(UserError, match="t.yaml is not YAML"):
            _name_in("t.yaml", text)


def test_another_file_is_not_taken_for_the_one_that_was_named(tmp_path):
    _check_file("a", (tmp_path / "a.yaml").resolve(), str(tmp_path / "a.yaml"))
    with pytest.raises(UserError, match="give one of them another name"):
        _check_file("a", (tmp_path / "a.yaml").resolve(), str(tmp_path / "b.yaml"))
