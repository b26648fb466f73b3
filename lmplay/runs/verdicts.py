"""Read the ledger, verdicts.jsonl beside the runs: a verdict of lmp_compare per line. Anybody may have written it."""

from pathlib import Path
from typing import Any

from lmplay.data.json_checks import LARGEST, number, string
from lmplay.files import check_plain, parse_json
from lmplay.runs.names import VERDICTS
from lmplay.runs.run import Run


def read_verdicts(out: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the verdicts in the folder `out`, oldest first, and the numbers of the lines that can't be read.

    Raises OSError if there is no ledger.
    """
    check_plain(out / VERDICTS)
    entries, damaged = [], []
    for line_number, line in enumerate((out / VERDICTS).read_bytes().splitlines(), 1):
        try:
            entries.append(_checked(parse_json(line)))
        except (ValueError, TypeError, LookupError, AttributeError):
            damaged.append(line_number)
    return entries, damaged


def verdicts_on(run: Run, *arms: str) -> list[dict[str, Any]]:
    """Return the verdicts of the ledger beside a run in which one of these arms has it, oldest first."""
    try:
        entries, _ = read_verdicts(run.folder.absolute().parent)
    except OSError:
        return []
    return [one for one in entries if any(run.folder.name in map(_name, one[arm]["runs"]) for arm in arms)]


def _name(folder: str) -> str:
    return Path(folder).name


def _checked(entry: Any) -> dict[str, Any]:
    """Return a verdict that has what is shown of it. Raises what `read_verdicts` catches for others."""
    verdict = entry["verdict"]
    string(verdict["sentence"]), string(entry["hypothesis"]), entry["aa"]
    for arm in ("candidate", "baseline"):
        string(entry[arm]["label"]), list(map(string, entry[arm]["runs"]))
    figures = [number(verdict["difference"]), *(verdict[end] for end in ("low", "high"))]
    sizes = [*(verdict.get(name) for name in ("seeds", "seed_df", "seed_sd", "document_se")), entry.get("tokens")]
    known = [[one for one in some if one is not None] for some in (figures, sizes)]
    if not all(abs(number(one)) < LARGEST for some in known for one in some) or min(known[1], default=0) < 0:
        raise ValueError("no figures of a verdict")
    if not 0 <= number(entry["p"]) <= 1:
        raise ValueError("p is a probability")
    return entry
