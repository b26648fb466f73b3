"""Start the processes that send a run to trackers, and leave them alone: they read what the run records."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lmplay.files import make_folder
from lmplay.runs.names import TRACK

WAIT_SECONDS = 30.0  # for what is left to be sent when the training has ended
# One thread, and no GPU: nothing of the machine is taken from the training that it would miss.
LIGHT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LEAST_PRIORITY = 19
HERE = str(Path(__file__).resolve().parent.parent.parent)  # where lmplay is imported from, installed or not


class Followers:
    """The processes that send one run, one for each tracker."""

    def __init__(self, folder: Path, trackers: Sequence[str]):
        self.folder, self.trackers = folder, tuple(dict.fromkeys(trackers))
        self.processes: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Start them. What keeps one from it is said, and nothing else comes of it."""
        paths = os.pathsep.join(filter(None, (HERE, os.environ.get("PYTHONPATH"))))
        for name in self.trackers:
            try:
                make_folder(self.folder / TRACK)
                with open(self.folder / TRACK / f"{name}.log", "ab") as log:
                    self.processes[name] = subprocess.Popen(
                        [sys.executable, "-m", "lmplay.track", str(self.folder.absolute()), name],
                        stdin=subprocess.PIPE,  # closed at the end of the training, so that they look once more at once
                        stdout=log,
                        stderr=log,
                        env=os.environ | LIGHT | {"PYTHONPATH": paths},
                        start_new_session=True,  # Ctrl-C is for the training; they send what it leaves
                    )
                _stand_back(self.processes[name].pid)
            except OSError as error:
                print(f"--track {name} could not be started ({error.strerror})", file=sys.stderr)

    def wait(self) -> None:
        """Give them a while to send the rest; then they go on alone. What went wrong is said."""
        deadline = time.monotonic() + WAIT_SECONDS
        for process in self.processes.values():
            if process.stdin:
                process.stdin.close()
        for name, process in self.processes.items():
            try:
                failed = process.wait(max(0.0, deadline - time.monotonic())) != 0
            except subprocess.TimeoutExpired:
                print(f"--track {name} still sends; it goes on by itself", file=sys.stderr)
                continue
            log = self.folder / TRACK / f"{name}.log"
            if failed or (log.is_file() and b"Traceback" in log.read_bytes()):
                print(f"--track {name} had trouble, see {log}: lmp_plotstats --track {name} sends it", file=sys.stderr)


def _stand_back(pid: int) -> None:
    """Give a process of its own session the least priority.

    Linux shares out its cores among sessions before it does among their processes (sched_autogroup), so the session
    has to stand back, too: else it gets as much as the whole training.
    """
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, pid, LEAST_PRIORITY)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(LEAST_PRIORITY), encoding="ascii")
