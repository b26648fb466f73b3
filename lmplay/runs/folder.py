"""Find runs; lock, start and set aside a run's folder."""

import itertools
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from lmplay.data.published import TOKENIZER_FILES
from lmplay.errors import Locked, UserError, did_you_mean
from lmplay.files import copy_files, locks_needed, make_folder, sync, sync_all, typed_path
from lmplay.registry import DEFAULT_EXPERIMENT, Entry
from lmplay.runs import checkpoints, names, trust
from lmplay.runs.integrity import damage_among
from lmplay.runs.recorder import checksums_of
from lmplay.runs.run import Run, is_run, read_run

WAITING_SECONDS = 1.0  # between two looks at a run that another process trains


def find_run(path: str | Path | None, out: Path) -> Run:
    """Find one run: by its folder, its name in `out` or one of its checkpoints; None: the run in `out` trained last.

    Raises UserError if there is none, with the nearest name, and if its run.json can't be read.
    """
    if path is None:
        return read_run(max(trained_folders(out), key=lambda folder: (folder / names.RUN_JSON).stat().st_mtime_ns))
    for found in (typed_path(path), out / path):
        if is_run(found):
            return read_run(found)
        if found.parent.name == names.CHECKPOINTS and is_run(found.parent.parent):
            there = checkpoints.find_all(found.parent)
            if found in there:
                return read_run(found.parent.parent, chosen=found)
            known = ", ".join(one.name for one in there)
            raise UserError(f"the run {found.parent.parent} has no checkpoint {found.name!r}, but {known}")
    near = did_you_mean(str(path), [folder.name for folder in _trained(out)])
    raise UserError(f"there is no run {str(path)!r} in {out}.{near}")


def trained_folders(out: Path) -> list[Path]:
    """Return the folders in `out` of the runs that have a checkpoint, by name. Raises UserError if there is none."""
    folders = _trained(out)
    if not folders:
        raise UserError(
            f"there is no trained run in {out}: train one first, for example with "
            f"lmp_trainer --exp {DEFAULT_EXPERIMENT}:tiny --training-plan quick"
        )
    return folders


def _trained(out: Path) -> list[Path]:
    return [f for f in _folders_in(out) if is_run(f) and checkpoints.latest(f / names.CHECKPOINTS)]


def find_runs(
    paths: Iterable[str | Path], out: Path, read: Callable[[Path], Run] = read_run
) -> tuple[list[Run], list[str]]:
    """Find many runs. A path is a run's folder, a folder of runs, or a run's name in `out`. No paths: all in `out`.

    read: reads the run in a folder. Returns (runs, skipped): each run once, in the order found, and one line for each
    that could not be read. Folders beside the runs that hold nothing of a run are passed over.
    Raises UserError for a path that does not exist, and if there is no run's folder at all.
    """
    paths = list(paths)
    folders = [folder for path in paths for folder in _folders_at(path, out)] if paths else _folders_in(out)
    folders = [folder for folder in folders if _may_be_run(folder)]
    runs, skipped, seen = [], [], set()
    for folder in folders:
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        try:
            runs.append(read(folder))
        except UserError as error:
            skipped.append(str(error))
    if not folders:
        where = ", ".join(map(str, paths)) or str(out)
        raise UserError(
            f"no runs in {where}: train one with 'lmp_trainer --exp {DEFAULT_EXPERIMENT}', "
            "or name the folder that holds runs"
        )
    return runs, skipped


def _may_be_run(folder: Path) -> bool:
    """Tell whether a folder is a run's, or what is left of one."""
    return any(os.path.lexists(folder / name) for name in (names.RUN_JSON, names.CHECKPOINTS, *names.RECORDED))


