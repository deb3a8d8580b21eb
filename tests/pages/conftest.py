"""A real browser, where there is one: Playwright with the Chromium of the system. In CI a skipped page test fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from live_server import RunningServer, running_server

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Where CI is set, a skipped page test counts as failed: a missing browser must not go unnoticed."""
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped, which fails in CI: {report.longrepr[2]}"
    return report


class Tab(NamedTuple):
    """A page, errors and warnings on its console, and the URLs that it requested."""

    page: Any
    console: list[str]
    requests: list[str]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine: install it (on Debian: apt-get install chromium)")
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def start_server() -> Iterator[Callable[..., RunningServer]]:
    """Starts servers for one test. `tab` depends on it, so a page is closed before its server stops."""
    with ExitStack() as servers:
        yield lambda *args, **options: servers.enter_context(running_server(*args, **options))


@pytest.fixture(params=[("light", 1280), ("dark", 390)], ids=["light 1280", "dark 390"])
def tab(browser: Any, start_server: object, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """A tab whose console must stay empty, and whose page must not be wider than the window, in every test."""
    scheme, width = request.param
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page, console, requests = context.new_page(), [], []
    page.set_default_timeout(30_000)
    page.on("console", lambda message: console.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: console.append(str(error)))
    page.on("request", lambda sent: requests.append(sent.url))
    yield Tab(page, console, requests)
    width_fits = page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()
    assert not console
    assert width_fits
