"""What was asked of a model before its training, and what was found."""

from dataclasses import asdict, dataclass, field
from typing import Any

VERSION = 4  # of the questions: results of another version are asked anew
FIRST_LOSS = "first loss"
LEAK, FAULT, WARNING = "leak", "fault", "warning"


@dataclass(frozen=True)
class Finding:
    """What a model does not do right.

    question: a key of QUESTIONS. kind: "leak" (its loss means something else: it is not trained), "fault" (no verdict
    is given), or "warning".
    """

    question: str
    kind: str
    sentence: str


@dataclass
class Checked:
    """What was asked of a model, and what was found."""

    asked: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def sentences(self, *kinds: str) -> list[str]:
        """Return the sentences of the findings of these kinds."""
        return [finding.sentence for finding in self.findings if finding.kind in kinds]

    def as_json(self) -> dict[str, Any]:
        """Return plain values, as run.json holds them."""
        return {"version": VERSION, "passed": not self.sentences(LEAK, FAULT), **asdict(self)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Checked":
        """Return what `as_json` made. Raises KeyError and TypeError for anything else."""
        return cls([str(question) for question in content["asked"]], [Finding(**one) for one in content["findings"]])


QUESTIONS = {
    "own parameters": "forward computes with parameters of the model, and leaves them as they are",
    "tokens": "forward leaves the tokens that it reads, and the mode of its layers, as they are",
    "seeds": "other seeds give other initial values",
    "logits": "forward returns logits, not probabilities",
    "repeats": "the same call twice gives the same logits (eval mode)",
    "rows": "rows of a batch do not affect each other (eval and train mode)",
    "scored once": "make_batch scores each token once",
    "looks ahead": "logits do not move when the token that they predict, or a later one, changes (eval and train mode)",
    "lengths": "one token and one row are enough",
    "cache": "logits are the same with and without the cache",
    FIRST_LOSS: "the first loss is within 10% of ln(vocab_size)",
    "surroundings": "forward asks neither for the time nor for files that are no part of the code",
    "gradients": "every parameter gets a gradient within two steps",
}
