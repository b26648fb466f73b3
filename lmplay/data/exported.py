"""Write a plan's prepared data into one file, and read it on a machine that has another text, or none, for the plan.

What is imported stands for the plan on that machine from then on: `prepare` opens it and never looks at the plan's
sources. So runs there see the same tokens to the bit, and are compared with runs made where the file was written.
"""

import hashlib
import json
import shutil
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from lmplay.data.plan_spec import Plan
from lmplay.data.store import TokenStore
from lmplay.data.store_lock import only_builder
from lmplay.data.tokenizers import Tokenizer, load_tokenizer
from lmplay.errors import UserError
from lmplay.files import BROKEN_ZIP, data_folder, make_folder, typed_path, written_beside

FORMAT = 1
LARGEST_MANIFEST = 2**22  # bytes
MANIFEST = "exported.json"
KEYS = ("format", "plan", "key", "tokenizer", "fingerprint", "stores", "hash")
Stores = dict[str, dict[str, TokenStore]]  # {split: {dataset: store}}


def export_data(
    plan: Plan, tokenizer: Tokenizer, stores: Stores, *, asked: str | None, data_hash: str, file: str
) -> Path:
    """Write prepared data into a zip file and return its path. asked: the tokenizer that replaced the plan's own.

    Raises UserError if it can't be written.
    """
    kind, _, source = tokenizer.spec.partition(":")
    parts = {}
    if kind in ("bpe", "sentencepiece"):
        root = typed_path(source)
        parts = {path.name: path for path in (root.iterdir() if root.is_dir() else [root]) if path.is_file()}
    manifest = {
        "format": FORMAT,
        "plan": plan.name,
        "key": key_of(plan, asked),
        "tokenizer": f"{kind}:{next(iter(parts)) if kind == 'sentencepiece' else ''}" if parts else tokenizer.spec,
        "fingerprint": tokenizer.fingerprint,
        "stores": {split: {name: one.folder.name for name, one in of.items()} for split, of in stores.items()},
        "hash": data_hash,
    }
    check_target(file)
    path = typed_path(file)
    try:
        with written_beside(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr(MANIFEST, json.dumps(manifest, indent=1))
            for name, part in parts.items():
                zipped.write(part, f"tokenizer/{name}")
            for store in (one for of in stores.values() for one in of.values()):
                for part in sorted(one for one in store.folder.iterdir() if one.is_file()):
                    zipped.write(part, f"stores/{store.folder.name}/{part.name}")
    except OSError as error:
        raise UserError(f"--export-data {path} can't be written ({error.strerror}): name another file") from None
    return path


def check_target(file: str) -> None:
    """Raise UserError if the file that is to be written is there; asked before data are prepared for it, too."""
    if typed_path(file).exists():
        raise UserError(f"--export-data {typed_path(file)} is there already: name another file")


def import_data(file: str) -> str:
    """Take over the data of a file, and return the name of the plan. Raises UserError if it holds none."""
    path = typed_path(file)
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise UserError(
            f"--import-data {path} can't be read ({error.strerror}): name a file of --export-data"
        ) from None
    except BROKEN_ZIP as error:
        raise UserError(f"--import-data {path} is no whole file of --export-data ({error}): write it again") from None
    try:
        with archive as zipped:
            _check_size(path, zipped)
            manifest = json.loads(zipped.read(MANIFEST))
            _check(manifest)
            names = [name for of in manifest["stores"].values() for name in of.values()]
            for name in names:
                _take_over(zipped, f"stores/{name}", data_folder() / "stores" / name)
            if any(name.startswith("tokenizer/") for name in zipped.namelist()):
                _take_over(zipped, "tokenizer", _tokenizer_folder(manifest))
    except (*BROKEN_ZIP, TypeError, AttributeError) as error:
        raise UserError(f"--import-data {path} is no whole file of --export-data ({error}): write it again") from None
    _opened(manifest)
    kept = _kept(manifest["key"])
    make_folder(kept.parent)
    with written_beside(kept) as beside:
        beside.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return str(manifest["plan"])


def imported(plan: Plan, asked: str | None) -> tuple[Tokenizer, Stores, str] | None:
    """Return tokenizer, stores and hash of what was imported for a plan; None if nothing was. Raises UserError.

    asked: the tokenizer that replaces the plan's own.
    """
    try:
        manifest = json.loads(_kept(key_of(plan, asked)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return _opened(manifest)


def key_of(plan: Plan, asked: str | None) -> str:
    """Return a hex hash of what of a plan decides its prepared data."""
    content = {"datasets": plan.content["datasets"], "tokenizer": asked or plan.tokenizer}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _kept(key: str) -> Path:
    return data_folder() / "imported" / f"{key}.json"


def _tokenizer_folder(manifest: dict[str, Any]) -> Path:
    return data_folder() / "tokenizers" / f"carried-{manifest['fingerprint']}"


def _opened(manifest: dict[str, Any]) -> tuple[Tokenizer, Stores, str]:
    """Open what a manifest names. Raises UserError."""
    spec = manifest["tokenizer"]
    kind, _, name = spec.partition(":")
    if kind in ("bpe", "sentencepiece"):
        spec = f"{kind}:{_tokenizer_folder(manifest) / name}"
    tokenizer = load_tokenizer(spec)
    if tokenizer.fingerprint != manifest["fingerprint"]:
        raise UserError(
            f"the imported tokenizer of plan {manifest['plan']} is not the one that was exported: import again"
        )
    stores = {
        split: {dataset: TokenStore.open(data_folder() / "stores" / name) for dataset, name in of.items()}
        for split, of in manifest["stores"].items()
    }
    return tokenizer, stores, manifest["hash"]


def _check(manifest: Any) -> None:
    """Raise ValueError for what no export writes: other keys, another format, names that lead elsewhere."""
    if manifest["format"] != FORMAT:
        raise ValueError(f"format {manifest['format']}, and this version of lmplay reads {FORMAT}")
    if missing := [key for key in KEYS if key not in manifest]:
        raise ValueError(f"{MANIFEST} lacks {', '.join(missing)}")
    names = [name for of in manifest["stores"].values() for name in of.values()]
    names += [manifest["key"], manifest["fingerprint"]]
    if any(not isinstance(name, str) or not name or PurePosixPath(name).name != name or "\\" in name for name in names):
        raise ValueError(f"{MANIFEST} names files elsewhere")


def _check_size(path: Path, zipped: zipfile.ZipFile) -> None:
    """Raise ValueError for a manifest that no export writes, UserError for more than the disk has room for.

    zipfile reads no more of a member than the size that the archive gives for it.
    """
    if zipped.getinfo(MANIFEST).file_size > LARGEST_MANIFEST:
        raise ValueError(f"{MANIFEST} is larger than {LARGEST_MANIFEST >> 20} MiB")
    folder = data_folder()
    make_folder(folder)
    size, free = sum(entry.file_size for entry in zipped.infolist()), shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"--import-data {path} takes {size / 1e9:.3g} GB of disk, and {folder} has {free / 1e9:.3g} GB: make room, "
            "or set LMPLAY_DATA to a folder on another disk"
        )


def _take_over(zipped: zipfile.ZipFile, prefix: str, folder: Path) -> None:
    """Write the files of a folder of the archive, unless the folder is there; one process of a machine does it."""
    make_folder(folder.parent)
    with only_builder(folder, folder.name):
        if folder.is_dir() and not (folder / "damaged.txt").exists():
            return
        with written_beside(folder) as beside:
            beside.mkdir()
            for entry in zipped.infolist():
                parent, _, name = entry.filename.rpartition("/")
                if parent == prefix and name and PurePosixPath(name).name == name and "\\" not in name:
                    with zipped.open(entry) as source, open(beside / name, "wb") as target:
                        while piece := source.read(2**24):
                            target.write(piece)
