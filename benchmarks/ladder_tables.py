"""Do the intervals of a ladder hold what was planted, and how often is a planted trend found?

    python benchmarks/ladder_tables.py [--repetitions 1000] [--json FILE]

Draws ladders of a known law (L_inf 1, alpha 0.15; the baseline at four sizes, both arms at the upper three) with known
multipliers. Coverage: how often the interval of M at each rung, of the pooled M and of the slope hold the truth; a
right 95% interval gives at least 936 of 1,000 with probability 0.98. `nats`: the spread between seeds is 0.03, 0.02 and
0.015 nats at the rungs, so it is not the same in units of ln M, as the pooling takes it to be. `dearer`: the candidate
takes 1.3 times the FLOPs. Power: the words that a gain of 1.2 gets which vanishes, halves, doubles or stays, for
several numbers of seeds at the rungs; spread 0.03, 0.02, 0.015 nats.
"""

import argparse
import collections
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from lmplay.errors import UserError  # noqa: E402
from lmplay.stats.ladder import judge_ladder  # noqa: E402
from support.planted_ladder import Plan, draw  # noqa: E402

NATS = (0.03, 0.02, 0.015)
GAIN = math.log(1.2)
COVERAGE = {
    "holds": Plan((GAIN, GAIN, GAIN)),
    "shrinks": Plan((0.26, 0.13, 0.0)),
    "grows": Plan((0.0, 0.13, 0.26)),
    "nothing": Plan((0.0, 0.0, 0.0)),
    "dearer": Plan((GAIN, GAIN, GAIN), ratio=1.3),
    "nats": Plan((GAIN, GAIN, GAIN), sds=NATS),
}
TRENDS = {
    "vanishes": (GAIN, GAIN / 2, 0.0),
    "halves": (GAIN, 0.75 * GAIN, GAIN / 2),
    "stays": (GAIN, GAIN, GAIN),
    "doubles": (GAIN / 2, 0.75 * GAIN, GAIN),
}
SEEDS = ((2, 2, 2), (3, 3, 3), (6, 2, 3), (8, 2, 4))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--repetitions", type=int, default=1000, help="ladders for each line (default: 1000)")
    p.add_argument("--json", metavar="FILE", help="write the counts there, too")
    args = p.parse_args()
    n = args.repetitions
    found = {"repetitions": n, "coverage": [], "power": []}
    print(f"of {n} ladders, the intervals that hold the truth\n| truth | seeds | rungs | pooled | slope |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, plan in COVERAGE.items():
        for seeds in (2, 3, 5):
            counts = coverage(replace(plan, seeds=(seeds,) * 4), n)
            found["coverage"].append({"truth": name, "seeds": seeds, "held": counts})
            *rungs, pooled, slope = counts
            print(f"| {name} | {seeds} | {' '.join(map(str, rungs))} | {pooled} | {slope} |", flush=True)
    words = ("shrinks", "holds", "grows", "not decided")
    print(f"\nwords of {n} ladders\n| gain of 1.2 | seeds | {' | '.join(words)} | better |")
    print("| --- |" + " ---: |" * (len(words) + 2))
    for name, truth in TRENDS.items():
        for seeds in SEEDS:
            said, better = power(Plan(truth, seeds=(2, *seeds), sds=NATS), n)
            found["power"].append({"truth": name, "seeds": seeds, **said, "better": better})
            cells = [f"{said[word] / n:.2f}" for word in words]
            print(f"| {name} | {' '.join(map(str, seeds))} | {' | '.join(cells)} | {better / n:.2f} |", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")


def ladders(plan: Plan, repetitions: int):
    """Yield the judged ladders; None where the baseline gives no ruler."""
    for number in range(repetitions):
        try:
            yield judge_ladder(*draw(np.random.default_rng([number, len(plan.truth), plan.seeds[1]]), plan))
        except UserError:
            yield None


def coverage(plan: Plan, repetitions: int) -> list[int]:
    """Return how many intervals of each rung, of the pooled M and of the slope hold the truth."""
    held, truth = np.zeros(len(plan.truth) + 2, dtype=int), np.array(plan.truth)
    for ladder in ladders(plan, repetitions):
        if ladder is None:
            continue
        planted = [*truth, ladder.parts.mean() @ truth, ladder.parts.slope() @ truth]
        intervals = [*(one.flops for one in ladder.rungs), ladder.pooled, ladder.trend]
        held += [one.low <= value <= one.high for one, value in zip(intervals, planted, strict=True)]
    return held.tolist()


def power(plan: Plan, repetitions: int) -> tuple[collections.Counter, int]:
    """Return how often each word of the trend is said, and how often "better"."""
    said, better = collections.Counter(), 0
    for ladder in ladders(plan, repetitions):
        if ladder is not None:
            said[ladder.trend_word] += 1
            better += ladder.word == "better"
    return said, better


if __name__ == "__main__":
    main()
