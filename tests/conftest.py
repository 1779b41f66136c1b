"""One thread per process where the tests already run one process per core: two would only wait for each other."""

import os
from collections.abc import Iterator

import pytest

from tests.browser import QUIET, executable, unavailable

if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        unavailable("needs the package playwright, found none")
    path = executable()
    with sync_playwright() as p:
        started = p.chromium.launch(executable_path=path, args=list(QUIET))
        yield started
        started.close()
