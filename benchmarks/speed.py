"""How fast training is on this machine: graphs, compiling and plain steps, the trainer's own cost, Muon, memory.

    python benchmarks/speed.py [--device cuda|cpu] [--parts peak modes ...] [--rounds 7] [--json FILE]

Sides of a measurement take turns, a few steps each, so that a noisy machine is noisy for all. Given are the median of
tokens per second, and the median over the rounds of each side's ratio to the first, with its quartiles. Results are
written to benchmarks/results/speed_<machine>.json after every part, and at the end into the table of
docs/performance.md (`--table` does only that); a part that fails leaves its error there. What became slower than the
results that were committed for this kind of machine, by more than the quartiles lie apart, is printed.

Precision is bfloat16 where this device multiplies matrices faster in it, else float32.

peak      matrix products: what this machine reaches, in float32, with TF32, in bfloat16
modes     gpt2ish, llama2 and pldr at their smallest, each step taken eagerly, as CUDA graphs, compiled, and both
large     gpt2ish:12l at context 1024 beside a plain GPT-2 (peers/plain_gpt.py), eager and compiled (GPU)
shapes    gpt2ish over contexts, vocabularies, depths and micro-batches: the share of the peak and the memory
trainer   the trainer with all it records, beside its bare steps
muon      Muon with matrices taken together, beside torch.optim.Muon
kernels   how long a step's kernels take, beside the step (GPU)
bound     a step beside its own products and attention alone, and what the rest goes to (CPU)
together  several.py: K seeds in one stack, and processes side by side, against one
peers     against_peers.py: nanoGPT's step, litgpt and transformers, in environments of their own; those that can't be
          made here are left out, with a line
preparation, start, size    data_speed.py: text into tokens, the first step, the size of the dataset (CPU)
beside    two_at_once.py: two trainings side by side, without a flag (CPU)
settings  cpu_settings.py: what kept memory, huge pages and the spin count are worth (CPU)
"""

import argparse
import functools
import json
import multiprocessing
import platform
import re
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from parts.committed import RESULTS, slower, write_table

