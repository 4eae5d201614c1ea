"""Packed conversations do not see each other, on a GPU: loss and LoRA gradients of packed sequences against those of
the rows alone.

    python benchmarks/packing.py FOLDER

Through the trainer that a run has (`build_trainer`, `training_step`): bfloat16, LoRA, tiny random Llama and
DeepSeek-V2, each attention that is there. Flash attention is the package flash-attn if it is installed, else PyTorch's
own build of the same kernels (`torch.nn.attention.varlen`), put where transformers looks for the package. A last line
mixes all rows into one sequence on purpose: what the numbers would be if it failed.
"""

import inspect
import json
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from tests.tiny import make_tiny_model  # noqa: E402
from workbench.config.run_config import validated  # noqa: E402
from workbench.data.training_set import load_data  # noqa: E402
from workbench.runs.run import create_run  # noqa: E402
from workbench.storage.workspace import Workspace  # noqa: E402
from workbench.train.fast.strategy import PlainStep  # noqa: E402
from workbench.train.trainer import build_trainer  # noqa: E402


def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, softmax_scale=None):
    """flash-attn's `flash_attn_varlen_func` by PyTorch's build of it."""
    from torch.nn.attention.varlen import varlen_attn

    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    known = inspect.signature(varlen_attn).parameters
    more = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": causal}
    if "scale" in known:
        more["scale"] = softmax_scale
    elif softmax_scale is not None:
        q = q * (softmax_scale * q.shape[-1] ** 0.5)
    return varlen_attn(q, k, v, cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k), **more)


def plain(q, k, v, causal, softmax_scale=None):
    """flash-attn's `flash_attn_func`, [batch, length, heads, dim]."""
    length = q.shape[1]
    bounds = torch.arange(0, q.shape[0] * length + 1, length, device=q.device, dtype=torch.int32)
    flat = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))
    return varlen(*flat, bounds, bounds, length, length, causal, softmax_scale).view(q.shape[0], length, q.shape[2], -1)


def use_flash_attention() -> str:
    """Make flash attention usable; returns whose it is."""
    from transformers import modeling_flash_attention_utils as flash
    from transformers.utils import is_flash_attn_2_available

    if is_flash_attn_2_available():
        return "flash-attn"
    flash._lazy_imports = lambda *_, **__: (plain, varlen, None, flash._pad_input, flash._unpad_input)
    return "torch.nn.attention.varlen"


def make_moe(folder: Path, tokenizer) -> Path:
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    torch.manual_seed(0)
    config = DeepseekV2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=32,
        q_lora_rank=None,
        qk_rope_head_dim=32,
        qk_nope_head_dim=32,
        v_head_dim=32,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        topk_method="greedy",
        norm_topk_prob=False,
        max_position_embeddings=2048,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=0,
    )
    DeepseekV2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def measured(
    model_folder: Path, place: Workspace, data: Path, attention: str, packing: bool, joined: bool = False
) -> tuple[float, torch.Tensor]:
    """`(summed loss, all LoRA gradients)` of one pass over the rows."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    config = validated(
        {
            "model_name_or_path": str(model_folder),
            "dataset": "rows",
            "dataset_dir": str(data),
            "cutoff_len": 512,
            "packing": packing,
            "report_to": "none",
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "disable_gradient_checkpointing": True,
        }
    )
    rows, _ = load_data(config, place, tokenizer, lambda *_: None, log=lambda words: None)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    first = "eager" if attention.startswith("flash") else attention
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16, attn_implementation=first).to(
        device
    )
    base.config._attn_implementation = attention
    torch.manual_seed(0)
    names = "q_proj,o_proj,gate_proj" if "llama" in model_folder.name else "q_proj,kv_a_proj_with_mqa,o_proj"
    model = get_peft_model(
        base, LoraConfig(r=8, lora_alpha=16, target_modules=names.split(","), init_lora_weights=False)
    )
    trainer = build_trainer(
        create_run(place, config),
        config,
        model,
        tokenizer,
        rows,
        None,
        torch.bfloat16,
        SimpleNamespace(requested=False),
    )
    trainer.step_strategy = PlainStep() if joined else trainer.step_strategy
    trainer.current_gradient_accumulation_steps = 1
    loss = 0.0
    for batch in torch.utils.data.DataLoader(rows, batch_size=1, collate_fn=trainer.data_collator):
        if joined:  # as if the bounds were lost
            length = batch["input_ids"].shape[1]
            batch = {
                "input_ids": batch["input_ids"],
                "labels": batch["labels"],
                "position_ids": torch.arange(length)[None],
            }
        loss += float(trainer.training_step(model, dict(batch), num_items_in_batch=torch.tensor(1000)))
    gradient = torch.cat(
        [p.grad.float().flatten() for p in model.parameters() if p.requires_grad and p.grad is not None]
    )
    return loss, gradient


def main() -> None:
    from transformers import AutoTokenizer

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    place = Workspace(folder / "workspace").create()
    llama = make_tiny_model(folder / "tiny-llama")
    models = [llama, make_moe(folder / "tiny-moe", AutoTokenizer.from_pretrained(llama))]
    rows = [
        {"prompt": f"Question {i}{'?' * (i % 50)}", "completion": f"Answer {i * i} " + "x" * (i % 90)}
        for i in range(60)
    ]
    rows.append({"prompt": "y" * 900, "completion": "Long."})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl"}}))
    whose = use_flash_attention()
    print(
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}, torch {torch.__version__}; flash"
        f" attention: {whose}"
    )
    for model in models:
        for attention in ("eager", "sdpa", "flash_attention_2"):
            if attention.startswith("flash") and not torch.cuda.is_available():
                continue
            alone, packed = (measured(model, place, folder, attention, packing) for packing in (False, True))
            told = f"loss {alone[0]:.4f} alone, {packed[0]:.4f} packed"
            off = float((alone[1] - packed[1]).norm() / alone[1].norm())
            print(f"{model.name} {attention}: {told}; gradients differ by {off:.2%}", flush=True)
        wrong = measured(model, place, folder, "sdpa", True, joined=True)
        off = float((alone[1] - wrong[1]).norm() / alone[1].norm())
        print(f"{model.name} bounds lost on purpose: loss {wrong[0]:.4f}; gradients differ by {off:.2%}", flush=True)


if __name__ == "__main__":
    main()
