"""A model is asked before it is trained: copies of the baseline with one change each, and all shipped experiments."""

import os
import random
import shutil

import pytest
import torch

from lmplay import contract, registry
from lmplay.errors import UserError
from lmplay.model.checks import FEW_TOKENS, check_new, check_trained
from lmplay.model.findings import FAULT, LEAK, WARNING
from support import small_models
from support.small import EXPERIMENTS

CPU = torch.device("cpu")
BODY = "        for i, block in enumerate(self.blocks):\n"
VOCABULARY = 97
GPT2ISH = (EXPERIMENTS / "gpt2ish" / "model.py").read_text()


def copy_of(folder, name, *replacements, append="", parent="gpt2ish"):
    """A copy of an experiment with pieces of its text replaced, loaded."""
    folder = folder / name
    shutil.copytree(EXPERIMENTS / parent, folder, ignore=shutil.ignore_patterns("__pycache__", "extras.py"))
    path = folder / "model.py"
    text = path.read_text()
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new, 1)
    path.write_text(text + append)
    return contract.load(registry.read_entry(folder))


def ask(experiment, **fields):
    config = experiment.config(
        next(iter(experiment.variants)), VOCABULARY, 48, n_layer=2, n_head=2, n_embd=16, **fields
    )
    return check_new(experiment.bound(config), config, VOCABULARY - 1, CPU)


def before_blocks(line):
    return BODY, f"        {line}\n{BODY}"


