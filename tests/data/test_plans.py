"""Plans: what is accepted, what is refused and in which words, where they are found."""

import dataclasses
import json
import subprocess
import sys

import pytest

from lmplay.data.plan_spec import DatasetSpec, PhaseSpec, Plan
from lmplay.data.plans import FORMER_NAMES, BrokenPlan, list_plans, load_plan, plan_from_files
from lmplay.errors import UserError
from support.plan_files import refusal, write

SHIPPED = {
    "default",
    "quick",
    "tinystories",
    "wiki_en",
    "wiki_es",
    "medium_mix",
    "cosmopedia_v2",
    "openorca",
    "orcamathword200",
    "smoltalk",
    "refinedweb",
    "fineweb_edu",
    "fineweb",
    "climbmix",
    "packages",
    "pretrain",
    "pretrain_part",
    "instruction_ft",
    "full",
}


def plan(**changes):
    """A small right plan, with changes at paths such as datasets__a__split; None removes a key."""
    content = {
        "description": "d",
        "tokenizer": "bytes",
        "datasets": {"a": {"hub": "x/y"}, "b": {"files": "*.txt"}},
        "steps": [{"name": "s", "datasets": ["a", "b"]}],
    }
    for path, value in changes.items():
        *inner, last = path.split("__")
        place = content
        for key in inner:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[last] = value
        if value is None:
            del place[last]
    return content


def test_defaults_are_filled_in(tmp_path):
    loaded = load_plan(str(write(tmp_path, plan(tokenizer=None, description=None))))
    a, b = loaded.datasets["a"], loaded.datasets["b"]
    assert loaded.tokenizer == "tiktoken:gpt2" and loaded.name == "p" and loaded.folder == tmp_path
    assert (a.kind, a.source, a.split, a.text, a.stream) == ("hub", "x/y", "train", ("text",), False)
    assert (b.kind, b.source) == ("files", ("*.txt",))
    (step,) = loaded.phases
    assert (step.name, step.datasets, step.epochs, step.tokens, step.stop, step.weights) == (
        "s",
        ["a", "b"],
        1.0,
        None,
        "first_exhausted",
        None,
    )
    assert a.validation["fraction"] > 0 and b.validation["fraction"] > 0


