"""Start the processes that train one run on the devices of this machine, pass signals on, and end what is left over.

It starts what torchrun starts, with torchrun's environment. torchrun's own launcher dies of SIGUSR1, kills what takes
more than 30 s to save, and answers an exit status with a traceback.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lmplay.errors import DONE, STOPPED, UserError
from lmplay.machine import cores
from lmplay.train.stopping import Wishes, heard

MEETING = "LMPLAY_MEETING"  # the file over which the ranks find each other
LAUNCHER = "LMPLAY_LAUNCHER"  # its process, without which they save and end
GRACE_SECONDS = 15.0  # for the others, once one has failed
LOOK_SECONDS = 0.05


def is_rank() -> bool:
    """Tell whether this process is one of several that train a run, as torchrun starts them."""
    return all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))


def count_devices(asked: str, device: str) -> int:
    """Return how many processes `--devices` asks for: N, or all CUDA devices. Raises UserError."""
    from lmplay.text import read_whole

    n = None if asked == "all" else read_whole(asked)
    if asked != "all" and (n is None or n < 1):
        raise UserError(f"--devices takes a number of at least 1, or all, not {asked!r}")
    kind, _, index = device.partition(":")
    if index or kind == "mps":
        raise UserError(f"--devices trains on several devices, and --device {device} names one: leave one of them out")
    import torch

    there = torch.cuda.device_count() if kind != "cpu" and torch.cuda.is_available() else 0
    if there == 0 and kind != "cuda":
        if n is None:
            raise UserError("--devices all: torch sees no CUDA device here; --devices N starts N processes on the CPU")
        return n
    if not there or (n or 1) > there:
        raise UserError(
            f"--devices {asked}: torch sees {there or 'no'} CUDA device{'' if there == 1 else 's'} here; ask for "
            "fewer, or for --device cpu"
        )
    return n or there


def launch(n: int, words: Sequence[str]) -> int:
    """Train with `n` processes of `lmp_trainer` with these words, and return the exit status.

    A signal that asks to stop goes on to all of them, and they save once. The second wish ends them at once. If one
    fails, the others get GRACE_SECONDS.
    """
    with tempfile.TemporaryDirectory() as folder:
        ranks = Group(n, words, Path(folder) / "meeting")
        with heard(Wishes(ranks.tell, lambda number: ranks.kill())):
            try:
                ranks.start()
                return ranks.wait()
            finally:
                ranks.kill()


class Group:
    """The processes that train one run."""

    def __init__(self, n: int, words: Sequence[str], meeting: Path) -> None:
        self.n, self.words, self.meeting = n, list(words), meeting
        self.processes: list[subprocess.Popen] = []
        self.told = False  # to stop

    def start(self) -> None:
        """Start them, on as many cores each as they may have."""
        threads = {"OMP_NUM_THREADS": str(max(1, cores() // self.n))}
        for number in range(self.n):
            place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": self.n, "LOCAL_WORLD_SIZE": self.n}
            own = {MEETING: str(self.meeting), LAUNCHER: str(os.getpid())}
            environment = threads | dict(os.environ) | own | {name: str(value) for name, value in place.items()}
            command = [sys.executable, "-m", "lmplay.cli.trainer", *self.words]
            self.processes.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL))

    def tell(self, number: int) -> None:
        """Pass on a signal that asks to stop."""
        self.told = True
        for process in self.processes:
            process.send_signal(number)

    def kill(self) -> None:
        """End at once what is left of them."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def wait(self) -> int:
        """Wait until all have ended, and return the status of the first that failed."""
        deadline, failed = float("inf"), self._failed()
        while any(process.poll() is None for process in self.processes):
            if failed and deadline == float("inf"):
                deadline = time.monotonic() + GRACE_SECONDS
            if time.monotonic() > deadline:
                break
            time.sleep(LOOK_SECONDS)
            failed = self._failed()
        failed = self._failed()
        self.kill()
        if not failed:
            return DONE
        # who failed by itself: one that a signal ended, else one with an error, else one that has stopped
        number, status = min(failed, key=lambda one: (one[1] > 0, one[1] == STOPPED, one[0]))
        if status < 0 and not self.told:
            name = signal.Signals(-status).name
            print(
                f"lmp_trainer: process {number} of the {self.n} that train this run was ended by {name}, and the "
                "others with it: type the same command to continue",
                file=sys.stderr,
            )
        return STOPPED if status < 0 else status

    def _failed(self) -> list[tuple[int, int]]:
        """Return number and status of those that have ended in another way than well."""
        return [(number, status) for number, p in enumerate(self.processes) if (status := p.poll())]
