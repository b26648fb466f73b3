"""Keep what is printed from ending what is computed: readers leave, disks fill up, daemons have no output at all."""

import contextlib
import errno
import io
import os
import sys
from typing import Any


class LastingFile(io.RawIOBase):
    """A file descriptor that is written to as long as that works. What comes later is dropped, and `error` says why."""

    def __init__(self, descriptor: int):
        super().__init__()
        self._descriptor = descriptor
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write the bytes, or drop them; return how many were taken."""
        if self.error is None:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # a terminal that another program left in this mode: wait for it
                os.set_blocking(self._descriptor, True)
                return self.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Tell whether it is a terminal."""
        return os.isatty(self._descriptor)


class LastingText(io.TextIOWrapper):
    """Text that goes to a file as long as that can be written to."""

    def __init__(self, descriptor: int, encoding: str = "utf-8", errors: str = "backslashreplace"):
        self.file = LastingFile(descriptor)
        super().__init__(io.BufferedWriter(self.file), encoding, errors, line_buffering=True)


def make_output_last() -> None:
    """Make standard output and error last: nothing that is printed raises an error from now on.

    What the terminal can't show (another locale, odd names) is escaped. Streams that a program has replaced are left as
    they are.
    """
    _open_missing()
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None or _is_of(stream, descriptor):
            lasting = LastingText(descriptor, getattr(stream, "encoding", "utf-8"))
            lasting.reconfigure(line_buffering=name == "stderr" or lasting.file.isatty())
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.flush()
            setattr(sys, name, lasting)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_of(stream: Any, descriptor: int) -> bool:
    """Tell whether a stream is the one that Python opens for this file descriptor."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # without buffering there is no raw
    return isinstance(raw, io.FileIO) and raw.fileno() == descriptor


def lost_output() -> OSError | None:
    """Return why standard output can't be written to any more, None if it can."""
    stream = sys.stdout
    if not isinstance(stream, LastingText):
        return None
    stream.flush()
    return stream.file.error


def shows_colors(stream: Any) -> bool:
    """Tell whether a stream is a terminal with colors, which $NO_COLOR and TERM=dumb deny (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def reader_left() -> bool:
    """Tell whether the reader of standard output (a pager, head) has gone."""
    error = lost_output()
    return error is not None and error.errno == errno.EPIPE


def _open_missing() -> None:
    """Open the null device where a standard stream is closed, so that the next file is not opened as one of them."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)
