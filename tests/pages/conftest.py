"""A real browser, where there is one: Playwright with the Chromium of the system."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

PATHS = ("chromium", "chromium-browser", "google-chrome")


class Tab(NamedTuple):
    """A page, what its console said, and what it asked for."""

    page: Any
    console: list[str]
    asked: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    path = next((found for name in PATHS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(params=[("light", 1280), ("dark", 390)], ids=["light 1280", "dark 390"])
def tab(browser: Any, request: pytest.FixtureRequest) -> Iterator[Tab]:
    scheme, width = request.param
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, console, asked = context.new_page(), [], []
    page.set_default_timeout(30_000)
    page.on("console", lambda message: console.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("request", lambda sent: asked.append(sent.url))
    yield Tab(page, console, asked)
    assert not console
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()
