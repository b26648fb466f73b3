"""Sort runs into panels: one for each plan and its data, since losses on other data are another measure."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lmplay.errors import UserError, did_you_mean
from lmplay.report.final_figures import final_table
from lmplay.report.groups import (
    OTHER_DATA,
    Loaded,
    RunGroup,
    choose_baseline,
    group_by,
    group_seeds,
    labels,
    matching,
    same_tokenizer,
    unlike,
)
from lmplay.report.plot_options import PlotOptions
from lmplay.runs.names import PLAN_TITLE
from lmplay.runs.run import Run
from lmplay.text import counted, name_key, printable

PROBE = "probe_"  # how the plans of lmp_probe begin
MOST_PANELS = 12


@dataclass(frozen=True)
class Panel:
    """Runs over one another.

    name: of their plan. groups: the baseline first. loss: what counts, "loss" or "bits_per_byte". same_tokenizer:
    whether all runs have one.
    """

    name: str
    groups: list[RunGroup]
    loss: str
    same_tokenizer: bool

    @property
    def x(self) -> str:
        """What differences are taken at equal amounts of."""
        return "tokens" if self.same_tokenizer else "bytes"


def plan_of(run: Run) -> str:
    """Return the name of a run's plan, for people."""
    return printable(run.get("plan", PLAN_TITLE) or run.get("plan", "name") or "unnamed")


def chosen_by_plan(runs: list[Run], wanted: str | None) -> tuple[list[Run], list[str]]:
    """Return (the runs on the plan `wanted`; without one, those that lmp_probe did not make, warnings).

    If all were made by lmp_probe, all are returned. Raises UserError if no run is on the plan.
    """
    plans = Counter(map(plan_of, runs))
    if wanted is not None:
        name = wanted.removesuffix(".json").rsplit("/", 1)[-1]
        found = [run for run in runs if name_key(plan_of(run)) == name_key(name)]
        if not found:
            raise UserError(f"--training-plan: no run on the plan {wanted!r}.{did_you_mean(name, plans)}")
        return found, []
    others = [run for run in runs if not plan_of(run).startswith(PROBE)]
    if not others or len(others) == len(runs):
        return runs, []
    probes = sorted(plan for plan in plans if plan.startswith(PROBE))
    return others, [
        f"{counted(len(runs) - len(others), 'run')} of lmp_probe left out "
        f"(--training-plan {probes[0]} draws those on a probe)"
    ]


def by_plan(loaded: list[Loaded]) -> tuple[list[list[Loaded]], list[str]]:
    """Return (the runs of each plan and its data, the most runs first; a warning if plans are left out)."""
    parts: list[list[Loaded]] = []
    for one in loaded:
        for part in parts:
            first = part[0].run
            if plan_of(one.run) == plan_of(first) and OTHER_DATA not in unlike(one.run, first):
                part.append(one)
                break
        else:
            parts.append([one])
    parts.sort(key=lambda part: (-len(part), plan_of(part[0].run)))
    left_out = sorted({plan_of(part[0].run) for part in parts[MOST_PANELS:]})
    return parts[:MOST_PANELS], [
        f"the {MOST_PANELS} plans with the most runs are drawn (--training-plan {name} draws {name})"
        for name in left_out[:1]
    ]


def make_panel(loaded: list[Loaded], options: PlotOptions) -> Panel:
    """Group these runs by seed and choose their baseline. Raises UserError if the wanted baseline is none of them."""
    lengths = [one.figures["tokens"] or 0 for one in loaded]
    runs = [one.run for one in loaded]
    baseline = loaded[choose_baseline(runs, options.baseline, lengths)]
    if options.group:
        members, names = group_by(runs, options.group)
    else:
        members = [[i] for i in range(len(runs))] if options.each_run else group_seeds(runs, lengths)
        names = labels([runs[group[0]] for group in members], list(map(len, members)))
    groups = [RunGroup([loaded[i] for i in group], label) for group, label in zip(members, names, strict=True)]
    order = {label: i for i, label in enumerate(names if options.group else sorted(names))}
    groups.sort(key=lambda group: (all(one is not baseline for one in group.members), order[group.label]))
    alike = same_tokenizer(runs)
    loss = "bits_per_byte" if options.bits_per_byte or not alike else "loss"
    return Panel(plan_of(baseline.run), groups, loss, alike)


def knows(loaded: list[Loaded], baseline: str) -> bool:
    """Tell whether a baseline is among these runs."""
    return bool(matching([one.run for one in loaded], baseline))


def tables(panels: list[Panel]) -> str:
    """Return the final figures of all panels as text."""
    texts = [final_table(panel.groups, panel.loss, panel.x) for panel in panels]
    if len(panels) == 1:
        return texts[0]
    return "\n\n".join(f"plan {panel.name}\n{text}" for panel, text in zip(panels, texts, strict=True))


def folder_of(panel: Panel) -> Path:
    """Return the folder that holds the baseline's run."""
    folder = panel.groups[0].run.folder
    return folder.parent if folder.name not in ("", "..") else folder.resolve().parent
