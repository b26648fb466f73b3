"""Say which text the figures of a run were measured on, so that only like is subtracted from like."""

from collections.abc import Callable, Hashable

from lmplay.runs.run import Run


def text_of(run: Run, split: str) -> Callable[[str, bool], Hashable]:
    """Return a function: what the figures of a split ("train", "validate") were measured on in a phase of the plan.

    It takes the phase's name, and whether the documents are meant that are scored midway.

    Equal results mean the same documents, whatever the tokenizer. What run.json does not say counts as the phase's own.
    """
    part = "validation" if split == "validate" else "train"
    steps = run.get("plan", "content", "steps")
    phases = {str(step.get("name")): step.get("datasets") for step in _objects(steps)}

    def of_phase(phase: str, midway: bool) -> Hashable:
        if midway:
            return "midway", run.settings["midway_tokens"], of_phase(phase, False)
        listed = phases.get(phase)
        names = [str(name) for name in listed] if isinstance(listed, list) else []
        text = [_documents(run, name, part) for name in names] or [None]
        return ("phase", phase) if None in text else (*text, _cut(run, names) if part == "validation" else None)

    return of_phase


def validated_text(run: Run) -> Hashable:
    """Return what all validations of a run are measured on, as `text_of` does; None if its run.json does not say."""
    datasets = run.get("data", "datasets")
    names = sorted(datasets) if isinstance(datasets, dict) else []
    text = [_documents(run, name, "validation") for name in names]
    return None if not text or None in text else (*text, _cut(run, names))


def _documents(run: Run, name: str, part: str) -> Hashable:
    """Return the documents and bytes of a dataset's part, which do not depend on the tokenizer; None if not known."""
    found = tuple(run.number("data", "datasets", name, part, key) for key in ("documents", "bytes"))
    return None if None in found else found


def _cut(run: Run, names: list[str]) -> Hashable:
    """Return what decides which part of the validation documents is scored; None if all of them are."""
    limit = run.settings["validation_tokens"]
    sizes = [run.number("data", "datasets", name, "validation", "tokens") or 0 for name in names]
    if not limit or not isinstance(limit, int) or max(sizes, default=0) <= limit:
        return None
    return limit, str(run.get("tokenizer", "fingerprint")), str(run.settings["data_order"])


def _objects(value: object) -> list[dict]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
