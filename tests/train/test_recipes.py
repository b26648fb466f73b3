"""How an experiment says how it learns: read without running it, typed over, named, noted, and fair in a comparison."""

import argparse
import json

import pytest

from lmplay import registry
from lmplay.cli import compare as compare_command
from lmplay.cli import trainer as trainer_command
from lmplay.compare.jobs import RunIndex
from lmplay.compare.recipes import recipe_notes
from lmplay.compare.variants import find_variant
from lmplay.errors import UserError
from lmplay.runs.run import read_run
from lmplay.runs.settings import Settings
from lmplay.train import settings as settings_module
from lmplay.train.recipes import base_of, off_recipe, recipe_of, short_name
from lmplay.train.run_name import run_name
from support.small import TINY, make_text

RECIPE = 'recipe = {"lr": 0.02, "optimizer": "muon", "warmup_steps": 2}'


def parse(*flags, config=None) -> Settings:
    parser = argparse.ArgumentParser()
    settings_module.add_flags(parser)
    return settings_module.from_flags(parser.parse_args(flags), config)


@pytest.fixture
def mine(experiment):
    return experiment("mine", RECIPE)


@pytest.fixture
def child(experiment):
    """Makes a copy of another experiment of the test, without a recipe of its own."""

    def make(name, parent, addition=""):
        experiment(name, addition)
        path = registry.search_path()[0] / name / "model.py"
        path.write_text(path.read_text().replace("parent = None", f'parent = "{parent}"'), encoding="utf-8")
        return registry.find(name)[0]

    return make


def test_read_without_running_it(experiment):
    experiment("broken", f"{RECIPE}\nraise SystemExit('it runs')")
    assert registry.find("broken")[0].recipe == {"lr": 0.02, "optimizer": "muon", "warmup_steps": 2}
    experiment("computed", 'recipe = {"lr": 2 ** -5}')
    with pytest.raises(UserError, match="recipe is not a plain literal"):
        registry.find("computed")
    experiment("listed", 'recipe = ["lr"]')
    with pytest.raises(UserError, match="recipe is not a dictionary of settings"):
        registry.find("listed")


def test_a_recipe_is_no_code_of_the_model(experiment, mine):
    experiment("plain")
    experiment("tuned", 'tuned_recipe: dict = {"lr": 0.5}')
    experiment("reads", f"{RECIPE}\nRATE = recipe['lr']")
    experiment("reads_another", f"{RECIPE.replace('0.02', '0.03')}\nRATE = recipe['lr']")
    hashes = {name: registry.find(name)[0].code_hash for name in ("plain", mine, "tuned", "reads", "reads_another")}
    assert hashes["plain"] == hashes[mine] == hashes["tuned"]
    assert len({hashes["plain"], hashes["reads"], hashes["reads_another"]}) == 3, "what code reads is code"


def test_defaults_recipe_file_flags(mine, work):
    assert parse("--exp", mine).lr == 0.02 and parse("--exp", mine).optimizer == "muon"
    assert parse("--exp", "gpt2ish").lr == Settings.lr
    (work / "c.json").write_text(json.dumps({"lr": 0.5, "beta1": 0.8}), encoding="utf-8")
    filed = parse("--exp", mine, config=str(work / "c.json"))
    assert (filed.lr, filed.beta1, filed.optimizer) == (0.5, 0.8, "muon")
    typed = parse("--exp", mine, "--lr", "0.1", config=str(work / "c.json"))
    assert (typed.lr, typed.beta1, typed.warmup_steps) == (0.1, 0.8, 2)
    assert parse("--exp", mine, "--recipe", "none") == Settings(exp=mine, recipe="none")
    assert parse("--recipe", mine).lr == 0.02  # another's
    (work / "of_file.json").write_text(json.dumps({"exp": mine}), encoding="utf-8")
    assert parse(config=str(work / "of_file.json")).lr == 0.02


def test_typed_again(mine):
    for flags in (["--lr", "0.001"], ["--lr", "0.02"], [], ["--recipe", "none"], ["--recipe", "none", "--lr", "0.02"]):
        settings = parse("--exp", mine, *flags)
        again = settings_module.as_flags(settings)
        assert parse(*again) == settings
        assert ("--lr" in again) == (flags[-1:] == ["0.001"] or len(flags) > 2)


def test_tuned_recipes_pass_on_to_copies(experiment, child, mine):
    experiment("base", 'tuned_recipe = {"lr": 0.5}')
    copy = child("copy", "base")
    assert recipe_of(copy) == {} and recipe_of(copy, "tuned") == {"lr": 0.5} == recipe_of(copy, "base")
    assert recipe_of(child("own_one", "base", 'recipe = {"lr": 0.25}'), "tuned") == {"lr": 0.25}
    assert recipe_of(copy, "mine")["optimizer"] == "muon" and recipe_of(copy, "none") == {}
    with pytest.raises(UserError, match="--recipe tuned: lonely has no recipe; --recipe none takes the defaults"):
        recipe_of(registry.find(experiment("lonely"))[0], "tuned")
    with pytest.raises(UserError, match="--recipe copy: copy has no recipe"):
        recipe_of(copy, "copy")
    with pytest.raises(UserError, match="no experiment named 'bass'"):
        recipe_of(copy, "bass")


