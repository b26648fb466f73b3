"""What a run found, to be compared to the bit."""

import json
from pathlib import Path

TIMES = ("seconds", "tokens_per_second", "mfu")


def results(run: Path) -> dict[str, object]:
    """Return all that a run found, by file: times aside, and only the newest checkpoint's weights."""
    found: dict[str, object] = {}
    for name in ("train.csv", "validate.csv"):
        header, *lines = [line.split(",") for line in (run / name).read_text(encoding="utf-8").splitlines()]
        kept = [k for k, column in enumerate(header) if column not in TIMES]
        found[name] = [header, *([line[k] for k in kept] for line in lines)]
    newest = max(run.glob("checkpoints/step_*"))
    files = [*newest.glob("*.safetensors"), run / "samples.txt"]
    for part in ("validate_documents", "code", "tokenizer"):
        files += [path for path in (run / part).rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return found | {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


def differences(one: dict[str, object], other: dict[str, object]) -> list[str]:
    """Return the names of the files in which two runs differ."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def unsealed(content: dict) -> dict:
    """Return the content of a JSON file without its checksums, so that a test may change it."""
    return {key: value for key, value in content.items() if key not in ("checksum", "checksums")}


def unseal(run: Path) -> None:
    """Take the checksums out of a run, as if an earlier version had written it: its files may be changed."""
    for path in (run / "run.json", *run.glob("checkpoints/step_*/state.json")):
        path.write_text(json.dumps(unsealed(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


def flip(path: Path, bit: int) -> None:
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
