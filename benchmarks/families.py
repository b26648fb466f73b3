"""Trains every family of experiments beside gpt2ish and writes what came out: experiments/RESULTS.md.

    python benchmarks/families.py [--only NAME...] [--jobs N]           size short: tiny models, few steps; 1-2 hours
    python benchmarks/families.py --size tiny [--device cuda]           all of the plan quick
    python benchmarks/families.py --size 6l --device cuda --jobs 3      the main ones at 6 layers of 768, larger text
    python benchmarks/families.py --cost [--device cuda]                time per step of the tiny ones, in turn

All runs of one size have the same data, settings and budget, under two seeds, and a third (not at 6l) if two leave it
open (the bounds are those for two looks, lmplay.stats.sequential). First the baseline is compared with itself. A run
that is there is not trained again. After each row the figures go into benchmarks/results/families.json and the page is
written anew, so the script can be stopped and typed again. `--jobs N` trains N runs at once, each with its share of the
cores as threads; `--on ray://HOST:PORT` trains them on the machines of a Ray cluster. `--cost` trains a few steps of
each model and of the baseline in turn and notes the ratio of the medians; run it on a quiet machine.

The text of size 6l is Python: the sources of the packages that this environment has installed (constraints.txt lists
those of the figures), in an order by their names' hashes up to --corpus-bytes. It is written below --out once; another
machine can be given that folder.
"""

import argparse
import hashlib
import json
import lzma
import signal
import statistics
import sys
import sysconfig
import tempfile
import textwrap
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from parts.ideas import FAIR, IDEAS
from parts.tuned_page import beside, tuned_lines

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "families.json"
PAGE = ROOT / "experiments" / "RESULTS.md"
ITSELF = "itself"
ONE_BY_ONE = "processes:1"

# at 6 layers of 768: the first of each family, but those whose claim is that they do no harm
IDEAS_6L = {
    "unified_embedding:8x": IDEAS["unified_embedding:tiny"],
    "unified_weights:rows": IDEAS["unified_weights:tiny"],
    "unified_weights_shared:norms": "all vectors predicted by shared matrices, here with the LayerNorms: a big boost",
    "sacrificial_all:norms": "unified embedding and shared predictions, here with the LayerNorms: they add up",
    "attention_norm:values": IDEAS["attention_norm:tiny"],
    "attention_position:add": IDEAS["attention_position:tiny"],
    "residual_weights:linear": IDEAS["residual_weights:tiny"],
    "neural_memory:6l": IDEAS["neural_memory:tiny"],
}
FAIR_6L = {
    "gpt2ish:std02": FAIR["gpt2ish:tiny_std02"],
    "gpt2ish:fast_embedding": FAIR["gpt2ish:tiny_fast_embedding"],
    "gpt2ish:12l": FAIR["gpt2ish:tiny_8l"],
    "llama2:6l": "RMSNorm, SwiGLU and rotary positions: what an idea is up against today",
}


@dataclass(frozen=True)
class Size:
    """What one size trains.

    baseline: what all are compared with. rival: the fair arm that meets what is better than the baseline.
    ideas, fair: rows by name, with what is claimed or what they are. settings: of all runs. seeds: the most of each.
    """

    baseline: str
    rival: str
    ideas: dict[str, str]
    fair: dict[str, str]
    settings: dict
    seeds: int

    @property
    def rows(self) -> list[str]:
        """In the order in which they are trained: something of every family first."""
        first = {name.partition(":")[0]: name for name in reversed(self.ideas)}
        return [
            ITSELF,
            *dict.fromkeys([*(name for name in self.ideas if name in first.values()), *self.fair, *self.ideas]),
        ]


