"""Group runs by seed, name the groups, choose the baseline, and say what is not alike."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import pandas

from lmplay.errors import UserError, did_you_mean
from lmplay.registry import DEFAULT_EXPERIMENT
from lmplay.report.measured_text import validated_text
from lmplay.report.training_unlike import training_aspects
from lmplay.runs.run import Run
from lmplay.text import name_key, printable

K = TypeVar("K")


A = TypeVar("A")


B = TypeVar("B")


# Said by the label's first part, or without influence on what is computed.
NOT_IN_LABELS = {
    "exp",
    "set",
    "seed",
    "out",
    "run_name",
    "save_interval",
    "backup_interval",
    "backup_at",
    "keep_best",
    "prompts",
    "validation_interval",
    "midway_tokens",
    "validation_tokens",
    "mini_batch_size",
    "track",
}


# As above, or known by the hashes of plan and data and by the Config.
NOT_IN_GROUPS = NOT_IN_LABELS - {"validation_tokens"} | {"training_plan", "data", "tokenizer", "context_len", "device"}


LONGEST_LABEL = 44


TAIL = 0.02  # the share of a run at its end that final figures are means of


SPLITS = {"train": "training", "validate": "validation"}  # the split of a run's tables, its name for people


ENOUGH_VALIDATIONS = 4  # for a curve


OTHER_DATA = "other data"  # why losses are not subtracted


def group_seeds(runs: list[Run], lengths: list[float]) -> list[list[int]]:
    """Return the indices of runs that are alike in all except their seed, in groups, by ascending seed.

    lengths: the tokens each run has seen. A second run under the same seed is a group of its own. So is an unfinished
    run that has seen fewer than 98% of the most tokens in its group.
    """
    # All fields of each experiment's Config. A field that is younger than a run counts as its default.
    fields: dict[str, dict[str, None]] = {}
    for run in runs:
        fields.setdefault(run.experiment, {}).update(dict.fromkeys(run.keys("config")))
    alike: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        alike.setdefault(_but_seed(run, fields[run.experiment]), []).append(i)
    groups = []
    for members in [part for same in alike.values() for part in _by_code(runs, same)]:
        longest, seeds = max(lengths[i] for i in members), {}
        for i in sorted(members, key=lambda i: -lengths[i]):
            whole = runs[i].get("status") == "finished" or lengths[i] >= (1 - TAIL) * longest
            seed = _short(runs[i].get("settings", "seed"))
            if whole and seed not in seeds:
                seeds[seed] = i
            else:
                groups.append([i])
        groups.append(sorted(seeds.values(), key=lambda i: (runs[i].number("settings", "seed") or 0, i)))
    return sorted(filter(None, groups), key=min)


def _but_seed(run: Run, fields: Iterable[str]) -> str:
    """Return as text what decides a run's result except the seed, `fields` of its Config included."""
    settings = {key: value for key, value in run.settings.items() if key not in NOT_IN_GROUPS}
    config = {key: run.value("config", key) for key in fields}
    keys = ("data", "hash"), ("tokenizer", "fingerprint")
    plan = run.get("plan", "hash") if run.get("data", "hash") is None else run.plan_key
    return json.dumps([run.spec, settings, config, plan, *(run.get(*key) for key in keys)], sort_keys=True)


def _by_code(runs: list[Run], members: list[int]) -> list[list[int]]:
    """Return `members` split by what their code does. The code of a single run is not read."""
    if len(members) == 1:
        return [members]
    parts: dict[str, list[int]] = {}
    for i in members:
        parts.setdefault(runs[i].code_hash, []).append(i)
    return list(parts.values())


def group_by(runs: list[Run], field: str) -> tuple[list[list[int]], list[str]]:
    """Return (indices of the runs of each value of a field, the label of each), sorted by value.

    field: "experiment", a setting or a field of the Config. Raises UserError if no run has it.
    """
    key = field.removeprefix("--").replace("-", "_")
    section = next((one for one in ("config", "settings") if any(key in run.keys(one) for run in runs)), None)
    if key != "experiment" and section is None:
        known = {name for run in runs for one in ("settings", "config") for name in run.keys(one)}
        raise UserError(f"--group: no run has a setting or field {field!r}.{did_you_mean(key, known | {'experiment'})}")
    found: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        value = run.experiment if section is None else f"{key}={_short(run.value(section, key))}"
        found.setdefault(value, []).append(i)
    values = sorted(found, key=_by_number)
    return [found[value] for value in values], [f"{v} (n={len(found[v])})" if found[v][1:] else v for v in values]


