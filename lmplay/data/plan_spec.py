"""Define what a training plan asks for, and what is hashed of it."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ORDERS = (1, 2)  # of samples: how data/order.py has cut the text into windows, so far
NEWEST_ORDER = ORDERS[-1]
PROMPT_END = "\n\n"  # between a prompt and its answer, where a dataset has columns for them
TURN_END = "\n\n"  # between the turns of a conversation


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Where documents come from, which fields they are made of, and which of them are held out for validation.

    kind: "hub", "files", "embedded" or "synthetic". source: the dataset's id, a tuple of names or patterns, "python",
    or a task, which has `settings` and a `seed`.
    Exactly one of `text` (columns), `prompt` (columns, with `answer`) and `messages` is set.
    max_documents: counts documents of the source, validation ones included. Only the validation documents of
    {"skip": ...} lie beyond it. validation: has the keys that plans/README.md lists. separator: what stands between the
    documents of a text file.
    """

    name: str
    kind: str
    source: str | tuple[str, ...]
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    stream: bool = False
    text: tuple[str, ...] = ()
    prompt: tuple[str, ...] = ()
    answer: str | None = None
    messages: str | None = None
    max_documents: int | None = None
    max_tokens: int | None = None
    validation: dict = field(default_factory=dict)
    settings: dict | None = None
    seed: int | None = None
    separator: str | None = None

    @property
    def source_id(self) -> str:
        """Return the source of a dataset that is not made of files: a dataset of the hub, a task, "python"."""
        assert isinstance(self.source, str), f"{self.name} is made of files"
        return self.source

    @property
    def files(self) -> tuple[str, ...]:
        """Return the names and patterns of files, none for another kind."""
        return () if isinstance(self.source, str) else self.source

    @property
    def columns(self) -> list[str]:
        """Return the columns that documents are made of."""
        return list(dict.fromkeys([*self.text, *self.prompt, *filter(None, (self.answer, self.messages))]))

    @property
    def content(self) -> dict:
        """Return what decides the documents as plain JSON values, equal for equal specs.

        Plan hashes, data hashes and names of store folders are made of it, so its keys never change.
        """
        said = {
            "name": self.name,
            "kind": self.kind,
            "source": self.source,
            "config": self.config,
            "revision": self.revision,
            "split": self.split,
            "stream": self.stream,
            "text": self.text,
            "prompt": self.prompt,
            "answer": self.answer,
            "messages": self.messages,
            "max_documents": self.max_documents,
            "max_tokens": self.max_tokens,
            "validation": self.validation,
            "settings": self.settings,
            "seed": self.seed,
            "separator": self.separator,
        }
        return json.loads(json.dumps({key: value for key, value in said.items() if value not in (None, (), False)}))


@dataclass(frozen=True)
class PhaseSpec:
    """One phase of training. Exactly one of `epochs` and `tokens` is set; `weights` None interleaves by document."""

    name: str
    datasets: list[str]
    epochs: float | None = None
    tokens: int | None = None
    stop: str = "first_exhausted"
    weights: dict[str, float] | None = None

    @property
    def content(self) -> dict:
        """Return the phase as plain JSON values. Plan hashes are made of it, so its keys never change."""
        return {
            "name": self.name,
            "datasets": self.datasets,
            "epochs": self.epochs,
            "tokens": self.tokens,
            "stop": self.stop,
            "weights": self.weights,
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked plan.

    path: its file, None without one (--data). prompts: what samples begin with.
    context_len: the context length of runs that don't set one. title: what people are shown ("": the name).
    """

    name: str
    description: str
    tokenizer: str | dict
    datasets: dict[str, DatasetSpec]
    phases: list[PhaseSpec]
    path: Path | None = None
    prompts: tuple[str, ...] = ()
    context_len: int | None = None
    title: str = ""

    @property
    def shown(self) -> str:
        """Return the plan's name for people."""
        return self.title or self.name

    @property
    def folder(self) -> Path:
        """Return the folder where files that the plan names are looked for before the working folder."""
        return self.path.parent if self.path else Path.cwd()

    @property
    def content(self) -> dict:
        """Return the plan as plain JSON values with every default filled in; its phases are called "steps" there."""
        return {
            "tokenizer": self.tokenizer,
            "datasets": {name: spec.content for name, spec in self.datasets.items()},
            "steps": [phase.content for phase in self.phases],
        }

    @property
    def hash(self) -> str:
        """Return a hex hash of the content: equal for plans that ask for the same data, whatever their names."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def key(self) -> str:
        """Return what decides the training besides the data themselves, however their files are spelled."""
        return plan_key(self.content, self.hash)


def ended_prompt(prompt: str, datasets: Iterable[dict]) -> str:
    """Return a prompt as a model reads it that was trained on these datasets: closed, if all have prompts and answers.

    datasets: their `content`. A prompt stays that is empty or that has the blank line already.
    """
    asked = ["prompt" in dataset for dataset in datasets]
    if not prompt or PROMPT_END in prompt or not asked or not all(asked):
        return prompt
    return prompt.rstrip("\n") + PROMPT_END


def turn_head(role: str) -> str:
    """Return what a turn of a conversation begins with: "User: "."""
    return role.capitalize() + ": "


def plan_key(content: Any, plan_hash: Any) -> str:
    """Return the phases of a plan's content as text; without them the plan's hash."""
    steps = content.get("steps") if isinstance(content, dict) else None
    return json.dumps(steps, sort_keys=True) if isinstance(steps, list) else str(plan_hash)
