"""Follow runs while they train: what the page of --serve shows, of which each look reads and tells only what is new."""

import json
import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas

from lmplay.errors import UserError
from lmplay.report.final_figures import final_figures
from lmplay.report.overlay import Overlay, Reader, chosen_runs, make_panels
from lmplay.report.page import (
    Report,
    ReportGroup,
    common_content,
    group_content,
    group_styles,
    page_sections,
    panel_content,
    parts_of,
    swatches_of,
)
from lmplay.report.page_data import Judged, Tables, judge
from lmplay.report.plot_options import PlotOptions
from lmplay.report.progress import COLUMNS, progress_of, progress_table
from lmplay.report.report import of_overlay
from lmplay.runs.alive import state_of
from lmplay.runs.growing import GrowingRuns, stamp
from lmplay.runs.names import RUN_JSON, SAMPLES, TABLES
from lmplay.runs.run import Run
from lmplay.stats.verdict import Verdict
from lmplay.text import count

PEEKED = (
    "verdict so far: of the last validations that the runs of a pair have in common; looking again and again finds "
    "differences by chance, so decide with lmp_compare"
)
NO_RUNS = "No run to show yet"


@dataclass
class Told:
    """A part of the page: the text of it, and the look at which it last changed."""

    text: str
    at: int


@dataclass
class Live(Reader):
    """Runs that are followed. paths, out, options: as in `overlay`. runs: reads them, and of each only what is new.

    `look` reads what has changed. `since` tells what changed after a state that a page has: TOKEN.NUMBER.
    """

    paths: Sequence[str | Path]
    out: Path
    options: PlotOptions
    runs: GrowingRuns = field(default_factory=GrowingRuns)
    looks: int = 0
    token: str = field(default_factory=lambda: secrets.token_hex(6))
    _tables: Tables = field(init=False)
    _parts: dict[str, Told] = field(default_factory=dict)
    _groups: dict[str, Told] = field(default_factory=dict)
    _order: list[str] = field(default_factory=list)
    _common: str = "{}"
    _seen: object = None
    _why: str = ""  # there is nothing to show
    _rows: dict[Path, tuple[object, ...]] = field(default_factory=dict)  # what changes with the tables of each run
    _used: set[str] = field(default_factory=set)
    _kept: dict[str, tuple[object, Any]] = field(default_factory=dict)  # what was made of which state of the files

    def __post_init__(self) -> None:
        self._tables = Tables(self.runs.table)

    @property
    def state(self) -> str:
        """The name of the present state."""
        return f"{self.token}.{self.looks}"

    def look(self) -> None:
        """Read what has changed since the last look, if anything has."""
        try:
            self._look()
        except (UserError, OSError) as error:  # a run may go away while it is read
            self._seen = None
            self._show_none(str(error))

    def _look(self) -> None:
        found, warnings, named = chosen_runs(self.paths, self.out, self.options, self.runs.run)
        self._rows = {run.folder: _rows(run) for run in found}  # first: what is read later is never older
        seen = tuple(map(self._stamps, found)), tuple(warnings)
        if seen == self._seen:
            return
        self._seen = seen
        self.runs.keep(self._rows)
        for run in found:  # what was made of its rows is of no use once there are more
            self._made(f"rows {run.folder}", self._rows[run.folder], partial(self._tables.forget, [run]))
        panels, warnings = make_panels(found, self.options, warnings, not named, self)
        self.looks += 1
        self._show(Overlay(panels, {}, "", warnings, Path()))
        self._kept = {name: kept for name, kept in self._kept.items() if name in self._used}
        self._used.clear()

    def table(self, run: Run, split: str, columns: Iterable[str]) -> pandas.DataFrame:
        """Return the table of a split; of a file that has grown only the new rows are read."""
        return self.runs.table(run, split, columns)

    def figures(self, run: Run, train: pandas.DataFrame, validate: pandas.DataFrame) -> dict[str, float | None]:
        """Return the final figures of a run; those of before, if it has no new row."""
        key = self._rows[run.folder], stamp(run.folder / RUN_JSON)
        return self._made(f"figures {run.folder}", key, partial(final_figures, run, train, validate))

    def parts(self) -> dict[str, str]:
        """Return the parts of the page that are text, in HTML."""
        return {name: told.text for name, told in self._parts.items()}

    def content(self) -> dict[str, Any]:
        """Return what the page's script draws."""
        groups = [json.loads(self._groups[label].text) for label in self._order]
        return {**json.loads(self._common), "groups": groups}

    def since(self, state: str) -> str:
        """Return as JSON what changed since the page had `state`; everything if that is not known."""
        token, _, number = state.partition(".")
        before = int(number) if token == self.token and number.isdecimal() and len(number) < 20 else -1
        parts = {name: told.text for name, told in self._parts.items() if told.at > before}
        changed = [label for label in self._order if self._groups[label].at > before]
        groups = ",".join(f"{json.dumps(label)}:{self._groups[label].text}" for label in changed)
        return (
            f'{{"state":{json.dumps(self.state)},"parts":{json.dumps(parts)},"common":{self._common},'
            f'"order":{json.dumps(self._order)},"groups":{{{groups}}}}}'
        )

    def _stamps(self, run: Run) -> tuple[object, ...]:
        """Return what changes with anything that is shown of a run."""
        return (state_of(run), *self._rows[run.folder], *(stamp(run.folder / name) for name in (RUN_JSON, SAMPLES)))

    def _all_rows(self, group: ReportGroup) -> list[object]:
        """Return what changes with the tables of a group and of those it is compared with."""
        return [group.settings, *(self._rows[run.folder] for run in _runs_of(group))]

    def _show_none(self, why: str) -> None:
        if self._why == why:
            return
        self._why = why
        self.looks += 1
        report = Report(NO_RUNS, why, [], [], [], [])
        self._common = _compact({**common_content([]), "panels": []})
        self._tell(parts_of(report), {})

    def _show(self, found: Overlay) -> None:
        self._why = ""
        tables, report = self._tables, of_overlay(found)
        rows = {group.label: self._all_rows(group) for group in report.groups}
        judged = [
            self._made(f"verdict {group.label}", rows[group.label], partial(_judged, group, tables))
            for group in report.groups
        ]
        report = with_verdicts(report, judged)
        styles = group_styles(report.groups, report.panels)
        shown = list(zip(report.groups, styles, strict=True))
        keys = {
            "experiments": [(g.label, style, [(r.folder, r.code_hash) for r in g.runs]) for g, style in shown],
            "samples": [(g.label, style, [stamp(r.samples) for r in g.runs]) for g, style in shown],
        }
        parts = {name: self._made(name, keys.get(name), make) for name, make in page_sections(report).items()}
        parts["progress"] = self._progress(report)
        groups = {
            group.label: self._made(
                f"group {group.label}", (style, rows[group.label]), partial(_group_text, group, style, tables)
            )
            for group, style in shown
        }
        panels = panel_content(report.groups, report.panels, tables)
        self._common = _compact({**common_content(report.groups), "panels": panels})
        self._tell(parts, groups)

    def _progress(self, report: Report) -> str:
        swatches = swatches_of(report)
        table = self.runs.table
        runs = [
            progress_of(run, group.label, table(run, "train", COLUMNS)) for group in report.groups for run in group.runs
        ]
        return progress_table(runs, swatches)

    def _made(self, name: str, key: object, make: Callable[[], Any]) -> Any:
        """Return what `make` makes; what it made before if that was of the same `key`. None is never the same."""
        self._used.add(name)
        if key is None or name not in self._kept or self._kept[name][0] != key:
            self._kept[name] = key, make()
        return self._kept[name][1]

    def _tell(self, parts: dict[str, str], groups: dict[str, str]) -> None:
        """Note which parts and groups are not as they were."""
        for known, found in ((self._parts, parts), (self._groups, groups)):
            for name in set(known) - set(found):
                del known[name]
            for name, text in found.items():
                if name not in known or known[name].text != text:
                    known[name] = Told(text, self.looks)
        self._order = list(groups)