def _by_number(label: str) -> tuple[float, str]:
    """Return the number after = and the label, so that 10 comes after 9."""
    try:
        return float(label.rpartition("=")[2]), label
    except ValueError:
        return float("-inf"), label


def labels(runs: list[Run], counts: list[int] | None = None) -> list[str]:
    """Return the shortest texts found that tell the runs apart.

    That is experiment:variant; if that is not enough, the seed too, then the settings that differ, then the run's
    name. An experiment:variant that all runs share is left out. Two runs of gpt2ish:tiny with other learning rates
    are "lr=0.001" and "lr=0.003"; beside a run of llama2:tiny they are "gpt2ish:tiny lr=0.001" and "gpt2ish:tiny
    lr=0.003". Other budgets, batches, optimizers and schedules always stand in the labels. counts: the number of seeds
    that each run stands for; shown if there are several.
    """
    counts = counts or [1] * len(runs)
    many = {id(run): count for run, count in zip(runs, counts, strict=True) if count > 1}
    texts: list[list[str]] = [[run.spec] for run in runs]
    if len(runs) > 1 and len({run.spec for run in runs}) == 1:
        texts = [[] for _ in runs]
    for training in training_aspects(runs):
        texts = [[*text, training(run)] for text, run in zip(texts, runs, strict=True)]
    for aspect in _aspects(runs):
        groups: dict[tuple, list[int]] = {}
        for i, text in enumerate(texts):
            groups.setdefault(tuple(text), []).append(i)
        for members in groups.values():
            said = {i: aspect(runs[i], id(runs[i]) in many) for i in members}
            if len(set(said.values())) > 1:
                for i in members:
                    texts[i].append(said[i])
    found = [
        " ".join(filter(None, text)) or (run.spec if id(run) in many else run.name)
        for text, run in zip(texts, runs, strict=True)
    ]
    half = LONGEST_LABEL // 2
    found = [text if len(text) <= LONGEST_LABEL else f"{text[:half]}…{text[1 - half :]}" for text in found]
    seen: Counter[str] = Counter()
    for i, label in enumerate(found):  # shortened to the same, or the same in all that was looked at
        seen[label] += 1
        if seen[label] > 1:
            found[i] = f"{label} ({seen[label]})"
    return [f"{text} (n={count})" if count > 1 else text for text, count in zip(found, counts, strict=True)]


def _aspects(runs: list[Run]) -> Iterator[Callable[[Run, bool], str]]:
    """Yield functions (run, whether it stands for several seeds) -> text, in the order in which they are tried."""

    def value_of(*keys: str) -> Callable[[Run, bool], str]:
        return lambda run, several: f"{printable(keys[-1])}={_short(run.value(*keys))}"

    yield lambda run, several: "" if several else f"seed {_short(run.get('settings', 'seed'))}"
    yield lambda run, several: _short(run.get("plan", "name"))
    for section in ("settings", "config"):
        keys = dict.fromkeys(key for run in runs for key in run.keys(section))
        yield from (value_of(section, key) for key in keys if section == "config" or key not in NOT_IN_LABELS)
    yield lambda run, several: run.name
    yield lambda run, several: printable(run.folder.parent)


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ",".join(map(_short, value))
    return "none" if value is None else printable(value)


def matching(runs: list[Run], wanted: str) -> list[Run]:
    """Return the runs that `wanted` means: a run's name or folder, or NAME[:VARIANT] (compared by `name_key`)."""
    key = name_key(wanted.rstrip("/"))
    aspects: tuple[Callable[[Run], str], ...] = (
        lambda run: run.name,
        lambda run: str(run.folder),
        lambda run: run.folder.name,
        lambda run: run.spec,
        lambda run: run.experiment,
    )
    for aspect in aspects:
        found = [run for run in runs if name_key(aspect(run)) == key]
        if found:
            return found
    return []


