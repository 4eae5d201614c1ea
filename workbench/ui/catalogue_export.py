"""The page's texts about exports, in English and Chinese."""

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
    "export_which": ("Export", "导出"),
    "export_upload": ("Upload", "上传"),
    "export_delete": ("Delete", "删除"),
    "export_which_none": ("Choose an export first.", "请先选择一个导出。"),
    "export_hub_none": ("Say under which name it is to be on the hub.", "请填写上传到模型库的名称。"),
    "export_run": ("Export…", "导出…"),
    "machine_export": ("exported as {format}", "导出为 {format}"),
    "machine_export_elsewhere": ("exported as {format}: for other programs", "导出为 {format}：供其他程序使用"),
}
