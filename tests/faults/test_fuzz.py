"""Whatever files, flags, rows and prompts commands meet: they succeed, or say one line and end with a status that is
documented. LMPLAY_FUZZ=full meets 10,000 inputs, 200 of them in processes of their own; without it there are a few.
"""

import contextlib
import gzip
import io
import json
import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from lmplay.cli import cleanmodel, compare, generator, plotstats, probe, tokenizer, trainer
from lmplay.cli import eval as lmp_eval
from support.fuzzing import KINDS, NUMBERS, TEXTS, Tally, in_child, odd_bytes, odd_json, odd_table, put_odd, remove
from support.small import TINY, make_text

pytestmark = pytest.mark.slow
FULL = os.environ.get("LMPLAY_FUZZ") == "full"
TALLY = Tally()
SAMPLE = ["--max-len", "2", "--device", "cpu", "--seed", "1"]


def inputs(few, all_of_them):
    """Run the test with N inputs; a fault does not end it, since there may be others."""

    def decorate(test):
        chosen = settings(
            max_examples=all_of_them if FULL else few,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        return seed(int(os.environ.get("LMPLAY_FUZZ_SEED", "1")))(chosen(test))

    return decorate


@pytest.fixture(scope="module")
def folder_of_all(tmp_path_factory):
    """A working folder with runs, a plan, a tokenizer, rows and a configuration: what people have."""
    folder = tmp_path_factory.mktemp("folder_of_all")
    before, data = Path.cwd(), os.environ["LMPLAY_DATA"]
    os.environ["LMPLAY_DATA"] = str(folder / "data")
    os.chdir(folder)
    (folder / "text.txt").write_text(make_text(30, 1), encoding="utf-8")
    rows = [{"text": paragraph, "n": k} for k, paragraph in enumerate(make_text(20, 2).split("\n\n"))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "rows.csv").write_text("n,text\n" + "".join(f"{row['n']},{row['text'].strip()}\n" for row in rows))
    plan = {
        "description": "a plan",
        "tokenizer": "bytes",
        "context_len": 16,
        "prompts": ["one", "two"],
        "datasets": {
            "text": {"files": "text.txt", "validation": {"fraction": 0.2, "max_documents": 5}},
            "rows": {"files": ["rows.jsonl"], "text": "text", "max_documents": 15},
            "sums": {"synthetic": "copy", "max_documents": 20, "seed": 1, "validation": {"skip": 0, "documents": 5}},
        },
        "steps": [
            {"name": "first", "datasets": ["text"], "tokens": 128},
            {"datasets": ["text", "rows"], "epochs": 1, "stop": "all_exhausted", "weights": {"text": 1, "rows": 2}},
        ],
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    with quiet():
        tokenizer.main(["train", "--vocab-size", "300", "-o", "bpe", "text.txt"])
        for name, number in (("one", 0), ("two", 1)):
            assert trainer.main([*command_of(name), "--seed", str(number)]) == 0
    with contextlib.redirect_stdout(io.StringIO()) as said:
        trainer.main([*command_of("one"), "--dump-config"])
    (folder / "config.json").write_text(said.getvalue())
    shutil.copytree("gpt_out", "kept")
    yield folder
    os.chdir(before)
    os.environ["LMPLAY_DATA"] = data


def quiet():
    return contextlib.redirect_stderr(io.StringIO())


def command_of(name):
    more = ["--data", "text.txt", "--tokenizer", "bpe:bpe", "--max-steps", "4", "--validation-interval", "2"]
    return [*TINY, *more, "--save-interval", "2", "--loss-by-position", "2", "--run-name", name]


@pytest.fixture(autouse=True)
def no_faults(folder_of_all, request):
    """Fail at the end of each test if one of its commands ended otherwise."""
    TALLY.__init__()
    yield
    print(f"\n{request.node.name}: {TALLY.ended} commands, {TALLY.refused} refused")
    assert not TALLY.faults, "\n\n".join(f"=== {key}\n{case}" for key, case in TALLY.faults.items())
    assert TALLY.refused < TALLY.ended or TALLY.ended < 20, "nothing gets through: the inputs try nothing"


def restore(folder_of_all):
    """Put the runs back as they were; return that of `one`."""
    remove(folder_of_all / "gpt_out")
    shutil.copytree(folder_of_all / "kept", folder_of_all / "gpt_out")
    return folder_of_all / "gpt_out" / "one"


LOADS = [
    (generator, ["--run", "one", *SAMPLE, "a"]),
    (generator, ["--list"]),
    (trainer, [*command_of("one"), "--seed", "0"]),
    (cleanmodel, ["one", "-o", "made", "--device", "cpu", "--text", "text.txt"]),
]
JUDGES = [
    (plotstats, []),
    (plotstats, ["--report", "--each-run", "--split", "train"]),
    (compare, ["--dry-run", "--exp", "gpt2ish", *TINY[2:], "--data", "text.txt", "--max-steps", "4"]),
]


def meet(folder_of_all, data, commands):
    """Run one of the commands on the runs as they are now."""
    main, argv = data.draw(st.sampled_from(commands))
    remove(folder_of_all / "made")
    TALLY.run(main.main, argv)


@inputs(12, 400)
@given(data=st.data())
def test_run_json(folder_of_all, data):
    file = restore(folder_of_all) / "run.json"
    file.write_bytes(data.draw(odd_json(json.loads(file.read_text()))))
    meet(folder_of_all, data, LOADS * 2 + JUDGES)


@inputs(8, 250)
@given(data=st.data())
def test_state_json(folder_of_all, data):
    run = restore(folder_of_all)
    file = max(run.glob("checkpoints/*/state.json"))
    file.write_bytes(data.draw(odd_json(json.loads(file.read_text()))))
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "status": "stopped"}))
    meet(folder_of_all, data, LOADS)


