"""What is published of the verdicts' error rates holds in the published numbers, and the command makes such numbers."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from benchmarks.harness.ruler import statistics as st
from scripts.calibration import figures, real, simulate, trials
from scripts.calibration.machines import MACHINES, Machine, PaperClock
from tests import ROOT

FOLDER = ROOT / "reports" / "2026-11-27-statistics"


def at_most(count: int, trials: int, rate: float) -> bool:
    """Whether so many would not astonish if the true rate were ``rate``: a chance of at least 1 in 1,000."""
    return float(stats.binom.sf(count - 1, trials, rate)) >= 1e-3


@pytest.fixture(scope="module")
def verdicts() -> pd.DataFrame:
    return pd.read_csv(FOLDER / "verdicts.csv")


def test_every_protocol_machine_and_difference_is_there(verdicts: pd.DataFrame) -> None:
    wanted = [(f, args[:3]) for f, args in simulate.verdict_tasks(1)]
    assert len(verdicts) == len(wanted)
    for protocol, margin in (("cpu", 0.03), ("cuda", 0.01), ("regress, 6 rounds", 0.05)):
        rows = verdicts[verdicts.protocol == protocol]
        assert set(rows.margin) == {margin}
        assert {0.0, margin, 0.1, 0.2} <= set(rows.difference)


def test_without_a_difference_a_verdict_is_rarer_than_claimed(verdicts: pd.DataFrame) -> None:
    for row in verdicts[verdicts.difference == 0].itertuples():
        assert at_most(row.faster + row.slower, row.trials, 0.01), row


def test_at_exactly_the_margin_a_verdict_is_rarer_than_claimed(verdicts: pd.DataFrame) -> None:
    exact = verdicts[verdicts.difference == verdicts.margin]
    for row in exact.itertuples():
        assert at_most(row.slower, row.trials, 0.025), row
        assert at_most(row.slower_by_margin_alone, row.trials, 0.025), row
        assert at_most(row.same, row.trials, 0.025), row
        assert row.faster == 0
    assert at_most(exact.slower_by_margin_alone.sum(), exact.trials.sum(), 0.025)


def test_power_grows_with_the_difference(verdicts: pd.DataFrame) -> None:
    for (protocol, machine), rows in verdicts.groupby(["protocol", "machine"]):
        power = (rows.slower / rows.trials).to_numpy()
        assert np.diff(power).min() > -0.15, (protocol, machine)
        assert power[-1] > power[0], (protocol, machine)


def test_intervals_cover_as_claimed(verdicts: pd.DataFrame) -> None:
    """93 to 97%, of every kind of interval and machine but the one that is named as falling short."""
    found = figures.cover_of(verdicts, pd.read_csv(FOLDER / "cover.csv"))
    short = found.label.str.startswith("single") & (found.machine == "swaying")
    shares = found[short].set_index("label").share
    said = "**72% at 6 blocks, 89% at 20, 92% at 60, 96% at 200**"
    assert said in (FOLDER / "README.md").read_text()
    for share, n in re.findall(r"(\d+)% at (\d+)", said):
        assert f"{shares[f'single, {n} blocks']:.0%}" == f"{share}%"
    for row in found[~short].itertuples():
        missed = row.trials - row.covered
        assert at_most(missed, row.trials, 0.07), row
        assert at_most(row.covered, row.trials, 0.97), row


def test_looking_for_a_narrow_interval_costs_cover_and_the_nominal_one_pays_for_it() -> None:
    """At nominal 95% the stop rule would leave too little; it is what the wider nominal level is for."""
    rows = pd.read_csv(FOLDER / "cover.csv").set_index("interval")
    plain, widened = rows.loc["nominal 95.0%, stopped"], rows.loc["nominal 96.5%, stopped"]
    assert not at_most(plain.trials - plain.covered, plain.trials, 0.05)
    assert at_most(widened.trials - widened.covered, widened.trials, 0.07)
    assert trials.cover_looked_at(0.95, 20, (1,))["covered"] <= trials.cover_looked_at(0.965, 20, (1,))["covered"]


def test_whole_tables_hold_a_false_verdict_no_oftener_than_claimed() -> None:
    for row in pd.read_csv(FOLDER / "families.csv").itertuples():
        assert at_most(row.alarms, row.trials, 0.05), row


def test_real_runs_of_the_same_code_are_not_told_apart() -> None:
    found = pd.read_csv(FOLDER / "real.csv")
    assert {"blocks", "rounds", "A/A arms on record"} <= set(found.protocol)
    assert at_most(int((found.faster + found.slower).sum()), int(found.trials.sum()), 0.025)
    assert at_most(int((found.trials - found.covered).sum()), int(found.trials.sum()), 0.07)


def test_a_tiny_simulation_is_repeatable_and_finds_what_is_large() -> None:
    first, second = (trials.count_blocks("cpu", "calm", 0.20, 6, (1,)) for _ in range(2))
    assert first == second
    assert (first["slower"], first["faster"]) == (6, 0)
    assert first["mean_n"] >= 20
    none = trials.count_blocks("cpu", "bursty", 0.0, 6, (1,))
    assert none["faster"] + none["slower"] == 0


def test_tiny_counts_stay_within_what_is_claimed() -> None:
    """The commanded simulations themselves, small: seeded, so the same numbers everywhere."""
    exact = trials.count_rounds("2% luck", 4, 0.05, 200, (1,))
    assert at_most(exact["slower"], 200, 0.025)
    found = trials.cover("paired blocks", "bursty", 20, 300, (1,))
    assert at_most(300 - found["covered"], 300, 0.07)
    assert at_most(found["covered"], 300, 0.97)
    table = trials.family("12 blocks", 12, 1.0, 20, (1,))
    assert at_most(table["alarms"], 20, 0.05)


def test_a_rule_by_the_point_estimate_would_be_caught() -> None:
    """The rule before: interval beyond 1, point estimate beyond the margin. It errs ten times as often as claimed."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(300):
        d = rng.normal(np.log(1.03), 0.06, 60)
        found = st.paired_ratio(np.exp(d), np.ones(60))
        alarms += (found.low or 0) > 1 and found.ratio > 1.03
    assert not at_most(alarms, 300, 0.025)


