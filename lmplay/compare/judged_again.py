"""Judge the comparison in a file again, from its numbers alone: no code of it is run."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmplay.compare.archive import RUNS, opened
from lmplay.errors import UserError
from lmplay.report.arms import Arm, Candidate, Comparison
from lmplay.report.comparison import compare_arms
from lmplay.runs.integrity import check_intact
from lmplay.runs.names import CODE
from lmplay.runs.run import Run, read_run
from lmplay.runs.settings import LARGEST
from lmplay.stats.choices import Choice
from lmplay.stats.prior import Prior
from lmplay.stats.sequential import Looks
from lmplay.text import counted, fixed, printable

ODD = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError)
CLOSE = 1e-6  # nats per token, between two verdicts from the same numbers
MOST_SEEDS = 1000  # of a plan of looks


@dataclass
class Judged:
    """The comparison of a file, judged here.

    runs: all of them, by their number in the file. labels: of each run, the arm's and the seed. said: what the file
    does not show, or in what it differs from what its numbers say.
    """

    comparison: Comparison
    runs: dict[str, Run]
    labels: dict[str, str]
    made: str
    said: list[str] = field(default_factory=list)


@contextmanager
def judged_again(path: Path) -> Iterator[Judged]:
    """Judge the comparison in the file `path`; its runs lie in a folder that is removed at the end of the block.

    Raises UserError for a file that can't be trusted to be whole, or that says what can't be.
    """
    with opened(path) as (folder, content):
        try:
            with np.errstate(all="ignore"):
                found = _judge(folder, content)
        except UserError as error:  # of a run's folder, with advice for one of one's own
            why = str(error).replace(f"{folder}{os.sep}", "").partition(": bring it back")[0]
            raise UserError(f"{path} can't be judged: {why}; ask for the file anew") from None
        except ODD as error:
            raise UserError(
                f"{path} can't be judged: what it says does not fit together ({type(error).__name__}: "
                f"{printable(error)[:200]}); ask for the file anew"
            ) from None
        except OSError as error:
            raise UserError(f"{path} can't be judged ({error.strerror}): ask for the file anew") from None
        yield found


def _judge(folder: Path, content: dict[str, Any]) -> Judged:
    """Judge. Raises UserError and ODD."""
    runs = {one.name: _run(one) for one in sorted((folder / RUNS).iterdir())}
    base, *candidates = [_arm(arm, runs) for arm in content["arms"]]
    rules, claim = content["rules"], content["claim"]
    priors = [prior and _prior(prior) for prior in content["priors"]]
    labels = {
        run.folder.name: f"{printable(arm.label)}, seed {run.settings['seed']}"
        for arm in (base, *candidates)
        for of in arm.runs.values()
        for run in of.values()
        if run
    }
    by_run = {
        run.folder: prior
        for arm, prior in zip(candidates, priors, strict=True)
        for of in arm.runs.values()
        for run in of.values()
        if run
    }

    def judge(prior_of: Callable[[Run, Run], Prior | None] | None) -> Comparison:
        return compare_arms(
            base,
            candidates,
            prior_of=prior_of,
            confidence_of=_confidence_of(rules),
            margin=None if rules["margin"] is None else float(rules["margin"]),
            allow_leak=rules["allow_leak"] is True,
        )

    comparison = judge(lambda run, other: by_run[run.folder])
    comparison.notes += [note for one in claim["notes"] if (note := printable(one)) not in comparison.notes]
    known = {*comparison.warnings, *(warning for one in comparison.candidates for warning in one.warnings)}
    comparison.warnings += [f"by the file: {printable(one)}" for one in claim["warnings"] if one not in known]
    made = f"made by lmplay {printable(content['lmplay'])} on {printable(content['created'])}"
    found = Judged(comparison, runs, labels, f"{made}, {counted(len(runs), 'run')}")
    found.said += _unlike(comparison.candidates, [one for one in claim["candidates"] if not one["crashed"]])
    if any(priors):
        alone = judge(None)
        for one, own in zip(comparison.candidates, alone.candidates, strict=True):
            if one.verdict and own.verdict and one.prior:
                found.said.append(
                    f"{one.arm.label}: a spread between seeds from runs that are not in the file counts; without it: "
                    f"{own.verdict.sentence()}"
                )
    found.said.append("whether a model looks ahead is what the file says; --repeat asks the model of one run here")
    return found


def _run(folder: Path) -> Run:
    """Return one of the runs. Raises UserError unless its code is what it was trained with."""
    run = read_run(folder).check("compare")
    check_intact(run, CODE)
    entry = run.code
    if entry is None or entry.error or entry.code_hash != run.get("experiment", "code_hash"):
        version = run.get("experiment", "code_hash_version")
        if entry is None or entry.error or version == _hash_version():
            raise UserError(f"the run {run.name} in the file does not have the code that it was trained with")
    return run


def _hash_version() -> int:
    from lmplay.code_hash import VERSION

    return VERSION


def _arm(content: dict[str, Any], runs: dict[str, Run]) -> Arm:
    """Return an arm with its runs. Raises ODD."""
    by_choice: dict[float | Choice, dict[int, Run | None]] = {}
    for choice in content["choices"]:
        values = tuple(
            (str(name), value if isinstance(value, str) else float(value)) for name, value in choice["values"]
        )
        by_choice[Choice(values)] = {
            _small(number): None if name is None else runs[name.removeprefix(f"{RUNS}/")]
            for number, name in choice["runs"].items()
        }
    if not by_choice:
        raise ValueError("an arm has no runs")
    return Arm(printable(content["label"])[:200], by_choice, first_seed=_small(content["first_seed"]))


def _small(number: Any) -> int:
    value = int(number)
    if not 0 <= value < LARGEST:
        raise ValueError(f"{value} is no seed")
    return value


def _prior(content: dict[str, Any]) -> Prior:
    return Prior(
        seed_variance=float(content["seed_variance"]),
        df=float(content["df"]),
        source=printable(content["source"])[:200],
        runs=tuple(printable(run)[:200] for run in content["runs"]),
    )


def _confidence_of(rules: dict[str, Any]) -> Callable[[int], float]:
    """Return the confidence of an interval as a function of the number of pairs. Raises ODD."""
    confidence, looks = float(rules["confidence"]), rules["looks"]
    if looks is None:
        return lambda pairs: confidence
    if not 2 <= looks["first"] <= looks["max_seeds"] <= MOST_SEEDS:
        raise ValueError("no plan of looks")
    plan = Looks(looks["max_seeds"], first=looks["first"], confidence=float(looks["confidence"]))
    return lambda pairs: plan.confidence_at(max(pairs, plan.first))


def _unlike(here: list[Candidate], there: list[dict[str, Any]]) -> list[str]:
    """Return in what the verdicts that the file states are not those of its numbers. Raises ODD."""
    found = []
    for one, claimed in zip(here, there, strict=True):
        stated = claimed["verdict"]
        ends = ("difference", "low", "high")
        own = one.verdict and (one.verdict.word, *(getattr(one.verdict, end) for end in ends))
        if (own is None) != (stated is None):
            found.append(f"{one.arm.label}: the file states {claimed['word']!r}, its numbers say {one.word!r}")
        elif own and (own[0] != stated["word"] or not _close(own[1:], [stated[end] for end in ends])):
            said = f"{printable(stated['word'])} ({_number(stated['low'])} to {_number(stated['high'])})"
            found.append(f"{one.arm.label}: the file states {said}, which is not what its numbers say")
    return found


def _close(own: tuple[Any, ...], stated: list[Any]) -> bool:
    """Tell whether numbers are the same; one that is not finite is null in a file."""
    pairs = [(a if np.isfinite(a) else None, b) for a, b in zip(own, stated, strict=True)]
    return all(a is b if a is None or b is None else abs(a - float(b)) < CLOSE for a, b in pairs)


def _number(value: Any) -> str:
    return fixed(None if value is None else float(value), 4, "+") or "?"
