"""What only a GPU can show: every experiment, both mixed precisions, tables in the CPU's memory, whole runs.

Skipped where torch has no CUDA device. `python -m pytest tests/test_cuda.py -n 8` on a machine that has one.
"""

import csv
import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lmplay import contract, registry
from lmplay.cli import cleanmodel, generator
from lmplay.model import adapters
from lmplay.model.cost import activation_bytes, derived_bytes
from lmplay.model.loss import score
from lmplay.runs.settings import Settings
from lmplay.train.loop import Trainer
from lmplay.train.setup import set_up
from support.small import TINY
from support.small_models import BATCH, LENGTH, build, each_variant, logits_of, objective, random_window
from support.trainer_process import At

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no CUDA device here"),
]
ON_GPU = [*TINY[:-1], "cuda"]


@pytest.fixture(autouse=True)
def whole_products():
    """float32 products in float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def for_training(model, device):
    """In training mode, for cuDNN has no backward pass outside of it, but without dropout."""
    for module in model.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.to(device)


def loss_and_gradients(experiment, model, device):
    for_training(model, device).zero_grad()
    window = random_window()
    inputs, targets, _ = experiment.make_batch(window, 96, seed=0)
    result = score(model, inputs.to(device), targets.to(device))
    (result.loss_sum / targets.ne(contract.NOT_SCORED).sum() + result.extra.get("loss", 0)).backward()
    gradients = {
        name: p.grad.to_dense() if p.grad.is_sparse else p.grad
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    return result.losses.cpu(), {
        name: g.clone().cpu() for name, g in gradients.items()
    }  # .to() moves what a parameter holds


@each_variant
def test_the_gpu_computes_what_the_cpu_computes(entry, variant):
    """Losses and gradients in float64, head and cross-entropy fused as in training."""
    experiment, model = build(entry, variant)
    model.double()
    losses, gradients = loss_and_gradients(experiment, model, "cpu")
    found, of_gpu = loss_and_gradients(experiment, model, "cuda")
    torch.testing.assert_close(found, losses, rtol=1e-9, atol=1e-9)
    assert gradients.keys() == of_gpu.keys() and gradients
    for name, gradient in gradients.items():
        torch.testing.assert_close(of_gpu[name], gradient, rtol=1e-6, atol=1e-9, msg=lambda text: f"{name}: {text}")


@each_variant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision(entry, variant, dtype):
    experiment, model = build(entry, variant)
    expected, _ = objective(experiment, model, random_window())
    for_training(model, "cuda")
    inputs, targets, _ = experiment.make_batch(random_window(), 96, seed=0)
    for scale in (
        [2.0**k for k in range(10, -11, -1)] if dtype is torch.float16 else [1.0]
    ):  # the trainer looks for one, too
        model.zero_grad()
        with torch.autocast("cuda", dtype):
            result = score(model, inputs.to("cuda"), targets.to("cuda"))
        loss = result.loss_sum / targets.ne(contract.NOT_SCORED).sum()
        (scale * (loss + result.extra.get("loss", 0))).backward()
        gradients = [
            p.grad.coalesce().values() if p.grad.is_sparse else p.grad for p in model.parameters() if p.grad is not None
        ]
        if finite := all(g.isfinite().all() for g in gradients):
            break
    assert finite and loss.item() == pytest.approx(expected.item(), rel=0.01)


@each_variant
def test_cached_logits(entry, variant):
    experiment, model = build(entry, variant)
    if not hasattr(model, "new_cache") or not experiment.causal:
        pytest.skip("no cache, or another function with it")
    tokens = random_window().to("cuda")
    model.to("cuda", torch.float64)
    cache = model.new_cache(BATCH)
    logits = torch.cat([logits_of(model, part, cache=cache) for part in tokens.split((5, 1, 1, 4, 5), dim=1)], dim=1)
    assert logits.is_cuda and logits.size(1) == LENGTH
    torch.testing.assert_close(logits, logits_of(model, tokens), rtol=0, atol=1e-7)


def losses(run: Path, column="loss") -> list[float]:
    with open(run / "train.csv", newline="", encoding="utf-8") as file:
        return [float(row[column]) for row in csv.DictReader(file)]


RUN = ["--context-len", "16", "--batch-size", "4", "--mini-batch-size", "3", "--warmup-steps", "2"]
SMALL = ["--set", "n_layer=1", "--set", "n_embd=16", "--set", "n_head=2"]


@pytest.mark.parametrize(
    "more",
    [
        ("--exp", "gpt2ish", *SMALL),
        ("--exp", "gpt2ish", *SMALL, "--optimizer", "muon"),
        ("--exp", "both_ways", *SMALL),
        ("--exp", "bert", *SMALL),
        ("--exp", "gru:tiny", "--set", "n_hidden=32"),
        ("--exp", "unified_embedding", *SMALL, "--set", "table_on_cpu=true"),
        ("--exp", "sacrificial_all:tiny_norms", *SMALL),
    ],
    ids=" ".join,
)
def test_a_run_is_the_cpu_s(trainer, plans, work, more):
    """The same data, the same initial values, the same updates: losses part only as rounding does."""
    for device in ("cpu", "cuda"):
        run = trainer(
            *RUN,
            "--training-plan",
            plans["plain"],
            "--max-steps",
            "20",
            "--validation-interval",
            "10",
            *more,
            "--device",
            device,
            "--run-name",
            device,
        )
        assert run.status == 0, run.err
    assert losses(Path("gpt_out/cuda")) == pytest.approx(losses(Path("gpt_out/cpu")), rel=1e-4)
    meta = json.loads(Path("gpt_out/cuda/run.json").read_text())
    assert meta["device"]["type"] == "cuda" and meta["device"]["name"] == torch.cuda.get_device_name()
    assert 0 < meta["progress"]["peak_memory_bytes"] < 2**30


@pytest.mark.parametrize(
    "more", [(), ("--amp",), ("--exp", "unified_embedding", "--set", "table_on_cpu=true")], ids=str
)
def test_killed_and_continued(trainer, plans, work, more):
    """No promise to the bit on a GPU, whose sums may come in another order."""
    flags = [
        *ON_GPU,
        *more,
        "--training-plan",
        plans["plain"],
        "--set",
        "dropout=0.1",
        "--max-steps",
        "20",
        "--save-interval",
        "4",
    ]
    assert trainer(*flags, "--run-name", "whole").status == 0
    killed = trainer(
        *flags, "--run-name", "parted", at=At(event="os.rename", path="step_00000012", signals=(signal.SIGKILL,))
    )
    assert killed.status == -signal.SIGKILL
    assert trainer(*flags, "--run-name", "parted").status == 0
    whole, parted = losses(Path("gpt_out/whole")), losses(Path("gpt_out/parted"))
    assert len(parted) == 20 and parted == pytest.approx(whole, rel=1e-3)
    weights = [load_file(f"gpt_out/{name}/checkpoints/step_00000020/model.safetensors") for name in ("whole", "parted")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0.02, atol=2e-3)


def test_float16_where_a_gpu_has_no_bfloat16(plans, work, monkeypatch):
    """An older GPU, played by this one: the loss is scaled, and the scale goes on after a checkpoint."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: False)
    settings = dict(
        exp="gpt2ish",
        set=("n_layer=1", "n_embd=16", "n_head=2"),
        context_len=16,
        batch_size=4,
        warmup_steps=2,
        device="cuda",
        amp=True,
        training_plan=plans["plain"],
        run_name="run",
    )
    found = []
    for max_steps in (20, 40):  # 40: continued where the schedule allows it
        trainer = Trainer(set_up(Settings(**settings, max_steps=max_steps, lr_schedule="constant")))
        assert trainer.scaler.is_enabled() and trainer.train() == "finished"
        found.append(trainer.scaler.get_scale())
        trainer.state.lock.release()
        state = json.loads(Path(f"gpt_out/run/checkpoints/step_{max_steps:08d}/state.json").read_text())
        assert state["scaler"]["scale"] == found[-1]
    values = losses(Path("gpt_out/run"))
    assert len(values) == 40 and all(scale > 0 for scale in found) and sum(values[-5:]) < sum(values[:5])


