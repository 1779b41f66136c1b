"""What samples say, and how sure they are.

Model
-----
Block ``i`` of a group runs every arm once, in an order drawn afresh. A block's disturbance (clock
drift, a neighbour's burst) hits all of its arms, so arms are compared *inside* blocks, by
``d_i = log a_i - log b_i``, and ``exp(median d)`` is the ratio reported.

Verdicts
--------
One definition, :func:`verdict`, serves the sweep's report, ``compare`` and ``regress``. With the *edge*, the
greater of the margin (what matters to a user) and the noise floor (what the same code would show)::

    faster      the whole interval lies below 1 / (1 + edge)
    slower      the whole interval lies above 1 + edge
    same        the whole interval lies within 1 / (1 + margin) ... 1 + margin
    unresolved  all else

P-values test what the interval is held against, ``|log ratio| <= log(1 + edge)``: twice the smaller of two one-sided
tests. In a family of verdicts they must also stay at most ``alpha`` after :func:`holm`.

Intervals
---------
How an interval was made is its ``method``; how often each covers was simulated and measured, with all of
the above, by ``python -m scripts.calibration`` (``reports/2026-11-27-statistics``).

* ``order``, from six samples on: order statistics of the ``d_i``, interpolated (Hettmansperger and Sheather 1986), so
  that the cover does not jump with n. It assumes nothing of the samples' shape. Its nominal cover is 96.5% for the
  95% asked: looking after every block whether it is narrow yet, as the clock does, costs 3 points
  of cover, though the rule looks at the width alone and never at which arm leads.
* ``t``, for 2 to 5 samples: Student's t of the logarithms, for no distribution-free 95% interval can be had from so
  few; it assumes log-normal samples, and covers more under heavier tails. Constant samples give it no scale: ``none``.
* Single medians (:func:`median_interval`) do not pair, and a burst that spans blocks makes neighbours alike: their
  intervals are those of fewer samples, by the lag-1 correlation of ranks. That holds for bursts; what lasts for
  many blocks is not seen in few (of a sway over eight blocks, 30 samples cover 92%, six 72%), and a drift over
  the whole run is in no interval of a single median. That is why arms are paired.

Limits
------
* Intervals cover the median that *this process* would show over many more blocks like these. They
  say nothing of what another process (memory layout, hash seeds), boot or machine would show: only
  repeating runs shows that, so a headline needs at least three of them. ``regress`` repeats processes.
* Samples are never dropped. Outliers are labelled, and medians are barely moved by them.

This module is free of torch: reports import it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
from scipy import special

Method = Literal["none", "t", "order"]
Verdict = Literal["faster", "slower", "same", "unresolved"]
Outlier = Literal["", "low mild", "low severe", "high mild", "high severe"]

MARGIN = {"cpu": 0.03, "cuda": 0.01}
"""Differences of this relative size do not matter to a user of the device: the verdict's margin."""

_FEW = 6  # the range of so many samples is a distribution-free 96.5% interval of the median
UNLOOKED = 0.7  # share of the error allowed that looking for a narrow interval after every block leaves
_UNLOOKED_ALONE = 0.8  # likewise, of a lone median's
_RANKS_FROM = 20  # p-values of fewer blocks are Student's: ranks of n give no less than 2^(1-n), too much for holm
_MOST_CORRELATION = 0.95


@dataclass(frozen=True)
class Interval:
    """A median with its interval; ``low`` and ``high`` are ``None`` where none can be had."""

    median: float
    low: float | None
    high: float | None
    n: int
    method: Method

    @property
    def half_width(self) -> float | None:
        """Half the interval's width, relative to the median."""
        if self.low is None or self.high is None or self.median == 0:
            return None
        return (self.high - self.low) / (2 * self.median)


@dataclass(frozen=True)
class Ratio:
    """Time of ``a`` over time of ``b``: below 1, ``a`` is the faster one."""

    ratio: float
    low: float | None
    high: float | None
    p_value: float | None
    n: int
    method: Method

    @property
    def half_width(self) -> float | None:
        """Half the interval's width, relative to the ratio."""
        if self.low is None or self.high is None:
            return None
        return (self.high - self.low) / (2 * self.ratio)

    def inverse(self) -> Ratio:
        """The same comparison with the arms swapped."""
        if self.low is None or self.high is None:
            return Ratio(1 / self.ratio, None, None, self.p_value, self.n, self.method)
        return Ratio(1 / self.ratio, 1 / self.high, 1 / self.low, self.p_value, self.n, self.method)


