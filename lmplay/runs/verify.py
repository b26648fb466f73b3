"""Check all that a run consists of and stands on, and give checksums to what was written without them."""

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmplay.checksums import CHECKSUMS, broken_seal
from lmplay.data.store import DamagedStore, TokenStore
from lmplay.data.store_meta import verify_store
from lmplay.errors import UserError
from lmplay.files import data_folder
from lmplay.runs import checkpoints, names
from lmplay.runs.integrity import damage_among, damage_before
from lmplay.runs.recorder import checksums_of
from lmplay.runs.run import Run


def verify(run: Run, accept: bool = False) -> Iterator[tuple[str, str | None]]:
    """Check a run and its data: yield what was checked and how it is damaged, None if it is not.

    What has no checksums gets them. accept: the run's files get new ones as they are, damaged or not.
    """
    unsealed = broken_seal(run.info)
    yield names.RUN_JSON, f"{run.file} is damaged ({unsealed})" if unsealed and not accept else None
    broken = bool(unsealed) and not accept
    for checkpoint in run.checkpoints:
        wrong = damage_before(run.folder, checkpoint)
        if accept or (not wrong and not checkpoints.read_checksums(checkpoint)):
            wrong = _give(run.folder, checkpoint)
        broken = broken or bool(wrong)
        yield f"{names.CHECKPOINTS}/{checkpoint.name} and the rows and losses before it", next(iter(wrong), None)
    newest = run.checkpoint
    if newest is not None and not broken and (accept or not run.get(CHECKSUMS)):
        run.info[CHECKSUMS] = checkpoints.read_checksums(newest).get("run", {})
        run.write()
    for part in (*names.RECORDED, names.DOCUMENT_LOSSES, names.CODE, names.TOKENIZER):
        if (run.folder / part).exists():
            yield part, next(iter(damage_among(run.folder, run.get(CHECKSUMS), [part])), None)
    datasets = run.get("data", "datasets")
    for name, splits in datasets.items() if isinstance(datasets, dict) else ():
        for split, about in splits.items() if isinstance(splits, dict) else ():
            if isinstance(about, dict) and "hash" in about:
                yield _verify_data(name, split, about["hash"])


def _give(folder: Path, checkpoint: Path) -> list[str]:
    """Give checksums to a checkpoint, if its files can be read; return what can't be."""
    try:
        state = checkpoints.read_anyway(checkpoint)
        sizes = {name: size for name, size in state["files"].items() if (folder / name).is_file()}
        short = [name for name, size in sizes.items() if (folder / name).stat().st_size < size]
        if short:
            return [f"{folder / short[0]} is damaged (it is shorter than when {checkpoint.name} was saved)"]
        sums = checksums_of(folder, {}, sizes)
        later = {name for name in sums if name.endswith(".npy") and _step(name) > names.step_of(checkpoint)}
        checkpoints.write_state(checkpoint, state, {name: one for name, one in sums.items() if name not in later})
    except UserError as error:
        return [str(error)]
    except (KeyError, TypeError, AttributeError):
        return [f"{checkpoint / names.STATE} is damaged (it is not a state)"]
    return []


def _step(losses: str) -> int:
    return int(losses.removesuffix(".npy").rsplit("_", 1)[1])


def _verify_data(name: str, split: str, wanted: Any) -> tuple[str, str | None]:
    """Check this machine's store of one split of a dataset, the one with the content hash `wanted`."""
    what, damaged = f"the data of {name} ({split})", None
    for folder in sorted((data_folder() / "stores").glob(f"{glob.escape(f'{name}-{split}-')}*")):
        try:
            if TokenStore.open(folder).hash == wanted:
                verify_store(folder)
                return f"{what} in {folder}", None
        except DamagedStore as error:
            damaged = damaged or f"{folder} {error.what}"
    return (what, f"{damaged}; training prepares it anew") if damaged else (f"{what}: not on this machine", None)
