"""The first part of experiments/RESULTS.md: the families tuned, from benchmarks/results/tuned_families.json."""

import json
import math
import textwrap
from collections.abc import Iterable
from pathlib import Path

from parts.ideas import IDEAS, ON_GPT2ISH_FIRST, ON_GPT2ISH_THEN, ON_MODERN

TUNED = Path(__file__).resolve().parent.parent / "results" / "tuned_families.json"
HEADS = (
    "model",
    "rung",
    "verdict",
    "difference",
    "interval",
    "seeds",
    "M in FLOPs",
    "trained",
    "deployed",
    "its rates",
)
BASELINES = {"gpt2ish:tiny": "gpt2ish", "modern:d2": "modern"}
ABOUT = """Made by `benchmarks/tuned_families.py` from real runs; do not edit. Every arm, the baselines too, got the
same grid of learning rates and of embedding rates at the lowest size, under a seed that judges nothing. Its best was
carried up by the rules of a ladder (docs/ladder.md); half of the carried rate was tried beside it at the top. Text: the
plan `packages`, which is Python code, vocabulary 2,048, context 128. Sizes: layers x width. Optimizer: AdamW by the
defaults against `gpt2ish`, Muon by modern's recipe against `modern`."""
COLUMNS = """Difference: validation loss minus the baseline's, in nats per token; below 0 is better. Its interval holds
the true difference with 95%, over seeds and documents. M: how many times the model's FLOPs of training the baseline
needs for its loss. `trained`, `deployed`: parameters before and after folding, beside the baseline's. `its rates`: of
the model at that size. Each row is a verdict of its own: of {rows} rows about {wrong} may be wrong by chance."""
NONE_YET = """The table of the families with each arm's rates tuned is not there yet: `python
benchmarks/tuned_families.py` trains it (`--dry-run` says how long that takes). What stands below is older, and was
trained with one learning rate for all arms."""


def name_of(candidate: str, baseline: str) -> str:
    """Return what a row is called in the file."""
    return f"{candidate} against {baseline}"


def tuned_lines(found: dict | None = None) -> list[str]:
    """Return the lines of the part. found: what the file holds, by default read from it."""
    if found is None:
        found = json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.exists() else {}
    parts = [_part(float(k), found[k]) for k in sorted(found, key=float, reverse=True) if any_judged(found[k])]
    if not parts:
        return ["## The families, tuned", "", *textwrap.wrap(NONE_YET, 120), ""]
    return [line for part in parts for line in part]


def any_judged(rows: dict) -> bool:
    return any(row.get("rungs") for row in rows.values())


def _part(k: float, rows: dict) -> list[str]:
    judged = sum(len(row.get("rungs", ())) for row in rows.values())
    about = [*textwrap.wrap(ABOUT, 120), "", *textwrap.wrap(COLUMNS.format(rows=judged, wrong=round(judged / 20)), 120)]
    lines, claims = about, IDEAS | ON_MODERN
    for baseline, short in BASELINES.items():
        those = {name: row for name, row in rows.items() if row.get("rungs") and name.endswith(f" against {baseline}")}
        if not those:
            continue
        title = f"## Tuned, against `{short}`, {k:g} tokens per parameter"
        lines = [*lines, "", title, "", *_trained_on(those.values()), "", _line(HEADS), _line(["---"] * len(HEADS))]
        lines += [line for name, row in those.items() for line in _rows(name.partition(" against ")[0], row)]
        lines += ["", "What all sizes say together, and what is claimed or was changed:", ""]
        for name, row in those.items():
            model = name.partition(" against ")[0]
            said = "; ".join(row["sentences"][:2])
            lines += _item(f"`{model}` ({claims[model]}): {said}")
        lines += _edges(those.values())
    return [*lines, "", *_left_out(rows), ""]


def _trained_on(rows: Iterable[dict]) -> list[str]:
    """Return what each row was given, and where."""
    rows = list(rows)
    rungs = {one["rung"]: one for row in rows for one in row["rungs"]}
    sizes = [f"{name}: {one['tokens']:,} tokens, batches of {one['batch_size']}" for name, one in rungs.items()]
    machines = ", ".join(sorted({f"{row['device']}, torch {row['torch']}" for row in rows if "device" in row}))
    losses = {
        name: sorted(
            {
                f"{one['baseline_loss']:.4f}"
                for row in rows
                for one in row["rungs"]
                if one["rung"] == name and one["baseline_loss"]
            }
        )
        for name in rungs
    }
    base = "; ".join(f"{name} {' or '.join(found)}" for name, found in losses.items() if found)
    text = f"{'; '.join(sizes)}. The baseline's loss: {base}. Trained on: {machines}."
    if any(len(found) > 1 for found in losses.values()):
        text += " Where it has several, an extension of the grid gave it another rate."
    return textwrap.wrap(text, 120)


def _rows(model: str, row: dict) -> list[str]:
    """Return one line for each size."""
    lines = []
    for one in row["rungs"]:
        if one["difference"] is None:
            lines.append(_line([f"`{model}`", one["rung"], one["verdict"], *[""] * (len(HEADS) - 3)]))
            continue
        interval = f"{one['low']:+.4f} to {one['high']:+.4f}"
        own = one["settings"].get(model, {})
        rates = ", ".join(f"{field} {own[field]:g}" for field in ("lr", "embedding_lr") if field in own)
        sizes = [beside(one[key], one["baseline_parameters"]) for key in ("all_parameters", "deployed")]
        lines.append(
            _line(
                [f"`{model}`", one["rung"], one["verdict"], f"{one['difference']:+.4f}", interval, one["pairs"]]
                + [_multiplier(one), *sizes, rates]
            )
        )
    return lines


def _multiplier(one: dict) -> str:
    value, low, high = (one[f"ln_m_flops{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return ""
    ends = " to ".join("any" if end is None or abs(end) > 20 else f"{math.exp(end):.2f}" for end in (low, high))
    than = f"{'more' if one['difference'] < 0 else 'less'} than " if one["beyond"] else ""
    return f"{than}{math.exp(value):.2f} ({ends})"


def beside(ours: int, theirs: int) -> str:
    """Return millions of parameters, and how many percent more or fewer they are than the baseline's."""
    percent = round(100 * (ours / theirs - 1))
    return f"{ours / 1e6:.2f}" + (f" ({percent:+d}%)" if percent else "")


def _edges(rows: Iterable[dict]) -> list[str]:
    """Return the best rates that lie at the edge of what was tried."""
    notes = dict.fromkeys(note for row in rows for note in row["notes"] if "edge of its grid" in note)
    return (
        ["", "Best values at the edge of what was tried:", "", *(line for note in notes for line in _item(note))]
        if notes
        else []
    )


def _left_out(rows: dict) -> list[str]:
    """Say what has no row, and which ideas were not trained."""
    failed = [f"`{name}`: {row['why_none']}" for name, row in rows.items() if not row.get("rungs")]
    there = {name.partition(" against ")[0] for name, row in rows.items() if row.get("rungs")}
    main = [*ON_GPT2ISH_FIRST, *ON_GPT2ISH_THEN, *ON_MODERN]
    missing = [name for name in [*main, *(name for name in IDEAS if name not in main)] if name not in there]
    text = "Not trained for this table: " + ", ".join(f"`{name}`" for name in missing) + "." if missing else ""
    lines = [line for one in failed for line in _item(one)]
    return [*lines, *([""] if lines else []), *textwrap.wrap(text, 120, break_on_hyphens=False)]


def _item(text: str) -> list[str]:
    return textwrap.wrap(text, 120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def _line(cells: Iterable) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
