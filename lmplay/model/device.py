"""Choose the device and the precision that a model runs in, and prepare the process."""

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lmplay import machine
from lmplay.errors import UserError
from lmplay.machine import cores

if TYPE_CHECKING:
    import torch


def prepare_process() -> None:
    """Set what makes a CPU train faster; call it before torch is imported.

    It keeps freed memory in the process, asks for huge pages, and lets a waiting thread give up its core soon.

    Every training step frees and takes the same large tensors. Given back to the system, each comes back as fresh pages
    that have to be faulted in. On a CPU this costs more than the arithmetic (benchmarks/throughput.py has the figure).
    Only glibc has these switches; elsewhere nothing happens.

    By default a waiting thread of GNU's OpenMP spins for milliseconds: harmless on an idle machine. On a busy one the
    spinning takes the core from the very thread that is waited for: beside another job on two cores a step of a small
    model took twice as long, and beside several jobs a third of the spinning halved it once more.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if cores() < (os.cpu_count() or 1):  # a quota, which OpenMP doesn't see: more threads would wait for each other
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def choose_device(name: str) -> "torch.device":
    """Return the device named "auto", "cpu", "cuda", "cuda:1" or "mps". Raises UserError if it is not there.

    Of several processes of a machine that train one run, each has the GPU of its LOCAL_RANK, as torchrun sets it.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind == "cpu" and not index:
        return torch.device("cpu")
    if kind == "mps" and not index:
        if not torch.backends.mps.is_available():
            raise UserError("--device mps: this machine or this torch has no MPS; use --device cpu")
        return torch.device("mps")
    if kind == "cuda" and (not index or index.isdigit()):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        number = int(index or os.environ.get("LOCAL_RANK", "0"))
        if count <= number:
            raise UserError(
                f"--device {name}: torch sees {count or 'no'} CUDA device{'s' if count != 1 else ''} here; "
                "use --device cpu, or install a torch built for your GPU"
            )
        return torch.device("cuda", number)
    raise UserError(f"--device takes auto, cpu, cuda, cuda:N or mps, not {name!r}")


def device_here(name: str) -> "torch.device":
    """Return the device of this name, or the best one of this machine if it is one that other machines have."""
    try:
        return choose_device(name)
    except UserError:
        return choose_device("auto")


def device_name(device: "torch.device") -> str:
    """Return the hardware's name, for run.json."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def amp_dtype(device: "torch.device") -> "torch.dtype | None":
    """Return the type of mixed precision: bfloat16 if the device computes in it.

    Else it is float16 on a GPU, whose loss has to be scaled, and None on a CPU.
    """
    import torch

    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    if device.type == "cpu":
        asked = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # private to torch; absent without oneDNN
        return torch.bfloat16 if asked is not None and asked() else None
    return torch.bfloat16


SHORT_CONTEXT = 512  # tokens, up to which attention is computed as plain products on a CPU


@contextlib.contextmanager
def precision(device: "torch.device", amp: bool, context_len: int) -> Iterator[None]:
    """Compute in the precision of `amp` within the block, for sequences of up to `context_len` tokens.

    On a CPU in bfloat16, torch's attention kernel takes twice as long as the plain products at 256 and 512 tokens, and
    1.2 times as long at 1024 (benchmarks/attention.py). So short sequences take the products. These hold (T, T), but
    make no float32 copies.
    """
    import torch

    dtype = amp_dtype(device) if amp else None
    if dtype is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, dtype))
        if device.type == "cpu" and context_len <= SHORT_CONTEXT:
            from torch.nn.attention import SDPBackend, sdpa_kernel

            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
            stack.callback(torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp, before)
        yield


def set_products(device: "torch.device", amp: bool) -> None:
    """Let products that stay float32 on a GPU be taken in TF32 with `amp`, and in float32 without.

    With --amp the others are in bfloat16, which has fewer digits; without, float32 is what was asked for.
    """
    import torch

    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if amp else "highest")


def peak_memory(device: "torch.device") -> int:
    """Return the most bytes that were in use so far: of the GPU, or of this process."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else machine.peak_memory()


def free_memory(device: "torch.device") -> int:
    """Return the bytes that can still be taken: of the GPU's memory, or of main memory."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else machine.free_memory()
