"""Trains the families again, each tuned, at the two lowest sizes of the ladder `laptop`: the top of RESULTS.md.

    python benchmarks/tuned_families.py --dry-run [--k 2]   what would be trained, in which order, and for how long
    python benchmarks/tuned_families.py --k 2 --minutes 60  train in that order, and stop in time
    python benchmarks/tuned_families.py --only attention_position modern_pldr:d2
    python benchmarks/tuned_families.py --third                with the third size for what is better at two

Data: the plan `packages`, vocabulary 2,048, context 128. Each arm gets the same grid of rates, that of its baseline's
optimizer, at 2 x 64 under seed 1000. Its best is carried up and judged under other seeds, with half of the carried rate
beside it at the top, as `lmp_compare --ladder` does (docs/ladder.md). The baselines are `gpt2ish` by its defaults and
`modern` by its recipe, which the candidates' copies share; each is trained once for all of its candidates.

After each family the figures go into benchmarks/results/tuned_families.json and experiments/RESULTS.md is written anew.
Ctrl-C and `--minutes` stop between two steps of a run; the same command goes on there, and trains nothing twice. `--k`
is the tokens for each parameter of the baseline's matrices and head (1, 2, 5 or 12; each has a table of its own).
"""

import argparse
import hashlib
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import families
from parts.ideas import IDEAS, LEFT_OUT, ON_GPT2ISH_FIRST, ON_GPT2ISH_THEN, ON_MODERN
from parts.tuned_page import TUNED, name_of

LADDERS = {2: "2x64,3x96", 3: "laptop"}
PAIRS = {2: (4, 2), 3: (4, 2, 2)}
BATCH_SIZE = 8  # so that short runs have hundreds of steps
GRIDS = {
    "gpt2ish:tiny": ("lr=0.003,0.006,0.012", "embedding_lr=1,4,16"),
    "modern:d2": ("lr=0.02,0.04,0.08", "embedding_lr=2,6,18"),
}


@dataclass(frozen=True)
class Pair:
    """A candidate and its baseline, each NAME:VARIANT."""

    candidate: str
    baseline: str


def all_pairs() -> list[Pair]:
    """Return what is trained, in its order."""
    rest = [name for name in IDEAS if name not in (*ON_GPT2ISH_FIRST, *ON_GPT2ISH_THEN, *LEFT_OUT)]
    on_gpt2ish = [[Pair(name, "gpt2ish:tiny") for name in names] for names in (ON_GPT2ISH_FIRST, ON_GPT2ISH_THEN, rest)]
    return [*on_gpt2ish[0], *(Pair(name, "modern:d2") for name in ON_MODERN), *on_gpt2ish[1], *on_gpt2ish[2]]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--k", type=float, default=5, help="tokens per parameter: 1, 2, 5 or 12 (default: 5)")
    p.add_argument("--minutes", type=float, help="stop after so many minutes (default: when all is trained)")
    p.add_argument("--only", nargs="+", metavar="NAME", default=[], help="only these experiments (or NAME:VARIANT)")
    p.add_argument("--third", action="store_true", help="train the third size for what is better at two")
    p.add_argument(
        "--extend", type=int, default=1, help="how often a grid grows where a best is at its edge (default: 1)"
    )
    p.add_argument("--jobs", type=int, default=2, help="runs that are trained side by side (default: 2)")
    p.add_argument("--plan", default="packages", help="plan, a name or a file (default: packages)")
    p.add_argument("--out", type=Path, default=Path("/tmp/lmplay_tuned"), help="where the runs are kept")
    p.add_argument("--dry-run", action="store_true", help="say what would be trained and how long it takes")
    p.add_argument("--page-only", action="store_true", help="write the page from the figures that are there")
    args = p.parse_args()
    pairs = [pair for pair in all_pairs() if not args.only or _named(pair, args.only)]
    known = {name for pair in all_pairs() for name in (pair.candidate, pair.candidate.partition(":")[0])}
    if unknown := set(args.only) - known:
        p.error(f"--only: there is no {', '.join(sorted(unknown))} here; there are {', '.join(sorted(known))}")
    if args.minutes is not None and not args.minutes > 0:
        p.error("--minutes must be more than 0")

    from lmplay.model.device import prepare_process

    prepare_process()
    found = json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.exists() else {}
    if args.third:
        pairs = [pair for pair in pairs if _row(found, args, pair).get("word") == "better"]
    if args.dry_run:
        estimate(pairs, args, found)
    elif not args.page_only:
        train(pairs, args, found)
    families.write_page()


def _named(pair: Pair, names: list[str]) -> bool:
    return bool({pair.candidate, pair.candidate.partition(":")[0]} & set(names))


def _row(found: dict, args: argparse.Namespace, pair: Pair) -> dict:
    return found.get(f"{args.k:g}", {}).get(name_of(pair.candidate, pair.baseline), {})


def climber_of(pair: Pair, args: argparse.Namespace, timeout: float | None = None):
    """Return the ladder of a pair. timeout: seconds. Raises UserError."""
    from lmplay.compare.compare import ComparisonRequest
    from lmplay.compare.ladder import Climber, LadderRequest
    from lmplay.compare.tuning import axes_of
    from lmplay.runs.settings import Settings

    sizes = 3 if args.third else 2
    settings = Settings(
        training_plan=args.plan,
        tokenizer="bpe:2048",
        context_len=128,
        batch_size=BATCH_SIZE,
        device="cpu",
        same_init=True,
        out=str(args.out),
    )
    request = ComparisonRequest(
        pair.baseline,
        (pair.candidate,),
        settings,
        tune=axes_of(list(GRIDS[pair.baseline])),
        extend=args.extend,
        timeout=timeout,
        on=f"processes:{args.jobs}",
    )
    climber = Climber(LadderRequest(request, LADDERS[sizes], tokens_per_parameter=args.k))
    climber.pairs = PAIRS[sizes]  # most seeds where they are cheap: the noise is pooled over the sizes
    return climber


