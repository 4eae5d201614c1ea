"""LLaMA-Factory's v1 form: what its groups mean, and what is refused by name."""

import json

import pytest

from workbench.config.llamafactory import import_text
from workbench.config.options import EngineConfig, RunConfig
from workbench.config.run_config import validated
from workbench.errors import UserError

FULL = "model: a/b\nmodel_class: llm\ntemplate: qwen3_nothink\ntrain_dataset: data/v1_sft_demo.yaml\n"
LORA = FULL + "peft_config:\n  name: lora\n  r: 16\n  lora_dropout: 0.05\n  target_modules: all\n"
DATASETS = "identity:\n  path: data/identity.json\n  source: local\n  converter: alpaca\n"


def taken(text: str, **read) -> RunConfig:
    """The config of a text that is taken over whole."""
    result = import_text(text, read.get("read", lambda name: None))
    assert not result.lost and result.purpose == "train", result.left_out
    return validated(result.defaults | result.values)


def test_what_a_file_leaves_out_is_v1s_default():
    config = taken(LORA)
    # from src/llamafactory/v1: config/training_args.py, core/base_trainer.py, plugins/model_plugins/peft.py, by hand
    assert (config.stage, config.finetuning_type, config.dataset) == ("sft", "lora", "v1_sft_demo")
    assert (config.lr_scheduler_type, config.weight_decay, config.learning_rate) == ("constant", 0.01, 1e-4)
    assert (config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_target) == (16, 16, 0.05, "all")
    assert (config.logging_steps, config.save_strategy, config.bf16, config.num_train_epochs) == (1, "no", True, 3)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (1, 1)
    full = import_text(FULL)
    assert full.values["finetuning_type"] == "full" and not {"lora_rank", "lora_alpha"} & full.defaults.keys()


def test_groups_become_options():
    config = taken(
        LORA + "  modules_to_save: [embed_tokens, lm_head]\n  use_rslora: true\n"
        "quant_config:\n  name: bnb\n  quantization_bit: 4\n  double_quantization: false\n"
        "micro_batch_size: 2\nglobal_batch_size: 8\nmax_steps: 10\nsave_steps: 5\ncutoff_len: 512\n"
        "enable_activation_checkpointing: false\nlr_scheduler_config:\n  name: cosine\n  warmup_ratio: 0.1\n"
        "optim_config:\n  name: adamw\n  betas: [0.8, 0.99]\n"
    )
    assert config.additional_target == "embed_tokens,lm_head" and config.use_rslora
    assert (config.quantization_bit, config.double_quantization) == (4, False)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (2, 4)
    assert (config.save_strategy, config.save_steps, config.max_steps) == ("steps", 5, 10)
    assert config.disable_gradient_checkpointing and (config.lr_scheduler_type, config.warmup_ratio) == ("cosine", 0.1)
    assert (config.adam_beta1, config.adam_beta2, config.weight_decay) == (0.8, 0.99, 0.0)
    freeze = taken(
        FULL + "peft_config:\n  name: freeze\n  freeze_trainable_layers: -3\n  freeze_trainable_modules: [mlp]\n"
        "  freeze_extra_modules: null\n"
    )
    assert (freeze.finetuning_type, freeze.freeze_trainable_layers, freeze.freeze_trainable_modules) == (
        "freeze",
        -3,
        "mlp",
    )
    assert taken(FULL + "save_epochs: 1").save_strategy == "epoch"
    assert taken(FULL + "save_epochs: 0.5\nnum_train_epochs: 2").save_steps == 0.25


def test_muon_of_v1():
    config = taken(FULL + "optim_config:\n  name: muon\n  momentum: 0.95\n  ns_steps: 5\n")
    assert config.use_muon and (config.weight_decay, config.adam_beta1, config.adam_beta2) == (0.1, 0.9, 0.95)


