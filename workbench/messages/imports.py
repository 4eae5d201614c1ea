"""Imports of LLaMA-Factory's commands and files: what cannot be taken over, and why."""

SENTENCES = {
    "import_too_long": (
        "The text has {count:,} characters; at most {most:,} are imported. Paste one command or one YAML file.",
        "文本有 {count:,} 个字符，最多导入 {most:,} 个。请只粘贴一条命令或一个 YAML 文件。",
    ),
    "import_empty": (
        "There is nothing to import. Paste a llamafactory-cli command or a YAML file.",
        "没有可导入的内容。请粘贴 llamafactory-cli 命令或 YAML 文件。",
    ),
    "import_benchmark": (
        "This is an evaluation on a benchmark. Those run here as tasks of lm-evaluation-harness: workbench evaluate RUN --task FILE.yaml. Nothing is imported.",
        "这是基准评测。此处的基准以 lm-evaluation-harness 任务运行：workbench evaluate RUN --task FILE.yaml。未导入任何内容。",
    ),
    "import_script": (
        "This command runs a helper script ({script}), not a training. Nothing is imported.",
        "该命令运行的是辅助脚本（{script}），不是训练。未导入任何内容。",
    ),
    "import_board": (
        "These are settings that LLaMA Board saved for itself. Paste the command that its Preview button shows.",
        "这是 LLaMA Board 自己保存的设置。请粘贴其“预览命令”按钮显示的命令。",
    ),
    "import_names_file": (
        "This command only names a YAML file ({name}), which is not read from here. Give the file with the text, paste its content, or import it by its path on the command line.",
        "该命令只给出了一个 YAML 文件名（{name}），此处不会读取它。请与文本一起提供该文件、粘贴其内容，或在命令行中按路径导入。",
    ),
    "import_v1_group": (
        "{key}: {value} is not in the form of LLaMA-Factory's v1, such as 'peft_config: {{name: lora, r: 8}}' or 'train_dataset: data.yaml'. Nothing is imported.",
        "{key}：{value} 不符合 LLaMA-Factory v1 的格式，例如 'peft_config: {{name: lora, r: 8}}' 或 'train_dataset: data.yaml'。未导入任何内容。",
    ),
    "import_accelerate_count": (
        "{key}: {value} is no number of 1 to {most}. Set it in the config of accelerate.",
        "{key}：{value} 不是 1 到 {most} 的数。请在 accelerate 配置中修改。",
    ),
    "import_deepspeed": (
        "The config of DeepSpeed cannot be used: {problem}. Mend the JSON, or take deepspeed out of the text to import the rest.",
        "无法使用 DeepSpeed 配置：{problem}。请修正该 JSON，或从文本中去掉 deepspeed 再导入其余部分。",
    ),
    "import_no_key": (
        "No key of this file is an option of a run ({keys}). Nothing is imported.",
        "该文件中没有任何键是运行的选项（{keys}）。未导入任何内容。",
    ),
    "import_stage": (
        "stage: {stage} is {what}, which is not offered; here are {known}. Nothing is imported.",
        "stage：{stage}（{what}）不提供；这里支持 {known}。未导入任何内容。",
    ),
    "import_method": (
        "finetuning_type: {method} is not offered yet; here are lora, full, freeze and oft. Nothing is imported.",
        "finetuning_type：{method} 暂不提供；这里支持 lora、full、freeze 和 oft。未导入任何内容。",
    ),
    "import_changing": (
        "{key}: {value} asks for {what}, which changes the result and is not offered. Take it out of the text to import the rest.",
        "{key}：{value} 要求的是：{what}。这会改变训练结果，此处不提供。请从文本中去掉它，再导入其余部分。",
    ),
    "import_unknown_switch": (
        "{key}: {value} switches something on that is not known here. Take it out of the text to import the rest.",
        "{key}：{value} 打开了此处未知的功能。请从文本中去掉它，再导入其余部分。",
    ),
    "import_pad_loss": (
        "ignore_pad_token_for_loss: false is not offered. Take it out to import the rest.",
        "不提供 ignore_pad_token_for_loss: false。请去掉它，再导入其余部分。",
    ),
    "import_quotes": (
        "The command cannot be read: {problem}. Check its quotation marks.",
        "无法读取该命令：{problem}。请检查引号。",
    ),
    "import_variable": (
        "The command uses ${name}, which the text does not set. Put its value there.",
        "该命令使用了 ${name}，但文本中没有给它赋值。请在该处填入它的值。",
    ),
    "import_gptq": (
        "Exporting in GPTQ (export_quantization_bit) is not offered. Nothing is imported.",
        "不提供以 GPTQ 导出（export_quantization_bit）。未导入任何内容。",
    ),
    "import_quantization": (
        "quantization_method: {method} is not offered; here is bnb. Take it out to import the rest.",
        "quantization_method：{method} 不提供；这里支持 bnb。请去掉它，再导入其余部分。",
    ),
    "import_chat_no_model": ("This is for chatting, but names no model.", "这是对话配置，但没有指定模型。"),
    "import_export_no_model": ("This is for exporting, but names no model.", "这是导出配置，但没有指定模型。"),
}
# words and clauses that become part of a sentence
PARTS = {
    "import_pasted": ("The pasted text", "粘贴的文本"),
    "stage_unknown": ("a stage that is not known here", "未知的训练阶段"),
    "why_environment": (
        "environment variable: set it in the shell that starts the workbench",
        "环境变量：请在启动工作台的终端中设置",
    ),
    "why_no_option": ("not an option", "不是选项"),
    "why_given_too": ("{key} is given, too, and counts", "同时给出了 {key}，以它为准"),
    "why_anyway": ("as it is here anyway", "此处本来就是如此"),
    "why_not_here": ("not an option here.{guess}", "此处没有该选项。{guess}"),
    "why_media_template": (
        "the model's own; rows with images, video or audio are not trained here, rows of text are",
        "使用模型自带的模板；此处不训练含图像、视频或音频的行，文本行照常训练",
    ),
    "why_no_engine_option": ("not an option of a loaded model", "不是加载模型的选项"),
    "why_media_sent": ("images, video and audio cannot be sent", "无法发送图像、视频和音频"),
    "stage_ppo": (
        "PPO (stage grpo learns from rewards, too)",
        "PPO，可改用同样从奖励学习的 grpo",
    ),
    "asks_special_text": ("special tokens as text", "把特殊 token 当作文本"),
    "asks_scratch": ("random weights to start from", "从随机权重开始"),
    "asks_shifted": ("shifted attention (LongLoRA)", "移位注意力（LongLoRA）"),
    "asks_depths": ("mixture of depths", "混合深度（mixture of depths）"),
    "asks_norms": ("layer norms in float32", "以 float32 计算层归一化"),
    "asks_logits": ("logits in float32", "以 float32 计算 logits"),
    "asks_bf16_adapters": ("adapters in bfloat16", "使用 bfloat16 的适配器"),
    "asks_tool_form": ("another form of tool calls", "另一种工具调用格式"),
    "asks_system": ("a system text for all rows", "为所有行设置系统提示词"),
    "asks_epsilon": ("another epsilon of Adam", "不同的 Adam epsilon"),
    "asks_scheduler": ("arguments of the scheduler", "设置学习率调度器的参数"),
    "asks_optimizer": ("arguments of the optimizer", "设置优化器的参数"),
    "asks_some_modules": ("an optimizer for some modules", "只对部分模块使用某种优化器"),
    "asks_smoothing": ("label smoothing", "标签平滑"),
    "asks_grouping": ("rows grouped by length", "按长度分组"),
    "asks_data_seed": ("a seed for the order of rows", "为数据顺序单设随机种子"),
    "asks_device_map": ("a device map of the quantized model", "为量化模型设置设备映射"),
    "asks_model_class": ("another kind of model", "另一种模型类型"),
    "asks_own_optimizer": ("an optimizer that is not known here", "此处未知的优化器"),
    "asks_own_schedule": ("a schedule that is not known here", "此处未知的学习率调度"),
    "why_loading": ("where weights are put while loading", "只影响加载时权重放在哪里"),
    "why_v1_class": ("told by the stage", "由训练阶段得知"),
    "why_v1_eval": ("v1 does not evaluate while training", "v1 在训练中不做评估"),
    "why_v1_stage": (
        "v1's command (sft, dpo, rm) says the stage, not its file: please check it",
        "v1 由命令（sft、dpo、rm）而非文件决定训练阶段，请核对",
    ),
    "why_v1_dtype": ("computed in the run's own format (bf16, fp16)", "以本次运行的精度（bf16、fp16）计算"),
    "why_v1_dcp": ("weights are read from the model's own files", "权重从模型自身的文件读取"),
    "why_v1_floats": (
        "weights are trained in the format in which they are loaded",
        "权重以加载时的精度训练",
    ),
    "why_v1_datasets": (
        "this file of datasets is not read from here; the dataset of its name in dataset_info.json is used",
        "此处不读取该数据集文件；使用 dataset_info.json 中同名的数据集",
    ),
    "why_v1_drawn": (
        "all rows are used; num_samples in dataset_info.json draws some of them",
        "使用全部数据行；可在 dataset_info.json 中用 num_samples 抽取部分",
    ),
    "why_v1_size": (
        "so many rows of each dataset at most; v1 draws them at random, some twice",
        "每个数据集最多取这么多行；v1 为随机抽取，可能重复",
    ),
    "why_v1_split": (
        "the split train is read; put the dataset into dataset_info.json for another",
        "读取 train 划分；如需其他划分，请写入 dataset_info.json",
    ),
    "why_v1_batch": ("not a multiple of micro_batch_size ({size})", "不是 micro_batch_size（{size}）的倍数"),
    "why_v1_budget": (
        "steps of micro_batch_size × cutoff_len tokens are made by packing; set max_steps, as epochs are counted otherwise",
        "由 packing 得到每步 micro_batch_size × cutoff_len 个 token；轮数计法不同，请设置 max_steps",
    ),
    "why_v1_padded_budget": (
        "steps of so many tokens are made by packing, which does not count padding: they hold more rows",
        "由 packing 得到同样 token 数的训练步，但不计填充，因此每步包含更多行",
    ),
    "why_v1_epochs": ("set save_steps or save_strategy: epoch", "请设置 save_steps 或 save_strategy: epoch"),
    "why_v1_resume": (
        "checkpoints of v1 cannot be resumed here",
        "此处无法从 v1 的检查点恢复",
    ),
    "why_speed": (
        "how fast, not what: the fastest installed path is used",
        "只影响速度，不影响结果：这里会使用已安装的最快实现",
    ),
    "why_media": ("only for images, video and audio", "仅用于图像、视频和音频"),
    "why_prediction": (
        "only for predictions, which here have max_new_tokens, temperature and top_p",
        "仅用于预测；这里的预测只有 max_new_tokens、temperature 和 top_p",
    ),
    "why_generates": ("predictions are always generated answers", "预测总是生成回答"),
    "why_hub_cache": ("the hub's own cache folder is used (HF_HOME)", "使用 hub 自己的缓存文件夹（HF_HOME）"),
    "why_hf_login": ("log in with `hf auth login`", "请用 `hf auth login` 登录"),
    "why_ms_login": ("log in with `modelscope login`", "请用 `modelscope login` 登录"),
    "why_no_hub": ("this hub is not supported", "不支持该 hub"),
    "why_always": ("always so", "始终如此"),
    "why_memory": ("how memory is saved, not what is learned", "只影响如何节省显存，不影响训练结果"),
    "why_logged": ("only what is logged", "只影响日志内容"),
    "why_offload": (
        "memory is managed by activation_memory and device_map",
        "内存由 activation_memory 和 device_map 管理",
    ),
    "why_eval_strategy": ("evaluation follows eval_strategy", "评估由 eval_strategy 决定"),
    "why_counted": ("tokens are always counted", "始终统计 token 数"),
    "why_stream": ("rows are read as a stream", "数据行以流方式读取"),
    "why_machines": ("only with several machines", "仅用于多机"),
    "why_one_gpu": (
        "it says how weights are spread over devices; here each device holds the whole model, and steps are the same",
        "它说明权重如何分布到各设备；这里每个设备持有完整模型，训练步相同",
    ),
    "zero_no_stage": (
        "zero_optimization.stage is 0, 1, 2 or 3, not {stage}",
        "zero_optimization.stage 应为 0、1、2 或 3，而不是 {stage}",
    ),
    "zero_no_stage_here": (
        "zero_optimization.stage is 1, 2 or 3, not {stage}",
        "zero_optimization.stage 应为 1、2 或 3，而不是 {stage}",
    ),
    "zero_no_device": ("{key} is to the cpu, not to {device}", "{key} 只能是 cpu，而不是 {device}"),
    "zero_no_block": ("{key} is an object, not {value}", "{key} 应为对象，而不是 {value}"),
    "why_zero_off": (
        "ZeRO is off in it: each device holds the whole model, as here",
        "其中未启用 ZeRO：每个设备持有完整模型，与此处相同",
    ),
    "why_zero_shared": (
        "several devices divide the model's weights where these do not fit on one (weights_on: auto); shared divides them always; steps are the same",
        "单个设备放不下时，多个设备分摊模型权重（weights_on: auto）；shared 则始终分摊；训练步相同",
    ),
    "why_zero_whole": (
        "gradients and optimizer states of what is trained stay whole on each device, which for adapters is little; steps are the same",
        "被训练部分的梯度和优化器状态在每个设备上保持完整（适配器的很小）；训练步相同",
    ),
    "why_zero_full": (
        "full tuning with ZeRO is not supported with these options: each device holds the whole model, its gradients and its optimizer states, which must fit; steps are the same",
        "在这些选项下不支持用 ZeRO 做全参数训练：每个设备持有完整模型、梯度和优化器状态，显存必须放得下；训练步相同",
    ),
    "why_zero_optimizer": (
        "optimizer states stay on the device; paged_adamw_8bit (optim) lets them go to host memory when it is full",
        "优化器状态留在设备上；可用 optim: paged_adamw_8bit，在显存不足时换出到主机内存",
    ),
    "why_zero_weights": (
        "weights_on: host keeps the layers' weights in host memory, for one process",
        "weights_on: host 可把各层权重放在主机内存中（单进程）",
    ),
    "why_zero_coarser": (
        "what devices exchange is not quantized here, so that steps are exact",
        "此处不量化设备间交换的内容，训练步是精确的",
    ),
    "why_zero_batch": (
        "a step has per_device_train_batch_size × gradient_accumulation_steps × devices rows; set these",
        "每步行数为 per_device_train_batch_size × gradient_accumulation_steps × 设备数；请设置这些选项",
    ),
    "why_zero_more": ("{count} more keys that are not options here", "另有 {count} 个键在此处不是选项"),
    "why_zero_unread": (
        "this config of DeepSpeed is not there, or not read from here: give the file with the text, or its content instead of its name",
        "找不到该 DeepSpeed 配置，或此处无法读取：请与文本一起提供该文件，或以其内容代替文件名",
    ),
    "why_device": ("the device is what the machine has", "设备由本机决定"),
    "why_activation": ("see activation_memory", "见 activation_memory"),
    "why_columns": ("columns that are not used are never passed on", "从不传入未使用的列"),
    "why_embeddings": ("embeddings are not trained with LoRA+", "LoRA+ 不训练嵌入层"),
    "why_one_machine": (
        "Ray is not used; workbench train --nodes trains on several machines",
        "不使用 Ray；多机训练请用 workbench train --nodes",
    ),
    "why_swanlab": ("use report_to: swanlab", "请使用 report_to: swanlab"),
    "why_generation": (
        "set it among the Chat tab's generation settings, or with a request",
        "请在“对话”页的生成设置中设置，或随请求给出",
    ),
    "why_accelerate_unread": (
        "this config of accelerate is not read from here: import it by itself, or set devices",
        "此处不读取该 accelerate 配置：请单独导入，或设置 devices",
    ),
    "why_accelerate_machines": (
        "one machine is taken over (workbench train --nodes trains on several); the batch of all machines is larger by"
        " this factor",
        "只采用一台机器（多机训练请用 workbench train --nodes）；所有机器合计的批次要乘以该倍数",
    ),
    "why_processes": (
        "not a number of processes that goes with the GPUs; set devices",
        "进程数与 GPU 不相符；请设置 devices",
    ),
    "why_kt_bits": (
        "ktransformers computes experts with other weights than here",
        "ktransformers 计算专家所用的权重与此处不同",
    ),
    "why_fa4": (
        "FlashAttention 4 is not offered; auto computes the same attention",
        "不提供 FlashAttention 4；auto 计算的注意力相同",
    ),
    "why_descriptions": (
        "used only with init_special_tokens: desc_init and the file's name as new_special_tokens_config",
        "仅在 init_special_tokens: desc_init 且将该文件名填入 new_special_tokens_config 时使用",
    ),
    "why_own_engine": (
        "the workbench's own engine answers, unless engine is set to vllm or sglang",
        "由工作台自己的推理引擎回答，除非将 engine 设为 vllm 或 sglang",
    ),
    "why_adapter_tells": ("told by the adapter", "由适配器得知"),
    "why_file_size": ("files of the size that safetensors writes by itself", "文件大小由 safetensors 自行决定"),
    "why_merge_place": ("merged where there is room", "在有空间的设备上合并"),
    "why_safetensors": ("always safetensors", "始终为 safetensors"),
    "why_upload_folder": ("nothing is uploaded; upload the folder yourself", "不会上传任何内容；请自行上传该文件夹"),
    "why_system_prompt": ("give it as the Chat tab's system prompt", "请作为“对话”页的系统提示词给出"),
    "why_unused": ("a setting of something that this run does not use", "是本次运行未用到的功能的设置"),
    "why_token_cache": (
        "cached tokens are used only while data, template and options are the same",
        "只有数据、模板和选项都相同时才使用缓存的分词结果",
    ),
    "why_distributed": ("only with distributed training", "仅用于分布式训练"),
    "why_logs": ("logs lie in the run's folder", "日志位于运行的文件夹中"),
    "why_fast_tokenizer": ("transformers 5 always uses the fast tokenizer", "transformers 5 始终使用快速分词器"),
    "why_resumable": ("checkpoints stay resumable", "检查点始终可用于恢复训练"),
    "why_pissa_plain": (
        "adapters that started with PiSSA are always saved as plain LoRA",
        "以 PiSSA 初始化的适配器总是保存为普通 LoRA",
    ),
    "why_fastest": ("the fastest installed path is used", "使用已安装的最快实现"),
}
