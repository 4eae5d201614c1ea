"""Estimated against measured peak memory: real training runs on random weights, several at once on one card.

python benchmarks/memory_estimates.py run FOLDER [--jobs 6] [--seconds 280] [--only WORD …] [--json FILE]
    makes models and rows in FOLDER, trains every case for a few steps through `python -m workbench train`, prints a
    table and writes all figures. `--cpu --tiny` goes through the same with tiny models on the CPU; `--demo` measures
    the host's memory with the demo model (135M) instead; `--held-out` runs other models, which nothing was fitted to.
python benchmarks/memory_estimates.py table FILE
    the table again, from the figures of an earlier call and the formulas as they are now
python benchmarks/memory_estimates.py cases
    the cases, without running them

A case is a process of its own on the same card. Measured are torch's largest allocated and reserved memory of the
process (`peak_memory` and `peak_reserved` of its log); the first case runs alone, and what the card then holds beyond
torch's is the context. A case whose estimate would not fit beside those that run waits. DPO is not among the cases: the
workbench has no such stage.
"""

import argparse
import ctypes
import json
import os
import random
import shutil
import statistics
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

GIB = 1 << 30
ROOM = 72 * GIB  # of the card, for all cases together
ROWS = 160
DEMO = "SmolLM2-135M-Instruct"
MODELS = {  # bundled config -> what is changed
    "qwen3-8b": ("Qwen3-8B", {"num_hidden_layers": 8}),
    "llama3-8b": ("Llama-3-8B", {"num_hidden_layers": 4}),
    "qwen3-1.7b": (
        "Qwen3-8B",
        {
            "hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16, "num_hidden_layers": 28,
            "tie_word_embeddings": True,
        },
    ),
    "v2-lite": ("DeepSeek-V2-Lite", {"num_hidden_layers": 5}),
    "qwen3-30b-a3b": ("Qwen3-30B-A3B", {"num_hidden_layers": 3}),
    # of the held-out cases
    "qwen3-4b": (
        "Qwen3-8B",
        {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 18, "tie_word_embeddings": True},
    ),
    "glm4-9b": ("GLM-4-9B", {"num_hidden_layers": 5}),
    "olmoe": ("OLMoE-1B-7B", {"num_hidden_layers": 4}),
    "deepseek-moe": ("DeepSeek-MoE-16B", {"num_hidden_layers": 4}),
    "phi-3.5": ("Phi-3.5-mini", {"num_hidden_layers": 16}),
    "gemma-2": ("Gemma-2-9B", {"num_hidden_layers": 4}),
}  # fmt: skip
TINY = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 2048,
    "num_key_value_heads": 2, "head_dim": 32, "moe_intermediate_size": 64, "num_experts": 8, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32,
}  # fmt: skip
ATTENTION = {"v2-lite": "q_proj,kv_a_proj_with_mqa,kv_b_proj,o_proj", "phi-3.5": "qkv_proj,o_proj"}
_ATTENTION = "q_proj,k_proj,v_proj,o_proj"


def case(name: str, model: str, bits: int | None, batch: int, cutoff: int, rank: int, where: str, **options) -> dict:
    """A case: `name`, `model`, `options` of the run."""
    target = ATTENTION.get(model, _ATTENTION) if where == "attention" else where
    values = {
        "quantization_bit": bits,
        "per_device_train_batch_size": batch,
        "cutoff_len": cutoff,
        "lora_rank": rank,
        "lora_target": target,
    }
    return {"name": name, "model": model, "options": values | options}


