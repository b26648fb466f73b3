"""How fast training is on this machine: graphs, compiling and plain steps, the trainer's own cost, Muon, memory.

    python benchmarks/speed.py [--device cuda|cpu] [--parts peak modes ...] [--rounds 7] [--json FILE]

Sides of a measurement take turns, a few steps each, so that a noisy machine is noisy for all. Given are the median of
tokens per second, and the median over the rounds of each side's ratio to the first, with its quartiles. Results are
written to benchmarks/results/<machine>.json after every part; a part that fails leaves its error there. What became
slower than the results that were committed for this kind of machine, by more than the quartiles lie apart, is printed.

peak      matrix products: what this machine reaches, in float32, with TF32, in bfloat16
modes     gpt2ish, llama2 and pldr at their smallest, each step taken eagerly, as CUDA graphs, compiled, and both
large     gpt2ish:12l at context 1024 in bfloat16, beside a plain GPT-2 (peers/plain_gpt.py), eager and compiled
shapes    gpt2ish:12l over contexts and vocabularies, with the share of the peak and the memory
trainer   the trainer with all it records, beside its bare steps
muon      Muon with matrices taken together, beside torch.optim.Muon
kernels   how long a step's kernels take, beside the step (GPU)
bound     a step beside its own products and attention alone, and what the rest goes to (CPU)
preparation, start, size    those of data_speed.py: text into tokens, the first step, the size of the dataset
"""

import argparse
import functools
import json
import platform
import re
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
MODES = ("eager", "graph", "graph, TF32", "compiled", "compiled graph")
SMALL = ("gpt2ish:tiny", "llama2:tiny", "pldr:tiny")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="auto", help="as lmp_trainer takes it (default: auto)")
    p.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART")
    p.add_argument("--models", nargs="+", default=list(SMALL), metavar="NAME:VARIANT", help="of the part modes")
    p.add_argument("--rounds", type=int, default=7, help="turns of each side")
    p.add_argument("--seconds", type=float, default=0.25, help="length of a turn")
    p.add_argument("--small", action="store_true", help="shapes so small that they only show that the script runs")
    p.add_argument("--json", type=Path, help="write the results there (default: benchmarks/results/<machine>.json)")
    args = p.parse_args()
    from lmplay.model.device import prepare_process

    prepare_process()
    Bench(args).run()


