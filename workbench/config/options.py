"""Every option of a run and of a loaded model, defined once.

Name, type, default, range, group, label and help (English and Chinese) stand here and nowhere else: the form,
the YAML file, `--set key=value`, the import of LLaMA-Factory commands and `docs/options.md` are made from it.
The names and, unless noted, the defaults are LLaMA-Factory's.
"""

import math
from typing import Literal

from workbench.config.option import GROUPS, Options, literal_choices, opt, options_that_affect, tags
from workbench.config.stage_options import StageOptions

__all__ = ["GROUPS", "EngineConfig", "ModelOptions", "RunConfig", "literal_choices", "options_that_affect", "tags"]

SCHEDULERS = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt", "cosine_with_min_lr", "warmup_stable_decay",
)  # fmt: skip
OPTIMIZERS = (
    "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
    "lion_8bit", "lion_32bit", "paged_lion_8bit", "adafactor", "sgd", "adagrad", "rmsprop",
)  # fmt: skip
ATTENTION = ("auto", "disabled", "eager", "sdpa", "fa2", "fa3", "flash_attention_2", "flash_attention_3")
ROPE = ("none", "linear", "dynamic", "yarn", "llama3")


class ModelOptions(Options):
    """What it takes to load a model; the trainer and the engine share it."""

    model_name_or_path: str | None = opt(
        None,
        "model",
        ("Model", "模型"),
        (
            "A name from the catalogue, a folder, or a Hugging Face id.",
            "目录中的名称、本地文件夹或 Hugging Face 名称。",
        ),
        basic=True,
        affects=("data", "path"),
    )
    adapter_name_or_path: str | None = opt(
        None,
        "model",
        ("Adapter to continue from", "继续训练的适配器"),
        (
            "A run or a folder with a PEFT adapter of this base model. Of several, comma-separated, all but the last are merged into the base first.",
            "本模型的某次运行，或含 PEFT 适配器的文件夹。若有多个（逗号分隔），除最后一个外先合并到基座。",
        ),
        affects=("path",),
    )
    model_revision: str = opt(
        "main",
        "model",
        ("Revision", "版本"),
        ("Branch, tag or commit on the hub.", "Hub 上的分支、标签或提交。"),
        affects=("data",),
    )
    trust_remote_code: bool = opt(
        False,
        "model",
        ("Trust remote code", "信任远程代码"),
        (
            "Runs Python code that comes with the model. Only for sources that you trust.",
            "会执行模型自带的 Python 代码，仅用于可信来源。",
        ),
        affects=("data", "loading"),
    )
    template: str = opt(
        "auto",
        "model",
        ("Chat template", "对话模板"),
        (
            "auto takes the model's own. Also: deepseek, chatml, llama3, qwen, glm4, default.",
            "auto 使用模型自带模板。也可选：deepseek、chatml、llama3、qwen、glm4、default。",
        ),
        affects=("data", "loading"),
    )
    enable_thinking: Literal["auto", "on", "off"] = opt(
        "auto",
        "model",
        ("Thinking", "思考"),
        (
            "For models that can do both, such as Qwen3: on lets the model think first, off answers at once; the prompt then holds the empty thought, which is not trained. auto: as the chat template has it.",
            "用于可切换思考的模型（如 Qwen3）：on 先思考，off 直接回答，此时空的思考由提示给出，不参与训练。auto 按对话模板的默认。",
        ),
        affects=("data", "loading"),
    )
    quantization_bit: Literal[4, 8] | None = opt(
        None,
        "memory",
        ("Quantization", "量化"),
        (
            "4 = NF4 (QLoRA), 8 = LLM.int8, empty = none. 4 bit needs about a quarter of the memory.",
            "4 = NF4（QLoRA），8 = LLM.int8，留空为不量化。4 位约需四分之一显存。",
        ),
        basic=True,
        affects=("data",),
    )
    quantization_type: Literal["nf4", "fp4"] = opt(
        "nf4",
        "memory",
        ("4-bit type", "4 位类型"),
        ("nf4 fits normally distributed weights (QLoRA paper).", "nf4 适合正态分布的权重（QLoRA 论文）。"),
    )
    double_quantization: bool = opt(
        True,
        "memory",
        ("Double quantization", "双重量化"),
        ("Quantizes the scales too: 0.4 bit per weight less.", "同时量化缩放系数，每个权重再省 0.4 位。"),
    )
    keep_quantized: bool = opt(
        True,
        "memory",
        ("Keep the 4-bit weights", "保留 4 位权重"),
        (
            "The first load of a large model writes its 4-bit weights into the workspace's cache (a quarter of the model's size; the last three models), and later loads read them instead of packing again.",
            "首次加载大模型时把 4 位权重写入工作区缓存（约为模型大小的四分之一，保留最近三个），以后直接读取，不再重新量化。",
        ),
        affects=("loading",),
    )
    flash_attn: Literal[ATTENTION] = opt(  # type: ignore[valid-type]
        "auto",
        "rope",
        ("Attention", "注意力实现"),
        (
            "auto lets transformers choose; disabled and eager are the plain one.",
            "auto 由 transformers 选择；disabled 与 eager 为朴素实现。",
        ),
        affects=("loading",),
    )
    attn_fallback: bool = opt(
        False,
        "rope",
        ("Fall back if missing", "缺失时回退"),
        (
            "Use sdpa when the chosen attention is not installed, instead of stopping.",
            "所选注意力未安装时改用 sdpa，而不是停止。",
        ),
        affects=("loading",),
    )
    rope_scaling: Literal[ROPE] = opt(  # type: ignore[valid-type]
        "none",
        "rope",
        ("RoPE scaling", "RoPE 缩放"),
        (
            "Stretches the context: linear and dynamic (NTK) interpolation, YaRN, Llama 3.",
            "扩展上下文：线性与动态（NTK）插值、YaRN、Llama 3。",
        ),
        affects=("loading",),
    )
    rope_factor: float = opt(
        2.0,
        "rope",
        ("RoPE factor", "RoPE 倍数"),
        ("Times the original context. Used with RoPE scaling.", "相对原上下文的倍数，配合 RoPE 缩放使用。"),
        gt=1,
        le=64,
        affects=("loading",),
    )