def cases() -> list[dict]:
    """The cases that the constants were measured with. The compiled ones, which take longest, come early."""
    on = {"torch_compile": "on"}
    least = on | {"activation_memory": "least"}
    return [
        case("llama 4 bit 4 × 512", "llama3-8b", 4, 4, 512, 8, "all"),  # alone: the context is measured with it
        case("v2-lite compiled, least", "v2-lite", 4, 2, 4096, 16, "attention", **least),
        case("v2-lite compiled, auto in 20", "v2-lite", 4, 2, 4096, 16, "attention", max_gpu_memory=20, **on),
        case("v2-lite compiled, all experts, least", "v2-lite", 4, 2, 2048, 16, "all", **least),
        case("qwen3-1.7b compiled, auto in 8", "qwen3-1.7b", 4, 2, 2048, 16, "all", max_gpu_memory=8, **on),
        case("llama compiled, auto in 16", "llama3-8b", 4, 2, 2048, 16, "all", max_gpu_memory=16, **on),
        case("qwen3-30b-a3b compiled, packed, auto in 14", "qwen3-30b-a3b", 4, 2, 2048, 16, "attention",
             max_gpu_memory=14, packing=True, **on),
        case("qwen3-8b compiled, least, 8 bit", "qwen3-8b", 8, 2, 2048, 16, "attention", **least),
        case("qwen3-8b 4 bit 2 × 1024", "qwen3-8b", 4, 2, 1024, 16, "all"),
        case("qwen3-8b 4 bit 4 × 2048", "qwen3-8b", 4, 4, 2048, 16, "all"),
        case("qwen3-8b 4 bit 1 × 4000 r64", "qwen3-8b", 4, 1, 4000, 64, "attention"),
        case("qwen3-8b 8 bit 2 × 1024", "qwen3-8b", 8, 2, 1024, 16, "attention"),
        case("qwen3-8b 16 bit 2 × 1024", "qwen3-8b", None, 2, 1024, 16, "all"),
        case("qwen3-8b 4 bit, evaluation 2 × 1024", "qwen3-8b", 4, 2, 1024, 16, "attention", val_size=8,
             eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=2),
        case("llama 4 bit 2 × 2048 rank 128", "llama3-8b", 4, 2, 2048, 128, "all"),
        case("llama 8 bit 2 × 2048", "llama3-8b", 8, 2, 2048, 16, "all"),
        case("llama 16 bit 2 × 2048", "llama3-8b", None, 2, 2048, 16, "attention"),
        case("llama 4 bit packed 2 × 2048", "llama3-8b", 4, 2, 2048, 16, "all", packing=True),
        case("llama 4 bit dropout 2 × 2048", "llama3-8b", 4, 2, 2048, 16, "all", lora_dropout=0.05),
        case("qwen3-1.7b 4 bit 4 × 1024", "qwen3-1.7b", 4, 4, 1024, 16, "all"),
        case("qwen3-1.7b 16 bit, no checkpointing 2 × 512", "qwen3-1.7b", None, 2, 512, 16, "all",
             disable_gradient_checkpointing=True),
        case("qwen3-1.7b 4 bit r256 adamw_8bit", "qwen3-1.7b", 4, 2, 1024, 256, "all", optim="adamw_8bit"),
        case("qwen3-1.7b full 1 × 1024", "qwen3-1.7b", None, 1, 1024, 8, "all", finetuning_type="full", pure_bf16=True),
        case("qwen3-1.7b full, float32 copies 1 × 1024", "qwen3-1.7b", None, 1, 1024, 8, "all", finetuning_type="full"),
        case("v2-lite 4 bit 2 × 4096", "v2-lite", 4, 2, 4096, 16, "attention"),
        case("v2-lite 4 bit all experts 2 × 2048", "v2-lite", 4, 2, 2048, 16, "all"),
        case("v2-lite 4 bit 1 × 1024", "v2-lite", 4, 1, 1024, 16, "attention"),
        case("v2-lite 8 bit 1 × 2048", "v2-lite", 8, 1, 2048, 16, "attention"),
        case("v2-lite 16 bit 1 × 2048", "v2-lite", None, 1, 2048, 16, "attention"),
        case("v2-lite 4 bit, rows of one length 2 × 2048", "v2-lite", 4, 2, 2048, 16, "attention", dataset="long"),
        case("qwen3-30b-a3b 4 bit 2 × 2048", "qwen3-30b-a3b", 4, 2, 2048, 16, "attention"),
        case("qwen3-30b-a3b 4 bit all experts 2 × 2048", "qwen3-30b-a3b", 4, 2, 2048, 8, "all"),
        case("qwen3-30b-a3b 16 bit 2 × 1024", "qwen3-30b-a3b", None, 2, 1024, 16, "attention"),
    ]  # fmt: skip