def choose_baseline(runs: list[Run], wanted: str | None, lengths: list[float]) -> int:
    """Return the index of the baseline: the longest of the runs that `wanted` means.

    By default it is the longest run of the default experiment, else of all. lengths: the tokens each run has seen.
    Raises UserError if `wanted` means none of the runs.
    """
    candidates = matching(runs, wanted or DEFAULT_EXPERIMENT)
    if wanted and not candidates:
        names = {name for run in runs for name in (run.name, run.experiment, run.spec)}
        raise UserError(f"no run of the baseline {wanted!r} among those to draw.{did_you_mean(wanted, names)}")
    among = [i for i, run in enumerate(runs) if not candidates or any(run is c for c in candidates)]
    return max(among, key=lambda i: (lengths[i], -i))


def same_tokenizer(runs: Iterable[Run]) -> bool:
    """Tell whether all runs have one tokenizer."""
    return len({str(run.get("tokenizer", "fingerprint") or run.get("tokenizer", "spec")) for run in runs}) <= 1


def unlike(run: Run, other: Run) -> list[str]:
    """Return why the losses of two runs are not the same measure, each reason in a few words; [] if they are.

    With different tokenizers the stores differ even for the same text. The data then count as the same if every
    dataset has the same number of documents and bytes.
    """
    reasons = []
    tokenizers_alike = same_tokenizer((run, other))
    if not tokenizers_alike:
        reasons.append("another tokenizer")
    if tokenizers_alike and (run.get("data", "hash") is None or other.get("data", "hash") is None):
        reasons.append("data not known to be the same")
    elif run.get("data", "hash") != other.get("data", "hash") and (tokenizers_alike or _text(run) != _text(other)):
        reasons.append(OTHER_DATA)
    elif run.plan_key != other.plan_key and tokenizers_alike:
        reasons.append("another plan")
    texts = validated_text(run), validated_text(other)
    if reasons in ([], ["another tokenizer"]) and None not in texts and texts[0] != texts[1]:
        reasons.append("another part of the validation text (--validation-tokens)")
    if run.get("experiment", "causal") != other.get("experiment", "causal"):
        causal = run.get("experiment", "causal") is not False
        reasons.append("causal, unlike the baseline" if causal else "may look ahead (not causal)")
    return reasons


def _text(run: Run) -> dict[tuple[str, str, str], object]:
    """Return the documents and bytes of every dataset's parts, which do not depend on the tokenizer."""
    datasets = run.get("data", "datasets")
    return {
        (name, part, key): run.get("data", "datasets", name, part, key)
        for name in (datasets if isinstance(datasets, dict) else {})
        for part in ("train", "validation")
        for key in ("documents", "bytes")
    }


def paired(candidate: Mapping[K, A], baseline: Mapping[K, B]) -> list[tuple[K, A, B]]:
    """Return (seed, candidate's, baseline's) for each seed that both have, in the candidate's order."""
    return [(seed, one, baseline[seed]) for seed, one in candidate.items() if seed in baseline]


@dataclass(eq=False)
class Loaded:
    """A run with its tables ("train" and "validate") and its final figures."""

    run: Run
    tables: dict[str, pandas.DataFrame]
    figures: dict[str, float | None]


@dataclass(eq=False)
class RunGroup:
    """Runs that differ in their seed only, by ascending seed, or one run: what one line shows."""

    members: list[Loaded]
    label: str

    @property
    def run(self) -> Run:
        """The first run: what all have in common is read from it."""
        return self.members[0].run

    def figure(self, name: str) -> float | None:
        """Return the mean of a final figure over the runs that have it."""
        values = [value for one in self.members if (value := one.figures[name]) is not None]
        return sum(values) / len(values) if values else None

    def beside(self, baseline: "RunGroup") -> list[tuple[Loaded, list[Loaded]]]:
        """Return each run with the baseline's under the same seed; with all of the baseline's if they share no seed."""
        ours, theirs = self._by_seed(), baseline._by_seed()
        if len(ours) < len(self.members) or len(theirs) < len(baseline.members):  # a seed stands for several runs
            return [(one, baseline.members) for one in self.members]
        pairs = paired(ours, theirs)
        return [(one, [other]) for _, one, other in pairs] or [(one, baseline.members) for one in self.members]

    def _by_seed(self) -> dict[object, Loaded]:
        return {one.run.get("settings", "seed"): one for one in self.members}