def test_the_table_stays_in_the_cpus_memory(plans, work):
    settings = Settings(
        exp="unified_embedding",
        set=("n_layer=1", "n_embd=16", "n_head=2", "table_on_cpu=true"),
        context_len=16,
        batch_size=4,
        device="cuda",
        amp=True,
        training_plan=plans["plain"],
        max_steps=5,
        run_name="run",
    )
    trainer = Trainer(set_up(settings))
    table = trainer.model.tokens_embedding.table.weight
    before = table.detach().clone()
    assert trainer.train() == "finished"
    assert table.device.type == "cpu" and trainer.model.head.weight.is_cuda
    assert not torch.equal(table, before)
    states = [state for optimizer in trainer.optimizers for p, state in optimizer.state.items() if p is table]
    assert len(states) == 1 and states[0]["exp_avg"].device.type == "cpu"


@pytest.mark.parametrize(
    "spec, fields",
    [
        ("gpt2ish:6l", {"n_layer": 3}),
        ("llama2:6l", {"n_layer": 3}),
        ("gru:3l", {}),
        ("lstm:3l", {"n_layer": 2}),
        ("sacrificial_all", {"n_layer": 2, "multiple": 4}),
        ("pldr:causal", {"n_layer": 1}),
    ],
)
def test_memory_is_what_was_counted(spec, fields):
    """By which --mini-batch-size is chosen: what so many sequences take is no more than a third beyond the count."""
    entry, variant = registry.find(spec)
    experiment = contract.load(entry)
    config = experiment.config(
        variant, 8192, 512, **{name: value for name, value in fields.items() if hasattr(experiment.Config(), name)}
    )
    experiment, counted = experiment.bound(config), activation_bytes(experiment, config, amp=True)
    model = experiment.build(config).to("cuda")

    def peak(n):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        tokens = torch.randint(8192, (n, 512), device="cuda")
        with adapters.derived_once(model), torch.autocast("cuda", torch.bfloat16):
            result = score(model, tokens, tokens)
            (result.loss_sum / tokens.numel() + result.extra.get("loss", 0)).backward()
        model.zero_grad()
        return torch.cuda.max_memory_allocated() - before

    peak(4)  # a GPU's libraries take their workspaces once
    assert (peak(24) - peak(8)) / 16 <= 1.33 * counted
    assert derived_bytes(experiment, config, amp=True) >= 0


