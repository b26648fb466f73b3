"""End a training whose code keeps Python's lock for itself, where no thread of its own process can.

A call into C that keeps the lock and does not return (a regular expression, a library that waits for ever) stops all
threads of Python, the watchdog's too. So a small process of its own listens to the watchdog. Once it is silent for
long, that process notes in run.json that the run hung, and ends it. The signals and clocks of the system are all that
works then.
"""

import contextlib
import ctypes
import faulthandler
import os
import platform
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmplay.errors import HUNG, UserError

SECONDS_TO_DUMP = 1.0  # for writing down where each thread is
SECONDS_TO_EXIT = 5.0  # then it is killed
STACK = 2**16  # bytes, of the functions that a thread without Python calls
CONTEXTS = ("x86_64", "aarch64")  # machines on which the C library is known to switch between them

_ends: dict[int, int] = {}  # process id -> what ends it when it is written to


class Guard:
    """The process that listens, while this one trains. folder: of the run that hangs if this process does.

    what: begins the line that is said. seconds: of silence that are a hang.
    """

    def __init__(self, seconds: float, what: str, folder: Path | None) -> None:
        self._positions = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed at the end)
        faulthandler.register(signal.SIGURG, file=self._positions, all_threads=True)
        end = _end_of_this_process()
        passed = [self._positions.fileno(), *([] if end is None else [end])]
        argv = [os.getpid(), seconds, what, folder or "", self._positions.fileno(), -1 if end is None else end]
        path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-P", "-m", __name__, *map(str, argv)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=passed,
            start_new_session=True,  # a terminal's signals are not for it
            env={**os.environ, "PYTHONPATH": path},
            bufsize=0,
        )
        assert self._process.stdin is not None
        self._voice = self._process.stdin
        os.set_blocking(self._voice.fileno(), False)

    def beat(self) -> None:
        """Tell it that threads of this process get Python's lock."""
        with contextlib.suppress(OSError):  # it was killed, or has not read for long
            self._voice.write(b".")

    def end(self) -> None:
        """Let it go."""
        with contextlib.suppress(OSError):
            self._voice.close()
        self._process.wait()
        faulthandler.unregister(signal.SIGURG)
        self._positions.close()


def guard(seconds: float, what: str, folder: Path | None) -> Guard | None:
    """Return a guard that listens; None where the system allows none."""
    if os.name != "posix":
        return None
    try:
        return Guard(seconds, what, folder)
    except OSError:  # no room for a further process
        return None


def _end_of_this_process() -> int | None:
    """Return a descriptor: once it is written to, this process leaves with the status HUNG, whoever has Python's lock.

    A thread without Python reads from it, by contexts of the C library: read() is linked to _exit(). None where there
    are no such contexts; a signal can then end the process, with another status.
    """
    if os.getpid() in _ends:
        return _ends[os.getpid()]
    if platform.libc_ver()[0] != "glibc" or platform.machine() not in CONTEXTS or not hasattr(os, "eventfd"):
        return None
    libc = ctypes.CDLL(None)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # none may interrupt the reading
    try:
        descriptor, thread, content = os.eventfd(0), ctypes.c_ulong(), ctypes.create_string_buffer(8)
        leave = _context(libc, libc._exit, ctypes.c_long(HUNG), then=None)
        number, at = ctypes.c_long(descriptor), ctypes.c_void_p(ctypes.addressof(content))
        listen = _context(libc, libc.read, number, at, ctypes.c_long(8), then=leave)
        _kept.append(content)
        if libc.pthread_create(ctypes.byref(thread), None, libc.setcontext, ctypes.byref(listen)):
            os.close(descriptor)
            return None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    _ends[os.getpid()] = descriptor
    return descriptor


class _Context(ctypes.Structure):
    """The beginning of glibc's ucontext_t, and room for its rest."""

    _fields_ = (
        ("flags", ctypes.c_ulong),
        ("link", ctypes.c_void_p),
        ("stack", ctypes.c_void_p),
        ("stack_flags", ctypes.c_int),
        ("stack_size", ctypes.c_size_t),
        ("rest", ctypes.c_char * 8192),
    )


