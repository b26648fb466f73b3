"""The names in a run's files are literals, as they were at 95b9b23 and in the runs kept from it."""

import json
from pathlib import Path

import pytest

from lmplay.runs import names
from lmplay.runs.run import read_run
from lmplay.runs.settings import Settings

RUNS = sorted((Path(__file__).resolve().parents[1] / "fixtures" / "runs").iterdir())
COUNTERS = ["plan_step", "step", "samples", "tokens", "bytes", "flops", "seconds"]
SETTINGS = (
    "exp set initial_model training_plan data tokenizer context_len seed same_init batch_size shuffle "
    "optimizer lr lr_schedule warmup_steps warmup_from cooldown_fraction final_lr_fraction restart_steps "
    "restart_shrink weight_decay decay_all beta1 beta2 eps grad_clip clip_value amp max_tokens max_steps "
    "max_minutes validation_interval validation_tokens extra_steps loss_by_position save_interval "
    "backup_interval device mini_batch_size compile out run_name"
).split()


def test_files_and_folders():
    assert set(names.WRITTEN) == {
        "run.json",
        "evaluations.json",
        "train.log",
        "track",
        "code",
        "tokenizer",
        "checkpoints",
        "validate_documents",
        "train.csv",
        "validate.csv",
        "validate_positions.csv",
        "samples.txt",
    }
    assert names.RECORDED == ("train.csv", "validate.csv", "validate_positions.csv", "samples.txt")
    assert names.TABLES == {"train": "train.csv", "validate": "validate.csv"}
    assert (names.MODEL, names.OPTIMIZER, names.STATE) == (
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    )
    assert names.checkpoint_name(20) == "step_00000020" and names.step_of(Path("x/step_00000020")) == 20
    assert names.documents_name("one") == "documents_one.csv" and names.losses_name("one", 10) == "one_00000010.npy"
    assert (names.REPLACED, names.LOCKS) == (".replaced", ".locks")


def test_columns():
    assert names.TRAIN_COLUMNS == [
        *COUNTERS,
        "loss",
        "accuracy",
        "bits_per_byte",
        "learning_rate",
        "gradient_norm",
        "tokens_per_second",
    ]
    assert names.VALIDATE_COLUMNS == [
        *COUNTERS,
        "loss",
        "accuracy",
        "bits_per_byte",
        "validation_tokens",
        "validation_documents",
    ]
    assert names.POSITION_COLUMNS == [
        "plan_step",
        "step",
        "tokens",
        "way",
        "first_position",
        "last_position",
        "scored_tokens",
        "loss",
    ]
    assert names.DOCUMENT_COLUMNS == ["dataset", "document", "tokens", "bytes", "scored_tokens"]
    assert (names.EXTRA_PREFIX, names.DATASET_PREFIX) == ("x_", "loss_")


def test_keys_of_run_json():
    assert (names.N_STEPS, names.FLOPS_PER_STEP, names.COOLDOWN_STEPS) == ("n_updates", "flops_per_update", "updates")
    assert (names.COOLDOWN, names.N_SCHEDULED, names.SAVED_STEP) == ("cooldown", "n_scheduled", "checkpoint_step")
    assert list(Settings().as_json())[: len(SETTINGS)] == SETTINGS  # settings are only ever added, behind these


@pytest.mark.parametrize("folder", RUNS, ids=lambda path: path.name)
def test_an_old_run_has_these_names(folder):
    assert {path.name for path in folder.iterdir()} <= names.WRITTEN
    run = read_run(folder).check("compare").check("load")
    assert names.FLOPS_PER_STEP in run.info
    assert all(names.N_STEPS in phase for phase in run.get("progress", "phases"))
    assert run.keys("settings") == SETTINGS
    for table, columns in ((names.TRAIN_CSV, names.TRAIN_COLUMNS), (names.VALIDATE_CSV, names.VALIDATE_COLUMNS)):
        with open(folder / table, encoding="utf-8") as file:
            assert file.readline().strip().split(",")[: len(columns)] == columns
    for checkpoint in run.checkpoints:
        assert {path.name for path in checkpoint.iterdir()} <= {names.MODEL, names.OPTIMIZER, names.STATE}
        assert json.loads((checkpoint / names.STATE).read_text())["step"] == names.step_of(checkpoint)


@pytest.mark.parametrize("word", ["update", "step"])
def test_samples_are_found_under_the_old_head_and_the_new(word):
    text = f"=== {word} 1, 100 tokens, validation loss 9.0000\n--- 1\nold\n\n"
    text += f"=== {word} 20, 2,000 tokens, validation loss 3.1\n"
    assert [head[1].split(",")[0] for head in names.SAMPLE_HEAD.finditer(text)] == ["1", "20"]


def test_the_head_of_samples_is_found_again():
    head = names.sample_head(step=20, tokens=2000, loss=3.1)
    assert head == "=== step 20, 2,000 tokens, validation loss 3.1000"
    assert names.SAMPLE_HEAD.fullmatch(head)[1] == head.removeprefix("=== step ")
