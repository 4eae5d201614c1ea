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

_OTHERS = """
    alpaca aquila atom baichuan baichuan2 bailing bailing_v2 belle bluelm breeze chatglm2 chatglm3 chatml_de
    codegeex2 codegeex4 cpm cpm3 cpm4 dbrx deepseekcoder dots_ocr ernie ernie_nothink ernie_vl exaone falcon
    falcon_h1 gemma3n glm4_5v glm4v glmz1 gpt_oss granite3 granite3_vision granite4 hunyuan index intern
    intern_s1 intern_vl keye_vl kimi_vl llama2 llama2_zh llava llava_next llava_next_llama3 llava_next_mistral
    llava_next_qwen llava_next_video llava_next_video_mistral llava_next_video_yi llava_next_yi marco mimo
    mimo_v2 mimo_vl minicpm_o minicpm_v minimax1 minimax2 ministral ministral3 mistral_small mllama moonlight
    olmo openchat openchat-3.6 opencoder orion paligemma paligemma_chat phi_small pixtral qwen2_audio
    qwen2_omni qwen2_vl qwen3_omni qwen3_omni_nothink qwen3_vl qwen3_vl_nothink sailor seed_coder skywork_o1
    solar starchat telechat telechat2 vicuna video_llava xuanyuan xverse yayi yi_vl yuan zephyr ziya
    aeva gemma4 gemma4n glm4_7 glm_ocr hunyuan_small hy3 lfm2 lfm2_vl minicpm_v_4_6 phi4_mini qwen3_5 qwen3_5_nothink
    qwen3_6 youtu youtu_vl
"""
_OWN |= set(_OTHERS.split())


def is_own(name: str) -> bool:
    """Whether a template's name stands for the model's own: auto, and names that LLaMA-Factory knows."""
    return name.strip().lower() in _OWN


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
        raise UserError("template_unknown", name=name[:100], names=names())
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
