"""Read rows of datasets on the Hugging Face hub, downloaded once or streamed, through the `datasets` library."""

import errno
import gc
import os
import shutil
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmplay.data.opened_files import Size
from lmplay.data.plan_spec import DatasetSpec
from lmplay.data.tokenizer_base import why_not_fetched
from lmplay.data.types import Row, Where
from lmplay.errors import UserError, did_you_mean

# by name: which HTTP library lies below `datasets` changes
_NO_CONNECTION = {"OfflineModeIsEnabled", "ConnectError"}
_BROKEN_OFF = {"TransportError", "ConnectionError", "TimeoutError", "LocalEntryNotFoundError", "RequestException"}
_OFFLINE = "without a network these work: the plan quick, --data FILE, and what was prepared before (--prepare-only)"


def hub_rows(spec: DatasetSpec, split: str, start: int, stop: int | None) -> Iterator[tuple[Where, Row]]:
    """Yield ((id, row number), dict of columns) of rows `start` to `stop` of a split. Raises UserError."""
    datasets = _import_datasets(spec)
    with _errors_reported(spec):
        where = dict(path=spec.source_id, name=spec.config, revision=_commit(spec))
        if spec.stream:
            dataset = _with_columns(spec, _stream(datasets, where, split, start))
            dataset = dataset if stop is None else dataset.take(stop - start)
        else:
            _say_download(spec, datasets, where)
            dataset = _with_columns(spec, datasets.load_dataset(**where, split=split))
            if start >= len(dataset):
                return
            dataset = dataset.select(range(start, min(stop or len(dataset), len(dataset))))
        number, batches = start, dataset.iter(batch_size=1000)
        try:
            for batch in batches:
                for values in zip(*batch.values(), strict=True):
                    number += 1
                    yield (spec.source_id, number), dict(zip(batch, values, strict=True))
        finally:
            if spec.stream:
                # a scan of parquet that still lives when the process ends may abort it (apache/arrow issue 45214)
                dataset = batches = None
                gc.collect()


def hub_size(spec: DatasetSpec, split: str) -> Size | None:
    """Return how many documents a split has, None if the hub does not say."""
    try:
        datasets = _import_datasets(spec)
        where = dict(path=spec.source_id, name=spec.config, revision=_commit(spec))
        splits = datasets.load_dataset_builder(**where).info.splits or {}
        n = splits[split].num_examples if split in splits else 0
    except Exception:  # of the library and those below it: what it would have told is not worth an error
        return None
    return Size(documents=n) if n else None


def _say_download(spec: DatasetSpec, datasets: Any, where: dict[str, Any]) -> None:
    """Say how much is downloaded, if anything is. Raises UserError if the disk has no room for what is made of it."""
    builder = datasets.load_dataset_builder(**where)
    folder, info = Path(builder.cache_dir), builder.info
    if folder.is_dir() or not info.download_size:
        return
    there = next(path for path in folder.parents if path.is_dir())
    free, made = shutil.disk_usage(there).free, info.dataset_size or 0
    name = f"dataset {spec.name!r} ({spec.source_id} on the hub)"
    if made > free:
        raise UserError(
            f"{name} takes {made / 1e9:.3g} GB of disk, and {there} has {free / 1e9:.3g} GB: set HF_HOME to a folder "
            "on another disk, or 'stream' in a plan"
        )
    needed = f"{(info.download_size + made) / 1e9:.3g} GB of disk ({free / 1e9:.3g} GB are free)"
    print(f"{name}: {info.download_size / 1e9:.3g} GB are downloaded first, and take {needed}", file=sys.stderr)


def _with_columns(spec: DatasetSpec, dataset: Any) -> Any:
    """Return the dataset with the columns of its documents only. Raises UserError where one is missing."""
    present = dataset.column_names
    if not present:  # a stream of jsonl does not know before its first row
        return dataset
    for name in spec.columns:
        if name not in present:
            near = did_you_mean(name, present)
            raise UserError(f"dataset {spec.name!r}: {spec.source_id} has no column {name!r}.{near}")
    return dataset.select_columns(spec.columns)


