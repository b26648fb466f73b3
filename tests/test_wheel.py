"""An installed wheel in an empty folder: its experiments and plans, a copy, a run and a plot."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from lmplay.files import shipped_folders

ROOT = Path(__file__).resolve().parent.parent
BUILT = ("lmplay", "configs", "experiments", "plans", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build the wheel and install it into an environment of its own, which borrows the libraries of this one.

    Return a function that runs a command of that environment in a folder, away from the checkout.
    """
    folder = tmp_path_factory.mktemp("wheel")
    for name in BUILT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "source" / name)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LMPLAY_EXPERIMENTS")
    }

    def run(*command: str, cwd: Path = folder) -> str:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "wheels", "./source")
    run(sys.executable, "-m", "venv", "--without-pip", "env")
    scripts = folder / "env" / Path(sysconfig.get_path("scripts")).name
    site = run(str(scripts / "python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # Folders that a .pth file names have their own .pth files passed over, that of an editable lmplay among them.
    (Path(site) / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    (wheel,) = (folder / "wheels").glob("lmplay-*.whl")
    run(*pip, "--python", str(scripts / "python"), "install", "-q", "--no-deps", "--no-index", str(wheel))

    def command(name: str, *flags: str, cwd: Path) -> str:
        return run(str(scripts / name), *flags, cwd=cwd)

    return command


def listed(text: str) -> set[str]:
    return {line.split()[0] for line in text.splitlines() if line[:1].strip()}


@pytest.mark.process
@pytest.mark.slow
def test_a_wheel_brings_experiments_and_plans(installed, tmp_path):
    where = installed("python", "-c", "import lmplay; print(lmplay.__file__)", cwd=tmp_path)
    assert not Path(where.strip()).is_relative_to(ROOT)
    experiments = {path.parent.name for path in (ROOT / "experiments").glob("*/model.py")}
    assert listed(installed("lmp_trainer", "--exp", "list", cwd=tmp_path)) == experiments
    plans = {path.stem for path in (ROOT / "plans").glob("*.json")}
    assert listed(installed("lmp_trainer", "--training-plan", "list", cwd=tmp_path)) == plans
    configs = {path.stem for path in (ROOT / "configs").glob("*.json")}
    assert listed(installed("lmp_trainer", "--use-config", "list", cwd=tmp_path)) == configs

    installed("lmp_trainer", "--exp", "gpt2ish", "--copy", "my_idea", cwd=tmp_path)
    model = tmp_path / "experiments" / "my_idea" / "model.py"
    model.write_text(model.read_text(encoding="utf-8").replace("self.gelu(self.up(x))", "self.up(x).relu()"))
    assert "+" in installed("lmp_trainer", "--exp", "my_idea", "--diff", cwd=tmp_path)
    assert str(model.parent) in installed("lmp_trainer", "--exp", "my_idea:tiny", "--describe", cwd=tmp_path)

    flags = ("--training-plan", "quick", "--batch-size", "4", "--max-steps", "3", "--validation-tokens", "1000")
    for experiment in ("gpt2ish:tiny", "my_idea:tiny"):
        installed("lmp_trainer", "--exp", experiment, *flags, "--validation-interval", "1", cwd=tmp_path)
    assert "my_idea" in installed("lmp_plotstats", cwd=tmp_path)
    assert (tmp_path / "gpt_out" / "log_diff_loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.process
@pytest.mark.slow
def test_the_working_folder_comes_first(installed, tmp_path):
    own = tmp_path / "experiments" / "gpt2ish"
    own.mkdir(parents=True)
    source = (ROOT / "experiments" / "gpt2ish" / "model.py").read_text(encoding="utf-8")
    (own / "model.py").write_text(source.replace('"""', '"""My own baseline.\n\n', 1), encoding="utf-8")
    shown = installed("lmp_trainer", "--exp", "list", cwd=tmp_path)
    assert "gpt2ish" in shown and "My own baseline." in shown and shown.count("\ngpt2ish ") <= 1


def test_plans_of_the_repository_are_found(work):
    assert shipped_folders("plans")[0] == ROOT / "plans"
    (work / "plans").mkdir()
    assert shipped_folders("plans")[:2] == [Path("plans"), ROOT / "plans"]
