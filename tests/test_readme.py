"""What the README says can be typed, typed; what it says is there, looked for."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lmplay import registry
from lmplay.data.plans import list_plans
from lmplay.model.measured import amp_factor

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXPERIMENTS = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
FAMILIES = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
PLANS = (ROOT / "plans" / "README.md").read_text(encoding="utf-8")


def block(marker: str) -> str:
    return re.search(rf"<!-- {marker} -->\n```bash\n(.*?)```", README, re.DOTALL).group(1)


@pytest.mark.process
@pytest.mark.slow
def test_main_job(tmp_path):
    """The commands of the main job, in their order, with a smaller budget; without --amp as README says for some."""
    environment = {
        **os.environ,
        "LMPLAY_DATA": str(tmp_path / "data"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    commands = [
        c.strip() for line in block("main job").splitlines() for c in line.split("&&") if c.strip().startswith("lmp_")
    ]
    has_bfloat16 = amp_factor("cpu") > 1
    assert [c.split()[0] for c in commands] == ["lmp_trainer"] * 2 + ["lmp_plotstats"] + ["lmp_generator"] * 2
    for command in commands:
        if not has_bfloat16:
            command = command.replace(" --amp", "").replace("_amp", "")
        words = shlex.split(command) + (["--max-steps", "6"] if command.startswith("lmp_trainer") else [])
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        if command.startswith("lmp_generator"):
            assert done.stdout.startswith(words[-1]) and len(done.stdout) > len(words[-1]) + 20
    for name in ("log_loss", "log_accuracy", "log_diff_loss", "log_diff_accuracy"):
        assert (tmp_path / "gpt_out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    runs = sorted(p.parent.name for p in (tmp_path / "gpt_out").glob("*/run.json"))
    assert [name.split("-")[0] for name in runs] == ["gpt2ish", "llama2"]


@pytest.mark.process
def test_ci_runs_the_test_command():
    shown = subprocess.run(
        ["awk", "/^<!-- test -->$/ {w = 1; next} /^```/ {if (i) exit; if (w) {i = 1; next}} i", ROOT / "README.md"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert shown == block("test") and "pytest" in shown
    assert subprocess.run(["bash", "-n", ROOT / ".ci" / "run"]).returncode == 0


def test_every_experiment_and_plan_is_listed():
    for entry in registry.list_experiments():
        if entry.folder.parent == ROOT / "experiments":
            assert f"`{entry.name}`" in FAMILIES
            row = next((line for line in EXPERIMENTS.splitlines() if line.startswith(f"| `{entry.name}` |")), None)
            assert row, f"{entry.name} is not in the table of experiments/README.md"
            first, *others = entry.variants
            n_others = f" and {len(others)} more" if others else ""
            assert row.strip(" |").split("|")[2].strip() == f"{first}{n_others}"
    for plan in list_plans():
        assert f"`{plan.name}`" in PLANS


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
