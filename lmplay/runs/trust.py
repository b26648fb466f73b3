"""Decide whether a run's copy of its experiment may be executed. Loading a run runs the Python files in its code/.

A run that was made here is trusted, and so is code that does what an installed experiment does. All other runs are
strangers' until their user says otherwise. What is trusted is a hash of everything in code/, a file of that name in
the data folder: the same code in another run needs no second word, and one changed byte needs one.
"""

import contextlib
import hashlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from lmplay import contract, registry
from lmplay.code_hash import read_code
from lmplay.errors import UserError
from lmplay.files import data_folder
from lmplay.runs import names

ENVIRONMENT = "LMPLAY_TRUST_CODE"
BYTECODE = "__pycache__"  # is left out: contract.load executes nothing but source of a run


def load_code(run: Path, entry: registry.Entry) -> contract.Experiment:
    """Load the experiment of the run in folder `run`, whose own copy is `entry`. Raises UserError for a stranger's."""
    check_trusted(run, entry)
    return contract.load(entry, source_only=True)


def check_trusted(run: Path, entry: registry.Entry) -> None:
    """Raise UserError if the copy `entry` of the run in folder `run` is a stranger's."""
    if os.environ.get(ENVIRONMENT) == "1":
        return
    known = _hash(run / names.CODE)
    if known is not None and ((_folder() / known).exists() or _is_installed(entry)):
        return
    raise UserError(
        f"the run {run} was not made here, and loading it runs the code in its folder {names.CODE}/: look at it, then "
        f"trust it with lmp_trainer --trust-code {shlex.quote(str(run))} ({ENVIRONMENT}=1 trusts every run)"
    )


def remember(run: Path) -> None:
    """Trust the code of a run that was made here. Where the data folder can't be written, the user is asked later."""
    with contextlib.suppress(OSError, UserError):
        _remember(run)


def trust_below(folder: Path) -> list[Path]:
    """Trust the code of every run in `folder` or below, for good; return their folders.

    Raises UserError if there is none, and for code that no hash can be made of.
    """
    found = list(_runs_below(folder))
    if not found:
        raise UserError(f"--trust-code: there is no run's folder in {folder}")
    for run in found:
        if not _remember(run):
            raise UserError(
                f"{run / names.CODE} holds links, or what is no file, and can't be trusted: copy the files there"
            )
    return found


def _remember(run: Path) -> bool:
    known = _hash(run / names.CODE)
    if known is None:
        return False
    _folder().mkdir(parents=True, exist_ok=True)
    (_folder() / known).touch()
    return True


def _folder() -> Path:
    return data_folder() / "trusted_code"


def _runs_below(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):
        if names.RUN_JSON in files and names.CODE in folders:
            folders.clear()
            yield Path(path)
        folders.sort()


def _hash(code: Path) -> str | None:
    """Return a hash of the names and bytes of all that is in `code`; None if it holds more than folders and files.

    A link may mean something else tomorrow.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        for path, folders, files in os.walk(code, onerror=_raise):
            folders[:] = sorted(name for name in folders if name != BYTECODE)
            if any(os.path.islink(os.path.join(path, name)) for name in folders):
                return None
            for name in sorted(files):
                file = Path(path, name)
                if file.is_symlink() or not file.is_file():
                    return None
                content = read_code(file)
                for part in (os.fsencode(file.relative_to(code)), content):
                    digest.update(len(part).to_bytes(8, "little"))
                    digest.update(part)
    except OSError:
        return None
    return digest.hexdigest()


def _raise(error: OSError) -> None:
    raise error


def _is_installed(entry: registry.Entry) -> bool:
    """Tell whether the code does what the experiment of its name does here."""
    try:
        return registry.find(entry.name)[0].code_hash == entry.code_hash
    except (UserError, OSError):
        return False
