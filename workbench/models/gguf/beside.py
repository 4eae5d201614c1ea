"""What lies beside a GGUF for Ollama: a Modelfile."""

import json
from collections.abc import Sequence
from typing import Any

from workbench.models.gguf.chat_form import chat_form, trims


def modelfile(file: str, tokenizer: Any, stops: Sequence[str], drop_bos: bool) -> str:
    """An Ollama Modelfile for a GGUF with a whole model."""
    lines = [f"FROM ./{file}"]
    form = chat_form(tokenizer, drop_bos) if tokenizer.chat_template else None
    if form and '"""' not in form.go() + (form.system or ""):
        lines.append(
            "# From the model's chat template; for messages. Tools and thoughts are in the GGUF's own template."
        )
        if trims(tokenizer):
            lines.append("# The model's template takes the space around a message away; this one does not.")
        lines.append(f'TEMPLATE """{form.go()}"""')
        if form.system:
            lines.append(f'SYSTEM """{form.system}"""')
    elif tokenizer.chat_template:
        lines.append(
            "# No TEMPLATE: the model's chat template has no form in Ollama's language that would be the same."
        )
        lines.append("# It is in the GGUF as it is (tokenizer.chat_template), where llama.cpp's programs find it.")
    else:
        lines.append("# No TEMPLATE: the model has no chat template.")
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join(lines) + "\n"


def lora_modelfile(file: str, base: str) -> str:
    """An Ollama Modelfile for a LoRA alone."""
    return "\n".join(
        [
            f"# The base as GGUF goes here: workbench export {base} --name base --format gguf-f16",
            "FROM ./base-f16.gguf",
            f"ADAPTER ./{file}",
            "",
        ]
    )
