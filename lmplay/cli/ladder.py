"""The ladder of lmp_compare: its flags, and what is printed."""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from lmplay.cli.colors import with_verdicts
from lmplay.cli.command import Flags
from lmplay.cli.json_output import Told
from lmplay.errors import DONE, STOPPED, UserError
from lmplay.train import settings as settings_module

if TYPE_CHECKING:
    from lmplay.compare.ladder import Climber
    from lmplay.compare.request import ComparisonRequest
    from lmplay.report.ladder import ArmsOnLadder


def add_ladder_flags(what: Flags) -> None:
    """Add the flags of a ladder."""
    what.add_argument(
        "--ladder",
        metavar="laptop|SIZE,SIZE,...",
        help="compare at several sizes: laptop (2x64,3x96,4x128), or such as d2,d3,d4 (dN: N layers, width 64 N); "
        "--seeds is then the pairs at each size whose time is shared out (default: one size, as the variants are)",
    )
    what.add_argument(
        "--tokens-per-parameter",
        type=settings_module.number,
        metavar="K",
        help="on a ladder, train on K tokens for each parameter of the baseline's matrices and head: 1, 2, 5 or 12 "
        "(default: 5)",
    )
    what.add_argument(
        "--tuning-seeds",
        type=settings_module.whole,
        default=1,
        metavar="N",
        help="on a ladder, tune under N seeds, which judge nothing (default: 1)",
    )


def climb_as_typed(typed: argparse.Namespace, request: "ComparisonRequest", to_program: Told) -> int:
    """Climb the ladder, say what is found to people and to a program, and return the exit status."""
    from lmplay.compare.jobs import Stopped
    from lmplay.compare.ladder import Climber, LadderRequest
    from lmplay.compare.ladder_budget import within
    from lmplay.compare.ladder_outlook import decidable_lines, outlook
    from lmplay.report.ladder import as_text
    from lmplay.report.ladder_report import as_object

    asked = LadderRequest(
        request,
        typed.ladder,
        tokens_per_parameter=typed.tokens_per_parameter,
        tuning_seeds=typed.tuning_seeds,
    )
    with contextlib.redirect_stdout(sys.stderr):  # what a model prints while it is counted
        climber, said = within(asked, request.budget) if request.budget else (Climber(asked), "")
        lines = [*filter(None, [said]), *(outlook(climber) if typed.dry_run else [])]
    if typed.dry_run:
        print("\n".join(lines), flush=True)
        to_program.content = {"planned": lines}
        return DONE
    if said:
        print(said, *decidable_lines(climber), sep="\n", file=sys.stderr)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = climber.climb()
    except Stopped:
        print("lmp_compare: stopped; the same command goes on", file=sys.stderr)
        return STOPPED
    to_program.content = as_object(found)
    print(with_verdicts("\n\n".join(map(as_text, found))), flush=True)
    if not typed.no_report:
        _write_report(found, climber)
    return next((one.status for arm in found for one in arm.candidates if one.status), DONE)


def _write_report(found: "list[ArmsOnLadder]", climber: "Climber") -> None:
    """Write the report into --out and print where it is."""
    from lmplay.report.ladder_report import write_ladder
    from lmplay.train.run_name import file_name

    labels = [one.label for one in found[:3]] + ([f"{len(found) - 3} more"] if len(found) > 3 else [])
    lowest = f"max-tokens={climber.rungs[0].tokens}"
    tuned = [f"{axis.field}={'+'.join(map(str, axis.values))}" for axis in climber.tune]
    plan = climber.index.plan.name
    name = file_name(["ladder", *labels, "vs", found[0].baseline, climber.request.ladder, plan, lowest, *tuned])
    try:
        print(f"\nreport: {write_ladder(found, climber.settings.out_folder / f'{name}.html')[-1]}")
    except UserError as error:  # the verdict is there
        print(f"lmp_compare: {error}", file=sys.stderr)