def _logs(samples: Sequence[float], name: str) -> np.ndarray:
    x = np.asarray(samples, dtype=float)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{name}: expected a non-empty sequence of times, got shape {x.shape}")
    if not (np.isfinite(x).all() and (x > 0).all()):
        raise ValueError(f"{name}: expected finite times above 0, got {x[~(np.isfinite(x) & (x > 0))][:3].tolist()}")
    return np.log(x)


def student(
    x: np.ndarray, *, edge: float = 0.0, confidence: float = 0.95, least_spread: float = 0.0
) -> tuple[float, float, float]:
    """Student's t about the mean of ``x``: the interval's ends, and the p-value of ``|mean| <= log(1 + edge)``.

    ``least_spread``: no smaller standard deviation is believed, since a few values may agree by luck.
    """
    centre, n = float(x.mean()), x.size
    error = max(float(x.std(ddof=1)), least_spread) / math.sqrt(n)
    reach = float(special.stdtrit(n - 1, (1 + confidence) / 2)) * error
    beyond = abs(centre) - math.log1p(edge)  # the other side's test is the larger p
    tail = float(special.stdtr(n - 1, -beyond / error)) if error > 0 else float(beyond <= 0)
    return centre - reach, centre + reach, min(1.0, 2 * tail)


def _miss(n: int, k: int) -> float:
    """How often ``[x_(k), x_(n+1-k)]`` misses the median: ``2 P(Bin(n, 1/2) < k)``, for any continuous distribution."""
    return 2 * float(special.bdtr(k - 1, n, 0.5)) if k > 0 else 0.0


@lru_cache(maxsize=4096)
def _rank(n: int, miss: float) -> tuple[int, float]:
    """Rank ``k`` and weight ``w`` of the interval ``(1 - w) x_(k) + w x_(k+1)`` that misses the median so often.

    Hettmansperger and Sheather (1986): between the ranks that miss it less and more often, by
    ``w = (n - k) I / (k + (n - 2 k) I)``, I being how far ``miss`` lies from one to the other. Where not even the
    range misses it seldom enough, the range.
    """
    k = 1
    while k < n // 2 and _miss(n, k + 1) <= miss:
        k += 1
    part = (miss - _miss(n, k)) / (_miss(n, k + 1) - _miss(n, k))
    if part <= 0:
        return k, 0.0
    return k, (n - k) * part / (k + (n - 2 * k) * part)


def _order_interval(y: np.ndarray, miss: float) -> tuple[float, float]:
    """Interval of the median from the interpolated order statistics ``y``, sorted."""
    k, w = _rank(y.size, miss)
    return float((1 - w) * y[k - 1] + w * y[k]), float((1 - w) * y[-k] + w * y[-k - 1])


