"""What is said of a run's memory and time before it starts."""

SENTENCES = {
    "cost_model_not_here": (
        "{model} is not on this machine and its sizes are not among the bundled ones, so its memory cannot be told. Fetch it in the Model tab, or give the folder with its config.json.",
        "{model} 不在本机，内置配置中也没有它的尺寸，因此无法估计显存。请在模型页下载，或填写含 config.json 的文件夹。",
    ),
    "cost_engine_elsewhere": (
        "The model is loaded by another server, whose memory is not known here.",
        "模型由另一台服务器加载，此处无法得知其显存。",
    ),
    "cost_quantized": (
        "The checkpoint is quantized already ({method}); the figures are those of the options here.",
        "该检查点已被量化（{method}）；数字按此处的选项计算。",
    ),
    "cost_weights_shared": (
        "The weights of the layers ({host}) are divided among the devices and gathered layer by layer (weights_on: shared): twice for every micro-batch. Steps are not recorded.",
        "各层权重（{host}）分布在各设备上，逐层收集（weights_on: shared）：每个微批收集两遍。训练步不录制。",
    ),
    "cost_weights_on_host": (
        "The weights of the layers ({host}) stay in host memory and stream through the GPU (weights_on: host): twice for every micro-batch, so that more tokens in a step make a token cheaper. Steps are not recorded.",
        "各层权重（{host}）留在主机内存，并流式经过 GPU（weights_on: host）：每个微批传输两遍，因此每步 token 越多，单个 token 的开销越小。训练步不录制。",
    ),
    "cost_chat_on_host": (
        "The weights of the layers ({host}) stay in host memory and stream through the GPU for every token (weights_on: host), which makes answers slow.",
        "各层权重（{host}）留在主机内存，每生成一个 token 都要流式经过 GPU（weights_on: host），因此回答较慢。",
    ),
    "cost_split": (
        "Of {cards} cards that share the layers, the one that takes most. With device_map: none each card trains with a model of its own, or with a part of it (weights_on: shared).",
        "各层分布在 {cards} 张卡上，此为占用最多的一张。device_map: none 时每张卡各用一个完整模型训练，或只保存其中一部分（weights_on: shared）。",
    ),
    "cost_rows_unknown": (
        "How long the rows are is not known before a run has counted them: they are taken at their longest, {tokens:,} tokens.",
        "运行统计之前不知道每行长度：按最长 {tokens:,} token 计。",
    ),
    "cost_targets_unknown": (
        "lora_target names nothing of this model: {names}.",
        "lora_target 中的名称在该模型中不存在：{names}。",
    ),
    "cost_each_device": (
        "Each of the {count} devices takes that much, and a step has {rows} rows. The speed is that of one device times"
        " {count}, which was not measured.",
        "{count} 个设备各占用上述内存，每步 {rows} 行。速度按单个设备乘以 {count} 估计，未经实测。",
    ),
    "cost_predicts": (
        "This run only predicts: told is what its model takes to answer, not how long that takes.",
        "该运行只做预测：给出的是模型回答时所需的内存，不含所需时间。",
    ),
    "cost_grpo": (
        "grpo: answers are counted at their longest, {tokens:,} tokens; how long they take to write is not told, and no run was compared with this yet.",
        "grpo：回答按最长 {tokens:,} token 计；不估计生成回答所需的时间，且该估计尚未与实际运行比较。",
    ),
    "cost_paged": (
        "Paged optimizers keep their state where the driver finds room, on the host if need be: it is not counted.",
        "分页优化器的状态由驱动安排，必要时放在主机内存，此处不计。",
    ),
    "cost_adapter_as_said": (
        "The adapter to continue from is taken to be as the options say.",
        "继续训练的适配器按此处的选项计算。",
    ),
    "cost_context_short": (
        "There is room for a cache of {tokens:,} tokens, not for the model's whole context of {context:,}.",
        "缓存只能容纳 {tokens:,} token，不足模型完整上下文 {context:,}。",
    ),
    "cost_other_engine": (
        "vLLM and SGLang take most of a card whatever the model needs; the figures are of the workbench's own engine.",
        "vLLM 与 SGLang 会占用显卡的大部分显存；此处为本工作台引擎的数字。",
    ),
    "cost_use_4_bit": (
        "Set quantization_bit: 4, take a smaller model, or spread it over several GPUs (device_map: auto).",
        "请设 quantization_bit: 4、换更小的模型，或用多卡切分（device_map: auto）。",
    ),
    "cost_smaller_model": (
        "Take a smaller model, or spread it over several GPUs (device_map: auto).",
        "请换更小的模型，或用多卡切分（device_map: auto）。",
    ),
    "cost_zero": (
        "With ZeRO (deepspeed) a device holds less than this: the figures are of one that holds everything.",
        "使用 ZeRO（deepspeed）时每个设备占用更少：这里的数字对应持有全部内容的设备。",
    ),
    "cost_impossible": (
        "This run cannot fit: its weights alone take {weights}, {device} has {memory}. {advice}",
        "此运行放不下：仅权重就需 {weights}，而 {device} 只有 {memory}。{advice}",
    ),
    "cost_too_large": (
        "It may run out of memory: about {total} are needed, {device} has {memory}.",
        "可能显存不足：约需 {total}，而 {device} 只有 {memory}。",
    ),
}
