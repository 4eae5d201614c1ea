"""Load a tokenizer and a model as the options say: quantization, attention, RoPE scaling, device."""

import contextlib
import functools
import traceback
from collections.abc import Callable
from pathlib import Path

from workbench.config.options import ModelOptions
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models import packed_copy
from workbench.models.cost.placement import divides_ends
from workbench.models.demo import Progress, ensure_demo_model, watch_tqdm
from workbench.models.locate import check_folder, is_demo, locate_model
from workbench.models.memory import loaded_gib
from workbench.models.new_tokens import add_tokens
from workbench.models.rope import set_rope_scaling
from workbench.storage import hub
from workbench.storage.workspace import Workspace

_ATTENTION = {
    "auto": None,
    "disabled": "eager",
    "eager": "eager",
    "sdpa": "sdpa",
    "fa2": "flash_attention_2",
    "fa3": "flash_attention_3",
    "flash_attention_2": "flash_attention_2",
    "flash_attention_3": "flash_attention_3",
}


def compute_dtype(fp16: bool = False, bf16: bool = False):
    """The torch dtype to compute in: as asked for, or bf16 where the GPU has it, else fp16; float32 on the CPU.

    On the CPU it is float32 also when half precision was asked for: half-precision products are far slower there.

    Raises:
        UserError: bf16 on a GPU without it.
    """
    import torch

    if not torch.cuda.is_available():
        return torch.float32
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if bf16 and not has_bf16:
        raise UserError("no_bfloat16", device=torch.cuda.get_device_name())
    if fp16:
        return torch.float16
    return torch.bfloat16 if has_bf16 else torch.float16


def attention_implementation(options: ModelOptions, log: Callable[[str], None]) -> str | None:
    """transformers' name for the attention to use, or None to let it choose.

    Raises:
        UserError: a flash attention that is not installed, unless `attn_fallback` is set.
    """
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    wanted = _ATTENTION[options.flash_attn]
    installed = {
        "flash_attention_2": is_flash_attn_2_available,
        "flash_attention_3": is_flash_attn_3_available,
    }
    if wanted not in installed or installed[wanted]():
        return wanted
    package = "flash-attn" if wanted == "flash_attention_2" else "flash-attn-3"
    if options.attn_fallback:
        log(f"{wanted} is not installed; using sdpa instead.")
        return "sdpa"
    raise UserError("attention_missing", name=wanted, package=package)


def load_tokenizer(options: ModelOptions, workspace: Workspace, progress: Progress):
    """The tokenizer of the model, with a padding token.

    Raises:
        UserError: the model is missing or has no usable tokenizer.
    """
    from transformers import AutoTokenizer

    source = model_source(options, workspace, progress)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=options.model_revision, trust_remote_code=options.trust_remote_code
        )
    except Exception as error:  # of a file that says what the libraries do not expect
        raise UserError(_load_failure(source, error)) from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    add_tokens(tokenizer, options)
    return tokenizer


