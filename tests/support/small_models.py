"""Every experiment and variant, cut down to a tiny width."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from lmplay import contract, registry
from lmplay.model import adapters
from support.small import EXPERIMENTS

ENTRIES = [registry.read_entry(path.parent) for path in sorted(EXPERIMENTS.glob("*/model.py"))]
READABLE = [entry for entry in ENTRIES if entry.error is None]
BATCH, LENGTH, VOCABULARY, BOS = 8, 16, 97, 96
# Fields by their usual names, and what they are cut down to; 0 stays 0 and smaller values stay.
SMALL = {
    "n_hidden": 64,
    "n_unit": 2,
    "metric_hidden": 16,
    "metric_width": 8,
    "chunk": 4,
    "n_layer": 2,
    "n_embd": 32,
    "n_head": 2,
    "n_kv_head": 1,
    "hidden_multiple": 8,
    "last_blocks": 1,
    "n_cell": 8,
    "memory_multiple": 2,
    "n_memory_head": 2,
    "n_expert_head": 2,
    "key_dim": 16,
    "n_distil_head": 2,
    "n_distil_group": 2,
    "embedding_multiple": 2,
    "embedding_hidden": 2,
}


def small_config(entry, variant):
    """The variant's Config with its widths cut down."""
    config = contract.load(entry).config(variant, VOCABULARY, LENGTH)
    fields = {f.name for f in dataclasses.fields(config)}
    return dataclasses.replace(
        config, **{name: min(getattr(config, name), SMALL[name]) for name in SMALL.keys() & fields}
    )


def different(entry):
    """The variants that still differ when they are cut down: 6 and 12 layers become one model, which is tested once."""
    try:
        configs = {variant: contract.config_values(small_config(entry, variant)) for variant in entry.variants}
    except Exception:  # a folder that can't be loaded fails in its own tests
        return list(entry.variants)
    return [
        variant for number, variant in enumerate(configs) if configs[variant] not in list(configs.values())[:number]
    ]


def named(variants_of, often=None):
    """Every experiment's variants; those after the first `often` are marked thorough."""
    return [
        pytest.param(
            entry,
            variant,
            id=f"{entry.name}:{variant}",
            marks=() if often is None or number < often else pytest.mark.thorough,
        )
        for entry in READABLE
        for number, variant in enumerate(variants_of(entry))
    ]


each_folder = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
each_experiment = pytest.mark.parametrize("entry", READABLE, ids=lambda entry: entry.name)
every_variant = pytest.mark.parametrize("entry, variant", named(lambda entry: entry.variants, often=2))
each_variant = pytest.mark.parametrize("entry, variant", named(different, often=2))
few_variants = pytest.mark.parametrize("entry, variant", named(different, often=1))


def build(entry, variant, seed=0):
    """The experiment, and the variant's model with its widths cut down."""
    experiment, config = contract.load(entry), small_config(entry, variant)
    torch.manual_seed(seed)
    return experiment.bound(config), experiment.build(config).eval()


def random_window(seed=0, batch=BATCH):
    return torch.randint(VOCABULARY, (batch, LENGTH), generator=torch.Generator().manual_seed(seed))


def logits_of(model, tokens, **arguments):
    with torch.no_grad():
        return adapters.split_output(model(tokens, **arguments))[0]


def objective(experiment, model, window):
    """The mean loss of the scored tokens, as the harness takes it, and what is trained on."""
    inputs, targets, _ = experiment.make_batch(window, BOS, seed=0)
    logits, extra = adapters.split_output(model(inputs))
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=contract.NOT_SCORED)
    return loss, loss + extra.get("loss", 0)
