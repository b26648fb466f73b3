"""Hold a conversation with a run as its training data have them (lmp_generator --chat)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from lmplay.data.plan_spec import PROMPT_END, TURN_END, turn_head
from lmplay.runs.run import Run

TURNS, QUESTIONS, TEXT = "turns", "questions", "text"
NEXT_TURN = TURN_END + turn_head("user")
# What a session is, by what the run was trained on
SAID = {
    TURNS: "a conversation; an empty line begins a new one",
    QUESTIONS: "questions, each for itself, since the run was trained on single ones",
    TEXT: "each line is continued, since the run was not trained on conversations",
}


@dataclass
class Conversation:
    """What was asked and answered so far. form: TURNS if the run was trained on turns, QUESTIONS on pairs, else TEXT.

    Only TURNS have a memory: the others forget each line.
    """

    form: str
    said: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, run: Run) -> "Conversation":
        """Begin a conversation in the form of the datasets that the run was trained on last."""
        datasets = run.last_datasets
        if any("messages" in one for one in datasets):
            return cls(TURNS)
        return cls(QUESTIONS if any("prompt" in one for one in datasets) else TEXT)

    def prompt(self, line: str) -> str:
        """Return what the model reads before it answers `line`."""
        if self.form == TURNS:
            turns = [turn for asked, answer in self.said for turn in (("user", asked), ("assistant", answer))]
            told = [turn_head(role) + text for role, text in [*turns, ("user", line)]]
            return TURN_END.join([*told, turn_head("assistant")])
        return line + PROMPT_END if self.form == QUESTIONS else line

    def fitting_prompt(self, line: str, n_tokens: Callable[[str], int], most: int) -> str:
        """Return the prompt for `line`; forget the oldest questions while it has more than `most` tokens."""
        while self.said and n_tokens(self.prompt(line)) > most:
            self.said.pop(0)
        return self.prompt(line)

    def answer_in(self, parts: Iterable[str], prompt: str) -> Iterator[str]:
        """Yield the answer in the parts of a text that begins with `prompt`: up to where the next turn would begin."""
        answer = _after(parts, len(prompt))
        yield from _until(answer, NEXT_TURN) if self.form == TURNS else answer


def _after(parts: Iterable[str], length: int) -> Iterator[str]:
    """Yield the parts without the first `length` characters."""
    for part in parts:
        shown = part[length:]
        length -= min(length, len(part))
        if shown:
            yield shown


def _until(parts: Iterable[str], mark: str) -> Iterator[str]:
    """Yield the parts up to `mark`. What may be its beginning is held back until it is known."""
    held = ""
    for part in parts:
        held += part
        if mark in held:
            yield held.partition(mark)[0]
            return
        kept = next(n for n in range(min(len(mark) - 1, len(held)), -1, -1) if held.endswith(mark[:n]))
        if ready := held[: len(held) - kept]:
            yield ready
        held = held[len(held) - kept :]
    if held:
        yield held
