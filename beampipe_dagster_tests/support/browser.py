"""Chromium on the operator's pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from beampipe_dagster_tests.support.stack import absent

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
PATIENCE_MS = 30_000


def find_chromium() -> str | None:
    """A Chromium of the system."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window; without one the test is skipped, or fails in CI."""
    path = find_chromium()
    if path is None:
        absent("Chromium is not installed (no chromium, chromium-browser or google-chrome on PATH)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def new_page(browser: Browser, base_url: str) -> Iterator[Page]:
    """A page of a visitor who has never been here."""
    context = browser.new_context(viewport={"width": 1400, "height": 800}, base_url=base_url)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    try:
        yield page
    finally:
        context.close()


def keep(page: Page, name: str) -> None:
    """A picture of the page, where ``BEAMPIPE_SCREENSHOTS`` names a directory for them."""
    folder = os.environ.get("BEAMPIPE_SCREENSHOTS", "").strip()
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for a module's tests."""
    with chromium() as started:
        yield started