def test_everything_that_can_be_said(tmp_path):
    loaded = load_plan(
        str(
            write(
                tmp_path,
                plan(
                    tokenizer={"train": "unigram", "vocab_size": 1000},
                    datasets__a={
                        "hub": "x/y",
                        "config": "c",
                        "revision": "r",
                        "split": "part",
                        "stream": True,
                        "prompt": ["p", "q"],
                        "answer": "r",
                        "max_documents": 7,
                        "max_tokens": 9,
                        "validation": {"skip": 0, "documents": 3},
                    },
                    steps=[
                        {
                            "name": "s",
                            "datasets": ["b", "a"],
                            "tokens": 5,
                            "stop": "all_exhausted",
                            "weights": {"a": 1, "b": 2.5},
                        }
                    ],
                ),
            )
        )
    )
    a, step = loaded.datasets["a"], loaded.phases[0]
    assert (a.config, a.revision, a.split, a.stream, a.prompt, a.answer, a.max_documents, a.max_tokens) == (
        "c",
        "r",
        "part",
        True,
        ("p", "q"),
        "r",
        7,
        9,
    )
    assert a.text == () and a.validation == {"skip": 0, "documents": 3}
    assert (step.epochs, step.tokens, step.stop, step.weights) == (None, 5, "all_exhausted", {"b": 2.5, "a": 1})


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(stepz=1), "unknown key 'stepz'. Did you mean 'steps'?"),
        (dict(datasets=None), "the key 'datasets' is missing"),
        (dict(datasets={}), "datasets: is empty"),
        (dict(datasets=[]), "datasets: must be an object in braces, not []"),
        (dict(datasets__a="x/y"), 'datasets.a: must be an object in braces, not "x/y"'),
        (dict(datasets__a__splitt="x"), "datasets.a: unknown key 'splitt'. Did you mean 'split'?"),
        (
            dict(datasets__a__files="x"),
            "datasets.a: needs exactly one of 'hub', 'files', 'embedded', 'synthetic', has 'hub' and 'files'",
        ),
        (
            dict(datasets__a={"hubb": "x"}),
            "datasets.a: needs exactly one of 'hub', 'files', 'embedded', 'synthetic', "
            "has none (unknown key 'hubb'). Did you mean 'hub'?",
        ),
        (
            dict(datasets__a={"embedded": "pyton"}),
            "datasets.a.embedded: unknown value \"pyton\". Did you mean 'python'?",
        ),
        (dict(datasets__b__split="train"), "datasets.b: unknown key 'split'."),
        (dict(datasets__a__stream=1), "datasets.a.stream: must be true or false, not 1"),
        (dict(datasets__a__max_documents=True), "datasets.a.max_documents: must be a whole number above 0, not true"),
        (dict(datasets__a__max_tokens=1.5), "datasets.a.max_tokens: must be a whole number above 0, not 1.5"),
        (dict(datasets__a__max_tokens=-5), "datasets.a.max_tokens: must be a whole number above 0, not -5"),
        (dict(datasets__a__text=[]), "datasets.a.text: must be a text in quotes or a list of them, not []"),
        (dict(datasets__a__text=[3]), "datasets.a.text: must be a text in quotes or a list of them, not [3]"),
        (dict(datasets__a__prompt="q"), "datasets.a: 'prompt' and 'answer' go together"),
        (
            dict(datasets__a__text="t", datasets__a__messages="m"),
            "datasets.a: 'text' and 'messages' exclude each other",
        ),
        (
            dict(datasets__a__validation={"fraction": 1}),
            "datasets.a.validation.fraction: must be a number between 0 and 1, not 1",
        ),
        (
            dict(datasets__a__validation={"fraktion": 0.1}),
            "datasets.a.validation: unknown key 'fraktion'. Did you mean 'fraction'?",
        ),
        (
            dict(datasets__a__validation={"fraction": 0.1, "split": "x"}),
            "datasets.a.validation: needs exactly one of 'fraction', 'skip', 'split'",
        ),
        (
            dict(datasets__a__validation={"fraction": 0.1, "documents": 3}),
            "datasets.a.validation: unknown key 'documents'.",
        ),
        (
            dict(datasets__a__validation={"skip": 5, "documents": 3}),
            "datasets.a.validation.skip: needs the dataset's 'max_documents'",
        ),
        (
            dict(datasets__a__max_documents=9, datasets__a__validation={"skip": 5}),
            "datasets.a.validation: the key 'documents' is missing",
        ),
        (
            dict(datasets__a__validation={"split": "train"}),
            "datasets.a.validation.split: 'train' is what is trained on",
        ),
        (dict(datasets__b__validation={"split": "test"}), "datasets.b.validation: unknown key 'split'."),
        ({"datasets__a b": {"hub": "x"}}, "datasets: the name 'a b' must be made of letters, digits"),
        (dict(steps=[]), "steps: is empty"),
        (dict(steps={}), "steps: must be a list in brackets, not {}"),
        (dict(steps__0__epoch=1), "steps[0]: unknown key 'epoch'. Did you mean 'epochs'?"),
        (dict(steps__0__epochs=0), "steps[0].epochs: must be a number above 0, not 0"),
        (dict(steps__0__epochs=True), "steps[0].epochs: must be a number above 0, not true"),
        (dict(steps__0__epochs=1, steps__0__tokens=5), "steps[0]: 'epochs' and 'tokens' exclude each other"),
        (dict(steps__0__stop="first"), 'steps[0].stop: unknown value "first".'),
        (
            dict(steps__0__stop="all_exausted"),
            "steps[0].stop: unknown value \"all_exausted\". Did you mean 'all_exhausted'?",
        ),
        (dict(steps__0__datasets=["a", "bb"]), "steps[0].datasets[1]: there is no dataset 'bb' in the plan."),
        (dict(steps__0__datasets=["a", "a"]), "steps[0].datasets[1]: 'a' is there twice"),
        (dict(steps__0__datasets=[]), "steps[0].datasets: must be a text in quotes or a list of them, not []"),
        (dict(steps__0__weights={"a": 1, "c": 1}), "steps[0].weights: unknown key 'c'."),
        (dict(steps__0__weights={"a": 1}), "steps[0].weights: has no weight for the dataset 'b'"),
        (dict(steps__0__weights={"a": 1, "b": -1}), "steps[0].weights.b: must be a number above 0, not -1"),
        (dict(steps__0__name="a/b"), "steps[0].name: the name 'a/b' must be made of letters, digits"),
        (
            dict(steps=[{"name": "s", "datasets": ["a"]}, {"name": "s", "datasets": ["b"]}]),
            "steps[1].name: there is a phase 's' already",
        ),
        (dict(tokenizer="tiktokn:gpt2"), "tokenizer: unknown tokenizer 'tiktokn:gpt2'. Did you mean 'tiktoken'?"),
        (dict(tokenizer=5), "tokenizer: must be a text in quotes, not 5"),
        (
            dict(tokenizer={"train": "bpee", "vocab_size": 999}),
            "tokenizer.train: unknown value \"bpee\". Did you mean 'bpe'?",
        ),
        (dict(tokenizer={"train": "bpe"}), "tokenizer: the key 'vocab_size' is missing"),
        (dict(tokenizer={"train": "bpe", "vocab_size": 100}), "tokenizer.vocab_size: must be at least 259"),
        (dict(datasets__a={"synthetic": ["copy"]}), "datasets.a.synthetic: unknown value"),
        (dict(description=["x"]), 'description: must be a text in quotes, not ["x"]'),
    ],
)
def test_refused_in_one_line(tmp_path, change, said):
    assert refusal(tmp_path, plan(**change)).startswith(said)


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"steps": [1,}', "line 1, column 14: not valid JSON"),
        ('{"steps": 1, "steps": 2}', "the key 'steps' is there twice"),
        ("[]", "must be an object in braces, not []"),
        ('{"datasets": {"a": {"hub": "x", "max_tokens": NaN}}}', "NaN is not a number"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path, text, said):
    assert refusal(tmp_path, text).startswith(said)


