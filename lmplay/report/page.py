"""Write the HTML page of a report: one file that needs no network, in which no text from runs is markup."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources

from lmplay.errors import UserError
from lmplay.report import page_data, provenance
from lmplay.report.figure import DASHES, line_styles
from lmplay.report.groups import ENOUGH_VALIDATIONS, same_tokenizer
from lmplay.report.page_data import JudgeSettings, Pair, Tables
from lmplay.report.page_table import escape, grid, swatch, table, table_row
from lmplay.report.phase_curves import phase_starts
from lmplay.runs.names import PLAN_STEP
from lmplay.runs.run import Run
from lmplay.stats.verdict import Verdict
from lmplay.text import printable
from lmplay.version import __version__

BASELINE = "var(--baseline)"  # its color: dark on a bright page, bright on a dark one


METRIC_NAMES = {
    "bits_per_byte": "bits per byte",
    "loss": "loss",
    "accuracy": "accuracy",
    "gradient_norm": "gradient norm",
}


DASH_NAMES = dict(zip(map(str, DASHES), ("solid", "dash", "dot", "dashdot"), strict=True))


MISSING = "plotly is missing, which draws the page: install it with pip install 'lmplay[report]'"


@dataclass
class ReportGroup:
    """One line of the report: the runs of one model, one per seed.

    pairs: each run with the baseline's that it is judged against, by `settings`.
    """

    label: str
    runs: list[Run]
    pairs: list[Pair] = field(default_factory=list)
    settings: JudgeSettings = field(default_factory=JudgeSettings)


@dataclass
class Report:
    """The content of a report.

    groups: the baseline first. header, rows: the table in words; each row begins with a group's label. With `verdicts`
    the second cell is the verdict, the fourth its interval. figures: the same unrounded and in full, one dictionary
    per row with the same keys. remarks: a group's label and sentences about it. panels: (plan, number of groups) of
    groups on other data, each with a baseline of its own, in the order of `groups`; [] if all belong together.
    """

    title: str
    subtitle: str
    groups: list[ReportGroup]
    header: list[str]
    rows: list[list[str]]
    figures: list[dict]
    verdicts: list[Verdict | None] | None = None
    remarks: list[tuple[str, list[str]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    panels: list[tuple[str, int]] = field(default_factory=list)


def plotly_source() -> str:
    """Return plotly.js. Raises UserError if plotly is missing."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError(MISSING) from None
    return get_plotlyjs()


def as_html(report: Report) -> str:
    """Return the whole page. Raises UserError if plotly is missing."""
    plotly_source()
    return fill(parts_of(report), page_content(report.groups, report.panels))


def template() -> str:
    """Return the page without its content."""
    return resources.files("lmplay.report").joinpath("page.html").read_text(encoding="utf-8")


def parts_of(report: Report) -> dict[str, str]:
    """Return what the page says, in HTML, besides its curves."""
    return {name: make() for name, make in page_sections(report).items()}


def swatches_of(report: Report) -> dict[str, str]:
    """Return the small square of color of each group, by its label."""
    styles = group_styles(report.groups, report.panels)
    return {group.label: swatch(color) for group, (color, _) in zip(report.groups, styles, strict=True)}


def page_sections(report: Report) -> dict[str, Callable[[], str]]:
    """Return what the page says besides its curves: of each part a function that makes its HTML."""
    styles = group_styles(report.groups, report.panels)
    colors = {group.label: color for group, (color, _) in zip(report.groups, styles, strict=True)}
    swatches = swatches_of(report)
    return {
        "title": lambda: escape(report.title),
        "subtitle": lambda: escape(report.subtitle),
        "progress": lambda: "",
        "table": lambda: table(report.header, report.rows, report.verdicts, colors) if report.rows else "",
        "remarks": lambda: _remarks(report, swatches),
        "experiments": lambda: _experiments(report.groups, swatches),
        "samples": lambda: samples_html(report.groups, swatches),
        "settings": lambda: _settings(report.groups, swatches),
        "runs": lambda: _run_list(report.groups, swatches),
        "footer": lambda: escape(f"lmplay {__version__}, {datetime.now():%Y-%m-%d %H:%M}"),
    }


def fill(parts: dict[str, str], content: dict[str, object], live: str = "") -> str:
    """Return the page with these parts. live: the state that a page shows which follows its runs; "" follows none."""
    found = {**parts, "data": _json(content), "plotly": plotly_source(), "live": escape(live)}
    # In one pass: what is put in is not searched again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: found[match[1]], template())


