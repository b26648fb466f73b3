"""Keep what lmp_eval found in a run's folder, and tell it in lines."""

from pathlib import Path
from typing import Any

from lmplay.data.json_checks import number, string
from lmplay.errors import UserError
from lmplay.files import read_json, write_json
from lmplay.own_files import keep_aside
from lmplay.runs import names
from lmplay.runs.run import Run
from lmplay.text import printable

FORMAT = 1
SAME = ("task", "checkpoint", "few_shot", "limit")  # a result that is equal in these replaces an earlier one


def read_evaluations(run: Run) -> list[dict[str, Any]]:
    """Return the results of a run, oldest first; none of a file that can't be read."""
    return _read(run.folder / names.EVALUATIONS) or []


def keep_evaluations(run: Run, results: list[dict[str, Any]]) -> None:
    """Add results to those of the run. A file that can't be read is kept aside. Raises UserError where it is a link."""
    path = run.folder / names.EVALUATIONS
    if path.is_symlink():
        raise UserError(f"{path} is a link, and a run is not written through links: remove it")
    known = _read(path)
    if known is None:
        keep_aside(path)
    new = [[one.get(key) for key in SAME] for one in results]
    kept = [one for one in known or [] if [one.get(key) for key in SAME] not in new]
    write_json(path, {"format": FORMAT, "results": kept + results})


def _read(path: Path) -> list[dict[str, Any]] | None:
    """Return the results in a file, [] without one; None for what is not as lmplay writes it."""
    try:
        content = read_json(path)
        if content["format"] != FORMAT:
            return None
        return [_checked(one) for one in content["results"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None


def _checked(result: Any) -> dict[str, Any]:
    """Return a result. Raises what `_read` catches for one without a task and numbers."""
    string(result["task"])
    for name, value in result["metrics"].items():
        string(name), number(value), float(value)
    return result


def line_of(result: dict[str, Any]) -> str:
    """Return one result in a line: "piqa: acc 0.5510 ± 0.0116, 2.31 bits per byte of the answers (1838 documents)"."""
    metrics, shown = result["metrics"], []
    for name, value in metrics.items():
        if not isinstance(value, (int, float)) or name.endswith("_stderr") or name == names.ANSWER_BITS:
            continue
        error = metrics.get(f"{name}_stderr")
        shown.append(f"{name} {value:.4f}" + (f" ± {error:.4f}" if isinstance(error, (int, float)) else ""))
    bits = metrics.get(names.ANSWER_BITS)
    shown += [f"{bits:.4f} bits per byte of the answers"] if isinstance(bits, (int, float)) else []
    limit = ", a part" if result.get("limit") else ""
    shots = f", {result['few_shot']} shots" if result.get("few_shot") else ""
    return printable(f"{result.get('task')}: {', '.join(shown)} ({result.get('documents')} documents{limit}{shots})")


def lines_of(runs: list[Run]) -> list[str]:
    """Return the results of runs in lines for a report."""
    return [f"lmp_eval, {run.folder.name}: {line_of(one)}" for run in runs for one in read_evaluations(run)]
