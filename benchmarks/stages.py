"""Every stage and way of tuning on one NVIDIA GPU, with tiny random models, as a run does it and plainly.

    python benchmarks/stages.py FOLDER [--jobs 6] [--only WORD …] [--steps 12]

Each case is two runs of the real trainer process: with the defaults (joined rows, compiled, recorded where the stage
does that), and padded, eager, from Python. One line each: the losses' largest distance, milliseconds a step of both
(several runs share the card: for failures, not for speed), and what fell back.
"""

import argparse
import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import mixed_lengths  # noqa: E402

EXPERTS = "q_proj,o_proj,gate_proj,up_proj,down_proj"
CASES: dict[str, dict] = {
    "pt": {"stage": "pt", "dataset": "texts"},
    "sft": {},
    "sft, LoRA on experts": {"lora_target": EXPERTS},
    "sft, dora": {"use_dora": True},
    "sft, oft": {"finetuning_type": "oft", "lora_target": "q_proj,o_proj"},
    "sft, full": {"finetuning_type": "full", "quantization_bit": None, "learning_rate": 1e-4},
    "sft, freeze": {"finetuning_type": "freeze", "quantization_bit": None, "learning_rate": 1e-4},
    "sft, 8 bit": {"quantization_bit": 8},
    "sft, asft": {"use_asft_loss": True},
    "sft, dft": {"use_dft_loss": True},
    "sft, paged 8-bit adamw": {"optim": "paged_adamw_8bit"},
    "sft, loraplus": {"loraplus_lr_ratio": 16.0},
    "sft, neftune": {"neftune_noise_alpha": 5.0},
    "sft, packed": {"packing": True},
    "sft, weights on the host": {"weights_on": "host", "torch_compile": "auto"},
    "dpo": {"stage": "dpo", "dataset": "pairs"},
    "dpo, hinge": {"stage": "dpo", "dataset": "pairs", "pref_loss": "hinge"},
    "dpo, orpo": {"stage": "dpo", "dataset": "pairs", "pref_loss": "orpo"},
    "dpo, simpo": {"stage": "dpo", "dataset": "pairs", "pref_loss": "simpo"},
    "dpo, experts, pref_ftx": {"stage": "dpo", "dataset": "pairs", "pref_ftx": 0.5, "lora_target": EXPERTS},
    "kto": {"stage": "kto", "dataset": "votes"},
    "rm": {"stage": "rm", "dataset": "pairs"},
    "grpo": {"stage": "grpo", "dataset": "rows", "reward_funcs": "length", "num_generations": 4, "max_new_tokens": 24},
}
PLAIN = {"torch_compile": "off", "cuda_graphs": "off", "flash_attn": "disabled"}


def write_data(folder: Path) -> None:
    """Rows, pairs, votes and texts of letters, of mixed lengths."""
    letters = random.Random(5)
    text = lambda most: "".join(letters.choices("abcdefgh ", k=letters.randrange(8, most)))  # noqa: E731
    rows = [{"instruction": text(60), "output": text(400)} for _ in range(96)]
    pairs = [{"instruction": text(60), "chosen": text(300), "rejected": text(300)} for _ in range(96)]
    votes = [{"instruction": text(60), "output": text(300), "wanted": bool(n % 2)} for n in range(96)]
    mixed_lengths.write_rows(folder, "rows", rows)
    mixed_lengths.write_rows(folder, "pairs", pairs)
    mixed_lengths.write_rows(folder, "votes", votes)
    mixed_lengths.write_rows(folder, "texts", [{"text": text(600)} for _ in range(96)])
    info = folder / "data" / "dataset_info.json"
    known = json.loads(info.read_text())
    known["pairs"] |= {"ranking": True}
    known["votes"] |= {"columns": {"prompt": "instruction", "response": "output", "kto_tag": "wanted"}}
    known["texts"] |= {"columns": {"prompt": "text"}}
    info.write_text(json.dumps(known))


def make_model(folder: Path, kind: str) -> Path:
    """Random weights of a small model of `kind`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from tests.tiny import make_tiny_model

    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(folder / "tokenizer"))
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **(mixed_lengths.SMALL | mixed_lengths.KINDS[kind]))
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / kind)
    tokenizer.save_pretrained(folder / kind)
    return folder / kind


def compared(folder: Path, model: Path, name: str, steps: int) -> str:
    """Both runs of a case, as a line."""
    values = {
        "model_name_or_path": str(model), "dataset_dir": str(folder / "data"), "dataset": "rows",
        "template": "chatml", "quantization_bit": 4, "cutoff_len": 512, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2, "learning_rate": 1e-3, "lora_rank": 8, "lora_target": "q_proj,o_proj",
        "logging_steps": 1, "max_steps": steps, "torch_compile": "on",
    } | CASES[name]  # fmt: skip
    own = folder / "runs" / "".join(letter if letter.isalnum() else "-" for letter in name)
    fast, slow = mixed_lengths.run(own / "fast", values), mixed_lengths.run(own / "slow", values | PLAIN)
    for which, found in (("fast", fast), ("plain", slow)):
        if "error" in found:
            return f"{name}: {which} FAILED {found['error'][-700:]}"
    both = list(zip(fast["rows"], slow["rows"], strict=True))
    apart = max(abs(a["loss"] - b["loss"]) for a, b in both)
    ms, plain = (1e3 * mixed_lengths.step_seconds(found["rows"]) for found in (fast, slow))
    return (
        f"{name}: loss {both[0][0]['loss']:.4f} to {both[-1][0]['loss']:.4f}, at most {apart:.4f} apart;"
        f" {ms:.0f} ms a step, plain {plain:.0f}; {fast['warning'] or 'nothing fell back'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=6, help="runs at a time")
    parser.add_argument("--only", nargs="*", default=[], help="cases with one of these words")
    parser.add_argument("--kind", default="deepseek_v2", choices=list(mixed_lengths.KINDS))
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    write_data(options.folder)
    model = make_model(options.folder, options.kind)
    names = [name for name in CASES if not options.only or any(word in name for word in options.only)]

    def one(name: str) -> None:
        print(compared(options.folder, model, name, options.steps), flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, names))


if __name__ == "__main__":
    main()
