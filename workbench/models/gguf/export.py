"""A base and adapters as one GGUF file, or a LoRA alone, with what Ollama and people want to know beside it.

Nothing is loaded: tensors are read, merged, converted and written one after the other, so that a 16B model takes as
much memory as its largest tensor.
"""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from workbench.config.options import EngineConfig
from workbench.errors import UserError
from workbench.models.demo import Progress
from workbench.models.ends import end_tokens
from workbench.models.export.card import write_card
from workbench.models.export.source import exported_tokenizer, source_folder
from workbench.models.export.target import check_room, export_target, written_whole
from workbench.models.gguf import architectures, beside, file, lora, vocabulary
from workbench.models.gguf.adapters import Adapter, Merged
from workbench.models.gguf.tensors import Tensors
from workbench.models.integrity import check_shards
from workbench.models.load import generation_settings
from workbench.models.rope import set_rope_scaling
from workbench.storage import hub
from workbench.storage.workspace import Workspace

_MARK = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


def export_gguf(
    config: EngineConfig,
    adapters: dict[str, float],
    name: str,
    kind: str,
    workspace: Workspace,
    progress: Progress,
    log: Callable[[str], None],
    set_template: Callable[[Any, str, str], None],
) -> Path:
    """Write `models/<name>/` in the workspace: the GGUF, a Modelfile and a model card. The folder appears whole or not
    at all.

    Args:
        kind: `gguf-f16` or `gguf-q8_0`: a model, also without adapters; `gguf-lora`: adapters alone. `gguf-f32` is for
            comparisons.
        set_template: as of `workbench.models.export.merged.export`.

    Returns:
        The GGUF file.

    Raises:
        UserError: the name is taken; an architecture, a setting, a tokenizer or an adapter that has no such form; the
            disk is full.
    """
    target, folders = export_target(name, adapters, workspace)
    if kind == "gguf-lora" and not folders:
        raise UserError("no_adapter_to_merge")
    source = source_folder(config, workspace, progress)
    model = _model_config(config, source, log)
    architecture = architectures.check(model)
    weights = check_shards(source)
    if not weights:
        raise UserError("gguf_no_weights", folder=source)
    base = Tensors(weights)
    planned = architectures.targets(model, base.shapes)
    experts = getattr(model, "n_routed_experts", 0) or 0
    loaded = [Adapter(folder, adapters[key], base.shapes, experts) for key, folder in folders.items()]
    writer = _writer(architecture, target.name, config, adapters)
    result = target / f"{target.name}-{kind.removeprefix('gguf-')}.gguf"
    with written_whole(target) as partial:
        if kind == "gguf-lora":
            _write_lora(writer, partial / result.name, planned, loaded, base, architecture, progress)
            text = beside.lora_modelfile(result.name, config.model_name_or_path or "")
        else:
            tokenizer = exported_tokenizer(
                config, next(iter(folders.values()), None), workspace, progress, set_template
            )
            rows = Merged(base, loaded).rows
            text = _write_model(
                writer, partial / result.name, model, tokenizer, planned, rows, config, kind, workspace, progress, log
            )
        (partial / "Modelfile").write_text(text, encoding="utf-8")
        write_card(partial, target.name, kind, config.model_name_or_path or "", source, adapters, workspace)
    return result


def _model_config(config: EngineConfig, source: Path, log: Callable[[str], None]) -> Any:
    """The base's config, with the RoPE scaling that the options ask for and the context that it gives."""
    from transformers import AutoConfig

    try:
        model = AutoConfig.from_pretrained(str(source), trust_remote_code=config.trust_remote_code)
    except Exception as error:  # of a file that says what the library does not expect
        raise UserError("model_unloadable", name=source, problem=hub.first_line(error)) from None
    architectures.check(model)
    own = model.rope_parameters.get("original_max_position_embeddings") or model.max_position_embeddings
    if line := set_rope_scaling(model, config.rope_scaling, config.rope_factor):
        log(line)
        model.max_position_embeddings = max(model.max_position_embeddings, int(own * config.rope_factor))
    return model


def _writer(architecture: str, name: str, config: EngineConfig, adapters: dict[str, float]) -> Any:
    import gguf

    writer = gguf.GGUFWriter(None, architecture)
    writer.add_name(name)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, Path(config.model_name_or_path or "").name)
    if adapters:
        writer.add_tags([f"{Path(key).name} × {value:g}" for key, value in adapters.items()])
    return writer


def _write_model(
    writer, path: Path, model, tokenizer, targets, rows, config, kind: str, workspace: Workspace, progress, log
) -> str:
    """Write a whole model; returns its Modelfile."""
    import gguf

    wanted = kind.removeprefix("gguf-").upper()
    sources = SimpleNamespace(generation_config=generation_settings(config, workspace, progress))
    ends = end_tokens(sources, tokenizer)
    writer.add_type(gguf.GGUFType.MODEL)
    architectures.describe(model, writer, model.max_position_embeddings)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if wanted == "F32" else f"MOSTLY_{wanted}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    embeddings = next(target for target in targets if target.name == "token_embd.weight")
    vocabulary.describe(tokenizer, embeddings.shape[0], ends, writer, log)
    _add_template(writer, tokenizer)
    planned = file.plan(targets, wanted)
    read = rows
    if (factors := architectures.rope_factors(model)) is not None:
        planned.insert(1, (architectures.Target("rope_freqs.weight", tuple(factors.shape), ()), "F32"))
        read = lambda source, *more: factors if source == "rope_freqs.weight" else rows(source, *more)  # noqa: E731
    check_room(file.size_of(planned), path.parent)
    file.write(writer, path, planned, read, progress)
    stops = [tokenizer.convert_ids_to_tokens(number) for number in ends if number < len(tokenizer)]
    return beside.modelfile(path.name, tokenizer, stops, vocabulary.begins_with_bos(tokenizer))


def _write_lora(
    writer, path: Path, targets, adapters: list[Adapter], base: Tensors, architecture: str, progress: Progress
) -> None:
    import gguf

    made, values = lora.factors(targets, adapters, base, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 1.0)
    planned = file.plan(made, "F32")
    check_room(file.size_of(planned), path.parent)
    file.write(writer, path, planned, values.__getitem__, progress)


def _add_template(writer, tokenizer: Any) -> None:
    """The chat template. Marks of what is trained, which other readers do not know, become conditions that are true."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        writer.add_chat_template([{"name": key, "template": unmarked(text)} for key, text in template.items()])
    elif template:
        writer.add_chat_template(unmarked(template))


def unmarked(template: str) -> str:
    """A template without `{% generation %}`, rendering the same."""
    return _MARK.sub(lambda m: f"{m[1]}{'endif' if m[2] else 'if true'}{m[3]}", template)
