"""What a GPU has to show of captured steps, and the one script for a GPU that is at hand for minutes.

    python benchmarks/gpu_check.py session --out FOLDER     all that is below, tests and speed.py, in about six minutes
    python benchmarks/gpu_check.py coverage --json FILE     which experiments are captured, or why not
    python benchmarks/gpu_check.py resume --json FILE       a run that is continued is the same to the bit
    python benchmarks/gpu_check.py curves --json FILE       losses of `quick`: the fast way, and eager float32
    python benchmarks/gpu_check.py note FOLDER              put a session's results into benchmarks/results/
    python benchmarks/gpu_check.py table                    print which experiments are captured, for the docs

Results are written after every step, errors with their traceback.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gpu_check.json"
STEPS = 10


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {part.__name__: part for part in (session, coverage, resume, curves, note, table)}
    p.add_argument("what", choices=list(parts))
    p.add_argument("folder", type=Path, nargs="?", help="of a session, for note")
    p.add_argument("--out", type=Path, default=Path("gpu_results"), help="folder of the results of a session")
    p.add_argument("--json", type=Path, default=Path("gpu_check.json"), help="file of the results of one part")
    p.add_argument(
        "--shard",
        default="0/1",
        metavar="I/N",
        help="take every N-th experiment, of experiments or cases, from the I-th on",
    )
    p.add_argument("--device", default="cuda", help="as lmp_trainer takes it (default: cuda)")
    p.add_argument("--seeds", type=int, default=5, help="of curves")
    p.add_argument("--minutes", type=float, default=6.0, help="of a session")
    p.add_argument("--new", action="store_true", help="only experiments that the results in the repository lack")
    p.add_argument("--only", nargs="*", default=[], metavar="NAME", help="parts of a session, or experiments")
    args = p.parse_args()
    parts[args.what](args)


class Report:
    """Results in a file that is whole at any moment."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, value: Any) -> None:
        self.rows[name] = value
        self.path.write_text(json.dumps(self.rows, indent=1, default=repr) + "\n", encoding="utf-8")
        print(f"{name}: {str(value)[:300]}", flush=True)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[dict[str, Any]]:
        """Give the block a dictionary for its results; an error of the block becomes one of them."""
        found: dict[str, Any] = {}
        started = time.monotonic()
        try:
            yield found
        except Exception as error:
            found |= {
                "error": f"{type(error).__name__}: {str(error)[:500]}",
                "traceback": traceback.format_exc()[-3000:],
            }
        found["wall_s"] = round(time.monotonic() - started, 2)
        self.put(name, found)


def chosen(args: argparse.Namespace) -> list[Any]:
    """Return the entries of this shard."""
    from lmplay import registry

    first, n = map(int, args.shard.split("/"))
    entries = [e for e in registry.list_experiments() if not e.error and (not args.only or e.name in args.only)]
    if args.new and RESULTS.exists():
        there = {key.partition(":")[0] for key in json.loads(RESULTS.read_text("utf-8"))["coverage"]}
        entries = [e for e in entries if e.name not in there]
    return entries[first::n]


def coverage(args: argparse.Namespace) -> None:
    """Take steps of every experiment eagerly and as graphs, and compare weights and losses."""
    report = Report(args.json)
    for entry in chosen(args):
        variant = "tiny" if "tiny" in entry.variants else next(iter(entry.variants))
        for micro in (8, 3):
            with report.part(f"{entry.name}:{variant} micro {micro}") as found:
                found |= both_ways(args.device, entry, variant, micro)


def both_ways(device_name: str, entry: Any, variant: str, micro: int) -> dict[str, Any]:
    """Return whether an experiment's steps are captured, and how far they are from eager ones."""
    import torch

    from lmplay.train import capture_choice

    found: dict[str, Any] = {}
    first, batches = stepper(device_name, entry, variant, micro)
    obstacle = capture_choice.known_obstacle(first.eager)
    if obstacle:
        return {"captured": False, "why": obstacle}
    losses, weights = {}, {}
    for name in ("eager", "eager again", "captured"):
        step, _ = stepper(device_name, entry, variant, micro)
        started = time.monotonic()
        if name == "captured":
            why, difference = capture_choice.trial(step, batches[0])
            found |= {"captured": why is None, "why": why, "difference": difference}
            found["choice_s"] = round(time.monotonic() - started, 2)
            if why is not None:
                return found
        losses[name] = []
        for number, batch in enumerate(batches):
            step.set_rates((1 + number) / 10)
            if name == "captured" and step.takes(batch):
                figures: Any = step(batch, number)
            else:
                figures = step.eagerly(batch, number)
            losses[name].append(figures)
        losses[name] = read(losses[name], batches, step.device)
        weights[name] = [p.detach().clone() for p in step.model.parameters()]
    for name in ("eager again", "captured"):
        pairs = list(zip(weights["eager"], weights[name], strict=True))
        found[f"{name}: weights equal"] = all(torch.equal(a, b) for a, b in pairs)
        found[f"{name}: largest difference of a weight"] = max((a - b).abs().max().item() for a, b in pairs)
        found[f"{name}: largest relative difference of a loss"] = max(
            abs(a - b) / abs(a) for a, b in zip(losses["eager"], losses[name], strict=True)
        )
    found["losses"] = [losses["eager"][0], losses["eager"][-1]]
    return found


