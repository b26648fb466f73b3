"""The settings of a run: their defaults, ranges and help, and which of them decide what the run computes."""

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmplay.data.json_checks import LARGEST
from lmplay.data.plan_spec import ORDERS
from lmplay.data.tokenizer_names import full_name
from lmplay.errors import UserError
from lmplay.files import typed_path, usable_folder
from lmplay.registry import DEFAULT_EXPERIMENT
from lmplay.runs.optimizers import OPTIMIZERS
from lmplay.runs.setting import THREE, flag_of, setting, switch
from lmplay.text import whole_numbers

LONGEST_RUN_NAME = 240  # bytes; a disk takes 255, and what is written beside needs some
OWN_RECIPE, TUNED_RECIPE, NO_RECIPE = "own", "tuned", "none"  # what --recipe may be besides a name
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
SCHEDULES = ("constant", "cosine", "linear", "wsd", "cosine_restarts")


def default_out() -> str:
    """Return the folder of all runs where none is named: $LMPLAY_OUT, else gpt_out."""
    return os.environ.get("LMPLAY_OUT") or "gpt_out"


@dataclass(frozen=True)
class Settings:
    """The settings of one run. Every field is a flag of lmp_trainer: `batch_size` is `--batch-size`."""

    exp: str = setting(
        DEFAULT_EXPERIMENT, "experiment to train, NAME[:VARIANT]; 'list' shows all", metavar="NAME[:VARIANT]"
    )
    set: tuple[str, ...] = setting(
        tuple,
        "change a field of the experiment's Config; repeatable",
        identity=False,
        action="append",
        metavar="FIELD=VALUE",
    )
    initial_model: str | None = setting(
        None, "start from the weights of this run, or published ones (default: new)", metavar="RUN|hf:FOLDER_OR_ID"
    )

    training_plan: str = setting(
        "default",
        "plan to train on, a name or a file; 'list' shows all (default: the plan named default)",
        identity=False,
        metavar="NAME|FILE",
    )
    data: tuple[str, ...] = setting(
        tuple,
        "train on these files or folders (txt, jsonl, json, csv, parquet, tokens of nanoGPT) instead of a plan",
        identity=False,
        nargs="+",
        metavar="FILE",
    )
    tokenizer: str | None = setting(
        None,
        "tokenizer to use: tiktoken:NAME, sentencepiece:FILE, bpe:FOLDER, hf:FOLDER_OR_ID, bytes, or bpe:SIZE, trained "
        "on the plan's documents (default: the plan's)",
        identity=False,
    )
    context_len: int | None = setting(
        None, "tokens per sequence (default: the plan's, else the variant's max_len)", identity=False, metavar="TOKENS"
    )

    seed: int = setting(0, "seed of initial values, data order and dropout")
    same_init: bool = switch(
        False, "derive initial values from each parameter's name, so that experiments with one seed share them"
    )
    batch_size: int = setting(50, "sequences per step", metavar="N")
    shuffle: bool = switch(
        True, "take the sequences in random order; --no-shuffle takes them as they come in the joined documents"
    )
    optimizer: str = setting("adamw", "optimizer", choices=tuple(OPTIMIZERS))
    lr: float = setting(1e-3, "peak learning rate")
    lr_schedule: str = setting("cosine", "shape of the learning rate after the warm-up", choices=SCHEDULES)
    warmup_steps: int = setting(50, "steps of linear warm-up", metavar="N")
    warmup_from: float | None = setting(
        None,
        "learning rate at step 0 as a fraction of the peak; the warm-up then lasts exactly --warmup-steps "
        "(default: start at 1 / warmup_steps and warm up for at most a quarter of the run)",
        metavar="F",
    )
    cooldown_fraction: float = setting(0.2, "fraction of the steps in which a wsd schedule cools down", metavar="F")
    final_lr_fraction: float = setting(0.0, "learning rate at the end as a fraction of the peak", metavar="F")
    restart_steps: int = setting(0, "steps between two restarts of cosine_restarts", metavar="N")
    restart_shrink: float = setting(1.0, "height of each restart as a fraction of the one before", metavar="F")
    weight_decay: float = setting(0.1, "weight decay of matrices; decoupled for adamw and muon")
    decay_all: bool = switch(False, "decay every parameter: embeddings, norms and biases, too")
    beta1: float = setting(0.9, "beta1 of adam and adamw")
    beta2: float = setting(0.95, "beta2 of adam and adamw, alpha of rmsprop")
    eps: float = setting(1e-8, "epsilon of adam and adamw")
    grad_clip: float = setting(1.0, "clip the gradient to this norm; 0 does not clip", metavar="NORM")
    clip_value: float = setting(
        0.0, "clip each element of the gradient to this absolute value; 0 does not clip", metavar="V"
    )
    amp: bool = setting(
        False,
        "train in mixed precision: bfloat16, or scaled float16 on devices without bfloat16; auto does where this "
        "device multiplies matrices faster so",
        choices=THREE,
    )
    max_tokens: int | None = setting(
        None,
        "read N tokens, then stop: the plan's last phase is cut, or goes on into further epochs (default: the plan's)",
        identity=False,
        metavar="N",
    )
    max_steps: int | None = setting(
        None, "stop after N steps, as --max-tokens does (default: the plan's)", identity=False, metavar="N"
    )
    max_minutes: float | None = setting(
        None,
        "stop after M minutes of training, as --max-tokens does (default: no limit)",
        identity=False,
        metavar="M",
    )
    validation_interval: int | None = setting(
        None,
        "steps between validations of all documents (default: about 20 validations in a run, midway on a part of the "
        "documents, so that they cost 2%; a run that goes on keeps its own)",
        metavar="N",
        before=50,
    )
    validation_tokens: int = setting(
        100_000, "score about N tokens of each validation set; 0 scores all of them", metavar="N"
    )
    extra_steps: int = setting(
        0,
        "train N steps beyond the plan or the budget, at the rate with which the schedule ends (refused at 0, where "
        "cosine ends by default); a run that has cooled down goes back to before that first",
        identity=False,
        metavar="N",
    )
    loss_by_position: int = setting(
        0,
        "record the validation loss in N ranges of positions in the window; 0 records none",
        identity=False,
        metavar="N",
    )
    save_interval: int = setting(
        0, "steps between checkpoints; 0 saves every five minutes", identity=False, metavar="N"
    )
    backup_interval: int = setting(
        0, "steps between checkpoints that are kept for good; 0 keeps only the newest two", identity=False, metavar="N"
    )

    device: str = setting("auto", "device to train on: auto, cpu, cuda, cuda:N or mps", identity=False)
    mini_batch_size: int = setting(
        0,
        "sequences per forward pass (micro-batch): fewer need less memory, with the same result without dropout; "
        "0 chooses from memory",
        identity=False,
        metavar="N",
        aliases=("--micro-batch-size",),
    )
    compile: str = setting(
        "auto",
        "compile the model with torch.compile; auto does where a timing and the length of the run say that it pays",
        identity=False,
        choices=THREE,
    )
    out: str = setting(
        default_out, "folder of all runs ($LMPLAY_OUT is another default)", identity=False, metavar="FOLDER"
    )
    run_name: str | None = setting(
        None, "name of the run's folder (default: made from the settings)", identity=False, metavar="NAME"
    )
    epochs: float | None = setting(
        None, "read the text X times as often as the plan says, its phases in epochs", identity=False, metavar="X"
    )
    data_order: int | None = setting(
        None,
        "how the text is cut into sequences: 2, at positions that vary within an epoch, or 1, at one position an epoch "
        "and never beyond the plan's epochs, as in earlier runs (default: 2; a run that goes on keeps its own)",
        choices=ORDERS,
        before=ORDERS[0],
    )
    cuda_graph: str = setting(
        "auto",
        "replay a step as CUDA graphs: auto does where a trial gives equal losses, and takes other steps eagerly",
        identity=False,
        choices=THREE,
    )
    muon_scale: str = setting(
        "match_rms",
        "scale of muon's steps: match_rms, as large as adamw's, or rows, sqrt(max(1, rows / columns))",
        choices=("match_rms", "rows"),
    )
    embedding_lr: float = setting(1.0, "learning rate of all embeddings, as a multiple of --lr", metavar="X")
    head_lr: float = setting(1.0, "learning rate of the model's head, as a multiple of --lr", metavar="X")
    recipe: str = setting(
        OWN_RECIPE,
        "recipe for what no flag says of learning: own, the experiment's; tuned, its or its parent's tuned one; none, "
        "the defaults; NAME, that experiment's",
        identity=False,
        metavar="own|tuned|none|NAME",
    )
    threads: int = setting(
        0,
        "threads of the CPU that train; 0: as many as there are cores, and those that it had for a run that goes on",
        identity=False,
        metavar="N",
    )
    data_separator: str | None = setting(
        None,
        "with --data: what stands between the documents of a text file, such as '<|endoftext|>' (default: files are "
        "cut at blank lines)",
        identity=False,
        metavar="TEXT",
    )
    text_column: str | None = setting(
        None, "with --data: column that holds the text (default: text)", identity=False, metavar="NAME"
    )
    validation_data: tuple[str, ...] = setting(
        tuple,
        "with --data: hold these files out for validation (default: a tenth of the documents)",
        identity=False,
        nargs="+",
        metavar="FILE",
    )
    backup_at: str = setting("", "keep the checkpoints after these steps for good", identity=False, metavar="N,N,...")
    track: tuple[str, ...] = setting(
        tuple,
        "send the run to this tracker, too, beside the training; repeatable (default: none)",
        identity=False,
        action="append",
        choices=TRACKERS,
    )

    keep_best: bool = switch(
        False, "keep the checkpoint of the lowest validation loss, too; lmp_generator writes with it", identity=False
    )
    early_stop: int = setting(
        0, "end when N validations in a row did not lower the loss; 0 never", identity=False, metavar="N"
    )
    prompts: str | None = setting(
        None,
        "begin the samples with the prompts of this file, one per line, or of .json or .jsonl (default: the plan's)",
        identity=False,
        metavar="FILE",
    )
    midway_tokens: int | None = setting(
        None,
        "score about N tokens of each validation set midway, in whole documents; 0 scores all (default: what 2% of the "
        "training pays for; all with --validation-interval)",
        identity=False,
        metavar="N",
        before=0,
    )

    def __post_init__(self) -> None:
        if whole_numbers(self.backup_at) is None:
            raise UserError(f"--backup-at takes whole numbers from 1 with commas between them, not {self.backup_at!r}")
        self._require(("seed",), lambda v: v < 2**64, "a whole number below 2^64")
        if self.tokenizer:
            object.__setattr__(self, "tokenizer", full_name(self.tokenizer))
        self._require(("batch_size", "validation_interval"), lambda v: v >= 1, "at least 1")
        self._require(
            ("context_len", "epochs", "max_tokens", "max_steps", "max_minutes", "lr", "eps", "embedding_lr", "head_lr"),
            lambda v: v > 0,
            "more than 0",
        )
        numbers = "mini_batch_size", "save_interval", "loss_by_position", "backup_interval", "validation_tokens"
        self._require((*numbers, "seed", "threads", "early_stop", "midway_tokens"), lambda v: v >= 0, "at least 0")
        self._require(
            ("warmup_steps", "weight_decay", "grad_clip", "clip_value", "restart_steps", "extra_steps"),
            lambda v: v >= 0,
            "at least 0",
        )
        self._require(
            ("cooldown_fraction", "final_lr_fraction", "warmup_from", "restart_shrink"),
            lambda v: 0 <= v <= 1,
            "between 0 and 1",
        )
        self._require(("beta1", "beta2"), lambda v: 0 <= v < 1, "at least 0 and below 1")
        if self.lr_schedule == "cosine_restarts":
            self._require(("restart_steps",), lambda v: v >= 1, "at least 1 for --lr-schedule cosine_restarts")
        if self.run_name is not None and (self.run_name[:1] in ("", ".") or Path(self.run_name).name != self.run_name):
            raise UserError(f"--run-name takes a plain name, not {self.run_name!r}: --out says where it goes")
        if any(ord(character) < 32 for character in self.run_name or ""):
            raise UserError(f"--run-name {self.run_name!r} has control characters: take letters, digits and signs")
        if len(os.fsencode(typed_path(self.run_name or ""))) > LONGEST_RUN_NAME:
            raise UserError(f"--run-name is too long: at most {LONGEST_RUN_NAME} bytes, so that every disk takes it")

    def _require(self, names: tuple[str, ...], good: Callable[[Any], bool], range_: str) -> None:
        """Raise UserError for a number that is not finite or not `good`. A setting that is None is left out."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and good(value)):
                raise UserError(f"{flag_of(name)} must be {range_}, not {value}")
            if isinstance(value, int) and value >= LARGEST and name != "seed":
                raise UserError(f"{flag_of(name)} must be below 2**63, not {value}")

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide what the run computes."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata["identity"]}

    @property
    def out_folder(self) -> Path:
        """The folder of all runs. Raises UserError if a file is in the way."""
        return usable_folder(typed_path(self.out), "--out")

    def as_json(self) -> dict[str, Any]:
        """Return plain values, as run.json and --dump-config hold them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def settings_before() -> dict[str, Any]:
    """Return what a run had that is older than a setting, for all settings."""
    old = {f.name: f.metadata["before"] for f in dataclasses.fields(Settings) if f.metadata["before"] is not None}
    return Settings().as_json() | old
