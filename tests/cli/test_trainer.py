"""lmp_trainer as its users meet it: what it answers, what it leaves, and how it refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from support.small import TINY, make_text, write_plan
from support.trainer_process import At

FLAGS = [*TINY, "--run-name", "run", "--max-steps", "3", "--validation-interval", "2", "--validation-tokens", "300"]
REPORTING = """
class Model(Model):
    def forward(self, tokens, cache=None):
        return super().forward(tokens, cache), {EXTRA}
"""


def train(plan, *more):
    return [*FLAGS, "--training-plan", plan, *more]


def without_budget(flags: list[str]) -> list[str]:
    at = flags.index("--max-steps")
    return flags[:at] + flags[at + 2 :]


def weights(run: Path) -> dict:
    return load_file(sorted(run.glob("checkpoints/step_*"))[-1] / "model.safetensors")


def snapshot(folder: Path) -> dict:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What is asked for


def test_what_a_run_leaves(trainer, plans, work):
    done = trainer(*train(plans["two_steps"], "--max-steps", "14"))
    assert done.status == 0, done.err
    run = work / "gpt_out" / "run"
    assert sorted(p.name for p in run.iterdir()) == [
        "checkpoints",
        "code",
        "run.json",
        "samples.txt",
        "train.csv",
        "validate.csv",
        "validate_documents",
    ]
    meta = json.loads((run / "run.json").read_text())
    assert meta["status"] == "finished" and meta["progress"]["step"] == 14 and meta["config"]["n_embd"] == 16
    assert meta["experiment"] | {"folder": "", "code_hash": "", "summary": ""} == {
        "name": "gpt2ish",
        "variant": "6l",
        "parent": None,
        "causal": True,
        "folder": "",
        "code_hash": "",
        "code_hash_version": 2,
        "summary": "",
    }
    assert meta["tokenizer"]["spec"] == "bytes" and meta["data"]["datasets"].keys() == {"one", "two"}
    code = run / "code" / "gpt2ish" / "model.py"
    assert code.read_bytes() == Path(meta["experiment"]["folder"], "model.py").read_bytes()
    lines = (run / "train.csv").read_text().splitlines()
    assert lines[0] == (
        "plan_step,step,samples,tokens,bytes,flops,seconds,loss,accuracy,bits_per_byte,learning_rate,gradient_norm,"
        "tokens_per_second,mfu"
    )
    assert [line.split(",")[:4] for line in lines[1:]] == [
        ["first" if step <= 10 else "second", str(step), str(4 * step), str(64 * step)] for step in range(1, 15)
    ]
    header, *rows = ([*line.split(",")] for line in (run / "validate.csv").read_text().splitlines())
    rows = [dict(zip(header, row)) for row in rows]
    assert [row["step"] for row in rows] == ["2", "4", "6", "8", "10", "12", "14"]
    for row in rows:  # the loss of each dataset where there are several
        assert bool(row["loss_one"]) == bool(row["loss_two"]) == (row["plan_step"] == "second")
    documents = (run / "validate_documents" / "documents_second.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in documents[1:]} == {"one", "two"}
    assert (run / "samples.txt").read_text().count("=== step") == 7
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_00000010", "step_00000014"]


def test_first_loss_and_learning(trainer, plans, work):
    """From near ln V to less than the entropy of single letters: it learns."""
    done = trainer(*train(plans["plain"], "--max-steps", "60", "--lr", "0.01", "--set", "n_embd=32"))
    assert done.status == 0, done.err
    rows = [line.split(",") for line in (work / "gpt_out" / "run" / "train.csv").read_text().splitlines()]
    losses = [float(row[rows[0].index("loss")]) for row in rows[1:]]
    assert losses[0] == pytest.approx(5.55, abs=0.1) and losses[-1] < 3.0


def test_dry_run_and_prepare_only_leave_no_run(trainer, plans, work, tmp_path):
    dry = trainer(*train(plans["plain"], "--dry-run", "--check-grads"))
    assert dry.status == 0 and "every parameter gets one" in dry.err and "3 steps" in dry.err
    data = tmp_path / "prepared"
    only = trainer(*train(plans["plain"], "--prepare-only"), env={"LMPLAY_DATA": str(data)})
    assert only.status == 0 and "for validation" in only.out and str(data) in only.out
    assert not (work / "gpt_out").exists()
    before = snapshot(data)
    assert trainer(*train(plans["plain"]), env={"LMPLAY_DATA": str(data)}).status == 0
    # of models and of this machine: the prepared data are used as they are
    notes = {"checks", "costs", "measured.json", "trusted_code"}
    assert {name: content for name, content in snapshot(data).items() if Path(name).parts[0] not in notes} == before


def test_fresh_keeps_the_run_it_replaces(trainer, plans, work):
    assert trainer(*train(plans["plain"])).status == 0
    run = work / "gpt_out" / "run"
    before = snapshot(run)
    fresh = trainer(*train(plans["plain"], "--fresh", "--seed", "1"))
    assert fresh.status == 0 and ".replaced" in fresh.err
    assert snapshot(work / "gpt_out" / ".replaced" / "run") == before
    assert json.loads((run / "run.json").read_text())["settings"]["seed"] == 1
    refused = trainer(*train(plans["plain"], "--fresh", "--initial-model", "nothing"))
    assert "no run 'nothing'" in refused.complaint
    assert json.loads((run / "run.json").read_text())["settings"]["seed"] == 1  # still there


def test_finished_is_said(trainer, plans):
    assert trainer(*train(plans["plain"])).status == 0
    again = trainer(*train(plans["plain"]))
    assert again.status == 0 and "is finished: 3 steps" in again.err


def test_initial_model(trainer, plans, work):
    assert trainer(*train(plans["plain"], "--run-name", "first")).status == 0
    start = ["--run-name", "second", "--initial-model", "first", "--seed", "5"]
    stopped = trainer(
        *train(plans["two_steps"], *start), at=At(event="os.rename", path=".run.json", signals=(signal.SIGTERM,))
    )
    assert stopped.status == 130, stopped.err
    assert (work / "gpt_out" / "second" / "checkpoints" / "step_00000000").is_dir()
    first, second = weights(work / "gpt_out" / "first"), weights(work / "gpt_out" / "second")
    assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)
    (work / "gpt_out" / "first").rename(work / "gone")  # needed at the start only
    assert trainer(*train(plans["two_steps"], *start)).status == 0
    (work / "gone").rename(work / "gpt_out" / "first")
    wider = trainer(*train(plans["plain"], "--run-name", "third", "--initial-model", "first", "--set", "n_embd=32"))
    assert "its weights don't fit this model" in wider.complaint
    assert not (work / "gpt_out" / "third").exists()


def test_config_goes_round(trainer, plans, work):
    dumped = trainer(*train(plans["plain"], "--lr", "0.004", "--dump-config"))
    assert dumped.status == 0
    (work / "config.json").write_text(dumped.out)
    assert trainer("--use-config", "config.json", "--dump-config").out == dumped.out
    typed = json.loads(trainer("--use-config", "config.json", "--lr", "0.5", "--set", "n_layer=2", "--dump-config").out)
    assert typed == json.loads(dumped.out) | {"lr": 0.5, "set": ["n_layer=2"]}
    assert trainer("--use-config", "config.json").status == 0
    run = work / "gpt_out" / "run"
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert settings == json.loads(dumped.out) | {"exp": "gpt2ish:6l", "data_order": 2, "midway_tokens": 0}
    assert trainer("--use-config", str(run / "run.json"), "--run-name", "again").status == 0
    assert (run / "train.csv").read_text().splitlines()[0] == (
        work / "gpt_out" / "again" / "train.csv"
    ).read_text().splitlines()[0]
    assert all(weights(run)[name].equal(tensor) for name, tensor in weights(work / "gpt_out" / "again").items())


@pytest.mark.parametrize(
    "budget, steps",
    [
        (["--max-steps", "2"], 2),
        (["--max-tokens", "160"], 3),
        (["--max-tokens", "1e2"], 2),
        (["--max-minutes", "1e-6"], 1),
    ],
)
def test_budgets(trainer, plans, work, budget, steps):
    flags = without_budget(train(plans["plain"]))
    assert trainer(*flags, *budget).status == 0
    meta = json.loads((work / "gpt_out" / "run" / "run.json").read_text())
    assert meta["progress"]["step"] == steps and meta["status"] == "finished"
    assert (work / "gpt_out" / "run" / "samples.txt").read_text().rstrip().count("=== step") == (steps + 1) // 2


@pytest.mark.thorough
def test_epochs_are_trained_whole(trainer, plans, work, tmp_path):
    (tmp_path / "short.txt").write_text(make_text(40, 5))
    plan = write_plan(tmp_path, "short", {"short": {"files": "short.txt"}}, [{"datasets": ["short"], "epochs": 1}])
    flags = without_budget(train(plan))
    assert trainer(*flags).status == 0
    meta = json.loads((work / "gpt_out" / "run" / "run.json").read_text())
    assert meta["progress"]["tokens"] == meta["data"]["datasets"]["short"]["train"]["tokens"]  # every token scored once


def test_default_names_differ_where_the_result_does(trainer, plans, work):
    flags = [flag for flag in FLAGS if flag not in ("--run-name", "run")]
    for more in (
        [],
        ["--seed", "3"],
        ["--lr", "0.02"],
        ["--set", "dropout=0.1"],
        ["--optimizer", "sgd"],
        ["--tokenizer", "bytes"],
        ["--amp"],
        ["--training-plan", plans["two_steps"]],
        ["--exp", "llama2"],
    ):
        assert trainer(*[*flags, "--max-steps", "1", "--training-plan", plans["plain"], *more]).status == 0
    names = [p.name for p in (work / "gpt_out").iterdir() if not p.name.startswith(".")]
    assert len(names) == 9 and all(name.startswith(("gpt2ish-6l_", "llama2-6l_")) for name in names)


def test_the_list_as_a_table(trainer):
    rows = trainer("--exp", "list", "--markdown").out.splitlines()
    assert rows[:2] == ["| experiment | what it is | variants |", "| --- | --- | --- |"]
    assert (
        "| `reverse_time` | gpt2ish that reads and writes text from its end to its beginning. | 6l and 6 more |" in rows
    )


def test_copy_diff_describe(trainer, plans, work):
    assert trainer("--exp", "gpt2ish", "--copy", "my-idea").status == 0
    assert "is the same" not in trainer("--exp", "my_idea", "--diff").out  # its parent is set
    model = work / "experiments" / "my-idea" / "model.py"
    model.write_text(model.read_text().replace("dropout: float = 0.0", "dropout: float = 0.25"))
    diff = trainer("--exp", "my_idea", "--diff")
    assert diff.status == 0 and "+    dropout: float = 0.25" in diff.out
    assert "-    dropout: float = 0.25" in trainer("--exp", "gpt2ish", "--diff", "my-idea").out
    assert "is the same" in trainer("--exp", "gpt2ish", "--diff", "gpt2ish").out
    assert trainer("--exp", "gpt2ish", "--diff").complaint.endswith("--diff OTHER")
    described = trainer("--exp", "my_idea:6l", "--describe")
    assert described.status == 0 and "120,560,209 parameters" in described.out.replace(
        "parameters: 120,560,209", "120,560,209 parameters"
    )
    assert "copied from gpt2ish" in described.out and "FLOPs per token" in described.out and "GiB" in described.out
    assert trainer(*train(plans["plain"], "--exp", "my_idea")).status == 0


def test_lists(trainer, experiment, work):
    experiment("mine")
    broken = work / "experiments" / "broken"
    broken.mkdir()
    (broken / "model.py").write_text("def (")
    listed = trainer("--exp", "list")
    assert listed.status == 0 and "6l, 12l" in listed.out
    assert re.search(r"^broken +CAN NOT BE READ: invalid syntax", listed.out, re.M)
    (work / "plans").mkdir()
    (work / "plans" / "odd.json").write_text('{"steps": 3}')
    plans = trainer("--training-plan", "list")
    assert plans.status == 0 and "quick" in plans.out and "odd" in plans.out
    assert "broken" in trainer("--exp", "broken").complaint


@pytest.mark.process
def test_reader_that_leaves_is_no_error(work):
    script = "import sys; from lmplay.cli.trainer import main; sys.exit(main(['--exp', 'list']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_check_grads_names_the_parameter(trainer, plans, experiment, work):
    experiment(
        "mine",
        "class Model(Model):\n    def __init__(self, config):\n        super().__init__(config)\n"
        "        self.forgotten = nn.Parameter(torch.ones(3))",
    )
    found = trainer(*train(plans["plain"], "--exp", "mine", "--check-grads"))
    assert "forgotten gets no gradient" in found.complaint and not (work / "gpt_out").exists()


def test_reported_values_become_columns(trainer, plans, experiment, work):
    experiment("mine", REPORTING.replace("{EXTRA}", '{"width": 3, "norm": self.head.weight.norm()}'))
    assert trainer(*train(plans["plain"], "--exp", "mine")).status == 0
    header, *rows = (line.split(",") for line in (work / "gpt_out" / "run" / "train.csv").read_text().splitlines())
    assert header[-2:] == ["x_width", "x_norm"]
    assert {row[-2] for row in rows} == {"3"} and all(float(row[-1]) > 0 for row in rows)


def test_what_forward_does_to_the_logits_is_trained(trainer, plans, experiment, work):
    """A copy keeps the body and the head of its parent: they must not be taken for all of it."""
    experiment(
        "capped",
        """
