"""Draw runs over one another, and list their final figures: what lmp_plotstats does."""

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas
from matplotlib.figure import Figure

from lmplay.errors import UserError, did_you_mean
from lmplay.files import typed_path
from lmplay.own_files import own_file
from lmplay.report import figure
from lmplay.report.final_figures import final_figures
from lmplay.report.groups import SPLITS, Loaded, RunGroup, choose_baseline, matching, same_tokenizer
from lmplay.report.panels import Panel, by_plan, chosen_by_plan, folder_of, knows, make_panel, tables
from lmplay.report.pictures import make_pictures
from lmplay.report.plot_data import as_csv
from lmplay.report.plot_options import TRAINING, PlotOptions
from lmplay.runs.alive import unfinished
from lmplay.runs.folder import find_runs
from lmplay.runs.names import MIDWAY_PREFIX, PLAN_STEP, TABLES
from lmplay.runs.run import Run, is_run, read_run
from lmplay.runs.tables import read_header


class Reader:
    """Reads the tables of runs and their final figures."""

    def table(self, run: Run, split: str, columns: Iterable[str]) -> pandas.DataFrame:
        """Return the table of a split with these columns, as far as the run has them."""
        return run.table(split, columns)

    def figures(self, run: Run, train: pandas.DataFrame, validate: pandas.DataFrame) -> dict[str, float | None]:
        """Return the final figures of a run with these tables."""
        return final_figures(run, train, validate)


@dataclass(frozen=True)
class Overlay:
    """Runs over one another.

    panels: the runs of each plan, or all runs in one. pictures: by file name, without the suffix; the first panel, with
    the others below it. table: final figures as text. warnings: one line each. folder: holds the runs.
    """

    panels: list[Panel]
    pictures: dict[str, figure.Picture]
    table: str
    warnings: list[str]
    folder: Path

    @property
    def groups(self) -> list[RunGroup]:
        """The groups of all panels."""
        return [group for panel in self.panels for group in panel.groups]


def overlay(paths: Sequence[str | Path], out: Path, options: PlotOptions) -> Overlay:
    """Read the runs at `paths` (see `find_runs`) and lay out all pictures and the table; write nothing.

    Runs that are named are drawn over one another. Those of a folder are drawn in one panel for each plan, without
    those of lmp_probe. Raises UserError if there is nothing to draw, and for an unknown baseline, phase or column.
    """
    runs, warnings, named = chosen_runs(paths, out, options)
    return overlay_runs(runs, options, warnings, apart=not named)


def chosen_runs(
    paths: Sequence[str | Path], out: Path, options: PlotOptions, read: Callable[[Path], Run] = read_run
) -> tuple[list[Run], list[str], bool]:
    """Find the runs to draw: (runs, warnings, whether runs were named instead of folders). Raises as `overlay` does."""
    runs, warnings = find_runs(paths, out, read)
    named = any(is_run(typed_path(path)) or is_run(out / path) for path in paths)
    if not named or options.training_plan:
        runs, more = chosen_by_plan(runs, options.training_plan)
        warnings += more
    if options.baseline and not matching(runs, options.baseline):
        runs += _elsewhere(options.baseline, out)
    return runs, warnings, named


def overlay_runs(runs: list[Run], options: PlotOptions, skipped: Iterable[str] = (), apart: bool = False) -> Overlay:
    """Lay out all pictures and the table of these runs. Raises as `overlay` does.

    skipped: warnings to begin with. apart: whether each plan has a panel of its own.
    """
    options = replace(options, columns=_columns(runs, options.columns))
    panels, warnings = make_panels(runs, options, skipped, apart)
    pictures: dict[str, figure.Picture] = {}
    for panel in panels:
        try:
            drawn, more = make_pictures(panel.groups, options, panel.loss, panel.same_tokenizer)
        except UserError as error:
            if len(panels) == 1:
                raise
            drawn, more = {}, [str(error)]
        warnings += [f"plan {panel.name}: {line}" if len(panels) > 1 else line for line in more]
        for name, picture in drawn.items():
            if name in pictures:
                pictures[name].below.append(picture)
            else:
                pictures[name] = picture
    if not pictures:
        raise UserError(f"no run to draw: {'; '.join(warnings)}")
    _check_ylim(options, pictures)
    return Overlay(panels, pictures, tables(panels), warnings, folder_of(panels[0]))


def make_panels(
    runs: list[Run],
    options: PlotOptions,
    skipped: Iterable[str] = (),
    apart: bool = False,
    reader: Reader | None = None,
) -> tuple[list[Panel], list[str]]:
    """Sort these runs into panels of groups: (panels, warnings). Raises as `overlay` does.

    skipped, apart: as in `overlay_runs`.
    """
    loaded, warnings = _load(runs, options, skipped, reader or Reader())
    if options.baseline:  # raises where it is none of them
        choose_baseline([one.run for one in loaded], options.baseline, [0.0] * len(loaded))
    parts, more = by_plan(loaded) if apart else ([loaded], [])
    panels = []
    for part in parts:
        known = options.baseline is None or knows(part, options.baseline)
        panels.append(make_panel(part, options if known else replace(options, baseline=None)))
    return panels, warnings + more


