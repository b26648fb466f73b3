"""The training loop."""

import functools
import math
import os
import signal
import time

import torch

from lmplay.errors import UserError
from lmplay.model.adapters import derived_once, fused_head
from lmplay.model.cost import activation_bytes, derived_bytes
from lmplay.model.device import amp_dtype, choose_device, peak_memory, precision
from lmplay.model.initial_values import seed_of
from lmplay.model.loss import score
from lmplay.runs import checkpoints
from lmplay.runs.folder import only_trainer, start_folder
from lmplay.runs.names import CHECKPOINTS, EXTRA_PREFIX
from lmplay.runs.recorder import Recorder
from lmplay.runs.run import Run, read_run
from lmplay.train.batches import TrainingFeed
from lmplay.train.optimizers import clip_gradients, make_optimizers
from lmplay.train.phases import rate
from lmplay.train.progress import Progress
from lmplay.train.resume import cool_down, recorded, to_continue
from lmplay.train.samples import samples
from lmplay.train.setup import Setup, build_model, describe_run, load_initial_weights
from lmplay.train.validation import ValidationFeed

SAVE_SECONDS = 300.0
CPU_TOKENS_AT_ONCE = 8192
FLUSH_SECONDS = 1.0  # a GPU is asked for its losses this often: asking waits for all that it has to do


