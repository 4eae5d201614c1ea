"""Datasets from hubs, and what to do where one cannot be fetched."""

import re
from pathlib import Path

from workbench.data.registry import DatasetInfo
from workbench.errors import UserError
from workbench.storage.hub import endpoint, first_line, missing, modelscope_attribute, use_modelscope, wait_for_no_hub


def dataset_rows(info: DatasetInfo):
    """The rows of a hub's dataset; downloaded on first use, read from disk then.

    Raises:
        UserError: it cannot be fetched.
    """
    scope = bool(info.ms_hub and (use_modelscope() or not info.hub))
    name = (info.ms_hub if scope else info.hub) or ""
    if Path(name).exists():  # the libraries would read a folder of this name instead
        raise UserError(
            f"Dataset {info.name}: there is a file or folder {name} here. Name it as file_name in dataset_info.json."
        )
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
        raise UserError(f"Dataset {info.name}: {_why_not(info, error, where, name, scope)}") from None


def _why_not(info: DatasetInfo, error: Exception, where: str, name: str, scope: bool) -> str:
    """Why a hub's dataset is not here, and what to do."""
    message = str(error)
    if missing(error):
        return (
            f"{where} does not exist, or is not open to everybody. Check its name, or log in with"
            f" `{'modelscope' if scope else 'hf auth'} login`."
        )
    if "config name is missing" in message.lower() or "BuilderConfig" in message:
        parts = re.findall(r"\[(.*?)\]", message)
        return (
            f"{where} has several parts: give one as subset in its entry of"
            f" dataset_info.json{': ' + parts[0][:300] if parts else ''}."
        )
    if "split" in message.lower() and isinstance(error, ValueError):
        return f"{where}: {first_line(error)} Set split in its entry of dataset_info.json."
    get = (
        f"modelscope download --dataset {name} --local_dir"
        if scope
        else f"hf download {name} --repo-type dataset --local-dir"
    )
    part = f" (split {info.split}{', subset ' + info.subset if info.subset else ''})"
    return (
        f"{where}{part} cannot be fetched: {first_line(error)} Check the"
        f" network{'' if scope else ', or set HF_ENDPOINT to a mirror'}. By hand: run `{get} FOLDER` where there is a"
        " network, copy the folder here, and name it as file_name in dataset_info.json."
    )