def _check_ylim(options: PlotOptions, pictures: Iterable[str]) -> None:
    known = [name.removeprefix("log_") for name in pictures]
    for name, _ in options.ylim:
        if name not in known:
            raise UserError(f"--ylim: there is no picture {name!r}, but {', '.join(known)}")


def draw_runs(runs: list[Run], options: PlotOptions | None = None, column: str = "loss", diff: bool = False) -> Figure:
    """Return a matplotlib figure of `column` ("loss", "accuracy" or a column of the CSV files) of these runs.

    diff: the difference to the baseline instead. Raises UserError if there is nothing to draw.
    """
    options = options or PlotOptions()
    if column not in ("loss", "accuracy", *options.columns):
        options = replace(options, columns=(*options.columns, column))
    found = overlay_runs(runs, options)
    name = f"{'log_' if options.log else ''}{'diff_' if diff else ''}{column}"
    if name not in found.pictures:
        raise UserError(f"{name} can't be drawn of these runs: {'; '.join(found.warnings) or 'there is no baseline'}")
    return figure.figure_of(found.pictures[name])


def _elsewhere(baseline: str, out: Path) -> list[Run]:
    """Return the baseline as a run that is not among those to draw; none if it is no run either."""
    try:
        return find_runs([baseline], out)[0][:1]
    except UserError:
        return []


def _columns(runs: list[Run], patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns that the patterns stand for. Raises UserError for a pattern without a column."""
    files = [run.folder / name for run in runs for name in TABLES.values()] if patterns else []
    known = {name for file in files for name in read_header(file) if not name.startswith(MIDWAY_PREFIX)}
    found: list[str] = []
    for pattern in patterns:
        columns = sorted(fnmatch.filter(known, pattern))
        if not columns:
            raise UserError(f"no run has a column {pattern!r}.{did_you_mean(pattern, known)}")
        found += columns
    return tuple(dict.fromkeys(found))


def _load(
    runs: list[Run], options: PlotOptions, skipped: Iterable[str], reader: Reader
) -> tuple[list[Loaded], list[str]]:
    """Return (the runs that have data, `skipped` and what else is left out and why). Raises UserError without runs."""
    needed = {options.column, "tokens", "seconds", "loss", "accuracy", "bits_per_byte", *options.columns}
    needed |= set(TRAINING) if options.training else set()
    needed |= set() if same_tokenizer(runs) else {"bytes"}
    loaded: list[Loaded] = []
    warnings = list(skipped)
    phases: set[str] = set()
    for run in runs:
        try:
            tables = {split: reader.table(run, split, needed) for split in SPLITS}
        except UserError as error:
            warnings.append(f"{error}: left out")
            continue
        warnings += [f"{run.name}: {note}" for note in [*run.notes, *filter(None, [unfinished(run)])]]
        if not any(map(len, tables.values())):
            warnings.append(f"{run.name}: has no data yet, left out")
            continue
        if options.plan_step is not None:
            for table in tables.values():
                phases |= set(map(str, table[PLAN_STEP].unique())) if PLAN_STEP in table else set()
            tables = {split: _only(table, options.plan_step) for split, table in tables.items()}
            if not any(map(len, tables.values())):
                warnings.append(f"{run.name}: has no phase {options.plan_step!r}, left out")
                continue
        loaded.append(Loaded(run, tables, reader.figures(run, tables["train"], tables["validate"])))
    if options.plan_step is not None and phases and options.plan_step not in phases:
        raise UserError(f"no run has a phase {options.plan_step!r}.{did_you_mean(options.plan_step, phases)}")
    if not loaded:
        raise UserError(f"no run to draw: {'; '.join(warnings)}")
    return loaded, warnings


def _only(table: pandas.DataFrame, phase: str) -> pandas.DataFrame:
    return table[table[PLAN_STEP] == phase] if PLAN_STEP in table else table.iloc[:0]


def write_plots(found: Overlay, folder: Path, kind: str, data: bool = False) -> list[Path]:
    """Write all pictures to `folder`, which is made if it is missing, as "png", "svg" or "pdf". Return their paths.

    data: write their curves as CSV too.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"no plots can be written to {folder} ({error.strerror}): name another folder with --to"
        ) from None
    paths = []
    for name, picture in found.pictures.items():
        paths.append(folder / f"{''.join(c if c.isalnum() or c in '_-.' else '_' for c in name)}.{kind}")
        figure.save(picture, paths[-1])
        if data:
            paths.append(paths[-1].with_suffix(".csv"))
            with own_file(paths[-1]) as beside:
                beside.write_text(as_csv(picture), encoding="utf-8", newline="")
    return paths
