"""Write files and folders whole or not at all, whenever the power fails; read text, or say why not."""

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from lmplay.errors import UserError

LARGEST_JSON = 2**26  # bytes; a run.json has a few thousand
HELD_OPEN = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")  # what a shell makes of <(command)
BROKEN_ZIP = (  # what reading a damaged ZIP raises
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, LookupError, NotImplementedError, OverflowError, RuntimeError, ValueError),
)
LONGEST_NAME = 255  # bytes, on most disks
REPLACED = ".old"  # in the name of what makes room for something new
LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?:(?P<machine>[0-9a-f]{4})-)?(?P<process>\d{1,9})(?P<kind>\.old)?\.tmp")


def sync(path: Path) -> None:
    """Write a file's content, or a folder's list of names, through to the disk."""
    # Windows opens no folders, and syncs only what may be written
    mode = os.O_RDWR if path.is_file() and os.access(path, os.W_OK) else os.O_RDONLY
    try:
        descriptor = os.open(path, mode)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Write all that is in a folder through to the disk: files, and the names in each folder."""
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink() and (path.is_file() or path.is_dir()):
            sync(path)


def copy_files(source: Path, target: Path) -> None:
    """Copy the files of a folder, and of those in it, to the folder `target`, which is made."""
    make_folder(target)
    for path in sorted(source.iterdir()):
        if path.is_dir():
            copy_files(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, that are still there when the power fails."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or a folder: renamed to `target` if the block ends well, else removed.

    Removes what killed commands have left in the folder of `target`.
    """
    remove_leftovers(target.parent)
    beside = beside_of(target)
    try:
        yield beside
        sync_all(beside) if beside.is_dir() else sync(beside)
        if beside.is_dir() and target.exists():  # a folder is not replaced in one go
            old = beside_of(target, REPLACED)
            os.replace(target, old)
            os.replace(beside, target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(beside, target)
        sync(target.parent)
    finally:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)


def beside_of(target: Path, kind: str = "") -> Path:
    """Return a hidden path beside `target` that names this process, so that `remove_leftovers` knows when it is left.

    kind: REPLACED for what is put back if the process is killed before something else has the name.
    """
    end = f".{_machine()}-{os.getpid()}{kind}.tmp"
    room = LONGEST_NAME - 1 - len(end)
    name = target.name if kind else os.fsdecode(os.fsencode(target.name)[:room])
    return target.with_name(f".{name}{end}")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed commands were writing in a folder, and put back what one was replacing."""
    for path in folder.glob(".*.tmp"):
        left = LEFTOVER.fullmatch(path.name)
        if left is None or not is_gone(left["machine"], int(left["process"])):
            continue
        with contextlib.suppress(OSError):  # someone else's
            target = path.with_name(left["name"])
            if left["kind"] and not os.path.lexists(target):
                os.replace(path, target)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _machine() -> str:
    """Return four digits for this machine: on a disk that several share, process numbers mean nothing."""
    return f"{zlib.crc32(platform.node().encode()) & 0xFFFF:04x}"


def is_gone(machine: str | None, process: int) -> bool:
    """Tell whether a process has ended; not if that can't be known. machine: None for what older versions left."""
    if machine not in (None, _machine()) or os.name == "nt" or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def write_json(path: Path, content: dict) -> None:
    """Write JSON, whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file's name that is not UTF-8 was typed: escaped, it is the same when it is read
        text = json.dumps(content, indent=1)
    with written_beside(path) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def check_plain(path: str | Path) -> None:
    """Raise OSError unless `path` is a file with an end: reading a pipe or a device may take forever."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode) and not str(path).startswith(HELD_OPEN):
        raise OSError(errno.EINVAL, "It is a pipe or a device, not a file", str(path))


def read_json(path: Path, constants: bool = True) -> Any:
    """Return the content of a JSON file that anybody may have written. constants: take NaN and Infinity.

    Raises OSError, and ValueError as `parse_json` does.
    """
    check_plain(path)
    if path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"it is larger than {LARGEST_JSON >> 20} MiB")
    return parse_json(path.read_bytes(), constants)


