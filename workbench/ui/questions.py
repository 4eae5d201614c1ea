"""Questions before something is lost, in the page's language and with the name of what is meant."""

import json

from workbench.ui.catalogue import say

# key of a question in the catalogue, with `{name}`
KEYS = (
    "delete_sure",
    "kill_sure",
    "data_row_sure",
    "data_remove_sure",
    "preset_delete_sure",
    "conversation_sure",
    "model_delete_sure",
    "cost_forget_sure",
    "group_stop_sure",
)


def script() -> str:
    """JavaScript of `workbenchAsk(key, name)`, which asks and tells the answer. Runs once, in the page's head."""
    texts = {lang: {key: say(key, lang, name="{name}") for key in KEYS} for lang in ("en", "zh")}
    return (
        f"window.workbenchAsk = (key, name) => confirm({json.dumps(texts, ensure_ascii=False)}"
        "[navigator.language.startsWith('zh') ? 'zh' : 'en'][key].replace('{name}', () => name));"
    )


def asking(key: str, at: int = 0, named: int = 1, field: str = "") -> str:
    """JavaScript before a handler whose input number `at` is a name: the handler gets none where the answer is no. The
    question names it together with the inputs after it, `named` in all, or as the input `field` (a selector) shows
    it."""
    shown = f"document.querySelector('{field}').value" if field else f"all.slice({at}, {at + named}).join(' · ')"
    return (
        f"(...all) => {{ const name = {shown};"
        f" if (!all[{at}] || !workbenchAsk('{key}', name)) all[{at}] = null; return all; }}"
    )


def asking_kill(status: str) -> str:
    """JavaScript before a handler with the inputs (run, answer): `stop`, or for a run that is stopping already, as the
    badge in `status` says, `kill` or `no`."""
    return (
        f"(run) => {{ const stopping = document.querySelector('{status} .wb-badge.stopping');"
        " return [run, !stopping ? 'stop' : workbenchAsk('kill_sure', run) ? 'kill' : 'no']; }"
    )
