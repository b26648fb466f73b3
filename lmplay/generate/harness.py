"""Evaluate a run on tasks of EleutherAI's lm-evaluation-harness, through its TemplateLM class."""

import hashlib
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lmplay import crashes
from lmplay.errors import UserError
from lmplay.files import data_folder, read_text, typed_path
from lmplay.generate.sampling import Sampling, generate
from lmplay.generate.writing import choose_direction
from lmplay.model import adapters
from lmplay.runs import names
from lmplay.runs.trained import TrainedRun

YAML = (".yaml", ".yml")
MOST_NEW = 256  # tokens that are written where a task sets no limit, as in the harness


def evaluate(
    run: TrainedRun,
    tasks: list[str],
    *,
    few_shot: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    use_cache: bool = True,
) -> list[dict[str, Any]]:
    """Return a result for each task, a name or a YAML file: metrics, and bits per byte of the right answers.

    limit: documents per task. use_cache: take answers that the same weights gave before. Raises UserError for a model
    that does not read forward, an unknown task, and without the package lm_eval.
    """
    if not run.experiment.causal or not choose_direction(run, None).forward:
        raise UserError(f"{run.experiment.name} does not predict a text from its beginning: it can't be evaluated")
    harness = _import_harness()
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    chosen, files = _tasks(tasks)
    folders = list(dict.fromkeys(str(path.parent) for path in files.values()))
    cache = data_folder() / "evaluations" / _cache_name(run)
    cache.parent.mkdir(parents=True, exist_ok=True)
    try:
        only_files = all(Path(task).suffix in YAML for task in tasks)  # indexing the harness's own takes a while
        manager = harness.tasks.TaskManager(include_path=folders or None, include_defaults=not only_files)
        if unknown := [name for name in chosen if name not in manager.all_tasks]:
            raise UserError(f"lm_eval has no task {unknown[0]!r}; `lm_eval ls tasks` lists them")
        for name, path in files.items():
            _check_file(name, path, getattr(manager.task_index.get(name), "yaml_path", None))
        with torch.inference_mode(), adapters.derived_once(run.model):
            found = harness.simple_evaluate(
                model=_adapter(run, batch_size),
                tasks=chosen,
                num_fewshot=few_shot,
                limit=limit,
                use_cache=str(cache) if use_cache else None,
                task_manager=manager,
            )
    except UserError:
        raise
    except crashes.RAISED as error:  # whatever the harness, its tasks and the hub raise
        if crashes.is_of_experiment(error):
            raise
        line = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(f"the harness can't run {', '.join(tasks)}: {type(error).__name__}: {line}") from error
    return [_result(run, name, found, limit, harness.__version__) for name in found["results"]]


def _import_harness() -> Any:
    try:
        import lm_eval
        import lm_eval.tasks
    except ImportError as error:
        raise UserError(f"evaluation needs the package lm_eval ({error}): pip install 'lmplay[eval]'") from error
    return lm_eval


def _tasks(tasks: list[str]) -> tuple[list[str], dict[str, Path]]:
    """Return the names of the tasks, and by name the files of those that are YAML files. Raises UserError."""
    chosen, files = [], {}
    for task in tasks:
        if Path(task).suffix not in YAML:
            chosen.append(task)
            continue
        path = typed_path(task)
        if not os.path.lexists(path):
            raise UserError(f"there is no task file {task}")
        chosen.append(_name_in(task, read_text(path, "the task in")))
        files[chosen[-1]] = path.resolve()
    return chosen, files


def _name_in(file: str, text: str) -> str:
    """Return the name of the task, or of the group of tasks, in a YAML file. Raises UserError."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads plain values; what the harness calls by its own tags, `!function`, is left out."""

    Loader.add_multi_constructor("", lambda loader, tag, node: None)
    try:
        content = yaml.load(text, Loader)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        raise UserError(f"{file} is not YAML{'' if line is None else f' (line {line + 1})'}") from None
    known = content if isinstance(content, dict) else {}
    names = [name for key in ("task", "group") if isinstance(name := known.get(key), str) and name]
    if not names:
        raise UserError(f"{file}: a task file has a line 'task: NAME'")
    return names[0]


def _check_file(name: str, path: Path, found: str | Path | None) -> None:
    """Raise UserError where the harness has found the task in another file than the one that was named."""
    if found is not None and Path(found).resolve() != path:
        raise UserError(f"the task {name!r} of {path} is in {found}, too: give one of them another name")


