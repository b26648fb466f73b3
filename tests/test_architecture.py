"""The shape of the house: what may import what, who knows whom by name, and what is loaded when."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted((ROOT / "lmplay").rglob("*.py"))
}
# Each may import those further down, and its own. (generate looks into a run's folder, which training writes: checkpoints.)
FLOORS = [
    ("lmplay.cli",),
    ("lmplay.probe",),
    ("lmplay.compare",),
    ("lmplay.clean_hf",),
    ("lmplay.clean",),
    ("lmplay.train.loop", "lmplay.train.run", "lmplay.train.samples"),
    ("lmplay.scoring", "lmplay.dumping"),
    ("lmplay.generate",),
    ("lmplay.train",),
    ("lmplay.stats",),
    ("lmplay.data", "lmplay.contract"),
    ("lmplay.registry",),
    ("lmplay.files",),
    ("lmplay.errors", "lmplay"),
]
HEAVY = {
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
}


def floor_of(module: str) -> int:
    fits = [
        (len(name), floor)
        for floor, names in enumerate(FLOORS)
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    return max(fits)[1]


def imports_of(path: Path):
    """(line, module) of what a file imports from lmplay, wherever in it, but for the sake of type hints."""
    tree = ast.parse(path.read_bytes())
    hints = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hints:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.split(".")[0] == "lmplay")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            if node.module.split(".")[0] == "lmplay":
                for a in node.names:
                    whole = f"{node.module}.{a.name}"
                    yield node.lineno, whole if whole in MODULES or f"{whole}.__init__" in MODULES else node.module


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    own = module.removesuffix(".__init__")
    for line, imported in imports_of(MODULES[module]):
        if imported == own or imported.rpartition(".")[0] == own.rpartition(".")[0] != "lmplay":
            continue
        assert floor_of(imported) >= floor_of(own), f"{MODULES[module]}:{line} imports {imported}"


def test_no_circles():
    graph = {m.removesuffix(".__init__"): {i for _, i in imports_of(p)} for m, p in MODULES.items()}
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
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


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
        f"import sys; sys.argv = ['command', *{flags!r}]\n"
        f"from {module} import main\n"
        "try:\n    status = main()\nexcept SystemExit as end:\n    status = end.code\n"
        f"print('HEAVY', *sorted({HEAVY!r} & sys.modules.keys()), file=sys.stderr)\n"
        "sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr.split("HEAVY")[1].split() == []
