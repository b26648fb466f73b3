"""Know how other tools spell the flags of this one."""

from collections.abc import Collection

from lmplay.errors import did_you_mean

# What people type (without dashes): what to type here, the first of them that the command has. A word after the flag
# is shown as it is.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("learning-rate", "lrate", "learnrate", "max-lr", "peak-lr", "rate"), ("--lr",)),
    **dict.fromkeys(
        ("lr-decay", "lr-scheduler", "lr-scheduler-type", "scheduler", "schedule", "decay"), ("--lr-schedule",)
    ),
    **dict.fromkeys(("min-lr", "final-lr", "lr-end"), ("--final-lr-fraction",)),
    **dict.fromkeys(("warmup", "warmup-iters", "lr-warmup", "num-warmup-steps"), ("--warmup-steps",)),
    **dict.fromkeys(("wd", "decay-rate", "l2"), ("--weight-decay",)),
    **dict.fromkeys(("clip", "clip-grad", "max-grad-norm", "gradient-clip", "clip-norm"), ("--grad-clip",)),
    **dict.fromkeys(("opt", "optim", "optimiser"), ("--optimizer",)),
    **dict.fromkeys(("adam-beta1", "b1"), ("--beta1",)),
    **dict.fromkeys(("adam-beta2", "b2"), ("--beta2",)),
    **dict.fromkeys(("epsilon", "adam-epsilon"), ("--eps",)),
    **dict.fromkeys(("bs", "batch", "train-batch-size", "batchsize", "global-batch-size"), ("--batch-size",)),
    **dict.fromkeys(
        (
            "per-device-train-batch-size",
            "gradient-accumulation-steps",
            "grad-accum",
            "grad-accum-steps",
            "accumulate",
            "device-batch-size",
            "microbatch",
        ),
        ("--micro-batch-size",),
    ),
    **dict.fromkeys(
        ("iters", "max-iters", "iterations", "max-iterations", "num-iterations", "train-steps", "num-steps", "n-steps"),
        ("--max-steps",),
    ),
    **dict.fromkeys(("steps", "updates", "max-updates", "num-updates"), ("--max-steps",)),
    **dict.fromkeys(("epoch", "num-epochs", "n-epochs", "num-train-epochs", "max-epochs"), ("--epochs",)),
    **dict.fromkeys(("time", "max-time", "minutes", "time-limit"), ("--max-minutes",)),
    **dict.fromkeys(("tokens", "n-tokens", "num-tokens", "train-tokens"), ("--max-tokens",)),
    **dict.fromkeys(
        (
            "block-size",
            "seq-len",
            "seq-length",
            "sequence-length",
            "max-seq-len",
            "max-seq-length",
            "context",
            "context-length",
            "context-size",
            "ctx-len",
            "ctx",
            "n-ctx",
            "window",
        ),
        ("--context-len",),
    ),
    **dict.fromkeys(("gpu", "gpus", "cuda", "use-cuda", "gpu-id"), ("--device cuda",)),
    **dict.fromkeys(("cpu", "no-cuda", "use-cpu"), ("--device cpu",)),
    "mps": ("--device mps",),
    **dict.fromkeys(
        ("fp16", "bf16", "half", "mixed-precision", "precision", "dtype", "autocast", "use-amp"), ("--amp",)
    ),
    "torch-compile": ("--compile",),
    **dict.fromkeys(("layers", "n-layer", "n-layers", "num-layers", "depth"), ("--set n_layer=",)),
    **dict.fromkeys(("heads", "n-head", "n-heads", "num-heads"), ("--set n_head=",)),
    **dict.fromkeys(
        ("n-embd", "d-model", "dim", "width", "hidden-size", "embed-dim", "n-embed", "embedding-size"),
        ("--set n_embd=",),
    ),
    "dropout": ("--set dropout=",),
    **dict.fromkeys(("config", "config-file", "cfg"), ("--use-config",)),
    **dict.fromkeys(("model", "experiment", "arch", "architecture", "model-name", "candidate"), ("--run", "--exp")),
    **dict.fromkeys(
        ("dataset", "data-file", "train-data", "text-file", "train-file", "input", "corpus"), ("--data", "--score")
    ),
    **dict.fromkeys(("plan", "recipe-plan", "task"), ("--training-plan", "--tasks")),
    **dict.fromkeys(("vocab", "tok", "encoding", "tokeniser", "vocab-size"), ("--tokenizer",)),
    **dict.fromkeys(
        ("output-dir", "out-dir", "outdir", "output-folder", "log-dir", "logdir", "save-dir", "output", "runs"),
        ("--out", "--to"),
    ),
    **dict.fromkeys(("name", "exp-name", "experiment-name", "run-id", "wandb-name"), ("--run-name", "--run")),
    **dict.fromkeys(("checkpoint", "ckpt", "init-from", "pretrained", "load", "weights"), ("--initial-model", "--run")),
    **dict.fromkeys(
        ("eval-interval", "eval-every", "val-interval", "eval-steps", "val-every", "validate-every"),
        ("--validation-interval",),
    ),
    **dict.fromkeys(("eval-tokens", "val-tokens", "eval-iters"), ("--validation-tokens",)),
    **dict.fromkeys(("save-every", "save-steps", "checkpoint-interval", "ckpt-interval"), ("--save-interval",)),
    **dict.fromkeys(("random-seed", "rng-seed", "manual-seed", "seed"), ("--seed", "--seeds")),
    **dict.fromkeys(("seeds", "n-seeds", "num-seeds"), ("--seeds", "--seed")),
    **dict.fromkeys(("base", "reference", "compare-to", "against"), ("--baseline",)),
    **dict.fromkeys(("length", "max-new-tokens", "max-length", "max-tokens", "num-tokens"), ("--max-len",)),
    **dict.fromkeys(
        ("n", "samples", "n-samples", "num-return-sequences", "num-sequences"), ("--num-samples", "--seeds")
    ),
    **dict.fromkeys(("temp", "t"), ("--temperature",)),
    **dict.fromkeys(("greedy", "argmax"), ("--no-do-sample",)),
    **dict.fromkeys(("topk", "k"), ("--top-k",)),
    **dict.fromkeys(("topp", "p", "nucleus"), ("--top-p",)),
    **dict.fromkeys(("smoothing",), ("--smooth",)),
    **dict.fromkeys(("metric", "y", "metrics"), ("--column",)),
    **dict.fromkeys(("overwrite", "restart", "no-resume", "force"), ("--fresh",)),
}
# What needs no flag here
ANSWERS = {
    **dict.fromkeys(("resume", "continue", "resume-from", "resume-from-checkpoint", "auto-resume"), "RESUME"),
    **dict.fromkeys(("prompt", "start", "text-prompt"), "PROMPT"),
}
SENTENCES = {
    "RESUME": ("--fresh", "A run goes on by itself: type the same command again."),
    "PROMPT": ("--num-samples", "The prompt is a word of its own, without a flag."),
}

