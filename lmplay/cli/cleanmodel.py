"""lmp_cleanmodel: fold away what a trained model has for training only, or give it new parts."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lmplay.cli.command import add_device, add_out, add_seed, add_trust, command_parser, run_command, trust_code
from lmplay.errors import UserError, check_at_least
from lmplay.files import typed_path

if TYPE_CHECKING:
    from lmplay.convert.checked_text import Text
    from lmplay.convert.fold import Converted
    from lmplay.runs.trained import TrainedRun

EXAMPLES = """\
  lmp_cleanmodel my_run -o small                                  fold: the same logits from fewer parameters
  lmp_generator --run small "def main("                           write with the folded model
  lmp_trainer --initial-model small --exp gpt2ish:tiny ...        train it further
  lmp_cleanmodel my_run -o for_hf --format hf                     write it for Hugging Face's transformers
  lmp_cleanmodel my_run -o my_run.gguf --format gguf              write it for llama.cpp
  lmp_cleanmodel my_run -o big --bolt-on unified_embedding:tiny   the reverse: fit new parts to my_run, to train on"""


def main(argv: list[str] | None = None) -> int:
    """Run lmp_cleanmodel with `argv` (default: the command line's) and return its exit status."""
    return run_command("lmp_cleanmodel", command, argv)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    p = command_parser(
        "lmp_cleanmodel",
        description="Fold away what a trained model has for training only. The logits are compared on real text first, "
        "and nothing is written if they change.",
        examples=EXAMPLES,
    )
    p.add_argument("run", metavar="RUN", help="a run's folder, its name in --out, or one of its checkpoints")
    p.add_argument(
        "-o",
        "--output",
        type=typed_path,
        required=True,
        metavar="FOLDER",
        help="write to this folder, or file for gguf, which must not exist",
    )
    p.add_argument(
        "--format",
        choices=("run", "hf", "gguf"),
        default="run",
        help="write a run's folder, one for Hugging Face's transformers, or a file for llama.cpp (default: run)",
    )
    p.add_argument(
        "--bolt-on",
        metavar="NAME[:VARIANT]",
        help="instead of folding, convert to this experiment, with new parts fitted to the run's model",
    )
    p.add_argument(
        "--text",
        type=typed_path,
        metavar="FILE",
        help="compare on this text (default: the run's validation text, else its samples)",
    )
    add_out(p)
    add_trust(p)
    add_seed(p, "what --bolt-on draws", 0)
    add_device(p)
    return p


def command(argv: list[str]) -> None:
    """Load the run, convert it and write it."""
    typed = parser().parse_args(argv)
    trust_code(typed.trust_code)
    if typed.bolt_on and typed.format != "run":
        raise UserError(f"--bolt-on and --format {typed.format} don't go together: convert the run first")
    check_at_least(0, seed=typed.seed)

    from lmplay.model.device import choose_device, prepare_process

    prepare_process()
    from lmplay.convert import checked_text, write_run
    from lmplay.model.cost import n_parameters
    from lmplay.runs.folder import find_run
    from lmplay.runs.trained import load_run

    write_run.check_target(typed.output)
    run = load_run(find_run(typed.run, typed.out), choose_device(typed.device))
    text = checked_text.text_for(run, typed.text)
    parameters = n_parameters(run.model)
    print(f"{run.run.folder}, {run.checkpoint.name}: {run.experiment.name}, {parameters:,} parameters")
    words = ["lmp_cleanmodel", *argv]
    if typed.bolt_on:
        converted, done = bolt_on(run, text, typed, words)
    elif typed.format == "hf":
        converted, done = export(run, text, typed.output)
    elif typed.format == "gguf":
        converted, done = export_gguf(run, text, typed.output)
    else:
        converted, done = fold(run, text, typed.output, words)
    print(f"{typed.output}: {converted.experiment.name}, {n_parameters(converted.model):,} parameters; {done}")


def fold(run: "TrainedRun", text: "Text", output: Path, words: list[str]) -> "tuple[Converted, str]":
    """Write the folded model as a run; return it and what to tell."""
    from lmplay.convert import fold, write_run

    folded = fold.fold(run, text)
    facts = {"largest_difference": folded.difference, "text": text.origin, "tokens": len(text.tokens)}
    write_run.write_run(output, folded, run, key="folded_from", facts=facts, command=words)
    return folded, f"logits differ by up to {folded.difference:.2g} on {len(text.tokens):,} tokens of {text.origin}"


def export(run: "TrainedRun", text: "Text", output: Path) -> "tuple[Converted, str]":
    """Write the model, folded if it can be, for Hugging Face; return it and what to tell."""
    from lmplay.convert.huggingface import write_hf

    model = folded_if_it_can_be(run, text)
    difference, tokenizer = write_hf(output, model, run, text)
    checked = (
        "transformers is not installed, so that its logits are not compared"
        if difference is None
        else f"transformers' logits differ by up to {difference:.2g} on {len(text.tokens):,} tokens of {text.origin}"
    )
    return model, f"{checked}; {tokenizer}"


def export_gguf(run: "TrainedRun", text: "Text", output: Path) -> "tuple[Converted, str]":
    """Write the model, folded if it can be, for llama.cpp; return it and what to tell."""
    from lmplay.convert.gguf_file import write_gguf

    model = folded_if_it_can_be(run, text)
    return model, f"float32, {write_gguf(output, model, run)}"


def folded_if_it_can_be(run: "TrainedRun", text: "Text") -> "Converted":
    """Return the run's model folded, or as it is if there is nothing to fold."""
    from lmplay.convert import fold
    from lmplay.model.adapters import offered

    try:
        return fold.fold(run, text) if offered(run.model, "fold") else fold.unchanged(run)
    except fold.NotFoldable:
        return fold.unchanged(run)


def bolt_on(run: "TrainedRun", text: "Text", typed: argparse.Namespace, words: list[str]) -> "tuple[Converted, str]":
    """Write a run of another experiment that goes on from the model; return it and what to tell."""
    from tqdm import tqdm

    from lmplay.convert import bolt_on, checked_text, write_run

    before = checked_text.loss_on(run.model, run, text)
    with tqdm(desc="fitting", unit="epoch", leave=False, disable=None) as bar:

        def progress(epoch: int, n_epochs: int, loss: float) -> None:
            bar.total = n_epochs
            bar.set_postfix_str(f"error {loss:.3g}", refresh=False)
            bar.update(epoch - bar.n)

        made, error = bolt_on.bolt_on(run, typed.bolt_on, typed.seed, progress)
    after = checked_text.loss_on(made.model, run, text)
    facts = {
        "error": error,
        "loss_before": before,
        "loss_after": after,
        "text": text.origin,
        "tokens": text.n_scored,
    }
    write_run.write_run(typed.output, made, run, key="bolted_from", facts=facts, command=words)
    return made, (
        f"mean squared error {error:.3g}; loss {before:.4f} -> {after:.4f} on {text.n_scored:,} tokens of {text.origin}"
    )


if __name__ == "__main__":
    sys.exit(main())