def test_a_binary_file_is_no_plan(tmp_path):
    path = tmp_path / "p.json"
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(UserError, match="not UTF-8 text"):
        load_plan(str(path))


def test_huge_numbers_are_refused(tmp_path):
    text = json.dumps(plan(steps__0__epochs=77)).replace("77", "1e999")
    assert refusal(tmp_path, text).startswith("steps[0].epochs: must be a number above 0")


def test_the_shipped_plans_are_there_and_right():
    plans = {row.name: row for row in list_plans()}
    assert SHIPPED <= set(plans) and all(isinstance(plans[name], Plan) for name in SHIPPED)
    assert all(plans[name].description for name in SHIPPED)
    default = plans["default"]
    assert [(d.source, d.config, d.text) for d in default.datasets.values()] == [
        ("wikimedia/wikipedia", f"20231101.{language}", ("title", "text")) for language in ("en", "es")
    ]
    assert default.phases[0].datasets == ["wiki_en", "wiki_es"]
    assert plans["quick"].datasets["python"].kind == "embedded"
    refined = plans["refinedweb"].datasets["refinedweb"]
    assert (
        refined.stream
        and refined.max_documents == 8_000_000
        and refined.validation["skip"] == 64_000
        and refined.text == ("content",)
    )
    assert len(plans["full"].phases) == 3
    orca = plans["openorca"].datasets["openorca"]
    assert orca.prompt == ("system_prompt", "question") and orca.answer == "response"


