"""Record docs/images/query-page-*.png: python docs/images/query_page.py <model folder>.

Serves the model, asks it by the page as a reader would, and takes pictures of the page in Chromium: light at 1400 px,
dark at 380 px. Needs playwright, Pillow and a Chromium on the PATH. The model should have a calibration and, for the
reasons, the texts of its training queries.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).resolve().parent
TEXT = "perl module to parse and format dates and times"
PICTURES = (("light", 1400), ("dark", 380))


def ask(page: Page) -> None:
    """Ask as a reader would."""
    page.get_by_text("labels, model").wait_for()
    page.locator("#text").fill(TEXT)
    page.locator("#top-k").select_option("5")
    if page.locator("#calibrate").is_visible():
        page.locator("#calibrate").check()
    page.locator("#explain").check()
    page.locator("#text").press("Enter")
    page.get_by_text(re.compile(r"labels in \d+ ms")).wait_for()
    page.locator(".why summary").first.click()
    page.locator("#text").evaluate("box => box.blur()")


def main() -> None:
    """Record the pictures."""
    command = [sys.executable, "-m", "prime_xmc.serve", f"model={sys.argv[1]}", "port=0", "title=Debian packages"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        address = next(line.split()[0] for line in server.stderr if " serves " in line)
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for scheme, width in PICTURES:
                context = browser.new_context(viewport={"width": width, "height": 700}, color_scheme=scheme)
                page = context.new_page()
                page.goto(address)
                ask(page)
                path = IMAGES / f"query-page-{scheme}.png"
                page.screenshot(path=path, full_page=True)
                Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)  # a third of the size
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
