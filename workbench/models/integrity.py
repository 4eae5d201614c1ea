"""Whether a checkpoint is whole: all shards there and readable, all weights there and of the right shape.

transformers starts missing weights at random values with a warning, and packs 4-bit weights of any shape.
"""

from pathlib import Path

import bitsandbytes as bnb
from safetensors import SafetensorError, safe_open

from workbench.errors import UserError
from workbench.models.quantized.weights import is_packed
from workbench.storage import files

_AGAIN = "Download it again, or copy the file from its source."


def check_shards(folder: Path) -> None:
    """Raise UserError if a shard that the index names is missing or cut off. Reads headers only."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(files.read_object(index)["weight_map"].values()))
            if not all(isinstance(name, str) and Path(name).name == name for name in names):
                raise ValueError("a weight file is named that cannot be one")
        except (UserError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index} is broken ({error}). {_AGAIN}") from None
    else:
        names = [name for name in ("model.safetensors",) if (folder / name).is_file()]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of {len(names)} weight files: {_few(missing)}. {_AGAIN}")
    for name in names:
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            size = (folder / name).stat().st_size
            raise UserError(f"{folder / name} is not whole ({size:,} bytes; {error}). {_AGAIN}") from None


def check_loaded(source: str, model, info: dict) -> None:
    """Raise UserError if weights were not in the checkpoint, or 4-bit ones do not have their module's shape.

    Args:
        info: what `from_pretrained(..., output_loading_info=True)` returns beside the model.
    """
    missing = sorted(info.get("missing_keys") or ())
    if missing:
        raise UserError(
            f"The checkpoint {source} lacks {len(missing)} weights of this model: {_few(missing)}. {_AGAIN}"
        )
    wrong = []
    for name, module in model.named_modules():
        expected = dict(getattr(module, "packed_shapes", {}))
        if isinstance(module, bnb.nn.Linear4bit):
            expected["weight"] = (module.out_features, module.in_features)
        for key, shape in expected.items():
            state = module._parameters[key].quant_state if is_packed(module._parameters[key]) else None
            if state is None or tuple(state.shape) != tuple(shape):
                stored_shape = "nothing" if state is None else list(state.shape)
                wrong.append(f"{name}.{key} is {stored_shape}, should be {list(shape)}")
    if wrong:
        raise UserError(
            f"{len(wrong)} weights of the checkpoint {source} have other shapes than its config.json says:"
            f" {_few(wrong, 2)}. The files do not belong together."
        )


def _few(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