def test_names_are_found_here_first_with_either_dash_and_a_path_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_plan("medium-mix").name == "medium_mix"
    (tmp_path / "plans").mkdir()
    write(tmp_path / "plans", plan(description="mine"), "quick.json")
    write(tmp_path / "plans", plan(), "my-plan.json")
    assert load_plan("quick").description == "mine" and load_plan("my_plan").name == "my-plan"
    write(tmp_path, plan(description="by path"), "quick")
    assert load_plan("quick").description == "by path"
    with pytest.raises(UserError, match=r"there is no plan 'qick'\. Did you mean 'quick'\?"):
        load_plan("qick")
    with pytest.raises(UserError, match="there is no plan file nowhere/quick.json"):
        load_plan("nowhere/quick.json")


def test_names_of_the_playground_before_mean_plans_here():
    for former, name in FORMER_NAMES.items():
        assert load_plan(former).hash == load_plan(name).hash
    assert load_plan("smoltalk-all").name == "smoltalk"
    for until_all, until_first in (("hugepretrain", "pretrain"), ("l_instruction_ft", "instruction_ft")):
        longer, shorter = load_plan(until_all).content, load_plan(until_first).content
        assert longer["datasets"] == shorter["datasets"]
        assert [step["stop"] for step in (*longer["steps"], *shorter["steps"])] == ["all_exhausted", "first_exhausted"]
    everything, full = load_plan("all"), load_plan("full")
    assert everything.content["datasets"] == full.content["datasets"]
    assert sorted(everything.phases[0].datasets) == sorted(full.datasets)


def test_a_broken_file_is_a_row_that_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plans").mkdir()
    write(tmp_path / "plans", "{", "bad.json")
    (row,) = [row for row in list_plans() if row.name == "bad"]
    assert isinstance(row, BrokenPlan) and "not valid JSON" in row.error
    assert SHIPPED <= {row.name for row in list_plans()}


@pytest.mark.process
def test_listing_imports_nothing_heavy():
    code = (
        "import sys; from lmplay.data.plans import list_plans; assert list_plans(); "
        "heavy = {'torch', 'datasets', 'numpy', 'pandas', 'pyarrow', 'tokenizers', 'tiktoken', 'tqdm'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_the_hash_is_of_what_decides_the_data(tmp_path):
    def hash_of(**changes):
        return load_plan(str(write(tmp_path, plan(**changes)))).hash

    assert (
        hash_of() == hash_of(description="other") == hash_of(datasets__a__split="train") == hash_of(steps__0__epochs=1)
    )
    different = [
        hash_of(),
        hash_of(tokenizer="tiktoken:gpt2"),
        hash_of(datasets__a__revision="v1"),
        hash_of(steps__0__epochs=2),
        hash_of(steps__0__stop="all_exhausted"),
        hash_of(datasets__b__max_tokens=10),
        hash_of(steps__0__datasets=["b", "a"]),
        hash_of(datasets__a__validation={"fraction": 0.3}),
    ]
    assert len(set(different)) == len(different)


def test_a_dataset_that_no_step_uses_is_left_out(tmp_path):
    assert list(load_plan(str(write(tmp_path, plan(steps__0__datasets=["b"])))).datasets) == ["b"]


def test_a_plan_from_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = plan_from_files(["texts/my book (2).txt", "more.jsonl.gz"])
    (dataset,) = made.datasets.values()
    assert made.name == dataset.name == "my_book_2" and dataset.source == ("texts/my book (2).txt", "more.jsonl.gz")
    assert made.folder == tmp_path and made.phases[0].datasets == ["my_book_2"] and made.phases[0].epochs == 1.0
    assert json.loads(json.dumps(made.content)) == made.content


def test_every_field_of_a_dataset_and_a_phase_is_hashed_under_its_name():
    """The names in a hash are literals: a new field must say how it is hashed, so that old plans keep their hash."""
    dataset = {field.name: "x" for field in dataclasses.fields(DatasetSpec)}
    assert list(DatasetSpec(**dataset).content) == list(dataset)
    assert list(PhaseSpec("p", ["d"]).content) == [field.name for field in dataclasses.fields(PhaseSpec)]
    assert {**DatasetSpec(name="d", kind="files", source=("a", "b")).content} == {
        "name": "d",
        "kind": "files",
        "source": ["a", "b"],
        "split": "train",
        "validation": {},
    }