def _folders_at(path: str | Path, out: Path) -> list[Path]:
    directly, inside = typed_path(path), out / path
    for folder in (directly, inside):
        if is_run(folder):
            return [folder]
    for folder in (directly, inside):
        if folder.is_dir():
            return _folders_in(folder)
    near = did_you_mean(str(path), [folder.name for folder in _folders_in(out) if is_run(folder)])
    raise UserError(f"no run or folder {str(path)!r}, nor a run of that name in {out}.{near}")


def _folders_in(folder: Path) -> list[Path]:
    """Return all folders in `folder` that are not hidden, runs or not, by name."""
    if not folder.is_dir():
        return []
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    except OSError as error:
        raise UserError(f"{folder} can't be read ({error.strerror})") from None


def start_folder(folder: Path, entry: Entry, tokenizer_spec: str) -> None:
    """Make a run's folder, with copies of the experiment's code and of the tokenizer.

    An existing folder is moved to .replaced/ if it holds anything that was trained. The user's own files go with it if
    it has a checkpoint, else they stay. Raises UserError if it is not a run's.
    """
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"{folder} is a link that leads nowhere: mend or remove it, or choose another --run-name")
    make_folder(folder)
    others = [p.name for p in folder.iterdir() if p.name not in names.WRITTEN and not p.name.endswith(".tmp")]
    if others and not is_run(folder):
        raise UserError(f"{folder} is not a run's folder (it holds {others[0]}): choose another --run-name or --out")
    remove_leftovers(folder)
    if _has_results(folder):
        saved = checkpoints.latest(folder / names.CHECKPOINTS) is not None
        replaced = set_aside(folder)
        make_folder(folder)
        for name in [] if saved else others:  # the user's notes stay with a run that is only begun again
            (replaced / name).rename(folder / name)
    for path in folder.iterdir():  # left by a run that was killed before its first step
        if path.name in others:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    copy_code(entry, folder)
    trust.remember(folder)
    _copy_tokenizer(tokenizer_spec, folder / names.TOKENIZER)
    sync_all(folder)


def restore_copies(folder: Path, entry: Entry, tokenizer_spec: str, checkpoint: Path) -> None:
    """Copy an experiment's code and the tokenizer anew where a run's copy is not as `checkpoint` noted it.

    The caller has found that both are the same as when the run was started.
    """
    noted = checkpoints.read_checksums(checkpoint).get("run", {})
    damaged = {part: damage_among(folder, noted, [part]) for part in (names.CODE, names.TOKENIZER)}
    if not any(damaged.values()):
        return
    for part, wrong in damaged.items():
        if not wrong:
            continue
        print(f"{wrong[0]}: it is copied anew", file=sys.stderr)
        shutil.rmtree(folder / part, ignore_errors=True)
        if part == names.CODE:
            copy_code(entry, folder)
            trust.remember(folder)
        else:
            _copy_tokenizer(tokenizer_spec, folder / part)
    sync_all(folder)
    others = {name: sums for name, sums in noted.items() if not damaged.get(name.partition("/")[0])}
    checkpoints.write_state(checkpoint, checkpoints.read_state(checkpoint), checksums_of(folder, others))


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed trainer was writing in a run's folder, which is locked."""
    for leftover in list(folder.rglob(".*.tmp")):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _has_results(folder: Path) -> bool:
    """Tell whether a run's folder holds rows, samples, losses or checkpoints, readable or not."""
    rows = [folder / name for name in names.RECORDED]
    if any(path.is_symlink() or (path.exists() and path.stat().st_size) for path in rows):
        return True
    kept = [folder / names.CHECKPOINTS, folder / names.DOCUMENT_LOSSES]
    try:
        return any(path.is_symlink() or (path.exists() and any(_whole(path))) for path in kept)
    except OSError:  # unreadable, so not known to be empty
        return True


def _whole(folder: Path) -> list[Path]:
    """Return what is in `folder`, except what a killed trainer was writing."""
    return [path for path in folder.iterdir() if not path.name.endswith(".tmp")]


