"""The catalogue's texts in the language of a browser.

Labels go through gradio's I18n (the browser picks the language); texts made on the server go through `say` with the
language of the request. Both follow the switch in the header: it sets the cookie `workbench_lang`, and a script in
the page's head makes the browser report that language.
"""

import gradio as gr

from workbench.config.fields import options
from workbench.config.options import GROUPS, EngineConfig
from workbench.ui.catalogue import TEXT

COOKIE = "workbench_lang"


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


def language(request: gr.Request | None) -> str:
    """`zh` or `en`: the switch's cookie, else the browser's first language."""
    if request is None:
        return "en"
    chosen = request.cookies.get(COOKIE) or request.headers.get("accept-language", "en")
    return "zh" if chosen.lower().startswith("zh") else "en"