def held_out_cases() -> list[dict]:
    """Cases of other models, which nothing was fitted to."""
    on = {"torch_compile": "on"}
    least = on | {"activation_memory": "least"}
    return [
        case("olmoe 4 bit 2 × 1024", "olmoe", 4, 2, 1024, 16, "attention"),
        case("olmoe compiled, all experts, auto in 16", "olmoe", 4, 2, 2048, 8, "all", max_gpu_memory=16, **on),
        case("deepseek-moe compiled, least", "deepseek-moe", 4, 2, 4096, 8, "q_proj,v_proj", **least),
        case("deepseek-moe compiled, packed, auto in 20", "deepseek-moe", 4, 2, 2048, 8, "q_proj,v_proj",
             max_gpu_memory=20, packing=True, **on),
        case("qwen3-4b compiled, auto in 10", "qwen3-4b", 4, 4, 1024, 16, "all", max_gpu_memory=10, **on),
        case("glm4-9b compiled, least", "glm4-9b", 4, 2, 4000, 16, "all", **least),
        case("phi-3.5 compiled, auto in 24", "phi-3.5", 4, 2, 4000, 32, "attention", max_gpu_memory=24, **on),
        case("qwen3-4b 4 bit 2 × 2048", "qwen3-4b", 4, 2, 2048, 32, "all"),
        case("qwen3-4b 4 bit 8 × 512", "qwen3-4b", 4, 8, 512, 8, "attention"),
        case("qwen3-4b 16 bit 2 × 2048", "qwen3-4b", None, 2, 2048, 16, "all"),
        case("qwen3-4b 8 bit 1 × 2048", "qwen3-4b", 8, 1, 2048, 16, "all"),
        case("qwen3-4b 16 bit, no checkpointing 1 × 1024", "qwen3-4b", None, 1, 1024, 8, "attention",
             disable_gradient_checkpointing=True),
        case("glm4-9b 4 bit 2 × 2048", "glm4-9b", 4, 2, 2048, 16, "attention"),
        case("glm4-9b 4 bit 1 × 4000 r128", "glm4-9b", 4, 1, 4000, 128, "all"),
        case("glm4-9b 4 bit, evaluation 4 × 512", "glm4-9b", 4, 2, 512, 16, "all", val_size=8, eval_strategy="steps",
             eval_steps=2, per_device_eval_batch_size=4),
        case("glm4-9b 8 bit 2 × 1024", "glm4-9b", 8, 2, 1024, 16, "all"),
        case("glm4-9b 16 bit, packed 2 × 2048", "glm4-9b", None, 2, 2048, 16, "attention", packing=True),
        case("olmoe 4 bit all experts 4 × 1024", "olmoe", 4, 4, 1024, 16, "all"),
        case("olmoe 16 bit 2 × 2048", "olmoe", None, 2, 2048, 16, "attention"),
        case("olmoe 4 bit 4 × 2048", "olmoe", 4, 4, 2048, 16, "attention"),
        case("deepseek-moe 4 bit 2 × 4096", "deepseek-moe", 4, 2, 4096, 8, "q_proj,v_proj"),
        case("deepseek-moe 4 bit, dropout 2 × 1024", "deepseek-moe", 4, 2, 1024, 16, "attention", lora_dropout=0.1),
        case("deepseek-moe 16 bit 1 × 2048", "deepseek-moe", None, 1, 2048, 8, "attention"),
        case("phi-3.5 4 bit 2 × 4000", "phi-3.5", 4, 2, 4000, 16, "all"),
        case("phi-3.5 4 bit, rows of one length 4 × 1024", "phi-3.5", 4, 4, 1024, 16, "all", dataset="long"),
        case("phi-3.5 16 bit 4 × 1024 lion_8bit", "phi-3.5", None, 4, 1024, 64, "all", optim="lion_8bit"),
        case("phi-3.5 full 1 × 512", "phi-3.5", None, 1, 512, 8, "all", finetuning_type="full"),
        case("gemma-2 4 bit, padded 2 × 1024", "gemma-2", 4, 2, 1024, 16, "all"),
        case("gemma-2 16 bit, padded 1 × 2048", "gemma-2", None, 1, 2048, 16, "attention"),
    ]  # fmt: skip


