"""What a training step of pldr costs beside one of llama2 with as many parameters.

    python benchmarks/pldr_step.py [--context 256 1024] [--rounds 9] [--amp] [--profile] [--json FILE]

All arms are models in this process that take turns, one step at a time, so that a noisy machine is noisy for all:
forward pass and loss (the trainer's own, fused with the head), backward pass, clipping, AdamW. A step is 4096 tokens,
the vocabulary 4096. Reports median seconds of a step, and their ratio to llama2:tiny's. `--profile` says where the
time of a step goes.
"""

import argparse
import contextlib
import json
import statistics
import time
from pathlib import Path

SIDES = (
    "llama2:tiny",
    "pldr:tiny",
    "pldr:tiny_sequence",
    "pldr:tiny_prompt",
    "pldr:tiny_constant",
    "pldr:tiny_identity",
)
VOCABULARY, TOKENS = 4096, 4096


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--context", type=int, nargs="+", default=[256, 1024])
    p.add_argument("--rounds", type=int, default=9, help="counted steps of each side")
    p.add_argument(
        "--sides",
        nargs="+",
        default=SIDES,
        metavar="NAME:VARIANT",
        help="the first is what the others are measured against",
    )
    p.add_argument("--amp", action="store_true", help="bfloat16 as lmp_trainer --amp takes it")
    p.add_argument("--profile", action="store_true", help="also print where the time of a step of each side goes")
    p.add_argument("--json", type=Path, help="write the figures there")
    args = p.parse_args()
    from lmplay.model.device import device_name, prepare_process

    prepare_process()
    import torch

    result = {
        "machine": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "amp": args.amp,
        "tokens": TOKENS,
        "vocabulary": VOCABULARY,
        "rounds": args.rounds,
        "contexts": {},
    }
    for context in args.context:
        sides = {name: Side(name, context, args.amp) for name in args.sides}
        seconds = {name: [] for name in sides}
        for counted in [False, False] + [True] * args.rounds:
            for name, side in sides.items():
                start = time.perf_counter()
                side.step()
                if counted:
                    seconds[name].append(time.perf_counter() - start)
        median = {name: statistics.median(values) for name, values in seconds.items()}
        result["contexts"][context] = {
            name: {
                "parameters": side.parameters,
                "seconds": round(median[name], 4),
                "ratio": round(median[name] / median[args.sides[0]], 3),
                "all": [round(value, 4) for value in seconds[name]],
            }
            for name, side in sides.items()
        }
        for name, row in result["contexts"][context].items():
            print(
                f"context {context:5}  {name:22} {row['parameters']:10,} parameters  "
                f"{row['seconds']:.3f} s  {row['ratio']:.2f}",
                flush=True,
            )
        if args.profile:
            for name, side in sides.items():
                print(f"\n{name}, context {context}")
                profile(side)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


class Side:
    """A model, its optimizer and a batch of random tokens."""

    def __init__(self, name: str, context: int, amp: bool):
        import torch

        from lmplay import contract, registry
        from lmplay.model.device import precision

        entry, variant = registry.find(name)
        experiment = contract.load(entry)
        torch.manual_seed(0)
        self.model = experiment.build(experiment.config(variant, VOCABULARY, context)).train()
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        tokens = torch.randint(VOCABULARY, (TOKENS // context, context))
        self.inputs, self.targets, _ = experiment.make_batch(tokens, VOCABULARY - 1, 0)
        self.precision = (lambda: precision(torch.device("cpu"), True, context)) if amp else contextlib.nullcontext

    def step(self) -> None:
        import torch

        from lmplay.model.adapters import derived_once
        from lmplay.model.loss import score

        with derived_once(self.model, self.precision):
            with self.precision():
                result = score(self.model, self.inputs, self.targets)
            (result.loss_sum / self.targets.numel() + result.extra.get("loss", 0.0)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def profile(side: Side) -> None:
    from torch.profiler import profile as record

    with record() as recorded:
        side.step()
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=48))


if __name__ == "__main__":
    main()
