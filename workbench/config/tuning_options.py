"""Options of a run: adapters, frozen layers, and optimizers with options of their own."""

from typing import Literal

from workbench.config.option import opt
from workbench.config.train_options import TrainOptions


class TuningOptions(TrainOptions):
    """What of the model a run changes."""

    # LoRA
    lora_rank: int = opt(
        8,
        "lora",
        ("LoRA rank", "LoRA 秩"),
        ("Size of the adapters.", "适配器大小。"),
        basic=True,
        ge=1,
        le=1024,
    )
    lora_alpha: int | None = opt(
        None,
        "lora",
        ("LoRA alpha", "LoRA alpha"),
        ("Scale is alpha / rank; empty: twice the rank.", "缩放为 alpha / 秩；留空为秩的两倍。"),
        basic=True,
        ge=1,
        le=8192,
    )
    lora_dropout: float = opt(
        0.0,
        "lora",
        ("LoRA dropout", "LoRA dropout"),
        ("Dropout inside the adapters.", "适配器内的 dropout。"),
        ge=0,
        lt=1,
    )
    lora_target: str = opt(
        "all",
        "lora",
        ("LoRA target", "LoRA 目标"),
        (
            "all (every linear layer and all experts, but not the output head and routers) or names of modules, comma-separated.",
            "all（所有线性层与全部专家，输出头与路由除外）或模块名，逗号分隔。",
        ),
        basic=True,
    )
    additional_target: str | None = opt(
        None,
        "lora",
        ("Also train", "额外训练模块"),
        ("Whole modules trained and saved beside the adapters.", "与适配器一同训练并保存的完整模块。"),
    )
    use_rslora: bool = opt(False, "lora", ("rsLoRA", "rsLoRA"), ("Scale alpha / √rank.", "缩放为 alpha / √秩。"))
    use_dora: bool = opt(False, "lora", ("DoRA", "DoRA"), ("Weight-decomposed LoRA; slower.", "权重分解 LoRA，较慢。"))
    loraplus_lr_ratio: float | None = opt(
        None,
        "lora",
        ("LoRA+ ratio", "LoRA+ 比率"),
        ("Learning rate of B over that of A; 16 is usual.", "B 与 A 的学习率之比，常用 16。"),
        gt=0,
    )

    pissa_init: bool = opt(
        False,
        "lora",
        ("PiSSA", "PiSSA"),
        (
            "Starts the adapters as the weights' largest singular vectors; saved as plain LoRA of twice the rank. Not on quantized weights.",
            "以权重最大的奇异向量初始化适配器；保存为秩翻倍的普通 LoRA。不可用于量化权重。",
        ),
    )
    pissa_iter: int = opt(
        16,
        "lora",
        ("PiSSA iterations", "PiSSA 迭代次数"),
        ("Of the fast decomposition; -1: the exact one.", "快速分解的迭代次数；-1 为精确分解。"),
        ge=-1,
        le=1000,
    )
    create_new_adapter: bool = opt(
        False,
        "lora",
        ("New adapter", "新建适配器"),
        (
            "Merges the given adapters into the base and trains a new one; what is saved holds them all.",
            "将所给适配器合并到基座后训练新的适配器；保存的适配器包含全部。",
        ),
    )

    # freeze and OFT
    freeze_trainable_layers: int = opt(
        2,
        "tuning",
        ("Layers to train", "训练的层数"),
        ("Of freeze: the last so many layers; negative: the first.", "用于 freeze：最后若干层；负数为最前若干层。"),
        ge=-10_000,
        le=10_000,
    )
    freeze_trainable_modules: str = opt(
        "all",
        "tuning",
        ("Modules of these layers", "这些层中的模块"),
        (
            "Of freeze: all, or names of a layer's parts such as self_attn, mlp, comma-separated.",
            "用于 freeze：all，或层内部分的名称，如 self_attn、mlp，逗号分隔。",
        ),
    )
    freeze_extra_modules: str | None = opt(
        None,
        "tuning",
        ("Modules outside the layers", "层外模块"),
        (
            "Of freeze: also these, such as embed_tokens, norm, lm_head, comma-separated.",
            "用于 freeze：另外训练这些模块，如 embed_tokens、norm、lm_head，逗号分隔。",
        ),
    )
    use_llama_pro: bool = opt(
        False,
        "tuning",
        ("LLaMA Pro", "LLaMA Pro"),
        (
            "Trains only the blocks that LLaMA Pro put in: every n-th layer, as many as the layers to train. With freeze or lora.",
            "只训练 LLaMA Pro 插入的块：每隔 n 层一个，共为所设的训练层数。用于 freeze 或 lora。",
        ),
    )
    oft_rank: int = opt(
        0,
        "tuning",
        ("OFT rank", "OFT 秩"),
        ("Number of blocks of a layer; 0: by the block size.", "每层的块数；0 表示由块大小决定。"),
        ge=0,
        le=65_536,
    )
    oft_block_size: int = opt(
        32,
        "tuning",
        ("OFT block size", "OFT 块大小"),
        ("Larger blocks train more; 0: by the rank.", "块越大，训练的参数越多；0 表示由秩决定。"),
        ge=0,
        le=4096,
    )
    oft_target: str = opt(
        "all",
        "tuning",
        ("OFT target", "OFT 目标"),
        (
            "all (every linear layer, but not the output head, routers and fused experts) or names of modules, comma-separated.",
            "all（所有线性层，输出头、路由与融合的专家除外）或模块名，逗号分隔。",
        ),
    )
    module_dropout: float = opt(
        0.0,
        "tuning",
        ("OFT dropout", "OFT dropout"),
        ("Share of blocks that a step leaves out.", "每步略去的块的比例。"),
        ge=0,
        lt=1,
    )

    # optimizers with options of their own
    use_galore: bool = opt(
        False,
        "optim",
        ("GaLore", "GaLore"),
        (
            "Low-rank gradients of all weights; with full or freeze. Needs galore-torch.",
            "对全部权重使用低秩梯度，用于 full 或 freeze。需要 galore-torch。",
        ),
    )
    galore_target: str = opt(
        "all",
        "optim",
        ("GaLore target", "GaLore 目标"),
        (
            "all (linear layers, but not the output head) or parts of their names, comma-separated.",
            "all（除输出头外的线性层）或其名称的一部分，逗号分隔。",
        ),
    )
    galore_rank: int = opt(
        16,
        "optim",
        ("GaLore rank", "GaLore 秩"),
        ("Of the projected gradients.", "投影后梯度的秩。"),
        ge=1,
        le=65_536,
    )
    galore_update_interval: int = opt(
        200,
        "optim",
        ("GaLore interval", "GaLore 间隔"),
        ("Steps between new projections.", "更新投影的间隔步数。"),
        ge=1,
    )
    galore_scale: float = opt(
        2.0,
        "optim",
        ("GaLore scale", "GaLore 缩放"),
        ("Of its updates.", "更新量的缩放。"),
        gt=0,
    )
    galore_proj_type: Literal["std", "reverse_std", "right", "left", "full"] = opt(
        "std",
        "optim",
        ("GaLore projection", "GaLore 投影"),
        ("std projects the longer side.", "std 投影较长的一边。"),
    )
    galore_layerwise: bool = opt(
        False,
        "optim",
        ("GaLore by layer", "GaLore 逐层"),
        (
            "Each layer's step in its way back; less memory, gradient accumulation 1.",
            "反向时逐层更新，更省显存；梯度累积须为 1。",
        ),
    )
    use_apollo: bool = opt(
        False,
        "optim",
        ("APOLLO", "APOLLO"),
        (
            "AdamW's scaling from low-rank gradients; with full or freeze. Needs apollo-torch.",
            "由低秩梯度得到 AdamW 的缩放，用于 full 或 freeze。需要 apollo-torch。",
        ),
    )
    apollo_target: str = opt(
        "all",
        "optim",
        ("APOLLO target", "APOLLO 目标"),
        (
            "all (linear layers, but not the output head) or parts of their names, comma-separated.",
            "all（除输出头外的线性层）或其名称的一部分，逗号分隔。",
        ),
    )
    apollo_rank: int = opt(
        16,
        "optim",
        ("APOLLO rank", "APOLLO 秩"),
        ("Of the projected gradients.", "投影后梯度的秩。"),
        ge=1,
        le=65_536,
    )
    apollo_update_interval: int = opt(
        200,
        "optim",
        ("APOLLO interval", "APOLLO 间隔"),
        ("Steps between new projections.", "更新投影的间隔步数。"),
        ge=1,
    )
    apollo_scale: float = opt(
        32.0,
        "optim",
        ("APOLLO scale", "APOLLO 缩放"),
        ("Of its updates.", "更新量的缩放。"),
        gt=0,
    )
    apollo_proj: Literal["random", "svd"] = opt(
        "random",
        "optim",
        ("APOLLO projection", "APOLLO 投影"),
        ("random or by singular vectors.", "随机或按奇异向量。"),
    )
    apollo_proj_type: Literal["std", "right", "left"] = opt(
        "std",
        "optim",
        ("APOLLO side", "APOLLO 投影边"),
        ("std projects the longer side.", "std 投影较长的一边。"),
    )
    apollo_scale_type: Literal["channel", "tensor"] = opt(
        "channel",
        "optim",
        ("APOLLO scaling", "APOLLO 缩放方式"),
        ("By channel, or one for a tensor (APOLLO-Mini).", "逐通道，或整个张量一个（APOLLO-Mini）。"),
    )
    apollo_layerwise: bool = opt(
        False,
        "optim",
        ("APOLLO by layer", "APOLLO 逐层"),
        (
            "Each layer's step in its way back; less memory, gradient accumulation 1.",
            "反向时逐层更新，更省显存；梯度累积须为 1。",
        ),
    )
    apollo_scale_front: bool = opt(
        False,
        "optim",
        ("APOLLO limiter first", "APOLLO 先限幅"),
        ("Limits the growth of norms before the scaling.", "在缩放之前限制范数增长。"),
    )
    use_badam: bool = opt(
        False,
        "optim",
        ("BAdam", "BAdam"),
        (
            "One block of layers at a time; with full or freeze. Needs badam.",
            "每次只更新一个块，用于 full 或 freeze。需要 badam。",
        ),
    )
    badam_mode: Literal["layer", "ratio"] = opt(
        "layer",
        "optim",
        ("BAdam mode", "BAdam 模式"),
        ("Blocks are layers, or a share of each weight.", "块为层，或每个权重的一部分。"),
    )
    badam_start_block: int | None = opt(
        None,
        "optim",
        ("BAdam start", "BAdam 起始块"),
        ("Number of the first block; empty: by the order.", "首个块的编号；留空按顺序。"),
        ge=0,
    )
    badam_switch_mode: Literal["ascending", "descending", "random", "fixed"] = opt(
        "ascending",
        "optim",
        ("BAdam order", "BAdam 顺序"),
        ("Of the blocks.", "块的顺序。"),
    )
    badam_switch_interval: int = opt(
        50,
        "optim",
        ("BAdam interval", "BAdam 间隔"),
        ("Steps with a block; -1: it stays.", "每个块的步数；-1 表示不切换。"),
        ge=-1,
    )
    badam_update_ratio: float = opt(
        0.05,
        "optim",
        ("BAdam share", "BAdam 比例"),
        ("Share of each weight (mode ratio).", "每个权重的比例（ratio 模式）。"),
        gt=0,
        le=1,
    )
    badam_mask_mode: Literal["adjacent", "scatter"] = opt(
        "adjacent",
        "optim",
        ("BAdam mask", "BAdam 掩码"),
        ("Whether that share lies together (mode ratio).", "该比例是否相邻（ratio 模式）。"),
    )
    badam_verbose: int = opt(
        0,
        "optim",
        ("BAdam log", "BAdam 日志"),
        ("0: nothing, 1: each block, 2: its parameters.", "0 不输出，1 输出块，2 输出其参数。"),
        ge=0,
        le=2,
    )
    use_adam_mini: bool = opt(
        False,
        "optim",
        ("Adam-mini", "Adam-mini"),
        ("One second moment for a block of weights. Needs adam-mini.", "每块权重共用一个二阶矩。需要 adam-mini。"),
    )
    use_muon: bool = opt(
        False,
        "optim",
        ("Muon", "Muon"),
        ("Orthogonal updates of matrices, AdamW for the rest.", "矩阵用正交化更新，其余用 AdamW。"),
    )
