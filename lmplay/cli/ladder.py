"""The ladder of lmp_compare: its flags, and what is printed."""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from lmplay.cli.command import Flags
from lmplay.errors import DONE, STOPPED
from lmplay.train import settings as settings_module

if TYPE_CHECKING:
    from lmplay.compare.request import ComparisonRequest


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
        type=float,
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


def climb_as_typed(typed: argparse.Namespace, request: "ComparisonRequest") -> int:
    """Climb the ladder, print what is found, and return the exit status."""
    from lmplay.compare.jobs import Stopped
    from lmplay.compare.ladder import Climber, LadderRequest
    from lmplay.compare.ladder_outlook import outlook
    from lmplay.report.ladder import as_text

    asked = LadderRequest(
        request,
        typed.ladder,
        tokens_per_parameter=typed.tokens_per_parameter,
        tuning_seeds=typed.tuning_seeds,
    )
    with contextlib.redirect_stdout(sys.stderr):  # what a model prints while it is counted
        climber = Climber(asked)
        lines = outlook(climber) if typed.dry_run else []
    if typed.dry_run:
        print("\n".join(lines), flush=True)
        return DONE
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = climber.climb()
    except Stopped:
        print("lmp_compare: stopped; the same command goes on", file=sys.stderr)
        return STOPPED
    print("\n\n".join(map(as_text, found)), flush=True)
    return next((one.status for arm in found for one in arm.candidates if one.status), DONE)
