"""How much memory a call takes, and how much there is. Neither is read off the process's RSS, which
holds pages long given back and misses those not yet touched."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_CGROUP_ROOT = Path("/sys/fs/cgroup")


def peak_memory(fn: Callable[[], object], device: str) -> tuple[int, str]:
    """Most bytes allocated at once above the start during ``fn()``, its result included; and how it was seen.

    Run ``fn`` once before, so that what it makes once and keeps is not counted. A tensor that
    ``fn`` frees and did not make lowers nothing on CPU.
    """
    gc.collect()
    return _peak_cpu(fn) if device == "cpu" else _peak_cuda(fn, device)


def _peak_cuda(fn: Callable[[], object], device: str) -> tuple[int, str]:
    import torch

    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    result = fn()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - start
    del result
    return peak, "torch.cuda.max_memory_allocated above the start (blocks of 512 bytes)"


def _peak_cpu(fn: Callable[[], object]) -> tuple[int, str]:
    """Add up what torch's CPU allocator reports to the profiler, allocation by allocation.

    This sees every op's temporaries, in C++ and in torch's own threads too; it does not see threads
    that Python starts inside ``fn``, nor memory that a library takes around torch's allocator.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when the profiler first starts; it is chatty on stderr
    from torch.autograd.profiler import profile  # torch.profiler's first start imports all of torch's compiler

    with profile(profile_memory=True) as recorded:
        result = fn()
    profiler: Any = recorded
    allocations = _allocations(profiler.kineto_results.experimental_event_tree())
    del result
    # What is freed but was there before lowers nothing; the allocator may know its size from an earlier recording.
    held: dict[int, int] = {}
    now = peak = 0
    for _, address, size in sorted(allocations, key=lambda one: one[0]):
        if size < 0:
            now -= held.pop(address, 0)
        else:
            now, held[address] = now + size, size
        peak = max(peak, now)
    return peak, "torch CPU allocator's events (torch.profiler, this thread and torch's own)"


def _allocations(events: list) -> Iterator[tuple[int, int, int]]:
    """(time, address, bytes) of each allocation, negative where memory is given back."""
    from torch._C._profiler import _EventType  # type: ignore[reportMissingImports]

    left = list(events)
    while left:
        event = left.pop()
        left += event.children
        if event.tag == _EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size


def available_bytes(device: str) -> int:
    """Bytes that a new allocation may take: on CUDA what is free plus what torch's cache holds
    unused; on CPU the least of what the machine and the control groups around us leave."""
    if device != "cpu":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    return min([psutil.virtual_memory().available, *_cgroup_headroom()])


def total_bytes() -> int:
    """The machine's memory, or the control group's limit where that is less."""
    import psutil

    limits = [limit for limit, _ in _cgroup_limits()]
    return min([psutil.virtual_memory().total, *limits])


def _cgroup_headroom() -> list[int]:
    return [max(limit - used, 0) for limit, used in _cgroup_limits()]


def _cgroup_limits(root: Path = _CGROUP_ROOT, membership: Path = Path("/proc/self/cgroup")) -> list[tuple[int, int]]:
    """(limit, bytes in use that cannot be reclaimed) of every memory control group that holds us."""
    found = []
    for folder in _cgroup_folders(root, membership):
        for limit_name, usage_name, inactive in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _number(folder / limit_name), _number(folder / usage_name)
            if limit is not None and used is not None and limit < 1 << 60:  # v1 writes "no limit" as nearly 2**63
                found.append((limit, max(used - _stat(folder / "memory.stat", inactive), 0)))
    return found


def _cgroup_folders(root: Path, membership: Path) -> list[Path]:
    """Our group and its ancestors, in both layouts; a container may see its own group as the root."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top = root / controllers if controllers else root
        group = top / path.lstrip("/")
        folders += [group, *[parent for parent in group.parents if parent == top or top in parent.parents]]
    return list(dict.fromkeys(folders))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or the word "max"
        return None


def _stat(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.split()[:1] == [name]), 0)
