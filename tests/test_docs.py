"""README and docs: commands exist, marked blocks run, links lead somewhere, the tree of rooms is up to date."""

import argparse
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmplay import registry
from lmplay.data.plans import load_plan
from support.rooms import PAGE, mended
from support.small import make_text

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
IGNORED = {".git", ".venv", "build", "node_modules"}
PAGES = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not IGNORED & set(path.relative_to(ROOT).parts) and (path.parent != ROOT / "gpt_out" or path.name == "README.md")
]
DOCS = [
    path
    for path in PAGES
    if path.parent in (ROOT, ROOT / "docs", ROOT / "docs" / "ideas", ROOT / "experiments", ROOT / "gpt_out")
]
COMMANDS = {
    f"lmp_{name}": f"lmplay.cli.{name}"
    for name in ("trainer", "plotstats", "compare", "generator", "probe", "tokenizer", "cleanmodel", "eval")
}
# What a command gets behind its own words, so that it is over in seconds.
SMALL = {
    "lmp_trainer": [
        "--max-steps",
        "3",
        "--batch-size",
        "4",
        "--validation-tokens",
        "1000",
        "--validation-interval",
        "2",
    ],
    "lmp_compare": ["--max-steps", "2", "--batch-size", "4", "--validation-tokens", "1000", "--seeds", "2"],
    "lmp_probe": "--updates 2 --batch-size 4 --tasks copy".split(),
    "lmp_generator": "--max-len 8".split(),
}
# Names that stand for a run of the reader, in any case.
RUNS = {
    "run",
    "run_a",
    "run_b",
    "forwards",
    "backwards",
    "back",
    "bert",
    "first",
    "my_run",
    "my_bert",
    "my_gpt2ish",
    "small",
    "big",
}
MADE = ("my_idea", "other_idea")


def where(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: str) -> list[tuple[bool, str]]:
    """Return the fenced bash blocks of a page, each with whether `<!-- run -->` stands before it."""
    found = re.findall(r"(<!-- run -->\n)?```(?:bash|sh)\n(.*?)```", page, re.DOTALL)
    return [(bool(mark), text) for mark, text in found]


def commands(text: str) -> list[str]:
    """Return the commands of some shell text, without comments, pipes taken apart."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        line = re.split(r"\s{2,}[#→]|\s#\s", line)[0]
        found += [part.strip() for part in re.split(r"&&|\|(?![^\"']*[\"'])|;", line)]
    return [command for command in found if command.split(" ")[0] in COMMANDS]


def commands_of(path: Path) -> list[str]:
    """Return every command on a page: of its bash blocks, and of lines that are set in by four spaces."""
    page = path.read_text(encoding="utf-8")
    indented = [line.strip() for line in page.splitlines() if re.match(r" {4,}lmp_\w+ ", line)]
    indented = [re.split(r"\s{2,}(?![-\"'])", line)[0] for line in indented if "..." not in line]
    return commands("\n".join([*(text for _, text in blocks(page)), *indented]))


ALL = [
    pytest.param(path, command, id=f"{where(path)}: {command}")
    for path in DOCS
    if path.name not in ("RESULTS.md", "CHANGELOG.md")
    for command in dict.fromkeys(commands_of(path))
]


def examples(name: str) -> list[str]:
    """Return the commands in the examples of a command's `--help`."""
    text = importlib.import_module(COMMANDS[name]).parser().epilog or ""
    lines = [re.split(r"\s{2,}(?![-\"'])", line.strip())[0] for line in text.splitlines() if "..." not in line]
    return commands("\n".join(lines))


ALL += [pytest.param(ROOT, command, id=f"{name} --help: {command}") for name in COMMANDS for command in examples(name)]
ALL += [
    pytest.param(path, command, id=f"{where(path)}: {command}")
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    for command in commands(re.sub(r"(?m)^\s*(run: )?", "", path.read_text(encoding="utf-8")))
]


@pytest.fixture
def furnished(work):
    """Fill the working folder with what the docs take for granted: two copies of gpt2ish, texts, trained runs."""
    for name in MADE:
        shutil.copytree(ROOT / "experiments" / "gpt2ish", work / "experiments" / name)
    (work / "books").mkdir()
    for number, name in enumerate(("books/one.txt", "books/two.txt", "story.txt", "stories.txt", "unseen.txt")):
        (work / name).write_text(make_text(40, number), encoding="utf-8")
    for name, fixture in (("RUN_A", "gpt2ish"), ("RUN_B", "llama2")):
        shutil.copytree(FIXTURES / "runs" / fixture, work / "gpt_out" / name)
    return work


def words_of(command: str) -> list[str]:
    """Return the words of a command as the shell passes them on; patterns of files as in the current folder."""
    words = shlex.split(command)[1:]
    return [
        name
        for word in words
        for name in (sorted(map(str, Path().glob(word))) if "*" in word and "/" in word else [word])
    ]


def parsed(command: str) -> argparse.Namespace:
    parser = importlib.import_module(COMMANDS[command.split()[0]]).parser()
    return parser.parse_args(words_of(command))


def names_of(value) -> list[str]:
    return [] if value is None else [str(one) for one in value] if isinstance(value, (list, tuple)) else [str(value)]


