"""torch's attention kernel against the plain products that it stands for, forward and backward, causal, on this CPU.

    python benchmarks/attention.py [--json FILE]

Both are `scaled_dot_product_attention`, under two backends, taking turns. Reports medians in milliseconds and their
ratio, one row per shape and type. lmplay.model.device.precision chooses the backend by what this prints.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

SHAPES = (
    (16, 4, 64, 64),
    (8, 4, 256, 64),
    (4, 12, 512, 64),
    (2, 12, 1024, 64),
)  # sequences, heads, tokens, width of a head
REPEATS = 15


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--json", type=Path, help="write the figures there")
    args = p.parse_args()

    from lmplay.model.device import device_name, prepare_process

    prepare_process()
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)

    def once(backend, q, k, v) -> float:
        started = time.perf_counter()
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out.backward(v.detach())
        return time.perf_counter() - started

    rows = []
    for shape in SHAPES:
        for dtype in (torch.bfloat16, torch.float32):
            batch, heads, length, width = shape
            inputs = [
                torch.randn(batch, length, heads, width, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)
            ]
            times = {"kernel": [], "products": []}
            for _ in range(REPEATS):
                for name, backend in (("kernel", SDPBackend.FLASH_ATTENTION), ("products", SDPBackend.MATH)):
                    times[name].append(once(backend, *inputs))
            kernel, products = (statistics.median(times[name]) * 1e3 for name in times)
            rows.append(
                {
                    "shape": shape,
                    "dtype": str(dtype).removeprefix("torch."),
                    "kernel_ms": round(kernel, 2),
                    "products_ms": round(products, 2),
                    "kernel/products": round(kernel / products, 2),
                }
            )
            print(rows[-1], flush=True)
    if args.json:
        found = {
            "device": device_name(torch.device("cpu")),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "rows": rows,
        }
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
