"""Share among the commands a parser, common flags, and how a command ends."""

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from lmplay import crashes
from lmplay.cli import interrupts_raised
from lmplay.cli.spellings import meant
from lmplay.errors import BAD_INPUT, CRASHED, DONE, STOPPED, UserError
from lmplay.files import typed_path
from lmplay.output import lost_output, make_output_last, reader_left
from lmplay.runs.settings import default_out
from lmplay.text import counted, escaped
from lmplay.train.settings import whole
from lmplay.version import __version__

ROOM = "free some space or choose another folder"
DISK = "the disk failed: look after it or choose another folder"
ASK = "choose a folder that can be written"
# What the user can mend, and how: a disk that is full or fails, a folder that can't be written, a file in the position
# of a folder, a name that is too long. Windows has not all of these numbers.
ADVICE = {
    **dict.fromkeys(("ENOSPC", "EDQUOT", "EFBIG"), ROOM),
    **dict.fromkeys(("EIO", "ENXIO", "ENODEV", "ESTALE", "ENOTCONN", "EREMOTEIO", "ETIMEDOUT", "EHOSTDOWN"), DISK),
    **dict.fromkeys(("EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ENOTDIR", "EEXIST", "EISDIR"), ASK),
}
ADVICE_BY_NUMBER = {getattr(errno, name): advice for name, advice in ADVICE.items() if hasattr(errno, name)}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with the flag that was probably meant, and that shells complete.

    A flag is typed whole: --epoch would be --epochs today, and another flag once there is one that begins as it does.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self._words: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and keep the words for the message of an error."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def parse_args(self, *args: Any, **options: Any) -> Any:
        """Parse what was typed, or tell the shell that asks how it may go on, and end the program."""
        if "_ARGCOMPLETE" in os.environ:
            from lmplay.cli.completion import complete

            complete(self)
        return super().parse_args(*args, **options)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Take `--flag=--` as it is typed: Python 3.11 makes an empty list of it."""
        if action.option_strings and arg_strings == ["--"] and action.nargs in (None, argparse.OPTIONAL):
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)

    def _flags(self) -> set[str]:
        """Return the flags that were known: those of the command, and of its action that was typed."""
        flags = set(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                chosen = next((word for word in self._words if word in action.choices), None)
                flags |= action.choices[chosen]._flags() if chosen else set()
        return flags

    def error(self, message: str) -> NoReturn:
        """End the program with status 2 and one line on stderr."""
        unknown = (message.removeprefix("unrecognized arguments: ").split() or [""])[0]
        flags = self._flags()
        if message.startswith("the following arguments are required"):
            typed = [word for word in self._words if word.startswith("-") and _name(word) not in flags]
            unknown = next((word for word in typed if meant(word, flags)), "")
        elif not message.startswith("unrecognized"):
            unknown = ""
        if unknown.startswith("-"):
            message = f"there is no flag {_name(unknown)}.{meant(unknown, flags)}"
        self.exit(2, f"{self.prog}: {escaped(message)} ({self.prog} --help shows every flag)\n")


def _name(word: str) -> str:
    return word.partition("=")[0]


Flags = argparse._ActionsContainer  # a parser or a group of its flags: argparse has no public name for both


def command_parser(name: str, description: str, examples: str, **options: Any) -> Parser:
    """Return the parser of a command: its description, `--version`, and examples below the flags."""
    parser = Parser(
        name,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )
    parser.add_argument("--version", action="version", version=f"lmplay {__version__}")
    return parser


def add_out(flags: Flags) -> None:
    """Add `--out`, the folder of runs."""
    flags.add_argument(
        "--out",
        type=typed_path,
        default=Path(default_out()),
        metavar="FOLDER",
        help=f"folder of all runs ($LMPLAY_OUT is another default; default: {default_out()})".replace("%", "%%"),
    )


def add_device(flags: Flags) -> None:
    """Add `--device`."""
    flags.add_argument("--device", default="auto", help="device to use: auto, cpu, cuda, cuda:N or mps (default: auto)")


def add_seed(flags: Flags, what: str, default: int | None) -> None:
    """Add `--seed`, the seed of `what`; by default a new one, which the command shows."""
    shown = "a new one, which is shown" if default is None else str(default)
    flags.add_argument(
        "--seed", type=whole, default=default, metavar="N", help=f"seed of {what}; at least 0 (default: {shown})"
    )


def add_retry_crashed(flags: Flags) -> None:
    """Add `--retry-crashed`."""
    flags.add_argument(
        "--retry-crashed",
        action="store_true",
        help="train runs again whose model crashed or hung, even if its code is the same (default: no)",
    )


def add_at_once(flags: Flags) -> None:
    """Add `--jobs`, `--on` and `--together`: how many runs are trained at once, where, and how."""
    flags.add_argument(
        "--jobs",
        type=_count_or_auto,
        default=1,
        metavar="N|auto",
        help="train N runs side by side, each in a process of its own with its share of the cores; auto: as many as "
        "there are cores, or as pay on the GPU (default: 1)",
    )
    flags.add_argument(
        "--on",
        metavar="BACKEND",
        help="train the runs in processes:N of this machine, which --jobs N is short for, or on the machines of a Ray "
        "cluster: ray, or ray://HOST:PORT of its head (docs/machines.md; default: here, one after another)",
    )
    flags.add_argument(
        "--together",
        type=_count_or_auto,
        default=1,
        metavar="K|auto",
        help="train up to K seeds of one arm in one process, their weights stacked, with the losses of separate runs; "
        "auto: where a trial shows that it is faster (default: 1)",
    )


def _count_or_auto(text: str) -> int | None:
    """Return a number of at least 1, None for "auto"."""
    if text == "auto":
        return None
    n = whole(text)
    if n < 1:
        raise argparse.ArgumentTypeError(f"at least 1 or auto is expected, not {text}")
    return n


def add_trust(flags: Flags, what: str = "first ") -> None:
    """Add `--trust-code`, for runs that were not made here."""
    flags.add_argument(
        "--trust-code",
        type=typed_path,
        metavar="FOLDER",
        help=f"{what}trust the code in all runs below FOLDER for good, so that they can be loaded",
    )


def trust_code(folder: Path | None) -> None:
    """Trust the runs below `folder`, if one was given, and say so."""
    if folder is not None:
        from lmplay.runs.trust import trust_below

        print(f"the code of {counted(len(trust_below(folder)), 'run')} in {folder} is trusted now", file=sys.stderr)


def run_command(name: str, command: Callable[[list[str]], int | None], argv: list[str] | None = None) -> int:
    """Run `command` with `argv` (default: the command line's) and return the exit status, as docs/runs.md has them.

    Bad input, a full disk and a model that crashes become one line on stderr. Nothing that is printed ends a command:
    where its output can't be written it goes on, and the status says so at the end.
    """
    try:
        with interrupts_raised():
            make_output_last()
            status = command(list(sys.argv[1:] if argv is None else argv)) or DONE
    except UserError as error:
        print(f"{name}: {escaped(error)}", file=sys.stderr)
        status = error.status
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        status = STOPPED
    except crashes.RAISED as error:
        if _interrupted(error):
            print(f"{name}: interrupted", file=sys.stderr)
            return STOPPED
        if crashes.is_of_experiment(error):
            print(f"{name}: {escaped(crashes.one_line(error))}{crashes.kept(error)}", file=sys.stderr)
            return CRASHED
        if not isinstance(error, OSError) or not _number_of(error):
            raise
        print(f"{name}: {escaped(_trouble(error))}", file=sys.stderr)
        status = BAD_INPUT
    lost = lost_output()
    if lost and not reader_left() and status == DONE:  # a reader that leaves (head) has read enough
        print(f"{name}: not all of the output could be written ({lost.strerror})", file=sys.stderr)
        status = BAD_INPUT
    return status


def _trouble(error: OSError) -> str:
    """Return in one line what the system refused to do, with which file, and what to do."""
    number = _number_of(error)
    where = f" ({error.filename})" if error.filename else ""
    way_out = ADVICE_BY_NUMBER.get(number, "see to that file or disk")
    return (
        f"{os.strerror(number).lower()}{where}: {way_out}, then type the command again; what was saved before is intact"
    )


def _interrupted(error: BaseException) -> bool:
    """Tell whether Ctrl-C is behind an error: what is imported may make another one of it."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return seen is not None


def _number_of(error: OSError) -> int:
    """Return the number of an error, also of one that holds others, as that of a folder that was copied; else 0."""
    named = re.search(r"\[Errno (\d+)\]", str(error))
    return error.errno or (int(named[1]) if named else 0)
