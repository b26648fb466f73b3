"""Fill the tables of results on the pages of docs/ideas/: python tests/support/ideas.py. No figure is typed."""

import csv
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "docs" / "ideas"
RESULTS = ROOT / "experiments" / "RESULTS.md"
SCORECARD = ROOT / "benchmarks" / "results" / "probes" / "scorecard.csv"
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
AGAINST = "against `gpt2ish:tiny_fast_embedding`"
COLUMNS = ("verdict", "difference", "interval", "seeds", "time", AGAINST)


def experiments_of(page: str) -> list[str]:
    """Return the experiments that a page links to, in its order."""
    return re.findall(r"\]\(\.\./\.\./experiments/(\w+)/model\.py\)", page)


def code_of(page: str) -> str:
    """Return the Python block of a page."""
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return code


def rows_of_results() -> list[dict[str, str]]:
    """Return the rows of RESULTS.md, each with its section as "data"."""
    rows, section, head = [], "", []
    for line in RESULTS.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| model"):
            head = cells
        elif line.startswith("| `"):
            rows.append({"data": section} | dict(zip(head, cells, strict=True)))
    return rows


def results(experiments: list[str]) -> str:
    """Return the rows of RESULTS.md of some experiments as a table, the columns that have something in them."""
    named = {f"`{name}" for name in experiments}
    rows = [row for row in rows_of_results() if re.split(r"[:`]", row["model"][1:])[0] in experiments]
    rows += [row for row in rows_of_results() if row["model"] == "`itself`" and "`gpt2ish" in named]
    if not rows:
        return "RESULTS.md has no verdict yet."
    columns = ["data", "model", *(column for column in COLUMNS if any(row.get(column) for row in rows))]
    lines = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def probes(experiments: list[str]) -> str:
    """Return the accuracies of some experiments in the probes as a table."""
    with SCORECARD.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    lines = [["model", *tasks], ["---"] * (len(tasks) + 1)]
    for model in dict.fromkeys(row["experiment"] for row in rows):
        if model.split(":")[0] in ("gpt2ish", *experiments):
            found = {row["task"]: f"{float(row['accuracy']):.2f}" for row in rows if row["experiment"] == model}
            lines.append([f"`{model}`", *(found.get(task, "") for task in tasks)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mended(page: str) -> str:
    """Return a page with the tables between its marks made anew."""
    for name, table in (("results", results), ("probes", probes)):
        block = f"<!-- {name} -->\n{table(experiments_of(page))}\n<!-- end -->"
        page = re.sub(rf"<!-- {name} -->\n.*?<!-- end -->", lambda _, block=block: block, page, flags=re.DOTALL)
    return page


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(mended(path.read_text(encoding="utf-8")), encoding="utf-8")
