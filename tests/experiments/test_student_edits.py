"""What a student naturally edits in a copy of gpt2ish: it trains and resumes to the bit, or one line says why not.

Each edit is a replacement or two in its model.py. Right is: the run ends, and one that was stopped half-way and
continued has the same weights. Otherwise a line must hold the words that are listed: before training, or as a warning.
"""

import gc
import shutil
import sys

import pytest
import torch

from lmplay.cli import trainer
from lmplay.crashes import PACKAGE
from lmplay.random_numbers import seed_everything
from lmplay.runs import checkpoints
from lmplay.runs.run import read_run
from lmplay.runs.trained import load_run
from support.small import EXPERIMENTS, TINY

SOURCE = (EXPERIMENTS / "gpt2ish" / "model.py").read_text(encoding="utf-8")
INIT = "        self.initialise()\n\n    def body"
BODY = "        return self.norm(x)\n"
FORWARD = "        return self.head(self.body(tokens, cache))\n"
IMPORT = "import math\n"
PAST = "        past = cache[0].length if cache else 0\n"
SDPA = next(f"{line}\n" for line in SOURCE.splitlines() if "F.scaled_dot_product_attention(" in line)
BY_HAND = """        a = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        a = a.masked_fill(~torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past), -math.inf)
        y = a.softmax(-1) @ v
"""


def init(code):
    """At the end of Model.__init__."""
    return INIT, f"        self.initialise()\n        {code}\n\n    def body"


def body(code):
    """Before the last norm."""
    return BODY, f"        {code}\n{BODY}"


def whole(code):
    """In place of what forward returns, and no cache."""
    return FORWARD, f"        {code}\n"


def top(code):
    """At the top of the file."""
    return IMPORT, f"{IMPORT}{code}\n"


