"""Trains every family of experiments beside gpt2ish:tiny and writes what came out: experiments/RESULTS.md.

    python benchmarks/families.py [--only NAME...] [--max-tokens N] [--out FOLDER]     trains what is missing, judges, writes
    python benchmarks/families.py --cost                                              time of an update, the two sides in turn

All on the plan `quick` with the settings below, the same for all, under two seeds, and a third where two leave it open (the bounds
are those for two looks, lmplay.stats.sequential). A run that is there is not trained again; after each family the
figures go into benchmarks/results/families.json and the page is written anew, so that it can be stopped and typed again.
`--cost` trains a few updates of each model and of the baseline in turn and notes the ratio of the medians; run it on a quiet machine.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "families.json"
PAGE = ROOT / "experiments" / "RESULTS.md"
BASELINE = "gpt2ish:tiny"

# what is claimed of each, in the original (jmward01/lmplay) at 6 or 12 layers of 768 on Wikipedia, one run each; the first of a
# family first, then what else it has, so that a run that is stopped has something of every family
FAMILIES = {
    "unified_embedding:tiny": "8 times as wide: 0.16 nats better than a model twice as deep",
    "unified_weights:tiny": "row gains on all weights: about 0.10 nats better early",
    "unified_weights_shared_bias:tiny_gain": "biases predicted by one shared network, row gains",
    "unified_weights_private:tiny": "biases predicted by a network of each layer",
    "unified_weights_shared:tiny": "all vectors predicted by shared matrices, no LayerNorms in the blocks: a big boost",
    "sacrificial_embedding_weights:tiny": "both of the first two: they add up",
    "sacrificial_all:tiny": "unified embedding and shared predictions, no LayerNorms in the blocks: they add up",
    "combined_all:tiny": "and learned residual weights",
    "attention_norm:tiny": "values normalised: about 0.06 nats better",
    "attention_position:tiny": "a learned term for the distance: position matters more than one thinks",
    "attention_focus:tiny": "a temperature of each query and head: nothing claimed",
    "residual_weights:tiny": "stream and branch weighted by feature, predicted: nothing claimed",
    "neural_memory:tiny": "cheaper than a transformer layer, and worth more",
    "memory_linear:tiny_direct": "every linear layer and the memory beside it",
    "memory_experts:tiny": "every linear layer and a mixture of learned vectors beside it",
    "memory_blocks:tiny": "blocks of such mixtures: each adds something, two in a row at most",
    "rank_promotion:tiny_alternating": "attention to summaries only: the best of its kind",
    "unified_embedding:tiny_1x": "a network behind a table of the same width: helps a little",
    "unified_embedding:tiny_16x": "16 times as wide: 0.20 nats better than a model twice as deep",
    "unified_embedding:tiny_positions": "on the positions: does not help",
    "unified_embedding:tiny_version2": "an ordinary table, a wider network, LayerNorm: nothing claimed",
    "unified_weights:tiny_columns": "row and column gains",
    "unified_weights:tiny_offsets": "gains and offsets of both",
    "unified_weights_private:tiny_column_gain": "column gains predicted: unstable",
    "attention_norm:tiny_keys": "keys normalised: worse than none early",
    "attention_norm:tiny_both": "keys and values: better than none, worse than values alone",
    "attention_norm:tiny_queries": "queries normalised: worse",
    "attention_position:tiny_multiply": "multiplied instead of added: better at first, worse in the long run",
    "attention_position:tiny_last_blocks": "the last two blocks only: nothing claimed",
    "attention_focus:tiny_simple": "a temperature of each block: a tiny early gain that does not last",
    "residual_weights:tiny_free": "by feature, free: nothing claimed",
    "residual_weights:tiny_scalar_linear": "two numbers, predicted: nothing claimed",
    "residual_weights:tiny_scalar_free": "two numbers, free: nothing claimed",
    "neural_memory:tiny_own_memories": "a memory of each block: a marked improvement",
    "recurrent_gpt2ish:tiny": "step by step training does not hurt",
}
# like for like: what the families above may owe to something else
FAIR = {
    "gpt2ish:tiny_std02": "embeddings that start at 0.2 instead of 0.02, as a unified embedding's output does",
    "gpt2ish:tiny_std1": "embeddings that start at 1.0, as the historical baseline's",
    "gpt2ish:tiny_fast_embedding": "10 times the learning rate for the embedding",
    "gpt2ish:tiny_6l": "half as deep again: what a family that grows the deployed model has to beat",
    "gpt2ish:tiny_8l": "twice as deep: what unified embeddings are said to beat",
    "gpt2ish:tiny_wide": "a quarter wider",
    "unified_weights_shared:tiny_norms": "with the LayerNorms of gpt2ish",
    "sacrificial_all:tiny_norms": "with the LayerNorms of gpt2ish",
    "combined_all:tiny_norms": "with the LayerNorms of gpt2ish",
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", metavar="NAME", default=[], help="only these families (or NAME:VARIANT)")
    p.add_argument("--max-tokens", type=int, default=400_000, help="of training, each run (default 400,000)")
    p.add_argument("--out", type=Path, default=Path("/tmp/lmplay_families"), help="where the runs are kept")
    p.add_argument("--cost", action="store_true", help="measure the time of an update instead")
    p.add_argument("--updates", type=int, default=7, help="with --cost: counted updates of each side")
    args = p.parse_args()

    from lmplay.train.device import prepare_process
    prepare_process()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    first = list(FAMILIES)[:17]
    for spec in {**dict.fromkeys(first), **FAIR, **FAMILIES}:
        if args.only and not {spec, spec.partition(":")[0]} & set(args.only):
            continue
        row = found.setdefault(spec, {})
        row |= cost_of(spec, args.updates) if args.cost else verdict_on(spec, args.max_tokens, args.out)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(found), encoding="utf-8")
        print(spec, json.dumps(row), flush=True)


def settings(**others):
    from lmplay.train.settings import Settings
    return Settings(training_plan="quick", batch_size=16, amp=True, device="cpu", same_init=True, **others)


def verdict_on(spec: str, max_tokens: int, out: Path) -> dict:
    from lmplay.compare.conduct import Request, conduct
    comparison = conduct(Request(BASELINE, (spec,), settings(max_tokens=max_tokens, out=str(out)), seeds=2, until_sure=True, max_seeds=3))
    one, = comparison.candidates
    run, base, verdict = one.side.runs[0], comparison.baseline.runs[0], one.verdict
    return {"word": verdict.word, "difference": round(verdict.difference, 4), "low": round(verdict.low, 4), "high": round(verdict.high, 4),
            "confidence": round(verdict.confidence, 4), "seeds": verdict.n_seeds, "loss": round(verdict.candidate_loss, 4),
            "baseline_loss": round(verdict.baseline_loss, 4), "tokens": comparison.tokens, "parameters": int(run.number("parameters", "total")),
            "deployed": deployed(run), "baseline_parameters": int(base.number("parameters", "total")),
            "memory": round(run.number("progress", "peak_memory_bytes") / base.number("progress", "peak_memory_bytes"), 2)}


def deployed(run) -> int:
    """Parameters after folding."""
    from lmplay import contract, registry
    entry, _ = registry.find(run.get("experiment", "name"))
    experiment = contract.load(entry)
    model = experiment.build(experiment.Config(**run.get("config")))
    folded = model.fold() if callable(getattr(model, "fold", None)) else model
    return sum(p.numel() for p in folded.parameters())


def cost_of(spec: str, updates: int) -> dict:
    """How many times as long an update takes as the baseline's: medians of alternating updates of both."""
    from lmplay.train.feed import TrainingFeed
    from lmplay.train.loop import Trainer
    from lmplay.train.progress import Progress
    from lmplay.train.run import set_up
    with tempfile.TemporaryDirectory() as folder:
        steps = {}
        for name in (BASELINE, spec):
            trainer = Trainer(set_up(settings(exp=name, out=folder, validation_interval=10**9, run_name=name.replace(":", "-"))))
            trainer.progress = Progress(10**6, 0, 0)
            phase = trainer.setup.phases[0]
            feed = TrainingFeed(trainer.setup.experiment, phase.order, trainer.setup.data.tokenizer.eot, 0)

            def step(trainer=trainer, phase=phase, feed=feed):
                started = time.perf_counter()
                trainer._update(phase, trainer._next_batch(feed, phase), trainer.state["step"])
                trainer._flush(phase)
                return time.perf_counter() - started
            steps[name] = step
        times = {name: [] for name in steps}
        for counted in [False, False] + [True] * updates:
            for name, step in steps.items():
                seconds = step()
                if counted:
                    times[name].append(seconds)
    baseline, own = (statistics.median(times[name]) for name in (BASELINE, spec))
    return {"time": round(own / baseline, 2), "microseconds_a_token": round(1e6 * own / (16 * 256), 1)}


