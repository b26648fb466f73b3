"""Are the verdicts of lmp_compare right? Counts on real trainings how often it calls a model different from itself, and
how often it finds a real difference.

    python benchmarks/calibration.py [--seeds 60] [--out FOLDER] [--json FILE]

Trains small models on the text of the plan `quick` with a vocabulary of 1024, each under the same many seeds, in the
way of lmp_compare (same data in the same order, same initial values for parameters of one name): the baseline;
`renamed`, the same model with its modules renamed, so that only the data are shared with the baseline; and three
models whose feed-forward layers are narrower than the baseline's, so that they are worse by something near 0.5%, 1%
and 2% of the loss. The true difference is the mean over all seeds, with its standard error.

From this pool it draws comparisons of n seeds at random, without a seed twice in one comparison. lmplay.stats.verdict
judges them as lmp_compare does, without earlier runs to lean on:

  A/A, paired      renamed against the baseline: the true difference is 0, the data are shared
  A/A, unpaired    the baseline against itself under other seeds (what lmp_compare --aa does)
  power            each narrower model against the baseline: the share called worse, and the share called better

At least 200 comparisons for each n. Comparisons drawn from one pool overlap, so the printed binomial error (95%,
Wilson) is a lower bound; `disjoint` counts the same on comparisons that share no run, as many as the pool holds.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import scipy.stats

BASELINE = "gpt2ish"
MODEL = ("n_layer=2", "n_embd=64", "n_head=2")
RENAMED = {
    "self.blocks": "self.layers",
    "tokens_embedding": "token_table",
    "positions_embedding": "position_table",
    "self.norm": "self.last_norm",
}
WIDTHS = {
    "narrow_a": 184,
    "narrow_b": 148,
    "narrow_c": 110,
}  # of the feed-forward layer, where the baseline's is 4 x 64 = 256
SEEDS = (2, 3, 5, 8)
DRAWS = 400


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=60, help="runs of each model")
    p.add_argument("--steps", type=int, default=120)
    p.add_argument(
        "--out",
        type=Path,
        default=Path("/tmp/lmplay_calibration"),
        help="where the runs are kept; one that is there is not trained again",
    )
    p.add_argument("--json", type=Path, help="write the figures there")
    args = p.parse_args()
    if args.seeds < 2 * max(SEEDS):
        p.error(f"--seeds must be at least {2 * max(SEEDS)}")
    make_experiments(args.out / "experiments")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are small
    os.environ["LMPLAY_EXPERIMENTS"] = str((args.out / "experiments").resolve())

    from lmplay.compare.compare import ComparisonRequest, run_comparison
    from lmplay.compare.tuning import axes_of
    from lmplay.runs.settings import Settings

    settings = Settings(
        training_plan=str(make_plan(args.out)),
        set=MODEL,
        context_len=64,
        batch_size=16,
        max_steps=args.steps,
        validation_tokens=50_000,
        validation_interval=args.steps,
        out=str(args.out / "runs"),
        device="cpu",
        same_init=True,
    )
    names = ("renamed", *WIDTHS)
    found = run_comparison(
        ComparisonRequest(
            f"{BASELINE}:tiny",
            tuple(f"{name}:tiny" for name in names),
            settings,
            args.seeds,
            axes_of(["lr=2e-3"]),
            any_interval=False,
        )
    )
    result = {"seeds": args.seeds, "steps": args.steps, "model": MODEL, "draws": DRAWS, **figures(found, names)}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def make_plan(folder: Path) -> Path:
    """The plan `quick` with a smaller vocabulary, so that small models spend less of their time on the head."""
    plan = json.loads((Path(__file__).resolve().parent.parent / "plans" / "quick.json").read_text(encoding="utf-8"))
    plan["tokenizer"]["vocab_size"] = 1024
    path = folder / "small.json"
    path.write_text(json.dumps(plan), encoding="utf-8")
    return path


def make_experiments(folder: Path) -> None:
    source = (Path(__file__).resolve().parent.parent / "experiments" / BASELINE / "model.py").read_text(
        encoding="utf-8"
    )
    texts = {"renamed": source} | {name: source for name in WIDTHS}
    for old, new in RENAMED.items():
        texts["renamed"] = texts["renamed"].replace(old, new)
    for name, width in WIDTHS.items():
        old = "width = int(config.mlp_ratio * config.n_embd)"
        if texts[name].count(old) != 1:
            raise SystemExit(f"{BASELINE}/model.py has changed: the narrower models can't be made from it")
        texts[name] = texts[name].replace(old, f"width = {width}")
    for name, text in texts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "model.py").write_text(text, encoding="utf-8")


def figures(found, names) -> dict:
    from lmplay.runs.validations import read_validations

    losses = {
        name: np.array([read_validations(run).trajectory.losses[-1] for run in side.runs])
        for name, side in zip(("baseline", *names), (found.baseline, *(one.arm for one in found.candidates)))
    }
    tokens = read_validations(found.baseline.runs[0]).tokens
    base = losses["baseline"]
    whole = {name: rows.sum(1) / tokens.sum() for name, rows in losses.items()}  # (seeds,) nats per token
    n = len(base)
    result = {
        "documents": int(len(tokens)),
        "baseline_loss": {"mean": mean(whole["baseline"]), "sd_between_seeds": sd(whole["baseline"])},
        "aa": {},
        "power": {},
    }
    random = np.random.default_rng(0)
    for count in SEEDS:
        sets = [random.choice(n, 2 * count, replace=False) for _ in range(DRAWS)]
        apart = np.split(random.permutation(n)[: n // count * count], n // count)
        twice = np.split(random.permutation(n)[: n // (2 * count) * 2 * count], n // (2 * count))
        result["aa"][count] = {
            "paired": tally(
                losses["renamed"], base, tokens, [(s[:count], s[:count]) for s in sets], [(s, s) for s in apart]
            ),
            "unpaired": tally(
                base, base, tokens, [(s[:count], s[count:]) for s in sets], [(s[:count], s[count:]) for s in twice]
            ),
        }
        for name in WIDTHS:
            true = whole[name] - whole["baseline"]
            row = result["power"].setdefault(
                name,
                {
                    "width": WIDTHS[name],
                    "true_difference": mean(true),
                    "standard_error": round(sd(true) / n**0.5, 5),
                    "percent_of_loss": round(100 * float(true.mean() / whole["baseline"].mean()), 2),
                    "sd_between_seeds": sd(true),
                    "found_with_seeds": {},
                },
            )
            row["found_with_seeds"][count] = tally(
                losses[name], base, tokens, [(s[:count], s[:count]) for s in sets], [(s, s) for s in apart]
            )
    return result


def tally(candidate, baseline, tokens, pairs, disjoint) -> dict:
    """How the verdicts on the drawn comparisons (indices of the candidate's seeds, of the baseline's) came out."""
    words = [judge(candidate[a], baseline[b], tokens) for a, b in pairs]
    alone = [judge(candidate[a], baseline[b], tokens) for a, b in disjoint]
    different = sum(word in ("better", "worse") for word in words)
    error = scipy.stats.binomtest(different, len(words)).proportion_ci(method="wilson")
    return {
        "better": words.count("better") / len(words),
        "worse": words.count("worse") / len(words),
        "different": different / len(words),
        "error": [round(float(x), 3) for x in error],
        "comparisons": len(words),
        "disjoint": {"different": sum(word in ("better", "worse") for word in alone), "comparisons": len(alone)},
    }


def judge(candidate, baseline, tokens) -> str:
    from lmplay.stats.verdict import PairedLosses, compare

    return compare(PairedLosses(candidate, baseline, tokens, tuple(range(len(candidate))))).word


def mean(x) -> float:
    return round(float(np.mean(x)), 5)


def sd(x) -> float:
    return round(float(np.std(x, ddof=1)), 5)


if __name__ == "__main__":
    main()
