"""Numbers and rows as people have them: whole to the last digit, arrays in a .json, marks between documents."""

import gzip
import json

import pytest

from lmplay import contract, registry
from lmplay.cli import generator, probe, trainer
from lmplay.data import documents
from lmplay.data.local_files import _separated
from lmplay.data.plans import load_plan, plan_from_files
from lmplay.data.prepare import prepare
from lmplay.errors import UserError
from lmplay.runs.settings import Settings
from lmplay.text import read_whole, whole_number
from lmplay.train import settings as settings_module
from support.plan_files import refusal


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e6", 10**6),
        ("2_000_000", 2 * 10**6),
        ("1732700000123456789", 1732700000123456789),
        ("9007199254740993", 2**53 + 1),
        ("1.5e3", 1500),
        ("-3", -3),
        ("10.0e-1", 1),
        *((bad, None) for bad in ("1.5", "nan", "inf", "", "x", "1e-3", "1e999999999", "9" * 50)),
    ],
)
def test_whole_numbers_are_what_is_typed(text, value):
    assert read_whole(text) == value


def test_whole_numbers_of_json_may_be_written_with_an_exponent():
    assert [whole_number(value) for value in (1e6, 5.0, 3, 1.5, True, "1")] == [10**6, 5, 3, 1.5, True, "1"]
    assert isinstance(whole_number(2e53), float)  # not every whole number of that size is a float


@pytest.mark.parametrize(
    "parser, flags",
    [
        (trainer.parser(), ["--seed", "--max-steps", "--max-tokens", "--validation-tokens"]),
        (generator.parser(), ["--seed", "--max-len", "--num-samples", "--top-k"]),
        (probe.parser(), ["--seeds", "--updates", "--batch-size"]),
    ],
)
def test_all_flags_read_whole_numbers_alike(parser, flags, capsys):
    needed = ["--exp", "gpt2ish"] if "--seeds" in flags else []
    for flag in flags:
        typed = vars(parser.parse_args([*needed, flag, "9007199254740993"]))
        assert 9007199254740993 in typed.values()
        assert 2_000 in vars(parser.parse_args([*needed, flag, "2e3"])).values()
        with pytest.raises(SystemExit):
            parser.parse_args([*needed, flag, "1.5"])
        assert "a whole number is expected, not '1.5'" in capsys.readouterr().err