@pytest.mark.parametrize(("path", "command"), ALL)
def test_commands_are_real(path, command, furnished, capsys):
    """The parser of the command takes it, and its experiments, plans, files and runs are there."""
    try:
        typed = vars(parsed(command))
    except SystemExit as end:
        assert end.code == 0, capsys.readouterr().err  # --help and --version
        return
    for spec in [*names_of(typed.get("exp")), *names_of(typed.get("baseline")), *names_of(typed.get("bolt_on"))]:
        if spec != "list" and spec.lower() not in RUNS:
            registry.find(spec)
    for plan in names_of(typed.get("training_plan")):
        if plan != "list":
            load_plan(plan)
    for file in [*names_of(typed.get("data")), *names_of(typed.get("files")), *names_of(typed.get("score"))]:
        assert Path(file).is_file(), file
    for run in [*names_of(typed.get("run")), *names_of(typed.get("runs")), *names_of(typed.get("initial_model"))]:
        run = run.split("/checkpoints/")[0].removeprefix("gpt_out/")
        assert (
            run.lower() in RUNS or run.startswith("hf:") or re.fullmatch(r"[\w.-]+-\w+_\w+(_[\w.-]+(=[\w.+-]+)?)*", run)
        ), run


def flags(parser: argparse.ArgumentParser) -> set[str]:
    """Return the flags of a command, those of its subcommands included."""
    found = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found |= {flag for one in action.choices.values() for flag in flags(one)}
    return found


@pytest.mark.parametrize("path", DOCS, ids=where)
def test_flags_in_prose_are_real(path):
    """A flag in a code span belongs to the command that stands before it, or else to one of the seven."""
    known = {name: flags(importlib.import_module(module).parser()) for name, module in COMMANDS.items()}
    page = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for span in re.findall(r"`([^`\n]+)`", page):
        first = span.split()[0]
        if first not in COMMANDS and not first.startswith("--"):
            continue
        allowed = known.get(first) or set().union(*known.values())
        for flag in re.findall(r"(?<!\S)--[a-z][\w-]*", span):
            assert flag in allowed, f"{where(path)}: {span}"


# commands that tests of their own run: tests/compare, tests/probe, tests/convert, tests/generate, tests/cli
ASKED_ELSEWHERE = {
    f"docs/{page}.md" for page in ("agents", "cleanmodel", "generating", "plots", "probes", "runs", "verdicts")
}
RUN_BLOCKS = [
    pytest.param(
        text, id=f"{where(path)} {number}", marks=pytest.mark.thorough if where(path) in ASKED_ELSEWHERE else ()
    )
    for path in DOCS
    for number, (run, text) in enumerate(blocks(path.read_text(encoding="utf-8")))
    if run
]


def test_every_command_has_a_block_that_runs():
    run = {command.split()[0] for block in RUN_BLOCKS for command in commands(block.values[0])}
    assert run == set(COMMANDS) - {"lmp_eval"}  # its package is an extra: tests/generate/test_harness.py runs it


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("text", RUN_BLOCKS)
def test_marked_blocks_run(text, furnished):
    """Run the commands one after the other, each as a process; a pipe hands the output of one to the next."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = ""
    for line in text.splitlines():
        for number, command in enumerate(commands(line)):
            name = command.split()[0]
            words = [*words_of(command), *SMALL.get(name, [])]
            done = subprocess.run(
                [sys.executable, "-m", COMMANDS[name], *words],
                input=output if number else "",
                env=environment,
                capture_output=True,
                text=True,
                encoding="utf-8",
                timeout=600,
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            output = done.stdout


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("path", PAGES, ids=where)
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{where(path)}: {target}"
        assert not anchor or anchor in anchors(there), f"{where(path)}: {target}"


def test_commands_of_python_lead_somewhere():
    """`python FILE` and `pytest FILE` name files of the repository."""
    for path in DOCS:
        for file in re.findall(
            r"python (?:-m pytest )?((?:tests|benchmarks)/[\w./]*)", path.read_text(encoding="utf-8")
        ):
            assert (ROOT / file).exists(), f"{where(path)}: {file}"


def test_the_tree_of_rooms_is_up_to_date():
    page = PAGE.read_text(encoding="utf-8")
    assert mended(page) == page, "type: python tests/support/rooms.py"


@pytest.mark.parametrize("page", ["docs/plans.md", "plans/README.md"])
def test_plans_on_pages_are_plans(page, work):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^    \{.*?\n(?!    )", text, re.MULTILINE | re.DOTALL)
    assert found
    for number, plan in enumerate(found):
        (work / f"{number}.json").write_text(plan, encoding="utf-8")
        load_plan(f"{number}.json")


def test_linters_have_one_version():
    """The extra of pyproject.toml, the constraints and the hooks name the same versions."""
    for tool in ("ruff", "mypy"):
        files = ["pyproject.toml", "constraints.txt", *[".pre-commit-config.yaml"] * (tool == "ruff")]
        texts = [(ROOT / file).read_text(encoding="utf-8") for file in files]
        assert len({version for text in texts for version in re.findall(rf"\b{tool}==([\w.]+)", text)}) == 1


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    assert [line for line in lines if len(line) > 120 and not line.startswith("|") and "](" not in line] == []
    listed = {name for line in lines if line.startswith("| `lmp_") for name in re.findall(r"^\| `(lmp_\w+)` \|", line)}
    assert listed == set(COMMANDS)
