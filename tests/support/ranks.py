"""Groups of real processes that train runs together, forked from one that has torch loaded."""

import multiprocessing
import os
import sys
from pathlib import Path

from lmplay.train.launch import MEETING
from support.trainer_process import SECONDS, At, TrainerProcess


def place(number: int, n: int, meeting: Path) -> dict[str, str]:
    """What tells a process that it is rank `number` of `n`, as the launcher does."""
    return {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n),
        MEETING: str(meeting),
    }


def start_ranks(
    n: int, flags: list[str], folder: Path, at: dict[int, At] | None = None, **environment: str
) -> list[TrainerProcess]:
    """Start `n` processes that train one run. at: what happens to some of them. environment: of all, what else."""
    meeting = folder / f"meeting-{len(list(folder.glob('meeting-*')))}"
    meeting.touch()
    return [
        TrainerProcess(flags, folder, (at or {}).get(number), place(number, n, meeting) | environment)
        for number in range(n)
    ]


def train_runs(n: int, runs: list[list[str]], folder: Path) -> None:
    """Train runs one after the other, each by the same `n` processes. Fails where one does not end well."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "lmplay.cli.trainer", "lmplay.train.loop", "lmplay.train.validation"])
    environment = {key: os.environ.get(key, "") for key in ("LMPLAY_DATA", "LMPLAY_TRUST_CODE")}
    processes = [
        context.Process(target=_train_runs, args=(number, n, runs, str(folder), environment), daemon=True)
        for number in range(n)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
    assert not alive and all(process.exitcode == 0 for process in processes), [p.exitcode for p in processes]


def _train_runs(number: int, n: int, runs: list[list[str]], folder: str, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    from lmplay.cli.trainer import main

    for index, flags in enumerate(runs):
        os.environ.update(place(number, n, Path(folder) / f"meeting-of-{n}-{index}"))
        if status := main(flags):
            sys.exit(status)
