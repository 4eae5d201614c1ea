"""Whether the page's memory stays flat: tabs that poll for half an hour while a run goes on.

    python benchmarks/soak_page.py [--minutes 30 --clients 20 --stay 300]

Each client does what an open tab does: it loads the page, holds the heartbeat, and asks all timers at their own pace.
It is closed after `--stay` seconds and another one opens in its place. A run writes a line to both of its logs every
second. Prints the memory of the page's process every minute, the requests, and the end against minute 5. Goal: within
10 %. Exit code 1 if not.
"""

import argparse
import asyncio
import json
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from workbench.config.run_config import validated  # noqa: E402
from workbench.runs.run import create_run  # noqa: E402
from workbench.runs.state import own_process  # noqa: E402
from workbench.storage.workspace import Workspace  # noqa: E402

ALLOWED = 1.10  # of the memory at minute 5
count = {"requests": 0, "failed": 0, "tabs": 0, "reconnected": 0}


def timers(config: dict, run_id: str) -> list[tuple[float, int, list]]:
    """`(seconds, event, inputs)` of the page's timers, as a tab sends them that looks at the run."""
    parts = {c["id"]: c["props"] for c in config["components"]}
    found = []
    for event in config["dependencies"]:
        for target, name in event["targets"]:
            if name == "tick":
                data = [
                    run_id if parts[i].get("elem_id") in ("run-list", "runs-selected") else parts[i].get("value")
                    for i in event["inputs"]
                ]
                found.append((float(parts[target].get("value") or 1), event["id"], data))
    return found


async def tab(url: str, run_id: str, seconds: float) -> None:
    """One tab from its opening to its end."""
    session, until = secrets.token_hex(6), time.monotonic() + seconds
    count["tabs"] += 1
    headers = {"origin": url, "sec-fetch-site": "same-origin"}
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=60, limits=httpx.Limits(max_connections=None)
    ) as client:
        await client.get("/")
        clocks = timers((await client.get("/config")).json(), run_id)

        async def heartbeat() -> None:
            async with client.stream("GET", f"/gradio_api/heartbeat/{session}", timeout=None) as answer:
                async for _ in answer.aiter_raw():
                    pass

        async def ask(every: float, event: int, data: list) -> None:
            while time.monotonic() < until:
                body = {"data": data, "fn_index": event, "session_hash": session}
                try:
                    answer = await client.post("/gradio_api/run/predict", json=body)
                except (
                    httpx.ReadError,
                    httpx.RemoteProtocolError,
                ):  # kept too long for the server: a browser connects anew
                    count["reconnected"] += 1
                    answer = await client.post("/gradio_api/run/predict", json=body)
                count["requests"] += 1
                count["failed"] += answer.status_code != 200
                await asyncio.sleep(every)

        beating = asyncio.create_task(heartbeat())
        await asyncio.gather(*(ask(*clock) for clock in clocks))
        beating.cancel()


async def tabs(url: str, run_id: str, number: int, options) -> None:
    """One place at the page: tab after tab."""
    until, stay = time.monotonic() + options.minutes * 60, options.stay * (0.5 + number / options.clients)
    while (left := until - time.monotonic()) > 0:
        await tab(url, run_id, min(left, stay))


async def write(run, until: float) -> None:
    step = 0
    while time.monotonic() < until:
        step += 1
        with open(run.metrics, "a") as metrics, open(run.log, "a") as log:
            metrics.write(
                json.dumps(
                    {"current_steps": step, "total_steps": 100_000, "loss": 3 / step, "lr": 1e-4, "throughput": 200.0}
                )
                + "\n"
            )
            log.write(f"2026-01-01 00:00:00 step {step}/100000  loss {3 / step:.4f}\n")
        await asyncio.sleep(1)


async def watch(process: psutil.Process, minutes: float) -> list[float]:
    """MB of the page's process at each minute."""
    found, began = [], time.monotonic()
    while time.monotonic() - began < minutes * 60 - 1:
        await asyncio.sleep(60 - (time.monotonic() - began) % 60)
        found.append(process.memory_info().rss / 1e6)
        print(
            f"minute {len(found):3}: {found[-1]:6.1f} MB, {count['requests']:,} requests, {count['tabs']} tabs opened",
            flush=True,
        )
    return found


async def soak(url: str, run, process: psutil.Process, options) -> list[float]:
    until = time.monotonic() + options.minutes * 60
    everybody = [asyncio.create_task(tabs(url, run.id, number, options)) for number in range(options.clients)]
    found, *_ = await asyncio.gather(watch(process, options.minutes), write(run, until), *everybody)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--stay", type=float, default=300.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(folder).create()
        run = create_run(workspace, validated({"model_name_or_path": "m", "dataset": "d"}))
        run.update(state="running", step=1, total_steps=100_000, **own_process())
        page = subprocess.Popen(
            [sys.executable, "app.py", "--port", "0", "--workspace", folder],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        url = page.stdout.readline().split()[2]
        try:
            found = asyncio.run(soak(url, run, psutil.Process(page.pid), options))
        except httpx.HTTPError as error:
            time.sleep(1)
            print(f"The page stopped answering ({type(error).__name__}); its exit code: {page.poll()}")
            return 1
        finally:
            page.terminate()
            page.wait()
    early = found[min(4, len(found) - 1)]
    print(
        f"minute {min(5, len(found))}: {early:.1f} MB; end: {found[-1]:.1f} MB, {found[-1] / early - 1:+.1%};"
        f" {count['requests']:,} requests, {count['failed']} failed, {count['reconnected']} connected anew,"
        f" {count['tabs']} tabs"
    )
    return int(found[-1] > ALLOWED * early or count["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
