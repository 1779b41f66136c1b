"""A real browser without a network, for the tests of pages. Where none is, they skip, or fail if it is required."""

from __future__ import annotations

import os
import shutil
from typing import Any, NoReturn

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
QUIET = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
PATIENCE_MS = 300_000  # ends a hang, and nothing that is only slow


def unavailable(why: str) -> NoReturn:
    if os.environ.get("CI") == "true" or os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail(f"required here: {why}")
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
        self.context.set_default_timeout(PATIENCE_MS)
        self.page = self.context.new_page()
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("requestfailed", lambda r: self.complaints.append(f"failed: {r.url}"))
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.goto(url)

    def close(self) -> None:
        self.context.close()

    def sticking_out(self) -> list[str]:
        """Elements that are wider than the window and do not scroll by themselves."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll("main *, header *")].filter(e => {
            const r = e.getBoundingClientRect();
            return r.width > 0 && r.right > innerWidth + 1 && !e.closest(".scroll") && !e.closest("svg");
        }).map(e => e.tagName + "." + e.className).slice(0, 5)"""
        )

    def overlaps(self) -> list[str]:
        """Texts of one figure that cover each other."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll("figure > svg")].flatMap(svg => {
            const texts = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
            const hit = [];
            texts.forEach(([a, r], i) => texts.slice(i + 1).forEach(([b, s]) => {
                const x = Math.min(r.right, s.right) - Math.max(r.left, s.left);
                const y = Math.min(r.bottom, s.bottom) - Math.max(r.top, s.top);
                if (x > 1 && y > 4) hit.push(svg.querySelector("title").textContent + ": " + a + " / " + b);
            }));
            return hit;
        })"""
        )

    def figures(self) -> list[dict[str, Any]]:
        """Every drawing: its name, the texts that leave it (``out``), its size and its ground."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll("figure > svg")].map(svg => {
            const box = svg.getBoundingClientRect();
            const out = [...svg.querySelectorAll("text")].filter(t => {
                const r = t.getBoundingClientRect();
                return r.left < box.left - 1 || r.right > box.right + 1 ||
                    r.top < box.top - 1 || r.bottom > box.bottom + 1;
            }).map(t => t.textContent);
            const name = document.getElementById(svg.getAttribute("aria-labelledby").split(" ")[0])?.textContent;
            const ground = getComputedStyle(svg.querySelector("path")).fill;
            return {name, out, width: box.width, height: box.height, ground};
        })"""
        )
