"""lmp_plotstats: draw curves of runs over one another, and print a table of their final figures."""

import argparse
import math
import sys

from lmplay.cli.colors import with_verdicts
from lmplay.cli.command import add_out, command_parser, run_command
from lmplay.cli.json_output import Told, add_json, told
from lmplay.cli.tracking import add_track, check_track, send_runs
from lmplay.errors import UserError
from lmplay.files import typed_path
from lmplay.registry import DEFAULT_EXPERIMENT
from lmplay.report.plot_options import X_AXES, Limits, PlotOptions

PORT = 8017
UNITS = {"k": 1e3, "M": 1e6, "B": 1e9}

EXAMPLES = """\
  lmp_plotstats                                               every run in gpt_out
  lmp_plotstats my_run gpt2ish-tiny_quick                     two runs, over one another
  lmp_plotstats --baseline gpt2ish --x flops                  differences to gpt2ish, at equal compute
  lmp_plotstats --report --split validate                     an HTML page with curves, code differences and samples
  lmp_plotstats --serve                                       the same page in a browser, up to date while runs train"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of lmp_plotstats."""
    p = command_parser(
        "lmp_plotstats",
        description="Draw the loss and the accuracy of runs over one another, and their differences to a baseline; "
        "print a table of final figures. The runs of a folder are drawn in one panel for each plan.",
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
        "--to", type=typed_path, metavar="FOLDER", help="write the plots here (default: the folder that holds the runs)"
    )
    p.add_argument(
        "--baseline",
        metavar="NAME|RUN",
        help=f"the experiment or run to subtract (default: {DEFAULT_EXPERIMENT}, else the longest run)",
    )
    p.add_argument("--x", choices=tuple(X_AXES), default="tokens", help="quantity on the x-axis (default: tokens)")
    p.add_argument("--linear", action="store_true", help="use a linear x-axis instead of a logarithmic one")
    p.add_argument(
        "--split",
        choices=("train", "validate"),
        help="draw training or validation figures (default: validate if every run has a few validations)",
    )
    p.add_argument(
        "--smooth",
        type=percentage,
        metavar="PERCENT",
        help="average each point over PERCENT of x to both sides, with --linear over PERCENT of the longest run; "
        "0 does not smooth (default: 5, with --linear 2; validations are not smoothed)",
    )
    p.add_argument("--plot-raw", action="store_true", help="draw the unsmoothed points faintly too")
    p.add_argument("--training-plan", metavar="PLAN", help="draw only the runs on this plan (default: all)")
    p.add_argument("--plan-step", "--phase", metavar="NAME", help="draw only this phase of the plan (default: all)")
    p.add_argument(
        "--bits-per-byte",
        action="store_true",
        help="draw bits per byte instead of the loss (always done if tokenizers differ)",
    )
    p.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME",
        help="draw this column of the CSV files too, such as one that an experiment reports, or all columns of a "
        "pattern such as 'x_*'; repeatable",
    )
    p.add_argument(
        "--training",
        action="store_true",
        help="draw the learning rate, the gradient norm and the tokens per second too",
    )
    p.add_argument(
        "--xlim",
        type=limits,
        default=(None, None),
        metavar="LOW,HIGH",
        help="draw only this part of x, as 1M,20M or ,20M; time in seconds (default: all)",
    )
    p.add_argument(
        "--ylim",
        type=named_limits,
        action="append",
        default=[],
        metavar="[PICTURE=]LOW,HIGH",
        help="limits of y in a picture, by its name without log_, as 3,5 or diff_loss=-0.1,0.1; repeatable (default: "
        "PICTURE loss; what most curves need)",
    )
    lines = p.add_mutually_exclusive_group()
    lines.add_argument(
        "--group",
        metavar="FIELD",
        help="draw one line for each value of a setting, of a field of the Config or of 'experiment': the mean of its "
        "runs, each of them thin (default: one for runs that differ only in their seed)",
    )
    lines.add_argument(
        "--each-run",
        action="store_true",
        help="draw a line for each run (default: one mean with a band for runs that differ only in their seed)",
    )
    p.add_argument(
        "--style",
        choices=("screen", "paper", "dark"),
        default="screen",
        help="paper: small, without a title; dark: on a dark ground (default: screen)",
    )
    p.add_argument("--csv", action="store_true", help="write the curves of each plot as CSV too (default: no)")
    p.add_argument("--format", choices=("png", "svg", "pdf"), default="png", help="format of the plots (default: png)")
    p.add_argument(
        "--report",
        nargs="?",
        const="",
        metavar="FILE",
        help="write an HTML page too, with curves, code differences and samples, and its table as Markdown and CSV "
        "(default FILE: report.html beside the plots)",
    )
    p.add_argument(
        "--serve",
        nargs="?",
        type=port,
        const=range(PORT, PORT + 20),
        metavar="PORT",
        help="show that page in a browser on this machine and keep it up to date while runs train, until Ctrl-C "
        f"(default PORT: {PORT}, or the next that is free)",
    )
    add_track(p)
    add_json(p)
    p.add_argument("--show", action="store_true", help="open the plots in windows as well")
    return p


