"""lmp_generator: write text with the model of a trained run."""

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from lmplay.cli.command import add_device, add_out, add_seed, add_trust, command_parser, run_command, trust_code
from lmplay.cli.run_list import list_runs
from lmplay.cli.scoring import score
from lmplay.cli.written_text import dump, print_all, print_samples, save_maps
from lmplay.data.prompts import read_prompts
from lmplay.errors import UserError, check_at_least
from lmplay.files import read_clean, typed_path
from lmplay.own_files import check_new
from lmplay.runs.setting import flag_of
from lmplay.train.settings import number, whole

if TYPE_CHECKING:
    import torch

    from lmplay.generate.writing import Writer
    from lmplay.runs.trained import TrainedRun

EXAMPLES = """\
  lmp_generator "def main("                                   continue this prompt with the run trained last
  lmp_generator --run my_run --num-samples 3 "Once upon"      write three samples with another run
  lmp_generator --run my_run --no-do-sample story.txt         continue a file with the likeliest text
  lmp_generator --run my_run --chat                           ask and answer, line by line
  lmp_generator --dump-tensors G.safetensors "def main("      save the tensors that the model computes for it
  lmp_generator --run my_bert "The [MASK] sat."               fill in each [MASK], most confident first (masked models)
  lmp_generator --run hf:openai-community/gpt2 "Once"        write with published weights
  lmp_generator --score story.txt --run forwards --run back   show what each token costs two runs, as colored text"""

# the kinds of work, of which one at a time is done
EXCLUSIVE = ("score", "prompts", "chat", "dump_tensors", "save_attention")


def main(argv: list[str] | None = None) -> int:
    """Run lmp_generator with `argv` (default: the command line's) and return its exit status."""
    return run_command("lmp_generator", command, argv)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    p = command_parser(
        "lmp_generator",
        description="Continue a prompt with the model of a trained run, or fill in the [MASK]s of the prompt.",
        examples=EXAMPLES,
    )
    p.add_argument(
        "prompt",
        nargs="?",
        default="",
        metavar="PROMPT|FILE|-",
        help="a text, a text file, or - for standard input; the last line break is dropped (default: no prompt)",
    )
    p.add_argument(
        "--prompts",
        metavar="FILE|PLAN",
        help="continue each prompt of FILE, one per line, .json or .jsonl, or those of a plan; the model is loaded "
        "once",
    )
    p.add_argument(
        "--chat",
        action="store_true",
        help="answer what is typed, line by line, with a run on conversations, or continue each line with another; "
        "Ctrl-D ends (default: no)",
    )
    p.add_argument(
        "--jsonl",
        action="store_true",
        help="with --prompts, print one line of JSON per text: prompt, sample, seed, text (default: no)",
    )
    p.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="RUN",
        help="a run's folder, its name in --out, one of its checkpoints, or published weights, hf:FOLDER_OR_ID "
        "(default: the run trained last)",
    )
    p.add_argument(
        "--exp",
        metavar="NAME[:VARIANT]",
        help="with hf:..., the experiment whose model it is (default: the one that config.json says)",
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="with hf:..., change a field of the experiment's Config; repeatable",
    )
    p.add_argument(
        "--score",
        metavar="FILE",
        help="instead of text, show and draw what each token of this file costs the model of one --run or two",
    )
    p.add_argument(
        "-o",
        "--output",
        type=typed_path,
        metavar="FILE",
        help="with --score, write FILE.csv, .html and .png (default: score_TEXT_RUN in --out, a new name each time)",
    )
    p.add_argument(
        "--dump-tensors",
        type=typed_path,
        metavar="FILE",
        help="instead of text, save the tensors that the model offers for the prompt (safetensors)",
    )
    p.add_argument(
        "--save-attention",
        type=typed_path,
        metavar="FILE",
        help="also save the attention maps of the text to this .npz; with --max-len 0 of the prompt alone",
    )
    add_out(p)
    add_trust(p)
    p.add_argument(
        "--list", action="store_true", help="list the runs in --out and their checkpoints; --run takes any of them"
    )
    p.add_argument("--max-len", type=whole, default=200, metavar="N", help="write at most N tokens (default: 200)")
    p.add_argument(
        "--num-samples", type=whole, default=1, metavar="N", help="write N texts, each with the next seed (default: 1)"
    )
    p.add_argument(
        "--direction",
        "--way",
        metavar="NAME",
        help="direction of reading, such as forward, if the model has several (default: its first)",
    )
    add_seed(p, "the text", None)
    how = p.add_argument_group("how to draw tokens")
    how.add_argument(
        "--do-sample",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw tokens, or take the likeliest (default: draw)",
    )
    how.add_argument(
        "--temperature",
        type=number,
        metavar="T",
        help="draw likely tokens more often (below 1) or less often; 0 is --no-do-sample (default: 0.8)",
    )
    how.add_argument(
        "--top-k", type=whole, metavar="K", help="draw from the K likeliest tokens; 0 draws from all (default: 0)"
    )
    how.add_argument(
        "--top-p",
        type=number,
        metavar="P",
        help="draw from the likeliest tokens whose probabilities add up to P; 1 draws from all (default: 0.95)",
    )
    how.add_argument(
        "--repetition-penalty",
        type=number,
        metavar="R",
        help="make tokens that have occurred less likely, if above 1 (default: 1)",
    )
    where = p.add_argument_group("where to compute")
    add_device(where)
    where.add_argument(
        "--amp", action=argparse.BooleanOptionalAction, default=False, help="compute in mixed precision (default: no)"
    )
    where.add_argument(
        "--no-cache",
        action="store_true",
        help="compute the whole context anew for every token: slower, with the same text",
    )
    return p


