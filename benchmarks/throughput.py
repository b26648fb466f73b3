"""How fast the trainer trains: against a bare loop over the same model and batches, and against a textbook loop.

    python benchmarks/throughput.py [--vocabulary 50257] [--rounds 5] [--json FILE]

Three arms, each a process of its own (they need allocators set up differently), take turns, one step at a time, so
that a noisy machine is noisy for all of them:

  harness    the trainer's own step, as lmp_trainer --amp runs it
  bare       the same model, batches, precision, loss and optimizer in a loop of a few lines
  textbook   eager float32, logits held whole, F.cross_entropy, the allocator as it comes

Reports tokens per second (median over the steps) and the ratio of medians.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

MODEL = {"n_layer": 6, "n_embd": 384, "n_head": 6}
CONTEXT, BATCH = 256, 32


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--vocabulary", type=int, default=50257)
    p.add_argument("--rounds", type=int, default=7, help="counted steps of each arm")
    p.add_argument("--compile", action="store_true", help="harness and bare loop compile the model")
    p.add_argument("--json", type=Path, help="write the figures there")
    args = p.parse_args()
    context = multiprocessing.get_context("spawn")
    sides = {}
    for name in ("harness", "bare", "textbook"):
        ours, theirs = context.Pipe()
        process = context.Process(target=run_side, args=(name, args.vocabulary, args.compile, theirs), daemon=True)
        process.start()
        sides[name] = (process, ours)
    info = {name: pipe.recv() for name, (_, pipe) in sides.items()}
    times = {name: [] for name in sides}
    for counted in [False, False] + [True] * args.rounds:
        for name, (_, pipe) in sides.items():
            pipe.send("step")
            seconds = pipe.recv()
            if counted:
                times[name].append(seconds)
    for process, pipe in sides.values():
        pipe.send("stop")
        process.join()
    median = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "machine": info["harness"],
        "model": MODEL,
        "vocabulary": args.vocabulary,
        "context": CONTEXT,
        "batch": BATCH,
        "compile": args.compile,
        "rounds": args.rounds,
        "tokens_per_second": {name: round(BATCH * CONTEXT / value) for name, value in median.items()},
        "harness_over_bare": round(median["bare"] / median["harness"], 3),
        "harness_over_textbook": round(median["textbook"] / median["harness"], 3),
        "seconds": {name: [round(v, 4) for v in values] for name, values in times.items()},
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def run_side(name: str, vocabulary: int, compile_: bool, pipe) -> None:
    if name != "textbook":
        from lmplay.model.device import prepare_process

        prepare_process()
    import torch

    step = {"harness": harness, "bare": bare, "textbook": textbook}[name](vocabulary, compile_)
    from lmplay.model.device import device_name

    pipe.send({"cpu": device_name(torch.device("cpu")), "threads": torch.get_num_threads(), "torch": torch.__version__})
    while pipe.recv() == "step":
        start = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - start)


def make_trainer(vocabulary: int, compile_: bool, folder: str, amp: bool = True):
    """Return the real trainer, with everything that it records, on random tokens (a store made on the spot)."""
    import numpy as np

    from lmplay.data import prepare, tokenizers
    from lmplay.runs.settings import Settings
    from lmplay.train import setup
    from lmplay.train.loop import Trainer

    text = Path(folder) / "text.txt"
    rng = np.random.default_rng(0)
    text.write_text("\n\n".join("".join(chr(c) for c in rng.integers(97, 123, 600)) for _ in range(4000)))
    original = tokenizers.load_tokenizer("bytes")
    original.vocab_size = vocabulary  # the products are as large as with any tokenizer of this size
    tokenizers.load_tokenizer = prepare.load_tokenizer = lambda spec: original
    settings = Settings(
        exp="gpt2ish:6l",
        set=tuple(f"{k}={v}" for k, v in MODEL.items()),
        data=(str(text),),
        tokenizer="bytes",
        context_len=CONTEXT,
        batch_size=BATCH,
        amp=amp,
        compile=compile_,
        out=f"{folder}/out",
        device="cpu",
        mini_batch_size=0,
        validation_interval=10**9,
    )
    trainer = Trainer(setup.set_up(settings))

    return trainer


def harness(vocabulary, compile_):
    from lmplay.train.batches import TrainingFeed

    trainer = make_trainer(vocabulary, compile_, tempfile.mkdtemp())
    phase = trainer.setup.phases[0]
    feed = TrainingFeed(trainer.setup.experiment, phase.order, trainer.setup.data.tokenizer.eot, 0)

    def step():
        trainer.step(phase, trainer.next_batch(feed, phase), trainer.state.step)
        trainer.flush(phase)

    return step


def bare(vocabulary, compile_):
    import torch

    from lmplay.model.device import precision
    from lmplay.model.loss import score
    from lmplay.train.batches import TrainingFeed

    trainer = make_trainer(vocabulary, compile_, tempfile.mkdtemp())
    model, parameters = trainer.model, trainer.parameters
    phase = trainer.setup.phases[0]
    feed = TrainingFeed(trainer.setup.experiment, phase.order, trainer.setup.data.tokenizer.eot, 0)
    batches = iter([feed.batch(i * BATCH, BATCH) for i in range(40)])
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    size = trainer.micro_batch_size

    def step():
        batch = next(batches)
        for start in range(0, BATCH, size):
            with precision(torch.device("cpu"), True, CONTEXT):
                result = score(model, batch.inputs[start : start + size], batch.targets[start : start + size])
            (result.loss_sum / batch.targets.numel()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def textbook(vocabulary, compile_):
    import torch
    import torch.nn.functional as F

    from lmplay.train.batches import TrainingFeed

    trainer = make_trainer(vocabulary, False, tempfile.mkdtemp(), amp=False)
    phase = trainer.setup.phases[0]
    feed = TrainingFeed(trainer.setup.experiment, phase.order, trainer.setup.data.tokenizer.eot, 0)
    batches = iter([feed.batch(i * BATCH, BATCH) for i in range(40)])
    model = trainer.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def step():
        batch = next(batches)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch.inputs).flatten(0, 1), batch.targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
