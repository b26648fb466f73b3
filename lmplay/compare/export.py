"""Put a comparison into one file that others can check: settings, code, curves, losses per document, versions."""

import csv
import io
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmplay.checksums import CHECKSUMS, of_bytes, seal
from lmplay.compare.archive import PAGE, RUNS, write_archive
from lmplay.compare.request import ComparisonRequest
from lmplay.errors import UserError
from lmplay.files import usable_folder
from lmplay.report.arms import Arm, Candidate, Comparison
from lmplay.report.as_json import of_comparison, plain
from lmplay.report.report import of_comparison as report_of
from lmplay.report.still_page import as_still_html
from lmplay.runs import names
from lmplay.runs.run import Run
from lmplay.stats.choices import as_choice
from lmplay.stats.sequential import Looks
from lmplay.version import __version__

TRAIN_ROWS = 1000  # of a train.csv, which is drawn and not judged
NOT_SHARED = (names.PROCESS, names.HEARTBEAT, "git")  # of run.json


def check_target(target: Path) -> None:
    """Raise UserError if no file of a verdict can be written there: said before the training, not after it."""
    if target.suffix.lower() != ".zip" or target.is_dir():
        raise UserError(f"--export {target}: name a file that ends in .zip")
    usable_folder(target.parent, "--export")


def export(found: Comparison, request: ComparisonRequest, looks: Looks | None, target: Path) -> None:
    """Write a comparison to `target`. looks: those of --until-sure. Raises UserError."""
    if not any(one.verdict for one in found.candidates):
        raise UserError(f"--export {target}: there is no verdict to export")
    numbers: dict[Path, str] = {}
    for arm in found.arms:
        for runs in arm.runs.values():
            for run in runs.values():
                if run is not None:
                    numbers.setdefault(run.folder, f"{RUNS}/{len(numbers):04d}")
    by_folder = {run.folder: run for arm in found.arms for of in arm.runs.values() for run in of.values() if run}
    files: dict[str, bytes] = {}
    for folder, name in numbers.items():
        files |= {f"{name}/{path}": data for path, data in _files_of(by_folder[folder]).items()}
    files[PAGE] = as_still_html(_named(found)).encode("utf-8", errors="replace")
    content = {
        "lmplay": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "rules": {
            "confidence": request.confidence,
            "margin": request.within,
            "allow_leak": request.allow_leak,
            "aa": request.aa,
            "looks": looks and {"max_seeds": looks.max_seeds, "first": looks.first, "confidence": looks.confidence},
        },
        "arms": [_arm(arm, numbers) for arm in found.arms],
        "priors": [_prior(one) for one in found.candidates if not one.crashed],
        "claim": _without_home(_renamed(of_comparison(found), numbers)),
    }
    write_archive(target, plain(content), files)


def _named(found: Comparison) -> Any:
    """Return the report; what could not be read here is of no interest elsewhere."""
    return report_of(replace(found, skipped=[]))


def _arm(arm: Arm, numbers: Mapping[Path, str]) -> dict[str, Any]:
    """Return an arm: for each choice of settings its runs by the number of the pair, None for one that diverged."""
    choices = [
        {
            "values": [list(pair) for pair in as_choice(choice).values],
            "runs": {str(number): run and numbers[run.folder] for number, run in runs.items()},
        }
        for choice, runs in arm.runs.items()
    ]
    return {"label": arm.label, "first_seed": arm.first_seed, "choices": choices}


def _prior(one: Candidate) -> dict[str, Any] | None:
    """Return the spread between seeds that a candidate was judged with, as it was found in earlier runs."""
    known = one.prior
    if known is None:
        return None
    return {"seed_variance": known.seed_variance, "df": known.df, "source": known.source, "runs": known.runs}


def _files_of(run: Run) -> dict[str, bytes]:
    """Return the files of a run that judge it and make it anew, by their path: no weights, no samples."""
    found = {names.VALIDATE_CSV: (run.folder / names.VALIDATE_CSV).read_bytes()}
    phase = str(run.table("validate")[names.PLAN_STEP].iloc[-1])
    folder = run.folder / names.DOCUMENT_LOSSES
    for path in sorted([folder / names.documents_name(phase), *folder.glob("*.npy")]):
        if path.suffix == ".csv" or path.stem.rpartition("_")[0] == phase:
            found[f"{names.DOCUMENT_LOSSES}/{path.name}"] = path.read_bytes()
    entry = run.code
    for path in sorted(entry.folder.rglob("*")) if entry else ():
        inside = path.relative_to(run.folder)
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in inside.parts):
            found[inside.as_posix()] = path.read_bytes()
    sums = {name: [len(data), of_bytes(data)] for name, data in found.items()}
    if (run.folder / names.TRAIN_CSV).is_file():
        found[names.TRAIN_CSV] = _thinned((run.folder / names.TRAIN_CSV).read_bytes())
    info = {key: value for key, value in run.info.items() if key not in NOT_SHARED}
    info["experiment"] = {key: value for key, value in info["experiment"].items() if key != "folder"}
    if isinstance(info.get("settings"), dict):
        info["settings"] = {key: value for key, value in info["settings"].items() if key != "out"}
    info = seal({**_without_home(info), CHECKSUMS: sums})
    return {names.RUN_JSON: json.dumps(info, indent=1).encode(), **found}


def _thinned(table: bytes) -> bytes:
    """Return a table's header and at most about TRAIN_ROWS of its rows, evenly spaced, the last one among them."""
    rows = list(csv.reader(io.StringIO(table.decode("utf-8-sig", errors="replace"), newline="")))
    header, rows = rows[:1], rows[1:]
    every = -(-len(rows) // TRAIN_ROWS) or 1
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([*header, *rows[::-every][::-1]])
    return text.getvalue().encode()


def _renamed(value: Any, numbers: Mapping[Path, str]) -> Any:
    """Return JSON with the folders of runs as they are called in the file."""
    if isinstance(value, dict):
        return {key: _renamed(one, numbers) for key, one in value.items()}
    if isinstance(value, list):
        return [_renamed(one, numbers) for one in value]
    return numbers.get(Path(value), value) if isinstance(value, str) and value else value


def _without_home(value: Any) -> Any:
    """Return JSON in whose texts the user's home folder is `~`."""
    home = str(Path.home())
    if isinstance(value, dict):
        return {key: _without_home(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_home(one) for one in value]
    return value.replace(home, "~") if isinstance(value, str) and len(home) > 1 else value
