"""Two trainings side by side on a CPU, without a flag, against one after the other.

    python benchmarks/two_at_once.py [--turns 3] [--n 2] [--json FILE]        (about 4 minutes on two cores)

Each turn runs n `lmp_trainer` commands one after the other and then the same n at once, each in a folder of its own, on
data that are there. `commands` is the time of all commands one after the other over that at once: 1 is no loss, 0.9 the
aim. `training` is the same of the tokens/s that the runs note of themselves, all runs added up: starting, validating
and saving are not in it.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TINY = ["--set", "n_layer=2", "--set", "n_head=2", "--set", "n_embd=64", "--tokenizer", "bytes"]
Shape = tuple[list[str], int, int, int]  # flags, context length, batch size, steps
SHAPES: dict[str, Shape] = {
    "tiny, bytes": (TINY, 64, 12, 700),
    "gpt2ish:tiny": (["--amp", "auto"], 256, 16, 24),
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--turns", type=int, default=3, help="turns of each shape (default: 3)")
    p.add_argument("--n", type=int, default=2, help="trainings at once (default: 2)")
    p.add_argument("--small", action="store_true", help="so few steps that they only show that the script runs")
    p.add_argument("--json", type=Path, help="write the results there")
    args = p.parse_args()
    found: dict[str, Any] = {"cores": os.cpu_count()}
    for name, shape in SHAPES.items():
        found[name] = of_shape(shape, turns=args.turns, n=args.n, small=args.small)
        print(name, json.dumps(found[name], indent=1), flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def of_shape(shape: Shape, *, turns: int, n: int, small: bool) -> dict[str, Any]:
    """Measure a shape. small: few steps."""
    words, context_len, batch_size, steps = shape
    words = [*words, "--context-len", str(context_len), "--batch-size", str(batch_size)]
    return measured(words, 2 if small else steps, turns, n)


def measured(words: list[str], steps: int, turns: int, n: int) -> dict[str, Any]:
    """Return the median ratios of n trainings at once to n one after the other."""
    commands, training, rates = [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        trained(words, 1, folder, ["first"])  # the data are there
        for _ in range(turns):
            seconds, apart = 0.0, []
            for number in range(n):
                took, rate = trained(words, steps, folder, [f"alone_{number}"])
                seconds, apart = seconds + took, apart + rate
            took, at_once = trained(words, steps, folder, [f"beside_{number}" for number in range(n)])
            commands.append(seconds / took)
            training.append(sum(at_once) / statistics.mean(apart))
            rates.append((statistics.mean(apart), statistics.mean(at_once)))
    return {
        "commands": row_of(commands),
        "training": row_of(training),
        "each turn": {"commands": [round(x, 3) for x in commands], "training": [round(x, 3) for x in training]},
        "tokens/s alone": round(statistics.median(alone for alone, _ in rates)),
        "tokens/s of each beside another": round(statistics.median(beside for _, beside in rates)),
    }


def row_of(ratios: list[float]) -> dict[str, Any]:
    """Return the median of ratios, and their quartiles."""
    ordered = sorted(ratios)
    quarter = len(ordered) // 4
    quartiles = [round(ordered[quarter], 3), round(ordered[-1 - quarter], 3)]
    return {"median": round(statistics.median(ordered), 3), "quartiles": quartiles}


def trained(words: list[str], steps: int, folder: Path, names: list[str]) -> tuple[float, list[float]]:
    """Train runs of these names at once; return the seconds that it took, and the tokens/s of each."""
    command = [sys.executable, "-m", "lmplay.cli.trainer", "--exp", "gpt2ish:tiny", "--training-plan", "quick", *words]
    command += ["--max-steps", str(steps), "--validation-tokens", "2000", "--validation-interval", "1000000"]
    command += ["--compile", "off", "--device", "cpu"]
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)
    began = time.monotonic()
    processes = [
        subprocess.Popen([*command, "--out", str(folder / name), "--run-name", "run"], stderr=subprocess.DEVNULL)
        for name in names
    ]
    if any([process.wait() for process in processes]):
        raise SystemExit("a training failed: " + " ".join(command))
    seconds = time.monotonic() - began
    infos = [json.loads((folder / name / "run" / "run.json").read_text("utf-8"))["progress"] for name in names]
    return seconds, [info["tokens"] / max(info["seconds"], 1e-9) for info in infos]


if __name__ == "__main__":
    main()
