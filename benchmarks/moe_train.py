"""Fine-tuning speed and memory of a DeepSeek-V2-Lite-shaped model in 4 bits, on one NVIDIA GPU.

    python benchmarks/moe_train.py table FOLDER
        everything below but the profile, as a table with the goals
    python benchmarks/moe_train.py make FOLDER [--layers 27]
        random weights of the exact shape, and synthetic data
    python benchmarks/moe_train.py ours FOLDER [--set k=v …]
        through `python -m workbench train`
    python benchmarks/moe_train.py profile FOLDER [--cap 12] [--set k=v …]
        kernels and memory of a step, also under a cap in GiB
    python benchmarks/moe_train.py load FOLDER
        seconds and GiB to load the bf16 and then the saved 4-bit checkpoint
    python benchmarks/moe_train.py stock FOLDER [--batch 2 --length 4096]
        transformers' own 4-bit load, SFTTrainer

`ours` and `stock` print one line each: GiB at the peak while loading and while training, tokens/s (median of the steps
after the first four).
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

TARGETS = "q_proj,kv_a_proj_with_mqa,kv_b_proj,o_proj"


def config_of(layers: int):
    """The config of DeepSeek-V2-Lite-Chat with `layers` layers (27 in the original)."""
    from transformers import DeepseekV2Config

    rope = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 40,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
    }
    return DeepseekV2Config(
        vocab_size=102400,
        hidden_size=2048,
        intermediate_size=10944,
        moe_intermediate_size=1408,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        n_shared_experts=2,
        n_routed_experts=64,
        num_experts_per_tok=6,
        first_k_dense_replace=1,
        kv_lora_rank=512,
        q_lora_rank=None,
        qk_rope_head_dim=64,
        qk_nope_head_dim=128,
        v_head_dim=128,
        topk_method="greedy",
        routed_scaling_factor=1.0,
        norm_topk_prob=False,
        max_position_embeddings=163840,
        rope_parameters=rope,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=0,
        aux_loss_alpha=0.001,
        seq_aux=True,
    )


def write_tokenizer(folder: Path) -> None:
    """A tokenizer whose tokens are bytes, with DeepSeek's template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from workbench.data import templates

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({t: i for i, t in enumerate(["<pad>", "<s>", "<eos>", *letters])}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="<eos>")
    tokenizer.chat_template = templates.read("deepseek")
    tokenizer.save_pretrained(folder)


