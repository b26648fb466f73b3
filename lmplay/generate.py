"""Text from a trained model, token by token."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lmplay import contract, registry
from lmplay.data.tokenizers import Tokenizer, load_tokenizer
from lmplay.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. temperature 0 or do_sample False takes the likeliest one; top_k 0 and top_p 1 keep all;
    repetition_penalty divides the positive and multiplies the negative logits of tokens that occurred (arXiv 1909.05858)."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    do_sample: bool = True

    def __post_init__(self):
        for name, good, range_ in (("temperature", self.temperature >= 0, "at least 0"), ("top_k", self.top_k >= 0, "at least 0"),
                                   ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
                                   ("repetition_penalty", self.repetition_penalty > 0, "above 0")):
            if not good:
                raise UserError(f"--{name.replace('_', '-')} must be {range_}, not {getattr(self, name)}")


@dataclass
class TrainedRun:
    """A run's model with its weights, ready to be used, and what run.json says of it."""

    model: torch.nn.Module
    tokenizer: Tokenizer
    experiment: contract.Experiment
    context_len: int
    meta: dict
    checkpoint: Path


def load_run(folder: Path, device: torch.device) -> TrainedRun:
    """Loads a run from its folder alone: its own copy of the experiment, its settings, its newest weights.

    Raises UserError where something is missing or damaged.
    """
    from lmplay.train import checkpoints
    meta = read_meta(folder)
    checkpoint = checkpoints.latest(folder / "checkpoints")
    if checkpoint is None:
        raise UserError(f"the run {folder} has no checkpoint yet: train it first, or choose another one with --run")
    entry = registry.read_entry(folder / "code" / meta["experiment"]["name"])
    experiment = contract.load(entry)
    config = experiment.Config(**meta["config"])
    model = experiment.build(config).to(device)
    checkpoints.load_weights(checkpoint, model)
    return TrainedRun(model.eval(), load_tokenizer(tokenizer_spec(folder, meta)), experiment, config.max_len, meta, checkpoint)


def read_meta(folder: Path) -> dict:
    """The run.json of a run. Raises UserError where there is none."""
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder} is no run: {error.strerror} (run.json)") from error
    except ValueError as error:
        raise UserError(f"{folder / 'run.json'} is damaged ({error})") from error


def tokenizer_spec(folder: Path, meta: dict) -> str:
    """The run's tokenizer: its own copy where there is one."""
    kind, _, _ = meta["tokenizer"]["spec"].partition(":")
    copy = folder / "tokenizer"
    if not copy.exists():
        return meta["tokenizer"]["spec"]
    return f"{kind}:{copy if kind == 'bpe' else next(copy.iterdir())}"


def find_run(out: Path, name: str | None) -> Path:
    """The folder of the run `name` (a folder, or a name in `out`); None: the run in `out` that was written to last."""
    if name is not None:
        for folder in (Path(name), out / name):
            if (folder / "run.json").is_file():
                return folder
        raise UserError(f"there is no run {name!r} in {out}.{did_you_mean(name, [p.name for p in _runs(out)])}")
    runs = _runs(out)
    if not runs:
        raise UserError(f"there is no trained run in {out}: train one first, for example with "
                        "lmp_trainer --exp gpt2ish:tiny --training-plan quick")
    return max(runs, key=lambda folder: (folder / "run.json").stat().st_mtime_ns)


def _runs(out: Path) -> list[Path]:
    return [p.parent for p in out.glob("*/run.json") if (p.parent / "checkpoints").is_dir()]


@torch.inference_mode()
def generate(model: torch.nn.Module, prompt: list[int], context_len: int, max_len: int, sampling: Sampling,
             generator: torch.Generator, stop: int | None = None, use_cache: bool = True) -> Iterator[int]:
    """Yields up to `max_len` tokens that follow `prompt` (which begins with the beginning token); ends before `stop`.

    With the model's cache, if it offers one, or by computing the context anew: the same text. When the context is full its
    older half is dropped. `generator` is on the CPU, so that a seed gives the same text on every device.
    """
    device = next(model.parameters()).device
    tokens = list(prompt)
    cache, begin, fed = None, 0, 0
    cached = use_cache and callable(getattr(model, "new_cache", None))
    for _ in range(max_len):
        if len(tokens) - begin > context_len:
            begin = len(tokens) - max(1, context_len // 2)
            cache = None
        if cached and cache is None:
            cache, fed = model.new_cache(1), begin
        new = torch.tensor([tokens[fed if cached else begin:]], device=device)
        output = model(new, cache=cache) if cached else model(new)
        fed = len(tokens)
        token = next_token(contract.split_output(output)[0][0, -1].float().cpu(), tokens, sampling, generator)
        if token == stop:
            return
        tokens.append(token)
        yield token


def next_token(logits: Tensor, tokens: list[int], sampling: Sampling, generator: torch.Generator) -> int:
    """Draws from logits (V,) float32 on the CPU."""
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(tokens)))
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
    if not sampling.do_sample or sampling.temperature == 0:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        logits[logits < logits.topk(sampling.top_k).values[-1]] = -torch.inf
    if sampling.top_p < 1:      # nucleus (arXiv 1904.09751): the fewest tokens whose probabilities reach top_p
        ordered, order = logits.softmax(0).sort(descending=True)
        logits[order[ordered.cumsum(0) - ordered >= sampling.top_p]] = -torch.inf
    return int(torch.multinomial(logits.softmax(0), 1, generator=generator))


def stream_text(tokenizer: Tokenizer, tokens: Iterator[int]) -> Iterator[str]:
    """The text of tokens as they come: a character appears when its last byte is there."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        if text := decoder.decode(tokenizer.decode_bytes([token])):
            yield text
    if rest := decoder.decode(b"", final=True):
        yield rest


def sample_text(model, tokenizer: Tokenizer, reversed_: bool, prompt: str, context_len: int, max_len: int,
                sampling: Sampling, seed: int, stop_at_end: bool = True) -> str:
    """The prompt and what the model adds, in reading order: a model that reads from the end writes what comes before."""
    ids = tokenizer.encode(prompt)
    generator = torch.Generator().manual_seed(seed)
    new = list(generate(model, [tokenizer.eot, *(ids[::-1] if reversed_ else ids)], context_len, max_len, sampling, generator,
                        tokenizer.eot if stop_at_end else None))
    return tokenizer.decode(new[::-1] + ids if reversed_ else ids + new)
