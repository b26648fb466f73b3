"""Report a comparison or an overlay: an HTML page (`page`), and its table as Markdown and CSV."""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lmplay.errors import UserError
from lmplay.own_files import own_file
from lmplay.report.arms import ArmSummary, Candidate, Comparison
from lmplay.report.comparison import costs, final_loss, sentences
from lmplay.report.final_figures import final_table_cells
from lmplay.report.groups import OTHER_DATA, RunGroup, unlike
from lmplay.report.overlay import Overlay
from lmplay.report.page import Report, ReportGroup, as_html
from lmplay.report.page_data import JudgeSettings, Pair
from lmplay.report.panels import plan_of
from lmplay.report.plot_data import csv_cell
from lmplay.runs.evaluations import lines_of
from lmplay.stats.savings import AXES, Saving, share
from lmplay.stats.speed import SpeedSpread
from lmplay.text import count, counted, printable

VERDICT_COLUMNS = (
    "difference",
    "low",
    "high",
    "confidence",
    "covers",
    "n_documents",
    "seed_sd",
    "document_se",
    "more_seeds",
    "prior_share",
)


def of_comparison(comparison: Comparison) -> Report:
    """Return the report of lmp_compare: verdicts."""
    base, candidates = comparison.baseline, comparison.candidates
    groups = [ReportGroup(base.label, base.runs)]
    for one in candidates:
        pairs = [Pair(run, [other]) for run, other in one.pairs]
        settings = JudgeSettings(compares_times=one.timing is None or one.timing.comparable)
        if one.verdict:
            settings = replace(settings, confidence=one.verdict.confidence, prior=one.prior)
        groups.append(ReportGroup(one.arm.label, one.arm.runs, pairs, settings))
    most = max([len(one.pairs) for one in candidates], default=0)
    subtitle = f"plan {comparison.plan} · {count(comparison.tokens)} tokens of training · {counted(most, 'seed')}"
    warnings = [warning for one in candidates for warning in one.warnings] + comparison.warnings
    warnings += [f"left out: {line}" for line in comparison.skipped]
    return Report(
        title=f"{', '.join(one.arm.label for one in candidates)} against {base.label}",
        subtitle=subtitle if base.runs else "no runs to compare",
        groups=groups,
        header=_header(candidates),
        rows=[
            [base.label, "baseline", "", "", *_figures(base, {})],
            *([one.arm.label, *_verdict_cells(one), *_figures(one.arm, one.savings, one.timing)] for one in candidates),
        ],
        figures=[_full(base, None), *(_full(one.arm, one) for one in candidates)],
        verdicts=[None, *(one.verdict for one in candidates)],
        remarks=[(one.arm.label, sentences(one)) for one in candidates],
        warnings=list(dict.fromkeys(warnings)),
        notes=[*_notes(comparison, groups), *lines_of([run for group in groups for run in group.runs])],
    )


def _header(candidates: Sequence[Candidate]) -> list[str]:
    confidences = {f"{100 * one.verdict.confidence:.4g}% " for one in candidates if one.verdict}
    return [
        "model",
        "verdict",
        "difference",
        f"{confidences.pop() if len(confidences) == 1 else ''}interval",
        "val. loss",
        "tokens needed",
        "FLOPs needed",
        "time needed",
        "parameters",
        "FLOPs/token",
        "tokens/s",
        "memory",
        "seeds",
    ]


def _verdict_cells(one: Candidate) -> list[str]:
    v = one.verdict
    if v is None:
        return [one.word, "", ""]
    others = [f"at equal {AXES[axis]} {at.word}" for axis, at in one.at_equal.items() if at.word != v.word]
    aside = f" ({'; '.join(['at equal tokens', *others])})" if others else ""
    return [f"{v.label}{aside}", f"{v.difference:+.4f}", v.interval]


