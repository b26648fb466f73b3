"""Find what runs were: the settings in which they differ, their code against its parent's, their last samples."""

import json
import re
from dataclasses import dataclass

from lmplay import code_diff, registry
from lmplay.errors import UserError
from lmplay.files import check_plain
from lmplay.runs.names import COMPILED, SAMPLE_HEAD
from lmplay.runs.run import Run
from lmplay.text import name_key, printable

# shown elsewhere, or without influence; of `compile` what came of it is shown
NOT_SETTINGS = {"exp", "set", "out", "run_name", "compile", "track"}


OTHERS: dict[str, tuple[str, ...]] = {
    "plan": ("plan", "name"),
    "plan's hash": ("plan", "hash"),
    "data": ("data", "hash"),
    "tokenizer": ("tokenizer", "spec"),
    "tokenizer's hash": ("tokenizer", "fingerprint"),
    "code": ("experiment", "code_hash"),
    "parameters": ("parameters", "total"),
    "compiled": (COMPILED, "mode"),
    "device": ("device", "name"),
    "threads": ("device", "threads"),
    "torch": ("versions", "torch"),
    "lmplay": ("versions", "lmplay"),
    "python": ("versions", "python"),
    "git": ("git", "commit"),
    "git dirty": ("git", "dirty"),
}


SAMPLES_READ = 200_000  # bytes, from the end of samples.txt


SAMPLE_SHOWN = 1500  # characters


# Runs of earlier versions count updates in their samples.


SAMPLE_NAME = re.compile(r"^--- (\d+(?:, [\w -]+)?)$", re.M)


DIFFERENCE_SHOWN = 1000  # lines


def settings_of(groups: list[list[Run]]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return ({what: its value in each group}, {what: its value in all}) of settings, Config, data and versions.

    A group whose runs have several values (its seeds) has all of them, separated by commas.
    """
    runs = [run for group in groups for run in group]
    where: dict[str, tuple[str, ...]] = {}
    for section in ("settings", "config"):
        keys = dict.fromkeys(key for run in runs for key in run.keys(section))
        where |= {printable(key): (section, key) for key in keys if key not in NOT_SETTINGS}
    differing, common = {}, {}
    for what, path in (where | OTHERS).items():
        values = [list(dict.fromkeys(_text(_value(run, path)) for run in group)) for group in groups]
        distinct = {value for group in values for value in group}
        if len(distinct) > 1:
            differing[what] = [", ".join(group) for group in values]
        elif distinct:
            common[what] = distinct.pop()
    return differing, {what: value for what, value in common.items() if value != "-"}


def _value(run: Run, path: tuple[str, ...]) -> object:
    return run.compiled.get("mode") if path[0] == COMPILED else run.value(*path)


def _text(value: object) -> str:
    if value is None or value == []:
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16,}", value):
        return value[:10]
    return printable(value if isinstance(value, str) else json.dumps(value))[:200]


@dataclass(frozen=True)
class CodeChange:
    """An experiment's code as it ran, against its parent's.

    against: which code of the parent that is. difference: unified; "" if `against` says why there is none to show.
    """

    docstring: str
    against: str
    parent: str = ""
    difference: str = ""

    @property
    def counts(self) -> tuple[int, int]:
        """Lines (added, taken away)."""
        lines = [line for line in self.difference.splitlines() if not line.startswith(("+++ ", "--- "))]
        return sum(line.startswith("+") for line in lines), sum(line.startswith("-") for line in lines)


def code_change(run: Run, others: list[Run]) -> CodeChange:
    """Return the code in a run's folder against its parent's: as it ran in one of `others`, else as it is today."""
    entry = run.code
    if entry is None:
        return CodeChange("", "the run's folder has no code to show")
    parent = run.get("experiment", "parent")
    if not isinstance(parent, str) or not parent:
        return CodeChange(entry.docstring, "no parent: not a copy of another experiment")
    parent = printable(parent)
    known = next(
        (code for other in others if name_key(other.experiment) == name_key(parent) and (code := other.code)), None
    )
    against = f"{parent} as it ran" if known else f"{parent} as it is now"
    try:
        difference = code_diff.diff(entry, known or registry.find(parent)[0])
    except UserError as error:
        return CodeChange(entry.docstring, f"its parent's code can't be shown: {error}", parent)
    except (OSError, ValueError):  # ValueError: not UTF-8
        return CodeChange(entry.docstring, f"its code, or that of its parent {parent}, can't be read", parent)
    lines = difference.splitlines()
    if not lines:
        return CodeChange(entry.docstring, f"no line of code differs from {against}", parent)
    if len(lines) > DIFFERENCE_SHOWN:
        difference = "\n".join([*lines[:DIFFERENCE_SHOWN], f"… {len(lines) - DIFFERENCE_SHOWN} more lines"])
    return CodeChange(entry.docstring, against, parent, difference)


def last_samples(run: Run) -> tuple[str, dict[str, str]]:
    """Return (when, {sample's name: text}) of the last block of samples.txt; ("", {}) if there is none.

    A name is the prompt's number, for a model with several directions followed by the direction: "1, forward".
    """
    try:
        check_plain(run.samples)
        with open(run.samples, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - SAMPLES_READ))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return "", {}
    heads = list(SAMPLE_HEAD.finditer(text))
    if not heads:
        return "", {}
    parts = SAMPLE_NAME.split(text[heads[-1].end() :])
    found: dict[str, str] = {}
    for number, sample in zip(parts[1::2], parts[2::2], strict=True):
        sample = sample.strip("\n")
        found.setdefault(number, sample if len(sample) <= SAMPLE_SHOWN else sample[:SAMPLE_SHOWN] + " …")
    return f"step {heads[-1][1]}", found
