"""What is measured of a backend by itself on CUDA, beside the interleaved samples: warm caches, and graph replays."""

from __future__ import annotations

from typing import Any

from ..cases.case import Case
from ..gate import gate
from ..gate.failures import WrongResult
from ..gate.input_sets import InputSets
from ..ruler.clock import graphed, make_clock

BLOCKS = 10
# A slower call has no launch gaps worth knowing: with 200 here, 5 to 16 s of a group's 15 to 50 went into these extras
# (one H200), and 3 into the timing that they supplement.
LIMIT_MS = 20.0


def hot(case: Case, input_sets: InputSets) -> dict[str, Any]:
    """Samples with a warm cache, launch gaps included."""
    clock = make_clock("cuda", cache="hot")
    calls, _ = clock.calibrate(case)
    return {"hot_samples_ms": [clock.sample(case, calls) for _ in range(BLOCKS)]}


def replayed(case: Case, input_sets: InputSets) -> dict[str, Any]:
    """Cold samples of a forward captured in a CUDA graph, whose replay makes the right answer; or why there are none.

    Raises
    ------
    WrongResult
        A replay's answer is not the operation's.
    """
    import torch

    if case.inputs.problem.mode != "fwd":
        return {"graph_reason": "only forwards are captured"}
    case.release()
    replay = graphed(case)
    if not callable(replay):
        return {"graph_reason": replay}
    made = case.last
    assert made is not None
    for output in made.outputs:
        output.zero_()
    clock = make_clock("cuda")
    calls, _ = clock.calibrate(replay)
    samples = [clock.sample(replay, calls) for _ in range(BLOCKS)]
    fault = gate.glance(input_sets.expected[made.turn], case.named(made))
    case.release()
    del replay, made
    torch.cuda.empty_cache()
    if fault is not None:
        raise WrongResult(f"a replay of its graph is wrong: {fault}")
    return {"graph_samples_ms": samples}
