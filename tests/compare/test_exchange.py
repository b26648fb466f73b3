"""The file of a verdict: it gives the same verdict again, and what is wrong with it is refused in one line."""

import hashlib
import io
import json
import random
import shutil
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lmplay.checksums import of_bytes, seal
from lmplay.cli import compare as command
from lmplay.compare.export import export
from lmplay.compare.judged_again import judged_again
from lmplay.compare.request import ComparisonRequest
from lmplay.errors import UserError
from lmplay.registry import read_entry
from lmplay.report.comparison import Arm, compare_arms
from lmplay.runs.run import read_run
from lmplay.runs.settings import Settings
from lmplay.stats.choices import Choice
from lmplay.stats.prior import Prior
from lmplay.stats.sequential import Looks
from support.judged_runs import make_judged_run
from support.small import EXPERIMENTS, TINY

PHASES = {"progress": {"phases": [{"name": "main", "n_updates": 120}], "step": 120}}
PRIOR = Prior(seed_variance=1e-5, df=7.0, source="earlier runs", runs=("old_1", "old_2"))
LOOKS = Looks(5, first=2, confidence=0.9)


@pytest.fixture
def made(work):
    """Exports a comparison of ideas of known effect: (the file, the comparison)."""
    return maker(work)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """One such file: (its bytes, the comparison)."""
    file, found = maker(tmp_path_factory.mktemp("once"))(-0.1, seeds=(0, 1))
    return file.read_bytes(), found


@pytest.fixture
def file(work, once):
    """Such a file, to be changed."""
    path = work / "it.zip"
    path.write_bytes(once[0])
    return path


def maker(work):

    def arm(name, effect=0.0, seeds=(0, 1, 2), choices=(Choice(),), code=""):
        runs = {}
        for i, choice in enumerate(choices):
            runs[choice] = {}
            for seed in seeds:
                folder = work / "gpt_out" / f"{name}_{i}_s{seed}"
                file = make_judged_run(folder, name, seed, effect + 0.01 * i, **PHASES).file
                shutil.copytree(EXPERIMENTS / "gpt2ish", folder / "code" / name, ignore=lambda *_: ["README.md"])
                with open(folder / "code" / name / "model.py", "a") as model:
                    model.write(code)
                info = json.loads(file.read_text())
                kept = {"code_hash": read_entry(folder / "code" / name).code_hash, "code_hash_version": 2}
                info["experiment"] |= kept | {"folder": str(Path.home() / "secret")}
                info["process"] = {"host": "a-secret-host"}
                file.write_text(json.dumps(info))
                runs[choice][seed] = read_run(folder)
        return Arm(f"{name}:tiny", runs)

    def make(*effects, prior=None, looks=None, within=None, **more):
        ideas = [arm(f"idea{'x' * i}", effect, **more) for i, effect in enumerate(effects)]
        found = compare_arms(
            arm("gpt2ish", **more),
            ideas,
            prior_of=lambda run, other: prior,
            confidence_of=lambda pairs: looks.confidence_at(max(pairs, looks.first)) if looks else 0.8,
            margin=within,
        )
        settings = Settings(out=str(work / "gpt_out"))
        request = ComparisonRequest("gpt2ish", ("idea",), settings, confidence=0.8, within=within)
        export(found, request, looks, work / "it.zip")
        return work / "it.zip", found

    return make


def verdicts(found):
    return [(one.arm.label, one.verdict, one.savings, one.at_equal, one.warnings) for one in found.candidates]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"prior": PRIOR, "looks": LOOKS, "within": 0.05},
        {"choices": (Choice((("lr", 0.001),)), Choice((("lr", 0.01),)))},
        {"code": "\nimport pathlib\npathlib.Path('was_run').touch()\nraise SystemExit\n"},
    ],
    ids=["plain", "prior, looks and margin", "tuned", "code that would show"],
)
def test_the_same_verdict_from_the_numbers_alone(made, work, how):
    file, found = made(-0.1, 0.02, **how)
    shutil.rmtree(work / "gpt_out")
    with judged_again(file) as again:
        assert verdicts(again.comparison) == verdicts(found)
        assert again.comparison.baseline.loss == found.baseline.loss
        assert not any("states" in line for line in again.said)
        assert any("not in the file" in line for line in again.said) == ("prior" in how)
        assert len(again.runs) == 9 * len(how.get("choices", "1"))
    assert not (work / "was_run").exists() and not (work / "gpt_out").exists()
    assert file.stat().st_size < 500_000