def command(argv: list[str]) -> None:
    """Do what was asked: write text, score a text, save tensors or list the runs."""
    typed = parser().parse_args(argv)
    trust_code(typed.trust_code)
    if typed.list:
        return list_runs(typed.out)
    check_at_least(1, num_samples=typed.num_samples)
    check_at_least(0 if typed.save_attention else 1, max_len=typed.max_len)
    check_at_least(0, seed=typed.seed)
    for name in ("max_len", "num_samples", "seed"):
        if (getattr(typed, name) or 0) >= 2**63:
            raise UserError(f"--{name.replace('_', '-')} must be below 2**63, not {getattr(typed, name)}")
    check_together(typed)
    return score(typed) if typed.score is not None else write(typed)


def check_together(typed: argparse.Namespace) -> None:
    """Raise UserError for flags that exclude each other."""
    asked = [flag_of(name) for name in EXCLUSIVE if getattr(typed, name) not in (None, False)]
    if asked[1:]:
        raise UserError(f"{asked[0]} and {asked[1]} are two things: give one of them")
    if typed.score is not None:
        return
    if typed.output is not None:
        raise UserError("-o goes with --score: text goes to standard output, tensors to the file of --dump-tensors")
    if len(typed.run) > 1:
        raise UserError("one --run writes; two are compared on a text with --score FILE")
    if typed.prompt and (typed.prompts is not None or typed.chat):
        raise UserError(
            f"{asked[0]} reads its prompts, so it takes none on the command line: leave out {typed.prompt[:60]!r}"
        )
    if typed.jsonl and typed.prompts is None:
        raise UserError("--jsonl goes with --prompts FILE")
    if typed.num_samples > 1 and (typed.chat or typed.save_attention):
        raise UserError(f"{asked[0]} writes one text at a time: leave out --num-samples")


def write(typed: argparse.Namespace) -> None:
    """Write text, or save the tensors of the prompt (--dump-tensors)."""
    prompts = None if typed.prompts is None else read_prompts(typed.prompts)
    prompt = read_prompt(typed.prompt)
    if typed.save_attention is not None:
        check_new(typed.save_attention, "--save-attention")
        if typed.save_attention.suffix.lower() != ".npz":
            raise UserError(f"--save-attention {typed.save_attention}: give it a name that ends in .npz")
    from lmplay.model.device import choose_device, prepare_process

    prepare_process()
    from lmplay.cli.session import hold_session
    from lmplay.generate.sampling import Sampling
    from lmplay.generate.writing import make_writer

    given = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
    sampling = Sampling(**{name: getattr(typed, name) for name in given if getattr(typed, name) is not None})
    if sampling.greedy and typed.num_samples > 1:
        raise UserError(
            "--num-samples: without drawing all samples are the same; leave out --no-do-sample and --temperature 0"
        )
    device = choose_device(typed.device)
    run = load(typed, device)
    if typed.dump_tensors is not None:
        return dump(run, prompt, typed, device)
    how: dict[str, Any] = {"direction": typed.direction, "max_len": typed.max_len, "use_cache": not typed.no_cache}

    def make(prompt: str) -> "Writer":
        return make_writer(run, prompt, sampling, **how)

    if typed.chat:
        return hold_session(run, make, typed, device)
    if prompts is not None:
        return print_all(run, prompts, make, typed, device)
    writer = make(prompt)
    text = print_samples(run, writer, sampling, typed, device)
    if typed.save_attention is not None:
        save_maps(run, writer, text, typed)


def load(typed: argparse.Namespace, device: "torch.device") -> "TrainedRun":
    """Return the run of --run, or the one trained last, at its best checkpoint where it keeps that."""
    from lmplay.data.published import is_published
    from lmplay.runs.folder import find_run
    from lmplay.runs.published import load_published
    from lmplay.runs.trained import load_run

    if typed.run and is_published(typed.run[0]):
        return load_published(typed.run[0], device, typed.exp, typed.set)
    return load_run(find_run(typed.run[0] if typed.run else None, typed.out).at_best(), device)


def read_prompt(given: str) -> str:
    """Return the text that PROMPT|FILE|- stands for. Raises UserError for a file that can't be read or is not text."""
    if given == "-" or (os.path.exists(typed_path(given)) and not os.path.isdir(typed_path(given))):
        return read_clean(given, "the prompt in").removesuffix("\n")
    if (given.startswith(("./", "../", "~/")) or given.endswith(".txt")) and not any(c.isspace() for c in given):
        raise UserError(f"there is no file {given}")
    return given


if __name__ == "__main__":
    sys.exit(main())
