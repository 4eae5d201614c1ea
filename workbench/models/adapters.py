"""Adapters: which modules get one, and the PEFT config."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from workbench.config.option import split_names
from workbench.config.options import RunConfig
from workbench.errors import UserError
from workbench.models.freezing import chosen_layers
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


def lora_targets(model, wanted: str, option: str = "lora_target") -> tuple[list[str], list[str]]:
    """Full names of the modules, and of the expert parameters, that `lora_target` (or `option`) means.

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
        raise UserError(
            "lora_target_unknown", option=option, targets=unknown, model=model.config.model_type, names=names
        )
    return sorted(chosen), sorted(parameters)


EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings")


def check_embeddings(config: RunConfig, tied: bool) -> None:
    """Raise UserError for adapters on embeddings that cannot be trained, or not be exported.

    `tied`: input and output embeddings are one matrix, so that a change of one is not a change of the other.
    """
    target = (
        ("oft_target", config.oft_target) if config.finetuning_type == "oft" else ("lora_target", config.lora_target)
    )
    for option, names in (target, ("additional_target", config.additional_target)):
        for name in split_names(names or ""):
            leaf = name.rpartition(".")[2]
            if option != "additional_target" and leaf in ("lm_head", "embed_out"):
                raise UserError("lora_target_head", option=option, name=name)
            if tied and leaf in EMBEDDINGS:
                raise UserError("lora_target_tied", option=option, name=name)


def continue_adapter(model, config: RunConfig, folder: Path):
    """`model` with a trainable adapter that there is already. Raises UserError: it does not fit this model."""
    from peft import PeftModel

    check_embeddings(config, bool(getattr(model.config, "tie_word_embeddings", False)))
    check_folder(folder)
    try:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except (ValueError, RuntimeError, OSError, KeyError) as error:
        raise UserError("adapter_unfit", folder=folder, problem=" ".join(str(error).split())[:300]) from None


def add_lora(model, config: RunConfig, log, given: Sequence[Path] = (), start: Path | None = None):
    """`model` with trainable LoRA: a new adapter, or the last of `given` continued, on a base that has the others.

    Args:
        given: folders of adapters. With `create_new_adapter` all of them are merged, else all but the last.
        start: the file that keeps what PiSSA starts from.

    Raises:
        UserError: unknown targets, or an adapter that does not fit this model.
    """
    from peft import LoraConfig, get_peft_model

    check_embeddings(config, bool(getattr(model.config, "tie_word_embeddings", False)))
    for one in given:
        check_folder(one)
    factors: dict = {}
    if merged := list(given) if config.create_new_adapter else list(given[:-1]):
        from workbench.models.standing import merge_plain, standing

        model, factors = merge_plain(model, merged)
        log(f"Merged into the base: {', '.join(str(one) for one in merged)}. What is saved holds them, too.")
    if len(merged) < len(given):
        tuned = continue_adapter(model, config, given[-1])
        return standing(tuned, factors) if factors else tuned
    targets, experts = lora_targets(model, config.lora_target)
    if config.use_llama_pro:
        layers = chosen_layers(int(model.config.get_text_config().num_hidden_layers), config)
        inside = tuple(f".{number}." for number in layers)
        targets = [name for name in targets if any(part in name for part in inside)]
        experts = [name for name in experts if any(part in name for part in inside)]
    taken = _names_peft_takes_for_experts(model)
    parameters = experts + [f"{name}.weight" for name in targets if name.rpartition(".")[2] in taken]
    targets = [name for name in targets if name.rpartition(".")[2] not in taken]
    not_on_experts = {
        "lora_dropout": ("0", config.lora_dropout),
        "use_dora": ("false", config.use_dora),
        "pissa_init": ("false", config.pissa_init),
        "create_new_adapter": ("false", bool(factors)),
    }
    if parameters and (used := [(name, off) for name, (off, on) in not_on_experts.items() if on]):
        what, off = used[0]
        found = ", ".join(sorted({".".join(name.removesuffix(".weight").split(".")[-2:]) for name in parameters}))
        if config.lora_target.strip().lower() != "all":
            raise UserError("lora_without", found=found, option=what, value=off)
        log(f"LoRA on {found} works without {what} only: these get no adapters, all other linear layers do.")
        parameters = []
    if config.pissa_init or factors:
        _check_linear(model, targets, "pissa_init" if config.pissa_init else "create_new_adapter")
    names = sorted({name.rpartition(".")[2] for name in targets})
    by_leaf = linear_modules(model)
    # short names where they mean the same modules: adapter_config.json stays readable and loads elsewhere
    short = sum(len(by_leaf.get(name, ())) for name in names) == len(targets) and not _ambiguous(model, names, targets)
    way: bool | str = True
    if config.pissa_init:
        log("PiSSA: decomposing the weights.")
        if start is None or not start.is_file():
            way = "pissa" if config.pissa_iter < 0 else f"pissa_niter_{config.pissa_iter}"
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
            init_lora_weights=way,
        )
        tuned = get_peft_model(model, lora)
    except ValueError as error:
        raise UserError("lora_impossible", problem=" ".join(str(error).split())[:300]) from None
    if config.pissa_init:
        from workbench.models.standing import taken_out_by_pissa

        taken_out = taken_out_by_pissa(tuned, start)
        factors = {name: factors.get(name, []) + taken_out.get(name, []) for name in {*factors, *taken_out}}
    if factors:
        from workbench.models.standing import standing

        return standing(tuned, factors)
    return tuned


def _check_linear(model, targets: list[str], option: str) -> None:
    """Raise UserError where one of these modules is no linear layer of plain weights."""
    import torch

    for name in targets:
        if not isinstance(model.get_submodule(name), torch.nn.Linear):
            raise UserError("lora_without", found=name, option=option, value="false")


def add_oft(model, config: RunConfig, log):
    """`model` with trainable OFT. Raises UserError: unknown targets, or something that is no linear layer."""
    from peft import OFTConfig, get_peft_model

    check_embeddings(config, bool(getattr(model.config, "tie_word_embeddings", False)))
    targets, experts = lora_targets(model, config.oft_target, "oft_target")
    if experts:
        found = ", ".join(sorted({".".join(name.split(".")[-2:]) for name in experts}))
        if config.oft_target.strip().lower() != "all":
            raise UserError("oft_experts", found=found)
        log(f"OFT has no form for {found}: these stay as they are, all other linear layers are rotated.")
    _check_linear(model, targets, "oft_target")
    names = sorted({name.rpartition(".")[2] for name in targets})
    short = not _ambiguous(model, names, targets)
    try:
        oft = OFTConfig(
            task_type="SEQ_CLS" if config.stage == "rm" else "CAUSAL_LM",
            r=config.oft_rank,
            oft_block_size=0 if config.oft_rank else config.oft_block_size,
            module_dropout=config.module_dropout,
            target_modules=names if short else targets,
            modules_to_save=split_names(config.additional_target) or None,
        )
        return get_peft_model(model, oft)
    except (ValueError, TypeError) as error:
        raise UserError("oft_impossible", problem=" ".join(str(error).split())[:300]) from None


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
