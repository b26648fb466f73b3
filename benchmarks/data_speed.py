"""How fast text becomes tokens, how soon training starts, and what the size of a dataset costs a step.

    python benchmarks/data_speed.py [--parts preparation start size] [--megabytes 48] [--rounds 5] [--json FILE]

The parts are those of `benchmarks/speed.py`, too. Sides take turns; given are medians, and the medians and quartiles of
each side's ratio to the first.

preparation   MB/s of text that a store is made of, beside tiktoken's encode_batch on the same texts in memory, the
              `map` of Hugging Face's datasets where it is installed, and what one process encodes times the cores;
              memory of one process and its workers at once and at four times the text
start         from the command line to the first step on prepared data, beside `import torch`
size          how long the batch of a step takes, and the memory, with datasets of 10 million to 10 billion tokens
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCABULARY = 4096

BUILD = """
import json, re, resource, sys, time
from pathlib import Path
from lmplay.data.store_writer import build
from lmplay.data.tokenizers import load_tokenizer

class Rows:
    def __iter__(self):
        with open(sys.argv[2], encoding="utf-8") as lines:
            for line in lines:
                yield [(json.loads(line)["text"], True)]

if __name__ == "__main__":
    tokenizer = load_tokenizer("bpe:" + sys.argv[3])
    tokenizer.encode("a")
    started = time.perf_counter()
    store = build(Path(sys.argv[1]), Rows(), tokenizer, processes=int(sys.argv[4]))
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status")  # ru_maxrss is that of the process that has started this one, where it is higher
    own = int(re.search("VmHWM: *([0-9]+)", status.read_text().replace(chr(9), " "))[1]) if status.exists() else 0
    peaks = [own * 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024]
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = [one.ru_utime + one.ru_stime for one in used]
    began = time.process_time()
    for _ in Rows():
        pass
    print(json.dumps([seconds, *peaks, *cpu, time.process_time() - began]))
"""

START = """
import sys, time
from lmplay.cli import trainer
from lmplay.train import loop

def first_step(self, *given):
    loop.Trainer.step = taken
    result = taken(self, *given)
    print("first step", time.time(), file=sys.__stdout__, flush=True)  # sys.stdout goes into the run's log
    return result

if __name__ == "__main__":
    taken, loop.Trainer.step = loop.Trainer.step, first_step
    trainer.main(sys.argv[1:])
