"""What a run computes and writes, against a textbook loop in float64 over the same windows."""

import csv
import math

import numpy as np
import pytest
import torch

from lmplay.runs.settings import Settings
from lmplay.train.loop import Trainer
from lmplay.train.setup import set_up

STEPS, BATCH, CONTEXT, LR, CLIP, WARMUP = 12, 5, 16, 0.02, 0.5, 3


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def losses_of(model, tokens, eot):
    """Loss of each token (B, T) in nats, and whether it is the likeliest."""
    inputs = torch.cat([torch.full((len(tokens), 1), eot), tokens[:, :-1]], dim=1)
    logits = model(inputs)
    return -logits.log_softmax(-1).gather(2, tokens[..., None]).squeeze(2), logits.argmax(-1) == tokens


@pytest.fixture(scope="module", params=["plain", "answers"])
def run(request, plans, tmp_path_factory):
    """A finished run, and what the textbook loop has found for each of its steps."""
    out = tmp_path_factory.mktemp("runs")
    settings = Settings(
        set=("n_layer=1", "n_embd=16", "n_head=2"),
        training_plan=plans[request.param],
        context_len=CONTEXT,
        device="cpu",
        batch_size=BATCH,
        mini_batch_size=2,
        max_steps=STEPS,
        lr=LR,
        grad_clip=CLIP,
        warmup_steps=WARMUP,
        lr_schedule="linear",
        weight_decay=0.2,
        beta1=0.8,
        beta2=0.9,
        validation_interval=5,
        validation_tokens=0,
        out=str(out),
    )
    trainer = Trainer(set_up(settings))
    torch.manual_seed(settings.seed)
    model = trainer.setup.experiment.build(trainer.setup.config)
    model.load_state_dict(trainer.model.state_dict())
    model.double()
    assert trainer.train() == "finished"

    setup, eot = trainer.setup, trainer.setup.data.tokenizer.eot
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "embedding" not in n)]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}], betas=(0.8, 0.9), eps=1e-8
    )
    found, validations = [], {}
    for step in range(STEPS + 1):
        if step and (step % 5 == 0 or step == STEPS):
            validations[step] = validate(model, setup, eot)
        if step == STEPS:
            break
        windows = setup.phases[0].order.windows(step * BATCH, BATCH)
        tokens = torch.from_numpy(windows.tokens)
        scored = (
            torch.ones_like(tokens, dtype=torch.bool) if windows.scored is None else torch.from_numpy(windows.scored)
        )
        rate = LR * ((step + 1) / WARMUP if step < WARMUP else 1 - (step - WARMUP) / (STEPS - WARMUP))
        found.append({"learning_rate": rate, "scored": int(scored.sum()), "bytes": windows.bytes.sum()})
        if not scored.any():  # nothing to learn from
            continue
        losses, correct = losses_of(model, tokens, eot)
        loss = losses[scored].mean()
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
        for p in model.parameters():
            p.grad *= min(1.0, CLIP / norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        found[-1] |= {"loss": loss.item(), "accuracy": correct[scored].double().mean().item(), "gradient_norm": norm}
    return trainer, model, found, validations


def validate(model, setup, eot):
    """Summed loss and scored tokens of each validation document, of the stream cut into windows."""
    (store,) = setup.data.validation.values()
    losses, n = np.zeros(store.n_documents), np.zeros(store.n_documents)
    with torch.no_grad():
        for start in range(0, store.n_tokens, CONTEXT):
            stop = min(start + CONTEXT, store.n_tokens)
            of_token = losses_of(model, torch.from_numpy(store.tokens(start, stop))[None], eot)[0][0].numpy()
            scored = store.scored(start, stop)
            for k in range(stop - start):
                if scored is None or scored[k]:
                    document = sum(1 for offset in store.document_offsets[1:] if offset <= start + k)
                    losses[document] += of_token[k]
                    n[document] += 1
    return losses, n, store.n_bytes


def test_rows_of_train_csv(run):
    trainer, _, found, _ = run
    rows = read(trainer.setup.folder / "train.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    tokens = n_bytes = 0
    for number, (row, wanted) in enumerate(zip(rows, found), 1):
        tokens, n_bytes = tokens + wanted["scored"], n_bytes + wanted["bytes"]
        assert float(row["learning_rate"]) == pytest.approx(wanted["learning_rate"], rel=1e-7)
        if not wanted["scored"]:
            assert row["loss"] == row["accuracy"] == row["bits_per_byte"] == ""
        else:
            for name in ("loss", "accuracy", "gradient_norm"):
                assert float(row[name]) == pytest.approx(wanted[name], rel=2e-5), (number, name)
            assert float(row["bits_per_byte"]) == pytest.approx(
                wanted["loss"] * wanted["scored"] / math.log(2) / wanted["bytes"], rel=2e-5
            )
        assert int(row["samples"]) == number * BATCH and int(row["tokens"]) == tokens
        assert int(row["bytes"]) == pytest.approx(n_bytes, abs=1)
        assert float(row["flops"]) == pytest.approx(
            number * BATCH * CONTEXT * trainer.setup.cost.flops_per_token, rel=1e-7
        )
    seconds = [float(row["seconds"]) for row in rows]
    assert 0 < seconds[0] and seconds == sorted(seconds)
    for row, elapsed, wanted in zip(rows[1:], np.diff(seconds), found[1:]):
        assert float(row["tokens_per_second"]) * elapsed == pytest.approx(
            wanted["scored"], rel=0.2
        )  # seconds are rounded
        of_a_step = BATCH * CONTEXT * trainer.setup.cost.flops_per_token
        peak = trainer.run.info["device"]["peak_flops"]
        assert float(row["mfu"]) * peak * elapsed == pytest.approx(of_a_step, rel=0.2)


def test_final_weights(run):
    trainer, model, _, _ = run
    for (name, ours), theirs in zip(trainer.model.named_parameters(), model.parameters()):
        if name.endswith(
            "qkv.bias"
        ):  # the gradient of the keys' bias is zero except for rounding, which Adam makes large
            width = len(theirs) // 3
            ours, theirs = (torch.cat([p[:width], p[2 * width :]]) for p in (ours, theirs))
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-5, msg=name)


def test_rows_of_validate_csv_and_losses_of_documents(run):
    trainer, _, _, validations = run
    rows = read(trainer.setup.folder / "validate.csv")
    assert [int(row["step"]) for row in rows] == list(validations) == [5, 10, 12]
    for row, (losses, n, n_bytes) in zip(rows, validations.values()):
        assert float(row["loss"]) == pytest.approx(losses.sum() / n.sum(), rel=2e-5)
        assert float(row["bits_per_byte"]) == pytest.approx(losses.sum() / math.log(2) / n_bytes, rel=2e-5)
        assert int(row["validation_tokens"]) == n.sum() and int(row["validation_documents"]) == len(n)
        name = f"{row['plan_step']}_{int(row['step']):08d}.npy"
        saved = np.load(trainer.setup.folder / "validate_documents" / name)
        assert saved.dtype == np.float64 and saved == pytest.approx(losses, rel=5e-5)
    assert len(losses) > 2


def test_state_of_the_run(run):
    trainer, _, found, validations = run
    progress = trainer.run.info["progress"]
    assert progress["step"] == STEPS and progress["tokens"] == sum(row["scored"] for row in found)
    assert progress["final"]["loss"] == pytest.approx([row["loss"] for row in found if row["scored"]][-1], rel=2e-5)
    losses, n, _ = validations[STEPS]
    assert progress["validation_loss"] == pytest.approx(losses.sum() / n.sum(), rel=2e-5)
