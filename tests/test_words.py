"""The field's words, not home-made ones, wherever somebody reads: docstrings, help, messages, documentation."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORDS = {
    r"so many|so much": "N, up to N",
    r"as by default": "default",
    r"at the most": "at most",
    r"but for": "except",
    r"(nats?|bits?|bytes?|FLOPs?|losses|loss|cost|costs|arithmetic) an? (token|byte|step|layer|document)": "per token",
    r"updates?": "step",
    r"an update": "per step",
    r"the ruler|objectives?": "the loss",
    r"mini-?batch(es)?": "micro-batch",
    r"sequences at once": "sequences per micro-batch",
    r"beginning token": "BOS token",
    r"end[- ]of[- ]text": "EOT token",
    r"(each|several|which|other) ways?|(the|two|both|its) ways|ways? of reading|reading order": "direction",
    r"(plan'?s?|plans') steps?|steps? of (a|the|its) plan": "phase of the plan",
    r"(candidate|baseline)('s)? side": "arm",
    r"(?<!in )places?": "path, position, index",
    r"conducts?|contestants?|workplaces?|courses": "run, arm, run index, page data",
    r"(optim|initial|token|normal|summar|orthogonal|recogn|general)is[ei]\w*": "American spelling: optimizer, ...",
    r"behaviour\w*|colour\w*|neighbour\w*|favour\w*|labell\w+|centred?|licences?": "American spelling: behavior, ...",
}
# What may stand: names that files and flags keep, and words that mean something else.
KEPT = re.compile(
    r"--mini-batch-size|mini_batch_size|n_updates|flops_per_update|initialise\(|takes? place|decimal places|"
    r"apt-get update|pip install --upgrade|=== update|update lmplay"
)
PAGES = [
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "docs/ideas/*.md",
        "plans/*.md",
        "experiments/*.md",
        "experiments/*/README.md",
        "gpt_out/*.md",
    )
    for path in sorted(ROOT.glob(pattern))
    if path.name not in ("RESULTS.md", "CHANGELOG.md")
]
CODE = sorted((ROOT / "lmplay").rglob("*.py"))
EXPERIMENTS = sorted((ROOT / "experiments").glob("*/*.py"))


def found_in(text: str) -> list[str]:
    text = KEPT.sub(" ", text)
    return [
        f"{match.group()!r} -> {better}"
        for pattern, better in WORDS.items()
        for match in re.finditer(rf"(?<![-\w.`]){'(' + pattern + ')'}(?![-\w(`])", text, re.I)
    ]


def texts_of(path: Path) -> list[tuple[int, str]]:
    """Return (line, text) of docstrings, and of strings with a space in them: messages and help."""
    tree = ast.parse(path.read_bytes())
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip()
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages(path):
    prose = re.sub(r"```.*?```|`[^`\n]*`", " ", path.read_text(encoding="utf-8"), flags=re.S)
    assert found_in(prose) == []


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_help_and_messages(path):
    assert [(line, found) for line, text in texts_of(path) for found in found_in(text)] == []


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_of_experiments(path):
    assert [(line, found) for line, text in texts_of(path) for found in found_in(text)] == []
