"""Use what a Model may offer: the head that is fused."""

import pytest
import torch

from lmplay.model import adapters


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head, self.norm = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9), torch.nn.Identity()

    def body(self, tokens):
        return self.embedding(tokens)

    def forward(self, tokens):
        return self.head(self.body(tokens))


class Reporting(Plain):
    def body(self, tokens):
        hidden = self.embedding(tokens)
        return hidden, {"loss": hidden.mean()}

    def forward(self, tokens):
        hidden, extra = self.body(tokens)
        return self.head(hidden), extra


def changed(forward, base=Plain):
    return type("Changed", (base,), {"forward": forward})()


def test_head_is_fused():
    for model in (Plain(), Reporting(), Plain().to("meta")):
        model.train()
        names = list(vars(model))
        assert adapters.fused_head(model) is model.head and adapters.fused_head(model) is model.head
        assert model.training and list(vars(model)) == names and not model.head._forward_hooks


def test_head_is_fused_where_body_is_a_module():
    class Parts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 9)

        def forward(self, tokens):
            return self.head(self.body(tokens))

    model = Parts()
    assert adapters.fused_head(model) is model.head and not model.body._forward_hooks


@pytest.mark.parametrize(
    "model",
    [
        changed(lambda self, tokens: 30 * torch.tanh(self.head(self.body(tokens)) / 30)),
        changed(lambda self, tokens: self.head(self.body(tokens)) * 1.0),
        changed(lambda self, tokens: self.head(self.body(tokens) + 0.0)),
        changed(lambda self, tokens: self.head(self.embedding(tokens))),
        changed(lambda self, tokens: self.head(self.body(tokens)) if self.head(self.body(tokens)).numel() else None),
        changed(lambda self, tokens: (self.head(self.body(tokens)), {"loss": 1.0})),
        changed(lambda self, tokens: self.head(self.body(tokens)[0]), Reporting),
    ],
    ids=["capped", "scaled", "shifted", "past the body", "twice", "with a loss", "without its loss"],
)
def test_head_is_not_fused_where_forward_does_more(model):
    assert adapters.fused_head(model) is None


def test_head_that_is_not_plain_is_not_fused():
    model = Plain()
    model.head = type("Other", (torch.nn.Linear,), {})(4, 9)
    assert adapters.fused_head(model) is None and adapters.fused_head(torch.nn.Linear(2, 3)) is None
