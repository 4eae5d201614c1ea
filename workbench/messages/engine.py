"""The engine: loading a model, and what it cannot do with a request. Clients of `/v1` get the English text."""

SENTENCES = {
    "not_recorded": (
        "Decoding steps are not recorded (CUDA graphs), which makes answers slower: {reason}.",
        "解码步骤未被录制（CUDA graphs），回答会较慢：{reason}。",
    ),
    "takes_turns": (
        "Requests take turns with this model: {reason}.",
        "此模型的请求将逐个处理：{reason}。",
    ),
    # in OpenAI's words, which clients look for
    "context_overflow": (
        "This model's maximum context length is {context} tokens. However, your {what} resulted in {tokens} tokens."
        " Please reduce the length of the {what}.",
        "此模型的上下文最多 {context} 个 token，而此请求（{what}）有 {tokens} 个。请缩短内容。",
    ),
    "model_not_loaded": (
        "There is no model '{model}'. Loaded: {names}.",
        "没有模型“{model}”。已加载：{names}。",
    ),
    "too_many_characters": (
        "{what}: together at most {most:,} characters.",
        "{what}：合计最多 {most:,} 个字符。",
    ),
    "no_scoring": (
        "This engine does not support scoring. Load the model with another engine.",
        "此引擎不支持评分。请用其他引擎加载模型。",
    ),
    # the page's side
    "engine_not_loaded": (
        "No model is loaded. Load one in the Chat tab first.",
        "尚未加载模型。请先在“对话”页加载。",
    ),
    "engine_replaced": (
        "The model was unloaded, or another one was loaded, before it answered. Ask again.",
        "模型在回答之前已被卸载或换成另一个。请重新提问。",
    ),
    "engine_silent": (
        "The engine has not answered for {seconds:.0f} s. Wait, or load the model again in the Chat tab.",
        "引擎已有 {seconds:.0f} 秒没有响应。请等待，或在“对话”页重新加载模型。",
    ),
    "engine_too_large": (
        "The model takes about {need:.1f} GiB, but {free:.1f} GiB are free. Choose 4 bit, or load on another device.",
        "模型约需 {need:.1f} GiB，但仅有 {free:.1f} GiB 可用。请选择 4 位，或加载到其他设备。",
    ),
    "engine_too_large_beside": (
        "The model takes about {need:.1f} GiB, but {free:.1f} GiB are free while {id} trains. Wait until it ends, stop it,"
        " choose 4 bit, or load on another device.",
        "模型约需 {need:.1f} GiB，而 {id} 正在训练，仅有 {free:.1f} GiB 可用。请等它结束、停止它、选择 4 位，或加载到其他设备。",
    ),
    "server_silent": (
        "The server did not answer ({reason}). Load the model again, or check its address.",
        "服务器没有响应（{reason}）。请重新加载模型，或检查其地址。",
    ),
    "server_not_openai": (
        "{url} does not answer as an OpenAI-compatible server. Give its address with /v1.",
        "{url} 不是兼容 OpenAI 的服务器。请给出带 /v1 的地址。",
    ),
    "answer_too_long": (
        "The answer was ended: it has more than {most:,} characters.",
        "回答已被终止：超过 {most:,} 个字符。",
    ),
    "engine_ended_midway": (
        "The model's process ended in the middle of the answer. Load it again to go on.",
        "模型进程在回答途中退出。请重新加载后继续。",
    ),
    "score_own_only": (
        "Only the workbench's own engine can score an answer. Load the model here for this.",
        "只有本工作台自己的引擎能给回答打分。请在此加载模型。",
    ),
    "score_failed": (
        "The engine could not score the answer ({error}). Load the model again.",
        "引擎无法给回答打分（{error}）。请重新加载模型。",
    ),
    "adapter_load_failed": (
        "The engine could not load the adapter ({error}). Load the model again.",
        "引擎无法加载适配器（{error}）。请重新加载模型。",
    ),
    # another engine: vLLM, SGLang
    "engine_program_missing": (
        "{engine} is not installed here: there is no program {program}. Install it in an environment of its own and name"
        " its program in {variable}, or give engine_url of a server that runs.",
        "此处未安装 {engine}：没有程序 {program}。请在单独的环境中安装并用 {variable} 指明其程序，或给出正在运行的服务器的 engine_url。",
    ),
    "engine_rank_too_large": (
        "The adapter {name} has rank {rank}; this engine takes at most {most}. Merge it into the base and load that.",
        "适配器 {name} 的秩为 {rank}，此引擎最多支持 {most}。请将其并入基座模型后加载。",
    ),
    "engine_program_ended": (
        "{engine} ended ({code}): {line}",
        "{engine} 已退出（{code}）：{line}",
    ),
    "engine_start_slow": (
        "{engine} was not ready after {minutes:.0f} minutes. Look into {log}, and load the model again.",
        "{engine} 在 {minutes:.0f} 分钟后仍未就绪。请查看 {log}，然后重新加载模型。",
    ),
    "engine_unreachable": (
        "{engine} at {url} does not answer ({reason}). Check the address, and whether it runs.",
        "{url} 的 {engine} 没有响应（{reason}）。请检查地址以及它是否在运行。",
    ),
    "engine_key_refused": (
        "{engine} at {url} refuses the key. Give the right one, in the Chat tab or in WORKBENCH_ENGINE_KEY.",
        "{url} 的 {engine} 拒绝了密钥。请在“对话”页或 WORKBENCH_ENGINE_KEY 中给出正确的密钥。",
    ),
    "engine_refused": (
        "{engine} refused the request: {reason}",
        "{engine} 拒绝了请求：{reason}",
    ),
    "engine_adapter_refused": (
        "{engine} did not load the adapter {name}: {reason} Choose the adapter before the model is loaded, or name it"
        " where that server is started.",
        "{engine} 未能加载适配器 {name}：{reason} 请在加载模型之前选择适配器，或在启动该服务器时指定。",
    ),
    "engine_answer_odd": (
        "{engine} answered in another form than it documents. Use a newer version.",
        "{engine} 的回答与其文档不符。请使用更新的版本。",
    ),
    "engine_too_old": (
        "This {engine} does not tell the ids of its tokens. Use version {version} or later.",
        "此 {engine} 不提供 token id。请使用 {version} 或更高版本。",
    ),
    "engine_unknown": (
        "{url} is neither vLLM nor SGLang. Give such a server's address, or use Another server in the Chat tab.",
        "{url} 既不是 vLLM 也不是 SGLang。请给出这类服务器的地址，或使用“对话”页中的其他服务器。",
    ),
    "engine_other_model": (
        "The server at {url} has another tokenizer than {name}. Choose the model that it serves: {served}.",
        "{url} 的服务器与 {name} 的分词器不同。请选择它所提供的模型：{served}。",
    ),
    "engine_several_models": (
        "The server at {url} has several models: {served}. Give the address of one that serves {name} alone.",
        "{url} 的服务器有多个模型：{served}。请给出只提供 {name} 的地址。",
    ),
    "engine_no_context": (
        "{engine} does not tell how long its context is. Use a newer version.",
        "{engine} 未说明上下文长度。请使用更新的版本。",
    ),
    "engine_no_calls": (
        "{engine} cannot be held to calls of tools in this model's form. Leave tool_choice at auto, or load the model with"
        " the workbench's own engine.",
        "{engine} 无法强制按此模型的格式调用工具。请将 tool_choice 保持为 auto，或用本工作台自己的引擎加载模型。",
    ),
    "engine_no_form_after_thought": (
        "{engine} cannot be held to JSON after a thought. Turn thinking off, leave response_format out, or load the model"
        " with the workbench's own engine.",
        "{engine} 无法在思考之后强制输出 JSON。请关闭思考、去掉 response_format，或用本工作台自己的引擎加载模型。",
    ),
    "engine_no_merge": (
        "{engine} cannot add adapters up. Export them as one model, and load that.",
        "{engine} 无法叠加适配器。请将它们导出为一个模型后加载。",
    ),
    "engine_only_serves": (
        "This command decodes with the workbench's own engine. Leave engine and engine_url out, or use serve.",
        "此命令使用本工作台自己的引擎解码。请去掉 engine 与 engine_url，或使用 serve。",
    ),
    # adapters
    "adapter_refused": (
        "The adapter {path} does not fit this model: {reason}",
        "适配器 {path} 与此模型不匹配：{reason}",
    ),
    "adapter_unknown": (
        "There is no adapter named {name}. Loaded: {loaded}.",
        "没有名为 {name} 的适配器。已加载：{loaded}。",
    ),
    "adapter_name_taken": (
        "There is an adapter named {name} already. Choose another name.",
        "已有名为 {name} 的适配器。请换个名字。",
    ),
    "adapters_not_loaded": (
        "Not loaded: {names}. Load these adapters first.",
        "尚未加载：{names}。请先加载这些适配器。",
    ),
    "adapters_unmergeable": ("These adapters cannot be merged: {reason}", "这些适配器无法合并：{reason}"),
    "adapter_in_use": (
        "A request is using the adapter {name} at the moment. Remove it when the answer is done.",
        "有请求正在使用适配器 {name}。请在回答结束后再移除。",
    ),
    "adapters_unsupported": (
        "This engine does not support adapters. Load the model with another engine.",
        "此引擎不支持适配器。请用其他引擎加载模型。",
    ),
    "adapter_named_as_base": (
        "An adapter cannot have the base model's name, {name}.",
        "适配器不能与基座模型同名（{name}）。",
    ),
    # requests
    "prompt_empty": ("The prompt is empty. Give at least one token.", "提示为空。请至少给出一个 token。"),
    "prompt_ids": (
        "The prompt holds token ids that this model does not have. They go from 0 to {last}.",
        "提示中有此模型没有的 token id。有效范围为 0 到 {last}。",
    ),
    "answer_ids": (
        "The answer holds token ids that this model does not have.",
        "回答中有此模型没有的 token id。",
    ),
    "bias_unknown": (
        "logit_bias: there is no token {token}. Ids go from 0 to {last}.",
        "logit_bias：没有 token {token}。有效范围为 0 到 {last}。",
    ),
    "cache_too_small": (
        "The conversation has {tokens:,} tokens, but the memory that is left for its cache holds {room:,}. Shorten it, or"
        " load the model with more memory free.",
        "对话有 {tokens:,} 个 token，但剩余内存的缓存只能容纳 {room:,} 个。请缩短对话，或在有更多可用内存时加载模型。",
    ),
    "request_memory": (
        "The memory ran out in the middle of this request. Shorten the conversation, or ask again when fewer requests are"
        " running.",
        "处理此请求时内存耗尽。请缩短对话，或在并发请求较少时重试。",
    ),
    "schema_too_large": (
        "{what}: the JSON schema is too large. At most {levels} levels and {values:,} values.",
        "{what}：JSON schema 过大。最多 {levels} 层、{values:,} 个值。",
    ),
    "schema_unusable": (
        "{what}: this JSON schema cannot be used: {reason}",
        "{what}：无法使用该 JSON schema：{reason}",
    ),
    "tool_choice_unknown": (
        "tool_choice: it is not known how this model writes calls, so that one cannot be forced. Use auto.",
        "tool_choice：不清楚此模型如何书写工具调用，因此无法强制调用。请用 auto。",
    ),
    "reasoning_unsupported": (
        "reasoning_effort: the chat template of this model has no such switch. Leave it out.",
        "reasoning_effort：此模型的对话模板没有该开关。请去掉它。",
    ),
    "no_place_for_tools": (
        "The chat template of this model has no place for tools. Leave them out, or use a model made for them.",
        "此模型的对话模板没有放置工具的位置。请去掉工具，或使用支持工具的模型。",
    ),
    "template_slow": (
        "The chat template took more than {seconds:g} s for this conversation. Choose another template.",
        "对话模板处理此对话用时超过 {seconds:g} 秒。请换一个模板。",
    ),
    "template_cannot_render": (
        "The chat template cannot render this conversation: {reason}.",
        "对话模板无法渲染此对话：{reason}。",
    ),
}