TINY = {"training_plan": "quick", "validation_interval": 65}
SIZES = {
    "short": Size(
        "gpt2ish:tiny",
        "gpt2ish:tiny_fast_embedding",
        IDEAS,
        FAIR,
        TINY | {"batch_size": 4, "max_tokens": 102_400, "validation_tokens": 50_000},
        seeds=3,
    ),
    "tiny": Size("gpt2ish:tiny", "gpt2ish:tiny_fast_embedding", IDEAS, FAIR, TINY | {"batch_size": 16}, seeds=3),
    "6l": Size(
        "gpt2ish:6l",
        "gpt2ish:std02",
        IDEAS_6L,
        FAIR_6L,
        {"context_len": 512, "batch_size": 32, "lr": 6e-4, "max_tokens": 6_000_000, "validation_interval": 122},
        seeds=2,
    ),
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", choices=SIZES, default="short")
    p.add_argument("--only", nargs="+", metavar="NAME", default=[], help="only these experiments (or NAME:VARIANT)")
    p.add_argument("--device", default="cpu")
    p.add_argument("--jobs", type=int, default=1, help="train N runs at once (default 1): short for --on processes:N")
    p.add_argument("--on", metavar="BACKEND", help="where to train: processes:N, ray or ray://HOST:PORT")
    p.add_argument("--max-tokens", type=int, help="of training, each run")
    p.add_argument("--corpus-bytes", type=int, default=80_000_000, help="of Python for size 6l (default 80,000,000)")
    p.add_argument("--out", type=Path, default=Path("/tmp/lmplay_families"), help="where the runs are kept")
    p.add_argument("--cost", action="store_true", help="measure the time per step instead")
    p.add_argument(
        "--steps", "--updates", type=int, default=7, help="with --cost: counted steps of each arm (default 7)"
    )
    p.add_argument("--page-only", action="store_true", help="write the page from the figures that are there")
    args = p.parse_args()

    if args.jobs < 1:
        p.error(f"--jobs must be at least 1, not {args.jobs}")
    if args.on and args.jobs != 1:
        p.error("--jobs N is short for --on processes:N: give one of them")
    size = SIZES[args.size]
    if unknown := set(args.only) - {*size.rows, *(row.partition(":")[0] for row in size.rows)}:
        p.error(f"--only: size {args.size} has no {', '.join(sorted(unknown))}; it has {', '.join(size.rows)}")

    from lmplay.model.device import prepare_process

    prepare_process()
    common = {"device": args.device, "out": str(args.out / args.size)}
    if args.size == "6l":
        common["training_plan"] = str(code_plan(args.out / "code", args.corpus_bytes))
    if args.max_tokens:
        common["max_tokens"] = args.max_tokens
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    rows = [row for row in size.rows if not args.only or {row, row.partition(":")[0]} & set(args.only)]
    if args.page_only:
        made = []
    elif args.cost:
        size = SIZES["6l" if args.size == "6l" else "tiny"]
        made = ((row, cost_of(size, row, common, args.steps)) for row in rows if row != ITSELF)
    else:
        made = verdicts(size, rows, common, args.on or f"processes:{args.jobs}")
    for row, figures in made:
        mine = found.setdefault("cost" if args.cost else args.size, {})[row] = figures
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(row, json.dumps(mine), flush=True)
        write_page()
    write_page()


def write_page() -> None:
    """Write the page from the figures that are there, those of tuned_families.py first."""
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    PAGE.write_text(page(found), encoding="utf-8")


def code_plan(folder: Path, n_bytes: int) -> Path:
    """The plan of Python sources in `folder`, made if it isn't there."""
    plan = folder / "code.json"
    if not plan.exists():
        folder.mkdir(parents=True, exist_ok=True)
        root = Path(sysconfig.get_paths()["purelib"])
        files = {
            path.relative_to(root).as_posix(): path
            for path in root.rglob("*.py")
            if 200 < path.stat().st_size < 200_000
        }
        taken = 0
        with lzma.open(folder / "code.jsonl.xz", "wt", encoding="utf-8", preset=1) as file:
            for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()):
                if taken > n_bytes:
                    break
                text = files[name].read_text(encoding="utf-8", errors="replace")
                taken += len(text)
                file.write(json.dumps({"text": text}) + "\n")
        plan.write_text(
            json.dumps(
                {
                    "description": "the Python sources of installed packages",
                    "tokenizer": {"train": "bpe", "vocab_size": 8192},
                    "datasets": {"code": {"files": "code.jsonl.xz", "validation": {"fraction": 0.02}}},
                    "steps": [{"datasets": ["code"], "epochs": 4}],
                },
                indent=1,
            ),
            encoding="utf-8",
        )
    return plan


def settings_of(size: Size, common: dict, **others):
    from lmplay.runs.settings import Settings

    return Settings(**{"amp": True, "same_init": True, **size.settings, **common, **others})


