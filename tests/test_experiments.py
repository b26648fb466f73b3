"""Every folder of experiments/ and every variant, at a tiny width, through what the contract promises."""

import ast
import dataclasses
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_model, save_model

from lmplay import code_diff, contract, registry
from lmplay.model import adapters
from lmplay.model.device import amp_dtype
from support.small import EXPERIMENTS
from support.small_models import (
    BATCH,
    BOS,
    ENTRIES,
    LENGTH,
    VOCABULARY,
    build,
    each_experiment,
    each_folder,
    each_variant,
    every_variant,
    logits_of,
    objective,
    random_window,
)


def updates(experiment, model, window, count):
    """Trains on one batch; yields the model after each gradient, before its update."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(count):
        optimizer.zero_grad()
        objective(experiment, model, window)[1].backward()
        yield model
        optimizer.step()
    model.eval()


@each_folder
def test_folder_reads(entry):
    assert entry.error is None
    assert 10 < len(entry.summary) < 110, "the docstring's first line is what --exp list shows"
    assert entry.parent is None or entry.parent in {other.name for other in ENTRIES} - {entry.name}
    for field in dataclasses.fields(contract.load(entry).Config):
        plain = (bool, int, float, str, type(None)) if "None" in str(field.type) else (bool, int, float, str)
        assert isinstance(field.default, plain), f"Config.{field.name} needs a plain default"


@each_folder
def test_imports_standard_library_torch_and_own_folder_only(entry):
    for path in entry.code_files:
        for node in ast.walk(ast.parse(path.read_bytes())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                up = len(path.relative_to(entry.folder).parts)
                assert node.level <= up, f"{path}:{node.lineno} imports from outside its folder"
                names = [node.module] if node.level == 0 else []
            for name in names:
                assert name.split(".")[0] in sys.stdlib_module_names | {"torch"}, f"{path}:{node.lineno} imports {name}"


@every_variant
def test_full_size_on_meta(entry, variant):
    experiment = contract.load(entry)
    with torch.device("meta"):
        model = experiment.build(experiment.config(variant, 50257))
    assert sum(p.numel() for p in model.parameters()) > 0
    assert all(t.is_meta for t in model.state_dict().values())


@each_variant
@pytest.mark.parametrize("length", [1, 5, LENGTH])
def test_shapes(entry, variant, length):
    _, model = build(entry, variant)
    logits = logits_of(model, random_window()[:3, :length])
    assert logits.shape == (3, length, VOCABULARY) and logits.isfinite().all()


@each_variant
def test_more_than_max_len_tokens_are_refused(entry, variant):
    _, model = build(entry, variant)
    with pytest.raises(ValueError, match=f"max_len.*{LENGTH}"):
        model(torch.zeros(1, LENGTH + 1, dtype=torch.int64))


@each_variant
def test_causality(entry, variant):
    experiment, model = build(entry, variant)
    if not experiment.bound(model.config).causal:
        pytest.skip("says that it looks ahead")
    tokens = random_window(batch=1).repeat(LENGTH, 1)  # row i differs from row 0 at every position from i on
    other = (
        tokens + torch.randint(1, VOCABULARY, tokens.shape, generator=torch.Generator().manual_seed(1))
    ) % VOCABULARY
    rows, positions = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None]
    changed = (positions >= rows) & (rows > 0)
    logits = logits_of(model, torch.where(changed, other, tokens))
    difference = (logits - logits[:1]).abs().amax(-1)
    assert difference[~changed].max() <= 1e-6
    assert difference[changed].max() > 1e-3


@each_variant
def test_initial_loss(entry, variant):
    experiment, model = build(entry, variant)
    loss, _ = objective(experiment, model, random_window(batch=32))
    assert loss.item() == pytest.approx(math.log(VOCABULARY), rel=0.1)


@each_variant
def test_updates_lower_the_loss(entry, variant):
    """Ten, not one: a power law can be so steep at first that a single step of Adam's overshoots."""
    experiment, model = build(entry, variant)
    window = random_window()
    before = objective(experiment, model, window)[0].item()
    for _ in updates(experiment, model, window, 10):
        pass
    assert objective(experiment, model, window)[0].item() < before


@each_variant
def test_gradients_reach_every_parameter(entry, variant):
    experiment, model = build(entry, variant)
    waiting = {name for name, _ in model.named_parameters()}
    for updated in updates(experiment, model, random_window(), 2):  # what is behind a zero gets its first in the second
        waiting -= {name for name, p in updated.named_parameters() if p.grad is not None and p.grad.any()}
    assert not waiting


