"""A candidate that crashes is listed, and the others are judged."""

import pytest

from lmplay.cli import compare as command
from support.small import TINY

pytestmark = pytest.mark.process  # runs are trained in processes of their own

CRASHES = """
class Model(Model):
    def body(self, tokens, cache=None):
        if self.training and tokens.shape[0] > 1:
            raise RuntimeError("a mistake of the author")
        return super().body(tokens, cache)
"""


@pytest.fixture
def flags(plans, work):
    return ["--training-plan", plans["plain"], *TINY[2:], "--max-steps", "8", "--seeds", "1", "--no-report"]


def row_of(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"{label} "))


def test_the_others_are_judged(flags, experiment, capfd):
    experiment("crashes", CRASHES)
    candidates = ["--exp", "crashes:tiny", "llama2:tiny", "--baseline", "gpt2ish:tiny"]
    assert command.main([*flags, *candidates]) == 2
    out, err = capfd.readouterr()
    assert row_of(out, "crashes:tiny").endswith("crashed") and not row_of(out, "llama2:tiny").endswith(" none")
    assert "crashes:tiny: no verdict: its training crashed: the training of crashes" in out
    assert "the others go on" in err  # the worker's own traceback goes to the stderr that the fork server began with


def test_one_that_cannot_be_loaded(flags, experiment, capfd):
    experiment("mistyped", "import no_such_module_anywhere")
    candidates = ["--exp", "mistyped:tiny", "llama2:tiny", "--baseline", "gpt2ish:tiny"]
    assert command.main([*flags, *candidates]) == 2
    out, _ = capfd.readouterr()
    assert row_of(out, "mistyped:tiny").endswith("crashed") and not row_of(out, "llama2:tiny").endswith(" none")


def test_a_single_candidate_ends_the_comparison(flags, experiment, capfd):
    experiment("crashes", CRASHES)
    assert command.main([*flags, "--exp", "crashes:tiny", "--baseline", "gpt2ish:tiny"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and "ended unexpectedly" in err
