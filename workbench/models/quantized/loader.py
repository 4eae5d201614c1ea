"""4-bit experts for mixture-of-experts models whose experts are fused 3-D parameters (transformers 5).

bitsandbytes' own 4-bit loading replaces only `nn.Linear`, which leaves 92 % of DeepSeek-V2-Lite in bfloat16. Here the
experts' parameters, `gate_up_proj [E, 2I, H]` and `down_proj [E, H, I]`, become `Params4bit` as well: NF4 with double
quantization (QLoRA, arXiv 2305.14314), packed by bitsandbytes while `from_pretrained` streams the checkpoint layer by
layer. Which modules these are is decided by structure (`is_fused_experts`), not by a list of models.

`install()` makes transformers use this for every `BitsAndBytesConfig(load_in_4bit=True)`; a model without fused
experts loads exactly as before. The forward and backward over the packed experts is in `experts.py`.
"""

import contextlib
import copy
from collections import defaultdict

import torch
from transformers.core_model_loading import WeightConverter
from transformers.integrations.bitsandbytes import Bnb4bitDeserialize, Bnb4bitQuantize
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from workbench.models.quantized import expert_lora
from workbench.models.quantized.bnb import bnb
from workbench.models.quantized.experts import use_packed_experts
from workbench.models.quantized.layout import (
    BLOCK,
    EXPERT_PARAMETERS,
    check_layout,
    expert_parameters,
    is_fused_experts,
)
from workbench.models.quantized.weights import is_packed

_AT_ONCE = 1 << 30  # elements that are packed in one call
_packing_on: torch.device | None = None  # where weights are packed that stay on the CPU


@contextlib.contextmanager
def packing_on(device: torch.device):
    """Within: what is loaded onto the CPU is packed on `device`, one parameter at a time, and comes back."""
    global _packing_on
    before, _packing_on = _packing_on, device
    try:
        yield
    finally:
        _packing_on = before


class _Quantize(Bnb4bitQuantize):
    """Packs a `[E, out, in]` parameter like bitsandbytes packs a matrix; other parameters as transformers does."""

    def convert(self, input_dict, full_layer_name=None, model=None, **kwargs):
        if _packing_on is None:
            return self._packed(input_dict, full_layer_name, model, **kwargs)
        moved = {}
        for name, value in input_dict.items():
            moved[name] = (value[0] if isinstance(value, list) else value).to(_packing_on)
        packed = self._packed(moved, full_layer_name, model, **kwargs)
        del moved
        return {name: parameter.to("cpu") for name, parameter in packed.items()}

    def _packed(self, input_dict, full_layer_name, model, **kwargs):
        result = {}
        for name, value in input_dict.items():
            module, leaf = get_module_from_name(model, name)
            if leaf not in EXPERT_PARAMETERS or not is_fused_experts(module):
                result |= super().convert({name: value}, full_layer_name=full_layer_name, model=model, **kwargs)
                continue
            value = value[0] if isinstance(value, list) else value
            options = {k: v for k, v in module._parameters[leaf].__dict__.items() if k != "module"}
            result[name] = _pack(value.contiguous(), options)
            module._is_hf_initialized = True
        return result