def test_where_and_how_fast_it_computes_is_listed():
    result = import_text(
        LORA + "dist_config:\n  name: fsdp2\n  dcp_path: null\n  cp_mode: ulysses\n  cp_size: 2\n"
        "kernel_config:\n  name: liger_kernel\n  include_kernels: auto\ninit_config:\n  name: init_on_rank0\n"
        "batching_strategy: padding_free\nflash_attn: flash_attention2\nsample_backend: hf\nmax_new_tokens: 128\n"
    )
    assert not result.lost and result.values["flash_attn"] == "flash_attention_2"
    listed = {"dist_config", "kernel_config", "init_config", "batching_strategy", "sample_backend", "stage"}
    assert listed <= {key for key, _, _ in result.left_out}
    other = import_text(LORA + "dist_config:\n  name: fsdp2\n  dcp_path: weights/dcp\n")
    assert other.lost == ["dist_config.dcp_path"]


def test_steps_of_so_many_tokens_are_packed():
    steps = "batching_strategy: dynamic_padding_free\nmicro_batch_size: 4\n"
    config = taken(FULL + steps + "max_steps: 10\n")
    assert config.packing and config.per_device_train_batch_size == 4
    assert import_text(FULL + steps).lost == ["batching_strategy"]  # its epochs are longer than they say
    padded = import_text(FULL + "batching_strategy: dynamic_batching\nmax_steps: 10\n")
    assert padded.lost == ["batching_strategy"] and padded.values["packing"] is True


def test_a_file_of_datasets_is_read_where_it_may_be():
    read = {"data/v1_sft_demo.yaml": DATASETS}.get
    assert taken(FULL, read=read).dataset == "data/identity.json"
    other = DATASETS + "more:\n  path: org/rows\n  size: 500\n  split: test\n"
    result = import_text(FULL, {"data/v1_sft_demo.yaml": other}.get)
    assert result.values["dataset"] == "data/identity.json,org/rows" and result.lost == ["more.split", "size"]
    sized = DATASETS + "  size: 50\n"
    assert taken(FULL, read={"data/v1_sft_demo.yaml": sized}.get).max_samples == 50
    # one limit fits all where a dataset that is used whole is not larger
    mixed = {"data/v1_sft_demo.yaml": DATASETS + "more:\n  path: data/more.jsonl\n  source: local\n  size: 3\n"}
    for count, limit in ((3, 3), (4, None)):
        files = mixed | {"data/identity.json": json.dumps([{"instruction": "a", "output": "b"}] * count)}
        result = import_text(FULL, files.get)
        assert (result.values.get("max_samples"), result.lost) == (limit, [] if limit else ["size"])
    assert import_text(FULL, (mixed | {"data/identity.json": "no JSON"}).get).lost == ["size"]
    assert taken(FULL.replace("data/v1_sft_demo.yaml", "org/rows")).dataset == "org/rows"


def test_the_command_says_the_stage():
    read = {"v1/run.yaml": LORA}.get
    assert taken("USE_V1=1 llamafactory-cli sft v1/run.yaml peft_config.r=4", read=read).lora_rank == 4
    assert taken("llamafactory-cli dpo v1/run.yaml pref_beta=0.2", read=read).pref_beta == 0.2
    assert taken("llamafactory-cli rm v1/run.yaml", read=read).stage == "rm"
    command = taken(
        "llamafactory-cli sft --model a/b --train_dataset org/rows --learning_rate 2e-5 "
        '--peft_config \'{"name": "lora", "r": 4}\''
    )
    assert (command.lora_rank, command.learning_rate, command.dataset) == (4, 2e-5, "org/rows")


def test_a_file_of_pairs_or_for_scores_is_no_supervised_run():
    pairs = DATASETS.replace("alpaca", "pair")
    assert taken(FULL, read={"data/v1_sft_demo.yaml": pairs}.get).stage == "dpo"
    assert taken(LORA.replace("sft_demo", "dpo_demo")).stage == "dpo"
    assert taken(LORA.replace("model_class: llm", "model_class: cls")).stage == "rm"


