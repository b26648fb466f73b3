"""The sources of installed distributions as text: what is read, held out, and left out as a near-duplicate."""

import json
import sys

import pytest

from lmplay.data import package_sources
from lmplay.data.documents import documents
from lmplay.data.package_sources import DISTRIBUTIONS, Kept, check_distributions, package_origin, shingles
from lmplay.data.plans import load_plan
from lmplay.errors import UserError
from support.small import ROOT


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs made-up distributions: `install("name", {"name/a.py": text})`."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def add(name, files, version="1"):
        for path, text in files.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text("".join(f"{path},sha256=h{path},9\n" for path in files))

    return add


def code(start, lines=20):
    return "".join(f"value_{i} = {i}\n\n" for i in range(start, start + lines))


def test_what_is_read_and_what_is_left_out(install):
    install(
        "made_a",
        {
            "made_a/b.py": code(0),
            "made_a/a.py": code(100),
            "made_a/copy.py": "# a new first line\n" + code(0),  # nearly made_a/b.py
            "made_a/held.py": code(1000),  # nearly what is held out
            "made_a/tests/test_a.py": code(200),
            "made_a/_vendor/x.py": code(300),
            "made_a/data.txt": "no code",
            "made_a/latin.py": b"# \xe9\n",
            "made_a/empty.py": "\n",
        },
    )
    install("made_b", {"made_b/h.py": code(1000) + code(2000)})
    kept = Kept(["made_b"], ["made_a", "made_b"])
    assert [where for where, _ in kept.trained] == ["made_a/made_a/a.py", "made_a/made_a/b.py"]
    assert kept.held_out == [("made_b/made_b/h.py", code(1000) + code(2000))] and kept.dropped == 2
    assert kept.overlap == 0 and "2 near-duplicates left out; 0.00%" in kept.note


def test_the_overlap_that_is_left_is_counted(install):
    install("made_a", {"made_a/a.py": code(0, 8) + code(100, 40)})
    install("made_b", {"made_b/h.py": code(0, 40)})
    kept = Kept(["made_b"], ["made_a", "made_b"])
    ours, theirs = (shingles(text) for ((_, text),) in (kept.held_out, kept.trained))
    assert len(ours) == 36 and len(ours & theirs) == 4 and kept.overlap == pytest.approx(4 / 36)


def test_another_text_is_another_origin(install):
    install("made_a", {"made_a/a.py": code(0)})
    before = package_origin(["made_a"])
    install("made_a", {"made_a/a.py": code(0, 21)})
    assert package_origin(["made_a"]) != before
    with pytest.raises(UserError, match="need no_such_thing, which is not installed: pip install -c constraints.txt"):
        package_origin(["no_such_thing"])


def test_the_plan_and_what_is_refused(tmp_path):
    plan = load_plan("packages")
    spec = plan.datasets["packages"]
    assert set(spec.validation["distributions"]) < set(DISTRIBUTIONS) and not {"transformers", "plotly"} & {
        *DISTRIBUTIONS
    }
    content = {"tokenizer": "bytes", "steps": [{"datasets": ["a"]}]}

    def said(dataset):
        (tmp_path / "p.json").write_text(json.dumps({**content, "datasets": {"a": dataset}}))
        with pytest.raises(UserError) as refused:
            load_plan(str(tmp_path / "p.json"))
        return str(refused.value)

    assert "the packages need 'validation'" in said({"embedded": "packages"})
    assert "Did you mean 'networkx'" in said({"embedded": "packages", "validation": {"distributions": ["netwrkx"]}})
    assert "hold out 'distributions'" in said({"embedded": "packages", "validation": {"fraction": 0.1}})
    assert "hold out 'distributions'" in said({"embedded": "python", "validation": {"distributions": ["sympy"]}})
    with pytest.raises(ValueError, match="nothing to train on"):
        check_distributions(DISTRIBUTIONS)


def test_the_installed_versions_are_those_of_the_constraints():
    """Every distribution is pinned, so that the text is the same on every machine that follows the constraints."""
    pinned = {
        line.partition("==")[0].lower().replace("-", "_") for line in (ROOT / "constraints.txt").open(encoding="utf-8")
    }
    assert {name.lower().replace("-", "_") for name in DISTRIBUTIONS} <= pinned


@pytest.mark.thorough
@pytest.mark.slow
def test_the_shipped_plan_overlaps_little(capsys):
    plan = load_plan("packages")
    spec = plan.datasets["packages"]
    held_out = [text for document in documents(spec, plan.folder, "validation") for text, _ in document]
    kept = package_sources._kept(tuple(spec.validation["distributions"]))
    assert kept.overlap <= 0.03 and 4_000_000 < sum(map(len, held_out)) < 8_000_000
    assert sum(len(text) for _, text in kept.trained) > 80_000_000
