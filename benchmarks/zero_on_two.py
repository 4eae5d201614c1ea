"""Full tuning through DeepSpeed's ZeRO on two GPUs (NCCL), beside one without it.

    python benchmarks/zero_on_two.py FOLDER [--tiny] [--devices 0 --devices 0,1] [--steps 12]

A random model of Qwen3-1.7B's shape (`memory_estimates.py`) in bfloat16, rows of mixed lengths, 16 rows in a step in
all. Needs `pip install deepspeed`. A line each for one GPU, two without ZeRO, and stages 1, 2, 3 and 3 with offload:
real tokens/s over the last three quarters of the steps, GiB of the fullest card, the first and the last loss.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from benchmarks import memory_estimates, mixed_lengths  # noqa: E402

CPU = {"device": "cpu"}
STAGES = {
    "without ZeRO": {},
    "without ZeRO, pure_bf16": {"pure_bf16": True},
    "stage 1": {"deepspeed": {"stage": 1}},
    "stage 2": {"deepspeed": {"stage": 2}},
    "stage 3": {"deepspeed": {"stage": 3}},
    "stage 3, all offloaded": {"deepspeed": {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--devices", action="append")
    parser.add_argument("--steps", type=int, default=12)
    given = parser.parse_args()
    one, two = given.devices or ["0", "0,1"]
    model = memory_estimates.make_model(given.folder, "qwen3-1.7b", given.tiny)
    mixed_lengths.data(given.folder)
    values = {
        "model_name_or_path": str(model), "dataset_dir": str(given.folder / "data"), "dataset": "mixed",
        "template": "deepseek", "finetuning_type": "full", "cutoff_len": 2048,
        "per_device_train_batch_size": 2, "logging_steps": 1, "max_steps": given.steps, "learning_rate": 1e-5,
    }  # fmt: skip
    print(
        "| full tuning | devices | tokens/s | GiB, fullest card | losses |\n| --- | --- | --- | --- | --- |", flush=True
    )
    for devices in (one, two):
        for said, options in STAGES.items():
            zero = options.get("deepspeed")
            if devices == one and zero:
                continue
            changes = {"devices": devices, "gradient_accumulation_steps": 8 // len(devices.split(","))} | options
            if zero:
                changes["deepspeed"] = json.dumps({"zero_optimization": zero})
            print(_line(said, devices, mixed_lengths.run(given.folder, values | changes)), flush=True)


def _line(said: str, devices: str, found: dict) -> str:
    if "error" in found:
        return f"| {said} | {devices} | failed: {' '.join(found['error'].split())[-700:]} | | |"
    rows = found["rows"]
    first, last = rows[len(rows) // 4], rows[-1]
    tokens = last["total_tokens"] - first["total_tokens"]
    rate = tokens / (last["elapsed_seconds"] - first["elapsed_seconds"])
    losses = f"{rows[0]['loss']:.4f}, {last['loss']:.4f}"
    return f"| {said} | {devices} | {rate:,.0f} | {last['peak_memory']} | {losses} |"


if __name__ == "__main__":
    main()
