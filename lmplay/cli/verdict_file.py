"""Exchange verdicts: lmp_compare --export FILE.zip, --from FILE.zip, --repeat."""

import argparse
import sys
from pathlib import Path
from typing import Any

from lmplay.cli.colors import with_verdicts
from lmplay.cli.command import Flags
from lmplay.cli.json_output import Told
from lmplay.errors import DONE, UserError
from lmplay.files import typed_path
from lmplay.runs.setting import flag_of
from lmplay.runs.settings import Settings

# What of a run's settings may be another one here, since it does not decide the result, or only where the data lie.
WHERE = (
    *("out", "device", "threads", "training_plan", "data", "compile", "cuda_graph", "mini_batch_size"),
    *("save_interval", "backup_interval", "backup_at"),
)
IN_FILE = (
    *("exp", "lr", "tune", "seeds", "extend", "ladder", "ledger", "until_sure", "within", "budget", "aa", "dry_run"),
    *("export", "allow_leak"),
)


def add_exchange_flags(what: Flags) -> None:
    """Add the flags that write and read the file of a verdict."""
    what.add_argument(
        "--export",
        type=typed_path,
        metavar="FILE.zip",
        help="write the comparison into one file that others can check: settings, code, curves, losses, no weights",
    )
    what.add_argument(
        "--from",
        dest="source",
        type=typed_path,
        metavar="FILE.zip",
        help="judge the comparison in such a file again, from its numbers alone: its code is not run",
    )
    what.add_argument(
        "--repeat",
        nargs="?",
        const="",
        metavar="RUN",
        help="with --from: train one of its runs anew here, and say whether it comes out equal (default: the first run "
        "of the first candidate)",
    )


def check_exchange(typed: argparse.Namespace) -> None:
    """Raise UserError for flags that don't go together, and for a file that can't be written."""
    if typed.repeat is not None and not typed.source:
        raise UserError("--repeat trains a run of a file anew: name the file with --from FILE.zip")
    others = [name for name in IN_FILE if getattr(typed, name)]
    if typed.source and others:
        raise UserError(f"--from judges what is in its file: leave out {flag_of(others[0])}")
    if typed.export:
        if typed.ladder or typed.ledger or typed.dry_run:
            raise UserError("--export writes the verdict of one comparison: leave out --ladder, --ledger and --dry-run")
        from lmplay.compare.export import check_target

        check_target(typed.export)


def judge_file(typed: argparse.Namespace, given: dict[str, Any], to_program: Told) -> int:
    """Judge the comparison in a file, train one of its runs anew if that is asked, and return the exit status."""
    wrong = [name for name in given if name not in (WHERE if typed.repeat is not None else ("out",))]
    if wrong and wrong != ["same_init"]:
        raise UserError(
            f"--from takes all from its file: leave out {flag_of(next(name for name in wrong if name != 'same_init'))}"
        )
    from lmplay.compare.judged_again import judged_again
    from lmplay.report.as_json import of_comparison
    from lmplay.report.comparison import as_text

    with judged_again(typed.source) as found:
        print(f"{typed.source}: {found.made}; judged again from its numbers\n")
        print(with_verdicts(as_text(found.comparison)))
        print("\n".join(f"note: {line}" for line in found.said), flush=True)
        to_program.content = {**of_comparison(found.comparison), "said": found.said}
        if typed.repeat is not None:
            from lmplay.compare.repeat import repeat

            own = {name: value for name, value in given.items() if name in WHERE}
            done = repeat(found, typed.repeat, typed.source, Settings(**own), own)
            print("\n" + "\n".join(done.lines), flush=True)
            to_program.content["repeat"] = done.to_json()
    return DONE


def export_found(found: Any, request: Any, target: Path) -> None:
    """Write a comparison into a file and say so."""
    from lmplay.compare.compare import planned_looks
    from lmplay.compare.export import export

    export(found, request, planned_looks(request) if request.until_sure else None, target)
    size = target.stat().st_size / 1000
    print(f"exported: {target} ({size:,.0f} kB); lmp_compare --from {target} judges it again", file=sys.stderr)
