"""What every test runs under: one thread per process where there is one process per core, long modules first."""

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests import ROOT
from tests.browser import PATIENCE_MS, QUIET, executable, unavailable
from tests.interpreter import Interpreter, runs_elsewhere

if os.environ.get("PYTEST_XDIST_WORKER"):  # two threads would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Whatever draws slowly does so on a slow machine too.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

INTERPRETER = pytest.StashKey[Interpreter]()
# What takes longest begins first: the rest then fills the gaps, and no process is left alone with a long test.
LONGEST = (
    "asv/test_run", "harness/regress/test_run", "commands/test_cli", "variants/test_triton_interpreter",
    "variants/test_kinds", "variants/test_values", "harness/sweep/test_sweep", "harness/sweep/test_sweep_killed",
    "harness/gate/test_cheats", "asv/test_commits", "harness/profile/test_profile_run", "reports/test_history",
    "variants/test_children", "variants/test_samples", "variants/test_calls", "variants/test_flex",
    "variants/test_conformance", "harness/schema/test_axes", "harness/levels/test_levels",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {ROOT / "tests" / f"{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[INTERPRETER] = Interpreter()


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[INTERPRETER].close()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if not runs_elsewhere(item):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in item.config.stash[INTERPRETER].reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.fixture(scope="module", autouse=True)
def only_a_tests_own_objects_are_collected() -> None:
    """The libraries' own million objects are not walked by each full collection that what is tested asks for: it does
    so around every sample that it times."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        unavailable("needs the package playwright, found none")
    path = executable()
    with sync_playwright() as p:
        started = p.chromium.launch(executable_path=path, args=list(QUIET), timeout=PATIENCE_MS)
        yield started
        started.close()