def page_content(groups: list[ReportGroup], panels: Sequence[tuple[str, int]] = ()) -> dict[str, object]:
    """Return what the page's script draws, for JSON. panels: as in Report."""
    tables, found = Tables(), []
    parts = panel_content(groups, panels, tables)
    firsts = {part["first"] for part in parts}
    for i, (group, style) in enumerate(zip(groups, group_styles(groups, panels), strict=True)):
        found.append(group_content(group, style, tables))
        if i not in firsts:
            tables.forget(group.runs)
    return {**common_content(groups), "groups": found, "panels": parts}


def panel_content(groups: list[ReportGroup], panels: Sequence[tuple[str, int]], tables: Tables) -> list[dict]:
    """Return of each panel its name, its first group, the number of its groups, and the phases of its plan."""
    parts, begun = [], 0
    for name, size in panels or [("", len(groups))]:
        phases = _phases(groups[begun].runs, tables) if groups else []
        parts.append({"name": name, "first": begun, "size": size, "phases": phases})
        begun += size
    return parts


def group_content(group: ReportGroup, style: tuple[str, str], tables: Tables) -> dict[str, object]:
    """Return what the page draws of one group. style: its color and its dash."""
    validations = min((len(tables.table(run, "validate")) for run in group.runs), default=ENOUGH_VALIDATIONS)
    return {
        "label": group.label,
        "color": style[0],
        "dash": style[1],
        "seeds": [str(run.get("settings", "seed")) for run in group.runs],
        "names": [run.folder.name for run in group.runs] or [group.label],
        "enough": validations >= ENOUGH_VALIDATIONS,
        "curves": page_data.group_curves(group.runs, tables),
        "difference": page_data.differences(group.pairs, group.settings, tables),
    }


def common_content(groups: list[ReportGroup]) -> dict[str, object]:
    """Return what the page knows of all groups together."""
    runs = [run for group in groups for run in group.runs]
    metrics = page_data.metrics_of(runs)
    return {
        "alike": same_tokenizer(runs),
        "metrics": {metric: METRIC_NAMES.get(metric, printable(metric.replace("_", ": ", 1))) for metric in metrics},
    }


def _phases(runs: list[Run], tables: Tables) -> list[dict[str, object]]:
    """Return where the phases of the plan begin in the baseline's first run; [] if there is one phase only."""
    if not runs:
        return []
    first = phase_starts(tables.table(runs[0], "train"))
    axes = [axis for axis in page_data.X_COLUMNS if axis in first]
    found = []
    for _, row in first.iterrows():
        known = {axis: row[axis] for axis in axes if math.isfinite(row[axis])}
        found.append({"name": printable(row[PLAN_STEP]), **known})
    return found if len(found) > 1 else []


def _json(data: object) -> str:
    """Return JSON that ends no script element and begins no comment in one."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def group_styles(groups: list[ReportGroup], panels: Sequence[tuple[str, int]]) -> list[tuple[str, str]]:
    """Return (color, dash as plotly names it) of each group: in each panel anew."""
    found, begun = [], 0
    for _, size in panels or [("", len(groups))]:
        specs = [group.runs[0].spec if group.runs else group.label for group in groups[begun : begun + size]]
        found += line_styles(specs, 0)
        begun += size
    return [(BASELINE if color == "black" else color, DASH_NAMES[str(dash)]) for color, dash in found]


def _list(kind: str, sentences: list[str]) -> str:
    if not sentences:
        return ""
    return f'<ul class="{kind}">' + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def _remarks(report: Report, swatches: dict[str, str]) -> str:
    parts = [
        f'<div class="remark"><p>{swatches[about]}<b>{escape(about)}</b>: {escape(first)}</p>'
        f"{_list('more', more)}</div>"
        for about, (first, *more) in report.remarks
    ]
    if report.warnings:
        parts.append(f'<div class="warnings"><b>Warnings</b>{_list("more", report.warnings)}</div>')
    return "".join(parts) + _list("notes", report.notes)


def _experiments(groups: list[ReportGroup], swatches: dict[str, str]) -> str:
    """Return a card for each experiment and each state of its code: its curves, and its change to its parent."""
    cards: dict[tuple[str, str], list[int]] = {}
    for i, group in enumerate(groups):
        if group.runs:
            cards.setdefault((group.runs[0].experiment, group.runs[0].code_hash), []).append(i)
    firsts = {i: group.runs[0] for i, group in enumerate(groups) if group.runs}
    changed, others = [], []
    for members in cards.values():
        change = provenance.code_change(firsts[members[0]], list(firsts.values()))
        names = "".join(f"<span>{swatches[groups[i].label]}{escape(groups[i].label)}</span>" for i in members)
        text = _described(names, change.docstring)
        if not change.difference:
            others.append(f'<article class="experiment">{text}<p class="quiet">{escape(change.against)}</p></article>')
            continue
        parents = (i for i, run in firsts.items() if i not in members and run.experiment == change.parent)
        shown = json.dumps(sorted({next(parents, 0), *members}))
        added, taken = change.counts
        changed.append(
            f'<article class="experiment">{text}<div class="beside"><div class="plot small" '
            f'id="experiment{members[0]}" data-groups="{shown}"></div><details open class="code">'
            f'<summary>code against {escape(change.against)}: <span class="added">+{added}</span> '
            f'<span class="taken">−{taken}</span> lines</summary>'
            f'<div class="diff">{_diff(change.difference)}</div></details></div></article>'
        )
    return "".join(changed + others)


def _described(names: str, docstring: str) -> str:
    """Return the heading of a card, in HTML, and the experiment's docstring."""
    summary, _, rest = docstring.strip().partition("\n")
    text = f'<h3>{names}</h3><p class="summary">{escape(summary)}</p>'
    if not rest.strip():
        return text
    return f'{text}<details><summary>Its docstring</summary><pre class="doc">{escape(rest.strip())}</pre></details>'


