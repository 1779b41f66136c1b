"""For upstream: compiled flex_attention on AVX2 CPUs: wrong or NaN at N % 16 = 8 with small heads (torch 2.13.0)."""

import torch
from torch.nn.attention.flex_attention import flex_attention


def error(n: int, d: int, seed: int = 0) -> float:
    """Relative error norm on random q, k, v [1, 4, n, d] against a float64 softmax; NaN where the output is."""
    q, k, v = torch.randn(3, 1, 4, n, d, generator=torch.Generator().manual_seed(seed)).unbind()
    want = torch.softmax(q.double() @ k.double().mT / d**0.5, -1) @ v.double()
    with torch.no_grad():
        return float((torch.compile(flex_attention, dynamic=False)(q, k, v) - want).norm() / want.norm())


if __name__ == "__main__":
    for n, d in ((40, 8), (40, 16), (56, 16), (72, 8), (48, 16), (64, 8), (40, 32)):
        print(f"torch {torch.__version__}, N {n}, D {d}: {error(n, d):.1e}")
