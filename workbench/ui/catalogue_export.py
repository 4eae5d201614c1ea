"""The page's texts about exports and sweeps, in English and Chinese."""

TEXT: dict[str, tuple[str, str]] = {
    "export_format_info": (
        "safetensors: merged, in the base's precision. bnb-4bit: for transformers. lora: the adapter alone. gguf-…: for"
        " llama.cpp and Ollama. Without adapters: bnb-4bit, gguf-f16, gguf-q8_0.",
        "safetensors：合并后保持基础模型精度。bnb-4bit：供 transformers 使用。lora：仅适配器。gguf-…：供 llama.cpp 和 Ollama 使用。"
        "可不带适配器：bnb-4bit、gguf-f16、gguf-q8_0。",
    ),
    "export_hub": ("Upload to the hub as", "上传到模型库，名称为"),
    "export_hub_info": (
        "NAME or OWNER/NAME; empty: stay here. With the token of `hf auth login` or HF_TOKEN.",
        "名称 或 所有者/名称；留空则不上传。使用 `hf auth login` 或 HF_TOKEN 的令牌。",
    ),
    "export_private": ("A new repository is private", "新仓库设为私有"),
    "exports": ("Exports in the workspace", "工作区中的导出"),
    "exports_none": ("Nothing has been exported yet.", "还没有导出。"),
    "exports_name": ("name", "名称"),
    "exports_size": ("size", "大小"),
    "exports_hub": ("uploaded to {url}", "已上传至 {url}"),
    "export_which": ("Which one", "哪一个"),
    "export_upload": ("Upload", "上传"),
    "export_delete": ("Delete", "删除"),
    "export_which_none": ("Choose an export first.", "请先选择一个导出。"),
    "export_hub_none": ("Say under which name it is to be on the hub.", "请填写上传到模型库的名称。"),
    "export_run": ("Export…", "导出…"),
    "machine_export": ("exported as {format}", "导出为 {format}"),
    "machine_export_elsewhere": ("exported as {format}: for other programs", "导出为 {format}：供其他程序使用"),
    "sweep_title": ("Sweep: several runs with different options", "扫描：以不同选项进行多个运行"),
    "sweep_kind": ("Which runs", "哪些运行"),
    "sweep_grid": ("all combinations", "所有组合"),
    "sweep_random": ("random draws", "随机抽取"),
    "sweep_lines": ("Options and values", "选项与取值"),
    "sweep_lines_info": (
        "One option a line: learning_rate = 1e-4, 2e-4. For random draws also ranges: learning_rate = 1e-5:5e-4:log.",
        "每行一个选项：learning_rate = 1e-4, 2e-4。随机抽取时也可写范围：learning_rate = 1e-5:5e-4:log。",
    ),
    "sweep_trials": ("Runs to draw", "抽取的运行数"),
    "sweep_seed": ("Seed", "随机种子"),
    "sweep_count": ("Count", "计算数量"),
    "sweep_queue": ("Queue all", "全部加入队列"),
    "sweep_runs": ("{count} runs, one after the other {time}.", "{count} 个运行，依次进行{time}。"),
    "sweep_queued": (
        "{count} runs are queued as the group {group}. The Runs tab shows them side by side.",
        "已将 {count} 个运行作为组“{group}”加入队列。可在“运行”页并排查看。",
    ),
    "group_part": ("Group", "组"),
    "group_none": ("This run belongs to no group.", "该运行不属于任何组。"),
    "group_head": (
        "{group}: {count} runs, {going} not ended, best first",
        "{group}：{count} 个运行，{going} 个未结束，最优在前",
    ),
    "group_stop": ("Stop the whole group", "停止整组"),
    "group_stop_sure": ("Stop all runs of {name}?", "停止 {name} 的所有运行？"),
    "group_stopped": (
        "{group}: {taken} taken out of the queue, {stopped} stopped while running.",
        "{group}：{taken} 个已移出队列，{stopped} 个运行中的已停止。",
    ),
}
