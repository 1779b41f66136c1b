"""What samples say, and how sure they are.

Model
-----
Block ``i`` of a group runs every arm once, in an order drawn afresh. A block's disturbance (clock
drift, a neighbour's burst) hits all of its arms, so arms are compared *inside* blocks, by
``d_i = log a_i - log b_i``, and ``exp(median d)`` is the ratio reported.

What the figures mean
---------------------
* Intervals cover the median that *this process* would show over many more blocks like these. They
  say nothing of what another process (memory layout, hash seeds), boot or machine would show: only
  repeating runs shows that, so a headline needs at least three of them.
* They take blocks to be exchangeable. A burst that spans blocks breaks that, mildly: single arms
  follow their own past, while their log ratios hardly do, since each block draws its own order.
* Stopping once an interval is narrow looks at its width alone, never at which arm leads. Cover and
  false alarms were simulated with that rule in force, and are tested.
* P-values need less. If it does not matter which arm is which, the random order makes every sign
  of ``d_i`` a fair coin whatever the machine does over time; the signed-rank test rests on just
  that. They are reported with the intervals, never instead of them.
* Samples are never dropped. Outliers are labelled, and medians are barely moved by them.
* How an interval was made is its ``method``. ``bootstrap``: percentile bootstrap of the paired median,
  from 20 blocks on. ``order``: exact order statistics, below 20, where the bootstrap's cover falls to
  90%; also of single medians. ``t``: Student's t of the logarithms, for 2 to 5 samples, which no
  distribution-free 95% interval can do with; it assumes log-normal samples. ``none``: one sample.

This module is free of torch: reports import it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from scipy import stats

Method = Literal["none", "t", "order", "bootstrap"]
Verdict = Literal["faster", "slower", "same", "unresolved"]
Outlier = Literal["", "low mild", "low severe", "high mild", "high severe"]

MARGIN = {"cpu": 0.03, "cuda": 0.01}
"""Differences of this relative size do not matter to a user of the device: the verdict's margin."""

_BOOTSTRAP_FROM = 20  # below it the percentile bootstrap of a median covers too little


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


def _t_interval(x: np.ndarray, confidence: float) -> tuple[float, float]:
    """Student's t about the mean, widened to hold the median."""
    reach = stats.t.ppf((1 + confidence) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size)
    return min(x.mean() - reach, float(np.median(x))), max(x.mean() + reach, float(np.median(x)))


def _order_interval(x: np.ndarray, confidence: float) -> tuple[float, float]:
    """Exact interval of a median: the k-th smallest and largest value, k from the binomial(n, 1/2).

    ``P(x_(k) <= median <= x_(n+1-k)) = 1 - 2 P(Bin(n, 1/2) < k)`` for any continuous distribution.
    """
    k = _order_rank(x.size, confidence)
    ordered = np.sort(x)
    return float(ordered[k - 1]), float(ordered[x.size - k])


@lru_cache(maxsize=1024)
def _order_rank(n: int, confidence: float) -> int:
    """The most with ``P(Bin(n, 1/2) < k) <= (1 - confidence) / 2``."""
    return int(stats.binom.ppf((1 - confidence) / 2, n, 0.5))