class Model(Model):
    def forward(self, tokens, cache=None):
        return 2.0 * torch.tanh(super().forward(tokens, cache) * 1e6)
""",
    )
    assert trainer(*train(plans["plain"], "--exp", "capped", "--max-steps", "1")).status == 0
    header, row = (line.split(",") for line in (work / "gpt_out" / "run" / "train.csv").read_text().splitlines())
    assert float(row[header.index("loss")]) > 5.8  # of logits that are -2 or 2 by chance; ln 257 = 5.55 without


def test_updates_without_a_scored_token(trainer, work, tmp_path):
    """Long prompts: some steps have nothing to learn from; their cells are empty, and the run goes on."""
    rows = [{"q": "x" * 120, "a": "abcabc"} for _ in range(30)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = write_plan(
        tmp_path, "long", {"long": {"files": "long.jsonl", "prompt": "q", "answer": "a"}}, [{"datasets": ["long"]}]
    )
    done = trainer(*train(plan, "--batch-size", "1", "--max-steps", "40"))
    assert done.status == 0, done.err
    header, *rows = (line.split(",") for line in (work / "gpt_out" / "run" / "train.csv").read_text().splitlines())
    loss, tokens = header.index("loss"), header.index("tokens")
    assert {row[loss] == "" for row in rows} == {True, False}
    for before, row in zip(rows, rows[1:]):
        assert (row[loss] == "") == (row[tokens] == before[tokens])


# What is refused


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--exp", "gpt2isch"], "no experiment named 'gpt2isch'. Did you mean 'gpt2ish'"),
        (["--exp", "gpt2ish:13l"], "no variant '13l'. Did you mean"),
        (["--set", "n_layers=2"], "no setting 'n_layers'. Did you mean 'n_layer'"),
        (["--set", "n_layer=two"], "n_layer takes a whole number"),
        (["--set", "n_layer=inf"], "n_layer takes a whole number"),
        (["--set", "n_layer"], "--set takes FIELD=VALUE"),
        (["--set", "n_head=3"], "n_embd 16 is not a multiple of n_head 3"),
        (["--set", "max_len=3"], "use --context-len"),
        (["--training-plan", "quik"], "no plan 'quik'. Did you mean 'quick'"),
        (["--training-plan", "nowhere.json"], "no plan file nowhere.json"),
        (["--tokenizer", "byte"], "byte"),
        (["--tokenizer", "tiktoken:gpt5"], "gpt5"),
        (["--tokenizer", "bpe:nowhere"], "nowhere"),
        (["--device", "tpu"], "--device takes auto, cpu, cuda, cuda:N or mps, not 'tpu'"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--initial-model", "no_such_run"], "no run 'no_such_run'"),
        (["--batch-size", "0"], "--batch-size must be at least 1, not 0"),
        (["--lr", "inf"], "--lr must be"),
        (["--beta2", "1"], "--beta2 must be"),
        (["--run-name", ".."], "--run-name takes a plain name"),
        (["--run-name", "a/b"], "--run-name takes a plain name"),
        (["--data", "nowhere.txt"], "nowhere.txt"),
        (["--use-config", "nowhere.json"], "--use-config nowhere.json can't be read: No such file"),
    ],
    ids=" ".join,
)
def test_bad_flags(trainer, plans, work, flags, message):
    assert message in trainer(*train(plans["plain"], *flags)).complaint
    assert not (work / "gpt_out").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "the data file is empty"),
        (b"\xff\xfe\x00\x01" * 50, "UTF-8"),
        (b"\x7fELF" + bytes(300), "NUL"),
        (b" \n \n\n", "no documents"),
    ],
)
def test_bad_data_files(trainer, work, content, message):
    (work / "book.txt").write_bytes(content)
    complaint = trainer(*FLAGS, "--data", "book.txt", "--tokenizer", "bytes").complaint
    assert message in complaint and "book" in complaint
    assert not (work / "gpt_out").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"steps": [', "not valid JSON"),
        ('{"datasets": {}, "steps": []}', "datasets"),
        (
            '{"datasets": {"a": {"files": "x"}}, "steps": [{"datasets": ["a"], "epoch": 1}]}',
            "unknown key 'epoch'. Did you mean 'epochs'",
        ),
        (
            '{"tokenizer": "bytes", "datasets": {"a": {"files": "empty.jsonl"}}, "steps": [{"datasets": ["a"]}]}',
            "no documents",
        ),
    ],
)
def test_bad_plans(trainer, work, content, message):
    (work / "bad.json").write_text(content)
    (work / "empty.jsonl").write_text('{"text": ""}\n')
    assert message in trainer(*train("bad.json")).complaint


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not valid JSON"),
        ("[]", "a JSON object of settings is expected"),
        ('{"lrr": 1}', "no setting 'lrr'. Did you mean 'lr'"),
        ('{"lr": "high"}', "lr must be a number"),
        ('{"batch_size": 2.5}', "batch_size must be a whole number"),
        ('{"amp": 1}', "amp must be true or false"),
        ('{"optimizer": "adan"}', "optimizer must be one of"),
        ('{"set": "n_layer=1"}', "set must be"),
        ('{"lr": -1}', "--lr must be"),
        ('{"lr": NaN}', "--lr must be"),
    ],
)
def test_bad_config_files(trainer, work, content, message):
    (work / "config.json").write_text(content)
    assert message in trainer("--use-config", "config.json").complaint


def test_what_the_run_was_not_started_with(trainer, plans, work, experiment):
    """Another tokenizer, setting, data or code than the run's: refused, nothing touched."""
    experiment("mine")
    run = work / "gpt_out" / "run"
    assert trainer(*train(plans["plain"], "--exp", "mine")).status == 0
    before = snapshot(run)
    vocabulary = work / "tokenizer"
    from lmplay.data.tokenizer_training import train_tokenizer

    train_tokenizer({"train": "bpe", "vocab_size": 300}, [make_text(30, 1)], vocabulary)
    for flags, message in [
        (["--tokenizer", f"bpe:{vocabulary}"], "(vocabulary 257), not bpe:"),
        (["--lr", "0.5"], "--lr was 0.001, now 0.5"),
        (["--seed", "1"], "--seed was 0, now 1"),
        (["--set", "n_layer=2"], "n_layer was 1, now 2"),
        (["--context-len", "8"], "max_len was 16, now 8"),
        (["--training-plan", plans["two_steps"]], "the data of the run run changed"),
        (["--exp", "gpt2ish"], "--exp was mine:6l, now gpt2ish:6l"),
    ]:
        complaint = trainer(*train(plans["plain"], "--exp", "mine", *flags)).complaint
        assert message in complaint and "--fresh" in complaint and "--run-name" in complaint
    model = work / "experiments" / "mine" / "model.py"
    model.write_text(model.read_text() + "\nchanged = True\n")
    assert "the code in" in trainer(*train(plans["plain"], "--exp", "mine")).complaint
    assert snapshot(run) == before


