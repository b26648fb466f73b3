"""lmp_compare: is it really better? Train the runs that are missing and give a verdict."""

import argparse
import contextlib
import dataclasses
import sys
from typing import TYPE_CHECKING, Any

from lmplay.cli.colors import with_verdicts
from lmplay.cli.command import Flags, add_at_once, add_retry_crashed, add_trust, command_parser, run_command, trust_code
from lmplay.cli.json_output import Told, add_json, told
from lmplay.cli.ladder import add_ladder_flags, climb_as_typed
from lmplay.cli.tracking import check_track, send_runs
from lmplay.cli.verdict_file import add_exchange_flags, check_exchange, export_found, judge_file
from lmplay.errors import DONE, STOPPED, UserError
from lmplay.registry import DEFAULT_EXPERIMENT
from lmplay.runs.settings import NO_RECIPE, Settings
from lmplay.train import settings as settings_module

if TYPE_CHECKING:
    from lmplay.compare.compare import ComparisonRequest
    from lmplay.report.comparison import Comparison

EXAMPLES = """\
  lmp_compare --exp my_idea --seeds 3 --training-plan quick   is my_idea better than the baseline?
  lmp_compare --exp my_idea other_idea --baseline gpt2ish:12l
  lmp_compare --exp my_idea --until-sure --within 0.01        add seeds until it is better, worse, or equal within 0.01
  lmp_compare --exp my_idea --lr 3e-4,1e-3,3e-3               each arm at its own best learning rate
  lmp_compare --exp my_idea --budget 10m --training-plan quick    what can be said within ten minutes
  lmp_compare --exp my_idea --ladder laptop --tune lr=1e-3,2e-3,4e-3    does the gain survive at other sizes?
  lmp_compare --ledger                                        every idea so far, and what holds among all of them
  lmp_compare --exp my_idea --seeds 3 --export idea.zip       a file that others can check with --from idea.zip
  lmp_compare --aa --seeds 3                                  the baseline against itself: must find no difference
Runs are kept in --out: what was trained with the same settings, data and code is not trained again."""

OWN = ("exp", "lr", "seed", "run_name")  # settings that differ from run to run


def main(argv: list[str] | None = None) -> int:
    """Run lmp_compare with `argv` (default: the command line's) and return its exit status."""
    return run_command("lmp_compare", command, argv)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's flags."""
    p = command_parser(
        "lmp_compare",
        examples=EXAMPLES,
        description="Compare experiments with a baseline: train what is missing, under several seeds, and give a\n"
        "verdict with a 95% interval.",
    )
    add_own_flags(p.add_argument_group("what to compare"))
    settings_module.add_flags(p.add_argument_group("settings of all runs"), OWN)
    return p


