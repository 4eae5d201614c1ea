"""Run configs: options, their values, what does not go together."""

SENTENCES = {
    "deepspeed_wrong": (
        "deepspeed: {problem}. It is the JSON of a config of DeepSpeed; workbench import reads it from a file.",
        "deepspeed：{problem}。这里应填 DeepSpeed 配置的 JSON；workbench import 可从文件读取。",
    ),
    "zero_with": (
        "deepspeed is for full tuning in the stages sft and pt with AdamW and does not go with {names:and}. Take one of them out.",
        "deepspeed 只用于 sft 与 pt 阶段以 AdamW 做的全参数训练，不能与 {names:and} 同时使用。请去掉其中之一。",
    ),
    "deepspeed_missing": (
        "deepspeed is not installed. Install it with: pip install deepspeed. Or take the option deepspeed out: each device then holds the whole model and all that belongs to it.",
        "未安装 deepspeed。请安装：pip install deepspeed。也可以去掉选项 deepspeed：此时每个设备持有完整模型及其全部状态。",
    ),
    "preset_nameless": ("Give the preset a name.", "请为预设命名。"),
    "preset_bundled": (
        "{name} is a bundled preset. Choose another name.",
        "{name} 是自带预设，请换一个名称。",
    ),
    "preset_unknown": (
        "{name} is not a preset of this workspace.",
        "{name} 不是此工作区的预设。",
    ),
    "config_missing": (
        "There is no file {path}. Presets are listed by: python -m workbench presets",
        "没有文件 {path}。列出预设：python -m workbench presets",
    ),
    "not_text": ("{what} cannot be read as text: {reason}", "{what}：无法作为文本读取，{reason}"),
    "yaml_advice": (
        "{problem} It should hold lines of the form 'key: value'.",
        "{problem}内容应为“key: value”形式的行。",
    ),
    "yaml_not_pairs": (
        "{what} should hold lines of the form 'key: value', but holds {kind}.",
        "{what}：内容应为“key: value”形式的行，实际为 {kind}。",
    ),
    "override_form": (
        "--set {item!r} should have the form key=value, for example --set lora_rank=16.",
        "--set {item!r} 应为 key=value 的形式，例如 --set lora_rank=16。",
    ),
    "engine_model_empty": (
        "Choose a model first (model_name_or_path is empty).",
        "请先选择模型（model_name_or_path 为空）。",
    ),
    "engine_url_wrong": (
        "engine_url should be an address such as http://10.0.0.5:8000, without a name, password or query. Give the key in"
        " WORKBENCH_ENGINE_KEY.",
        "engine_url 应为地址，如 http://10.0.0.5:8000，不含用户名、密码或查询。密钥请放在 WORKBENCH_ENGINE_KEY 中。",
    ),
    "engine_only_own": (
        "{names}: only the workbench's own engine does this. Leave it out, or set engine: own.",
        "{names}：只有本工作台自己的引擎支持。请去掉，或设 engine: own。",
    ),
    "engine_only_others": (
        "{names}: only with engine: vllm or sglang. Leave it out, or choose one of them.",
        "{names}：仅用于 engine: vllm 或 sglang。请去掉，或选择其中之一。",
    ),
    "engine_runs_already": (
        "{names}: the server at engine_url runs already. Set this where it is started, and leave it out here.",
        "{names}：engine_url 的服务器已在运行。请在启动它的地方设置，此处去掉。",
    ),
    "adapter_without_base": (
        "adapter_name_or_path is set without its base. Set model_name_or_path to the model it was trained on.",
        "设置了 adapter_name_or_path，但没有基座模型。请将 model_name_or_path 设为训练它时所用的模型。",
    ),
    "model_empty": ("model_name_or_path is empty. Choose a model.", "model_name_or_path 为空。请选择模型。"),
    "dataset_empty": ("dataset is empty. Choose at least one dataset.", "dataset 为空。请至少选择一个数据集。"),
    "nothing_to_do": (
        "do_train and do_predict are false: there is nothing to do. Set one of them to true.",
        "do_train 和 do_predict 均为 false：无事可做。请将其中之一设为 true。",
    ),
    "pure_bf16_method": (
        "pure_bf16 is for finetuning_type full and freeze: adapters are trained in float32. Take it out.",
        "pure_bf16 仅用于 finetuning_type 为 full 或 freeze 的训练：适配器以 float32 训练。请去掉它。",
    ),
    "fp16_and_bf16": (
        "fp16 and bf16 are both on. Keep one, or neither to let the device decide.",
        "fp16 和 bf16 同时开启。请只保留一个，或都不设，由设备决定。",
    ),
    "reward_unknown_rule": (
        "reward_funcs: {names} is no reward. There are {known}.",
        "reward_funcs：没有名为 {names} 的奖励。可用：{known}。",
    ),
    "generations_batch": (
        "Stage grpo answers each question {count} times (num_generations): batch size times gradient accumulation, {batch} now, must be a multiple of that.",
        "grpo 阶段每题回答 {count} 次（num_generations）：批大小乘以梯度累积（现为 {batch}）须为其倍数。",
    ),
    "reward_needs": ("reward_funcs: {name} needs {option}.", "reward_funcs：{name} 需要填写 {option}。"),
    "reward_model_unused": (
        "reward_model: {model} scores nothing, as reward_funcs does not name model. Add it there, or leave reward_model empty.",
        "reward_model：{model} 不会用于评分，因为 reward_funcs 中没有 model。请加上它，或将 reward_model 留空。",
    ),
    "reward_untrusted": (
        "reward_file: {file} is Python code that would run here. Read it, then set trust_reward_code.",
        "reward_file：{file} 是会在此执行的 Python 代码。请先阅读，再勾选 trust_reward_code。",
    ),
    "reward_weights_wrong": (
        "reward_weights: {value} should be {count} numbers, one for each of reward_funcs.",
        "reward_weights：{value} 应为 {count} 个数，与 reward_funcs 一一对应。",
    ),
    "pt_without_length": (
        "stage pt joins texts to sequences of one length. Set cutoff_len, for example 2048.",
        "pt 阶段会把文本拼接为固定长度的序列。请设置 cutoff_len，例如 2048。",
    ),
    "predict_of_scores": (
        "do_predict: a reward model gives no answers. Turn it off in stage rm.",
        "do_predict：奖励模型不生成回答。在 rm 阶段请关闭。",
    ),
    "samples_of_scores": (
        "sample_prompts: a reward model gives no answers. Leave it empty in stage rm.",
        "sample_prompts：奖励模型不生成回答。在 rm 阶段请留空。",
    ),
    "smoothing_of_sigmoid": (
        "dpo_label_smoothing belongs to pref_loss sigmoid. Set it to 0, or choose sigmoid.",
        "dpo_label_smoothing 只用于 pref_loss sigmoid。请设为 0，或选择 sigmoid。",
    ),
    "reference_unused": (
        "ref_model: stage {stage} with pref_loss {loss} and without use_asft_loss compares with no reference model. Leave it empty.",
        "ref_model：{stage} 阶段（pref_loss {loss}，未用 use_asft_loss）不与参考模型比较。请留空。",
    ),
    "packing_without_length": (
        "packing needs a length to fill. Set cutoff_len, for example 2048.",
        "packing 需要填充到某个长度。请设置 cutoff_len，例如 2048。",
    ),
    "shares_but_concat": (
        "interleave_probs is set, but mix_strategy is concat. Set it to interleave_over.",
        "设置了 interleave_probs，但 mix_strategy 为 concat。请将它设为 interleave_over。",
    ),
    "shares_count": (
        "interleave_probs should name one share for each dataset.",
        "interleave_probs 应为每个数据集各给一个比例。",
    ),
    "shares_wrong": (
        "interleave_probs: {value!r} does not fit: it should be shares above 0, such as 0.7,0.3.",
        "interleave_probs：{value!r} 不合适：应为大于 0 的比例，如 0.7,0.3。",
    ),
    "full_quantized": (
        "Quantized weights cannot be trained in full. Set finetuning_type to lora, or remove quantization_bit.",
        "量化后的权重不能做全参数训练。请将 finetuning_type 设为 lora，或去掉 quantization_bit。",
    ),
    "full_adapter": (
        "An adapter cannot be continued with finetuning_type full. Set it to lora.",
        "finetuning_type 为 full 时不能接着训练适配器。请设为 lora。",
    ),
    "freeze_quantized": (
        "Quantized weights cannot be trained, as finetuning_type freeze does. Set it to lora or oft, or remove quantization_bit.",
        "finetuning_type 为 freeze 时训练权重本身，而量化后的权重不能训练。请设为 lora 或 oft，或去掉 quantization_bit。",
    ),
    "freeze_adapter": (
        "An adapter cannot be continued with finetuning_type freeze. Set it to lora or oft, or export the merged model and train on that.",
        "finetuning_type 为 freeze 时不能接着训练适配器。请设为 lora 或 oft，或先导出合并后的模型再训练。",
    ),
    "freeze_nothing": (
        "freeze_trainable_layers: 0 trains nothing. Set it to the number of layers; negative for the first ones.",
        "freeze_trainable_layers: 0 不训练任何层。请设为层数；负数为最前的若干层。",
    ),
    "llama_pro_method": (
        "use_llama_pro works with finetuning_type freeze or lora. Set one of these, or take it out.",
        "use_llama_pro 只能与 finetuning_type 为 freeze 或 lora 同用。请改设，或去掉它。",
    ),
    "oft_both_sizes": (
        "oft_rank and oft_block_size are both set, and one follows from the other. Keep one, and set the other to 0.",
        "oft_rank 与 oft_block_size 同时设置，而二者可互相推出。请保留一个，另一个设为 0。",
    ),
    "oft_no_size": (
        "oft_rank and oft_block_size are both 0. Set one of them.",
        "oft_rank 与 oft_block_size 均为 0。请设置其中一个。",
    ),
    "loraplus_method": (
        "loraplus_lr_ratio is of LoRA's two factors. Set finetuning_type: lora, or take it out.",
        "loraplus_lr_ratio 用于 LoRA 的两个因子。请设置 finetuning_type: lora，或去掉它。",
    ),
    "pissa_method": (
        "pissa_init is a start of LoRA's factors. Set finetuning_type: lora, or take it out.",
        "pissa_init 用于初始化 LoRA 的因子。请设置 finetuning_type: lora，或去掉它。",
    ),
    "pissa_quantized": (
        "pissa_init takes its factors out of the weights, which quantized ones do not allow. Take it out, or remove quantization_bit.",
        "pissa_init 会从权重中取出因子，量化后的权重做不到。请去掉它，或去掉 quantization_bit。",
    ),
    "pissa_dora": (
        "pissa_init and use_dora do not work together. Keep one.",
        "pissa_init 和 use_dora 不能一起使用。请只保留一个。",
    ),
    "pissa_adapter": (
        "pissa_init starts a new adapter, but adapter_name_or_path is to be continued. Take pissa_init out, or set create_new_adapter: true.",
        "pissa_init 会新建适配器，但设置了要接着训练的 adapter_name_or_path。请去掉 pissa_init，或设置 create_new_adapter: true。",
    ),
    "new_adapter_of_none": (
        "create_new_adapter merges the adapters of adapter_name_or_path first, and none is named. Name one, or take it out: a run without one makes a new adapter anyway.",
        "create_new_adapter 会先合并 adapter_name_or_path 中的适配器，但未指定任何适配器。请指定，或去掉它：不指定适配器时本来就会新建。",
    ),
    "new_adapter_method": (
        "OFT cannot be saved together with adapters under it. Export the model with these merged in, and train on that.",
        "OFT 无法与其下的适配器一同保存。请先导出合并后的模型，再在其上训练。",
    ),
    "new_adapter_dora": (
        "create_new_adapter and use_dora do not work together: DoRA cannot be saved with the adapters under it. Export the model with these merged in, and train on that.",
        "create_new_adapter 和 use_dora 不能一起使用：DoRA 无法与其下的适配器一同保存。请先导出合并后的模型，再在其上训练。",
    ),
    "adapters_quantized": (
        "Adapters cannot be merged into quantized weights. Name a single one to continue, without create_new_adapter, or remove quantization_bit.",
        "适配器无法合并到量化后的权重中。请只指定一个接着训练（不设 create_new_adapter），或去掉 quantization_bit。",
    ),
    "streaming_steps": (
        "With streaming the number of rows is not known. Set max_steps.",
        "使用 streaming 时行数未知。请设置 max_steps。",
    ),
    "streaming_packing": (
        "Rows that are streamed are not packed. Take packing out, or streaming.",
        "边读边训的数据不能打包。请去掉 packing 或 streaming。",
    ),
    "streaming_tokenized": (
        "streaming keeps no tokenized rows. Take tokenized_path out, or streaming.",
        "streaming 不保存已分词数据。请去掉 tokenized_path 或 streaming。",
    ),
    "streaming_stage": (
        "streaming works in the stages sft and pt. Set streaming: false.",
        "streaming 只用于 sft 与 pt 阶段。请设 streaming: false。",
    ),
    "tokenized_stage": (
        "tokenized_path: stage grpo learns from questions as text. Leave it empty.",
        "tokenized_path：grpo 阶段使用文本形式的问题。请留空。",
    ),
    "streaming_share": (
        "With streaming the number of rows is not known: val_size should be a number of rows, not a share.",
        "使用 streaming 时行数未知：val_size 应为行数，而不是占比。",
    ),
    "new_tokens_adapter": (
        "New tokens need a new adapter, but adapter_name_or_path is set. Export the model with it merged in, and train on that.",
        "新增 token 需要新的适配器，但设置了 adapter_name_or_path。请先导出合并后的模型，再在其上训练。",
    ),
    "prompt_and_history": (
        "train_on_prompt and mask_history exclude each other. Keep one.",
        "train_on_prompt 和 mask_history 互斥。请只保留一个。",
    ),
    "two_evaluations": (
        "val_size and eval_dataset are both set. Keep one.",
        "val_size 和 eval_dataset 同时设置。请只保留一个。",
    ),
    "nothing_to_evaluate": (
        "eval_strategy is {strategy}, but there is nothing to evaluate on. Set val_size or eval_dataset.",
        "eval_strategy 为 {strategy}，但没有可评估的数据。请设置 val_size 或 eval_dataset。",
    ),
    "stopping_without_evaluation": (
        "early_stopping_steps needs evaluations. Set eval_strategy and val_size, or remove it.",
        "early_stopping_steps 需要评估。请设置 eval_strategy 和 val_size，或去掉它。",
    ),
    "optimizers_several": ("{names} exclude each other. Keep one.", "{names} 互斥。请只保留一个。"),
    "optimizer_loraplus": (
        "{name} and loraplus_lr_ratio do not work together. Keep one.",
        "{name} 和 loraplus_lr_ratio 不能一起使用。请只保留一个。",
    ),
    "optimizer_method": (
        "{name} is for whole weights. Set finetuning_type to full or freeze, or take it out.",
        "{name} 用于训练整个权重。请将 finetuning_type 设为 full 或 freeze，或去掉它。",
    ),
    "optimizer_base": (
        "{name} cannot be built on optim: {optim}. It can be {known}.",
        "{name} 不能基于 optim: {optim}。可为 {known}。",
    ),
    "layerwise_accumulation": (
        "{name} makes a step in every backward pass. Set gradient_accumulation_steps: 1, or take it out.",
        "{name} 在每次反向时更新。请设置 gradient_accumulation_steps: 1，或去掉它。",
    ),
    "layerwise_fp16": (
        "{name} does not work with fp16, whose gradients are scaled. Set bf16, or take it out.",
        "{name} 不能与 fp16 同用，其梯度经过缩放。请设置 bf16，或去掉它。",
    ),
    "optimizer_missing": (
        "{option} needs the package {package}, which is not installed. Install it with: pip install {package}",
        "{option} 需要 {package}，尚未安装。请执行：pip install {package}",
    ),
    "optimizer_target": (
        "{option}: {value} matches no trained linear layer. It can be all, or of: {known}.",
        "{option}：{value} 与任何训练中的线性层都不匹配。可为 all，或：{known}。",
    ),
    "steps_not_whole": (
        "{option}: {value} is no number of steps. Give a whole number, or a share of all steps below 1.",
        "{option}：{value} 不是步数。请给出整数，或小于 1 的占比。",
    ),
    "each_of_several": (
        "eval_on_each_dataset needs several names in eval_dataset. Name them, or take it out.",
        "eval_on_each_dataset 需要 eval_dataset 中有多个名称。请列出，或去掉它。",
    ),
    "best_without_evaluation": (
        "load_best_model_at_end needs evaluations. Set eval_strategy, and val_size or eval_dataset.",
        "load_best_model_at_end 需要评估。请设置 eval_strategy，以及 val_size 或 eval_dataset。",
    ),
    "best_strategies": (
        "load_best_model_at_end needs a checkpoint at each evaluation, but save_strategy is {save} and eval_strategy {evaluate}. Set them alike.",
        "load_best_model_at_end 需要在评估时有检查点，但 save_strategy 为 {save}，eval_strategy 为 {evaluate}。请设为相同。",
    ),
    "best_steps": (
        "load_best_model_at_end needs save_steps ({save}) to be a multiple of eval_steps ({evaluate}).",
        "load_best_model_at_end 要求 save_steps（{save}）是 eval_steps（{evaluate}）的整数倍。",
    ),
    "two_warmups": (
        "warmup_steps and warmup_ratio are both set. Keep one.",
        "warmup_steps 和 warmup_ratio 同时设置。请只保留一个。",
    ),
    "dora_and_loraplus": (
        "use_dora and loraplus_lr_ratio do not work together. Keep one.",
        "use_dora 和 loraplus_lr_ratio 不能一起使用。请只保留一个。",
    ),
    "host_with": (
        "weights_on: host does not work with {what}. Take that out, or set weights_on: card.",
        "weights_on: host 不能与 {what} 一起使用。请去掉后者，或设置 weights_on: card。",
    ),
    "shared_with": (
        "weights_on: shared does not work with {what}. Take that out, or set weights_on: card.",
        "weights_on: shared 不能与 {what} 一起使用。请去掉后者，或设置 weights_on: card。",
    ),
    "shared_alone": (
        "weights_on: shared divides a model among several devices, and this run has one. Name several in devices, such as 0,1, or set weights_on: auto.",
        "weights_on: shared 把模型分给多个设备，而此次训练只有一个。请在 devices 中写明多个设备，如 0,1，或设置 weights_on: auto。",
    ),
    "weighed_twice": (
        "{names} weigh tokens in different ways. Keep one.",
        "{names} 是不同的 token 加权方式。请只保留一个。",
    ),
    "described_by_none": (
        "init_special_tokens: descriptions come from new_special_tokens_config, which is not set. Name the file, or keep noise_init.",
        "init_special_tokens：描述来自 new_special_tokens_config，而它没有设置。请填入该文件，或保持 noise_init。",
    ),
    "asft_pissa": (
        "use_asft_loss: with pissa_init the model without its adapter is not what it was. Name the model as ref_model.",
        "use_asft_loss：使用 pissa_init 时，去掉适配器的模型已不是原模型。请将该模型填入 ref_model。",
    ),
    "asft_new_tokens": (
        "use_asft_loss: a reference that is loaded beside the model does not know its new tokens. Take these out, or train an adapter.",
        "use_asft_loss：另外加载的参考模型没有新增的 token。请去掉新增 token，或改为训练适配器。",
    ),
    "weighed_stage": (
        "{name} is a loss of stage sft, and this is stage {stage}. Leave it out.",
        "{name} 是 sft 阶段的损失，而当前阶段为 {stage}。请去掉它。",
    ),
    "weighed_balance": (
        "{name} does not work with moe_aux_loss_coef. Keep one.",
        "{name} 不能与 moe_aux_loss_coef 一起使用。请只保留一个。",
    ),
    "reporter_unknown": (
        "report_to: unknown '{name}'. It can be none, {known}.",
        "report_to：未知的 '{name}'。可为 none、{known}。",
    ),
    "devices_wrong": (
        "devices: '{value}' does not fit. It can be auto, cpu, or GPU ids such as 0,1.",
        "devices：'{value}' 不合适。可为 auto、cpu，或 GPU 编号如 0,1。",
    ),
    "optimizer_alone": (
        "{name} in this way changes weights within the backward pass, or one block at a time: before the gradients of"
        " several processes are added up. Train on one device, or with another optimizer.",
        "以此方式使用的 {name} 会在反向传播中或逐块更新权重，早于多进程梯度汇总。请在单个设备上训练，或改用其他优化器。",
    ),
    "devices_mixed": (
        "devices: '{value}' names a device twice, or mixes kinds. Give different GPU ids such as 0,1; cpu,cpu are two"
        " processes on the CPU.",
        "devices：'{value}' 重复了设备或混用了类型。请给出不同的 GPU 编号如 0,1；cpu,cpu 表示 CPU 上的两个进程。",
    ),
    "option_unknown": (
        "Unknown option '{key}'.{guess} All options: docs/options.md.",
        "未知选项 '{key}'。{guess}全部选项见 docs/options.md。",
    ),
    "at_place": ("{place}: {problem}", "{place}：{problem}"),
    "lines": ("{problems:lines}", "{problems:lines}"),
    "option_wrong": ("{key}: {reason}", "{key}：{reason}"),
}
# words and clauses that become part of a sentence
PARTS = {
    "did_you_mean": (" Did you mean '{name}'?", "是否想写 '{name}'？"),
    "value_wrong": ("{value} does not fit: {problem}.", "{value} 不合适：{problem}。"),
    "type_greater_than": ("it should be greater than {gt}", "应大于 {gt}"),
    "type_greater_than_equal": ("it should be greater than or equal to {ge}", "应大于或等于 {ge}"),
    "type_less_than": ("it should be less than {lt}", "应小于 {lt}"),
    "type_less_than_equal": ("it should be less than or equal to {le}", "应小于或等于 {le}"),
    "type_literal_error": ("it should be {expected}", "应为 {expected}"),
    "type_bool_parsing": ("it should be a valid boolean, unable to interpret input", "应为布尔值（true 或 false）"),
    "type_bool_type": ("it should be a valid boolean", "应为布尔值"),
    "type_int_parsing": (
        "it should be a valid integer, unable to parse string as an integer",
        "应为整数，无法解析该文本",
    ),
    "type_int_parsing_size": (
        "Unable to parse input string as an integer, exceeded maximum size",
        "数字过长，无法解析为整数",
    ),
    "type_int_from_float": (
        "it should be a valid integer, got a number with a fractional part",
        "应为整数，不能带小数",
    ),
    "type_int_type": ("it should be a valid integer", "应为整数"),
    "type_float_parsing": (
        "it should be a valid number, unable to parse string as a number",
        "应为数字，无法解析该文本",
    ),
    "type_float_type": ("it should be a valid number", "应为数字"),
    "type_finite_number": ("it should be a finite number", "应为有限的数字"),
    "type_string_type": ("it should be a valid string", "应为文本"),
}
