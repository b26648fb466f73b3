"""What may import what, who knows whom by name, and what is loaded when."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "lmplay").rglob("*.py"))
}
# One line per room: what it may import besides itself. Loose modules of lmplay/ count as rooms of their own.
BASE = {
    "version",
    "code_diff",
    "errors",
    "files",
    "checksums",
    "text",
    "registry",
    "code_hash",
    "random_numbers",
    "attributes",
}
BASE |= {"crashes", "own_files", "kept_answers", "initial_values", "surroundings"}
LOWER = BASE | {"contract", "data", "model", "stats", "runs"}
ROOMS = {
    "version": set(),
    "lmplay": {"version"},
    "errors": set(),
    "files": {"errors"},
    "checksums": set(),
    "own_files": {"errors", "files"},
    "kept_answers": {"files"},
    "machine": set(),
    "text": set(),
    "code_hash": set(),
    "registry": {"errors", "files", "code_hash", "text"},
    "code_diff": {"code_hash", "registry"},
    "output": set(),
    "crashes": {"errors", "files"},
    "processes": set(),
    "random_numbers": set(),
    "initial_values": {"random_numbers"},
    "attributes": set(),
    "surroundings": {"crashes"},
    "config_fields": {"errors", "text"},
    "contract": {"config_fields", "crashes", "errors", "registry", "random_numbers", "surroundings"},
    "data": {"errors", "files", "checksums", "machine", "text", "processes"},
    "model": BASE | {"contract", "machine"},
    "stats": {"errors", "text"},
    "runs": BASE | {"contract", "data", "stats"},
    "generate": LOWER,
    "report": LOWER,
    "convert": LOWER,
    "track": LOWER,
    "train": LOWER | {"generate", "machine", "output", "processes"},
    "compare": LOWER | {"train", "report", "machine"},
    "probe": LOWER | {"compare", "train", "report"},
    "api": LOWER | {"compare", "report", "generate"},
    "cli": LOWER | {"output", "api", "probe", "compare", "train", "report", "convert", "generate", "track"},
}
LONGEST_FILE = 350
HEAVY = {
    "gguf",
    "lm_eval",
    "torch",
    "pandas",
    "matplotlib",
    "datasets",
    "tokenizers",
    "tiktoken",
    "sentencepiece",
    "scipy",
    "safetensors",
    "pyarrow",
    "transformers",
    "plotly",
    "numpy",
    "tqdm",
    *("wandb", "trackio", "mlflow", "tensorboard"),
}


def room_of(module: str) -> str:
    """Return the room of a module: the folder it is in, or its own name."""
    return (module.split(".") + ["lmplay"])[1 if module != "lmplay" else 0]


def imports_of(path: Path):
    """Yield (line, module) for each import from lmplay, wherever in the file, imports for type hints included."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] == "lmplay")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            if node.module.split(".")[0] == "lmplay":
                for a in node.names:
                    whole = f"{node.module}.{a.name}"
                    yield node.lineno, whole if whole in MODULES else node.module


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    allowed = ROOMS[room_of(module)] | {room_of(module)}
    for line, imported in imports_of(MODULES[module]):
        assert room_of(imported) in allowed, f"{MODULES[module]}:{line} imports {imported}"


def test_rooms_have_no_circles():
    """What a room may import never leads back to it."""
    done: set[str] = set()
    while len(done) < len(ROOMS):
        free = {room for room in ROOMS.keys() - done if ROOMS[room] <= done}
        assert free, f"a circle among {sorted(ROOMS.keys() - done)}"
        done |= free


def test_no_circles():
    graph = {m: {i for _, i in imports_of(p)} for m, p in MODULES.items()}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for imported in graph.get(module, ()):
                visit(imported)
            done.add(path.pop())

    for module in graph:
        visit(module)


def test_the_harness_names_no_experiment_but_the_default():
    """In strings and in names; texts that are for reading (docstrings, help) may give examples."""
    from lmplay.registry import DEFAULT_EXPERIMENT

    names = {path.parent.name for path in (ROOT / "experiments").glob("*/model.py")} - {DEFAULT_EXPERIMENT}
    assert names
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_bytes())):
            found = {ast.Constant: "value", ast.Name: "id", ast.Attribute: "attr"}.get(type(node))
            if found == "attr" and isinstance(node.value, ast.Name) and node.value.id == "torch":
                continue  # torch.gru is torch's
            assert not found or getattr(node, found) not in names, f"{path}:{node.lineno} names an experiment"


def test_harness_files_are_short():
    for path in MODULES.values():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE, path


@pytest.mark.process
@pytest.mark.parametrize(
    "command",
    [
        ["lmplay.cli.trainer", "--help"],
        ["lmplay.cli.trainer", "--exp", "list"],
        ["lmplay.cli.trainer", "--dump-config"],
        ["lmplay.cli.trainer", "--version"],
        ["lmplay.cli.plotstats", "--help"],
        ["lmplay.cli.generator", "--help"],
        ["lmplay.cli.compare", "--help"],
        ["lmplay.cli.probe", "--help"],
        ["lmplay.cli.tokenizer", "train", "--help"],
        ["lmplay.cli.cleanmodel", "--help"],
    ],
    ids=" ".join,
)
def test_quick_answers_load_nothing_heavy(command, tmp_path):
    module, *flags = command
    if module not in MODULES:
        pytest.skip(f"there is no {module}")
    code = (
        f"import sys\nfrom {module} import main\n"
        f"try:\n    status = main({flags!r})\nexcept SystemExit as end:\n    status = end.code\n"
        f"print('HEAVY', *sorted({HEAVY!r} & sys.modules.keys()), file=sys.stderr)\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr.split("HEAVY")[1].split() == []
