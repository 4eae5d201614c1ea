"""A JSONL of 1,000,000 rows and 1 GB: what looking at it takes, with the memory of all processes together.

python benchmarks/data.py [ROWS] [MODEL_FOLDER]

Without a model: `data check` on the command line. With one, as the page does it: the first page of rows in a fresh
process, a jump to the last rows, the number of rows; statistics (which tokenize every row), the same once more (now
kept), and a check with lengths.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from workbench.data.worker_client import DataWorker  # noqa: E402
from workbench.storage.workspace import Workspace  # noqa: E402


class Memory:
    """The most bytes that a process's children hold together while it is looked at; shared pages count for each."""

    def __enter__(self):
        self.most, self._on, self.began = 0, True, time.monotonic()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while self._on:
            total = 0
            for process in psutil.Process().children(recursive=True):
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue
            self.most = max(self.most, total)
            time.sleep(0.05)

    def __exit__(self, *_):
        self.seconds = time.monotonic() - self.began
        self._on = False
        self._thread.join()

    def __str__(self):
        return f"{self.seconds:.2f} s, {self.most / 2**20:.0f} MiB"


async def finished(job):
    """The result of a job."""
    async for answer in job:
        result = answer.get("result")
    return result


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        file, model = Path(folder) / "big.jsonl", sys.argv[2] if len(sys.argv) > 2 else ""
        with open(file, "w") as out:
            for number in range(rows):
                out.write(json.dumps({"instruction": f"Question {number}?", "output": "word " * 190}) + "\n")
        print(f"{rows:,} rows, {file.stat().st_size / 1e9:.2f} GB")
        with Memory() as taken:
            command = [sys.executable, "-m", "workbench", "data", "check", str(file), "--workspace", folder]
            subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
        print(f"data check, without lengths: {taken}")
        if not model:
            return
        worker = DataWorker(Workspace(folder, allowed=[model]).create())
        config = {"model_name_or_path": model, "dataset": str(file), "cutoff_len": 1024}
        for what, op, args in (
            ("first page of the preview, process started for it", "preview", {"start": 0, "count": 5}),
            ("the next page", "preview", {"start": 5, "count": 5}),
            ("the last page, never looked at before", "preview", {"start": rows - 5, "count": 5}),
            ("number of rows", "count", {}),
        ):
            with Memory() as taken:
                worker.ask(op, dataset=str(file), config=config, **args)
            print(f"{what}: {taken}")
        worker.end()
        for what, job in (
            ("statistics", worker.job("stats", config=config)),
            ("statistics again", worker.job("stats", config=config)),
            ("check with lengths", worker.job("check", dataset=str(file), config=config)),
        ):
            with Memory() as taken:
                asyncio.run(finished(job))
            print(f"{what}: {taken}", flush=True)


if __name__ == "__main__":
    main()
