"""Decoding speed of the engine on the CPU demo, beside `transformers serve` in the same run; what confidence costs; 8
clients.

    python benchmarks/chat.py [--workspace FOLDER] [--rounds 5]

Both servers run at the same time, and the same greedy requests of 96 tokens (short and long prompts) go to each in
turn, so that whatever else the machine does meets both. Prints tokens/s after the first token and seconds to the first
token: medians over the rounds. float32 on the CPU for both.
"""

import argparse
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
TOKENS = 96
PROMPTS = {
    "short": "Count from one to fifty in words.",
    "long": "Summarize: " + "The quick brown fox jumps over the lazy dog. " * 60,
}


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def wait_for(url: str, process: subprocess.Popen) -> None:
    import httpx

    while process.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.3)
    raise SystemExit(f"a server ended with {process.returncode}")


def timed(url: str, model: str, prompt: str, **more) -> tuple[float, float]:
    """Seconds to the first token, and tokens/s after it."""
    import openai

    client = openai.OpenAI(base_url=url, api_key="x", max_retries=0)
    began, first, count = time.perf_counter(), None, 0
    messages = [{"role": "user", "content": prompt}]
    for chunk in client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=TOKENS,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        **more,
    ):
        if chunk.choices and chunk.choices[0].delta.content and first is None:
            first = time.perf_counter()
        if chunk.usage:
            count = chunk.usage.completion_tokens
    return first - began, (count - 1) / (time.perf_counter() - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("/tmp/workbench-chat-benchmark"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    from workbench.models.demo import ensure_demo_model
    from workbench.storage.workspace import Workspace

    model = ensure_demo_model(Workspace(options.workspace).create(), lambda phase, share: None)
    ours, theirs = free_port(), free_port()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": ROOT}
    servers = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "workbench",
                "serve",
                str(model),
                "--port",
                str(ours),
                "--workspace",
                str(options.workspace),
            ],
            **quiet,
        ),
        subprocess.Popen(
            [
                str(Path(sys.executable).with_name("transformers")),
                "serve",
                str(model),
                "--port",
                str(theirs),
                "--device",
                "cpu",
                "--dtype",
                "float32",
            ],
            **quiet,
        ),
    ]
    try:
        wait_for(f"http://127.0.0.1:{ours}/v1/models", servers[0])
        wait_for(f"http://127.0.0.1:{theirs}/health", servers[1])
        ways = {
            "workbench, with confidence": (ours, {"logprobs": True, "top_logprobs": 5}),
            "workbench": (ours, {}),
            "transformers serve": (theirs, {}),
        }
        print("| prompt | server | first token, s | tokens/s |\n| --- | --- | --- | --- |")
        for name, prompt in PROMPTS.items():
            found = {way: [] for way in ways}
            for _ in range(options.rounds + 1):
                for way, (port, more) in ways.items():
                    found[way].append(
                        timed(f"http://127.0.0.1:{port}/v1", model.name if port == ours else str(model), prompt, **more)
                    )
            for way, rows in found.items():
                firsts, rates = zip(*rows[1:], strict=True)  # the first round warms up
                print(
                    f"| {name} | {way} | {statistics.median(firsts):.3f} | {statistics.median(rates):.1f} |", flush=True
                )
        taken = [0.0] * 8
        threads = [
            threading.Thread(
                target=lambda i=i: taken.__setitem__(
                    i, timed(f"http://127.0.0.1:{ours}/v1", model.name, PROMPTS["short"])[0]
                )
            )
            for i in range(8)
        ]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(
            f"\n8 clients at once: all done in {time.perf_counter() - began:.1f} s; first tokens after {min(taken):.2f}"
            f" to {max(taken):.2f} s"
        )
    finally:
        for server in servers:
            server.terminate()


if __name__ == "__main__":
    main()