def verdicts(size: Size, rows: list[str], common: dict, on: str) -> Iterator[tuple[str, dict]]:
    """Yield (row, figures) of each as it is done. on: where runs are trained, as --on has it.

    With room for several runs, what all rows need is trained first: two seeds of each, then the third ones.
    """
    if on != ONE_BY_ONE:
        train_first(size, rows, common, on)
    yield from ((row, verdict_on(size, row, common, on)) for row in rows)


def train_first(size: Size, rows: list[str], common: dict, on: str) -> None:
    """Train the runs that the verdicts of these rows need, as many at once as there is room for."""
    from lmplay.compare.compare import Comparer
    from lmplay.compare.job_trainer import JobTrainer

    comparers = [Comparer(request_of(size, row, common, on)) for row in rows]
    rivals = Comparer(request_of(size, size.rival, common, on))
    trainer = JobTrainer(comparers[0].trainer.how)
    open_ones = [*comparers, rivals]
    for pairs in ((0, 1), *((pair,) for pair in range(2, size.seeds))):
        needed = [job for pair in pairs for one in open_ones for job in one.jobs(pair, one.candidates)]
        jobs = {(job.variant.spec, job.settings.seed): job for job in needed}  # rows share the baseline's runs
        trainer.train(list(jobs.values()), may_crash={job.variant.label for job in jobs.values()})
        comparers = [Comparer(one.request) for one in comparers]  # they read what is there now
        open_ones = [one for one in comparers if not one.looks or is_open(one, pairs[-1] + 1)]
        open_ones += [rivals] if open_ones else []


def is_open(comparer, pairs: int) -> bool:
    """Whether more seeds are needed; a row that crashed or gets no verdict needs none."""
    from lmplay.errors import UserError

    try:
        (found,) = comparer.judge({arm.label: pairs for arm in comparer.sound}).candidates
    except UserError:
        return False
    return found.verdict is not None and not found.verdict.decided and not found.held_back


def request_of(size: Size, row: str, common: dict, on: str):
    from lmplay.compare.compare import ComparisonRequest

    arms = {"candidates": (), "seeds": size.seeds, "aa": True}
    if row != ITSELF:
        arms = {"candidates": (row,), "seeds": 2, "until_sure": True, "max_seeds": size.seeds}
    return ComparisonRequest(size.baseline, settings=settings_of(size, common), any_interval=False, on=on, **arms)


def verdict_on(size: Size, row: str, common: dict, on: str) -> dict:
    from lmplay.compare.compare import ComparisonRequest, run_comparison

    settings = settings_of(size, common)
    comparison = run_comparison(request_of(size, row, common, on))
    (one,) = comparison.candidates
    if one.verdict is None:
        return {"word": "no verdict", "why": "; ".join(one.warnings)}
    run, base, verdict = one.arm.runs[0], comparison.baseline.runs[0], one.verdict
    figures = in_figures(verdict) | {
        "confidence": round(verdict.confidence, 4),
        "seeds": verdict.n_seeds,
        "loss": round(verdict.candidate_loss, 4),
        "baseline_loss": round(verdict.baseline_loss, 4),
        "tokens": comparison.tokens,
        "parameters": int(run.number("parameters", "total")),
        "deployed": deployed(run),
        "baseline_parameters": int(base.number("parameters", "total")),
        "memory": memory_of(run, base),
        "device": run.get("device", "name"),
        "torch": str(run.get("versions", "torch")).partition("+")[0],
    }
    if verdict.word == "better" and not row.startswith("gpt2ish:"):
        comparison = run_comparison(
            ComparisonRequest(size.rival, (row,), settings, seeds=verdict.n_seeds, any_interval=False, on=on)
        )
        if verdict := comparison.candidates[0].verdict:
            figures["rival"] = in_figures(verdict)
    return figures


def memory_of(run, base) -> float | str:
    """Return the peak of memory as a multiple of the baseline's; "" on a CPU, where it is the process's.

    A process has its data, its compiler and the runs before in its memory, too.
    """
    ours, theirs = (one.number("progress", "peak_memory_bytes") for one in (run, base))
    on_gpu = "cuda" in str(run.get("settings", "device"))
    return round(ours / theirs, 2) if on_gpu and ours and theirs else ""


def in_figures(verdict) -> dict:
    return {"word": verdict.word, **{name: round(getattr(verdict, name), 4) for name in ("difference", "low", "high")}}