def add_own_flags(what: Flags) -> None:
    """Add the flags that say what to compare, and how."""
    what.add_argument(
        "--exp",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME[:VARIANT]|RUN",
        help="the experiments, or the kept code of runs, to compare with the baseline",
    )
    what.add_argument(
        "--baseline",
        default=DEFAULT_EXPERIMENT,
        metavar="NAME[:VARIANT]|RUN",
        help=f"the baseline, or a run, which stands for the code that it keeps (default: {DEFAULT_EXPERIMENT}, in the "
        "candidates' variant if it has that variant)",
    )
    what.add_argument(
        "--seeds",
        type=settings_module.whole,
        metavar="N",
        help="train each with seeds 0 to N - 1 (default: 3; with --until-sure 2 at first)",
    )
    what.add_argument(
        "--lr",
        type=rates,
        metavar="LR[,LR]...",
        help=f"peak learning rate (default: {Settings.lr:g}); of several, each arm gets its own best, chosen on one "
        "part of the data and judged on another: short for --tune lr=LR,LR",
    )
    what.add_argument(
        "--tune",
        action="append",
        default=[],
        metavar="FIELD=A,B,C",
        help="try values of a setting, or of a field of all arms' Config, for each arm; repeatable: every combination "
        "is trained (default: nothing is tuned)",
    )
    what.add_argument(
        "--extend",
        type=settings_module.whole,
        metavar="N",
        help="where an arm's best value is at the edge, add a value beyond it for all arms, up to N times (default: "
        "0, on a ladder without --budget 2)",
    )
    add_ladder_flags(what)
    what.add_argument(
        "--until-sure",
        action="store_true",
        help="add seeds until the answer is sure: 5%% wrong answers in all, however often it looks",
    )
    what.add_argument(
        "--max-seeds",
        type=settings_module.whole,
        default=8,
        metavar="N",
        help="with --until-sure: train at most N seeds (default: 8)",
    )
    what.add_argument(
        "--within",
        type=settings_module.number,
        metavar="X",
        help="count a difference below X nats per token as equal (default: only equal to the bit is equal)",
    )
    what.add_argument(
        "--budget",
        metavar="TIME",
        help="make the comparison fit into TIME, such as 90m or 2h: it chooses how long runs are and how many pairs "
        "there are, at most --seeds (default: no limit)",
    )
    what.add_argument(
        "--confidence",
        type=settings_module.number,
        default=0.95,
        metavar="P",
        help="how many of such intervals hold the true difference, with --until-sure over all looks (default: 0.95)",
    )
    what.add_argument("--aa", action="store_true", help="compare the baseline with itself under other seeds")
    what.add_argument(
        "--allow-leak",
        action="store_true",
        help="give a verdict even if a model looks ahead, fails its check, or is not causal",
    )
    add_retry_crashed(what)
    add_at_once(what)
    what.add_argument(
        "--no-report", action="store_true", help="only print the verdict: write no page, Markdown and CSV into --out"
    )
    what.add_argument(
        "--ledger",
        action="store_true",
        help="list every idea that was judged in --out, with what holds among all of them, and compare nothing",
    )
    add_exchange_flags(what)
    add_json(what)
    what.add_argument(
        "--run-name", metavar="PREFIX", help="begin the names of the folders of new runs with PREFIX (default: nothing)"
    )
    what.add_argument(
        "--dry-run", action="store_true", help="say which runs are there and which would be trained, and train nothing"
    )
    add_trust(what)
    what.add_argument(
        "--use-config", metavar="NAME|FILE", help="read settings from a file or a config; typed flags come first"
    )


def rates(text: str) -> tuple[float, ...]:
    """Return the learning rates in "LR,LR,...", ascending, each once."""
    try:
        found = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or not all(0 < rate < 1e6 for rate in found):
        raise argparse.ArgumentTypeError(f"learning rates above 0 are expected, with commas between them, not {text!r}")
    return found


def command(argv: list[str]) -> int:
    """Compare as the words say: print the verdict, write the report, return the exit status."""
    typed = parser().parse_args(argv)
    with told("lmp_compare", typed.json) as to_program:
        trust_code(typed.trust_code)
        check_exchange(typed)
        if typed.ledger:
            show_ledger(typed, to_program)
        elif typed.source:
            to_program.status = judge_file(typed, given_of(typed), to_program)
        else:
            to_program.status = compare_as_typed(typed, to_program)
    return to_program.status


def show_ledger(typed: argparse.Namespace, to_program: Told) -> None:
    """Print the ledger of --out."""
    from lmplay.compare.ledger import ledger_text, read_ledger

    ledger = read_ledger(Settings(**given_of(typed)).out_folder)
    print(with_verdicts(ledger_text(ledger)), flush=True)
    to_program.content = ledger.to_json()


