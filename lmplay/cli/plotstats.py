"""lmp_plotstats: overlays of the curves of runs, and a table of their final figures."""

import argparse
import sys
from pathlib import Path

from lmplay.cli.command import add_out, command_parser, run_command
from lmplay.errors import UserError
from lmplay.registry import DEFAULT_EXPERIMENT

EXAMPLES = """\
  lmp_plotstats                                               every run in gpt_out
  lmp_plotstats my_run gpt2ish-tiny_quick                     two runs, over one another
  lmp_plotstats --baseline gpt2ish --x flops                  differences to gpt2ish, at equal compute
  lmp_plotstats --report --split validate                     an HTML page with curves, code differences and samples too"""


def parser() -> argparse.ArgumentParser:
    p = command_parser(
        "lmp_plotstats",
        description="Draws loss and accuracy of runs over one another, and their "
        "difference to a baseline; prints a table of final figures.",
        examples=EXAMPLES,
    )
    p.add_argument(
        "runs",
        nargs="*",
        metavar="RUN|FOLDER",
        help="a run's folder, a folder of runs, or a run's name in --out (default: all in --out)",
    )
    add_out(p)
    p.add_argument(
        "--to", type=Path, metavar="FOLDER", help="write the plots here (default: the folder that holds the runs)"
    )
    p.add_argument(
        "--baseline",
        metavar="NAME|RUN",
        help="an experiment or a run that differences are taken to "
        f"(default {DEFAULT_EXPERIMENT}, else the longest run)",
    )
    p.add_argument(
        "--x",
        choices=("tokens", "samples", "steps", "seconds", "flops", "bytes"),
        default="tokens",
        help="the x-axis (default tokens)",
    )
    p.add_argument("--linear", action="store_true", help="a linear x-axis instead of a logarithmic one")
    p.add_argument(
        "--split",
        choices=("train", "validate"),
        help="which figures are drawn (default: validate if every run has a few validations)",
    )
    p.add_argument(
        "--smooth",
        type=percentage,
        metavar="PERCENT",
        help="mean over so many percent of x to both sides of each point, with --linear of the longest run; 0 for "
        "none (default: 5, with --linear 2; none for validations)",
    )
    p.add_argument("--plot-raw", action="store_true", help="draw the unsmoothed points faintly too")
    p.add_argument("--plan-step", metavar="NAME", help="only this step of the plan (default: all)")
    p.add_argument(
        "--bits-per-byte",
        action="store_true",
        help="bits per byte instead of loss (always done where tokenizers differ)",
    )
    p.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME",
        help="draw this column of the CSV files too, such as one that an experiment reports, or all of a pattern: 'x_*' "
        "(repeatable)",
    )
    p.add_argument(
        "--each-run",
        action="store_true",
        help="a line for each run, instead of a mean with a band for runs that differ in their seed only",
    )
    p.add_argument("--format", choices=("png", "svg", "pdf"), default="png", help="of the files (default png)")
    p.add_argument(
        "--report",
        nargs="?",
        const="",
        metavar="FILE",
        help="write an HTML page too, with curves, code differences and samples, and its table as Markdown and CSV (default "
        "report.html beside the plots)",
    )
    p.add_argument("--show", action="store_true", help="open the plots in windows as well")
    return p


def percentage(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"a percentage between 0 and 100 is expected, not {text!r}")
    return value


def main(argv: list[str] | None = None) -> int:
    """Run lmp_plotstats with these words (default: those of the command line) and return its exit status."""
    return run_command("lmp_plotstats", command, argv)


def command(argv: list[str]) -> None:
    arguments = parser().parse_args(argv)
    try:
        from lmplay.report import figure, overlay
        from lmplay.report.plot_options import PlotOptions
    except ImportError as error:
        raise UserError(f"{error.name} is missing: install it with 'pip install {error.name}'") from error

    page = arguments.report
    if page is not None:
        from lmplay.report import page as pages
        from lmplay.report import report

        if page and not page.endswith(".html"):
            raise UserError(
                f"the page of --report is a .html file, not {page!r} (runs that follow it come after --report=FILE)"
            )
        pages.plotly_source()
    options = PlotOptions(
        baseline=arguments.baseline,
        x=arguments.x,
        log=not arguments.linear,
        split=arguments.split,
        smooth=arguments.smooth,
        raw=arguments.plot_raw,
        plan_step=arguments.plan_step,
        bits_per_byte=arguments.bits_per_byte,
        columns=tuple(arguments.column),
        each_run=arguments.each_run,
    )
    found = overlay.overlay(arguments.runs, arguments.out, options)
    for warning in found.warnings:
        print(f"lmp_plotstats: {warning}", file=sys.stderr)
    print(found.table)
    for path in overlay.write(found, arguments.to or found.folder, arguments.format):
        print(f"wrote {path}")
    if page is not None:
        for path in report.write(
            report.of_overlay(found), Path(page) if page else (arguments.to or found.folder) / "report.html"
        ):
            print(f"wrote {path}")
    if arguments.show and not figure.show(list(found.pictures.values())):
        print("lmp_plotstats: --show needs a display, and there is none here: open the files", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
