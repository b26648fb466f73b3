"""What pldr gains because its operators are made of the text that it predicts: one model's weights, scored three times.

    python benchmarks/pldr_leak.py --seeds 3 [--set n_layer=2 ...] [--out FOLDER] [--json FILE]
    python benchmarks/pldr_leak.py RUN... [--json FILE]

The first form trains `pldr:tiny_sequence` on all of `quick` under seeds 0, 1, ... where that was not done. Every
checkpoint that a run kept is scored on its validation documents with its operators made of

  sequence   the whole window, the tokens to be predicted among them, as published
  causal     what was read before the last of chunk, 2 chunk, 4 chunk, ...
  prompt     the EOT token alone

which are the same parameters. The last column says how far the text moves the operators at all: the standard deviation
of G over the windows, as a fraction of its norm. Losses are in nats per token; all three score the same tokens. Of
several runs, what looking ahead gains (causal minus sequence) follows: its mean over the seeds and its 95% interval.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path

WAYS = ("sequence", "causal", "prompt")
EVERY = 28  # steps between the checkpoints that are kept


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="the folders of runs of pldr")
    p.add_argument("--seeds", type=int, default=0, metavar="N", help="train seeds 0 to N - 1 where they are missing")
    p.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="with --seeds: fields of the Config")
    p.add_argument("--out", type=Path, default=Path("gpt_out"), help="with --seeds: where runs are (default: gpt_out)")
    p.add_argument("--device", default="auto")
    p.add_argument("--json", type=Path, help="write the figures there")
    args = p.parse_args()
    if bool(args.runs) == bool(args.seeds):
        p.error("name runs, or say with --seeds how many to train")
    runs = args.runs or [trained(seed, args) for seed in range(args.seeds)]
    found = []
    for folder in runs:
        print(folder.name, flush=True)
        found.append(score(folder, args.device))
        if args.json:
            args.json.write_text(json.dumps({"runs": found}, indent=1) + "\n", encoding="utf-8")
    if len(found) > 1:
        for step, mean, half in gains(found):
            print(f"step {step:6}  looking ahead gains {mean:+.5f} +- {half:.5f}, {len(found)} seeds")


def trained(seed: int, args: argparse.Namespace) -> Path:
    """Return the folder of the run with a seed, trained on from where it is."""
    from lmplay.cli.trainer import main as train

    name = "_".join(["pldr_leak", *(one.replace("=", "") for one in args.set), f"s{seed}"])
    words = ["--exp", "pldr:tiny_sequence", "--training-plan", "quick", "--batch-size", "16", "--seed", str(seed)]
    words += ["--backup-interval", str(EVERY), "--out", str(args.out), "--run-name", name, "--device", args.device]
    if status := train([*words, *(word for one in args.set for word in ("--set", one))]):
        sys.exit(status)
    return args.out / name


def score(folder: Path, device_name: str) -> dict:
    """Return the losses of every checkpoint of a run, made of each kind of operators, and print them."""
    import torch

    from lmplay.data.plans import load_plan, plan_from_files
    from lmplay.data.prepare import prepare
    from lmplay.model.device import choose_device
    from lmplay.runs import checkpoints
    from lmplay.runs.folder import find_run
    from lmplay.runs.trained import load_run
    from lmplay.train.validation import ValidationFeed, validate

    device, rows = choose_device(device_name), []
    for checkpoint in checkpoints.find_all(folder / "checkpoints"):
        run = load_run(find_run(checkpoint, folder.parent), device)
        if not rows:
            settings = run.run.settings
            plan = plan_from_files(settings["data"]) if settings["data"] else load_plan(settings["training_plan"])
            data = prepare(plan, settings["tokenizer"])
            if data.hash != run.run.get("data", "hash"):
                raise SystemExit("the run's data are not those of its plan any more")
            feed = ValidationFeed(
                run.experiment,
                data.validation,
                run.context_len,
                run.tokenizer.eot,
                settings["validation_tokens"],
                data_order=settings["data_order"],
            )
        row = {"step": int(checkpoint.name.removeprefix("step_"))}
        for way in WAYS:
            model = run.experiment.build(
                dataclasses.replace(run.model.config, metric=way, prompt_token=run.tokenizer.eot)
            ).to(device)
            checkpoints.load_weights(checkpoint, model)
            row[way] = validate(model, feed, 16, device, contextlib.nullcontext).loss
            if way == "sequence":
                inputs = next(feed.batches()).inputs[:64].to(device)
                operators = [G for name, G in model.eval().tensors(inputs).items() if name.endswith(".G")]
                spread = [(G.var(0).sum((-2, -1)).sqrt() / G.mean(0).norm(dim=(-2, -1))).mean() for G in operators]
                row["operator_spread"] = float(torch.stack(spread).mean())
        rows.append(row)
        print(
            "  ".join(
                f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value:6}"
                for name, value in row.items()
            ),
            flush=True,
        )
    return {"run": folder.name, "config": run.run.get("config"), "rows": rows}


def gains(found: list[dict]) -> list[tuple[int, float, float]]:
    """Return (step, mean, half of the 95% interval over the seeds) of what looking ahead gains."""
    import numpy as np

    from lmplay.stats.evidence import t_quantile

    by_step: dict[int, list[float]] = {}
    for run in found:
        for row in run["rows"]:
            by_step.setdefault(row["step"], []).append(row["causal"] - row["sequence"])
    whole = {step: np.array(each) for step, each in by_step.items() if len(each) == len(found)}
    t = t_quantile(len(found) - 1, 0.95)
    return [(step, each.mean(), t * each.std(ddof=1) / len(each) ** 0.5) for step, each in sorted(whole.items())]


if __name__ == "__main__":
    main()
