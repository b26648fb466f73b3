"""Writes docs/results.md and its picture from finished ladders: what `modern` is worth against older baselines.

    lmp_compare --exp modern --baseline llama2 --ladder laptop --training-plan packages ... --json modern.json
    python benchmarks/results_page.py modern.json [OTHER.json...] [--command "lmp_compare ..."]... [--note "..."]...
    python benchmarks/results_page.py                     the page and the picture again, from what is committed

What the page needs of each file goes into benchmarks/results/ladders.json, in the order of the files; a ladder of the
same two models replaces the one that is there. `--command` is the command of the file at the same position, `--note`
what else is to be known of it.
"""

import argparse
import json
import math
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "benchmarks" / "results" / "ladders.json"
PAGE, PICTURE = ROOT / "docs" / "results.md", ROOT / "docs" / "results.png"
HEADS = ("rung", "parameters", "tokens", "pairs", "baseline", "model", "difference", "interval", "verdict")
TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20)  # of M
NOT_SHOWN = "s: "  # a note on a column that the page leaves out
MOST = 3.0  # of ln M, how far an interval is drawn
TOP = """# Results: is the modern baseline ahead?

Made by `benchmarks/results_page.py` from finished ladders; do not edit. All runs are on the plan `packages`, which is
Python code: other text may say something else. Below each table stands how the arms were tuned at the lowest rung and
what was carried up, by the rules of [a ladder](ladder.md). Losses are in nats per token, intervals hold the truth with
95%. M is how many times the model's compute the baseline needs for its loss. Parameters are those of the baseline's
matrices and head.

![loss and M against FLOPs](results.png)
"""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("files", nargs="*", type=Path, metavar="FILE", help="what lmp_compare --ladder --json wrote")
    p.add_argument("--command", action="append", default=[], help="the command of the file at the same position")
    p.add_argument("--note", action="append", default=[], help="a sentence about the file at the same position")
    args = p.parse_args()
    if max(len(args.command), len(args.note)) > len(args.files):
        p.error("--command or --note is given more often than there are files")
    ladders = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else []
    for number, file in enumerate(args.files):
        given = {key: dict(enumerate(getattr(args, key))).get(number, "") for key in ("command", "note")}
        for new in read(file):
            old = [n for n, one in enumerate(ladders) if pair_of(one) == pair_of(new)]
            new |= {key: value or (ladders[old[0]].get(key, "") if old else "") for key, value in given.items()}
            ladders = [new if n in old else one for n, one in enumerate(ladders)] + ([] if old else [new])
    if not ladders:
        p.error("no ladder is there yet: name the files of lmp_compare --ladder laptop ... --json FILE")
    KEPT.write_text(json.dumps(ladders, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(ladders), encoding="utf-8")
    PICTURE.write_bytes(picture(ladders))
    print(f"{PAGE}\n{PICTURE}")


def pair_of(ladder: dict) -> tuple[str, str]:
    """Return what a ladder compares."""
    return ladder["model"], ladder["baseline"]


def read(file: Path) -> list[dict]:
    """Return the ladders of a file, with what the page needs. Ends the program where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"results_page.py: {file} can't be read ({error}): name what lmp_compare --ladder --json wrote")
    if content.get("state", "done") != "done" or not content.get("ladders"):
        sys.exit(f"results_page.py: {file} holds no finished ladder: type its lmp_compare command again")
    for ladder in content["ladders"]:
        for rung in ladder["rungs"]:
            rung.pop("verdict_at_rung", None)
    return content["ladders"]


def page(ladders: list[dict]) -> str:
    """Return the page."""
    lines = [TOP]
    for ladder in ladders:
        lines += [f"## `{ladder['model']}` against `{ladder['baseline']}`", ""]
        lines += [line for said in ladder["sentences"] for line in _item(said)]
        axes = [("flops", "M in FLOPs"), ("seconds", "M in seconds")]
        axes = [one for one in axes if any(rung[f"ln_m_{one[0]}"] is not None for rung in ladder["rungs"])]
        heads = [*HEADS, *(head for _, head in axes)]
        lines += ["", _line(heads), "| --- |" + " ---: |" * (len(heads) - 1)]
        lines += [_line(_cells(rung, [axis for axis, _ in axes])) for rung in ladder["rungs"]]
        notes = [note for note in (ladder.get("note"), *ladder["notes"]) if note and not note.startswith(NOT_SHOWN)]
        lines += ["", *(line for note in notes for line in _item(note)), ""]
        if ladder["command"]:
            lines += ["```text", ladder["command"], "```", ""]
    return "\n".join(lines)


def _cells(rung: dict, axes: list[str]) -> list[str]:
    numbers = [f"{rung['parameters']:,}", f"{rung['tokens']:,}", str(rung["pairs"])]
    if rung["difference"] is None:
        return [rung["rung"], *numbers, "", "", "", "", rung["verdict"], *("" for _ in axes)]
    losses = [f"{rung[key]:.4f}" for key in ("baseline_loss", "candidate_loss")]
    found = [f"{rung['difference']:+.4f}", f"{rung['low']:+.4f} to {rung['high']:+.4f}", rung["verdict"]]
    return [rung["rung"], *numbers, *losses, *found, *(_multiplier(rung, axis) for axis in axes)]


def _multiplier(rung: dict, axis: str) -> str:
    value, low, high = (rung[f"ln_m_{axis}{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return ""
    ends = " to ".join("any" if end is None or abs(end) > 20 else f"{math.exp(end):.2f}" for end in (low, high))
    than = ("more than " if rung["difference"] < 0 else "less than ") if rung["beyond"] else ""
    return f"{than}{math.exp(value):.2f} ({ends})"


def _item(text: str) -> list[str]:
    return textwrap.wrap(text, 120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def picture(ladders: list[dict]) -> bytes:
    """Return a PNG file: losses of all arms against FLOPs with the baselines' laws, and M against FLOPs."""
    import numpy as np
    from matplotlib.ticker import FuncFormatter, NullFormatter

    from lmplay.report.canvas import as_bytes, blank, drawing, put_axes
    from lmplay.report.figure import COLORS, GREY

    with drawing():
        figure = blank(10.0, 4.0, dpi=100)
        losses, multipliers = put_axes(figure, 0.75, 0.6, 3.9, 3.1), put_axes(figure, 5.7, 0.6, 4.0, 3.1)
        multipliers.axhline(1, color=GREY, lw=0.8)
        models = dict.fromkeys(name for ladder in ladders for name in reversed(pair_of(ladder)))
        colors = dict(zip(models, COLORS, strict=False))
        shown = set()
        for number, ladder in enumerate(ladders):
            rungs = [rung for rung in ladder["rungs"] if rung["ln_m_flops"] is not None]
            model, baseline = pair_of(ladder)
            points = [(one["flops"], one["loss"]) for one in ladder["below"]]
            points += [(rung["baseline_flops"], rung["baseline_loss"]) for rung in rungs]
            if law := ladder.get("law"):
                x = np.geomspace(points[0][0] / 1.3, points[-1][0] * 1.5, 100)
                y = law["limit"] + law["factor"] * np.exp(-law["exponent"] * (np.log(x) - law["center"]))
                losses.plot(x, y, color=colors[baseline], lw=1)
            ours = [(rung["candidate_flops"], rung["candidate_loss"]) for rung in rungs]
            for name, marker, those in ((baseline, "o", points), (model, "D", ours)):
                label = None if name in shown else name
                losses.plot(*zip(*those, strict=True), marker, color=colors[name], ms=5, label=label)
                shown.add(name)
            m = np.array([rung["ln_m_flops"] for rung in rungs])
            ends = [(rung["ln_m_flops_low"], rung["ln_m_flops_high"]) for rung in rungs]
            low = np.array([at - MOST if low is None else max(low, at - MOST) for at, (low, _) in zip(m, ends)])
            high = np.array([at + MOST if high is None else min(high, at + MOST) for at, (_, high) in zip(m, ends)])
            x = np.array([rung["baseline_flops"] for rung in rungs]) * 1.03**number
            bars = [np.exp(m) - np.exp(low), np.exp(high) - np.exp(m)]
            label = f"{model} against {baseline}"
            multipliers.errorbar(
                x, np.exp(m), yerr=bars, fmt="D-", color=colors[model], ms=5, lw=1, capsize=3, label=label
            )
        losses.set_ylabel("validation loss, nats per token")
        multipliers.set_ylabel("M: the baseline's FLOPs, in the model's")
        multipliers.set_yscale("log")
        low, high = multipliers.get_ylim()
        multipliers.set_yticks([tick for tick in TICKS if low <= tick <= high])
        multipliers.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        multipliers.minorticks_off()
        for axes in (losses, multipliers):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"1e{math.log10(value):.0f}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("FLOPs of training")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
            axes.legend(frameon=False, fontsize=8)
        return as_bytes(figure)


if __name__ == "__main__":
    main()
