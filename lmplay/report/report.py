"""Reports of a comparison and of an overlay: an HTML page (`page`), and its table as Markdown and CSV."""

import csv
import io
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lmplay.errors import UserError
from lmplay.files import written_beside
from lmplay.report.comparison import Candidate, Comparison, Side, sentences
from lmplay.report.final_figures import final_table_cells
from lmplay.report.groups import same_tokenizer
from lmplay.report.page import Group, Report, as_html
from lmplay.report.page_data import Pair, Terms
from lmplay.stats.savings import Saving
from lmplay.text import count, fixed, printable

if TYPE_CHECKING:
    from lmplay.report.overlay import Overlay


AXES = ("tokens", "flops", "seconds")


def of_comparison(comparison: Comparison) -> Report:
    """The report of lmp_compare: verdicts."""
    base, candidates = comparison.baseline, comparison.candidates
    groups = [Group(base.label, base.runs)]
    for one in candidates:
        terms = Terms(one.verdict.confidence, one.prior) if one.verdict else Terms()
        groups.append(Group(one.side.label, one.side.runs, [Pair(run, [other]) for run, other in one.pairs], terms))
    confidences = {f"{100 * one.verdict.confidence:.4g}% " for one in candidates if one.verdict}
    header = [
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
    rows = [[base.label, "baseline", "", "", *_figures(base, {})]]
    for one in candidates:
        v = one.verdict
        cells = (
            [_no_verdict(one), "", ""]
            if v is None
            else [v.label, f"{v.difference:+.4f}", f"{v.low:+.4f} to {v.high:+.4f}"]
        )
        rows.append([one.side.label, *cells, *_figures(one.side, one.savings)])
    warnings = [warning for one in candidates for warning in one.warnings] + comparison.warnings
    warnings += [f"left out: {line}" for line in comparison.skipped]
    notes = [
        "difference and interval: of the validation loss, in nats a token, at equal tokens; below 0 is better",
        *comparison.notes,
    ]
    if any(one.savings for one in candidates):
        notes.append(
            "tokens, FLOPs and time needed: to reach the baseline's final loss, as a share of what the baseline took"
        )
    if any(" lr " in group.label for group in groups):
        notes.append(
            "learning rates were chosen: the verdict rests on what choosing has not seen, the drawn difference on all of it"
        )
    most = max([len(one.pairs) for one in candidates], default=0)
    subtitle = (
        f"plan {comparison.plan} · {count(comparison.tokens)} tokens of training · {most} seed{'s' * (most != 1)}"
    )
    return Report(
        f"{', '.join(one.side.label for one in candidates)} against {base.label}",
        subtitle if base.runs else "no runs to compare",
        groups,
        header,
        rows,
        [_full(base, None), *(_full(one.side, one) for one in candidates)],
        [None, *(one.verdict for one in candidates)],
        [(one.side.label, sentences(one)) for one in candidates],
        list(dict.fromkeys(warnings)),
        notes,
    )


def of_overlay(found: "Overlay") -> Report:
    """The report of lmp_plotstats: final figures."""
    baseline, runs = found.groups[0], [one.run for group in found.groups for one in group.members]
    groups = [
        Group(
            group.label,
            [one.run for one in group.members],
            []
            if group is baseline
            else [Pair(one.run, [other.run for other in others]) for one, others in group.beside(baseline)],
        )
        for group in found.groups
    ]
    header, rows, notes = final_table_cells(found.groups, found.loss, "tokens" if same_tokenizer(runs) else "bytes")
    full = [
        {
            "run": group.label,
            "experiment": group.run.spec,
            "seeds": len(group.members),
            "seed_numbers": " ".join(str(one.run.get("settings", "seed")) for one in group.members),
            **{name: group.figure(name) for name in group.members[0].figures},
        }
        for group in found.groups
    ]
    plans = dict.fromkeys(printable(run.get("plan", "name") or "unnamed") for run in runs)
    names = [group.label.removesuffix(f" (n={len(group.runs)})") for group in groups]
    others = [*names[1:4], f"{len(names) - 4} more"] if len(names) > 4 else names[1:]
    title = f"{', '.join(others)} beside {names[0]}" if others else names[0]
    return Report(
        title,
        f"plan {', '.join(plans)} · {len(runs)} run{'s' * (len(runs) != 1)}",
        groups,
        header,
        rows,
        full,
        warnings=list(found.warnings),
        notes=notes,
    )


def write(report: Report, page: Path) -> list[Path]:
    """Writes `page` (.html), and beside it the table as .md and .csv. Returns the paths.

    Raises UserError where that can't be done. Where it is plotly that is missing, the two others are written.
    """
    paths = [page.with_suffix(".md"), page.with_suffix(".csv"), page]
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        for path, content in zip(paths, (as_markdown, as_csv, as_html)):
            with written_beside(path) as beside:
                beside.write_bytes(content(report).encode("utf-8", errors="replace"))
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"no report can be written to {page} ({error.strerror}): choose another place") from None
    return paths


