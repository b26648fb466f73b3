"""Which earlier runs say how far seeds lie apart: those of the two arms' own code, size and budget."""

import copy
from pathlib import Path
from types import SimpleNamespace

import pytest

from lmplay.compare.seed_spread import SeedSpread
from lmplay.runs.run import Run


def run_of(name: str, seed: int, loss: float, **changes) -> Run:
    """Return a finished run; `changes` are values at paths of keys with "__" between them."""
    info = {
        "experiment": {"name": name, "variant": "tiny", "code_hash": f"code of {name}", "code_hash_version": 2},
        "config": {"n_layer": 2, "max_len": 64},
        "settings": {"seed": seed, "lr": 1e-3, "batch_size": 16, "exp": f"{name}:tiny"},
        "plan": {"hash": "plan"},
        "data": {"hash": "data"},
        "progress": {"phases": [{"name": "main", "n_updates": 100}], "validation_loss": loss},
        "status": "finished",
        "run": f"{name}-{seed}",
    }
    info = copy.deepcopy(info)
    for path, value in changes.items():
        *keys, last = path.split("__")
        section = info
        for key in keys:
            section = section[key]
        section[last] = value
    return Run(Path(f"{name}-{seed}"), info)


IDEA, BASE = run_of("idea", 0, 2.0), run_of("base", 0, 2.1)


def prior_of(others, compared=(IDEA, BASE)):
    index = SimpleNamespace(runs=[IDEA, BASE, *others], settings=SimpleNamespace(out="gpt_out"))
    return SeedSpread(index).prior(IDEA, BASE, compared)


def seeds_of(name: str, losses=(2.0, 2.3, 1.9, 2.4), **changes) -> list[Run]:
    return [run_of(name, seed, loss, **changes) for seed, loss in enumerate(losses, 1)]


def test_runs_of_the_arms_say_how_far_seeds_lie_apart():
    prior = prior_of([*seeds_of("idea"), *seeds_of("base", (2.1, 2.4, 2.0, 2.6))])
    assert prior.df == 3 and len(prior.runs) == 8 and "8 runs" in prior.source
    assert sorted(prior.runs)[0] == "base-1"
    # one arm alone is enough, and another learning rate of the same model tells it too
    assert prior_of(seeds_of("base")).df == 3
    assert prior_of(seeds_of("base", settings__lr=2e-3)).runs == ("base-1", "base-2", "base-3", "base-4")
    assert prior_of(seeds_of("base", recipe={"off": []})).df == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"experiment__name": "other", "experiment__code_hash": "code of other"},
        {"experiment__code_hash": "older code of base"},
        {"experiment__variant": "6l"},
        {"plan__hash": "another"},
        {"data__hash": "another"},
        {"config__n_layer": 3},
        {"config__max_len": 128},
        {"settings__batch_size": 8},
        {"settings__max_minutes": 1.0},
        {"settings__initial_model": "another"},
        {"settings__optimizer": "sgd"},
        {"progress__phases": [{"name": "main", "n_updates": 60}]},
        {"status": "failed"},
        {"recipe": {"off": ["lr"]}},
        {"progress__validation_loss": float("nan")},
    ],
    ids=str,
)
def test_other_runs_say_nothing(changes):
    assert prior_of(seeds_of("base", **changes)) is None


def test_runs_of_the_comparison_never_count():
    own = [*seeds_of("idea"), *seeds_of("base")]
    assert prior_of(own, compared=[IDEA, BASE, *own]) is None
    # nor what will become part of it, nor the same run once more under another name
    assert prior_of([*own, *seeds_of("base", run="again")], compared=[IDEA, BASE, *own]) is None
    later = prior_of(own, compared=[IDEA, BASE, *own[:2], *own[4:6]])
    assert set(later.runs) == {"idea-3", "idea-4", "base-3", "base-4"}
    # one loss under one seed counts once
    assert prior_of([*seeds_of("base"), *seeds_of("base", run="again")]).df == 3


def test_later_looks_use_the_first_answer():
    index = SimpleNamespace(runs=seeds_of("base"), settings=SimpleNamespace(out="gpt_out"))
    spread = SeedSpread(index)
    first = spread.prior(IDEA, BASE, [])
    index.runs += seeds_of("idea")
    assert spread.prior(IDEA, BASE, []) is first
