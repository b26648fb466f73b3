"""Time and peak memory of lmp_plotstats on many long runs: python benchmarks/plotstats.py [--runs 100] [--rows 100000]

Makes the runs in a temporary folder (17 MB each for 100,000 rows) and removes them afterwards. Aim: 100 runs of
100,000 rows in less than 15 seconds and 1 GiB.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas


def make_run(folder: Path, rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    step = np.arange(1, rows + 1)
    tokens = step * 12_800
    loss = 2.5 + 0.001 * seed + 30 * (tokens + 2e4) ** -0.2 + random.normal(0, 0.06, rows)
    table = pandas.DataFrame(
        {
            "plan_step": "main",
            "step": step,
            "samples": 50 * step,
            "tokens": tokens,
            "bytes": tokens * 4,
            "flops": tokens * 7.2345e7,
            "seconds": step * 0.2345678,
            "loss": loss,
            "accuracy": 1 / loss,
            "bits_per_byte": loss / 4 / np.log(2),
            "learning_rate": 1e-3 / loss,
            "gradient_norm": np.abs(random.normal(1, 0.2, rows)),
            "tokens_per_second": random.normal(54_000, 99, rows),
        }
    )
    folder.mkdir(parents=True)
    table.to_csv(folder / "train.csv", index=False)
    table.iloc[999::1000, :10].assign(validation_tokens=10**6, validation_documents=900).to_csv(
        folder / "validate.csv", index=False
    )
    (folder / "run.json").write_text(
        json.dumps(
            {
                "format": 1,
                "run": folder.name,
                "status": "finished",
                "experiment": {"name": "gpt2ish" if seed == 0 else f"idea_{seed % 9}", "variant": "tiny"},
                "settings": {"seed": seed},
                "plan": {"name": "made", "hash": "p"},
                "data": {"hash": "d"},
                "tokenizer": {"fingerprint": "t"},
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rows", type=int, default=100_000)
    arguments, further = parser.parse_known_args()  # what is not known here goes to lmp_plotstats
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "run_000"
        for i in range(arguments.runs):
            # writing 100,000 rows takes seconds: a few different ones do for all
            run = Path(folder) / f"run_{i:03d}"
            if i < 4:
                make_run(run, arguments.rows, i)
                continue
            run.mkdir()
            for name in ("train.csv", "validate.csv"):
                os.link(Path(folder) / f"run_{i % 4:03d}" / name, run / name)
            info = json.loads((first / "run.json").read_text())
            (run / "run.json").write_text(
                json.dumps(
                    {
                        **info,
                        "run": run.name,
                        "experiment": {"name": f"idea_{i % 9}", "variant": "tiny"},
                        "settings": {"seed": i},
                    }
                )
            )
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "lmplay.cli.plotstats", folder, *further], check=True, stdout=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    print(
        f"{arguments.runs} runs of {arguments.rows:,} rows, {os.cpu_count()} cores: {seconds:.1f} s "
        f"({used.ru_utime + used.ru_stime:.1f} s of processor time), peak {peak:.0f} MiB"
    )


if __name__ == "__main__":
    main()
