"""lmp_generator: write text with the model of a trained run."""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmplay.cli.command import add_device, add_out, add_seed, add_trust, command_parser, run_command, trust_code, whole
from lmplay.cli.prompts import read_prompts, write_all
from lmplay.cli.run_list import list_runs
from lmplay.errors import UserError, check_at_least
from lmplay.files import read_clean, typed_path
from lmplay.output import reader_left

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from lmplay.generate.sampling import Sampling
    from lmplay.generate.writing import Writer
    from lmplay.runs.trained import TrainedRun

EXAMPLES = """\
  lmp_generator "def main("                                   continue this prompt with the run trained last
  lmp_generator --run my_run --num-samples 3 "Once upon"      write three samples with another run
  lmp_generator --run my_run --no-do-sample story.txt         continue a file with the likeliest text
  lmp_generator --dump-tensors G.safetensors "def main("      save the tensors that the model computes for it
  lmp_generator --run my_bert "The [MASK] sat."               fill in each [MASK], most confident first (masked models)
  lmp_generator --run hf:openai-community/gpt2 "Once"        write with published weights
  lmp_generator --score story.txt --run forwards --run back   show what each token costs two runs, as colored text"""


def main(argv: list[str] | None = None) -> int:
    """Run lmp_generator with `argv` (default: the command line's) and return its exit status."""
    return run_command("lmp_generator", command, argv)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags."""
    p = command_parser(
        "lmp_generator",
        allow_abbrev=False,  # --prompt is no short form of --prompts
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
        metavar="FILE",
        help="continue each prompt of FILE, one per line, or of .json or .jsonl; the model is loaded once",
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
        type=float,
        metavar="T",
        help="draw likely tokens more often (below 1) or less often; 0 is --no-do-sample (default: 0.8)",
    )
    how.add_argument(
        "--top-k", type=whole, metavar="K", help="draw from the K likeliest tokens; 0 draws from all (default: 0)"
    )
    how.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="draw from the likeliest tokens whose probabilities add up to P; 1 draws from all (default: 0.95)",
    )
    how.add_argument(
        "--repetition-penalty",
        type=float,
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
    check_at_least(1, max_len=typed.max_len, num_samples=typed.num_samples)
    check_at_least(0, seed=typed.seed)
    for name in ("max_len", "num_samples", "seed"):
        if (getattr(typed, name) or 0) >= 2**63:
            raise UserError(f"--{name.replace('_', '-')} must be below 2**63, not {getattr(typed, name)}")
    if typed.score is not None:
        if typed.prompts is not None:
            raise UserError("--score and --prompts are two things: give one of them")
        if typed.dump_tensors is not None:
            raise UserError("--score and --dump-tensors are two things: give one of them")
        return score(typed)
    if typed.output is not None:
        raise UserError("-o goes with --score: text goes to standard output, tensors to the file of --dump-tensors")
    if len(typed.run) > 1:
        raise UserError("one --run writes; two are compared on a text with --score FILE")
    return write(typed)


def write(typed: argparse.Namespace) -> None:
    """Write text, or save the tensors of the prompt (--dump-tensors)."""
    prompts = None if typed.prompts is None else read_prompts(typed.prompts)
    if prompts is not None and (typed.prompt or typed.dump_tensors is not None):
        raise UserError("--prompts FILE goes with no other prompt and no --dump-tensors: leave one of them out")
    if typed.jsonl and prompts is None:
        raise UserError("--jsonl goes with --prompts FILE")
    prompt = read_prompt(typed.prompt)
    from lmplay.model.device import choose_device, prepare_process

    prepare_process()
    from lmplay.data.published import is_published
    from lmplay.generate.sampling import Sampling
    from lmplay.generate.writing import make_writer
    from lmplay.runs.folder import find_run
    from lmplay.runs.published import load_published
    from lmplay.runs.trained import load_run

    given = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
    sampling = Sampling(**{name: getattr(typed, name) for name in given if getattr(typed, name) is not None})
    if sampling.greedy and typed.num_samples > 1:
        raise UserError(
            "--num-samples: without drawing all samples are the same; leave out --no-do-sample and --temperature 0"
        )
    device = choose_device(typed.device)
    if typed.run and is_published(typed.run[0]):
        run = load_published(typed.run[0], device, typed.exp, typed.set)
    else:
        run = load_run(find_run(typed.run[0] if typed.run else None, typed.out).at_best(), device)
    if typed.dump_tensors is not None:
        return dump(run, prompt, typed, device)
    how: dict[str, Any] = {"direction": typed.direction, "max_len": typed.max_len, "use_cache": not typed.no_cache}
    if prompts is not None:
        return print_all(run, prompts, lambda prompt: make_writer(run, prompt, sampling, **how), typed, device)
    return print_samples(run, make_writer(run, prompt, sampling, **how), sampling, typed, device)


def print_all(
    run: "TrainedRun",
    prompts: list[str],
    make: "Callable[[str], Writer]",
    typed: argparse.Namespace,
    device: "torch.device",
) -> None:
    """Print the texts of all prompts (--prompts); on stderr the run and the seed."""
    from lmplay.model.device import precision

    seed = int.from_bytes(os.urandom(4)) if typed.seed is None else typed.seed
    print(f"{run.run.folder}, {run.checkpoint.name}, --seed {seed}", file=sys.stderr)
    print_any_character()
    with precision(device, typed.amp, run.context_len):
        for text in write_all(prompts, make, range(seed, seed + typed.num_samples), typed.jsonl):
            print(text, flush=True)


def dump(run: "TrainedRun", prompt: str, typed: argparse.Namespace, device: "torch.device") -> None:
    """Save the model's tensors of a prompt and print what they are."""
    from lmplay.generate.tensors import dump_tensors
    from lmplay.model.device import precision

    with precision(device, typed.amp, run.context_len):
        tensors = dump_tensors(run, run.tokenizer.encode(prompt), typed.dump_tensors)
    for name, tensor in tensors.items():
        print(f"{name}  {tuple(tensor.shape)}")
    print(f"{typed.dump_tensors}: {len(tensors)} tensors of {run.checkpoint}", file=sys.stderr)


