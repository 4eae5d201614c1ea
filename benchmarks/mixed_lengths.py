"""Fine-tuning speed on rows of mixed lengths, as chat datasets have them, on one NVIDIA GPU, in 4 bits.

python benchmarks/mixed_lengths.py data FOLDER
    640 rows (log-normal, mean about 550 tokens with the template, longest 4,000) beside what `moe_train.py make`
    writes
python benchmarks/mixed_lengths.py ours FOLDER [--model FOLDER] [--set k=v …]
    20 steps of 16 rows through `python -m workbench train`: real tokens/s (padding does not count), GiB, seconds
    from the command to the first step. All calls with one FOLDER share a workspace, so only the first starts cold.
python benchmarks/mixed_lengths.py curve FOLDER
    `ours` with `max_gpu_memory` 11, 12, 16, 24, 40 and 80
python benchmarks/mixed_lengths.py dense FOLDER
    random weights of Qwen3-8B's shape as FOLDER/qwen3-8b
python benchmarks/mixed_lengths.py article FOLDER --model FOLDER
    the article's command (`presets/deepseek-moe-16b-qlora.yaml`), all of it: 5 epochs of 700 made-up Chinese
    conversations as long as the rows above
python benchmarks/mixed_lengths.py agree FOLDER
    the demo model, 100 steps of real text, fast against plain: how far the losses are apart
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
TELLING = ("Rows are", "A step needs", "layers keep", "Steps cannot", "Ready for", "will be compiled", "4-bit weights")
CURVE = (11, 12, 16, 24, 40, 80)

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


def lengths_of_rows(count: int) -> list[int]:
    """Log-normal, as chat datasets have them; letters, which are tokens of the random models."""
    lengths = random.Random(3)
    return [min(4000, max(24, int(lengths.lognormvariate(5.9, 0.9)))) for _ in range(count)]


def write_rows(folder: Path, name: str, rows: list[dict]) -> None:
    """Write a dataset and register it."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    with open(folder / "data" / f"{name}.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    info = folder / "data" / "dataset_info.json"
    known = json.loads(info.read_text()) if info.exists() else {}
    info.write_text(json.dumps(known | {name: {"file_name": f"{name}.jsonl"}}))


def data(folder: Path) -> None:
    """The rows, as `mixed`."""
    letters = random.Random(4)
    texts = ("".join(chr(97 + letters.randrange(26)) for _ in range(length)) for length in lengths_of_rows(640))
    write_rows(folder, "mixed", [{"instruction": "go", "output": text} for text in texts])


