"""Are the multipliers of a ladder right? Counts on real trainings how often their intervals hold M = 1.

    python benchmarks/ladder_calibration.py [--seeds 48] [--out FOLDER] [--json FILE]

Trains the baseline and `renamed`, the same model with its modules renamed, so that only the data are shared, under the
same 48 seeds at three micro rungs (2 x 32, 2 x 48, 3 x 64; the text of the plan `quick`, vocabulary 1,024, context 64).
The true M is 1 at every rung, and the true slope 0. From this pool it draws 400 ladders of 2, 3 and 5 seeds, each rung
by itself, and counts how often the intervals of M at each rung, of the pooled M and of the slope hold the truth: each
must in at least 370. What is trained is kept in --out, so the same command goes on where it was stopped. `--only-judge`
takes the seeds that are there.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from calibration import RENAMED, make_plan

SIZES = ("2x32", "2x48", "3x64")
STEPS = (120, 180, 300)
SEEDS = (2, 3, 5)
DRAWS = 400
BASELINE = "gpt2ish:tiny"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=48, help="runs of each arm at each rung (default: 48)")
    p.add_argument("--out", type=Path, default=Path("gpt_out/ladder_calibration"), help="folder of the pool")
    p.add_argument("--json", type=Path, help="write the counts there, too")
    p.add_argument("--only-judge", action="store_true", help="train nothing")
    args = p.parse_args()
    if args.seeds < max(SEEDS):
        p.error(f"--seeds must be at least {max(SEEDS)}")
    make_renamed(args.out / "experiments")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are small
    os.environ["LMPLAY_EXPERIMENTS"] = str((args.out / "experiments").resolve())
    plan = str(make_plan(args.out))
    pool = [rung_pool(size, steps, args, plan) for size, steps in zip(SIZES, STEPS, strict=True)]
    found = {"seeds": min(len(candidate) for candidate, *_ in pool), "draws": DRAWS, "held": {}}
    print(f"of {DRAWS} ladders, the intervals that hold the truth: {', '.join(SIZES)}, pooled, slope, no law")
    for n in SEEDS:
        found["held"][n] = counts = count(pool, n)
        print(f"{n} seeds: {' '.join(map(str, counts))}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def make_renamed(folder: Path) -> None:
    """Write the copy of the baseline with other names of modules."""
    source = Path(__file__).resolve().parent.parent / "experiments" / "gpt2ish" / "model.py"
    text = source.read_text(encoding="utf-8")
    for old, new in RENAMED.items():
        text = text.replace(old, new)
    (folder / "renamed").mkdir(parents=True, exist_ok=True)
    (folder / "renamed" / "model.py").write_text(text, encoding="utf-8")


def rung_pool(size: str, steps: int, args: argparse.Namespace, plan: str):
    """Train what is missing of a rung; return losses (S, D) of both arms, tokens (D,), and the FLOPs of a run."""
    from lmplay.compare.compare import Comparer
    from lmplay.compare.request import ComparisonRequest
    from lmplay.compare.rungs import size_of
    from lmplay.compare.tuning import axes_of
    from lmplay.runs.settings import Settings
    from lmplay.runs.validations import read_validations

    settings = Settings(
        training_plan=plan,
        set=size_of(size).fields,
        context_len=64,
        batch_size=16,
        max_steps=steps,
        validation_tokens=50_000,
        validation_interval=steps,
        out=str(args.out / "runs"),
        device="cpu",
        same_init=True,
    )
    request = ComparisonRequest(
        BASELINE, ("renamed:tiny",), settings, args.seeds, axes_of(["lr=4e-3"]), any_interval=False
    )
    comparer = Comparer(request)
    if not args.only_judge:
        comparer.train([job for pair in range(args.seeds) for job in comparer.jobs(pair, comparer.candidates)])
    both = []
    for pair in range(args.seeds):
        found = [job.find() for job in comparer.jobs(pair, comparer.candidates)]
        if all(match and match.state == "finished" for match in found):
            both.append([read_validations(match.run) for match in found])
    if len(both) < max(SEEDS):
        raise SystemExit(f"{size}: only {len(both)} seeds are there")
    base, ours = (np.stack([pair[k].trajectory.losses[-1] for pair in both]) for k in (0, 1))
    return ours, base, both[0][0].tokens, both[0][0].trajectory.flops[-1], both[0][1].trajectory.flops[-1]


def count(pool, n: int) -> list[int]:
    """Return how many of the ladders hold the truth at each rung, over all and in the slope, and how many fail."""
    from lmplay.errors import UserError
    from lmplay.stats.ladder import judge_ladder
    from lmplay.stats.multipliers import Rung
    from lmplay.stats.verdict import PairedLosses

    random, held, failed = np.random.default_rng(n), np.zeros(len(pool) + 2, dtype=int), 0
    for _ in range(DRAWS):
        rungs = []
        for name, (ours, base, tokens, base_flops, our_flops) in zip(SIZES, pool, strict=True):
            rows = random.choice(len(ours), n, replace=False)
            losses = PairedLosses(ours[rows], base[rows], tokens, tuple(map(int, rows)))
            rungs.append(Rung(name, losses, float(base_flops), float(our_flops)))
        try:
            ladder = judge_ladder(rungs)
        except UserError:
            failed += 1
            continue
        intervals = [*(one.flops for one in ladder.rungs), ladder.pooled, ladder.trend]
        held += [one.low <= 0 <= one.high for one in intervals]
    return [*held.tolist(), failed]


if __name__ == "__main__":
    main()
