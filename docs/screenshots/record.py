"""Make README's recording: `python docs/screenshots/record.py`; about six minutes on 2 cores.

A new workspace, the demo from Start to the finished run, then the article's question to the base model and the adapter
side by side, and a closer look at the answer. What is waited for (training, loading) is shown faster than it was, with
the seconds that went by in the corner; nothing else is changed. The result is `tour.gif`, below 3 MB.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from playwright.sync_api import expect, sync_playwright  # noqa: E402

from tests.browser.conftest import CHROMIUM, Page, open_generation  # noqa: E402

FILE = Path(__file__).parent / "tour.gif"
VIEW, SIZE = (1280, 800), (800, 500)  # pixels of the browser, and of the recording
MOST_BYTES = 3_000_000


class Recording:
    """Pictures of one tab, each with how long it stays (ms)."""

    def __init__(self, tab):
        self.tab, self.began = tab, time.monotonic()
        self.pictures: list[tuple[Image.Image, int]] = []
        self.font = ImageFont.load_default(16)

    def take(self, shown: int = 120) -> None:
        """Take a picture that stays `shown` ms."""
        picture = Image.open(io.BytesIO(self.tab.screenshot())).convert("RGB")
        picture = picture.resize(SIZE, Image.Resampling.LANCZOS)
        draw, seconds = ImageDraw.Draw(picture), int(time.monotonic() - self.began)
        words = f"{seconds // 60}:{seconds % 60:02}"
        box = draw.textbbox((SIZE[0] - 8, SIZE[1] - 8), words, font=self.font, anchor="rb")
        draw.rectangle((box[0] - 6, box[1] - 4, box[2] + 6, box[3] + 4), fill=(20, 20, 30))
        draw.text((SIZE[0] - 8, SIZE[1] - 8), words, font=self.font, anchor="rb", fill=(255, 255, 255))
        self.pictures.append((picture, shown))

    def until(self, arrived, every: float, shown: int = 120, most: float = 900.0) -> None:
        """Take a picture each `every` seconds until `arrived()`. Raises TimeoutError after `most` seconds."""
        deadline = time.monotonic() + most
        while not arrived():
            if time.monotonic() > deadline:
                raise TimeoutError("What is recorded does not come to its end.")
            self.take(shown)
            self.tab.wait_for_timeout(1000 * every)

    def save(self, colors: int = 96) -> int:
        """Write the GIF with one palette for all pictures; returns its bytes."""
        strip = Image.new("RGB", (SIZE[0], SIZE[1] * 4))
        for number in range(4):
            strip.paste(self.pictures[number * (len(self.pictures) - 1) // 3][0], (0, SIZE[1] * number))
        palette = strip.quantize(colors)
        first, *rest = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p, _ in self.pictures]
        durations = [shown for _, shown in self.pictures]
        first.save(FILE, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
        return FILE.stat().st_size


def train(recording: Recording) -> None:
    tab = recording.tab
    tab.locator("#start:enabled").wait_for(timeout=60_000)
    tab.wait_for_timeout(1500)
    recording.take(2000)
    tab.click("#start")
    status = tab.locator("#run-status")
    recording.until(lambda: "finished" in status.inner_text(), every=5, shown=160)
    tab.wait_for_timeout(1500)
    recording.take(1500)


def chat(recording: Recording) -> None:
    tab = recording.tab
    tab.locator("#train-chat:enabled").first.click()
    tab.locator("#load:visible").wait_for()
    tab.wait_for_timeout(1000)
    tab.click("#load")
    status = tab.locator("#engine-status")
    recording.until(lambda: "is ready" in status.inner_text(), every=2, shown=120)
    open_generation(tab, temperature=0, max_tokens=60)
    tab.check("#compare input")
    tab.locator("#chat-right").wait_for()
    tab.fill("#message textarea", "Do you support tool calling?")
    recording.take(1200)
    tab.click("#send")
    expect(tab.locator("#chat-right .bot.message")).to_have_count(1, timeout=60_000)
    tab.locator("#halt:enabled").wait_for()
    recording.until(lambda: tab.locator("#halt:disabled").count() > 0, every=0.5, shown=150)
    recording.take(3500)
    look = tab.locator("#confidence .wb-tokens .tk").first
    look.wait_for(timeout=60_000)
    look.scroll_into_view_if_needed()
    tab.wait_for_timeout(800)
    recording.take(3500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", help="keep the workspace in this folder; `take.py` can show its run")
    kept = parser.parse_args().workspace
    new = contextlib.nullcontext(kept) if kept else tempfile.TemporaryDirectory()
    with new as folder, sync_playwright() as playwright:
        page = Page(Path(folder))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            tab = browser.new_context(viewport={"width": VIEW[0], "height": VIEW[1]}, locale="en-US").new_page()
            tab.goto(page.url)
            recording = Recording(tab)
            train(recording)
            chat(recording)
        finally:
            browser.close()
            page.end()
    size = next((size for colors in (96, 64, 48, 32) if (size := recording.save(colors)) < MOST_BYTES), 0)
    if not size:
        raise SystemExit(f"The recording has {FILE.stat().st_size:,} bytes, more than {MOST_BYTES:,}.")
    print(f"{FILE}: {len(recording.pictures)} pictures, {size:,} bytes")


if __name__ == "__main__":
    main()
