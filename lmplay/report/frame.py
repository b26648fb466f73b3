"""Settle what all pictures of one overlay share: the split, the span of x, styles, phases, notes."""

from dataclasses import dataclass

from lmplay.errors import UserError
from lmplay.report import figure
from lmplay.report.groups import (
    ENOUGH_VALIDATIONS,
    OTHER_DATA,
    SPLITS,
    Loaded,
    RunGroup,
    unlike,
)
from lmplay.report.phase_curves import curve_of, phase_starts
from lmplay.report.plot_options import TRAINING, X_AXES, Y_LABELS, PlotOptions
from lmplay.report.timing import machines_differ
from lmplay.report.training_unlike import training_unlike
from lmplay.runs.names import PLAN_STEP
from lmplay.stats.curves import Curve, mean_and_range
from lmplay.text import counted, printable

FLAG = " †"


@dataclass(frozen=True)
class Frame:
    """What all pictures of one overlay share.

    groups: those that are drawn. baseline: the first of all groups, drawn or not. loss: "loss" or "bits_per_byte".
    unit: x is divided by it. begin, end: the span of x. flagged: indices of groups that the notes are about.
    """

    options: PlotOptions
    groups: tuple[RunGroup, ...]
    baseline: RunGroup
    loss: str
    split: str
    unit: float
    x_label: str
    begin: float
    end: float
    phases: tuple[tuple[float, str], ...]
    styles: tuple[tuple[str, figure.Dashes], ...]
    notes: tuple[str, ...]
    flagged: frozenset[int]

    @property
    def compared(self) -> bool:
        """Whether there are differences to the baseline to draw."""
        return len(self.groups) > 1 and self.groups[0] is self.baseline

    def is_subtracted(self, group: RunGroup) -> bool:
        """Whether the baseline's losses may be subtracted from those of `group`."""
        return OTHER_DATA not in unlike(group.run, self.baseline.run)


def make_frame(
    groups: list[RunGroup], options: PlotOptions, loss: str, same_tokenizer: bool
) -> tuple[Frame, list[str]]:
    split, warnings = _split(groups, options)
    points = {id(group): _points(group, split, loss, options) for group in groups}
    drawn = [group for group in groups if points[id(group)]]
    for group in groups:
        if not points[id(group)]:
            consequence = "no differences are drawn" if group is groups[0] else "not drawn"
            warnings.append(f"{group.label}: has no {SPLITS[split]} {words(loss)} over {options.x} yet, {consequence}")
    if not drawn:
        raise UserError(
            f"no run has {SPLITS[split]} {words(loss)} over {options.x} yet: choose another --split or --x, or train on"
        )
    notes, flagged = _notes(drawn, groups[0], options, same_tokenizer)
    unit, x_label = _x_unit(drawn, options)
    curves = [mean_and_range(points[id(group)], options.log)[0] for group in drawn]
    low, high = options.xlim
    begins, ends = [curve.x[0] / unit for curve in curves], [curve.x[-1] / unit for curve in curves]
    frame = Frame(
        options=options,
        groups=tuple(drawn),
        baseline=groups[0],
        loss=loss,
        split=split,
        unit=unit,
        x_label=x_label,
        begin=figure.visible_from(ends, min(begins), options.log) if low is None else low / unit,
        end=max(ends) if high is None else high / unit,
        phases=tuple(_phases(drawn, options.column, unit)),
        styles=tuple(figure.line_styles([group.run.spec for group in drawn], 0)),
        notes=tuple(notes),
        flagged=flagged,
    )
    return frame, warnings + [note.removeprefix(FLAG.strip()).strip() for note in notes]


def _split(groups: list[RunGroup], options: PlotOptions) -> tuple[str, list[str]]:
    """Return (the split to draw, warnings): by default validation, if every run has enough validations for a curve.

    Validation is less noisy than training, and the same text for all.
    """
    if options.split:
        return options.split, []
    few = [
        group.label
        for group in groups
        if any(len(one.tables["validate"]) < ENOUGH_VALIDATIONS for one in group.members)
    ]
    if not few:
        return "validate", []
    named = few[0] if len(few) == 1 else counted(len(few), "run")
    return "train", [
        f"training figures are drawn, because {named} had fewer than {ENOUGH_VALIDATIONS} validations "
        "(--split validate draws them)"
    ]


def _points(group: RunGroup, split: str, column: str, options: PlotOptions) -> list[Curve]:
    """Return the curves, in the units of the tables, of the runs of a group that have any points."""
    curves = (curve_of(one.tables[split], options.column, column, options.log) for one in group.members)
    return [curve for curve in curves if len(curve)]


def _notes(
    groups: list[RunGroup], baseline: RunGroup, options: PlotOptions, same_tokenizer: bool
) -> tuple[list[str], frozenset[int]]:
    """Return (notes on what is not alike, indices of the groups that they are about)."""
    reasons: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        for reason in (*unlike(group.run, baseline.run), *training_unlike(group.run, baseline.run)):
            reasons.setdefault(reason, []).append(i)
    notes = []
    for reason, members in reasons.items():
        names = ", ".join(groups[i].label for i in members[:4])
        names += f" and {len(members) - 4} more" if len(members) > 4 else ""
        other = f" than {baseline.label}" if reason.startswith(("other", "another")) else ""
        end = ", no difference is drawn" if reason == OTHER_DATA else ""
        notes.append(f"{FLAG.strip()} {reason}{other}: {names}{end}")
    if not same_tokenizer:
        text = "" if options.x != "tokens" else " Equal tokens are not equal text: see --x bytes."
        notes.append(
            "Tokenizers differ: losses are compared in bits per byte; "
            f"accuracies of different tokenizers do not compare.{text}"
        )
    if options.x == "seconds":
        differ = machines_differ(one.run for group in groups for one in group.members)
        notes += [f"Times are of different machines: {what} {', '.join(values)}" for what, values in differ.items()]
    return notes, frozenset(i for members in reasons.values() for i in members)


def _x_unit(groups: list[RunGroup], options: PlotOptions) -> tuple[float, str]:
    """Return (what x is divided by, the label of the x-axis)."""
    label = X_AXES[options.x][1]
    if options.x != "seconds":
        return 1.0, label
    longest = max(one.figures["seconds"] or 0 for group in groups for one in group.members)
    if longest >= 3 * 3600:
        return 3600.0, f"{label} (hours)"
    return (60.0, f"{label} (minutes)") if longest >= 300 else (1.0, f"{label} (seconds)")


def _phases(groups: list[RunGroup], column: str, unit: float) -> list[tuple[float, str]]:
    """Return (x, name) of the plan's phases in the first run that has seen most of them."""
    begins = [_phase_begins(group.members[0], column, unit) for group in groups]
    chosen = max(begins, key=len)
    alike = all(abs(x - chosen.get(name, x)) <= 0.02 * x for other in begins for name, x in other.items())
    label = groups[begins.index(chosen)].label
    return [(x, name if alike else f"{name} ({label})") for name, x in chosen.items()]


def _phase_begins(one: Loaded, column: str, unit: float) -> dict[str, float]:
    all_starts = map(phase_starts, one.tables.values())
    starts = next((found for found in all_starts if column in found and PLAN_STEP in found), None)
    if starts is None:
        return {}
    return {printable(name): x / unit for name, x in zip(starts[PLAN_STEP], starts[column], strict=True)}


def words(column: str) -> str:
    """Return the name of a column for people."""
    return Y_LABELS[column] if column in ("bits_per_byte", *TRAINING) else printable(column)
