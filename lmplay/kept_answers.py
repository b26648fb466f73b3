"""Keep what takes long to find out about a model in the data folder: one small file for each answer."""

import contextlib
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lmplay.files import data_folder, write_json


def key_of(*parts: Any) -> str:
    """Return the name under which an answer is kept: of all that it depends on, and the version of torch."""
    text = json.dumps([*parts[:1], version("torch"), *parts[1:]], sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def recall(kind: str, key: str) -> dict[str, Any]:
    """Return an answer that is kept; {} if there is none, or none that can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(_file(kind, key).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def keep(kind: str, key: str, answer: dict[str, Any]) -> None:
    """Keep an answer. A folder that can't be written costs the next run the time of asking again."""
    with contextlib.suppress(OSError):
        _file(kind, key).parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(kind, key), answer)


def _file(kind: str, key: str) -> Path:
    return data_folder() / kind / f"{key}.json"