@each_variant
def test_save_and_load(entry, variant, tmp_path):
    experiment, model = build(entry, variant)
    for _ in updates(experiment, model, random_window(), 1):
        pass
    save_model(model, tmp_path / "model.safetensors")
    _, other = build(entry, variant, seed=1)
    tokens = random_window(1)
    assert not torch.equal(logits_of(model, tokens), logits_of(other, tokens))
    load_model(other, tmp_path / "model.safetensors")
    assert torch.equal(logits_of(model, tokens), logits_of(other, tokens))


@each_variant
def test_bfloat16_autocast(entry, variant):
    experiment, model = build(entry, variant)
    if amp_dtype(torch.device("cpu")) is None and any(isinstance(module, torch.nn.LSTM) for module in model.modules()):
        pytest.skip("torch has no bfloat16 LSTM for this processor, and --amp is float32 here")
    expected, _ = objective(experiment, model, random_window())
    with torch.autocast("cpu", torch.bfloat16):
        loss, trained = objective(experiment, model, random_window())
    trained.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@each_variant
def test_head_of_body_is_forward(entry, variant):
    _, model = build(entry, variant)
    if adapters.fused_head(model) is None:
        pytest.skip("offers no body and head")
    with torch.no_grad():
        hidden, head = adapters.split_output(model.body(random_window()))[0], adapters.fused_head(model)
        assert torch.equal(F.linear(hidden, head.weight, head.bias), logits_of(model, random_window()))


@each_variant
@pytest.mark.parametrize("sizes", [(16,), (1,) * 16, (5, 1, 1, 4, 5), (3, 13)], ids=str)
def test_cached_logits(entry, variant, sizes):
    _, model = build(entry, variant)
    if not hasattr(model, "new_cache"):
        pytest.skip("offers no cache")
    if not contract.load(entry).bound(model.config).causal:
        pytest.skip("looks ahead without a cache, which is another function")
    model.double()  # a power or a quotient near zero makes much of float32's rounding
    tokens, cache = random_window(), model.new_cache(BATCH)
    logits = torch.cat([logits_of(model, part, cache=cache) for part in tokens.split(sizes, dim=1)], dim=1)
    torch.testing.assert_close(logits, logits_of(model, tokens), rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match=f"max_len.*{LENGTH}"):
        logits_of(model, tokens[:, :1], cache=cache)


@each_variant
def test_cached_greedy_text(entry, variant):
    _, model = build(entry, variant)
    if not hasattr(model, "new_cache"):
        pytest.skip("offers no cache")
    if not contract.load(entry).bound(model.config).causal:
        pytest.skip("looks ahead without a cache, which is another function")
    texts = []
    for cache in (None, model.new_cache(BATCH)):
        text = new = random_window()[:, :5]
        while text.size(1) < LENGTH:
            logits = logits_of(model, text) if cache is None else logits_of(model, new, cache=cache)
            new = logits[:, -1:].argmax(-1)
            text = torch.cat([text, new], dim=1)
        texts.append(text)
    assert torch.equal(*texts)


@each_experiment
def test_own_make_batch_scores_every_token_once(entry):
    experiment, _ = build(entry, next(iter(entry.variants)))
    if not hasattr(experiment.module, "make_batch") or not experiment.causal:
        pytest.skip("takes the default, or says that it looks ahead")
    window = random_window()
    inputs, targets, _ = experiment.make_batch(window, BOS, seed=0)
    window = window.repeat_interleave(len(experiment.direction_names) or 1, 0)  # once in each way
    assert inputs.shape == targets.shape == window.shape and inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets.sort(1).values, window.sort(1).values)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert (
        (inputs[:, 0] == BOS).all()
        if not experiment.direction_names
        else len(set(inputs[:, 0].tolist())) == len(experiment.direction_names)
    )
    window = random_window()
    scored = torch.rand(window.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    numbered = torch.arange(window.numel()).view(window.shape).masked_fill(~scored, contract.NOT_SCORED)
    same_inputs, fewer_targets, labels = experiment.make_batch(window, BOS, 0, numbered)
    kept = labels >= 0
    assert torch.equal(same_inputs, inputs)
    assert torch.equal(fewer_targets[kept], window.flatten()[labels[kept]])
    assert (fewer_targets[~kept] == contract.NOT_SCORED).all()
    assert torch.equal(kept.sum(1), scored.sum(1).repeat_interleave(len(experiment.direction_names) or 1))


SHIPPED = [entry for entry in ENTRIES if entry.folder.parent == EXPERIMENTS]
LABELS = ("Idea.", "Change.", "Claim.", "Source.", "Differs from the source.")
HASHES = Path(__file__).parent / "fixtures" / "experiment_hashes.json"
README = EXPERIMENTS / "README.md"


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: entry.name)
def test_docstring_has_the_five_paragraphs(entry):
    """A summary, then a paragraph for each label, in order; none is empty."""
    summary, *paragraphs = re.split(rf"^({'|'.join(map(re.escape, LABELS))}) ", entry.docstring, flags=re.M)
    assert summary.strip() == entry.summary
    assert tuple(paragraphs[::2]) == LABELS
    assert all(len(text.strip()) > 3 for text in paragraphs[1::2])


