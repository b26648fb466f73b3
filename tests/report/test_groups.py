import numpy as np
import pytest

from lmplay.errors import UserError
from lmplay.report.final_figures import difference_at_end, final_figures
from lmplay.report.groups import LONGEST_LABEL, choose_baseline, group_seeds, labels, unlike
from lmplay.report.measured_text import text_of
from lmplay.report.phase_curves import curve_of
from lmplay.runs.run import read_run
from lmplay.stats.curves import difference
from support.making_runs import fall, make_run


@pytest.fixture
def make(tmp_path):
    def run(name, steps=20, **settings):
        return read_run(make_run(tmp_path / name, steps=steps, **settings))

    return run


def test_labels_say_what_tells_the_runs_apart_and_no_more(make):
    a, b = make("a"), make("b", experiment="llama2")
    assert labels([a]) == ["gpt2ish:tiny"]
    assert labels([a, b]) == ["gpt2ish:tiny", "llama2:tiny"]
    assert labels([a, make("a1", seed=1), b]) == ["gpt2ish:tiny seed 0", "gpt2ish:tiny seed 1", "llama2:tiny"]
    fast, slow = make("fast", settings={"lr": 0.01, "seed": 0}), make("slow", settings={"lr": 0.0003, "seed": 0})
    assert labels([fast, slow]) == ["lr=0.01", "lr=0.0003"]
    assert labels([fast, slow, b]) == ["gpt2ish:tiny lr=0.01", "gpt2ish:tiny lr=0.0003", "llama2:tiny"]
    assert labels([a, make("deep", config={"n_layer": 8})]) == ["n_layer=4", "n_layer=8"]
    assert labels([a, make("wiki", plan="wiki_en")]) == ["quick", "wiki_en"]
    assert labels([a, make("again")]) == ["a", "again"]  # nothing but the name differs
    nothing = {"out": "elsewhere", "save_interval": 7, "backup_at": "5", "keep_best": True, "prompts": "mine.txt"}
    assert labels([a, make("out", settings=nothing)]) == ["a", "out"]
    assert len(group_seeds([a, make("too", settings={**nothing, "seed": 1})], [9, 9])) == 1


def test_labels_are_short_and_differ_for_hostile_names(make):
    long = [
        make(f"run{i}", experiment="an_experiment_with_a_name_that_does_not_end" * 2, variant="v" * 30, seed=i)
        for i in range(3)
    ]
    found = labels([*long, make("b")])
    assert len(set(found)) == 4 and max(map(len, found)) <= LONGEST_LABEL
    found = labels([make("x1", run="same", variant="v" * 90), make("x2", run="same", variant="v" * 91)])
    assert len(set(found)) == 2
    twins = [make(f"one/{i}/twin") for i in range(2)]
    assert len(set(labels(twins))) == 2


def test_the_baseline_is_the_default_experiments_longest_run_else_the_longest(make):
    runs = [
        make("short"),
        make("long"),
        make("other", experiment="llama2"),
        make("third", experiment="re-verse", variant="6l"),
    ]
    assert choose_baseline(runs, None, [10, 20, 99, 5]) == 1
    assert choose_baseline(runs[2:], None, [99, 5]) == 0
    assert choose_baseline(runs, "llama2", [10, 20, 99, 5]) == 2
    assert choose_baseline(runs, "re_verse:6l", [10, 20, 99, 5]) == 3
    assert choose_baseline(runs, "short", [10, 20, 99, 5]) == 0
    assert choose_baseline(runs, str(runs[0].folder) + "/", [10, 20, 99, 5]) == 0
    with pytest.raises(UserError, match="Did you mean 'llama2'"):
        choose_baseline(runs, "lama2", [10, 20, 99, 5])


