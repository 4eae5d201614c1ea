"""What the page costs: time to the first page, idle memory, one monitor tick on a log of a million lines.

    python benchmarks/page.py

Also what the Runs tab takes to list 5,000 runs of 100 logged steps, in the page's process. Prints a table. Goals: first
page within 5 s, at most 260 MB idle, at most 10 ms (median) and 40 KB a tick.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from workbench.config.run_config import validated  # noqa: E402
from workbench.runs.run import create_run  # noqa: E402
from workbench.runs.state import own_process  # noqa: E402
from workbench.storage.workspace import Workspace  # noqa: E402

LINES = 1_000_000
TICKS = 60
RUNS = 5_000


def start(workspace: Path) -> tuple[subprocess.Popen, str, float]:
    """A page process, its address, and the seconds until it served the first page."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", "0", "--workspace", str(workspace)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    url = process.stdout.readline().split()[2]
    while True:
        try:
            urllib.request.urlopen(url + "/", timeout=5).read()
            return process, url, time.monotonic() - began
        except OSError:
            time.sleep(0.02)


def row(step: int) -> str:
    values = {
        "current_steps": step,
        "total_steps": LINES,
        "loss": round(3 / (1 + step / 1e4), 5),
        "lr": 1e-4,
        "grad_norm": 0.9,
        "epoch": 1.0,
        "percentage": 1.0,
        "elapsed_time": "1:00:00",
        "remaining_time": "1:00:00",
        "throughput": 200.0,
        "total_tokens": step * 512,
        "peak_memory": 2.2,
    }
    return json.dumps(values) + "\n"


def long_run(workspace: Workspace):
    """A running run with a million lines in both logs."""
    run = create_run(workspace, validated({"model_name_or_path": "m", "dataset": "d"}))
    run.update(state="running", step=LINES, total_steps=LINES, **own_process())
    with open(run.metrics, "w") as metrics, open(run.log, "w") as log:
        for step in range(1, LINES + 1):
            metrics.write(row(step))
            log.write(f"2026-01-01 00:00:00 step {step}/{LINES}  epoch 1.00  loss 1.0000  lr 1.00e-04\n")
    return run


def ticks(url: str, run) -> tuple[list[float], list[int]]:
    """Milliseconds and answer bytes of ticks that each find a new line."""
    config = json.load(urllib.request.urlopen(url + "/config"))
    timers = [
        d
        for d in config["dependencies"]
        if any(event == "tick" for _, event in d["targets"]) and len(d["inputs"]) == 3 and len(d["outputs"]) == 7
    ]
    index, spent, sizes = timers[0]["id"], [], []
    for number in range(TICKS):
        with open(run.metrics, "a") as metrics, open(run.log, "a") as log:
            metrics.write(row(LINES + number + 1))
            log.write(f"2026-01-01 00:00:00 step {LINES + number + 1}\n")
        body = json.dumps({"data": [run.id, False, None], "fn_index": index, "session_hash": "bench"}).encode()
        request = urllib.request.Request(url + "/gradio_api/run/predict", body, {"Content-Type": "application/json"})
        began = time.perf_counter()
        answer = urllib.request.urlopen(request).read()
        spent.append(1000 * (time.perf_counter() - began))
        sizes.append(len(answer))
        assert json.loads(answer)["data"][0], "the tick sent nothing"
    return spent, sizes


def many_runs(workspace: Workspace) -> list[tuple[str, float]]:
    """Milliseconds that the Runs tab takes for 5,000 runs: to read them all, to list and sort them again, to see no
    change."""
    from workbench.ui.tabs.runs import view

    config = validated({"model_name_or_path": "m", "dataset": "d"})
    lines = "".join(row(step) for step in range(1, 101))
    for _ in range(RUNS):
        run = create_run(workspace, config)
        run.metrics.write_text(lines)
        run.update(state="finished", step=100, total_steps=100, ended=time.time())
    times = []
    for name, act in (
        ("first look", lambda: view.summaries(workspace)),
        ("filtered and sorted again", lambda: view.summaries(workspace, search="m d", sort="by_loss")),
        ("nothing changed", lambda: view.runs_token(workspace)),
    ):
        began = time.perf_counter()
        act()
        times.append((name, 1000 * (time.perf_counter() - began)))
    return times


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(folder).create()
        starts = []
        for _ in range(3):
            process, url, seconds = start(workspace.root)
            starts.append(seconds)
            time.sleep(2)
            idle = psutil.Process(process.pid).memory_info().rss / 1e6
            process.terminate()
            process.wait()
        run = long_run(workspace)
        process, url, _ = start(workspace.root)
        spent, sizes = ticks(url, run)
        busy = psutil.Process(process.pid).memory_info().rss / 1e6
        process.terminate()
        process.wait()
    print(
        f"{'start to first page':38} {statistics.median(starts):8.2f} s   (median of {len(starts)}:"
        f" {', '.join(f'{s:.2f}' for s in starts)})"
    )
    print(f"{'idle memory of the page process':38} {idle:8.0f} MB")
    print(f"{'tick, 1,000,000 lines: first look':38} {spent[0]:8.1f} ms")
    print(f"{'tick, 1,000,000 lines: median':38} {statistics.median(spent[1:]):8.1f} ms  (max {max(spent[1:]):.1f})")
    print(f"{'tick payload':38} {max(sizes) / 1000:8.1f} KB")
    print(f"{'memory after the ticks':38} {busy:8.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        for name, milliseconds in many_runs(Workspace(folder).create()):
            print(f"{f'{RUNS:,} runs: {name}':38} {milliseconds:8.0f} ms")


if __name__ == "__main__":
    main()
