"""Read what other libraries leave, in folders and files: saved datasets, token ids; say how to convert the rest."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from lmplay.data.plan_spec import DatasetSpec
from lmplay.data.published import json_of
from lmplay.data.tokenizers import Tokenizer, load_tokenizer
from lmplay.data.types import Row, Where
from lmplay.errors import UserError, did_you_mean

_PANDOC = "pandoc {name} -t plain -o {stem}.txt"
_CONVERTED = {  # formats that hold text among other things, and what makes text of them
    **dict.fromkeys((".docx", ".odt", ".rtf", ".epub"), _PANDOC),
    ".doc": "soffice --convert-to txt {name}",
    ".pdf": "pdftotext {name} {stem}.txt",
}
CHUNK = 2**20  # token ids at once


def refuse_other_formats(file: Path) -> None:
    """Raise UserError for a document of an office program or the like, with the command that makes text of it."""
    command = _CONVERTED.get(file.suffix.lower())
    if command:
        how = command.format(name=file.name, stem=file.stem)
        raise UserError(f"{file}: {file.suffix} files are not read: make text of it first, for example with {how}")


def files_of_folder(folder: Path) -> list[Path]:
    """Return the data files in a folder and below, sorted; hidden ones are left out.

    A dataset that Hugging Face's `save_to_disk` wrote has those of its training split. Raises UserError if it
    has none.
    """
    if (folder / "dataset_dict.json").is_file():
        listed = json_of(folder, "dataset_dict.json").get("splits")
        splits = [str(split) for split in listed] if isinstance(listed, list) else []
        if "train" not in splits:
            raise UserError(f"{folder}: it has no split 'train': name one of {', '.join(splits)} as {folder}/SPLIT")
        return files_of_folder(folder / "train")
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        listed = json_of(folder, "state.json").get("_data_files")
        files = listed if isinstance(listed, list) else []
        names = [str(one.get("filename")) for one in files if isinstance(one, dict)]
        if not names or not all((folder / name).is_file() and Path(name).name == name for name in names):
            raise UserError(f"{folder}: the dataset is damaged: state.json does not name its files")
        return [folder / name for name in names]
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def arrow_rows(spec: DatasetSpec, file: Path) -> Iterator[tuple[Where, Row]]:
    """Yield ((file, row number), row) of an Arrow file, as `save_to_disk` writes them."""
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise UserError(f"{file}: reading this kind of file needs pyarrow: pip install 'lmplay[hub]'") from None
    number = 0
    with pyarrow.memory_map(str(file)) as source, pyarrow.ipc.open_stream(source) as batches:
        present = batches.schema.names
        for name in spec.columns:
            if name not in present:
                near = did_you_mean(name, present)
                raise UserError(f"{file}: dataset {spec.name!r} wants the column {name!r}, which is not there.{near}")
        for batch in batches:
            for row in batch.select(spec.columns).to_pylist():
                number += 1
                yield (file, number), row


def token_rows(file: Path) -> Iterator[tuple[Where, Row]]:
    """Yield ((file, number), text) of the documents in a file of token ids, uint16, as nanoGPT's prepare.py writes it.

    The ids are those of the tokenizer.json beside it, else of GPT-2. EOT tokens stand between documents; a file without
    any is cut at line ends.
    """
    for number, text in enumerate(_texts(file), 1):
        yield (file, number), text


def _texts(file: Path) -> Iterator[str]:
    import numpy as np

    if file.stat().st_size % 2:
        raise UserError(f"{file}: it is no file of token ids: uint16 takes an even number of bytes")
    tokenizer, ids = _tokenizer_of(file), np.memmap(file, dtype="<u2", mode="r")
    starts, rest = range(0, len(ids), CHUNK), ""
    separated = any((ids[start : start + CHUNK] == tokenizer.eot).any() for start in starts)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for start in starts:
        chunk = np.asarray(ids[start : start + CHUNK])
        if int(chunk.max()) >= tokenizer.vocab_size:
            raise UserError(
                f"{file}: it has the id {int(chunk.max())}, and {tokenizer.spec} has {tokenizer.vocab_size:,} ids: put "
                "the tokenizer.json of its tokenizer beside it"
            )
        first, *others = np.split(chunk, np.flatnonzero(chunk == tokenizer.eot))
        rest += decoder.decode(tokenizer.decode_bytes(first.tolist()))
        for piece in others:  # each begins with an EOT token
            if rest:
                yield rest
            decoder.reset()
            rest = decoder.decode(tokenizer.decode_bytes(piece[1:].tolist()))
        if not separated:
            lines, end, rest = rest.rpartition("\n")
            yield from _documents_of(lines + end)
    yield from [rest] if separated and rest else _documents_of(rest)


def _documents_of(text: str, size: int = 4096) -> Iterator[str]:
    """Yield pieces of at least `size` characters that end with a line, except the last one."""
    while end := text.find("\n", size) + 1:
        yield text[:end]
        text = text[end:]
    if text:
        yield text


def _tokenizer_of(file: Path) -> Tokenizer:
    if (file.parent / "tokenizer.json").is_file():
        return load_tokenizer(f"hf:{file.parent}")
    if (file.parent / "meta.pkl").is_file():
        raise UserError(f"{file}: its ids are of characters by meta.pkl, which is not read: train on the text itself")
    return load_tokenizer("tiktoken:gpt2")
