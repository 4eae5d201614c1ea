"""Decoding speed of the engine: streams side by side, a long prompt, a known beginning; beside llama.cpp.

    python benchmarks/chat_speed.py [--workspace FOLDER] [--threads 1] [--rounds 5] [--node FOLDER] [--one]
        [--set key=value]
    python benchmarks/chat_speed.py --gpu --model FOLDER --set quantization_bit=4 --rounds 1

On the CPU without `--gpu`. The demo model (SmolLM2-135M), greedy, in this process, without HTTP. Each round measures
everything once, llama.cpp's among it, so that whatever else the machine does meets all of them; printed are medians
over the rounds, and what each is to the same round's one stream. `--node`: a folder where
`npm install node-llama-cpp @node-llama-cpp/linux-x64` ran; llama.cpp decodes the demo's own GGUF (Q4_1) on the same
number of threads. Tokens per second of CPU time tell more than those of the clock on a machine that others use; they
are printed for one thread.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
TEXT = "The history of the city begins in the year when the first settlers came to the river and built "
TOKENS = 64
LLAMA = """
import {getLlama} from "node-llama-cpp";
const threads = Number(process.argv[3]);
const llama = await getLlama({gpu: false, build: "never", maxThreads: threads});
const model = await llama.loadModel({modelPath: process.argv[2]});
const context = await model.createContext({contextSize: 2048, threads});
const tokens = model.tokenize(process.argv[4]);
let n = 0, first = 0, cpu = 0;
for await (const t of context.getSequence().evaluate(tokens, {temperature: 0})) {
  if (n == 0) { first = performance.now(); cpu = process.cpuUsage(); }
  if (++n >= 64) break;
}
const used = process.cpuUsage(cpu);
console.log(JSON.stringify([(n - 1) * 1000 / (performance.now() - first), (n - 1) * 1e6 / (used.user + used.system)]));
process.exit(0)
"""


def llama_cpp(node: Path, threads: int) -> tuple[float, float]:
    """Tokens per second of the clock and of CPU time, of llama.cpp."""
    import json

    from workbench.models.locate import demo_package

    script = node / "chat_speed.mjs"
    script.write_text(LLAMA)
    command = ["node", str(script), str(demo_package()), str(threads), TEXT]
    out = subprocess.run(command, cwd=node, capture_output=True, text=True, check=True).stdout
    return tuple(json.loads(out.strip().splitlines()[-1]))


def jobs_of(count: int, tokens: int, text: str = TEXT, **more):
    from workbench.engine.backend import Job, Sampling

    sampling = {"max_tokens": tokens, "temperature": 0.0} | more
    return [Job(None, [], Sampling(**sampling), prompt=f"{number} {text}") for number in range(count)]


def streams(backend, jobs) -> tuple[float, float]:
    """Tokens per second of the clock and of CPU time, all jobs together, after their first tokens."""
    backend.call(lambda: [backend.submit(job) for job in jobs])
    firsts = [next(iter(job)) for job in jobs]
    began, cpu = time.perf_counter(), time.process_time()
    before = sum(job.completion_tokens for job in jobs)
    for job in jobs:
        for _ in job:
            pass
    count = sum(job.completion_tokens for job in jobs) - before
    assert all(firsts)
    return count / (time.perf_counter() - began), count / (time.process_time() - cpu)


def first_token(backend, prompt: list[int]) -> float:
    """Seconds until the first token of a prompt."""
    from workbench.engine.backend import Job, Sampling

    began = time.perf_counter()
    job = backend.submit(Job(None, [], Sampling(max_tokens=1, temperature=0.0), prompt=prompt))
    list(job)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=Path("/tmp/workbench-chat-benchmark"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--node", type=Path)
    parser.add_argument("--model", help="another model than the demo's")
    parser.add_argument("--gpu", action="store_true", help="where there is one; the clock's figures count then")
    parser.add_argument("--set", action="append", default=[], metavar="key=value")
    parser.add_argument("--one", action="store_true", help="one stream alone, and llama.cpp's")
    options = parser.parse_args()
    if not options.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    from workbench.config.options import EngineConfig
    from workbench.config.run_config import parse_overrides, validated
    from workbench.engine.batching.scheduler import backend_of
    from workbench.engine.transformers_backend import TransformersDecoder
    from workbench.models.demo import ensure_demo_model
    from workbench.storage.workspace import Workspace

    torch.set_num_threads(options.threads)
    place = Workspace(options.workspace).create()
    began = time.perf_counter()
    model = options.model or ensure_demo_model(place, lambda phase, share: None)
    config = validated({"model_name_or_path": str(model)} | parse_overrides(options.set), EngineConfig)
    backend = backend_of(TransformersDecoder(config, place, lambda *_: None, print), print)
    loaded = time.perf_counter() - began
    began = time.perf_counter()
    first_token(backend, [5, 6, 7])
    print(f"Loaded in {loaded:.1f} s; the first answer's first token after {time.perf_counter() - began:.3f} s.")
    long = backend.decoder.tokenizer(TEXT * 400)["input_ids"][:4096]
    found: dict[str, list] = {}
    for number in range(options.rounds):
        found.setdefault("one stream", []).append(streams(backend, jobs_of(1, TOKENS)))
        if options.node:
            found.setdefault("llama.cpp, one stream", []).append(llama_cpp(options.node, options.threads))
        if options.one:
            continue
        for count in (8, 32):
            found.setdefault(f"{count} streams", []).append(streams(backend, jobs_of(count, TOKENS)))
        sampled = jobs_of(8, TOKENS, temperature=0.7, top_p=0.95)
        found.setdefault("8 streams, temperature 0.7, top_p 0.95", []).append(streams(backend, sampled))
        measured = jobs_of(8, TOKENS, logprobs=5)
        found.setdefault("8 streams with logprobs", []).append(streams(backend, measured))
        prompt = [number + 10, *long[1:]]
        for what in ("prompt of 4,096 tokens", "the same, its beginning known"):
            found.setdefault(what, []).append(first_token(backend, prompt))
    print("\n| what | clock | CPU time | × one stream |\n| --- | --- | --- | --- |")
    for what, rows in found.items():
        if isinstance(rows[0], tuple):
            wall, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
            side = 1 if options.threads == 1 else 0  # the CPU time of several threads also counts their waiting
            ratios = [row[side] / one[side] for row, one in zip(rows, found["one stream"], strict=True)]
            of_cpu = f"{cpu:.1f}" if options.threads == 1 else ""
            print(f"| {what} | {wall:.1f} tokens/s | {of_cpu} | {statistics.median(ratios):.2f} |")
        else:
            print(f"| {what} | {statistics.median(rows):.3f} s to the first token | | |")


if __name__ == "__main__":
    main()
