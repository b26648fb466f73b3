"""Train tasks on the machines of a Ray cluster. Each is a Ray task that streams back what its runs write.

A machine that is lost costs its time only: the runs go on elsewhere from what has come back. Ray's own retries begin
with what a task was given at first, so tasks are given again from here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from lmplay.compare.ray_cluster import LOOK_SECONDS, Cluster, cluster_at, train_in_cluster
from lmplay.compare.sites import Running
from lmplay.data.carried import CarriedData
from lmplay.errors import Locked, UserError
from lmplay.runs.checkpoints import latest
from lmplay.runs.folder import find_run, only_trainer
from lmplay.runs.mirror import Gone, Mirror, packed_run
from lmplay.runs.names import CHECKPOINTS, STATE, step_of
from lmplay.runs.settings import Settings
from lmplay.runs.trust import remember
from lmplay.train.away import Ended, Lacking, News, Trip, code_folder, code_of
from lmplay.train.worker import Apart, Outcome, Task

TRIES = 5  # in a row without a checkpoint that came back; then the task is at fault, not the machines
AHEAD = 4  # answers of a task that wait to be heard


class Away:
    """A task that is trained on a machine of the cluster."""

    def __init__(self, cluster: Cluster, task: Task, data: CarriedData, needed: dict[str, float]) -> None:
        self.shown = "waits for a machine"
        self.said: list[str] = []
        self.stream: Any = None
        self._cluster, self._task, self._data, self._needed = cluster, task, data, needed
        self._name = cluster.next_name()
        self._brings: list[str] = []  # stores that a machine has asked for
        self._tries = 0
        self._machine = ""
        self._wished = False
        self._outcomes: list[Outcome] | Apart | None = None
        self._folders = {str(one.run_name): one.out_folder / str(one.run_name) for one in task.runs}
        from lmplay.train.describe import commit

        said = {"tokenizer": data.tokenizer.spec, "experiment": str(code_folder(task)), "git": commit()}
        self._mirrors = {
            name: Mirror(folder, partial(_mend, settings=settings, said=said))
            for (name, folder), settings in zip(self._folders.items(), task.runs, strict=True)
        }
        try:
            self._locks = [only_trainer(folder) for folder in self._folders.values()]
        except Locked as error:
            self._end([error] * len(task.runs))
            return
        self._begin()

    @property
    def has_ended(self) -> bool:
        """Whether it says nothing any more."""
        return self._outcomes is not None

    def stop(self) -> None:
        """Ask it to save and end."""
        self._wished = True
        if self._machine:
            self._cluster.desk.ask.remote(self._name)
        else:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        import ray

        if self.stream is not None and not self.has_ended:
            ray.cancel(self.stream, force=True)
            self._end(["stopped"] * len(self._task.runs))

    def outcomes(self, wished: bool) -> list[Outcome] | Apart:
        """Return how each of its runs ended, once it has. wished: whether it was asked to end."""
        assert self._outcomes is not None
        return self._outcomes

    def hear(self) -> None:
        """Take in what it has to say."""
        import ray

        try:
            answer = ray.get(next(self.stream))
        except StopIteration:
            self._go_on("it ended without a word")
        except ray.exceptions.RayTaskError as error:
            self._end([UserError(f"{self._where}: {str(error.cause or error).strip().splitlines()[-1]}")])
        except (ray.exceptions.RuntimeEnvSetupError, ray.exceptions.TaskUnschedulableError) as error:
            self._end([UserError(f"--on ray: no machine could begin ({str(error).strip().splitlines()[-1]})")])
        except ray.exceptions.RayError as error:
            self._go_on(type(error).__name__)
        else:
            self._take(answer)

    def _take(self, answer: News | Lacking | Ended) -> None:
        if isinstance(answer, Ended):
            self._end(answer.outcomes)
        elif isinstance(answer, Lacking):
            self._brings = sorted({*self._brings, *answer.stores})
            self._begin()
        else:
            self._machine = answer.machine
            self.shown = f"on {answer.machine} | {answer.shown or 'begins'}"
            for name, change in answer.changes:
                self._mirrors[name].take(change)
                if not isinstance(change, Gone) and change.ends and change.path.endswith(STATE):
                    self._tries = 0

    @property
    def _where(self) -> str:
        return f"the training of {', '.join(self._folders)}{f' on {self._machine}' if self._machine else ''}"

    def _begin(self) -> None:
        """Give the task to the cluster, with all that has come back of it so far."""
        import ray

        put, folders, runs = self._cluster.put, self._folders, self._task.runs
        for mirror in self._mirrors.values():
            mirror.clear()
        packed = {name: packed_run(folder, put) for name, folder in folders.items() if folder.is_dir()}
        for name, folder in _initial(runs):
            packed[name] = packed_run(folder, put)
        trip = Trip(self._task, self._data, code_of(self._task), packed, self._cluster.stores(self._brings))
        options = {
            **self._needed,
            "max_calls": 1,
            "max_retries": 0,
            "num_returns": "streaming",
            "_generator_backpressure_num_objects": AHEAD,
            "scheduling_strategy": "SPREAD",
        }
        self._machine = ""
        self.stream = ray.remote(**options)(train_in_cluster).remote(trip, self._cluster.desk, self._name)

    def _go_on(self, why: str) -> None:
        """Begin again elsewhere from what has come back, unless that leads nowhere."""
        self._tries += 1
        if self._wished:
            self._end(["stopped"] * len(self._task.runs))
        elif self._tries > TRIES:
            self._end(
                [
                    UserError(
                        f"{self._where} was lost {self._tries} times in a row ({why}): type the command again to go on"
                    )
                ]
            )
        else:
            saved = [latest(folder / CHECKPOINTS) for folder in self._folders.values()]
            steps = ", ".join(str(step_of(one) if one else 0) for one in saved)
            machine = self._machine or "its machine"
            self.said.append(f"{machine} was lost ({why}); it goes on elsewhere from step {steps}")
            self.shown = "waits for another machine"
            self._begin()

    def _end(self, outcomes: Sequence[Outcome] | Apart) -> None:
        if not isinstance(outcomes, Apart):
            outcomes = [*outcomes] if len(outcomes) == len(self._task.runs) else [outcomes[0]] * len(self._task.runs)
        self._outcomes = outcomes
        for name, folder in self._folders.items():
            self._mirrors[name].clear()
            remember(folder)
        self._locks = []


@dataclass
class RayCluster:
    """The machines of a Ray cluster. needed: what a task takes of its machine, as Ray names it."""

    address: str | None
    settings: Settings
    cluster: Cluster = field(init=False)
    _needed: dict[str, float] | None = None

    def __post_init__(self) -> None:
        self.cluster = cluster_at(self.address)

    @property
    def several(self) -> bool:
        """Whether more than one may run."""
        return True

    @property
    def needed(self) -> dict[str, float]:
        """What a task takes: a GPU unless it trains on the CPU, and as many cores as it has threads."""
        if self._needed is None:
            kind = self.settings.device.partition(":")[0]
            gpu = kind == "cuda" or (kind == "auto" and self.cluster.resources().get("GPU", 0) >= 1)
            self._needed = {"num_cpus": self.settings.threads or 1, "num_gpus": 1 if gpu else 0}
        return self._needed

    def has_room(self, running: int) -> bool:
        """Whether a task may be started: as many as fit, and one that waits, so that no machine does.

        A cluster that grows by itself sees by it that more is wanted.
        """
        there = self.cluster.resources()
        named = {"num_cpus": "CPU", "num_gpus": "GPU"}
        fit = min(there.get(named[name], 0) // needed for name, needed in self.needed.items() if needed)
        return running < fit + 1

    def start(self, task: Task, data: CarriedData) -> Away:
        """Start a task."""
        return Away(self.cluster, task, data, self.needed)

    def ended(self, running: Sequence[Running], seconds: float | None) -> list[Running]:
        """Wait until one of them says something, for at most `seconds`; return those that have ended."""
        import ray

        away = [one for one in running if isinstance(one, Away)]
        streams = {one.stream: one for one in away if not one.has_ended}
        if len(streams) == len(away):
            limit = LOOK_SECONDS if seconds is None else min(seconds, LOOK_SECONDS)
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=limit)
            if ready:
                ready, _ = ray.wait(list(streams), num_returns=len(streams), timeout=0)
            for stream in ready:
                streams[stream].hear()
        return [one for one in away if one.has_ended]


def _initial(runs: Sequence[Settings]) -> Iterator[tuple[str, Path]]:
    """Yield the name and folder of the run whose weights these begin with. Raises UserError if it is not in --out."""
    settings = runs[0]
    if not settings.initial_model:
        return
    folder = find_run(settings.initial_model, settings.out_folder).folder
    if settings.initial_model != folder.name:
        raise UserError("--on ray: --initial-model takes the name of a run in --out, which travels with the task")
    yield folder.name, folder


def _mend(info: dict[str, Any], settings: Settings, said: dict[str, Any]) -> None:
    """Let run.json say where the run and its sources are here, not on the machine that trained it."""
    info["settings"] |= {"out": settings.out, "device": settings.device}
    info["tokenizer"]["spec"] = said["tokenizer"]
    info["experiment"]["folder"] = said["experiment"]
    info["git"] = said["git"]


def with_threads(settings: Settings) -> Settings:
    """Return settings for runs in a cluster: one thread where nothing else is asked for, since a core is one."""
    return replace(settings, threads=settings.threads or 1)
