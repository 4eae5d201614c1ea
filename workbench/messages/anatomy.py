"""What is wrong with a model's config, or is taken for granted where it says nothing."""

SENTENCES = {
    "anatomy_no_type": (
        "The config has no model_type, so it cannot be told what its fields build: only their meaning is shown. Take the config.json of the model's own folder.",
        "该配置没有 model_type，无法判断各字段构成怎样的模型，因此只显示字段含义。请使用模型文件夹中的 config.json。",
    ),
    "anatomy_type_unknown": (
        "The architecture {kind} is not known here: its fields are shown, its parameters, cache and arithmetic are not computed.",
        "此处不认识架构 {kind}：只显示其字段，不计算参数量、缓存与运算量。",
    ),
    "anatomy_text_part": (
        "{kind} holds a text model ({text}): figures are of that alone, without the parts for images or sound.",
        "{kind} 内含文本模型（{text}）：数字只针对文本部分，不含图像或声音部分。",
    ),
    "anatomy_default": (
        "The config does not say {key}; the architecture's own default {value} is taken.",
        "配置未给出 {key}，采用该架构的默认值 {value}。",
    ),
    "anatomy_field_missing": (
        "{key} is missing, so that parameters cannot be counted.",
        "缺少 {key}，无法计算参数量。",
    ),
    "anatomy_field_wrong": (
        "{key} is {value}; it should be a whole number from {least} to {most:,}.",
        "{key} 为 {value}，应为 {least} 到 {most:,} 之间的整数。",
    ),
    "anatomy_flag_wrong": ("{key} is {value}; it should be true or false.", "{key} 为 {value}，应为 true 或 false。"),
    "anatomy_list_wrong": ("{key} should be a list of whole numbers.", "{key} 应为整数列表。"),
    "anatomy_odd": ("{key} is {value}; it should be even.", "{key} 为 {value}，应为偶数。"),
    "anatomy_heads": (
        "num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv}): heads cannot share keys and values so.",
        "num_attention_heads（{heads}）不是 num_key_value_heads（{kv}）的倍数，各头无法这样共享键和值。",
    ),
    "anatomy_head_width": (
        "hidden_size ({hidden}) is no multiple of num_attention_heads ({heads}), and the config has no head_dim.",
        "hidden_size（{hidden}）不是 num_attention_heads（{heads}）的倍数，且配置没有 head_dim。",
    ),
    "anatomy_experts": (
        "num_experts_per_tok ({used}) is more than there are experts ({count}).",
        "num_experts_per_tok（{used}）超过了专家数（{count}）。",
    ),
    "anatomy_groups": (
        "topk_group ({chosen}) is more than there are groups (n_group {groups}).",
        "topk_group（{chosen}）超过了组数（n_group {groups}）。",
    ),
    "anatomy_groups_uneven": (
        "{count} experts cannot be put into {groups} groups of the same size (n_group).",
        "{count} 个专家无法平均分成 {groups} 组（n_group）。",
    ),
    "anatomy_first_dense": (
        "first_k_dense_replace ({first}) is more than there are layers ({layers}).",
        "first_k_dense_replace（{first}）超过了层数（{layers}）。",
    ),
    "anatomy_layer_freq": (
        "moe_layer_freq is {value}; transformers does not read it for this architecture and puts experts into every layer after the first dense ones. So do the figures here.",
        "moe_layer_freq 为 {value}；对该架构 transformers 不读取它，最初的稠密层之后每层都有专家。此处数字也是如此。",
    ),
    "anatomy_layer_types": (
        "layer_types has {count} entries for {layers} layers.",
        "layer_types 有 {count} 项，而层数为 {layers}。",
    ),
    "anatomy_rope_kinds": (
        "The model has one rotary embedding per kind of layer; that of full attention is shown.",
        "该模型的每类层各有一个旋转位置编码，此处显示全注意力层的。",
    ),
    "anatomy_rope_wrong": (
        "{key} ({value}) cannot be used, so that the position encoding is not shown.",
        "{key}（{value}）无法使用，因此不显示位置编码。",
    ),
    "anatomy_rope_unknown": (
        "The RoPE scaling {kind} is not known here: the plain wavelengths are shown.",
        "此处不认识 RoPE 缩放 {kind}：显示未缩放的波长。",
    ),
    "anatomy_rope_factors": (
        "long_factor and short_factor should be lists of {wanted} numbers, so that the position encoding is not shown.",
        "long_factor 与 short_factor 应各为 {wanted} 个数字的列表，因此不显示位置编码。",
    ),
    "anatomy_not_object": ("{file} holds no JSON object.", "{file} 不是 JSON 对象。"),
    "anatomy_no_config": (
        "{folder} has no config.json: it is no model, or its download has only begun.",
        "{folder} 中没有 config.json：它不是模型，或下载刚刚开始。",
    ),
    "anatomy_not_found": (
        "{name} is not on this machine, and no bundled config has that name. Bundled: {known}. Or name a folder, or a config.json.",
        "本机没有 {name}，自带配置中也没有这个名称。自带：{known}。也可给出文件夹或 config.json。",
    ),
    "anatomy_too_long": (
        "A config.json has at most {most} KiB here; this has more.",
        "此处 config.json 最多 {most} KiB，该文件超出了。",
    ),
    "anatomy_weights_none": (
        "There are no weight files (*.safetensors): the config alone is here.",
        "没有权重文件（*.safetensors）：只有配置。",
    ),
    "anatomy_weights_fewer": (
        "The weight files hold {found:,} parameters, the config makes {wanted:,}: some are missing, or the config is another model's.",
        "权重文件含 {found:,} 个参数，而配置对应 {wanted:,} 个：有所缺失，或配置属于另一个模型。",
    ),
    "anatomy_weights_more": (
        "The weight files hold {found:,} parameters, of which transformers builds {wanted:,} from the config; the rest is not loaded (layers that guess ahead, a second copy of a tied matrix).",
        "权重文件含 {found:,} 个参数，transformers 按配置构建其中 {wanted:,} 个，其余不加载（如多 token 预测层、共用矩阵的副本）。",
    ),
    "download_name": (
        "{name} is no model of a hub. Name it as OWNER/MODEL.",
        "{name} 不是模型库中的模型。请写成 OWNER/MODEL。",
    ),
    "download_there": (
        "There is a model {name} in the workspace already. Delete it first, or use it.",
        "工作区中已有模型 {name}。请先删除，或直接使用。",
    ),
    "download_no_room": (
        "{name} needs {need} more on the disk, where {free} are free. Delete models or runs, then download it again.",
        "{name} 还需 {need} 磁盘空间，目前可用 {free}。请删除一些模型或运行后重新下载。",
    ),
    "download_failed": (
        "{name} could not be downloaded: {reason} What came stays; download it again to go on. {advice}",
        "无法下载 {name}：{reason}已下载的部分会保留，再次下载可继续。{advice}",
    ),
    "download_done": ("{name} is in the workspace: {size}.", "{name} 已在工作区中：{size}。"),
    "model_not_here": (
        "There is no model {name} in the workspace. There are: {known}.",
        "工作区中没有模型 {name}。现有：{known}。",
    ),
    "model_loaded": (
        "{name} is loaded. Unload it in Chat, then delete it.",
        "{name} 已加载。请先在“对话”中卸载，再删除。",
    ),
    "model_in_run": (
        "The run {id} uses {name} and has not ended. Stop it, or wait, then delete the model.",
        "运行 {id} 正在使用 {name} 且尚未结束。请停止它或等待结束后再删除模型。",
    ),
    "model_in_download": (
        "{name} is being downloaded. Stop that, then delete it.",
        "{name} 正在下载。请先停止下载，再删除。",
    ),
    "model_not_deleted": (
        "{name} could not be deleted: {reason}. Look who owns its files.",
        "无法删除 {name}：{reason}。请检查文件的所有者。",
    ),
    "anatomy_part_file": (
        "{count} files of a download are not finished: {names}. Let it go on, or download the model again.",
        "有 {count} 个文件尚未下载完：{names}。请继续下载，或重新下载该模型。",
    ),
}
# words and clauses that become part of a sentence
PARTS = {
    "download_asking": ("Asking the hub", "正在询问模型库"),
    "download_so_far": ("{here} of {total}", "已下载 {here}，共 {total}"),
    "download_so_far_unknown": ("{here} so far", "已下载 {here}"),
    "no_header": ("it has no header of the safetensors format", "没有 safetensors 格式的文件头"),
    "shorter_than_said": ("{missing:,} bytes less than its header says", "比文件头所述少 {missing:,} 字节"),
    "anatomy_quantized": (
        "its files are quantized already ({method}); 4 bits need a plain checkpoint",
        "其文件已量化（{method}）；4 位需要未量化的检查点",
    ),
    "anatomy_experts_odd": (
        "its experts are transposed and have biases, which 4-bit packing here does not do",
        "其专家矩阵是转置的且带偏置，此处的 4 位打包不支持",
    ),
    "anatomy_experts_block": (
        "an expert's matrix is no multiple of {most} numbers",
        "单个专家矩阵的元素数不是 {most} 的倍数",
    ),
}