def _notes(comparison: Comparison, groups: list[ReportGroup]) -> list[str]:
    notes = [
        "difference and interval: of the validation loss, in nats per token, at equal tokens; below 0 is better",
        *comparison.notes,
    ]
    if comparison.baseline.failures:
        notes.append(f"{comparison.baseline.label}: {comparison.baseline.failures}")
    if any(one.savings for one in comparison.candidates):
        notes.append(
            "tokens, FLOPs and time needed: to reach the baseline's final loss, as a share of what the baseline took"
        )
    chosen = [one.arm.choice for one in comparison.candidates if one.arm.choice]
    if chosen:
        what = "learning rates" if all(choice.of_rates for choice in chosen) else "settings"
        notes.append(
            f"{what} were chosen: the verdict rests on losses that did not choose them, "
            "the drawn difference on all losses"
        )
    return notes


def of_overlay(found: Overlay) -> Report:
    """Return the report of lmp_plotstats: final figures."""
    groups, rows, notes, full = [], [], [], []
    several = len(found.panels) > 1
    seeds = any(len(group.members) > 1 for group in found.groups)
    header: list[str] = []
    for panel in found.panels:
        names = {group.label: f"{group.label}, {panel.name}" if several else group.label for group in panel.groups}
        baseline = panel.groups[0]
        for group in panel.groups:
            alone = group is baseline or OTHER_DATA in unlike(group.run, baseline.run)
            beside = [] if alone else group.beside(baseline)
            pairs = [Pair(one.run, [other.run for other in others]) for one, others in beside]
            groups.append(ReportGroup(names[group.label], [one.run for one in group.members], pairs))
            full.append(_final(names[group.label], group))
        header, cells, said = final_table_cells(panel.groups, panel.loss, panel.x, several=several or None, seeds=seeds)
        rows += [[names[row[0]], *row[1:]] for row in cells]
        notes += [f"plan {panel.name}: {note}" if several and "minus" in note else note for note in said]
    runs = [run for group in groups for run in group.runs]
    plans = dict.fromkeys(map(plan_of, runs))
    titles = [group.label.removesuffix(f" (n={len(group.runs)})") for group in groups]
    return Report(
        title=_title(titles, list(plans)),
        subtitle=f"plan {', '.join(plans)} · {counted(len(runs), 'run')}",
        groups=groups,
        header=header,
        rows=rows,
        figures=full,
        warnings=list(found.warnings),
        notes=[note for note in dict.fromkeys(notes) if not (several and note.startswith("one run"))] + lines_of(runs),
        panels=[(panel.name, len(panel.groups)) for panel in found.panels],
    )


def _title(labels: list[str], plans: list[str]) -> str:
    if len(plans) > 1:
        return f"{counted(len(labels), 'model')} on {len(plans)} plans"
    others = [*labels[1:4], f"{len(labels) - 4} more"] if len(labels) > 4 else labels[1:]
    return f"{', '.join(others)} beside {labels[0]}" if others else labels[0]


def _final(label: str, group: RunGroup) -> dict[str, object]:
    """Return the final figures of a group, unrounded."""
    return {
        "run": label,
        "experiment": group.run.spec,
        "plan": plan_of(group.run),
        "seeds": len(group.members),
        "seed_numbers": " ".join(str(one.run.get("settings", "seed")) for one in group.members),
        **{name: group.figure(name) for name in group.members[0].figures},
    }


def write(report: Report, page: Path) -> list[Path]:
    """Write `page` (.html), and beside it the table as .md and .csv. Return the paths.

    Raises UserError if a file can't be written. If plotly is missing, the two others are written first.
    """
    paths = [page.with_suffix(".md"), page.with_suffix(".csv"), page]
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for path, content in zip(paths, (as_markdown, as_csv, as_html), strict=True):
            with own_file(path) as beside:
                beside.write_bytes(content(report).encode("utf-8", errors="replace"))
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"no report can be written to {page} ({error.strerror}): choose another path") from None
    return paths


