"""What pldr gains because its operators are made of the text that it predicts: one model's weights, scored three times.

    lmp_trainer --exp pldr:tiny_sequence --training-plan quick --backup-interval 50
    python benchmarks/pldr_leak.py gpt_out/pldr-tiny_sequence_quick [--json FILE]

Scores every checkpoint of the run on the run's validation documents with its operators made of

  sequence   the whole window, the tokens to be predicted among them, as published
  causal     what was read before the last of chunk, 2 chunk, 4 chunk, ...
  prompt     the EOT token alone

which are the same parameters. The last column says how far the text moves the operators at all: the standard deviation
of G over the windows, as a fraction of its norm. Losses are in nats per token; all three score the same tokens.
"""

import argparse
import contextlib
import dataclasses
import json
from pathlib import Path

WAYS = ("sequence", "causal", "prompt")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, help="the folder of a run of pldr")
    p.add_argument("--device", default="auto")
    p.add_argument("--json", type=Path, help="write the figures there")
    args = p.parse_args()
    import torch

    from lmplay.data.plans import load_plan, plan_from_files
    from lmplay.data.prepare import prepare
    from lmplay.model.device import choose_device
    from lmplay.runs import checkpoints
    from lmplay.runs.folder import find_run
    from lmplay.runs.trained import load_run
    from lmplay.train.validation import ValidationFeed, validate

    device, rows = choose_device(args.device), []
    for checkpoint in checkpoints.find_all(args.run / "checkpoints"):
        run = load_run(find_run(checkpoint, args.run.parent), device)
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
    if args.json:
        args.json.write_text(
            json.dumps({"run": args.run.name, "config": run.run.get("config"), "rows": rows}, indent=1) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
