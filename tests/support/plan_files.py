"""Plan files, and what a wrong one is answered with."""

import json
from pathlib import Path

import pytest

from lmplay.data.plans import load_plan
from lmplay.errors import UserError


def write(folder: Path, content, name="p.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def refusal(folder, content) -> str:
    path = write(folder, content)
    with pytest.raises(UserError) as raised:
        load_plan(str(path))
    message = str(raised.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


def write_task_plan(folder, task: str, settings=None, documents=50, name="p", **more) -> str:
    dataset = {
        "synthetic": task,
        "max_documents": documents,
        "validation": {"skip": 0, "documents": 20},
        **({"settings": settings} if settings else {}),
    }
    path = folder / f"{name}.json"
    path.write_text(
        json.dumps(
            {
                "tokenizer": "bytes",
                "datasets": {"d": dataset | more.pop("dataset", {})},
                "steps": [{"datasets": ["d"]}],
                **more,
            }
        )
    )
    return str(path)
