"""Writes run folders in the format of the trainer, with curves that are known."""

import json

import numpy as np

TRAIN = [
    "plan_step",
    "step",
    "samples",
    "tokens",
    "bytes",
    "flops",
    "seconds",
    "loss",
    "accuracy",
    "bits_per_byte",
    "learning_rate",
    "gradient_norm",
    "tokens_per_second",
]
VALIDATE = [*TRAIN[:10], "validation_tokens", "validation_documents"]


def fall(tokens, floor=3.0):
    """A loss that falls as those of language models do."""
    return floor + 30 * (tokens + 2e4) ** -0.15


def make_run(
    folder,
    *,
    experiment="gpt2ish",
    variant="tiny",
    steps=300,
    tokens_a_step=12_800,
    every=None,
    loss=fall,
    noise=0.0,
    seed=0,
    tokenizer="aaaa",
    data_hash="dddd",
    plan="quick",
    plan_steps=("main",),
    seconds_a_step=0.2,
    columns=None,
    causal=True,
    **more,
):
    """`loss` is a function of tokens; `noise` depends on the step alone, so that runs share it; `columns` name ->
    function of tokens; `more` goes into run.json (dictionaries are merged).
    """
    folder.mkdir(parents=True)
    datasets = {
        "python": {part: {"hash": "h", "tokens": 10, "documents": 3, "bytes": 30} for part in ("train", "validation")}
    }
    info = {
        "format": 1,
        "run": folder.name,
        "status": "finished",
        "experiment": {"name": experiment, "variant": variant, "causal": causal},
        "config": {"n_layer": 4},
        "settings": {"seed": seed, "lr": 0.001},
        "plan": {"name": plan, "hash": plan},
        "tokenizer": {"spec": "bytes", "fingerprint": tokenizer},
        "data": {"hash": data_hash + tokenizer, "datasets": datasets},
        "parameters": {"total": 3_456_789},
        "device": {"name": "a processor"},
    }
    for key, value in more.items():
        info[key] = {**info[key], **value} if isinstance(value, dict) and isinstance(info.get(key), dict) else value
    (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
    every = every or max(1, steps // 10)
    write_table(
        folder / "train.csv",
        TRAIN,
        np.arange(1, steps + 1),
        steps,
        loss,
        noise,
        tokens_a_step,
        seconds_a_step,
        plan_steps,
        columns,
    )
    if every <= steps:
        write_table(
            folder / "validate.csv",
            VALIDATE,
            np.arange(every, steps + 1, every),
            steps,
            lambda t: loss(t) + 0.1,
            0.0,
            tokens_a_step,
            seconds_a_step,
            plan_steps,
            None,
        )
    return folder


def write_table(path, header, step, steps, loss, noise, tokens_a_step, seconds_a_step, plan_steps, columns):
    tokens = step * float(tokens_a_step)
    losses = loss(tokens) + noise * np.random.default_rng(7).normal(size=steps)[step - 1]
    values = {
        "step": step,
        "samples": 50 * step,
        "tokens": tokens,
        "bytes": 4 * tokens,
        "flops": 6e7 * tokens,
        "seconds": seconds_a_step * step,
        "loss": losses,
        "accuracy": 1 / losses,
        "bits_per_byte": losses / 4 / np.log(2),
        "learning_rate": 1e-3 + 0 * tokens,
        "gradient_norm": 1 + 0 * tokens,
        "tokens_per_second": tokens_a_step / seconds_a_step + 0 * tokens,
        "validation_tokens": 10 + 0 * tokens,
        "validation_documents": 3 + 0 * tokens,
    }
    values.update({name: function(tokens) for name, function in (columns or {}).items()})
    names = [*header, *(columns or {})]
    parts = [plan_steps[min(len(plan_steps) - 1, (s - 1) * len(plan_steps) // steps)] for s in step]
    with open(path, "w", encoding="utf-8") as file:
        file.write(",".join(names) + "\n")
        for i in range(len(step)):
            file.write(
                ",".join(parts[i] if name == "plan_step" else repr(float(values[name][i])) for name in names) + "\n"
            )
