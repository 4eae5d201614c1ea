"""Chat templates as Jinja files with generation markers. Training and chat use the same file."""

from pathlib import Path

from workbench.errors import UserError

_FOLDER = Path(__file__).parent
_SAME = {
    "deepseek2": "deepseek",
    "deepseek_v2": "deepseek",
    "qwen2": "qwen",
    "chatglm4": "glm4",
    "vanilla": "default",
}
# LLaMA-Factory's names whose models bring the right template themselves
_OWN = {
    "auto",
    "deepseek3",
    "deepseekr1",
    "qwen3",
    "qwen3_nothink",
    "gemma",
    "gemma2",
    "gemma3",
    "mistral",
    "phi",
    "phi3",
    "phi4",
    "glm4_moe",
    "glm4.5",
    "smollm",
    "smollm2",
    "llama4",
    "gpt",
    "cohere",
    "yi",
    "intern2",
    "seed_oss",
}


def names() -> list[str]:
    """Templates that come with the workbench."""
    return sorted(path.stem for path in _FOLDER.glob("*.jinja"))


def read(name: str) -> str | None:
    """The Jinja text of a template, or None where the model's own is meant.

    Raises:
        UserError: no such template.
    """
    name = name.strip().lower()
    if name in _OWN:
        return None
    name = _SAME.get(name, name)
    if name not in names():  # never a path
        raise UserError(f"There is no template '{name[:100]}'. It can be auto (the model's own), {', '.join(names())}.")
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