def test_what_is_unlike_is_found(make):
    a = make("a")
    assert unlike(a, make("same", experiment="llama2", seed=3)) == []
    assert unlike(make("t", tokenizer="bbbb"), a) == ["another tokenizer"]  # the same text in other tokens
    assert unlike(make("d", data_hash="eeee"), a) == ["other data"]
    more = {
        "datasets": {"python": {"train": {"documents": 4, "bytes": 44}, "validation": {"documents": 3, "bytes": 30}}}
    }
    assert unlike(make("td", tokenizer="bbbb", data={"hash": "x", **more}), a) == ["another tokenizer", "other data"]
    assert unlike(make("p", plan="quick2"), a) == ["another plan"]
    assert unlike(make("m", causal=False), a) == ["may look ahead (not causal)"]
    assert unlike(make("u", data={"hash": None}), a) == ["data not known to be the same"]


def curve(run, split):
    return curve_of(run.table(split), "tokens", "loss", log=True, text_of=text_of(run, split))


def two_phases(make, name, border, **more):
    """A run of two phases with documents of their own; the loss is lower by 1 in the second."""
    datasets = {
        data: {part: {"documents": k, "bytes": 10 * k, "tokens": 9} for part in ("train", "validation")}
        for k, data in ((3, "one"), (7, "two"))
    }
    content = {"steps": [{"name": "first", "datasets": ["one"]}, {"name": "second", "datasets": ["two"]}]}
    run = make(name, steps=100, every=5, loss=lambda t: 4 - 1.0 * (t > border * 12_800) + 0 * t, **more)
    run.info["data"]["datasets"], run.info["plan"]["content"] = datasets, content
    for split in ("train", "validate"):
        path = run.folder / f"{split}.csv"
        head, *rows = path.read_text(encoding="utf-8").splitlines()
        cells = [row.split(",") for row in rows]
        named = [["first" if float(row[1]) <= border else "second", *row[1:]] for row in cells]
        path.write_text("\n".join([head, *map(",".join, named)]) + "\n", encoding="utf-8")
    return run


@pytest.mark.parametrize("split, noisy", [("train", True), ("validate", False)])
def test_losses_of_different_phases_are_not_subtracted(make, split, noisy):
    """Where one run is in its second phase already, there is no difference, and none between the phases."""
    early, late = two_phases(make, "early", 40), two_phases(make, "late", 80)
    ours, theirs = curve(early, split), curve(late, split)
    apart = difference(ours, theirs)
    steps = np.rint(apart.x / 12_800)
    assert set(steps) == {step for step in np.rint(ours.x / 12_800) if step <= 40 or step > 80}
    np.testing.assert_allclose(apart.y, 0, atol=1e-12)
    assert difference_at_end(ours, theirs, noisy) == pytest.approx(0)
    within = curve_of(early.table(split).query("step <= 60"), "tokens", "loss", True, text_of(early, split))
    assert difference_at_end(within, theirs, noisy) is None and difference_at_end(theirs, within, noisy) is None
    # where a run has no validation at the same x, what lies between its phases belongs to neither
    sparse = curve_of(late.table(split).query("step % 10 == 0"), "tokens", "loss", True, text_of(late, split))
    assert 85 not in np.rint(difference(ours, sparse).x / 12_800)


def test_another_part_of_the_validation_text_is_unlike(make):
    def of(name, tokens, limit, tokenizer="aaaa"):
        run = make(name, tokenizer=tokenizer, settings={"validation_tokens": limit})
        run.info["data"]["datasets"]["python"]["validation"]["tokens"] = tokens
        run.info["plan"]["content"] = {"steps": [{"name": "main", "datasets": ["python"]}]}
        return run

    part = "another part of the validation text (--validation-tokens)"
    assert unlike(of("a", 1000, 2000), of("b", 500, 600, "bbbb")) == ["another tokenizer"]  # both score all of it
    assert unlike(of("c", 1000, 200), of("d", 500, 200, "bbbb")) == ["another tokenizer", part]
    assert unlike(of("e", 1000, 200), of("f", 1000, 300)) == [part]
    assert unlike(of("g", 1000, 200), of("h", 1000, 200)) == []
    first, second = of("i", 1000, 200), of("j", 500, 200, "bbbb")
    assert not len(difference(curve(first, "validate"), curve(second, "validate")))


