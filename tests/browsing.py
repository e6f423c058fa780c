"""A real browser for the tests of the chat page, and what a person does there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
Browser, BrowserContext, Locator, Page = (
    sync_api.Browser,
    sync_api.BrowserContext,
    sync_api.Locator,
    sync_api.Page,
)
expect = sync_api.expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open the page with")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of this machine, without a window."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@contextmanager
def with_settings(browser: Browser, folder: Path) -> Iterator[BrowserContext]:
    """Another one of these browsers, with the settings that lie in a folder."""
    context = browser.browser_type.launch_persistent_context(folder, executable_path=CHROMIUM)
    yield context
    context.close()


def ask(page: Page, text: str = "What is an NPU?") -> None:
    """Write a question and send it."""
    page.get_by_label("Your question").fill(text)
    page.get_by_role("button", name="Send", exact=True).click()


def answer_of(page: Page) -> Locator:
    """The text of the last answer."""
    return page.locator(".assistant .content").last
