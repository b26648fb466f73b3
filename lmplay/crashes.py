"""Say in one line where the code of an experiment went wrong."""

import sys
import time
import traceback
from pathlib import Path
from types import TracebackType

from lmplay.errors import UserError
from lmplay.files import data_folder

RAISED = (Exception, SystemExit)  # what the code of an experiment may raise
KEPT_TRACEBACKS = 20
PACKAGE = "lmplay_experiment_"  # what the name of a loaded experiment's package begins with


def is_of_experiment(error: BaseException) -> bool:
    """Tell whether the code of an experiment was running when the error came."""
    return _position(error.__traceback__) is not None


def one_line(error: BaseException) -> str:
    """Return `FILE:LINE: ERROR: MESSAGE`, the message's first line: of the experiment, else of what raised it."""
    position = _position(error.__traceback__) or _last(error.__traceback__)
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    what = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return f"{position}: {what}" if position else what


def position_of_thread(ident: int) -> str:
    """Return `FILE:LINE` where a thread is now: in the experiment's code, else anywhere; "" if it has ended."""
    frame, last = sys._current_frames().get(ident), ""
    while frame is not None:
        here = f"{_shown(frame.f_code.co_filename)}:{frame.f_lineno}"
        if frame.f_globals.get("__name__", "").startswith(PACKAGE):
            return here
        last, frame = last or here, frame.f_back
    return last


def full(error: BaseException) -> str:
    """Return the whole traceback of an error."""
    return "".join(traceback.format_exception(error))


def kept(error: BaseException, printed: str = "") -> str:
    """Keep the traceback of an error in the data folder; return the end of a line that says where.

    printed: what the code had printed until then.
    """
    try:
        folder = data_folder() / "crashes"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}.txt"
        path.write_text(f"{printed}{full(error)}", encoding="utf-8", errors="backslashreplace")
        for old in sorted(folder.glob("*.txt"))[:-KEPT_TRACEBACKS]:
            old.unlink(missing_ok=True)
    except (OSError, UserError):
        return ""
    return f" ({path} has the traceback)"


def _position(trace: TracebackType | None) -> str | None:
    """Return `FILE:LINE` of the innermost frame in an experiment's code."""
    found = None
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith(PACKAGE):
            found = f"{_shown(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _last(trace: TracebackType | None) -> str | None:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{_shown(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else None


def _shown(file: str) -> str:
    """Return a file's path as it is shown: from the current folder if it lies below it."""
    path = Path(file)
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)
