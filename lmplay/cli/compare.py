"""lmp_compare: is it really better? Trains the runs that are missing and gives a verdict."""

import argparse
import dataclasses
import sys
from pathlib import Path

from lmplay.cli.command import command_parser, run_command
from lmplay.errors import UserError
from lmplay.registry import DEFAULT_EXPERIMENT
from lmplay.runs.settings import Settings
from lmplay.train import settings as settings_module

EXAMPLES = """\
  lmp_compare --exp my_idea --seeds 3 --training-plan quick   is my_idea better than the baseline?
  lmp_compare --exp my_idea other_idea --baseline gpt2ish:12l
  lmp_compare --exp my_idea --until-sure --within 0.01        add seeds until it is better, worse, or equal within 0.01
  lmp_compare --exp my_idea --lr 3e-4,1e-3,3e-3               each side at its own best learning rate
  lmp_compare --aa --seeds 3                                  the baseline against itself: must come out as no difference
Runs are kept in --out: whatever was trained with the same settings, data and code is not trained again."""

OWN = ("exp", "lr", "seed", "run_name")  # settings that differ from run to run


def main(argv: list[str] | None = None) -> int:
    """Run lmp_compare with these words (default: those of the command line) and return its exit status."""
    return run_command("lmp_compare", command, argv)


def parser() -> argparse.ArgumentParser:
    # --seed is no short form of --seeds
    p = command_parser(
        "lmp_compare",
        allow_abbrev=False,
        examples=EXAMPLES,
        description="Compares experiments with a baseline: trains what is missing, under several seeds, and gives a "
        "verdict with a 95% interval.",
    )
    what = p.add_argument_group("what is compared")
    what.add_argument("--exp", nargs="+", action="extend", default=[], metavar="NAME[:VARIANT]", help="the candidates")
    what.add_argument(
        "--baseline",
        default=DEFAULT_EXPERIMENT,
        metavar="NAME[:VARIANT]",
        help=f"what they are compared with (default {DEFAULT_EXPERIMENT}; "
        "of the candidates' variant where it has that one)",
    )
    what.add_argument(
        "--seeds",
        type=settings_module.whole,
        metavar="N",
        help="train each with seeds 0 to N - 1 (default 3; with --until-sure 2 at first)",
    )
    what.add_argument(
        "--lr",
        type=rates,
        metavar="LR[,LR]...",
        help=f"peak learning rate (default {Settings.lr:g}); of several, each side gets its own best, chosen on one part of the "
        "data and judged on another",
    )
    what.add_argument(
        "--until-sure",
        action="store_true",
        help="add seeds until the answer is sure; 5%% wrong answers in all, however often it looks",
    )
    what.add_argument(
        "--max-seeds",
        type=settings_module.whole,
        default=8,
        metavar="N",
        help="with --until-sure: no more than so many (default 8)",
    )
    what.add_argument(
        "--within", type=float, metavar="X", help="a difference smaller than X nats a token counts as equal"
    )
    what.add_argument("--aa", action="store_true", help="compare the baseline with itself under other seeds")
    what.add_argument(
        "--allow-leak", action="store_true", help="give a verdict even between a causal and a non-causal model"
    )
    what.add_argument(
        "--no-report", action="store_true", help="only print the verdict: write no page, Markdown and CSV into --out"
    )
    what.add_argument("--use-config", metavar="FILE", help="settings from a file; flags that are typed come first")
    settings_module.add_flags(p.add_argument_group("settings of all runs"), OWN)
    return p


def rates(text: str) -> tuple[float, ...]:
    try:
        found = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or not all(0 < rate < 1e6 for rate in found):
        raise argparse.ArgumentTypeError(f"learning rates above 0 are expected, with commas between them, not {text!r}")
    return found


def command(argv: list[str]) -> int:
    typed = parser().parse_args(argv)
    own = argparse.Namespace(**{name: value for name, value in vars(typed).items() if name not in OWN})
    if not typed.use_config:
        own.same_init = getattr(own, "same_init", True)
    settings = settings_module.from_flags(own, typed.use_config)
    from lmplay.compare.compare import ComparisonRequest, Stopped, run_comparison
    from lmplay.report.comparison import as_text

    candidates = tuple(typed.exp) or (settings.exp,) * bool(typed.use_config and not typed.aa)
    seeds = typed.seeds if typed.seeds is not None else 2 if typed.until_sure else 3
    request = ComparisonRequest(
        typed.baseline,
        candidates,
        dataclasses.replace(settings, run_name=None),
        seeds,
        typed.lr or (settings.lr,),
        typed.aa,
        typed.allow_leak,
        typed.until_sure,
        typed.within,
        typed.max_seeds,
        any_interval=not hasattr(typed, "validation_interval")
        and settings.validation_interval == Settings.validation_interval,
    )
    try:
        comparison, status = run_comparison(request), 0
    except Stopped as stopped:
        comparison, status = stopped.comparison, 130
        print(
            "lmp_compare: stopped; the same command goes on" + (", and so far:" if comparison else ""), file=sys.stderr
        )
    if comparison:
        for line in comparison.skipped:
            print(f"lmp_compare: left out: {line}", file=sys.stderr)
        print(as_text(comparison), flush=True)
        if not typed.no_report:
            _report(comparison, request)
    return status


def _report(comparison, request) -> None:
    """Comparisons of the same models under other settings have pages of their own; more seeds go into the same one."""
    from lmplay.report.report import of_comparison, page_name, write
    from lmplay.train.run_name import budgets, file_name, not_by_default

    settings = dataclasses.replace(
        request.settings,
        seed=Settings.seed,
        same_init=False,
        lr=request.rates[0] if len(request.rates) == 1 else Settings.lr,
    )
    others = [f"lr={'+'.join(f'{rate:g}' for rate in request.rates)}"] if len(request.rates) > 1 else []
    others += [] if request.settings.same_init else ["own-init"]
    report = of_comparison(comparison)
    page = Path(request.settings.out) / (
        file_name([page_name(report), *not_by_default(settings), *budgets(settings), *others]) + ".html"
    )
    try:
        print(f"\nreport: {write(report, page)[-1]}")
    except UserError as error:  # the verdict is there
        print(f"lmp_compare: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
