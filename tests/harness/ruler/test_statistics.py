"""The statistics keep what they promise, shown by simulation: cover, false alarms, power."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.harness.regress import regression
from benchmarks.harness.ruler import statistics as st


def machine(rng: np.random.Generator, blocks: int, arms: int, *, noise: float = 0.04, interleaved: bool = True):
    """Times of equal arms on a noisy machine: drift that wanders, log-normal noise, bursts over several runs."""
    times = np.zeros((blocks, arms))
    drift, burst = 0.0, 0
    visits = [(i, j) for i in range(blocks) for j in rng.permutation(arms)]
    if not interleaved:
        visits = [(i, j) for j in range(arms) for i in range(blocks)]
    for i, j in visits:
        drift += rng.normal(0, 0.01)
        burst = burst - 1 if burst else (rng.geometric(0.3) if rng.random() < 0.03 else 0)
        times[i, j] = drift + rng.normal(0, noise) + (rng.exponential(0.5) if burst else 0)
    return np.exp(times).T


def decide(a: np.ndarray, b: np.ndarray, aa: np.ndarray | None = None) -> st.Verdict:
    noise = 0.0 if aa is None else st.noise_floor(a, aa)
    return st.verdict(st.paired_ratio(a, b), margin=st.MARGIN["cpu"], noise=noise)


@pytest.mark.parametrize("blocks", [3, 6, 24])
def test_equal_arms_are_rarely_told_apart(blocks: int) -> None:
    rng = np.random.default_rng(blocks)
    trials = 200
    verdicts = [decide(*machine(rng, blocks, 2)) for _ in range(trials)]
    assert sum(v in ("faster", "slower") for v in verdicts) / trials <= 0.10


def test_running_one_arm_after_the_other_is_what_raises_false_alarms() -> None:
    rng = np.random.default_rng(0)
    found = [st.paired_ratio(*machine(rng, 24, 2, interleaved=False)) for _ in range(100)]
    assert sum(not (r.low or 0) <= 1 <= (r.high or math.inf) for r in found) / 100 > 0.20
    assert sum(st.verdict(r, margin=0.03) != "unresolved" for r in found) / 100 > 0.10


@pytest.mark.parametrize(("blocks", "method"), [(4, "t"), (9, "order"), (24, "order"), (60, "order")])
def test_intervals_cover_the_true_ratio_as_often_as_they_say(blocks: int, method: str) -> None:
    rng = np.random.default_rng(blocks)
    trials, truth = 300, 1.3
    covered = 0
    for _ in range(trials):
        a, b = machine(rng, blocks, 2)
        ratio = st.paired_ratio(truth * a, b)
        assert ratio.method == method
        assert ratio.low is not None
        assert ratio.high is not None
        covered += ratio.low <= truth <= ratio.high
    assert covered / trials == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / trials))


def test_the_interval_of_a_median_covers_it() -> None:
    rng = np.random.default_rng(1)
    trials = 1000
    for n in (6, 15, 40):
        samples = np.exp(rng.normal(0, 0.3, (trials, n)))
        intervals = [st.median_interval(row) for row in samples]
        covered = sum(i.low <= 1.0 <= i.high for i in intervals if i.low is not None and i.high is not None)
        wanted = 1 - 2 / 2**6 if n == 6 else 0.95  # six samples have one interval, their whole range
        assert 0.94 <= covered / trials <= wanted + 3 * math.sqrt(0.95 * 0.05 / trials)


@pytest.mark.parametrize("effect", [0.95, 1.05])
def test_a_planted_five_percent_is_found(effect: float) -> None:
    rng = np.random.default_rng(2)
    expected = "faster" if effect < 1 else "slower"
    verdicts = []
    for _ in range(60):
        a, b, aa = machine(rng, 100, 3, noise=0.02)
        verdicts.append(decide(effect * a, b, effect * aa))
    assert verdicts.count(expected) >= 0.9 * len(verdicts)
    assert verdicts.count("slower" if effect < 1 else "faster") == 0


def test_equal_arms_measured_well_are_called_the_same() -> None:
    rng = np.random.default_rng(3)
    verdicts = [decide(*machine(rng, 120, 2, noise=0.02)) for _ in range(40)]
    assert verdicts.count("same") >= 0.9 * len(verdicts)


def test_holm_bounds_the_false_alarms_of_a_whole_grid() -> None:
    rng = np.random.default_rng(4)
    trials, alarms, unadjusted = 60, 0, 0
    for _ in range(trials):
        p = [st.paired_ratio(*machine(rng, 24, 2)).p_value or 1.0 for _ in range(12)]
        alarms += min(st.holm(p)) <= 0.05
        unadjusted += min(p) <= 0.05
    assert alarms / trials <= 0.10
    assert unadjusted / trials > 0.2


def test_holm_against_the_worked_example() -> None:
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert st.holm([]) == []
    with pytest.raises(ValueError, match="p_values"):
        st.holm([0.5, math.nan])


def test_one_sample_has_no_interval_and_no_verdict() -> None:
    ratio = st.paired_ratio([2.0], [1.0])
    assert (ratio.ratio, ratio.low, ratio.high, ratio.p_value, ratio.method) == (2.0, None, None, None, "none")
    assert st.verdict(ratio, margin=0.03) == "unresolved"
    assert st.noise_floor([2.0], [1.0]) is None
    interval = st.median_interval([2.0])
    assert (interval.low, interval.high, interval.half_width) == (None, None, None)


def test_constant_samples_give_a_point_and_an_honest_p_value() -> None:
    same = st.paired_ratio([2.0] * 30, [2.0] * 30)
    assert (same.low, same.high, same.p_value) == (1.0, 1.0, 1.0)
    assert st.verdict(same, margin=0.03) == "same"
    twice = st.paired_ratio([2.0] * 30, [1.0] * 30)
    assert (twice.low, twice.high) == pytest.approx((2.0, 2.0))
    assert st.verdict(twice, margin=0.03) == "slower"
    six = st.paired_ratio([2.0] * 6, [1.0] * 6)
    assert (six.low, six.high, six.p_value) == pytest.approx((2.0, 2.0, 2 * 0.5**6 / 0.7))
    three = st.paired_ratio([2.0] * 3, [1.0] * 3)  # no spread seen, yet three signs prove little
    assert (three.ratio, three.low, three.high, three.p_value, three.method) == (2.0, None, None, None, "none")
    assert st.verdict(three, margin=0.03) == "unresolved"
    assert st.median_interval([2.0] * 3).low is None


def test_samples_pair_over_the_blocks_that_both_were_in() -> None:
    assert st.paired_ratio([4.0, 6.0, 8.0], [2.0, 3.0, 4.0, 99.0, 99.0]).n == 3


@pytest.mark.parametrize("bad", [[], [1.0, 0.0], [1.0, math.nan], [-1.0], [1.0, math.inf]])
def test_what_is_no_time_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="samples"):
        st.median_interval(bad)


def ratio(low: float, middle: float, high: float, p: float = 1e-6) -> st.Ratio:
    return st.Ratio(middle, low, high, p, 30, "order")


def test_verdicts_ask_where_the_whole_interval_lies() -> None:
    assert st.verdict(ratio(0.90, 0.93, 0.96), margin=0.03) == "faster"
    assert st.verdict(ratio(1.04, 1.07, 1.11), margin=0.03) == "slower"
    assert st.verdict(ratio(0.90, 0.93, 0.98), margin=0.03) == "unresolved"  # faster, but by what matters?
    assert st.verdict(ratio(1.02, 1.07, 1.11), margin=0.03) == "unresolved"
    assert st.verdict(ratio(0.98, 0.99, 0.995), margin=0.03) == "same"  # real, and too small to matter
    assert st.verdict(ratio(0.95, 0.98, 0.995), margin=0.03) == "unresolved"  # real, but how large?
    assert st.verdict(ratio(0.80, 0.93, 1.01), margin=0.03) == "unresolved"
    assert st.verdict(ratio(0.90, 0.93, 0.96), margin=0.03, noise=0.05) == "unresolved"
    assert st.verdict(ratio(0.90, 0.93, 0.94), margin=0.03, noise=0.05) == "faster"
    assert st.verdict(ratio(0.90, 0.93, 0.96), margin=0.03, noise=None) == "unresolved"
    assert st.verdict(ratio(0.98, 1.0, 1.02), margin=0.03, noise=None) == "same"
    assert st.verdict(ratio(0.90, 0.93, 0.96), margin=0.03, p_adjusted=0.2) == "unresolved"
    assert st.verdict(ratio(0.98, 1.0, 1.02), margin=0.03, noise=0.5, p_adjusted=1.0) == "same"
    for margin in (0, -1, math.nan):
        with pytest.raises(ValueError, match="margin"):
            st.verdict(ratio(0.9, 1.0, 1.1), margin=margin)
    for edge in (-0.1, math.nan):
        with pytest.raises(ValueError, match="edge"):
            st.paired_ratio([1.0] * 9, [1.0] * 9, edge=edge)


def test_one_definition_judges_blocks_and_rounds() -> None:
    """The same interval gets the same word, whichever protocol it came from."""
    rng = np.random.default_rng(12)
    for _ in range(300):
        low, middle, high = sorted(np.exp(rng.normal(0, 0.08, 3)))
        rounds = regression.Change(middle, low, high, 0.01, 0.01, 5, 40, 1.0, 1.0)
        for p in (0.01, 0.2):
            blocks = st.verdict(ratio(low, middle, high), margin=0.05, p_adjusted=p)
            assert regression.speed_of(rounds, p, margin=0.05) == blocks


def test_a_p_value_is_small_exactly_where_the_interval_lies_beyond_the_edge() -> None:
    rng = np.random.default_rng(9)
    seen = set()
    for _ in range(400):
        n = int(rng.integers(20, 60))
        found = st.paired_ratio(np.exp(rng.normal(0.06, 0.1, n)), np.ones(n), edge=0.03)
        assert found.low is not None
        assert found.high is not None
        assert found.p_value is not None
        beyond = found.low > 1.03 or found.high < 1 / 1.03
        assert (found.p_value <= 0.05) == beyond
        assert found.p_value == pytest.approx(found.inverse().p_value)
        seen.add(beyond)
    assert seen == {True, False}


@pytest.mark.parametrize("blocks", [4, 12, 30])
def test_a_difference_of_just_the_margin_is_rarely_called_one(blocks: int) -> None:
    """2.5% on the side of the truth is what a 95% interval leaves; by the point estimate it was a third of all runs."""
    rng, trials = np.random.default_rng(blocks), 600
    said = [decide(1.03 * a, b) for a, b in (machine(rng, blocks, 2, noise=0.01) for _ in range(trials))]
    assert said.count("slower") <= trials * 0.025 + 3 * math.sqrt(trials * 0.025 * 0.975)
    assert said.count("faster") == 0


def test_interpolated_order_statistics_by_hand() -> None:
    """n = 8, miss 3%: the range misses 2/256, the next 18/256: I = (0.03 - 2/256) / (16/256), w = 7 I / (1 + 6 I)."""
    d = np.arange(8.0)
    share = (0.03 - 2 / 256) * 16
    weight = 7 * share / (1 + 6 * share)
    found = st.paired_ratio(np.exp(d), np.ones(8), confidence=1 - 0.03 / 0.7)
    assert found.low == pytest.approx(math.exp(weight))
    assert found.high == pytest.approx(math.exp(7 - weight))


@pytest.mark.parametrize("blocks", [20, 60])
def test_the_interval_of_a_median_covers_it_where_neighbours_are_alike(blocks: int) -> None:
    """An AR(1) disturbance of r = 0.6: taken as independent, the interval would cover three times in four."""
    rng = np.random.default_rng(blocks)
    x = np.zeros((800, blocks + 50))
    for i in range(1, x.shape[1]):
        x[:, i] = 0.6 * x[:, i - 1] + rng.normal(0, 0.05, len(x))
    intervals = [st.median_interval(row) for row in np.exp(x[:, 50:])]
    covered = sum(i.low <= 1.0 <= i.high for i in intervals if i.low is not None and i.high is not None)
    assert 0.93 - 3 * 0.008 <= covered / len(x) <= 0.985


def test_the_noise_of_a_pair_is_the_greater_of_both() -> None:
    floors = {"a": 0.01, "b": 0.05, "c": 0.2}
    assert st.noise_of_pair("a", "b", floors) == 0.05
    assert st.noise_of_pair("a", "a", floors) == 0.01
    assert st.noise_of_pair("a", "never against itself", floors) == 0.2
    assert st.noise_of_pair("a", "b", {"c": 0.2}) == 0.2  # as in records where one arm alone has A/A samples
    assert st.noise_of_pair("a", "b", {}) is None


def test_swapping_the_arms_swaps_the_verdict() -> None:
    a, b = machine(np.random.default_rng(5), 40, 2)
    forth, back = st.paired_ratio(0.7 * a, b), st.paired_ratio(b, 0.7 * a)
    assert forth.inverse().ratio == pytest.approx(back.ratio)
    assert forth.inverse().low == pytest.approx(back.low)
    assert (st.verdict(forth, margin=0.03), st.verdict(back, margin=0.03)) == ("faster", "slower")


def test_the_noise_floor_holds_bias_and_spread() -> None:
    rng = np.random.default_rng(6)
    quiet = np.exp(rng.normal(0, 0.001, 50))
    assert st.noise_floor(quiet, quiet * 1.05) == pytest.approx(0.05, abs=0.005)
    a, aa = machine(rng, 50, 2)
    assert 0 < (st.noise_floor(a, aa) or 0) < 0.1


def test_outliers_are_labelled_by_tukeys_fences() -> None:
    labels = st.tukey_outliers([10, 11, 12, 13, 14, 15, 16, 40, 22, 1])
    assert labels == ["", "", "", "", "", "", "", "high severe", "", "low mild"]
    assert st.tukey_outliers([]) == []
    assert set(st.tukey_outliers([1.0] * 5)) == {""}


def test_a_power_law_is_recovered_with_cover() -> None:
    rng = np.random.default_rng(8)
    n = 2.0 ** np.arange(10, 17)
    covered = 0
    for _ in range(300):
        law = st.power_law(n, 3e-6 * n**1.4 * np.exp(rng.normal(0, 0.05, n.size)))
        assert law.low is not None
        assert law.high is not None
        covered += law.low <= 1.4 <= law.high
    assert covered / 300 == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 300))
    exact = st.power_law([1, 10], [2, 200])
    assert (exact.exponent, exact.low, exact.high) == (pytest.approx(2), None, None)
    assert exact(100) == pytest.approx(20000)
    with pytest.raises(ValueError, match="two different sizes"):
        st.power_law([8, 8], [1, 2])


def test_crossovers_are_placed_between_the_sizes_where_the_winner_changes() -> None:
    n = [1000, 4000, 16000, 64000]
    quadratic, flat = [x**2 * 1e-6 for x in n], [x * 8e-3 for x in n]  # equal at n = 8000
    (found,) = st.crossover(n, quadratic, flat)
    assert found.n == pytest.approx(8000)
    assert (found.below, found.above, found.faster_above) == (4000, 16000, "b")
    assert st.crossover(n[::-1], quadratic[::-1], flat[::-1]) == [found]
    assert st.crossover(n, flat, flat) == []
    (tie,) = st.crossover([1, 2, 4], [1, 2, 4], [2, 2, 2])
    assert (tie.below, tie.above, tie.n) == (1, 4, pytest.approx(2))
    assert st.crossover([1, 2, 4], [1, 2, 3], [2, 2, 4]) == []  # touched, not crossed
