"""mingru trained in parallel against the same model stepped through time: forward and backward pass of one step.

    python benchmarks/mingru_scan.py [--json FILE] [--context 512] [--batch 4] [--variant tiny] [--repeats 5]

Three arms take turns in one process, on the same weights and tokens; their gradients are compared first. `scan` is the
model as it is. `recurrence` computes all linear layers in parallel and steps only the states, as a GRU's kernel would.
`steps` takes the whole model one token at a time through its cache, gradients included. Reports median seconds, and
ratios to `scan`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", type=Path, help="write the figures there")
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--variant", default="tiny")
    p.add_argument("--repeats", type=int, default=5)
    args = p.parse_args()

    from lmplay import contract, registry
    from lmplay.model.device import device_name, prepare_process

    prepare_process()
    import torch
    import torch.nn.functional as F

    experiment = contract.load(registry.read_entry(ROOT / "experiments" / "mingru"))
    module, scan = experiment.module, experiment.module.Scan
    torch.manual_seed(0)
    model = experiment.build(experiment.config(args.variant, 4096, args.context))
    tokens = torch.randint(4096, (args.batch, args.context + 1))

    def stepped(factors, terms, state):
        states = []
        for factor, term in zip(factors.unbind(1), terms.unbind(1)):
            state = factor * state + term
            states.append(state)
        return torch.stack(states, 1)

    def logits(side):
        if side == "steps":
            cache = model.new_cache(args.batch)
            return torch.cat([model(part, cache=cache) for part in tokens[:, :-1].split(1, dim=1)], dim=1)
        module.Scan = scan if side == "scan" else SimpleNamespace(apply=stepped)
        try:
            return model(tokens[:, :-1])
        finally:
            module.Scan = scan

    def once(side) -> float:
        model.zero_grad()
        started = time.perf_counter()
        F.cross_entropy(logits(side).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        return time.perf_counter() - started

    sides, gradients = ("scan", "recurrence", "steps"), {}
    for side in sides:
        once(side)
        gradients[side] = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.testing.assert_close(gradients[side], gradients["scan"], rtol=1e-3, atol=1e-6)
    times = {side: [] for side in sides}
    for _ in range(args.repeats):
        for side in sides:
            times[side].append(once(side))
    medians = {side: statistics.median(times[side]) for side in sides}
    found = {
        "device": device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "variant": args.variant,
        "context": args.context,
        "batch": args.batch,
        "repeats": args.repeats,
        "seconds": {side: round(median, 4) for side, median in medians.items()},
        "ratio": {side: round(medians[side] / medians["scan"], 2) for side in sides[1:]},
    }
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