TABLES = ["train.csv", "validate.csv", "validate_positions.csv", "validate_documents/documents_text.csv"]


@inputs(3, 60)
@given(data=st.data())
def test_tables(folder_of_all, data):
    file = restore(folder_of_all) / data.draw(st.sampled_from(TABLES))
    file.write_bytes(data.draw(odd_table(file.read_bytes())))
    meet(folder_of_all, data, JUDGES)


@inputs(8, 150)
@given(data=st.data())
def test_files_of_a_run(folder_of_all, data):
    """Bytes of any file of a run are others, or it is no plain file."""
    run = restore(folder_of_all)
    file = data.draw(st.sampled_from(sorted(path for path in run.rglob("*") if "code" not in path.parts)))
    if data.draw(st.booleans()) and file.is_file():
        file.write_bytes(data.draw(odd_bytes(file.read_bytes())))
    else:
        put_odd(file, data.draw(st.sampled_from(KINDS)))
    meet(folder_of_all, data, LOADS * 2 + JUDGES)


@inputs(20, 2000)
@given(data=st.data())
def test_plans(folder_of_all, data):
    (folder_of_all / "odd.json").write_bytes(data.draw(odd_json(json.loads((folder_of_all / "plan.json").read_text()))))
    how = data.draw(st.sampled_from([["--prepare-only"], ["--dry-run"]]))
    TALLY.run(
        trainer.main,
        [*TINY, "--training-plan", "odd.json", "--max-steps", "1", *how],
        (folder_of_all / "odd.json").read_bytes(),
    )


@inputs(80, 3400)
@given(data=st.data())
def test_configurations(folder_of_all, data):
    (folder_of_all / "odd.json").write_bytes(
        data.draw(odd_json(json.loads((folder_of_all / "config.json").read_text())))
    )
    TALLY.run(trainer.main, ["--use-config", "odd.json", "--dump-config"], (folder_of_all / "odd.json").read_bytes())


