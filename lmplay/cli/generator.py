"""lmp_generator: text from a trained run."""

import argparse
import os
import sys
from pathlib import Path

from lmplay.cli.command import add_device, add_out, add_seed, command_parser, run_command
from lmplay.errors import UserError, check_at_least, did_you_mean
from lmplay.files import read_text

EXAMPLES = """\
  lmp_generator "def main("                                   with the run in gpt_out that was trained last
  lmp_generator --run my_run --num-samples 3 "Once upon"      three samples of another one
  lmp_generator --run my_run --no-do-sample story.txt         the likeliest text after that of a file
  lmp_generator --dump-tensors G.safetensors "def main("      save what the model computes inside of that text
  lmp_generator --run my_bert "The [MASK] sat."               fill in each [MASK], the surest first; only for masked models
  lmp_generator --score story.txt --run forwards --run back   what each token costs two runs, as a coloured text"""


def main(argv: list[str] | None = None) -> int:
    """Run lmp_generator with these words (default: those of the command line) and return its exit status."""
    return run_command("lmp_generator", command, argv)


def parser() -> argparse.ArgumentParser:
    p = command_parser(
        "lmp_generator",
        description="Writes on from a prompt with the model of a trained run, or fills in its [MASK]s.",
        examples=EXAMPLES,
    )
    p.add_argument(
        "prompt",
        nargs="?",
        default="",
        metavar="PROMPT|FILE|-",
        help="a text, a text file, or - for standard input, both without their last line break (default: begin with nothing)",
    )
    p.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="RUN",
        help="a run's folder, or its name in --out (default: the run that was trained last)",
    )
    p.add_argument(
        "--score",
        metavar="FILE",
        help="write nothing: say what each token of this text costs one --run or two, and draw it",
    )
    p.add_argument(
        "--dump-tensors",
        type=Path,
        metavar="FILE",
        help="write nothing: save what the model computes inside of the prompt, if it offers that, as FILE (safetensors)",
    )
    add_out(p)
    p.add_argument(
        "--list", action="store_true", help="show the runs in --out and their checkpoints, each of which --run takes"
    )
    p.add_argument(
        "--max-len", type=int, default=200, metavar="TOKENS", help="write at most so many tokens (default 200)"
    )
    p.add_argument(
        "--num-samples", type=int, default=1, metavar="N", help="so many texts, with seeds that count up (default 1)"
    )
    p.add_argument(
        "--way",
        metavar="NAME",
        help="which way, for a model that reads in several, such as forward (default: its first)",
    )
    add_seed(p, "the text", None)
    how = p.add_argument_group("how tokens are drawn")
    how.add_argument(
        "--do-sample",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw, or take the likeliest token (default: draw)",
    )
    how.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="below 1 likely tokens more often; 0 is --no-do-sample (default 0.8)",
    )
    how.add_argument("--top-k", type=int, metavar="K", help="only the K likeliest tokens; 0 for all (default 0)")
    how.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="only the likeliest tokens that together reach P; 1 for all (default 0.95)",
    )
    how.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="R",
        help="above 1 makes tokens that occurred less likely (default 1)",
    )
    where = p.add_argument_group("where it is computed")
    add_device(where)
    where.add_argument("--amp", action=argparse.BooleanOptionalAction, default=False, help="mixed precision")
    where.add_argument(
        "--no-cache", action="store_true", help="compute the whole context anew for every token: slower, the same text"
    )
    return p


