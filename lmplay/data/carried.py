"""Carry a plan's prepared data to another machine, which opens it without the plan's sources."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lmplay.data.plan_spec import Plan
from lmplay.data.prepare import Prepared
from lmplay.data.store import TokenStore
from lmplay.data.store_lock import only_builder
from lmplay.data.tokenizers import Tokenizer
from lmplay.errors import UserError
from lmplay.files import data_folder, make_folder, typed_path, written_beside

PIECE = 2**26  # bytes of a file that travel at once


@dataclass(frozen=True)
class Packed:
    """A file that travels. path: POSIX, in its folder. pieces: what `put` made of its bytes, PIECE at a time."""

    path: str
    pieces: tuple[object, ...]


@dataclass(frozen=True)
class CarriedData:
    """What another machine needs to know of prepared data.

    plan: as it was chosen. prepared: with the tokenizer that was asked for. stores: {split: {dataset: the name of its
    store's folder}}. tokenizer_files: {name: bytes} of a tokenizer that is made of files. hash: of the prepared data.
    """

    plan: Plan
    prepared: Plan
    tokenizer: Tokenizer
    tokenizer_files: dict[str, bytes]
    stores: dict[str, dict[str, str]]
    hash: str

    @classmethod
    def of(cls, plan: Plan, data: Prepared) -> "CarriedData":
        """Describe the data of a plan that is prepared here."""
        stores = {"train": data.train, "validation": data.validation}
        return cls(
            plan=plan,
            prepared=data.plan,
            tokenizer=data.tokenizer,
            tokenizer_files=_tokenizer_files(data.tokenizer.spec),
            stores={split: {name: one.folder.name for name, one in of.items()} for split, of in stores.items()},
            hash=data.hash,
        )

    @property
    def store_names(self) -> list[str]:
        """The names of the stores' folders."""
        return [name for of in self.stores.values() for name in of.values()]

    def lacking(self) -> list[str]:
        """Return the names of the stores that are not whole on this machine."""
        return [name for name in self.store_names if not _is_whole(store_folder(name))]

    def open(self) -> Prepared:
        """Return the data, open for reading. Raises UserError for a store that is not here."""
        tokenizer = copy.copy(self.tokenizer)
        if self.tokenizer_files:
            folder = data_folder() / "tokenizers" / f"carried-{tokenizer.fingerprint}"
            make_folder(folder.parent)
            with only_builder(folder):
                if not folder.is_dir():
                    _write_all(folder, self.tokenizer_files)
            kind, _, _ = tokenizer.spec.partition(":")
            only_file = next(iter(self.tokenizer_files))
            tokenizer.spec = f"{kind}:{folder if kind == 'bpe' else folder / only_file}"
        opened = {
            split: {dataset: TokenStore.open(store_folder(name)) for dataset, name in of.items()}
            for split, of in self.stores.items()
        }
        return Prepared(self.prepared, tokenizer, opened["train"], opened["validation"], self.hash)


def store_folder(name: str) -> Path:
    """Return the folder of a store on this machine."""
    return data_folder() / "stores" / name


def pack(folder: Path, paths: Iterable[Path], put: Callable[[bytes], object]) -> list[Packed]:
    """Pack files of a folder. put: makes of bytes what travels. Files that vanish meanwhile are left out."""
    packed = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                pieces = tuple(put(content) for content in iter(lambda: file.read(PIECE), b""))
        except FileNotFoundError:
            continue
        packed.append(Packed(path.relative_to(folder).as_posix(), pieces))
    return packed


def unpack(files: Iterable[Packed], folder: Path, fetch: Callable[[object], bytes]) -> None:
    """Write packed files into a folder."""
    for packed in files:
        path = folder / packed.path
        make_folder(path.parent)
        with open(path, "wb") as file:
            for piece in packed.pieces:
                file.write(fetch(piece))


def pack_store(name: str, put: Callable[[bytes], object]) -> list[Packed]:
    """Pack a store of this machine."""
    folder = store_folder(name)
    return pack(folder, _files_below(folder), put)


def unpack_store(name: str, files: list[Packed], fetch: Callable[[object], bytes]) -> None:
    """Write a store that was packed elsewhere, if none that is whole is here; one process of a machine does it."""
    folder = store_folder(name)
    make_folder(folder.parent)
    with only_builder(folder, name):
        if _is_whole(folder):
            return
        with written_beside(folder) as beside:
            unpack(files, beside, fetch)


def _files_below(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _is_whole(folder: Path) -> bool:
    try:
        TokenStore.open(folder)
    except UserError:
        return False
    return True


def _tokenizer_files(spec: str) -> dict[str, bytes]:
    kind, _, source = spec.partition(":")
    if kind == "bpe":
        return {path.name: path.read_bytes() for path in _files_below(typed_path(source))}
    return {typed_path(source).name: typed_path(source).read_bytes()} if kind == "sentencepiece" else {}


def _write_all(folder: Path, files: dict[str, bytes]) -> None:
    with written_beside(folder) as beside:
        beside.mkdir()
        for name, content in files.items():
            (beside / name).write_bytes(content)
