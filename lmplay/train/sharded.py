"""Weights, gradients and optimizer states in parts, one on each rank: torch's FSDP2, block by block.

A block's weights are gathered when it computes, and let go after it. So every rank takes as many forward passes as the
others, be it of no row of its own. Gathered for a checkpoint, the tensors are those of a run that is not sharded.
"""

import contextlib
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lmplay.errors import UserError
from lmplay.model.adapters import offered, sparse_parameters
from lmplay.model.shortcuts import HEAD, followed, go_without
from lmplay.runs import checkpoints
from lmplay.runs.settings import Settings
from lmplay.train.joined import Joined, is_of_a_lost_rank, missed
from lmplay.train.ranks import Figures, OnMatrices


class Sharded(Joined):
    """This process among those that hold a part of the weights each."""

    sharded = True

    def __init__(self, device: torch.device) -> None:
        """Meet the others."""
        super().__init__(device)
        self.mesh: DeviceMesh = init_device_mesh(device.type, (self.size,))

    def check(self, model: nn.Module, settings: Settings, scaled: bool) -> None:
        """Raise UserError for what can't be sharded. scaled: whether the loss is, for float16."""
        super().check(model, settings, scaled)
        why = {
            "--shard can't train tables with row-sparse gradients: leave --shard out": bool(sparse_parameters(model)),
            "--shard can't train a model with derive(), whose tensors are made of whole weights: leave --shard out": (
                offered(model, "derive") is not None
            ),
            "--shard can't compile: leave --compile out": settings.compile == "on",
            "--shard can't train in float16: leave --amp out": scaled,
        }
        for line, refused in why.items():
            if refused:
                raise UserError(line)

    def place(self, model: nn.Module) -> nn.Module:
        """Leave on this rank its part of a model's weights, which all ranks have as they are."""
        followed[model] = set()
        go_without(model, HEAD, "--shard: all logits of a micro-batch are held, (B, T, V), and the loss is theirs")
        warnings.filterwarnings(
            "ignore", "FSDP2-wrapped module", UserWarning
        )  # of views; nothing changes them in place
        with self.explained():
            for block in [block for many in model.modules() if isinstance(many, nn.ModuleList) for block in many]:
                parameters = list(block.parameters())
                if parameters and not any(isinstance(p, DTensor) for p in parameters):  # not within another block
                    fully_shard(block, mesh=self.mesh)
            fully_shard(model, mesh=self.mesh)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(1.0)  # the sum: each rank's loss is its part of the mean
        return model

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Raise UserError in one line for what parts of weights can't do within the block."""
        try:
            yield
        except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
            own = any("/distributed/" in path.replace("\\", "/") for path in _files_of(error))
            if is_of_a_lost_rank(error) or (not own and "DTensor" not in str(error)):
                raise
            raise UserError(
                "--shard can't train this model, whose code uses weights otherwise than by calling its blocks "
                f"({str(error).partition(chr(10))[0][:120]}): leave --shard out"
            ) from error

    def part_of(self, tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of a tensor that all ranks have whole, cut like a parameter."""
        if not isinstance(parameter, DTensor) or tensor.ndim == 0:
            return tensor
        whole = tensor.to(self.device, parameter.dtype)
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)

    def gathered(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> checkpoints.Tensors | None:
        """Return the tensors of a checkpoint, whole, on the CPU of rank 0; all ranks take part."""
        of_model = self._whole(sharded_tensors(model))
        of_optimizers = self._whole(checkpoints.optimizer_tensors(model, optimizers))
        return (of_model, of_optimizers) if self.writes else None

    def _whole(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return tensors whole, on the CPU of rank 0."""
        found = {}
        with missed():
            for name, tensor in tensors.items():
                whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                if self.writes:
                    found[name] = whole.detach().cpu().contiguous()
        return found

    def held(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return this rank's rows of tensors, in the same memory."""
        return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]

    def share_out(self, matrices: list[torch.Tensor], work: OnMatrices, n_rows: int) -> list[torch.Tensor]:
        """Return this rank's rows of what `work` makes of matrices, of each of which it has its rows (r, C).

        Each rank gets all rows of some matrices, and gives back to each rank its rows of the results. Both travel in
        bfloat16, in which `work` computes.
        """
        columns, taken = matrices[0].size(1), _shares(len(matrices), self.size)
        rows = _shares(n_rows, self.size)  # as torch cuts what it shards
        mine, own = taken[self.number], rows[self.number]
        to, back = [n * own * columns for n in taken], [mine * n * columns for n in rows]
        parts = _exchanged(torch.cat([matrix.reshape(-1) for matrix in matrices]).bfloat16(), to, back)
        whole = torch.cat([part.view(mine, n, columns) for part, n in zip(parts, rows, strict=True)], dim=1)
        done = torch.stack(work(whole.unbind())) if mine else whole
        parts = _exchanged(torch.cat([part.reshape(-1) for part in done.split(rows, dim=1)]), back, to)
        return [matrix for part, n in zip(parts, taken, strict=True) for matrix in part.view(n, own, columns).unbind()]

    def sum_gradients(self, parameters: Sequence[torch.Tensor], figures: Figures) -> Figures:
        """Return the sums of all ranks' figures; the gradients were added up in the backward pass."""
        return super().sum_gradients([], figures)

    def take_weights(self, model: nn.Module) -> None:
        """Leave the weights, which are made of the same seed or file."""

    def described(self) -> Mapping[str, Any]:
        """Return what run.json has of them."""
        return {**super().described(), "sharded": True}


def sharded_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parts of a sharded model's state, tied weights once."""
    state = model.state_dict(keep_vars=True)
    once = {id(tensor): (name, tensor) for name, tensor in sorted(state.items(), reverse=True)}
    return {name: tensor.detach() for name, tensor in once.values()}


def _files_of(error: BaseException) -> list[str]:
    """Return the files that an error went through."""
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


def _shares(n: int, size: int) -> list[int]:
    """Return how many of n things each of `size` ranks takes: equally many in order, the last fewer or none."""
    each = -(-n // size)
    return [min(each, max(0, n - rank * each)) for rank in range(size)]


def _exchanged(flat: torch.Tensor, to: list[int], back: list[int]) -> Sequence[torch.Tensor]:
    """Send each rank its numbers of a tensor, `to` says how many; return what each sent here, `back` as many."""
    got = flat.new_empty(sum(back))
    with missed():
        dist.all_to_all_single(got, flat, back, to)
    return got.split(back)