def load_model(
    options: ModelOptions,
    workspace: Workspace,
    *,
    dtype,
    split: bool,
    progress: Progress,
    log: Callable[[str], None],
):
    """The base model on its device, in evaluation mode. With `weights_on: host` its layers' weights stay in host memory
    (`host_weights.py`), with `shared` each process of the default group keeps a part of them (`shared_weights.py`);
    what `auto` means is for the caller to say.

    Args:
        dtype: torch dtype of weights that are not quantized, and of the computation.
        split: spread the layers over all visible GPUs (device_map auto).

    Raises:
        UserError: missing model, missing attention, out of memory, unknown architecture.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.integrations import is_deepspeed_zero3_enabled

    from workbench.models import deepseek_moe, rotations
    from workbench.models.integrity import check_loaded, check_shards

    deepseek_moe.install()
    rotations.install()
    source = model_source(options, workspace, progress)
    common = {"revision": options.model_revision, "trust_remote_code": options.trust_remote_code}
    attention = attention_implementation(options, log)
    if Path(source).is_dir():
        check_shards(Path(source))
    quantization = None
    if options.quantization_bit == 4:
        from workbench.models.quantized import loader

        loader.install()
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=options.quantization_type,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=options.double_quantization,
        )
    elif options.quantization_bit == 8:
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    copy = packed_copy.packed_copy(source, options, dtype, workspace)
    kept = packed_copy.is_kept(copy)
    try:
        config = AutoConfig.from_pretrained(source, **common)
        if rope_line := set_rope_scaling(config, options.rope_scaling, options.rope_factor):
            log(rope_line)
        if kept:
            config.quantization_config = packed_copy.quantization_config(copy)
            log(f"Reading the 4-bit weights that an earlier load kept in {copy}.")
        device_map: str | dict | None = None
        elsewhere = options.weights_on in ("host", "shared")
        if elsewhere:
            device_map = {"": "cpu"}
        elif torch.cuda.is_available() and not is_deepspeed_zero3_enabled():  # which puts each part where it belongs
            device_map = "auto" if split else {"": torch.cuda.current_device()}
        with _packing(options), watch_tqdm(lambda what, share: progress(what or Message("loading_weights"), share)):
            model, info = AutoModelForCausalLM.from_pretrained(
                str(copy) if kept else source,
                config=config,
                dtype=dtype,
                quantization_config=None if kept else quantization,
                device_map=device_map,
                attn_implementation=attention,
                output_loading_info=True,
                use_safetensors=True,
                **common,
            )
        check_loaded(source, model, info)
        if options.quantization_bit == 8:
            from workbench.models.eight_bit import take_any_shape

            take_any_shape(model)
        model.config.name_or_path = model.name_or_path = source
    except torch.OutOfMemoryError:
        raise UserError(_does_not_fit(source, options)) from None
    except UserError:
        raise
    except Exception as error:  # of a file that says what the libraries do not expect
        if "ignore_mismatched_sizes" in str(error):
            raise UserError("weights_shapes", source=source) from None
        if not isinstance(error, OSError | ValueError | ImportError):
            log(traceback.format_exc())  # it may also be a fault of ours
        raise UserError(_load_failure(source, error)) from None
    if torch.cuda.is_available():
        now, peak = torch.cuda.memory_allocated() / 2**30, torch.cuda.max_memory_allocated() / 2**30
        log(f"Loaded the model: {now:.1f} GiB of GPU memory, {peak:.1f} GiB at the peak.")
    if copy is not None and not kept:
        packed_copy.keep(model, source, copy, progress, log)
    if elsewhere:
        _stream(model, options, progress, log)
    return model.eval()


def _packing(options: ModelOptions) -> contextlib.AbstractContextManager:
    """Where weights are packed that will be in host memory: on the GPU, if there is one."""
    if options.weights_on not in ("host", "shared") or options.quantization_bit != 4:
        return contextlib.nullcontext()
    import torch

    from workbench.models.quantized import loader

    gpu = torch.cuda.is_available()
    return loader.packing_on(_own_gpu()) if gpu else contextlib.nullcontext()


def _own_gpu():
    import torch

    return torch.device("cuda", torch.cuda.current_device())


def _stream(model, options, progress: Progress, log: Callable[[str], None]) -> None:
    import torch

    from workbench.models.host_weights import HostWeights, stream_weights
    from workbench.models.shared_weights import SharedWeights, ends_of

    device = _own_gpu() if torch.cuda.is_available() else torch.device("cpu")
    kind: Callable[..., HostWeights] = HostWeights
    if options.weights_on == "shared":
        kind = functools.partial(SharedWeights, ends=ends_of(model) if divides_ends(options) else ())
    made = stream_weights(model, device, lambda done, all: progress(Message("loading_host"), done / all), kind=kind)
    whole, slot, rate = made.bytes / 2**30, made.slot_bytes / 2**30, made.bandwidth / 1e9
    if isinstance(made, SharedWeights):
        log(
            f"The weights of {len(made.layers)} layers ({whole:.2f} GiB) are divided among the devices:"
            f" {made.own_bytes / 2**30:.2f} GiB are here, with {made.slots} slots of {slot:.2f} GiB for whole layers."
            f" Gathering a layer was measured: {rate:.1f} GB/s, so that all of them take"
            f" {made.bytes / made.bandwidth:.2f} s."
        )
        return
    log(
        f"The weights of {len(made.layers)} layers ({whole:.2f} GiB) are in host memory; {made.slots} slots of"
        f" {slot:.2f} GiB on the device hold the layer that is computed and the next ones. Copying a layer was"
        f" measured: {rate:.1f} GB/s, so that all of them take {made.bytes / made.bandwidth:.2f} s."
    )


def _does_not_fit(source: str, options: ModelOptions) -> str:
    """How much there is, how much the files say it takes, and what to set."""
    import torch

    free, total = (value / 2**30 for value in torch.cuda.mem_get_info())
    need = loaded_gib(Path(source), options.quantization_bit, on_gpu=True)
    advice = {
        4: Message("close_programs"),
        8: Message("use_4_bit"),
    }.get(options.quantization_bit, Message("use_4_or_8_bit"))
    if not need:
        return Message("model_too_large", free=free, total=total, advice=advice)
    lacking = max(0.0, need - free)
    return Message("model_too_large_by", free=free, total=total, need=need, missing=lacking, advice=advice)


def generation_settings(options: ModelOptions, workspace: Workspace, progress: Progress):
    """The model's `GenerationConfig`, read without its weights: end tokens and sampling values.

    Raises:
        UserError: the model is missing.
    """
    from transformers import AutoConfig, GenerationConfig

    source = model_source(options, workspace, progress)
    more = {"revision": options.model_revision}
    try:
        return GenerationConfig.from_pretrained(source, **more)
    except OSError:  # a model without the file: what its config says counts, as when it is loaded
        pass
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=options.trust_remote_code, **more)
        return GenerationConfig.from_model_config(config)
    except Exception as error:
        raise UserError(_load_failure(source, error)) from None


def model_source(options: ModelOptions, workspace: Workspace, progress: Progress) -> str:
    """The folder or hub id that a library is given for a model; a demo model is made first, ModelScope's fetched.

    Raises:
        UserError: the model is missing, or its folder is not what one should be.
    """
    source = locate_model(options.model_name_or_path, workspace)
    if is_demo(options.model_name_or_path):
        return str(ensure_demo_model(workspace, progress))
    if hub.use_modelscope() and not Path(source).is_dir():
        source = hub.fetch_model(source, options.model_revision, workspace.models / ".modelscope")
    if Path(source).is_dir():
        check_folder(Path(source))
    else:
        hub.wait_for_no_hub()
    return source


def _load_failure(source: str, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if not Path(source).is_dir() and hub.missing(error):
        return Message("hub_model_missing", place=hub.endpoint(), name=source)
    if "trust_remote_code" in text:
        return Message("model_brings_code", name=source)
    if any(
        word in text for word in ("connect", "Connection", "offline", "resolve", "couldn't find them in the cached")
    ):
        return Message("model_unreachable", name=source, place=hub.endpoint(), advice=hub.by_hand(source))
    return Message("model_unloadable", name=source, problem=text[:400])
