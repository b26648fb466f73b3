"""Keep every verdict, and judge all ideas together: gpt_out/verdicts.jsonl, and what lmp_compare --ledger prints.

A hypothesis is one pair of arms (the code, the variant and the settings of both) on one plan, at one size and length.
A later verdict on it replaces an earlier one. stats/many.py explains the figures.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from lmplay.compare.request import ComparisonRequest
from lmplay.compare.seed_spread import group_of
from lmplay.compare.tuning import Axis
from lmplay.errors import UserError
from lmplay.files import locks_needed, sync
from lmplay.report.arms import Candidate, Comparison
from lmplay.report.as_json import arm_json, plain, verdict_json
from lmplay.runs.names import LOCKS, N_STEPS, VERDICTS
from lmplay.runs.run import Run
from lmplay.runs.settings import Settings
from lmplay.runs.verdicts import read_verdicts
from lmplay.stats.many import ENOUGH_TO_SHRINK, false_discovery_rates, p_value, shrink
from lmplay.stats.sequential import Looks
from lmplay.text import aligned, counted, fixed, printable

FORMAT = 1
FALSE_SHARE = 0.05  # of what is called a finding


def note_verdicts(found: Comparison, request: ComparisonRequest, looks: Looks | None) -> None:
    """Append a line for each verdict of a comparison. What keeps it from that is said on stderr."""
    entries = [_entry(one, found, request, looks) for one in found.candidates if one.verdict]
    if not entries:
        return
    try:
        _append(request.settings.out_folder, entries)
    except (OSError, UserError) as error:
        print(f"the verdict is not in the ledger {request.settings.out}/{VERDICTS}: {error}", file=sys.stderr)


def _entry(one: Candidate, found: Comparison, request: ComparisonRequest, looks: Looks | None) -> dict[str, Any]:
    """Return the line of one verdict."""
    verdict, run, base = one.verdict, one.arm.runs[0], found.baseline.runs[0]
    assert verdict is not None
    tuned = [axis for axis in request.tune if len(axis.values) > 1]
    rates = next((axis.values for axis in tuned if axis.field == "lr"), ())
    steps = sum(phase[N_STEPS] for phase in run.get("progress", "phases"))
    hypothesis = [_arm_key(run, tuned), _arm_key(base, tuned), run.plan_key, run.get("data", "hash"), steps]
    hypothesis.append(run.value("settings", "max_minutes"))
    content = {
        "format": FORMAT,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "hypothesis": hashlib.blake2b(json.dumps(hypothesis).encode(), digest_size=8).hexdigest(),
        "aa": request.aa,
        "plan": run.get("plan", "name"),
        "plan_hash": run.get("plan", "hash"),
        "data_hash": run.get("data", "hash"),
        "steps": steps,
        "tokens": found.tokens,
        "candidate": {**arm_json(one.arm), "settings": _not_default(run)},
        "baseline": {**arm_json(found.baseline), "settings": _not_default(base)},
        "rates": rates,
        "tuned": list(map(str, tuned)),
        "verdict": verdict_json(verdict),
        "held_back": one.held_back,
        "looks": {"max_seeds": looks.max_seeds, "first": looks.first, "confidence": looks.confidence}
        if looks
        else None,
        "p": 1.0 if one.held_back else p_value(verdict, looks),
    }
    return plain(content)


def _arm_key(run: Run, tuned: Sequence[Axis]) -> list[Any]:
    """Return what makes an arm: its code, Config and settings; not its seed, nor a value that was chosen."""
    fields = [axis.field for axis in tuned]
    spec, code, config, settings = json.loads(group_of(run))
    config, settings = ({name: one for name, one in of.items() if name not in fields} for of in (config, settings))
    tried = list(tuned[0].values) if fields == ["lr"] else list(map(str, tuned))
    return [spec, code, config, settings, tried]


def _not_default(run: Run) -> dict[str, Any]:
    """Return the settings of a run that decide its result and are not the defaults."""
    usual = Settings().identity
    names = set(usual) - {"exp", "seed", "validation_interval"}
    return {name: run.settings[name] for name in sorted(names) if run.settings[name] != usual[name]}


def _append(out: Path, entries: list[dict[str, Any]]) -> None:
    (out / LOCKS).mkdir(parents=True, exist_ok=True)
    with locks_needed(out / LOCKS, "choose another --out"), FileLock(out / LOCKS / VERDICTS):
        with open(out / VERDICTS, "a+b") as file:
            if file.tell() and not _ends_with_newline(file):  # a command was killed while it wrote
                file.write(b"\n")
            file.write("".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries).encode())
        sync(out / VERDICTS)


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


@dataclass(frozen=True)
class Hypothesis:
    """The last verdict on one hypothesis.

    q: the share of false findings among all that are as certain. effect, error: shrunk, and its standard error; None
    with fewer than ENOUGH_TO_SHRINK.
    """

    entry: dict[str, Any]
    q: float
    effect: float | None
    error: float | None

    @property
    def found(self) -> str:
        """The word that holds among all tries: "better", "worse" or "-"."""
        if self.q > FALSE_SHARE:
            return "-"
        return "better" if self.entry["verdict"]["difference"] < 0 else "worse"


@dataclass
class Ledger:
    """All hypotheses that were judged, the most certain first.

    n_verdicts: on all of them. mean, spread: of the true effects, in nats per token; None if there are too few to tell.
    damaged: lines that can't be read.
    """

    hypotheses: list[Hypothesis]
    n_verdicts: int
    mean: float | None = None
    spread: float | None = None
    damaged: list[int] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a program."""
        rows = [
            {**one.entry, "q": one.q, "found": one.found, "shrunk": one.effect, "shrunk_error": one.error}
            for one in self.hypotheses
        ]
        own = {"verdicts": self.n_verdicts, "mean": self.mean, "spread": self.spread, "damaged_lines": self.damaged}
        return plain({"hypotheses": rows, **own})


