"""Take pictures of the chat page after a real conversation with the demo model.

    python tools/make_page_picture.py            docs/images/page.png
    python tools/make_page_picture.py FOLDER     light and dark, 1200 and 360 pixels wide, to be looked at

It needs playwright and a Chromium of the system. The model runs here, so each picture has figures of its own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "page.png"
QUESTIONS = ("What is an NPU?", "How does int4 quantization work?")
WIDE, NARROW = (1200, 700), (360, 740)
# Of the chart: ten seconds of it.
LINE = re.compile(r"^(\S+ ){9}")
# The first answer may wait for a conversion.
PATIENCE_MS = 120_000


def main() -> None:
    """Start a server, and take the pictures that are asked for."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("there is no chromium; apt-get install chromium")
    with served() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        if len(sys.argv) > 1:
            take_all(browser, address, Path(sys.argv[1]))
        else:
            with browser.new_context(viewport=size(WIDE), color_scheme="light") as context:
                converse(context.new_page(), address).screenshot(path=PICTURE)
        browser.close()


def take_all(browser: Browser, address: str, folder: Path) -> None:
    """Each scheme and width, with the panels of the narrow ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        for pixels in (WIDE, NARROW):
            with browser.new_context(viewport=size(pixels), color_scheme=scheme) as context:
                page = converse(context.new_page(), address)
                name = f"{scheme}-{pixels[0]}"
                page.screenshot(path=folder / f"{name}.png")
                for panel in ("Conversations", "Settings") if pixels is NARROW else ():
                    page.get_by_role("button", name=panel, exact=True).click()
                    page.screenshot(path=folder / f"{name}-{panel.lower()}.png")


def converse(page: Page, address: str) -> Page:
    """Ask the questions, and wait until the chart has something to show."""
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)
    expect(page.get_by_label("Model", exact=True)).to_have_value("demo")
    for count, text in enumerate(QUESTIONS, 1):
        page.get_by_label("Your question").fill(text)
        page.get_by_role("button", name="Send", exact=True).click()
        expect(page.locator(".assistant .figures")).to_have_count(count, timeout=PATIENCE_MS)
    # A line of the chart needs more than one sample.
    expect(page.locator("#devices polyline").first).to_have_attribute("points", LINE, timeout=PATIENCE_MS)
    return page


@contextmanager
def served() -> Iterator[str]:
    """`aipc serve demo` on a free port; gives its address."""
    command = [sys.executable, "-m", "aipc", "serve", "demo", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    assert process.stderr is not None
    try:
        line = next((line for line in process.stderr if line.startswith("OpenAI: ")), "")
        if not line:
            raise SystemExit("aipc serve did not start")
        yield line.split()[1].removesuffix("/v1")
    finally:
        process.terminate()
        process.wait(60)


def size(pixels: tuple[int, int]) -> dict[str, int]:
    """A viewport as playwright wants it."""
    return {"width": pixels[0], "height": pixels[1]}


if __name__ == "__main__":
    main()
