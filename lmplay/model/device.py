"""Where and in which precision a model runs."""

import contextlib
import ctypes
import os
import platform
import sys

from lmplay.errors import UserError


def prepare_process() -> None:
    """What makes a CPU train faster and has to be said before torch is imported: keep freed memory in the process, ask for huge
    pages, and let a thread that waits for the others soon give up its core.

    Every training step frees and takes the same large tensors. Given back to the system, each comes back as fresh pages
    that have to be faulted in, which on a CPU costs more than the arithmetic (benchmarks/throughput.py has the figure).
    Only glibc has these switches; elsewhere nothing happens.

    By default GNU's OpenMP spins for milliseconds where a thread waits, which is harmless on an idle machine. On one where anything
    else runs, the spinning takes the core from the very thread that is waited for (measured beside another job on two cores:
    a step took four to five times as long).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def choose_device(name: str):
    """The torch.device that "auto", "cpu", "cuda", "cuda:1" or "mps" stands for. Raises UserError where it is not there."""
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
        if count <= int(index or 0):
            raise UserError(
                f"--device {name}: torch sees {count or 'no'} CUDA device{'s' if count != 1 else ''} here; "
                "use --device cpu, or install a torch built for your GPU"
            )
        return torch.device("cuda", int(index or 0))
    raise UserError(f"--device takes auto, cpu, cuda, cuda:N or mps, not {name!r}")


def device_name(device) -> str:
    """The hardware's name, for run.json."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def amp_dtype(device):
    """bfloat16 where the device computes in it; on other GPUs float16, whose loss has to be scaled; on other CPUs None."""
    import torch

    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    if device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return torch.bfloat16


SHORT_CONTEXT = 512


@contextlib.contextmanager
def precision(device, amp: bool, context_len: int):
    """The context in which a model computes sequences of up to `context_len` tokens.

    On a CPU in bfloat16, torch's attention kernel takes twice as long as the plain products at 256 and 512 tokens and 1.2 times
    at 1024 (benchmarks/attention.py): short sequences take the products, which hold (T, T), but let no float32 copies be made.
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


def peak_memory(device) -> int:
    """The most bytes that were in use so far: of the GPU, or of this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
