"""Pictures of the page's tabs for the docs: python docs/screenshots.py [--video VIDEO] [--dark] [--output_dir FOLDER]

Serves the shipped model with `contentmotion demo`, drives it in Chromium (apt-get install chromium, pip install
playwright) at 1280 and 390 pixels, and writes demo-TAB-WIDTH.png. VIDEO is what tab Decompose takes apart;
without one it is the page's example.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

WIDTHS = (1280, 390)
PROMPT, SEED = "woman surfing, dark skin tone", 7
MAX_BYTES = 200_000


def main() -> None:
    """Takes them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", help="what tab Decompose takes apart")
    parser.add_argument("--dark", action="store_true", help="as who prefers dark pages sees it")
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent / "images")
    arguments = parser.parse_args()
    video, folder = arguments.video, arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "contentmotion", "demo", "--server_port=0", f"--seed={SEED}"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for width in WIDTHS:
                scheme = "dark" if arguments.dark else "light"
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                page.set_default_timeout(300_000)
                page.goto(found[0])
                for name, show in (("generate", generate), ("decompose", decompose), ("compare", compare)):
                    open_tab(page, name.title())
                    show(page) if show is not decompose else decompose(page, video)
                    shoot(page, folder / f"demo-{name}-{width}.png")
                open_tab(page, "Checkpoint")
                page.get_by_role("button", name="Show it").click()
                page.get_by_text("in all (").locator("visible=true").first.wait_for()
                shoot(page, folder / f"demo-checkpoint-{width}.png")
                page.close()
    finally:
        server.terminate()
        server.wait()


def open_tab(page: Page, name: str) -> None:
    """Goes to a tab, which on a narrow screen may be in the menu of those that found no room."""
    page.get_by_role("tab").first.wait_for()
    tab = page.get_by_role("tab", name=name).locator("visible=true")
    if tab.count():
        tab.first.click()
    else:
        page.locator(".overflow-menu > button").first.click()
        page.locator(".overflow-dropdown button", has_text=name).click()


def generate(page: Page) -> None:
    """Two videos of one content frame."""
    page.get_by_label("Prompt", exact=True).locator("visible=true").fill(PROMPT)
    page.get_by_role("spinbutton", name=re.compile("Videos")).first.fill("2")
    page.get_by_label("One content frame").check()
    page.get_by_role("button", name="Generate").click()
    page.locator("#summary").get_by_text("network passes").wait_for()
    page.locator("#history img").nth(1).wait_for()


def decompose(page: Page, video: str | None) -> None:
    """A clip taken apart, and swapped with another."""
    if video is None:
        page.get_by_role("button", name="Take my newest generated video").click()
    else:
        page.set_input_files("#uploaded input[type=file]", video)
    page.locator("#uploaded video").wait_for()
    page.get_by_role("button", name="Take it apart").click()
    page.locator("#psnr").get_by_text("PSNR").wait_for()


def compare(page: Page) -> None:
    """The shipped model and its student."""
    page.get_by_label("Prompt", exact=True).locator("visible=true").fill(PROMPT)
    page.get_by_role("button", name="Compare").click()
    page.locator("#compare-table").get_by_text("4 + 4").locator("visible=true").first.wait_for()


def shoot(page: Page, file: Path) -> None:
    """Writes the whole page as a picture of few colours, half way through its videos."""
    page.wait_for_timeout(1500)
    page.screenshot(path=str(file), full_page=True)
    with Image.open(file) as picture:
        small = picture.convert("RGB").quantize(128)
    small.save(file, optimize=True)
    size = (file).stat().st_size
    print(f"{file}: {size / 1000:.0f} kB")
    if size > MAX_BYTES:
        raise SystemExit(f"{file} is larger than {MAX_BYTES} bytes")


if __name__ == "__main__":
    main()