def stepper(device_name: str, entry: Any, variant: str, micro: int, optimizer: str = "adamw") -> tuple[Any, list[Any]]:
    """Return a CapturedStep of a new model with dropout, and batches for it."""
    import functools

    import torch

    from lmplay import contract
    from lmplay.model.device import choose_device, precision
    from lmplay.runs.settings import Settings
    from lmplay.train.batches import Batch
    from lmplay.train.captured_step import CapturedStep
    from lmplay.train.optimizers import make_optimizers
    from lmplay.train.step import EagerStep

    device, rows, length, vocabulary = choose_device(device_name), 8, 64, 300
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", 0)
    experiment = contract.load(entry)
    wanted = {"n_layer": 2, "dropout": 0.1}
    fields = {name: value for name, value in wanted.items() if name in experiment.Config.__dataclass_fields__}
    config = experiment.config(variant, vocabulary, length, **fields)
    experiment = experiment.bound(config)
    torch.manual_seed(0)
    model = experiment.build(config).to(device).train()
    optimizers = make_optimizers(model, optimizer, 1e-3, 0.1, (0.9, 0.95), 1e-8)
    batches = []
    for seed in range(STEPS):
        tokens = torch.randint(vocabulary - 1, (rows, length), generator=torch.Generator().manual_seed(seed))
        inputs, targets, _ = experiment.make_batch(tokens, vocabulary - 1, seed)
        n_scored = int((targets != contract.NOT_SCORED).sum())
        batches.append(Batch(inputs, targets, n_scored, 1.0, directions=experiment.direction_names))
    eager = EagerStep(
        model=model,
        optimizers=optimizers,
        parameters=[p for p in model.parameters() if p.requires_grad],
        settings=Settings(exp=entry.name, batch_size=rows),
        device=device,
        precision=functools.partial(precision, device, True, length),
        scaler=torch.amp.GradScaler(device.type, enabled=False),
    )
    step = CapturedStep(eager, micro, capture=device.type == "cuda")
    return step, batches


def read(figures: list[Any], batches: list[Any], device: Any) -> list[float]:
    """Return the mean losses of steps."""
    from lmplay.train.step import Step, read_figures

    steps = [Step({}, 0, b.n_scored, 1.0, f) for f, b in zip(figures, batches, strict=True)]
    rows = read_figures(steps, device)
    return [row["loss_sum"] / batch.n_scored for row, batch in zip(rows, batches, strict=True)]


def note(args: argparse.Namespace) -> None:
    """Put what a session found into the results in the repository, beside what they have from earlier sessions."""
    found = json.loads((args.folder / "session.json").read_text("utf-8"))
    known: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    known["machine"] = {key: found["machine"].get(key) for key in ("gpu", "torch", "cuda", "python")}
    for name, rows in found.items():
        part = name.partition("_")[0]
        if part in ("coverage", "resume", "curves") and isinstance(rows, dict):
            sound = {key: row for key, row in rows.items() if "error" not in row}
            known[part] = dict(sorted((known.get(part, {}) | sound).items()))
    RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def table(args: argparse.Namespace) -> None:
    """Print for every experiment whether its steps are captured, or why not."""
    print("\n".join(table_rows()))


def table_rows() -> list[str]:
    """Return the lines of the table in docs/performance.md."""
    from lmplay import registry

    coverage = json.loads(RESULTS.read_text("utf-8"))["coverage"]
    rows = ["| experiment | captured | weights after 10 steps |", "| --- | --- | --- |"]
    for entry in registry.list_experiments():
        found = [row for key, row in coverage.items() if key.partition(":")[0] == entry.name]
        if not found:
            rows.append(f"| `{entry.name}` | not yet tried on a GPU | |")
        elif why := next((row["why"] for row in found if row["why"]), None):
            rows.append(f"| `{entry.name}` | no: {why} | |")
        else:
            apart = max(row["captured: largest difference of a weight"] for row in found)
            rows.append(f"| `{entry.name}` | yes | {f'differ by {apart:.1g}' if apart else 'equal to the bit'} |")
    return rows


