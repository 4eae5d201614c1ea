"""LoRA whose base is not the base that it will be loaded on, saved so that it is.

PiSSA takes the factors that it starts from out of the weights; a new adapter on merged ones finds their products in
them. Such products stand still while the run trains. What is saved is one plain LoRA of trained and standing factors,
put side by side, W + s B A + Σ Bᵢ Aᵢ = W + s [B, Bᵢ/s] [A; Aᵢ]: it loads on the untouched base, here and in plain PEFT.
"""

import copy
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, PeftModelForCausalLM
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from workbench.errors import UserError

_PREFIX = "base_model.model."
# by name of the module in the base: (A [rank, in], B [out, rank]), B with its factor
Factors = dict[str, list[tuple[torch.Tensor, torch.Tensor]]]


def lora_layers(model, adapter: str) -> dict[str, LoraLayer]:
    """Layers of a PeftModel that have factors of this adapter, by their names in the base."""
    return {
        name.removeprefix(_PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and adapter in module.lora_A
    }


def merge_plain(model, folders: Sequence[Path]) -> tuple[torch.nn.Module, Factors]:
    """`model` with adapters merged in, and their factors.

    Raises:
        UserError: an adapter that is more than factors of linear layers, or does not fit this model.
    """
    standing: Factors = {}
    for folder in folders:
        try:
            tuned = PeftModel.from_pretrained(model, str(folder), adapter_name="merged")
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            raise UserError("adapter_unfit", folder=folder, problem=" ".join(str(error).split())[:300]) from None
        if what := _beyond_factors(tuned):
            raise UserError("adapter_not_plain", folder=folder, what=what)
        for name, layer in lora_layers(tuned, "merged").items():
            a, b = layer.lora_A["merged"].weight.detach(), layer.lora_B["merged"].weight.detach()
            pair = (a.float().clone(), b.float() * layer.scaling["merged"])
            standing.setdefault(name, []).append(pair)
        model = tuned.merge_and_unload()
    return model, standing


def _beyond_factors(tuned) -> str:
    """What an adapter has beside factors of linear layers; nothing if that is all."""
    config = tuned.peft_config["merged"]
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind != "LORA":
        return kind
    for option in ("use_dora", "modules_to_save", "target_parameters", "trainable_token_indices"):
        if getattr(config, option, None):
            return option
    plain = all(isinstance(m.get_base_layer(), torch.nn.Linear) for m in lora_layers(tuned, "merged").values())
    embedded = any(getattr(m, "lora_embedding_A", None) for m in tuned.modules() if isinstance(m, LoraLayer))
    return "" if plain and not embedded else "lora_embedding"


def taken_out_by_pissa(tuned, kept: Path | None) -> Factors:
    """The factors that PiSSA starts from, as what is added back to the weights.

    They go to the file `kept`: the fast decomposition is random, and a run that goes on needs the same base. Where
    there is such a file already, `tuned` is an adapter as usual, and starts from these.
    """
    layers = lora_layers(tuned, "default")
    if kept and kept.is_file():
        start = load_file(kept)
        for name, layer in layers.items():
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            device, base = a.device, layer.get_base_layer().weight
            a.data, b.data = start[f"{name}.a"].to(device), start[f"{name}.b"].to(device)
            product = layer.scaling["default"] * b.data @ a.data
            base.data = (base.data.float() - product).to(base.dtype)
    else:
        start = {}
        for name, layer in layers.items():
            start[f"{name}.a"] = layer.lora_A["default"].weight.detach().cpu().clone().contiguous()
            start[f"{name}.b"] = layer.lora_B["default"].weight.detach().cpu().clone().contiguous()
        if kept:
            partial = kept.with_name(f".{kept.name}.{os.getpid()}.tmp")  # several processes may write the same
            save_file(start, partial)
            partial.replace(kept)
    return {
        name: [(start[f"{name}.a"].clone(), -layer.scaling["default"] * start[f"{name}.b"])]
        for name, layer in layers.items()
    }


class StandingLora(PeftModelForCausalLM):
    """A PeftModel that saves what it trains together with standing factors, and takes only its own when it loads."""

    standing: Factors

    def save_pretrained(self, save_directory, *args, state_dict=None, is_main_process=True, **kwargs):
        if not is_main_process:
            return
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        tensors, config = self._together(state_dict)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config.save_pretrained(str(folder))

    def load_adapter(self, model_id, adapter_name, *args, **kwargs):
        tensors = load_file(Path(model_id) / "adapter_model.safetensors")
        own = lora_layers(self, adapter_name)
        kept = {}
        for key, value in tensors.items():
            name, _, factor = key.removeprefix(_PREFIX).rpartition(".lora_")
            if not factor:
                kept[key] = value
            elif name in own:
                rank = own[name].lora_A[adapter_name].weight.shape[0]
                kept[key] = value[:rank] if factor.startswith("A") else value[:, :rank].contiguous()
        return set_peft_model_state_dict(self, kept, adapter_name=adapter_name)

    def _together(self, state_dict) -> tuple[dict[str, torch.Tensor], LoraConfig]:
        """Tensors by name, and the config that says their rank."""
        adapter = self.active_adapter
        tensors = get_peft_model_state_dict(self, state_dict=state_dict, adapter_name=adapter)
        own, config = lora_layers(self, adapter), copy.deepcopy(self.peft_config[adapter])
        scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
        merged: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for name in sorted({*own, *self.standing}):
            parts = [(a, b / scale) for a, b in self.standing.get(name, ())]
            if name in own:
                prefix = f"{_PREFIX}{name}.lora_"
                parts.insert(0, (tensors.pop(f"{prefix}A.weight"), tensors.pop(f"{prefix}B.weight")))
            merged[name] = (
                torch.cat([a.detach().cpu().float() for a, _ in parts]),
                torch.cat([b.detach().cpu().float() for _, b in parts], dim=1),
            )
        rank = max(a.shape[0] for a, _ in merged.values())
        for name, (a, b) in merged.items():
            missing = rank - a.shape[0]
            tensors[f"{_PREFIX}{name}.lora_A.weight"] = torch.nn.functional.pad(a, (0, 0, 0, missing)).contiguous()
            tensors[f"{_PREFIX}{name}.lora_B.weight"] = torch.nn.functional.pad(b, (0, missing)).contiguous()
        alpha = scale * (rank**0.5 if config.use_rslora else rank)
        config.r, config.lora_alpha = rank, round(alpha) if abs(alpha - round(alpha)) < 1e-9 else alpha
        if set(self.standing) - set(own):
            config.target_modules = set(merged)
        config.init_lora_weights, config.inference_mode = True, True
        config.base_model_name_or_path = self.base_model.model.name_or_path
        return {key: value.contiguous() for key, value in tensors.items()}, config


def standing(tuned, factors: Factors):
    """`tuned`, saving these factors with its own."""
    tuned.__class__ = StandingLora
    tuned.standing = factors
    return tuned