def _pack(value: torch.Tensor, options: dict) -> bnb.nn.Params4bit:
    """What `Params4bit` makes of a parameter, in parts: bitsandbytes' kernels count elements in 32 bits, and a layer of
    DeepSeek-V2 (236B) has 2.5 billion of them in one parameter."""
    if value.numel() < _AT_ONCE:
        return bnb.nn.Params4bit(value, requires_grad=False, **options).to(value.device)
    asked = {name: options[name] for name in ("quant_type", "quant_storage")}
    parts = [bnb.functional.quantize_4bit(part, **asked) for part in value.view(-1).split(_AT_ONCE // BLOCK * BLOCK)]
    state = parts[0][1]
    state.shape, state.absmax = value.shape, torch.cat([one.absmax for _, one in parts])
    if options["compress_statistics"]:  # of all scales together, as `quantize_4bit` does it
        state.offset, state.nested = state.absmax.mean(), True
        state.absmax, state.state2 = bnb.functional.quantize_blockwise(state.absmax - state.offset, blocksize=256)
    data = torch.cat([one for one, _ in parts])
    return bnb.nn.Params4bit(data, requires_grad=False, **(options | {"quant_state": state, "bnb_quantized": True}))


class _Deserialize(Bnb4bitDeserialize):
    """Rebuilds packed experts from the tensors that `_save_packed` wrote; other parameters as transformers does."""

    def convert(self, input_dict, model=None, full_layer_name=None, **kwargs):
        leaf = next((n for n in EXPERT_PARAMETERS if n in input_dict), None)
        if leaf is None or len(input_dict) == 1:
            return super().convert(input_dict, model=model, full_layer_name=full_layer_name, **kwargs)
        tensors = {k: v[0] if isinstance(v, list) else v for k, v in input_dict.items()}
        data = tensors.pop(leaf)
        stats = {k.removeprefix(f"{leaf}."): v for k, v in tensors.items()}
        module, _ = get_module_from_name(model, full_layer_name)
        module._is_hf_initialized = True
        return {leaf: bnb.nn.Params4bit.from_prequantized(data, stats, requires_grad=False, device=data.device)}


class _Converter(WeightConverter):
    """Copied for every tensor of a checkpoint, patterns, quantizer and its config with it; only what is collected
    differs."""

    __slots__ = ()

    def __deepcopy__(self, memo):
        new = copy.copy(self)
        new.collected_tensors, new.layer_targets = defaultdict(list), defaultdict(set)
        return new


def _serialized_names() -> dict[str, list[str]]:
    """What each parameter becomes in a 4-bit checkpoint: bitsandbytes' names for `weight`, and the same for experts."""
    names = Bnb4BitHfQuantizer.serialized_names
    return names | {p: [name.replace("weight", p, 1) for name in names["weight"]] for p in EXPERT_PARAMETERS}


class ExpertsQuantizer(Bnb4BitHfQuantizer):
    """transformers' 4-bit quantizer, which packs fused experts as well as linear layers."""

    serialized_names = _serialized_names()

    def param_needs_quantization(self, model, param_name, **kwargs):
        if super().param_needs_quantization(model, param_name, **kwargs):
            return True
        module, leaf = get_module_from_name(model, param_name)
        return leaf in EXPERT_PARAMETERS and is_packed(module._parameters.get(leaf))

    def param_element_size(self, model, param_name, param):
        """Bytes of an element, by which `device_map: auto` places: of experts that were packed before, elements are
        bytes."""
        if self.pre_quantized and param_name.rpartition(".")[2] in EXPERT_PARAMETERS and is_packed(param):
            return 1
        return super().param_element_size(model, param_name, param)

    def _process_model_before_weight_loading(self, model, device_map, **kwargs):
        super()._process_model_before_weight_loading(model, device_map, **kwargs)
        fused = [(name, module) for name, module in model.named_modules() if is_fused_experts(module)]
        for name, module in fused:
            check_layout(name, module)
            module.packed_sizes = [module._parameters[n].shape[1] for n in ("gate_up_proj", "down_proj")]
            module.packed_shapes = {n: tuple(module._parameters[n].shape) for n in expert_parameters(module)}
            for parameter in expert_parameters(module):
                self._make_packed(module, parameter)
            module._register_state_dict_hook(_save_packed)
        if fused:
            use_packed_experts(model)

    def _make_packed(self, module, name: str) -> None:
        """Put an empty `Params4bit` on the meta device in place of the parameter, to be filled while loading."""
        config = self.quantization_config
        shape = module._parameters[name].shape
        if self.pre_quantized:
            shape = (shape.numel() // 2, 1)  # two weights a byte
        empty = torch.empty(
            shape, dtype=torch.uint8 if self.pre_quantized else module._parameters[name].dtype, device="meta"
        )
        module._parameters[name] = bnb.nn.Params4bit(
            empty,
            requires_grad=False,
            compress_statistics=config.bnb_4bit_use_double_quant,
            quant_type=config.bnb_4bit_quant_type,
            quant_storage=config.bnb_4bit_quant_storage,
        )

    def _process_model_after_weight_loading(self, model, **kwargs):
        model = super()._process_model_after_weight_loading(model, **kwargs)
        for module in model.modules():
            if isinstance(module, bnb.nn.Linear4bit):
                # On CPUs with AVX512-BF16 bitsandbytes repacks a layer for good at its first forward pass without
                # gradients: scales rounded to bfloat16 in the middle of a training, and an assertion for odd sizes.
                module.support_avx512bf16_for_cpu = False
        # packed experts are saved as they are: no converter may try to split them into one matrix per expert
        model._weight_conversions = [
            c
            for c in model._weight_conversions or []
            if not any(t.endswith(EXPERT_PARAMETERS) for t in c.target_patterns)
        ]
        return model

    def get_quantize_ops(self):
        return _Quantize(self)

    def get_load_operations(self):
        return {"deserialize": _Deserialize}

    def get_weight_conversions(self):
        conversions = super().get_weight_conversions()
        for converter in conversions:
            converter.__class__ = _Converter
        return conversions


def _save_packed(module, state_dict, prefix, local_metadata):
    """State-dict hook: beside the packed bytes, the scales and the code that make them readable."""
    for name in expert_parameters(module):
        parameter = module._parameters[name]
        if is_packed(parameter) and parameter.quant_state is not None:
            for key, value in parameter.quant_state.as_dict(packed=True).items():
                state_dict[f"{prefix}{name}.{key}"] = value.detach()


def install() -> None:
    """Use `ExpertsQuantizer` for every 4-bit load from now on in this process."""
    AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] = ExpertsQuantizer
    expert_lora.install()
