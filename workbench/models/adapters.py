"""LoRA adapters: which modules get one, and the PEFT config."""

from collections import defaultdict
from pathlib import Path

from workbench.config.options import RunConfig
from workbench.config.run_config import split_names
from workbench.errors import UserError
from workbench.models.locate import check_folder


def linear_modules(model) -> dict[str, list[str]]:
    """Leaf name -> full names of the linear layers that can carry LoRA: all but the output head and routers.

    A router is a linear layer beside a module named `experts`; adapters there change who answers, not what.
    """
    import torch

    head = model.get_output_embeddings()
    modules_by_name = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            parent, _, leaf = name.rpartition(".")
            if name == "score":  # of a reward model
                continue
            if leaf in ("gate", "router") and hasattr(model.get_submodule(parent), "experts"):
                continue
            modules_by_name[leaf].append(name)
    return dict(modules_by_name)


def expert_targets(model) -> list[str]:
    """Full names of the 3-D expert parameters that can carry LoRA."""
    from workbench.models.quantized.layout import expert_parameters, is_fused_experts

    return [
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if is_fused_experts(module)
        for parameter in expert_parameters(module)
    ]


def lora_targets(model, wanted: str) -> tuple[list[str], list[str]]:
    """Full names of the modules, and of the expert parameters, that `lora_target` means.

    Raises:
        UserError: a name matches nothing in this model; lists the names that do.
    """
    modules, experts = linear_modules(model), expert_targets(model)
    if wanted.strip().lower() == "all":
        return sorted(name for names in modules.values() for name in names), experts
    every = {
        name for name, module in model.named_modules() if hasattr(module, "weight") and not list(module.children())
    }
    chosen, parameters, unknown = set(), set(), []
    for part in split_names(wanted):
        matches = {name for name in every if name == part or name.endswith(f".{part}")}
        of_experts = {
            n for n in experts if f".{n}".endswith(f".{part}") or f".{n.rpartition('.')[0]}".endswith(f".{part}")
        }
        if not matches and not of_experts:
            unknown.append(part)
        chosen |= matches
        parameters |= of_experts
    if unknown:
        names = sorted({*modules, *(name.rpartition(".")[2] for name in experts)})
        raise UserError("lora_target_unknown", targets=unknown, model=model.config.model_type, names=names)
    return sorted(chosen), sorted(parameters)


EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings")


def check_embeddings(config: RunConfig, tied: bool) -> None:
    """Raise UserError for adapters on embeddings that cannot be trained, or not be exported.

    `tied`: input and output embeddings are one matrix, so that a change of one is not a change of the other.
    """
    for option, names in (("lora_target", config.lora_target), ("additional_target", config.additional_target)):
        for name in split_names(names or ""):
            leaf = name.rpartition(".")[2]
            if option == "lora_target" and leaf in ("lm_head", "embed_out"):
                raise UserError("lora_target_head", name=name)
            if tied and leaf in EMBEDDINGS:
                raise UserError("lora_target_tied", option=option, name=name)


def add_lora(model, config: RunConfig, log, adapter_folder=None):
    """`model` with trainable LoRA: a new adapter, or the one in `adapter_folder` continued.

    Raises:
        UserError: unknown targets, or an adapter that does not fit this model.
    """
    from peft import LoraConfig, PeftModel, get_peft_model

    check_embeddings(config, bool(getattr(model.config, "tie_word_embeddings", False)))
    if adapter_folder is not None:
        check_folder(Path(adapter_folder))
        try:
            return PeftModel.from_pretrained(model, adapter_folder, is_trainable=True)
        except (ValueError, RuntimeError, OSError, KeyError) as error:
            raise UserError(
                "adapter_unfit", folder=adapter_folder, problem=" ".join(str(error).split())[:300]
            ) from None
    targets, experts = lora_targets(model, config.lora_target)
    taken = _names_peft_takes_for_experts(model)
    parameters = experts + [f"{name}.weight" for name in targets if name.rpartition(".")[2] in taken]
    targets = [name for name in targets if name.rpartition(".")[2] not in taken]
    if parameters and (config.lora_dropout or config.use_dora):
        what, off = ("lora_dropout", "0") if config.lora_dropout else ("use_dora", "false")
        found = ", ".join(sorted({".".join(name.removesuffix(".weight").split(".")[-2:]) for name in parameters}))
        if config.lora_target.strip().lower() != "all":
            raise UserError("lora_without", found=found, option=what, value=off)
        log(f"LoRA on {found} works without {what} only: these get no adapters, all other linear layers do.")
        parameters = []
    names = sorted({name.rpartition(".")[2] for name in targets})
    by_leaf = linear_modules(model)
    # short names where they mean the same modules: adapter_config.json stays readable and loads elsewhere
    short = sum(len(by_leaf.get(name, ())) for name in names) == len(targets) and not _ambiguous(model, names, targets)
    try:
        lora = LoraConfig(
            task_type="SEQ_CLS" if config.stage == "rm" else "CAUSAL_LM",
            r=config.lora_rank,
            lora_alpha=config.lora_alpha or 2 * config.lora_rank,
            lora_dropout=config.lora_dropout,
            target_modules=names if short else targets,
            use_rslora=config.use_rslora,
            target_parameters=_short_parameters(model, parameters) or None,
            use_dora=config.use_dora,
            modules_to_save=split_names(config.additional_target) or None,
        )
        return get_peft_model(model, lora)
    except ValueError as error:
        raise UserError("lora_impossible", problem=" ".join(str(error).split())[:300]) from None


def _names_peft_takes_for_experts(model) -> set[str]:
    """Module names that PEFT turns into expert parameters for this type of model."""
    from peft.utils import transformers_weight_conversion as conversion

    pattern = conversion._MODEL_TO_CONVERSION_PATTERN.get(model.config.model_type)
    known = conversion.get_checkpoint_conversion_mapping(model.config.model_type) is not None
    return set(conversion._MOE_TARGET_MODULE_MAPPING.get(pattern, ())) if known else set()


def _short_parameters(model, names: list[str]) -> list[str]:
    """The last parts of each name, module included, where that means the same parameters."""
    short = sorted({".".join(name.split(".")[-3 if name.endswith(".weight") else -2 :]) for name in names})
    ends = tuple(f".{part}" for part in short)
    meant = [name for name, _ in model.named_parameters() if name.endswith(ends)]
    return short if sorted(meant) == sorted(names) else names


def _ambiguous(model, names: list[str], targets: list[str]) -> bool:
    """Whether the short names would also match modules that are not targets."""
    wanted = set(targets)
    return any(
        name not in wanted and name.rpartition(".")[2] in names
        for name, m in model.named_modules()
        if hasattr(m, "weight")
    )