def page(found: dict) -> str:
    from lmplay.train.device import device_name
    import torch
    judged = [row for row in found.values() if "word" in row]
    lines = ["# What came of the ideas", "",
             "Made by `python benchmarks/families.py` from real runs; do not edit. Every model at size `tiny` (4 layers of 256, context 256) against",
             f"`{BASELINE}` on the plan `quick`, {max((row['tokens'] for row in judged), default=0):,.0f} tokens, batch 16, `--amp`, the same data, order and initial values;",
             "two seeds, a third where two left it open. Difference: validation loss minus the baseline's, nats a token; below 0 is better.",
             "The interval holds the true difference with 95%, over seeds and documents, for both looks together. Each row is a",
             f"verdict of its own: of {len(judged)} rows about {len(judged) * 0.05:.0f} may be wrong by chance. `time`: of an update, as a multiple of the baseline's (alternating",
             "updates, medians, two cores). `memory`: peak of the process, likewise. `trained`, `deployed`: parameters before and after folding, millions.",
             f"Machine: {device_name(torch.device('cpu'))}, torch {torch.__version__.partition('+')[0]}.",
             "A small model, little text and few updates: what a row says holds here, and need not at 100 times the size.", "",
             "The claims are the original's (jmward01/lmplay: single runs of 6 to 12 layers of 768 on Wikipedia).", "",
             *table(found, FAMILIES, "claimed"), "", "## Fair arms", "",
             "What the gains above may owe to something else: plain gpt2ish with other initial values or rates for its embedding, and", "larger ones.", "",
             *table(found, FAIR, "what it is"), ""]
    return "\n".join(lines)


def table(found: dict, of: dict[str, str], heading: str) -> list[str]:
    lines = [f"| model | {heading} | verdict | difference | interval | seeds | time | memory | trained | deployed |",
             "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for spec, claim in of.items():
        row = found.get(spec, {})
        if "word" not in row:
            continue
        lines.append(f"| `{spec}` | {claim} | {row['word']} | {row['difference']:+.4f} | {row['low']:+.4f} to {row['high']:+.4f} | {row['seeds']} | "
                     f"{row.get('time', '')} | {row['memory']} | {row['parameters'] / 1e6:.2f} | {row['deployed'] / 1e6:.2f} |")
    return lines


if __name__ == "__main__":
    main()
