"""Forward and backward pass of one attention layer on this machine: PyTorch's fused attention against plain products.

python benchmarks/attention.py
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

# The shipped autoencoder's layers at 8 clips of 16 frames of 64 patches: (sequences, heads, tokens, channels a head).
SHAPES = {"over time": (512, 5, 16, 32), "over space": (128, 5, 64, 32)}
REPEATS = 15


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention written out, as `contentmotion.models.layers.Attention` does it."""
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1).to(v.dtype) @ v


def milliseconds(attend: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """Median time of a forward and backward pass."""
    sequences, heads, tokens, channels = shape
    qkv = torch.randn(sequences, tokens, 3, heads, channels, dtype=dtype, requires_grad=True)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = attend(q, k, v).transpose(1, 2).reshape(sequences, tokens, -1)
        out.backward(torch.ones_like(out))
        times.append(time.perf_counter() - start)
        qkv.grad = None
    return 1e3 * statistics.median(times)


def main() -> None:
    """Prints one line per shape and precision."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, shape in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            fused = milliseconds(F.scaled_dot_product_attention, shape, dtype)
            print(f"{name}, {dtype}: fused {fused:.1f} ms, plain {milliseconds(plain, shape, dtype):.1f} ms")


if __name__ == "__main__":
    main()
