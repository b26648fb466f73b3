"""Spell the names that a run's files keep: its files and folders, the columns of its tables, the keys of its JSON.

Words in code and prose may change. These stay as they were written first, because runs of every age are read by them.
"""

import re
from pathlib import Path

# Files and folders of a run
RUN_JSON = "run.json"
CODE = "code"
TOKENIZER = "tokenizer"
CHECKPOINTS = "checkpoints"
TRAIN_CSV = "train.csv"
VALIDATE_CSV = "validate.csv"
POSITIONS_CSV = "validate_positions.csv"
SAMPLES = "samples.txt"
DOCUMENT_LOSSES = "validate_documents"
EVALUATIONS = "evaluations.json"  # what lmp_eval found
TRACK = "track"  # what was sent to trackers, and their logs
LOG = "train.log"  # what the model prints, and the traceback of its error
TABLES = {"train": TRAIN_CSV, "validate": VALIDATE_CSV}
RECORDED = (TRAIN_CSV, VALIDATE_CSV, POSITIONS_CSV, SAMPLES)  # what grows line by line
WRITTEN = frozenset({RUN_JSON, CODE, TOKENIZER, CHECKPOINTS, DOCUMENT_LOSSES, LOG, TRACK, EVALUATIONS, *RECORDED})

# Key of a result of lmp_eval: bits per byte of the right answers
ANSWER_BITS = "answer_bits_per_byte"

# Beside the runs
VERDICTS = "verdicts.jsonl"  # one line per verdict of lmp_compare
REPLACED = ".replaced"
LOCKS = ".locks"

# Files of a checkpoint
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
ATTRIBUTES = "attributes.safetensors"  # what the model keeps outside of its parameters, if training changes any

# Columns
MFU = "mfu"  # model FLOPs per second as a part of the peak; also in run.json's progress
PLAN_STEP = "plan_step"  # the phase of the plan
STEP = "step"
DIRECTION = "way"
COUNTERS = [PLAN_STEP, STEP, "samples", "tokens", "bytes", "flops", "seconds"]
TRAIN_COLUMNS = [*COUNTERS, "loss", "accuracy", "bits_per_byte", "learning_rate", "gradient_norm", "tokens_per_second"]
NEWER_COLUMNS = {MFU}  # come after those above; a run that was begun without them goes on without them
VALIDATE_COLUMNS = [*COUNTERS, "loss", "accuracy", "bits_per_byte", "validation_tokens", "validation_documents"]
POSITION_COLUMNS = [
    PLAN_STEP,
    STEP,
    "tokens",
    DIRECTION,
    "first_position",
    "last_position",
    "scored_tokens",
    "loss",
]
DOCUMENT_COLUMNS = ["dataset", "document", "tokens", "bytes", "scored_tokens"]
EXTRA_PREFIX = "x_"  # of a column that the experiment reports
DATASET_PREFIX = "loss_"  # of the loss on one of several datasets
MIDWAY_PREFIX = "midway_"  # of a figure on the documents that are scored midway, in a row of all documents

# Key of run.json, in "plan": what people are shown of a plan that was made of several files, if not its name
PLAN_TITLE = "title"

# Key of run.json: the step of the last checkpoint that was saved, 0 for none yet; runs made before do not have it
SAVED_STEP = "checkpoint_step"

# Key of run.json: whether steps are replayed as CUDA graphs ("mode": on or off), "why", the "difference" in the trial;
# not there for a run without a CUDA device, nor for one of an earlier version, which takes every step eagerly
CUDA_GRAPH = "cuda_graph"

# Key of run.json: whether the model is compiled ("mode": on or off), "why", and the "factor" that was measured; not
# there where nothing could compile it, nor in runs that are older, which say it in their settings
COMPILED = "compiled"

# Keys of run.json's "device": the FLOPs per second of a product of large matrices in the run's precision, as measured
# there; of a GPU whether products that stay float32 are taken in TF32
PEAK_FLOPS = "peak_flops"
TF32 = "tf32"
# The processes that trained a run together, in "device": how many ("n"), over what they talked, on which devices
RANKS = "ranks"

# Key of run.json: with how many other seeds in one stack its process trained it ("seeds", all of them), as one CUDA
# graph or not ("graph"), the relative "difference" from steps alone in a trial, and how many times as fast ("speed")
TOGETHER = "together"

# Key of run.json: names of what training changes in the model and no checkpoint can keep
NOT_KEPT = "state_not_kept"

# Keys of run.json: the process that trains the run, when it was last heard of, and the error that ended the run
PROCESS = "process"
HEARTBEAT = "heartbeat"
ERROR = "error"
PRUNED = "pruned"  # when its checkpoints were removed on purpose, and the step of the last one

# Key of run.json: the shortcuts that the model went without, and why; only in runs that went without one
NOT_TAKEN = "shortcuts_not_taken"

# Keys of run.json, in part older words
N_STEPS = "n_updates"  # of a phase
FLOPS_PER_STEP = "flops_per_update"
N_SCHEDULED = "n_scheduled"  # of a phase: the steps that its learning rate is laid out for
COOLDOWN = "cooldown"  # of a phase
COOLDOWN_STEPS = "updates"  # of a phase's cool-down

# Head of the samples in samples.txt that one validation wrote; "step" was "update" at first
SAMPLE_HEAD = re.compile(r"^(?:=== update|=== step) (\d+, [\d,]+ tokens, validation loss \S+)$", re.M)


def sample_head(step: int, tokens: int, loss: float) -> str:
    """Return the line above the samples that a validation writes."""
    return f"=== step {step}, {tokens:,} tokens, validation loss {loss:.4f}"


RECIPE = "recipe"  # in run.json: by what recipe a run learned, {"asked", "settings", "off"}
OFF_RECIPE = (RECIPE, "off")  # the settings in which it is not as the recipe has it
MICRO_BATCH_SIZE = "micro_batch_size"  # sequences at once, after memory ran out: in state.json and run.json
BEST = "best"  # in state.json: the lowest validation loss of the phase, its step, and validations since


def checkpoint_name(step: int) -> str:
    """Return the name of the folder of a checkpoint after `step` steps."""
    return f"step_{step:08d}"


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("step_"))


def documents_name(phase: str) -> str:
    """Return the name of the table of the documents that are scored in a phase of the plan."""
    return f"documents_{phase}.csv"


def losses_name(phase: str, step: int) -> str:
    """Return the name of the file of the losses of these documents after `step` steps."""
    return f"{phase}_{step:08d}.npy"