NO_CACHE = ("    def new_cache(self", "    def no_cache(self")
TRAINING = "if self.training and torch.is_grad_enabled():"
RIGHT = {
    "attention by hand": [(SDPA, BY_HAND)],
    "a gate that starts at 0": [
        init("self.gate = nn.Parameter(torch.zeros(()))"),
        body("x = x + self.gate * x.tanh()"),
    ],
    "layers in a ModuleList": [
        init("self.more = nn.ModuleList([nn.Linear(config.n_embd, config.n_embd)])"),
        body("for layer in self.more: x = x + layer(x)"),
    ],
    "one block for all layers": [
        ("nn.ModuleList(Block(config) for _ in range(config.n_layer))", "nn.ModuleList([Block(config)] * 2)"),
        ("for _ in range(c.n_layer)\n        ]\n\n\nclass Block", "for _ in range(2)\n        ]\n\n\nclass Block"),
    ],
    "weights tied after they are drawn": [init("self.head.weight = self.tokens_embedding.weight")],
    "weights tied by value": [init("self.head.weight.data = self.tokens_embedding.weight.data.clone()")],
    "a part that is not trained": [init("self.positions_embedding.weight.requires_grad_(False)")],
    "an operation in place": [body("x.add_(1)")],
    "through .data": [body("x.data.mul_(1.0)")],
    "a number by item": [body("x = x / max(1.0, x.detach().abs().max().item())")],
    "float64": [whole("return self.head(self.body(tokens, cache)).double()")],
    "log-probabilities": [whole("return self.head(self.body(tokens, cache)).log_softmax(-1)")],
    "Python's random numbers": [
        top("import random"),
        body(f"x = x * (1 + 0.1 * random.random()) {TRAINING[:-1]} else x"),
    ],
    "numpy's random numbers": [
        top("import numpy"),
        body(f"x = x * (1 + 0.1 * numpy.random.rand()) {TRAINING[:-1]} else x"),
    ],
    "torch's random numbers": [body(f"x = x + 0.1 * torch.randn_like(x) {TRAINING[:-1]} else x")],
    "random numbers at import": [top("import random\nSHIFT = random.random()"), body("x = x + SHIFT")],
    "initial values by Python's random numbers": [
        top("import random"),
        init("self.shift = random.random()"),
        body("x = x + self.shift"),
    ],
    "a seed in forward": [body("torch.manual_seed(0); x = x + 0.1 * torch.randn_like(x)")],
    "a counter": [
        init("self.steps = 0"),
        body(f"self.steps += 1 {TRAINING[:-1]} else 0\n        x = x * (1 + 0.01 * self.steps)"),
    ],
    "a running mean in a plain tensor": [
        init("self.mean = torch.zeros(config.n_embd)"),
        body(
            f"x = x + self.mean\n        {TRAINING}\n"
            "            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))"
        ),
    ],
    "a history in a list": [
        init("self.history = []"),
        body(
            f"{TRAINING}\n            self.history.append(x.detach().abs().mean().item())\n"
            "        x = x * (1 + 0.01 * len(self.history))"
        ),
    ],
    "a generator of its own": [
        init("self.generator = torch.Generator().manual_seed(5)"),
        body(f"{TRAINING}\n            x = x + 0.1 * torch.randn(x.shape, generator=self.generator)"),
    ],
    "dropout by hand": [body("x = F.dropout(x, 0.1, self.training)")],
    "what was seen last, for a picture": [body("self.last = x")],
    "print": [body("print('shape', x.shape)")],
    "groups of its own": [('"weight_decay": 0.0, "lr": rate}', '"weight_decay": 0.3, "lr": 2 * rate}')],
    "a loss of its own": [
        whole(
            "logits = self.head(self.body(tokens, cache))\n"
            "        return logits, {'loss': 1e-3 * logits.square().mean()}"
        )
    ],
    "a loss with a sum": [
        whole(
            "logits = self.head(self.body(tokens, cache))\n"
            "        return logits, {'loss': 1e-6 * logits.square().sum()}"
        )
    ],
    "a figure of its own": [
        whole("logits = self.head(self.body(tokens, cache))\n        return logits, {'size': logits.abs().mean()}")
    ],
    "a Config that it changes": [init("config.dropout = 0.1")],
    "a mask that is no parameter": [
        init("self.register_buffer('mask', torch.full((8, 8), -math.inf).triu(1))"),
        body("x = x + 0 * self.mask[0, 0]"),
    ],
    "an average of the weights": [
        top("import copy"),
        init("self.average = copy.deepcopy(self.blocks).requires_grad_(False)"),
        body(
            f"{TRAINING}\n            for one, of in zip(self.average.parameters(), self.blocks.parameters()):\n"
            "                one.lerp_(of.detach(), 0.1)"
        ),
    ],
    "counts of tokens in an array": [
        top("import numpy"),
        init("self.seen = numpy.zeros(257)"),
        body(
            f"{TRAINING}\n            self.seen[tokens.numpy().ravel()] += 1\n"
            "        x = x * (1 + 1e-3 * self.seen.sum())"
        ),
    ],
    "a tuple in Config": [("    dropout: float = 0.0", "    widths: tuple = (1, 2)\n    dropout: float = 0.0")],
    "a checkpoint of activations": [
        top("from torch.utils.checkpoint import checkpoint"),
        (
            "            x = block(x, cache[i] if cache else None)\n",
            "            x = checkpoint(block, x, cache[i] if cache else None, use_reentrant=False)\n",
        ),
    ],
}
SAID = {
    "no super().__init__": (
        [("        super().__init__()\n        self.config = config\n", "        self.config = config\n")],
        ["model.py:", "__init__() call"],
    ),
    "no mask": ([(SDPA, SDPA.replace("is_causal=past == 0", "is_causal=False"))], ["looks ahead"]),
    "softmax over the wrong dimension": (
        [(SDPA, BY_HAND.replace("softmax(-1)", "softmax(-2)").replace("-math.inf", "-1e9"))],
        ["looks ahead"],
    ),
    "mean over the text": ([body("x = x - x.mean(1, keepdim=True)")], ["looks ahead"]),
    "norm over the batch": ([body("x = (x - x.mean(0)) / (x.std(0, correction=0) + 1)")], ["rows"]),
    "heads mixed with positions": ([("y.transpose(1, 2).reshape(B, T, D)", "y.reshape(B, T, D)")], ["looks ahead"]),
    "layers in a list": (
        [init("self.more = [nn.Linear(16, 16)]"), body("x = self.more[0](x)")],
        ["more is a plain list", "272", "nn.ModuleList"],
    ),
    "a layer made in forward": ([body("x = nn.Linear(16, 16)(x)")], ["272 parameters", "__init__"]),
    "a layer registered in forward": (
        [body("self.late = getattr(self, 'late', None) or nn.Linear(16, 16); x = self.late(x)")],
        ["late.weight", "__init__"],
    ),
    "a parameter in the class": (
        [
            ("class Model(nn.Module):\n", "class Model(nn.Module):\n    scale = nn.Parameter(torch.ones(16))\n\n"),
            body("x = x * self.scale"),
        ],
        ["Model.scale", "16 parameters"],
    ),
    "detach": (
        [
            (
                "            x = block(x, cache[i] if cache else None)\n",
                "            x = block(x, cache[i] if cache else None).detach()\n",
            )
        ],
        ["get no gradient"],
    ),
    "no_grad": (
        [whole("with torch.no_grad():\n            x = self.body(tokens, cache)\n        return self.head(x)")],
        ["get no gradient"],
    ),
    "all under no_grad": (
        [whole("with torch.no_grad():\n            return self.head(self.body(tokens, cache))")],
        ["crashed in step 1", "does not require grad"],
    ),
    "a parameter that is not used": ([init("self.gate = nn.Parameter(torch.zeros(3))")], ["gate", "no gradient"]),
    "weights drawn anew in forward": ([body("self.initialise()")], ["changes its own parameters"]),
    "initial values that are too large": ([init("nn.init.normal_(self.head.weight, std=3)")], ["first loss"]),
    "probabilities": ([whole("return self.head(self.body(tokens, cache)).softmax(-1)")], ["sums to 1"]),
    "the last position only": (
        [whole("return self.head(self.body(tokens, cache))[:, -1]")],
        ["forward returns (2, 257)", "(2, 8, 257)"],
    ),
    "a loss in place of logits": (
        [
            whole(
                "x = self.head(self.body(tokens, cache))\n"
                "        return F.cross_entropy(x.flatten(0, 1), tokens.flatten())"
            )
        ],
        ["forward returns ()"],
    ),
    "three values": (
        [whole("x = self.body(tokens, cache)\n        return self.head(x), {}, x")],
        ["(Tensor, dict, Tensor)"],
    ),
    "a dictionary": ([whole("return {'logits': self.head(self.body(tokens, cache))}")], ["forward returns dict"]),
    "nothing": ([whole("self.head(self.body(tokens, cache))")], ["forward returns NoneType"]),
    "a length that is fixed": (
        [("self.positions_embedding.weight[past:end]", "self.positions_embedding.weight")],
        ["model.py:"],
    ),
    "a device that is fixed": ([body("x = x + torch.ones(16, device='cuda')")], ["model.py:"]),
    "a dtype that is fixed": ([body("x = x.half()")], ["model.py:"]),
    "a name that is not there": ([body("x = x + self.gates")], ["model.py:", "gates"]),
    "an error on the third call": (
        [init("self.n = 0"), body(f"{TRAINING}\n            self.n += 1\n            assert self.n < 4, 'mine'")],
        ["model.py:", "mine"],
    ),
    "a wrong size": ([init("self.more = nn.Linear(17, 16)"), body("x = self.more(x)")], ["model.py:"]),
    "a group named twice": ([('"lr": rate}]', '"lr": rate}] * 2')], ["tokens_embedding.weight twice"]),
    "a group of what is not trained": (
        [init("self.tokens_embedding.weight.requires_grad_(False)")],
        ["tokens_embedding.weight", "not trainable"],
    ),
    "a figure that is no number": (
        [whole("x = self.head(self.body(tokens, cache))\n        return x, {'all': x.detach()}")],
        ["all"],
    ),
    "a loss that is no number": (
        [whole("x = self.head(self.body(tokens, cache))\n        return x, {'loss': x.square()}")],
        ["loss"],
    ),
    "a text as a figure": ([whole("return self.head(self.body(tokens, cache)), {'mode': 'warm'}")], ["'mode'"]),
    "a counter in the class": (
        [("class Model(nn.Module):\n", "class Model(nn.Module):\n    seen = 0\n\n"), body("Model.seen += 1")],
        ["Model.seen", "which no checkpoint can keep"],
    ),
    "a global": ([top("SEEN = {}"), body("SEEN[len(SEEN)] = 1")], ["global SEEN", "which no checkpoint can keep"]),
    "a default that grows": (
        [
            (
                "    def body(self, tokens, cache=None):\n",
                "    def body(self, tokens, cache=None, seen=[]):\n        seen.append(1)\n",
            )
        ],
        ["default argument of Model.body", "which no checkpoint can keep"],
    ),
    "a generator of Python": (
        [init("self.rates = (1 / n for n in range(1, 99))"), body(f"{TRAINING}\n            x = x * next(self.rates)")],
        ["rates"],
    ),
    "lmplay": ([top("import lmplay")], ["uses lmplay", "model.py line"]),
    "a module that is not there": ([top("import torchh")], ["torchh"]),
    "a name that is misspelled": ([("class Config:\n", "class Config:\n    size: int = nn.Lin\n")], ["model.py:"]),
    "tokens changed in place": (
        [(PAST, f"        {TRAINING}\n            tokens.masked_fill_(tokens % 2 == 0, 0)\n{PAST}")],
        ["changes the tokens that it reads"],
    ),
    "eval in forward": ([body("self.eval()")], ["switches between train and eval mode"]),
    "a seed in __init__": (
        [
            (
                "        self.config = config\n        self.tok",
                "        torch.manual_seed(1337)\n        self.config = config\n        self.tok",
            )
        ],
        ["seeds torch's random numbers itself"],
    ),
    "weights tied by another parameter": (
        [init("self.head.weight = nn.Parameter(self.tokens_embedding.weight)")],
        ["head.weight and tokens_embedding.weight", "in one memory"],
    ),
    "an average of weights that is trained": (
        [
            top("import copy"),
            init("self.average = copy.deepcopy(self.norm)"),
            body("self.average.weight.data.lerp_(self.norm.weight.data, 0.1)"),
        ],
        ["changes its own parameters (average.weight)"],
    ),
    "a state_dict without the blocks": (
        [
            (
                "    def body(self, tokens, cache=None):\n",
                "    def state_dict(self, *args, **kwargs):\n        found = super().state_dict(*args, **kwargs)\n"
                "        return {k: v for k, v in found.items() if 'blocks' not in k}\n\n"
                "    def body(self, tokens, cache=None):\n",
            )
        ],
        ["state_dict() has no blocks.0"],
    ),
    "a partial that keeps a list": (
        [
            top("import functools"),
            init("self.count = functools.partial(lambda seen: seen.append(1) or len(seen), [])"),
            body(f"x = x * (1 + 0.01 * self.count()) {TRAINING[:-1]} else x"),
        ],
        ["count", "which no checkpoint can keep"],
    ),
    "exit": ([body("exit()")], ["model.py:", "SystemExit"]),
    "a cache that was left as it was": ([body("x = x + F.pad(x[:, :-1], (0, 0, 1, 0))")], ["cache"]),
}
FLAGS = "--validation-tokens 60 --lr-schedule constant --warmup-steps 0 --validation-interval 99 --save-interval 2"
WORDS = [*TINY[2:], *FLAGS.split(), "--exp", "mine", "--run-name", "run"]