def _diff(difference: str) -> str:
    kinds = {"+": "plus", "-": "minus", "@": "hunk"}
    lines = [
        ("file" if line.startswith(("+++ ", "--- ")) else kinds.get(line[:1], "same"), line)
        for line in difference.splitlines()
    ]
    return "".join(f'<span class="{kind}">{escape(line) or " "}</span>' for kind, line in lines)


def samples_html(groups: list[ReportGroup], swatches: dict[str, str]) -> str:
    """Return the last samples of each group's first run that has any."""
    columns, header = [], [""]
    for group in groups:
        for run in group.runs:
            when, found = provenance.last_samples(run)
            if found:
                seed = escape(str(run.get("settings", "seed")))
                title = f"{swatches[group.label]}{escape(group.label)}"
                header.append(f"{title}<small>seed {seed}, {escape(when)}</small>")
                columns.append(found)
                break
    if not columns:
        return '<p class="quiet">The runs have left no samples.</p>'
    names = sorted({name for found in columns for name in found}, key=_sample_order)
    rows = [
        table_row(escape(name), [f"<pre>{_sample(found.get(name, ''))}</pre>" for found in columns]) for name in names
    ]
    return grid("samples", header, rows)


def _sample(text: str) -> str:
    """Return a sample in HTML, its prompt marked."""
    return re.sub("⟦(.*?)⟧", r"<mark>\1</mark>", escape(text), count=1, flags=re.S)


def _sample_order(name: str) -> tuple[int, str]:
    number, _, direction = name.partition(", ")
    return int(number), direction


def _settings(groups: list[ReportGroup], swatches: dict[str, str]) -> str:
    groups = [group for group in groups if group.runs]
    differing, common = provenance.settings_of([group.runs for group in groups])
    header = ["", *(swatches[group.label] + escape(group.label) for group in groups)]
    rows = [table_row(escape(what), [escape(value) for value in values]) for what, values in differing.items()]
    about = (
        '<p class="caption">-: not set. Hashes are shown by their first ten digits; code: the hash of what the '
        "experiment's code does.</p>"
    )
    same = "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for what, value in common.items())
    return (grid("settings", header, rows) + about if rows else '<p class="quiet">No setting differs.</p>') + (
        f"<details><summary>The same in all runs</summary><dl>{same}</dl></details>"
    )


def _run_list(groups: list[ReportGroup], swatches: dict[str, str]) -> str:
    rows = []
    for group in groups:
        for run in group.runs:
            command = run.get("command")
            command = printable(" ".join(map(str, command))) if isinstance(command, list) else ""
            cells = [str(run.get("settings", "seed")), str(run.get("status") or "-"), run.name, command]
            rows.append(table_row(swatches[group.label] + escape(group.label), [escape(cell) for cell in cells]))
    return grid("runs", ["model", "seed", "status", "run", "command"], rows)