def page_name(report: Report) -> str:
    """compare_CANDIDATES_vs_BASELINE_PLAN, of characters that every disk takes."""
    base, *others = (group.label for group in report.groups)
    shown = [*others[:3], f"{len(others) - 3} more"] if len(others) > 3 else others
    plan = next((printable(run.get("plan", "name")) for run in report.groups[0].runs), "")
    words = [re.sub(r"[^\w.=]+", "-", word).strip("-.") for word in (*shown, "vs", base, plan)]
    return "_".join(["compare", *filter(None, words)])[:150]


def as_markdown(report: Report) -> str:
    """The table and what is said of it, for a paper or a pull request."""
    lines = [
        f"### {_plain(report.title)}",
        "",
        _plain(report.subtitle),
        "",
        "| " + " | ".join(map(_plain, report.header)) + " |",
        "| --- |" + " ---: |" * (len(report.header) - 1),
        *("| " + " | ".join(map(_plain, row)) + " |" for row in report.rows),
    ]
    for about, (first, *more) in report.remarks:
        lines += [
            "",
            f"**{_plain(about)}**: {_plain(first)}",
            *[""] * bool(more),
            *(f"- {_plain(sentence)}" for sentence in more),
        ]
    remarks = [*report.notes, *(f"warning: {warning}" for warning in report.warnings)]
    return "\n".join([*lines, "", *(f"- {_plain(remark)}" for remark in remarks)]).rstrip() + "\n"


def _plain(text: str) -> str:
    """`text` on one line with nothing in it that Markdown would read."""
    text = re.sub(r"([\\`*\[\]<>|&#~])", r"\\\1", printable(text))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def as_csv(report: Report) -> str:
    """All figures of the table, unrounded."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(report.figures[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in report.figures)
    return text.getvalue()


def _cell(value):
    if isinstance(value, str):  # a name is no formula, whatever a spreadsheet thinks
        return f"'{printable(value)}" if value.startswith(("=", "+", "-", "@")) else printable(value)
    return "" if value is None or isinstance(value, float) and math.isnan(value) else value


def _no_verdict(one: Candidate) -> str:
    return "refused" if one.side.runs else "none"


def _figures(side: Side, savings: dict[str, Saving]) -> list[str]:
    memory = "-" if side.peak_memory_bytes is None else f"{side.peak_memory_bytes / 2**20:,.0f} MiB"
    needed = [_needed(savings[axis]) if axis in savings else "" for axis in AXES]
    return [
        fixed(side.loss if side.runs else None, 4),
        *needed,
        count(side.parameters),
        count(side.flops_per_token),
        fixed(side.tokens_per_second, 0),
        memory,
        str(len(side.runs)),
    ]


def _needed(saving: Saving) -> str:
    def share(factor):
        return "not reached" if math.isinf(factor) else f"{100 * factor:.0f}%"

    if math.isinf(saving.low):
        return share(saving.factor)
    return f"{share(saving.factor)} ({share(saving.low)} {'or more' if math.isinf(saving.high) else f'to {share(saving.high)}'})"


def _full(side: Side, one: Candidate | None) -> dict:
    verdict = one.verdict if one else None
    row = {
        "model": side.label,
        "seeds": len(side.runs),
        "seed_numbers": " ".join(map(str, side.seeds)),
        "verdict": verdict.word if verdict else _no_verdict(one) if one else "baseline",
        "validation_loss": side.loss,
    }
    row |= {
        name: getattr(verdict, name, None)
        for name in (
            "difference",
            "low",
            "high",
            "confidence",
            "covers",
            "n_documents",
            "seed_sd",
            "document_se",
            "more_seeds",
        )
    }
    for axis in AXES[1:]:
        at = one.at_equal.get(axis) if one else None
        row |= {f"at_equal_{axis}_{name}": getattr(at, name, None) for name in ("difference", "low", "high")}
    for axis in AXES:
        saving = one.savings.get(axis) if one else None
        row |= {
            f"{axis}_needed{suffix}": getattr(saving, name, None)
            for suffix, name in (("", "factor"), ("_low", "low"), ("_high", "high"))
        }
    return row | {
        name: getattr(side, name)
        for name in ("parameters", "flops_per_token", "tokens_per_second", "peak_memory_bytes")
    }