def make(folder: Path, layers: int, config=None, name: str = "v2-lite") -> None:
    """Write shards of random bf16 weights in the original checkpoint's names, a byte tokenizer, and rows of full
    length. `config`: of another model than DeepSeek-V2-Lite, in the folder `name`."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    model_folder = folder / name
    model_folder.mkdir(parents=True, exist_ok=True)
    config = config or config_of(layers)
    config.dtype = "bfloat16"
    with torch.device("meta"):
        meta = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(meta).__name__]
    config.save_pretrained(model_folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    index, shard, size, number = {}, {}, 0, 0

    def flush():
        nonlocal shard, size, number
        if shard:
            name = f"model-{number:05d}.safetensors"
            save_file(shard, model_folder / name, metadata={"format": "pt"})
            index.update(dict.fromkeys(shard, name))
            shard, size, number = {}, 0, number + 1

    def add(name, shape):
        nonlocal size
        norm = "norm" in name
        value = (
            torch.ones(shape, dtype=torch.bfloat16)
            if norm
            else torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.02
        )
        shard[name] = value.cpu().contiguous()
        size += value.numel() * 2

    for name, parameter in meta.named_parameters():
        if name.endswith("experts.gate_up_proj"):
            experts, double, hidden = parameter.shape
            for e in range(experts):
                for part in ("gate_proj", "up_proj"):
                    add(name.replace("gate_up_proj", f"{e}.{part}.weight"), (double // 2, hidden))
        elif name.endswith("experts.down_proj"):
            for e in range(parameter.shape[0]):
                add(name.replace("down_proj", f"{e}.down_proj.weight"), parameter.shape[1:])
        else:
            add(name, parameter.shape)
        if size > 2 << 30:
            flush()
    flush()
    (model_folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))

    write_tokenizer(model_folder)

    data = folder / "data"
    data.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    with open(data / "long.jsonl", "w") as file:
        for _ in range(256):
            letters = torch.randint(97, 123, (5000,), generator=generator).tolist()
            file.write(json.dumps({"instruction": "go", "output": bytes(letters).decode()}) + "\n")
    (data / "dataset_info.json").write_text(json.dumps({"long": {"file_name": "long.jsonl"}}))


def _values(folder: Path) -> dict:
    return {
        "model_name_or_path": str(folder / "v2-lite"),
        "dataset_dir": str(folder / "data"),
        "dataset": "long",
        "template": "deepseek",
        "quantization_bit": 4,
        "cutoff_len": 4096,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 30,
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_target": TARGETS,
        "logging_steps": 5,
        "save_strategy": "no",
        "plot_loss": False,
        "torch_compile": "on",
        "activation_memory": "least",
        "keep_quantized": False,
    }


def ours(folder: Path, overrides: list[str]) -> dict:
    """One run of the real trainer process; its figures from the run directory."""
    import yaml

    from workbench.config.run_config import parse_overrides

    workspace = folder / f"w-{time.time_ns()}"
    workspace.mkdir()
    (workspace / "run.yaml").write_text(yaml.safe_dump(_values(folder) | parse_overrides(overrides)))
    command = [sys.executable, "-m", "workbench", "train", str(workspace / "run.yaml"), "--workspace", str(workspace)]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.monotonic() - began
    (run,) = (workspace / "runs").iterdir()
    log = (run / "running_log.txt").read_text()
    if done.returncode:
        return {"error": "\n".join((log or done.stderr).splitlines()[-25:])}
    rows = [json.loads(line) for line in (run / "trainer_log.jsonl").read_text().splitlines()]
    rates = [row["throughput"] for row in rows if "throughput" in row]
    said = [
        line[20:]
        for line in log.splitlines()
        if any(word in line for word in ("Loaded the model", "layers keep", "A step needs", "recorded and"))
    ]
    return {
        "tokens_per_second": round(statistics.median(rates[len(rates) // 2 :])),
        "peak_gib": rows[-1]["peak_memory"],
        "loading_gib": next((float(line.split()[-5]) for line in said if "Loaded the model" in line), None),
        "said": said,
        "losses": [round(row["loss"], 4) for row in rows if "loss" in row],
        "seconds": round(seconds),
        "rates": rates,
    }


def profiled(folder: Path, overrides: list[str]) -> None:
    """Where a step goes: the trainer in this process, kernels by time, and the memory peak of each phase of a step."""
    from dataclasses import replace

    import torch
    import yaml
    from torch.profiler import ProfilerActivity, profile

    from workbench.config.run_config import parse_overrides
    from workbench.runs.run import Run
    from workbench.storage.workspace import Workspace
    from workbench.train import main as trainer_main
    from workbench.train.stages import sft

    class Profiled(sft.SupervisedTrainer):
        seen = 0
        profiler = None

        def training_step(self, *args, **kwargs):
            self.seen += 1
            if self.seen == 10:
                torch.cuda.synchronize()
                self.profiler = profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU])
                self.profiler.__enter__()
            result = super().training_step(*args, **kwargs)
            if self.seen == 12:
                torch.cuda.synchronize()
                self.profiler.__exit__(None, None, None)
                _kernel_table(self.profiler, steps=3)
            return result

    sft.STAGE = replace(sft.STAGE, trainer=Profiled)
    values = _values(folder) | parse_overrides(overrides) | {"max_steps": 14}
    workspace = folder / f"w-{time.time_ns()}"
    run = Run(workspace / "runs" / "profile")
    run.path.mkdir(parents=True)
    run.begin()
    (run.path / "run.yaml").write_text(yaml.safe_dump(values))

    class Never:
        requested = training = False

    trainer_main.train(run, Workspace(workspace), Never())


def _kernel_table(profiler, steps: int) -> None:
    """GPU time of a step by kernel, and how long the GPU had nothing to do."""
    from torch.autograd import DeviceType

    spans, by_name = [], {}
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA and event.time_range.elapsed_us() > 0:
            spans.append((event.time_range.start, event.time_range.end))
            count, total = by_name.get(event.name, (0, 0.0))
            by_name[event.name] = count + 1, total + event.time_range.elapsed_us()
    spans.sort()
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    whole = reached - spans[0][0]
    print(f"a step: {whole / steps / 1e3:.1f} ms, GPU busy {busy / steps / 1e3:.1f} ms, {len(spans) // steps} kernels")
    for name, (count, total) in sorted(by_name.items(), key=lambda item: -item[1][1])[:60]:
        print(f"{total / steps / 1e3:9.2f} ms {count / steps:7.1f} x {name[:110]}")


def stock(folder: Path, batch: int, length: int) -> dict:
    """The same work on transformers' own 4-bit load and TRL's SFTTrainer, with gradient checkpointing."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        times = []

        def on_step_end(self, *args, **kwargs):
            torch.cuda.synchronize()
            self.times.append(time.monotonic())

    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder / "v2-lite", dtype=torch.bfloat16, quantization_config=bits, device_map={"": 0}
    )
    loading = torch.cuda.max_memory_allocated() / 2**30
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(97, 123, (length,), generator=generator).tolist() for _ in range(batch * 14)]
    data = Dataset.from_list([{"input_ids": row, "labels": row} for row in rows])
    arguments = SFTConfig(
        "/tmp/stock",
        per_device_train_batch_size=batch,
        max_steps=14,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=True,
        max_length=length,
        disable_tqdm=True,
        learning_rate=5e-5,
    )
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS.split(","), task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(folder / "v2-lite"),
        peft_config=lora,
        callbacks=[Clock],
    )
    trainer.train()
    steps = [b - a for a, b in zip(Clock.times, Clock.times[1:], strict=False)][3:]
    rate = batch * length / statistics.median(steps)
    return {
        "tokens_per_second": round(rate),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "loading_gib": round(loading, 2),
    }