def _commit(spec: DatasetSpec) -> str | None:
    """Return the commit that a plan's revision names now.

    Left to itself, the library falls back on whichever commit it has downloaded.
    """
    return None if spec.revision is None else _commit_now(spec)


def _commit_now(spec: DatasetSpec) -> str | None:
    from huggingface_hub import HfApi

    return HfApi().dataset_info(spec.source_id, revision=spec.revision).sha


def commit_of(spec: DatasetSpec) -> str | None:
    """Return the commit that a dataset is at now; None if the hub does not say, which loading it explains."""
    try:
        _import_datasets(spec)
        return _commit_now(spec)
    except Exception:  # of the libraries below
        return None


def _stream(datasets: Any, where: dict[str, Any], split: str, start: int) -> Any:
    """Return the rows from `start` on as an iterable dataset.

    Whole parquet files before `start` are passed over by their footers, not downloaded.
    """
    if start:
        data_files = datasets.load_dataset_builder(**where).config.data_files or {}
        files = list(data_files.get(split, []))
        if files and all(str(file).endswith(".parquet") for file in files):
            import pyarrow.parquet
            from huggingface_hub import HfFileSystem

            hub, before = HfFileSystem(), 0
            for k, file in enumerate(files):
                with hub.open(file, cache_type="none") as opened:
                    rows = pyarrow.parquet.ParquetFile(opened).metadata.num_rows
                if before + rows > start or k == len(files) - 1:
                    rest = datasets.load_dataset("parquet", data_files={split: files[k:]}, split=split, streaming=True)
                    return rest.skip(start - before)
                before += rows
    dataset = datasets.load_dataset(**where, split=split, streaming=True)
    return dataset.skip(start) if start else dataset


def _import_datasets(spec: DatasetSpec) -> Any:
    if "datasets" not in sys.modules:
        if "HF_HUB_OFFLINE" not in os.environ and not _reachable():
            # else the library tries for half a minute before it looks at what it has downloaded
            os.environ["HF_HUB_OFFLINE"] = "1"
        if not sys.stderr.isatty():
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
            os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"dataset {spec.name!r} is on the hub, for which the package datasets is needed: pip install 'lmplay[hub]'"
        ) from None
    return datasets


def _reachable() -> bool:
    """Return whether anything answers at the hub's address. Any answer counts, and any trouble except no connection."""
    try:
        with urllib.request.urlopen(urllib.request.Request(_endpoint(), method="HEAD"), timeout=10):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError as error:
        reason = getattr(error, "reason", error)  # an URLError wraps what happened
        return not (
            isinstance(reason, (ConnectionError, TimeoutError, socket.gaierror))
            or getattr(reason, "errno", None) in (errno.ENETUNREACH, errno.EHOSTUNREACH)
        )


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


@contextmanager
def _errors_reported(spec: DatasetSpec) -> Iterator[None]:
    """Turn whatever the library and the ones below it raise into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        causes: list[BaseException] = [error]
        while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
            causes.append(cause)
        for cause in causes:
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
                raise cause from None
        kinds = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
        said = " ".join(str(error).split())
        said = said if len(said) <= 300 else said[:297] + "..."
        dataset = f"dataset {spec.name!r} ({spec.source_id} on the hub)"
        if "GatedRepoError" in kinds or "gated" in said:
            raise UserError(
                f"{dataset} is gated: accept its terms at {_endpoint()}/datasets/{spec.source_id}, "
                "then log in with `hf auth login`"
            ) from error
        offline = os.environ.get("HF_HUB_OFFLINE") or kinds & _NO_CONNECTION or "Couldn't reach" in said
        if offline and " split" not in said:
            raise UserError(
                f"{dataset}: {_endpoint()} cannot be reached, and it has not been downloaded before; {_OFFLINE}"
            ) from error
        if kinds & _BROKEN_OFF:
            raise UserError(
                f"{dataset}: the download broke off ({why_not_fetched(error)}); type the command again, files that "
                "came whole are kept"
            ) from error
        raise UserError(f"{dataset}: {why_not_fetched(error) if 'ConnectionPool' in said else said}") from error
