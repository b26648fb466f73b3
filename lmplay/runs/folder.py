"""Find runs; lock, start and name the files of a run's folder."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock, Timeout

from lmplay.errors import UserError, did_you_mean
from lmplay.registry import DEFAULT_EXPERIMENT, Entry
from lmplay.runs import checkpoints
from lmplay.runs.recorder import FILES
from lmplay.runs.run import Run, is_run, read_run


def find_run(out: Path, name: str | None) -> Path:
    """The folder of the run `name` (a folder, or a name in `out`); None: the run in `out` that was written to last.

    `name` may also be a checkpoint, RUN/checkpoints/step_<number>: then it is the folder of that.
    """
    if name is not None:
        for folder in (Path(name), out / name):
            run, _ = checkpoints.of_run(folder)
            if (run / "run.json").is_file():
                return folder
            if (folder.parent.parent / "run.json").is_file() and folder.parent.name == "checkpoints":
                there = [p.name for p in checkpoints.find_all(folder.parent)]
                raise UserError(
                    f"the run {folder.parent.parent} has no checkpoint {folder.name!r}, but {', '.join(there)}"
                )
        raise UserError(f"there is no run {name!r} in {out}.{did_you_mean(name, [p.name for p in _runs(out)])}")
    runs = _runs(out)
    if not runs:
        raise UserError(
            f"there is no trained run in {out}: train one first, for example with "
            "lmp_trainer --exp gpt2ish:tiny --training-plan quick"
        )
    return max(runs, key=lambda folder: (folder / "run.json").stat().st_mtime_ns)


def _runs(out: Path) -> list[Path]:
    return [file.parent for file in out.glob("*/run.json") if checkpoints.latest(file.parent / "checkpoints")]


def find_runs(places: Iterable[str | Path], out: Path) -> tuple[list[Run], list[str]]:
    """The runs at `places`: each a run's folder, a folder of runs, or the name of a run in `out`. No places: those in `out`.

    Returns (runs, skipped): each run once, in the order found, and one line for each folder that could not be read.
    Raises UserError for a place that does not exist, and where there is no run's folder at all.
    """
    places = list(places)
    folders = [folder for place in places for folder in _folders_at(place, out)] if places else _folders_in(out)
    runs, skipped, seen = [], [], set()
    for folder in folders:
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        try:
            runs.append(read_run(folder))
        except UserError as error:
            skipped.append(str(error))
    if not folders:
        where = ", ".join(map(str, places)) or str(out)
        raise UserError(
            f"no runs in {where}: train one with 'lmp_trainer --exp {DEFAULT_EXPERIMENT}', "
            "or name the folder that holds runs"
        )
    return runs, skipped


def _folders_at(place: str | Path, out: Path) -> list[Path]:
    path, inside = Path(place), out / place
    for folder in (path, inside):
        if is_run(folder):
            return [folder]
    for folder in (path, inside):
        if folder.is_dir():
            return _folders_in(folder)
    names = [folder.name for folder in _folders_in(out) if is_run(folder)]
    near = did_you_mean(str(place), names)
    raise UserError(f"no run or folder {str(place)!r}, nor a run of that name in {out}.{near}")


def _folders_in(folder: Path) -> list[Path]:
    """All folders in `folder` that are not hidden, runs or not; sorted by name."""
    if not folder.is_dir():
        return []
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror})") from None


WRITTEN = {"run.json", "code", "tokenizer", "checkpoints", "validate_documents", *FILES}  # what is in a run's folder


def start_folder(folder: Path, entry: Entry, tokenizer_spec: str) -> None:
    """Makes a run's folder, with copies of the experiment's code and of the tokenizer. One that is there is kept aside if there is a checkpoint in it (--fresh), else written over.

    Raises UserError where it is not a run's folder.
    """
    if checkpoints.latest(folder / "checkpoints") is not None:
        replaced = folder.parent / ".replaced" / folder.name
        shutil.rmtree(replaced, ignore_errors=True)
        replaced.parent.mkdir(exist_ok=True)
        folder.rename(replaced)
        print(f"the run that was in {folder} is kept in {replaced} until the next --fresh", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    others = [path.name for path in folder.iterdir() if path.name not in WRITTEN and not path.name.endswith(".tmp")]
    if others and not (folder / "run.json").exists():
        raise UserError(f"{folder} is not a run's folder (it holds {others[0]}): choose another --run-name or --out")
    for path in folder.iterdir():  # what a run left that was killed before its first checkpoint
        if path.name not in others:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in entry.code_files:
        target = folder / "code" / entry.name / path.relative_to(entry.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    _copy_tokenizer(tokenizer_spec, folder / "tokenizer")


def only_trainer(folder: Path) -> FileLock:
    """Holds a run's folder for this process, as long as the lock is referred to. Raises UserError if another has it."""
    locks = folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / folder.name, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"another lmp_trainer is training {folder} right now: wait for it, or choose another --run-name"
        ) from None
    return lock


def _copy_tokenizer(spec: str, target: Path) -> None:
    kind, _, place = spec.partition(":")
    if kind == "bpe":
        shutil.copytree(place, target)
    elif kind == "sentencepiece":
        target.mkdir()
        shutil.copy(place, target)
