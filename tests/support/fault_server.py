"""Run commands in processes that are forked from one that has torch loaded, on a disk that fails at a stated moment.

`FaultServer` is the test's side: it starts this file as a process with faulty_disk.c preloaded, and tells it what to
run. Nothing in lmplay is replaced: the calls of the system fail, or the process is killed, or the power is lost.
"""

import ctypes
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

WRITES, READS = 1, 2
PRELOADED = ("torch", "torch._dynamo", "lmplay.train.loop", "lmplay.train.validation", "lmplay.train.checking")
SECONDS = 120
KILLED, POWER_LOST = -signal.SIGKILL, 99


@dataclass(frozen=True)
class Fault:
    """What happens at the operation number `at` on files below `root` (-1: nothing, they are only counted).

    error: it fails with this number, and with `lasting` all after it do, too. kill: the process is killed before it.
    cpu_seconds: the process is killed when it has computed for so long.
    lose_power: the process is gone before it, and what has reached the disk is copied to this folder; `seed` chooses
    what of the rest is there. unsynced: parts of paths that are never synced, to see that this is noticed.
    """

    root: str
    at: int = -1
    kinds: int = WRITES
    cpu_seconds: float | None = None
    error: int = 0
    lasting: bool = False
    kill: bool = False
    lose_power: str | None = None
    seed: int = 0
    unsynced: str | None = None


@dataclass
class Job:
    """A command: the module below lmplay.cli, its flags, its working folder, and what happens to it."""

    command: str
    flags: list[str]
    folder: str
    fault: Fault | None = None
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class Ended:
    """How a command ended. count: its operations on files, where it was not killed."""

    status: int
    out: str
    err: str
    count: int

    @property
    def is_one_line(self) -> bool:
        """Whether it refused as it should: status 2, and a last line that names the command; no traceback."""
        lines = [line for line in self.err.splitlines() if line.startswith("lmp_")]
        return self.status == 2 and len(lines) == 1 and "Traceback" not in self.err + self.out


class FaultServer:
    """Starts and ends the server; `run` waits for a command, `start` and `wait` run several at once."""

    def __init__(self, folder: Path):
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None or sys.platform != "linux":
            raise FileNotFoundError("no C compiler")
        library = folder / "faulty_disk.so"
        source = Path(__file__).with_name("faulty_disk.c")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self._logs = Path(tempfile.mkdtemp(dir=folder))
        self._count = 0
        root = Path(__file__).resolve().parents[2]
        path = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
        env = {**os.environ, "LD_PRELOAD": str(library), "FAULTY_DISK": str(library), "PYTHONPATH": path}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def _ask(self, **what) -> dict:
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, job: Job) -> tuple[int, str]:
        """Start a command; return its process id and the name of its logs."""
        self._count += 1
        log = str(self._logs / str(self._count))
        return self._ask(do="start", job=asdict(job), log=log)["pid"], log

    def wait(self, started: tuple[int, str]) -> Ended:
        """Wait for the end of a command."""
        pid, log = started
        status = self._ask(do="wait", pid=pid)["status"]
        read = {}
        for name in ("out", "err", "count"):
            file = Path(f"{log}.{name}")
            read[name] = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
            file.unlink(missing_ok=True)
        return Ended(status, read["out"], read["err"], int(read["count"] or -1))

    def run(self, job: Job) -> Ended:
        """Run a command to its end."""
        return self.wait(self.start(job))

    def close(self) -> None:
        """End the server."""
        self._process.stdin.close()
        self._process.wait(SECONDS)


def _serve() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "start":
            pid = os.fork()
            if pid == 0:
                _child(asked["job"], asked["log"])
            answer = {"pid": pid}
        else:
            _, status = os.waitpid(asked["pid"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # what Python does at its end takes longer than all of the tests


def _child(job: dict, log: str) -> None:
    status = 70
    try:
        signal.alarm(SECONDS)
        for name, descriptor in (("out", 1), ("err", 2)):
            os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = open(0, closefd=False)
        os.environ.update(job["env"])
        os.chdir(job["folder"])
        main = importlib.import_module(f"lmplay.cli.{job['command']}").main
        disk = ctypes.CDLL(os.environ["FAULTY_DISK"])
        if job["fault"]:
            _arm(disk, Fault(**job["fault"]))
        try:
            status = main(job["flags"])
        except SystemExit as end:
            status = end.code or 0
        sys.stdout.flush()
        sys.stderr.flush()
        count = disk.disk_count()
        disk.disk_arm(b"", 0, ctypes.c_long(-1), 0, 0, None)
        Path(f"{log}.count").write_text(str(count))
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _arm(disk: ctypes.CDLL, fault: Fault) -> None:
    callback = None
    if fault.cpu_seconds:
        signal.setitimer(signal.ITIMER_PROF, fault.cpu_seconds)
    if fault.kill:
        callback = ctypes.CFUNCTYPE(None)(lambda: os.kill(os.getpid(), signal.SIGKILL))
    elif fault.lose_power or fault.unsynced:
        from support.lossy_disk import LossyDisk

        lossy = LossyDisk(Path(fault.root))
        lossy.watch(fault.unsynced)

        def lose() -> None:
            try:
                lossy.surviving(Path(fault.lose_power), random.Random(fault.seed))
            except BaseException:
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
                os._exit(70)
            os._exit(POWER_LOST)

        callback = ctypes.CFUNCTYPE(None)(lose)
    _arm.kept = callback  # ctypes does not keep it
    root = os.path.realpath(fault.root).encode()
    disk.disk_arm(root, fault.kinds, ctypes.c_long(fault.at), fault.error, int(fault.lasting), callback)


if __name__ == "__main__":
    _serve()