"""


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS), metavar="PART")
    p.add_argument("--megabytes", type=int, default=48, help="of text (default: 48)")
    p.add_argument("--rounds", type=int, default=5, help="turns of each side (default: 5)")
    p.add_argument("--small", action="store_true", help="so little that it only shows that the script runs")
    p.add_argument("--json", type=Path, help="write the results there")
    args = p.parse_args()
    found: dict[str, Any] = {}
    for part in args.parts:
        found[part] = PARTS[part](args.megabytes, args.rounds, args.small)
        print(part, json.dumps(found[part], indent=1), flush=True)
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def in_turn(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, Any]:
    """Return the median of what each side gives, and its ratio to the first side with quartiles."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            values[name].append(side())
    first = next(iter(values.values()))
    rows = {}
    for name, own in values.items():
        ratios = sorted(a / b for a, b in zip(own, first, strict=True))
        quartiles = [round(ratios[len(ratios) // 4], 3), round(ratios[-1 - len(ratios) // 4], 3)]
        ratio = round(statistics.median(ratios), 3)
        ordered = sorted(own)
        rows[name] = {"median": round(statistics.median(own), 4), "ratio": ratio, "quartiles": quartiles}
        rows[name]["median_quartiles"] = [ordered[len(own) // 4], ordered[-1 - len(own) // 4]]
    return rows


def preparation(megabytes: int, rounds: int, small: bool) -> dict[str, Any]:
    """Compare ways to make tokens of the standard library's sources, in MB/s."""
    from lmplay.data.tokenizer_training import train_tokenizer
    from lmplay.data.tokenizers import load_tokenizer
    from lmplay.machine import cores

    texts = sources(1 if small else megabytes)
    n_bytes = sum(len(text.encode()) for text in texts)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        train_tokenizer({"train": "bpe", "vocab_size": VOCABULARY}, texts[:300], folder / "tokenizer")
        tokenizer: Any = load_tokenizer(f"bpe:{folder / 'tokenizer'}")
        one, four = folder / "one.jsonl", folder / "four.jsonl"
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        one.write_text("".join(lines), encoding="utf-8")
        four.write_text("".join(lines * 4), encoding="utf-8")

        def built(rows: Path) -> list[float]:
            shutil.rmtree(folder / "store", ignore_errors=True)
            words = [folder / "store", rows, folder / "tokenizer", cores()]
            return json.loads(ran(folder, BUILD, *words))

        def core_times_cores() -> float:
            part = texts[:: cores()]  # as much as a core has of it
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            started = time.perf_counter()
            tokenizer.encode_batch(part)
            return cores() * sum(len(text.encode()) for text in part) / 1e6 / (time.perf_counter() - started)

        def with_tiktoken() -> float:
            encoding = tokenizer._encoding
            started = time.perf_counter()
            encoding.encode_ordinary_batch(texts, num_threads=cores())
            return n_bytes / 1e6 / (time.perf_counter() - started)

        sides = {
            "lmplay": lambda: n_bytes / 1e6 / built(one)[0],
            "one process x cores": core_times_cores,
            "tiktoken encode_batch": with_tiktoken,
        }
        if importlib.util.find_spec("datasets"):
            sides["datasets.map"] = lambda: n_bytes / 1e6 / mapped(one, tokenizer, cores(), folder / "cache")
        found = {"MB": round(n_bytes / 1e6, 1), "cores": cores(), "MB/s": in_turn(sides, rounds)}
        once, more = built(one), built(four)
        found["peak MiB of the process and of a worker"] = {
            name: [round(peak / 2**20) for peak in of[1:3]] for name, of in (("once", once), ("four times", more))
        }
        # of the three times that come on top, in which nothing starts
        found["CPU ms per MB of the process, of its workers, and of reading the rows alone"] = [
            round(1000 * (after - before) / (3 * n_bytes / 1e6), 1)
            for before, after in zip(once[3:], more[3:], strict=True)
        ]
        found["MB/s of three times more"] = round(3 * n_bytes / 1e6 / (more[0] - once[0]), 1)
    return found


def sources(megabytes: int) -> list[str]:
    """Return the standard library's sources, again and again with other beginnings, until there is so much text."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    once = [file.read_text("utf-8", errors="replace") for file in files]
    texts: list[str] = []
    size = turn = 0
    while size < megabytes * 1e6:
        for text in once:
            texts.append(f"# {turn}\n{text}")
            size += len(text)
        turn += 1
    return texts


def mapped(rows: Path, tokenizer: Any, processes: int, cache: Path) -> float:
    """Return how long the `map` of datasets takes to make tokens of rows that it has read already."""
    import datasets

    datasets.disable_progress_bars()
    shutil.rmtree(cache, ignore_errors=True)
    dataset = datasets.load_dataset("json", data_files=str(rows), split="train", cache_dir=str(cache))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    started = time.perf_counter()
    dataset.map(
        lambda batch: {"ids": tokenizer.encode_batch(batch["text"])},
        batched=True,
        num_proc=processes,
        remove_columns=["text"],
        load_from_cache_file=False,
    )
    return time.perf_counter() - started


def start(megabytes: int, rounds: int, small: bool) -> dict[str, Any]:
    """Measure the seconds from the command line to the end of the first step, and those of torch's import."""
    words = ["--exp", "gpt2ish:tiny", "--training-plan", "quick", "--context-len", "64", "--batch-size", "4"]
    words += ["--max-steps", "1", "--validation-tokens", "100", "--compile", "off", "--device", "cpu"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def first_step() -> float:
            shutil.rmtree(folder / "gpt_out", ignore_errors=True)
            began = time.time()
            lines = [line for line in ran(folder, START, *words).splitlines() if line.startswith("first step")]
            if not lines:
                raise SystemExit("lmp_trainer has ended without a first step")
            return float(lines[0].split()[-1]) - began

        def import_torch() -> float:
            began = time.time()
            subprocess.run([sys.executable, "-c", "import torch"], check=True)
            return time.time() - began

        first_step()  # prepares the data
        return {"seconds": in_turn({"import torch": import_torch, "first step": first_step}, rounds)}


def size(megabytes: int, rounds: int, small: bool) -> dict[str, Any]:
    """Measure the batch of a step, with datasets of several sizes: files with holes, which take no space."""
    sizes = [10**6, 10**7] if small else [10**7, 10**8, 10**9, 10**10]
    with tempfile.TemporaryDirectory() as temporary:
        orders = {f"{n:,} tokens": order_of(Path(temporary), n) for n in sizes}
        at = iter(range(10**9))

        def milliseconds(order: Any) -> float:
            began = time.perf_counter()
            for _ in range(20):
                order.windows(7919 * next(at) % (order.n_windows - 16), 16)
            return 50 * (time.perf_counter() - began)

        sides = {name: (lambda order=order: milliseconds(order)) for name, order in orders.items()}
        found: dict[str, Any] = {"milliseconds for 16 windows of 256": in_turn(sides, rounds)}
    from lmplay.machine import peak_memory

    return found | {"peak MiB": round(peak_memory() / 2**20)}


def order_of(folder: Path, n_tokens: int) -> Any:
    """Return the order of samples of a dataset of zeros, in documents of 1000 tokens."""
    import numpy as np

    from lmplay.data.order import SampleOrder
    from lmplay.data.plan_spec import PhaseSpec
    from lmplay.data.store import TokenStore, shard_name
    from lmplay.data.store_files import SHARD_TOKENS

    store = folder / str(n_tokens)
    store.mkdir()
    offsets = np.arange(0, n_tokens + 1, 1000, dtype="<i8")
    for name in ("document_offsets", "byte_offsets"):
        offsets.tofile(store / f"{name}.bin")
    (store / "unscored.bin").touch()
    for number, begin in enumerate(range(0, n_tokens, SHARD_TOKENS)):
        (store / shard_name(number)).touch()
        os.truncate(store / shard_name(number), 2 * min(SHARD_TOKENS, n_tokens - begin))
    meta = {"format": 1, "n_tokens": n_tokens, "n_documents": len(offsets) - 1, "n_bytes": n_tokens, "n_unscored": 0}
    meta |= {"dtype": "<u2", "shard_tokens": SHARD_TOKENS, "vocab_size": 300, "eot": 299, "hash": ""}
    (store / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    phase = PhaseSpec("p", ["d"], epochs=1.0)
    return SampleOrder(phase, {"d": TokenStore.open(store)}, 256, seed=0)


def ran(folder: Path, code: str, *words: Any) -> str:
    """Return what a script prints that is run in a process of its own."""
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    command = [sys.executable, str(script), *map(str, words)]
    return subprocess.run(command, check=True, cwd=folder, text=True, stdout=subprocess.PIPE).stdout


PARTS: dict[str, Callable[[int, int, bool], dict[str, Any]]] = {
    "preparation": preparation,
    "start": start,
    "size": size,
}

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
