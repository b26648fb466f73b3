"""The arrow of time where it is known: trains both directions on the arrow_ plans and compares with the entropy.

    python benchmarks/arrow_synthetic.py                     # the four with a prediction, one seed per direction
    python benchmarks/arrow_synthetic.py --linear            # the sparsity sweep of the linear map, and its plot
    python benchmarks/arrow_synthetic.py --seeds 3 --out DIR
    python benchmarks/arrow_synthetic.py --table-only        # only the table, of the runs that are there

Prints a table in nats per document: entropy, what each direction pays above it, the arrow (backward minus forward) and
the theory. The same command goes on where it stopped.
"""

import argparse
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

# muon: with AdamW half of the runs stay where one bit of the carry is missing (experiments/reverse_time)
FLAGS = (
    "--set n_layer=2 --set n_embd=64 --set n_head=4 --batch-size 32 --optimizer muon --lr 3e-3 --lr-schedule wsd "
    "--max-steps 1600 --validation-interval 200 --validation-tokens 0 --device cpu"
)
EXPECTED = {
    "arrow_times3": math.log(3),
    "arrow_times3_mirrored": -math.log(3),
    "arrow_copy": 0.0,
    "arrow_reversible": 0.0,
}
LINEAR = ["arrow_linear1", "arrow_linear2", "arrow_linear3", "arrow_linear5", "arrow_linear7"]
DIRECTIONS = {"gpt2ish": "forward", "reverse_time": "backward"}


def train(plan: str, seeds: int, out: Path, flags: str) -> None:
    command = [
        "lmp_compare",
        "--exp",
        "reverse_time:tiny",
        "--baseline",
        "gpt2ish:tiny",
        "--seeds",
        str(seeds),
        "--training-plan",
        plan,
        "--out",
        str(out / plan),
        *shlex.split(flags),
    ]
    print(shlex.join(command), flush=True)
    if status := subprocess.run(command).returncode:
        sys.exit(status)


def figures(folder: Path) -> dict | None:
    """Return nats per document by direction, (seeds, documents), and the entropy; None without runs of both."""
    losses, entropy = {direction: [] for direction in DIRECTIONS.values()}, None
    for path in sorted(folder.glob("*/run.json")):
        run = json.loads(path.read_text())
        last = sorted((path.parent / "validate_documents").glob("*.npy"))
        if run["status"] == "finished" and last:
            losses[DIRECTIONS[run["experiment"]["name"]]].append(np.load(last[-1]))
            (dataset,) = run["data"]["datasets"].values()
            entropy = dataset["entropy"] * dataset["validation"]["tokens"] / dataset["validation"]["documents"]
    return (
        {name: np.stack(runs) for name, runs in losses.items()} | {"entropy": entropy} if all(losses.values()) else None
    )


def table(out: Path) -> None:
    print(
        "| plan | seeds | entropy | forward above it | backward above it | arrow | ± documents | seeds from to | "
        "theory |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for folder in sorted(out.glob("arrow_*")):
        if not (found := figures(folder)):
            continue
        forward, backward = found["forward"], found["backward"]
        n, entropy = min(len(forward), len(backward)), found["entropy"]
        arrows = backward[:n] - forward[:n]
        error = arrows.mean(0).std(ddof=1) / math.sqrt(arrows.shape[1])
        expected = f"{EXPECTED[folder.name]:+.4f}" if folder.name in EXPECTED else ""
        print(
            f"| {folder.name} | {n} | {entropy:.4f} | {forward.mean() - entropy:+.4f} | "
            f"{backward.mean() - entropy:+.4f} | "
            f"{arrows.mean():+.4f} | {1.96 * error:.4f} | "
            f"{arrows.mean(1).min():+.4f} to {arrows.mean(1).max():+.4f} | {expected} |"
        )


def draw_sweep(out: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    found = {int(name[-1]): figures(out / name) for name in LINEAR}
    found = {ones: one for ones, one in found.items() if one}
    if not found:
        return
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for direction, color, marker in (("forward", "#0072B2", "o"), ("backward", "#D55E00", "s")):
        axes.plot(
            list(found), [one[direction].mean() for one in found.values()], color=color, marker=marker, label=direction
        )
    axes.axhline(next(iter(found.values()))["entropy"], color="#666666", linestyle="--", label="entropy")
    axes.set(
        xlabel="ones in a row of the matrix (of 16)",
        ylabel="validation loss (nats per document)",
        title="x, A x: the arrow of a sparse linear map",
        xticks=list(found),
        ylim=(0, None),
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out / "arrow_linear.png", dpi=130)
    print(f"wrote {out / 'arrow_linear.png'}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--linear", action="store_true", help="the sparsity sweep instead of the four with a prediction")
    p.add_argument("--plans", nargs="+", metavar="PLAN", help="these instead")
    p.add_argument("--seeds", type=int, default=1)
    p.add_argument("--flags", default=FLAGS, help=f"of all runs (default: {FLAGS})")
    p.add_argument("--table-only", action="store_true")
    p.add_argument("--out", type=Path, default=Path("arrow_out"))
    typed = p.parse_args()
    if not typed.table_only:
        for plan in typed.plans or (LINEAR if typed.linear else EXPECTED):
            train(plan, typed.seeds, typed.out, typed.flags)
    table(typed.out)
    draw_sweep(typed.out)


if __name__ == "__main__":
    main()
