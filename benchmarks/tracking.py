"""What a tracker beside the training costs: training without and with it in turn, medians and their ratio.

    python benchmarks/tracking.py --track tensorboard --pairs 5 --steps 300

Each pair trains the same run twice, in an order that alternates. The figure is the median of the seconds of training
that the runs note (validating and saving aside), and of the whole command. Nothing else should run beside it.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lmplay.runs.run import read_run


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--track", default="tensorboard", help="the tracker (default: tensorboard)")
    p.add_argument("--exp", default="gpt2ish:tiny", help="the experiment (default: gpt2ish:tiny)")
    p.add_argument("--pairs", type=int, default=5, help="pairs of runs (default: 5)")
    p.add_argument("--steps", type=int, default=300, help="steps of a run (default: 300)")
    p.add_argument("--batch-size", type=int, default=50, help="sequences per step (default: 50)")
    p.add_argument("--context-len", type=int, default=128, help="tokens of a sequence (default: 128)")
    typed = p.parse_args()
    took: dict[str, list[tuple[float, float]]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(typed.pairs):
            for how in ("without", "with") if pair % 2 == 0 else ("with", "without"):
                took[how].append(train(typed, Path(folder), f"{how}_{pair}", tracked=how == "with"))
                print(
                    f"{how} {pair}: {took[how][-1][0]:.1f} s of training, {took[how][-1][1]:.1f} s in all", flush=True
                )
    for n, what in enumerate(("training", "whole command")):
        off, on = (statistics.median(one[n] for one in took[how]) for how in ("without", "with"))
        print(f"{what}: {off:.2f} s without, {on:.2f} s with {typed.track}, ratio {on / off:.4f}")


def train(typed: argparse.Namespace, folder: Path, name: str, tracked: bool) -> tuple[float, float]:
    """Return the seconds of training that the run notes, and those of the command."""
    words = ["--exp", typed.exp, "--training-plan", "quick", "--max-steps", str(typed.steps), "--run-name", name]
    words += ["--batch-size", str(typed.batch_size), "--context-len", str(typed.context_len)]
    words += [
        "--validation-tokens",
        "2000",
        "--validation-interval",
        "100",
        "--out",
        str(folder / "gpt_out"),
        "--compile",
        "off",
    ]
    words += ["--track", typed.track] if tracked else []
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "lmplay.cli.trainer", *words], check=True, cwd=folder, capture_output=True)
    return read_run(folder / "gpt_out" / name).number("progress", "seconds"), time.monotonic() - began


if __name__ == "__main__":
    main()