def compare_as_typed(typed: argparse.Namespace, to_program: Told) -> int:
    """Compare, say what came out to people and to a program, and return the exit status."""
    request = request_of(typed)
    check_track(request.settings.track)
    if typed.ladder:
        return climb_as_typed(typed, request, to_program)
    from lmplay.compare.compare import plan_comparison, run_comparison
    from lmplay.compare.jobs import Stopped
    from lmplay.report.as_json import of_comparison
    from lmplay.report.comparison import as_text

    if typed.dry_run:
        planned = plan_comparison(request)
        print("\n".join(planned.lines), flush=True)
        to_program.content = planned.to_json()
        return DONE
    try:
        with contextlib.redirect_stdout(sys.stderr):  # what a model prints while it is checked
            comparison = run_comparison(request)
        status = next((one.status for one in comparison.candidates if one.status), DONE)
    except Stopped as stopped:
        comparison, status = stopped.result, STOPPED
        so_far = ", and so far:" if comparison else ""
        print(f"lmp_compare: stopped; the same command goes on{so_far}", file=sys.stderr)
    if comparison:
        to_program.content = of_comparison(comparison)
        for line in comparison.skipped:
            print(f"lmp_compare: left out: {line}", file=sys.stderr)
        print(with_verdicts(as_text(comparison)), flush=True)
        if not typed.no_report:
            write_report(comparison, request)
        if typed.export:
            export_found(comparison, request, typed.export)
        if request.settings.track:
            runs = [run for one in comparison.candidates for pair in one.pairs for run in pair]
            send_runs("lmp_compare", runs, request.settings.track)
    return status


def given_of(typed: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the flags and the file give; an arm's recipe comes after them. Raises UserError."""
    given = argparse.Namespace(**{name: value for name, value in vars(typed).items() if name not in OWN})
    if not typed.use_config:
        given.same_init = getattr(given, "same_init", True)
    return settings_module.given_settings(given, typed.use_config)


def request_of(typed: argparse.Namespace) -> "ComparisonRequest":
    """Return the comparison that the flags ask for. Raises UserError."""
    given = given_of(typed)
    settings = Settings(**given)
    from lmplay.compare.compare import ComparisonRequest
    from lmplay.compare.tuning import axes_of

    candidates = tuple(typed.exp)
    if not candidates and typed.use_config and not typed.aa:
        candidates = (settings.exp,)
    from lmplay.compare.budget import MOST_PAIRS, read_budget

    budget, seeds = read_budget(typed.budget) if typed.budget else None, typed.seeds
    if seeds is None and budget and not typed.until_sure:
        seeds = MOST_PAIRS
    elif seeds is None:
        seeds = 2 if typed.until_sure else 3
    interval_is_ours = not hasattr(typed, "validation_interval")
    return ComparisonRequest(
        baseline=typed.baseline,
        candidates=candidates,
        settings=dataclasses.replace(settings, run_name=None),
        given=frozenset(given),
        prefix=Settings(run_name=typed.run_name).run_name or "",
        confidence=typed.confidence,
        budget=budget,
        seeds=seeds,
        tune=axes_of([*([f"lr={','.join(map(str, typed.lr))}"] if typed.lr else []), *typed.tune]),
        extend=typed.extend if typed.extend is not None else 2 if typed.ladder and budget is None else 0,
        aa=typed.aa,
        allow_leak=typed.allow_leak,
        retry_crashed=typed.retry_crashed,
        jobs=typed.jobs,
        together=typed.together,
        on=typed.on,
        until_sure=typed.until_sure,
        within=typed.within,
        max_seeds=typed.max_seeds,
        any_interval=interval_is_ours and settings.validation_interval in (None, 50),
    )


def write_report(comparison: "Comparison", request: "ComparisonRequest") -> None:
    """Write the report into --out and print where it is.

    Comparisons of the same models under other settings have pages of their own; more seeds go into the same one.
    """
    from lmplay.compare.tuning import fixed
    from lmplay.report.report import of_comparison, page_name, write
    from lmplay.stats.choices import shown_value
    from lmplay.train.run_name import budgets, file_name, not_by_default

    settings = dataclasses.replace(fixed(request.tune, request.settings), seed=Settings.seed, same_init=False)
    settings = dataclasses.replace(settings, recipe=NO_RECIPE)
    others = [] if request.settings.recipe == Settings.recipe else [f"recipe={request.settings.recipe}"]
    others += [
        f"{axis.field}={'+'.join(map(shown_value, axis.values))}" for axis in request.tune if len(axis.values) > 1
    ]
    others += [] if request.settings.same_init else ["own-init"]
    report = of_comparison(comparison)
    name = file_name([page_name(report), *not_by_default(settings), *budgets(settings), *others])
    try:
        print(f"\nreport: {write(report, request.settings.out_folder / f'{name}.html')[-1]}")
    except UserError as error:  # the verdict is there
        print(f"lmp_compare: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
