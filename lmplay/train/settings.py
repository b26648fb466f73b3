"""The flags and the configuration file that settings come from."""

import argparse
import dataclasses
import json

from lmplay.errors import UserError, did_you_mean
from lmplay.files import read_text
from lmplay.runs.settings import Settings, flag_of


def add_flags(parser: argparse.ArgumentParser, but: tuple[str, ...] = ()) -> None:
    """One flag a setting, `but` those. A flag that was not typed leaves nothing behind, so that a config file can stand below it."""
    for f in dataclasses.fields(Settings):
        if f.name in but:
            continue
        options = dict(f.metadata["flag"])
        default = None if f.default is dataclasses.MISSING else f.default
        if f.type in (int, int | None):
            options["type"] = whole
        elif f.type in (float, float | None):
            options["type"] = float
        shown = (
            ""
            if default in (None, False, "")
            else f" (default {default:g})"
            if isinstance(default, float)
            else f" (default {default})"
        )
        parser.add_argument(
            flag_of(f.name),
            dest=f.name,
            default=argparse.SUPPRESS,
            help=(f.metadata["help"] + shown).replace("%", "%%"),
            **options,
        )


def from_flags(typed: argparse.Namespace, config_file: str | None = None) -> Settings:
    """Settings of the defaults, the config file's above them and the typed flags on top. Raises UserError."""
    names = {f.name for f in dataclasses.fields(Settings)}
    values = read_config(config_file) if config_file else {}
    values.update({k: tuple(v) if isinstance(v, list) else v for k, v in vars(typed).items() if k in names})
    return Settings(**values)


def as_flags(settings: Settings) -> list[str]:
    """What is typed for these settings, those that are as by default left out."""
    flags = []
    for f in dataclasses.fields(Settings):
        value = getattr(settings, f.name)
        if value == (f.default_factory() if f.default is dataclasses.MISSING else f.default):
            continue
        if isinstance(value, bool):
            flags.append(flag_of(f.name) if value else f"--no-{f.name.replace('_', '-')}")
        elif f.metadata["flag"].get("action") == "append":
            flags += [part for item in value for part in (flag_of(f.name), item)]
        else:
            flags += [flag_of(f.name), *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return flags


def read_config(path: str) -> dict:
    """The settings in a file that --dump-config wrote (or in a run's run.json). Raises UserError."""
    try:
        content = json.loads(read_text(path, "--use-config"))
    except ValueError as error:
        raise UserError(f"--use-config {path}: not JSON ({error})") from error
    content = content.get("settings", content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise UserError(f"--use-config {path}: a JSON object of settings is expected")
    known = {f.name: f for f in dataclasses.fields(Settings)}
    values = {}
    for name, value in content.items():
        if name not in known:
            raise UserError(f"--use-config {path}: no setting {name!r}.{did_you_mean(name, known)}")
        values[name] = _checked(path, known[name], value)
    return values


def _checked(path: str, field_: dataclasses.Field, value):
    kind = str(field_.type) if not isinstance(field_.type, type) else field_.type.__name__
    if value is None and "None" in kind:
        return None
    if kind.startswith("tuple"):
        good = isinstance(value, list) and all(isinstance(v, str) for v in value)
        value = tuple(value) if good else value
    elif kind.startswith("int"):
        good = isinstance(value, int) and not isinstance(value, bool)
    elif kind.startswith("float"):
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
    elif kind.startswith("bool"):
        good = isinstance(value, bool)
    else:
        good = isinstance(value, str)
    choices = field_.metadata["flag"].get("choices")
    if not good or choices and value not in choices:
        expected = f"one of {', '.join(choices)}" if choices else kind
        raise UserError(f"--use-config {path}: {field_.name} must be {expected}, not {value!r}")
    return value


def whole(text: str) -> int:
    """A whole number, also as 1e6 or 2_000_000."""
    try:
        number = float(text.replace("_", ""))
        if number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"a whole number is expected, not {text!r}")