def command(argv: list[str]) -> None:
    typed = parser().parse_args(argv)
    if typed.list:
        return list_runs(typed)
    for name, least in (("max_len", 1), ("num_samples", 1), ("seed", 0)):
        value = getattr(typed, name)
        check_at_least(least, **{name: value})
        if value is not None and value >= 2**63:
            raise UserError(f"--{name.replace('_', '-')} must be below 2**63, not {value}")
    if typed.score is not None:
        if typed.dump_tensors is not None:
            raise UserError("--score and --dump-tensors are two things: give one of them")
        return score(typed)
    if len(typed.run) > 1:
        raise UserError("one --run writes; two are compared on a text with --score FILE")
    prompt = read_prompt(typed.prompt)

    from lmplay.model.device import choose_device, prepare_process

    prepare_process()
    from lmplay.generate.sampling import Sampling
    from lmplay.runs.folder import find_run
    from lmplay.runs.trained import load_run

    given = {
        name: getattr(typed, name) for name in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
    }
    sampling = Sampling(**{name: value for name, value in given.items() if value is not None})
    if sampling.greedy and typed.num_samples > 1:
        raise UserError(
            "--num-samples: without drawing all samples are the same; leave out --no-do-sample and --temperature 0"
        )
    device = choose_device(typed.device)
    run = load_run(find_run(typed.run[0] if typed.run else None, typed.out), device)
    if typed.dump_tensors is not None:
        return dump(run, run.tokenizer.encode(prompt), typed.dump_tensors, device, typed.amp)
    if run.experiment.mask_token is not None:
        return write(run, fills(run, prompt, sampling, typed.way), "", sampling, device, typed)
    if not run.experiment.can_write:
        raise UserError(
            f"{run.experiment.name} is not causal: it needs the text after a token to predict it, so it can't write any"
        )
    reading = choose_reading(run, typed.way)
    if prompt and not reading.forward and not reading.reversed:
        raise UserError(
            f"{run.experiment.name} writes whole windows in an order of its own: it can't go on from a prompt"
        )
    write(run, *continuations(run, reading, run.tokenizer.encode(prompt), sampling, typed), sampling, device, typed)


def dump(run, prompt: list[int], file: Path, device, amp: bool) -> None:
    """Saves the model's tensors of a prompt (--dump-tensors) and prints what they are."""
    from lmplay.generate.tensors import dump_tensors
    from lmplay.model.device import precision

    with precision(device, amp, run.context_len):
        tensors = dump_tensors(run, prompt, file)
    for name, tensor in tensors.items():
        print(f"{name}  {tuple(tensor.shape)}")
    print(f"{file}: {len(tensors)} tensors of {run.checkpoint}", file=sys.stderr)


def list_runs(typed: argparse.Namespace) -> None:
    """Prints every run and its checkpoints; those that later ones don't replace are marked."""
    from lmplay.runs import checkpoints
    from lmplay.runs.folder import trained_folders
    from lmplay.runs.names import CHECKPOINTS

    for folder in trained_folders(typed.out):
        for checkpoint in checkpoints.find_all(folder / CHECKPOINTS):
            print(f"{checkpoint}{'  (kept)' if checkpoints.read_state(checkpoint)['keep'] else ''}")


def score(typed: argparse.Namespace) -> None:
    """Prints and draws what each token of a text costs one or two models (--score)."""
    if len(typed.run) > 2:
        raise UserError(f"--score compares two runs at the most, not {len(typed.run)}")
    if typed.prompt:
        raise UserError("--score takes its text from its file: leave out the prompt")
    text, name = (
        read_text(typed.score, "the text in", encoding="utf-8-sig"),
        "text" if typed.score == "-" else Path(typed.score).stem,
    )
    from lmplay.model.device import choose_device, prepare_process

    prepare_process()
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is missing: install it with 'pip install {error.name}'") from error
    from lmplay.generate.token_losses import losses_of_text
    from lmplay.report import text_map
    from lmplay.runs.folder import find_run
    from lmplay.runs.trained import load_run

    device = choose_device(typed.device)
    found = [find_run(one, typed.out) for one in typed.run or [None]]
    tracks = []
    for one in found:
        run = load_run(one, device)
        readings = run.experiment.directions(run.tokenizer.eot, run.context_len) if run.experiment.causal else [None]
        if typed.way or len(found) > 1 or len(readings) > 2:
            readings = (
                [choose_reading(run, typed.way if run.experiment.direction_names or len(found) == 1 else None)]
                if run.experiment.causal
                else [None]
            )
        tracks += [
            (" ".join(filter(None, ((one.chosen or one.folder).name, reading and reading.name))), run, reading)
            for reading in readings
        ]
    if tracks[0][0] == tracks[-1][0] and len(tracks) == 2:
        raise UserError(f"--score: {tracks[0][0]} is named twice")
    drawn = text_map.map_text([name for name, _, _ in tracks], *losses_of_text(text, tracks))
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    print(text_map.summary(drawn))
    typed.out.mkdir(parents=True, exist_ok=True)
    for path in text_map.write(drawn, f"{name}: {' and '.join(drawn.names)}", typed.out / f"score_{name}"):
        print(f"wrote {path}")


