"""Finding, reading, copying and comparing experiment folders, without running them."""

import ast
import json
import re
from pathlib import Path

import pytest

from lmplay import code_diff, registry
from lmplay.errors import UserError
from support.small import EXPERIMENTS

MODEL = '''"""A summary.

More of it."""
{first}
class Config: pass
class Model: pass
'''


@pytest.fixture
def make(work):
    def make(name, first="", source=None, root="experiments"):
        folder = work / root / name
        folder.mkdir(parents=True)
        (folder / "model.py").write_text(source or MODEL.format(first=first), encoding="utf-8")
        return folder

    return make


def test_reads_without_running(make):
    entry = registry.read_entry(
        make(
            "one",
            "raise RuntimeError('it ran')\nparent = 'gpt2ish'\n"
            "variants: dict = {'a': dict(n_layer=2), 'b': {'x': -1.5}}",
        )
    )
    assert (entry.name, entry.summary, entry.parent, entry.error) == ("one", "A summary.", "gpt2ish", None)
    assert entry.variants == {"a": {"n_layer": 2}, "b": {"x": -1.5}}


def test_without_variants_there_is_one(make):
    assert registry.read_entry(make("one")).variants == {"default": {}}
    assert registry.read_entry(make("two", "variants = {}")).variants == {"default": {}}


@pytest.mark.parametrize(
    "source, reason",
    [
        ("def broken(:", "line 1"),
        ("x = 1\n\0", "null"),
        ("(" * 300 + ")" * 300, "nested"),
        ("-" * 100_000 + "1", ""),
        ("class Config: pass", "no class Model"),
        ("class Model: pass", "no class Config"),
        (MODEL.format(first="variants = make()"), "variants is not a plain literal (line 4)"),
        (MODEL.format(first="variants = {[1]: {}}"), "variants is not a plain literal"),
        (MODEL.format(first="variants = {'a': 1}"), "variants is not a dictionary"),
        (MODEL.format(first="variants = {6: dict()}"), "variants is not a dictionary"),
        (MODEL.format(first="variants = ['a']"), "variants is not a dictionary"),
        (MODEL.format(first="parent = 3"), "parent is not a name"),
    ],
)
def test_what_cannot_be_read_says_why(make, source, reason):
    make("broken", source=source)
    make("fine")
    entries = {entry.name: entry for entry in registry.list_experiments()}
    assert entries["broken"].error and reason in entries["broken"].error and "\n" not in entries["broken"].error
    assert entries["fine"].error is None
    with pytest.raises(UserError, match="'broken' can't be read"):
        registry.find("broken")


def test_variants_of_extras_follow_those_of_the_model(make):
    folder = make("one", "variants = {'a': {'n': 1}, 'b': {}}")
    (folder / "extras.py").write_text("raise RuntimeError('it ran')\nvariants = {'c': dict(n=3), 'a': {'n': 2}}")
    assert list(registry.read_entry(folder).variants.items()) == [("a", {"n": 1}), ("b", {}), ("c", {"n": 3})]
    assert registry.find("one:c")[1] == "c" and registry.find("one")[1] == "a"
    (folder / "extras.py").write_text("def import_weights(weights): pass\n")
    assert list(registry.read_entry(folder).variants) == ["a", "b"]
    only = make("two")
    (only / "extras.py").write_text("variants = {'c': {}}")
    assert list(registry.read_entry(only).variants) == ["default", "c"]


@pytest.mark.parametrize(
    "source, reason",
    [
        ("def broken(:", "extras.py: invalid syntax (line 1)"),
        ("\nvariants = make()", "extras.py: variants is not a plain literal (line 2)"),
        ("variants = {'a': 1}", "extras.py: variants is not a dictionary"),
    ],
)
def test_extras_that_cannot_be_read_say_why(make, source, reason):
    folder = make("broken")
    (folder / "extras.py").write_text(source)
    entry = {entry.name: entry for entry in registry.list_experiments()}["broken"]
    assert entry.error.startswith(reason) and entry.docstring
    with pytest.raises(UserError, match="'broken' can't be read: extras.py: .*broken"):
        registry.find("broken")


