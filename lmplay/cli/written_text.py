"""Print what a model writes: samples of a prompt, the texts of many prompts, the tensors or maps of a text."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from lmplay.output import reader_left, shows_colors

if TYPE_CHECKING:
    import torch

    from lmplay.generate.sampling import Sampling
    from lmplay.generate.writing import Writer
    from lmplay.runs.trained import TrainedRun


def print_samples(
    run: "TrainedRun", writer: "Writer", sampling: "Sampling", typed: argparse.Namespace, device: "torch.device"
) -> str:
    """Print the samples as they are written; on stderr the run, the seed and the writer's note. Return the last one."""
    from lmplay.generate.writing import with_faint_prompt
    from lmplay.model.device import precision

    seed = begin(run, typed, "" if sampling.greedy else ", --seed {}", writer.note)
    colored, text = shows_colors(sys.stdout), list[str]()
    began = time.perf_counter()
    with precision(device, typed.amp, run.context_len):
        for number, (own, parts) in enumerate(writer.some(range(seed, seed + typed.num_samples))):
            if number:
                print()
            if typed.num_samples > 1:
                print(f"--- {number + 1} of {typed.num_samples}, seed {own}")
            text = []
            parts = _kept(parts, text)
            try:
                for part in with_faint_prompt(writer, parts) if colored else parts:
                    print(part, end="", flush=True)
                    if reader_left():
                        return "".join(text)
            finally:
                print(flush=True)
    if n := len(writer.written):
        seconds = time.perf_counter() - began
        print(f"{n:,} tokens in {seconds:.1f} s: {n / seconds:,.0f} tokens/s", file=sys.stderr)
    return "".join(text)


def _kept(parts: Iterable[str], kept: list[str]) -> Iterator[str]:
    for part in parts:
        kept.append(part)
        yield part


def begin(run: "TrainedRun", typed: argparse.Namespace, shown: str, note: str = "") -> int:
    """Say on stderr which run writes, and its seed as `shown` has it; return the seed."""
    seed = int.from_bytes(os.urandom(4)) if typed.seed is None else typed.seed
    print(f"{run.run.folder}, {run.checkpoint.name}{shown.format(seed)}", file=sys.stderr)
    if note:
        print(note, file=sys.stderr)
    print_any_character()
    return seed


def print_all(
    run: "TrainedRun",
    prompts: list[str],
    make: Callable[[str], "Writer"],
    typed: argparse.Namespace,
    device: "torch.device",
) -> None:
    """Print the texts of all prompts (--prompts); on stderr the run and the seed."""
    from lmplay.model.device import precision

    seed = begin(run, typed, ", --seed {}")
    with precision(device, typed.amp, run.context_len):
        for text in write_all(prompts, make, range(seed, seed + typed.num_samples), typed.jsonl):
            print(text, flush=True)


def write_all(prompts: list[str], make: Callable[[str], "Writer"], seeds: range, as_json: bool) -> Iterator[str]:
    """Yield what is to be printed of each text, prompt by prompt, each with the same seeds.

    as_json: one line of JSON with prompt, sample, seed and text.
    """
    for number, prompt in enumerate(prompts, start=1):
        writer = make(prompt)
        for sample, (seed, parts) in enumerate(writer.some(seeds), start=1):
            text = "".join(parts)
            if as_json:
                row = {"prompt": prompt, "sample": sample, "seed": seed, "text": text}
                yield json.dumps(row, ensure_ascii=False)
            else:
                more = f", sample {sample}, seed {seed}" if len(seeds) > 1 else ""
                yield f"--- prompt {number} of {len(prompts)}{more}\n{text}"
            if reader_left():
                return


def dump(run: "TrainedRun", prompt: str, typed: argparse.Namespace, device: "torch.device") -> None:
    """Save the model's tensors of a prompt and print what they are."""
    from lmplay.generate.tensors import dump_tensors
    from lmplay.model.device import precision

    with precision(device, typed.amp, run.context_len):
        tensors = dump_tensors(run, run.tokenizer.encode(prompt), typed.dump_tensors)
    for name, tensor in tensors.items():
        print(f"{name}  {tuple(tensor.shape)}")
    print(f"{typed.dump_tensors}: {len(tensors)} tensors of {run.checkpoint}", file=sys.stderr)


def save_maps(run: "TrainedRun", writer: "Writer", text: str, typed: argparse.Namespace) -> None:
    """Save the attention maps of the text that was written, and say on stderr what they are (--save-attention)."""
    from lmplay.generate.attention import save_attention

    tokens = writer.tokens
    arrays = save_attention(run, text if tokens is None else tokens, typed.save_attention, typed.direction)
    shown = ", ".join(f"{name} {' x '.join(map(str, array.shape))}" for name, array in arrays.items())
    print(f"{typed.save_attention}: {shown}", file=sys.stderr)


def print_any_character() -> None:
    """Let standard output replace the characters that a terminal does not know: the model may know more."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