@pytest.fixture
def trained(work, plans, capfd):
    """Trains a copy of gpt2ish with some edits; returns status, what was printed, and the checkpoints."""

    def train(edits, steps):
        source = SOURCE
        for old, new in edits:
            assert source.count(old) == 1, old
            source = source.replace(old, new)
        folder = work / "experiments" / "mine"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.py").write_text(source)
        gc.collect()  # a trainer that is gone has no lock
        for name in [name for name in sys.modules if name.startswith(PACKAGE)]:
            del sys.modules[name]  # as in a new process
        status = trainer.main([*WORDS, "--training-plan", plans["plain"], "--max-steps", str(steps)])
        return status, capfd.readouterr().err, checkpoints.find_all(work / "gpt_out" / "run" / "checkpoints")

    return train


@pytest.mark.parametrize(
    "edit",
    [pytest.param(edit, marks=() if number % 6 == 0 else pytest.mark.thorough) for number, edit in enumerate(RIGHT)],
)
def test_it_trains_and_resumes_to_the_bit(edit, trained):
    status, err, (half, end) = trained(RIGHT[edit], 4)
    assert status == 0 and "Traceback" not in err and "which no checkpoint" not in err, err
    whole = (end / "model.safetensors").read_bytes()
    assert whole != (half / "model.safetensors").read_bytes()
    shutil.rmtree(end)  # as if it had been killed before
    status, err, (_, again) = trained(RIGHT[edit], 4)
    assert status == 0 and "continuing after step 2" in err, err
    assert (again / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("how", [[], ["--same-init"]], ids=["", "same-init"])
def test_what_init_draws_and_no_checkpoint_has_is_drawn_again(trained, work, how, monkeypatch):
    """A plain tensor, Python's and numpy's numbers: a run that is loaded has those that it was trained with."""
    monkeypatch.setattr(sys.modules[__name__], "WORDS", [*WORDS, *how])
    code = "self.drawn = torch.rand(()), random.random(), numpy.random.rand()"
    extra = "return self.head(self.body(tokens, cache)), {f'drawn{i}': one for i, one in enumerate(self.drawn)}"
    status, err, _ = trained([top("import random\nimport numpy"), init(code), whole(extra)], 2)
    assert status == 0, err
    run = read_run(work / "gpt_out" / "run")
    wanted = run.table("train").filter(like="x_drawn").iloc[-1]
    seed_everything(99)
    _, found = load_run(run, torch.device("cpu")).model(torch.zeros(1, 2, dtype=torch.long))
    assert [float(one) for one in found.values()] == pytest.approx(list(wanted), rel=1e-6)


@pytest.mark.parametrize("edit", SAID)
def test_one_line_says_what_is_wrong(edit, trained):
    edits, words = SAID[edit]
    status, err, _ = trained(edits, 3)
    lines = [line for line in err.splitlines() if all(word in line for word in words)]
    assert lines, err
    assert "Traceback" not in err
    if not lines[0].startswith("warning: "):
        assert status in (2, 3) and lines == err.splitlines()[-1:]