def test_folder_that_is_no_run(trainer, plans, work):
    """--out and --run-name can name any folder: what is in it is somebody's."""
    mine = work / "mine"
    (mine / "code").mkdir(parents=True)
    (mine / "code" / "thesis.py").write_text("all of it")
    (mine / "thesis.txt").write_text("all of it")
    before = snapshot(mine)
    for more in ([], ["--fresh"]):
        assert (
            "mine is not a run's folder"
            in trainer(*train(plans["plain"], "--out", ".", "--run-name", "mine", *more)).complaint
        )
        assert snapshot(mine) == before


def test_notes_in_a_run_stay(trainer, plans, work):
    killed = trainer(*train(plans["plain"]), at=At(forward=True, count=2, signals=(signal.SIGKILL,)))
    assert killed.status == -signal.SIGKILL
    notes = work / "gpt_out" / "run" / "notes.txt"
    notes.write_text("remember")
    assert trainer(*train(plans["plain"])).status == 0 and notes.read_text() == "remember"


def test_two_trainers_on_one_run(trainer, plans, work):
    """The first is held in the middle of its work while the second tries."""
    first = trainer.start(
        *train(plans["plain"], "--max-steps", "50"), at=At(forward=True, count=3, signals=(signal.SIGSTOP,))
    )
    try:
        wait_until_stopped(first.pid)
        second = trainer(*train(plans["plain"], "--max-steps", "50"))
        assert second.status == 5 and "another lmp_trainer is training" in second.complaint
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait().status == 0, first.err


