"""The page in a real Chromium, as a visitor sees it."""

import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from contentmotion.loading import ASSETS
from contentmotion.video.write import write_video

api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
SECOND = 1000
SCREENSHOTS = Path(__file__).resolve().parents[2] / "docs/screenshots.py"


@pytest.fixture(scope="module")
def open_tab():
    """`open_tab(visitor, "Tab")`, as the pictures of the docs are taken."""
    spec = importlib.util.spec_from_file_location("screenshots", SCREENSHOTS)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.open_tab


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, page) -> Iterator:
    """`visit("Tab")`: a new visitor of the page, with a session of their own, at a tab."""
    contexts = []

    def new(tab: str):
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        contexts.append(context)
        visitor = context.new_page()
        visitor.set_default_timeout(90 * SECOND)
        visitor.goto(page.url)
        visitor.get_by_role("tab", name=tab).click()
        return visitor

    yield new
    for context in contexts:
        context.close()


def plays(visitor, place: str) -> None:
    """Waits until the video at a place has frames, moves, and repeats."""
    visitor.wait_for_selector(f"{place} video", state="attached")
    video = f"document.querySelector('{place} video')"
    visitor.wait_for_function(f"{video} && {video}.readyState >= 2 && {video}.videoWidth > 0")
    assert visitor.evaluate(f"{video}.loop")
    visitor.evaluate(f"{video}.play()")
    before = visitor.evaluate(f"{video}.currentTime")
    visitor.wait_for_function(f"Math.abs({video}.currentTime - {before}) > 0.05")


def says(visitor, message: str) -> None:
    """Waits for an error with these words."""
    visitor.get_by_test_id("toast-body").filter(has_text=message).first.wait_for()


def test_generate_plays_a_video_and_keeps_it(visit) -> None:
    visitor = visit("Generate")
    visitor.get_by_label("Prompt", exact=True).fill("a crying cat")
    visitor.get_by_role("button", name="Generate").click()
    visitor.locator("#summary").get_by_text("network passes a video").wait_for()
    plays(visitor, "#generated")
    assert visitor.locator("#content img").count() == 1
    visitor.locator("#history").get_by_text("a crying cat · seed 0").wait_for()
    first = visitor.locator("#generated video").get_attribute("src")
    visitor.get_by_label("Prompt", exact=True).fill("rocket")
    visitor.get_by_role("button", name="Generate").click()
    visitor.locator("#history").get_by_text("rocket · seed 0").wait_for()
    visitor.locator("#history button").filter(has_text="a crying cat").first.click()
    visitor.locator("#summary").get_by_text("a crying cat · seed 0").wait_for()
    assert visitor.locator("#generated video").get_attribute("src") == first, "the first one again"
    links = visitor.locator("a[download]").evaluate_all("found => found.map(link => link.download || link.href)")
    assert any(link.endswith(".gif") for link in links) and any(link.endswith(".mp4") for link in links)


def test_decompose_a_real_clip(visit, shared_data: Path) -> None:
    visitor = visit("Decompose")
    visitor.set_input_files("#uploaded input[type=file]", shared_data / "real-clips/videos/carphone.mp4")
    visitor.locator("#uploaded video").wait_for()
    visitor.get_by_role("button", name="Take it apart").click()
    visitor.locator("#psnr").get_by_text("PSNR").wait_for()
    assert re.search(r"PSNR \d+\.\d dB", visitor.locator("#psnr").inner_text())
    plays(visitor, "#reconstruction")


def test_compare(visit) -> None:
    visitor = visit("Compare")
    visitor.get_by_label("Prompt", exact=True).locator("visible=true").fill("rocket")
    visitor.get_by_role("button", name="Compare").click()
    visitor.locator("#compare-table").get_by_text("4 + 4").locator("visible=true").first.wait_for()
    table = visitor.locator("#compare-table").inner_text()
    assert "20 + 20" in table and "4 + 4" in table, "teacher and student, each with its own steps"
    plays(visitor, "#compare-a")
    plays(visitor, "#compare-b")
    visitor.get_by_label("Model B").click()
    visitor.get_by_role("option", name="pipeline").click()
    visitor.wait_for_function("document.querySelector('[aria-label*=\"Steps B\"]').max == 20")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-video", "cannot use no-video.mp4: not a readable video"),
        ("long", "long.mp4 is too long: 8 s, at most 5 s are taken; cut it first"),
        ("short", "cannot use short.mp4: 3 frames, 4 needed"),
    ],
)
def test_bad_uploads_say_what_is_wrong(name: str, message: str, visit, uploads: dict[str, Path]) -> None:
    visitor = visit("Decompose")
    visitor.set_input_files("#uploaded input[type=file]", uploads[name])
    visitor.locator("#uploaded video").wait_for(state="attached")
    visitor.get_by_role("button", name="Take it apart").click()
    says(visitor, message)


