"""Flags as other tools spell them are answered with the flag that is meant."""

import importlib

import pytest

from lmplay.cli.spellings import ELSEWHERE, meant
from lmplay.data.tokenizer_names import TIKTOKEN
from lmplay.data.tokenizers import load_tokenizer
from lmplay.errors import UserError
from lmplay.runs.settings import Settings

MEANT = {
    ("trainer", "--learning-rate"): "'--lr'",
    ("trainer", "--learning_rate=3e-4"): "'--lr'",
    ("trainer", "--batch_size"): "'--batch-size'",
    ("trainer", "--block-size"): "'--context-len'",
    ("trainer", "--n-layer"): "'--set n_layer='",
    ("trainer", "--gpu"): "'--device cuda'",
    ("trainer", "--lr-decay"): "'--lr-schedule'",
    ("trainer", "--resume"): "type the same command again",
    ("trainer", "-lr"): "'--lr'",
    ("generator", "--max-new-tokens"): "'--max-len'",
    ("generator", "--model"): "'--run'",
    ("generator", "--prompt"): "without a flag",
    ("plotstats", "--output-dir"): "'--out'",
    ("plotstats", "--smoothing"): "'--smooth'",
    ("probe", "--seed"): "'--seeds'",
    ("trainer", "--epoch"): "'--epochs'",
    ("trainer", "--max-t=5"): "'--max-tokens'",
    ("trainer", "--save-i"): "'--save-interval'",
    ("compare", "--until"): "'--until-sure'",
    ("generator", "--top"): "'--top-k' or '--top-p'",
    ("eval", "--task"): "'--tasks'",
    ("cleanmodel", "--form"): "'--format'",
    ("plotstats", "--cs"): "'--csv'",
}


@pytest.mark.parametrize(("name", "typed"), MEANT)
def test_the_right_flag_is_named(name, typed, capsys):
    module = importlib.import_module(f"lmplay.cli.{name}")
    given = [typed, "1"] if "=" not in typed else [typed]
    with pytest.raises(SystemExit) as end:
        module.parser().parse_args(["--exp", "a", *given] if name == "probe" else given)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1 and MEANT[name, typed] in said


@pytest.mark.parametrize("name", ["cleanmodel", "compare", "eval", "generator", "plotstats", "probe", "trainer"])
def test_no_flag_has_a_short_form(name, capsys):
    """Each flag without its last letter is refused, unless that is a flag, too."""
    parser = importlib.import_module(f"lmplay.cli.{name}").parser()
    parser._actions[:] = [action for action in parser._actions if not action.required]
    flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    for flag in {flag[:-1] for flag in flags if len(flag) > 4} - set(flags):
        with pytest.raises(SystemExit):
            parser.parse_args([flag])
        assert f"there is no flag {flag}." in capsys.readouterr().err


def test_a_flag_that_is_cut_is_named_before_a_flag_that_is_missing(capsys):
    from lmplay.cli import probe, tokenizer

    for module, words, said in (
        (probe, ["--ex", "gpt2ish"], "there is no flag --ex. Did you mean '--exp'?"),
        (tokenizer, ["train", "--vocab", "300"], "there is no flag --vocab. Did you mean '--vocab-size'?"),
        (tokenizer, ["inspect", "bytes", "--long", "3"], "there is no flag --long. Did you mean '--longest'?"),
        (probe, ["gpt2ish"], "the following arguments are required: --exp"),
    ):
        with pytest.raises(SystemExit):
            module.parser().parse_args(words)
        assert said in capsys.readouterr().err


def test_every_answer_is_a_flag_of_some_command():
    commands = ("cleanmodel", "compare", "generator", "plotstats", "probe", "trainer")
    known = set()
    for name in commands:
        known |= set(importlib.import_module(f"lmplay.cli.{name}").parser()._option_string_actions)
    answers = {target.split()[0] for targets in ELSEWHERE.values() for target in targets} - {"--epochs"}
    assert answers <= known
    assert meant("--zzzzz", known) == ""


def test_a_tokenizer_of_tiktoken_by_its_name_alone():
    import tiktoken

    assert set(TIKTOKEN) >= set(tiktoken.list_encoding_names())
    assert Settings(tokenizer="gpt2") == Settings(tokenizer="tiktoken:gpt2")
    assert Settings(tokenizer="bytes").tokenizer == "bytes"
    try:
        assert load_tokenizer("gpt2").spec == "tiktoken:gpt2"
    except UserError as error:  # there is no network
        assert str(error).startswith("tokenizer 'tiktoken:gpt2': its vocabulary could not be downloaded")
