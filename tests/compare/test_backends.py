"""Where runs are trained: --on, and what --jobs is short for."""

import importlib.util

import pytest

from lmplay.cli import compare as command
from lmplay.cli import probe
from lmplay.compare.backends import Backend, backend_of, how_to_train
from lmplay.compare.sites import Processes
from lmplay.errors import UserError
from lmplay.runs.settings import Settings


def test_what_on_means():
    assert backend_of(None) == Backend(1) and backend_of(None, 3) == backend_of("processes:3") == Backend(3)
    assert backend_of("processes:auto") == backend_of(None, None) == Backend(None)


def test_processes_are_what_jobs_is_short_for():
    settings = Settings(device="cpu", threads=1)
    one, other = (how_to_train(settings, backend, 1) for backend in (backend_of("processes:2"), backend_of(None, 2)))
    assert one == other and one[0].site == Processes(2)


@pytest.mark.parametrize("on", ["processes", "processes:0", "processes:x", "rays", "ray:", "ray://", "ray:/x", ""])
def test_a_place_that_is_none(on):
    with pytest.raises(UserError, match="--on takes processes:N"):
        backend_of(on)


def test_both_at_once_are_refused():
    with pytest.raises(UserError, match="give one of them"):
        backend_of("processes:2", 3)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
@pytest.mark.parametrize(("main", "words"), [(command.main, []), (probe.main, ["--tasks", "copy"])])
def test_without_ray_one_line_says_how_to_install_it(main, words, work, capsys):
    for on in ("ray", "ray://head:6379"):
        assert main(["--exp", "gpt2ish:tiny", "--on", on, *words]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "pip install 'lmplay[ray]'" in said
    assert not list(work.iterdir())
