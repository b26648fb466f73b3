"""What several devices cost and give: one rank against the plain trainer, and N GPUs against one.

    python benchmarks/devices.py overhead [--exp gpt2ish:tiny] [--device cpu] [--rounds 200] [--minutes 5]
    python benchmarks/devices.py scaling --devices 2 [--exp gpt2ish:12l] [--steps 60]

overhead  one process, with torch.distributed and without, takes steps in turns, for at most --minutes; given are
          the ratio of the medians, and median and quartiles of the ratio of two steps that follow each other
scaling   `lmp_trainer --devices 1` and `--devices N` train the same run; given are tokens per second of the later half
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("part", choices=("overhead", "scaling"))
    p.add_argument("--exp", help="experiment (default: gpt2ish:tiny, and gpt2ish:12l for scaling)")
    p.add_argument("--device", default="auto", help="as lmp_trainer takes it (default: auto)")
    p.add_argument("--devices", type=int, default=2, help="how many against one (default: 2)")
    p.add_argument("--rounds", type=int, default=200, help="turns of each side at most (default: 200)")
    p.add_argument("--minutes", type=float, default=5.0, help="for all turns at most (default: 5)")
    p.add_argument("--steps", type=int, default=60, help="steps of each run of scaling (default: 60)")
    p.add_argument("--batch-size", type=int, default=16, help="sequences per step (default: 16)")
    args = p.parse_args()
    print(json.dumps(overhead(args) if args.part == "overhead" else scaling(args), indent=1))


def overhead(args: argparse.Namespace) -> dict[str, Any]:
    """Return the median seconds of a step, plain and as one rank of one, their ratio, and the ratios of the rounds."""
    from lmplay.model.device import choose_device, device_name, prepare_process

    prepare_process()
    from lmplay.runs.settings import Settings
    from lmplay.train.batches import TrainingFeed
    from lmplay.train.joined import Joined
    from lmplay.train.launch import MEETING
    from lmplay.train.loop import Trainer
    from lmplay.train.ranks import ALONE
    from lmplay.train.setup import set_up

    device = choose_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", MEETING: str(Path(folder) / "meeting")}
        sides = {"plain": ALONE, "one rank": Joined(device)}
        steps = {}
        for name, ranks in sides.items():
            settings = Settings(
                exp=args.exp or "gpt2ish:tiny",
                training_plan="quick",
                tokenizer="bytes",
                context_len=256,
                batch_size=args.batch_size,
                device=args.device,
                compile="off",
                cuda_graph="off",
                max_steps=10**6,
                out=folder,
                run_name=name.replace(" ", "-"),
            )
            trainer = Trainer(set_up(settings), ranks=ranks)
            phase = trainer.state.phases[0]
            feed = TrainingFeed(trainer.setup.experiment, phase.order, trainer.setup.data.tokenizer.eot, 0)

            def step(trainer: Trainer = trainer, phase: Any = phase, feed: TrainingFeed = feed) -> None:
                batch = trainer.next_batch(feed, phase)
                trainer.step(phase, batch, trainer.state.step)
                trainer._agree(batch)
                trainer.flush(phase)

            step()
            steps[name] = step
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        until = time.perf_counter() + 60 * args.minutes
        for number in range(args.rounds):
            if number > 1 and time.perf_counter() > until:
                break
            for name in list(steps)[:: 1 if number % 2 else -1]:
                begun = time.perf_counter()
                steps[name]()
                seconds[name].append(time.perf_counter() - begun)
    ratios = [one / plain for one, plain in zip(seconds["one rank"], seconds["plain"], strict=True)]
    medians = {name: statistics.median(of) for name, of in seconds.items()}
    return {
        "device": device_name(device),
        "rounds": len(ratios),
        "seconds": {name: round(median, 5) for name, median in medians.items()},
        "ratio_of_medians": round(medians["one rank"] / medians["plain"], 4),
        "ratio_of_rounds": round(statistics.median(ratios), 4),
        "quartiles": [round(q, 4) for q in statistics.quantiles(ratios, n=4)[::2]],
    }


def scaling(args: argparse.Namespace) -> dict[str, Any]:
    """Return tokens per second with one device and with N, and how many times as fast that is."""
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if args.device != "cpu" and there < args.devices:
        sys.exit(f"devices.py: torch sees {there} CUDA devices here, and {args.devices} are asked for")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for n in (1, args.devices):
            flags = ["--exp", args.exp or "gpt2ish:12l", "--training-plan", "quick", "--device", args.device]
            flags += ["--batch-size", str(args.batch_size), "--max-steps", str(args.steps), "--out", folder]
            flags += ["--no-amp" if args.device == "cpu" else "--amp", "--validation-tokens", "1000"]
            flags += ["--run-name", f"n{n}", "--devices", str(n), "--validation-interval", str(10**6)]
            subprocess.run([sys.executable, "-m", "lmplay.cli.trainer", *flags], check=True)
            with open(Path(folder) / f"n{n}" / "train.csv", newline="", encoding="utf-8") as table:
                speeds = [float(row["tokens_per_second"]) for row in csv.DictReader(table)]
            found[n] = statistics.median(speeds[len(speeds) // 2 :])
    return {"tokens_per_second": found, "times": round(found[args.devices] / found[1], 3)}


if __name__ == "__main__":
    main()
