"""What every command shares: how it ends."""

import errno
import os
import sys
from collections.abc import Callable

from lmplay.errors import UserError


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
        print(f"{name}: {error.strerror.lower()}{where}: free some space or choose another folder, then type the command again; "
              "what was saved before is intact", file=sys.stderr)
        return 2