class EngineConfig(ModelOptions):
    """A loaded model for chat and the API."""

    infer_dtype: Literal["auto", "float16", "bfloat16", "float32"] = opt(
        "auto",
        "memory",
        ("Data type", "数据类型"),
        (
            "auto: bf16 where the GPU has it, else fp16; float32 on the CPU.",
            "auto：GPU 支持则 bf16，否则 fp16；CPU 用 float32。",
        ),
    )
    devices: str = opt(
        "auto",
        "memory",
        ("Devices", "设备"),
        ("auto, cpu, or GPU ids such as 0 or 0,1.", "auto、cpu 或 GPU 编号，如 0 或 0,1。"),
        affects=("loading",),
    )
    cpu_weights: Literal["auto", "float16", "int8", "float32"] = opt(
        "auto",
        "memory",
        ("Weights on the CPU", "CPU 上的权重"),
        (
            "auto: linear layers are kept in 16 bits where that changes no weight (bf16 models), and computed in"
            " float32. float16: in any case. int8: half of the memory and faster answers, which may differ a little.",
            "auto：若不改变权重（bf16 模型），线性层以 16 位保存，以 float32 计算。float16：总是如此。"
            "int8：内存减半、回答更快，但结果可能略有不同。",
        ),
    )
    engine: Literal["own", "vllm", "sglang"] = opt(
        "own",
        "memory",
        ("Engine", "引擎"),
        (
            "What decodes: the workbench's own engine, or vLLM or SGLang, which is started here or found at engine_url.",
            "由谁解码：本工作台自己的引擎，或 vLLM、SGLang（在此启动，或位于 engine_url）。",
        ),
        affects=("loading",),
    )
    engine_url: str | None = opt(
        None,
        "memory",
        ("Engine's address", "引擎地址"),
        (
            "A vLLM or SGLang server that runs already, such as http://10.0.0.5:8000. Of the model here only the tokenizer"
            " and the chat template are read. The command line takes its key from WORKBENCH_ENGINE_KEY.",
            "已在运行的 vLLM 或 SGLang 服务器，如 http://10.0.0.5:8000。此处的模型只读取分词器与对话模板。命令行从 WORKBENCH_ENGINE_KEY 取其密钥。",
        ),
        max_length=500,
        affects=("loading",),
    )
    tensor_parallel_size: int = opt(
        1,
        "memory",
        ("GPUs for one model", "单个模型的 GPU 数"),
        (
            "For vLLM and SGLang: the model is split over so many GPUs.",
            "用于 vLLM 与 SGLang：模型分布在这么多 GPU 上。",
        ),
        ge=1,
        le=64,
        affects=("loading",),
    )
    gpu_memory_utilization: float | None = opt(
        None,
        "memory",
        ("Share of the GPU memory", "GPU 显存份额"),
        (
            "For vLLM (gpu-memory-utilization) and SGLang (mem-fraction-static). Empty: as the engine has it.",
            "用于 vLLM（gpu-memory-utilization）与 SGLang（mem-fraction-static）。留空：由引擎决定。",
        ),
        ge=0.05,
        le=0.99,
        affects=("loading",),
    )
    max_model_len: int | None = opt(
        None,
        "memory",
        ("Longest context", "最大上下文"),
        (
            "For vLLM and SGLang: tokens of a prompt and its answer. Empty: as the model has it.",
            "用于 vLLM 与 SGLang：提示与回答的 token 总数。留空：由模型决定。",
        ),
        ge=16,
        le=16_777_216,
        affects=("loading",),
    )

    @property
    def external(self) -> bool:
        """Whether another engine decodes."""
        return self.engine != "own" or self.engine_url is not None


