"""Rotary embeddings, of which transformers makes a dozen small operations, as one kernel for queries and one for keys:
Llama's (and that of most models), and DeepSeek-V2's."""

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from workbench.models.quantized import few_rows
from workbench.models.quantized.weights import on_gpu


def use_fused_rotary(model: nn.Module) -> int:
    """Change the functions that the attention of `model` calls (globals of transformers' modules), for few rows without
    gradients, if the kernels compute the same; returns how many were changed."""
    weight = next(model.parameters())
    if not on_gpu(weight):
        return 0
    count = 0
    dtype = model.get_input_embeddings().weight.dtype  # type: ignore[operator]
    for name in {type(module).__module__ for module in model.modules() if type(module).__name__.endswith("Attention")}:
        code = sys.modules[name]
        for function, changed, try_out in (
            ("apply_rotary_pos_emb", _halves, _same_halves),
            ("apply_rotary_emb", _pairs, _same_pairs),
        ):
            plain = getattr(code, function, None)
            if plain is None or hasattr(plain, "plain"):
                continue
            try:
                same = try_out(plain, dtype, weight.device)
            except (TypeError, RuntimeError, ValueError, IndexError):  # another function of that name
                same = False
            if same:
                setattr(code, function, changed(plain))
                count += 1
    return count


def _halves(plain: Callable) -> Callable:
    def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        simple = not args and not kwargs and q.dim() == 4 and q.shape[2] == 1 and cos.shape[-1] == q.shape[-1]
        if simple and cos.shape[0] == q.shape[0] and q.stride(-1) == k.stride(-1) == 1 and few_rows.takes(q[:, 0, 0]):
            from workbench.models.fused.kernels import rotate_halves

            return rotate_halves(q, cos, sin), rotate_halves(k, cos, sin)
        return plain(q, k, cos, sin, *args, **kwargs)

    apply_rotary_pos_emb.plain = plain  # type: ignore[attr-defined]
    return apply_rotary_pos_emb


def _pairs(plain: Callable) -> Callable:
    def apply_rotary_emb(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
        simple = xq.dim() == 4 and xq.shape[2] == 1 and freqs_cis.shape[0] == xq.shape[0]
        if simple and xq.stride(-1) == xk.stride(-1) == 1 and few_rows.takes(xq[:, 0, 0]):
            from workbench.models.fused.kernels import rotate_pairs

            return rotate_pairs(xq, freqs_cis), rotate_pairs(xk, freqs_cis)
        return plain(xq, xk, freqs_cis)

    apply_rotary_emb.plain = plain  # type: ignore[attr-defined]
    return apply_rotary_emb


def _same_halves(plain: Callable, dtype: torch.dtype, device: torch.device) -> bool:
    from workbench.models.fused.kernels import rotate_halves

    random = {"device": device, "generator": torch.Generator(device=device).manual_seed(0)}
    q, k = torch.randn(3, 4, 1, 64, **random).to(dtype), torch.randn(3, 2, 1, 64, **random).to(dtype)
    angles = torch.randn(3, 1, 64, **random)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    with torch.no_grad():
        return _equal(plain(q, k, cos, sin), (rotate_halves(q, cos, sin), rotate_halves(k, cos, sin)))


def _same_pairs(plain: Callable, dtype: torch.dtype, device: torch.device) -> bool:
    from workbench.models.fused.kernels import rotate_pairs

    random = {"device": device, "generator": torch.Generator(device=device).manual_seed(0)}
    q, k = torch.randn(3, 4, 1, 64, **random).to(dtype), torch.randn(3, 1, 1, 64, **random).to(dtype)
    angles = torch.randn(3, 1, 32, **random)
    factors = torch.polar(torch.ones_like(angles), angles)
    with torch.no_grad():
        return _equal(plain(q, k, factors), (rotate_pairs(q, factors), rotate_pairs(k, factors)))


def _equal(want, found) -> bool:
    """To the last digits of the dtype."""
    allowed = 2 * torch.finfo(found[0].dtype).eps
    return all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=allowed, atol=allowed)
        for a, b in zip(want, found, strict=True)
    )
