"""The settings as flags, as JSON and as ranges; and that each of them is used."""

import argparse
import ast
import dataclasses
import json
import math
from pathlib import Path

import pytest

import lmplay
from lmplay.errors import UserError
from lmplay.runs.setting import flag_of
from lmplay.runs.settings import Settings
from lmplay.train import settings as settings_module

FIELDS = {f.name: f for f in dataclasses.fields(Settings)}


def parse(*flags, config=None) -> Settings:
    parser = argparse.ArgumentParser()
    settings_module.add_flags(parser)
    return settings_module.from_flags(parser.parse_args(flags), config)


def another(field: dataclasses.Field):
    """(text, value): a value other than the default, as it is typed."""
    if choices := field.metadata["flag"].get("choices"):
        value = [c for c in choices if c != field.default][0]
        return str(value), (value,) if str(field.type).startswith("tuple") else value
    kind = str(field.type) if not isinstance(field.type, type) else field.type.__name__
    if kind.startswith("int"):
        return "7", 7
    if kind.startswith("float"):
        return "0.625", 0.625
    if kind.startswith("tuple"):
        return "a=1", ("a=1",)
    text = {"recipe": "none", "backup_at": "3,60"}.get(field.name, "word")  # a recipe has to be there
    return text, text


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_a_flag(name):
    field, flag = FIELDS[name], flag_of(name)
    assert getattr(parse(), name) == (
        field.default_factory() if field.default is dataclasses.MISSING else field.default
    )
    if field.type is bool:
        assert getattr(parse(flag), name) is True and getattr(parse(flag, flag.replace("--", "--no-")), name) is False
        return
    text, value = another(field)
    found = getattr(parse(flag, text), name)
    assert found == value and type(found) is type(value)
    assert field.metadata["help"]


def test_flags_of_several_values():
    assert parse("--set", "a=1", "--set", "b=2").set == ("a=1", "b=2")
    assert parse("--data", "a.txt", "b.txt").data == ("a.txt", "b.txt")


@pytest.mark.parametrize("text, value", [("1e6", 1_000_000), ("2_000", 2000), ("3.0", 3)])
def test_whole_numbers(text, value):
    found = parse("--max-tokens", text).max_tokens
    assert found == value and type(found) is int


@pytest.mark.parametrize("text", ["1.5", "inf", "nan", "many", ""])
def test_what_is_no_whole_number(text, capsys):
    with pytest.raises(SystemExit) as end:
        parse("--max-tokens", text)
    assert end.value.code == 2 and "a whole number is expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 0},
        {"validation_interval": 0},
        {"context_len": 0},
        {"max_tokens": 0},
        {"max_steps": -1},
        {"max_minutes": 0.0},
        {"mini_batch_size": -1},
        {"save_interval": -1},
        {"validation_tokens": -5},
        {"warmup_steps": -1},
        {"weight_decay": -0.1},
        {"grad_clip": -1.0},
        {"seed": -1},
        {"lr": 0.0},
        {"eps": 0.0},
        {"clip_value": -1.0},
        {"warmup_from": 1.5},
        {"restart_steps": -1},
        {"restart_shrink": 2.0},
        {"extra_steps": -1},
        {"backup_interval": -1},
        {"cooldown_fraction": 1.5},
        {"final_lr_fraction": -0.5},
        {"beta1": 1.0},
        {"beta2": -0.1},
        *({name: bad} for name, f in FIELDS.items() if "float" in str(f.type) for bad in (math.inf, math.nan)),
    ],
    ids=str,
)
def test_ranges(changes):
    ((name, value),) = changes.items()
    with pytest.raises(UserError, match=f"{flag_of(name)} must be .*, not {value}"):
        Settings(**changes)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", ".hidden", "a/"])
def test_run_names_that_are_none(name):
    with pytest.raises(UserError, match="--run-name takes a plain name"):
        Settings(run_name=name)


def test_files_go_round(tmp_path):
    everything = {name: another(f)[1] for name, f in FIELDS.items() if f.type is not bool}
    settings = Settings(**everything, amp=True)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings.as_json()))
    assert parse(config=str(path)) == settings
    assert parse("--lr", "3", "--no-amp", config=str(path)) == dataclasses.replace(settings, lr=3.0, amp=False)
    path.write_text(json.dumps({"format": 1, "settings": settings.as_json()}))  # a run.json
    assert parse(config=str(path)) == settings


def test_identity_is_what_decides_the_result():
    assert set(Settings().identity) == {
        "exp",
        "embedding_lr",
        "head_lr",
        "muon_scale",
        "data_order",
        "initial_model",
        "seed",
        "same_init",
        "batch_size",
        "shuffle",
        "optimizer",
        "lr",
        "lr_schedule",
        "warmup_steps",
        "warmup_from",
        "cooldown_fraction",
        "final_lr_fraction",
        "restart_steps",
        "restart_shrink",
        "weight_decay",
        "decay_all",
        "beta1",
        "beta2",
        "eps",
        "grad_clip",
        "clip_value",
        "amp",
        "validation_interval",
        "validation_tokens",
    }


@pytest.mark.parametrize("name", FIELDS)
def test_every_setting_is_used(name):
    """Read from an object that is called settings, somewhere in what trains."""
    root = Path(lmplay.__file__).parent
    for path in [*(root / "train").glob("*.py"), root / "cli" / "trainer.py"]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if (
                isinstance(node, ast.Attribute)
                and node.attr == name
                and ast.unparse(node.value).rpartition(".")[2] == "settings"
            ):
                return
    pytest.fail(f"nothing reads settings.{name}")


def test_restarts_need_to_know_when():
    with pytest.raises(UserError, match="--restart-steps must be at least 1 for --lr-schedule cosine_restarts, not 0"):
        Settings(lr_schedule="cosine_restarts")
    assert Settings(lr_schedule="cosine_restarts", restart_steps=5).restart_steps == 5


def test_second_spellings():
    assert parse("--micro-batch-size", "3") == parse("--mini-batch-size", "3") == Settings(mini_batch_size=3)
    assert settings_module.as_flags(Settings(mini_batch_size=3)) == ["--mini-batch-size", "3"]
