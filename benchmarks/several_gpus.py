"""Rows of mixed lengths on one GPU and on two, in 4 bits, in one call; `mixed_lengths.py data` writes the rows.

python benchmarks/several_gpus.py table FOLDER --model FOLDER [--rows plain,capped,shared-lean,stock] [--devices 0 …]
    each of these rows on one card and on several, one after the other
python benchmarks/several_gpus.py ours FOLDER --model FOLDER --devices 0,1 [--set k=v …]
    20 steps through `python -m workbench train`, 16 rows on each device: real tokens/s, GiB of the fullest card
python benchmarks/several_gpus.py stock FOLDER --model FOLDER --devices 0,1
    the same rows through `accelerate launch`, transformers' own 4-bit load and TRL's SFTTrainer: 4 × 2 rows a step
    and device, padded; real tokens/s (padding does not count)

A tiny model, `--devices cpu --devices cpu,cpu` and `--set torch_compile=off` try the script without a GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import mixed_lengths  # noqa: E402

STOCK_STEPS = 10
LEAN = ["per_device_train_batch_size=1", "gradient_accumulation_steps=16", "activation_memory=least"]
PLAIN = ["torch_compile=off", "cuda_graphs=off"]


def ours(folder: Path, model: Path, devices: str, overrides: list[str]) -> dict:
    """One run; what mixed_lengths measures of it, with the memory of each device."""
    return mixed_lengths.ours(folder, model, [f"devices={devices}", *overrides])


def stock(folder: Path, model: Path, devices: str) -> dict:
    """Start `_stock` on each device through accelerate."""
    names = devices.split(",")
    cpu = names[0] == "cpu"
    where = ["--cpu"] if cpu else []
    many = ["--multi_gpu"] if len(names) > 1 and not cpu else []
    command = [
        sys.executable, "-m", "accelerate.commands.launch", *where, *many, "--num_processes", str(len(names)),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        str(Path(__file__)), "_stock", str(folder), "--model", str(model),
    ]  # fmt: skip
    visible = {} if cpu else {"CUDA_VISIBLE_DEVICES": devices}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | visible)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"error": (done.stdout + done.stderr)[-1500:]}


def _stock(folder: Path, model_folder: Path) -> None:
    """One process of `stock`."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    local, cuda = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.is_available()
    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            if cuda:
                torch.cuda.synchronize()
            ends.append((time.monotonic(), seen[0]))

    bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if cuda else torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(
        model_folder,
        dtype=torch.bfloat16 if cuda else torch.float32,
        quantization_config=bits,
        device_map={"": local if cuda else "cpu"},
    )
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rows = load_dataset("json", data_files=str(folder / "data" / "mixed.jsonl"), split="train")
    rows = rows.map(
        lambda row: {"prompt": [{"role": "user", "content": row["instruction"]}],
                     "completion": [{"role": "assistant", "content": row["output"]}]},
        remove_columns=rows.column_names,
    )  # fmt: skip
    seen = [0]

    class Counting(SFTTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            seen[0] += int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *args, **kwargs)

    arguments = SFTConfig(
        str(folder / "stock"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        max_steps=STOCK_STEPS,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=cuda,
        use_cpu=not cuda,
        max_length=4096,
        disable_tqdm=True,
        learning_rate=5e-5,
    )
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = sorted(names & {"q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"})
    lora = LoraConfig(r=16, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
    trainer = Counting(
        model, arguments, train_dataset=rows, processing_class=tokenizer, peft_config=lora, callbacks=[Clock()]
    )
    trainer.train()
    (began, before), (end, after) = ends[2], ends[-1]
    tokens = trainer.accelerator.reduce(torch.tensor(float(after - before), device=trainer.args.device)).item()
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    if trainer.is_world_process_zero():
        print(json.dumps({"real_tokens_per_second": round(tokens / (end - began)), "peak_gib": round(peak, 2)}))


ROWS: dict[str, tuple[str, list[str], bool]] = {  # of the table: what it is, changes, whether only for several devices
    "plain": ("16 rows a step and device", [], False),
    "all": ("16 rows a step in all", ["gradient_accumulation_steps={each}"], False),
    "capped": ("16 rows a step and device, at most 11 GiB", ["max_gpu_memory=11"], False),
    "lean": (
        "16 rows a step and device one by one, from Python",
        [*LEAN, *PLAIN],
        False,
    ),
    "shared-lean": ("the same, weights_on: shared", [*LEAN, *PLAIN[:1], "weights_on=shared"], True),
    "compiled-lean": ("rows one by one, compiled, from Python", [*LEAN, *PLAIN[1:]], False),
    "shared-compiled-lean": ("the same, weights_on: shared", [*LEAN, "weights_on=shared"], True),
    "shared": ("16 rows a step and device, weights_on: shared", ["weights_on=shared"], True),
}


def table(folder: Path, model: Path, devices: list[str], rows: list[str], overrides: list[str]) -> None:
    """All lines, each as soon as it is measured."""
    print("| what | devices | real tokens/s | × one | GiB a card |\n| --- | --- | --- | --- | --- |", flush=True)
    for row in rows:
        one = None
        for named in devices:
            count = len(named.split(","))
            if row == "stock":
                one = _line("stock: accelerate launch, TRL, padded", named, stock(folder, model, named), one)
                continue
            what, changes, several = ROWS[row]
            if count == 1 and several:
                continue
            changed = [change.format(each=8 // count) for change in changes]
            one = _line(what, named, ours(folder, model, named, [*overrides, *changed]), one)


def _line(what: str, devices: str, found: dict, one: int | None) -> int | None:
    if "error" in found:
        print(f"| {what} | {devices} | failed: {' '.join(found['error'].split())[-400:]} | | |", flush=True)
        return one
    rate = found["real_tokens_per_second"]
    times = f"{rate / one:.2f}" if one else "1"
    print(f"| {what} | {devices} | {rate:,} | {times} | {found['peak_gib']} |", flush=True)
    if found.get("warning"):
        print(f"\n{found['warning']}\n", flush=True)
    return one or rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table", "ours", "stock", "_stock"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--devices", action="append", help="0 and 0,1 if not given")
    parser.add_argument("--rows", default=",".join([*ROWS, "stock"]), help="of the table")
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    devices = given.devices or ["0", "0,1"]
    if given.what == "table":
        table(given.folder, given.model, devices, given.rows.split(","), given.set)
    elif given.what == "ours":
        print(json.dumps(ours(given.folder, given.model, devices[-1], given.set), indent=1))
    elif given.what == "stock":
        print(json.dumps(stock(given.folder, given.model, devices[-1]), indent=1))
    else:
        _stock(given.folder, given.model)


if __name__ == "__main__":
    main()
