"""Which runs a comparison would use, which it would train, and why: --dry-run and the line on runs of one's own."""

import json
import re

import pytest

from lmplay.cli import compare as command
from support.results import unsealed
from support.small import TINY

pytestmark = pytest.mark.process  # runs are trained in processes of their own

ARMS = ["--exp", "llama2:tiny", "--baseline", "gpt2ish:tiny", "--seeds", "1"]


@pytest.fixture
def flags(plans, work):
    return ["--training-plan", plans["plain"], *TINY[2:], "--max-steps", "8"]


@pytest.fixture
def compare(flags, capfd):
    def run(*words):
        status = command.main([*flags, *ARMS, *words])
        return status, *capfd.readouterr()

    return run


def test_a_dry_run_says_all_and_trains_nothing(compare, trainer, flags, work):
    status, out, _ = compare("--dry-run")
    assert status == 0 and out.count("would be trained -> gpt_out/") == 2
    assert out.count("no run of this model and seed is there") == 2 and out.endswith("2 of 2 runs would be trained\n")
    assert not list(work.glob("gpt_out/*/run.json"))
    own = ["--exp", "gpt2ish:tiny", *flags]
    assert trainer(*own, "--same-init", "--run-name", "mine").status == 0
    status, out, _ = compare("--dry-run")
    assert status == 0 and "gpt2ish:tiny, seed 0: is there: gpt_out/mine\n" in out
    assert out.endswith("1 of 2 runs would be trained\n")
    # the first difference of the nearest run, and how many more there are
    status, out, _ = compare("--dry-run", "--lr", "2e-3")
    assert status == 0 and "nearest is gpt_out/mine: lr is 0.001 instead of 0.002\n" in out
    status, out, _ = compare("--dry-run", "--lr", "2e-3", "--validation-interval", "7")
    assert "nearest is gpt_out/mine: lr is 0.001 instead of 0.002, and 1 more difference\n" in out
    info = json.loads((work / "gpt_out" / "mine" / "run.json").read_text())
    info["experiment"]["code_hash"] = "older"
    (work / "gpt_out" / "mine" / "run.json").write_text(json.dumps(unsealed(info)))
    assert "nearest is gpt_out/mine: its code is another\n" in compare("--dry-run")[1]
    assert [path.parent.name for path in work.glob("gpt_out/*/run.json")] == ["mine"]


def test_a_run_of_the_trainer_is_used_or_said_why_not(compare, trainer, flags, work):
    """As the README trains it: without --same-init, validated at the default interval."""
    assert trainer("--exp", "gpt2ish:tiny", *flags, "--run-name", "mine").status == 0
    status, out, _ = compare("--dry-run")
    why = "gpt_out/mine: same_init is off instead of on (--no-same-init uses it)"
    assert status == 0 and f"nearest is {why}\n" in out
    status, out, _ = compare("--dry-run", "--validation-interval", "3")
    assert "uses it" not in out  # one flag alone would not do
    status, _, err = compare("--no-report")
    assert status == 0 and len(re.findall(r"^run \d+ of", err, re.M)) == 2
    asked = [json.loads(file.read_text())["settings"]["compile"] for file in work.glob("gpt_out/*s0/run.json")]
    assert sorted(asked) == ["auto", "off"]  # the second run takes what the first has chosen
    assert err.count("not used is") == 1 and f"gpt2ish:tiny, seed 0: not used is {why}" in err
    status, out, err = compare("--dry-run", "--no-same-init")
    assert "gpt2ish:tiny, seed 0: is there: gpt_out/mine\n" in out
    # an interval that is typed is asked for
    status, out, _ = compare("--dry-run", "--no-same-init", "--validation-interval", "3")
    own = json.loads((work / "gpt_out" / "mine" / "run.json").read_text())["settings"]["validation_interval"]
    assert f"mine: validation_interval is {own} instead of 3 (--validation-interval {own} uses it)" in out
    assert status == 0


def test_a_begun_run_would_go_on(compare, trainer, flags, work):
    assert trainer("--exp", "gpt2ish:tiny", *flags, "--same-init", "--run-name", "mine").status == 0
    file = work / "gpt_out" / "mine" / "run.json"
    info = json.loads(file.read_text())
    info["status"] = "stopped"
    file.write_text(json.dumps(unsealed(info)))
    status, out, _ = compare("--dry-run")
    assert status == 0 and "gpt2ish:tiny, seed 0: would go on: gpt_out/mine\n" in out
