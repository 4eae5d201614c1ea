"""The gated layer of most models, `silu(gate(x)) · up(x)` with packed weights, as one kernel where it has four."""

import torch
from torch import Tensor, nn

from workbench.models.quantized import few_rows
from workbench.models.quantized.linears import PackedLinear


def use_fused_mlps(model: nn.Module) -> int:
    """Let gated layers of `model` take few rows without gradients in one product; returns how many. Which modules are
    such layers is found by trying one of each class and width."""
    same: dict[tuple, bool] = {}
    count = 0
    for module in model.modules():
        gate, up = getattr(module, "gate_proj", None), getattr(module, "up_proj", None)
        act = type(getattr(module, "act_fn", None)).__name__
        if not isinstance(gate, nn.Module) or not isinstance(up, nn.Module) or act not in ("SiLU", "SiLUActivation"):
            continue
        if not (few_rows.fits_gated(gate, up) and isinstance(getattr(module, "down_proj", None), nn.Module)):
            continue
        kind = type(module), gate.in_features, gate.out_features
        if kind not in same:
            same[kind] = _same(module, gate)
        if same[kind]:
            _fuse(module)
            count += 1
    return count


def _fuse(module: nn.Module) -> None:
    plain = module.forward

    def forward(x: Tensor) -> Tensor:
        gate, up = module.gate_proj, module.up_proj
        if type(gate) is PackedLinear and type(up) is PackedLinear and few_rows.takes(x):  # no adapter beside them
            return module.down_proj(few_rows.gated(gate, up, x))
        return plain(x)

    module.forward = forward


def _same(module: nn.Module, gate) -> bool:
    """Whether the module computes what the one product gives."""
    dtype, device = gate.weight.quant_state.dtype, gate.weight.device
    generator = torch.Generator(device=device).manual_seed(0)
    x = torch.randn(3, gate.in_features, device=device, generator=generator).to(dtype)
    with torch.no_grad():
        if not few_rows.takes(x):
            return False
        want = module(x)
        found = module.down_proj(few_rows.gated(module.gate_proj, module.up_proj, x))  # type: ignore[operator]
    return bool((found - want).float().norm() <= 0.01 * want.float().norm())