def chinese(folder: Path, name: str) -> None:
    """700 conversations of common characters, each three tokens for a tokenizer of bytes; a third is the question."""
    letters = random.Random(4)
    texts = (
        "".join(chr(0x4E00 + letters.randrange(2000)) for _ in range(length // 3)) for length in lengths_of_rows(700)
    )
    rows = [{"instruction": text[: len(text) // 3], "output": text[len(text) // 3 :]} for text in texts]
    write_rows(folder, name, rows)


def dense(folder: Path) -> None:
    """Random weights of Qwen3-8B's shape, with the tokenizer that `moe_train.py make` writes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.for_model(
        "qwen3", vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "qwen3-8b", max_shard_size="2GB")
    AutoTokenizer.from_pretrained(folder / "v2-lite").save_pretrained(folder / "qwen3-8b")


def run(folder: Path, values: dict) -> dict:
    """One run of the real trainer process; its log lines and what they came to."""
    import yaml

    workspace = folder / "workspace"
    workspace.mkdir(parents=True, exist_ok=True)
    form = folder / f"run-{time.time_ns()}.yaml"
    form.write_text(yaml.safe_dump({"save_strategy": "no", "plot_loss": False} | values))
    command = [sys.executable, "-m", "workbench", "train", str(form), "--workspace", str(workspace)]
    known = set((workspace / "runs").glob("*"))
    began = time.time()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    first_step = None
    while process.poll() is None:
        if first_step is None:
            logs = [path / "trainer_log.jsonl" for path in set((workspace / "runs").glob("*")) - known]
            if any('"loss"' in log.read_text() for log in logs if log.exists()):
                first_step = round(time.time() - began, 1)
        time.sleep(0.1)
    new = set((workspace / "runs").glob("*")) - known
    if not new:
        return {"error": process.stderr.read()}
    (found,) = new
    log = (found / "running_log.txt").read_text()
    if process.returncode:
        return {"error": "\n".join(log.splitlines()[-12:])}
    rows = [json.loads(line) for line in (found / "trainer_log.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    return {
        "rows": rows,
        "seconds": round(time.time() - began),
        "first_step_after_the_command": first_step,
        "said": [line[20:] for line in log.splitlines() if any(word in line for word in TELLING)],
        "warning": json.loads((found / "state.json").read_text()).get("warning", ""),
    }


def ours(folder: Path, model: Path, overrides: list[str]) -> dict:
    """Real tokens/s over the last three quarters of the steps."""
    from workbench.config.run_config import parse_overrides
    from workbench.train.estimates.record import fullest

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
        "peak_gib": fullest(last),
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


def article(folder: Path, model: Path, overrides: list[str]) -> dict:
    """The article's run from the command to the saved adapter."""
    import yaml

    from workbench.config.run_config import parse_overrides

    chinese(folder, "oaast_sft_zh")
    values = yaml.safe_load((ROOT / "presets" / "deepseek-moe-16b-qlora.yaml").read_text(encoding="utf-8"))
    places = {"model_name_or_path": str(model), "dataset_dir": str(folder / "data"), "devices": "auto"}
    values |= places | {"save_strategy": "steps", "plot_loss": True} | parse_overrides(overrides)
    values.pop("output_dir", None)
    found = run(folder, values)
    if "error" in found:
        return found
    rows = found.pop("rows")
    return {
        "steps": rows[-1]["current_steps"],
        "tokens": rows[-1]["total_tokens"],
        "peak_gib": rows[-1]["peak_memory"],
        "real_tokens_per_second": round(rows[-1]["total_tokens"] / rows[-1]["elapsed_seconds"]),
        **found,
    }


def agree(folder: Path) -> None:
    """Losses of 100 steps of the demo model on the bundled conversations."""
    values = {
        "model_name_or_path": "SmolLM2-135M-Instruct",
        "dataset_dir": str(ROOT / "data"),
        "dataset": "abilities",
        "template": "auto",
        "quantization_bit": 4,
        "cutoff_len": 1024,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "learning_rate": 2e-4,
        "lora_rank": 16,
        "lora_target": "all",
        "logging_steps": 1,
        "num_train_epochs": 20,
        "max_steps": 100,
    }
    plain = {"torch_compile": "off", "cuda_graphs": "off", "flash_attn": "disabled"}
    found = {}
    for name, options in {
        "compiled and recorded": {"torch_compile": "on"},
        "recorded": {"torch_compile": "off"},
        "plain": plain,
        "plain, other order of additions (sdpa)": plain | {"flash_attn": "sdpa"},
    }.items():
        found[name] = run(folder, values | options)
        if "error" in found[name]:
            print(f"{name}: failed", found[name]["error"][-600:], flush=True)
            return
        rows = found[name]["rows"]
        print(f"{name}: {len(rows)} steps, loss {rows[0]['loss']:.4f} to {rows[-1]['loss']:.4f},", flush=True)
        print("   ", found[name]["said"], found[name]["warning"] or "nothing fell back", found[name]["seconds"], "s")
    theirs = found.pop("plain")["rows"]
    for name, ours in found.items():
        apart = [abs(a["loss"] - b["loss"]) for a, b in zip(ours["rows"], theirs, strict=True)]
        print(f"{name} against plain: at most {max(apart):.4f} apart, {statistics.mean(apart):.5f} in the mean")


def step_seconds(rows: list[dict]) -> float:
    """The median of the last two thirds."""
    late = [row["elapsed_seconds"] for row in rows[len(rows) // 3 :]]
    return statistics.median(b - a for a, b in itertools.pairwise(late))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data", "ours", "curve", "dense", "article", "agree", "shapes"])
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
    elif options.what == "curve":
        for limit in CURVE:
            found = ours(options.folder, options.folder / "v2-lite", [f"max_gpu_memory={limit}", *options.set])
            print(f"max_gpu_memory={limit}", json.dumps(found), flush=True)
    elif options.what == "dense":
        dense(options.folder)
    elif options.what == "article":
        print("article", options.set, json.dumps(article(options.folder, options.model, options.set)), flush=True)
    elif options.what == "agree":
        agree(options.folder)
    else:
        shapes(options.folder, options.kind)


if __name__ == "__main__":
    main()