PARTS = {
    "recorded_triton": ("Triton is not installed", "未安装 Triton"),
    "recorded_host": ("its weights stream from host memory", "其权重从主机内存流式传入"),
    "recorded_split": ("the model is on several GPUs", "模型分布在多个 GPU 上"),
    "recorded_differs": ("a recorded step gave another answer in a trial", "试运行时录制的步骤给出了不同的结果"),
    "phase_starting": ("Starting", "正在启动"),
    "phase_adapter": ("Loading adapter {name}", "正在加载适配器 {name}"),
    "phase_other_engine": ("Starting {engine}: {line}", "正在启动 {engine}：{line}"),
    "phase_trying": ("Trying the model", "正在试运行模型"),
    "turns_layers": ("it has layers of kind {kinds}", "它含有 {kinds} 类型的层"),
    "turns_rotary": (
        "its rotary embeddings depend on the length, each layer's in its own way",
        "其旋转位置编码随长度变化，且各层不同",
    ),
    "turns_chunked": ("its attention is chunked", "其注意力是分块的"),
    "turns_attention": (
        "its attention is {kind} (flash_attn: auto or sdpa would do)",
        "其注意力实现为 {kind}（flash_attn 设为 auto 或 sdpa 即可）",
    ),
    "turns_differ": (
        "two texts side by side do not come out as each alone",
        "两段文本并排处理的结果与各自单独处理不同",
    ),
    "turns_cache": ("it does not use its cache", "它不使用缓存"),
    "grammars_too_large": (
        "together the grammars are too large. Give fewer tools, or smaller schemas.",
        "语法合起来过大。请减少工具，或使用更小的 schema。",
    ),
}
