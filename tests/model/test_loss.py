"""The ruler against plain arithmetic in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lmplay.contract import NOT_SCORED
from lmplay.model import loss
from lmplay.model.loss import score

B, T, D, V = 6, 11, 8, 37


class Tiny(nn.Module):
    """A body of one layer and a plain head."""

    def __init__(self, bias: bool, extra: bool = False):
        super().__init__()
        self.embedding, self.inner = nn.Embedding(V, D), nn.Linear(D, D)
        self.head, self.extra = nn.Linear(D, V, bias=bias), extra

    def body(self, tokens):
        hidden = torch.tanh(self.inner(self.embedding(tokens)))
        return (hidden, {"loss": hidden.square().mean(), "width": 3.0}) if self.extra else hidden

    def forward(self, tokens):
        output = self.body(tokens)
        return (self.head(output[0]), output[1]) if self.extra else self.head(output)


class Opaque(nn.Module):
    """The same model without a body and a head to be seen."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens)


def make(bias=True, masked=True, seed=0, **options):
    torch.manual_seed(seed)
    model = Tiny(bias, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0)  # logits that differ
    inputs, targets = torch.randint(V, (B, T)), torch.randint(V, (B, T))
    if masked:
        targets[torch.rand(B, T) < 0.4] = NOT_SCORED
        targets[2] = NOT_SCORED
    rows = (targets.flatten() != NOT_SCORED).nonzero().squeeze(1)
    return model, inputs, targets, rows


def reference(model, inputs, targets):
    """Loss of each scored token, right or wrong, and the gradients of the sum, in float64 by definition."""
    wide = Tiny(model.head.bias is not None).double()
    wide.load_state_dict(model.state_dict())
    logits = wide(inputs).flatten(0, 1)
    scored = targets.flatten() != NOT_SCORED
    logits, wanted = logits[scored], targets.flatten()[scored]
    losses = logits.exp().sum(1).log() - logits.gather(1, wanted[:, None]).squeeze(1)
    losses.sum().backward()
    return losses.detach(), logits.argmax(1) == wanted, {n: p.grad for n, p in wide.named_parameters()}


def distance(found, wanted):
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


def agree(found, wanted, tolerance):
    assert distance(found, wanted) <= tolerance, f"relative difference {distance(found, wanted):.2e}"


@pytest.fixture(
    params=[(1 << 27, 1 << 19), (64 * V, 5 * V), (64 * V, 1), "as on a GPU"],
    ids=["one block", "blocks and strips", "strips of a row", "rounded rows"],
)
def sizes(request, monkeypatch):
    """How much is held at once: all of it, or many blocks of 64 rows in strips of 5, or of 1; rows of 64 logits."""
    block, strip = (64 * V, 64 * V) if request.param == "as on a GPU" else request.param
    monkeypatch.setattr(loss, "BLOCK_ELEMENTS", block)
    monkeypatch.setattr(loss, "STRIP_ELEMENTS", strip)
    monkeypatch.setattr(loss, "GROUP", 4 if strip == 5 * V else loss.GROUP)  # groups of columns, and one that is left
    if request.param == "as on a GPU":
        monkeypatch.setitem(loss.ROUND_ROWS, "cpu", 64)
        monkeypatch.setattr(loss, "_softmax_scores", loss.scores_in_few_passes)  # what is compiled there


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_equals_float64(sizes, bias, masked, fused):
    model, inputs, targets, rows = make(bias, masked)
    inputs, targets = inputs.repeat(5, 1), targets.repeat(5, 1)  # more than one block of rows
    rows = (targets.flatten() != NOT_SCORED).nonzero().squeeze(1)
    losses, correct, gradients = reference(model, inputs, targets)
    result = score(model, inputs, targets, rows if masked else None, fused=fused)
    result.loss_sum.backward()
    assert result.losses.shape == result.correct.shape == losses.shape
    assert not result.losses.requires_grad
    agree(result.loss_sum.detach(), losses.sum(), 1e-6)
    agree(result.losses, losses, 1e-6)
    assert torch.equal(result.correct, correct) and 0 < correct.sum() < len(correct)
    for name, parameter in model.named_parameters():
        agree(parameter.grad, gradients[name], 1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_tokens_that_are_not_scored_cost_nothing_and_move_nothing(sizes, bias):
    model, inputs, targets, rows = make(bias)
    losses, correct, gradients = reference(model, inputs, targets)
    result = score(model, inputs, targets)  # all rows of the head, those that are not scored, too
    result.loss_sum.backward()
    agree(result.losses[rows], losses, 1e-6)
    assert result.losses.count_nonzero() == len(rows) and torch.equal(result.correct[rows], correct)
    for name, parameter in model.named_parameters():
        agree(parameter.grad, gradients[name], 1e-6)


@pytest.mark.parametrize("columns", [100, 128, 129, 1000])
def test_of_equal_logits_the_first_is_the_largest(columns):
    torch.manual_seed(0)
    logits = torch.randint(20, (50, columns)).float()
    logits[0], logits[1, 70:90] = 0.0, torch.nan
    largest, at = loss._largest(logits)
    expected = logits.numpy().argmax(1)
    assert torch.equal(at.squeeze(1), torch.from_numpy(expected))
    assert largest[2:].squeeze(1).tolist() == logits.numpy().max(1)[2:].tolist() and largest[1].isnan()


def test_float64_stays_float64():
    model, inputs, targets, rows = make()
    losses, _, gradients = reference(model, inputs, targets)
    model.double()
    result = score(model, inputs, targets, rows)
    result.loss_sum.backward()
    agree(result.losses, losses, 1e-14)
    for name, parameter in model.named_parameters():
        agree(parameter.grad, gradients[name], 1e-13)


def test_gradient_is_scaled_by_what_follows():
    model, inputs, targets, rows = make()
    _, _, gradients = reference(model, inputs, targets)
    (score(model, inputs, targets, rows).loss_sum * 0.25 + 7.0).backward()
    for name, parameter in model.named_parameters():
        agree(parameter.grad, gradients[name] * 0.25, 1e-6)


def test_gradients_add_up():
    model, inputs, targets, _ = make(masked=False)
    _, _, gradients = reference(model, inputs, targets)
    for part in (slice(0, 1), slice(1, 4), slice(4, B)):
        score(model, inputs[part], targets[part]).loss_sum.backward()
    for name, parameter in model.named_parameters():
        agree(parameter.grad, gradients[name], 1e-6)


@pytest.mark.parametrize("trained", ["embedding.weight", "head.weight", "head.bias"])
def test_frozen_parameters(trained):
    model, inputs, targets, rows = make()
    _, _, gradients = reference(model, inputs, targets)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == trained)
    score(model, inputs, targets, rows).loss_sum.backward()
    for name, parameter in model.named_parameters():
        if name == trained:
            agree(parameter.grad, gradients[name], 1e-6)
        else:
            assert parameter.grad is None


