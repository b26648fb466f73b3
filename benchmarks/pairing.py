"""How many seeds pairing saves: the spread of the difference between two models, measured on real trainings.

    python benchmarks/pairing.py [--seeds 8] [--steps 120] [--out FOLDER] [--json FILE]

Trains small models on the plan `quick` under several seeds: the baseline, two copies with one change each (one that
creates no parameter, one that creates a module before all others) and llama2. Reads three designs of a comparison from
the same runs:

  unpaired         the arms have different seeds: other initial values, other order of the data
  same data        the arms share the seed: same data in the same order, initial values as each model's code draws them
  same data, init  and parameters of one name start from the same values (--same-init, what lmp_compare does)

Reports the standard deviation, over seeds, of the difference in validation loss, and what one seed of a design is
worth in unpaired seeds: the ratio of the variances, for an interval as wide. The middle 90% of bootstrap samples of
the seeds stand in brackets. Also says how wide the documents make the interval, paired by document and not. A run that
is there is not trained again.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

BASELINE = "gpt2ish"
CHANGES = {  # name: (text in the baseline's code, what stands there instead)
    "relu_squared": ("self.down(self.gelu(self.up(x)))", "self.down(F.relu(self.up(x)).square())"),
    "early_mix": (
        "        self.config = config\n        self.tokens_embedding",
        "        self.config = config\n        self.mix = nn.Linear(config.n_embd, config.n_embd)\n"
        "        self.tokens_embedding",
    ),
}
EARLY_MIX = (
    "x = self.dropout(self.tokens_embedding(tokens) + self.positions_embedding.weight[past:end])",
    "x = self.dropout(self.tokens_embedding(tokens) + self.positions_embedding.weight[past:end])\n"
    "        x = x + self.mix(x)",
)
MODEL = ("n_layer=2", "n_embd=64", "n_head=2")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seeds", type=int, default=8)
    p.add_argument("--steps", type=int, default=120)
    p.add_argument("--out", type=Path, default=Path("/tmp/lmplay_pairing"), help="where the runs are kept")
    p.add_argument("--json", type=Path, help="write the figures there")
    args = p.parse_args()
    make_experiments(args.out / "experiments")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models are small, and the same bits are wanted every time
    os.environ["LMPLAY_EXPERIMENTS"] = str((args.out / "experiments").resolve())

    from lmplay.compare.compare import ComparisonRequest, run_comparison
    from lmplay.compare.tuning import axes_of
    from lmplay.runs.settings import Settings

    settings = Settings(
        training_plan="quick",
        set=MODEL,
        context_len=64,
        batch_size=16,
        max_steps=args.steps,
        validation_tokens=50_000,
        out=str(args.out / "runs"),
        device="cpu",
    )
    candidates = (*(f"{name}:tiny" for name in CHANGES), "llama2:tiny")
    found = {}
    for same_init in (False, True):
        request = ComparisonRequest(
            f"{BASELINE}:tiny", candidates, settings_with(settings, same_init), args.seeds, tune=axes_of(["lr=2e-3"])
        )
        found[same_init] = run_comparison(request)
    result = {"seeds": args.seeds, "steps": args.steps, "model": MODEL, "candidates": {}}
    names = [c.partition(":")[0] for c in candidates]
    losses = {
        same: {
            "baseline": final_losses(c.baseline.runs),
            **{n: final_losses(one.arm.runs) for n, one in zip(names, c.candidates)},
        }
        for same, c in found.items()
    }
    for name in [*names, "pooled"]:
        result["candidates"][name] = spreads(losses, names if name == "pooled" else [name])
    result["documents"] = documents(found[True])
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


def settings_with(settings, same_init: bool):
    import dataclasses

    return dataclasses.replace(settings, same_init=same_init)


def make_experiments(folder: Path) -> None:
    source = (Path(__file__).resolve().parent.parent / "experiments" / BASELINE / "model.py").read_text(
        encoding="utf-8"
    )
    for name, change in CHANGES.items():
        text = source
        for old, new in [change] + [EARLY_MIX] * (name == "early_mix"):
            if text.count(old) != 1:
                raise SystemExit(f"{BASELINE}/model.py has changed: {name} no longer applies")
            text = text.replace(old, new)
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "model.py").write_text(text, encoding="utf-8")


def final_losses(runs) -> np.ndarray:
    """(seeds,)"""
    return np.array([run.number("progress", "validation_loss") for run in runs])


def spreads(losses: dict, names: list[str]) -> dict:
    """Of each design: the standard deviation over seeds, and what one of its seeds is worth in unpaired ones."""

    def variances(pick: np.ndarray) -> np.ndarray:
        rows = []
        for name in names:
            own, same = ({k: losses[init][k][pick] for k in ("baseline", name)} for init in (False, True))
            rows.append(
                [
                    own["baseline"].var(ddof=1) + own[name].var(ddof=1),
                    (own[name] - own["baseline"]).var(ddof=1),
                    (same[name] - same["baseline"]).var(ddof=1),
                ]
            )
        return np.mean(rows, axis=0)

    n = len(losses[True]["baseline"])
    found = variances(np.arange(n))
    random = np.random.default_rng(0)
    picks = [pick for pick in random.integers(0, n, (2000, n)) if len(set(pick)) > 1]
    worth = np.array([v[0] / v[1:] for v in map(variances, picks)])
    low, high = np.quantile(worth, (0.05, 0.95), axis=0)
    designs = ("unpaired", "same data", "same data, init")
    return {
        design: {"sd": round(float(found[k] ** 0.5), 6)}
        | (
            {
                "one_seed_is_worth": round(float(found[0] / found[k]), 2),
                "range": [round(float(x), 2) for x in (low[k - 1], high[k - 1])],
            }
            if k
            else {}
        )
        for k, design in enumerate(designs)
    }


def documents(comparison) -> dict:
    """Return the documents' part of the standard error of the difference, paired by document and unpaired."""
    from lmplay.runs.validations import read_validations
    from lmplay.stats.verdict import PairedLosses, compare

    found = {}
    for one in comparison.candidates:
        sides = [
            np.array([read_validations(run).trajectory.losses[-1] for run in side.runs])
            for side in (one.arm, comparison.baseline)
        ]
        tokens = read_validations(one.arm.runs[0]).tokens
        seeds = tuple(one.arm.seeds)
        levels = [compare(PairedLosses(side, np.zeros_like(side), tokens, seeds)).document_se for side in sides]
        found[one.arm.label] = {
            "paired": round(one.verdict.document_se, 5),
            "unpaired": round(float(np.hypot(*levels)), 5),
        }
    return found


if __name__ == "__main__":
    main()
