"""Describe an experiment and a run: for run.json, for --describe, and for the lines that a start prints."""

import dataclasses
import platform
import subprocess
from collections.abc import Iterator
from typing import Any

import torch

from lmplay import contract
from lmplay.data import tasks
from lmplay.data.prepare import vocabulary
from lmplay.data.store import TokenStore
from lmplay.model.cost import activation_bytes, known_cost, training_bytes
from lmplay.model.device import amp_dtype, choose_device, device_name
from lmplay.model.measured import peak_flops
from lmplay.runs.describe import describe_model
from lmplay.runs.names import PEAK_FLOPS, PLAN_TITLE, RANKS, RECIPE, TF32
from lmplay.runs.run import FORMAT
from lmplay.runs.settings import OPTIMIZERS, Settings
from lmplay.text import count
from lmplay.train.phases import Phase, choose_plan
from lmplay.train.ranks import ALONE, Ranks
from lmplay.train.recipes import in_words, off_recipe, recipe_of
from lmplay.train.setup import Setup, choose_experiment
from lmplay.version import __version__


def describe_run(
    setup: Setup,
    phases: list[Phase],
    device: torch.device,
    created: str | None = None,
    *,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Return the content of run.json. created: when the run was begun, if that was not now. ranks: who trains it."""
    tokenizer, entry = setup.data.tokenizer, setup.entry
    return {
        "format": FORMAT,
        "run": setup.folder.name,
        "status": "running",
        "command": setup.command,
        **describe_model(
            experiment=setup.experiment,
            entry=entry,
            variant=setup.variant,
            config=setup.config,
            folder=entry.folder,
            n_parameters=setup.cost.parameters,
            n_trainable=setup.cost.trainable,
            flops_per_token=setup.cost.flops_per_token,
            flops_per_step=setup.cost.flops_per_step,
        ),
        **({"created": created} if created else {}),
        "settings": setup.settings.as_json(),
        **_recipe(setup),
        "plan": {
            "name": setup.plan.name,
            "hash": setup.plan.hash,
            "content": setup.plan.content,
            **({PLAN_TITLE: setup.plan.title} if setup.plan.title else {}),
        },
        "tokenizer": {
            "spec": tokenizer.spec,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eot": tokenizer.eot,
        },
        "data": {
            "hash": setup.data.hash,
            "datasets": {name: _dataset(setup, name) for phase in phases for name in phase.datasets},
        },
        "device": {
            "type": device.type,
            "name": device_name(device),
            "threads": torch.get_num_threads(),
            PEAK_FLOPS: peak_flops(device, setup.settings.amp),
            **({TF32: torch.get_float32_matmul_precision() != "highest"} if device.type == "cuda" else {}),
            **({RANKS: dict(described)} if (described := ranks.described()) else {}),
        },
        "versions": {"lmplay": __version__, "python": platform.python_version(), "torch": str(torch.__version__)},
        "git": commit(),
        **({} if setup.checked is None else {"checks": setup.checked}),
        "progress": {},
    }


def _recipe(setup: Setup) -> dict[str, Any]:
    """Return what run.json holds of the recipe; nothing without one."""
    recipe = recipe_of(setup.entry, setup.settings.recipe)
    if not recipe:
        return {}
    off = off_recipe(setup.settings, recipe)
    return {RECIPE: {"asked": setup.settings.recipe, "settings": recipe, "off": off}}


def describe_experiment(settings: Settings) -> str:
    """Return what --describe prints: what the experiment is and what it costs. Raises UserError."""
    entry, variant, experiment = choose_experiment(settings)
    default = {f.name: f.default for f in dataclasses.fields(experiment.Config)}["vocab_size"]
    vocab_size, context_len = experiment.variants[variant].get("vocab_size", default), settings.context_len
    plan = choose_plan(settings) if settings.data or settings.training_plan != Settings.training_plan else None
    named = vocabulary(plan, settings.tokenizer)
    if plan is not None:
        context_len = context_len or plan.context_len
    fields: dict[str, Any] = contract.parse_fields(list(settings.set))
    config = experiment.config(variant, named.size if named else vocab_size, context_len, **fields)
    cost = known_cost(entry.code_hash, experiment, config)
    size = settings.mini_batch_size or 8
    memory = training_bytes(
        cost, activation_bytes(experiment, config, settings.amp), size, OPTIMIZERS[settings.optimizer].states
    )
    lines = [f"{entry.name}:{variant}  ({entry.folder})\n\n{experiment.docstring.strip()}\n"]
    if entry.parent:
        lines.append(f"copied from {entry.parent} (--diff shows the change)")
    if named:
        lines.append(f"vocabulary: {named}")
    lines.append("settings: " + ", ".join(f"{k}={v}" for k, v in contract.config_values(config).items()))
    trainable = f" ({cost.trainable:,} trainable)" if cost.trainable != cost.parameters else ""
    lines.append(f"parameters: {cost.parameters:,}{trainable}")
    per_step = f", and {cost.flops_per_step:,.0f} per step, from the parameters alone" if cost.flops_per_step else ""
    lines.append(f"FLOPs per token in training: {cost.flops_per_token:,.0f}{per_step}")
    lines.append(
        f"memory in training, estimated: {memory / 2**30:.2f} GiB with {size} sequences of {config.max_len} tokens "
        f"at once, {settings.optimizer}{', --amp' if settings.amp else ''}"
    )
    return "\n".join(lines)


def describe_start(setup: Setup) -> str:
    """Return the lines that a start prints: model, data, steps and device."""
    settings, tokenizer = setup.settings, setup.data.tokenizer
    device = choose_device(settings.device)
    precision = "float32"
    if settings.amp:
        dtype = amp_dtype(device)
        name = str(dtype).removeprefix("torch.")
        precision = f"{name} autocast" if dtype else "float32 (--amp does nothing: no bfloat16 here)"
    steps = ", ".join(f"{setup.plan.title or p.name}: {p.n_steps:,} steps" for p in setup.phases)
    lines = [f"         {line}\n" for line in on_length(setup)]
    recipe = recipe_of(setup.entry, settings.recipe)
    how = f"  learns by its recipe ({in_words(settings, recipe)})\n" if recipe else ""
    return (
        f"{setup.entry.name}:{setup.variant} -> {setup.folder}\n"
        f"  model  {setup.cost.parameters:,} parameters, {count(setup.cost.flops_per_token)} FLOPs per token\n"
        f"  data   plan {setup.plan.shown}, {tokenizer.spec.partition(':')[0]} tokenizer of {tokenizer.vocab_size:,}, "
        f"context {setup.context_len}\n"
        f"  steps  {steps} of {settings.batch_size} sequences, "
        f"{count(setup.n_windows * setup.context_len)} tokens to read\n{''.join(lines)}{how}"
        f"  on     {device} ({device_name(device)}), {precision}"
    )


def on_length(setup: Setup) -> Iterator[str]:
    """Yield what the budget makes of the plan: a phase goes on, the data end first, or phases are not reached."""
    settings, phases = setup.settings, setup.phases
    last, extra = phases[-1], settings.extra_steps * settings.batch_size
    if last.is_open:
        yield f"{last.name} goes on into further epochs until {settings.max_minutes:g} minutes are over"
    elif last.n_in_plan is not None and last.n_windows - extra > last.n_in_plan:
        by_plan = -(-last.n_in_plan // settings.batch_size)
        yield f"{last.name} goes on into further epochs: {by_plan:,} of its steps are the plan's"
    steps, tokens = setup.n_steps - settings.extra_steps, (setup.n_windows - extra) * setup.context_len
    budgets = (settings.max_steps, steps), (settings.max_tokens, tokens)
    if any(limit for limit, _ in budgets) and all(limit is None or limit > planned for limit, planned in budgets):
        why = "data order 1 does not repeat them" if settings.data_order == 1 else "synthetic tasks are not repeated"
        yield f"the data end before the budget: {why}"
    if left_out := [phase.name for phase in setup.plan.phases[len(phases) :]]:
        yield f"the budget ends before {', '.join(left_out)}"


def _dataset(setup: Setup, name: str) -> dict[str, Any]:
    """Return what run.json holds of a dataset.

    A synthetic one has `entropy`, too: the lowest possible loss in nats per scored token. If the task knows them, it
    has `chance`, the accuracy of guessing, and `ceiling`, the best possible accuracy.
    """
    facts: dict[str, Any] = {
        "train": _store(setup.data.train[name]),
        "validation": _store(setup.data.validation[name]),
    }
    spec, store = setup.plan.datasets[name], setup.data.validation[name]
    if spec.kind != "synthetic":
        return facts
    scored = store.scored(0, store.n_tokens)
    n_scored = store.n_tokens if scored is None else int(scored.sum())
    figures = {
        "entropy": tasks.entropy(spec.source_id, spec.settings) * store.n_documents / n_scored,
        "chance": tasks.chance(spec.source_id, spec.settings),
        "ceiling": tasks.ceiling(spec.source_id, spec.settings),
    }
    return facts | {name: value for name, value in figures.items() if value is not None}


def _store(store: TokenStore) -> dict[str, Any]:
    return {"hash": store.hash, "tokens": store.n_tokens, "documents": store.n_documents, "bytes": store.n_bytes}


def commit() -> dict[str, Any] | None:
    """Return the commit of the current folder and whether it has changes, None outside of a repository."""

    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=5).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
