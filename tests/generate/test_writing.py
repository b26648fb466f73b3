"""What a run's model writes to a prompt, and what it refuses."""

from pathlib import Path

import pytest
import torch

from lmplay import contract, registry
from lmplay.data.tokenizers import load_tokenizer
from lmplay.errors import UserError
from lmplay.generate.sampling import Sampling, text_parts
from lmplay.generate.token_losses import tracks_of
from lmplay.generate.writing import choose_direction, make_writer
from lmplay.runs.run import Run
from lmplay.runs.trained import TrainedRun
from support.small import EXPERIMENTS

BYTES = load_tokenizer("bytes")
GREEDY = Sampling(do_sample=False)


def run_of(name: str, folder: str = "run") -> TrainedRun:
    experiment = contract.load(registry.read_entry(EXPERIMENTS / name))
    config = experiment.config("tiny", BYTES.vocab_size, 8, n_layer=1, n_head=2, n_embd=16)
    torch.manual_seed(0)
    return TrainedRun(
        model=experiment.build(config).eval(),
        tokenizer=BYTES,
        experiment=experiment.bound(config),
        context_len=8,
        run=Run(Path(folder), {}),
        checkpoint=Path(),
    )


def test_several_texts_take_the_passes_of_one():
    """Each batch runs the model once per token, however many texts are written."""
    run, sampling = run_of("llama2"), Sampling(temperature=1.0)
    passes: list[int] = []
    run.model.register_forward_hook(lambda *_: passes.append(1))
    counts, texts = [], []
    for seeds in ([3], [3, 4, 5]):
        writer = make_writer(run, "abc", sampling, max_len=4)
        begun = len(passes)
        texts.append({seed: "".join(parts) for seed, parts in writer.some(seeds)})
        counts.append(len(passes) - begun)
        assert len(writer.written) <= 4 * len(seeds)
    assert counts[0] == counts[1] and texts[0][3] == texts[1][3] and len(texts[1]) == 3


def test_it_goes_on_from_the_prompt():
    run = run_of("gpt2ish")
    ids, direction = BYTES.encode("abc"), choose_direction(run, None)
    wanted = text_parts(run.model, BYTES, direction, ids, context_len=8, max_len=5, sampling=GREEDY, seed=0)
    writer = make_writer(run, "abc", GREEDY, max_len=5)
    assert "".join(writer.parts(0)) == "".join(wanted) and writer.note == ""
    long = make_writer(run, "abcdefgh", GREEDY, max_len=1)
    assert long.note == "the prompt has 8 tokens and the model reads 7: the last 4 are used"
    assert "the first 4 are used" in make_writer(run_of("reverse_time"), "abcdefgh", GREEDY).note


def test_a_direction_is_chosen_by_its_name():
    run = run_of("both_ways")
    assert choose_direction(run, None) == choose_direction(run, "forward") != choose_direction(run, "backward")
    assert "".join(make_writer(run, "abc", GREEDY, direction="backward", max_len=2).parts(0)).endswith("abc")
    with pytest.raises(UserError, match="--direction: both_ways knows no 'backwards'. Did you mean 'backward'"):
        make_writer(run, "abc", GREEDY, direction="backwards")
    with pytest.raises(UserError, match="reads in one direction only"):
        make_writer(run_of("gpt2ish"), "abc", GREEDY, direction="forward")


def test_tracks_are_the_directions_of_one_run_or_one_for_each_of_two():
    both, plain = run_of("both_ways", "both"), run_of("gpt2ish", "plain")
    assert [track.name for track in tracks_of([both], None)] == ["both forward", "both backward"]
    assert [track.name for track in tracks_of([both], "backward")] == ["both backward"]
    assert [track.name for track in tracks_of([both, plain], "backward")] == ["both backward", "plain"]
    assert [track.name for track in tracks_of([plain], None)] == ["plain"]
    with pytest.raises(UserError, match="plain is named twice"):
        tracks_of([plain, plain], None)


@pytest.mark.parametrize("at_end", [False, True])
def test_prompts_are_marked_in_samples_and_on_a_terminal(at_end):
    from lmplay.generate.sampling import marked
    from lmplay.generate.writing import FAINT, PLAIN, Writer, with_faint_prompt

    text, prompt = ("and then she", "she") if at_end else ("Once upon", "Once")
    assert marked(text, prompt, at_end) == ("and then ⟦she⟧" if at_end else "⟦Once⟧ upon")
    assert marked(text, prompt + "\ufffd" * (not at_end), at_end) == marked(text, prompt, at_end)
    assert marked(text, "", at_end) == text and marked(text, "other", at_end) == text
    writer = Writer(lambda seed: list(text), prompt=prompt, at_end=at_end)
    shown = "".join(with_faint_prompt(writer, writer.parts(0)))
    assert shown.replace(FAINT, "⟦").replace(PLAIN, "⟧") == marked(text, prompt, at_end)
    alone = Writer(lambda seed: [prompt], prompt=prompt, at_end=at_end)
    assert "".join(with_faint_prompt(alone, alone.parts(0))) == f"{FAINT}{prompt}{PLAIN}"
