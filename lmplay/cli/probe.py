"""lmp_probe: what can this architecture do? Trains experiments of one size on small tasks and draws a scorecard."""

import argparse
import dataclasses
import sys
from pathlib import Path

from lmplay.cli.command import add_device, add_out, command_parser, run_command
from lmplay.errors import UserError, check_at_least, did_you_mean

EXAMPLES = """\
  lmp_probe --exp gpt2ish my_idea                             the usual tasks, small models, two seeds
  lmp_probe --exp gpt2ish my_idea:tiny --tasks mqar parity --seeds 3
  lmp_probe --exp my_idea --tasks all --size standard         longer training, wider choice of tasks
Runs are kept in --out: whatever was trained with the same settings, data and code is not trained again."""


def main(argv: list[str] | None = None) -> int:
    """Run lmp_probe with these words (default: those of the command line) and return its exit status."""
    return run_command("lmp_probe", command, argv)


def parser() -> argparse.ArgumentParser:
    p = command_parser(
        "lmp_probe",
        allow_abbrev=False,
        examples=EXAMPLES,
        description="Trains experiments of equal size on small synthetic tasks and shows, as a table, as CSV and as a heat map, which "
        "they solve.",
    )
    p.add_argument(
        "--exp",
        nargs="+",
        action="extend",
        required=True,
        metavar="NAME[:VARIANT]",
        help="the experiments, made equally small: layers and widths shrink to the parameters of a small gpt2ish",
    )
    p.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="probes (the plans probe_TASK), plan files, or all (default: six of them)",
    )
    p.add_argument("--seeds", type=int, default=2, metavar="N", help="train each with seeds 0 to N - 1 (default 2)")
    p.add_argument(
        "--size", default="quick", metavar="SIZE", help="quick (minutes in all, the default), standard or large"
    )
    p.add_argument("--updates", type=int, metavar="N", help="train so long instead of as long as the size says")
    p.add_argument("--batch-size", type=int, metavar="N", help="sequences an update, instead of what the size says")
    p.add_argument("--lr", type=float, default=3e-3, help="peak learning rate (default 0.003)")
    add_device(p)
    add_out(p)
    return p


def command(argv: list[str]) -> int:
    typed = parser().parse_args(argv)
    from lmplay.probe.probe import DEFAULT_TASKS, ProbeRequest, Stopped, run_probe
    from lmplay.probe.scorecard import as_text
    from lmplay.probe.sizes import SIZES

    if typed.size not in SIZES:
        raise UserError(f"--size: there is no {typed.size!r}.{did_you_mean(typed.size, SIZES)}")
    changed = {name: value for name in ("updates", "batch_size") if (value := getattr(typed, name)) is not None}
    check_at_least(1, **changed)
    request = ProbeRequest(
        tuple(typed.exp),
        tuple(typed.tasks or DEFAULT_TASKS),
        typed.seeds,
        typed.lr,
        typed.device,
        str(typed.out),
        size=dataclasses.replace(SIZES[typed.size], **changed),
    )
    try:
        scorecard, status = run_probe(request), 0
    except Stopped as stopped:
        scorecard, status = stopped.scorecard, 130
        print("lmp_probe: stopped; the same command goes on; so far:", file=sys.stderr)
    for line in scorecard.skipped:
        print(f"lmp_probe: left out: {line}", file=sys.stderr)
    print(as_text(scorecard), flush=True)
    for path in _write(scorecard, request):
        print(path)
    return status


def _write(scorecard, request) -> list[Path]:
    """The picture and the figures, into a file each for each size."""
    from lmplay.probe.scorecard import draw, write_csv

    size = request.size
    name = Path(request.out) / f"probes_{size.n_layer}x{size.n_embd}_{size.updates}x{size.batch_size}_lr={request.lr:g}"
    table, picture = name.with_name(f"{name.name}.csv"), name.with_name(f"{name.name}.png")
    write_csv(scorecard, table)
    draw(
        scorecard,
        picture,
        f"{size.updates:,} updates of {size.batch_size} sequences; as large as {size.n_layer} layers of width {size.n_embd}",
    )
    return [table, picture]


if __name__ == "__main__":
    sys.exit(main())
