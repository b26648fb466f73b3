"""Where a run stands: what changes while it trains."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from lmplay.runs.names import BEST, MICRO_BATCH_SIZE, PLAN_STEP, STEP
from lmplay.train.phases import Phase

if TYPE_CHECKING:
    from lmplay.model.cost import Cost


@dataclass
class TrainState:
    """Where a run stands. `state.json` and the progress in run.json are made from it.

    phases: those that the run trains, in order. phase: index of the current one. position: how many of its windows are
    done. samples: windows of all phases. tokens and bytes: scored ones of the text, once however often it is read.
    seconds: of training. final: loss, accuracy and bits per byte of the last step that scored a token.
    checkpoint: from which the run goes on; None for one that starts. saved_step: that of the last checkpoint.
    micro_batch_size: what memory allowed after it had run out, None if it never did.
    lock: held for as long as this object is in use. cuda_graph, compiled: how the run took its steps so far, as
    run.json has it. best: the lowest validation loss of the phase, its step, and how many validations did not lower it
    since; None where nothing asks for it.
    """

    phases: list[Phase]
    step: int = 0
    phase: int = 0
    position: int = 0
    samples: int = 0
    tokens: int = 0
    bytes: float = 0.0
    seconds: float = 0.0
    final: dict[str, float | None] = dataclasses.field(default_factory=dict)
    validation_loss: float | None = None
    peak_memory: int = 0
    created: str | None = None
    checkpoint: Path | None = None
    saved_step: int = 0
    micro_batch_size: int | None = None
    lock: FileLock | None = None
    cuda_graph: dict[str, Any] | None = None
    compiled: dict[str, Any] | None = None
    best: dict[str, float] | None = None

    @property
    def current(self) -> Phase | None:
        """The phase that the run is in, or None if it has no window left."""
        phase = self.phases[self.phase] if self.phase < len(self.phases) else None  # beyond: the budget is smaller now
        return phase if phase is not None and self.position < phase.end else None

    @property
    def n_steps(self) -> int:
        """The steps of all phases together."""
        return sum(phase.n_steps for phase in self.phases)

    def advance(self) -> None:
        """Go on to the next phase that has windows left. At the end of the last one nothing changes."""
        while self.current is None and self.phase + 1 < len(self.phases):
            self.phase, self.position, self.best = self.phase + 1, 0, None

    def note_validation(self, loss: float, wanted: bool) -> None:
        """Note a validation loss. wanted: and whether it is the best of the phase."""
        self.validation_loss = loss
        if wanted and (self.best is None or loss < self.best["loss"]):
            self.best = {"loss": loss, STEP: self.step, "since": 0}
        elif wanted and self.best is not None:
            self.best["since"] += 1

    def waited_for(self, validations: int) -> bool:
        """Tell whether the last N `validations` did not lower the loss; 0: never."""
        return bool(validations and self.best and self.best["since"] >= validations)

    @property
    def is_best(self) -> bool:
        """Whether the run stands where its validation loss was lowest."""
        return self.best is not None and self.best[STEP] == self.step

    def release(self) -> None:
        """Let others have the run's folder; what refers to this object may live on."""
        if self.lock is not None:
            self.lock.release()

    def counters(self, phase: Phase, cost: "Cost", context_len: int) -> dict[str, Any]:
        """Return where the run stands, as the tables have it."""
        return {
            PLAN_STEP: phase.name,
            STEP: self.step,
            "samples": self.samples,
            "tokens": self.tokens,
            "bytes": round(self.bytes),
            "flops": self.flops(cost, context_len),
        }

    def flops(self, cost: "Cost", context_len: int) -> float:
        """Return the FLOPs of the training so far."""
        return self.samples * context_len * cost.flops_per_token + self.step * cost.flops_per_step

    def as_json(self) -> dict[str, Any]:
        """Return what state.json holds of it."""
        return {
            "step": self.step,
            "phase": self.phase,
            "position": self.position,
            "samples": self.samples,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "final": self.final,
            "validation_loss": self.validation_loss,
            **({} if self.micro_batch_size is None else {MICRO_BATCH_SIZE: self.micro_batch_size}),
            **({} if self.best is None else {BEST: self.best}),
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Take over what state.json holds."""
        for name in TrainState(self.phases).as_json():
            setattr(self, name, record[name])
        self.micro_batch_size, self.best = record.get(MICRO_BATCH_SIZE), record.get(BEST)

    def progress(self) -> dict[str, Any]:
        """Return what run.json holds of it."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 2),
            "final": self.final,
            "validation_loss": self.validation_loss,
            "phases": [phase.as_json() for phase in self.phases],
            "peak_memory_bytes": self.peak_memory,
            **({} if self.micro_batch_size is None else {MICRO_BATCH_SIZE: self.micro_batch_size}),
        }