def free_aside(folder: Path) -> Path:
    """Return a free name for a run's folder in .replaced/ beside it: NAME, NAME.2, NAME.3 ..."""
    aside = folder.parent / names.REPLACED
    aside.mkdir(exist_ok=True)
    candidates = (aside / f"{folder.name}{f'.{number}' if number > 1 else ''}" for number in itertools.count(1))
    return next(path for path in candidates if not os.path.lexists(path))


def set_aside(folder: Path) -> Path:
    """Move a run's folder to .replaced/ beside it, to a free name: NAME, NAME.2, NAME.3 ...; return where it is."""
    replaced = free_aside(folder)
    links = [path for path in (folder, folder / names.CHECKPOINTS) if path.is_symlink()]
    targets = [Path(os.path.abspath(path.parent.resolve() / path.readlink())) for path in links]
    folder.rename(replaced)
    for changed in (folder.parent, replaced.parent):
        sync(changed)
    for link, target in zip(links, targets, strict=True):  # relative ones would lead elsewhere from there
        moved = replaced / link.relative_to(folder)
        moved.unlink()
        moved.symlink_to(target)
    print(f"the run that was in {folder} is kept in {replaced}: delete it if nobody needs it", file=sys.stderr)
    return replaced


def check_links(folder: Path) -> None:
    """Raise UserError for a link in a run's folder that writing to the run would follow.

    It may have come with the run and lead to a file of the user's. A link to checkpoints is one that people make, to a
    larger disk: it is followed to a folder of the run's owner.
    """
    for name in sorted(names.WRITTEN - {names.CHECKPOINTS}):
        if (folder / name).is_symlink():
            raise UserError(
                f"{folder / name} is a link, and a run is not written through links: put what it leads to there, or "
                "choose another --run-name"
            )
        if (folder / name).exists() and not ((folder / name).is_file() or (folder / name).is_dir()):
            raise UserError(f"{folder / name} is a pipe or a device, not a file: remove it")
    saved = folder / names.CHECKPOINTS
    if saved.is_symlink() and saved.exists() and saved.stat().st_uid != folder.stat().st_uid:
        raise UserError(
            f"{saved} is a link to a folder of another user, who could change the run: copy it, or choose another "
            "--run-name"
        )


def only_trainer(folder: Path) -> FileLock:
    """Hold a run's folder for this process, as long as the lock is referred to. Raises Locked if another has it."""
    locks = folder.parent / names.LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / folder.name, timeout=0)
    try:
        with locks_needed(locks, "choose another --out"):
            lock.acquire()
    except Timeout:
        raise Locked(
            f"another lmp_trainer is training {folder} right now: wait for it, or choose another --run-name"
        ) from None
    return lock


def is_being_trained(folder: Path) -> bool:
    """Tell whether a process trains the run in `folder`, or is about to."""
    try:
        only_trainer(folder).release()
    except Locked:
        return True
    return False


def wait_for_trainer(folder: Path, deadline: float = math.inf) -> None:
    """Wait until no process trains the run in `folder`, or until `deadline` by time.monotonic."""
    while is_being_trained(folder) and time.monotonic() < deadline:
        time.sleep(max(0.0, min(WAITING_SECONDS, deadline - time.monotonic())))


def copy_code(entry: Entry, folder: Path) -> None:
    """Copy an experiment's Python files, and the files that they name, into a run's folder."""
    for path in entry.files:
        target = folder / names.CODE / entry.name / path.relative_to(entry.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _copy_tokenizer(spec: str, target: Path) -> None:
    kind, _, source = spec.partition(":")
    if kind == "bpe":
        copy_files(typed_path(source), target)
    elif kind == "hf":
        target.mkdir()
        for name in TOKENIZER_FILES:
            if (typed_path(source) / name).is_file():
                shutil.copyfile(typed_path(source) / name, target / name)
    elif kind == "sentencepiece":
        target.mkdir()
        shutil.copyfile(typed_path(source), target / typed_path(source).name)
