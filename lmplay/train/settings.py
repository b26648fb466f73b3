"""Read settings from flags and from a configuration file, and write them as flags."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from lmplay.errors import UserError, did_you_mean
from lmplay.files import parse_json, read_json
from lmplay.runs.setting import THREE, flag_of, json_value
from lmplay.runs.settings import Settings
from lmplay.text import read_whole
from lmplay.train.configs import find_config
from lmplay.train.recipes import base_of, with_recipe


class AutoOnOff(argparse.Action):
    """A flag that takes auto, on or off; bare it means on, and --no-NAME means off."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        spellings = [*option_strings, *(f"--no-{name.removeprefix('--')}" for name in option_strings)]
        super().__init__(spellings, dest, nargs="?", **options)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        off = (option_string or "").startswith("--no-")
        if off and values is not None:
            parser.error(f"{option_string} takes no value")
        value = values or ("off" if off else "on")
        if FIELDS[self.dest].type is bool:
            value = {"on": True, "off": False}.get(value, value)
        setattr(namespace, self.dest, value)


FIELDS = {f.name: f for f in dataclasses.fields(Settings)}


def add_flags(parser: argparse._ActionsContainer, omit: tuple[str, ...] = ()) -> None:
    """Add one flag per setting, except those in `omit`.

    A flag that was not typed leaves nothing in the namespace, so that a configuration file can supply its value.
    """
    for name, field in FIELDS.items():
        if name in omit:
            continue
        options = dict(field.metadata["flag"])
        spellings = flag_of(name), *options.pop("aliases", ())
        if options.get("choices") == THREE and name in ("amp", "compile"):
            options["action"] = AutoOnOff
        if field.type in (int, int | None):
            options["type"] = whole
        elif field.type in (float, float | None):
            options["type"] = number
        parser.add_argument(
            *spellings, dest=name, default=argparse.SUPPRESS, help=_help(field).replace("%", "%%"), **options
        )


def _help(field: dataclasses.Field) -> str:
    text, default = field.metadata["help"], default_of(field)
    if "(default" in text or default in (None, ()):
        return text
    if isinstance(default, bool):
        default = "yes" if default else "no"
    return f"{text} (default: {f'{default:g}' if isinstance(default, float) else default})"


def from_flags(typed: argparse.Namespace, config_file: str | None = None) -> Settings:
    """Return the settings: typed flags, then the file's values, the experiment's recipe, the defaults.

    Raises UserError.
    """
    values = given_settings(typed, config_file)
    return with_recipe(Settings(**values), base_of(Settings(**values)), values)


def given_settings(typed: argparse.Namespace, config_file: str | None = None) -> dict[str, Any]:
    """Return what typed flags and the file give. Raises UserError."""
    values = read_config(config_file) if config_file else {}
    values.update({k: tuple(v) if isinstance(v, list) else v for k, v in vars(typed).items() if k in FIELDS})
    if values.get("amp") == "auto":
        values["amp"] = amp_pays(values.get("device", Settings.device))
    return values


def amp_pays(device: str) -> bool:
    """Whether the device of this name multiplies matrices at least FASTER times as fast with --amp."""
    from lmplay.model.device import prepare_process

    prepare_process()  # before torch, which looks at its environment once
    from lmplay.model.measured import FASTER, amp_factor

    return amp_factor(device) >= FASTER


def on_amp(settings: Settings) -> str:
    """Return a line on what --amp would do, or does to no good; "" where there is nothing to say."""
    from lmplay.model.measured import FASTER, amp_factor

    factor = amp_factor(settings.device)
    if settings.amp and factor < 1 / FASTER:
        return f"--amp multiplies matrices {factor:.1f} times as fast on this device: it is faster without"
    if settings.amp or factor < FASTER:
        return ""
    return f"--amp multiplies matrices {factor:.1f} times as fast on this device"


def as_flags(settings: Settings) -> list[str]:
    """Return the flags to type for these settings. What the defaults and the recipe give is left out."""
    flags: list[str] = []
    recipe = base_of(settings)
    for name, field in FIELDS.items():
        value = getattr(settings, name)
        if value == recipe.get(name, default_of(field)):
            continue
        if isinstance(value, bool):
            flags.append(flag_of(name) if value else f"--no-{name.replace('_', '-')}")
        elif field.metadata["flag"].get("action") == "append":
            flags += [part for item in value for part in (flag_of(name), item)]
        else:
            flags += [flag_of(name), *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return flags


def default_of(field: dataclasses.Field) -> Any:
    """Return the default of a setting."""
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def read_config(path: str) -> dict[str, Any]:
    """Return the settings in a file that --dump-config wrote, in a run's run.json or in a named config.

    Raises UserError.
    """
    try:
        content = parse_json(sys.stdin.buffer.read()) if path == "-" else read_json(find_config(path))
    except OSError as error:
        raise UserError(f"--use-config {path} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"--use-config {path}: {error}") from error
    content = content.get("settings", content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise UserError(f"--use-config {path}: a JSON object of settings is expected")
    values = {}
    for name, value in content.items():
        if name not in FIELDS:
            raise UserError(f"--use-config {path}: no setting {name!r}.{did_you_mean(name, FIELDS)}")
        try:
            values[name] = json_value(FIELDS[name], value)
        except ValueError as error:
            raise UserError(f"--use-config {path}: {name} {error}") from None
    return values


def whole(text: str) -> int:
    """Return the whole number that `text` is, also as 1e6 or 2_000_000."""
    value = read_whole(text)
    if value is None:
        raise argparse.ArgumentTypeError(f"a whole number is expected, not {text!r}")
    return value


def number(text: str) -> float:
    """Return the number that `text` is; it may be infinite or NaN."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number is expected, not {text!r}") from None
