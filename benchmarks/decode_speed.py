"""Decoding in 4 bits on one NVIDIA GPU, through the engine (in this process, without HTTP), with random weights.

    python benchmarks/decode_speed.py FOLDER [--shapes v2-lite qwen3-8b llama-3-8b] [--layers N] [--profile]
    python benchmarks/decode_speed.py FOLDER --shapes v2-lite --load [--profile]    again, in a new process

For each shape: seconds to load from bf16 (which keeps the 4-bit form for the next load); GPU memory after one stream
of 512 tokens (the whole card's, by its driver); tokens a second of one stream, with log-probabilities, with LoRA of
rank 16, sampled, of 8 and 32 streams; seconds to the first token of a prompt of 4,096 tokens, and of the same prompt
again; what becomes of a prompt for which there is no memory. Greedy, prompts of about 100 tokens, 256 new ones, medians
of three. The floor: what a step of one stream must read at the speed at which this card copies.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
LAYERS = {"v2-lite": 27, "qwen3-8b": 36, "llama-3-8b": 32}
TOKENS = 256
ATTENTION = "q_proj,kv_a_proj_with_mqa,kv_b_proj,o_proj"
TARGETS = {
    "v2-lite": {ATTENTION: "attention", "all": "all, experts among them"},
    "qwen3-8b": {"all": "all"},
    "llama-3-8b": {"all": "all"},
}


def config_of(shape: str, layers: int):
    """The config of a model with `layers` layers."""
    import moe_train
    from transformers import LlamaConfig, Qwen3Config

    ends = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    if shape == "v2-lite":
        return moe_train.config_of(layers)
    common = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": layers}
    if shape == "qwen3-8b":
        return Qwen3Config(
            vocab_size=151936, intermediate_size=12288, head_dim=128, max_position_embeddings=40960,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6}, **common, **ends,
        )  # fmt: skip
    return LlamaConfig(
        vocab_size=128256, intermediate_size=14336, max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5}, **common, **ends,
    )  # fmt: skip


def write_adapter(folder: Path, model, target: str) -> None:
    """LoRA of rank 16 with random factors on `target` of `model`."""
    from workbench.config.options import RunConfig
    from workbench.config.run_config import validated
    from workbench.models.adapters import add_lora

    values = {"model_name_or_path": "x", "dataset": "x", "lora_target": target, "lora_rank": 16, "lora_alpha": 32}
    tuned = add_lora(model, validated(values, RunConfig), print)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.01)
    tuned.save_pretrained(str(folder))
    tuned.unload()


def floor_bytes(model) -> float:
    """What a step of one row must read: weights, of experts those that a row chooses."""
    import bitsandbytes as bnb

    total = 0.0
    config = model.config.get_text_config()
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is None or module is model.get_input_embeddings():
                continue
            size = float(parameter.nbytes)
            if isinstance(parameter, bnb.nn.Params4bit):
                state = parameter.quant_state
                size += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
                if len(state.shape) == 3:
                    size *= config.num_experts_per_tok / state.shape[0]
            total += size
    return total


def bandwidth() -> float:
    """Bytes a second that a copy reads and writes."""
    import torch

    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    start, end = torch.cuda.Event(True), torch.cuda.Event(True)
    start.record()
    for _ in range(10):
        target.copy_(source)
    end.record()
    torch.cuda.synchronize()
    return 20 * source.nbytes / (start.elapsed_time(end) / 1e3)


def _profiled(load) -> str:
    """Seconds of a load, and of the functions that took most of it."""
    import cProfile
    import io
    import pstats

    profile, text = cProfile.Profile(), io.StringIO()
    profile.enable()
    _, seconds = load()
    profile.disable()
    for order in ("cumulative", "tottime"):
        pstats.Stats(profile, stream=text).sort_stats(order).print_stats(45)
    lines = [line for line in text.getvalue().splitlines() if line.strip() and line.split()[0][0].isdigit()]
    print("\n".join(f"{line.strip()[:45]} {line.strip()[-90:]}" for line in lines))
    return f"{seconds:.1f} s, under the profiler"


def measure(
    shape: str, folder: Path, layers: int, speed: float, profiled: bool, load_alone: bool = False
) -> dict[str, str]:
    """A column of the table."""
    import chat_speed
    import torch

    from workbench.config.options import EngineConfig
    from workbench.config.run_config import parse_overrides, validated
    from workbench.engine.batching.scheduler import backend_of
    from workbench.engine.transformers_backend import TransformersDecoder
    from workbench.storage.workspace import Workspace

    workspace = Workspace(folder / "workspace").create()
    config = validated(
        {"model_name_or_path": str(folder / shape)} | parse_overrides(["quantization_bit=4"]), EngineConfig
    )
    column: dict[str, str] = {}

    def load():
        began = time.perf_counter()
        decoder = TransformersDecoder(config, workspace, lambda *_: None, print)
        backend = backend_of(decoder, print)
        return backend, time.perf_counter() - began

    if load_alone:
        return {"load": _profiled(load) if profiled else f"{load()[1]:.1f} s"}
    backend, seconds = load()
    column["load from bf16, with what is kept for the next"] = f"{seconds:.1f} s"
    decoder = backend.decoder
    began = time.perf_counter()
    chat_speed.first_token(backend, [5, 6, 7])
    column["first answer after the load"] = f"{time.perf_counter() - began:.2f} s"
    chat_speed.streams(backend, chat_speed.jobs_of(1, 512))
    free, total = torch.cuda.mem_get_info()
    column["GPU memory, one stream"] = f"{(total - free) / 2**30:.2f} GiB"

    def tokens_per_second(count: int, rounds: int = 3, adapter: str | None = None, **more) -> str:
        found = []
        for _ in range(rounds):
            jobs = chat_speed.jobs_of(count, TOKENS, **more)
            for job in jobs:
                job.adapter = adapter
            found.append(chat_speed.streams(backend, jobs)[0])
        return f"{statistics.median(found):,.0f} tokens/s ({min(found):,.0f} to {max(found):,.0f})"

    column["one stream"] = tokens_per_second(1)
    column["one stream, logprobs"] = tokens_per_second(1, logprobs=5)
    column["one stream, temperature 0.7, top_p 0.95"] = tokens_per_second(1, temperature=0.7, top_p=0.95)
    column["8 streams"] = tokens_per_second(8)
    tokens_per_second(32, 1)  # records what the others replay
    column["32 streams"] = tokens_per_second(32)
    for target, said in TARGETS[shape].items():
        place = folder / f"adapter-{shape}-{len(target)}"
        backend.call(lambda place=place, target=target: write_adapter(place, decoder.base, target))
        backend.add_adapter(said, str(place))
        tokens_per_second(1, 1, said)
        column[f"one stream, LoRA on {said}"] = tokens_per_second(1, adapter=said)
        tokens_per_second(32, 1, said)
        column[f"32 streams, LoRA on {said}"] = tokens_per_second(32, 2, said)
        backend.remove_adapter(said)
    long = (decoder.tokenizer(chat_speed.TEXT * 400)["input_ids"] * 8)[:4096]
    firsts, knowns = [], []
    for number in range(3):
        firsts.append(chat_speed.first_token(backend, [number + 10, *long[1:]]))
        knowns.append(chat_speed.first_token(backend, [number + 10, *long[1:]]))
    column["prompt of 4,096 tokens, first token"] = f"{statistics.median(firsts):.3f} s (the first {firsts[0]:.3f})"
    column["the same, known"] = f"{statistics.median(knowns):.3f} s"
    free, total = torch.cuda.mem_get_info()
    column["GPU memory, in the end"] = f"{(total - free) / 2**30:.2f} GiB"
    column["a prompt that does not fit beside an answer"] = short_of_memory(backend, long)
    recorded = backend.batch.passes.runner.recorded
    column["recorded steps"] = "no" if recorded is None else ", ".join(recorded.refused.values()) or "yes"
    graph = recorded._graphs.get((None, 1)) if recorded else None
    if graph:
        backend.call(lambda: replay(graph.graph, column, floor_bytes(decoder.base), speed))
        if profiled:
            for key, one in list(recorded._graphs.items()):
                if key[1] in (1, 32):
                    backend.call(lambda one=one, key=key: kernels(one.graph, f"{shape} {key}"))
    return column


def short_of_memory(backend, long: list[int]) -> str:
    """What becomes of a long prompt for which there is no memory, of a short answer beside it, and of the next."""
    import chat_speed
    import torch

    def limit() -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (200 << 20)) / total)

    (short,) = chat_speed.jobs_of(1, 300)
    backend.submit(short)
    next(iter(short))
    backend.call(limit)
    said = "is answered"
    try:
        chat_speed.first_token(backend, [77, *long[1:]])
    except Exception as error:
        said = f"hears {getattr(error, 'message', error)!s}"[:120]
    count = 1 + sum(1 for _ in short)
    backend.call(lambda: torch.cuda.set_per_process_memory_fraction(1.0))
    seconds = chat_speed.first_token(backend, [78, *long[1:]])
    return f"it {said}; the answer beside it has {count} of 300 tokens; the next one's first after {seconds:.2f} s"


def replay(graph, column: dict[str, str], must_read: float, speed: float) -> None:
    """Milliseconds of a recorded step, and of reading what it must."""
    import torch

    graph.replay()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(50):
        graph.replay()
    torch.cuda.synchronize()
    column["a step of one row on the GPU"] = f"{(time.perf_counter() - began) / 50 * 1e3:.2f} ms"
    least = must_read / speed * 1e3
    column["reading what it must"] = f"{least:.2f} ms ({must_read / 1e9:.2f} GB at {speed / 1e12:.2f} TB/s)"


def kernels(graph, title: str) -> None:
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        graph.replay()
        torch.cuda.synchronize()
    rows = sorted(found.key_averages(), key=lambda one: -one.self_device_time_total)
    total, count = sum(one.self_device_time_total for one in rows) / 1e3, sum(one.count for one in rows)
    print(f"\n{title}: {total:.2f} ms in {count} kernels")
    for one in rows[:16]:
        each = one.self_device_time_total / one.count
        print(f"{one.self_device_time_total / 1e3:8.3f} ms {one.count:5d} x {each:6.1f} us  {one.key[:80]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument(
        "--profile", action="store_true", help="print the kernels of a step, or the functions of a load"
    )
    parser.add_argument("--load", action="store_true", help="load once, and nothing else")
    options = parser.parse_args()
    if len(options.shapes) > 1:  # each in a process of its own: what one holds must not count for the next
        more = [*(["--layers", str(options.layers)] if options.layers else []), *["--profile"][: options.profile]]
        for shape in options.shapes:
            subprocess.run([sys.executable, __file__, str(options.folder), "--shapes", shape, *more], check=True)
            shutil.rmtree(options.folder / shape)  # 16 to 31 GB; its 4-bit form is in the workspace
        return
    from workbench.train.supervise import ALLOCATOR

    for name, value in ALLOCATOR.items():  # as the engine's process has it
        os.environ.setdefault(name, value)
    os.environ.setdefault("TRITON_CACHE_DIR", str(options.folder / "kernels"))
    import moe_train
    import torch

    (shape,) = options.shapes
    speed = bandwidth()
    torch.cuda.empty_cache()
    layers = options.layers or LAYERS[shape]
    if not (options.folder / shape / "model.safetensors.index.json").exists():
        began = time.perf_counter()
        moe_train.make(options.folder, layers, config_of(shape, layers), shape)
        print(f"{shape}: made {layers} layers in {time.perf_counter() - began:.0f} s", flush=True)
    column = measure(shape, options.folder, layers, speed, options.profile, options.load)
    print(f"\n{shape}, {layers} layers, {torch.cuda.get_device_name()}")
    for what, value in column.items():
        print(f"| {what} | {value} |", flush=True)


if __name__ == "__main__":
    main()
