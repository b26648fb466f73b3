"""Write the model card of a run: what it is, how it was trained, how well it does, and what was found of the idea."""

from pathlib import Path

from lmplay import contract
from lmplay.convert.fold import Converted
from lmplay.model.cost import n_parameters
from lmplay.runs import checkpoints, names
from lmplay.runs.run import Run
from lmplay.runs.settings import Settings
from lmplay.runs.trained import TrainedRun
from lmplay.runs.verdicts import verdicts_on
from lmplay.text import printable


def card(title: str, converted: Converted, run: TrainedRun, *, own: bool, trust: bool) -> str:
    """Return the text of README.md for Hugging Face. own: the code of the experiment comes along; trust: some code."""
    experiment = run.experiment
    summary = experiment.docstring.strip().split("\n", 1)[0]
    parts = [
        _head(writes=experiment.causal),
        f"# {title}\n\nA small language model trained with lmplay: experiment `{run.run.spec}`. {summary}",
        _loading(run, own=own, trust=trust),
        f"## Results\n\n{_table(_results(converted, run))}",
        f"## Verdict\n\n{_verdict(run.run)}",
        f"## Settings\n\n{_table(_settings(run.run))}",
        f"## Architecture\n\n{_table(contract.config_values(converted.config))}",
    ]
    return "\n\n".join(parts) + "\n"


def _head(writes: bool) -> str:
    """Return what Hugging Face reads of a card."""
    task = ["pipeline_tag: text-generation"] if writes else []
    return "\n".join(["---", "library_name: transformers", *task, "tags:", "- lmplay", "---"])


def _loading(run: TrainedRun, *, own: bool, trust: bool) -> str:
    """Return how to load the folder, and what to know about its input."""
    auto = "AutoModelForCausalLM" if run.experiment.causal else "AutoModel"
    remote = ", trust_remote_code=True" if trust else ""
    lines = [
        "## Use",
        "",
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f"model = {auto}.from_pretrained(FOLDER{remote}).eval()",
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        "```",
        "",
        f"Every text begins with the BOS token (id {run.tokenizer.eot}), as in training; the tokenizer puts it there. "
        f"The context is {run.context_len:,} tokens with it.",
    ]
    if run.experiment.reversed:
        lines.append("The model reads from the end of a text: reverse the ids after the BOS token, and what it writes.")
    elif not run.experiment.causal:
        lines.append("The model is not causal: its input is what `make_batch` in model.py makes of a text.")
    elif run.experiment.direction_names:
        lines.append(f"It reads in several directions: {', '.join(run.experiment.direction_names)} (model.py).")
    if own:
        lines.append("The code of the architecture is in this folder (model.py). It has no cache: writing is slow.")
    return "\n".join(lines)


def _results(converted: Converted, run: TrainedRun) -> dict[str, object]:
    """Return how far the checkpoint was trained and how well it did there."""
    state, info = checkpoints.read_state(run.checkpoint), run.run
    shown: dict[str, object] = {"parameters": f"{n_parameters(converted.model):,}"}
    for key, name in (("tokens", "tokens of training"), ("samples", "sequences"), (names.STEP, "steps")):
        value = names.step_of(run.checkpoint) if key == names.STEP else state.get(key)
        if isinstance(value, int):
            shown[name] = f"{value:,}"
    loss = state.get("validation_loss")
    if isinstance(loss, (int, float)):
        shown["validation loss, nats per token"] = f"{loss:.4f}"
    rows = info.table("validate")
    last = rows[rows[names.STEP] == names.step_of(run.checkpoint)] if len(rows) and names.STEP in rows else rows
    for column, name in (
        ("bits_per_byte", "validation, bits per byte"),
        ("accuracy", "validation, next-token accuracy"),
    ):
        if len(last) and column in last:
            shown[name] = f"{float(last[column].iloc[-1]):.4f}"
    return shown


def _settings(run: Run) -> dict[str, object]:
    """Return the plan, the tokenizer, and the settings that are not the defaults."""
    usual = Settings().as_json()
    aside = {"exp", "out", "run_name", "device", "set", "training_plan", "tokenizer", "data"}
    own = {key: value for key, value in run.settings.items() if key not in aside and usual.get(key) != value}
    plan = run.get("plan", names.PLAN_TITLE) or run.get("plan", "name")
    return {"plan": plan, "tokenizer": Path(str(run.get("tokenizer", "spec"))).name, **own}


def _verdict(run: Run) -> str:
    """Return what lmp_compare last said of comparisons with this run."""
    said: dict[str, str] = {}
    for entry in verdicts_on(run, "candidate", "baseline"):
        labels = f"{entry['candidate']['label']} against {entry['baseline']['label']}"
        said[entry["hypothesis"]] = printable(f"- {labels}: {entry['verdict']['sentence']}")
    return "\n".join(said.values()) or "None: no comparison with this run is in the ledger."


def _table(rows: dict) -> str:
    """Return names and values as a Markdown table."""
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])
