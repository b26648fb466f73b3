"""Everything that can be set about a run, and which of it decides what the run computes."""

import argparse
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

from lmplay.errors import UserError
from lmplay.registry import DEFAULT_EXPERIMENT

SCHEDULES = ("constant", "cosine", "linear", "wsd", "cosine_restarts")
OPTIMIZERS = ("adamw", "adam", "adagrad", "sgd", "rmsprop", "muon")


def setting(default, help: str, identity: bool = True, **flag):
    """A field of Settings. `identity` says that it decides what the run computes, so that it can't change on resume.

    (What the data and the experiment's Config are made from is compared as data and Config.)
    """
    given = {"default_factory": default} if callable(default) else {"default": default}
    return field(**given, metadata={"help": help, "identity": identity, "flag": flag})


@dataclass(frozen=True)
class Settings:
    """The settings of one run. Every field is a flag of lmp_trainer: `batch_size` is `--batch-size`."""

    exp: str = setting(DEFAULT_EXPERIMENT, "the experiment, NAME[:VARIANT]; 'list' shows all", metavar="NAME[:VARIANT]")
    set: tuple[str, ...] = setting(
        tuple, "change a field of the experiment's Config (repeatable)", False, action="append", metavar="FIELD=VALUE"
    )
    initial_model: str | None = setting(None, "start from the weights of this run", metavar="RUN")

    training_plan: str = setting(
        "default", "the data: a plan's name or file; 'list' shows all", False, metavar="NAME|FILE"
    )
    data: tuple[str, ...] = setting(
        tuple, "train on these files (txt, jsonl, parquet, csv) instead of a plan", False, nargs="+", metavar="FILE"
    )
    tokenizer: str | None = setting(
        None, "instead of the plan's: tiktoken:NAME, sentencepiece:FILE, bpe:FOLDER or bytes", False
    )
    context_len: int | None = setting(
        None, "tokens a sequence (default: the variant's max_len)", False, metavar="TOKENS"
    )

    seed: int = setting(0, "decides initial values, order of the data and dropout")
    same_init: bool = setting(
        False,
        "initial values by a parameter's name, so that experiments with one seed share them",
        action=argparse.BooleanOptionalAction,
    )
    batch_size: int = setting(50, "sequences an update", metavar="N")
    shuffle: bool = setting(
        True,
        "draw the sequences at random; --no-shuffle cuts the joined documents from their beginning on",
        action=argparse.BooleanOptionalAction,
    )
    optimizer: str = setting("adamw", "which optimiser", choices=OPTIMIZERS)
    lr: float = setting(1e-3, "peak learning rate")
    lr_schedule: str = setting("cosine", "its course after the warm-up", choices=SCHEDULES)
    warmup_steps: int = setting(50, "updates of linear warm-up", metavar="N")
    warmup_from: float | None = setting(
        None,
        "the rate of the first update, as a part of the peak, for a warm-up as papers have it "
        "(default: 1 / warmup_steps, and a quarter of all updates at the most)",
        metavar="F",
    )
    cooldown_fraction: float = setting(0.2, "the part of a wsd schedule that cools down", metavar="F")
    final_lr_fraction: float = setting(0.0, "the end of the schedule, as a part of the peak", metavar="F")
    restart_steps: int = setting(0, "updates between the restarts of cosine_restarts", metavar="N")
    restart_shrink: float = setting(1.0, "the height of each restart, as a part of the one before", metavar="F")
    weight_decay: float = setting(0.1, "decay of matrices, decoupled for adamw and muon")
    decay_all: bool = setting(
        False, "decay every parameter: embeddings, norms and biases, too", action=argparse.BooleanOptionalAction
    )
    beta1: float = setting(0.9, "of adam and adamw")
    beta2: float = setting(0.95, "of adam, adamw and rmsprop")
    eps: float = setting(1e-8, "of adam and adamw")
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0 does not clip", metavar="NORM")
    clip_value: float = setting(
        0.0, "largest absolute value of each element of the gradient; 0 does not clip", metavar="V"
    )
    amp: bool = setting(
        False,
        "mixed precision: bfloat16, or scaled float16 where the device has no bfloat16",
        action=argparse.BooleanOptionalAction,
    )

    max_tokens: int | None = setting(None, "stop after so many tokens", False, metavar="N")
    max_steps: int | None = setting(None, "stop after so many updates", False, metavar="N")
    max_minutes: float | None = setting(None, "stop after so much training time", False, metavar="M")
    validation_interval: int = setting(50, "updates between validations", metavar="N")
    validation_tokens: int = setting(
        100_000, "score about so many tokens of each validation set; 0 for all", metavar="N"
    )
    extra_steps: int = setting(0, "so many updates more than the data or --max-... say", False, metavar="N")
    loss_by_position: int = setting(
        0, "record the validation loss by position in the window, in so many ranges; 0 does not", False, metavar="N"
    )
    save_interval: int = setting(0, "updates between checkpoints; 0 saves every five minutes", False, metavar="N")
    backup_interval: int = setting(
        0, "updates between checkpoints that are kept for good; 0 keeps the newest two only", False, metavar="N"
    )

    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps", False)
    mini_batch_size: int = setting(0, "sequences at once: less memory, same result; 0 chooses", False, metavar="N")
    compile: bool = setting(False, "compile the model with torch.compile", False, action=argparse.BooleanOptionalAction)
    out: str = setting("gpt_out", "the folder of all runs", False, metavar="FOLDER")
    run_name: str | None = setting(None, "the run's folder (default: made from what is set)", False, metavar="NAME")

    def __post_init__(self):
        for name in ("batch_size", "validation_interval"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("context_len", "max_tokens", "max_steps", "max_minutes"):
            self._check(name, getattr(self, name) is None or getattr(self, name) > 0, "more than 0")
        for name in (
            "mini_batch_size",
            "save_interval",
            "loss_by_position",
            "backup_interval",
            "validation_tokens",
            "warmup_steps",
            "weight_decay",
            "grad_clip",
            "clip_value",
            "restart_steps",
            "extra_steps",
            "seed",
        ):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        for name in ("lr", "eps"):
            self._check(name, getattr(self, name) > 0, "more than 0")
        for name in ("cooldown_fraction", "final_lr_fraction", "warmup_from", "restart_shrink"):
            self._check(name, getattr(self, name) is None or 0 <= getattr(self, name) <= 1, "between 0 and 1")
        self._check(
            "restart_steps",
            self.restart_steps or self.lr_schedule != "cosine_restarts",
            "at least 1 for --lr-schedule cosine_restarts",
        )
        for name in ("beta1", "beta2"):
            self._check(name, 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        if self.run_name is not None and (self.run_name[:1] in ("", ".") or Path(self.run_name).name != self.run_name):
            raise UserError(f"--run-name takes a plain name, not {self.run_name!r}: --out says where it goes")

    def _check(self, name: str, good: bool, range_: str) -> None:
        value = getattr(self, name)
        if not good or isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{flag_of(name)} must be {range_}, not {value}")

    @property
    def identity(self) -> dict:
        """The settings that decide what the run computes."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata["identity"]}

    def as_json(self) -> dict:
        """Plain values, as run.json and --dump-config hold them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")
