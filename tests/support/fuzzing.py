"""Odd values, files and flags for commands, drawn by hypothesis, and what becomes of a command that meets them."""

import contextlib
import copy
import io
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st

SECONDS = 600  # a command that takes longer hangs, even on a busy machine
STATUSES = (0, 2, 3, 4, 5, 130)  # docs/runs.md


class Hangs(BaseException):
    """A command took too long."""


@dataclass
class Tally:
    """How commands ended: how many, how many of them with a refusal, and each other end once, by where it came from."""

    ended: int = 0
    refused: int = 0
    faults: dict[str, str] = field(default_factory=dict)

    def run(self, main: Callable[[list[str]], int], argv: list[str], what: object = "") -> str:
        """Run a command in this process, count how it ended, and return what it said on stderr."""
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
        case = f"{main.__module__} {argv!r} {what}"[:2000]
        status: object = None
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), time_limit(SECONDS):
                status = main(argv)
        except SystemExit as end:
            status = 0 if end.code is None else end.code
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [one for one in frames if f"{os.sep}lmplay{os.sep}" in one.filename] or list(frames)
            key = f"{type(error).__name__} {Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].name}"
            self.faults.setdefault(key, f"{case}\n{''.join(traceback.format_exception(error))[-1500:]}")
            return ""
        err.flush()
        said = err.buffer.getvalue().decode("utf-8", "replace")
        self.count(status, said, case)
        return said

    def count(self, status: object, said: str, case: str) -> None:
        """Count how a command ended: `status` and what it `said` on stderr."""
        self.ended += 1
        if status not in STATUSES:
            self.faults.setdefault(f"status {status}", f"{case}\n{said[-1500:]}")
        elif status != 0:
            self.refused += 1
            lines = [line for line in said.split("\n") if line.startswith("lmp_") and "left out" not in line]
            if len(lines) != 1 or lines[0] != said.split("\n")[-2] or "\x1b" in said:
                self.faults.setdefault(f"not one line: {said[:60]!r}", f"{case}\n{said[-1500:]!r}")
        if "Traceback" in said:
            self.faults.setdefault(f"traceback in {case[:60]}", f"{case}\n{said[-1500:]}")


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Hangs within the block after N seconds."""

    def late(number: int, frame: object) -> None:
        raise Hangs(f"after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# Values

TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            " ",
            "-",
            "--",
            "..",
            ".",
            "/",
            "~",
            "~nobody",
            "a/b",
            "../x",
            "a\0b",
            "a\nb",
            "\x1b[31mred",
            "é",
            "\U0001f600",
        ]
        + [
            "*",
            "[a]",
            "?",
            "%s",
            "{}",
            "NaN",
            "None",
            "nan",
            "list",
            "\udcff",
            "\u202ertl",
            "x" * 300,
            "x" * 5000,
            "'\"",
        ]
        + [
            "/dev/zero",
            "/dev/null",
            "/proc/self/mem",
            "/proc",
            "bpe:",
            "bpe:/",
            "tiktoken:",
            "tiktoken:../x",
            "bytes:1",
        ]
        + ["sentencepiece:/dev/zero", "sentencepiece:/", ":", "a:b:c", "=", "a=", "=a", "n_layer=1e400", "n_embd=0"]
    ),
    st.text(max_size=12),
)
NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 3, 7, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63), 10**30, 0.0, -0.0, 0.5, 1.5, -2.5, 1e-320]
)
NUMBERS = st.one_of(NUMBERS, st.sampled_from([1e308, float("nan"), float("inf"), float("-inf")]), st.integers(-5, 100))
HUGE = "@huge@"  # becomes an integer of 5,000 digits in the file
DEEP = "@deep@"  # becomes 100,000 brackets
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.sampled_from([HUGE, DEEP, [], {}, [[]], {"a": 1}]))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def paths_of(value: object, path: tuple = ()) -> list[tuple]:
    """Return the paths of all values in a JSON value."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, child in children for inner in paths_of(child, (*path, key)))]


