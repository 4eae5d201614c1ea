"""Fine-tuning speed on rows of mixed lengths, as chat datasets have them, on one NVIDIA GPU, in 4 bits.

python benchmarks/mixed_lengths.py data FOLDER
    640 rows (log-normal, mean about 550 tokens with the template, longest 4,000) beside what `moe_train.py make`
    writes
python benchmarks/mixed_lengths.py ours FOLDER [--model FOLDER] [--set k=v …]
    20 steps of 16 rows through `python -m workbench train`: real tokens/s (padding does not count), GiB, seconds
    to the first step
python benchmarks/mixed_lengths.py shapes FOLDER
    tiny random models of many kinds, each as a run does it and with padded rows, eager attention and nothing
    compiled or recorded: how far the losses of 30 steps on bundled conversations are apart, and what fell back
"""

import argparse
import itertools
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

STEPS = 20
TELLING = ("Rows are", "A step needs", "layers keep", "Steps cannot", "Ready for", "will be compiled")

SMALL = {
    "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 256, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ROUTED = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1}
LATENT = {
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "num_key_value_heads": 4,
}
KINDS = {
    "llama": {},
    "qwen3": {},
    "glm4": {},
    "mistral": {"sliding_window": 64},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "glm4_moe": ROUTED | {"n_group": 1, "topk_group": 1},
    "deepseek_v2": ROUTED | LATENT | {"q_lora_rank": None, "topk_method": "greedy", "head_dim": 32},
    "deepseek": ROUTED | {"num_key_value_heads": 4},
    "gemma2": {},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64},
}


def data(folder: Path) -> None:
    """Write the rows and register them as `mixed`."""
    lengths, letters = random.Random(3), random.Random(4)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    with open(folder / "data" / "mixed.jsonl", "w") as file:
        for _ in range(640):
            length = min(4000, max(24, int(lengths.lognormvariate(5.9, 0.9))))
            text = "".join(chr(97 + letters.randrange(26)) for _ in range(length))
            file.write(json.dumps({"instruction": "go", "output": text}) + "\n")
    info = folder / "data" / "dataset_info.json"
    known = json.loads(info.read_text()) if info.exists() else {}
    info.write_text(json.dumps(known | {"mixed": {"file_name": "mixed.jsonl"}}))


def run(folder: Path, values: dict) -> dict:
    """One run of the real trainer process; its log lines and what they came to."""
    import yaml

    workspace = folder / f"w-{time.time_ns()}"
    workspace.mkdir(parents=True)
    (workspace / "run.yaml").write_text(yaml.safe_dump(values | {"save_strategy": "no", "plot_loss": False}))
    command = [sys.executable, "-m", "workbench", "train", str(workspace / "run.yaml"), "--workspace", str(workspace)]
    began = time.time()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if not (workspace / "runs").exists():
        return {"error": done.stderr}
    (found,) = (workspace / "runs").iterdir()
    log = (found / "running_log.txt").read_text()
    if done.returncode:
        return {"error": "\n".join(log.splitlines()[-12:])}
    rows = [json.loads(line) for line in (found / "trainer_log.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    return {
        "rows": rows,
        "seconds": round(time.time() - began),
        "said": [line[20:] for line in log.splitlines() if any(word in line for word in TELLING)],
        "warning": json.loads((found / "state.json").read_text()).get("warning", ""),
    }


def ours(folder: Path, model: Path, overrides: list[str]) -> dict:
    """Real tokens/s over the last three quarters of the steps."""
    from workbench.config.run_config import parse_overrides

    values = {
        "model_name_or_path": str(model),
        "dataset_dir": str(folder / "data"),
        "dataset": "mixed",
        "template": "deepseek",
        "quantization_bit": 4,
        "cutoff_len": 4096,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "lora_rank": 16,
        "lora_alpha": 16,
        "lora_target": "q_proj,kv_a_proj_with_mqa,kv_b_proj,o_proj",
        "logging_steps": 1,
        "max_steps": STEPS,
        "torch_compile": "on",
    }
    found = run(folder, values | parse_overrides(overrides))
    if "error" in found:
        return found
    rows = found.pop("rows")
    first, last = rows[len(rows) // 4], rows[-1]
    tokens = last["total_tokens"] - first["total_tokens"]
    return {
        "real_tokens_per_second": round(tokens / (last["elapsed_seconds"] - first["elapsed_seconds"])),
        "peak_gib": last["peak_memory"],
        "first_step_after": round(rows[0]["elapsed_seconds"]),
        "losses": [round(row["loss"], 4) for row in (rows[0], last)],
        **found,
    }


def shapes(folder: Path, names: list[str]) -> None:
    """One line for each kind of model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from tests.tiny import make_tiny_model
    from workbench.models import deepseek_moe

    deepseek_moe.install()
    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(folder / "tokenizer"))
    for kind in names or KINDS:
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **(SMALL | KINDS[kind]))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model_folder = folder / kind
        shutil.rmtree(model_folder, ignore_errors=True)
        model.save_pretrained(model_folder)
        tokenizer.save_pretrained(model_folder)
        values = {
            "model_name_or_path": str(model_folder),
            "dataset_dir": str(ROOT / "data"),
            "dataset": "abilities",
            "template": "chatml",
            "quantization_bit": None if kind == "gpt_oss" else 4,  # whose experts are not packed yet
            "cutoff_len": 1024,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "learning_rate": 1e-3,
            "lora_rank": 8,
            "lora_target": "q_proj,o_proj",
            "logging_steps": 1,
            "max_steps": 30,
            "fp16": kind == "deepseek",
            "torch_compile": "on",
        }
        plain = {"torch_compile": "off", "cuda_graphs": "off", "flash_attn": "disabled"}
        fast, slow = run(folder, values), run(folder, values | plain)
        if "error" in fast or "error" in slow:
            print(f"{kind}: failed", (fast.get("error") or slow.get("error"))[-600:], flush=True)
            continue
        pairs = list(zip(fast["rows"], slow["rows"], strict=True))
        apart = [abs(a["loss"] - b["loss"]) for a, b in pairs]
        ours, padded = (1e3 * step_seconds(found["rows"]) for found in (fast, slow))
        print(
            f"{kind}: loss {pairs[0][0]['loss']:.4f} to {pairs[-1][0]['loss']:.4f}, at most {max(apart):.4f} apart;"
            f" {ours:.0f} ms a step, padded and from Python {padded:.0f};",
            fast["warning"] or "nothing fell back",
            flush=True,
        )


def step_seconds(rows: list[dict]) -> float:
    """The median of the last two thirds."""
    late = [row["elapsed_seconds"] for row in rows[len(rows) // 3 :]]
    return statistics.median(b - a for a, b in itertools.pairwise(late))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "ours", "shapes"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--kind", action="append", default=[])
    options = parser.parse_args()
    if options.what == "data":
        data(options.folder)
    elif options.what == "ours":
        model = options.model or options.folder / "v2-lite"
        print("ours", options.set, json.dumps(ours(options.folder, model, options.set)), flush=True)
    else:
        shapes(options.folder, options.kind)


if __name__ == "__main__":
    main()
