"""lmp_probe: what can this architecture do? Train experiments of one size on small tasks and draw a scorecard."""

import argparse
import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lmplay.cli.command import add_at_once, add_device, add_out, add_retry_crashed, command_parser, run_command
from lmplay.cli.json_output import Told, add_json, told
from lmplay.errors import DONE, STOPPED, UserError, check_at_least, did_you_mean
from lmplay.train.settings import number, whole

if TYPE_CHECKING:
    from lmplay.probe.probe import ProbeRequest
    from lmplay.probe.scorecard import Scorecard

EXAMPLES = """\
  lmp_probe --exp gpt2ish my_idea                             the usual tasks, small models, two seeds
  lmp_probe --exp gpt2ish my_idea:tiny --tasks mqar parity --seeds 3
  lmp_probe --exp my_idea --tasks all --size standard         longer training, wider choice of tasks
Runs are kept in --out: what was trained with the same settings, data and code is not trained again."""


def main(argv: list[str] | None = None) -> int:
    """Run lmp_probe with `argv` (default: the command line's) and return its exit status."""
    return run_command("lmp_probe", command, argv)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    p = command_parser(
        "lmp_probe",
        examples=EXAMPLES,
        description="Train experiments of equal size on small synthetic tasks and show which they solve:\n"
        "as a table, as CSV and as a heat map.",
    )
    p.add_argument(
        "--exp",
        nargs="+",
        action="extend",
        required=True,
        metavar="NAME[:VARIANT]",
        help="experiments to probe; depth and widths shrink until each has the parameters of a small gpt2ish",
    )
    p.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="probes (the plans probe_TASK), plan files, or all (default: six of them)",
    )
    p.add_argument("--seeds", type=whole, default=2, metavar="N", help="train each with seeds 0 to N - 1 (default: 2)")
    p.add_argument(
        "--size",
        default="quick",
        metavar="SIZE",
        help="quick (one or two minutes a run, the default), standard or large",
    )
    p.add_argument(
        "--max-steps",
        "--updates",
        dest="steps",
        type=whole,
        metavar="N",
        help="train N steps (default: as --size says)",
    )
    p.add_argument("--batch-size", type=whole, metavar="N", help="sequences per step (default: as --size says)")
    p.add_argument("--lr", type=number, default=3e-3, help="peak learning rate (default: 0.003)")
    p.add_argument("--allow-leak", action="store_true", help="probe even a model that looks ahead or fails its check")
    add_retry_crashed(p)
    add_at_once(p)
    add_device(p)
    add_out(p)
    add_json(p)
    return p


def command(argv: list[str]) -> int:
    """Probe as the words say: print the scorecard, write table and picture, return the exit status."""
    typed = parser().parse_args(argv)
    with told("lmp_probe", typed.json) as to_program:
        to_program.status = probe_as_typed(typed, to_program)
    return to_program.status


def probe_as_typed(typed: argparse.Namespace, to_program: Told) -> int:
    """Probe, say what came out to people and to a program, and return the exit status."""
    request = request_of(typed)
    from lmplay.compare.jobs import Stopped
    from lmplay.probe.probe import run_probe
    from lmplay.probe.scorecard import as_text

    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a model prints while it is checked
            scorecard, status = run_probe(request), DONE
    except Stopped as stopped:
        scorecard, status = stopped.result, STOPPED
        print("lmp_probe: stopped; the same command goes on; so far:", file=sys.stderr)
    for line in scorecard.skipped:
        print(f"lmp_probe: left out: {line}", file=sys.stderr)
    print(as_text(scorecard), flush=True)
    to_program.content = scorecard.to_json()
    paths = write_files(scorecard, request)
    for path in paths:
        print(path)
    to_program.content["files"] = [str(path) for path in paths]
    return status


def request_of(typed: argparse.Namespace) -> "ProbeRequest":
    """Return the probe that the flags ask for. Raises UserError."""
    from lmplay.probe.probe import DEFAULT_TASKS, ProbeRequest
    from lmplay.probe.sizes import SIZES

    if typed.size not in SIZES:
        raise UserError(f"--size: there is no {typed.size!r}.{did_you_mean(typed.size, SIZES)}")
    check_at_least(1, max_steps=typed.steps, batch_size=typed.batch_size)
    given = {"steps": typed.steps, "batch_size": typed.batch_size}
    size = dataclasses.replace(SIZES[typed.size], **{name: value for name, value in given.items() if value is not None})
    return ProbeRequest(
        experiments=tuple(typed.exp),
        tasks=tuple(typed.tasks or DEFAULT_TASKS),
        seeds=typed.seeds,
        size=size,
        lr=typed.lr,
        device=typed.device,
        out=str(typed.out),
        allow_leak=typed.allow_leak,
        retry_crashed=typed.retry_crashed,
        jobs=typed.jobs,
        together=typed.together,
        on=typed.on,
    )


def write_files(scorecard: "Scorecard", request: "ProbeRequest") -> list[Path]:
    """Write the figures and the picture, one file each per size, and return their paths."""
    from lmplay.probe.scorecard import draw, write_csv

    size = request.size
    name = Path(request.out) / f"probes_{size.n_layer}x{size.n_embd}_{size.steps}x{size.batch_size}_lr={request.lr:g}"
    table, picture = name.with_name(f"{name.name}.csv"), name.with_name(f"{name.name}.png")
    write_csv(scorecard, table)
    title = (
        f"{size.steps:,} steps of {size.batch_size} sequences; as large as {size.n_layer} layers of width {size.n_embd}"
    )
    draw(scorecard, picture, title)
    return [table, picture]


if __name__ == "__main__":
    sys.exit(main())
