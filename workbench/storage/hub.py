"""Models and datasets from hubs: Hugging Face or a mirror of it (`HF_ENDPOINT`), ModelScope (`USE_MODELSCOPE_HUB`).

The words for what to do where the hub cannot be reached stand here, too.
"""

import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from workbench.errors import UserError
from workbench.messages.message import Message


def use_modelscope() -> bool:
    """Whether `USE_MODELSCOPE_HUB` asks for ModelScope, as LLaMA-Factory reads it."""
    return os.environ.get("USE_MODELSCOPE_HUB", "").strip().lower() in ("1", "true", "yes", "on")


def endpoint() -> str:
    """Address of the Hugging Face hub or its mirror."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def wait_for_no_hub(patience: float = 4.0) -> None:
    """Let Hugging Face's clients look only at what is here while the hub cannot be reached: they would try again for
    half a minute.

    With a proxy only they know the way, and nothing is changed.
    """
    from huggingface_hub import constants

    if os.environ.get("HF_HUB_OFFLINE") or any(
        os.environ.get(name)
        for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
    ):
        return
    url = urlsplit(endpoint())
    try:
        socket.create_connection((url.hostname, url.port or (443 if url.scheme == "https" else 80)), patience).close()
        offline = False
    except OSError:
        offline = True
    constants.HF_HUB_OFFLINE = offline
    if datasets := sys.modules.get("datasets"):
        datasets.config.HF_HUB_OFFLINE = offline


def check_upload() -> None:
    """Raise UserError where nothing can be uploaded from here: offline, or without a token."""
    from huggingface_hub import get_token

    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise UserError("push_offline")
    if not get_token():
        raise UserError("push_no_token")


def missing(error: BaseException | None) -> bool:
    """Whether a hub was reached and said that something is not there, or not for this user."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403, 404) or type(error).__name__ in (
            "RepositoryNotFoundError",
            "GatedRepoError",
            "DatasetNotFoundError",
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def fetch_model(name: str, revision: str, cache: Path) -> str:
    """A ModelScope model as a folder, downloaded on first use.

    Raises:
        UserError: it cannot be fetched.
    """
    try:
        download = modelscope_attribute("snapshot_download")
        return download(name, revision="master" if revision == "main" else revision, cache_dir=str(cache))
    except UserError:
        raise
    except Exception as error:  # the hub's client raises many kinds
        raise UserError("modelscope_failed", name=name, reason=first_line(error), advice=by_hand(name)) from None


def by_hand(name: str) -> Message:
    """How to get a model here without a network."""
    folder = name.split("/")[-1]
    if use_modelscope():
        command = f"modelscope download --model {name} --local_dir {folder}"
        return Message("by_hand_modelscope", command=command, folder=folder)
    return Message("by_hand", command=f"hf download {name} --local-dir {folder}", folder=folder)


def modelscope_attribute(name: str):
    try:
        import modelscope
    except ImportError:
        raise UserError("modelscope_missing") from None
    return getattr(modelscope, name)


def first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return line if line.endswith((".", "!")) else line + "."
