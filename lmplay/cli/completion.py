"""Tell a shell how what was typed may go on: experiments, plans, runs, fields (the extra shell: argcomplete).

A completer takes what was typed of a word and the flags before it. It reads names and literals alone, so that the shell
does not wait for torch.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lmplay import registry
from lmplay.errors import BAD_INPUT, UserError
from lmplay.files import shipped_files
from lmplay.runs import names
from lmplay.runs.settings import NO_RECIPE, OWN_RECIPE, TUNED_RECIPE, Settings, default_out

Completer = Callable[[str, argparse.Namespace], Iterable[str]]
FROM_HARNESS = ("vocab_size", "max_len")  # fields that --set does not give


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and end the program. Without argcomplete end it, too: nobody has typed Enter."""
    try:
        import argcomplete
    except ImportError:
        sys.exit(BAD_INPUT)
    _give_completers(parser)
    argcomplete.autocomplete(parser, always_complete_options="long")


def _give_completers(parser: argparse.ArgumentParser) -> None:
    """Tell argcomplete what completes each flag of a command, and of its actions (`lmp_tokenizer train`)."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                _give_completers(one)
        elif completers := completers_of(action):
            setattr(action, "completer", _joined(completers))  # noqa: B010  # argparse's actions don't know of it


def completers_of(action: argparse.Action) -> list[Completer]:
    """Return the completers of a flag, by its name and what its metavar says that it takes."""
    takes = str(action.metavar).split("|")
    found = [BY_FLAG.get(action.dest), *(BY_METAVAR.get(one) for one in takes)]
    return [one for one in found if one is not None]


def _joined(completers: list[Completer]) -> Callable[..., list[str]]:
    def completer(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
        found: list[str] = []
        for one in completers:
            try:
                found += one(prefix, parsed_args)
            except (OSError, UserError, ValueError):  # a completion is no place to complain
                continue
        return found

    return completer


def experiments(prefix: str, typed: argparse.Namespace) -> Iterable[str]:
    """Return the experiments, and the variants of the one that was typed."""
    known = {folder.name: folder for folder in registry.all_folders().values()}
    if ":" not in prefix:
        fitting = [name for name in known if name.startswith(prefix)]
        return [*known, *(variants_of(known[fitting[0]]) if len(fitting) == 1 else [])]
    name = prefix.partition(":")[0]
    return variants_of(known[name]) if name in known else []


def variants_of(folder: Path) -> list[str]:
    """Return NAME:VARIANT for each variant of an experiment."""
    return [f"{folder.name}:{variant}" for variant in registry.read_entry(folder).variants]


def runs(prefix: str, typed: argparse.Namespace) -> Iterable[str]:
    """Return the names of the runs in --out."""
    out = Path(getattr(typed, "out", None) or default_out())
    return [path.parent.name for path in out.glob(f"*/{names.RUN_JSON}")]


def fields(prefix: str, typed: argparse.Namespace) -> Iterable[str]:
    """Return FIELD= for each field of the Config of the experiment in --exp; after "=" its default, or both truths."""
    spec = getattr(typed, "exp", None) or registry.DEFAULT_EXPERIMENT
    entry, variant = registry.find(spec if isinstance(spec, str) else spec[0])
    defaults = registry.config_defaults(entry) | entry.variants[variant]
    name, equals, _ = prefix.partition("=")
    if not equals:
        return [f"{one}=" for one in defaults if one not in FROM_HARNESS]
    if name not in defaults:
        return []
    values = [True, False] if isinstance(defaults[name], bool) else [defaults[name]]
    return [f"{name}={value}" for value in values]


def _plans(prefix: str, typed: argparse.Namespace) -> Iterable[str]:
    return ["list", *shipped_files("plans")]


def _configs(prefix: str, typed: argparse.Namespace) -> Iterable[str]:
    return ["list", *shipped_files("configs")]


def _recipes(prefix: str, typed: argparse.Namespace) -> Iterable[str]:
    return [OWN_RECIPE, TUNED_RECIPE, NO_RECIPE, *experiments(prefix, typed)]


def _what_runs_differ_in(prefix: str, typed: argparse.Namespace) -> Iterable[str]:
    settings = [field.name for field in dataclasses.fields(Settings) if field.metadata["identity"]]
    return ["experiment", *settings, *(name.removesuffix("=") for name in fields("", typed))]


BY_FLAG: dict[str, Completer] = {
    "training_plan": _plans,
    "use_config": _configs,
    "set": fields,
    "diff": experiments,
    "recipe": _recipes,
}
BY_METAVAR: dict[str, Completer] = {
    "NAME[:VARIANT]": experiments,
    "RUN": runs,
    "FIELD=A,B,C": fields,
    "FIELD": _what_runs_differ_in,
}