def parse_json(data: bytes, constants: bool = True) -> Any:
    """Return the content of JSON. Raises ValueError, with one line for people, for what is not good JSON.

    That is also what is nested too deeply, a key that is there twice, and a number that no machine holds.
    """
    options: dict[str, Any] = {} if constants else {"parse_constant": _no_constants}
    try:
        text = data.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_without_duplicates, parse_int=_machine_int, **options)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return content


def _machine_int(digits: str) -> int:
    if len(digits) > 300:  # more than a float holds
        raise ValueError(f"a number of {len(digits)} digits is more than a machine holds")
    return int(digits)


def _no_constants(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that can be used")


def read_text(path: str | Path, what: str = "", encoding: str = "utf-8", limit: int = -1) -> str:
    """Return the text of a UTF-8 file, or of standard input for "-", with its line ends as they are.

    what: put before the file's name in errors ("the prompt in"). encoding: "utf-8-sig" drops a byte-order mark.
    limit: read at most N characters of a file (-1: all). Raises UserError: unreadable, or not UTF-8.
    """
    name = f"{what} {'standard input' if str(path) == '-' else path}".lstrip()
    try:
        if str(path) == "-":
            return sys.stdin.buffer.read().decode(encoding)
        check_plain(typed_path(path))
        with open(typed_path(path), encoding=encoding, newline="") as file:
            return file.read(limit)
    except OSError as error:
        raise UserError(f"{name} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text (byte {error.start})") from error


def read_clean(path: str | Path, what: str = "", limit: int = -1) -> str:
    """Return the text of a file as `read_text` does, without a byte order mark and with "\\n" for each line end.

    So texts are read for training, and so they have to be read wherever a model or a person meets them.
    """
    return read_text(path, what, encoding="utf-8-sig", limit=limit).replace("\r\n", "\n").replace("\r", "\n")


def typed_path(text: str | Path) -> Path:
    """Return the path that a person typed, with `~` and `~name` expanded where there is such a home.

    Raises UserError for characters that no path has and a JSON file may hold.
    """
    try:
        named = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        named = False
    if not named:
        raise UserError(f"{str(text)[:60]!r} has a character that no path has")
    return Path(os.path.expanduser(text))


def usable_folder(path: Path, flag: str) -> Path:
    """Return `path` if it is a folder or can become one. Raises UserError that names `flag` if a file is in the way."""
    there = next((one for one in (path, *path.absolute().parents) if os.path.lexists(one)), None)
    if there is not None and not there.is_dir():
        raise UserError(f"{flag} {path}: {there} is no folder; choose another {flag}")
    return path


@contextmanager
def locks_needed(folder: Path, way_out: str) -> Iterator[None]:
    """Raise UserError within the block where the disk of `folder` has no locks, as network disks may."""
    try:
        yield
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        raise UserError(
            f"{folder} is on a disk without locks, which keep two commands from writing the same file: {way_out}"
        ) from error


def data_folder() -> Path:
    """Return $LMPLAY_DATA or ~/.cache/lmplay, which may not exist yet.

    It holds token stores, trained tokenizers and downloaded vocabularies. Raises UserError if a file is in the way.
    """
    folder = typed_path(os.environ.get("LMPLAY_DATA") or "~/.cache/lmplay")
    if str(folder).startswith("~"):
        raise UserError("there is no home folder to keep prepared data in: set LMPLAY_DATA to a folder")
    return usable_folder(folder, "LMPLAY_DATA")


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Raise OSError within the block where `target` can't be written: safetensors only says so in its message."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(target)) from error


def shipped_folders(kind: str) -> list[Path]:
    """Return the folders that hold the "plans" or "configs" that have names, in the order in which a name is looked up.

    That of the working folder, then that of the repository, then what an installed wheel brought.
    """
    package = Path(__file__).resolve().parent
    folders = [Path(kind), package.parent / kind, package / f"_{kind}"]
    return [folder for folder in folders if folder.is_dir()]


def shipped_files(kind: str) -> dict[str, Path]:
    """Return the JSON files of `shipped_folders` by name."""
    files: dict[str, Path] = {}
    for folder in shipped_folders(kind):
        for path in sorted(folder.glob("*.json")):
            files.setdefault(path.stem, path)
    return files