def wait_until_stopped(pid: int) -> None:
    """Until the system says that the process is stopped (it is a child of the fork server, not ours to wait for)."""
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_experiment_that_raises_is_one_line(trainer, plans, experiment):
    experiment("mine", "raise RuntimeError('a mistake of its author')")
    failed = trainer(*train(plans["plain"], "--exp", "mine"))
    assert failed.status == 3 and "a mistake of its author" in failed.complaint
    assert "experiments/mine/model.py:" in failed.complaint


# What goes wrong on the way


@pytest.mark.parametrize("checkpoint", [True, False])
def test_loss_that_is_not_finite(trainer, plans, experiment, work, checkpoint):
    experiment(
        "mine",
        """
class Model(Model):
    calls = 0

    def body(self, tokens, cache=None):
        hidden = super().body(tokens, cache)
        if self.training and not hidden.is_meta:
            self.calls += 1         # of this model: the check before the training calls a copy
            if self.calls > 10:        # two parts a step: in the sixth
                return hidden * float("nan")
        return hidden
""",
    )
    flags = train(
        plans["plain"], "--exp", "mine", "--max-steps", "20", *(["--save-interval", "2"] if checkpoint else [])
    )
    complaint = trainer(*flags).complaint
    assert "the loss is not finite (nan) at step 6, on the samples from position 20 of phase 'one'" in complaint
    assert ("the checkpoint step_00000004 is kept" if checkpoint else "no finite weights are kept") in complaint
    run = work / "gpt_out" / "run"
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert len((run / "train.csv").read_text().splitlines()) == 6  # a header and five good rows
    if checkpoint:
        assert all(tensor.isfinite().all() for tensor in weights(run).values())