def read_ledger(out: Path) -> Ledger:
    """Read all verdicts in `out` and judge them together. Those of a model against itself don't count.

    Raises UserError if there is no ledger.
    """
    try:
        entries, damaged = read_verdicts(out)
    except OSError as error:
        raise UserError(
            f"there is no ledger {out / VERDICTS} ({error.strerror}): lmp_compare begins one with its first verdict"
        ) from None
    entries = [entry for entry in entries if not entry["aa"]]
    last = list({entry["hypothesis"]: entry for entry in entries}.values())
    rates = false_discovery_rates([entry["p"] for entry in last])
    effects = [entry["verdict"]["difference"] for entry in last]
    errors = [_error(entry["verdict"]) for entry in last]
    known = [i for i, error in enumerate(errors) if error > 0]
    ledger = Ledger([], len(entries), damaged=damaged)
    shrunk: dict[int, tuple[float, float]] = {}
    if len(known) >= ENOUGH_TO_SHRINK:
        found = shrink([effects[i] for i in known], [errors[i] for i in known])
        ledger.mean, ledger.spread = found.mean, found.spread
        shrunk = {i: (float(found.effects[k]), float(found.errors[k])) for k, i in enumerate(known)}
    for i in sorted(range(len(last)), key=lambda i: last[i]["p"]):
        ledger.hypotheses.append(Hypothesis(last[i], float(rates[i]), *shrunk.get(i, (None, None))))
    return ledger


def _error(verdict: dict[str, Any]) -> float:
    """Return the standard error of a difference; 0 if it is not known."""
    if not verdict.get("seed_df") or verdict.get("seed_sd") is None or not verdict.get("seeds"):
        return 0.0
    return float((verdict["seed_sd"] ** 2 / verdict["seeds"] + (verdict.get("document_se") or 0.0) ** 2) ** 0.5)


def ledger_text(ledger: Ledger) -> str:
    """Return the ledger as a table, with what holds among all tries."""
    header = [
        "candidate",
        "baseline",
        "plan",
        "tokens",
        "seeds",
        "difference",
        "interval",
        "verdict",
        "p",
        "q",
        "found",
    ]
    shrinks = ledger.mean is not None
    rows = [[*_cells(one), *([_shown(one)] if shrinks else [])] for one in ledger.hypotheses]
    lines = [aligned([*header, *(["shrunk"] if shrinks else [])], rows)] if rows else []
    words = [one.found for one in ledger.hypotheses]
    lines.append(
        f"{counted(len(rows), 'idea')}, {counted(ledger.n_verdicts, 'verdict')}: "
        f"{words.count('better')} better and {words.count('worse')} worse, of which at most {FALSE_SHARE:.0%} are "
        "expected to be false (q: Benjamini-Yekutieli over all of them)"
    )
    if shrinks:
        lines.append(
            f"shrunk: the likely effect of each, if true effects lie around {ledger.mean:+.4f} with a standard "
            f"deviation of {ledger.spread:.4f} nats per token, as these do"
        )
    if ledger.damaged:
        lines.append(
            f"left out: {counted(len(ledger.damaged), 'line')} that can't be read, the first {ledger.damaged[0]}"
        )
    return "\n".join(lines)


def _cells(one: Hypothesis) -> list[str]:
    entry, verdict = one.entry, one.entry["verdict"]
    ends = [fixed(verdict[end], 4, "+") or "?" for end in ("low", "high")]
    return [
        *(_label(entry[arm]) for arm in ("candidate", "baseline")),
        printable(entry.get("plan") or "-"),
        f"{entry['tokens']:,.0f}" if entry.get("tokens") else "-",
        str(verdict.get("seeds", "-")),
        fixed(verdict["difference"], 4, "+"),
        " to ".join(ends),
        printable(verdict.get("word") or "-"),
        f"{entry['p']:.2g}",
        f"{one.q:.2g}",
        one.found,
    ]


def _label(arm: dict[str, Any]) -> str:
    """Return NAME:VARIANT with the beginning of the code's hash: many ideas have one name."""
    label, code = printable(arm["label"]), printable(arm.get("code_hash") or "")[:6]
    return label if "(" in label or not code else f"{label} {code}"


def _shown(one: Hypothesis) -> str:
    return "-" if one.effect is None or one.error is None else f"{one.effect:+.4f} ± {one.error:.4f}"