@st.composite
def odd_json(draw: Callable, content: object) -> bytes:
    """Draw the bytes of a JSON file: `content` with one to three things wrong with it, or hardly JSON at all."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 3))):
        # shallow paths are what most code reads
        path = draw(st.sampled_from(sorted(paths_of(content), key=len)))
        content = _changed(draw, content, path)
    text = json.dumps(content, ensure_ascii=draw(st.booleans()))
    text = text.replace(f'"{HUGE}"', "9" * 5000).replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000)
    if draw(st.integers(0, 9)) == 0 and isinstance(content, dict) and content:
        text = text[:-1] + f", {json.dumps(next(iter(content)))}: 1}}"
    data = text.encode("utf-8", "surrogatepass")
    return draw(odd_bytes(data)) if draw(st.integers(0, 9)) == 0 else data


def _changed(draw: Callable, content: object, path: tuple) -> object:
    if not path:
        return copy.deepcopy(draw(VALUES)) if draw(st.integers(0, 5)) == 0 else content
    parent = content
    for key in path[:-1]:
        parent = parent[key]
    how = draw(st.sampled_from(["value", "value", "value", "delete", "rename", "double"]))
    if how == "value":
        parent[path[-1]] = copy.deepcopy(draw(VALUES))  # it may be changed next, and be drawn again
    elif how == "delete":
        del parent[path[-1]]
    elif how == "rename" and isinstance(parent, dict):
        parent[draw(TEXTS)] = parent.pop(path[-1])
    elif isinstance(parent, list):
        parent.append(parent[path[-1]])
    else:
        parent[path[-1]] = [parent[path[-1]]]
    return content


@st.composite
def odd_bytes(draw: Callable, data: bytes) -> bytes:
    """Draw `data` cut off, with other bytes in it, in another encoding, or doubled."""
    how = draw(st.sampled_from(["cut", "flip", "flip", "insert", "bom", "utf16", "twice", "empty", "nul"]))
    at = draw(st.integers(0, max(0, len(data) - 1)))
    if how == "cut":
        return data[:at]
    if how == "flip":
        return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    if how == "insert":
        return data[:at] + draw(st.binary(min_size=1, max_size=9)) + data[at:]
    if how == "utf16":
        return data.decode("utf-8", "replace").encode("utf-16")
    return {"bom": b"\xef\xbb\xbf" + data, "twice": data + data, "empty": b"", "nul": data[:at] + bytes(9)}[how]


CELLS = st.sampled_from(
    [
        "",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "1e-400",
        "-1",
        "0",
        "1.5",
        "x",
        '"',
        "9" * 400,
        "NA",
        "None",
        "é",
        "\0",
        "true",
        "1e18",
    ]
    + ["9007199254740993", " 1 ", "0x10", "1_000", "a b", "../x", "\udcff", "=1+1", "\x1b[31m", "x" * 5000]
)


@st.composite
def odd_table(draw: Callable, data: bytes) -> bytes:
    """Draw the bytes of a CSV file with one to four things wrong with it."""
    rows = [line.split(",") for line in data.decode("utf-8", "replace").splitlines()]
    for _ in range(draw(st.integers(1, 4))):
        if not rows:
            break
        how = draw(
            st.sampled_from(
                ["cell", "cell", "cell", "column", "row", "swap", "twice", "header", "name", "ragged", "all"]
            )
        )
        r = draw(st.integers(0, len(rows) - 1))
        c = draw(st.integers(0, max(0, len(rows[0]) - 1)))
        if how == "cell" and c < len(rows[r]):
            rows[r][c] = draw(CELLS)
        elif how == "column":
            rows = [row[:c] + row[c + 1 :] for row in rows]
        elif how == "row":
            del rows[r]
        elif how == "swap":
            rows[r], rows[-1] = rows[-1], rows[r]
        elif how == "twice":
            rows.append(list(rows[r]))
        elif how == "header":
            del rows[0]
        elif how == "name" and c < len(rows[0]):
            rows[0][c] = draw(st.one_of(CELLS, st.sampled_from(["step", "loss", "plan_step", "x_", "loss_"])))
        elif how == "ragged":
            rows[r] = rows[r] + [draw(CELLS)]
        elif how == "all":
            cell = draw(CELLS)
            for row in rows[1:]:
                if c < len(row):
                    row[c] = cell
    data = "".join(",".join(row) + "\n" for row in rows).encode("utf-8", "surrogateescape")
    return draw(odd_bytes(data)) if draw(st.integers(0, 7)) == 0 else data


KINDS = ["folder", "pipe", "zero", "loop", "dangling", "missing", "socket-like"]


def put_odd(path: Path, kind: str) -> None:
    """Put something at `path` that is no plain file."""
    remove(path)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere/at/all")


def remove(path: Path) -> None:
    """Remove whatever is at `path`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def in_child(main: Callable[[list[str]], int], argv: list[str], folder: Path) -> tuple[int, str]:
    """Run a command in a forked process; return its status (negative: a signal) and what it said on stderr."""
    log = folder / ".stderr"
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            signal.alarm(SECONDS)
            status = main(argv)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            traceback.print_exc()
            status = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status if isinstance(status, int) else 1)
    _, code = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(code), log.read_bytes().decode("utf-8", "replace")
