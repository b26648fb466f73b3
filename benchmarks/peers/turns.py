"""One side of `against_peers.py`, in a process of its own: takes training steps when it is told to.

    python benchmarks/peers/turns.py NAME SHAPE

NAME: lmplay, plain, litgpt or transformers, then " compiled" or nothing. SHAPE: JSON with vocabulary, context, rows,
layers, heads, width, hidden, model (gpt2 or llama2), amp and device. It prints {"loss": of the first step}; then reads
a number of steps from a line of its input, takes them, and prints their seconds; until its input ends.

All sides train the same shape with AdamW (fused where there is one), gradients clipped to 1, on the same four batches
of random tokens. litgpt's model knows no learned positions, so its GPT-2 has rotary ones.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WARM_UPS = 3


def main() -> None:
    name, shape = sys.argv[1], json.loads(sys.argv[2])
    library, _, compiled = name.partition(" ")
    if library == "lmplay":  # sets the allocator up before torch is imported
        from lmplay.model.device import prepare_process

        prepare_process()
    import torch

    device = torch.device(shape["device"])
    LIBRARIES[library](shape, device, bool(compiled), Told(device))


class Told:
    """Runs steps as the lines of the input say."""

    def __init__(self, device: Any):
        self.device, self.steps, self.left, self.began = device, 0, WARM_UPS, 0.0

    def wait(self) -> None:
        """Wait for the device."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def after_step(self, loss: Callable[[], float]) -> bool:
        """Note that a step was taken; after those of this turn answer and wait for the next. False: it was the last."""
        self.steps += 1
        if self.steps == 1:
            print(json.dumps({"loss": loss()}), flush=True)
        self.left -= 1
        if self.left:
            return True
        self.wait()
        if self.began:
            print(json.dumps({"seconds": time.perf_counter() - self.began}), flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            return False
        self.left, self.began = int(line), time.perf_counter()
        return True

    def run(self, step: Callable[[int], Any]) -> None:
        """Take steps; `step` takes the number of a step and returns its loss."""
        while True:
            loss = step(self.steps)
            if not self.after_step(lambda: float(loss)):  # noqa: B023, it is called at once
                return


def batches(shape: dict[str, Any], device: Any) -> list[tuple[Any, Any]]:
    """Return four batches of random tokens: inputs and targets, (rows, context) each."""
    import torch

    found = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        window = torch.randint(shape["vocabulary"] - 1, (shape["rows"], shape["context"] + 1), generator=generator)
        found.append((window[:, :-1].contiguous().to(device), window[:, 1:].contiguous().to(device)))
    return found


def autocast(shape: dict[str, Any], device: Any) -> Any:
    """Return the context of the forward pass."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=shape["amp"])


def lmplay(shape: dict[str, Any], device: Any, compiled: bool, told: Told) -> None:
    """Take the steps of lmp_trainer: head and loss as one, its allocator; on a GPU as a CUDA graph."""
    import functools

    import torch

    from lmplay import contract, registry
    from lmplay.model.device import precision
    from lmplay.runs.settings import Settings
    from lmplay.train.batches import Batch
    from lmplay.train.build import compile_model
    from lmplay.train.captured_step import CapturedStep
    from lmplay.train.optimizers import make_optimizers, set_rates
    from lmplay.train.step import EagerStep, Step, read_figures

    names = {"n_layer": shape["layers"], "n_head": shape["heads"], "n_embd": shape["width"]}
    if shape["model"] == "llama2":
        names["hidden_multiple"] = 64
    entry, variant = registry.find({"gpt2": "gpt2ish", "llama2": "llama2"}[shape["model"]])
    experiment = contract.load(entry)
    config = experiment.config(variant, shape["vocabulary"], shape["context"], **names)
    torch.manual_seed(0)
    model = experiment.bound(config).build(config).to(device).train()
    eager = EagerStep(
        model=model,
        optimizers=make_optimizers(model, "adamw", 1e-3, 0.1, (0.9, 0.95), 1e-8),
        parameters=[p for p in model.parameters() if p.requires_grad],
        settings=Settings(batch_size=shape["rows"], amp=shape["amp"], grad_clip=1.0),
        device=device,
        precision=functools.partial(precision, device, shape["amp"], shape["context"]),
        scaler=torch.amp.GradScaler(device.type, enabled=False),
    )
    if compiled:
        compile_model(model)
    n = shape["rows"] * shape["context"]
    given = [Batch(x, y, n, float(n)) for x, y in batches(shape, torch.device("cpu"))]
    captured = CapturedStep(eager, shape["rows"]) if device.type == "cuda" else None

    def step(number: int) -> Any:
        batch = given[number % 4]
        if captured is not None:
            captured.set_rates(1.0)
            figures = captured(batch, number)
        else:
            set_rates(eager.optimizers, 1.0)
            figures = eager.change(batch, eager.gradients(batch, number, shape["rows"]))
        return _Loss(lambda: read_figures([Step({}, 0, n, 1.0, figures)], device)[0]["loss_sum"] / n)

    told.run(step)


class _Loss:
    """A loss that is read only when it is asked for."""

    def __init__(self, read: Callable[[], float]):
        self.read = read

    def __float__(self) -> float:
        return self.read()


def plain(shape: dict[str, Any], device: Any, compiled: bool, told: Told) -> None:
    """Take nanoGPT's step written plainly (plain_gpt.py)."""
    import torch
    from plain_gpt import PlainGPT, PlainStep

    torch.manual_seed(0)
    model = PlainGPT(shape["vocabulary"], shape["context"], shape["layers"], shape["heads"], shape["width"])
    taken, given = PlainStep(model, device, shape["amp"], compiled), batches(shape, device)
    told.run(lambda number: taken(*given[number % 4]))


def litgpt(shape: dict[str, Any], device: Any, compiled: bool, told: Told) -> None:
    """Take the step of `litgpt pretrain`: its model, its loss, Lightning's Fabric."""
    import lightning
    import torch
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy

    kinds: dict[str, dict[str, Any]] = {
        "gpt2": {"norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP", "bias": True},
        "llama2": {"norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "bias": False},
    }
    config = Config(
        block_size=shape["context"],
        vocab_size=shape["vocabulary"],
        padded_vocab_size=shape["vocabulary"],
        n_layer=shape["layers"],
        n_head=shape["heads"],
        n_embd=shape["width"],
        intermediate_size=shape["hidden"],
        rotary_percentage=1.0,
        parallel_residual=False,
        **kinds[shape["model"]],
    )
    fabric = lightning.Fabric(accelerator=device.type, devices=1, precision="bf16-mixed" if shape["amp"] else "32-true")
    torch.manual_seed(0)
    with fabric.init_module():
        model: Any = GPT(config)
        model.max_seq_length = shape["context"]
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            torch.nn.init.normal_(module.weight, std=0.02)
    model = fabric.setup(torch.compile(model) if compiled else model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    optimizer = fabric.setup_optimizers(optimizer)
    given = batches(shape, fabric.device)

    def step(number: int) -> Any:
        inputs, targets = given[number % 4]
        loss = chunked_cross_entropy(model(inputs), targets)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    told.run(step)


def transformers(shape: dict[str, Any], device: Any, compiled: bool, told: Told) -> None:
    """Train GPT2LMHeadModel or LlamaForCausalLM under the Trainer of transformers; a callback waits between turns."""
    import tempfile

    import torch
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": shape["vocabulary"], "tie_word_embeddings": False, "use_cache": False}
    model: Any
    if shape["model"] == "gpt2":
        more = {"n_positions": shape["context"], "n_layer": shape["layers"], "n_head": shape["heads"]}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        model = GPT2LMHeadModel(GPT2Config(n_embd=shape["width"], **more, **dropout, **common))
    else:
        more = {"num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"]}
        more |= {"max_position_embeddings": shape["context"], "intermediate_size": shape["hidden"]}
        model = LlamaForCausalLM(LlamaConfig(hidden_size=shape["width"], **more, **common))
    given = batches(shape, torch.device("cpu"))
    losses: list[Any] = []

    class Rows(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            while True:
                for inputs, _ in given:
                    for row in inputs:
                        yield {"input_ids": row, "labels": row}

    class Waits(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if not told.after_step(lambda: float(losses[0])):
                control.should_training_stop = True

    class Recorded(Trainer):
        def compute_loss(self, *args: Any, **more: Any) -> Any:
            found = super().compute_loss(*args, **more)
            if not losses:
                losses.append((found[0] if isinstance(found, tuple) else found).detach())
            return found

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=shape["rows"],
            max_steps=10**7,
            learning_rate=1e-3,
            adam_beta2=0.95,
            weight_decay=0.1,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            bf16=shape["amp"],
            use_cpu=device.type == "cpu",
            torch_compile=compiled,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Recorded(model=model, args=arguments, train_dataset=Rows(), callbacks=[Waits()]).train()


LIBRARIES: dict[str, Callable[[dict[str, Any], Any, bool, Told], None]] = {
    "lmplay": lmplay,
    "plain": plain,
    "litgpt": litgpt,
    "transformers": transformers,
}

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    main()
