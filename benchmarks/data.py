"""A JSONL of 1,000,000 rows and 1 GB: time of `data check`, and of the first rows of `data preview`; memory of all processes together.

python benchmarks/data.py [ROWS]
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil


def measure(*arguments) -> tuple[float, int]:
    """`(seconds, most bytes of a command's processes together)`; shared pages count for each."""
    started, most = time.monotonic(), 0
    process = psutil.Popen([sys.executable, "-m", "workbench", "data", *map(str, arguments)], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            most = max(most, sum(p.memory_info().rss for p in family))
        except psutil.Error:
            pass
        time.sleep(0.05)
    return time.monotonic() - started, most


with tempfile.TemporaryDirectory() as folder:
    file, rows = Path(folder) / "big.jsonl", int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with open(file, "w") as out:
        for number in range(rows):
            out.write(json.dumps({"instruction": f"Question {number}?", "output": "word " * 190}) + "\n")
    print(f"{rows:,} rows, {file.stat().st_size / 1e9:.2f} GB")
    seconds, most = measure("check", file, "--workspace", folder)
    print(f"check: {seconds:.1f} s, {most / 2**20:.0f} MiB")
    if len(sys.argv) > 2:
        seconds, most = measure("preview", file, "--model", sys.argv[2], "--workspace", folder)
        print(f"preview, first rows: {seconds:.1f} s, {most / 2**20:.0f} MiB")
