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
