"""The training loop."""

import functools
import gc
import math
import threading
import time
import weakref
from collections.abc import Generator
from pathlib import Path
from typing import Any, NoReturn

import torch

from lmplay.checksums import CHECKSUMS
from lmplay.model.device import choose_device, peak_memory, precision, set_products
from lmplay.model.proofs import prove_shortcuts
from lmplay.model.shortcuts import not_taken
from lmplay.runs import checkpoints
from lmplay.runs.alive import Heartbeat, note_process
from lmplay.runs.folder import start_folder
from lmplay.runs.model_state import Outside
from lmplay.runs.names import NOT_TAKEN, SAVED_STEP
from lmplay.train.batches import Batch, TrainingFeed
from lmplay.train.build import build_model, load_initial_weights
from lmplay.train.describe import describe_run
from lmplay.train.endings import Log, end_hung, end_with
from lmplay.train.memory import MicroBatches, micro_batch_size
from lmplay.train.not_finite import check_finite, refuse_to_go_on
from lmplay.train.optimizers import optimizers_of, without_rate
from lmplay.train.phases import Phase
from lmplay.train.ranks import ALONE, Ranks, Word
from lmplay.train.resume import open_run
from lmplay.train.saving import save, save_is_due
from lmplay.train.setup import Setup
from lmplay.train.silent import writers
from lmplay.train.state import TrainState
from lmplay.train.step import EagerStep, Figures, Packed, Step, Wanted, loss_scaler, read_figures, train_row
from lmplay.train.stepper import Stepper
from lmplay.train.stopping import Wishes, heard, leave, say
from lmplay.train.threads import use_threads
from lmplay.train.tracking import Followers
from lmplay.train.use import Use
from lmplay.train.validating import feed_of, validate_run
from lmplay.train.watchdog import Watchdog

FLUSH_SECONDS = 1.0  # a GPU is asked for its losses this often: asking waits for all that it has to do


