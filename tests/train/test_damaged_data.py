"""A run stops before it takes a step on a damaged block, and goes on once the data are prepared anew."""

from pathlib import Path

import pytest

from lmplay.cli import trainer
from support.small import TINY, make_text, write_plan


@pytest.mark.parametrize("damaged", ["tokens_00000.bin", "document_offsets.bin"])
def test_no_step_is_taken_on_a_bad_block(work, capsys, monkeypatch, damaged):
    monkeypatch.setenv("LMPLAY_DATA", str(work / "data"))
    (work / "one.txt").write_text(make_text(60, 5), encoding="utf-8")
    plan = write_plan(work, "plain", {"one": {"files": "one.txt"}}, [{"datasets": ["one"]}])
    flags = [*TINY, "--training-plan", plan, "--max-steps", "2", "--validation-tokens", "300", "--run-name"]
    assert trainer.main([*flags, "whole"]) == 0
    [store] = Path("data/stores").glob("one-train-*")
    content = bytearray((store / damaged).read_bytes())
    content[len(content) // 2] ^= 1
    (store / damaged).write_bytes(content)
    capsys.readouterr()
    if damaged.startswith("tokens"):
        assert trainer.main([*flags, "again"]) == 2
        said = capsys.readouterr().err
        assert f"{damaged}, block 0" in said and "Traceback" not in said
        rows = Path("gpt_out/again/train.csv")
        assert not rows.exists() or rows.read_text().count("\n") == 0
    assert trainer.main([*flags, "again"]) == 0
    assert "it is prepared anew" in capsys.readouterr().err
    weights = [
        Path(f"gpt_out/{name}/checkpoints/step_00000002/model.safetensors").read_bytes() for name in ("whole", "again")
    ]
    assert weights[0] == weights[1]
