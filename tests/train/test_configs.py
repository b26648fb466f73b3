"""Published runs as files: found by name, with the figures of docs/recipes.md, and ready on the real schemas."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lmplay import contract, registry
from lmplay.cli import trainer
from lmplay.data.plans import load_plan
from lmplay.errors import UserError
from lmplay.model.cost import known_cost
from lmplay.runs.settings import Settings
from lmplay.train.configs import find_config, list_configs
from lmplay.train.settings import read_config
from support.hub_server import HubServer
from support.thorough import first

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.json"))
SIZES = {"tiktoken:gpt2": 50257, "tiktoken:o200k_base": 200019, "bpe:50257": 50257}  # ids, without a network
PUBLISHED = {  # parameters
    "pldr_v500": 109_689_362,
    "pldr_v510": 109_689_362,
    "pldr_v510_dag": 109_689_362,
    "pldr_v900_4x15": 113_557_952,
    "pldr_v900_3x17": 118_291_502,
    "tinystories_llama2": 12_597_504,
    "gpt_o200k_low": 3_202_896,
    "gpt_o200k_chimera": 164_353_536,
    "playground_default": 120_560_209,
}
SMALL = ["arrows_nano_fr_backward", "gpt_o200k_low", "tinystories_llama2"]
OTHERS = [name for name in NAMES if name not in SMALL and "_xl_" not in name]  # xl needs 25 GB
PLANS = ["fineweb", "medium_mix", "openwebtext", "refinedweb_32k"]
GPUS = {"H100": 989e12, "A100": 312e12, "RTX 4090": 165e12}  # NVIDIA's bfloat16 FLOP/s, dense


def settings_of(name: str) -> Settings:
    return Settings(**read_config(name))


def experiment_of(settings: Settings):
    """The entry, the experiment and the Config, with the vocabulary that the config asks for."""
    entry, variant = registry.find(settings.exp)
    experiment, tokenizer = contract.load(entry), settings.tokenizer or load_plan(settings.training_plan).tokenizer
    size = SIZES[tokenizer] if isinstance(tokenizer, str) else tokenizer["vocab_size"]
    fields = contract.parse_fields(list(settings.set))
    return entry, experiment, experiment.config(variant, size, settings.context_len, **fields)


def short(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.2e}".replace("e+", "e")


def hours(flops: float, peak: float) -> str:
    spent = flops / (peak / 4) / 3600
    return f"{spent / 24:.1f} d" if spent >= 48 else f"{spent:.1f} h" if spent >= 0.1 else "minutes"


def rows_of_page() -> dict[str, list[str]]:
    rows = {}
    for line in (ROOT / "docs/recipes.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.findall(r"`(\w+)`", cells[0]) if line.startswith("| `") else ():
            assert name not in rows
            rows[name] = cells[1:]
    return rows


def test_a_config_is_found_by_its_name_and_typed_flags_come_first(work, capsys):
    assert trainer.main(["--use-config", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == NAMES
    assert trainer.main(["--use-config", "pldr-v510", "--lr", "0.5", "--dump-config"]) == 0
    dumped = json.loads(capsys.readouterr().out)
    assert (dumped["exp"], dumped["lr"], dumped["clip_value"], dumped["recipe"]) == ("pldr:v510", 0.5, 1.0, "none")
    (work / "pldr_v510").write_text('{"lr": 0.25}')  # a file comes first
    assert read_config("pldr_v510") == {"lr": 0.25}
    (work / "configs").mkdir()
    (work / "configs" / "pldr_v500.json").write_text('{"description": "mine", "settings": {"lr": 0.125}}')
    assert read_config("pldr_v500") == {"lr": 0.125}
    assert next(config.description for config in list_configs() if config.name == "pldr_v500") == "mine"
    with pytest.raises(UserError, match=r"pldr_v511 can't be read: No such file, nor .* Did you mean 'pldr_v510'"):
        find_config("pldr_v511")


def test_every_config_is_a_run_with_a_line_on_the_page(work):
    rows = rows_of_page()
    assert sorted(rows) == NAMES
    for name in NAMES:
        settings = settings_of(name)
        _, experiment, config = experiment_of(settings)
        with torch.device("meta"):
            n_parameters = sum(p.numel() for p in experiment.bound(config).build(config).parameters())
        assert n_parameters == PUBLISHED.get(name, n_parameters)
        assert rows[name][1] == f"{n_parameters:,}", name
        tokens = (settings.max_steps or 0) * settings.batch_size * settings.context_len
        assert rows[name][2] == (f"{tokens:,}" if tokens else "the plan's"), name


@pytest.mark.parametrize(
    "name",
    first(
        4,
        sorted(
            NAMES,
            key=lambda name: (
                name
                not in ("tinystories_llama2", "gpt_o200k_low", "arrows_nano_fr_backward", "arrows_gru_1x256_fr_forward")
            ),
        ),
    ),
)
def test_flops_and_times_on_the_page_are_computed(work, name):
    settings = settings_of(name)
    entry, experiment, config = experiment_of(settings)
    cost, row = known_cost(entry.code_hash, experiment, config), rows_of_page()[name]
    steps = settings.max_steps or 0
    flops = steps * (settings.batch_size * settings.context_len * cost.flops_per_token + cost.flops_per_step)
    if not steps:
        return
    assert row[3] == short(flops)
    assert row[4:] == [hours(flops, peak) for peak in GPUS.values()]


CHILD = """
import json, sys
from lmplay.cli import trainer
for flags in json.loads(sys.argv[1]):
    print(trainer.main([*flags, "--tokenizer", "bytes", "--device", "cpu"]), flush=True)
"""


def few_documents(plan: dict) -> dict:
    """The plan as it is, but of few documents."""
    for dataset in plan["datasets"].values():
        if "hub" in dataset and "max_documents" in dataset:
            dataset["max_documents"] = 40
        if "skip" in dataset.get("validation", {}):
            dataset["validation"] = {"skip": 5, "documents": 10}
        elif dataset.get("validation", {}).get("fraction", 1) < 0.05:
            dataset["validation"]["fraction"] = 0.1
    return plan


@pytest.mark.process
@pytest.mark.thorough
@pytest.mark.parametrize("names", first(1, [SMALL, OTHERS]), ids=["small", "others"])
def test_dry_runs_and_plans_on_the_real_schemas(tmp_path, names):
    """In one new process: the hub's address is fixed when its library is imported."""
    pytest.importorskip("datasets")
    from support.hub_schemas import repositories

    (tmp_path / "plans").mkdir()
    for path in (ROOT / "plans").glob("*.json"):
        plan = few_documents(json.loads(path.read_text(encoding="utf-8")))
        (tmp_path / "plans" / path.name).write_text(json.dumps(plan))
    asked = [["--use-config", name, "--dry-run"] for name in names]
    asked += [["--training-plan", plan, "--prepare-only"] for plan in PLANS]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "LMPLAY_DATA": str(tmp_path / "data")}
    environment.pop("HF_HUB_OFFLINE", None)
    with HubServer(repositories()) as hub:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(asked)],
            cwd=tmp_path,
            env={**environment, "HF_ENDPOINT": hub.url},
            capture_output=True,
            text=True,
            timeout=900,
        )
    said = done.stdout.splitlines()
    assert said.count("0") == len(asked) and done.returncode == 0, done.stderr
    assert done.stderr.count("dry run: everything except the training is done") == len(names)
    for plan in PLANS:
        datasets = load_plan(plan).datasets
        assert all(any(line.startswith(f"{name}: ") for line in said) for name in datasets), plan