@pytest.mark.parametrize(
    "recipe, complaint",
    [
        ({"wight_decay": 0.1}, "no setting 'wight_decay'. Did you mean 'weight_decay'"),
        ({"context_len": 64}, "context_len is none of how a model learns: leave it out, and type --context-len"),
        ({"tokenizer": "bytes"}, "tokenizer is none of how"),
        ({"lr": "fast"}, "lr must be a number"),
        ({"lr": -1.0}, "--lr must be more than 0"),
        ({"optimizer": "lion"}, "optimizer must be one of adamw"),
    ],
)
def test_keys_that_are_refused_in_one_line(experiment, work, capsys, recipe, complaint):
    experiment("mine", f"recipe = {recipe!r}")
    assert trainer_command.main(["--exp", "mine", "--dump-config"]) == 2
    said = capsys.readouterr().err
    assert "the recipe of mine: " in said and complaint.split("?")[0] in said and said.count("\n") == 1


def test_names_of_runs(experiment, mine):
    def name(*flags):
        settings = parse(*flags)
        return run_name(settings, settings.exp, "6l", "plan")

    short = short_name(base_of(parse("--exp", mine)))
    assert name("--exp", mine) == f"mine-6l_plan_{short}" and len(short) == len("recipe-123456")
    assert name("--exp", mine, "--lr", "0.001") == f"mine-6l_plan_{short}_lr=0.001"
    assert name("--exp", mine, "--recipe", "none") == "mine-6l_plan"
    assert name("--exp", "gpt2ish", "--lr", "0.02") == "gpt2ish-6l_plan_lr=0.02"
    experiment("default", f'recipe = {{"lr": {Settings.lr}}}')
    assert name("--exp", "default") == "default-6l_plan"


@pytest.fixture
def small(work):
    (work / "t.txt").write_text(make_text(12, 3), encoding="utf-8")
    return [*TINY[2:-4], "--device", "cpu", "--data", "t.txt", "--tokenizer", "bytes", "--max-steps", "2"]


def test_noted_in_run_json(mine, small, work):
    words = ["--exp", mine, *small, "--lr", "0.3", "--validation-tokens", "300", "--run-name", "off"]
    assert trainer_command.main(words) == 0
    run = read_run(work / "gpt_out" / "off")
    assert (run.settings["lr"], run.settings["optimizer"]) == (0.3, "muon")
    recipe = {"lr": 0.02, "optimizer": "muon", "warmup_steps": 2}
    assert run.info["recipe"] == {"asked": "own", "settings": recipe, "off": ["lr"]}
    assert off_recipe(Settings(**recipe), recipe) == []
    assert off_recipe(Settings(lr=9.0), {}) == [], "without a recipe there is nothing to be off"


def test_each_arm_by_its_own(mine, small, capfd):
    def planned(*words):
        arms = ["--exp", mine, "--baseline", "gpt2ish", "--seeds", "1", "--dry-run"]
        assert compare_command.main([*arms, *small, *words]) == 0
        return [line for line in capfd.readouterr().out.splitlines() if "would be trained ->" in line]

    base, own = planned()
    assert "_recipe-" in own and "_recipe-" not in base
    base, own = planned("--lr", "0.02")
    assert "lr=0.02" in base and "_recipe-" in own and "lr=" not in own, "0.02 is its recipe's"
    assert all("_recipe-" in line for line in planned("--recipe", mine))
    assert not any("_recipe-" in line for line in planned("--recipe", "none"))


def test_a_comparison_says_how_its_arms_differ(experiment, mine):
    base = registry.find("gpt2ish")[0]
    own = registry.find(mine)[0]
    notes = recipe_notes({"gpt2ish:6l": (base, Settings()), "mine:6l": (own, Settings(lr=0.02, optimizer="muon"))})
    assert notes[0] == "recipes differ: mine:6l has optimizer muon, lr 0.02; gpt2ish:6l has optimizer adamw, lr 0.001"
    assert recipe_notes({"a": (base, Settings()), "b": (base, Settings())}) == []


def test_batch_sizes_are_the_same_for_all(experiment, small):
    experiment("large", 'recipe = {"batch_size": 64}')
    settings = parse(*small)
    index = RunIndex(settings, any_interval=True, given=frozenset({"lr"}))
    with pytest.raises(UserError, match="recipe of large has a batch size, .* --batch-size 64"):
        index.job(find_variant("large"), 0)
    index = RunIndex(settings, any_interval=True, given=frozenset({"batch_size"}))
    assert index.job(find_variant("large"), 0).settings.batch_size == settings.batch_size