def choose_reading(run, way: str | None):
    """The way in which the run's model reads. Raises UserError for one that it does not know."""
    readings = {reading.name: reading for reading in run.experiment.directions(run.tokenizer.eot, run.context_len)}
    if way is None:
        return next(iter(readings.values()))
    if not run.experiment.direction_names:
        raise UserError(f"--way: {run.experiment.name} reads in one way only")
    if way not in readings:
        raise UserError(f"--way: {run.experiment.name} knows no {way!r}.{did_you_mean(way, readings)}")
    return readings[way]


def continuations(run, reading, prompt: list[int], sampling, typed: argparse.Namespace):
    """A function of the seed that makes the parts of a text, the prompt and what the model adds to it, and a line to be said first."""
    from lmplay.generate.sampling import text_parts

    note, end = "", "first" if reading.reversed else "last"
    if len(prompt) >= run.context_len:
        note = f"the prompt has {len(prompt):,} tokens and the model reads {run.context_len - 1:,}: the {end} {run.context_len // 2:,} are used\n"
    return lambda seed: text_parts(
        run.model, run.tokenizer, reading, prompt, run.context_len, typed.max_len, sampling, seed, not typed.no_cache
    ), note


def fills(run, prompt: str, sampling, way: str | None):
    """A function of the seed that makes a text: the prompt with its [MASK]s filled in. Raises UserError for one without, or too long."""
    import torch

    from lmplay.generate.sampling import MASK, fill, mask_text

    name = run.experiment.name
    if MASK not in prompt:
        raise UserError(
            f"{name} does not write on, it fills in hidden tokens: put {MASK} into the prompt for each, as in 'The {MASK} sat on the {MASK}.'"
        )
    if way is not None:
        raise UserError(f"--way: {name} reads in one way only")
    tokens = mask_text(run.tokenizer, prompt)
    if len(tokens) > run.context_len:
        raise UserError(f"the prompt has {len(tokens):,} tokens and {name} reads {run.context_len:,}: shorten it")
    return lambda seed: [
        run.tokenizer.decode(
            fill(run.model, tokens, run.experiment.mask_token, sampling, torch.Generator().manual_seed(seed))
        )
    ]


def write(run, texts, note: str, sampling, device, typed: argparse.Namespace) -> None:
    """Prints the samples, the parts of `texts(seed)`, and on stderr what wrote them, and the note."""
    from lmplay.model.device import precision

    seed = int.from_bytes(os.urandom(4)) if typed.seed is None else typed.seed
    print(
        f"{run.run.folder}, {run.checkpoint.name}{'' if sampling.greedy else f', --seed {seed}'}\n{note}",
        end="",
        file=sys.stderr,
    )
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal may know fewer characters than the model
    for number in range(typed.num_samples):
        if typed.num_samples > 1:
            print(f"{chr(10) if number else ''}--- {number + 1} of {typed.num_samples}, seed {seed + number}")
        try:
            with precision(device, typed.amp, run.context_len):
                for part in texts(seed + number):
                    print(part, end="", flush=True)
        finally:
            print(flush=True)


def read_prompt(given: str) -> str:
    """The text that PROMPT|FILE|- stands for. Raises UserError where a file can't be read or is no text."""
    if given == "-" or os.path.exists(given) and not os.path.isdir(given):
        return read_text(given, "the prompt in", encoding="utf-8-sig").removesuffix("\n").removesuffix("\r")
    if (given.startswith(("./", "../", "~/")) or given.endswith(".txt")) and not any(c.isspace() for c in given):
        raise UserError(f"there is no file {given}")
    return given


if __name__ == "__main__":
    sys.exit(main())
