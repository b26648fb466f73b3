"""An experiment knows nothing of lmplay, and what lmplay measured is what it wrote."""

import numpy as np
import pytest

from lmplay import contract, registry
from lmplay.errors import UserError
from lmplay.runs.validations import read_validations
from support.judged_runs import make_judged_run
from support.small_models import each_experiment

USES = {
    "import": "import lmplay",
    "a module": "import torch, lmplay.train.validation as v",
    "from": "from lmplay.model import loss",
    "inside": "def f():\n    from lmplay import api",
    "by name": "import importlib\nloss = importlib.import_module('lmplay.model.loss')",
    "at run time": "loss = __import__('lmplay')",
    "of those that are loaded": "import sys\nloss = sys.modules['lmplay.model.loss']",
}
MODEL = """
from dataclasses import dataclass
from torch import nn


@dataclass
class Config:
    vocab_size: int = 2
    max_len: int = 2


class Model(nn.Module):
    pass
"""


def entry_of(folder, code, file="model.py"):
    folder.mkdir()
    (folder / "model.py").write_text(f'"""A model.\n\nSource. lmplay"""\n\n{MODEL}\nADDRESS = "lmplay is a harness"\n')
    with open(folder / file, "a") as model:
        model.write(f"\n\n{code}\n")
    return registry.read_entry(folder)


@pytest.mark.parametrize("use", USES)
def test_an_experiment_that_uses_lmplay_is_refused(use, tmp_path):
    for file in ("model.py", "parts.py"):
        entry = entry_of(tmp_path / f"mine_{file[:-3]}", USES[use], file)
        with pytest.raises(UserError, match=rf"uses lmplay \({file} line \d+\).* torch and files of its own folder"):
            contract.load(entry)


def test_the_word_alone_is_no_use(tmp_path):
    assert contract.load(entry_of(tmp_path / "mine", "import random")).module.ADDRESS


@each_experiment
def test_no_shipped_experiment_uses_it(entry):
    assert registry.use_of_harness(entry) is None


def test_losses_of_documents_come_to_the_loss(tmp_path):
    run = make_judged_run(tmp_path / "r", "gpt2ish", 0)
    assert len(read_validations(run).documents) == 4
    path = sorted((tmp_path / "r" / "validate_documents").glob("*.npy"))[3]
    losses = np.load(path)
    np.save(path, 0.9 * losses)
    with pytest.raises(UserError, match=rf"{path.name} is not of this run: .* validate.csv says"):
        read_validations(run)
    np.save(path, losses * (1 + 1e-8))
    assert len(read_validations(run).documents) == 4
