"""List experiments, plans and configs (--exp list, --training-plan list, --use-config list of lmp_trainer)."""

import argparse
import json
from typing import Any

from lmplay import registry
from lmplay.cli.colors import BOLD, FAINT, WORSE, styled
from lmplay.errors import UserError


def show(typed: argparse.Namespace) -> bool:
    """Print the list that the flags ask for; return whether they ask for one. Raises UserError."""
    asked = getattr(typed, "exp", ""), getattr(typed, "training_plan", ""), typed.use_config
    if "list" not in asked:
        if typed.json:
            raise UserError("--json goes with a list: --exp list, --training-plan list or --use-config list")
        return False
    if asked[0] == "list":
        list_experiments(typed.json, typed.markdown)
    elif asked[1] == "list":
        list_plans(typed.json)
    else:
        list_configs(typed.json)
    return True


def list_experiments(as_json: bool, markdown: bool) -> None:
    """Print what there is to train: as aligned text, as JSON or as the table of experiments/README.md."""
    entries = registry.list_experiments()
    if not entries:
        raise UserError(
            "no experiments found: run this in a folder that has an experiments/ folder, or set LMPLAY_EXPERIMENTS"
        )
    if as_json:
        _print_json([_json_of(entry) for entry in entries])
        return
    if markdown:
        print("\n".join(["| experiment | what it is | variants |", "| --- | --- | --- |", *map(_table_row, entries)]))
        return
    width = max(len(e.name) for e in entries)
    for entry in entries:
        what = styled(f"CAN NOT BE READ: {entry.error}", WORSE) if entry.error else entry.summary
        print(f"{styled(entry.name, BOLD)}{'':<{width - len(entry.name)}}  {what}")
        if not entry.error and len(entry.variants) > 1:
            print(styled(f"{'':<{width}}  variants: {', '.join(entry.variants)}", FAINT))


def _json_of(entry: registry.Entry) -> dict[str, Any]:
    """Return what the list says of an experiment, as plain JSON values."""
    return {
        "name": entry.name,
        "summary": entry.summary,
        "parent": entry.parent,
        "variants": entry.variants,
        "fields": registry.config_defaults(entry),
        "recipe": entry.recipe,
        "folder": str(entry.folder),
        "error": entry.error,
    }


def _table_row(entry: registry.Entry) -> str:
    """Return an experiment's row of a Markdown table: name, summary, the default variant and how many others."""
    first, *others = entry.variants
    n_others = f" and {len(others)} more" if others else ""
    return f"| `{entry.name}` | {entry.error or entry.summary} | {first}{n_others} |"


def list_plans(as_json: bool) -> None:
    """Print the plans that a name can mean."""
    from lmplay.data.plans import BrokenPlan
    from lmplay.data.plans import list_plans as read_plans

    said = {p.name: p.error if isinstance(p, BrokenPlan) else p.description for p in read_plans()}
    _print_described(said, as_json)


def list_configs(as_json: bool) -> None:
    """Print the configs that a name can mean."""
    from lmplay.train import configs

    _print_described({config.name: config.description for config in configs.list_configs()}, as_json)


def _print_described(said: dict[str, str], as_json: bool) -> None:
    """Print names and their descriptions."""
    if as_json:
        _print_json([{"name": name, "description": description} for name, description in said.items()])
        return
    width = max(map(len, said), default=0)
    for name, description in said.items():
        print(f"{styled(name, BOLD)}{'':<{width - len(name)}}  {description}")


def _print_json(rows: list[dict[str, Any]]) -> None:
    print(json.dumps(rows, indent=1, default=str))