def test_weights_that_explode(trainer, plans, work):
    complaint = trainer(
        *train(
            plans["plain"], "--lr", "1e30", "--grad-clip", "0", "--warmup-steps", "0", "--validation-interval", "100"
        )
    ).complaint
    assert "is not finite" in complaint and "at step 2" in complaint
    complaint = trainer(
        *train(
            plans["plain"],
            "--lr",
            "1e30",
            "--grad-clip",
            "0",
            "--warmup-steps",
            "0",
            "--validation-interval",
            "1",
            "--save-interval",
            "1",
        )
    ).complaint
    assert "the validation loss is not finite" in complaint
    assert not (work / "gpt_out" / "run" / "checkpoints").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_damaged_checkpoint(trainer, plans, work, name):
    """The run goes on from the checkpoint before, to the same end; without one it stays as it is."""
    constant = train(plans["plain"], "--lr-schedule", "constant", "--save-interval", "2")
    assert trainer(*constant, "--max-steps", "4").status == 0
    run = work / "gpt_out" / "run"
    whole = snapshot(run)
    path = run / "checkpoints" / "step_00000004" / name
    path.write_bytes(path.read_bytes()[:-20])
    earlier = run / "checkpoints" / "step_00000002"
    aside = shutil.move(earlier, work / "aside")
    damaged = snapshot(run)
    complaint = trainer(*constant, "--max-steps", "6").complaint
    assert f"step_00000004/{name} can't be read" in complaint and "no older checkpoint of run is intact" in complaint
    assert snapshot(run) == damaged
    shutil.move(aside, earlier)
    again = trainer(*constant, "--max-steps", "4")
    assert again.status == 0 and f"step_00000004/{name} can't be read" in again.err
    assert "continuing after step 2" in again.err
    after = snapshot(run)
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert after[Path("checkpoints/step_00000004") / file] == whole[Path("checkpoints/step_00000004") / file]


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own that holds 2 MiB."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root's rights")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize(
    "moment",
    [
        At(forward=True, count=9),
        At(event="os.rename", path="one_00000004.npy"),
        At(event="open", path="step_00000006"),
        At(event="os.rename", path=".state.json", count=3),
    ],
    ids=["while training", "while validating", "saving", "saving the state"],
)
def test_disk_that_fills_up(trainer, plans, work, small_disk, moment):
    """The last checkpoint stays, one line says why, and with room again the run ends as if nothing had happened."""
    flags = train(plans["plain"], "--max-steps", "8", "--save-interval", "2", "--set", "dropout=0.1")
    assert trainer(*flags, "--run-name", "wanted").status == 0
    filler = small_disk / "filler"
    at = At(moment.forward, moment.event, moment.path, moment.count, fill=str(filler))
    full = trainer(*flags, "--out", str(small_disk / "runs"), at=at)
    assert "no space left on device" in full.complaint and "what was saved before is intact" in full.complaint
    again = trainer(*flags, "--out", str(small_disk / "runs"))  # still full
    assert again.status == 2 and "Traceback" not in again.err
    filler.unlink()
    assert trainer(*flags, "--out", str(small_disk / "runs")).status == 0
    ours, theirs = small_disk / "runs" / "run", work / "gpt_out" / "wanted"
    for name in (
        "checkpoints/step_00000008/model.safetensors",
        "checkpoints/step_00000008/optimizer.safetensors",
        "samples.txt",
    ):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert len((ours / "train.csv").read_text().splitlines()) == 9
    assert not list(ours.rglob(".*"))


def test_disk_too_small_is_said_before(trainer, plans, small_disk):
    complaint = trainer(*train(plans["plain"], "--set", "n_embd=256"), "--out", str(small_disk)).complaint
    assert "MiB left and checkpoints of this model need about" in complaint
    assert not list(small_disk.iterdir())


def test_disk_that_fills_up_while_data_is_prepared(trainer, work, small_disk):
    (work / "book.txt").write_text(make_text(12_000, 7))
    flags = [*FLAGS, "--data", "book.txt", "--tokenizer", "bytes"]
    env = {"LMPLAY_DATA": str(small_disk)}
    full = trainer(*flags, env=env)
    assert "no space left on device" in full.complaint
    assert sum(p.stat().st_size for p in small_disk.rglob("*") if p.is_file()) < 100_000  # nothing half written
    (work / "book.txt").write_text(make_text(100, 7))
    assert trainer(*flags, env=env).status == 0