MODES = ("eager", "graph", "graph, TF32", "compiled", "compiled graph")
SMALL = ("gpt2ish:tiny", "llama2:tiny", "pldr:tiny")
# context, rows, vocabulary, and more: one thing at a time is another one than in the first
GPU_SHAPES: list[tuple[int, int, int, dict[str, int]]] = [
    *[(context, rows, 50257, {}) for context, rows in ((256, 64), (1024, 32), (4096, 4), (8192, 2))],
    (1024, 16, 4096, {}),
    (1024, 16, 50257, {"n_layer": 24}),
    (1024, 16, 50257, {"micro": 4}),
]
CPU_SHAPES: list[tuple[int, int, int, dict[str, int]]] = [
    *[(context, 4096 // context, 4096, {}) for context in (256, 64, 1024, 4096)],
    (8192, 1, 4096, {}),
    (256, 16, 257, {}),
    (256, 16, 50257, {}),
    (256, 16, 4096, {"n_layer": 12}),
    (256, 16, 4096, {"micro": 4}),
]
SMALL_SHAPES: list[tuple[int, int, int, dict[str, int]]] = [(32, 4, 97, {}), (64, 2, 97, {"n_layer": 1, "micro": 1})]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="auto", help="as lmp_trainer takes it (default: auto)")
    p.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART")
    p.add_argument("--models", nargs="+", default=list(SMALL), metavar="NAME:VARIANT", help="of the part modes")
    p.add_argument("--rounds", type=int, default=7, help="turns of each side")
    p.add_argument("--seconds", type=float, default=0.25, help="length of a turn")
    p.add_argument("--small", action="store_true", help="shapes so small that they only show that the script runs")
    p.add_argument("--json", type=Path, help="write the results there, and no table (default: as said above)")
    p.add_argument("--table", action="store_true", help="write the table of docs/performance.md and end")
    args = p.parse_args()
    if args.table:
        write_table()
        return
    from lmplay.model.device import prepare_process

    prepare_process()
    Bench(args).run()


class Bench:
    """The measurements, and the file that they go to."""

    def __init__(self, args: argparse.Namespace):
        import torch

        from lmplay.model.device import choose_device, device_name
        from lmplay.model.measured import FASTER, amp_factor

        self.args, self.device = args, choose_device(args.device)
        name = device_name(self.device)
        default = RESULTS / f"speed_{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')}.json"
        self.path: Path = args.json or default
        self.amp = self.device.type == "cuda" or amp_factor(str(self.device)) >= FASTER
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
            of_part = [key for key in self.results if key == part or key.startswith(f"{part} ")]
            self.slower += [line for key in of_part for line in slower(self.results[key], self.before(key), (key,))]
        if self.committed:
            print("\n".join(self.slower or ["nothing is slower than in the committed results of this machine"]))
        if not (self.args.json or self.args.small):
            write_table()

    def before(self, part: str) -> Any:
        """Return the committed results of a part; of small shapes there are none."""
        return None if self.args.small else self.committed.get(part)

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

    def compare(
        self,
        part: str,
        key: str,
        sides: dict[str, Callable[[], Any]],
        tokens: int,
        flops: float = 0,
        amp: bool | None = None,
    ) -> None:
        """Measure sides against the first of them, and note and print what came out. amp: as `self.amp`, if not."""
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
            precision = "bfloat16" if (self.amp if amp is None else amp) else "float32"
            peak = self.results.get("peak", {}).get(precision)
            if flops and peak:
                rows[name]["mfu"] = round(flops * rate / (1e12 * peak), 4)
            print(f"{part} {key} {name}: {rows[name]}", flush=True)
        self.put(part, {key: {"tokens": tokens, "sides": rows}})


def quartiles(values: list[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]


class Side:
    """A model, its optimizers and a few batches of random tokens; each call takes one step as `mode` says."""

    def __init__(
        self,
        bench: Bench,
        spec: str,
        mode: str,
        *,
        vocabulary: int,
        context: int,
        rows: int,
        amp: bool,
        micro: int = 0,
        **more: Any,
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
        self.micro = micro or rows
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
            self.captured = CapturedStep(self.eager, self.micro, capture=self.device.type == "cuda")
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
        return self.eager.change(batch, self.eager.gradients(batch, self.step, self.micro))

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


def flops_of(spec: str, vocabulary: int, context: int, **fields: int) -> float:
    """Return the FLOPs of training on one token."""
    from lmplay import contract, registry
    from lmplay.model.cost import cost_of

    entry, variant = registry.find(spec)
    experiment = contract.load(entry)
    return cost_of(experiment, experiment.config(variant, vocabulary, context, **fields)).flops_per_token


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
    for amp in (True, False) if bench.amp else (False,):
        part = "modes" if amp or not bench.amp else "modes float32"
        for spec in bench.args.models:
            if bench.amp and not amp and spec != "gpt2ish:tiny":
                continue
            shape = {"vocabulary": vocabulary, "context": context, "rows": rows, "amp": amp}
            sides = sides_of(bench, part, spec, modes if amp or not bench.amp else modes[:3], **shape)
            bench.compare(part, spec, dict(sides), rows * context, flops_of(spec, vocabulary, context), amp)
            del sides
            free(bench)


def part_large(bench: Bench) -> None:
    """Compare gpt2ish:12l with a plain GPT-2."""
    import torch
    from plain_gpt import PlainGPT, PlainStep

    small = bench.args.small
    if bench.device.type == "cpu" and not small:
        return  # peers has the sizes that a CPU trains
    context, rows, vocabulary, spec = (32, 2, 97, "gpt2ish:tiny") if small else (1024, 16, 50257, "gpt2ish:12l")
    flops = flops_of(spec, vocabulary, context)
    shape = {"vocabulary": vocabulary, "context": context, "rows": rows, "amp": bench.amp}
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
            step = PlainStep(model, bench.device, bench.amp, bool(compiled))
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
    """Measure gpt2ish over contexts, vocabularies, depths and micro-batches, on a CPU each in a process of its own."""
    shapes = GPU_SHAPES if bench.device.type == "cuda" else CPU_SHAPES
    for shape in SMALL_SHAPES if bench.args.small else shapes:
        if bench.device.type == "cuda":
            shape_here(bench, *shape)
            free(bench)
            continue
        spawning = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawning, initializer=_as_trainer) as pool:
            bench.put("shapes", pool.submit(shape_here, bench, *shape).result())


def _as_trainer() -> None:
    from lmplay.model.device import prepare_process

    prepare_process()


def shape_here(bench: Bench, context: int, rows: int, vocabulary: int, more: dict[str, int]) -> dict[str, Any]:
    """Measure one shape in this process and return its row. more: a micro-batch, fields of the Config."""
    from lmplay.machine import peak_memory

    spec, mode = ("gpt2ish:12l", "graph") if bench.device.type == "cuda" else ("gpt2ish:tiny", "eager")
    key = ", ".join(f"{k} {v}" for k, v in {"context": context, "rows": rows, "vocabulary": vocabulary, **more}.items())
    shape = {"vocabulary": vocabulary, "context": context, "rows": rows, "amp": bench.amp}
    before = peak_memory()
    for side in sides_of(bench, "shapes", spec, (mode,), **shape, **more).values():
        fields = {name: value for name, value in more.items() if name != "micro"}
        flops = flops_of(spec, vocabulary, context, **fields)
        bench.compare("shapes", key, {mode: side}, rows * context, flops)
        grown = peak_memory() - before
        bench.put("shapes", {key: bench.results["shapes"][key] | {"peak_bytes": side.memory or grown}})
    return {key: bench.results.get("shapes", {}).get(key, {})}


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
            amp=bench.amp,
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

    amp = bench.amp
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


def part_together(bench: Bench) -> None:
    """Measure seeds in a stack and processes side by side, against one seed in one process."""
    import several

    shape = dict(rows=4, context=32, vocabulary=97) if bench.args.small else dict(rows=16, context=256, vocabulary=4096)
    cuda, seconds = bench.device.type == "cuda", 4 * bench.args.seconds
    for compiled in (False, True) if cuda else (False,):
        for spec in [spec for spec in bench.args.models if spec != "pldr:tiny"]:  # its operations have no rule
            name = f"{spec}, compiled" if compiled else spec
            seeds = (2, 4, 8) if cuda else (2, 4)
            found = several.together(str(bench.device), spec, seeds, seconds=seconds, compiled=compiled, **shape)
            bench.put("together", {name: found})
            print("together", name, found, flush=True)
    for n in (1, 2, 4) if cuda else (1, 2):
        rates = several.side_by_side(str(bench.device), "gpt2ish:tiny", n, seconds=seconds, threads=0, **shape)
        bench.put("together", {f"{n} processes": {"tokens_per_second": rates, "in all": sum(rates)}})
        print("together", f"{n} processes", rates, flush=True)


def part_peers(bench: Bench) -> None:
    """Compare with other libraries; what can't be installed here is left out."""
    import against_peers

    shapes = ["small"] if bench.args.small else [name for name in against_peers.SHAPES if name != "small"]
    for shape in shapes:
        found = against_peers.of_shape(shape, amp=bench.amp, device=str(bench.device), rounds=min(4, bench.args.rounds))
        bench.put("peers", {shape: found})


def part_beside(bench: Bench) -> None:
    """Train twice at the same time, and one after the other."""
    import two_at_once

    for name, shape in two_at_once.SHAPES.items() if bench.device.type == "cpu" else ():
        bench.put("beside", {name: two_at_once.of_shape(shape, turns=3, n=2, small=bench.args.small)})
        print("beside", name, bench.results["beside"][name], flush=True)


def part_settings(bench: Bench) -> None:
    """Leave out each setting of a process on a CPU."""
    import cpu_settings

    shapes = cpu_settings.SMALL if bench.args.small else cpu_settings.SHAPES
    for name, shape in shapes.items() if bench.device.type == "cpu" else ():
        bench.put("settings", {name: cpu_settings.measured(shape, 9, 0.7)})
        print("settings", name, bench.results["settings"][name], flush=True)


PARTS: dict[str, Callable[[Bench], None]] = {
    "peak": part_peak,
    "trainer": part_trainer,
    "modes": part_modes,
    "muon": part_muon,
    "kernels": part_kernels,
    "large": part_large,
    "shapes": part_shapes,
    "bound": part_bound,
    "together": part_together,
    "peers": part_peers,
    **{part: functools.partial(part_of_data, part=part) for part in ("preparation", "start", "size")},
    "beside": part_beside,
    "settings": part_settings,
}

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[:0] = [str(here / "peers"), str(here.parent)]
    main()