def _order_p_value(y: np.ndarray, edge: float) -> float:
    """The dual of :func:`_order_interval`: how often an interval may miss that just reaches to ``log(1 + edge)``."""
    y = (y if y[y.size // 2] > 0 else -y[::-1]) - math.log1p(edge)
    n, k = y.size, int((y <= 0).sum())
    if k == 0:
        return _miss(n, 1)
    if k >= n / 2:
        return 1.0
    w = float(-y[k - 1] / (y[k] - y[k - 1]))
    part = w * k / (n - k - w * (n - 2 * k))
    return min(1.0, _miss(n, k) + part * (_miss(n, k + 1) - _miss(n, k)))


def _independent(x: np.ndarray) -> float:
    """As which share of its samples a series counts whose neighbours are alike: ``(1 - r) / (1 + r)``.

    r is the lag-1 correlation of ranks, freed of its bias in short series (Kendall 1954: - (1 + 3 r) / n);
    within its standard error of 0 it is taken for 0.
    """
    _, place, equal = np.unique(x, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(equal) - (equal - 1) / 2)[place] - (x.size + 1) / 2  # equal ones share the mean of theirs
    square = float(ranks @ ranks)
    if square == 0:
        return 1.0
    r = float(ranks[1:] @ ranks[:-1]) / square
    r += (1 + 3 * r) / x.size
    r = min(r, _MOST_CORRELATION) if r * math.sqrt(x.size) > 1 else 0.0
    return (1 - r) / (1 + r)


def _single_interval(x: np.ndarray, miss: float) -> tuple[float, float]:
    """Of the median of one arm: as wide as that of the fewer samples that count, whose number is estimated too."""
    share = _independent(x)
    degrees = max(share * x.size - 1, 1.0)
    z = special.ndtri(miss / 2) if share == 1 else special.stdtrit(degrees, miss / 2)
    return _order_interval(np.sort(x), 2 * float(special.ndtr(z / math.sqrt(share))))


def median_interval(samples: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """The median of one arm's ``samples``, in the order in which they were taken, and its interval."""
    x = _logs(samples, "samples")
    median = float(np.median(np.asarray(samples, dtype=float)))
    if x.size < 2 or (x.size < _FEW and np.ptp(x) == 0):
        return Interval(median, None, None, x.size, "none")
    if x.size < _FEW:
        low, high, _ = student(x, confidence=confidence)
    else:
        low, high = _single_interval(x, _UNLOOKED_ALONE * (1 - confidence))
    method: Method = "t" if x.size < _FEW else "order"
    return Interval(median, min(math.exp(low), median), max(math.exp(high), median), x.size, method)


def paired_ratio(a_ms: Sequence[float], b_ms: Sequence[float], *, edge: float = 0.0, confidence: float = 0.95) -> Ratio:
    """``exp(median(log a_i - log b_i))`` with an interval over blocks (see the module's docstring).

    The samples pair by position; an arm that left the group early is paired over the blocks that
    both were in. The p-value is that of a true ratio within ``1 / (1 + edge) ... 1 + edge``: the interval's own dual
    from 20 blocks on, so that it is at most 0.05 exactly where the 95% interval lies beyond the edge; below,
    that of Student's t-test, since after :func:`holm` over a report ranks of few blocks decide nothing.
    """
    if not edge >= 0:
        raise ValueError(f"edge: expected a relative difference of at least 0, got {edge}")
    n = min(len(a_ms), len(b_ms))
    d = np.sort(_logs(a_ms[:n], "a_ms") - _logs(b_ms[:n], "b_ms"))
    centre = float(d[(n - 1) // 2] + d[n // 2]) / 2
    constant = bool(d[-1] - d[0] < 1e-12)  # but for the rounding of logarithms
    if n < 2 or (n < _FEW and constant):
        return Ratio(math.exp(centre), None, None, None, n, "none")
    p = min(1.0, _order_p_value(d, edge) / UNLOOKED) if n >= _RANKS_FROM or constant else student(d, edge=edge)[2]
    low, high = _order_interval(d, UNLOOKED * (1 - confidence)) if n >= _FEW else student(d, confidence=confidence)[:2]
    low, high = min(low, centre), max(high, centre)
    return Ratio(math.exp(centre), math.exp(low), math.exp(high), p, n, "order" if n >= _FEW else "t")


def noise_floor(samples: Sequence[float], aa_samples: Sequence[float]) -> float | None:
    """The relative difference that this run could not rule out between a code and itself.

    The far end of the A/A ratio's interval, so it holds the run's bias as well as its spread;
    ``None`` where there is no interval.
    """
    r = paired_ratio(samples, aa_samples)
    if r.low is None or r.high is None:
        return None
    return math.exp(max(abs(math.log(r.low)), abs(math.log(r.high)))) - 1


def noise_of_pair(a: str, b: str, floors: Mapping[str, float]) -> float | None:
    """The greater of both arms' own noise floors; an arm without one borrows the greatest of its group's ``floors``."""
    greatest = max(floors.values(), default=None)
    return None if greatest is None else max(floors.get(a, greatest), floors.get(b, greatest))


class Bounds(Protocol):
    """An interval of a ratio of times."""

    @property
    def low(self) -> float | None: ...

    @property
    def high(self) -> float | None: ...


def verdict(
    ratio: Bounds,
    *,
    margin: float,
    noise: float | None = 0.0,
    p_adjusted: float | None = None,
    alpha: float = 0.05,
) -> Verdict:
    """Is ``a`` faster than ``b``, by more than what matters and more than the same code would show?

    As the module's docstring defines it, from the interval of time a over time b. ``noise`` of ``None`` (no A/A
    samples) leaves only *same*. ``p_adjusted``, where the verdict is one of a family, is the p-value of a ratio
    within the edge after :func:`holm`; above ``alpha`` the verdict is *unresolved*.
    """
    if not margin > 0:
        raise ValueError(f"margin: expected a relative difference above 0, got {margin}")
    if ratio.low is None or ratio.high is None:
        return "unresolved"
    low, high, matters = math.log(ratio.low), math.log(ratio.high), math.log1p(margin)
    if -matters <= low and high <= matters:
        return "same"
    if noise is None or (p_adjusted is not None and p_adjusted > alpha):
        return "unresolved"
    edge = max(matters, math.log1p(noise))
    if high < -edge:
        return "faster"
    return "slower" if low > edge else "unresolved"


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for a family of tests (Holm 1979): reject where at most ``alpha``, and the
    chance of even one false rejection in the whole family stays at most ``alpha``."""
    p = np.asarray(p_values, dtype=float)
    if p.size and not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values: expected numbers in [0, 1], got {p_values}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return adjusted.tolist()


def tukey_outliers(samples: Sequence[float]) -> list[Outlier]:
    """A label per sample: beyond 1.5 (mild) or 3 (severe) quartile ranges outside the quartiles.

    Labels only. A slow sample happened, and leaving it out would be a claim about why.
    """
    x = np.asarray(samples, dtype=float)
    if x.size == 0:
        return []
    q1, q3 = np.percentile(x, [25, 75])
    reach = q3 - q1

    def label(value: float) -> Outlier:
        if value < q1 - 1.5 * reach:
            return "low severe" if value < q1 - 3 * reach else "low mild"
        if value > q3 + 1.5 * reach:
            return "high severe" if value > q3 + 3 * reach else "high mild"
        return ""

    return [label(float(value)) for value in x]


@dataclass(frozen=True)
class PowerLaw:
    """``t = coefficient * n ** exponent``; ``low`` and ``high`` are ``None`` with fewer than three sizes.

    The interval says how far the points stray from a straight line on log axes. It does not see
    what all points share, and an exponent over sizes where fixed costs still count is below the
    one that large sizes will show: fit the tail where that matters.
    """

    exponent: float
    low: float | None
    high: float | None
    coefficient: float
    n_points: int

    def __call__(self, n: float) -> float:
        return self.coefficient * n**self.exponent


def power_law(n: Sequence[float], t: Sequence[float], *, confidence: float = 0.95) -> PowerLaw:
    """Least squares of log t on log n, with Student's t interval of the slope."""
    if len(n) != len(t):
        raise ValueError(f"n, t: expected equal lengths, got {len(n)} and {len(t)}")
    x, y = _logs(n, "n"), _logs(t, "t")
    if np.unique(x).size < 2:
        raise ValueError(f"n: expected at least two different sizes, got {sorted(set(n))}")
    from scipy import stats  # takes half a second to import, which no worker has to spend

    fit: Any = stats.linregress(x, y)
    slope, intercept, error = float(fit.slope), float(fit.intercept), float(fit.stderr)
    if x.size < 3:
        return PowerLaw(slope, None, None, math.exp(intercept), x.size)
    reach = float(stats.t.ppf((1 + confidence) / 2, x.size - 2)) * error
    return PowerLaw(slope, slope - reach, slope + reach, math.exp(intercept), x.size)


@dataclass(frozen=True)
class Crossover:
    """Between the measured sizes ``below`` and ``above``, the faster of two arms changes; ``n`` is
    where the straight line between them (log axes) puts it, ``faster_above`` names the new winner."""

    n: float
    below: float
    above: float
    faster_above: Literal["a", "b"]


def crossover(n: Sequence[float], a_ms: Sequence[float], b_ms: Sequence[float]) -> list[Crossover]:
    """Every change of winner along ``n`` (sorted here), from one time per size and arm.

    A tie at a measured size counts as a change only if the winners on its two sides differ.
    """
    if not len(n) == len(a_ms) == len(b_ms):
        raise ValueError(f"n, a_ms, b_ms: expected equal lengths, got {len(n)}, {len(a_ms)}, {len(b_ms)}")
    if not len(n):
        return []
    d = _logs(a_ms, "a_ms") - _logs(b_ms, "b_ms")
    x = _logs(n, "n")
    decided = [int(i) for i in np.argsort(x, kind="stable") if d[i] != 0]
    found = []
    for i, j in pairwise(decided):
        if (d[i] < 0) != (d[j] < 0):
            at = math.exp(x[i] + (x[j] - x[i]) * d[i] / (d[i] - d[j]))
            found.append(Crossover(at, float(n[i]), float(n[j]), "a" if d[j] < 0 else "b"))
    return found
