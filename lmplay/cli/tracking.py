"""Send runs to trackers from a command: lmp_plotstats --track, and lmp_compare --track after its verdict."""

import sys
from collections.abc import Iterable, Sequence

from lmplay.cli.command import Flags
from lmplay.errors import UserError
from lmplay.runs.run import Run
from lmplay.runs.settings import TRACKERS


def add_track(flags: Flags) -> None:
    """Add `--track` of a command that sends runs which are there."""
    flags.add_argument(
        "--track",
        action="append",
        default=[],
        choices=TRACKERS,
        help="send the runs to this tracker, too, what it has not got yet; repeatable (default: none)",
    )


def check_track(trackers: Sequence[str]) -> None:
    """Raise UserError for the first of these trackers that is not installed."""
    if trackers:
        from lmplay.track.trackers import check_trackers

        check_trackers(tuple(trackers))


def send_runs(command: str, runs: Iterable[Run], trackers: Sequence[str]) -> None:
    """Send runs to trackers, each once, and say what went wrong on stderr; nothing else comes of that."""
    from lmplay.track.follow import send_run

    for run in {run.folder.resolve(): run for run in runs}.values():
        for name in dict.fromkeys(trackers):
            try:
                send_run(run, name)
            except UserError as error:
                print(f"{command}: {error}", file=sys.stderr)
