"""32 clients on one engine for two minutes: nobody fails, nobody waits long, memory stays.

    python benchmarks/chat_clients.py [--workspace FOLDER] [--clients 32] [--seconds 120] [--adapters 20]

The engine serves the demo model on the CPU; each client asks again as soon as it has its answer, with prompts and
answers of several lengths, some streamed, some going away in the middle, some with an adapter. Then an adapter is
loaded under twenty names, one after the other, with an answer each. Exits with 1 when a request failed, when one
took more than twice the mean (for 24 tokens), or when memory grew by more than what the engine plans for its cache of
keys and values, or with the adapters.
"""

import argparse
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
WORDS = "river city first settlers market bridge council harbor stone winter road garden school".split()  # noqa: SIM905


def start(workspace: Path, adapter: Path | None) -> tuple[subprocess.Popen, str, float]:
    """The engine's process, its address, and the GiB that its cache may take."""
    from workbench.models.demo import ensure_demo_model
    from workbench.storage.workspace import Workspace

    model = ensure_demo_model(Workspace(workspace).create(), lambda phase, share: None)
    named = ["--adapter", f"tuned={adapter}"] if adapter else []
    command = [sys.executable, "-m", "workbench", "serve", str(model), "--port", "0", "--workspace", str(workspace)]
    process = subprocess.Popen(
        [*command, *named], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    cache = 0.0
    for line in process.stdout or ():
        if found := re.search(r"\(([\d.]+) GiB at most\)", line):
            cache = float(found[1])
        if "is ready" in line:
            threading.Thread(target=lambda: [None for _ in process.stdout or ()], daemon=True).start()
            return process, line.rsplit(" ", 1)[1].strip(), cache
    raise SystemExit(f"the engine ended with {process.wait()}")


def make_adapter(workspace: Path) -> Path:
    """A LoRA adapter of the demo model with random factors."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from workbench.models.demo import ensure_demo_model
    from workbench.storage.workspace import Workspace

    folder = workspace / "benchmark-adapter"
    if not folder.exists():
        model = AutoModelForCausalLM.from_pretrained(
            ensure_demo_model(Workspace(workspace).create(), lambda phase, share: None)
        )
        tuned = get_peft_model(model, LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.01)
        tuned.save_pretrained(folder)
    return folder


class Clients:
    """What the clients met."""

    def __init__(self, url: str, model: str):
        self.url, self.model, self.until = url, model, 0.0
        self.waits: list[float] = []  # seconds until an answer was whole, for each 24 tokens of it
        self.firsts: list[float] = []
        self.failures: list[str] = []
        self.tokens = self.gone = 0
        self._lock = threading.Lock()

    def run(self, number: int) -> None:
        client = openai.OpenAI(base_url=self.url, api_key="x", max_retries=0, timeout=300)
        dice = random.Random(number)
        while time.monotonic() < self.until:
            text = " ".join(dice.choices(WORDS, k=dice.choice((5, 20, 60))))
            began, first, count = time.monotonic(), 0.0, 0
            leaves = dice.random() < 0.1
            try:
                stream = client.chat.completions.create(
                    model="tuned" if number % 4 == 0 else self.model,
                    messages=[{"role": "user", "content": f"Write about: {text}."}],
                    max_tokens=24,
                    temperature=dice.choice((0.0, 0.7)),
                    stream=True,
                    stream_options={"include_usage": True},
                )
                for chunk in stream:
                    if chunk.choices and chunk.choices[0].delta.content and not first:
                        first = time.monotonic() - began
                        if leaves:
                            stream.close()
                            break
                    count = chunk.usage.completion_tokens if chunk.usage else count
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}"[:200])
                continue
            with self._lock:
                if leaves:
                    self.gone += 1
                elif count >= 12:
                    self.firsts.append(first)
                    self.waits.append((time.monotonic() - began) * 24 / count)
                    self.tokens += count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("/tmp/workbench-chat-benchmark"))
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--adapters", type=int, default=20)
    options = parser.parse_args()
    adapter = make_adapter(options.workspace)
    process, url, cache = start(options.workspace, adapter)
    try:
        meter = psutil.Process(process.pid)
        idle = meter.memory_info().rss
        model = next(m["id"] for m in httpx.get(f"{url}/models").json()["data"] if m["id"] != "tuned")
        clients = Clients(url, model)
        clients.until = time.monotonic() + options.seconds
        threads = [threading.Thread(target=clients.run, args=(number,)) for number in range(options.clients)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        time.sleep(options.seconds / 4)
        early = meter.memory_info().rss
        for thread in threads:
            thread.join()
        late, took = meter.memory_info().rss, time.monotonic() - began
        mean, worst = statistics.mean(clients.waits), max(clients.waits)
        print(
            f"{options.clients} clients, {took:.0f} s: {len(clients.waits)} answers, {clients.tokens / took:.0f}"
            f" tokens/s received, {clients.gone} went away, {len(clients.failures)} failed."
        )
        print(
            f"24 tokens take {mean:.2f} s in the mean, {worst:.2f} s at most ({worst / mean:.2f} ×); first"
            f" tokens {statistics.mean(clients.firsts):.2f} s, {max(clients.firsts):.2f} at most."
        )
        print(
            f"Memory: {idle / 2**20:.0f} MiB at first (the cache may take {cache:g} GiB more), {early / 2**20:.0f} MiB"
            f" after a quarter of the time, {late / 2**20:.0f} MiB at the end."
        )
        sizes = []
        for number in range(options.adapters):
            body = {"name": f"load-{number}", "path": str(adapter)}
            httpx.post(url.removesuffix("/v1") + "/adapters", json=body, timeout=120).raise_for_status()
            asked = {"model": f"load-{number}", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
            httpx.post(f"{url}/chat/completions", json=asked, timeout=120).raise_for_status()
            sizes.append(meter.memory_info().rss)
        if sizes:
            after, end = sizes[0] / 2**20, sizes[-1] / 2**20
            print(f"{len(sizes)} adapter loads: {after:.0f} MiB after the first, {end:.0f} at the end.")
        grown = late > idle + (cache + 0.4) * 2**30 or (sizes and sizes[-1] > sizes[0] * 1.02 + 2**24)
        for failure in sorted(set(clients.failures)):
            print(failure)
        if clients.failures or worst > 2 * mean or grown:
            raise SystemExit(1)
    finally:
        process.terminate()
        process.wait(20)


if __name__ == "__main__":
    main()
