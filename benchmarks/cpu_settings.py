"""What the settings of a process on a CPU are worth: kept memory, huge pages and the spin count of waiting threads.

    python benchmarks/cpu_settings.py [--rounds 9] [--seconds 0.7] [--json FILE]        (about 5 minutes)

`lmplay.model.device.prepare_process` makes all three settings. Each side is a process that trains with one of them
left out or another; they take turns, first on the machine as it is, then beside processes that keep half of the cores
busy. Given are tokens/s and the median and quartiles of each side's ratio to the first, which has all three. A setting
pays if the side without it is below 1. Precision is bfloat16 where this device multiplies matrices faster in it.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

SIDES: dict[str, dict[str, str]] = {
    "all three": {},
    "no huge pages": {"THP_MEM_ALLOC_ENABLE": "0"},
    "memory given back": {"LMPLAY_GIVE_BACK": "1"},
    "spin as OpenMP does": {"GOMP_SPINCOUNT": "300000"},  # its own default: libgomp, env.c
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "none": {"THP_MEM_ALLOC_ENABLE": "0", "LMPLAY_GIVE_BACK": "1", "GOMP_SPINCOUNT": "300000"},
}
SMALL = {"small": dict(rows=2, context=16, vocabulary=97)}
SHAPES = {
    "4 x 256, context 256, 16 rows, vocabulary 4096": dict(rows=16, context=256, vocabulary=4096),
    "4 x 256, context 64, 12 rows, vocabulary 257": dict(rows=12, context=64, vocabulary=257),
    "4 x 64, context 64, 12 rows, vocabulary 257": dict(rows=12, context=64, vocabulary=257, n_embd=64),
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=9, help="turns of each side (default: 9)")
    p.add_argument("--seconds", type=float, default=0.7, help="of a turn (default: 0.7)")
    p.add_argument("--small", action="store_true", help="shapes so small that they only show that the script runs")
    p.add_argument("--json", type=Path, help="write the results there")
    args = p.parse_args()
    found: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    for name, shape in (SMALL if args.small else SHAPES).items():
        found[name] = measured(shape, args.rounds, args.seconds)
        print(name, json.dumps(found[name], indent=1), flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measured(shape: dict[str, int], rounds: int, seconds: float) -> dict[str, Any]:
    """Return what each side trains in a second, on the machine as it is and on a busy one."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name, variables in SIDES.items():
        before = {key: os.environ.get(key) for key in variables}
        os.environ.update(variables)
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=_side, args=(theirs, shape), daemon=True))
        processes[-1].start()
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    for pipe in pipes.values():
        assert pipe.recv() == "ready"
    found = {"idle": _turns(pipes, rounds, seconds)}
    burning = [context.Process(target=_burn, daemon=True) for _ in range(max(1, (os.cpu_count() or 2) // 2))]
    for process in burning:
        process.start()
    time.sleep(1)  # they have started
    found["busy"] = _turns(pipes, rounds, seconds)
    for process in (*burning, *processes):
        process.terminate()
        process.join()
    return found


def _turns(pipes: dict[str, Any], rounds: int, seconds: float) -> dict[str, Any]:
    rates: dict[str, list[float]] = {name: [] for name in pipes}
    for number in range(rounds + 1):
        for name, pipe in pipes.items():
            pipe.send(seconds)
            rate = pipe.recv()
            if number:  # the first round warms up
                rates[name].append(rate)
    rows = {}
    for name, own in rates.items():
        ratios = sorted(a / b for a, b in zip(own, rates["all three"], strict=True))
        rows[name] = {
            "tokens_per_second": round(statistics.median(own)),
            "ratio": round(statistics.median(ratios), 3),
            "quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[-1 - len(ratios) // 4], 3)],
        }
    return rows


def _side(pipe: Any, shape: dict[str, int]) -> None:
    """Train for as many seconds as it is told, each time, and say how many tokens a second that made."""
    from several import alone, new_step

    from lmplay.model.device import prepare_process

    if os.environ.get("LMPLAY_GIVE_BACK"):
        platform.libc_ver = lambda *given, **more: ("", "")  # then nothing is told to the allocator
    prepare_process()
    side = alone(*new_step("cpu", "gpt2ish:tiny", 0, compiled=False, **shape), shape["rows"])
    for _ in range(3):
        side()
    pipe.send("ready")
    while True:
        seconds, steps, began = pipe.recv(), 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            side()
            steps += 1
        pipe.send(steps * shape["rows"] * shape["context"] / (time.perf_counter() - began))


def _burn() -> None:
    while True:
        sum(range(10**6))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]
    main()