class RunConfig(StageOptions, ModelOptions):
    """One fine-tuning run."""

    run_name: str | None = opt(
        None,
        "output",
        ("Run name", "运行名称"),
        ("Shown in lists; part of the run's folder name.", "显示在列表中，并作为文件夹名的一部分。"),
        basic=True,
        max_length=80,
    )
    do_train: bool = opt(
        True,
        "train",
        ("Train", "执行训练"),
        (
            "Off only with do_predict: the run then answers and trains nothing.",
            "仅在 do_predict 时可关闭：只作答，不训练。",
        ),
    )
    finetuning_type: Literal["lora", "full", "freeze", "oft"] = opt(
        "lora",
        "lora",
        ("Method", "方法"),
        (
            "lora and oft train small adapters; full trains all weights, freeze those of some layers (neither on quantized weights).",
            "lora 与 oft 训练小适配器；full 训练全部权重，freeze 训练部分层的权重（后两者不可量化）。",
        ),
    )

    # data
    dataset: str | None = opt(
        None,
        "data",
        ("Datasets", "数据集"),
        ("Names from dataset_info.json, comma-separated.", "dataset_info.json 中的名称，逗号分隔。"),
        basic=True,
        affects=("data",),
    )
    dataset_dir: str = opt(
        "data",
        "data",
        ("Dataset folder", "数据集目录"),
        ("The folder with dataset_info.json.", "含 dataset_info.json 的文件夹。"),
        affects=("data", "path"),
    )
    eval_dataset: str | None = opt(
        None,
        "eval",
        ("Evaluation datasets", "评估数据集"),
        ("Separate datasets to evaluate on.", "单独用于评估的数据集。"),
        affects=("data",),
    )
    cutoff_len: int = opt(
        2048,
        "data",
        ("Cutoff length", "截断长度"),
        (
            "Longest sequence in tokens; longer conversations lose their oldest turns. 0: no limit.",
            "最长序列（token）；更长的对话会去掉最早的轮次。0 表示不限。",
        ),
        basic=True,
        ge=0,
        le=1_048_576,
        affects=("data",),
    )
    max_samples: int | None = opt(
        None,
        "data",
        ("Max samples", "最大样本数"),
        ("At most this many rows of each dataset.", "每个数据集最多取多少行。"),
        ge=1,
        affects=("data",),
    )
    mix_strategy: Literal["concat", "interleave_under", "interleave_over", "interleave_once"] = opt(
        "concat",
        "data",
        ("Mixing", "混合方式"),
        (
            "Several datasets one after the other, or interleaved until the first (under) or the last one (over: others repeat, once: none repeats) is used up.",
            "多个数据集依次拼接，或交错直到最短（under）或最长的用尽（over 会重复较短的，once 不重复）。",
        ),
        affects=("data",),
    )
    interleave_probs: str | None = opt(
        None,
        "data",
        ("Mixing shares", "混合比例"),
        (
            "For interleaving: one share for each dataset, such as 0.7,0.3. Empty: in turn.",
            "用于交错：每个数据集一个比例，如 0.7,0.3。留空为轮流。",
        ),
        affects=("data",),
    )
    add_tokens: str | None = opt(
        None,
        "data",
        ("New tokens", "新增 token"),
        (
            "Texts that become one token each, comma-separated. With adapters, embedding and head are then trained, too.",
            "各自成为一个 token 的文本，逗号分隔。使用适配器时会同时训练嵌入与输出头。",
        ),
        affects=("data",),
        max_length=20_000,
    )
    add_special_tokens: str | None = opt(
        None,
        "data",
        ("New special tokens", "新增特殊 token"),
        ("As new tokens, but left out of answers as shown.", "同新增 token，但在显示回答时略去。"),
        affects=("data",),
        max_length=20_000,
    )
    resize_vocab: bool = opt(
        False,
        "data",
        ("Rows for all tokens", "补足词表行"),
        (
            "Embedding and head get rows for all tokens of the tokenizer, and are trained with adapters. New tokens do so anyway.",
            "为分词器的全部 token 补足嵌入与输出头的行，并随适配器训练。新增 token 时总是如此。",
        ),
    )
    skip_broken_rows: bool = opt(
        False,
        "data",
        ("Skip broken rows", "跳过损坏的行"),
        (
            "Train on the rest when a dataset has rows that cannot be used; otherwise they stop the run.",
            "数据集中有无法使用的行时用其余行训练；否则运行会停止。",
        ),
        affects=("data",),
    )
    packing: bool = opt(
        False,
        "data",
        ("Packing", "序列打包"),
        (
            "Joins short conversations to full sequences; they do not see each other.",
            "将短对话拼成满长序列，彼此不可见。",
        ),
        affects=("data",),
    )
    neat_packing: bool = opt(
        False,
        "data",
        ("Neat packing", "无污染打包"),
        (
            "Same as packing here: packed conversations are always kept apart.",
            "与 packing 相同：打包的对话始终互相隔离。",
        ),
        affects=("data",),
    )
    train_on_prompt: bool = opt(
        False,
        "data",
        ("Train on prompt", "训练提示部分"),
        ("Loss on user and system text too.", "对用户与系统文本也计算损失。"),
        affects=("data",),
    )
    mask_history: bool = opt(
        False,
        "data",
        ("Mask history", "屏蔽历史"),
        ("Loss on the last answer only.", "只对最后一个回答计算损失。"),
        affects=("data",),
    )
    disable_shuffling: bool = opt(
        False,
        "data",
        ("Keep the order", "保持顺序"),
        ("Rows come in the order of the dataset, in every epoch.", "每轮都按数据集中的顺序取行。"),
    )
    streaming: bool = opt(
        False,
        "data",
        ("Read while training", "边训练边读取"),
        (
            "Rows are tokenized as they come, for data that is too large to tokenize first. Needs max steps.",
            "读到时才分词，适合过大而无法预先分词的数据。需要设置最大步数。",
        ),
        affects=("data",),
    )
    buffer_size: int = opt(
        16384,
        "data",
        ("Shuffle window", "打乱窗口"),
        ("Rows that are shuffled among each other while streaming.", "边读边训时相互打乱的行数。"),
        ge=1,
        le=10_000_000,
    )
    tokenized_path: str | None = opt(
        None,
        "data",
        ("Tokenized rows", "已分词数据"),
        (
            "A folder with tokenized rows, which are used instead of the datasets; where there is none, the run writes it.",
            "已分词数据的文件夹，存在则代替数据集使用；不存在则由本次运行写入。",
        ),
        affects=("data",),
    )
    preprocessing_num_workers: int | None = opt(
        None,
        "data",
        ("Preprocessing workers", "预处理进程数"),
        ("Processes that tokenize; empty: all cores.", "分词进程数；留空为全部核心。"),
        ge=1,
        le=256,
        affects=("data",),
    )
    dataloader_num_workers: int = opt(
        0,
        "data",
        ("Loader workers", "加载进程数"),
        ("Processes that feed batches.", "供给批次的进程数。"),
        ge=0,
        le=64,
    )

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

    # precision and memory
    fp16: bool = opt(
        False, "memory", ("fp16", "fp16"), ("Half precision; for V100 and T4.", "半精度；适用于 V100 与 T4。")
    )
    bf16: bool = opt(
        False,
        "memory",
        ("bf16", "bf16"),
        ("bfloat16; neither ticked: chosen for the device.", "bfloat16；都不选则按设备决定。"),
    )
    disable_gradient_checkpointing: bool = opt(
        False,
        "memory",
        ("No gradient checkpointing", "关闭梯度检查点"),
        ("Faster, but keeps all activations in memory.", "更快，但激活全部留在显存。"),
    )
    torch_compile: Literal["auto", "on", "off"] = opt(
        "auto",
        "memory",
        ("Compile layers", "编译各层"),
        (
            "Fuses each layer's operations on a GPU; costs about a minute at the start. auto: where that saves more.",
            "在 GPU 上融合每层的运算；开始时约需一分钟。auto：仅在总时间更短时使用。",
        ),
    )
    cuda_graphs: Literal["auto", "on", "off"] = opt(
        "auto",
        "memory",
        ("Recorded steps", "录制训练步"),
        (
            "Replays a training step on the GPU without Python in between, as a CUDA graph.",
            "以 CUDA graph 在 GPU 上重放训练步，省去 Python 开销。",
        ),
    )
    activation_memory: Literal["auto", "least"] = opt(
        "auto",
        "memory",
        ("Activations", "激活显存"),
        (
            "With compiled layers. auto: use the memory there is, to compute less twice. least: compute layers again and keep "
            "what they store in the host's memory.",
            "用于编译的层。auto：用足可用显存以减少重算。least：重算各层，并将其所存放到主机内存。",
        ),
    )
    max_gpu_memory: float | None = opt(
        None,
        "memory",
        ("GPU memory limit", "显存上限"),
        ("GiB that the run may take; empty: all that is free.", "本次运行可用的显存（GiB）；留空为全部可用。"),
        gt=0,
    )
    device_map: Literal["none", "auto"] = opt(
        "none",
        "memory",
        ("Split over GPUs", "多卡切分"),
        (
            "auto spreads the layers of one model over all given GPUs.",
            "auto 将模型各层分布到所给的全部 GPU。",
        ),
    )
    devices: str = opt(
        "auto",
        "memory",
        ("Devices", "设备"),
        ("auto, cpu, or GPU ids such as 0 or 0,1.", "auto、cpu 或 GPU 编号，如 0 或 0,1。"),
        affects=(),
    )

    # evaluation
    val_size: float = opt(
        0.0,
        "eval",
        ("Validation share", "验证集占比"),
        ("Share below 1, or a number of rows.", "小于 1 为占比，否则为行数。"),
        basic=True,
        ge=0,
        affects=("data",),
    )
    eval_strategy: Literal["no", "steps", "epoch"] = opt(
        "no", "eval", ("Evaluate every", "评估时机"), ("no, steps or epoch.", "no、steps 或 epoch。")
    )
    eval_steps: float | None = opt(
        None,
        "eval",
        ("Evaluation steps", "评估步数"),
        (
            "Steps between evaluations; below 1: a share of all steps; empty: logging steps.",
            "评估间隔步数；小于 1 为占总步数的比例；留空同日志步数。",
        ),
        gt=0,
    )
    eval_on_each_dataset: bool = opt(
        False,
        "eval",
        ("Evaluate each dataset", "逐个评估数据集"),
        (
            "A loss for each of the evaluation datasets, beside that of all.",
            "除总体损失外，另给出每个评估数据集的损失。",
        ),
    )
    per_device_eval_batch_size: int = opt(
        1,
        "eval",
        ("Evaluation batch size", "评估批大小"),
        ("Sequences per device.", "每设备序列数。"),
        ge=1,
        le=4096,
    )

    do_predict: bool = opt(
        False,
        "eval",
        ("Predict", "预测"),
        (
            "Answers eval_dataset with the model as it is after the training, or without one (do_train off), and scores the answers: BLEU-4, ROUGE, exact match.",
            "用训练后的模型（或关闭 do_train 时直接用现有模型）回答 eval_dataset，并计算 BLEU-4、ROUGE 与完全一致率。",
        ),
    )
    max_new_tokens: int = opt(
        512,
        "eval",
        ("Longest prediction", "预测最大长度"),
        ("Tokens of a predicted answer at most.", "预测回答的最大 token 数。"),
        ge=1,
        le=32_768,
    )
    temperature: float = opt(
        0.0,
        "eval",
        ("Temperature of predictions", "预测温度"),
        ("0 takes the likeliest token each time.", "0 表示每次取概率最大的 token。"),
        ge=0,
        le=2,
    )
    top_p: float = opt(
        1.0,
        "eval",
        ("Top p of predictions", "预测 top p"),
        ("Draws from the likeliest tokens of this share.", "只从累计概率达到该值的 token 中抽取。"),
        ge=0,
        le=1,
    )

    early_stopping_steps: int | None = opt(
        None,
        "eval",
        ("Early stopping", "提前停止"),
        (
            "Stop after this many evaluations without a lower loss; empty: never.",
            "连续多少次评估损失不再降低即停止；留空为不启用。",
        ),
        ge=1,
    )
    sample_prompts: str | None = opt(
        None,
        "eval",
        ("Sample prompts", "示例问题"),
        (
            "One a line; the model answers them at each evaluation, or at each checkpoint without evaluations.",
            "每行一个；模型在每次评估时作答，不评估则在每个检查点作答。",
        ),
    )
    sample_max_new_tokens: int = opt(
        64,
        "eval",
        ("Sample length", "示例长度"),
        ("Tokens of a sample answer at most.", "示例回答的最大 token 数。"),
        ge=1,
        le=4096,
    )

    # output
    output_dir: str | None = opt(
        None,
        "output",
        ("Output folder", "输出目录"),
        (
            "Empty: runs/<id>. A relative path lies in the workspace.",
            "留空为 runs/<编号>；相对路径位于工作区内。",
        ),
    )
    overwrite_output_dir: bool = opt(
        False,
        "output",
        ("Overwrite", "覆盖"),
        ("Replace a finished run in the output folder.", "替换输出目录中已结束的运行。"),
    )
    logging_steps: float = opt(
        5,
        "output",
        ("Logging steps", "日志步数"),
        ("Steps between log lines; below 1: a share of all steps.", "日志间隔步数；小于 1 为占总步数的比例。"),
        gt=0,
    )
    save_steps: float = opt(
        100,
        "output",
        ("Save steps", "保存步数"),
        ("Steps between checkpoints; below 1: a share of all steps.", "检查点间隔步数；小于 1 为占总步数的比例。"),
        gt=0,
    )
    save_strategy: Literal["no", "steps", "epoch"] = opt(
        "steps", "output", ("Save every", "保存时机"), ("no, steps or epoch.", "no、steps 或 epoch。")
    )
    save_total_limit: int | None = opt(
        None,
        "output",
        ("Keep checkpoints", "保留检查点数"),
        ("The oldest are deleted; empty: keep all.", "删除最旧的；留空为全部保留。"),
        ge=1,
    )
    load_best_model_at_end: bool = opt(
        False,
        "output",
        ("End with the best", "以最佳结束"),
        (
            "At the end the checkpoint with the lowest evaluation loss is taken instead of the last step.",
            "结束时取评估损失最低的检查点，而不是最后一步。",
        ),
    )
    plot_loss: bool = opt(
        True, "output", ("Plot loss", "绘制损失"), ("Writes training_loss.png.", "写出 training_loss.png。")
    )
    report_to: str = opt(
        "none",
        "output",
        ("Report to", "上报到"),
        (
            "none, tensorboard, wandb, trackio, swanlab; comma-separated.",
            "none、tensorboard、wandb、trackio、swanlab，逗号分隔。",
        ),
    )
    webhook_url: str | None = opt(
        None,
        "output",
        ("Webhook", "Webhook"),
        (
            "Gets a JSON message (id, state, reason, step) when the run ends.",
            "运行结束时接收 JSON 消息（id、state、reason、step）。",
        ),
        pattern=r"https?://\S+",
    )
    push_to_hub: bool = opt(
        False,
        "output",
        ("Upload to the hub", "上传到 Hub"),
        (
            "The adapter or model and its tokenizer go to the Hugging Face hub, with the token of HF_TOKEN or hf auth login.",
            "将适配器或模型及其分词器上传到 Hugging Face Hub，使用 HF_TOKEN 或 hf auth login 的令牌。",
        ),
    )
    hub_model_id: str | None = opt(
        None,
        "output",
        ("Repository", "仓库"),
        ("Such as name/model; empty: the run's id.", "如 name/model；留空为运行编号。"),
        pattern=r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?",
        max_length=96,
    )
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = opt(
        "every_save",
        "output",
        ("When to upload", "上传时机"),
        (
            "At the end, or also at each checkpoint; whole checkpoints go to last-checkpoint or to folders of their own.",
            "仅在结束时，或每个检查点也上传；完整检查点存入 last-checkpoint 或各自的文件夹。",
        ),
    )
    hub_private_repo: bool = opt(
        True,
        "output",
        ("Private repository", "私有仓库"),
        ("A new repository is seen by its owner only.", "新仓库仅所有者可见。"),
    )
    resume_from_checkpoint: str | None = opt(
        None,
        "output",
        ("Resume from", "从检查点恢复"),
        ("A checkpoint folder, or true for the last one.", "检查点文件夹，或 true 表示最后一个。"),
        affects=("path",),
    )

    @property
    def packs(self) -> bool:
        """Whether rows are joined to full sequences. Those of preferences are laid end to end without that."""
        return (self.packing or self.neat_packing or (self.stage == "pt" and not self.streaming)) and not (
            self.preferences
        )

    def shares(self) -> list[float]:
        """`interleave_probs` as shares that add up to 1; empty if there are none. Raises ValueError where they are no
        shares."""
        numbers = [float(part) for part in (self.interleave_probs or "").split(",") if part.strip()]
        if any(not 0 < number < float("inf") for number in numbers):
            raise ValueError("shares should be above 0")
        return [number / sum(numbers) for number in numbers]

    @property
    def new_tokens(self) -> bool:
        """Whether embedding and head may get rows."""
        return bool(self.add_tokens or self.add_special_tokens or self.resize_vocab)

    def every(self, option: str, steps: int) -> int:
        """`eval_steps`, `save_steps` or `logging_steps` of a run of so many steps; a share of these below 1."""
        value = getattr(self, option) or self.logging_steps
        return max(1, math.ceil(steps * value)) if value < 1 else int(value)
