"""Several runs at once: K seeds in one stack, and processes side by side, against one after the other.

    python benchmarks/several.py [--device cuda|cpu] [--spec gpt2ish:tiny] [--seeds 2 4 8] [--processes 1 2 4]
                                 [--seconds 3] [--small] [--json FILE]

`together(device, ...)` and `side_by_side(device, ...)` return what they measure, for another script; the first takes
about ten seconds per number of seeds on a GPU, the second as long as --seconds and the start of its processes.
"""

import argparse
import functools
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="auto", help="as lmp_trainer takes it (default: auto)")
    p.add_argument("--spec", default="gpt2ish:tiny", metavar="NAME:VARIANT")
    p.add_argument("--seeds", type=int, nargs="*", default=[2, 4, 8], metavar="K", help="seeds in a stack")
    p.add_argument("--processes", type=int, nargs="*", default=[1, 2, 4], metavar="N", help="processes side by side")
    p.add_argument("--seconds", type=float, default=3.0, help="of a measurement")
    p.add_argument("--threads", type=int, default=0, help="of each process (default: torch's own choice)")
    p.add_argument("--plain", action="store_true", help="without torch.compile")
    p.add_argument("--small", action="store_true", help="shapes so small that they only show that the script runs")
    p.add_argument("--json", type=Path, help="write the results there")
    args = p.parse_args()
    from lmplay.model.device import prepare_process

    prepare_process()
    shape = dict(rows=4, context=32, vocabulary=97) if args.small else dict(rows=16, context=256, vocabulary=4096)
    found: dict[str, Any] = {}

    def put(key: str, value: Any) -> None:
        found[key] = value
        print(f"{key}: {value}", flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    for compiled in (False,) if args.plain else (False, True):
        if args.seeds:
            name = "together, compiled" if compiled else "together"
            put(name, together(args.device, args.spec, args.seeds, seconds=args.seconds, compiled=compiled, **shape))
    for n in args.processes:
        rates = side_by_side(args.device, args.spec, n, seconds=args.seconds, threads=args.threads, **shape)
        put(f"{n} processes", {"tokens_per_second": rates, "in all": sum(rates)})


def new_step(
    device_name: str, spec: str, seed: int, *, compiled: bool, rows: int, context: int, vocabulary: int, **fields: int
) -> Any:
    """Return an EagerStep of a new model, in bfloat16 where that is faster here, and a batch for it."""
    import torch

    from lmplay import contract, registry
    from lmplay.model.device import choose_device, precision
    from lmplay.model.measured import FASTER, amp_factor
    from lmplay.runs.settings import Settings
    from lmplay.train.batches import Batch
    from lmplay.train.optimizers import make_optimizers
    from lmplay.train.step import EagerStep

    device = choose_device(device_name)
    amp = device.type == "cuda" or amp_factor(device_name) >= FASTER
    entry, variant = registry.find(spec)
    experiment = contract.load(entry)
    config = experiment.config(variant, vocabulary, context, **fields)
    experiment = experiment.bound(config)
    torch.manual_seed(seed)
    model = experiment.build(config).to(device).train()
    step = EagerStep(
        model=model,
        optimizers=make_optimizers(model, "adamw", 1e-3, 0.1, (0.9, 0.95), 1e-8),
        parameters=[p for p in model.parameters() if p.requires_grad],
        settings=Settings(exp=spec, batch_size=rows, seed=seed, amp=amp, compile="on" if compiled else "off"),
        device=device,
        precision=functools.partial(precision, device, amp, context),
        scaler=torch.amp.GradScaler(device.type, enabled=False),
    )
    tokens = torch.randint(vocabulary - 1, (rows, context), generator=torch.Generator().manual_seed(seed))
    inputs, targets, _ = experiment.make_batch(tokens, vocabulary - 1, seed)
    batch = Batch(inputs, targets, int((targets != -100).sum()), 1.0, directions=experiment.direction_names)
    return step, batch


def alone(step: Any, batch: Any, rows: int) -> Callable[[], Any]:
    """Return what takes a step of one seed: as a CUDA graph where there is one."""
    from lmplay.train.build import compile_model
    from lmplay.train.captured_step import CapturedStep

    if step.settings.compile == "on":
        compile_model(step.model)
    if step.device.type == "cuda":
        captured = CapturedStep(step, rows)
        captured.set_rates(0.1)
        return lambda: captured(batch, 0)
    return lambda: step.change(batch, step.gradients(batch, 0, rows))


def together(
    device: str, spec: str, seeds: Sequence[int], *, seconds: float, compiled: bool, rows: int, **shape: int
) -> dict[str, Any]:
    """Measure one seed alone and K in a stack, taking turns; return tokens per second in all, and ratios to one."""
    import torch

    from lmplay.train.stacked_choice import StackedStepper
    from lmplay.train.step import Wanted

    made = functools.partial(new_step, device, spec, compiled=compiled, rows=rows, **shape)
    sides: dict[str, Callable[[], Any]] = {"1": alone(*made(0), rows)}
    found: dict[str, Any] = {}
    for k in seeds:
        steps, batches = zip(*(made(seed) for seed in range(k)), strict=True)
        stepper = StackedStepper(steps, rows, compiled)
        wanted = [Wanted(batch, 0, 0.1) for batch in batches]
        started = time.monotonic()
        found[f"{k} start"] = {**stepper.choose(wanted), "seconds": round(time.monotonic() - started, 2)}
        sides[str(k)] = functools.partial(stepper, wanted)
    cuda = steps[0].device.type == "cuda"

    def timed(side: Callable[[], Any], n: int) -> float:
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(n):
            side()
        if cuda:
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) / n

    counts = {name: max(1, round(seconds / 5 / max(timed(side, 2), 1e-6))) for name, side in sides.items()}
    rounds = [{name: timed(side, counts[name]) for name, side in sides.items()} for _ in range(5)]
    for name in sides:
        rates = [int(name) * rows * shape["context"] / one[name] for one in rounds]
        ratios = sorted(int(name) * one["1"] / one[name] for one in rounds)
        found[name] = {
            "tokens_per_second": round(statistics.median(rates)),
            "speed": round(statistics.median(ratios), 3),
            "least and most": [round(ratios[0], 3), round(ratios[-1], 3)],
        }
    return found


def side_by_side(device: str, spec: str, n: int, *, seconds: float, threads: int = 0, **shape: int) -> list[float]:
    """Return the tokens per second of each of n processes that take steps at the same time."""
    context = multiprocessing.get_context("spawn")
    ready, go, results = context.Barrier(n), context.Barrier(n), context.Queue()
    arguments = (device, spec, seconds, threads, shape, ready, go, results)
    processes = [context.Process(target=_one, args=arguments) for _ in range(n)]
    for process in processes:
        process.start()
    rates = [results.get(timeout=180) for _ in processes]
    for process in processes:
        process.join()
    return [round(rate) for rate in rates]


def _one(
    device: str, spec: str, seconds: float, threads: int, shape: dict[str, int], ready: Any, go: Any, results: Any
) -> None:
    from lmplay.model.device import prepare_process

    prepare_process()
    import torch

    if threads:
        torch.set_num_threads(threads)
    side = alone(*new_step(device, spec, 0, compiled=False, **shape), shape["rows"])
    for _ in range(3):
        side()
    ready.wait(120)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for _ in range(10):
            side()
        if device != "cpu" and torch.cuda.is_available():
            torch.cuda.synchronize()
        count += 10
    elapsed = time.perf_counter() - begin
    go.wait(120)  # nobody leaves before all are measured
    results.put(count * shape["rows"] * shape["context"] / elapsed)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
