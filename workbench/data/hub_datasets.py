"""Datasets from hubs, and what to do where one cannot be fetched."""

import re
from pathlib import Path

from workbench.data.registry import DatasetInfo
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage.hub import endpoint, first_line, missing, modelscope_attribute, use_modelscope, wait_for_no_hub


def dataset_rows(info: DatasetInfo):
    """The rows of a hub's dataset; downloaded on first use, read from disk then.

    Raises:
        UserError: it cannot be fetched.
    """
    scope = bool(info.ms_hub and (use_modelscope() or not info.hub))
    name = (info.ms_hub if scope else info.hub) or ""
    if Path(name).exists():  # the libraries would read a folder of this name instead
        raise UserError("hub_name_taken", name=info.name, file=name)
    try:
        if scope:
            rows = modelscope_attribute("MsDataset").load(
                name, subset_name=info.subset, data_dir=info.folder, split=info.split
            )
            return rows.to_hf_dataset() if hasattr(rows, "to_hf_dataset") else rows
        from datasets import load_dataset

        wait_for_no_hub()
        return load_dataset(name, info.subset, data_dir=info.folder, split=info.split)
    except UserError:
        raise
    except Exception as error:  # the hubs' clients raise many kinds
        where = f"https://modelscope.cn/datasets/{name}" if scope else f"{endpoint()}/datasets/{name}"
        raise UserError("dataset_problem", name=info.name, problem=_why_not(info, error, where, name, scope)) from None


def _why_not(info: DatasetInfo, error: Exception, where: str, name: str, scope: bool) -> str:
    """Why a hub's dataset is not here, and what to do."""
    message = str(error)
    if missing(error):
        return Message("hub_dataset_missing", where=where, command="modelscope" if scope else "hf auth")
    if "config name is missing" in message.lower() or "BuilderConfig" in message:
        parts = re.findall(r"\[(.*?)\]", message)
        if parts:
            return Message("hub_dataset_subsets", where=where, parts=parts[0][:300])
        return Message("hub_dataset_parts", where=where)
    if "split" in message.lower() and isinstance(error, ValueError):
        return Message("hub_dataset_split", where=where, reason=first_line(error))
    command = (
        f"modelscope download --dataset {name} --local_dir"
        if scope
        else f"hf download {name} --repo-type dataset --local-dir"
    )
    part = [f"split {info.split}", f"subset {info.subset}"] if info.subset else [f"split {info.split}"]
    code = "hub_dataset_unfetched_modelscope" if scope else "hub_dataset_unfetched"
    return Message(code, where=where, part=", ".join(part), reason=first_line(error), command=command)
