"""Muon with matrices taken together, against torch.optim.Muon, which takes them one by one."""

import pytest
import torch
from torch import nn

from lmplay.errors import UserError
from lmplay.train.muon import Muon, orthogonalized
from lmplay.train.optimizers import make_optimizers

SHAPES = [(8, 8), (24, 8), (8, 32), (8, 8), (5, 9), (24, 8)]


def matrices(device="cpu"):
    torch.manual_seed(1)
    return [nn.Parameter(torch.randn(shape).to(device)) for shape in SHAPES]


def step(optimizer, parameters, seed):
    torch.manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape).to(p.device)
    optimizer.step()


@pytest.mark.parametrize("scale, adjust", [("match_rms", "match_rms_adamw"), ("rows", "original")])
def test_steps_are_torch_s_to_the_bit(scale, adjust):
    ours, theirs = matrices(), matrices()
    mine = Muon(ours, lr=0.02, weight_decay=0.1, scale=scale)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn=adjust)
    for seed in range(8):
        step(mine, ours, seed)
        step(other, theirs, seed)
        if seed == 3:  # each goes on from the other's state
            state = mine.state_dict()["state"], other.state_dict()["state"]
            mine.load_state_dict({**mine.state_dict(), "state": state[1]})
            other.load_state_dict({**other.state_dict(), "state": state[0]})
    assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("nesterov", [True, False])
def test_values_in_tensors(nesterov):
    ours, theirs = matrices(), matrices()
    mine, other = Muon(ours, lr=0.5, nesterov=nesterov), Muon(theirs, lr=0.5, nesterov=nesterov)
    for key, value in (("lr", 0.02), ("momentum", 0.9), ("weight_decay", 0.3)):
        mine.param_groups[0][key] = torch.tensor(value)
        other.param_groups[0][key] = value
    for seed in range(3):
        step(mine, ours, seed)
        step(other, theirs, seed)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_scale_that_is_none():
    with pytest.raises(ValueError, match="'rms' is not one of match_rms, rows"):
        Muon(matrices(), scale="rms")


def test_blocks_are_scaled_by_their_own_shape():
    """Three blocks of 8 x 8 in one weight of 24 x 8 move as far as three matrices, not sqrt(3) times as far."""
    stacked = nn.Parameter(torch.zeros(24, 8))
    torch.manual_seed(3)
    stacked.grad = torch.randn(24, 8)
    Muon([{"params": [stacked], "row_blocks": 3}], lr=0.1, weight_decay=0.0, scale="rows").step()
    for block, gradient in zip(stacked.detach().chunk(3), stacked.grad.chunk(3), strict=True):
        alone = nn.Parameter(torch.zeros(8, 8))
        alone.grad = gradient.clone()
        Muon([alone], lr=0.1, weight_decay=0.0, scale="rows").step()
        torch.testing.assert_close(block, alone.detach(), rtol=1e-3, atol=1e-6)


def test_all_at_once_and_one_by_one():
    torch.manual_seed(0)
    x = torch.randn(5, 12, 7)
    together = orthogonalized(x)
    for one, of_all in zip(x, together, strict=True):
        torch.testing.assert_close(orthogonalized(one[None])[0], of_all, rtol=0.02, atol=0.02)
        u, _, v = torch.linalg.svd(one, full_matrices=False)
        sizes = torch.linalg.svdvals(of_all.float())
        assert 0.6 < sizes.min() and sizes.max() < 1.3
        assert ((u @ v) * of_all).sum() / 7 > 0.8  # near U V^T


class Stacked(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 11)
        if blocks:
            self.qkv.row_blocks = blocks


def changes(model):
    optimizers = make_optimizers(model, "muon", 0.01, 0.0, (0.9, 0.95), 1e-8)
    before = model.qkv.weight.detach().clone()
    torch.manual_seed(5)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    for optimizer in optimizers:
        optimizer.step()
    return model.qkv.weight.detach() - before, model.qkv.weight.grad


def test_row_blocks_are_matrices_of_their_own():
    change, gradient = changes(Stacked(3))
    for block, of_block in zip(change.chunk(3), gradient.chunk(3), strict=True):
        alone = nn.Parameter(torch.zeros(8, 8))
        alone.grad = of_block.clone()
        Muon([alone], lr=0.01, weight_decay=0.0).step()
        torch.testing.assert_close(block, alone.detach(), rtol=1e-3, atol=1e-6)
    whole, _ = changes(Stacked(None))
    assert not torch.allclose(whole, change, rtol=0.1)
    with pytest.raises(UserError, match="24 rows are not 5 blocks"):
        changes(Stacked(5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no CUDA device here")
def test_together_on_a_gpu():
    ours, theirs = matrices("cuda"), matrices("cuda")
    mine = Muon(ours, lr=0.02, weight_decay=0.1)
    other = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for seed in range(5):
        step(mine, ours, seed)
        step(other, theirs, seed)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)
