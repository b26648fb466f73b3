"""What run.json and state.json hold, key by key. It is checked once, where a file is read: anybody may have written it.

A shape is a check of data/json_checks.py, a dict of shapes by key (others are taken as they are), `Each` of what all
keys hold, or a list of one shape, which all items have.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmplay.checksums import CHECKSUMS
from lmplay.data.json_checks import boolean, number, optional, string, whole
from lmplay.runs import names
from lmplay.runs.setting import json_value
from lmplay.runs.settings import Settings

Shape = Any  # recursive: see above


@dataclass(frozen=True)
class Each:
    """The shape of all values of an object, whatever their keys."""

    shape: Shape


class Misfit(Exception):
    """A value does not have its shape."""


def fitting(content: Any, shape: Shape, dropped: list[str], path: str = "") -> Any:
    """Return what of `content` has its shape. What has not is left out, and its path added to `dropped`."""
    if not isinstance(shape, (dict, Each)):
        return _fitted(content, shape)
    if not isinstance(content, dict):
        raise Misfit
    result = {}
    for key, value in content.items():
        inner = shape.shape if isinstance(shape, Each) else shape.get(key)
        try:
            result[key] = value if inner is None else fitting(value, inner, dropped, f"{path}{key}.")
        except Misfit:
            dropped.append(f"{path}{key}")
    return result


def _fitted(content: Any, shape: list | Callable[[Any], Any]) -> Any:
    if not isinstance(shape, list):
        try:
            shape(content)
        except ValueError:
            raise Misfit from None
        return content
    if not isinstance(content, list):
        raise Misfit
    dropped: list[str] = []
    items = [fitting(item, shape[0], dropped) for item in content]
    if dropped:
        raise Misfit
    return items


_text, _whole, _number = optional(string), optional(whole), optional(number)
_split = {"hash": _text, "tokens": _whole, "documents": _whole, "bytes": _whole}
_phase = {
    "name": string,
    names.N_STEPS: whole,
    names.N_SCHEDULED: _whole,
    names.COOLDOWN: {"start": whole, names.COOLDOWN_STEPS: whole, "level": number, "windows": whole},
}
_final = Each(_number)
RUN: Shape = {
    "format": number,
    "run": _text,
    "status": _text,
    "created": _text,
    "command": [string],
    "experiment": {
        "name": string,
        "variant": _text,
        "parent": _text,
        "folder": _text,
        "code_hash": _text,
        "causal": optional(boolean),
        "summary": _text,
    },
    "config": {"max_len": _whole},
    "settings": {field.name: functools.partial(json_value, field) for field in dataclasses.fields(Settings)},
    "plan": {"name": _text, "hash": _text},
    "tokenizer": {"spec": string, "fingerprint": string, "vocab_size": _whole, "eot": _whole},
    "data": {"hash": _text, "datasets": Each({"train": _split, "validation": _split, "entropy": _number})},
    "parameters": {"total": _whole, "trainable": _whole},
    "flops_per_token": _number,
    names.FLOPS_PER_STEP: _number,
    "device": {"type": _text, "name": _text, "threads": _whole},
    "versions": Each(_text),
    "progress": {
        "step": whole,
        "tokens": whole,
        "seconds": number,
        "final": _final,
        "validation_loss": _number,
        "phases": [_phase],
        "peak_memory_bytes": _whole,
    },
    "checks": {"asked": [string], "findings": [Each(string)]},
    names.SAVED_STEP: _whole,
}
STATE: Shape = {
    "step": whole,
    "phase": whole,
    "position": whole,
    "samples": whole,
    "tokens": whole,
    "bytes": number,
    "seconds": number,
    "final": _final,
    "validation_loss": _number,
    "scaler": Each(number),
    "files": Each(whole),
    "keep": boolean,
}
STATE_CHECKSUMS: Shape = {CHECKSUMS: {"checkpoint": Each(whole), "run": Each([whole])}}  # not in older ones
