"""What every command shares: how it reads its flags and how it ends."""

import argparse
import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from lmplay.errors import UserError, did_you_mean


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with the flag that was probably meant."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        if message.startswith("unrecognized") and unknown.startswith("--"):
            near = did_you_mean(unknown, self._option_string_actions)
            message = f"there is no flag {unknown}.{near if 'mean' in near else ''}"
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help shows every flag)\n")


def run_command(name: str, command: Callable[[], int | None]) -> int:
    """Runs `command`; bad input and a full disk become one line on stderr and exit status 2, Ctrl-C 130."""
    try:
        status = command() or 0
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output (a pager, head) has gone: nothing is wrong, but for Python's last words at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"{name}: {error.strerror.lower()}{where}: free some space or choose another folder, then type the command again; "
            "what was saved before is intact",
            file=sys.stderr,
        )
        return 2