def with_verdicts(report: Report, judged: Sequence[Judged | None]) -> Report:
    """Return the report of an overlay with the verdicts as they stand now, one for each group."""
    rows = {row[0]: row for row in report.rows}
    at = report.header.index("difference") if "difference" in report.header else None
    kept = [i for i in range(1, len(report.header)) if i != at]
    found: dict[str, tuple[list[str], Verdict | None]] = {}
    firsts = _firsts(report)
    for i, (group, one) in enumerate(zip(report.groups, judged, strict=True)):
        cells = ["baseline" if i in firsts else "none", "", ""]
        if one:
            verdict = one.verdict
            said = f"at {count(one.x)} tokens" + (f", {verdict.covers}" if math.isfinite(verdict.low) else "")
            cells = [f"{verdict.label} ({said})", f"{verdict.difference:+.4f}", verdict.interval]
        row = rows[group.label]
        found[group.label] = [group.label, *cells, *(row[k] for k in kept)], one.verdict if one else None
    ordered = [found[row[0]] for row in report.rows]
    header = ["run", "verdict so far", "difference", "interval", *(report.header[k] for k in kept)]
    verdicts = [verdict for _, verdict in ordered]
    notes = [note for note in report.notes if not note.startswith("difference")] + [PEEKED] * any(verdicts)
    return replace(report, header=header, rows=[row for row, _ in ordered], verdicts=verdicts, notes=notes)


def _firsts(report: Report) -> set[int]:
    """Return the indices of the groups that others are compared with."""
    sizes = [size for _, size in report.panels] or [len(report.groups)]
    return {sum(sizes[:i]) for i in range(len(sizes))}


def _judged(group: ReportGroup, tables: Tables) -> Judged | None:
    return judge(group.pairs, "tokens", group.settings, tables)


def _runs_of(group: ReportGroup) -> list[Run]:
    return [*group.runs, *(run for pair in group.pairs for run in (pair.run, *pair.others))]


def _rows(run: Run) -> tuple[object, ...]:
    """Return what changes with the tables of a run."""
    return (run.folder, *(stamp(run.folder / name) for name in TABLES.values()))


def _group_text(group: ReportGroup, style: tuple[str, str], tables: Tables) -> str:
    return _compact(group_content(group, style, tables))


def _compact(content: object) -> str:
    return json.dumps(content, allow_nan=False, separators=(",", ":"))