def test_extras_are_left_behind_and_passed_over_and_part_of_the_code(make):
    folder = make("one", "variants = {'a': {}}")
    alone = registry.read_entry(folder)
    before = alone.code_hash
    (folder / "extras.py").write_text("variants = {'c': {}}")
    entry = registry.read_entry(folder)
    new = registry.read_entry(registry.copy_experiment(entry, "two"))
    assert list(new.variants) == ["a"] and [p.name for p in new.folder.iterdir()] == ["model.py"]
    assert "extras" not in code_diff.diff(new, entry) and "extras" not in code_diff.diff(entry, new)
    assert [p.name for p in entry.code_files] == ["extras.py", "model.py"] and entry.code_hash != before


def test_defaults_of_a_config_are_read_without_running_it(make):
    source = """raise RuntimeError('it ran')
@dataclass
class Config:
    \"\"\"Fields.\"\"\"
    vocab_size: int
    width: int = 4
    rate: float = -0.5
    size: int = 4 * WIDTH
    name: str | None = None
    parts: tuple = (1, 2)
    count = 7

class Model: pass
"""
    fields = {"width": 4, "rate": -0.5, "name": None, "parts": (1, 2)}
    assert registry.config_defaults(registry.read_entry(make("one", source=source))) == fields
    elsewhere = make("two", source="from .parts import Config\nclass Model: pass\n")
    assert registry.config_defaults(registry.read_entry(elsewhere)) == {}
    (elsewhere / "parts.py").write_text(source)
    assert registry.config_defaults(registry.read_entry(elsewhere)) == fields
    assert registry.config_defaults(registry.Entry("none", elsewhere / "none")) == {}
    assert registry.config_defaults(registry.read_entry(make("three", source="def broken(:"))) == {}
    known = registry.config_defaults(registry.find("gpt2ish")[0])
    assert known["n_layer"] and "vocab_size" in known


def test_search_path(make, monkeypatch, tmp_path):
    """The working folder comes first, then the installed experiments, then $LMPLAY_EXPERIMENTS."""
    make("gpt2ish", "parent = 'mine'")
    elsewhere = make("other", root="elsewhere").parent
    make("gpt2ish", "parent = 'not me'", root="more")
    monkeypatch.setenv("LMPLAY_EXPERIMENTS", f"{elsewhere}:{tmp_path / 'nowhere'}:{elsewhere.parent / 'more'}")
    entries = {entry.name: entry for entry in registry.list_experiments()}
    assert entries["gpt2ish"].parent == "mine" and entries["other"].folder == elsewhere / "other"
    assert "llama2" in entries
    assert list(entries) == sorted(entries)


def test_hidden_folders_and_files_are_passed_over(make, work):
    for name in (".copying", "_template", "__pycache__"):
        make(name)
    (work / "experiments" / "no_model").mkdir()
    (work / "experiments" / "README.md").touch()
    assert not {".copying", "_template", "__pycache__", "no_model"} & {
        entry.name for entry in registry.list_experiments()
    }


def test_find(make):
    make("my_idea", "variants = {'Small_Deep': {}, 'big': {}}")
    for spec in ("my_idea", "my-idea", "MY_IDEA", "my_idea:", "my-idea:small-deep"):
        entry, variant = registry.find(spec)
        assert (entry.name, variant) == ("my_idea", "Small_Deep")
    assert registry.find("my_idea:big")[1] == "big"
    with pytest.raises(UserError, match="no experiment named 'my_ide'. Did you mean 'my_idea'?"):
        registry.find("my_ide")
    with pytest.raises(UserError, match="no variant 'bi'. Did you mean 'big'?"):
        registry.find("my_idea:bi")
    with pytest.raises(UserError, match="no variant 'x'. Known: Small_Deep, big"):
        registry.find("my_idea:x")


