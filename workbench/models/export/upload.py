"""An export to a hub, with Hugging Face's own client: Hugging Face or a mirror of it (`HF_ENDPOINT`). No torch here.

The token is what that client finds (`HF_TOKEN`, `hf auth login`). It is written nowhere.
"""

import json
from pathlib import Path

from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.demo import Progress, watch_tqdm
from workbench.models.export.card import MARK
from workbench.storage import files, hub


def check_upload(name: str) -> str:
    """The full name, `OWNER/NAME`, to which an upload will go; asks the hub who the token's user is.

    Raises:
        UserError: no name of a repository; no token, or one that is refused; the hub cannot be reached; a name in a
            space where the user may not write.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name, place = name.strip(), hub.endpoint()
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError("upload_name", name=name[:100]) from None
    if hub.use_modelscope():
        raise UserError("upload_modelscope")
    if not get_token():
        raise UserError("upload_no_token", place=place)
    hub.wait_for_no_hub()
    try:
        who = HfApi(endpoint=place).whoami()
    except Exception as error:  # the hub's client raises many kinds
        raise _failed(name, error, "–") from None
    user = str(who.get("name") or "")
    owner, _, rest = name.rpartition("/")
    groups = {str(group.get("name")): group.get("roleInOrg") for group in who.get("orgs") or ()}
    if owner and owner != user and (owner not in groups or groups[owner] == "read"):
        raise UserError("upload_not_yours", user=user, name=name, place=place)
    return f"{owner or user}/{rest}"


def upload(folder: Path, name: str, private: bool, progress: Progress) -> str:
    """Put a folder's files into the repository `OWNER/NAME`, which is made if it is not there; returns its address.
    All files appear with one commit. A second upload sends only what has changed.

    Raises:
        UserError: the user may not write there; the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=hub.endpoint())
    listed = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    listed.sort(key=lambda path: path.suffix in (".safetensors", ".gguf"))
    total, done = max(1, sum(path.stat().st_size for path in listed)), 0
    try:
        url = api.create_repo(name, private=private or None, exist_ok=True)
        operations = []
        for path in listed:
            inside, size = str(path.relative_to(folder)), path.stat().st_size
            phase = Message("export_uploading", name=inside)
            progress(phase, done / total)
            content = _card_there(path, folder.name, url.repo_id) if inside == "README.md" else str(path)
            operation = CommitOperationAdd(path_in_repo=inside, path_or_fileobj=content)
            with watch_tqdm(_within(progress, phase, done / total, size / total)):
                api.preupload_lfs_files(url.repo_id, [operation])
            operations.append(operation)
            done += size
        api.create_commit(url.repo_id, operations, commit_message="Upload from QLoRA Workbench")
    except Exception as error:  # the hub's client raises many kinds
        raise _failed(name, error, name.partition("/")[0]) from None
    _remember(folder, str(url))
    return str(url)


def _card_there(path: Path, name: str, repo: str) -> bytes:
    """The card with the name that the model has on the hub in its example."""
    text = path.read_text(encoding="utf-8")
    return text.replace(f'from_pretrained("{name}")', f'from_pretrained("{repo}")').encode()


def _within(progress: Progress, phase: Message, begin: float, share: float) -> Progress:
    return lambda _, part: progress(phase, begin + share * part)


def _remember(folder: Path, url: str) -> None:
    """Write the repository's address into the export's mark."""
    mark = files.read_object(folder / MARK)
    files.write_atomically(folder / MARK, json.dumps(mark | {"hub": url}, ensure_ascii=False, indent=1))


def _failed(name: str, error: Exception, user: str) -> UserError:
    import httpx
    from huggingface_hub.errors import OfflineModeIsEnabled

    place = hub.endpoint()
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return UserError("upload_token_refused", place=place)
    if status in (403, 404, 409):
        return UserError("upload_not_yours", user=user, name=name, place=place)
    if isinstance(error, OfflineModeIsEnabled | httpx.TransportError | ConnectionError):
        return UserError("upload_unreachable", place=place)
    return UserError("upload_failed", name=name, reason=hub.first_line(error))