def median_interval(samples: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """The median of ``samples`` and its interval, exact for any distribution from six samples on.

    Deterministic and cheap (no resampling), so a stop rule can afford it after every block.
    """
    x = _logs(samples, "samples")
    median = float(np.median(np.asarray(samples, dtype=float)))
    if x.size < 2:
        return Interval(median, None, None, x.size, "none")
    low, high = _t_interval(x, confidence) if x.size < _small(confidence) else _order_interval(x, confidence)
    method: Method = "t" if x.size < _small(confidence) else "order"
    return Interval(median, min(math.exp(low), median), max(math.exp(high), median), x.size, method)


def _small(confidence: float) -> int:
    """The fewest samples whose range is a distribution-free interval of the median at this level."""
    return math.ceil(1 - math.log2(1 - confidence))  # 1 - 2 * 0.5**n >= confidence; 6 at 95%


def paired_ratio(
    a_ms: Sequence[float],
    b_ms: Sequence[float],
    *,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Ratio:
    """``exp(median(log a_i - log b_i))`` with an interval over blocks (see the module's docstring).

    The samples pair by position; an arm that left the group early is paired over the blocks that
    both were in. The p-value is that of Wilcoxon's signed-rank test from 20 blocks on; below, that
    of the t-test on the log-ratios, since ranks of n blocks cannot give less than 2^(1-n), which
    after :func:`holm` over a report decides nothing however large the ratio. Constant ratios, which
    a timer of coarse steps may give, have an interval of width 0 and method ``order``.
    """
    n = min(len(a_ms), len(b_ms))
    a, b = _logs(a_ms[:n], "a_ms"), _logs(b_ms[:n], "b_ms")
    d = a - b
    centre = float(np.median(d))
    if n < 2:
        return Ratio(math.exp(centre), None, None, None, n, "none")
    constant = bool(np.ptp(d) < 1e-12)  # but for the rounding of logarithms
    if n < _small(confidence) and not constant:
        low, high = _t_interval(d, confidence)
        return Ratio(math.exp(centre), math.exp(low), math.exp(high), _t_p_value(d), n, "t")
    if constant:
        return Ratio(math.exp(centre), math.exp(centre), math.exp(centre), _p_value(d), n, "order")
    if n < _BOOTSTRAP_FROM:
        low, high = _order_interval(d, confidence)
        return Ratio(math.exp(centre), math.exp(low), math.exp(high), _t_p_value(d), n, "order")
    result = stats.bootstrap(
        (a, b),
        lambda x, y, axis=-1: np.median(x - y, axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=confidence,
        n_resamples=n_resamples,
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Ratio(math.exp(centre), math.exp(low), math.exp(high), _p_value(d), n, "bootstrap")


def _t_p_value(d: np.ndarray) -> float:
    test: Any = stats.ttest_1samp(d, 0)
    return float(test.pvalue)


def _p_value(d: np.ndarray) -> float:
    if not d.any():
        return 1.0
    test: Any = stats.wilcoxon(d, zero_method="zsplit")
    return float(test.pvalue)


def noise_floor(samples: Sequence[float], aa_samples: Sequence[float]) -> float | None:
    """The relative difference that this run could not rule out between a code and itself.

    The far end of the A/A ratio's interval, so it holds the run's bias as well as its spread;
    ``None`` with fewer than two pairs.
    """
    r = paired_ratio(samples, aa_samples)
    if r.low is None or r.high is None:
        return None
    return math.exp(max(abs(math.log(r.low)), abs(math.log(r.high)))) - 1


def verdict(
    ratio: Ratio,
    *,
    margin: float,
    noise: float | None = 0.0,
    p_adjusted: float | None = None,
    alpha: float = 0.05,
) -> Verdict:
    """Is ``a`` faster than ``b``?

    * ``faster`` / ``slower``: the interval excludes 1, the p-value (``p_adjusted`` by :func:`holm`
      where the verdict is one of a family) is at most ``alpha``, *and* the ratio lies beyond both
      the margin (so that it matters) and the noise floor (so that the same code would not show it).
    * ``same``: the whole interval lies within the margin.
    * ``unresolved``: neither; also wherever there is no interval, or no noise floor (``None``).
    """
    if margin <= 0:
        raise ValueError(f"margin: expected a relative difference above 0, got {margin}")
    if ratio.low is None or ratio.high is None:
        return "unresolved"
    edge = math.log1p(margin)
    if -edge <= math.log(ratio.low) and math.log(ratio.high) <= edge:
        return "same"
    p = ratio.p_value if p_adjusted is None else p_adjusted
    if noise is None or p is None or p > alpha:
        return "unresolved"
    beyond = abs(math.log(ratio.ratio)) > max(edge, math.log1p(noise))
    if beyond and ratio.high < 1:
        return "faster"
    if beyond and ratio.low > 1:
        return "slower"
    return "unresolved"


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
