"""Ask the models of a comparison or a probe before they are trained, and their weights before a verdict."""

import sys
from typing import Any

from lmplay import contract, crashes
from lmplay.compare.jobs import RunIndex
from lmplay.compare.variants import Variant
from lmplay.errors import UserError
from lmplay.model.findings import FAULT, LEAK
from lmplay.report.arms import Arm
from lmplay.runs import trust
from lmplay.runs.settings import Settings
from lmplay.train.checking import ALLOW, check_model, check_run, noted, refuse, without_first_loss
from lmplay.train.settings import on_amp

NO_VERDICT = "There is no verdict"


def loaded(variant: Variant) -> contract.Experiment:
    """Return the experiment of a variant, ready to be used. Raises UserError for a stranger's code in a run."""
    return trust.load_code(variant.kept, variant.entry) if variant.kept else contract.load(variant.entry)


def check_device(settings: Settings) -> None:
    """Raise UserError if this machine, which trains, lacks the device; say it where --amp does or would do no good."""
    from lmplay.model.device import choose_device

    choose_device(settings.device)
    if said := on_amp(settings):
        print(said, file=sys.stderr)


def check_before(index: RunIndex, variant: Variant, settings: Settings, why: str, allow_leak: bool) -> None:
    """Ask the model that `settings` train whether its loss means what it says. Raises UserError if it does not.

    why: what is not done then. A model that crashes is left to its training, which shows where.
    """
    from lmplay.model.device import device_here

    experiment, fields = loaded(variant), contract.parse_fields(list(settings.set))
    given: dict[str, Any] = {"max_len": settings.context_len or index.plan.context_len, **fields}
    config = experiment.config(variant.name, index.data.tokenizer.vocab_size, **given)
    try:
        checked = check_model(
            entry=variant.entry,
            experiment=experiment.bound(config),
            config=config,
            bos=index.data.tokenizer.eot,
            device=device_here(settings.device),
        )
    except UserError:
        raise
    except crashes.RAISED:
        return
    if settings.initial_model:
        checked = without_first_loss(checked)
    refuse(checked, LEAK, FAULT, why=why, allow_leak=allow_leak)


def check_after(arm: Arm, allow_leak: bool) -> list[str]:
    """Ask the weights of an arm's first run, and what it noted before its training; return what is wrong.

    Raises UserError if that is anything, unless leaks are allowed.
    """
    run = next((run for by_pair in arm.runs.values() for run in by_pair.values() if run), None)
    if run is None:
        return []
    checked = check_run(run)
    found = (checked.sentences(LEAK, FAULT) if checked else []) or noted(run)
    if found and not allow_leak:
        raise UserError(f"{found[0]}. {NO_VERDICT} without {ALLOW}")
    return [f"{run.name}: {sentence}" for sentence in found]


def check_alike(base: str, lengths: dict[str, int], causal: dict[str, bool], allow_leak: bool) -> None:
    """Check that all models read as many tokens at once as the baseline, and that all are causal or none is.

    base: the baseline's label. lengths, causal: by label. Raises UserError.
    """
    for spec in lengths:
        if lengths[spec] != lengths[base]:
            raise UserError(
                f"{spec} reads {lengths[spec]} tokens at once and {base} {lengths[base]}, so they don't see the "
                f"same sequences: give both one --context-len, such as {min(lengths[spec], lengths[base])}"
            )
        if causal[spec] != causal[base] and not allow_leak:
            leak = base if causal[spec] else spec
            raise UserError(
                f"{leak} is not causal: its logits may look ahead, so its loss means something else; no verdict "
                "without --allow-leak"
            )
