"""Run configs: options, their values, what does not go together."""

SENTENCES = {
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
    "fp16_and_bf16": (
        "fp16 and bf16 are both on. Keep one, or neither to let the device decide.",
        "fp16 和 bf16 同时开启。请只保留一个，或都不设，由设备决定。",
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
    "two_warmups": (
        "warmup_steps and warmup_ratio are both set. Keep one.",
        "warmup_steps 和 warmup_ratio 同时设置。请只保留一个。",
    ),
    "dora_and_loraplus": (
        "use_dora and loraplus_lr_ratio do not work together. Keep one.",
        "use_dora 和 loraplus_lr_ratio 不能一起使用。请只保留一个。",
    ),
    "reporter_unknown": (
        "report_to: unknown '{name}'. It can be none, {known}.",
        "report_to：未知的 '{name}'。可为 none、{known}。",
    ),
    "devices_wrong": (
        "devices: '{value}' does not fit. It can be auto, cpu, or GPU ids such as 0,1.",
        "devices：'{value}' 不合适。可为 auto、cpu，或 GPU 编号如 0,1。",
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
