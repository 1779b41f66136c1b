"""A real browser without a network, for the tests of pages. Where none is, they skip, or fail if it is required."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip


def unavailable(why: str) -> NoReturn:
    if os.environ.get("CI") == "true" or os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(f"a browser is required here: {why}")
    pytest.skip(why)


def executable() -> str:
    """Where a browser is."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    return path or unavailable(f"needs one of {', '.join(BROWSERS)} on PATH, found none")


class Visit:
    """One page load: what it asked for, what it complained of. ``offline=False`` only for a page of this machine's."""

    def __init__(
        self, browser, url: str, *, width: int = 1440, scheme: str = "light", offline: bool = True, **context: object
    ) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **context)
        self.context.set_offline(offline)
        self.page = self.context.new_page()
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("requestfailed", lambda r: self.complaints.append(f"failed: {r.url}"))
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.goto(url)

    def close(self) -> None:
        self.context.close()