class Trainer:
    """Trains one run from where it stands to its end, or until it is asked to stop."""

    def __init__(
        self,
        setup: Setup,
        state: TrainState | None = None,
        hang_seconds: float = 0,
        *,
        alone: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        """Make the model ready. `state` is what open_run returned; without it the run is opened here.

        hang_seconds: after so long without a sign of life the process is ended; 0: never. alone: it takes its steps
        itself; else `steps` asks for each. ranks: the processes that share out each step.
        """
        self.setup, self.settings, self.ranks = setup, setup.settings, ranks
        self.state = state or open_run(setup)
        self.device = choose_device(self.settings.device)
        use_threads(setup, self.device, resumed=self.state.checkpoint is not None)
        set_products(self.device, self.settings.amp)
        ends = functools.partial(end_hung, weakref.proxy(self), threading.get_ident())
        of_run = setup.folder if ranks.writes else None
        self.watchdog = Watchdog(
            hang_seconds, ends, what=setup.folder.name, folder=of_run, waits=ranks.waits, says=ranks.writes
        )
        self.precision = self.watchdog.watching(
            functools.partial(precision, self.device, self.settings.amp, setup.context_len)
        )
        self.model = self._build_model()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizers = optimizers_of(self.model, self.settings, ranks)
        self.scaler = loss_scaler(self.device, self.settings.amp)
        described = describe_run(setup, self.state.phases, self.device, self.state.created, ranks=ranks)
        self.recorder, self.run, self.progress = writers(setup.folder, described, ranks.writes)
        if still := without_rate(self.model, self.optimizers):
            self.progress.note(still)
        self.use = Use(setup, self.device, self.state.flops(setup.cost, setup.context_len), ranks.size)
        if self.state.checkpoint is not None:
            self._load(self.state.checkpoint)
        size = min(micro_batch_size(setup, self.device), self.state.micro_batch_size or math.inf)
        size = ranks.told(size) if ranks.sharded else size
        self.micro_batches = MicroBatches(int(size), self.parameters, self.device, fixed=ranks.sharded)
        ranks.take_weights(self.model)
        self.eager = self._eager_step()
        self.stepper = self._stepper() if alone else None
        self.heartbeat, self.log = Heartbeat(self.run), Log(setup.folder, of_prints=ranks.writes)
        self.pending: list[Step] = []  # steps whose figures the device may still be computing
        self.last_flush = self.last_save = time.perf_counter()
        self.followers = Followers(setup.folder, self.settings.track if ranks.writes else ())
        self.stopping = self.wished = False
        self.validation_interval = self.settings.validation_interval or sum(phase.n_steps for phase in setup.phases)
        self.paused = 0.0  # seconds of validating and saving since they were last asked for

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.state.current is None or self._is_over()

    def train(self) -> str:
        """Train, and return how it ended: "finished" or "stopped"."""
        self.progress.start(self.state.n_steps, self.state.step, self.state.tokens, self.use.of_a_token)
        try:
            with heard(Wishes(self.stop, leave)), self.watchdog(), self.log.printed():
                next(self.steps())  # with a stepper it asks for none
        except StopIteration as end:
            return end.value
        finally:
            self.state.release()
        raise AssertionError("a run that is trained with others is not trained by this")

    def steps(self) -> Generator[Wanted, Figures | Packed, str]:
        """Train, and return how it ended. Without a stepper, yield each step that is wanted, and take its figures."""
        self.note_progress("running")
        self.followers.start()
        self.last_save = time.perf_counter()
        gc.freeze()  # what is there stays: it need not be looked through again and again
        name = ""
        try:
            while not self.stopping and (phase := self._phase_to_train()) is not None:
                name = self.setup.plan.title or phase.name
                yield from self._train_phase(phase)
            status = "finished" if self.finished else "stopped"
            save(self, status)
        except (Exception, SystemExit) as error:
            end_with(self, self.ranks.meaning(error))
        finally:
            self.progress.close(name)
            gc.enable()
            gc.unfreeze()
        return status

    def note_progress(self, status: str) -> None:
        """Write to run.json where the run stands."""
        self.state.peak_memory = max(self.state.peak_memory, peak_memory(self.device))
        self.run.info["status"] = status
        self.run.info["progress"] = self.state.progress() | self.use.so_far(self.state)
        self.run.info[SAVED_STEP] = self.state.saved_step
        self.run.info[CHECKSUMS] = self.recorder.checksums
        note_process(self.run.info, self.state.step, ended=status != "running")
        if plain := not_taken(self.model):
            self.run.info[NOT_TAKEN] = plain
        self.run.write()

    def next_batch(self, feed: TrainingFeed, phase: Phase) -> Batch | None:
        """Return the batch of the next step, None at the end of the phase."""
        count = int(min(self.settings.batch_size, phase.end - self.state.position))
        return feed.batch(self.state.position, count) if count > 0 else None

    def step(self, phase: Phase, batch: Batch, step_in_phase: int) -> None:
        """Take one step: change the weights, count, and note the figures for `flush`."""
        assert self.stepper is not None
        wanted = self._wanted(phase, batch, step_in_phase)
        figures = self.stepper(*wanted)
        self.note_micro_batches()
        self.last_flush += self.stepper.spent_on_choosing()  # choosing how to train is no training
        self._count(phase, wanted, figures)

    def _wanted(self, phase: Phase, batch: Batch, step_in_phase: int) -> Wanted:
        at = self._schedule_position(step_in_phase, phase)
        factor = phase.rate(self.settings, step_in_phase, at)
        return Wanted(batch, self.state.step, factor, phase.progress(at))

    def _count(self, phase: Phase, wanted: Wanted, figures: Figures | Packed) -> None:
        state, batch = self.state, wanted.batch
        first_sample = state.position
        state.step += 1
        state.position += batch.n_windows
        state.samples += batch.n_windows
        state.tokens += batch.n_scored // batch.n_directions  # of the text, however often each is read
        state.bytes += batch.n_bytes / batch.n_directions
        self.pending.append(
            Step(
                row={**self.counters(phase), "learning_rate": self.settings.lr * wanted.factor},
                first_sample=first_sample,
                n_scored=batch.n_scored,
                n_bytes=batch.n_bytes,
                figures=figures,
            )
        )

    def flush(self, phase: Phase) -> None:
        """Read what the device has computed since the last time, check it, record and show it."""
        if not self.pending:
            return
        figures = read_figures(self.pending, self.device)
        now = time.perf_counter()
        elapsed, self.last_flush = now - self.last_flush, now
        per_second = sum(step.n_scored for step in self.pending) / elapsed
        mfu = self.use(self.pending[-1].row["flops"], elapsed)
        for step, numbers in zip(self.pending, figures, strict=True):
            self.state.seconds += elapsed / len(self.pending)
            check_finite(step, numbers["loss_sum"], numbers["gradient_norm"], self.scaler, self.setup.folder)
            row = train_row(step, numbers, seconds=self.state.seconds, tokens_per_second=per_second, mfu=mfu)
            self.recorder.train(row)
            if step.n_scored:
                self.state.final = {name: row[name] for name in ("loss", "accuracy", "bits_per_byte")}
        self.pending.clear()
        self.watchdog.beat()
        self.heartbeat.give(self.state.step)
        limit = self.settings.max_minutes
        self.progress.update(
            self.setup.plan.title or phase.name,
            self.state.step,
            loss=row["loss"],
            accuracy=row["accuracy"],
            tokens=self.state.tokens,
            seconds_left=None if limit is None else limit * 60 - self.state.seconds,
        )

    def _build_model(self) -> torch.nn.Module:
        """Build the model on the device. A run that starts gets its folder here, once nothing more can be refused."""
        model = build_model(self.setup).train()
        self.outside = Outside(model, self.setup.experiment.package)
        if self.state.checkpoint is None:
            load_initial_weights(self.setup, model)
        if self.state.checkpoint is None and self.ranks.writes:
            start_folder(self.setup.folder, self.setup.entry, self.setup.data.tokenizer.spec)
        self.ranks.check(model, self.settings, loss_scaler(self.device, self.settings.amp).is_enabled())
        if not self.ranks.sharded:
            return model.to(self.device)
        if self.state.checkpoint is not None:
            checkpoints.load_weights(self.state.checkpoint, model)
        return self.ranks.place(model)

    def _eager_step(self) -> EagerStep:
        return EagerStep(
            model=self.model,
            optimizers=self.optimizers,
            parameters=self.parameters,
            settings=self.settings,
            device=self.device,
            precision=self.precision,
            scaler=self.scaler,
            ranks=self.ranks,
        )

    def _stepper(self) -> Stepper:
        return Stepper(
            eager=self.eager,
            micro_batches=self.micro_batches,
            run=self.run,
            before=self.state.cuda_graph,
            compiled_before=self.state.compiled,
            length=self.use.length(self.state),
            resumed=self.state.checkpoint is not None,
        )

    def _load(self, checkpoint: Path) -> None:
        """Load weights and optimizers, and cut the run's files back to the checkpoint."""
        part_of = self.ranks.part_of if self.ranks.sharded else None
        saved = checkpoints.load(checkpoint, self.model, self.optimizers, part_of)
        if saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        self.recorder.cut_back(saved["files"], self.state.step, checkpoints.read_checksums(checkpoint).get("run"))

    def _phase_to_train(self) -> Phase | None:
        return None if self.finished else self.state.current

    def _train_phase(self, phase: Phase) -> Generator[Wanted, Figures | Packed, None]:
        setup, settings, state = self.setup, self.settings, self.state
        feed = TrainingFeed(setup.experiment, phase.order, setup.data.tokenizer.eot, settings.seed)
        validation = feed_of(setup, phase)
        first_step = state.step - math.ceil(state.position / settings.batch_size)
        batch = self.next_batch(feed, phase)
        if batch is not None and not self.ranks.sharded:
            tokens = batch.inputs.to(self.device), batch.targets.to(self.device)
            prove_shortcuts(self.model, *tokens, self.precision)
        self.last_flush = time.perf_counter()
        while batch is not None and not self.stopping and not self._is_over():
            if self.stepper is None:
                wanted = self._wanted(phase, batch, state.step - first_step)
                self._count(phase, wanted, (yield wanted))
            else:
                self.step(phase, batch, state.step - first_step)
            save_now = self._agree(batch)
            batch = self.next_batch(feed, phase)
            due = state.step % self.validation_interval == 0
            if batch is None or due or save_now or self.stopping or self._flush_is_due():
                self.flush(phase)
            started = time.perf_counter()
            if ended := batch is None or self._time_is_up():  # the clock is that of the last flush
                due = save_now = True
            if due:
                validate_run(self, phase, validation, at_end=ended)
                save_now = save_now or (settings.keep_best and state.is_best)
            if ended:
                state.advance()
            if save_now and not (ended and self.finished):  # the end of the run is saved as such
                save(self, "running", keep=ended)
            self.paused += time.perf_counter() - started

    def _agree(self, batch: Batch) -> bool:
        """Settle with the other ranks whether to stop after this step; return whether to save."""
        due = save_is_due(self.settings, self.state, self.last_save)
        word = self.ranks.agree(Word(self.wished, due, self.state.seconds), batch)
        self.stopping = self.stopping or word.stop
        return word.save

    def refuse(self, why: str) -> NoReturn:
        """Raise FloatingPointError: what was found after this step is not finite."""
        refuse_to_go_on(self.setup.folder, f"{why} after step {self.state.step}")

    def note_micro_batches(self) -> None:
        """Say that memory ran out, if it did, and keep the smaller size for a run that goes on."""
        if self.micro_batches.halved:
            self.micro_batches.halved = False
            self.state.micro_batch_size = size = self.micro_batches.size
            self.progress.note(f"out of memory: {size} sequences per micro-batch from step {self.state.step + 1} on")

    def counters(self, phase: Phase) -> dict[str, Any]:
        """Return where the run stands, as the tables have it."""
        return self.state.counters(phase, self.setup.cost, self.setup.context_len)

    def _schedule_position(self, step: int, phase: Phase) -> float:
        return phase.schedule_position(step, self.ranks.clock(self.state.seconds), self.settings.max_minutes)

    def _time_is_up(self) -> bool:
        limit = self.settings.max_minutes
        return limit is not None and self.ranks.clock(self.state.seconds) >= limit * 60

    def _is_over(self) -> bool:
        return self._time_is_up() or self.state.waited_for(self.settings.early_stop)

    def _flush_is_due(self) -> bool:
        return self.device.type == "cpu" or time.perf_counter() - self.last_flush >= FLUSH_SECONDS

    def stop(self, number: int) -> None:
        """End after this step, because of a signal."""
        self.wished = True
        self.stopping = not self.ranks.joined  # else all stop after the step after which all know
        self.watchdog.hurry()
        if self.watchdog.says:
            say(b"\nstopping after this step; once more leaves at once\n")
