"""Options of a loaded model: what the trainer and the engine share, and the engine's own."""

from typing import Literal

from workbench.config.option import Options, opt

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
    weights_on: Literal["auto", "card", "host", "shared"] = opt(
        "auto",
        "memory",
        ("Weights", "权重位置"),
        (
            "host: the layers' weights stay in the host's memory and stream through the card a few layers ahead of the computation, so that a model may be larger than the card; short batches wait for them. shared: of several devices that train together each keeps a part of every layer, and gathers a layer before it is computed, as FSDP does. auto: where, in 4 bits, they do not fit on one GPU by the estimate, shared with several devices and host with one, else card.",
            "host：各层权重留在主机内存，计算前数层流入显卡，模型可大于显存；批次较短时需等待传输。shared：多个设备一起训练时，每个设备只保存各层的一部分，计算某层前再收集（与 FSDP 相同）。auto：4 位权重估计单卡仍放不下时，多设备用 shared、单设备用 host，否则用 card。",
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

    weights_on: Literal["auto", "card", "host"] = opt(  # type: ignore[assignment]  # shared is for training
        "auto",
        "memory",
        ("Weights", "权重位置"),
        (
            "host: the layers' weights stay in the host's memory and stream through the card for every token, so that a model may be larger than the card, and answers slowly. auto: host where, in 4 bits, they do not fit on one GPU by the estimate, else card.",
            "host：各层权重留在主机内存，每生成一个 token 都流入显卡，模型可大于显存，但回答较慢。auto：4 位权重估计单卡仍放不下时用 host，否则用 card。",
        ),
        affects=("loading",),
    )
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
