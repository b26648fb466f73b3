"""Turn what is found out into plain values for a program: what --json writes, and `to_json()` returns.

docs/agents.md lists the keys. A number that is not finite is null, a path is a string.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmplay.report.arms import ArmSummary, Candidate, Comparison
from lmplay.report.groups import RunGroup
from lmplay.runs.run import Run
from lmplay.stats.prior import Prior
from lmplay.stats.savings import Saving
from lmplay.stats.verdict import Verdict

if TYPE_CHECKING:
    from lmplay.report.overlay import Overlay


def of_comparison(found: Comparison) -> dict[str, Any]:
    """Return a comparison as one object."""
    runs = [run for arm in (found.baseline, *(one.arm for one in found.candidates)) for run in arm.runs]
    first = runs[0] if runs else None
    content = {
        "plan": first.get("plan", "name") if first else None,
        "plan_hash": first.get("plan", "hash") if first else None,
        "data_hash": first.get("data", "hash") if first else None,
        "tokens": found.tokens,
        "baseline": arm_json(found.baseline),
        "candidates": [_candidate(one) for one in found.candidates],
        "notes": found.notes,
        "warnings": found.warnings,
        "skipped": found.skipped,
    }
    return plain(content)


def of_overlay(found: "Overlay") -> dict[str, Any]:
    """Return the final figures of all runs that are drawn over one another."""
    panels = [
        {"plan": panel.name, "baseline": panel.groups[0].label, "groups": [_group(group) for group in panel.groups]}
        for panel in found.panels
    ]
    return plain({"panels": panels, "warnings": found.warnings})


def plain(value: Any) -> Any:
    """Return a value as JSON has it: None for numbers that are not finite, text for paths, lists for tuples."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def arm_json(arm: ArmSummary) -> dict[str, Any]:
    """Return one arm of a comparison."""
    code = {run.code_hash for run in arm.runs}
    return {
        "label": arm.label,
        "code_hash": code.pop() if len(code) == 1 else None,
        "loss": arm.loss,
        "seeds": arm.seeds,
        "failed_seeds": arm.failed,
        "runs": [run.folder for run in arm.runs],
        "parameters": arm.parameters,
        "flops_per_token": arm.flops_per_token,
        "tokens_per_second": arm.tokens_per_second,
        "mfu": arm.mfu,
        "peak_memory_bytes": arm.peak_memory_bytes,
    }


def _candidate(one: Candidate) -> dict[str, Any]:
    return {
        **arm_json(one.arm),
        "word": one.word,
        "held_back": one.held_back,
        "crashed": one.crashed or None,
        "status": one.status,
        "verdict": one.verdict and verdict_json(one.verdict),
        "at_equal": {axis: verdict_json(verdict) for axis, verdict in one.at_equal.items()},
        "savings": {axis: _saving(saving) for axis, saving in one.savings.items()},
        "times_comparable": one.timing.comparable if one.timing else None,
        "prior": one.prior and _prior(one.prior, one.verdict),
        "pairs": [[run.folder, other.folder] for run, other in one.pairs],
        "warnings": one.warnings,
    }


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict with all its figures."""
    return {
        "word": verdict.word,
        "label": verdict.label,
        "difference": verdict.difference,
        "low": verdict.low,
        "high": verdict.high,
        "confidence": verdict.confidence,
        "margin": verdict.margin,
        "unit": verdict.unit,
        "covers": verdict.covers,
        "seeds": verdict.n_seeds,
        "documents": verdict.n_documents,
        "more_seeds": verdict.more_seeds,
        "seed_sd": verdict.seed_sd,
        "seed_df": verdict.seed_df,
        "document_se": verdict.document_se,
        "document_df": verdict.document_df,
        "candidate_loss": verdict.candidate_loss,
        "baseline_loss": verdict.baseline_loss,
        "notes": verdict.notes,
        "sentence": verdict.sentence(),
    }


def _saving(saving: Saving) -> dict[str, Any]:
    """Return a saving; a factor that is not finite (the loss is not reached) is null."""
    return {"factor": saving.factor, "low": saving.low, "high": saving.high, "notes": saving.notes}


def _prior(prior: Prior, verdict: Verdict | None) -> dict[str, Any]:
    return {
        "seed_sd": math.sqrt(prior.seed_variance),
        "df": prior.df,
        "share": verdict.prior_share if verdict else None,
        "source": prior.source,
        "runs": prior.runs,
    }


def _group(group: RunGroup) -> dict[str, Any]:
    return {
        "label": group.label,
        "seeds": len(group.members),
        "figures": {name: group.figure(name) for name in group.members[0].figures},
        "runs": [_run(one.run, one.figures) for one in group.members],
    }


def _run(run: Run, figures: dict[str, float | None]) -> dict[str, Any]:
    return {
        "name": run.name,
        "folder": run.folder,
        "experiment": run.spec,
        "code_hash": run.code_hash,
        "status": run.get("status"),
        "seed": run.get("settings", "seed"),
        "figures": figures,
    }