def test_exports_and_chats():
    export = (
        "model: a/b\npeft_config:\n  name: lora\n  adapter_name_or_path: ./outputs/test\n  export_dir: ./merged/it\n"
        "  export_size: 5\n  infer_dtype: auto\n"
    )
    result = import_text(export)
    assert (result.purpose, result.name, result.lost) == ("export", "it", [])
    config = validated(result.values, EngineConfig)
    assert (config.model_name_or_path, config.adapter_name_or_path) == ("a/b", "./outputs/test")
    assert "workbench export a/b --name it --adapter ./outputs/test" in result.command()
    chat = import_text("llamafactory-cli chat v1/run.yaml", {"v1/run.yaml": LORA}.get)
    assert chat.purpose == "chat" and chat.values["model_name_or_path"] == "a/b"
    alone = import_text("llamafactory-cli merge v1/run.yaml", {"v1/run.yaml": LORA}.get)
    assert alone.purpose == "export" and alone.command().startswith("python -m workbench export a/b --name ")


@pytest.mark.parametrize(
    ("more", "code", "word"),
    [
        ("mtp_config:\n  name: mtp\n  num_layers: 1", "import_unknown_switch", "mtp_config"),
        ("ld_alpha: 0.5", "import_unknown_switch", "ld_alpha"),
        ("use_some_loss: true", "import_unknown_switch", "use_some_loss"),
        ("peft_config:\n  name: prompt", "import_method", "prompt"),
        ("peft_config: lora", "import_v1_group", "peft_config"),
        ("peft_config:\n  r: 8", "import_v1_group", "peft_config"),
        ("quant_config:\n  name: gptq", "import_quantization", "gptq"),
        ("optim_config:\n  name: lion", "import_changing", "lion"),
        ("optim_config:\n  name: muon\n  momentum: 0.9", "import_changing", "optim_config"),
        ("optim_config:\n  name: adamw\n  eps: 1.0e-6", "import_changing", "eps"),
        ("lr_scheduler_config:\n  name: wave", "import_changing", "wave"),
        ("model_class: other", "import_changing", "model_class"),
        ("fp8: true", "import_changing", "FP8"),
        ("train_dataset: [a, b]", "import_v1_group", "train_dataset"),
    ],
)
def test_what_changes_the_result_and_is_not_offered_is_refused(more, code, word):
    key = more.partition(":")[0]
    text = "".join(line + "\n" for line in FULL.splitlines() if not line.startswith(key + ":")) + more
    with pytest.raises(UserError, match=word) as caught:
        import_text(text)
    assert caught.value.message.code == code


@pytest.mark.parametrize(
    ("more", "lost"),
    [
        ("micro_batch_size: 2\nglobal_batch_size: 3", "global_batch_size"),
        ("max_steps: many", "max_steps"),
        ("save_epochs: 0.5\nmax_steps: 10", "save_epochs"),
        ("resume_from_checkpoint: auto", "resume_from_checkpoint"),
        ("custom_chat_template: '{{ x }}'", "custom_chat_template"),
        ("batching_strategy: other", "batching_strategy"),
        ("quant_config:\n  name: bnb\n  compute_dtype: float16", "quant_config.compute_dtype"),
        ("peft_config:\n  name: freeze\n  cast_trainable_params_to_fp32: true", "peft_config.cast_trainable_params_to_fp32"),
        ("peft_config:\n  name: lora\n  init_lora_weights: pissa", "peft_config.init_lora_weights"),
    ],
)  # fmt: skip
def test_what_is_not_taken_over_is_named(more, lost):
    assert lost in import_text(FULL + more).lost


def test_steps_without_end_are_refused():
    assert taken(FULL + f"max_steps: {10**400}\nsave_epochs: 1").max_steps == 10**400  # larger than any float
    result = import_text(FULL + "save_steps: .inf")
    with pytest.raises(UserError) as caught:
        validated(result.defaults | result.values)
    assert [problem.code for problem in caught.value.message.values["problems"]] == ["steps_not_whole"]


def test_templates_of_models_that_see():
    result = import_text(FULL.replace("qwen3_nothink", "qwen3_vl"))
    assert result.lost == ["template"] and "template" not in result.values