def test_a_seed_is_below_2_to_the_64(tmp_path, capsys):
    assert Settings(seed=2**64 - 1).seed == 2**64 - 1
    for seed in (2**64, 10**20):
        with pytest.raises(UserError, match=r"--seed must be a whole number below 2\^64"):
            Settings(seed=seed)
    assert trainer.main(["--seed", "1e20", "--dump-config"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_config_files_and_plans_read_them_too(tmp_path):
    config = tmp_path / "c.json"
    config.write_text('{"max_tokens": 1e9, "seed": 1732700000123456789, "batch_size": 8.0}')
    read = settings_module.read_config(str(config))
    assert read == {"max_tokens": 10**9, "seed": 1732700000123456789, "batch_size": 8}
    config.write_text('{"batch_size": 8.5}')
    with pytest.raises(UserError, match="batch_size must be a whole number, not 8.5"):
        settings_module.read_config(str(config))
    plan = {"datasets": {"d": {"files": "x.txt", "max_documents": 2e3}}, "steps": [{"datasets": ["d"], "tokens": 1e9}]}
    (tmp_path / "p.json").write_text(json.dumps(plan))
    loaded = load_plan(str(tmp_path / "p.json"))
    assert loaded.phases[0].tokens == 10**9 and isinstance(loaded.phases[0].tokens, int)
    assert loaded.datasets["d"].max_documents == 2000
    whole = {**plan, "steps": [{"datasets": ["d"], "tokens": 10**9}]}
    (tmp_path / "q.json").write_text(json.dumps(whole))
    assert load_plan(str(tmp_path / "q.json")).hash == loaded.hash
    assert "must be a whole number above 0" in refusal(
        tmp_path, {"datasets": {"d": {"files": "x", "max_documents": 1.5}}, "steps": [{"datasets": ["d"]}]}
    )


def test_a_field_of_config_takes_them_to_the_last_digit():
    experiment = contract.load(registry.find("gpt2ish")[0])
    config = experiment.config("tiny", 257, 16, n_embd="9007199254740993", n_layer="1e1")
    assert config.n_embd == 9007199254740993 and config.n_layer == 10
    with pytest.raises(UserError, match="n_layer takes a whole number"):
        experiment.config("tiny", 257, 16, n_layer="1.5")


def texts(files, split="train"):
    plan = plan_from_files([str(file) for file in files])
    (spec,) = plan.datasets.values()
    return [document[0][0] for document in documents.documents(spec, plan.folder, split)]


def all_texts(*files):
    return sorted(texts(files) + texts(files, "validation"))


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_file_may_be_one_array(tmp_path, indent):
    rows = [{"text": f"row {k:02}", "n": k} for k in range(20)]
    for name, opened in (("a.json", open), ("b.json.gz", gzip.open)):
        with opened(tmp_path / name, "wt", encoding="utf-8") as file:
            file.write("\ufeff"[: name == "a.json"] + json.dumps(rows, indent=indent))
        assert all_texts(tmp_path / name) == [row["text"] for row in rows]


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("x.json", '[{"text": "a"}, 3]', "x.json: item 2 of the array is a whole number, not a JSON object"),
        ("x.json", '[{"text": "a"},\n', "x.json: not valid JSON: "),
        ("x.jsonl", '[{"text": "a"}]\n', "x.jsonl:1: each line must be a JSON object, this one is a list (an array of"),
        ("x.json", '{"text": "a"}\n[1]\n', "x.json:2: each line must be a JSON object, this one is a list"),
    ],
)
def test_what_is_no_array_of_objects_is_one_line(tmp_path, name, content, said):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        texts([tmp_path / name])
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_integers_of_any_length_in_columns_that_nobody_asks_for(tmp_path):
    rows = [f'{{"text": "row {k:02}", "digest": {"7" * (5000 if k == 3 else 5)}}}' for k in range(20)]
    (tmp_path / "d.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (tmp_path / "d.json").write_text(f"[{','.join(rows)}]", encoding="utf-8")
    for name in ("d.jsonl", "d.json"):
        assert len(all_texts(tmp_path / name)) == 20


STORIES = [f"story {k} has\n\nlines" for k in range(30)]


@pytest.mark.parametrize("mark", ["<|endoftext|>", "<|end of story|>"])
def test_marks_between_documents_are_named_and_a_plan_can_part_at_them(tmp_path, capfd, mark):
    (tmp_path / "s.txt").write_text(f"\n{mark}\n".join(STORIES), encoding="utf-8")
    dataset = {"files": "s.txt", "validation": {"fraction": 0.5}}
    plan = {"tokenizer": "bytes", "datasets": {"d": dataset}, "steps": [{"datasets": ["d"]}]}
    (tmp_path / "p.json").write_text(json.dumps(plan), encoding="utf-8")
    prepare(load_plan(str(tmp_path / "p.json")))
    said = [line for line in capfd.readouterr().err.splitlines() if mark in line]
    assert len(said) == 2 and all('it ends no document; a plan\'s "separator"' in line for line in said)
    dataset["separator"] = mark
    (tmp_path / "p.json").write_text(json.dumps(plan), encoding="utf-8")
    parted = prepare(load_plan(str(tmp_path / "p.json")))
    assert mark not in capfd.readouterr().err
    assert (parted.train["d"].n_documents, parted.validation["d"].n_documents) == (15, 15)
    tokens = parted.train["d"].tokens(0, 40).tolist()
    assert bytes(tokens[: tokens.index(parted.tokenizer.eot)]).decode() in STORIES


def test_a_separator_is_found_across_the_pieces_that_are_read(tmp_path):
    text = ["a" * (2**20 - 3), "b" * 10, "c" * (2**20 + 5)]
    (tmp_path / "s.txt").write_text("<|end|>".join(text) + "<|end|>\n\n", encoding="utf-8")
    with open(tmp_path / "s.txt", encoding="utf-8") as file:
        assert list(_separated(file, "<|end|>")) == text
