"""What checksums and syncs cost a training that saves every five minutes, as it does by default.

    python benchmarks/durability.py [--n-embd 384] [--n-layer 6] [--rounds 7] [--json FILE]

One process trains, reads all tokens of its store for the first time, and saves. Checksums and syncs are on and off in
turn, so that a noisy machine is noisy for both. Reports the median seconds of a save and of a million tokens that are
read for the first time, their ratios, and the share of a training: what is added by a save every SAVE_SECONDS, and by
reading each token once.
"""

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--n-embd", type=int, default=384)
    p.add_argument("--n-layer", type=int, default=6)
    p.add_argument("--rounds", type=int, default=7, help="counted saves with and without")
    p.add_argument("--json", type=Path, help="write the figures there")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def measure(args: argparse.Namespace, folder: Path) -> dict:
    from lmplay.data.store import TokenStore
    from lmplay.model.device import device_name
    from lmplay.train.saving import SAVE_SECONDS, save

    trainer, step = make_trainer(args, folder)
    store = trainer.setup.data.train["text"]
    times: dict[str, dict[bool, list[float]]] = {part: {True: [], False: []} for part in ("step", "save", "read")}
    for counted in [False] + [True] * args.rounds:
        for on in (True, False):
            with contextlib.nullcontext() if on else nothing_checked():
                seconds = {"step": timed(step), "save": timed(lambda: save(trainer, "running"))}
                opened = TokenStore.open(store.folder)
                seconds["read"] = timed(lambda: [opened.tokens(at, at + 4096) for at in range(0, 2**21, 4096)])
            for part, value in seconds.items():
                if counted:
                    times[part][on].append(value)
    median = {part: {on: statistics.median(values) for on, values in sides.items()} for part, sides in times.items()}
    saved = median["save"][True] - median["save"][False]
    read = (median["read"][True] - median["read"][False]) / 2**21
    rate = trainer.settings.batch_size * trainer.setup.context_len / median["step"][True]
    return {
        "cpu": device_name(trainer.device),
        "parameters": trainer.setup.cost.parameters,
        "rounds": args.rounds,
        "save_seconds": {"with": median["save"][True], "without": median["save"][False]},
        "save_ratio": round(median["save"][True] / median["save"][False], 3),
        "read_ratio": round(median["read"][True] / median["read"][False], 3),
        "tokens_per_second": round(rate),
        "share_of_training": {"saves": round(saved / SAVE_SECONDS, 5), "reading": round(read * rate, 7)},
    }


def nothing_checked():
    """Leave out the work of checksums and syncs: nothing is read for them, and nothing is written through."""
    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(os, "fsync", lambda file: None))
    for module in ("runs.checkpoints", "runs.recorder"):
        stack.enter_context(mock.patch(f"lmplay.{module}.of_file", lambda *args, **options: 0))
    stack.enter_context(mock.patch("lmplay.data.store.TokenStore._check_blocks", lambda *args: None))
    return stack


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def make_trainer(args: argparse.Namespace, folder: Path):
    """Return a real trainer on random text, and a function that takes its next step."""
    import numpy as np

    from lmplay.runs.settings import Settings
    from lmplay.train import setup
    from lmplay.train.batches import TrainingFeed
    from lmplay.train.loop import Trainer

    os.environ["LMPLAY_DATA"] = str(folder / "data")
    text, rng = folder / "text.txt", np.random.default_rng(0)
    text.write_text("\n\n".join("".join(chr(c) for c in rng.integers(97, 123, 600)) for _ in range(4500)))
    settings = Settings(
        exp="gpt2ish:6l",
        set=(f"n_layer={args.n_layer}", f"n_embd={args.n_embd}"),
        data=(str(text),),
        tokenizer="bytes",
        context_len=128,
        batch_size=4,
        out=f"{folder}/out",
        device="cpu",
    )
    trainer = Trainer(setup.set_up(settings))
    trainer.progress.start(10**6, 0, 0)
    phase = trainer.setup.phases[0]
    feed = TrainingFeed(trainer.setup.experiment, phase.order, trainer.setup.data.tokenizer.eot, 0)

    def step() -> None:
        trainer.step(phase, trainer.next_batch(feed, phase), trainer.state.step)
        trainer.flush(phase)

    return trainer, step


if __name__ == "__main__":
    main()
