"""LoRA on packed experts, in PEFT's own form.

PEFT adapts an expert parameter [E, out, in] by wrapping the module in a `ParamWrapper` whose A is a linear layer
in -> E r and B one from r E to out (`target_parameters`). For unpacked weights it adds B A to them in every forward
pass. Packed weights cannot be added to; here the wrapper only hands its A and B to `experts.py`, which adds their
product to the outputs. Names, shapes and `adapter_config.json` stay PEFT's, so plain PEFT loads the adapter on an
unpacked model.

PEFT takes `gate_proj`, `up_proj` and `down_proj` as module names of such models for their experts, as they were before
transformers 5. Linear layers of these names (shared experts, dense layers) are therefore wrapped by parameter as well.
"""

from peft.tuners.lora import layer as peft_lora
from torch import Tensor

from workbench.errors import UserError
from workbench.models.quantized.linears import PackedLinear
from workbench.models.quantized.weights import is_packed


def lora_factors(module, name: str) -> list[Tensor]:
    """Nothing, or A [E, r, in] and B [E, out, r], scaled, of the adapters that are switched on for a parameter.

    PEFT keeps expert e's A in the rows e r … e r + r - 1, its B in the columns e, E + e, 2 E + e, …
    """
    found = [(a, b * scale) for a, b, scale in _by_expert(module, name)]
    if len(found) < 2:
        return list(found[0]) if found else []
    import torch

    return [torch.cat([a for a, _ in found], dim=1), torch.cat([b for _, b in found], dim=2)]


def unscaled_factors(module, name: str) -> tuple[list[Tensor], float]:
    """`lora_factors` before scaling, and by what to scale: B of all experts is large beside what a few rows read."""
    found = _by_expert(module, name)
    return (list(found[0][:2]), found[0][2]) if len(found) == 1 else (lora_factors(module, name), 1.0)


def _by_expert(module, name: str) -> list[tuple[Tensor, Tensor, float]]:
    """A [E, r, in], B [E, out, r] and the scale of each adapter that is switched on for a parameter: views."""
    wrapper = module.packed_lora.get(name)
    if wrapper is None or wrapper.disable_adapters:
        return []
    found = []
    for adapter in wrapper.active_adapters:
        if adapter in wrapper.lora_A:
            a, b = wrapper.lora_A[adapter].weight, wrapper.lora_B[adapter].weight
            by_expert = b.view(b.shape[0], -1, wrapper.num_experts).permute(2, 0, 1)
            found.append((a.view(wrapper.num_experts, -1, a.shape[1]), by_expert, wrapper.scaling[adapter]))
    return found


class ParamWrapper(peft_lora.ParamWrapper):  # PEFT looks for this name
    """PEFT's wrapper of a parameter, which may be packed."""

    @property
    def packed(self) -> bool:
        return is_packed(self.get_param())

    def _get_in_out_features(self, module):
        if not self.packed:
            return super()._get_in_out_features(module)
        shape = self.get_param().quant_state.shape
        self._param_ndim = len(shape)
        if len(shape) == 3:
            self.num_experts, out_features, in_features = shape
            self.get_base_layer().packed_lora[self.parameter_name] = self
        else:
            self.num_experts, (out_features, in_features) = 1, shape
        return in_features, out_features

    def update_layer(self, *args, **kwargs):
        # PEFT would now swap the sizes of experts stored as [E, out, in], but these are right as they are
        self._did_swap_in_out_features = self._did_swap_in_out_features or (self.packed and self._param_ndim == 3)
        super().update_layer(*args, **kwargs)

    def forward(self, x, *args, **kwargs):
        if not self.packed:
            return super().forward(x, *args, **kwargs)
        if self._param_ndim == 3:
            return self.base_layer(x, *args, **kwargs)
        active = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.lora_A]
        if len(active) == 1 and isinstance(self.base_layer, PackedLinear):
            return self.base_layer.with_lora(x, *self._factors(active[0]))
        out = self.base_layer(x)
        for name in active:
            a, b, scale = self._factors(name)
            out = out + (x.to(a.dtype) @ a.t() @ b.t() * scale).to(out.dtype)
        return out

    def _factors(self, name: str):
        return self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]

    def merge(self, *args, **kwargs):
        if self.packed:
            raise UserError("experts_merge_4_bit")
        super().merge(*args, **kwargs)

    def unload_and_optionally_merge_module(self, merge, safe_merge, adapter_names):
        base = super().unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
        if hasattr(base, "packed_lora"):
            base.packed_lora.clear()
        return base


def install() -> None:
    """Let PEFT wrap parameters with this `ParamWrapper` in this process."""
    peft_lora.ParamWrapper = ParamWrapper
