"""LoRA adapters: which modules get one, and the PEFT config."""

from collections import defaultdict

from workbench.config import split_names
from workbench.errors import UserError
from workbench.options import RunConfig


def linear_modules(model) -> dict[str, list[str]]:
    """Leaf name -> full names of the linear layers that can carry LoRA: all but the output head and routers.

    A router is a linear layer beside a module named `experts`; adapters there change who answers, not what.
    """
    import torch

    head = model.get_output_embeddings()
    found = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            parent, _, leaf = name.rpartition(".")
            if leaf in ("gate", "router") and hasattr(model.get_submodule(parent), "experts"):
                continue
            found[leaf].append(name)
    return dict(found)


def lora_targets(model, wanted: str) -> list[str]:
    """Full names of the modules that `lora_target` means.

    Raises:
        UserError: a name matches nothing in this model; lists the names that do.
    """
    modules = linear_modules(model)
    if wanted.strip().lower() == "all":
        return sorted(name for names in modules.values() for name in names)
    every = {
        name for name, module in model.named_modules() if hasattr(module, "weight") and not list(module.children())
    }
    chosen, unknown = set(), []
    for part in split_names(wanted):
        matches = {name for name in every if name == part or name.endswith(f".{part}")}
        if not matches:
            unknown.append(part)
        chosen |= matches
    if unknown:
        raise UserError(
            f"lora_target: {', '.join(unknown)} matches no module of this model ({model.config.model_type}). "
            f"It has: {', '.join(sorted(modules))}. Or set lora_target: all."
        )
    return sorted(chosen)


def add_lora(model, config: RunConfig, adapter_folder=None):
    """`model` with trainable LoRA: a new adapter, or the one in `adapter_folder` continued.

    Raises:
        UserError: unknown targets, or an adapter that does not fit this model.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    if adapter_folder is not None:
        try:
            return PeftModel.from_pretrained(model, adapter_folder, is_trainable=True)
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            raise UserError(
                f"The adapter {adapter_folder} does not fit this model: {' '.join(str(error).split())[:300]}"
            ) from None
    targets = lora_targets(model, config.lora_target)
    names = sorted({name.rpartition(".")[2] for name in targets})
    by_leaf = linear_modules(model)
    # short names where they mean the same modules: adapter_config.json stays readable and loads elsewhere
    short = sum(len(by_leaf.get(name, ())) for name in names) == len(targets) and not _ambiguous(model, names, targets)
    try:
        lora = LoraConfig(
            task_type="CAUSAL_LM", r=config.lora_rank, lora_alpha=config.lora_alpha or 2 * config.lora_rank,
            lora_dropout=config.lora_dropout, target_modules=names if short else targets, use_rslora=config.use_rslora,
            use_dora=config.use_dora, modules_to_save=split_names(config.additional_target) or None)  # fmt: skip
        return get_peft_model(model, lora)
    except ValueError as error:
        raise UserError(f"LoRA cannot be added: {' '.join(str(error).split())[:300]}") from None


def _ambiguous(model, names: list[str], targets: list[str]) -> bool:
    """Whether the short names would also match modules that are not targets."""
    wanted = set(targets)
    return any(
        name not in wanted and name.rpartition(".")[2] in names
        for name, m in model.named_modules()
        if hasattr(m, "weight")
    )