def print_samples(
    run: "TrainedRun", writer: "Writer", sampling: "Sampling", typed: argparse.Namespace, device: "torch.device"
) -> None:
    """Print the samples as they are written; on stderr the run, the seed and the writer's note."""
    from lmplay.generate.writing import with_faint_prompt
    from lmplay.model.device import precision

    seed = int.from_bytes(os.urandom(4)) if typed.seed is None else typed.seed
    print(
        f"{run.run.folder}, {run.checkpoint.name}{'' if sampling.greedy else f', --seed {seed}'}",
        *([writer.note] if writer.note else []),
        sep="\n",
        file=sys.stderr,
    )
    print_any_character()
    colored = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    began = time.perf_counter()
    with precision(device, typed.amp, run.context_len):
        for number, (own, parts) in enumerate(writer.some(range(seed, seed + typed.num_samples))):
            if number:
                print()
            if typed.num_samples > 1:
                print(f"--- {number + 1} of {typed.num_samples}, seed {own}")
            try:
                for part in with_faint_prompt(writer, parts) if colored else parts:
                    print(part, end="", flush=True)
                    if reader_left():
                        return
            finally:
                print(flush=True)
    if n := len(writer.written):
        seconds = time.perf_counter() - began
        print(f"{n:,} tokens in {seconds:.1f} s: {n / seconds:,.0f} tokens/s", file=sys.stderr)


def score(typed: argparse.Namespace) -> None:
    """Print and draw what each token of a text costs one model or two (--score)."""
    if len(typed.run) > 2:
        raise UserError(f"--score compares two runs at most, not {len(typed.run)}")
    if typed.prompt:
        raise UserError("--score takes its text from its file: leave out the prompt")
    base = chosen_base(typed.output)
    text = read_clean(typed.score, "the text in")
    name = "text" if typed.score == "-" else Path(typed.score).stem
    from lmplay.model.device import choose_device, prepare_process

    prepare_process()
    try:
        import matplotlib  # noqa: F401  # missing: say so before the models compute
    except ImportError as error:
        raise UserError(f"{error.name} is missing: install it with 'pip install {error.name}'") from error
    from lmplay.generate.token_losses import losses_of_text, tracks_of
    from lmplay.report import text_map
    from lmplay.runs.folder import find_run
    from lmplay.runs.trained import load_run

    device = choose_device(typed.device)
    runs = [find_run(one, typed.out) for one in typed.run or [None]]
    tracks = tracks_of([load_run(run, device) for run in runs], typed.direction)
    drawn = text_map.map_text([track.name for track in tracks], *losses_of_text(text, tracks))
    print_any_character()
    print(text_map.summary(drawn))
    base = base or text_map.free_base(typed.out, name, drawn)
    base.parent.mkdir(parents=True, exist_ok=True)
    for path in text_map.write(drawn, f"{name}: {' and '.join(drawn.names)}", base):
        print(f"wrote {path}")


def chosen_base(output: Path | None) -> Path | None:
    """Return where --score writes by -o, without the suffix. Raises UserError if something is there already."""
    from lmplay.report.text_map import SUFFIXES, taken

    if output is None:
        return None
    base = output.with_suffix("") if output.suffix in SUFFIXES else output
    if not base.name or base.is_dir():
        raise UserError(f"-o takes a file to write, and {output} is a folder")
    if there := taken(base):
        raise UserError(f"there is {there[0]} already: choose another -o, or delete it first")
    return base


def print_any_character() -> None:
    """Let standard output replace the characters that a terminal does not know: the model may know more."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")


def read_prompt(given: str) -> str:
    """Return the text that PROMPT|FILE|- stands for. Raises UserError for a file that can't be read or is not text."""
    if given == "-" or (os.path.exists(typed_path(given)) and not os.path.isdir(typed_path(given))):
        return read_clean(given, "the prompt in").removesuffix("\n")
    if (given.startswith(("./", "../", "~/")) or given.endswith(".txt")) and not any(c.isspace() for c in given):
        raise UserError(f"there is no file {given}")
    return given


if __name__ == "__main__":
    sys.exit(main())