def deployed(run) -> int:
    """Parameters after folding."""
    from lmplay import contract, registry

    entry, _ = registry.find(run.get("experiment", "name"))
    experiment = contract.load(entry)
    model = experiment.build(experiment.Config(**run.get("config")))
    try:
        model = model.fold() if callable(getattr(model, "fold", None)) else model
    except ValueError:  # nothing to fold in this variant
        pass
    return sum(p.numel() for p in model.parameters())


def cost_of(size: Size, spec: str, common: dict, n_steps: int) -> dict:
    """Return the time per step as a multiple of the baseline's: medians of alternating steps of both."""
    from lmplay.model.device import device_name
    from lmplay.train.batches import TrainingFeed
    from lmplay.train.loop import Trainer
    from lmplay.train.setup import set_up

    with tempfile.TemporaryDirectory() as folder:
        steps = {}
        for name in (size.baseline, spec):
            trainer = Trainer(
                set_up(
                    settings_of(
                        size,
                        {**common, "out": folder},
                        exp=name,
                        validation_interval=10**9,
                        run_name=name.replace(":", "-"),
                    )
                )
            )
            phase = trainer.setup.phases[0]
            feed = TrainingFeed(trainer.setup.experiment, phase.order, trainer.setup.data.tokenizer.eot, 0)

            def step(trainer=trainer, phase=phase, feed=feed):
                started = time.perf_counter()
                trainer.step(phase, trainer.next_batch(feed, phase), trainer.state.step)
                trainer.flush(phase)
                return time.perf_counter() - started

            steps[name] = step
        times = {name: [] for name in steps}
        for counted in [False, False] + [True] * n_steps:
            for name, step in steps.items():
                seconds = step()
                if counted:
                    times[name].append(seconds)
    baseline, own = (statistics.median(times[name]) for name in (size.baseline, spec))
    setup = trainer.setup
    return {
        "time": round(own / baseline, 2),
        "microseconds_a_token": round(1e6 * own / (setup.settings.batch_size * setup.context_len), 2),
        "timed_on": device_name(trainer.device),
    }


INTRODUCTIONS = {
    "short": """## Tiny and short

4 layers of 256, context 256, vocabulary 4,096, against `gpt2ish:tiny`; the first {tokens} tokens of the plan `quick`,
{steps} steps of 4 sequences, all arms at a peak rate of 1e-3. So little training tells what learns fast, not what ends
best.""",
    "tiny": """## Tiny, on all of the plan `quick`

The same models; {tokens} tokens, {steps} steps of 16 sequences, all arms at a peak rate of 1e-3.""",
    "6l": """## Six layers of 768, on {tokens} tokens

With 12 heads, context 512 and vocabulary 8,192, against `gpt2ish:6l`; {steps} steps of 32 sequences, all arms at a peak
rate of 6e-4, on the Python sources of installed packages.""",
}
EARLIER = """## Earlier tables: one learning rate for all

Made by `benchmarks/families.py` from real runs; do not edit. Read them with care:"""
CAVEATS = (
    "All arms of a table learn at one rate, which nobody tuned for any of them. A difference may be no more than what "
    "another rate gives; `gpt2ish:tiny_fast_embedding`, a baseline whose embedding learns 10 times as fast, shows how "
    "much that can be.",
    "The claims are the original's (jmward01/lmplay): single runs of 6 to 12 layers of 768, on up to 6 million "
    "documents of Wikipedia. The runs here read 102,400 to 6,000,128 tokens, a small part of that. So the tables "
    "neither confirm nor refute a claim.",
    "`trained` and `deployed` are millions of parameters before and after folding, beside the baseline's. Where "
    "`deployed` is larger, the gain may be that of a larger model: `rank_promotion:tiny_alternating` has 61% more.",
    "No memory is given for runs on a CPU: there the peak is that of the process, with data and compiler in it.",
    "In each table all runs have the same data in the same order, the same initial values and settings (`--amp "
    "--same-init`). Each model has two seeds, and a third if two left it open.",
)
COLUMNS = """Difference: validation loss minus the baseline's, in nats per token; below 0 is better. The interval
holds the true difference with 95%, over seeds and documents, for both looks together. Each row is a verdict of its
own: of {rows} rows about {wrong} may be wrong by chance. `time`: per step, as a multiple of the baseline's (medians
of alternating steps). `against`, if a row is better: the same runs against the arm of gpt2ish that gains most at no
cost. A row that is not better there may owe its gain to the embedding alone (95%, one look)."""
LOST = """## Lost runs

The figures below are what the script printed on a borrowed GPU. The runs were not kept, so nobody can judge them again:
take them for hints. One of them changes its sign between sizes: embeddings that start at 0.2 instead of 0.02 are worse
by 0.0732 at 4 layers of 256 and better by 0.1758 at 6 layers of 768. So what is found at one size and one rate says
nothing about another."""