@inputs(15, 1000)
@given(data=st.data())
def test_tokenizers(folder_of_all, data):
    remove(folder_of_all / "odd")
    shutil.copytree(folder_of_all / "bpe", folder_of_all / "odd")
    file = folder_of_all / "odd" / data.draw(st.sampled_from(sorted(os.listdir(folder_of_all / "bpe"))))
    if file.suffix == ".json" and data.draw(st.booleans()):
        file.write_bytes(data.draw(odd_json(json.loads(file.read_text()))))
    else:
        file.write_bytes(data.draw(odd_bytes(file.read_bytes())))
    TALLY.run(
        tokenizer.main, data.draw(st.sampled_from([["encode", "odd", "text.txt"], ["inspect", "bpe:odd", "rows.csv"]]))
    )


@inputs(15, 900)
@given(data=st.data())
def test_rows(folder_of_all, data):
    name = data.draw(st.sampled_from(["rows.jsonl", "rows.csv", "text.txt"]))
    content = (folder_of_all / name).read_bytes()
    if name == "rows.jsonl" and data.draw(st.booleans()):
        lines = content.splitlines()
        content = b"\n".join([*lines[:9], data.draw(odd_json(json.loads(lines[9]))), *lines[10:]])
    elif name == "rows.csv" and data.draw(st.booleans()):
        content = data.draw(odd_table(content))
    else:
        content = data.draw(odd_bytes(content))
    file = folder_of_all / f"odd_{name}"
    if data.draw(st.integers(0, 3)) == 0:
        file = file.with_name(file.name + ".gz")
        content = gzip.compress(content)
        content = data.draw(odd_bytes(content)) if data.draw(st.booleans()) else content
    file.write_bytes(content)
    remove(folder_of_all / "data" / "stores")
    TALLY.run(trainer.main, ["--data", file.name, "--tokenizer", "bytes", "--prepare-only"], content)