def test_the_paper_machine_disturbs_as_it_says() -> None:
    rng = np.random.default_rng(0)
    quiet = Machine(0.0, sway=0.1, memory=4.0).disturbance(rng, 100_000)
    assert np.std(quiet) == pytest.approx(0.1, rel=0.05)
    assert np.corrcoef(quiet[1:], quiet[:-1])[0, 1] == pytest.approx(np.exp(-1 / 4), abs=0.02)
    bursts = Machine(0.0, bursts=0.01, length=5.0, height=0.5).disturbance(rng, 100_000)
    assert np.mean(bursts > 0) == pytest.approx(0.05, abs=0.01)
    clock = PaperClock(MACHINES["calm"], np.random.default_rng(1), 3, 0.03)
    assert [clock.sample(lambda: 2.0) for _ in range(3)] != [2.0] * 3


def test_records_with_a_second_arm_are_counted() -> None:
    (row,) = real.on_record([FOLDER.parent / "2026-11-22-cpu" / "records.jsonl"])
    assert row["trials"] == row["faster"] + row["slower"] + row["same"] + row["unresolved"] > 0


def test_figures_are_drawn_from_the_numbers(tmp_path: Path) -> None:
    for name in ("verdicts", "cover"):
        (tmp_path / f"{name}.csv").write_text((FOLDER / f"{name}.csv").read_text())
    figures.draw(tmp_path)
    for stem in ("power-cpu", "power-cuda", "power-regress", "cover"):
        for suffix in ("", "-dark"):
            assert (FOLDER / f"{stem}{suffix}.svg").exists()
            ElementTree.parse(tmp_path / f"{stem}{suffix}.svg")
    shown = (FOLDER / "README.md").read_text()
    for name in re.findall(r"[\w-]+\.(?:svg|png|csv)", shown):
        assert (FOLDER / name).exists(), name