GOALS = [  # what, batch and options, GiB at most, tokens/s at least
    ("2 × 4096, least memory", [], 11.0, 27_000),
    ("2 × 1024, least memory", ["cutoff_len=1024"], None, 15_000),
    ("2 × 4096, the whole card", ["activation_memory=auto"], None, 33_000),
    ("2 × 4096, at most 12 GiB", ["max_gpu_memory=12"], 12.0, None),
    ("2 × 4096, LoRA on all experts", ["lora_target=all"], 14.0, 15_000),
]


def table(folder: Path, layers: int) -> None:
    """Make the model, train it in every way that has a goal, the stock path among them, and load it; prints
    Markdown."""

    def fresh(*arguments) -> dict:
        """Run one part in a process of its own; its JSON."""
        command = [sys.executable, __file__, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        found = [line for line in done.stdout.splitlines() if "{" in line]
        return json.loads(found[-1][found[-1].index("{") :]) if found else {"error": done.stderr[-2000:]}

    def number(value, form="{}") -> str:
        return "–" if value is None else form.format(value)

    began = time.monotonic()
    make(folder, layers)
    rows = [("stock, 2 × 4096", fresh("stock", str(folder)), None, None)]
    for name, overrides, most, least in GOALS:
        found = ours(folder, overrides)
        print(f"{time.monotonic() - began:.0f} s", name, json.dumps(found), flush=True)
        rows.append((name, found, most, least))
    print("| what | peak GiB | goal | tokens/s | goal | GiB while loading |\n| --- | --- | --- | --- | --- | --- |")
    for name, found, most, least in rows:
        if "error" in found:
            print(f"| {name} | failed: {found['error']} |")
            continue
        print(
            f"| {name} | {found['peak_gib']} | {number(most, '≤ {}')} | {found['tokens_per_second']:,} |"
            f" {number(least, '≥ {:,}')} | {number(found['loading_gib'])} |"
        )
    print("loading", json.dumps(fresh("load", str(folder))), f"{time.monotonic() - began:.0f} s in all", flush=True)


def load(folder: Path) -> dict:
    """Load the bf16 checkpoint in 4 bits, save it, load that; seconds and the GPU's peak in GiB of both loads."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from workbench.models.quantized import loader

    loader.install()
    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    ids = torch.arange(100, 164, device="cuda")[None]
    result, logits = {}, []
    for name, place, options in (("bf16", "v2-lite", {"quantization_config": bits}), ("4bit", "v2-lite-4bit", {})):
        torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        model = AutoModelForCausalLM.from_pretrained(
            folder / place, dtype=torch.bfloat16, device_map={"": 0}, **options
        )
        torch.cuda.synchronize()
        result[f"{name}_seconds"] = round(time.monotonic() - began, 1)
        result[f"{name}_peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        with torch.no_grad():
            logits.append(model(ids).logits.cpu())
        if name == "bf16":
            model.save_pretrained(folder / "v2-lite-4bit")
        del model
        torch.cuda.empty_cache()
    return result | {"same_logits": torch.equal(*logits)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table", "make", "ours", "stock", "profile", "load"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=27)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--cap", type=float, help="limit of the GPU allocator in GiB (profile)")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=4096)
    options = parser.parse_args()
    if options.what == "make":
        began = time.monotonic()
        make(options.folder, options.layers)
        print(f"made {options.layers} layers in {time.monotonic() - began:.0f} s")
    elif options.what == "table":
        table(options.folder, options.layers)
    elif options.what == "profile":
        if options.cap:
            import torch

            total = torch.cuda.get_device_properties(0).total_memory / 2**30
            torch.cuda.set_per_process_memory_fraction(options.cap / total)
        profiled(options.folder, options.set)
    elif options.what == "ours":
        print("ours ", options.set, json.dumps(ours(options.folder, options.set)))
    elif options.what == "load":
        print("load ", json.dumps(load(options.folder)))
    else:
        print("stock", json.dumps(stock(options.folder, options.batch, options.length)))


if __name__ == "__main__":
    main()
