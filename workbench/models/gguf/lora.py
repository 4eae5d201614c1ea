"""A LoRA alone as GGUF: pairs of factors beside the names of the tensors that they change."""

from typing import Any

from workbench.errors import UserError
from workbench.models.gguf.adapters import Adapter
from workbench.models.gguf.architectures import Target, permuted
from workbench.models.gguf.tensors import Tensors

NOT_APPLIED = ("deepseek2",)  # llama.cpp multiplies by their attention's matrices without looking for a LoRA


def factors(
    targets: list[Target], adapters: list[Adapter], base: Tensors, architecture: str
) -> tuple[list[Target], dict[str, Any]]:
    """The tensors of the file and their float32 values, for an alpha of 1.

    Several adapters become one whose rank is the sum of theirs. llama.cpp multiplies by alpha / rank with one alpha for
    all, so B holds each adapter's scale and weight, times the rank.

    Raises:
        UserError: an architecture or a part that llama.cpp would leave out.
    """
    import torch

    if architecture in NOT_APPLIED:
        raise UserError("gguf_lora_architecture", name=architecture)
    for adapter in adapters:
        if adapter.magnitudes:
            raise UserError("gguf_lora_part", folder=adapter.folder, name="DoRA")
        if adapter.whole:
            raise UserError("gguf_lora_part", folder=adapter.folder, name=next(iter(adapter.whole)))
        for name, key in adapter.copies.items():
            if not torch.equal(adapter.tensors.rows(key), base.rows(name)):
                raise UserError("gguf_lora_part", folder=adapter.folder, name=name)
    made, values = [], {}
    for target in targets:
        products = [
            (product, adapter.weight)
            for adapter in adapters
            if len(target.sources) == 1 and (product := adapter.product(target.sources[0])) is not None
        ]
        if not products:
            continue
        a = torch.cat([product[0] for product, _ in products])
        b = torch.cat([product[1] * (product[2] * weight) for product, weight in products], dim=1)
        if target.form == "permuted":
            b = permuted(b, target.heads)
        b = b * a.shape[0]  # llama.cpp divides by the rank
        if target.name == "token_embd.weight":
            a, b = b, a.T  # a row by token is looked up, [tokens, rank], and multiplied by [width, rank]
        for end, value in (("lora_a", a), ("lora_b", b)):
            name = f"{target.name}.{end}"
            made.append(Target(name, tuple(value.shape), ()))
            values[name] = value.contiguous()
    if not made:
        raise UserError("gguf_lora_empty")
    return made, values