class Bench:
    """The measurements, and the file that they go to."""

    def __init__(self, args: argparse.Namespace):
        import torch

        from lmplay.model.device import choose_device, device_name

        self.args, self.device = args, choose_device(args.device)
        name = device_name(self.device)
        default = RESULTS / f"speed_{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')}.json"
        self.path: Path = args.json or default
        self.committed: dict[str, Any] = json.loads(default.read_text("utf-8")) if default.exists() else {}
        self.slower: list[str] = []
        self.results: dict[str, Any] = json.loads(self.path.read_text("utf-8")) if self.path.exists() else {}
        self.results |= {
            "machine": name,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        }

    def run(self) -> None:
        """Measure the parts that were asked for, and write after each."""
        for part in self.args.parts:
            started = time.monotonic()
            try:
                PARTS[part](self)
            except Exception as error:
                self.put(part, {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})
                print(f"{part}: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
            self.results.setdefault("wall_s", {})[part] = round(time.monotonic() - started, 1)
            self.write()
        if self.committed:
            print("\n".join(self.slower or ["nothing is slower than in the committed results of this machine"]))

    def put(self, part: str, row: dict[str, Any]) -> None:
        """Note a result and write."""
        self.results.setdefault(part, {}).update(row)
        self.write()

    def write(self) -> None:
        """Write what there is."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")

    def wait(self) -> None:
        """Wait for the device."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def turns(self, sides: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """Return seconds per step of each side, one number per round; each side has run before."""
        counts = {}
        for name, step in sides.items():
            step(), self.wait()
            start = time.perf_counter()
            step(), step(), self.wait()
            counts[name] = max(2, round(2 * self.args.seconds / (time.perf_counter() - start)))
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(self.args.rounds):
            for name, step in sides.items():
                self.wait()
                start = time.perf_counter()
                for _ in range(counts[name]):
                    step()
                self.wait()
                seconds[name].append((time.perf_counter() - start) / counts[name])
        return seconds

    def compare(self, part: str, key: str, sides: dict[str, Callable[[], Any]], tokens: int, flops: float = 0) -> None:
        """Measure sides against the first of them, and note and print what came out."""
        seconds = self.turns(sides)
        first = next(iter(seconds.values()))
        rows: dict[str, Any] = {}
        for name, values in seconds.items():
            ratios = sorted(a / b for a, b in zip(first, values, strict=True))
            rate = tokens / statistics.median(values)
            rows[name] = {
                "milliseconds": round(1000 * statistics.median(values), 4),
                "tokens_per_second": round(rate),
                "speed": round(statistics.median(ratios), 3),
                "quartiles": [round(ratios[len(ratios) // 4], 3), round(ratios[-1 - len(ratios) // 4], 3)],
                "milliseconds_quartiles": [round(1000 * value, 4) for value in quartiles(values)],
            }
            self.note_if_slower(part, key, name, rows[name])
            peak = self.results.get("peak", {}).get("bfloat16" if part != "modes float32" else "float32")
            if flops and peak:
                rows[name]["mfu"] = round(flops * rate / (1e12 * peak), 4)
            print(f"{part} {key} {name}: {rows[name]}", flush=True)
        self.put(part, {key: {"tokens": tokens, "sides": rows}})

    def note_if_slower(self, part: str, key: str, name: str, row: dict[str, Any]) -> None:
        """Note a side that is slower than it was in the committed results, by more than the quartiles of both."""
        before = self.committed.get(part, {}).get(key, {}).get("sides", {}).get(name)
        if not before:
            return
        highest = before.get("milliseconds_quartiles", [before["milliseconds"]])[-1]
        if row["milliseconds_quartiles"][0] > highest:
            self.slower.append(
                f"slower than committed: {part} {key} {name}: {row['milliseconds']:g} ms, "
                f"then {before['milliseconds']:g}"
            )


def quartiles(values: list[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]


class Side:
    """A model, its optimizers and a few batches of random tokens; each call takes one step as `mode` says."""

    def __init__(
        self, bench: Bench, spec: str, mode: str, *, vocabulary: int, context: int, rows: int, amp: bool, **more: Any
    ):
        import torch

        from lmplay import contract, registry
        from lmplay.model.device import precision
        from lmplay.runs.settings import Settings
        from lmplay.train.build import compile_model
        from lmplay.train.captured_step import CapturedStep
        from lmplay.train.optimizers import make_optimizers
        from lmplay.train.step import EagerStep

        self.device, self.mode, self.step, self.n_rows, self.amp = bench.device, mode, 0, rows, amp
        self.settings = Settings(exp=spec, batch_size=rows, optimizer=more.pop("optimizer", "adamw"))
        entry, variant = registry.find(spec)
        experiment = contract.load(entry)
        config = experiment.config(variant, vocabulary, context, **more)
        self.experiment, self.config = experiment.bound(config), config
        if self.device.type == "cuda":
            bench.wait()
            torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
        torch.manual_seed(0)
        self.model = self.experiment.build(config).to(self.device).train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizers = make_optimizers(self.model, self.settings.optimizer, 1e-3, 0.1, (0.9, 0.95), 1e-8)
        self.eager = EagerStep(
            model=self.model,
            optimizers=self.optimizers,
            parameters=self.parameters,
            settings=self.settings,
            device=self.device,
            precision=functools.partial(precision, self.device, amp, context),
            scaler=torch.amp.GradScaler(self.device.type, enabled=False),
        )
        if "compiled" in mode:
            compile_model(self.model)
        self.captured = None
        if "graph" in mode:
            self.captured = CapturedStep(self.eager, rows, capture=self.device.type == "cuda")
        self.batches = [self._batch(seed, vocabulary, context) for seed in range(4)]
        torch.set_float32_matmul_precision("high" if "TF32" in mode else "highest")  # what is recorded keeps it
        self.first_loss = self.loss(self())
        for _ in range(3):
            self()
        torch.set_float32_matmul_precision("highest")
        self.memory = torch.cuda.max_memory_allocated(self.device) - before if self.device.type == "cuda" else None

    def _batch(self, seed: int, vocabulary: int, context: int) -> Any:
        import torch

        from lmplay.train.batches import Batch

        tokens = torch.randint(vocabulary - 1, (self.n_rows, context), generator=torch.Generator().manual_seed(seed))
        inputs, targets, _ = self.experiment.make_batch(tokens, vocabulary - 1, seed)
        return Batch(inputs, targets, int((targets != -100).sum()), 1.0, directions=self.experiment.direction_names)

    def __call__(self) -> Any:
        from lmplay.train.optimizers import set_rates

        batch = self.batches[self.step % len(self.batches)]
        self.step += 1
        if self.captured is not None:
            self.captured.set_rates(0.1)
            return self.captured(batch, self.step)
        set_rates(self.optimizers, 0.1)
        return self.eager.change(batch, self.eager.gradients(batch, self.step, self.n_rows))

    def loss(self, figures: Any) -> float:
        """Return the mean loss that a step's figures hold."""
        from lmplay.train.step import Step, read_figures

        n = self.batches[0].n_scored
        return read_figures([Step({}, 0, n, 1.0, figures)], self.device)[0]["loss_sum"] / n


def sides_of(bench: Bench, part: str, spec: str, modes: tuple[str, ...], **shape: Any) -> dict[str, Side]:
    """Return a side for each mode that works here; note memory and first loss, or why it does not work."""
    import torch

    sides = {}
    for mode in modes:
        started = time.monotonic()
        try:
            side = Side(bench, spec, mode, **shape)
        except Exception as error:
            bench.put(f"{part} failed", {f"{spec} {mode}": f"{type(error).__name__}: {error}"[:600]})
            print(f"{part} {spec} {mode}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            continue
        sides[mode] = side
        facts = {"first_loss": side.first_loss, "peak_bytes": side.memory, "start_s": time.monotonic() - started}
        bench.put(f"{part} starts", {f"{spec} {mode}": facts})
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return sides


def free(bench: Bench) -> None:
    """Give memory back between measurements."""
    import gc

    import torch

    gc.collect()
    torch.compiler.reset()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()


def flops_of(spec: str, vocabulary: int, context: int) -> float:
    """Return the FLOPs of training on one token."""
    from lmplay import contract, registry
    from lmplay.model.cost import cost_of

    entry, variant = registry.find(spec)
    experiment = contract.load(entry)
    return cost_of(experiment, experiment.config(variant, vocabulary, context)).flops_per_token


def part_peak(bench: Bench) -> None:
    """Time products of square matrices."""
    import torch

    n = 256 if bench.args.small else 8192 if bench.device.type == "cuda" else 2048
    found = {}
    for name, dtype, mode in (
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
        ("bfloat16", torch.bfloat16, "highest"),
    ):
        torch.set_float32_matmul_precision(mode)
        a, b = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(2))
        seconds = bench.turns({name: functools.partial(torch.mm, a, b)})[name]
        found[name] = round(2 * n**3 / statistics.median(seconds) / 1e12, 2)
    torch.set_float32_matmul_precision("highest")
    print("peak, TFLOP/s:", found, flush=True)
    bench.put("peak", found)


def part_modes(bench: Bench) -> None:
    """Compare the ways of taking a step at small sizes."""
    context, rows, vocabulary = (32, 4, 97) if bench.args.small else (256, 16, 4096)
    modes = MODES if bench.device.type == "cuda" else ("eager", "compiled")
    for amp in (True, False):
        part = "modes" if amp else "modes float32"
        for spec in bench.args.models:
            if not amp and spec != "gpt2ish:tiny":
                continue
            shape = {"vocabulary": vocabulary, "context": context, "rows": rows, "amp": amp}
            sides = sides_of(bench, part, spec, modes if amp else modes[:3], **shape)
            bench.compare(part, spec, dict(sides), rows * context, flops_of(spec, vocabulary, context))
            del sides
            free(bench)


def part_large(bench: Bench) -> None:
    """Compare gpt2ish:12l with a plain GPT-2."""
    import torch
    from plain_gpt import PlainGPT, PlainStep

    small = bench.args.small
    context, rows, vocabulary, spec = (32, 2, 97, "gpt2ish:tiny") if small else (1024, 16, 50257, "gpt2ish:12l")
    flops = flops_of(spec, vocabulary, context)
    shape = {"vocabulary": vocabulary, "context": context, "rows": rows, "amp": True}
    graphs = bench.device.type == "cuda"
    sides: dict[str, Callable[[], Any]] = {}
    layers, heads, width = (4, 4, 256) if small else (12, 12, 768)
    for compiled in ("", "compiled"):  # what is compiled takes a minute to start: the rest is measured before
        modes = tuple(filter(None, (compiled or "eager", f"{compiled} graph".strip() if graphs else "")))
        sides |= sides_of(bench, "large", spec, modes, **shape)
        batch = next(side for side in sides.values() if isinstance(side, Side)).batches[0]
        try:
            torch.manual_seed(0)
            model = PlainGPT(vocabulary, context, layers, heads, width)
            step = PlainStep(model, bench.device, True, bool(compiled))
            side = functools.partial(step, batch.inputs, batch.targets)
            for _ in range(3):
                side()
            sides[f"plain {compiled}".strip()] = side
        except Exception as error:
            bench.put("large failed", {f"plain {compiled}": f"{type(error).__name__}: {error}"[:600]})
        bench.compare("large", spec, sides, rows * context, flops)
    sides.clear()
    free(bench)


def part_shapes(bench: Bench) -> None:
    """Measure gpt2ish:12l over contexts, vocabularies and micro-batches."""
    shapes = [(256, 64, 50257), (1024, 32, 50257), (4096, 4, 50257), (8192, 2, 50257), (1024, 16, 4096)]
    if bench.args.small or bench.device.type == "cpu":
        shapes = [(32, 4, 97), (64, 2, 97)]
    spec, mode = ("gpt2ish:12l", "graph") if bench.device.type == "cuda" else ("gpt2ish:tiny", "eager")
    for context, rows, vocabulary in shapes:
        shape = {"vocabulary": vocabulary, "context": context, "rows": rows, "amp": True}
        sides = sides_of(bench, "shapes", spec, (mode,), **shape)
        for side in sides.values():
            key = f"context {context}, rows {rows}, vocabulary {vocabulary}"
            bench.compare("shapes", key, {mode: side}, rows * context, flops_of(spec, vocabulary, context))
            bench.results["shapes"][key]["peak_bytes"] = side.memory
        del sides
        free(bench)


def part_trainer(bench: Bench) -> None:
    """Compare the trainer, with all that it records, with its bare steps on the same batches."""
    from lmplay.runs.settings import Settings
    from lmplay.train.batches import TrainingFeed
    from lmplay.train.loop import Trainer
    from lmplay.train.setup import set_up

    small = bench.args.small
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        files = sorted(Path(argparse.__file__).parent.glob("*.py"))[: 3 if small else None]
        text.write_text("\n\n".join(f.read_text("utf-8", errors="replace") for f in files), encoding="utf-8")
        settings = Settings(
            exp="gpt2ish:tiny",
            data=(str(text),),
            tokenizer="bytes",
            context_len=32 if small else 256,
            batch_size=4 if small else 16,
            device=str(bench.device),
            amp=True,
            compile="off",
            max_tokens=10**9,
            out=folder,
            run_name="run",
        )
        trainer = Trainer(set_up(settings))
        trainer.progress.start(trainer.state.n_steps, 0, 0)
        phase = trainer.setup.phases[0]
        feed = TrainingFeed(trainer.setup.experiment, phase.order, trainer.setup.data.tokenizer.eot, 0)

        def whole() -> None:
            if trainer.state.position + settings.batch_size > phase.n_windows:
                trainer.state.position = 0
            trainer.step(phase, trainer.next_batch(feed, phase), trainer.state.step)
            if trainer._flush_is_due():
                trainer.flush(phase)

        whole()
        batches = [feed.batch(n * settings.batch_size, settings.batch_size) for n in range(8)]
        numbers = iter(range(10**9))

        def bare() -> None:
            n = next(numbers)
            trainer.stepper(batches[n % 8], n, 0.1)

        def feeding() -> None:
            feed.batch((next(numbers) % 8) * settings.batch_size, settings.batch_size)

        key = f"gpt2ish:tiny, {trainer.run.info.get('cuda_graph', {'mode': 'no graph'})['mode']}"
        sides = {"bare": bare, "trainer": whole, "batches alone": feeding}
        bench.compare("trainer", key, sides, settings.batch_size * trainer.setup.context_len)
        trainer.flush(phase)
        trainer.progress.close(phase.name)
        trainer.state.lock.release()


def part_muon(bench: Bench) -> None:
    """Compare Muon with torch's on the matrices of two models."""
    import torch

    from lmplay.train.muon import Muon

    sizes = {"4 x 64": (4, 64)} if bench.args.small else {"4 x 256": (4, 256), "12 x 768": (12, 768)}
    for key, (layers, width) in sizes.items():
        shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * layers

        def step_of(kind: Callable[..., Any], options: dict[str, Any], shapes: Any = tuple(shapes)) -> Any:
            torch.manual_seed(0)
            parameters = [torch.nn.Parameter(torch.randn(s, device=bench.device) * 0.02) for s in shapes]
            for p in parameters:
                p.grad = torch.randn_like(p)
            optimizer = kind(parameters, lr=0.02, weight_decay=0.1, **options)
            optimizer.step()
            return optimizer, parameters

        torchs, theirs = step_of(torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"})
        ours, mine = step_of(Muon, {})
        apart = max((a - b).abs().max().item() for a, b in zip(theirs, mine, strict=True))
        sides = {"torch": torchs.step, "together": ours.step}
        if bench.device.type == "cuda":
            captured, _ = step_of(Muon, {})
            captured.param_groups[0]["lr"] = torch.tensor(0.02, device=bench.device)
            captured.step()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured.step()
            sides["together, as a graph"] = graph.replay
        bench.compare("muon", key, sides, 1)
        bench.results["muon"][key]["largest_difference_of_a_step"] = apart
        print("muon", key, "largest difference of a step", apart, flush=True)


def part_kernels(bench: Bench) -> None:
    """Sum the time of the kernels of a step."""
    if bench.device.type != "cuda":
        return
    from torch.profiler import ProfilerActivity, profile

    for spec in bench.args.models:
        sides = sides_of(bench, "kernels", spec, ("graph",), vocabulary=4096, context=256, rows=16, amp=True)
        for side in sides.values():
            with profile(activities=[ProfilerActivity.CUDA]) as recorded:
                for _ in range(10):
                    side()
                bench.wait()
            rows = [(e.key, e.self_device_time_total / 1e4, e.count // 10) for e in recorded.key_averages()]
            rows.sort(key=lambda row: -row[1])
            total = sum(row[1] for row in rows)
            n = sum(row[2] for row in rows)
            top = [[name[:90], round(ms, 4), count] for name, ms, count in rows[:12]]
            bench.put("kernels", {spec: {"milliseconds": total, "kernels": n, "largest": top}})
            print(f"kernels {spec}: {total:.3f} ms in {n} kernels", flush=True)
        del sides
        free(bench)


def part_bound(bench: Bench) -> None:
    """Compare steps with their own products of matrices and attention, and say what the rest goes to."""
    if bench.device.type != "cpu":
        return
    from parts.bound import bound_of, by_kind

    from lmplay.model.measured import FASTER, amp_factor

    amp = amp_factor("cpu") >= FASTER
    large = {"n_layer": 6, "n_head": 6, "n_embd": 384, "context": 256, "rows": 16}
    small = {"n_layer": 4, "n_head": 4, "n_embd": 128, "context": 64, "rows": 12}
    tiny = {"n_layer": 1, "n_head": 2, "n_embd": 16, "context": 16, "rows": 2}
    shapes = ((large, 50257), (large, 4096), (small, 257)) if not bench.args.small else ((tiny, 97),)
    for shape, vocabulary in shapes:
        key = f"{shape['n_layer']} x {shape['n_embd']}, vocabulary {vocabulary}, {'bfloat16' if amp else 'float32'}"
        sides = sides_of(
            bench, "bound", "gpt2ish:tiny", ("eager", "compiled"), vocabulary=vocabulary, amp=amp, dropout=0.0, **shape
        )
        products, flops = bound_of(sides["eager"])
        bench.compare("bound", key, {"products and attention": products, **sides}, shape["rows"] * shape["context"])
        row = bench.results["bound"][key]
        best = max(side["speed"] for name, side in row["sides"].items() if name in sides)
        row |= {
            "share_of_the_bound": best,
            "flops_of_the_bound": flops,
            "milliseconds_of_eager": by_kind(sides["eager"]),
        }
        bench.write()
        print(f"bound {key}: at {best:.0%} of it; eager by kind, ms: {row['milliseconds_of_eager']}", flush=True)
        del sides, products
        free(bench)


def part_of_data(bench: Bench, part: str) -> None:
    """Measure a part of data_speed.py; it has nothing for a GPU."""
    if bench.device.type == "cuda":
        return
    import data_speed

    bench.put(part, data_speed.PARTS[part](48, 5, bench.args.small))
    print(part, bench.results[part], flush=True)


PARTS: dict[str, Callable[[Bench], None]] = {
    "peak": part_peak,
    "trainer": part_trainer,
    "modes": part_modes,
    "muon": part_muon,
    "kernels": part_kernels,
    "large": part_large,
    "shapes": part_shapes,
    "bound": part_bound,
    **{part: functools.partial(part_of_data, part=part) for part in ("preparation", "start", "size")},
}

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parent / "peers"), str(Path(__file__).resolve().parent)]
    main()
