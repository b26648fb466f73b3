"""Answers two questions by edited copies of experiments: why normed values lose, and whether Muon wants q, k, v split.

    python benchmarks/edited_copies.py norm [--dry-run] [--minutes 30]
    python benchmarks/edited_copies.py qkv [--dry-run] [--minutes 60]

norm   attention_norm was claimed to gain 0.06 nats and lost 0.26 here. Its values start at a scale of 1, those of
       gpt2ish at 0.02 sqrt(n_embd): 0.23 at a width of 128. Against gpt2ish: the experiment as it is; with a gain that
       starts at gpt2ish's scale, learned or kept there; with a gain of 1 that is kept. All under `--recipe none`.
qkv    gpt2ish under Muon (its tuned recipe): queries, keys and values orthogonalized as one matrix, or each by itself
       (`row_blocks`), each arm at its own best of three rates, chosen and judged on different parts of the data.

The copies are written below --out. What is trained is kept there, so the same command goes on where it was stopped.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VALUES = "        self.values_norm = nn.LayerNorm(width) if normed and config.norm_values else nn.Identity()\n"
GAIN = """        if normed and config.norm_values:
            nn.init.constant_(self.values_norm.weight, 0.02 * config.n_embd**0.5 if config.small else 1.0)
            self.values_norm.weight.requires_grad_(config.learned)
"""
FIELDS = "    norm_values: bool = True\n"
QKV = "        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)\n"
FIRST = "variants = {\n"
KINDS = ("small", "small_kept", "kept")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("norm", "qkv"))
    p.add_argument("--layers", type=int, help="of the model (default: 2, for qkv 4)")
    p.add_argument("--width", type=int, help="of the model, heads of 64 (default: 128, for qkv 256)")
    p.add_argument("--tokens", type=int, default=400_000, help="of training, from `quick` (default: 400,000)")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--jobs", type=int, default=2, help="runs that are trained side by side (default: 2)")
    p.add_argument("--minutes", type=float, help="stop after so many minutes")
    p.add_argument("--out", type=Path, default=Path("/tmp/lmplay_edited"), help="where copies and runs are kept")
    p.add_argument("--json", type=Path, help="write the verdicts there")
    p.add_argument("--dry-run", action="store_true", help="say how long it takes, and train nothing")
    args = p.parse_args()
    write_copies(args.out / "experiments")
    os.environ["LMPLAY_EXPERIMENTS"] = str((args.out / "experiments").resolve())

    from lmplay.compare.compare import Comparer, run_comparison
    from lmplay.report.as_json import of_comparison
    from lmplay.report.comparison import as_text

    request = request_of(args)
    if args.dry_run:
        runs = [run for run in Comparer(request).outlook().runs if run.state in ("begun", "missing")]
        minutes = len(runs) * seconds_of_a_run(request) / 60
        print(f"{len(runs)} runs are missing: about {minutes:.0f} minutes, one after another")
        return
    found = run_comparison(request)
    print(as_text(found))
    if args.json:
        args.json.write_text(json.dumps(of_comparison(found), indent=1) + "\n", encoding="utf-8")


def write_copies(folder: Path) -> None:
    """Write the edited copies. Ends the program where a source is not what is edited here."""
    sources = {
        name: (ROOT / "experiments" / name / "model.py").read_text("utf-8") for name in ("attention_norm", "gpt2ish")
    }
    norm, gpt2ish = sources["attention_norm"], sources["gpt2ish"]
    shape = "n_layer=4, n_head=4, n_embd=256, max_len=256"
    if any(text.count(part) != 1 for text, part in ((norm, VALUES), (norm, FIELDS), (norm, FIRST), (gpt2ish, QKV))):
        sys.exit("edited_copies.py: the experiments have changed, and so must the edits")
    norm = norm.replace(FIELDS, f"{FIELDS}    small: bool = False\n    learned: bool = True\n")
    norm = norm.replace(VALUES, VALUES + GAIN)
    kinds = {"small": "small=True", "small_kept": "small=True, learned=False", "kept": "learned=False"}
    norm = norm.replace(FIRST, FIRST + "".join(f'    "{kind}": dict({shape}, {kinds[kind]}),\n' for kind in KINDS))
    gpt2ish = gpt2ish.replace("parent = None", 'parent = "gpt2ish"')  # whose tuned recipe it takes
    for name, text in (
        ("norm_scale", norm),
        ("split_qkv", gpt2ish.replace(QKV, f"{QKV}        self.qkv.row_blocks = 3\n")),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "model.py").write_text(text, encoding="utf-8")


def request_of(args: argparse.Namespace):
    """Return the comparison that answers the question."""
    from lmplay.compare.compare import ComparisonRequest
    from lmplay.compare.tuning import axes_of
    from lmplay.runs.settings import Settings

    norm = args.what == "norm"
    layers, width = args.layers or (2 if norm else 4), args.width or (128 if norm else 256)
    settings = Settings(
        training_plan="quick",
        set=(f"n_layer={layers}", f"n_embd={width}", f"n_head={max(1, width // 64)}"),
        context_len=128,
        batch_size=16,
        max_tokens=args.tokens,
        recipe="none" if norm else "tuned",
        same_init=True,
        device="cpu",
        out=str(args.out / "runs"),
    )
    return ComparisonRequest(
        "gpt2ish:tiny",
        ("attention_norm:tiny", *(f"norm_scale:{kind}" for kind in KINDS)) if norm else ("split_qkv:tiny",),
        settings,
        seeds=args.seeds,
        tune=() if norm else axes_of(["lr=0.006,0.01,0.017"]),
        timeout=60 * args.minutes if args.minutes else None,
        on=f"processes:{args.jobs}",
    )


def seconds_of_a_run(request) -> float:
    """Return about how long a run of the baseline takes, by a few timed steps."""
    from lmplay.compare.jobs import RunIndex
    from lmplay.compare.sizes_measured import measured_pace
    from lmplay.compare.variants import find_variant

    began = time.monotonic()
    pace = measured_pace(RunIndex(request.settings, True), find_variant(request.baseline), request.settings)
    print(f"a step was timed in {time.monotonic() - began:.1f} s", file=sys.stderr)
    return 6.0 + 1.25 * pace * request.settings.max_tokens


if __name__ == "__main__":
    from lmplay.compare.jobs import Stopped
    from lmplay.errors import UserError

    try:
        main()
    except (KeyboardInterrupt, Stopped):
        sys.exit("stopped; the same command goes on")
    except UserError as error:
        print(f"edited_copies.py: {error}", file=sys.stderr)
        sys.exit(2)
