"""docs/notebook.ipynb runs from its first cell to its last: in Jupyter if it is installed, else cell by cell here."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
HAS_JUPYTER = all(importlib.util.find_spec(name) for name in ("ipykernel", "nbclient", "nbformat"))


def run_in_jupyter(folder: Path) -> list[str]:
    """Return what each code cell printed or shows, as text."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return ["".join(str(output) for output in cell.outputs) for cell in cells]


def run_here(capsys) -> list[str]:
    """Return what each code cell printed."""
    import matplotlib

    matplotlib.use("agg")
    known, printed = {"__name__": "__main__"}, []
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), known)
            printed.append(capsys.readouterr().out)
    return printed


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    shown = run_in_jupyter(tmp_path) if HAS_JUPYTER else run_here(capsys)
    assert "interval of the difference" in shown[0] and len(list((tmp_path / "gpt_out").glob("*/run.json"))) == 4
    assert any("after 2 blocks:" in text for text in shown)
    assert sum(text.count("without the attention of layer") for text in shown) == 2
    if HAS_JUPYTER:
        assert sum("image/png" in text for text in shown) == 2  # the curves and the attention maps


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
