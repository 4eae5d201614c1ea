"""All texts of the page, English and Chinese, in one catalogue.

Labels go through gradio's I18n (the browser picks the language); texts made on the server go through `say` with the
language of the request. Both follow the switch in the header: it sets the cookie `workbench_lang`, and a script in
the page's head makes the browser report that language.
"""

import gradio as gr

from workbench.fields import options
from workbench.options import GROUPS, EngineConfig

COOKIE = "workbench_lang"

# The browser translates every text that equals a key, values of choices too: those must not be keys.
TEXT = {
    "tab_train": ("Train", "训练"),
    "tab_chat": ("Chat", "对话"),
    "tab_runs": ("Runs", "运行"),
    "preset": ("Preset", "预设"),
    "preset_info": ("A starting point for the form below.", "为下方表单提供起点。"),
    "import_title": ("Paste a LLaMA-Factory command or YAML", "粘贴 LLaMA-Factory 命令或 YAML"),
    "import_box": ("Command or YAML", "命令或 YAML"),
    "import_button": ("Fill the form", "填入表单"),
    "imported": ("Taken over: {count} options.", "已导入 {count} 个选项。"),
    "left_out": ("Not taken over:", "未导入："),
    "more": ("More: ", "更多："),
    "yaml": ("Run config (YAML)", "运行配置（YAML）"),
    "command": ("The same on the command line", "等价的命令行"),
    "start": ("Start training", "开始训练"),
    "stop": ("Stop", "停止"),
    "stop_run": ("Stop (saves a checkpoint)", "停止（保存检查点）"),
    "config_ok": ("The config is valid.", "配置有效。"),
    "started": ("Started {id}.", "已启动 {id}。"),
    "run": ("Run", "运行"),
    "runs_none": ("No run yet. Choose a preset and press Start.", "还没有运行。选择预设并点击开始。"),
    "log_scale": ("Log scale", "对数坐标"),
    "log": ("Log", "日志"),
    "loss": ("Loss", "损失"),
    "learning_rate": ("Learning rate", "学习率"),
    "throughput": ("Tokens/s", "token/秒"),
    "memory": ("Peak memory", "峰值内存"),
    "step": ("Step", "步"),
    "left": ("left", "剩余"),
    "elapsed": ("elapsed", "已用"),
    "legend_loss": ("loss", "损失"),
    "legend_smooth": ("loss, smoothed", "损失（平滑）"),
    "legend_eval": ("eval loss", "评估损失"),
    "no_points": ("The curve appears with the first logged step.", "首个日志步后显示曲线。"),
    "state_queued": ("queued", "排队中"),
    "state_starting": ("starting", "启动中"),
    "state_running": ("running", "运行中"),
    "state_stopping": ("stopping", "停止中"),
    "state_stopped": ("stopped", "已停止"),
    "state_finished": ("finished", "已完成"),
    "state_failed": ("failed", "失败"),
    "state_lost": ("lost", "丢失"),
    "adapter": ("Adapter", "适配器"),
    "adapter_info": ("A finished run. Changing it needs no reload.", "已完成的运行；更换无需重新加载。"),
    "adapter_none": ("none (base model)", "无（基座模型）"),
    "quantisation": ("Quantisation", "量化"),
    "none": ("none", "无"),
    "loading_options": ("Attention, RoPE, template", "注意力、RoPE、模板"),
    "load": ("Load", "加载"),
    "unload": ("Unload", "卸载"),
    "refresh": ("Refresh lists", "刷新列表"),
    "generation": ("Generation", "生成参数"),
    "system_prompt": ("System prompt", "系统提示词"),
    "max_tokens": ("Max new tokens", "最大新 token 数"),
    "temperature": ("Temperature", "温度"),
    "top_p": ("Top-p", "Top-p"),
    "top_k": ("Top-k (0: off)", "Top-k（0 为关闭）"),
    "repetition_penalty": ("Repetition penalty", "重复惩罚"),
    "seed": ("Seed (empty: random)", "种子（留空为随机）"),
    "compare": ("Compare base and adapter", "对比基座与适配器"),
    "base_column": ("Base model", "基座模型"),
    "adapter_column": ("With adapter", "带适配器"),
    "answer_column": ("Conversation", "对话"),
    "message": ("Message", "消息"),
    "message_placeholder": (
        "Ask something, e.g. Do you support tool calling?",
        "问点什么，例如：你支持工具调用嘛",
    ),
    "send": ("Send", "发送"),
    "regenerate": ("Regenerate", "重新生成"),
    "clear": ("Clear", "清空"),
    "engine_none": ("No model is loaded.", "未加载模型。"),
    "engine_loading": ("Loading {model}: {phase}", "正在加载 {model}：{phase}"),
    "engine_ready": ("{model} is ready on {device}.", "{model} 已就绪（{device}）。"),
    "engine_failed": ("{model} could not be loaded. {reason}", "{model} 加载失败。{reason}"),
    "engine_gone": ("The engine of {model} has ended. Load it again.", "{model} 的引擎已退出，请重新加载。"),
    "unexpected": (
        "Something went wrong ({kind}); the server's output says more.",
        "出现意外错误（{kind}），详见服务器输出。",
    ),
    "nothing_imported": ("Nothing could be taken over; the form stays as it is.", "没有可导入的选项，表单保持不变。"),
    "load_first": ("Load a model first.", "请先加载模型。"),
    "choose_adapter": ("Choose an adapter to compare with the base model.", "请选择要与基座对比的适配器。"),
    "api_hint": (
        "OpenAI-compatible API: {url} · model names: {names}",
        "OpenAI 兼容 API：{url} · 模型名：{names}",
    ),
    "trust_warning": (
        "Remote code is ticked: Python code that comes with this model will run on this machine with your rights.",
        "已勾选信任远程代码：该模型自带的 Python 代码将以你的权限在本机运行。",
    ),
    "dataset_problem": (
        "{count} dataset(s) of data/dataset_info.json cannot be read: why",
        "data/dataset_info.json 中有 {count} 个数据集无法读取：原因",
    ),
    "language": ("中文", "English"),
    "theme": ("Light / dark", "亮色 / 暗色"),
    "queued_as": ("{id} waits in the queue, as number {place}.", "{id} 已排队，位置 {place}。"),
    "search": ("Search", "搜索"),
    "search_info": ("Words in name, model or dataset.", "名称、模型或数据集中的词。"),
    "states": ("States", "状态"),
    "sort": ("Sort by", "排序"),
    "sort_by_newest": ("newest", "最新"),
    "sort_by_oldest": ("oldest", "最早"),
    "sort_by_loss": ("lowest loss", "最低损失"),
    "sort_by_eval_loss": ("lowest eval loss", "最低评估损失"),
    "sort_by_longest": ("longest", "最长"),
    "sort_by_throughput": ("fastest", "最快"),
    "page": ("Page", "页"),
    "shown_runs": ("{shown} of {count} runs", "共 {count} 个运行，显示 {shown} 个"),
    "column_state": ("state", "状态"),
    "column_run": ("run", "运行"),
    "column_model": ("model", "模型"),
    "column_dataset": ("dataset", "数据集"),
    "column_steps": ("steps", "步数"),
    "column_loss": ("last loss", "最新损失"),
    "column_best_loss": ("best loss", "最佳损失"),
    "column_eval_loss": ("best eval loss", "最佳评估损失"),
    "column_time": ("time", "用时"),
    "column_throughput": ("tokens/s", "token/秒"),
    "column_memory": ("GiB", "GiB"),
    "column_id": ("id", "编号"),
    "selected_run": ("Selected run", "所选运行"),
    "resume": ("Resume", "继续"),
    "resume_info": ("Resume goes on in the same run.", "“继续”在同一运行中进行。"),
    "new_epochs": ("Epochs", "轮数"),
    "new_epochs_info": ("Empty: as before.", "留空则不变。"),
    "checkpoint_info": ("Empty: the last one.", "留空为最后一个。"),
    "clone": ("Clone into the form", "克隆到表单"),
    "cloned": (
        "The form holds the options of {id}. Change some and press Start.",
        "表单已载入 {id} 的选项，修改后点击开始。",
    ),
    "clone_differs": ("Against {id}:", "与 {id} 相比："),
    "delete": ("Delete", "删除"),
    "delete_sure": ("Delete this run and all its files?", "删除此运行及其全部文件？"),
    "earlier": ("Earlier in the queue", "队列前移"),
    "later": ("Later in the queue", "队列后移"),
    "title": ("Name", "名称"),
    "note": ("Note", "备注"),
    "save": ("Save", "保存"),
    "saved": ("Saved.", "已保存。"),
    "charts": ("Charts", "图表"),
    "compare_runs": ("Compare", "对比"),
    "compare_which": ("Runs to compare", "要对比的运行"),
    "add_selected": ("Add the selected run", "加入所选运行"),
    "axis": ("Over", "横轴"),
    "axis_steps": ("step", "步"),
    "axis_epochs": ("epoch", "轮"),
    "axis_tokens": ("tokens", "token"),
    "axis_seconds": ("seconds", "秒"),
    "smoothing": ("Smoothing", "平滑"),
    "search_log": ("Lines with", "包含"),
    "download_log": ("Download the log", "下载日志"),
    "download_zip": ("Download files (zip)", "下载文件（zip）"),
    "checkpoints": ("Checkpoints", "检查点"),
    "checkpoint": ("checkpoint", "检查点"),
    "size": ("size", "大小"),
    "best": ("best", "最佳"),
    "disk_use": ("The whole run takes {size} on the disk.", "整个运行占用磁盘 {size}。"),
    "chat_with": ("Chat with this", "与其对话"),
    "config": ("Config", "配置"),
    "parent": ("Cloned from {id}; changed:", "克隆自 {id}；改动："),
    "no_differences": ("No differences.", "没有差异。"),
    "samples": ("Samples", "示例"),
    "no_samples": (
        "No answers yet. Set sample_prompts, and the model answers them while it trains.",
        "暂无回答。设置 sample_prompts 后，模型会在训练中作答。",
    ),
    "choose_run": ("Choose a run in the table.", "请在表格中选择一个运行。"),
    "run_ended": ("{id}: {state}. {reason}", "{id}：{state}。{reason}"),
    "read_only": ("Read-only: another page works on this workspace.", "只读：另一页面正在使用此工作区。"),
    "chart_grad_norm": ("Gradient norm", "梯度范数"),
    "chart_memory": ("Memory, GiB (peak, reserved)", "内存 GiB（峰值、保留）"),
    "chart_utilisation": ("GPU utilisation, %", "GPU 利用率 %"),
    "other_server": ("Another server (OpenAI-compatible)", "其他服务器（OpenAI 兼容）"),
    "use_other_server": ("Answer from this server", "由此服务器回答"),
    "server_url": ("Base URL, with /v1", "基础 URL（含 /v1）"),
    "server_key": ("API key", "API 密钥"),
    "server_model": ("Its model", "其模型"),
    "find_models": ("List its models", "列出模型"),
    "server_url_wrong": (
        "Give the server's address, such as http://127.0.0.1:8000/v1.",
        "请填写服务器地址，例如 http://127.0.0.1:8000/v1。",
    ),
    "server_model_missing": ("Name the model of the other server.", "请填写其他服务器的模型名。"),
    "merge_title": ("Merge adapters", "合并适配器"),
    "merge_weights": ("Adapters and weights", "适配器与权重"),
    "merge_info": ("One a line: ADAPTER = 0.5", "每行一个：适配器 = 0.5"),
    "merge_name": ("Name of the result", "结果名称"),
    "merge_add": ("Add to the engine", "加入引擎"),
    "merge_export": ("Export a merged model", "导出合并模型"),
    "merge_line_wrong": ("'{line}' should have the form ADAPTER = WEIGHT.", "“{line}” 应为 适配器 = 权重 的形式。"),
    "merge_empty": ("Name at least one adapter.", "请至少填写一个适配器。"),
    "merge_name_missing": ("Give the result a name.", "请为结果命名。"),
    "merged": ("{name} is loaded and chosen.", "{name} 已加载并选中。"),
    "exporting": (
        "Writing {name}; this can take minutes for a large model.",
        "正在写出 {name}；大模型可能需要数分钟。",
    ),
    "tools": ("Tools", "工具"),
    "tools_info": (
        "A JSON list of definitions as OpenAI's API takes it; calls are shown, not executed.",
        "OpenAI API 格式的 JSON 定义列表；只显示调用，不执行。",
    ),
    "tools_wrong": ("The tools are not a JSON list of definitions: {error}.", "工具不是 JSON 定义列表：{error}。"),
    "price_in": ("Price / 1M prompt", "价格/百万提示 token"),
    "price_out": ("Price / 1M answer", "价格/百万回答 token"),
    "tokens_used": ("{prompt} prompt + {completion} answer tokens", "提示 {prompt} + 回答 {completion} token"),
    "cost": (" · cost {cost}", " · 费用 {cost}"),
    "compare_more": ("More adapters beside them (two at most)", "更多对比适配器（最多两个）"),
    "best_answer": ("Best answer", "最佳回答"),
    "vote": ("Vote", "投票"),
    "vote_which": ("Choose the best answer first.", "请先选择最佳回答。"),
    "voted": (
        "Kept: {count} votes. The pairs are in the dataset {dataset}.",
        "已保存：{count} 次投票。偏好对在数据集 {dataset} 中。",
    ),
    "conversations": ("Conversations", "历史对话"),
    "new_conversation": ("New", "新建"),
    "rename": ("Rename", "重命名"),
    "deleted": ("Deleted.", "已删除。"),
    "export_as": ("Format", "格式"),
    "download": ("Download", "下载"),
    "examined": ("Looking at the answer of {model} to: {question}", "正在查看 {model} 对此问题的回答：{question}"),
    "confidence": ("Token confidence", "token 置信度"),
    "legend_probability": ("Probability that the model gave each token:", "模型赋予每个 token 的概率："),
    "no_logprobs": (
        "There are no log-probabilities for this answer: its server did not send any, or it is from before a change.",
        "此回答没有对数概率：服务器未返回，或回答早于某次更改。",
    ),
    "confidence_summary": (
        "Mean log-probability {mean} · weakest span “{span}” ({probability}) · {low} of {tokens} tokens below {limit}",
        "平均对数概率 {mean} · 最弱片段“{span}”（{probability}）· {tokens} 个 token 中 {low} 个低于 {limit}",
    ),
    "uncertainty_note": (
        "This is the model's uncertainty, not the truth: a falsehood that it has learned well looks sure. Hover or tap a token; click an alternative to go on from there.",
        "这是模型的不确定性，而非真假：学得牢的错误看起来也很确定。悬停或点按 token 查看；点击备选可从该处继续。",
    ),
    "token_line": ("probability {p} · rank {rank} · entropy {entropy}", "概率 {p} · 排名 {rank} · 熵 {entropy}"),
    "branches": ("Branches of this answer", "此回答的分支"),
    "branch_impossible": (
        "The answer cannot go on from there: the token is part of a letter, or another server wrote the answer.",
        "无法从该处继续：该 token 只是字符的一部分，或回答来自其他服务器。",
    ),
    "consistency": ("Consistency", "一致性"),
    "check": ("Check consistency", "检查一致性"),
    "check_every": ("Check every answer", "检查每个回答"),
    "check_samples": ("Samples", "样本数"),
    "level_supported": ("most of it is repeated: the model is settled on this", "大部分内容被重复：模型对此较为确定"),
    "level_doubtful": ("only part of it is repeated: check the marked places", "仅部分内容被重复：请核对标记处"),
    "level_unsupported": ("hardly anything is repeated: the model is guessing", "几乎没有内容被重复：模型在猜测"),
    "consistency_summary": (
        "Support by {n} more samples: {total} — {words}. {differ} of them say something else; {meanings} different meanings.",
        "另外 {n} 个样本的支持度：{total} — {words}。其中 {differ} 个说法不同；共 {meanings} 种含义。",
    ),
    "consistency_note": (
        "Support is the share of samples that mention the answer's names and numbers. Samples agree on what a model believes, right or wrong.",
        "支持度是提到回答中名称与数字的样本比例。样本一致只说明模型相信，不说明正确。",
    ),
    "agrees": ("agrees:", "一致："),
    "disagrees": ("differs:", "不同："),
    "difference": ("What the adapter changed", "适配器的改变"),
    "difference_info": (
        "Scores the same answer with the adapter on and off, in one extra forward pass.",
        "对同一回答分别在启用和关闭适配器时评分，只需一次额外前向计算。",
    ),
    "difference_run": ("Compare with and without", "对比启用与关闭"),
    "difference_own_only": (
        "This needs an answer that the workbench's own engine wrote.",
        "需要由工作台自身引擎生成的回答。",
    ),
    "difference_line": ("with the adapter {on} · without {off}", "启用适配器 {on} · 关闭 {off}"),
    "difference_summary": (
        "Mean log-probability with the adapter {on}, without {off} · {taught} tokens became much more likely · {sure} went from unlikely to almost certain",
        "平均对数概率：启用 {on}，关闭 {off} · {taught} 个 token 明显更可能 · {sure} 个从不太可能变为几乎确定",
    ),
    "more_likely": ("more likely with the adapter", "启用后更可能"),
    "less_likely": ("less likely", "更不可能"),
    "contradiction": ("Contradiction probe", "矛盾探测"),
    "wordings": ("Wordings of one question", "同一问题的不同说法"),
    "wordings_info": (
        "One a line, in any language; ! before those that ask for the opposite.",
        "每行一个，任何语言；反向提问前加 !。",
    ),
    "reword": ("From my last question", "取自上一个问题"),
    "contradiction_run": ("Ask them all", "全部提问"),
    "stance_yes": ("says it is so", "肯定"),
    "stance_no": ("says it is not so", "否定"),
    "stance_unclear": ("unclear", "不明"),
    "asks_opposite": ("asks for the opposite", "反向提问"),
    "contradicts": ("contradicts the others", "与其他回答矛盾"),
    "contradictions": (
        "{count} of {total} answers contradict the others.",
        "{total} 个回答中有 {count} 个与其他矛盾。",
    ),
    "no_contradictions": ("No contradiction found among {total} answers.", "{total} 个回答中未发现矛盾。"),
    "wording": ("question", "问题"),
    "reply": ("answer", "回答"),
    "stance": ("reads as", "解读"),
    "mark": ("mark", "标记"),
    "correct": ("Correct it", "纠正"),
    "pick_sample": ("Pick one of the samples", "选取一个样本"),
    "right_answer": ("The right answer", "正确答案"),
    "save_correction": ("Wrong: save this as the right answer", "有误：保存为正确答案"),
    "corrected": (
        "Saved. The dataset {dataset} has {count} rows now; choose it in the Train tab.",
        "已保存。数据集 {dataset} 现有 {count} 行，可在训练页选择。",
    ),
    "no_answer_yet": ("There is no answer to look at yet.", "还没有可查看的回答。"),
    "tagline": (
        "Fine-tune in 4 bits, watch the loss, talk to the result.",
        "4 位微调，实时看损失，与结果对话。",
    ),
}


def _catalogue(index: int) -> dict[str, str]:
    texts = {key: pair[index] for key, pair in TEXT.items()}
    for option in [*options(EngineConfig), *options()]:
        texts[f"opt_{option.name}"] = option.labels[index]
        texts[f"help_{option.name}"] = f"{option.name} · {option.helps[index]}"
    texts |= {f"group_{name}": words[index] for name, words in GROUPS.items()}
    texts |= {f"more_{name}": TEXT["more"][index] + words[index] for name, words in GROUPS.items()}
    return texts


i18n = gr.I18n(**{"en": _catalogue(0), "zh": _catalogue(1), "zh-CN": _catalogue(1)})


def t(key: str):
    """A label that the browser shows in its language."""
    return i18n(key)


def say(key: str, lang: str, **values) -> str:
    """A text in `lang` (`en` or `zh`)."""
    return TEXT[key][1 if lang == "zh" else 0].format(**values)


def language(request: gr.Request | None) -> str:
    """`zh` or `en`: the switch's cookie, else the browser's first language."""
    if request is None:
        return "en"
    chosen = request.cookies.get(COOKIE) or request.headers.get("accept-language", "en")
    return "zh" if chosen.lower().startswith("zh") else "en"