def test_tied_head():
    model, inputs, targets, rows = make(bias=False)
    model.head.weight = model.embedding.weight
    wide = Tiny(False).double()
    wide.head.weight = wide.embedding.weight
    wide.load_state_dict(model.state_dict())
    F.cross_entropy(wide(inputs).flatten(0, 1), targets.flatten(), ignore_index=NOT_SCORED, reduction="sum").backward()
    score(model, inputs, targets, rows).loss_sum.backward()
    agree(model.embedding.weight.grad, wide.embedding.weight.grad, 1e-6)


def test_rows_without_the_indices():
    """-100 is not scored, also where nobody says which rows those are."""
    model, inputs, targets, rows = make()
    for fused in (True, False):
        plain, told = (score(model, inputs, targets, r, fused=fused) for r in (None, rows))
        agree(plain.loss_sum.detach(), told.loss_sum.detach(), 1e-6)
        assert int(plain.correct.sum()) == int(told.correct.sum())


@pytest.mark.parametrize("logit", [1e4, 3e38])
def test_extreme_logits(logit):
    """A target whose probability underflows has a finite loss: the distance of its logit from the largest."""
    model, inputs, targets, _ = make(masked=False)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
        model.head.bias[3] = logit
    targets[:], targets[0, 0] = 3, 5
    result = score(model, inputs, targets)
    assert result.losses[0] == torch.tensor(logit) and result.losses[1:].eq(0).all()


def test_nan_is_not_hidden():
    model, inputs, targets, rows = make()
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    for fused in (True, False):
        assert score(model, inputs, targets, rows, fused=fused).loss_sum.isnan()


@pytest.mark.parametrize("bias", [True, False])
def test_bfloat16(sizes, bias):
    """Under autocast: what F.linear and F.cross_entropy make of the same numbers, within what bfloat16 resolves."""
    model, inputs, targets, rows = make(bias)
    with torch.autocast("cpu", torch.bfloat16):
        plain = F.cross_entropy(
            model(inputs).flatten(0, 1).float(), targets.flatten(), ignore_index=NOT_SCORED, reduction="none"
        )
    plain.sum().backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters()}
    _, _, exact = reference(model, inputs, targets)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        result = score(model, inputs, targets, rows)
    result.loss_sum.backward()
    assert result.losses.dtype == torch.float32
    agree(result.losses, plain.detach()[rows], 1e-6)  # logits are the same, and softmax is taken in float32
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        agree(parameter.grad, wanted[name], 2e-2)
        assert distance(parameter.grad, exact[name]) <= 1.2 * distance(wanted[name], exact[name])


def test_without_gradient_nothing_is_kept():
    model, inputs, targets, rows = make()
    losses, _, _ = reference(model, inputs, targets)
    with torch.no_grad():
        result = score(model, inputs, targets, rows)
    assert not result.loss_sum.requires_grad
    agree(result.losses, losses, 1e-6)


def test_a_head_that_is_not_plain_is_not_fused():
    model, inputs, targets, rows = make()

    class Scaled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2.0

    head = Scaled(D, V)
    head.load_state_dict(model.head.state_dict())
    model.head = head
    wanted = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=NOT_SCORED, reduction="sum")
    agree(score(model, inputs, targets, rows).loss_sum.detach(), wanted.detach(), 1e-6)


@pytest.mark.parametrize("opaque", [True, False])
def test_extra_is_handed_on_and_not_part_of_the_loss(opaque):
    plain, inputs, targets, rows = make()
    reporting = Tiny(True, extra=True)
    reporting.load_state_dict(plain.state_dict())
    result = score(Opaque(reporting) if opaque else reporting, inputs, targets, rows)
    agree(result.loss_sum.detach(), score(plain, inputs, targets, rows).loss_sum.detach(), 1e-6)
    assert result.extra["width"] == 3.0 and result.extra["loss"].requires_grad
