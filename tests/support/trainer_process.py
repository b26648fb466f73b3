"""Real `lmp_trainer` processes that start quickly, and that something can happen to at a stated point.

They are made by multiprocessing's fork server, which has torch loaded once. What happens, happens to the whole process:
it is sent a signal, or its disk fills up; nothing in lmplay is replaced. The points are reached by Python's audit
events (what a process does to files) and by hooks that torch calls in every forward pass.
"""

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SECONDS = 120  # far more than any of them takes: a process that hangs fails its test


@dataclass(frozen=True)
class At:
    """When: at the `count`-th forward pass of training, or the `count`-th audit event `event` on a path with `path`.

    What: the process sends itself `signals`, one after the other, `pause` seconds apart; `fill` names a file that
    takes all the room of its disk.
    """

    forward: bool = False
    event: str | None = None
    path: str = ""
    count: int = 1
    signals: tuple[int, ...] = ()
    pause: float = 0.0
    fill: str | None = None

    def install(self) -> None:
        seen = 0

        def reached() -> None:
            nonlocal seen
            seen += 1
            if seen != self.count:
                return
            if self.fill:
                fill_disk(Path(self.fill))
            for place, number in enumerate(self.signals):
                time.sleep(self.pause if place else 0)
                os.kill(os.getpid(), number)

        if self.event:

            def hook(event, arguments):
                if event == self.event and any(
                    self.path in os.fspath(a) for a in arguments if isinstance(a, (str, Path))
                ):
                    reached()

            sys.addaudithook(hook)
        if self.forward:
            import torch

            first = []  # the module that every forward pass enters first

            def trains() -> bool:  # not the checks before the training, which call a copy
                frame = sys._getframe(2)
                while frame is not None and not frame.f_code.co_filename.endswith(os.path.join("train", "step.py")):
                    frame = frame.f_back
                return frame is not None

            def enters(module, inputs):
                # meta: the cost is counted
                if module.training and type(inputs[0]) is torch.Tensor and not inputs[0].is_meta and trains():
                    first.append(module)
                    if module is first[0]:
                        reached()

            torch.nn.modules.module.register_module_forward_pre_hook(enters)


def fill_disk(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


class TrainerProcess:
    """One `lmp_trainer`; `at` is what happens to it. After `wait`: out, err, status (negative: a signal ended it)."""

    def __init__(self, flags: list[str], folder: Path, at: At | None = None, env: dict[str, str] | None = None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["torch", "torch._dynamo", "lmplay.cli.trainer", "lmplay.train.loop", "lmplay.train.validation"]
        )
        self.log = folder / f".log-{len(list(folder.glob('.log-*.out')))}"
        environment = {key: os.environ.get(key) for key in ("LMPLAY_DATA", "LMPLAY_EXPERIMENTS")} | (env or {})
        self._process = context.Process(
            target=_run, args=(flags, str(folder), environment, str(self.log), at), daemon=True
        )
        for stream in ("out", "err"):
            Path(f"{self.log}.{stream}").touch()
        self._process.start()

    def wait(self) -> "TrainerProcess":
        self._process.join(SECONDS)
        assert not self._process.is_alive(), f"it hangs: {self.err}"
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        return self._process.exitcode

    @property
    def out(self) -> str:
        return Path(f"{self.log}.out").read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        return Path(f"{self.log}.err").read_text(encoding="utf-8")

    @property
    def complaint(self) -> str:
        """The one line with which it ended in an error. Fails if that is not how it ended."""
        lines = [line for line in self.err.splitlines() if line.startswith("lmp_trainer: ")]
        assert self.status in range(2, 7) and len(lines) == 1 and self.err.rstrip().endswith(lines[0]), (
            self.status,
            self.err,
        )
        assert "Traceback" not in self.err
        return lines[0]

    def end(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


def _run(flags: list[str], folder: str, environment: dict, log: str, at: At | None) -> None:
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_TRUNC), descriptor)
    for key, value in environment.items():
        os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from lmplay.cli.trainer import main

    if at:
        at.install()
    sys.exit(main(flags))