TASK = {
    "task": "odd_task",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "choices.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{text}}",
    "doc_to_target": "{{label}}",
    "doc_to_choice": "{{choices}}",
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture(scope="module")
def evaluated(folder_of_all):
    """A task with documents, and a run that has been evaluated on it: nothing of it is odd."""
    pytest.importorskip("lm_eval")
    os.environ["HF_HUB_OFFLINE"] = "1"
    restore(folder_of_all)
    words = make_text(3, 5).split()
    rows = [{"text": word, "choices": words[k : k + 3], "label": k % 3} for k, word in enumerate(words[:6])]
    (folder_of_all / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder_of_all / "task.yaml").write_text(json.dumps(TASK))  # JSON is YAML
    with quiet(), contextlib.redirect_stdout(io.StringIO()):
        assert lmp_eval.main(["one", "--tasks", "task.yaml", "--device", "cpu"]) == 0
    return (folder_of_all / "gpt_out" / "one" / "evaluations.json").read_bytes(), rows


@pytest.mark.extra
@inputs(12, 200)
@given(data=st.data())
def test_evaluations(folder_of_all, evaluated, data):
    """Tasks, their documents, flags, and what a run has kept of earlier evaluations."""
    run, (kept, rows) = restore(folder_of_all), evaluated
    what = data.draw(st.sampled_from(["task", "rows", "flags", "kept", "kept"]))
    argv, main = ["one", "--tasks", "odd.yaml", "--device", "cpu"], lmp_eval
    for name in ("odd.yaml", "odd.jsonl"):
        remove(folder_of_all / name)
    (folder_of_all / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = TASK | {"dataset_kwargs": {"data_files": {"test": str(folder_of_all / "odd.jsonl")}}}
    content = json.dumps(task).encode()
    if what == "task":
        content = data.draw(odd_json(task))
    elif what == "rows":
        lines = [json.dumps(row).encode() for row in rows[1:]] + [data.draw(odd_json(rows[0]))]
        (folder_of_all / "odd.jsonl").write_bytes(b"\n".join(lines))
    elif what == "flags":
        argv += data.draw(odd_flags(lmp_eval, ("trust_code", "tasks", "device"), most=2))
    else:
        (run / "evaluations.json").write_bytes(data.draw(odd_json(json.loads(kept))))
        main, argv = data.draw(st.sampled_from([(lmp_eval, argv), (plotstats, ["one", "--report"])]))
    (folder_of_all / "odd.yaml").write_bytes(content)
    TALLY.run(main.main, argv, content)


NUMBER_TEXTS = NUMBERS.map(str)


def flags_of(main, omit=()):
    """Return the flags of a command: (spelling, whether it takes a value)."""
    actions = [
        one for one in main.parser()._actions if one.option_strings and one.dest not in ("help", "version", *omit)
    ]
    return [(one.option_strings[0], one.nargs != 0) for one in actions]


@st.composite
def odd_flags(draw, main, omit=(), most=4):
    argv = []
    for spelling, takes in draw(st.lists(st.sampled_from(flags_of(main, omit)), max_size=most)):
        argv.append(spelling)
        if takes:
            argv += draw(st.lists(st.one_of(TEXTS, NUMBER_TEXTS), min_size=1, max_size=2))
    return [one.replace("\0", "") for one in argv]


@inputs(20, 1000)
@given(data=st.data())
def test_flags_of_the_trainer(folder_of_all, data):
    what = data.draw(st.sampled_from([["--dump-config"], ["--describe"], ["--copy", data.draw(TEXTS)], ["--dry-run"]]))
    base = [*TINY, "--data", "text.txt", "--tokenizer", "bytes", "--max-steps", "1"]
    argv = [*base, *data.draw(odd_flags(trainer, ("trust_code",))), *what, "--dry-run"]
    TALLY.run(trainer.main, [one.replace("\0", "") for one in argv])
    remove(folder_of_all / "experiments")


@inputs(10, 440)
@given(data=st.data())
def test_flags_of_other_commands(folder_of_all, data):
    run = restore(folder_of_all)
    assert run.is_dir()
    main = data.draw(st.sampled_from([generator, plotstats, cleanmodel, tokenizer, compare, probe]))
    if main is tokenizer:
        argv = [
            data.draw(st.sampled_from(["train", "inspect", "encode", "decode"])),
            *data.draw(st.lists(TEXTS, max_size=4)),
        ]
    else:
        argv = data.draw(odd_flags(main, ("trust_code", "show")))
        argv += {generator: ["--max-len", "2"], cleanmodel: ["one"], compare: ["--dry-run"]}.get(main, [])
        argv += ["--exp", "nothing_such"] if main is probe else []
    TALLY.run(main.main, [one.replace("\0", "") for one in argv])


@inputs(8, 200)
@given(data=st.data())
def test_prompts(folder_of_all, data):
    prompt = data.draw(st.one_of(TEXTS, st.text(max_size=60))).replace("\0", "")
    restore(folder_of_all)
    TALLY.run(generator.main, ["--run", "one", *SAMPLE, "--", prompt])


@inputs(6, 200)
@given(data=st.data())
def test_real_commands(folder_of_all, data):
    """The same in processes of their own, forked from this one, which has torch loaded."""
    run = restore(folder_of_all)
    how = data.draw(st.sampled_from(["flags", "run", "plan", "prompt"]))
    if how == "flags":
        main, argv = (
            trainer,
            [*command_of("one"), "--seed", "0", *data.draw(odd_flags(trainer, ("trust_code",), most=2))],
        )
    elif how == "run":
        (run / "run.json").write_bytes(data.draw(odd_json(json.loads((run / "run.json").read_text()))))
        main, argv = data.draw(st.sampled_from(LOADS[:3]))
    elif how == "plan":
        (folder_of_all / "odd.json").write_bytes(
            data.draw(odd_json(json.loads((folder_of_all / "plan.json").read_text())))
        )
        main, argv = trainer, [*TINY, "--training-plan", "odd.json", "--max-steps", "1"]
    else:
        main, argv = generator, ["--run", "one", *SAMPLE, "--", data.draw(TEXTS)]
    argv = [one.replace("\0", "") for one in argv]
    status, said = in_child(main.main, argv, folder_of_all)
    TALLY.count(status, said, f"{main.__name__} {argv!r}")