GATED = (
    "        self.initialise()\n",
    "        self.initialise()\n        self.gate = nn.Parameter(torch.zeros(()))\n",
)
LEAKS = {
    "roll": ([before_blocks("x = x + torch.roll(x, -1, 1)")], "", "looks ahead: in eval mode the logits for token"),
    "gated": ([GATED, before_blocks("x = x + self.gate * torch.roll(x, -1, 1)")], "", "looks ahead"),
    "faint": ([before_blocks("x = x + 1e-4 * torch.roll(x, -1, 1)")], "", "looks ahead"),
    "round": ([before_blocks("x = x + torch.roll(x, 1, 1)")], "", "looks ahead"),
    "mean": ([before_blocks("x = x - x.mean(1, keepdim=True)")], "", "looks ahead"),
    "far": ([before_blocks("x = x + F.pad(x[:, 40:], (0, 0, 0, min(40, x.size(1))))")], "", "looks ahead"),
    "training": (
        [before_blocks("x = x + torch.roll(x, -1, 1) if self.training else x")],
        "",
        "looks ahead: in train mode",
    ),
    "window": (
        [],
        "\n\ndef make_batch(window, bos, generator):\n    return window, window\n",
        "itself changes: it sees what it has to predict",
    ),
    "twice": (
        [],
        "\n\ndef make_batch(window, bos, generator):\n"
        "    y = torch.cat([window[:, :1], window[:, :-1]], 1)\n"
        "    return F.pad(y[:, :-1], (1, 0), value=bos), y\n",
        "scores token 0 of the window 2 times",
    ),
    "rows": ([before_blocks("x = x - x.mean(0, keepdim=True)")], "", "mixes the rows of a batch"),
    "rows_training": (
        [before_blocks("x = x - x.mean(0, keepdim=True) if self.training else x")],
        "",
        "mixes the rows of a batch: in train mode",
    ),
    "noise": ([before_blocks("x = x + 0.01 * torch.randn_like(x)")], "", "other logits for the same tokens"),
    "noise_of_python": (
        [before_blocks("import random\n        x = x * random.random()")],
        "",
        "other logits for the same tokens",
    ),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_found(name, tmp_path):
    replacements, append, said = LEAKS[name]
    checked = ask(copy_of(tmp_path, f"my_{name}", *replacements, append=append))
    [sentence] = checked.sentences(LEAK)
    assert said in sentence and f"my_{name}" in sentence


def ask_with_many_tokens(experiment, n_tokens=1500):
    config = experiment.config(next(iter(experiment.variants)), n_tokens, 16, n_layer=1, n_head=2, n_embd=16)
    return check_new(experiment.bound(config), config, n_tokens - 1, CPU)


def test_a_large_vocabulary_is_asked_small_as_far_as_that_answers(tmp_path):
    few = before_blocks("assert self.config.vocab_size <= FEW")
    whole = copy_of(tmp_path, "my_few", few, append=f"\n\nFEW = {FEW_TOKENS}\n")
    assert ask_with_many_tokens(whole) == ask(copy_of(tmp_path, "my_idea")) and not ask_with_many_tokens(whole).findings
    roll = copy_of(tmp_path, "my_roll", before_blocks("x = x + torch.roll(x, -1, 1)"))
    assert "looks ahead" in ask_with_many_tokens(roll).sentences(LEAK)[0]
    many = copy_of(tmp_path, "my_many", GATED, before_blocks("assert self.config.vocab_size > 1200"))
    assert "1 of 19 parameters of my_many get no gradient" in ask_with_many_tokens(many).sentences(FAULT)[0]
    wild = ("return self.head(self.body(tokens, cache))", "return 50 * self.head(self.body(tokens, cache))")
    assert "ln(vocab_size) = 7.313" in ask_with_many_tokens(copy_of(tmp_path, "my_wild", wild)).sentences(WARNING)[0]


def test_what_goes_wrong_outside_the_model_is_not_asked_again(tmp_path, monkeypatch):
    tried = []

    def fails(tensor):
        tried.append(tensor)
        raise MemoryError("no memory")

    experiment = copy_of(tmp_path, "my_idea")
    monkeypatch.setattr(torch, "count_nonzero", fails)
    with pytest.raises(MemoryError):
        ask_with_many_tokens(experiment)
    assert len(tried) == 1


def test_the_sentence_names_the_tokens(tmp_path):
    """The body sees two tokens further than the text allows, so the logits for a token move with the one after it."""
    checked = ask(copy_of(tmp_path, "my_far", before_blocks("x = x + F.pad(x[:, 2:], (0, 0, 0, min(2, x.size(1))))")))
    [sentence] = checked.sentences(LEAK)
    words = sentence.split()
    numbers = [int(word) for word, before in zip(words[1:], words, strict=False) if before == "token"]
    assert len(numbers) == 2 and numbers[1] in (numbers[0], numbers[0] + 1)


def test_a_leak_in_another_order_of_reading_is_found(tmp_path):
    """From the end: the logits for a token may see those to its right, and not those to its left."""
    checked = ask(copy_of(tmp_path, "my_reverse", before_blocks("x = x + torch.roll(x, -1, 1)"), parent="reverse_time"))
    assert "looks ahead" in checked.sentences(LEAK)[0]


def test_one_of_two_directions_that_leaks_is_found(tmp_path):
    line = "x = torch.where((tokens[:, :1] == self.config.vocab_size + 1)[..., None], x + torch.roll(x, -1, 1), x)"
    checked = ask(copy_of(tmp_path, "my_ways", before_blocks(line), parent="both_ways"))
    assert "looks ahead" in checked.sentences(LEAK)[0]


def test_a_model_that_says_it_looks_ahead_may_but_must_not_mix_rows(tmp_path):
    says = ("parent = None\n", 'parent = "gpt2ish"\ncausal = False\n')
    assert not ask(copy_of(tmp_path, "my_ahead", says, before_blocks("x = x + torch.roll(x, -1, 1)"))).findings
    mixed = ask(copy_of(tmp_path, "my_mixed", says, before_blocks("x = x - x.mean(0, keepdim=True)")))
    assert "mixes the rows" in mixed.sentences(LEAK)[0]


def test_a_dead_parameter_is_found(tmp_path):
    dead = ("        self.initialise()\n", "        self.initialise()\n        self.unused = nn.Linear(4, 4)\n")
    checked = ask(copy_of(tmp_path, "my_dead", dead))
    [sentence] = checked.sentences(FAULT)
    assert "get no gradient" in sentence and "unused.weight, unused.bias" in sentence
    assert not checked.sentences(LEAK)


def test_a_parameter_behind_a_zero_gets_its_gradient_in_the_second_step(tmp_path):
    gated = (
        "        self.initialise()\n",
        "        self.initialise()\n        self.gate = nn.Parameter(torch.zeros(()))\n"
        "        self.late = nn.Parameter(torch.ones(config.n_embd))\n",
    )
    experiment = copy_of(tmp_path, "my_gate", gated, before_blocks("x = x + self.gate * self.late * x"))
    assert not ask(experiment).findings


def test_a_wrong_cache_is_found(tmp_path):
    """A look at the token before, which the cache that was copied does not know."""
    shift = before_blocks("x = x + F.pad(x[:, :-1], (0, 0, 1, 0))")
    checked = ask(copy_of(tmp_path, "my_shift", shift))
    [sentence] = checked.sentences(WARNING)
    assert "the cache of my_shift gives other logits" in sentence
    assert not checked.sentences(LEAK, FAULT)


def test_a_cache_that_knows_no_positions_is_found(tmp_path):
    """A new model hardly attends, so that its logits hardly move: rotations that begin at 0 with each part."""
    sdpa = next(f"{line}\n" for line in GPT2ISH.splitlines() if "F.scaled_dot_product_attention(" in line)
    turned = (
        "        angles = torch.arange(T, dtype=x.dtype)[:, None] / 10 ** torch.arange(q.size(-1))\n"
        "        q, k = q * angles.cos(), torch.cat([k[:, :, :-T], k[:, :, -T:] * angles.cos()], 2)\n"
    )
    [sentence] = ask(copy_of(tmp_path, "my_turns", (sdpa, turned + sdpa))).sentences(WARNING)
    assert "the cache of my_turns gives other logits" in sentence


@pytest.mark.parametrize(
    "top, line, said",
    [
        ("import time", "x = x * (1 + 1e-9 * time.time())", "asks for the time (time.time, model.py:"),
        ("from time import perf_counter as now", "x = x if self.training else x * (now() > 0)", "(time.perf_counter, "),
        ("import datetime as d", "x = x * (d.datetime.now().year > 0)", "(datetime.now, model.py:"),
        ("import random", "x = x * (random.SystemRandom().random() >= 0)", "(os.urandom, model.py:"),
        ("import uuid", "x = x * (uuid.uuid4().int > 0)", "draws random numbers that no seed repeats (os.urandom, "),
    ],
)
def test_what_no_run_repeats_is_said(top, line, said, tmp_path):
    experiment = copy_of(tmp_path, "my_clock", ("import math\n", f"import math\n{top}\n"), before_blocks(line))
    assert said in " ".join(ask(experiment).sentences(WARNING))


@pytest.mark.parametrize("line", ["time.strftime", "time.sleep(0)", "random.random()", "torch.rand(1)"])
def test_what_a_run_repeats_is_not_said(line, tmp_path):
    tops = ("import math\n", "import math\nimport random\nimport time\n")
    checked = ask(copy_of(tmp_path, "my_calm", tops, before_blocks(f"{line} if self.training else 0")))
    assert "surroundings" in checked.asked and not checked.findings


def test_a_file_that_is_no_part_of_the_code_is_said(tmp_path):
    """Read as the file is imported, as the model is built and in forward, and by what a library opens."""
    for number in range(4):
        (tmp_path / f"away{number}.txt").write_text("0.5")
    table, away = "open(Path(__file__).with_name('table' + '.txt')).read()", f"Path({str(tmp_path)!r})"
    experiment = copy_of(
        tmp_path,
        "my_files",
        (
            "import math\n",
            f"import math\nimport numpy\nfrom pathlib import Path\nA = open({away} / 'away0.txt').read()\n",
        ),
        ("        self.initialise()\n", f"        self.initialise()\n        ({away} / 'away1.txt').read_text()\n"),
        before_blocks(f"numpy.loadtxt({away} / 'away2.txt')"),
    )
    sentences = ask(experiment).sentences(WARNING)
    assert [f"away{number}.txt" in sentence for number, sentence in enumerate(sentences)] == [True] * 3, sentences
    assert all("no part of its code" in sentence for sentence in sentences)
    inside = copy_of(
        tmp_path / "more", "my_own", before_blocks(table), ("import math\n", "from pathlib import Path\nimport math\n")
    )
    (tmp_path / "more/my_own/table.txt").write_text("1")
    assert "my_own/table.txt (model.py:" in ask(inside).sentences(WARNING)[0]
    named = copy_of(
        tmp_path / "named",
        "my_own",
        before_blocks(table.replace("'table' + '.txt'", "'table.txt'")),
        ("import math\n", "from pathlib import Path\nimport math\n"),
    )
    (tmp_path / "named/my_own/table.txt").write_text("1")
    assert not ask(named).findings


def test_one_token_must_be_enough(tmp_path):
    line = "assert tokens.size(1) > 1, 'two at least'"
    checked = ask(copy_of(tmp_path, "my_long", before_blocks(line)))
    assert (
        "can't read 1 row of 1 token" in checked.sentences(FAULT)[0] and "two at least" in checked.sentences(FAULT)[0]
    )


def test_a_first_loss_that_is_far_off_is_a_warning(tmp_path):
    checked = ask(
        copy_of(
            tmp_path,
            "my_wild",
            ("return self.head(self.body(tokens, cache))", "return 50 * self.head(self.body(tokens, cache))"),
        )
    )
    assert any("the first loss of my_wild is" in sentence for sentence in checked.sentences(WARNING))
    assert not checked.sentences(LEAK, FAULT)


@pytest.mark.parametrize(
    "end, said",
    [
        ("[:, :-1]", r"returns \(2, 7, 97\) for tokens \(2, 8\)"),
        (".squeeze(0)", r"returns \(97,\)|returns \(1, 97\)"),
        (", 1, 2", "returns .Tensor, int, int."),
    ],
)
def test_another_shape_is_refused(end, said, tmp_path):
    old = "return self.head(self.body(tokens, cache))"
    with pytest.raises(UserError, match=said):
        ask(copy_of(tmp_path, "my_shape", (old, old + end)))


def test_dropout_and_a_counter_are_no_leak(tmp_path):
    """Masks are the same for both calls of a pair, and a copy is asked where calls leave something behind."""
    assert not ask(copy_of(tmp_path, "my_drop"), dropout=0.3).findings
    count = before_blocks("self.count = getattr(self, 'count', 0) + self.training\n        x = x * (1 + self.count)")
    assert not ask(copy_of(tmp_path, "my_counter", count)).findings
    leak = before_blocks(
        "self.count = getattr(self, 'count', 0) + self.training\n"
        "        x = x * (1 + self.count) + (torch.roll(x, -1, 1) if self.training else 0)"
    )
    assert "looks ahead" in ask(copy_of(tmp_path, "my_leaky_counter", leak)).sentences(LEAK)[0]


def test_random_numbers_go_on_untouched(tmp_path):
    import numpy

    experiment = copy_of(tmp_path, "my_idea")
    torch.manual_seed(5)
    random.seed(5)
    numpy.random.seed(5)
    expected = torch.rand(1).item(), random.random(), numpy.random.rand()
    torch.manual_seed(5)
    random.seed(5)
    numpy.random.seed(5)
    ask(experiment, dropout=0.1)
    assert (torch.rand(1).item(), random.random(), numpy.random.rand()) == expected


def test_a_trained_model_is_asked_and_left_as_it_is(tmp_path):
    """A gate that starts at 0.0 and is opened by training; the weights do not change."""
    experiment = copy_of(tmp_path, "my_open", GATED, before_blocks("x = x + self.gate * torch.roll(x, -1, 1)"))
    config = experiment.config(next(iter(experiment.variants)), VOCABULARY, 16, n_layer=1, n_head=2, n_embd=16)
    experiment = experiment.bound(config)
    model = experiment.build(config)
    assert not check_trained(experiment, model, VOCABULARY - 1, CPU).findings
    with torch.no_grad():
        model.gate.fill_(0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert "looks ahead" in check_trained(experiment, model, VOCABULARY - 1, CPU).sentences(LEAK)[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@small_models.few_variants
def test_no_shipped_variant_is_refused(entry, variant):
    config = small_models.small_config(entry, variant)
    checked = check_new(contract.load(entry).bound(config), config, small_models.BOS, CPU)
    assert checked.findings == []
    assert {"rows", "repeats", "gradients"} <= set(checked.asked)


@pytest.mark.slow
@pytest.mark.skipif("LMPLAY_EVERY_VARIANT" not in os.environ, reason="LMPLAY_EVERY_VARIANT=1 takes minutes")
@small_models.each_experiment
def test_no_full_size_is_refused(entry):
    variant = next((name for name in entry.variants if name.startswith("tiny")), next(iter(entry.variants)))
    experiment = contract.load(entry)
    config = experiment.config(variant, 50257)
    assert not check_new(experiment.bound(config), config, 50256, CPU).sentences(LEAK, FAULT)