class Trainer:
    """Trains one run from wherever it stands to its end or until it is asked to stop."""

    def __init__(self, setup: Setup, fresh: bool = False, cooldown_now: float | None = None):
        self.setup, self.settings = setup, setup.settings
        self.device = choose_device(self.settings.device)
        self.lock = only_trainer(setup.folder)
        checkpoint = None if fresh else to_continue(setup)
        if cooldown_now is not None and checkpoint is None:
            raise UserError(f"--cooldown-now: there is no checkpoint of {setup.folder} to start from")
        self.precision = functools.partial(precision, self.device, self.settings.amp, setup.context_len)
        self.model = build_model(setup)
        if checkpoint is None:
            load_initial_weights(setup, self.model)
            start_folder(setup.folder, setup.entry, setup.data.tokenizer.spec)
        self.model.to(self.device).train()
        self.optimizers = make_optimizers(
            self.model,
            self.settings.optimizer,
            self.settings.lr,
            self.settings.weight_decay,
            (self.settings.beta1, self.settings.beta2),
            self.settings.eps,
            self.settings.decay_all,
        )
        scaled = self.settings.amp and amp_dtype(self.device) is torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.recorder = Recorder(setup.folder)
        self.state = {
            "step": 0,
            "phase": 0,
            "position": 0,
            "samples": 0,
            "tokens": 0,
            "bytes": 0.0,
            "seconds": 0.0,
            "final": {},
            "validation_loss": None,
        }
        self.meta = describe_run(setup, self.device)
        self.peak_memory = 0
        if checkpoint is not None:
            self.state = checkpoints.load(checkpoint, self.model, self.optimizers)
            if scaler := self.state.pop("scaler"):
                self.scaler.load_state_dict(scaler)
            self.recorder.cut_back(self.state.pop("files"), self.state["step"])
            before = read_run(setup.folder)
            self.meta["created"] = before.get("created")
            self.peak_memory = before.get("progress", "peak_memory_bytes") or 0
            if cooldown_now is not None:
                setup.phases = cool_down(setup.phases, self.settings, self.state, cooldown_now)
        self.resumed = checkpoint is not None
        if self.settings.compile:
            self._compile()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.mini_batch_size = self._mini_batch_size()
        self.pending: list[dict] = []
        self.last_flush = time.perf_counter()
        self.stopping = False

    @property
    def phase(self):
        """The step of the plan that comes next, or None at the end."""
        state, phases = self.state, self.setup.phases
        while state["phase"] >= len(phases) or state["position"] >= phases[state["phase"]].n_windows:
            if state["phase"] + 1 >= len(phases):  # beyond: the budget is smaller now
                return None
            state["phase"], state["position"] = state["phase"] + 1, 0
        return phases[state["phase"]]

    @property
    def finished(self) -> bool:
        return self.phase is None or self._time_is_up()

    def train(self) -> str:
        """Trains, and returns how it ended: "finished" or "stopped"."""
        self.progress = Progress(self.setup.n_updates, self.state["step"], self.state["tokens"])
        previous = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        self.note_progress("running")
        self.last_save = time.perf_counter()
        name = ""
        try:
            while not self.finished and not self.stopping:
                name = self.phase.name
                self._train_phase(self.phase)
            status = "finished" if self.finished else "stopped"
            self._save(status)
        except FloatingPointError as error:
            self.recorder.flush()
            self.note_progress("failed")
            raise UserError(str(error)) from error
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of GPU memory with {self.mini_batch_size} sequences at once: type the command again with "
                f"--mini-batch-size {max(1, self.mini_batch_size // 2)} (the result is the same)"
            ) from error
        finally:
            self.progress.close(name)
            for number, handler in previous.items():
                signal.signal(number, handler)
        return status

    def _train_phase(self, phase) -> None:
        tokenizer, settings, state = self.setup.data.tokenizer, self.settings, self.state
        feed = TrainingFeed(self.setup.experiment, phase.order, tokenizer.eot, settings.seed)
        validation = ValidationFeed(
            self.setup.experiment,
            {d: self.setup.data.validation[d] for d in phase.datasets},
            self.setup.context_len,
            tokenizer.eot,
            settings.validation_tokens,
        )
        first_step = state["step"] - math.ceil(state["position"] / settings.batch_size)
        batch = self._next_batch(feed, phase)
        self.last_flush = time.perf_counter()
        while batch is not None and not self.stopping and not self._time_is_up():
            self._update(phase, batch, state["step"] - first_step)
            batch = self._next_batch(feed, phase)
            due, save = state["step"] % settings.validation_interval == 0, self._save_is_due()
            if batch is None or due or save or self.stopping or self._flush_is_due():
                self._flush(phase)
            if ended := batch is None or self._time_is_up():  # the clock is that of the last flush
                due = save = True
            if due:
                self._validate(phase, validation)
            if save and not (ended and self.finished):
                self._save("running", keep=ended)

    def _next_batch(self, feed: TrainingFeed, phase):
        count = min(self.settings.batch_size, phase.n_windows - self.state["position"])
        return feed.batch(self.state["position"], count) if count > 0 else None

    def _update(self, phase, batch, step_in_phase: int) -> None:
        """One update of the weights: the gradient of the mean loss over all scored tokens of the batch."""
        state, settings = self.state, self.settings
        factor = rate(settings, phase, step_in_phase, self._schedule_position(step_in_phase, phase.n_updates))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        loss_sum, n_correct, extras = 0.0, 0, {}
        parts = math.ceil(len(batch.inputs) / self.mini_batch_size)
        torch.manual_seed(seed_of(settings.seed, "derive", state["step"]))
        with derived_once(self.model, self.precision):
            for number, (inputs, targets, rows, _) in enumerate(
                batch.parts(math.ceil(len(batch.inputs) / parts), self.device)
            ):
                # what is random in a forward pass depends on where the run stands, so that a resumed run repeats it
                torch.manual_seed(seed_of(settings.seed, "forward", state["step"], number))
                with self.precision():
                    result = score(self.model, inputs, targets, rows)
                share = len(result.losses) / batch.n_scored
                objective = result.loss_sum / batch.n_scored
                if "loss" in result.extra:
                    objective = objective + result.extra["loss"] * share
                self.scaler.scale(objective).backward()
                loss_sum = loss_sum + result.loss_sum.detach()
                n_correct = n_correct + result.correct.sum()
                for name, value in result.extra.items():
                    value = value.detach() if isinstance(value, torch.Tensor) else value
                    extras[name] = extras.get(name, 0.0) + value * share
                for name, value in batch.way_losses(result.losses, rows).items():
                    extras[name] = extras.get(name, 0.0) + value
        norm = self._step_optimizers() if batch.n_scored else 0.0
        state["step"] += 1
        state["position"] += batch.n_windows
        state["samples"] += batch.n_windows
        state["tokens"] += batch.n_scored // batch.n_ways  # of the text, however often each is read
        state["bytes"] += batch.n_bytes / batch.n_ways
        self.pending.append(
            {
                **self._position(phase),
                "n_scored": batch.n_scored,
                "n_bytes": batch.n_bytes,
                "first_sample": state["position"] - batch.n_windows,
                "learning_rate": settings.lr * factor,
                "measured": {
                    "loss_sum": loss_sum,
                    "n_correct": n_correct,
                    "gradient_norm": norm,
                    **{EXTRA_PREFIX + name: value for name, value in extras.items()},
                },
            }
        )

    def _step_optimizers(self) -> torch.Tensor:
        """Changes the weights; returns the norm that the gradient had."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = clip_gradients(
            self.parameters, self.settings.grad_clip or math.inf, self.settings.clip_value or math.inf
        )
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return norm

    def _flush(self, phase) -> None:
        """Reads what the device has computed since the last time, checks it, records and shows it."""
        if not self.pending:
            return
        names = list(dict.fromkeys(name for row in self.pending for name in row["measured"]))
        table = torch.stack(
            [
                torch.stack(
                    [
                        torch.as_tensor(row["measured"].get(name, 0.0), device=self.device).float().reshape(())
                        for name in names
                    ]
                )
                for row in self.pending
            ]
        ).tolist()
        now = time.perf_counter()
        elapsed, self.last_flush = now - self.last_flush, now
        tokens = sum(row["n_scored"] for row in self.pending)
        for row, values in zip(self.pending, table):
            n_scored, n_bytes, first = row.pop("n_scored"), row.pop("n_bytes"), row.pop("first_sample")
            reported = row.pop("measured")
            measured = {name: value for name, value in zip(names, values) if name in reported}
            self.state["seconds"] += elapsed / len(self.pending)
            row["seconds"] = round(self.state["seconds"], 4)
            loss_sum, n_correct = measured.pop("loss_sum"), measured.pop("n_correct")
            self._check_finite(row, loss_sum, measured["gradient_norm"], first)
            row |= {
                "loss": loss_sum / n_scored if n_scored else None,
                "accuracy": n_correct / n_scored if n_scored else None,
                "bits_per_byte": loss_sum / math.log(2) / n_bytes if n_scored and n_bytes else None,
                "tokens_per_second": tokens / elapsed,
            } | measured
            self.recorder.train(row)
            if n_scored:
                self.state["final"] = {name: row[name] for name in ("loss", "accuracy", "bits_per_byte")}
        self.pending.clear()
        limit = self.settings.max_minutes
        self.progress.update(
            phase.name,
            self.state["step"],
            row["loss"],
            row["accuracy"],
            self.state["tokens"],
            None if limit is None else limit * 60 - self.state["seconds"],
        )

    def _check_finite(self, row: dict, loss: float, norm: float, first_sample: int) -> None:
        scaled = self.scaler.is_enabled()  # float16 steps over a gradient that overflowed
        if math.isfinite(loss) and (scaled or math.isfinite(norm)):
            return
        what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
        self._refuse_to_go_on(
            f"the {what} is not finite ({value}) at update {row['step']}, on the samples from position {first_sample} "
            f"of step {row['plan_step']!r} on"
        )

    def _refuse_to_go_on(self, why: str) -> None:
        last = checkpoints.latest(self.setup.folder / CHECKPOINTS)
        kept = f"the checkpoint {last.name} is kept" if last else "there is no checkpoint yet"
        raise FloatingPointError(
            f"{why}: stopped, {kept}; try a lower --lr, a longer --warmup-steps or a smaller --grad-clip under "
            "another --run-name"
        )

    def _validate(self, phase, feed: ValidationFeed) -> None:
        from lmplay.train.validation import validate

        self.progress.waiting("validating")
        bins = self.settings.loss_by_position
        result = validate(self.model, feed, self.mini_batch_size, self.device, self.precision, by_position=bins > 0)
        if not math.isfinite(result.loss):
            self._refuse_to_go_on(
                f"the validation loss is not finite ({result.loss}) after update {self.state['step']}"
            )
        self.state["validation_loss"] = result.loss
        row = self._position(phase) | {
            "seconds": round(self.state["seconds"], 4),
            "loss": result.loss,
            "accuracy": result.accuracy,
            "bits_per_byte": result.bits_per_byte,
            "validation_tokens": result.n_tokens,
            "validation_documents": len(feed.documents),
        }
        # the columns are the same for all steps of the plan
        row |= {
            f"loss_{name}": result.by_dataset.get(name) if len(feed.datasets) > 1 else None
            for phase_spec in self.setup.plan.phases
            if len(phase_spec.datasets) > 1
            for name in phase_spec.datasets
        }
        if result.positions is not None:
            row |= result.positions.by_way()
        if bins:
            self.recorder.positions([self._position(phase) | one for one in result.positions.rows(bins)])
        self.recorder.validation(
            row,
            result.losses,
            [document | {"scored_tokens": int(n)} for document, n in zip(feed.documents, result.tokens)],
        )
        self.recorder.flush()  # for those who look at the curves before the next checkpoint
        self.progress.validated(result.loss)
        if self.setup.experiment.can_write or self.setup.experiment.mask_token is not None:
            self.progress.waiting("sampling")
            self.recorder.sample(samples(self.model, self.setup, self.precision, feed, self.state))
        self.last_flush = time.perf_counter()

    def _save(self, status: str, keep: bool = False) -> None:
        self.progress.waiting("saving")
        state = {
            **self.state,
            "scaler": self.scaler.state_dict(),
            "files": self.recorder.sizes(),
            "keep": keep or self._is_backup(),
        }
        checkpoints.save(self.setup.folder / CHECKPOINTS, self.state["step"], self.model, self.optimizers, state)
        self.note_progress(status)
        self.last_save = self.last_flush = time.perf_counter()

    def note_progress(self, status: str) -> None:
        """Writes to run.json where the run stands."""
        self.meta["status"] = status
        self.peak_memory = max(self.peak_memory, peak_memory(self.device))
        self.meta["progress"] = {
            "step": self.state["step"],
            "tokens": self.state["tokens"],
            "seconds": round(self.state["seconds"], 2),
            "final": self.state["final"],
            "validation_loss": self.state["validation_loss"],
            "phases": [recorded(phase) for phase in self.setup.phases],
            "peak_memory_bytes": self.peak_memory,
        }
        Run(self.setup.folder, self.meta).write()

    def _position(self, phase) -> dict:
        state, cost = self.state, self.setup.cost
        return {
            "plan_step": phase.name,
            "step": state["step"],
            "samples": state["samples"],
            "tokens": state["tokens"],
            "bytes": round(state["bytes"]),
            "flops": state["samples"] * self.setup.context_len * cost.flops_per_token
            + state["step"] * cost.flops_per_step,
        }

    def _schedule_position(self, step: int, n_updates: int) -> float:
        """Where the schedule stands: at the update, or further where a time limit will end the run before the data do."""
        if self.settings.max_minutes is None:
            return step
        return max(step, n_updates * min(1.0, self.state["seconds"] / (self.settings.max_minutes * 60)))

    def _time_is_up(self) -> bool:
        return self.settings.max_minutes is not None and self.state["seconds"] >= self.settings.max_minutes * 60

    def _flush_is_due(self) -> bool:
        return self.device.type == "cpu" or time.perf_counter() - self.last_flush >= FLUSH_SECONDS

    def _is_backup(self) -> bool:
        interval = self.settings.backup_interval
        return bool(interval) and self.state["step"] % interval == 0

    def _save_is_due(self) -> bool:
        if self._is_backup():
            return True
        if self.settings.save_interval:
            return self.state["step"] % self.settings.save_interval == 0
        return time.perf_counter() - self.last_save >= SAVE_SECONDS

    def _stop(self, *_) -> None:
        if self.stopping:
            os._exit(130)
        self.stopping = True
        # straight to the terminal: print would fail in a signal that comes while something is printed
        os.write(2, b"\nstopping after this update; once more leaves at once\n")

    def _compile(self) -> None:
        if fused_head(self.model) is not None and not isinstance(self.model.body, torch.nn.Module):
            self.model.body = torch.compile(self.model.body)
        elif fused_head(self.model) is not None:
            self.model.body.compile()  # in place: wrapped, its weights would have other names
        else:
            self.model.compile()

    def _mini_batch_size(self) -> int:
        """--mini-batch-size, or what the memory holds: of a GPU most of what is free, on a CPU no more than pays."""
        settings = self.settings
        if settings.mini_batch_size:
            return min(settings.mini_batch_size, settings.batch_size)
        size = CPU_TOKENS_AT_ONCE // self.setup.context_len
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            what = self.setup.experiment, self.setup.config, settings.amp
            taken = 16 * sum(p.numel() for p in self.parameters if p.device == self.device) + derived_bytes(*what)
            size = int(0.7 * free - taken) // activation_bytes(*what)
        return max(1, min(size, settings.batch_size))


def gradient_faults(setup: Setup) -> list[str]:
    """The parameters that the first sequence gives no gradient, or one that is not finite (--check-grads)."""
    model = build_model(setup)
    feed = TrainingFeed(setup.experiment, setup.phases[0].order, setup.data.tokenizer.eot, setup.settings.seed)
    with derived_once(model):
        for inputs, targets, rows, _ in feed.batch(0, min(8, setup.phases[0].n_windows)).parts(8, torch.device("cpu")):
            result = score(model, inputs, targets, rows)
            (result.losses.numel() ** -1 * result.loss_sum + result.extra.get("loss", 0.0)).backward()
    faults = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad
            if gradient is not None and gradient.is_sparse:
                gradient = gradient.coalesce().values()
            if gradient is None or not gradient.any():
                faults.append(f"{name} gets no gradient")
            elif not gradient.isfinite().all():
                faults.append(f"the gradient of {name} is not finite")
    return faults
