"""Speed and memory of DPO on a DeepSeek-V2-Lite-shaped model in 4 bits, beside TRL on the stock load and Unsloth.

    python benchmarks/moe_train.py make FOLDER           the model (random weights of the exact shape)
    python benchmarks/preference_train.py data FOLDER    pairs of twice LENGTH tokens
    python benchmarks/preference_train.py ours FOLDER    through `python -m workbench train`
    python benchmarks/preference_train.py stock FOLDER   TRL's DPOTrainer on transformers' own 4-bit load
    python benchmarks/preference_train.py unsloth FOLDER TRL's DPOTrainer on Unsloth's load, patched by it

LoRA r 16 on attention, the reference is the model without it. `ours` scores the reference before the training, the
others within each step; its seconds are printed beside. One line each: tokens/s of both answers (median of the steps
after the first four), GiB at the peak, losses. `ours` takes what memory there is to keep activations;
`--set max_gpu_memory=13` caps it.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.moe_train import TARGETS  # noqa: E402


def write_pairs(folder: Path, length: int, count: int = 96) -> None:
    """Pairs whose conversations have about `length` tokens of bytes each."""
    import random

    generator, data = random.Random(1), folder / "data"
    data.mkdir(exist_ok=True)
    text = lambda: "".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=length - 48))  # noqa: E731
    with open(data / "pairs.jsonl", "w") as file:
        for _ in range(count):
            file.write(json.dumps({"prompt": "Go on from here: ", "chosen": text(), "rejected": text()}) + "\n")
    (data / "dataset_info.json").write_text(json.dumps({"pairs": {"file_name": "pairs.jsonl"}}))


def ours(folder: Path, length: int, steps: int, overrides: list[str]) -> dict:
    import yaml

    from workbench.config.run_config import parse_overrides

    values = {
        "model_name_or_path": str(folder / "v2-lite"), "dataset_dir": str(folder / "data"), "dataset": "pairs",
        "template": "deepseek", "stage": "dpo", "quantization_bit": 4, "cutoff_len": length, "max_steps": steps,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "lora_rank": 16, "lora_alpha": 32,
        "lora_target": TARGETS, "logging_steps": 1, "save_strategy": "no", "plot_loss": False, "torch_compile": "on",
    } | parse_overrides(overrides)  # fmt: skip
    workspace = folder / f"w-{time.time_ns()}"
    workspace.mkdir()
    (workspace / "run.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "workbench", "train", str(workspace / "run.yaml"), "--workspace", str(workspace)]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    (run,) = (workspace / "runs").iterdir()
    log = (run / "running_log.txt").read_text()
    if done.returncode:
        return {"error": "\n".join((log or done.stderr).splitlines()[-25:])}
    rows = [json.loads(line) for line in (run / "trainer_log.jsonl").read_text().splitlines()]
    words = ("reference", "micro-batches", "padded", "recorded", "Ready", "A step needs")
    return {
        "tokens_per_second": round(statistics.median([row["throughput"] for row in rows if "throughput" in row][4:])),
        "peak_gib": rows[-1]["peak_memory"],
        "losses": [round(row["loss"], 4) for row in rows if "loss" in row],
        "margins": [round(row["rewards/margins"], 4) for row in rows if "rewards/margins" in row][-3:],
        "seconds": round(time.monotonic() - began),
        "said": [line for line in log.splitlines() if any(word in line for word in words)],
    }


def theirs(folder: Path, length: int, steps: int, *, unsloth: bool) -> dict:
    if unsloth:
        os.environ.update(HF_HUB_OFFLINE="1", UNSLOTH_DISABLE_STATISTICS="1", UNSLOTH_STUDIO_DISABLED="1")
        import unsloth as library

        library.PatchDPOTrainer()
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    cuda = torch.cuda.is_available()

    class Clock(TrainerCallback):
        times: list[float] = []

        def on_step_end(self, *args, **kwargs):
            if cuda:
                torch.cuda.synchronize()
            self.times.append(time.monotonic())

    source, lora = str(folder / "v2-lite"), {"r": 16, "lora_alpha": 32, "target_modules": TARGETS.split(",")}
    tokenizer, config = AutoTokenizer.from_pretrained(source), None
    if unsloth:
        model, _ = library.FastLanguageModel.from_pretrained(
            source, max_seq_length=length, load_in_4bit=True, dtype=torch.bfloat16, local_files_only=True
        )
        model = library.FastLanguageModel.get_peft_model(
            model, lora_dropout=0, use_gradient_checkpointing="unsloth", random_state=0, **lora
        )
    else:
        bits = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.bfloat16, quantization_config=bits, device_map={"": 0} if cuda else None
        )
        config = LoraConfig(task_type="CAUSAL_LM", **lora)
    rows = [json.loads(line) for line in (folder / "data" / "pairs.jsonl").read_text().splitlines()]
    arguments = DPOConfig(
        "/tmp/stock-dpo", per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=steps,
        logging_steps=1, save_strategy="no", report_to="none", bf16=cuda, use_cpu=not cuda, max_length=length,
        disable_tqdm=True, learning_rate=5e-5,
    )  # fmt: skip
    trainer = DPOTrainer(
        model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=config,
        callbacks=[Clock],
    )  # fmt: skip
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    tokens = [after["num_tokens"] - before["num_tokens"] for before, after in itertools.pairwise(logged)]
    seconds = [after - before for before, after in itertools.pairwise(Clock.times)]
    return {
        "tokens_per_second": round(statistics.median([n / s for n, s in zip(tokens, seconds, strict=False)][3:])),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if cuda else None,
        "losses": [round(row["loss"], 4) for row in logged],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "ours", "stock", "unsloth"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--set", nargs="*", default=[])
    options = parser.parse_args()
    if options.what == "data":
        write_pairs(options.folder, options.length)
    elif options.what == "ours":
        print(json.dumps(ours(options.folder, options.length, options.steps, options.set)))
    else:
        print(json.dumps(theirs(options.folder, options.length, options.steps, unsloth=options.what == "unsloth")))


if __name__ == "__main__":
    main()
