"""Whether a checkpoint is whole: all shards there and readable, all weights there and of the right shape.

transformers starts missing weights at random values with a warning, and packs 4-bit weights of any shape.
"""

from pathlib import Path

from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.anatomy.folder import header
from workbench.models.quantized.bnb import bnb
from workbench.models.quantized.weights import is_packed
from workbench.storage import files

_AGAIN = Message("weights_again")


def check_shards(folder: Path) -> list[Path]:
    """The weight files of a folder, none where there are none. Reads headers only, and maps nothing: a file may be
    larger than the memory.

    Raises:
        UserError: a file that the index names is missing or cut off.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(files.read_object(index)["weight_map"].values()))
            if not all(isinstance(name, str) and Path(name).name == name for name in names):
                raise UserError("weight_file_name")
        except (UserError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError("index_broken", file=index, problem=error, advice=_AGAIN) from None
    else:
        names = [name for name in ("model.safetensors",) if (folder / name).is_file()]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            "shards_missing", folder=folder, count=len(missing), total=len(names), names=_few(missing), advice=_AGAIN
        )
    for name in names:
        try:
            header(folder / name)
        except (UserError, OSError) as error:
            size = (folder / name).stat().st_size
            problem = getattr(error, "reason", error)
            raise UserError("shard_cut", file=folder / name, size=size, problem=problem, advice=_AGAIN) from None
    return [folder / name for name in names]


def check_loaded(source: str, model, info: dict) -> None:
    """Raise UserError if weights were not in the checkpoint, or 4-bit ones do not have their module's shape.

    Args:
        info: what `from_pretrained(..., output_loading_info=True)` returns beside the model.
    """
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise UserError("weights_missing", source=source, count=len(missing), names=_few(missing), advice=_AGAIN)
    wrong = []
    for name, module in model.named_modules():
        expected = dict(getattr(module, "packed_shapes", {}))
        if isinstance(module, bnb.nn.Linear4bit):
            expected["weight"] = (module.out_features, module.in_features)
        for key, shape in expected.items():
            state = module._parameters[key].quant_state if is_packed(module._parameters[key]) else None
            if state is None or tuple(state.shape) != tuple(shape):
                found = Message("no_shape") if state is None else str(list(state.shape))
                wrong.append(Message("weight_shape", name=f"{name}.{key}", shape=found, wanted=str(list(shape))))
    if wrong:
        raise UserError("weights_other_shapes", count=len(wrong), source=source, names=_few(wrong, 2))


def _few(names: list, count: int = 3) -> list:
    return names[:count] + (["…"] if len(names) > count else [])