def demo_cases() -> list[dict]:
    """Short runs of the demo model on the host."""

    def short(name: str, **options) -> dict:
        values = {"quantization_bit": 4, "per_device_train_batch_size": 2, "cutoff_len": 256, "lora_rank": 16}
        return {"name": name, "model": DEMO, "options": values | {"dataset": "long", "template": "chatml"} | options}

    return [
        short("demo 4 bit 2 × 256"),
        short("demo 4 bit 2 × 256, packed, mixed", packing=True, dataset="mixed"),
        short("demo 4 bit 2 × 1024", cutoff_len=1024),
        short("demo 32 bit 4 × 512", quantization_bit=None, cutoff_len=512, per_device_train_batch_size=4),
        short(
            "demo 4 bit, evaluation 8 × 256",
            val_size=8,
            eval_strategy="steps",
            eval_steps=1,
            per_device_eval_batch_size=8,
        ),
        short("demo 4 bit, no checkpointing 2 × 256", disable_gradient_checkpointing=True),
        short("demo full 2 × 256", quantization_bit=None, finetuning_type="full"),
        short("demo 4 bit r256, 1 × 512", lora_rank=256, cutoff_len=512, per_device_train_batch_size=1),
    ]


# ---- models and rows


def config_of(model: str, tiny: bool) -> dict:
    """The config of one of `MODELS`, or of the demo model."""
    from workbench.models.anatomy import bundled
    from workbench.models.cost.known import DEMO_CONFIG

    if model == DEMO:
        return DEMO_CONFIG
    name, changes = MODELS[model]
    config = dict(bundled.configs()[name]) | changes
    if tiny:
        config |= {key: value for key, value in TINY.items() if key in config}
    for key in ("quantization_config", "auto_map"):
        config.pop(key, None)
    return config | {"torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def make_model(folder: Path, model: str, tiny: bool) -> Path:
    """Shards of random bf16 weights in the checkpoint's names, written without torch, and a tokenizer of bytes."""
    import numpy as np

    from workbench.models.anatomy.shapes import Anatomy
    from workbench.models.anatomy.sizes import read_sizes

    target = folder / "models" / model
    if model == DEMO and not target.exists():
        subprocess.run([sys.executable, "-m", "workbench.models.demo", str(folder)], cwd=ROOT, check=True)
    if (target / "tokenizer.json").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    config = config_of(model, tiny)
    (target / "config.json").write_text(json.dumps(config))
    sizes = read_sizes(config).sizes
    values = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32) * 0.02
    noise = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    ones = (np.ones(1 << 16, np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    tensors: dict[str, tuple[int, ...]] = {}
    for name, weight in Anatomy(sizes).weights():
        if weight.component != "experts":
            tensors[name] = weight.shape
            continue
        start = name.rpartition(".")[0]
        for number in range(weight.shape[0]):
            rows, columns = weight.shape[1:]
            if name.endswith("gate_up_proj"):
                for part in ("gate_proj", "up_proj"):
                    tensors[f"{start}.{number}.{part}.weight"] = (rows // 2, columns)
            else:
                tensors[f"{start}.{number}.down_proj.weight"] = (rows, columns)
    from moe_train import write_tokenizer

    _write(target, tensors, noise, ones)
    write_tokenizer(target)
    return target


def _write(target: Path, tensors: dict[str, tuple[int, ...]], noise: bytes, ones: bytes) -> None:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, shape in tensors.items():
        size = 2 * _count(shape)
        if held + size > 2 << 30 and shards[-1]:
            shards.append({})
            held = 0
        shards[-1][name] = shape
        held += size
    index = {}
    for number, shard in enumerate(shards):
        file_name = f"model-{number:05d}.safetensors"
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in shard.items():
            end = at + 2 * _count(shape)
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
            index[name], at = file_name, end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(target / file_name, "wb", buffering=1 << 20) as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name, shape in shard.items():
                source, left = (ones if "norm" in name else noise), 2 * _count(shape)
                while left > 0:
                    part = min(left, len(source))
                    file.write(memoryview(source)[:part])
                    left -= part
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def make_rows(folder: Path, tiny: bool) -> None:
    """`mixed`: log-normal lengths as chat datasets have them, the longest above every cutoff; `long`: all above it."""
    draw = random.Random(3)
    longest = 300 if tiny else 5000
    mean = 3.4 if tiny else 6.2
    lengths = [min(longest, max(24, int(draw.lognormvariate(mean, 0.9)))) for _ in range(ROWS)]
    lengths[::20] = [longest] * len(lengths[::20])
    (folder / "data").mkdir(parents=True, exist_ok=True)
    info = {}
    for name, sizes in (("mixed", lengths), ("long", [longest] * 48)):
        with open(folder / "data" / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for size in sizes:
                text = bytes(draw.choices(range(97, 123), k=size)).decode()
                file.write(json.dumps({"instruction": "go", "output": text}) + "\n")
        info[name] = {"file_name": f"{name}.jsonl"}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(info))


# ---- the card


class Card:
    """How much of the first card is taken, by the driver's own library; 0 where there is none."""

    def __init__(self):
        try:
            self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
            self._handle = ctypes.c_void_p()
            self._nvml.nvmlInit_v2()
            self._nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._handle))
        except OSError:
            self._nvml = None

    def used(self) -> int:
        if self._nvml is None:
            return 0
        values = (ctypes.c_ulonglong * 3)()  # total, free, used
        return int(values[2]) if self._nvml.nvmlDeviceGetMemoryInfo(self._handle, values) == 0 else 0

    def name(self) -> str:
        if self._nvml is None:
            return "CPU"
        text = ctypes.create_string_buffer(96)
        self._nvml.nvmlDeviceGetName(self._handle, text, 96)
        return text.value.decode()


class Watch(threading.Thread):
    """The most that the card holds while this runs."""

    def __init__(self, card: Card):
        super().__init__(daemon=True)
        self.most, self._card, self._done = 0, card, threading.Event()

    def run(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, self._card.used())

    def end(self) -> int:
        self._done.set()
        self.join()
        return self.most


# ---- a case


def values_of(case: dict, folder: Path, options) -> dict:
    """The run's options: defaults but for a short run that keeps nothing."""
    values = {
        "model_name_or_path": str(folder / "models" / case["model"]),
        "dataset_dir": str(folder / "data"),
        "dataset": "mixed",
        "template": "deepseek",
        "gradient_accumulation_steps": 2,
        "max_steps": 5,
        "logging_steps": 1,
        "save_strategy": "no",
        "plot_loss": False,
        "keep_quantized": False,
        "preprocessing_num_workers": 1,
    } | case["options"]
    if options.cpu:
        values |= {"devices": "cpu", "max_steps": 2, "gradient_accumulation_steps": 1}
    if options.tiny:
        values |= {"cutoff_len": min(256, values["cutoff_len"])}
    return {key: value for key, value in values.items() if value is not None}


def estimated(values: dict, config: dict, rows: dict, device: dict):
    """The estimate of a run, from the model's config, its options, and what its rows came to."""
    from workbench.config.run_config import validated
    from workbench.models.anatomy.shapes import Anatomy
    from workbench.models.anatomy.sizes import read_sizes
    from workbench.models.cost.batch import Rows
    from workbench.models.cost.host import HostMemory
    from workbench.models.cost.training import Gpu, TrainingMemory

    parsed = validated(values)
    anatomy = Anatomy(read_sizes(config).sizes)
    known = Rows(
        rows.get("count", 0), rows.get("tokens", 0), rows.get("longest", 0), "counted", rows.get("uniform", False)
    )
    if device["name"] == "CPU":
        return HostMemory(anatomy, parsed, known).estimate()
    return TrainingMemory(anatomy, parsed, known, Gpu(device["memory"])).estimate()


def rows_of(values: dict) -> dict:
    """What is known of the rows before a run: their longest is above every cutoff, `long` has one length."""
    uniform = values["dataset"] == "long"
    return {"count": 48 if uniform else ROWS, "tokens": 0, "longest": values["cutoff_len"], "uniform": uniform}


def run_case(case: dict, folder: Path, options) -> dict:
    """One run of the real trainer process; its figures from the run directory."""
    import yaml

    values = values_of(case, folder, options)
    workspace = folder / "workspaces" / f"w{case['number']}"
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.mkdir(parents=True)
    form = workspace / "case.yaml"
    form.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "workbench", "train", str(form), "--workspace", str(workspace)]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=options.case_seconds
        )
    except subprocess.TimeoutExpired:
        return {"values": values, "error": f"not done after {options.case_seconds} s"}
    seconds = round(time.monotonic() - began, 1)
    found = next(iter((workspace / "runs").glob("*")), None) if (workspace / "runs").exists() else None
    log = (found / "running_log.txt").read_text() if found and (found / "running_log.txt").exists() else ""
    if done.returncode or found is None:
        return {"values": values, "error": "\n".join((log or done.stderr).splitlines()[-15:]), "seconds": seconds}
    rows = [json.loads(line) for line in (found / "trainer_log.jsonl").read_text().splitlines()]
    data = json.loads((found / "data.json").read_text())
    return {
        "values": values,
        "peak": max(row["peak_memory"] for row in rows),
        "reserved": max(row.get("peak_reserved", 0) for row in rows),
        "rows": [{k: row.get(k) for k in ("vram_allocated", "vram_reserved", "peak_memory")} for row in rows],
        "data": {name: {k: one[k] for k in ("rows", "kept", "tokens")} for name, one in data.items()},
        "throughput": rows[-1].get("throughput"),
        "seconds": seconds,
        "said": [line[20:] for line in log.splitlines() if any(word in line for word in _TELLING)],
        "warning": json.loads((found / "state.json").read_text()).get("warning", ""),
    }