def test_code_of_shipped_experiments_is_as_it_was():
    """Formatting, comments and docstrings leave a hash as it is. All else ends runs, so it is done on purpose."""
    now = {entry.name: entry.code_hash for entry in SHIPPED}
    stored = json.loads(HASHES.read_text(encoding="utf-8"))
    changed = sorted(name for name in now.keys() | stored.keys() if now.get(name) != stored.get(name))
    if os.environ.get("UPDATE_EXPERIMENT_HASHES") == "1":
        HASHES.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        pytest.skip(f"stored anew: {', '.join(changed) or 'none has changed'}")
    assert changed == [], (
        f"the code of {', '.join(changed)} does something else now, and runs of it end. If that is meant: "
        "UPDATE_EXPERIMENT_HASHES=1 python -m pytest tests/test_experiments.py -k code_of_shipped"
    )


def test_table_of_the_readme_is_what_the_command_prints(capsys, monkeypatch, tmp_path):
    from lmplay.cli.trainer import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LMPLAY_EXPERIMENTS", raising=False)
    assert main(["--exp", "list", "--markdown"]) == 0
    table = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    assert table == capsys.readouterr().out.splitlines(), "lmp_trainer --exp list --markdown prints another table"


def test_the_contract_fits_on_two_screens():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 110 and max(map(len, lines)) <= 120


@pytest.mark.parametrize("name, most", [("reverse_time", 30), ("both_ways", 30)])
def test_the_smallest_ideas_have_a_small_diff(name, most):
    difference = code_diff.diff(registry.find(name)[0], registry.find("gpt2ish")[0]).splitlines()
    assert len(difference) <= most
    assert any(line.startswith("+def make_batch") for line in difference)


def test_a_copy_that_adds_an_embedding_trains_it(tmp_path, monkeypatch):
    """gpt2ish names one exception in param_groups, and so does its copy: the new table is in the default groups."""
    from lmplay.train.optimizers import parameter_groups

    folder = tmp_path / "mine" / "two_tables"
    shutil.copytree(EXPERIMENTS / "gpt2ish", folder)
    source = (folder / "model.py").read_text(encoding="utf-8")
    positions = "        self.positions_embedding = nn.Embedding(config.max_len, config.n_embd)\n"
    assert positions in source
    other = positions.replace("positions_embedding", "other_embedding")
    (folder / "model.py").write_text(source.replace(positions, positions + other), encoding="utf-8")
    monkeypatch.setenv("LMPLAY_EXPERIMENTS", str(tmp_path / "mine"))
    _, model = build(registry.find("two_tables")[0], "tiny_fast_embedding")
    groups = parameter_groups(model, 0.01, 0.1)
    of = {id(p): group for group in groups for p in group["params"]}
    assert sorted(of) == sorted(map(id, model.parameters()))
    assert of[id(model.other_embedding.weight)] is of[id(model.positions_embedding.weight)]
    assert "lr" not in of[id(model.other_embedding.weight)]
    assert of[id(model.tokens_embedding.weight)]["lr"] == pytest.approx(0.1)


def test_a_plain_copy_is_a_new_experiment(tmp_path, monkeypatch):
    shutil.copytree(EXPERIMENTS / "gpt2ish", tmp_path / "mine" / "my_idea")
    monkeypatch.setenv("LMPLAY_EXPERIMENTS", str(tmp_path / "mine"))
    entry, variant = registry.find("my-idea:tiny")
    assert (entry.name, variant) == ("my_idea", "tiny")
    assert registry.find("my_idea")[1] == next(iter(entry.variants))
    experiment, copy = build(entry, variant)
    original = build(registry.find("gpt2ish")[0], variant)[1]
    assert Path(experiment.module.__file__).parent == (tmp_path / "mine" / "my_idea").resolve()
    assert type(copy) is not type(original)
    assert torch.equal(logits_of(copy, random_window()), logits_of(original, random_window()))