def test_an_upload_that_is_too_large_and_none_at_all(visit, uploads: dict[str, Path]) -> None:
    visitor = visit("Decompose")
    visitor.get_by_role("button", name="Take it apart").click()
    says(visitor, "no video yet: upload one, or pick an example")
    visitor.set_input_files("#uploaded input[type=file]", uploads["large"])
    says(visitor, "exceed the maximum allowed size of")


def test_two_sessions_at_once(visit) -> None:
    visitors = {name: visit("Generate") for name in ("rocket", "a moving square")}
    for name, visitor in visitors.items():
        visitor.get_by_label("Prompt", exact=True).fill(name)
        visitor.get_by_role("button", name="Generate").click()
    for name, visitor in visitors.items():
        visitor.get_by_text(f"{name} · seed 0").wait_for()
        plays(visitor, "#generated")
        (other,) = set(visitors) - {name}
        assert visitor.get_by_text(f"{other} · seed 0").count() == 0, "each sees their own"


def test_nothing_is_asked_of_other_servers(browser, page) -> None:
    context = browser.new_context()
    visitor = context.new_page()
    asked: list[str] = []
    visitor.on("request", lambda request: asked.append(request.url))
    visitor.goto(page.url)
    visitor.get_by_role("button", name="Generate").wait_for()
    context.close()
    others = [url for url in asked if not url.startswith((page.url, "data:", "blob:"))]
    assert asked and not others


@pytest.mark.parametrize("width", [1280, 390])
def test_no_tab_is_wider_than_the_screen(width: int, browser, page, open_tab) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900})
    visitor = context.new_page()
    visitor.goto(page.url)
    for tab in ("Generate", "Decompose", "Compare", "Checkpoint"):
        open_tab(visitor, tab)
        visitor.wait_for_timeout(500)
        assert visitor.evaluate("document.documentElement.scrollWidth") <= width, tab
    context.close()


def test_a_video_made_here_plays_in_this_browser(browser, tmp_path: Path, make_frames) -> None:
    """H.264 as `write_video` writes it: where this fails, so do the tests above."""
    write_video(tmp_path / "clip.mp4", make_frames(16, 64, 64), fps=8)
    context = browser.new_context()
    visitor = context.new_page()
    (tmp_path / "page.html").write_text("<div id=v><video src=clip.mp4 loop muted></video></div>")
    visitor.goto((tmp_path / "page.html").as_uri())
    plays(visitor, "#v")
    context.close()


def test_stop_ends_a_run(browser, serve_page, tmp_path: Path) -> None:
    """Four videos of two thousand steps, minutes of the shipped model, stopped soon after they began."""
    model = f"--pretrained_model_name_or_path={ASSETS / 'emoji'}"  # by its path it has no student
    with serve_page(tmp_path, model, "--max_steps=1000", "--num_inference_steps=1000") as slow:
        context = browser.new_context()
        visitor = context.new_page()
        visitor.set_default_timeout(90 * SECOND)
        visitor.goto(slow.url)
        visitor.get_by_label("Prompt", exact=True).fill("a crying cat")
        visitor.get_by_label("number input for Videos").fill("4")
        stop = visitor.get_by_role("button", name="Stop", exact=True)
        assert stop.is_disabled(), "nothing runs"
        visitor.get_by_role("button", name="Generate").click()
        visitor.wait_for_timeout(3 * SECOND)  # it has begun; the page shows thousands of steps late
        stop.click()
        visitor.locator("#summary").get_by_text(re.compile(r"Stopped after \d+ of 2000 steps")).wait_for()
        assert stop.is_disabled() and visitor.get_by_test_id("toast-body").count() == 0, "no error"
        assert visitor.locator("#generated video").count() == 0
        context.close()
