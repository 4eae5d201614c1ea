"""What a user waits for in the browser: until the page can be used, and for each tab; also beside 5,000 runs.

    python benchmarks/page_browser.py [--runs 5000]

Chromium, 1280 × 900. Usable: Start can be pressed and the config's check is shown. A tab: from the click until a part
of it that comes last is visible, the first time (its parts are made then) and later. Goals: at most 2.5 s to usable on
2 cores, at most 150 ms a tab.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.page import many_runs, start  # noqa: E402
from workbench.storage.workspace import Workspace  # noqa: E402

PARTS = {
    "Data": "#data-rows",
    "Runs": "#runs-count .wb-sub",
    "Chat": "#message",
    "Probes": "#probe-run",
    "Train": "#start",
}
ROUNDS = 5


def usable(browser, url: str) -> tuple[float, object]:
    """Seconds until a fresh context's page can be used, and its tab."""
    tab = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US").new_page()
    began = time.perf_counter()
    tab.goto(url, wait_until="commit")
    tab.locator("#train-message .wb-note").wait_for()
    tab.locator("#start:enabled").wait_for()
    return time.perf_counter() - began, tab


# in the page, so that the driver's own time is not counted
SWITCH = """async ([tab, part]) => {
  const button = [...document.querySelectorAll('#tabs button[role=tab]')].find((b) => b.innerText === tab);
  const shown = () => { const node = document.querySelector(part); return node && node.offsetParent !== null; };
  const began = performance.now();
  button.click();
  while (!shown()) await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now() - began;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5000)
    count = parser.parse_args().runs
    from tests.browser.conftest import started_chromium

    with tempfile.TemporaryDirectory() as folder, started_chromium() as browser:
        workspace = Workspace(folder).create()
        for runs in (0, count):
            if runs:
                many_runs(workspace)
            process, url, _ = start(workspace.root)
            time.sleep(3)
            waits = [usable(browser, url) for _ in range(ROUNDS)]
            times = [seconds for seconds, _ in waits]
            spread = f"{min(times):.2f} to {max(times):.2f}"
            print(f"{runs:,} runs: usable after {statistics.median(times):.2f} s (of {ROUNDS}: {spread})")
            tab = waits[-1][1]
            switches = {name: [tab.evaluate(SWITCH, [name, part])] for name, part in PARTS.items()}
            for _ in range(ROUNDS):
                for name, part in PARTS.items():
                    tab.wait_for_timeout(300)
                    switches[name].append(tab.evaluate(SWITCH, [name, part]))
            for name, (first, *later) in switches.items():
                print(
                    f"{runs:,} runs: {name:8} {first:5.0f} ms the first time, then {statistics.median(later):5.0f} ms"
                )
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