def test_what_is_in_it(file, work):
    with zipfile.ZipFile(file) as archive:
        names, page = archive.namelist(), archive.read("page.html").decode()
        everything = b"".join(map(archive.read, names)).decode("utf-8", errors="replace")
    assert {Path(name).suffix for name in names} == {".json", ".html", ".csv", ".npy", ".py"}
    assert not any(secret in everything for secret in (str(Path.home() / "secret"), "a-secret-host", str(work)))
    # the page is whole: pictures, table and change of the code, and nothing that runs or is fetched
    assert page.count("<img") == 2 and "better by" in page and "idea:tiny" in page and "default-src 'none'" in page
    assert "<script" not in page and "{{" not in page and 'src="http' not in page and "href=" not in page


def rewritten(file: Path, change, resum=True) -> Path:
    """Change the members of a file, {name: bytes}, and give it new checksums."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    content = json.loads(members["verdict.json"])
    change(members, content)
    if resum:
        for name in [name for name in members if name.endswith("/run.json")]:
            info, inside = json.loads(members[name]), name.removesuffix("run.json")
            for part in info["checksums"]:
                if inside + part in members:
                    info["checksums"][part] = [len(members[inside + part]), of_bytes(members[inside + part])]
            members[name] = json.dumps(seal(info)).encode()
        sums = {n: [len(d), hashlib.sha256(d).hexdigest()] for n, d in members.items() if n != "verdict.json"}
        members["verdict.json"] = json.dumps(seal(content | {"checksums": sums})).encode()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file


def test_a_claim_that_its_numbers_do_not_bear_out_is_told(file):
    def claim(members, content):
        content["claim"]["candidates"][0]["verdict"] |= {"word": "worse", "low": -9.0}

    with judged_again(rewritten(file, claim)) as again:
        (said,) = [line for line in again.said if "states" in line]
        assert (
            said.startswith("idea:tiny: the file states worse (-9.0000")
            and again.comparison.candidates[0].word == "better"
        )


def in_run(name, data):
    def change(members, content):
        members[f"runs/0001/{name}"] = data(members.get(f"runs/0001/{name}", b""))

    return change


def in_json(change):
    return lambda members, content: change(content)


def losses(value):
    file = io.BytesIO()
    np.save(file, np.full(4, value))
    return file.getvalue()


RUN = {"runs": {"0": "runs/0001"}}
HOSTILE = {
    "a path that leads out": in_run("../../../../out.py", lambda _: b"x"),
    "a hidden file": in_run("code/.git/config", lambda _: b"x"),
    "a backslash": in_run("code\\..\\out.py", lambda _: b"x"),
    "a drive": in_run("C:out.py", lambda _: b"x"),
    "another file": lambda members, content: members.update({"evil.py": b""}),
    "twice, except for its case": in_run("VALIDATE.csv", lambda _: b"x"),
    "a missing table": lambda members, content: members.pop("runs/0001/validate.csv"),
    "missing losses": lambda members, content: members.pop("runs/0001/validate_documents/main_00000120.npy"),
    "a missing run": lambda members, content: [members.pop(n) for n in list(members) if n.startswith("runs/0001")],
    "no code": lambda members, content: [members.pop(n) for n in list(members) if n.startswith("runs/0001/code")],
    "other code": in_run("code/gpt2ish/model.py", lambda data: data + b"\nimport os\n"),
    "losses of another run": in_run("validate_documents/main_00000120.npy", lambda _: losses(1.0)),
    "losses that are huge": in_run("validate_documents/main_00000120.npy", lambda _: losses(1e308)),
    "losses that are none": in_run("validate_documents/main_00000120.npy", lambda _: losses(np.nan)),
    "pickled losses": in_run("validate_documents/main_00000120.npy", lambda _: b"\x80\x04K\x01."),
    "a huge step": in_run("validate.csv", lambda data: data.replace(b"120.0", b"1e300")),
    "an object for a word": in_json(lambda content: content.update(lmplay=[], claim=[])),
    "a margin below 0": in_json(lambda content: content["rules"].update(margin=-1.0)),
    "a confidence of 2": in_json(lambda content: content["rules"].update(confidence=2)),
    "looks without end": in_json(
        lambda c: c["rules"].update(looks={"max_seeds": 10**9, "first": 2, "confidence": 0.9})
    ),
    "a seed that is huge": in_json(lambda content: content["arms"][0].update(first_seed=10**300)),
    "one run in both arms": in_json(lambda content: content["arms"][1].update(choices=[RUN | {"values": []}, 3])),
    "no arms": in_json(lambda content: content.update(arms=[])),
    "a spread below 0": in_json(lambda c: c.update(priors=[{"seed_variance": -1, "df": 1, "source": "", "runs": []}])),
    "a newer format": in_json(lambda content: content.update(format=99)),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_what_does_not_fit_is_refused(file, work, capfd, change):
    before = sorted(work.rglob("*"))
    assert command.main(["--from", str(rewritten(file, change))]) == 2
    out, err = capfd.readouterr()
    assert err.count("\n") == 1 and "it.zip" in err and out == "" and sorted(work.rglob("*")) == before


def as_bomb(data: bytes) -> bytes:
    """Let the largest file say that it has 2 GiB."""
    return data.replace(struct.pack("<L", len(b"a" * 10**6)), struct.pack("<L", 2**31 - 1))


def plain_zip(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("_", "."), data)
    return file.getvalue()


def with_link() -> bytes:
    file, info = io.BytesIO(), zipfile.ZipInfo("runs/0000/run.json")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    return file.getvalue()


DAMAGED = {
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "no ZIP": lambda data: b"PK" * 5000,
    "with a comment": lambda data: data[:-2] + b"\5\0hello",
    "another checksum": lambda data: data.replace(b"validate.csv", b"validate.CSV"),
    "a bomb": lambda data: as_bomb(plain_zip(verdict_json=b"a" * 10**6)),
    "too much to unpack": lambda data: plain_zip(verdict_json=bytes(2**26 + 1)),
    "a link": lambda data: with_link(),
    "numbers without end": lambda data: plain_zip(verdict_json=b'{"format": 1' + b"0" * 10**6 + b"}"),
    "nested": lambda data: plain_zip(verdict_json=b"[" * 10**6),
    "not a number": lambda data: plain_zip(verdict_json=b'{"format": NaN, "checksums": {}}'),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_what_is_no_such_file_is_refused(file, capfd, damage):
    file.write_bytes(damage(file.read_bytes()))
    assert command.main(["--from", str(file)]) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_no_flipped_bit_changes_a_verdict(file, once):
    (data, found), draw = once, random.Random(5)
    for _ in range(60):
        broken = bytearray(data)
        broken[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(broken)
        try:
            with judged_again(file) as again:
                assert verdicts(again.comparison) == verdicts(found)
        except UserError as error:
            assert "\n" not in str(error)


def test_flags_that_do_not_go_together(work, capfd):
    for words, said in (
        (["--repeat"], "--from"),
        (["--from", "a.zip", "--exp", "llama2"], "--exp"),
        (["--from", "a.zip", "--lr", "0.1"], "--lr"),
        (["--from", "a.zip", "--batch-size", "3"], "--batch-size"),
        (["--from", "a.zip"], "a.zip"),
        (["--exp", "llama2", "--export", "a.txt"], ".zip"),
        (["--exp", "llama2", "--export", "a.zip", "--dry-run"], "--dry-run"),
    ):
        assert command.main(words) == 2
        err = capfd.readouterr().err
        assert said in err and err.count("\n") == 1


@pytest.mark.process
def test_a_comparison_is_exported_judged_again_and_repeated(plans, work, capfd):
    small = ["--training-plan", plans["plain"], *TINY[2:], "--max-steps", "6", "--validation-tokens", "1000"]
    sides = ["--exp", "llama2:tiny", "--baseline", "gpt2ish:tiny", "--seeds", "1", "--no-report"]
    assert command.main([*sides, *small, "--export", "it.zip"]) == 0
    stated = capfd.readouterr().out.splitlines()
    shutil.move("gpt_out", "theirs")

    def repeat(*words):
        status = command.main(["--from", "it.zip", "--repeat", *words, "--json", "found.json"])
        return status, capfd.readouterr().out, json.loads(Path("found.json").read_text()).get("repeat")

    status, said, found = repeat()
    assert status == 0 and set(stated) - {""} <= set(said.splitlines()) and "llama2:tiny, seed 0" in said
    assert found["equal"] is True and "equal to the bit" in said and found["machine_differs"] == []
    # with other threads it is another machine, and how far those lie apart must be known
    status, said, found = repeat("1", "--threads", "2")
    assert status == 0 and found["machine_differs"] == ["threads 2 instead of 1"]
    assert found["equal"] or "neither yes nor no" in said

    def other_rate(members, content):
        info = json.loads(members["runs/0000/run.json"])
        info["settings"]["lr"] = 0.1
        members["runs/0000/run.json"] = json.dumps(info).encode()

    # another rate is another run: on the same kind of machine it is no repetition
    rewritten(work / "it.zip", other_rate)
    status, said, found = repeat("0")
    assert status == 0 and found["equal"] is False and found["within"] is None and "is no repetition" in said
    assert repeat("0", "--data", __file__)[0] == 2
