"""Several processes train one run: torch.distributed adds up gradients and figures, and what they decide.

Each rank reads the whole batch of a step, takes its rows, and divides its loss by the scored tokens of the whole. So
the sum of the gradients is that of one process. Words go over gloo, between the CPUs: a rank whose process has ended is
missed there at once, whatever the devices are waiting for.
"""

import contextlib
import datetime
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from lmplay.contract import NOT_SCORED
from lmplay.errors import STOPPED, UserError
from lmplay.model.device import choose_device, device_name
from lmplay.runs.settings import Settings
from lmplay.train.batches import Batch
from lmplay.train.launch import LAUNCHER, MEETING
from lmplay.train.ranks import Figures, OnMatrices, Ranks, Word

T = TypeVar("T")
PATIENCE = datetime.timedelta(days=1)  # data may be prepared for hours; whether a training hangs, its watchdog tells
BUCKET = 1 << 24  # numbers that are added up at once
DENSE, SPARSE = 1, 2  # kinds of gradients
ENDED = "another process of this run has ended, and so does this one: type the same command to continue"


class RankLost(UserError):
    """Another process that trains the run has ended."""

    status = STOPPED


class Joined(Ranks):
    """This process among those of torch.distributed."""

    joined = True

    def __init__(self, device: torch.device) -> None:
        """Meet the others, as torchrun's environment or that of `lmp_trainer --devices` says."""
        self.number, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.device = device
        self.backend = "nccl" if device.type == "cuda" else "gloo"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        file = os.environ.get(MEETING)
        with missed():
            self.store, _, _ = next(dist.rendezvous(f"file://{file}" if file else "env://", self.number, self.size))
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=dist.PrefixStore("lmplay", self.store),
                rank=self.number,
                world_size=self.size,
                timeout=PATIENCE,
            )
            self.hosts: list[Any] = [None] * self.size
            dist.all_gather_object(self.hosts, (socket.gethostname(), device_name(device)))
        self._names: list[str] = []  # of figures, in the order in which they are added up
        self._seconds: float | None = None
        self._thread = threading.get_ident()

    def leave(self) -> None:
        """Let go of the others."""
        dist.destroy_process_group()

    def is_first_to_fail(self) -> bool:
        """Tell whether no other rank has said why the run ends, and note that this one does."""
        try:
            return self.store.compare_set("failed", "", str(self.number)) == str(self.number).encode()
        except RuntimeError:  # the rank that held the store has ended
            return True

    def waits(self) -> bool:
        """Tell whether the thread that trains is within torch.distributed: it may wait for another rank."""
        frame = sys._current_frames().get(self._thread)
        while frame is not None:
            file = frame.f_code.co_filename.replace("\\", "/")
            if "/torch/distributed/" in file or frame.f_code.co_filename == __file__:
                return True
            frame = frame.f_back
        return False

    def share(self, batch: Batch) -> Batch:
        """Return this rank's rows of a batch: whole windows, as many as the others have, or one more."""
        return batch.part(self.number, self.size)

    def sum_gradients(self, parameters: Sequence[torch.Tensor], figures: Figures) -> Figures:
        """Leave on the parameters the sums of all ranks' gradients, and return the sums of their figures.

        A parameter without a gradient on any rank stays without, and a figure that none reports is left out.
        """
        with missed():
            kinds, names = self._what_is_there(parameters, figures)
            dense = [p for p, kind in zip(parameters, kinds, strict=True) if kind == DENSE]
            for p in dense:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            sum_dense([p.grad for p in dense if p.grad is not None])
            for p, kind in zip(parameters, kinds, strict=True):
                if kind == SPARSE:
                    p.grad = self._sum_of_rows(p)
            values = [torch.as_tensor(figures.get(name, 0.0)).to(self.device, torch.float64) for name in names]
            packed = torch.stack([value.reshape(()) for value in values])
            dist.all_reduce(packed)
        return dict(zip(names, packed.unbind(), strict=True))

    def agree(self, own: Word, batch: Batch) -> Word:
        """Return what all ranks do after the step of this batch, once each has said its own.

        A wish to stop counts from any rank, the clocks are those of rank 0. It rides on the sum of the scored tokens,
        which tells that all ranks read the same batch. Raises RankLost.
        """
        n_scored = int((self.share(batch).targets != NOT_SCORED).sum())
        of_first = (own.save, own.seconds) if self.writes else (0, 0.0)
        sums = torch.tensor([n_scored, own.stop, *of_first], dtype=torch.float64)
        with missed():
            dist.all_reduce(sums)
        scored, stop, save, seconds = sums.tolist()
        if scored != batch.n_scored:
            raise UserError("the processes of this run read different samples: start all of them with the same flags")
        self._seconds = seconds
        return Word(stop=stop > 0, save=save > 0, seconds=seconds)

    def clock(self, seconds: float) -> float:
        """Return the seconds of training by which all decide: those of rank 0 when they agreed last."""
        return seconds if self._seconds is None else self._seconds

    def add_up(self, *tensors: torch.Tensor) -> None:
        """Put the sums over all ranks into tensors on the CPU."""
        with missed():
            for tensor in tensors:
                dist.all_reduce(tensor)

    def share_out(self, matrices: list[torch.Tensor], work: OnMatrices, n_rows: int) -> list[torch.Tensor]:
        """Return what `work` makes of matrices of one shape, of which each rank takes some and gathers the others."""
        if len(matrices) < self.size:  # then the same one is waited for
            return work(matrices)
        each = -(-len(matrices) // self.size)
        own = work(matrices[self.number * each : (self.number + 1) * each] or matrices[:1])
        mine = torch.stack([*own, *own[:1] * (each - len(own))]).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        with missed():
            dist.all_gather(parts, mine)
        return [matrix for part in parts for matrix in part.unbind()][: len(matrices)]

    def check(self, model: torch.nn.Module, settings: Settings, scaled: bool) -> None:
        """Raise UserError for what these ranks can't train. scaled: whether the loss is, for float16."""
        if settings.cuda_graph == "on":
            raise UserError("--cuda-graph on replays the steps of one device, and several train here: leave it out")

    def take_weights(self, model: torch.nn.Module) -> None:
        """Take the parameters and the floating buffers of rank 0."""
        with missed(), torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    sent = tensor.detach().contiguous()
                    dist.broadcast(sent, 0)
                    tensor.copy_(sent)

    def told(self, value: T) -> T:
        """Return the value of rank 0."""
        box = [value]
        with missed():
            dist.broadcast_object_list(box, 0)
        return box[0]

    def one_first(self, work: Callable[[], T]) -> T:
        """Return what `work` returns, done by rank 0 before the others do it."""
        if self.writes:
            result = work()
            self.wait()
            return result
        self.wait()
        return work()

    def meaning(self, error: BaseException) -> BaseException:
        """Return RankLost for an error of torch.distributed, which tells that another rank has ended."""
        return RankLost(ENDED) if is_of_a_lost_rank(error) else error

    def wait(self) -> None:
        """Wait until all ranks are here."""
        with missed():
            dist.all_reduce(torch.zeros(1))

    def described(self) -> Mapping[str, Any]:
        """Return what run.json has of them: how many, how they talk, on which hosts and devices."""
        return {"n": self.size, "backend": self.backend, "on": [" ".join(host) for host in self.hosts]}

    def _what_is_there(self, parameters: Sequence[torch.Tensor], figures: Figures) -> tuple[list[int], list[str]]:
        """Return which kind of gradient each parameter has on any rank, and the names of the figures of all ranks."""
        own = [_kind(p) for p in parameters] + [name in figures for name in self._names]
        found = torch.tensor([*own, not figures.keys() <= set(self._names)], dtype=torch.uint8)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        *kinds, new = found.tolist()
        if new:
            said: list[Any] = [None] * self.size
            dist.all_gather_object(said, list(figures))
            self._names = list(dict.fromkeys([*self._names, *(name for names in said for name in names)]))
            return self._what_is_there(parameters, figures)
        names = [name for name, there in zip(self._names, kinds[len(parameters) :], strict=True) if there]
        return kinds[: len(parameters)], names

    def _sum_of_rows(self, table: torch.Tensor) -> torch.Tensor:
        """Return the row-sparse gradients of all ranks together; each rank's rows are padded to the longest."""
        own = None if table.grad is None else table.grad.coalesce()
        rows = torch.empty(0, dtype=torch.int64, device=table.device) if own is None else own.indices()[0]
        values = table.detach()[:0] if own is None else own.values()
        counts = torch.zeros(self.size, dtype=torch.int64)
        counts[self.number] = len(rows)
        dist.all_reduce(counts)
        most = int(counts.max())
        gathered = []
        for mine in (rows, values):
            padded = mine.new_zeros(most, *mine.shape[1:])
            padded[: len(mine)] = mine
            parts = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(parts, padded)
            gathered.append(torch.cat([part[:n] for part, n in zip(parts, counts.tolist(), strict=True)]))
        return torch.sparse_coo_tensor(gathered[0][None], gathered[1], table.shape)


def sum_dense(gradients: Sequence[torch.Tensor]) -> None:
    """Add up gradients over the ranks in place, in buckets: one is on its way while the next is filled."""
    before: tuple[Any, torch.Tensor, list[torch.Tensor]] | None = None
    for bucket in [*_buckets(gradients), []]:
        if bucket:
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            now = dist.all_reduce(flat, async_op=True), flat, bucket
        if before is not None:
            work, flat, filled = before
            work.wait()
            parts = flat.split([gradient.numel() for gradient in filled])
            pairs = zip(filled, parts, strict=True)
            torch._foreach_copy_(filled, [part.view(gradient.shape) for gradient, part in pairs])
        before = now if bucket else None


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Yield gradients in their order, those of one device and type together, about BUCKET numbers at once."""
    bucket: list[torch.Tensor] = []
    size = 0
    for gradient in gradients:
        other = bucket and (bucket[0].device, bucket[0].dtype) != (gradient.device, gradient.dtype)
        if bucket and (other or size + gradient.numel() > BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket


def _kind(parameter: torch.Tensor) -> int:
    """Return 0 for a parameter without a gradient, DENSE or SPARSE."""
    if parameter.grad is None:
        return 0
    return SPARSE if parameter.grad.is_sparse else DENSE


@contextlib.contextmanager
def missed() -> Iterator[None]:
    """Raise RankLost where another rank is not there any more."""
    try:
        yield
    except RuntimeError as error:
        raise RankLost(ENDED) from error


def is_of_a_lost_rank(error: BaseException) -> bool:
    """Tell whether an error says that another rank has ended; gloo says it in words only."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


@contextlib.contextmanager
def taking_part(device: str, kind: type[Joined] = Joined) -> Iterator[Ranks]:
    """Be one of the processes that train a run within the block. Only rank 0 prints, and one says why all end.

    device: the name of --device. kind: Joined, or Sharded. Raises UserError for a device that not each process can
    have, and RankLost.
    """
    if ":" in device or device == "mps":
        n = os.environ["WORLD_SIZE"]
        raise UserError(f"--device {device} names one device, and {n} processes train: leave it out")
    _end_with_launcher()
    ranks: Joined | None = None
    try:
        ranks = kind(choose_device(device))
        with contextlib.nullcontext() if ranks.writes else _muted():
            yield ranks
        ranks.leave()
    except KeyboardInterrupt:
        if ranks is None or ranks.writes:
            raise
        raise SystemExit(STOPPED) from None
    except Exception as error:
        silent = isinstance(error, RankLost) and LAUNCHER in os.environ  # which says who has ended
        if silent or (ranks is not None and not ranks.is_first_to_fail()):
            raise SystemExit(getattr(error, "status", 1)) from None
        raise


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Print nothing within the block."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        yield


def _end_with_launcher() -> None:
    """Wish to stop when the process that has started this one is not there any more."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or sys.platform == "win32":
        return

    def look() -> None:
        while os.getppid() == int(launcher):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, daemon=True).start()
