"""The code hash: of what the code does, the same on every Python."""

import shutil
import subprocess
from pathlib import Path

import pytest

from lmplay import code_hash, registry

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "tests" / "fixtures" / "code"
STORED = {"sample": "4af4058d10c1be2c129f0786d4262e61", "frozen": "7eb6837befe683f4d17d6cbffe8509c9"}
FOLDERS = {"sample": SAMPLE, "frozen": ROOT / "tests" / "fixtures" / "experiments" / "frozen"}


def hash_of(source: str, folder: Path) -> str:
    (folder / "model.py").write_text(source, encoding="utf-8")
    return code_hash.code_hash(folder, [folder / "model.py"])


@pytest.mark.parametrize("name", STORED)
def test_stored_values(name):
    assert registry.Entry(name, FOLDERS[name]).code_hash == STORED[name]


@pytest.mark.process
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_other_pythons_agree(version):
    """Those of 3.11 to 3.13 that this machine has; pyenv's are found, too."""
    installed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    python = str(installed[-1]) if installed else shutil.which(f"python{version}")
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from lmplay.code_hash import code_hash\n"
        "for name in sys.argv[2:]: print(code_hash(Path(name), Path(name).rglob('*.py')))"
    )
    folders = [SAMPLE, *sorted(path.parent for path in (ROOT / "experiments").glob("*/model.py"))]
    done = subprocess.run([python, "-c", code, ROOT, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [registry.Entry("", folder).code_hash for folder in folders]
    assert len(folders) > 30 and len(set(done.stdout.split())) == len(folders)


SOURCE = '''"""A model."""
import math


class Model:
    """Doc."""

    def forward(self, x):
        """More."""
        return math.sqrt(x) + 1 # why
'''


@pytest.mark.parametrize(
    "same",
    [
        SOURCE.replace("A model.", "Another text."),
        SOURCE.replace("# why", "# for another reason"),
        SOURCE.replace('        """More."""\n', ""),
        SOURCE.replace("\n", "\r\n"),
        SOURCE.replace(
            "math.sqrt(x) + 1",
            "(\n            math.sqrt(\n                x,\n            )\n            + 1\n        )",
        ),
        SOURCE.replace("return", "return  ").replace("\n\n\n", "\n\n"),
        "# coding: utf-8\n" + SOURCE,
    ],
    ids=["docstring", "comment", "no docstring", "line ends", "wrapped", "spaces", "coding"],
)
def test_what_does_nothing_counts_for_nothing(same, tmp_path):
    assert same != SOURCE
    assert hash_of(same, tmp_path) == hash_of(SOURCE, tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        SOURCE.replace("+ 1", "- 1"),
        SOURCE.replace("+ 1", "+ 1.0"),
        SOURCE.replace("+ 1", "+ True"),
        SOURCE.replace("sqrt", "cbrt"),
        SOURCE.replace("(self, x)", "(self, x=None)"),
        SOURCE + "parent = None\n",
        SOURCE.replace("math.sqrt(x) + 1", "math.sqrt(x + 1)"),
        SOURCE.replace("import math", "import math as m, math"),
        SOURCE + "not Python (\n",
        SOURCE + '"a"\n',
    ],
)
def test_what_does_something_counts(other, tmp_path):
    assert other != SOURCE
    assert hash_of(other, tmp_path) != hash_of(SOURCE, tmp_path)


def test_a_constant_and_its_place_are_told_apart(tmp_path):
    assert (
        len(
            {
                hash_of(source, tmp_path)
                for source in (
                    "x = {**a}",
                    "x = {None: a}",
                    "x = [None]",
                    "x = []",
                    "x = None",
                    "x = 'None'",
                    "x = b'None'",
                    "x = ...",
                    "x = a[:1]",
                    "x = a[1:]",
                    "x = a[1]",
                    "f(a, b=c)",
                    "f(a, c)",
                    "def f(a, b): pass",
                    "def f(a, *, b): pass",
                    "def f(a, /, b): pass",
                    "x = f'{a}b'",
                    "x = f'{a}' + 'b'",
                    "x = f'{a!r}b'",
                    "x = f'{a:b}'",
                )
            }
        )
        == 20
    )


def test_deep_nesting(tmp_path):
    long = "x = " + " + ".join(["a"] * 900)
    assert hash_of(long, tmp_path) != hash_of(long + " + a", tmp_path)


def test_files_are_named(tmp_path):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("x = 1\n")
    a, b = tmp_path / "a.py", tmp_path / "b.py"
    assert len({code_hash.code_hash(tmp_path, files) for files in ([a], [b], [a, b])}) == 3
    assert code_hash.code_hash(tmp_path, [b, a]) == code_hash.code_hash(tmp_path, [a, b])


def test_files_that_the_code_names_count(tmp_path):
    """By their names, wherever they lie in the folder, with their bytes; hidden ones and what is not named do not."""
    (tmp_path / "model.py").write_text(
        '"""table.md"""\nA = open(f"{here}/table.txt"), "data\\\\more.bin", "model.py"\n'
    )
    entry, hashes = registry.Entry("one", tmp_path), []
    for name, content in (
        ("table.txt", "[1, 2]"),
        ("table.txt", "[1,2]"),
        ("data/more.bin", "x"),
        ("table.md", "x"),
        (".more.bin", "x"),
        ("__pycache__/more.bin", "x"),
        ("other.txt", "x"),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        hashes.append(entry.code_hash)
    assert len(set(hashes[:4])) == 4 and set(hashes[4:]) == {hashes[3]}
    assert [path.name for path in entry.files] == ["model.py", "more.bin", "table.md", "table.txt"]
    for path in (tmp_path / "table.txt", tmp_path / "data" / "more.bin", tmp_path / "table.md"):
        path.unlink()
    assert entry.code_hash == code_hash.code_hash(tmp_path, [tmp_path / "model.py"])  # as before there was such a thing