_TELLING = (
    "Loaded the model", "layers keep", "A step needs", "Beyond what", "laid end", "Rows are", "LoRA:", "recorded",
    "do not fit", "Ready for",
)  # fmt: skip


def run_all(folder: Path, options) -> dict:
    """All cases, as many at once as the card has room for."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    card = Card()
    listed = demo_cases() if options.demo else held_out_cases() if options.held_out else cases()
    chosen = [case | {"number": i} for i, case in enumerate(listed)]
    if options.only:
        chosen = [case for case in chosen if any(word in case["name"] for word in options.only)]
    make_rows(folder, options.tiny)
    base = card.used()
    device = {"name": "CPU" if options.cpu else card.name(), "memory": int(79.1 * GIB)}
    wanted = list(dict.fromkeys(case["model"] for case in chosen))
    made = {}
    for model in wanted[:1]:
        made[model] = None
        make_model(folder, model, options.tiny)
    with ThreadPoolExecutor(len(wanted)) as makers:
        for model in wanted[1:]:
            made[model] = makers.submit(_make_apart, folder, model, options.tiny)
        results, context = [], 0
        free, lock, running = threading.Condition(), threading.Lock(), {}

        def one(case: dict) -> None:
            config = config_of(case["model"], options.tiny)
            values = values_of(case, folder, options)
            guess = estimated(values, config, rows_of(values), device)
            need = int(guess.total * 1.15) + GIB // 2
            if made[case["model"]] is not None:
                made[case["model"]].result()
            with free:
                while running and sum(running.values()) + need > ROOM:
                    free.wait()
                running[case["number"]] = need
            try:
                if time.monotonic() - began > options.seconds - options.reserve:
                    result = {"values": values, "error": "not started: out of time"}
                else:
                    result = run_case(case, folder, options)
            finally:
                with free:
                    del running[case["number"]]
                    free.notify_all()
            with lock:
                results.append(case | result | {"config": config})
                print(
                    f"{time.monotonic() - began:5.0f} s  {case['name']}: {result.get('error', result.get('peak'))}",
                    flush=True,
                )

        if base or card.used():  # the first alone, while the other models are written
            watch = Watch(card)
            watch.start()
            one(chosen[0])
            most = watch.end()
            context = most - base - int(results[0].get("reserved", 0) * GIB)
            chosen = chosen[1:]
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(one, chosen))
    order = {case["name"]: i for i, case in enumerate(listed)}
    results.sort(key=lambda result: order[result["name"]])
    device["context"] = context
    return {"device": device, "seconds": round(time.monotonic() - began), "cases": results}


def _make_apart(folder: Path, model: str, tiny: bool) -> None:
    """In a process of its own: writing the weights keeps an interpreter busy."""
    command = [sys.executable, __file__, "make", str(folder), "--model", model, *(["--tiny"] if tiny else [])]
    subprocess.run(command, check=True)


# ---- the table


def table(found: dict) -> str:
    """Markdown: estimate beside measurement, allocated by tensors and held in all (with the context)."""
    device = found["device"]
    context = device.get("context") or 0
    on_cpu = device["name"] == "CPU"
    head = ["case", "tensors: estimate", "measured", "off", "all: estimate", "measured", "off", "at"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    misses, alls = [], []
    for case in found["cases"]:
        if "error" in case:
            lines.append(f"| {case['name']} | | | | | {case['error'].splitlines()[-1][:120]} | | |")
            continue
        guess = estimated(case["values"], case["config"], rows_of(case["values"]), device)
        ours, theirs = guess.allocated / GIB, case["peak"]
        off = ours / theirs - 1
        misses.append(off)
        cells = [case["name"], f"{ours:.2f}", f"{theirs:.2f}", f"{off:+.1%}"]
        if on_cpu:
            cells += ["", "", ""]
        else:
            whole, measured = guess.total / GIB, case["reserved"] + context / GIB
            alls.append(whole / measured - 1)
            cells += [f"{whole:.2f}", f"{measured:.2f}", f"{whole / measured - 1:+.1%}"]
        lines.append("| " + " | ".join([*cells, guess.phase]) + " |")
    for name, values in (("tensors", misses), ("all", alls)):
        if values:
            worst, middle = max(values, key=abs), statistics.median(map(abs, values))
            beyond = sum(abs(v) > 0.1 for v in values)
            lines.append(
                f"\n{name}: {len(values)} runs, median {middle:.1%}, largest {worst:+.1%}, {beyond} beyond 10 %"
            )
    lines.append(f"\n{device['name']}, context {context / GIB:.2f} GiB, {found.get('seconds', 0)} s for all")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table", "cases", "make"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=285, help="after these nothing is started any more")
    parser.add_argument("--reserve", type=float, default=45, help="seconds before the end in which nothing is started")
    parser.add_argument("--case-seconds", type=float, default=150)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--held-out", action="store_true", help="other models, which nothing was fitted to")
    options = parser.parse_args()
    options.cpu = options.cpu or options.demo
    if options.what == "cases":
        for one in (*cases(), *held_out_cases(), *demo_cases()):
            print(one["name"], one["options"])
    elif options.what == "make":
        make_model(options.folder, options.model, options.tiny)
    elif options.what == "table":
        print(table(json.loads(options.folder.read_text())))
    else:
        found = run_all(options.folder, options)
        text = json.dumps(found, indent=1)
        (options.json or options.folder / "result.json").write_text(text)
        print(table(found))


if __name__ == "__main__":
    main()
