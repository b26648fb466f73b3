"""A recipe of a paper (PLDR-LLM, arXiv 2502.13502) as one command, against the same training written out in torch."""

import math

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from lmplay import contract, registry
from lmplay.data.plans import load_plan
from lmplay.data.prepare import prepare
from support.results import unsealed

UPDATES, BATCH, CONTEXT, LR, WARMUP, CLIP = 8, 4, 16, 5e-3, 2, 2e-3
RECIPE = [
    "--exp",
    "gpt2ish",
    "--set",
    "n_layer=1",
    "--set",
    "n_embd=16",
    "--set",
    "n_head=2",
    "--context-len",
    CONTEXT,
    "--device",
    "cpu",
    "--batch-size",
    BATCH,
    "--mini-batch-size",
    3,
    "--max-steps",
    UPDATES,
    "--no-shuffle",
    "--optimizer",
    "adamw",
    "--lr",
    LR,
    "--lr-schedule",
    "cosine",
    "--final-lr-fraction",
    0.1,
    "--warmup-steps",
    WARMUP,
    "--warmup-from",
    0,
    "--beta1",
    0.9,
    "--beta2",
    0.95,
    "--eps",
    1e-5,
    "--weight-decay",
    0.1,
    "--decay-all",
    "--grad-clip",
    0,
    "--clip-value",
    CLIP,
    "--seed",
    1234,
]


def test_the_command_is_the_recipe(trainer, plans, work):
    done = trainer(*RECIPE, "--training-plan", plans["plain"], "--run-name", "run")
    assert done.status == 0, done.err

    plan = load_plan(plans["plain"])
    data = prepare(plan, progress=False)
    experiment = contract.load(registry.find("gpt2ish")[0])
    torch.manual_seed(1234)
    model = experiment.build(
        experiment.config("6l", data.tokenizer.vocab_size, CONTEXT, n_layer=1, n_embd=16, n_head=2)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1)
    stream = torch.from_numpy(data.train["one"].tokens(0, UPDATES * BATCH * CONTEXT)).view(UPDATES, BATCH, CONTEXT)
    clipped = 0
    for update, window in enumerate(stream):
        rate = (
            update / WARMUP
            if update <= WARMUP
            else 0.1 + 0.9 * (1 + math.cos(math.pi * (update - WARMUP) / (UPDATES - WARMUP))) / 2
        )
        optimizer.param_groups[0]["lr"] = LR * rate
        inputs = torch.cat([torch.full((BATCH, 1), data.tokenizer.eot), window[:, :-1]], dim=1)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs).flatten(0, 1), window.flatten()).backward()
        clipped += sum(int((p.grad.abs() > CLIP).sum()) for p in model.parameters())
        torch.nn.utils.clip_grad_value_(model.parameters(), CLIP)
        optimizer.step()
    assert clipped > 100
    found = load_file(work / "gpt_out" / "run" / "checkpoints" / f"step_{UPDATES:08d}" / "model.safetensors")
    for name, wanted in model.state_dict().items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=2e-6, msg=lambda text: f"{name}: {text}")


def test_the_recipe_is_in_the_name_of_the_run(trainer, plans, work):
    done = trainer(*RECIPE, "--training-plan", plans["plain"], "--dry-run")
    assert done.status == 0, done.err
    for part in ("shuffle=False", "warmup-from=0", "final-lr-fraction=0.1", "decay-all=True"):
        assert f"_{part}" in done.err
    # what the name has no room for is told apart, too
    other = trainer(*RECIPE, "--training-plan", plans["plain"], "--dry-run", "--clip-value", 0.5)
    names = [process.err.split("-> ")[1].splitlines()[0] for process in (done, other)]
    assert (
        names[0] != names[1]
        and names[0].rpartition("_")[0] == names[1].rpartition("_")[0]
        and len(names[0]) == 200 + len("gpt_out/")
    )


def test_a_run_from_before_these_settings_is_continued(trainer, plans, work):
    """run.json and the checkpoint of a run that was made when none of these settings was there."""
    import json

    flags = [*RECIPE[:16], "--training-plan", plans["plain"], "--run-name", "old", "--lr-schedule", "constant"]
    assert trainer(*flags, "--max-steps", 3).status == 0
    file = work / "gpt_out" / "old" / "run.json"
    meta = json.loads(file.read_text())
    for name in (
        "shuffle",
        "warmup_from",
        "restart_steps",
        "restart_shrink",
        "decay_all",
        "clip_value",
        "extra_steps",
        "backup_interval",
    ):
        del meta["settings"][name]
    file.write_text(json.dumps(unsealed(meta)))
    longer = trainer(*flags, "--max-steps", 5)
    assert longer.status == 0 and "continuing after step 3" in longer.err and "finished after 5 steps" in longer.err
    refused = trainer(*flags, "--max-steps", 7, "--no-shuffle")
    assert "--shuffle was True, now False" in refused.complaint