def train(folder: str, name: str, **settings: Any) -> Any:
    """Train a run in this process and return its Trainer."""
    from lmplay.runs.settings import Settings
    from lmplay.train.loop import Trainer
    from lmplay.train.setup import set_up

    trainer = Trainer(set_up(Settings(out=folder, run_name=name, **settings)))
    trainer.train()
    trainer.state.lock.release()
    return trainer


def resume(args: argparse.Namespace) -> None:
    """Continue runs, and compare them with whole ones to the bit."""
    from safetensors.torch import load_file

    report = Report(args.json)
    with tempfile.TemporaryDirectory() as folder:
        text = some_text(Path(folder))
        common = dict(
            data=(text,),
            tokenizer="bytes",
            context_len=64,
            batch_size=8,
            warmup_steps=2,
            lr_schedule="constant",
            device=args.device,
            amp=True,
            validation_interval=10,
            validation_tokens=2000,
        )
        cases: dict[str, dict[str, Any]] = {
            "graph": {"exp": "gpt2ish:tiny", "set": ("dropout=0.1",)},
            "compiled": {"exp": "gpt2ish:tiny", "compile": "on", "set": ("dropout=0.1",)},
            "compiled, no graph": {
                "exp": "gpt2ish:tiny",
                "compile": "on",
                "cuda_graph": "off",
                "set": ("dropout=0.1",),
            },
            "compiled, no dropout": {"exp": "gpt2ish:tiny", "compile": "on"},
            "float32": {"exp": "gpt2ish:tiny", "amp": False, "set": ("dropout=0.1",)},
            "eager": {"exp": "gpt2ish:tiny", "cuda_graph": "off", "set": ("dropout=0.1",)},
            "micro": {"exp": "gpt2ish:tiny", "mini_batch_size": 3, "set": ("dropout=0.1",)},
            "derive": {"exp": "unified_weights", "mini_batch_size": 3, "set": ("n_layer=2", "n_embd=64", "n_head=2")},
            "muon": {"exp": "llama2:tiny", "optimizer": "muon"},
            "pldr": {"exp": "pldr:tiny"},
            "bert": {"exp": "bert", "set": ("n_layer=2", "n_embd=64", "n_head=2")},
        }
        first, n = map(int, args.shard.split("/"))
        for name, case in list(cases.items())[first::n]:
            with report.part(name) as found:
                case = common | case
                whole = train(folder, f"{name}_whole", **case, max_steps=30)
                train(folder, f"{name}_parted", **case, max_steps=17)
                parted = train(folder, f"{name}_parted", **case, max_steps=30)
                notes = [[t.run.info.get(key) for key in ("cuda_graph", "compiled")] for t in (whole, parted)]
                paths = [f"{folder}/{name}_{kind}/checkpoints/step_00000030" for kind in ("whole", "parted")]
                tensors = [load_file(f"{path}/model.safetensors") for path in paths]
                found["notes"] = notes
                found["weights equal"] = all(tensors[1][key].equal(value) for key, value in tensors[0].items())
                found["losses"] = [t.state.final["loss"] for t in (whole, parted)]


def curves(args: argparse.Namespace) -> None:
    """Train on `quick` the fast way and eagerly in float32, and give the paired interval of the validation losses."""
    from scipy.stats import t as student

    report = Report(args.json)
    common = {"exp": "gpt2ish:tiny", "training_plan": "quick", "batch_size": 16, "device": args.device}
    arms = {
        "float32 eager": {"amp": False, "cuda_graph": "off", "compile": "off"},
        "bfloat16 compiled graph": {"amp": True, "cuda_graph": "auto", "compile": "on"},
    }
    losses: dict[str, list[float]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.seeds):
            for name, arm in arms.items():
                with report.part(f"seed {seed}, {name}") as found:
                    started = time.monotonic()
                    trainer = train(folder, f"{name.replace(' ', '_')}_{seed}", seed=seed, **common, **arm)
                    state = trainer.state
                    found |= {"validation_loss": state.validation_loss, "final": state.final, "steps": state.step}
                    found |= {"seconds": state.seconds, "tokens_per_second": state.tokens / state.seconds}
                    found["whole_s"] = time.monotonic() - started
                    found["notes"] = [trainer.run.info.get(key) for key in ("cuda_graph", "compiled")]
                    losses[name].append(state.validation_loss)
            n = min(map(len, losses.values()))
            if n > 1:
                plain, fast = losses.values()
                apart = [b - a for a, b in zip(plain, fast, strict=True)]
                half = student.ppf(0.975, n - 1) * statistics.stdev(apart) / n**0.5
                mean = statistics.mean(apart)
                report.put("fast minus plain", {"seeds": n, "mean": mean, "low": mean - half, "high": mean + half})


