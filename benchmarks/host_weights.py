"""Training a model of DeepSeek-V2's (236B) layers whose 4-bit weights stay in host memory, on one capped GPU.

    python benchmarks/host_weights.py                        an H100 or any other card, capped at 24 GiB
    python benchmarks/host_weights.py --rows 1,4,8 --layers 20
    python benchmarks/host_weights.py --tiny                 a tiny shape, also on a CPU: whether the script works

Makes random 4-bit weights of the exact layer shape in memory (no checkpoint, no download), as many layers as the host
has room for, LoRA r 16 on attention, and trains on random rows of 4,096 tokens through the workbench's own trainer.
`--rows`: rows of a step, which are one micro-batch if that fits (else several, which is said); a line for each:

    tokens/s (median of the steps after the first two), GiB of GPU memory at the peak, GB/s that the weights came with
    while it trained, the GB/s that copying alone was measured at before, the share of it, and by arithmetic the same
    for the model's own 60 layers.

Weights are random, so the loss means nothing, and routing spreads tokens evenly.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.moe_train import write_tokenizer  # noqa: E402

LAYERS = 60  # of DeepSeek-V2
MARGIN = 12 << 30  # bytes of host memory that stay free
TARGETS = "q_a_proj,q_b_proj,kv_a_proj_with_mqa,kv_b_proj,o_proj"
TINY = {
    "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 128, "num_attention_heads": 8,
    "num_key_value_heads": 8, "n_routed_experts": 16, "n_group": 4, "topk_group": 2, "kv_lora_rank": 64,
    "q_lora_rank": 96, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32, "vocab_size": 1024,
}  # fmt: skip


def sizes(layers: int, tiny: bool):
    """The config of DeepSeek-V2 with so many layers."""
    from transformers import AutoConfig

    from workbench.models.anatomy import bundled

    values = bundled.configs()["DeepSeek-V2"] | {"num_hidden_layers": layers}
    values |= {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    kind = values.pop("model_type")
    return AutoConfig.for_model(kind, **(values | (TINY if tiny else {})))


def streamed_bytes(config) -> int:
    """Bytes of the weights of one layer with experts."""
    from workbench.models.anatomy.shapes import Anatomy
    from workbench.models.anatomy.sizes import read_sizes
    from workbench.models.cost.placement import streamed
    from workbench.models.cost.weights import Form, Loaded

    two = [read_sizes(config.to_dict() | {"num_hidden_layers": count}).sizes for count in (2, 3)]
    hosts = [streamed(Loaded(Anatomy(one), Form(4))).host for one in two]
    return hosts[1] - hosts[0]


def random_bytes(shape: tuple[int, ...], _pool: list = []):  # noqa: B006 - made once, in a second instead of minutes
    """Random bytes, repeated after 16 MiB: torch makes them on one core."""
    import torch

    if not _pool:
        _pool.append(torch.empty(1 << 24, dtype=torch.uint8).random_())
    found, pool = torch.empty(shape, dtype=torch.uint8), _pool[0]
    flat = found.view(-1)
    for start in range(0, len(flat), len(pool)):
        part = flat[start : start + len(pool)]
        part.copy_(pool[: len(part)])
    return found


def random_state(shape, dtype):
    """Packed weights [n / 2, 1] and the state that unpacks them to about ±0.05: as NF4 with double quantization."""
    import bitsandbytes.functional as bnb
    import torch

    count = shape.numel()
    scales = -(-count // 64)
    packed = random_bytes((count // 2, 1))
    outer = bnb.QuantState(
        absmax=torch.full((-(-scales // 256),), 0.02), code=bnb.create_dynamic_map(), blocksize=256, dtype=torch.float32
    )
    state = bnb.QuantState(
        absmax=random_bytes((scales,)), shape=shape, dtype=dtype, blocksize=64,
        code=bnb.get_4bit_type("nf4", device="cpu"), quant_type="nf4", offset=torch.tensor(0.03), state2=outer,
    )  # fmt: skip
    return packed, state


def random_model(config, dtype):
    """A model in 4 bits on the CPU, with random weights that were never anything else."""
    import bitsandbytes as bnb
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from workbench.models.quantized import loader
    from workbench.models.quantized.weights import is_packed

    loader.install()
    options = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    quantizer = loader.ExpertsQuantizer(options, pre_quantized=False)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model._weight_conversions = []
    quantizer.preprocess_model(model=model, device_map={"": "cpu"})
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if is_packed(parameter):
                packed, state = random_state(parameter.shape, dtype)
                fresh = bnb.nn.Params4bit(packed, requires_grad=False, quant_state=state, bnb_quantized=True)
                if isinstance(module, bnb.nn.Linear4bit):
                    fresh.module, module.quant_state = module, state
                module._parameters[name] = fresh
            else:
                made = torch.empty(parameter.shape, dtype=parameter.dtype)
                made = made.fill_(1.0) if parameter.dim() == 1 else made.normal_(std=0.02)
                module._parameters[name] = torch.nn.Parameter(made, requires_grad=False)
    model.hf_quantizer = quantizer
    return quantizer.postprocess_model(model).eval()


def steps_of(model, tokenizer, dtype, workspace, rows: int, length: int, asked) -> dict:
    """Train; tokens a second, peak, and bytes a second of weights."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback

    from workbench.config.run_config import validated
    from workbench.models.host_weights import host_weights_of
    from workbench.runs.run import create_run
    from workbench.train.trainer import build_trainer

    cuda = torch.cuda.is_available()
    values = {
        "model_name_or_path": "random", "dataset": "random", "quantization_bit": 4, "cutoff_len": length,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": rows, "max_steps": asked.steps,
        "weights_on": "host", "lora_rank": 16, "lora_target": TARGETS, "save_strategy": "no", "plot_loss": False,
        "report_to": "none", "logging_steps": 1000,
    }  # fmt: skip
    config = validated(values | ({"max_gpu_memory": asked.cap, "torch_compile": asked.compile} if cuda else {}))
    ids = torch.randint(3, model.config.vocab_size, (rows * asked.steps, length)).tolist()
    data = Dataset.from_dict({"input_ids": ids, "labels": ids})
    streaming, ends = host_weights_of(model), []

    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            if cuda:
                torch.cuda.synchronize()
            ends.append((time.perf_counter(), streaming.copied))

    run = create_run(workspace, config)
    trainer = build_trainer(run, config, model, tokenizer, data, None, dtype, SimpleNamespace(requested=False))
    trainer.add_callback(Clock())
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    pairs = list(itertools.pairwise(ends[1:]))
    seconds = [after[0] - before[0] for before, after in pairs]
    copied = sum(after[1] - before[1] for before, after in pairs) * streaming.bytes / len(streaming.layers)
    return {
        "tokens_s": rows * length / statistics.median(seconds),
        "seconds": statistics.median(seconds),
        "peak": torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0,
        "rate": copied / sum(seconds),
        "parts": -(-rows * length // trainer.step_strategy.shapes.sizes[-1]),
    }


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--layers", type=int, help=f"of {LAYERS}; as many as fit into host memory if not given")
    reader.add_argument("--rows", default="1,4", help="rows of a step, several after each other")
    reader.add_argument("--length", type=int, default=4096, help="tokens of a row")
    reader.add_argument("--steps", type=int, default=6)
    reader.add_argument("--cap", type=float, default=24.0, help="GiB of GPU memory")
    reader.add_argument("--compile", choices=["on", "off"], default="on", help="torch_compile of the run")
    reader.add_argument("--tiny", action="store_true")
    asked = reader.parse_args()
    if asked.steps < 4:
        reader.error("--steps: at least 4; the first two are not counted")

    from workbench.train.supervise import ALLOCATOR

    for name, value in ALLOCATOR.items():  # as a trainer's process has it
        os.environ.setdefault(name, value)
    import torch

    warnings.filterwarnings("ignore", category=FutureWarning)  # deprecations inside transformers
    from workbench.models.cost.placement import free_host
    from workbench.models.host_weights import stream_weights
    from workbench.models.load import compute_dtype
    from workbench.models.tuning import tuned
    from workbench.storage.workspace import Workspace

    dtype, cuda = compute_dtype(), torch.cuda.is_available()
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    if cuda:
        total = torch.cuda.get_device_properties(0).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, asked.cap / total))
    one = streamed_bytes(sizes(3, asked.tiny))
    layers = asked.layers or (6 if asked.tiny else max(2, min(LAYERS, (free_host() - MARGIN) // one)))
    length = min(asked.length, 128) if asked.tiny else asked.length
    began = time.perf_counter()
    model = random_model(sizes(layers, asked.tiny), dtype)
    made = stream_weights(model, device)
    name = torch.cuda.get_device_name() if cuda else "CPU"
    cap = f"capped at {asked.cap:g} GiB" if cuda else "no cap"
    seconds, gib = time.perf_counter() - began, made.bytes / 2**30
    print(
        f"{name}, {cap}: {layers} layers of {one / 2**30:.2f} GiB, {gib:.1f} GiB in host memory,"
        f" made in {seconds:.0f} s; copying alone {made.bandwidth / 1e9:.1f} GB/s",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        from transformers import AutoTokenizer

        from workbench.config.run_config import validated

        workspace = Workspace(Path(folder) / "workspace").create()
        write_tokenizer(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        adapters = {"model_name_or_path": "random", "dataset": "random", "lora_rank": 16, "lora_target": TARGETS}
        model = tuned(model, validated(adapters | {"quantization_bit": 4}), workspace, Path(folder), print)
        for rows in map(int, asked.rows.split(",")):
            found = steps_of(model, tokenizer, dtype, workspace, rows, length, asked)
            share, step = found["rate"] / made.bandwidth, found["seconds"]
            print(
                f"{rows} x {length} tokens a step in {found['parts']} micro-batch(es): {found['tokens_s']:,.0f}"
                f" tokens/s ({step:.2f} s), {found['peak']:.1f} GiB at the peak; weights came with"
                f" {found['rate'] / 1e9:.1f} GB/s, {share:.0%} of what copying alone reached",
                flush=True,
            )
            whole = step * LAYERS / layers
            print(
                f"  arithmetic, not measured: {LAYERS} layers would take {whole:.2f} s a step,"
                f" {rows * length / whole:,.0f} tokens/s"
            )


if __name__ == "__main__":
    main()
