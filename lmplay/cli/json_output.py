"""Tell a program what a command found out: --json FILE, or - for standard output."""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmplay import crashes
from lmplay.cli.command import Flags
from lmplay.errors import CRASHED, DONE, STOPPED, UserError
from lmplay.files import typed_path
from lmplay.own_files import own_file
from lmplay.version import __version__

FORMAT = 1


def add_json(flags: Flags) -> None:
    """Add `--json`."""
    flags.add_argument(
        "--json",
        metavar="FILE",
        type=_target,
        help="write what is found out as one JSON object to FILE, or to standard output for -, "
        "and what people read to standard error then (docs/agents.md lists the keys)",
    )


def _target(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a file is expected, or -")
    return text


def _is_plain(path: Path) -> bool:
    """Tell whether a file can be put in this position: a pipe or a device is written to as it is."""
    return path.is_file() or not os.path.lexists(path)


class Told:
    """What a command has to say to a program. The command fills in `content` and `status`."""

    def __init__(self, command: str, target: str | None):
        self.command, self.target = command, target
        self.content: dict[str, Any] = {}
        self.status = DONE
        self._output = sys.stdout  # as it was before anything was redirected

    def write(self, state: str, error: str | None = None) -> None:
        """Write the object. state: "running", "done", "stopped" or "error"."""
        head = {
            "format": FORMAT,
            "command": self.command,
            "lmplay": __version__,
            "state": state,
            "status": None if state == "running" else self.status,
            "error": error,
            "pid": os.getpid(),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        text = json.dumps(head | self.content, indent=1, allow_nan=False)
        if self.target == "-":
            print(text, file=self._output, flush=True)
        elif self.target:
            path = typed_path(self.target)
            try:
                with own_file(path) if _is_plain(path) else contextlib.nullcontext(path) as beside:
                    beside.write_text(text + "\n", encoding="utf-8")
            except OSError as problem:
                raise UserError(f"--json {path} can't be written ({problem.strerror}): name another file") from None


@contextlib.contextmanager
def told(command: str, target: str | None) -> Iterator[Told]:
    """Write one JSON object to `target` when the block ends, however it ends; None: nothing.

    A file says "running" until then, so that nothing of an earlier command is taken for an answer. With "-" what is
    printed within the block goes to standard error.
    """
    to_program = Told(command, target)
    if target is None:
        yield to_program
        return
    if target != "-":
        to_program.write("running")
    with contextlib.redirect_stdout(sys.stderr) if target == "-" else contextlib.nullcontext():
        try:
            yield to_program
        except UserError as error:
            to_program.status = error.status
            to_program.write("error", str(error))
            raise
        except KeyboardInterrupt:
            to_program.status = STOPPED
            to_program.write("stopped", "interrupted")
            raise
        except crashes.RAISED as error:
            to_program.status = CRASHED if crashes.is_of_experiment(error) else 2
            to_program.write("error", crashes.one_line(error))
            raise
    to_program.write("stopped" if to_program.status == STOPPED else "done")
