"""Options of a run: learning rate, batches, optimizer."""

from typing import Literal

from workbench.config.data_options import DataOptions
from workbench.config.option import opt

SCHEDULERS = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt", "cosine_with_min_lr", "warmup_stable_decay",
)  # fmt: skip
OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
    "lion_8bit", "lion_32bit", "paged_lion_8bit", "adafactor", "sgd", "adagrad", "rmsprop",
)  # fmt: skip


class TrainOptions(DataOptions):
    """How a run learns."""

    # training
    learning_rate: float = opt(
        5e-5,
        "train",
        ("Learning rate", "学习率"),
        ("Peak rate; 1e-4 to 2e-4 is usual for LoRA.", "峰值学习率；LoRA 常用 1e-4 到 2e-4。"),
        basic=True,
        gt=0,
        le=1,
    )
    num_train_epochs: float = opt(
        3.0,
        "train",
        ("Epochs", "训练轮数"),
        ("Passes over the data.", "遍历数据的次数。"),
        basic=True,
        gt=0,
        le=10_000,
    )
    max_steps: int = opt(
        -1,
        "train",
        ("Max steps", "最大步数"),
        ("Overrides epochs when positive.", "为正数时取代训练轮数。"),
        ge=-1,
    )
    per_device_train_batch_size: int = opt(
        1,
        "train",
        ("Batch size", "批大小"),
        ("Sequences per device and forward pass.", "每设备每次前向的序列数。"),
        basic=True,
        ge=1,
        le=4096,
        affects=("data",),
    )
    gradient_accumulation_steps: int = opt(
        1,
        "train",
        ("Gradient accumulation", "梯度累积"),
        ("Forward passes per optimizer step.", "每个优化步的前向次数。"),
        basic=True,
        ge=1,
        le=65_536,
        affects=("data",),
    )
    lr_scheduler_type: Literal[SCHEDULERS] = opt(  # type: ignore[valid-type]
        "cosine", "train", ("LR schedule", "学习率调度"), ("How the rate falls.", "学习率如何下降。")
    )
    warmup_steps: float = opt(
        0,
        "train",
        ("Warm-up steps", "预热步数"),
        ("Steps of rising rate; below 1: a share of all steps.", "学习率上升的步数；小于 1 为占比。"),
        ge=0,
    )
    warmup_ratio: float = opt(
        0.0,
        "train",
        ("Warm-up ratio", "预热比例"),
        ("Share of all steps; not with warm-up steps.", "占总步数的比例；不与预热步数同用。"),
        ge=0,
        lt=1,
    )
    optim: Literal[OPTIMIZERS] = opt(  # type: ignore[valid-type]
        "adamw_torch",
        "train",
        ("Optimizer", "优化器"),
        ("8-bit and paged ones save memory.", "8 位与分页版本节省显存。"),
    )
    weight_decay: float = opt(
        0.0, "train", ("Weight decay", "权重衰减"), ("Decoupled weight decay.", "解耦权重衰减。"), ge=0, le=1
    )
    adam_beta1: float = opt(0.9, "train", ("Adam β1", "Adam β1"), ("First moment.", "一阶矩。"), ge=0, lt=1)
    adam_beta2: float = opt(0.999, "train", ("Adam β2", "Adam β2"), ("Second moment.", "二阶矩。"), ge=0, lt=1)
    max_grad_norm: float = opt(
        1.0,
        "train",
        ("Max gradient norm", "最大梯度范数"),
        ("Gradient clipping; 0: off.", "梯度裁剪；0 为关闭。"),
        ge=0,
    )
    neftune_noise_alpha: float = opt(
        0.0,
        "train",
        ("NEFTune noise", "NEFTune 噪声"),
        ("Noise on embeddings while training; 0: off.", "训练时对嵌入加噪；0 为关闭。"),
        ge=0,
    )
    use_dft_loss: bool = opt(
        False,
        "train",
        ("DFT loss", "DFT 损失"),
        (
            "For sft: each token's loss is weighted by the probability that the model gives it.",
            "用于 sft：每个 token 的损失乘以模型给它的概率。",
        ),
    )
    use_asft_loss: bool = opt(
        False,
        "train",
        ("ASFT loss", "ASFT 损失"),
        (
            "For sft: the DFT loss, and beside it how far the model is from a reference at each trained token.",
            "用于 sft：DFT 损失，加上每个训练 token 处模型与参考模型的差距。",
        ),
    )
    asft_alpha: float = opt(
        0.1,
        "train",
        ("ASFT alpha", "ASFT alpha"),
        ("Weight of that distance.", "该差距的权重。"),
        ge=0,
        le=1000,
    )
    use_eaft_loss: bool = opt(
        False,
        "train",
        ("EAFT loss", "EAFT 损失"),
        (
            "For sft: each token's loss is weighted by how unsure the model is there.",
            "用于 sft：每个 token 的损失按模型在该处的不确定程度加权。",
        ),
    )
    eaft_alpha: float = opt(
        1.0,
        "train",
        ("EAFT alpha", "EAFT alpha"),
        ("Power of that weight; 0: all tokens alike.", "该权重的指数；0 表示所有 token 相同。"),
        ge=0,
        le=100,
    )
    moe_aux_loss_coef: float | None = opt(
        None,
        "train",
        ("Router balance loss", "路由均衡损失"),
        (
            "Weight of the load-balancing loss of mixture-of-experts models; empty: off. DeepSeek used 0.001 to 0.003.",
            "混合专家模型负载均衡损失的权重；留空为关闭。DeepSeek 使用 0.001 至 0.003。",
        ),
        ge=0,
    )
    seed: int = opt(
        42,
        "train",
        ("Seed", "随机种子"),
        ("Same config and seed, same losses.", "配置与种子相同则损失相同。"),
        ge=0,
        le=2**32 - 1,
        affects=("data",),
    )
