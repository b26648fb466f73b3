"""lmp_cleanmodel --format hf for every experiment, and what lies beside the weights."""

import json
from pathlib import Path

import pytest
import torch

from lmplay import contract
from lmplay.convert.checked_text import Text
from lmplay.convert.fold import unchanged
from lmplay.convert.huggingface import write_hf
from lmplay.data.tokenizers import load_tokenizer
from lmplay.errors import UserError
from lmplay.model import adapters
from lmplay.runs import checkpoints
from lmplay.runs.run import Run
from lmplay.runs.trained import TrainedRun
from support.small_models import LENGTH, each_experiment, small_config


@pytest.fixture
def transformers(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("transformers")


def as_run(entry, folder: Path, variant: str | None = None) -> TrainedRun:
    """A run of the experiment with new weights and the tokenizer bytes."""
    tokenizer, experiment = load_tokenizer("bytes"), contract.load(entry)
    config = small_config(entry, variant or next(iter(entry.variants)))
    config.vocab_size = tokenizer.vocab_size
    torch.manual_seed(1)
    model = experiment.build(config).eval()
    with torch.no_grad():  # branches that begin at zero, too
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    state = {"keep": False, "step": 3, "tokens": 1234, "validation_loss": 5.4321}
    checkpoint = checkpoints.save(folder / "run" / "checkpoints", 3, model, [], state)
    info = {"experiment": {"name": entry.name, "variant": "default"}, "tokenizer": {"spec": "bytes"}}
    return TrainedRun(
        model=model,
        tokenizer=tokenizer,
        experiment=experiment.bound(config),
        context_len=LENGTH,
        run=Run(folder / "run", info),
        checkpoint=checkpoint,
    )


def some_text(run: TrainedRun) -> Text:
    return Text(torch.randint(256, (3 * LENGTH,), generator=torch.Generator().manual_seed(0)), "made-up text")


@each_experiment
def test_every_experiment(transformers, entry, tmp_path):
    """The logits are lmplay's, also in a batch of another length."""
    run = as_run(entry, tmp_path)
    written, text = tmp_path / f"hf_{entry.name}", some_text(run)
    difference, _ = write_hf(written, unchanged(run), run, text)
    assert difference < 1e-5
    load = transformers.AutoModelForCausalLM if run.experiment.causal else transformers.AutoModel
    model = load.from_pretrained(str(written), trust_remote_code=True).eval()
    inputs, _, _ = run.experiment.make_batch(text.tokens[None, : LENGTH - 5], run.tokenizer.eot, 3)
    with torch.no_grad(), adapters.derived_once(run.model):
        torch.testing.assert_close(model(inputs).logits, adapters.split_output(run.model(inputs))[0], rtol=0, atol=1e-5)
    assert f"experiment `{entry.name}" in (written / "README.md").read_text()


def find(name):
    from lmplay import registry

    return registry.find(name)[0]


def test_writes_learns_and_refuses_left_padding(transformers, tmp_path):
    """A model with its own code: greedy text as lmplay's, a loss with a gradient, no padding that it would read."""
    from lmplay.generate.sampling import Sampling, generate

    run = as_run(find("modern"), tmp_path)
    write_hf(tmp_path / "hf", unchanged(run), run, some_text(run))
    model = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "hf"), trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "hf"))
    inputs = tokenizer("ab", return_tensors="pt")
    assert inputs.input_ids.tolist() == [[256, 97, 98]]  # the BOS token comes first
    theirs = model.generate(**inputs, do_sample=False, max_new_tokens=9)[0, 3:].tolist()
    ours = generate(run.model, [256, 97, 98], LENGTH, 9, Sampling(do_sample=False), torch.Generator(), stop=256)
    assert theirs[: len(theirs) - (theirs[-1] == 256)] == list(ours) and len(theirs) > 1
    loss = model(inputs.input_ids, labels=inputs.input_ids).loss
    expected = torch.nn.functional.cross_entropy(run.model(torch.tensor([[256, 97]]))[0], torch.tensor([97, 98]))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert any(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match="padding on the right"):
        model(inputs.input_ids, attention_mask=torch.tensor([[0, 1, 1]]))


def test_what_lies_beside_the_weights(transformers, tmp_path):
    run = as_run(find("llama2"), tmp_path)
    sentence = "The difference is -0.1: better."
    entry = {
        "candidate": {"label": "llama2", "runs": [str(run.run.folder)]},
        "baseline": {"label": "gpt2ish", "runs": ["elsewhere"]},
        "hypothesis": "x",
        "verdict": {"sentence": sentence, "difference": -0.1, "low": None, "high": None},
        "aa": False,
        "p": 0.01,
    }
    (tmp_path / "verdicts.jsonl").write_text(f"damaged\n{json.dumps(entry)}\n")
    _, said = write_hf(tmp_path / "hf", unchanged(run), run, some_text(run))
    assert said == "tokenizer.json" and not list((tmp_path / "hf").glob("*.py"))
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| validation loss, nats per token | 5.4321 |" in card and "| tokens of training | 1,234 |" in card
    assert f"- llama2 against gpt2ish: {sentence}" in card and "trust_remote_code" not in card
    writing = transformers.GenerationConfig.from_pretrained(str(tmp_path / "hf"))
    assert (writing.bos_token_id, writing.eos_token_id, writing.max_length) == (256, 256, LENGTH)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "hf"))
    text = "Zoë 日本\n\t x"
    assert tokenizer(text).input_ids == [256, *text.encode()]
    assert tokenizer.decode(list(text.encode())) == text


def test_code_in_folders_is_refused(tmp_path):
    import shutil

    from lmplay import registry

    folder = tmp_path / "experiments" / "deep"
    shutil.copytree(find("modern").folder, folder)
    (folder / "parts").mkdir()
    (folder / "parts" / "more.py").write_text("ONE = 1\n")
    run = as_run(registry.read_entry(folder), tmp_path)
    with pytest.raises(UserError, match=r"loads no code from folders \(parts/more.py\)"):
        write_hf(tmp_path / "hf", unchanged(run), run, some_text(run))
    assert not (tmp_path / "hf").exists()