def some_text(folder: Path) -> str:
    """Write Python's own sources into a file of the folder and return its name."""
    files = sorted(Path(argparse.__file__).parent.glob("*.py"))[:40]
    text = folder / "text.txt"
    text.write_text("\n\n".join(f.read_text("utf-8", errors="replace") for f in files), encoding="utf-8")
    return str(text)


def session(args: argparse.Namespace) -> None:
    """Do everything in the time that there is: checks side by side first, then the timings alone."""
    started = time.monotonic()
    report = Report(args.out / "session.json")
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
        "LMPLAY_DATA": tempfile.mkdtemp(),
        "TORCHINDUCTOR_CACHE_DIR": tempfile.mkdtemp(),
    }
    with report.part("machine") as found:
        found |= machine()

    def left() -> float:
        return 60 * args.minutes - (time.monotonic() - started)

    def command(*words: str) -> list[str]:
        return [sys.executable, *words]

    here = Path(tempfile.mkdtemp())
    check, speed, device = "benchmarks/gpu_check.py", "benchmarks/speed.py", ["--device", args.device]
    tests = command("-m", "pytest", "-m", "gpu", "-q", "--maxfail=60", "-p", "no:cacheprovider")
    side_by_side: dict[str, list[str]] = {
        "curves": command(check, "curves", "--json", str(here / "curves.json"), *device),
        "new tests": [*tests, "tests/train"],
        "old tests": [*tests, "tests/test_cuda.py", "-n", "4", "-k", "not counted"],
    }
    for i in range(2):
        options = ["--json", str(here / f"resume_{i}.json"), "--shard", f"{i}/2"]
        side_by_side[f"resume {i}"] = command(check, "resume", *options, *device)
    for i in range(4):
        options = ["--json", str(here / f"coverage_{i}.json"), "--shard", f"{i}/4", "--new"]
        side_by_side[f"coverage {i}"] = command(check, "coverage", *options, *device)
    models = ["--models", "gpt2ish:tiny", "llama2:tiny"]
    warm = ["--seconds", "0.01", "--rounds", "1", "--json", str(here / "warm.json")]
    side_by_side["compile"] = command(speed, *device, "--parts", "large", "modes", *models, *warm)
    if args.only:
        side_by_side = {k: v for k, v in side_by_side.items() if k.split()[0] in args.only}
    together(side_by_side, report, env=env, folder=here, limit=min(145.0, 0.4 * left()))
    for file in sorted(here.glob("*.json")):
        with contextlib.suppress(ValueError):
            report.put(file.stem, json.loads(file.read_text("utf-8")))
    env["OMP_NUM_THREADS"] = "8"
    small = ["--small", "--rounds", "2"] if args.device == "cpu" else []
    results = ["--json", str(args.out / "speed.json"), *small, *device]
    several = ["benchmarks/several.py", *device, "--json", str(args.out / "several.json"), *small[:1]]
    alone = {  # and the part of what is left that each may take
        "speed": (command(speed, "--parts", "peak", "large", "modes", "trainer", *models, *results), 0.6),
        "several": (command(*several, "--seconds", "1.5"), 0.75),
        "shapes": (command(speed, "--parts", "shapes", "muon", "kernels", *models, *results), 1.0),
    }
    for name, (words, part) in alone.items():
        if not args.only or name in args.only:
            together({name: words}, report, env=env, folder=here, limit=part * (left() - 5))


def together(
    commands: dict[str, list[str]], report: Report, *, env: dict[str, str], folder: Path, limit: float
) -> None:
    """Run commands at the same time, for at most `limit` seconds, and note how each ended and what it said last."""
    started, running = time.monotonic(), {}
    for name, words in commands.items():
        log = open(folder / f"{name.replace(' ', '_')}.log", "w+", encoding="utf-8")  # noqa: SIM115
        running[name] = subprocess.Popen(words, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT), log
    waiting = dict(running)
    while waiting:
        for name, (process, log) in list(waiting.items()):
            late = time.monotonic() - started > limit
            if process.poll() is None and not late:
                continue
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            log.seek(0)
            text = log.read()
            log.close()
            del waiting[name]
            ended = {"status": process.returncode, "late": late, "wall_s": round(time.monotonic() - started, 1)}
            report.put(f"process {name}", {**ended, "end": text[-6000:]})
        time.sleep(0.2)


def machine() -> dict[str, Any]:
    """Return what this machine is."""
    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cores": os.cpu_count(),
        "cuda": torch.version.cuda,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["memory"] = torch.cuda.mem_get_info()
    with contextlib.suppress(OSError):
        done = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20)
        found["nvidia-smi"] = done.stdout[:3000]
    return found


if __name__ == "__main__":
    main()