def _cache_name(run: TrainedRun) -> str:
    """Return a name that only the same weights, code and tokenizer have."""
    digest = hashlib.blake2b(digest_size=12)
    for name, tensor in sorted(run.model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    said = (run.experiment.name, run.tokenizer.fingerprint, run.context_len, run.run.get("experiment", "code_hash"))
    digest.update(repr((said, run.run.get("config"))).encode())
    return digest.hexdigest()


def _result(run: TrainedRun, name: str, found: dict[str, Any], limit: int | None, version: str) -> dict[str, Any]:
    """Return what is kept of a task."""
    metrics = {
        key.removesuffix(",none"): float(value)
        for key, value in found["results"][name].items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and "," in key and math.isfinite(value)
    }
    metrics |= _answer_bits(found.get("samples", {}).get(name, []))
    return {
        "task": name,
        "checkpoint": run.checkpoint.name,
        "few_shot": found.get("n-shot", {}).get(name) or 0,
        "limit": limit,
        "documents": found.get("n-samples", {}).get(name, {}).get("effective"),
        "metrics": metrics,
        "version": found.get("versions", {}).get(name),
        "lm_eval": version,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _answer_bits(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Return the bits per byte of the right answers, all documents together; {} where answers are not scored."""
    bits, n_bytes = 0.0, 0
    for log_likelihood, answer in _right_answers(samples):
        bits -= log_likelihood / math.log(2)
        n_bytes += len(answer.encode())
    return {names.ANSWER_BITS: bits / n_bytes} if n_bytes else {}


def _right_answers(samples: list[dict[str, Any]]) -> Iterator[tuple[float, str]]:
    """Yield the log-likelihood and the text of each document's right answer."""
    for sample in {repr(one.get("doc_id")): one for one in samples}.values():
        asked, given = list(sample["arguments"]), [answers[0] for answers in sample["resps"]]
        target = sample.get("target")
        number = 0 if len(asked) == 1 else int(str(target)) if str(target).isdigit() else None
        if number is None or number >= len(asked) or len(asked[number]) < 2 or not isinstance(asked[number][1], str):
            continue
        if isinstance(given[number], (tuple, list)) and len(given[number]) == 2:
            yield float(given[number][0]), asked[number][1]


def _adapter(run: TrainedRun, batch_size: int) -> Any:
    """Return the run as the harness asks models."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    direction = choose_direction(run, None)

    class Adapter(TemplateLM):
        """A run of lmplay. Each context begins with the BOS token, as in training."""

        @property
        def eot_token_id(self) -> int:
            return run.tokenizer.eot

        @property
        def prefix_token_id(self) -> int:
            return direction.bos

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            begin = [] if add_special_tokens is False else [direction.bos]
            return begin + run.tokenizer.encode(string)

        def _loglikelihood_tokens(self, requests: list[Any], disable_tqdm: bool = False, **_: Any) -> list[Any]:
            found = _all_scores(run, [(context, answer) for _, context, answer in requests], batch_size)
            for (request, _, _), scores in zip(requests, found, strict=True):
                if request is not None:
                    self.cache_hook.add_partial("loglikelihood", request, scores)
            return found

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            totals = []
            for (text,) in [request.args for request in requests]:
                windows = get_rolling_token_windows(
                    token_list=run.tokenizer.encode(text),
                    prefix_token=direction.bos,
                    max_seq_len=run.context_len,
                    context_len=1,
                )
                asked = [(None, *make_disjoint_window(window)) for window in windows]
                totals.append(sum(score for score, _ in self._loglikelihood_tokens(asked)))
                self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
            return totals

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [_written(run, direction.bos, *request.args) for request in requests]

    return Adapter()


def _all_scores(run: TrainedRun, asked: list[tuple[list[int], list[int]]], size: int) -> list[tuple[float, bool]]:
    """Return the scores of (context, answer) in their order; `size` at once, of about the same length."""
    pairs = [_fitting(context, answer, run.context_len) for context, answer in asked]
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]))
    found: dict[int, tuple[float, bool]] = {}
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        found |= zip(numbers, _scores(run.model, [pairs[i] for i in numbers], run.tokenizer.eot), strict=True)
    return [found[number] for number in range(len(pairs))]


def _fitting(context: list[int], answer: list[int], longest: int) -> tuple[list[int], list[int]]:
    """Return the tokens to read and those to predict at their end: the last ones that fit, after the first token."""
    tokens = context + answer
    if len(tokens) > longest + 1:
        tokens = [tokens[0], *tokens[len(tokens) - longest :]]
    return tokens[:-1], tokens[-min(len(answer), len(tokens) - 1) :] if answer else []


def _scores(model: torch.nn.Module, pairs: list[tuple[list[int], list[int]]], padding: int) -> list[tuple[float, bool]]:
    """Return the log-likelihood of each answer, in nats, and whether each token of it is the likeliest.

    A causal model does not see the padding after a text.
    """
    width, device = max(len(tokens) for tokens, _ in pairs), adapters.device_of(model)
    rows = [tokens + [padding] * (width - len(tokens)) for tokens, _ in pairs]
    logits = adapters.split_output(model(torch.tensor(rows, device=device)))[0].float()
    found = []
    for row, (tokens, answer) in zip(logits, pairs, strict=True):
        wanted = torch.tensor(answer, dtype=torch.long, device=device)
        scores = row[len(tokens) - len(answer) : len(tokens)].log_softmax(-1)
        total = float(scores.gather(1, wanted[:, None]).double().sum())
        found.append((total, bool((scores.argmax(-1) == wanted).all())))
    return found


def _written(run: TrainedRun, bos: int, context: str, settings: dict[str, Any]) -> str:
    """Return what the model writes after a context, up to the first of the texts that end it."""
    until = settings.get("until") or []
    ends = [until] if isinstance(until, str) else list(until)
    temperature = float(settings.get("temperature") or 0.0)
    drawn = bool(settings.get("do_sample")) and temperature > 0
    sampling = Sampling(temperature=temperature, top_p=float(settings.get("top_p") or 1.0), do_sample=drawn)
    tokens: list[int] = []
    for token in generate(
        run.model,
        [bos, *run.tokenizer.encode(context)],
        context_len=run.context_len,
        max_len=int(settings.get("max_gen_toks") or MOST_NEW),
        sampling=sampling,
        generator=torch.Generator().manual_seed(0),
        stop=run.tokenizer.eot,
    ):
        tokens.append(token)
        if any(end and end in run.tokenizer.decode(tokens) for end in ends):
            break
    text = run.tokenizer.decode(tokens)
    for end in filter(None, ends):
        text = text.split(end)[0]
    return text