def port(text: str) -> range:
    """Return the port of a flag, as a range of one. Raises ArgumentTypeError for what is none."""
    if not (text.isascii() and text.isdecimal()) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r} (runs come before --serve)")
    return range(int(text), int(text) + 1)


def limits(text: str) -> Limits:
    """Return the limits of an axis that a flag gives. Raises ArgumentTypeError for what are none."""
    try:
        low, high = (_number(part.strip()) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"LOW,HIGH is expected, such as 1M,20M or ,5, not {text!r}") from None
    if (low is None and high is None) or (low is not None and high is not None and not low < high):
        raise argparse.ArgumentTypeError(f"LOW,HIGH is expected, the lower first, not {text!r}")
    return low, high


def _number(text: str) -> float | None:
    """Return a number that may end in k, M or B, None for no text. Raises ValueError."""
    if not text:
        return None
    number = float(text[:-1]) * UNITS[text[-1]] if text[-1] in UNITS else float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def named_limits(text: str) -> tuple[str, Limits]:
    """Return the name of a picture and the limits of its y-axis. Raises ArgumentTypeError."""
    name, found, values = text.rpartition("=")
    return (name.removeprefix("log_") if found else "loss"), limits(values)


def percentage(text: str) -> float:
    """Return the number that a flag gives. Raises ArgumentTypeError outside of 0 to 100."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"a percentage between 0 and 100 is expected, not {text!r}")
    return value


def main(argv: list[str] | None = None) -> int:
    """Run lmp_plotstats with `argv` (default: the command line's) and return its exit status."""
    return run_command("lmp_plotstats", command, argv)


def command(argv: list[str]) -> None:
    """Draw what the flags ask for."""
    typed = parser().parse_args(argv)
    with told("lmp_plotstats", typed.json) as to_program:
        draw_as_typed(typed, to_program)


def draw_as_typed(typed: argparse.Namespace, to_program: Told) -> None:
    """Draw, and say what was found to people and to a program."""
    try:
        from lmplay.report import as_json, figure, overlay
    except ImportError as error:
        raise UserError(f"{error.name} is missing: install it with 'pip install {error.name}'") from error

    if typed.report is not None:
        check_page(typed.report)
    check_track(typed.track)
    options = PlotOptions(
        baseline=typed.baseline,
        x=typed.x,
        log=not typed.linear,
        split=typed.split,
        smooth=typed.smooth,
        raw=typed.plot_raw,
        plan_step=typed.plan_step,
        training_plan=typed.training_plan,
        bits_per_byte=typed.bits_per_byte,
        columns=tuple(typed.column),
        each_run=typed.each_run,
        xlim=typed.xlim,
        ylim=tuple(typed.ylim),
        group=typed.group,
        style=typed.style,
        training=typed.training,
    )
    if typed.serve is not None:
        serve(typed, options)
        return
    found = overlay.overlay(typed.runs, typed.out, options)
    for warning in found.warnings:
        print(f"lmp_plotstats: {warning}", file=sys.stderr)
    print(with_verdicts(found.table))
    to_program.content = as_json.of_overlay(found)
    folder = typed.to or found.folder
    paths = overlay.write_plots(found, folder, typed.format, typed.csv)
    for path in paths:
        print(f"wrote {path}")
    to_program.content["files"] = [str(path) for path in paths]
    if typed.report is not None:
        from lmplay.report.report import of_overlay, write

        for path in write(of_overlay(found), typed_path(typed.report) if typed.report else folder / "report.html"):
            print(f"wrote {path}")
    runs = [one.run for panel in found.panels for group in panel.groups for one in group.members]
    send_runs("lmp_plotstats", runs, typed.track)
    if typed.show and not figure.show(list(found.pictures.values())):
        print("lmp_plotstats: --show needs a display, and there is none here: open the files", file=sys.stderr)


def serve(typed: argparse.Namespace, options: PlotOptions) -> None:
    """Serve the page until Ctrl-C."""
    from lmplay.report.live import Live
    from lmplay.report.serve import start

    with start(Live(typed.runs, typed.out, options), typed.serve) as server:
        print(f"serving {server.address} to this machine until Ctrl-C", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def check_page(page: str) -> None:
    """Raise UserError if the page of --report can't be written: its name is wrong, or plotly is missing."""
    from lmplay.report.page import plotly_source

    if page and not page.endswith(".html"):
        raise UserError(
            f"the page of --report is a .html file, not {page!r} (runs that follow it come after --report=FILE)"
        )
    plotly_source()


if __name__ == "__main__":
    sys.exit(main())