def test_the_difference_at_equal_tokens_is_that_at_the_end_of_the_shorter_run(make):
    short = make("short", steps=200, noise=0.05, loss=lambda t: fall(t) - 0.25)
    long = make("long", steps=1000, noise=0.05, every=20)
    for split, noisy in (("train", True), ("validate", False)):
        curves = curve(short, split), curve(long, split)
        assert difference_at_end(*curves, noisy) == pytest.approx(-0.25, abs=0.02 if noisy else 1e-9)
        assert difference_at_end(*reversed(curves), noisy) == pytest.approx(0.25, abs=0.02 if noisy else 1e-9)
    tiny, late = make("tiny", steps=2, every=1), make("late", steps=100, every=50)
    assert difference_at_end(curve(tiny, "validate"), curve(late, "validate"), False) is None


def test_shared_noise_cancels_in_the_difference(make):
    a, b = make("a", noise=0.5, steps=300), make("b", noise=0.5, steps=300, loss=lambda t: fall(t) - 0.01)
    assert difference_at_end(curve(b, "train"), curve(a, "train"), True) == pytest.approx(-0.01, abs=1e-9)


def test_final_figures(make):
    run = make("a", steps=100, every=30)
    figures = final_figures(run, run.table("train"), run.table("validate"))
    tokens = 12_800.0
    assert figures["train_loss"] == pytest.approx((fall(99 * tokens) + fall(100 * tokens)) / 2)
    assert figures["validate_loss"] == pytest.approx(fall(90 * tokens) + 0.1)
    assert (figures["parameters"], figures["tokens"], figures["tokens_per_second"]) == (
        3_456_789,
        100 * tokens,
        pytest.approx(64_000),
    )
    bare = make("bare", parameters=None, steps=1, every=2)
    figures = final_figures(bare, bare.table("train"), bare.table("validate"))
    assert (
        figures["parameters"] is None
        and figures["validate_loss"] is None
        and figures["train_loss"] == pytest.approx(fall(tokens))
    )


def test_seeds_of_one_experiment_and_settings_are_a_group(make):
    runs = [
        make("s2", seed=2),
        make("s0", seed=0),
        make("idea", experiment="idea"),
        make("fast", settings={"lr": 0.01, "seed": 0}),
        make("s1", seed=1),
        make("again", seed=1),
        make("running", seed=3, status="running"),
        make("almost", seed=4, status="stopped"),
        make("deep", seed=5, config={"n_layer": 8}),
        make("data", seed=6, data_hash="eeee"),
        make("elsewhere", seed=7, settings={"out": "other", "device": "cuda", "seed": 7}),
        make("code", seed=8, experiment="gpt2ish"),
    ]
    runs[-1].info["experiment"]["code_hash"] = "changed"
    lengths = [100, 100, 100, 100, 100, 100, 50, 99, 100, 100, 100, 100]
    groups = group_seeds(runs, lengths)
    named = [[runs[i].name for i in group] for group in groups]
    assert named == [
        ["s0", "s1", "s2", "almost", "elsewhere"],
        *([name] for name in ("idea", "fast", "again", "running", "deep", "data", "code")),
    ]
    found = labels([runs[group[0]] for group in groups], [len(group) for group in groups])
    assert found[:2] == ["gpt2ish:tiny (n=5)", "idea:tiny"] and len(set(found)) == len(found)
    assert labels([runs[0], runs[3]], [3, 2]) == ["lr=0.001 (n=3)", "lr=0.01 (n=2)"]
    assert labels([runs[0]], [3]) == ["gpt2ish:tiny (n=3)"]