def key_of(climber, pair: Pair) -> str:
    """Return what a row must share to count as there: code, data, sizes, grids."""
    codes = [arm.variant.code_hash for arm in climber.arms]
    what = [*codes, climber.index.data.hash, climber.request.ladder, *GRIDS[pair.baseline], list(climber.pairs)]
    return hashlib.sha256(json.dumps([*what, climber.per_parameter, climber.asked.extend]).encode()).hexdigest()[:16]


def train(pairs: list[Pair], args: argparse.Namespace, found: dict) -> None:
    """Train each pair and write its row and the page. Raises Stopped when the time is over."""
    from lmplay.compare.jobs import Stopped
    from lmplay.errors import UserError

    deadline = time.monotonic() + 60 * args.minutes if args.minutes else None
    rows = found.setdefault(f"{args.k:g}", {})
    for number, pair in enumerate(pairs, 1):
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise Stopped
        name, began = name_of(pair.candidate, pair.baseline), time.monotonic()
        try:
            climber = climber_of(pair, args, left)
            key = key_of(climber, pair)
            if rows.get(name, {}).get("key") == key:
                continue
            print(f"{number} of {len(pairs)}: {name}", flush=True)
            row = row_of(climber, climber.climb()[0])
        except UserError as error:
            row, key = {"why_none": str(error)}, ""
        rows[name] = row | {"key": key}
        TUNED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        families.write_page()
        print(f"{name}: {row.get('word') or row['why_none']}, {(time.monotonic() - began) / 60:.1f} min", flush=True)


def row_of(climber, ladder) -> dict:
    """Return the figures of a ladder that is climbed, for the file."""
    from lmplay.report.ladder_report import as_object

    row = as_object([ladder])["ladders"][0]
    for one, rung, candidate in zip(row["rungs"], climber.rungs, ladder.candidates, strict=True):
        del one["verdict_at_rung"]
        ours, theirs = (
            climber.count(arm, rung.size).all_parameters for arm in (climber.candidates[0], climber.baseline)
        )
        one |= {"all_parameters": ours, "baseline_parameters": theirs}
        if candidate.pairs:
            run = candidate.pairs[0][0]
            one["deployed"] = families.deployed(run)
            row |= {"device": run.get("device", "name"), "torch": str(run.get("versions", "torch")).partition("+")[0]}
    return row


def estimate(pairs: list[Pair], args: argparse.Namespace, found: dict) -> None:
    """Print the minutes of each pair whose row is not there, by a few timed steps or by runs that are."""
    import torch

    from lmplay.errors import UserError
    from lmplay.machine import cores

    torch.set_num_threads(max(1, cores() // args.jobs))
    total, seen = 0.0, set()
    for pair in pairs:
        name = name_of(pair.candidate, pair.baseline)
        try:
            climber = climber_of(pair, args)
            if _row(found, args, pair).get("key") == key_of(climber, pair):
                print(f"{name}: is there")
                continue
            arms = [arm for arm in climber.arms if arm.label not in seen]
            minutes = sum(_minutes(climber, arm) for arm in arms) / args.jobs
        except UserError as error:
            print(f"{name}: {error}")
            continue
        seen |= {climber.baseline.label}
        total += minutes
        first = f", {climber.baseline.label} included" if len(arms) > 1 else ""
        print(f"{name}: about {minutes:.0f} min{first}; {total:.0f} min so far", flush=True)
    print(f"about {total:.0f} minutes in all, {args.jobs} runs side by side, without extensions of the grids")


def _minutes(climber, arm) -> float:
    """Return the minutes of an arm's runs, one after another."""
    from lmplay.compare.ladder import BELOW_SEEDS
    from lmplay.compare.rungs import rung_settings
    from lmplay.compare.sizes_measured import known_pace, measured_pace
    from lmplay.compare.tuning import points

    def of(rung) -> float:
        settings = rung_settings(climber.settings, rung)
        known = known_pace(climber.index, arm.variant, settings)
        pace = known or OPTIMIZER * measured_pace(climber.index, arm.variant, settings)
        return (STARTING + rung.tokens * pace) / 60

    times = [of(rung) for rung in climber.rungs]
    below = BELOW_SEEDS * of(climber.below) if arm is climber.baseline else 0.0
    judged = sum(n * minutes for n, minutes in zip(climber.pairs, times, strict=True))
    return len(points(climber.tune)) * times[0] + judged + 2 * times[-1] + below


STARTING = 6.0  # seconds that a run takes before its first step and for its files
OPTIMIZER = 1.2  # times the forward and the backward pass: what the optimizer and validations add


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from lmplay.compare.jobs import Stopped
    from lmplay.errors import UserError

    try:
        main()
    except (KeyboardInterrupt, Stopped):
        families.write_page()
        sys.exit("stopped; the same command goes on")
    except UserError as error:
        print(f"tuned_families.py: {error}", file=sys.stderr)
        sys.exit(2)
