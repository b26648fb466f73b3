"""Layers and parameters where torch does not see them: one line before the first step, wherever they are kept."""

import pytest
import torch

from lmplay import contract, registry
from lmplay.errors import UserError
from lmplay.model.checks import check_new
from support.small import EXPERIMENTS

TINY = {"n_layer": 1, "n_head": 2, "n_embd": 16}
WITH = """
class Model(Model):
    {body}
    def __init__(self, config):
        super().__init__(config)
        {init}

    def body(self, tokens, cache=None):
        x = super().body(tokens, cache)
        {forward}
        return x
"""
GATES = "[nn.Linear(16, 16), nn.Linear(16, 16)]"
# Where layers are kept -> (in the class, in __init__, in forward, before the class), and what the line must say
HIDDEN = {
    "list": (("", f"self.gates = {GATES}", "x = x + self.gates[0](x)", ""), ["gates is a plain list", "544"]),
    "list inside": (("", f"self.blocks[0].gates = {GATES}", "", ""), ["blocks.0.gates", "544", "nn.ModuleList"]),
    "tuple": (("", f"self.gates = tuple({GATES})", "", ""), ["gates is a tuple", "544", "nn.ModuleList"]),
    "dict": (("", f"self.gates = dict(a={GATES}[0])", "", ""), ["gates is a plain dict", "272", "nn.ModuleDict"]),
    "nested": (("", f"self.gates = [dict(a={GATES})]", "", ""), ["gates is a plain list", "544"]),
    "parameters": (("", "self.scales = [nn.Parameter(torch.ones(16))]", "", ""), ["16 parameters", "nn.ParameterList"]),
    "tensor": (("", "self.scale = torch.ones(16, requires_grad=True)", "", ""), ["scale is a plain tensor", "nn.Para"]),
    "class": (("scale = nn.Parameter(torch.ones(16))", "", "", ""), ["Model.scale", "16 parameters", "__init__"]),
    "class list": ((f"gates = {GATES}", "", "", ""), ["Model.gates", "544 parameters", "__init__"]),
    "another object": (("", f"self.tools = Tools({GATES})", "", ""), ["tools is no nn.Module", "544", "nn.ModuleList"]),
    "global": (("", "", "x = SCALE * x", "SCALE = nn.Parameter(torch.ones(16))"), ["global SCALE", "16 parameters"]),
    "default": (("", "", "", f"def gated(x, gates={GATES}):\n    return x"), ["default argument of gated", "544"]),
    "closure": (
        ("", "", "x = gated(x)", f"gated = (lambda gates: lambda x: gates[0](x))({GATES})"),
        ["272 parameters"],
    ),
    "made in forward": (("", "", "x = x + nn.Linear(16, 16)(x)", ""), ["272 parameters", "(16, 16)", "__init__"]),
    "made at the first call": (
        (
            "",
            "",
            "if not hasattr(self, 'gate'):\n            self.gate = nn.Linear(16, 16)\n        x = self.gate(x)",
            "",
        ),
        ["gate.weight and 1 more", "__init__"],
    ),
    "list that grows": (("", "self.gates = []", "self.gates.append(nn.Linear(16, 16))", ""), ["gates is a plain list"]),
}
RIGHT = {
    "registered and in a list": ("", "self.all = [self.head, {1: self.blocks[0]}, self.norm.weight]", "", ""),
    "frozen": ("", f"self.teacher = [layer.requires_grad_(False) for layer in {GATES}]", "x = self.teacher[0](x)", ""),
    "of gradients": ("", "", "x = x + 0 * torch.ones(16, requires_grad=True)", ""),
    "itself": ("", "self.own = [self]; self.own.append(self.own)", "", ""),
}
TOOLS = "class Tools:\n    def __init__(self, gates):\n        self.gates = gates\n"


def load(folder, parts, name="mine"):
    """An experiment of gpt2ish and these parts."""
    in_class, init, forward, before = parts
    source = (EXPERIMENTS / "gpt2ish" / "model.py").read_text(encoding="utf-8")
    code = WITH.format(body=in_class or "pass", init=init or "pass", forward=forward or "pass")
    (folder / name).mkdir()
    (folder / name / "model.py").write_text(f"{source}\n\n{TOOLS}\n\n{before}\n\n{code}")
    experiment = contract.load(registry.read_entry(folder / name))
    config = experiment.config("tiny", 97, 16, **TINY)
    return experiment.bound(config), config


@pytest.mark.parametrize("kind", HIDDEN)
def test_where_layers_hide(kind, tmp_path):
    parts, says = HIDDEN[kind]
    with pytest.raises(UserError) as raised:
        check_new(*load(tmp_path, parts), 96, torch.device("cpu"))
    line = str(raised.value)
    assert "\n" not in line and line.startswith("mine: ") and "train" in line
    assert all(word in line for word in says), line


@pytest.mark.parametrize("kind", RIGHT)
def test_what_is_no_hidden_layer(kind, tmp_path):
    checked = check_new(*load(tmp_path, RIGHT[kind]), 96, torch.device("cpu"))
    assert not checked.findings


def test_forward_that_changes_its_parameters(tmp_path):
    parts = ("", "", "nn.init.normal_(self.head.weight, std=0.02)", "")
    [finding] = check_new(*load(tmp_path, parts), 96, torch.device("cpu")).findings[:1]
    assert finding.kind == "warning" and "head.weight" in finding.sentence and "__init__" in finding.sentence


def test_probabilities_get_a_hint(tmp_path):
    for name, function, hint in (("p", "softmax", True), ("q", "log_softmax", False)):
        parts = (
            "",
            "",
            "return x\n    def forward(self, tokens):\n        x = super().forward(tokens)." + f"{function}(-1)",
            "",
        )
        findings = check_new(*load(tmp_path, parts, name), 96, torch.device("cpu")).findings
        assert any("sums to 1" in finding.sentence for finding in findings) == hint