def page(found: dict) -> str:
    sizes = [size for size in SIZES if found.get(size)]
    kept = [row for size in sizes for row in found[size].values() if "difference" in row and not row.get("lost")]
    lines = ["# What came of the ideas", "", *tuned_lines(), EARLIER, ""]
    lines += [line for caveat in CAVEATS for line in _item(caveat)]
    lines += ["", *textwrap.wrap(COLUMNS.format(rows=len(kept), wrong=round(len(kept) * 0.05)), 120), ""]
    for lost in (False, True):
        parts = [part for name in sizes if (part := of_size(found, name, lost))]
        lines += [LOST, ""] if lost and parts else []
        lines += [line for part in parts for line in part]
    return "\n".join(lines)


def of_size(found: dict, name: str, lost: bool) -> list[str]:
    """Return the tables of one size: of the rows whose runs were kept, or of those whose runs are lost."""
    size = SIZES[name]
    rows = {
        row: found.get("cost", {}).get(row, {}) | figures
        for row, figures in found[name].items()
        if bool(figures.get("lost")) is lost
    }
    if not rows:
        return []
    tokens = max(row["tokens"] for row in rows.values() if "tokens" in row)
    batch = size.settings["batch_size"] * size.settings.get("context_len", 256)
    machines, timed = _named(rows.values(), "device"), _named(rows.values(), "timed_on")
    origin = f"Trained on: {machines}, torch {_named(rows.values(), 'torch')}."
    introduction = INTRODUCTIONS[name].format(tokens=f"{tokens:,.0f}", steps=f"{tokens / batch:,.0f}")
    if lost:
        introduction = introduction.replace("## ", "## Lost: ", 1)
    lines = [introduction, origin + (f" Timed on: {timed}." if timed else ""), ""]
    ideas = {ITSELF: "the baseline under other seeds: no difference"} | size.ideas
    if rows.keys() & ideas.keys():
        lines += [*table(size, rows, ideas, "claimed"), ""]
    if rows.keys() & size.fair.keys():
        lines += [
            "What the gains may owe to something else, or what else would have brought them:",
            "",
            *table(size, rows, size.fair, "what it is"),
            "",
        ]
    return lines


def _named(rows: Iterable[dict], what: str) -> str:
    return ", ".join(sorted({row[what] for row in rows if what in row}))


def table(size: Size, rows: dict[str, dict], of: dict[str, str], heading: str) -> list[str]:
    rows = {name: rows[name] for name in of if name in rows}
    more = {
        f"against `{size.rival}`": lambda row: (
            "rival" in row and f"{row['rival']['difference']:+.4f}, {row['rival']['word']}"
        ),
        "time": lambda row: row.get("time"),
        "memory": lambda row: row["memory"] if row.get("device", "").startswith("NVIDIA") else "",
    }
    more = {head: cell for head, cell in more.items() if any(cell(row) for row in rows.values() if "memory" in row)}
    heads = ["model", heading, "verdict", "difference", "interval", "seeds", *more, "trained", "deployed"]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for name, row in rows.items():
        cells = [f"`{name}`", of[name]]
        if "difference" not in row:
            lines.append(_line([*cells, f"{row['word']}: {row['why']}", *[""] * (len(heads) - 3)]))
            continue
        cells += [row["word"], f"{row['difference']:+.4f}", f"{row['low']:+.4f} to {row['high']:+.4f}", row["seeds"]]
        cells += [cell(row) or "" for cell in more.values()]
        cells += [beside(row[key], row["baseline_parameters"]) for key in ("parameters", "deployed")]
        lines.append(_line(cells))
    return lines


def _item(text: str) -> list[str]:
    return textwrap.wrap(text, 120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def _line(cells: Iterable) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from lmplay.compare.jobs import Stopped
    from lmplay.errors import UserError

    try:
        main()
    except (KeyboardInterrupt, Stopped):
        sys.exit("stopped; the same command goes on")
    except UserError as error:
        print(f"families.py: {error}", file=sys.stderr)
        sys.exit(2)