MOST_BEGUN = 4  # flags that a message names


def meant(typed: str, flags: Collection[str]) -> str:
    """Return the end of an error message about a flag that a command does not have: what was probably meant, or "".

    typed: the flag as it was typed, with or without "=VALUE". flags: those of the command.
    """
    name = typed.partition("=")[0].lower().replace("_", "-")
    bare = name.lstrip("-")
    if f"--{bare}" in flags:
        return f" Did you mean '--{bare}'?"
    for target in ELSEWHERE.get(bare, ()):
        if target.split()[0] in flags:
            return f" Did you mean {target!r}?"
    needs, sentence = SENTENCES.get(ANSWERS.get(bare, ""), ("", ""))
    if needs in flags:
        return f" {sentence}"
    if begun := _begun(bare, flags):
        return f" Did you mean {begun}?"
    near = did_you_mean(name, flags)
    return near if "mean" in near else ""


def _begun(bare: str, flags: Collection[str]) -> str:
    """Return the flags that begin as it does, for a message; "" for none, and for more than help."""
    begun = sorted(flag for flag in flags if bare and flag.startswith(f"--{bare}"))
    if len(begun) > MOST_BEGUN:
        return ""
    return " or ".join(filter(None, (", ".join(map(repr, begun[:-1])), *map(repr, begun[-1:]))))