_kept: list[Any] = []  # what the thread without Python uses to the end


def _context(libc: ctypes.CDLL, function: Any, *arguments: Any, then: _Context | None) -> _Context:
    """Return a context that calls a function of C, and goes on with `then`."""
    context, stack = _Context(), ctypes.create_string_buffer(STACK)
    libc.getcontext(ctypes.byref(context))
    context.link = None if then is None else ctypes.addressof(then)
    context.stack, context.stack_size = ctypes.addressof(stack), STACK
    libc.makecontext(ctypes.byref(context), function, len(arguments), *arguments)
    _kept.extend((context, stack))
    return context


def listen(process: int, seconds: float) -> float | None:
    """Return how long a process has been silent, when that is too long; None if it ends, or lets its guard go.

    Time is counted in ticks, and not while the process is halted.
    """
    tick = min(1.0, seconds / 8)
    silent, last = 0.0, time.monotonic()
    while os.getppid() == process:
        readable, _, _ = select.select([0], [], [], tick)
        now = time.monotonic()
        silent, last = silent + min(now - last, 2 * tick), now
        if readable:
            if not os.read(0, 65536):
                return None
            silent = 0.0
        elif _is_halted(process):
            silent = 0.0
        elif silent > seconds:
            return silent
    return None


def _is_halted(process: int) -> bool:
    try:
        state = (
            Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
        )
    except OSError:  # a system without /proc
        shown = subprocess.run(["ps", "-o", "state=", "-p", str(process)], capture_output=True, text=True, check=False)
        state = shown.stdout.strip()[:1]
    return state in ("T", "t")


def position(dump: str, folder: Path) -> str:
    """Return `FILE:LINE` of the innermost line that a dump of faulthandler has of the thread that computes."""
    current = re.search(r"^Current thread.*\n((?:  .*\n)*)", dump, re.MULTILINE) or re.search(r"((?:  .*\n)+)", dump)
    lines = re.findall(r'File "(.+)", line (\d+)', current[1]) if current else []
    own = [line for line in lines if "/torch/" not in line[0]] or lines
    if not own:
        return "an unknown line"
    file = Path(own[0][0])
    return f"{file.relative_to(folder) if file.is_relative_to(folder) else file}:{own[0][1]}"


def note(folder: Path, said: str, dump: str) -> str:
    """Write into a run's log and run.json that it hung; return what is said besides."""
    from lmplay.runs.alive import note_process
    from lmplay.runs.names import ERROR, LOG, PROCESS, STEP
    from lmplay.runs.run import read_run

    with contextlib.suppress(OSError):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        with open(os.open(folder / LOG, flags, 0o666), "w", encoding="utf-8") as log:
            log.write(dump)
    with contextlib.suppress(OSError, UserError):
        run = read_run(folder)
        run.info["status"], run.info[ERROR] = "hung", said
        process = run.info.get(PROCESS)
        step = process.get(STEP) if isinstance(process, dict) else None
        note_process(run.info, step if isinstance(step, int) else 0, ended=True)
        run.write()
    return f" ({folder / LOG} has the traceback; the last checkpoint is kept)"


def main(argv: list[str]) -> None:
    """Listen to the process that started this one, and end it when it hangs."""
    process, seconds, what, folder, dump, end = int(argv[0]), float(argv[1]), *argv[2:4], int(argv[4]), int(argv[5])
    silent = listen(process, seconds)
    if silent is None:
        return
    os.kill(process, signal.SIGURG)
    time.sleep(SECONDS_TO_DUMP)
    written = os.pread(dump, 2**20, 0).decode("utf-8", "replace")
    said = f"no sign of life for {silent:.0f} s: it hung at {position(written, Path.cwd())}, and kept Python's lock"
    more = note(Path(folder), said, written) if folder else ""
    print(f"\n{what}: {said}{more}", file=sys.stderr, flush=True)
    if os.getppid() == process and end >= 0:
        os.eventfd_write(end, 1)
    for _ in _ticks(SECONDS_TO_EXIT):
        if os.getppid() != process:
            return
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def _ticks(seconds: float) -> Iterator[None]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.02)
        yield


if __name__ == "__main__":
    main(sys.argv[1:])
