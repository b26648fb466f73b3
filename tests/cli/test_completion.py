"""Completion in shells: by argcomplete's own protocol in a process, and what each completer knows."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmplay.cli import cleanmodel, compare, completion, generator, plotstats, trainer
from lmplay.cli import eval as evaluate
from support.small import ROOT

HEAVY = "torch numpy pandas datasets tokenizers matplotlib scipy"


def completed(line: str, folder: Path) -> list[str]:
    """Return what a shell is told for a line that ends at the cursor, by the protocol of argcomplete."""
    command, _, _ = line.partition(" ")
    module = f"lmplay.cli.{command.removeprefix('lmp_')}"
    code = (
        f"import os, sys; sys.argv[0] = {command!r}; end = os._exit\n"
        f"os._exit = lambda status: end(3 if any(one in sys.modules for one in {HEAVY!r}.split()) else status)\n"
        f"from {module} import main; main()"
    )
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
        "PYTHONPATH": str(ROOT),
    }
    shell = ["bash", "-c", 'exec "$@" 8>&1 9>&2 1>/dev/null 2>&1', "bash", sys.executable, "-c", code]
    done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done
    return [word.rstrip() for word in done.stdout.split("\n") if word]


@pytest.mark.process
@pytest.mark.extra
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such shells")
def test_a_shell_asks(tmp_path):
    pytest.importorskip("argcomplete")
    (tmp_path / "gpt_out" / "my_run").mkdir(parents=True)
    (tmp_path / "gpt_out" / "my_run" / "run.json").write_text("{}")
    assert completed("lmp_trainer --exp gpt2is", tmp_path)[0] == "gpt2ish"
    assert completed("lmp_trainer --exp gpt2ish:tiny_6", tmp_path) == ["tiny_6l"]  # bash has the rest already
    assert completed("lmp_trainer --exp llama2 --set n_kv", tmp_path) == ["n_kv_head="]
    assert completed("lmp_compare --training-plan tinyst", tmp_path) == ["tinystories", "tinystories_4096"]
    assert completed("lmp_generator --run my", tmp_path) == ["my_run"]
    assert completed("lmp_trainer --optimizer mu", tmp_path) == ["muon"]
    assert completed("lmp_compare --tune n_lay", tmp_path) == ["n_layer="]
    assert completed("lmp_plotstats --group warm", tmp_path) == ["warmup_steps", "warmup_from"]
    assert completed("lmp_tokenizer train --training-plan tinyst", tmp_path) == ["tinystories", "tinystories_4096"]


def test_without_the_package_nothing_is_done(monkeypatch):
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    with pytest.raises(SystemExit) as ended:
        trainer.main(["--exp", "gpt2ish", "--copy", "never"])
    assert ended.value.code == 2 and not Path("experiments/never").exists()


@pytest.mark.parametrize("module", [trainer, compare, generator, plotstats, cleanmodel, evaluate])
def test_what_the_flags_of_each_command_complete(module):
    parser = module.parser()
    known = {action.dest: completion.completers_of(action) for action in parser._actions}
    wanted = {
        "exp": completion.experiments,
        "baseline": completion.experiments,
        "training_plan": completion._plans,
        "use_config": completion._configs,
        "set": completion.fields,
        "run": completion.runs,
        "runs": completion.runs,
        "initial_model": completion.runs,
    }
    for name, completers in known.items():
        if name in wanted and not (module is plotstats and name == "baseline"):
            assert wanted[name] in completers, name


def test_what_the_completers_know(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    typed = argparse.Namespace(exp="gpt2ish:tiny")
    assert {"gpt2ish", "llama2"} <= set(completion.experiments("", typed))
    assert "gpt2ish:tiny" not in completion.experiments("g", typed)
    assert any(one.startswith("mingru:") for one in completion.experiments("mingru", typed))
    fields = set(completion.fields("", typed))
    assert {"n_layer=", "n_head="} <= fields and "max_len=" not in fields
    (value,) = completion.fields("n_layer=", typed)
    assert value.startswith("n_layer=") and int(value.partition("=")[2]) > 0
    assert list(completion.fields("nothing=", typed)) == [] and list(completion.runs("", typed)) == []
    [one] = [action for action in trainer.parser()._actions if action.dest == "set"]
    joined = completion._joined(completion.completers_of(one))
    assert joined("", argparse.Namespace(exp="no_such_thing")) == []
