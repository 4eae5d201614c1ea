import pytest

from workbench.config.llamafactory import import_text
from workbench.config.presets import list_presets
from workbench.config.run_config import validated
from workbench.errors import UserError

ARTICLE = r"""CUDA_VISIBLE_DEVICES=1 llamafactory-cli train \
    --stage sft \
    --do_train True \
    --model_name_or_path deepseek-ai/deepseek-moe-16b-chat \
    --finetuning_type lora \
    --quantization_bit 4 \
    --template deepseek \
    --flash_attn auto \
    --dataset_dir data \
    --dataset oaast_sft_zh \
    --cutoff_len 4096 \
    --learning_rate 5e-05 \
    --num_train_epochs 5.0 \
    --max_samples 100000 \
    --per_device_train_batch_size 2 \
    --gradient_accumulation_steps 8 \
    --lr_scheduler_type cosine \
    --max_grad_norm 1.0 \
    --logging_steps 5 \
    --save_steps 100 \
    --warmup_steps 0 \
    --optim adamw_torch \
    --packing False \
    --report_to none \
    --output_dir saves/DeepSeek-MoE-16B-Chat/lora/train_2024-05-23-deepseek-v2 \
    --fp16 True \
    --lora_rank 16 \
    --lora_alpha 16 \
    --lora_dropout 0 \
    --lora_target q_proj,v_proj \
    --plot_loss True
"""
EXPECTED = {
    "devices": "1", "stage": "sft", "do_train": True, "model_name_or_path": "deepseek-ai/deepseek-moe-16b-chat",
    "finetuning_type": "lora", "quantization_bit": 4, "template": "deepseek", "flash_attn": "auto",
    "dataset_dir": "data", "dataset": "oaast_sft_zh", "cutoff_len": 4096, "learning_rate": 5e-5,
    "num_train_epochs": 5.0, "max_samples": 100000, "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 8, "lr_scheduler_type": "cosine", "max_grad_norm": 1.0, "logging_steps": 5,
    "save_steps": 100, "warmup_steps": 0, "optim": "adamw_torch", "packing": False, "report_to": "none",
    "output_dir": "saves/DeepSeek-MoE-16B-Chat/lora/train_2024-05-23-deepseek-v2", "fp16": True, "lora_rank": 16,
    "lora_alpha": 16, "lora_dropout": 0.0, "lora_target": "q_proj,v_proj", "plot_loss": True,
}  # fmt: skip


def full_width(text: str) -> str:
    """As some editors and input methods mangle a command."""
    return (
        text.replace("--", "－－")
        .replace(" 4 ", "\u3000４ ")
        .replace("q_proj,v_proj", "q_proj，v_proj")
        .replace("=1", "＝１")
    )


@pytest.mark.parametrize(
    "text",
    [
        ARTICLE,
        ARTICLE.replace("\\\n", "\\ "),  # line breaks lost
        ARTICLE.replace(" \\\n", "\n"),  # backslashes lost
        " ".join(ARTICLE.replace("\\", "").split()),
        ARTICLE.replace("\\\n", "\\  \r\n"),
        ARTICLE.replace("--", "—"),
        ARTICLE.replace("--", "––"),
        full_width(ARTICLE),
        "```bash\n$ " + ARTICLE + "```",
        ARTICLE.replace("--lora_target q_proj,v_proj", "--lora_target=“q_proj,v_proj”"),
        ARTICLE.replace("llamafactory-cli train", "python src/train_bash.py"),
        ARTICLE.replace(" \\\n", " ^\n"),
    ],
    ids=["as is", "breaks lost", "backslashes lost", "one line", "trailing spaces", "em dash", "en dashes", "full width",
         "fenced", "quotes", "train_bash", "cmd"],
)  # fmt: skip
def test_the_articles_command_comes_through_complete(text):
    result = import_text(text)
    assert result.left_out == []
    assert result.values == EXPECTED
    validated(result.values)


def test_the_articles_preset_is_its_command():
    preset = next(p for p in list_presets() if p.name == "deepseek-moe-16b-qlora")
    assert validated(preset.values) == validated(EXPECTED)
    assert preset.values.keys() == EXPECTED.keys()


def test_yaml_and_what_is_left_out():
    result = import_text(
        "model_name_or_path: a/b\nlora_target: all\ndeepspeed: ds.json\noverwrite_cache: true\nlora_rnk: 4"
    )
    assert result.values == {"model_name_or_path": "a/b", "lora_target": "all"}
    reasons = {key: why for key, _, why in result.left_out}
    assert reasons.keys() == {"deepspeed", "overwrite_cache", "lora_rnk"}
    assert "lora_rank" in reasons["lora_rnk"]


def test_other_launchers_flags_and_environment():
    result = import_text(
        "HF_ENDPOINT=https://mirror CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node 2 src/train.py "
        "--model_name_or_path='my model' --do_train --fp16 --learning-rate 1e-4"
    )
    assert result.values == {
        "devices": "0,1",
        "model_name_or_path": "my model",
        "do_train": True,
        "fp16": True,
        "learning_rate": 1e-4,
    }
    assert [key for key, _, _ in result.left_out] == ["HF_ENDPOINT"]


@pytest.mark.parametrize(
    ("launcher", "devices", "lost"),
    [
        ("FORCE_TORCHRUN=1 llamafactory-cli train", "all", []),
        ("FORCE_TORCHRUN=0 llamafactory-cli train", None, []),
        ("FORCE_TORCHRUN=1 NPROC_PER_NODE=2 llamafactory-cli train", "0,1", []),
        ("FORCE_TORCHRUN=1 NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 llamafactory-cli train", "all", ["NNODES"]),
        ("CUDA_VISIBLE_DEVICES=4,5,6,7 torchrun --nproc-per-node=2 --standalone src/train.py", "4,5", []),
        ("torchrun --nproc_per_node gpu --master_port 29501 src/train.py", "all", []),
        ("python -m torch.distributed.run --nproc_per_node=4 src/train.py", "0,1,2,3", []),
        ("accelerate launch --multi_gpu --num_processes 3 --main_process_port 1 src/train.py", "0,1,2", []),
        ("accelerate launch --gpu_ids 1,3 src/train.py", "1,3", []),
        ("deepspeed --num_gpus 2 src/train.py", "0,1", []),
        ("CUDA_VISIBLE_DEVICES=0 torchrun --nproc_per_node 2 src/train.py", "0", ["nproc_per_node"]),
        ("torchrun --nproc_per_node 99999999 src/train.py", None, ["nproc_per_node"]),
        ("CUDA_VISIBLE_DEVICES='' llamafactory-cli train", None, []),
    ],
)
def test_devices_of_a_launcher(launcher, devices, lost):
    result = import_text(f"{launcher} --model_name_or_path m --stage sft --do_train")
    assert result.values.get("devices") == devices and result.lost == lost
    named = import_text(f"{launcher} a.yaml", lambda name: "model_name_or_path: m\nstage: sft\ndo_train: true\n")
    assert named.values.get("devices") == devices and named.lost == lost


@pytest.mark.parametrize("text", ["", "  \n", "llamafactory-cli train config.yaml", "--lora_rank 'x", "hello there"])
def test_nothing_to_import_is_a_sentence(text):
    with pytest.raises(UserError):
        import_text(text)
