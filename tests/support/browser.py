"""This machine's Chromium without a window, by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


@contextmanager
def browser(*, width: int = 1600, height: int = 1000) -> Iterator[Page]:
    """An empty tab of a new browser; of Playwright's own, which it says how to install, where this
    machine has none."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium.new_page(viewport={"width": width, "height": height})


def text_with(page: Page, *texts: str, seconds: float = 60) -> str:
    """The text shown, with single spaces, once it has all of these.

    Raises:
        AssertionError: naming one that is missing.
    """
    shown = page.locator("body")
    for text in texts:
        expect(shown).to_contain_text(text, timeout=1000 * seconds, use_inner_text=True)
    return " ".join(shown.inner_text().split())