@pytest.mark.parametrize(
    "first, copied",
    [
        ("parent = None\n", 'parent = "one"\n'),
        ("parent: str = (\n 'x')\n", 'parent = "one"\n'),
        ("x = '\\x0c'  # \x0c a form feed is no new line\nparent = 'a'\n", None),
        ("", None),
        ("from __future__ import annotations\n", None),
    ],
)
def test_copy_sets_the_parent(make, first, copied):
    folder = make("one", first)
    (folder / "helper.py").write_text("x = 1\n")
    (folder / "__pycache__").mkdir()
    new = registry.copy_experiment(registry.read_entry(folder), "two")
    source = (new / "model.py").read_text()
    compile(source, "model.py", "exec")
    entry = registry.read_entry(new)
    assert entry.parent == "one" and entry.summary.startswith("two: one, changed.") and entry.error is None
    assert all(f"{word}: " in entry.docstring for word in ("Idea", "Change", "Claim", "Source"))
    assert sorted(p.name for p in new.iterdir()) == ["helper.py", "model.py"]
    assert source.count("parent") == 1
    if copied:
        stub, _, rest = MODEL.format(first=copied).partition('"""')[2].partition('"""')
        assert stub.startswith("A summary.") and source.startswith('"""two: ') and source.endswith(f'"""{rest}')
    assert not [p for p in new.parent.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("name", ["one", "ONE", "taken", "gpt2ish", "a/b", "../x", "", "1st", "a b", ".x"])
def test_copy_refuses(make, work, name):
    folder = make("one")
    (work / "experiments" / "taken").mkdir()
    (work / "experiments" / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(UserError):
        registry.copy_experiment(registry.read_entry(folder), name)
    assert sorted(p.name for p in (work / "experiments").iterdir()) == ["one", "taken"]


def test_diff(make):
    one, two = make("one", "x = 1"), make("two", "x = 2")
    (two / "helper.py").write_text("new = True")
    text = code_diff.diff(registry.read_entry(two), registry.read_entry(one))
    assert "-x = 1\n+x = 2\n" in text and "+new = True\n" in text
    assert "--- one/model.py" in text and "+++ two/model.py" in text
    assert code_diff.diff(registry.read_entry(one), registry.read_entry(one)) == ""


def test_diff_passes_over_docstrings_and_counts_their_lines(make):
    code = "".join(f"a{i} = {i}\n" for i in range(9)) + "class Config: ...\nclass Model: ...\n"
    one = make("one", source=f'"""One."""\n{code}')
    two = make("two", source=f'"""Two.\n\nAnd more.\n"""\n{code.replace("a7 = 7", "a7 = 8")}')
    text = code_diff.diff(registry.read_entry(two), registry.read_entry(one))
    assert "more" not in text and "-a7 = 7\n+a7 = 8\n" in text
    assert "@@ -6,7 +9,7 @@\n a4" in text  # lines of the files: a4 is the sixth of one, the ninth of two


def test_installed_experiments_are_found():
    names = {entry.name for entry in registry.list_experiments()}
    assert {path.parent.name for path in EXPERIMENTS.glob("*/model.py")} <= names
    assert registry.DEFAULT_EXPERIMENT in names
    for entry in registry.list_experiments():
        ast.parse((entry.folder / "model.py").read_bytes())


def test_names_of_the_playground_before_mean_experiments_here(work):
    """Each is a variant that is there, and its comment in model.py says the name."""
    former = json.loads((Path(__file__).resolve().parents[1] / "experiments/former_names.json").read_text())
    for name, spec in former.items():
        entry, variant = registry.find(name)
        assert f"{entry.name}:{variant}" == spec
        if entry.name != "gpt2ish":
            assert re.search(rf"\b{name}\b", (entry.folder / "model.py").read_text(encoding="utf-8"))
    assert former["ue8x"] == "unified_embedding:8x" and former["nnm3_1"] == "memory_experts:64_cells"
    with pytest.raises(UserError, match="no experiment named 'ue9x'"):
        registry.find("ue9x")