def page_name(report: Report) -> str:
    """Return compare_CANDIDATES_vs_BASELINE_PLAN, in characters that every file system accepts."""
    base, *others = (group.label for group in report.groups)
    shown = [*others[:3], f"{len(others) - 3} more"] if len(others) > 3 else others
    plan = next((printable(run.get("plan", "name")) for run in report.groups[0].runs), "")
    words = [re.sub(r"[^\w.=]+", "-", word).strip("-.") for word in (*shown, "vs", base, plan)]
    return "_".join(["compare", *filter(None, words)])[:150]


def as_markdown(report: Report) -> str:
    """Return the table and what is said about it, for a paper or a pull request."""
    lines = [
        f"### {markdown_text(report.title)}",
        "",
        markdown_text(report.subtitle),
        "",
        "| " + " | ".join(map(markdown_text, report.header)) + " |",
        "| --- |" + " ---: |" * (len(report.header) - 1),
        *("| " + " | ".join(map(markdown_text, row)) + " |" for row in report.rows),
    ]
    for about, (first, *more) in report.remarks:
        lines += [
            "",
            f"**{markdown_text(about)}**: {markdown_text(first)}",
            *([""] if more else []),
            *(f"- {markdown_text(sentence)}" for sentence in more),
        ]
    remarks = [*report.notes, *(f"warning: {warning}" for warning in report.warnings)]
    return "\n".join([*lines, "", *(f"- {markdown_text(remark)}" for remark in remarks)]).rstrip() + "\n"


def markdown_text(text: str) -> str:
    """Return `text` on one line, with nothing in it that Markdown would read."""
    text = re.sub(r"([\\`*\[\]<>|&#~])", r"\\\1", printable(text))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def as_csv(report: Report) -> str:
    """Return all figures of the table, unrounded."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(report.figures[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in report.figures)
    return text.getvalue()


def _figures(arm: ArmSummary, savings: dict[str, Saving], timing: SpeedSpread | None = None) -> list[str]:
    needed = [_needed(savings[axis]) if axis in savings else "" for axis in AXES]
    if savings and timing and not timing.comparable:
        needed[list(AXES).index("seconds")] = "not comparable"
    seeds = f"{len(arm.runs)} ({len(arm.failed)} more diverged)" if arm.failed else str(len(arm.runs))
    return [final_loss(arm), *needed, *costs(arm), seeds]


def _needed(saving: Saving) -> str:
    if math.isinf(saving.low):
        return share(saving.factor)
    to = "or more" if math.isinf(saving.high) else f"to {share(saving.high)}"
    return f"{share(saving.factor)} ({share(saving.low)} {to})"


def _full(arm: ArmSummary, one: Candidate | None) -> dict[str, object]:
    """Return a row with all figures of an arm. one: the candidate that it is (None: the baseline)."""
    verdict = one.verdict if one else None
    row: dict[str, object] = {
        "model": arm.label,
        "seeds": len(arm.runs),
        "seed_numbers": " ".join(map(str, arm.seeds)),
        "failed_seeds": len(arm.failed),
        "failed_seed_numbers": " ".join(map(str, arm.failed)),
        "verdict": one.word if one else "baseline",
        "validation_loss": arm.loss,
    }
    row |= {name: getattr(verdict, name, None) for name in VERDICT_COLUMNS}
    row["prior_runs"] = " ".join(one.prior.runs) if one and one.prior else ""
    for axis in ("flops", "seconds"):
        at = one.at_equal.get(axis) if one else None
        row |= {f"at_equal_{axis}_{name}": getattr(at, name, None) for name in ("difference", "low", "high")}
    for axis in AXES:
        saving = one.savings.get(axis) if one else None
        for suffix, name in (("", "factor"), ("_low", "low"), ("_high", "high")):
            row[f"{axis}_needed{suffix}"] = getattr(saving, name, None)
    for name in ("within", "between"):
        row[f"tokens_per_second_spread_{name}_runs"] = getattr(one.timing, name, None) if one else None
    costs = ("parameters", "flops_per_token", "tokens_per_second", "peak_memory_bytes", "mfu")
    return row | {name: getattr(arm, name) for name in costs}
