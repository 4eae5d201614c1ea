"""What a user waits for in the browser: until the page can be used, and for each tab; also beside 5,000 runs. And what
the page costs while nobody does anything.

    python benchmarks/page_browser.py [--runs 5000]

Chromium, 1280 × 900. Usable: Start can be pressed and the config's check is shown. A tab: from the click until a part
of it that comes last is visible, the first time (its parts are made then) and later. Goals: at most 2.5 s to usable on
2 cores, at most 150 ms a tab. Idle: the CPU time of the tab's renderer process in 10 s, in percent of a core, with
each tab in front after all of them were opened. Goal: below 3 %.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.page import many_runs, start  # noqa: E402
from workbench.storage.workspace import Workspace  # noqa: E402

PARTS = {
    "Data": "#data-rows",
    "Runs": "#runs-count .wb-sub",
    "Chat": "#message",
    "Evaluate": "#evaluate-start",
    "Probes": "#probe-run",
    "Train": "#start",
}
ROUNDS = 5
IDLE_SECONDS = 10.0
SETTLE = 2000  # ms from usable to the first click: nobody changes tabs sooner


def usable(browser, url: str) -> tuple[float, object]:
    """Seconds until a fresh context's page can be used, and its tab."""
    tab = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US").new_page()
    began = time.perf_counter()
    tab.goto(url, wait_until="commit")
    tab.locator("#train-message .wb-note").wait_for()
    tab.locator("#start:enabled").wait_for()
    return time.perf_counter() - began, tab


def idle(tab) -> float:
    """Percent of a core that all tabs of this browser take while nobody does anything."""
    tab.wait_for_timeout(3000)  # what the last action began
    renderers = [p for p in psutil.Process().children(recursive=True) if "--type=renderer" in p.cmdline()]
    spent = lambda: sum(sum(p.cpu_times()[:2]) for p in renderers if p.is_running())  # noqa: E731
    before, began = spent(), time.perf_counter()
    tab.wait_for_timeout(1000 * IDLE_SECONDS)
    return 100 * (spent() - before) / (time.perf_counter() - began)


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
            times = []
            for number in range(ROUNDS):
                seconds, tab = usable(browser, url)
                times.append(seconds)
                if number < ROUNDS - 1:
                    tab.context.close()
            spread = f"{min(times):.2f} to {max(times):.2f}"
            load = os.getloadavg()[0]
            print(f"(load of this machine: {load:.1f} on {os.cpu_count()} cores)")
            print(f"{runs:,} runs: usable after {statistics.median(times):.2f} s (of {ROUNDS}: {spread})")
            if not runs:
                print(f"idle, as it was opened: {idle(tab):.1f} % of a core")
            tab.wait_for_timeout(SETTLE)
            switches = {name: [tab.evaluate(SWITCH, [name, part])] for name, part in PARTS.items()}
            for _ in range(ROUNDS):
                for name, part in PARTS.items():
                    tab.wait_for_timeout(300)
                    switches[name].append(tab.evaluate(SWITCH, [name, part]))
            for name, (first, *later) in switches.items():
                print(
                    f"{runs:,} runs: {name:8} {first:5.0f} ms the first time, then {statistics.median(later):5.0f} ms"
                )
            for name, part in PARTS.items():
                tab.evaluate(SWITCH, [name, part])
                print(f"{runs:,} runs: idle, {name} in front: {idle(tab):.1f} % of a core", flush=True)
            tab.context.close()
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
