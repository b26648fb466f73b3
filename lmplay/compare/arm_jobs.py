"""Find the arms of a comparison by what the user typed."""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lmplay.compare.request import ComparisonRequest
from lmplay.compare.variants import Variant, find_variant
from lmplay.errors import UserError
from lmplay.runs.folder import find_run


@dataclass(frozen=True)
class ArmJobs:
    """One arm to train: its pair number k has seed first_seed + k."""

    label: str
    variant: Variant
    first_seed: int = 0


def find_arms(request: ComparisonRequest) -> tuple[ArmJobs, list[ArmJobs]]:
    """Find the baseline's arm and the candidates'. Raises UserError for unknown names and for a model given twice.

    Two codes under one name are told apart by their hashes.
    """
    out = request.settings.out_folder
    base = _find(request.baseline, out)
    variants = [_find(spec, out) for spec in request.candidates]
    names = {variant.name for variant in variants}
    if base.kept is None and ":" not in request.baseline and len(names) == 1 and names <= set(base.entry.variants):
        base = find_variant(f"{request.baseline}:{names.pop()}")  # tiny against tiny
    if request.aa:
        first_seed = request.max_seeds if request.until_sure else request.seeds
        return ArmJobs(base.label, base), [ArmJobs(f"{base.label} (other seeds)", base, first_seed)]
    seen = {_model(base)}
    for variant in variants:
        if _model(variant) == _model(base):
            raise UserError(f"{base.spec} is the baseline: compare something else with it, or ask for --aa")
        if _model(variant) in seen:
            raise UserError(f"--exp names {variant.spec} twice")
        seen.add(_model(variant))
    times = Counter(variant.spec for variant in (base, *variants))
    base, *variants = (_told_apart(variant) if times[variant.spec] > 1 else variant for variant in (base, *variants))
    return ArmJobs(base.label, base), [ArmJobs(variant.label, variant) for variant in variants]


def _model(variant: Variant) -> tuple[str, str]:
    return variant.spec, variant.code_hash


def _told_apart(variant: Variant) -> Variant:
    return dataclasses.replace(variant, label=f"{variant.spec} ({variant.code_hash[:8]})")


def _find(spec: str, out: Path) -> Variant:
    """Find the variant of NAME[:VARIANT], or the one that a run trained, by the code that it keeps.

    Raises UserError if it is neither.
    """
    try:
        return find_variant(spec)
    except UserError:
        try:
            run = find_run(spec, out)
        except UserError:
            run = None
        if run is None:
            raise
    entry, name = run.check("compare").code, run.get("experiment", "variant")
    if entry is None or entry.error or name not in entry.variants:
        raise UserError(f"{run.folder} keeps no code of {run.spec} that can be used: name an experiment instead")
    return Variant(entry, name, run.code_hash, kept=run.folder)