def test_compiled(trainer, plans, work):
    flags = [*ON_GPU, "--training-plan", plans["plain"], "--max-steps", "10"]
    for name, more in (("plain", ()), ("compiled", ("--compile",))):
        run = trainer(*flags, *more, "--run-name", name)
        assert run.status == 0, run.err
    assert losses(Path("gpt_out/compiled")) == pytest.approx(losses(Path("gpt_out/plain")), rel=1e-4)


def test_text_and_folding(trainer, plans, work, monkeypatch, capsys):
    """A run of the GPU is folded there, and both write the same greedy text on either device."""
    run = trainer(
        *ON_GPU,
        "--exp",
        "unified_embedding",
        "--training-plan",
        plans["plain"],
        "--max-steps",
        "10",
        "--run-name",
        "wide",
    )
    assert run.status == 0, run.err

    def call(command, *flags):
        capsys.readouterr()
        assert command.main([*flags]) == 0
        return capsys.readouterr().out

    call(cleanmodel, "wide", "-o", "gpt_out/small", "--device", "cuda")
    texts = {
        (name, device): call(generator, "--run", name, "--device", device, "--no-do-sample", "--max-len", "10", "the ")
        for name in ("wide", "small")
        for device in ("cpu", "cuda")
    }
    assert len(set(text.split("\n", 1)[-1] for text in texts.values())) == 1
