"""DeepSeek-V2's (236B) shape with a few layers on two GPUs: divided weights in training, `device_map: auto` in chat,
and what the estimates say of each card's memory.

    python benchmarks/v2_on_two.py make FOLDER [--layers 6] [--tiny]
        random bf16 weights of the exact layer shape (7.6 GB for each layer with experts), rows of mixed lengths
    python benchmarks/v2_on_two.py train FOLDER [--set k=v …]
        rows one by one with the least memory: one card, two that share the weights, two with `device_map: auto`
    python benchmarks/v2_on_two.py chat FOLDER
        one card, and two with `device_map: auto`: tokens a second, GiB on each, and how far apart their logits are

Weights are random: the loss means nothing. `--devices cpu --devices cpu,cpu` with `--tiny` tries `train` without a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from benchmarks import host_weights, mixed_lengths, moe_train  # noqa: E402
from benchmarks.several_gpus import LEAN, PLAIN  # noqa: E402

NAME = "v2"
GIB = 1 << 30
TOKENS = 512
SCALE = 1.0  # of what routed experts give; with 16, a random router's choice between two alike decides everything


def anatomy_of(folder: Path):
    from workbench.models.anatomy.shapes import Anatomy
    from workbench.models.anatomy.sizes import read_sizes

    return Anatomy(read_sizes(json.loads((folder / NAME / "config.json").read_text())).sizes)


def card_bytes() -> int:
    """Of the first card, or of a usual one."""
    from workbench.models.cost.device import card_memory, cards

    return cards()[0].memory if cards() else card_memory(80)


def train(folder: Path, devices: list[str], overrides: list[str], only: str) -> None:
    """A line for each way to train."""
    one, two = devices
    ways = {
        f"one ({one})": [f"devices={one}"],
        f"two share the weights ({two})": [f"devices={two}", "weights_on=shared"],
        f"device_map: auto ({two})": [f"devices={two}", "device_map=auto"],
    }
    print("| training | tokens/s | GiB, fullest card | estimate |\n| --- | --- | --- | --- |", flush=True)
    for said, options in ways.items():
        if only not in said:
            continue
        changes = [*LEAN, *PLAIN, f"lora_target={host_weights.TARGETS}", "max_steps=8", *options, *overrides]
        found = mixed_lengths.ours(folder, folder / NAME, changes)
        if "error" in found:
            print(f"| {said} | failed: {' '.join(found['error'].split())[-600:]} | | |", flush=True)
            continue
        estimate = _estimate(folder, changes, len(two.split(",")) if "two" in said else 1, "auto" in said)
        print(f"| {said} | {found['real_tokens_per_second']:,} | {found['peak_gib']} | {estimate:.2f} |", flush=True)


def _estimate(folder: Path, overrides: list[str], processes: int, split: bool) -> float:
    from workbench.config.run_config import parse_overrides, validated
    from workbench.models.cost.batch import Rows
    from workbench.models.cost.training import Gpu, TrainingMemory

    values = {
        "model_name_or_path": str(folder / NAME), "dataset": "mixed", "quantization_bit": 4, "cutoff_len": 4096,
        "lora_rank": 16, "lora_alpha": 16,
    }  # fmt: skip
    config = validated(values | parse_overrides(overrides))
    lengths = mixed_lengths.lengths_of_rows(640)
    rows = Rows(len(lengths), sum(lengths), max(lengths), "counted")
    gpu = Gpu(card_bytes(), 2 if split else 1, processes)
    return TrainingMemory(anatomy_of(folder), config, rows, gpu).estimate().allocated / GIB


def chat(folder: Path, ways: list[str]) -> None:
    """A line for each way to load it, each in a process of its own."""
    print("| chat | tokens/s | first token | load | GiB of each | estimate |\n| --- | --- | --- | --- | --- | --- |")
    for devices in ways:
        command = [sys.executable, __file__, "_chat", str(folder), "--devices", devices]
        visible = os.environ | {"CUDA_VISIBLE_DEVICES": devices}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=visible)
        lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
        print(lines[-1] if lines else f"| {devices} | failed: {(done.stdout + done.stderr)[-1500:]} |", flush=True)
        if not lines:
            continue
        print("\n".join(line for line in done.stdout.splitlines() if line.startswith("said ")), flush=True)
    if not all((folder / f"logits-{count}.pt").exists() for count in (1, 2)):
        return
    import torch

    one, two = (torch.load(folder / f"logits-{count}.pt") for count in (1, 2))
    same = float((one.argmax(-1) == two.argmax(-1)).float().mean())
    print(
        f"logits of two against one: {float((one - two).norm() / one.norm()):.1e}; likeliest tokens alike: {same:.0%}"
    )


def _chat(folder: Path, devices: str) -> None:
    import chat_speed
    import torch

    from workbench.config.options import EngineConfig
    from workbench.config.run_config import validated
    from workbench.engine.batching.scheduler import backend_of
    from workbench.engine.transformers_backend import TransformersDecoder
    from workbench.models.cost.chat import chat_memory
    from workbench.storage.workspace import Workspace

    values = {"model_name_or_path": str(folder / NAME), "quantization_bit": 4, "devices": devices}
    config, count = validated(values, EngineConfig), len(devices.split(","))
    workspace, began = Workspace(folder / "workspace").create(), time.perf_counter()
    said: list[str] = []
    backend = backend_of(TransformersDecoder(config, workspace, lambda *_: None, said.append), said.append)
    load = time.perf_counter() - began
    first = chat_speed.first_token(backend, [5, 6, 7])
    speed = chat_speed.streams(backend, chat_speed.jobs_of(1, TOKENS))[0]
    taken = [(total - free) / GIB for free, total in map(torch.cuda.mem_get_info, range(count))]
    ids = torch.arange(5, 261)[None].cuda()

    def logits():
        with torch.inference_mode():
            return backend.decoder.base(ids, use_cache=False).logits[0].float().cpu()

    def few_rows():  # decoding's kernels read the first 40 tokens, training's products all 256
        with torch.inference_mode():
            few, many = (backend.decoder.base(ids[:, :n], use_cache=False).logits[0, :40].float() for n in (40, 256))
        return float((few - many).norm() / many.norm())

    torch.save(backend.call(logits), folder / f"logits-{count}.pt")
    said.append(f"decoding's kernels against training's products: {backend.call(few_rows):.1e}")
    found = chat_memory(anatomy_of(folder), config, card_bytes(), True)
    without = (found.total - found.parts["cache"]) / GIB
    for line in said:
        print("said", line)
    each = ", ".join(f"{one:.2f}" for one in taken)
    whole = f"{without:.2f}, with a whole context's cache {found.total / GIB:.2f}"
    print(f"| {devices} | {speed:.0f} | {first:.2f} s | {load:.0f} s | {each} | {whole} |")
    sys.stdout.flush()
    os._exit(0)  # the scheduler's thread does not end by itself


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "train", "chat", "_chat"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--devices", action="append", help="0 and 0,1 if not given")
    parser.add_argument("--only", default="", help="ways to train whose name has this in it")
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    if given.what == "make":
        config = host_weights.sizes(given.layers, given.tiny)
        config.routed_scaling_factor = SCALE
        moe_train.make(given.folder, given.layers, config, NAME)
        mixed_lengths.data(given.folder)
    elif given.what == "train":
        train(given.folder, given.devices or ["0", "0,1"], given.set, given.only)
    elif given.what == "chat":
        chat(given.folder, given.devices or ["0", "0,1"])
    else:
        _chat(given.folder, given.devices[0])


if __name__ == "__main__":
    main()
