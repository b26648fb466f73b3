"""The loop of docs/agents.md over a night of ideas: a good one, and five that must not win."""

import json
import re
import shutil
from pathlib import Path

import pytest

from support.small import EXPERIMENTS, ROOT, TINY

IDEAS = {
    "good": "recipe = {'lr': 0.02}",
    "bad": (
        "class Model(Model):\n    def body(self, tokens, cache=None):\n"
        "        return super().body(tokens, cache) * 0.05"
    ),
    "crashing": (
        "class Model(Model):\n    def body(self, tokens, cache=None):\n"
        "        if self.training and tokens.shape[0] > 1:\n            raise RuntimeError('a mistake')\n"
        "        return super().body(tokens, cache)"
    ),
    "hanging": (
        "import time\nclass Model(Model):\n    def body(self, tokens, cache=None):\n"
        "        if self.training and tokens.shape[0] > 1:\n            time.sleep(1e6)\n"
        "        return super().body(tokens, cache)"
    ),
    "diverging": (
        "class Model(Model):\n    def body(self, tokens, cache=None):\n"
        "        x = super().body(tokens, cache)\n"
        "        return x * float('nan') if self.training and not x.is_meta and tokens.shape[0] > 1 else x"
    ),
    "cheating": (
        "import torch.nn.functional as F\nclass Model(Model):\n    def body(self, tokens, cache=None):\n"
        "        x = super().body(tokens, cache)\n"
        "        return x + 3 * F.pad(x[:, 1:], (0, 0, 0, 1))"
    ),
}


def loop_of_the_page() -> str:
    page = (ROOT / "docs" / "agents.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return code


@pytest.mark.thorough
@pytest.mark.process
@pytest.mark.slow
def test_the_night_ends_with_the_good_one(plans, work, monkeypatch, capfd):
    monkeypatch.setenv("LMPLAY_HANG_SECONDS", "12")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    small = [*TINY[2:], "--max-steps", "24", "--validation-tokens", "1000", "--training-plan", plans["plain"]]
    for name, change in IDEAS.items():
        folder = work / "experiments" / name
        folder.mkdir(parents=True)
        source = (EXPERIMENTS / "gpt2ish" / "model.py").read_text(encoding="utf-8")
        (folder / "model.py").write_text(f"{source}\n\n{change}\n", encoding="utf-8")
    scope = {"IDEAS": list(IDEAS), "SETTINGS": small, "BUDGET": None}
    exec(compile(loop_of_the_page(), "docs/agents.md", "exec"), scope)
    log = {entry["idea"]: entry for entry in scope["log"]}
    assert {name: entry["word"] for name, entry in log.items()} == {
        "good": "better",
        "bad": "worse",
        "crashing": "crashed",
        "hanging": "hung",
        "diverging": "diverged",
        "cheating": "refused",
    }
    assert Path(scope["best"]).name.startswith("good_") and scope["kept"] == ["good"]
    ledger = json.loads((work / "ledger.json").read_text(encoding="utf-8"))
    words = {row["candidate"]["label"].partition(":")[0]: row["verdict"]["word"] for row in ledger["hypotheses"]}
    assert words["good"] == "better" and words["bad"] == "worse" and list(words.values()).count("better") == 1
    shutil.rmtree(work / "experiments" / "good")  # its run keeps its code
    assert (Path(scope["best"]) / "code" / "good" / "model.py").is_file()
