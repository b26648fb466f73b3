"""lmp_cleanmodel: a trained run without what was there for training only."""

import argparse
import sys
from pathlib import Path

from lmplay.cli.command import add_device, add_out, add_seed, command_parser, run_command
from lmplay.errors import UserError, check_at_least

EXAMPLES = """\
  lmp_cleanmodel my_run -o small                                    folded: the same logits, fewer parameters
  lmp_generator --run small "def main("                             writes with it
  lmp_trainer --initial-model small --exp gpt2ish:tiny ...          trains it further
  lmp_cleanmodel my_run -o for_hf --format hf                       for Hugging Face's transformers
  lmp_cleanmodel my_run -o big --bolt-on unified_embedding:tiny     the other way round: my_run, fitted with more to train"""


def main(argv: list[str] | None = None) -> int:
    """Run lmp_cleanmodel with these words (default: those of the command line) and return its exit status."""
    return run_command("lmp_cleanmodel", command, argv)


def parser() -> argparse.ArgumentParser:
    p = command_parser(
        "lmp_cleanmodel",
        description="Folds away what a trained model has for training only, after checking on real text that "
        "the logits stay the same.",
        examples=EXAMPLES,
    )
    p.add_argument("run", metavar="RUN", help="a run's folder, or its name in --out")
    p.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="write here; nothing may be there yet"
    )
    p.add_argument(
        "--format",
        choices=("run", "hf"),
        default="run",
        help="a run's folder, or one for Hugging Face's transformers (default run)",
    )
    p.add_argument(
        "--bolt-on",
        metavar="NAME[:VARIANT]",
        help="instead of folding: carry on as this experiment, fitted to the run's model",
    )
    p.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="compare on this text (default: the run's validation text, else its samples)",
    )
    add_out(p)
    add_seed(p, "what --bolt-on draws", 0)
    add_device(p)
    return p


def command(argv: list[str]) -> None:
    typed = parser().parse_args(argv)
    typed.words = ["lmp_cleanmodel", *argv]
    if typed.bolt_on and typed.format == "hf":
        raise UserError("--bolt-on and --format hf don't go together: Hugging Face's format holds plain models only")
    check_at_least(0, seed=typed.seed)

    from lmplay.model.device import choose_device, prepare_process

    prepare_process()
    from lmplay.convert import checked_text, write_run
    from lmplay.convert.fold import n_parameters
    from lmplay.runs.folder import find_run
    from lmplay.runs.trained import load_run

    write_run.check_target(typed.output)
    run = load_run(find_run(typed.run, typed.out), choose_device(typed.device))
    text = checked_text.text_for(run, typed.text)
    before = n_parameters(run.model)
    print(f"{run.run.folder}, {run.checkpoint.name}: {run.experiment.name}, {before:,} parameters")
    act = bolt_on if typed.bolt_on else export if typed.format == "hf" else fold
    act(typed, run, text)


def fold(typed: argparse.Namespace, run, text) -> None:
    from lmplay.convert import fold, write_run

    folded = fold.fold(run, text)
    facts = {"largest_difference": folded.difference, "text": text.origin, "tokens": len(text.tokens)}
    write_run.write_run(typed.output, folded, run, "folded_from", facts, command=typed.words)
    report(
        typed.output,
        folded,
        f"logits differ by up to {folded.difference:.2g} on {len(text.tokens):,} tokens of {text.origin}",
    )


def export(typed: argparse.Namespace, run, text) -> None:
    from lmplay.convert import fold
    from lmplay.convert.huggingface import write_hf

    model = fold.Clean(run.model, run.experiment, run.model.config, 0.0)
    if callable(getattr(run.model, "fold", None)):
        model = fold.fold(run, text)
    difference, tokenizer = write_hf(typed.output, model, run, text)
    checked = (
        "transformers is not installed, so that its logits are not compared"
        if difference is None
        else f"transformers' logits differ by up to {difference:.2g} on {len(text.tokens):,} tokens of {text.origin}"
    )
    report(typed.output, model, f"{checked}; {tokenizer}")


def bolt_on(typed: argparse.Namespace, run, text) -> None:
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
        "tokens": len(text.tokens),
    }
    write_run.write_run(typed.output, made, run, "bolted_from", facts, command=typed.words)
    report(
        typed.output,
        made,
        f"mean squared error {error:.3g}; loss {before:.4f} -> {after:.4f} on {len(text.tokens):,} tokens of {text.origin}",
    )


def report(target: Path, made, said: str) -> None:
    from lmplay.convert.fold import n_parameters

    print(f"{target}: {made.experiment.name}, {n_parameters(made.model):,} parameters; {said}")


if __name__ == "__main__":
    sys.exit(main())
