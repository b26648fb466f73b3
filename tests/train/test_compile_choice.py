"""Whether a run's model is compiled: by a timing that is kept, the length of the run, and what it had before."""

import dataclasses

import pytest
import torch

from lmplay.model import measured
from lmplay.runs.settings import Settings
from lmplay.train import settings as settings_module
from lmplay.train.compile_choice import Length, _check_loss, _NotCompiled, by_timing, choose_compiled, compiler_for
from support.taking import Taking

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no CUDA device here")]

TIMING = {"plain_s": 0.3, "compiled_s": 0.2, "start_s": 30.0}
SHORT = Length(steps=10, most_seconds=3.0, key="a machine and a model")


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LMPLAY_DATA", str(tmp_path))
    return tmp_path


def choose(asked="auto", before=None, length=SHORT):
    taking = Taking("gpt2ish", 6)
    eager = dataclasses.replace(taking.captured.eager, settings=Settings(batch_size=6, compile=asked))
    return choose_compiled(eager, taking.batch(0), micro_batch_size=6, before=before, length=length)


def test_a_timing_pays_or_not():
    """A step of 0.1 s less pays for four starts of 30 s from 1,200 steps on."""
    assert by_timing(TIMING, 1201) == {"mode": "on", "why": "a step is 1.50 times as fast", "factor": 1.5}
    assert by_timing(TIMING, 1199)["mode"] == "off"
    assert by_timing(TIMING | {"compiled_s": 0.4}, 10**6)["mode"] == "off"


def test_a_timing_is_kept_for_a_machine_and_a_model():
    assert choose()["mode"] == "off"
    measured.keep("compiled", SHORT.key, TIMING)
    assert choose()["mode"] == "off"
    assert choose(length=dataclasses.replace(SHORT, steps=2000))["mode"] == "on"
    assert choose(length=dataclasses.replace(SHORT, steps=2000, key="another"))["mode"] == "off"


def test_a_run_that_goes_on_keeps_its_choice_unless_told():
    before = {"mode": "on", "why": "a step is 1.50 times as fast"}
    assert choose(before=before) == before
    assert choose("off", before)["mode"] == "off"


def test_without_a_compiler_there_is_no_choice(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    measured.keep("compiled", SHORT.key, TIMING)
    assert not compiler_for(torch.device("cpu")) and not compiler_for(torch.device("mps"))
    assert choose(length=dataclasses.replace(SHORT, steps=2000)) is None


def test_another_loss_is_not_taken():
    _check_loss(101.0, 100.0)
    for wrong in (110.0, float("nan")):
        with pytest.raises(_NotCompiled, match="another one"):
            _check_loss(wrong, 100.0)


@pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=[pytest.mark.slow, pytest.mark.thorough]), pytest.param("cuda:0", marks=on_gpu)],
)
def test_measuring_leaves_the_model_as_it_was(device, capsys, data_folder):
    """The compiler really runs: the timing is kept, and the steps that follow are those of a run without it."""
    found = []
    for length in (Length(steps=10**7, most_seconds=1e6, key="a model"), SHORT):
        taking = Taking("gpt2ish", 6, device=torch.device(device))
        eager = dataclasses.replace(taking.captured.eager, settings=Settings(batch_size=6))
        note = choose_compiled(eager, taking.batch(0), micro_batch_size=6, before=None, length=length)
        found.append(taking.released())
        assert note["mode"] in ("on", "off")
    assert "compiling" in capsys.readouterr().err
    assert measured.known("compiled", "a model")["start_s"] > 0
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert one == pytest.approx(other, rel=0 if device == "cpu" else 1e-4)


@pytest.mark.parametrize(
    "words, compile, amp",
    [
        ("", "auto", False),
        ("--compile --amp", "on", True),
        ("--no-compile --no-amp", "off", False),
        ("--compile auto --amp on", "auto", True),
        ("--compile=off --amp=off", "off", False),
    ],
)
def test_flags_of_three_words(words, compile, amp):
    parser = settings_module.argparse.ArgumentParser()
    settings_module.add_flags(parser)
    settings = settings_module.from_flags(parser.parse_args(words.split()))
    assert (settings.compile, settings.amp) == (compile, amp)
    again = settings_module.from_flags(parser.parse_args(settings_module.as_flags(settings)))
    assert again == settings
    with pytest.raises(SystemExit):
        parser.parse_args(["--no-compile", "on"])


def test_a_configuration_from_before_there_was_auto(tmp_path):
    for before, now in (("true", "on"), ("false", "off"), ('"auto"', "auto")):
        (tmp_path / "config.json").write_text('{"compile": %s, "amp": true}' % before)
        assert settings_module.read_config(str(tmp_path / "config.json")) == {"compile": now, "amp": True}


@pytest.mark.parametrize("factor", [0.4, 1.1, 2.5])
def test_amp_auto_is_what_the_device_multiplies_faster(factor, capsys):
    device = torch.device("cpu")
    if measured.amp_dtype(device) is None:
        pytest.skip("--amp does nothing here")
    key = measured.machine_key(device)
    measured.keep("peak float32", key, 1e9)
    measured.keep("peak bfloat16", key, factor * 1e9)
    parser = settings_module.argparse.ArgumentParser()
    settings_module.add_flags(parser)
    settings = settings_module.from_flags(parser.parse_args(["--amp", "auto", "--device", "cpu"]))
    assert settings.amp is (factor > 2)
    said = settings_module.on_amp(Settings(device="cpu"))
    assert said == ("--amp multiplies matrices 2.5 times as fast on this device" if factor > 2 else "")
    said = settings_module.on_amp(Settings(device="cpu", amp=True))
    slower = "--amp multiplies matrices 0.4 times as fast on this device: it is faster without"
    assert said == (slower if factor < 1 else "")


def test_a_peak_that_was_measured_on_a_busy_machine_is_raised(data_folder):
    device = torch.device("cpu")
    key = measured.machine_key(device)
    measured.keep("peak float32", key, 1e6)
    raised = measured.raised_peak(device, amp=False)
    assert raised > 1e7 and measured.peak_flops(device, amp=False) == raised
    measured.keep("peak float32", key, 1e30)
    assert measured.raised_peak(device, amp=False) == 1e30


def test_a_peak_is_measured_once(data_folder):
    device = torch.device("cpu")
    peak = measured.peak_flops(device, amp=False)
    assert peak > 1e7 and measured.peak_flops(device, amp=False) == peak
    for content in ("{", "[]", '{"peak float32": 3}', '{"peak float32": {"%s": -1.0}}' % measured.machine_key(device)):
        (data_folder / measured.FILE).write_text(content)
        assert measured.peak_flops(device, amp=False) > 1e7
