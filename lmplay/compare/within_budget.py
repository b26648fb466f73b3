"""Carry out a comparison within a budget of time: measure the arms' pace, choose the runs, leave out what is late."""

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from lmplay.compare.arm_jobs import ArmJobs
from lmplay.compare.budget import (
    FOR_RUNS,
    Pace,
    Plan,
    effect_text,
    lengths_below,
    measure_pace,
    plan_runs,
    plan_text,
    shown_seconds,
)
from lmplay.compare.job_trainer import JobTrainer
from lmplay.compare.jobs import Job, RunIndex, Stopped
from lmplay.compare.outlook import Outlook
from lmplay.compare.request import ComparisonRequest
from lmplay.errors import OutOfTime, UserError
from lmplay.report.arms import Comparison
from lmplay.runs.run import Run
from lmplay.stats.choices import Choice
from lmplay.stats.prior import Prior
from lmplay.stats.sequential import Looks
from lmplay.text import counted


class Comparing(Protocol):
    """What is asked of the comparison that is made to fit (compare.Comparer)."""

    request: ComparisonRequest
    index: RunIndex
    trainer: JobTrainer
    baseline: ArmJobs
    candidates: list[ArmJobs]
    choices: list[Choice]
    looks: Looks | None
    started: float
    context_len: int

    @property
    def sound(self) -> list[ArmJobs]: ...
    @property
    def others(self) -> frozenset[str]: ...
    def check_models(self) -> None: ...
    def jobs(self, pair: int, candidates: Sequence[ArmJobs]) -> list[Job]: ...
    def job(self, arm: ArmJobs, pair: int, choice: Choice) -> Job: ...
    def train(self, jobs: list[Job], total: str = "") -> None: ...
    def judge(self, pairs: dict[str, int]) -> Comparison: ...
    def prior(self, candidate: Run, baseline: Run) -> Prior | None: ...


class WithinBudget:
    """A comparison whose runs are made to fit into `budget` seconds since it began."""

    def __init__(self, comparer: Comparing, budget: float):
        self.comparer, self.budget = comparer, budget
        self.request, self.index, self.trainer = comparer.request, comparer.index, comparer.trainer

    def outlook(self) -> Outlook:
        """Say what would be trained. Raises UserError, and OutOfTime."""
        planned = self._plan()
        jobs = [job for pair in range(planned.pairs) for job in self.comparer.jobs(pair, self.comparer.candidates)]
        return Outlook([job.outlook() for job in jobs], notes=self._said(planned), seconds=planned.seconds)

    def run(self) -> Comparison:
        """Train as many pairs as there is time for and judge those that are whole.

        Raises UserError, OutOfTime if no pair is whole, and Stopped if the user asks to stop.
        """
        planned, done, comparer = self._plan(), 0, self.comparer
        said = self._said(planned)
        print(*said, sep="\n", file=sys.stderr)
        if looks := comparer.looks:
            first = min(looks.first, planned.pairs)
            comparer.looks = Looks(planned.pairs, first=first, confidence=self.request.confidence)
        try:
            while done < planned.pairs and (done == 0 or self._fits(done)):
                comparer.train(comparer.jobs(done, comparer.sound))
                done += 1
                if comparer.looks and done >= comparer.looks.first and self._all_decided(done):
                    break
        except Stopped as stopped:
            if not stopped.out_of_time:
                raise
            said.append("the last pair of runs was stopped when the time was over: the same command goes on with it")
        if not done:
            raise OutOfTime(
                f"no pair of runs was finished within {shown_seconds(self.budget)}: the same command goes on"
            )
        found = self._judge(done)
        if done < planned.pairs and not comparer.looks:
            said.append(f"{counted(planned.pairs - done, 'pair')} left out: runs took longer than in their trial")
        found.notes += said
        return found

    def _plan(self) -> Plan:
        """Choose the length of the runs and the number of pairs. Raises UserError, and OutOfTime."""
        comparer, request, settings = self.comparer, self.request, self.index.settings
        comparer.check_models()
        length = comparer.context_len
        paces = self._paces()

        def tokens() -> int:
            return self.index.steps(length) * settings.batch_size * length

        def seconds_of(tokens_of_run: int | None, pairs: int) -> float:
            self.index.use_length(tokens_of_run)
            jobs = [job for pair in range(pairs) for job in comparer.jobs(pair, comparer.sound) if job.is_missing]
            return sum(paces[job.variant.label].seconds(tokens()) for job in jobs)

        typed = settings.max_tokens or settings.max_steps or settings.epochs
        planned = plan_runs(
            [settings.max_tokens] if typed else lengths_below(tokens()),
            seconds_of,
            most=request.max_seeds if request.until_sure else request.seeds,
            left=FOR_RUNS * self.budget - (time.monotonic() - comparer.started),
        )
        self.index.use_length(planned.tokens)
        self.index.choose_interval(length)
        return replace(planned, loss=paces[comparer.baseline.variant.label].loss)

    def _paces(self) -> dict[str, Pace]:
        """Return the pace of each arm's variant; the baseline's where a loss is not finite."""
        comparer = self.comparer
        found: dict[str, Pace] = {}
        for arm in (comparer.baseline, *comparer.sound):
            if arm.variant.label in found:  # a model compared with itself
                continue
            try:
                pace = measure_pace(self.index, arm.variant, comparer.choices[0], self.budget)
            except UserError as error:
                if arm.label not in comparer.others:
                    raise
                self.trainer.note_crash(arm.label, arm.label, error)
                continue
            found[arm.variant.label] = pace or next(iter(found.values()), Pace(0.0, 0.0))
        return found

    def _said(self, planned: Plan) -> list[str]:
        """Return what fits into the budget, and which difference would be found."""
        comparer, choice, prior = self.comparer, self.comparer.choices[0], None
        arms = (comparer.baseline, *comparer.sound[:1])
        there = [
            found.run for arm in arms if (found := comparer.job(arm, 0, choice).find()) and found.state == "finished"
        ]
        if len(there) == len(arms) == 2 and not self.request.aa:
            prior = comparer.prior(there[1], there[0])
        known = [loss for run in there if (loss := run.number("progress", "validation_loss"))]
        loss = known[0] if known else planned.loss
        effect = effect_text(planned.pairs, self.request.confidence, loss=loss, prior=prior)
        return [plan_text(planned, self.budget), effect]

    def _fits(self, pair: int) -> bool:
        """Tell whether one more pair is likely to end in time, by how long the runs have taken."""
        took = self.trainer.seconds
        missing = [job.variant.label for job in self.comparer.jobs(pair, self.comparer.sound) if job.is_missing]
        seconds = sum(statistics.fmean(took[label]) for label in missing if took.get(label))
        return time.monotonic() + seconds <= self.comparer.started + self.budget

    def _all_decided(self, pairs: int) -> bool:
        found = self._judge(pairs).candidates
        return all(one.verdict is None or one.verdict.decided or one.held_back for one in found)

    def _judge(self, pairs: int) -> Comparison:
        return self.comparer.judge({arm.label: pairs for arm in self.comparer.sound})
