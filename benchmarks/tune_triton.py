"""Check and time tile configurations of the fused Triton kernels on the GPU at hand, and keep the best.

``python benchmarks/tune_triton.py --out DIR``: correctness against float64 first, then this device's copy bandwidth,
then every candidate's time and its share of the limit (bytes that must move, at that bandwidth). Writes
``DIR/tuning.json``. ``--write FILE`` adds the best of each direction to a file of tuned configurations, which the
backend reads where ``PALLATOM_TRITON_TUNED`` names it: keyed on architecture, dtypes, heads and channels, never on N.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

# rows, cols, warps, stages, register limit (0: none), stages of the backward's edge loops
FORWARD = [
    (16, 16, 2, 3, 0), (16, 16, 2, 3, 168), (32, 16, 4, 3, 168), (16, 16, 4, 3, 128), (16, 32, 4, 2, 0),
    (32, 16, 4, 2, 0),
]  # fmt: skip
BACKWARD = [
    (16, 16, 4, 2, 0, 1), (16, 16, 4, 3, 0, 1), (16, 16, 4, 2, 168, 1), (16, 16, 4, 1, 168, 1), (32, 16, 4, 2, 0, 1),
    (16, 32, 8, 2, 0, 1),
]  # fmt: skip
ATOMS_PER_RESIDUE, WINDOW = 14, 32
HEADS, HEAD_DIM, C_PAIR = 4, 32, 16


def band_index(counts, device):
    """``(neighbor_idx, valid_mask)`` of residues with these atom counts: the layer's rule, on contiguous residues."""
    import torch

    counts = torch.as_tensor(counts, device=device)
    residues = len(counts)
    tok = torch.repeat_interleave(torch.arange(residues, device=device), counts)
    edge = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    r = torch.arange(residues, device=device)
    start = edge[(r - WINDOW // 2 + 1).clamp(min=0)][tok]
    stop = edge[(r + WINDOW // 2).clamp(max=residues)][tok]
    slots = torch.arange(int((stop - start).max()), device=device)
    valid = slots < (stop - start)[:, None]
    return torch.where(valid, start[:, None] + slots, 0), valid


def problem(n_atom, dtype, device, counts=None):
    import torch

    from variants._band import band_plan
    from variants._triton_launch import Problem

    gen = torch.Generator(device).manual_seed(0)
    idx, valid = band_index(counts or [ATOMS_PER_RESIDUE] * (n_atom // ATOMS_PER_RESIDUE), device)
    n, k = idx.shape

    def normal(*shape, dtype=dtype):
        return torch.randn(shape, generator=gen, device=device, dtype=dtype)

    q, key, v = (normal(1, n, HEADS, HEAD_DIM) for _ in range(3))
    p = normal(1, n, k, C_PAIR)
    gamma = 1 + 0.2 * normal(C_PAIR, dtype=torch.float32)
    weight = 0.5 * normal(HEADS, C_PAIR, dtype=torch.float32)
    plan = band_plan(idx, valid)
    return Problem(q, key, v, p, gamma, weight, valid.view(torch.uint8), 1e-5), plan, idx, valid


def reference(prob, idx, valid, grad_o):
    """Float64 gather: ``[O, dQ, dK, dV, dp, dgamma, dW]``."""
    import torch

    leaves = [t.double().requires_grad_() for t in (prob.q, prob.k, prob.v, prob.p, prob.gamma, prob.weight)]
    q, k, v, p, gamma, weight = leaves
    norm = torch.nn.functional.layer_norm(p, p.shape[-1:], gamma, None, prob.eps)
    s = torch.einsum("blhd,blkhd->blkh", q, k[:, idx]) * prob.scale + norm @ weight.T
    a = s.masked_fill(~valid[None, :, :, None], float("-inf")).softmax(2)
    o = torch.einsum("blkh,blkhd->blhd", a, v[:, idx])
    return [o.detach(), *torch.autograd.grad(o, leaves, grad_o.double())]


def configs(rows):
    from variants._triton_config import Config

    return [Config(r, c, w, s, limit or None, *rest) for r, c, w, s, limit, *rest in rows]


def errors(prob, plan, idx, valid, cf, cb):
    """Relative error norms of O and all gradients, outputs poisoned by the caller's allocator state."""
    import torch

    from variants._triton_launch import backward, forward

    grad_o = torch.randn_like(prob.q)
    want = reference(prob, idx, valid, grad_o)
    poison = torch.full((prob.p.numel() * 4,), float("nan"), device=prob.q.device)
    del poison
    o, lse = forward(prob, plan, cf)
    got = [o, *backward(prob, plan, o, lse, grad_o, deterministic=False, config=cb)]
    return [float((g.double() - w).norm() / w.norm()) for g, w in zip(got, want)]


def median_ms(fn, flush, repeats):
    """Median time on the device of a CUDA graph of ``fn``, cold: launch costs of the host left out, L2 flushed."""
    import torch

    fn()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fn()
    times = []
    for _ in range(repeats):
        flush.zero_()
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record()
        graph.replay()
        b.record()
        torch.cuda.synchronize()
        times.append(a.elapsed_time(b))
    return statistics.median(times)


def keep_best(path, times):
    """Per direction the candidate with the least geometric mean time over the sizes, into the file of tuned ones."""
    import math

    import torch

    from variants._triton_config import Sizes, add_tuned

    major, minor = torch.cuda.get_device_capability()
    sizes = Sizes(torch.bfloat16, torch.bfloat16, HEADS, HEAD_DIM, C_PAIR)
    for direction, name in (("forward", "fwd"), ("backward", "bwd")):
        logs = {}
        for _, mode, config, ms, _ in times:
            if mode == name:
                logs.setdefault(config, []).append(math.log(ms))
        best = min(logs, key=lambda config: statistics.fmean(logs[config]))
        rows = configs(FORWARD if name == "fwd" else BACKWARD)
        add_tuned(path, direction, sizes, 10 * major + minor, next(c for c in rows if str(c) == best))
        print(f"{direction}: {best} kept in {path}")


def copy_bandwidth(flush):
    import torch

    src = torch.randn(1 << 29, device="cuda")
    dst = torch.empty_like(src)
    ms = median_ms(lambda: torch.neg(src, out=dst), flush, 10)  # a kernel: a copy becomes a slower node in a graph
    return 2 * src.numel() * 4 / ms * 1e3


def check(rows_f, rows_b, dtypes, out):
    """Every candidate once against float64; a candidate that errs or fails is named and dropped."""
    import torch

    tolerance = {"bfloat16": 2e-2, "float16": 3e-3, "float32": 2e-5}
    gen = torch.Generator().manual_seed(1)
    counts = torch.randint(4, 15, (45,), generator=gen).tolist()
    good_f, good_b = [], []
    for name in dtypes:
        case = problem(0, getattr(torch, name), "cuda", counts)
        base_f, base_b = configs(rows_f)[0], configs(rows_b)[0]
        trials = [(cf, base_b, good_f) for cf in configs(rows_f)] + [(base_f, cb, good_b) for cb in configs(rows_b)]
        for cf, cb, good in trials:
            try:
                err = errors(*case, cf, cb)
            except Exception as e:  # a candidate that does not compile is a result here
                out["failed"].append([name, str(cf), str(cb), f"{type(e).__name__}: {str(e)[:300]}"])
                print("FAILED", name, cf, cb, str(e)[:200], flush=True)
                continue
            ok = max(err) < tolerance[name]
            out["errors"].append([name, str(cf), str(cb), err, ok])
            if not ok:
                print("WRONG", name, cf, cb, [f"{e:.1e}" for e in err], flush=True)
            elif name == dtypes[0]:
                good.append(cf if good is good_f else cb)
        shown = [e for e in out["errors"] if e[0] == name]
        if shown:
            print(name, "worst errors O q k v p gamma W:", [f"{max(e[3][i] for e in shown):.1e}" for i in range(7)])
    return good_f, good_b


def limits(prob, bandwidth):
    """Fewest bytes of forward, and of the backward alone, over copy bandwidth: ms."""
    p, atoms = prob.p.numel() * prob.p.element_size(), prob.q.numel() * prob.q.element_size()
    return (p + 4 * atoms) / bandwidth * 1e3, (2 * p + 8 * atoms) / bandwidth * 1e3


def clock_all(sizes, good_f, good_b, bandwidth, flush, out):
    import torch

    from variants._triton_launch import backward, forward

    for n_atom in sizes:
        prob, plan, _, _ = problem(n_atom, torch.bfloat16, "cuda")
        lim_f, lim_b = limits(prob, bandwidth)
        print(f"N={prob.q.shape[1]} K={prob.p.shape[2]} limit fwd {lim_f * 1e3:.1f} us, bwd {lim_b * 1e3:.1f} us")
        repeats = 21 if n_atom < 50_000 else 9
        for cf in good_f:
            ms = median_ms(lambda: forward(prob, plan, cf), flush, repeats)  # noqa: B023
            out["times"].append([n_atom, "fwd", str(cf), ms, lim_f / ms])
            print(f"  fwd {cf} {ms * 1e3:8.1f} us  {100 * lim_f / ms:5.1f}%", flush=True)
        o, lse = forward(prob, plan, good_f[0])
        grad_o = torch.randn_like(o)
        for cb in good_b:
            ms = median_ms(
                lambda: backward(prob, plan, o, lse, grad_o, deterministic=False, config=cb),  # noqa: B023
                flush,
                repeats,
            )
            out["times"].append([n_atom, "bwd", str(cb), ms, lim_b / ms])
            print(f"  bwd {cb} {ms * 1e3:8.1f} us  {100 * lim_b / ms:5.1f}%", flush=True)
        del prob, plan, o, lse, grad_o
        torch.cuda.empty_cache()


def compile_share(rows_f, rows_b, index, workers):
    """Compile every ``workers``-th candidate into Triton's cache, in a process of its own."""
    import torch

    from variants._triton_launch import backward, forward

    prob, plan, _, _ = problem(700, torch.bfloat16, "cuda")
    o, lse = forward(prob, plan, configs(rows_f)[0])
    jobs = [functools.partial(forward, prob, plan, c) for c in configs(rows_f)]
    jobs += [functools.partial(backward, prob, plan, o, lse, o, deterministic=False, config=c) for c in configs(rows_b)]
    for job in jobs[index::workers]:
        try:
            job()
        except Exception as e:  # reported by the check, which meets it again
            print("compile:", type(e).__name__, str(e)[:100])


def launch_once(n_atom):
    """Forward and backward in their shipped configurations."""
    import torch

    from variants._triton_launch import backward, forward

    prob, plan, _, _ = problem(n_atom, torch.bfloat16, "cuda")
    for _ in range(2):
        o, lse = forward(prob, plan)
        backward(prob, plan, o, lse, o, deterministic=False)
    torch.cuda.synchronize()


def check_rows(n_atom):
    """Forward and backward at a size whose offsets pass 2**31: the first and the last rows against float64."""
    import torch

    from variants._triton_launch import backward, forward

    prob, plan, idx, valid = problem(n_atom, torch.bfloat16, "cuda")
    grad_o = torch.randn_like(prob.q)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    o, lse = forward(prob, plan)
    extra = torch.cuda.max_memory_allocated() - before
    dq, _, _, dp, _, _ = backward(prob, plan, o, lse, grad_o, deterministic=False)
    print(
        f"N={n_atom}: p {prob.p.numel() * 2 / 1e9:.1f} GB, forward takes {extra / (prob.p.numel() * 2):.2%} of it more"
    )
    n = prob.q.shape[1]
    for rows in (slice(0, 64), slice(n - 64, n)):
        leaves = [t[:, rows].double().requires_grad_() for t in (prob.q, prob.p)]
        norm = torch.nn.functional.layer_norm(leaves[1], (C_PAIR,), prob.gamma.double(), None, prob.eps)
        s = torch.einsum("blhd,blkhd->blkh", leaves[0], prob.k[:, idx[rows]].double()) * prob.scale
        s = (s + norm @ prob.weight.double().T).masked_fill(~valid[None, rows, :, None], float("-inf"))
        want = torch.einsum("blkh,blkhd->blhd", s.softmax(2), prob.v[:, idx[rows]].double())
        grads = torch.autograd.grad(want, leaves, grad_o[:, rows].double())
        pairs = zip((o[:, rows], dq[:, rows], dp[:, rows]), (want.detach(), *grads), strict=True)
        print(
            "  rows",
            rows.start,
            "errors O q p:",
            [f"{float((g.double() - w).norm() / w.norm()):.1e}" for g, w in pairs],
        )


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--sizes", type=int, nargs="+", default=[16384, 65536, 4096])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--workers", type=int, default=8, help="processes that compile candidates at once")
    parser.add_argument(
        "--once", type=int, metavar="N", help="launch each kernel twice at N atoms, for a profiler; stop"
    )
    parser.add_argument("--rows-of", type=int, metavar="N", help="check rows of a very large system; stop")
    parser.add_argument("--compile-share", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile_share is not None:
        compile_share(FORWARD, BACKWARD, args.compile_share, args.workers)
        return 0
    if args.rows_of:
        check_rows(args.rows_of)
        return 0
    if args.once:
        launch_once(args.once)
        return 0
    own = [sys.executable, __file__, "--workers", str(args.workers), "--compile-share"]
    for child in [subprocess.Popen([*own, str(i)]) for i in range(args.workers)]:
        child.wait()
    begin = time.perf_counter()
    out = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "errors": [], "failed": [], "times": []}
    flush = torch.empty(1 << 28, dtype=torch.int8, device="cuda")
    out["copy_bytes_per_s"] = copy_bandwidth(flush)
    print(f"{out['device']}: copy {out['copy_bytes_per_s'] / 1e12:.2f} TB/s", flush=True)
    good_f, good_b = check(FORWARD, BACKWARD, args.dtypes, out)
    try:
        clock_all(args.sizes, good_f, good_b, out["copy_bytes_per_s"], flush, out)
    finally:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "tuning.json").write_text(json.dumps(out, indent=1))
    if args.write:
        keep_best(args.write, out["times"])
    print(f"tuning took {time.perf_counter() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    raise SystemExit(main())
