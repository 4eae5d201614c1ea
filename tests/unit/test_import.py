"""Imports from LLaMA-Factory: right, or one sentence; never another kind of run. Values that are text stay text."""

import pytest

from workbench.config.llamafactory import import_text
from workbench.config.options import EngineConfig, RunConfig
from workbench.config.run_config import load_run_config, parse_overrides, validated
from workbench.data import templates
from workbench.errors import UserError

SFT = "model_name_or_path: a/b\nstage: sft\ndo_train: true\nfinetuning_type: lora\ndataset: d\ntemplate: llama3\n"
COMMAND = "llamafactory-cli train --stage sft --do_train --model_name_or_path a/b --dataset d"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        *((SFT.replace("stage: sft", f"stage: {stage}"), f"stage: {stage}") for stage in ("ppo", "orpo", "x")),
        (COMMAND.replace("--stage sft", "--stage ppo --ppo_buffer_size 1"), "stage: ppo"),
        (SFT.replace("lora", "prefix"), "finetuning_type: prefix"),
        (SFT + "pure_bf16: true", "adapters in bfloat16"),
        (SFT + "fp8: true", "FP8"),
        (SFT + "quantization_method: hqq", "hqq"),
        (SFT + "label_smoothing_factor: 0.1", "label smoothing"),
        (SFT + "enable_qat: true\nqat_weight_dtype: int8", "enable_qat: True switches something on"),
        (SFT + "use_some_new_loss: true", "use_some_new_loss"),
        ("model_name_or_path: a/b\nadapter_name_or_path: s\nexport_dir: o\nexport_quantization_bit: 4", "GPTQ"),
        ("template: llama3\ninfer_backend: huggingface", "names no model"),
        ("model_name_or_path: a/b\ntemplate: llama3\ninfer_backend: vllm\nquantization_method: hqq", "hqq"),
        ("distributed_type: MEGATRON_LM\nnum_processes: 2", "Megatron"),
        ("distributed_type: 'NO'\nmixed_precision: fp8", "FP8"),
        ("distributed_type: FSDP\nnum_processes: many", "num_processes: many is no number"),
        ("distributed_type: FSDP\nnum_processes: 99999999999", "num_processes: 99999999999 is no number"),
        ("svg_token: 'a token'\nother: b", "No key of this file is an option"),
        ("python scripts/llama_pro.py --model_name_or_path a/b --output_dir c", "helper script"),
        (SFT + "tensor_model_parallel_size: 4", "Megatron"),
        ("model_name_or_path: a/b\ntask: mmlu_test\ntemplate: fewshot\nlang: en\nn_shot: 5", "evaluation"),
        ("llamafactory-cli eval config.yaml", "evaluation"),
        ("llamafactory-cli train config.yaml learning_rate=1e-5", "only names a YAML file"),
        ("accelerate launch --config_file f.yaml src/train.py run.yaml", "only names a YAML file"),
        ("top.model_name: Llama-3\ntrain.dataset: [d]\ntrain.cutoff_len: 1024", "LLaMA Board"),
        ("--model_name_or_path $MODEL --dataset d --do_train", r"\$MODEL"),
    ],
)  # fmt: skip
def test_what_is_another_kind_of_run_is_refused(text, words):
    with pytest.raises(UserError, match=words) as caught:
        import_text(text)
    assert "\n" not in str(caught.value)


def test_ways_of_tuning_are_taken_over():
    freeze = import_text(
        SFT.replace("lora", "freeze") + "num_layer_trainable: -3\nname_module_trainable: mlp\npure_bf16: true"
    )
    assert not freeze.lost and freeze.values["finetuning_type"] == "freeze" and freeze.values["bf16"] is True
    assert freeze.values["pure_bf16"] is True
    assert (freeze.values["freeze_trainable_layers"], freeze.values["freeze_trainable_modules"]) == (-3, "mlp")
    oft = import_text(
        COMMAND
        + " --finetuning_type oft --oft_rank 4 --oft_block_size 0 --oft_target q_proj v_proj --module_dropout 0.1"
    )
    assert not oft.lost
    config = validated(oft.defaults | oft.values)
    assert (config.oft_rank, config.oft_block_size, config.oft_target, config.module_dropout) == (
        4,
        0,
        "q_proj,v_proj",
        0.1,
    )
    galore = (
        SFT.replace("lora", "full") + "use_galore: true\ngalore_layerwise: true\ngalore_target: all\ngalore_rank: 128"
    )
    result = import_text(galore + "\npure_bf16: true\nload_best_model_at_end: false\ntokenized_path: saves/x")
    assert not result.lost and (result.values["galore_rank"], result.values["bf16"]) == (128, True)
    pissa = import_text(SFT + "pissa_init: true\npissa_iter: 4\npissa_convert: true")
    assert not pissa.lost and (pissa.values["pissa_init"], pissa.values["pissa_iter"]) == (True, 4)
    new = import_text(SFT + "adapter_name_or_path: saves/a,saves/b\ncreate_new_adapter: true\nuse_llama_pro: true")
    assert not new.lost and new.values["adapter_name_or_path"] == "saves/a,saves/b" and new.values["create_new_adapter"]


PREDICTION = """### model
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
adapter_name_or_path: saves/llama3-8b/lora/sft
### method
stage: sft
do_predict: true
finetuning_type: lora
### dataset
eval_dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
max_samples: 50
overwrite_cache: true
preprocessing_num_workers: 16
### output
output_dir: saves/llama3-8b/lora/predict
overwrite_output_dir: true
### eval
per_device_eval_batch_size: 1
predict_with_generate: true
ddp_timeout: 180000000
"""  # LLaMA-Factory's examples/extras/nlg_eval/llama3_lora_predict.yaml


def test_a_file_for_predictions_becomes_a_run_that_predicts_and_trains_nothing():
    result = import_text(PREDICTION)
    assert (result.purpose, result.lost) == ("train", [])
    assert result.values["do_train"] is False and result.values["do_predict"] is True
    # as it draws there, and nothing of a training
    assert result.defaults == {"max_new_tokens": 1024, "temperature": 0.95, "top_p": 0.7}
    config = validated(result.defaults | result.values)
    assert (config.eval_dataset, config.temperature) == ("identity,alpaca_en_demo", 0.95)
    greedy = import_text(PREDICTION + "do_sample: false\nmax_new_tokens: 64\ntop_k: 5\n")
    assert greedy.values["temperature"] == 0.0 and greedy.values["max_new_tokens"] == 64
    assert "temperature" not in greedy.defaults and [key for key, *_ in greedy.left_out][-1] == "top_k"
    both = import_text(SFT + "do_predict: true\neval_dataset: e\nlearning_rate: 1e-4")
    assert (
        both.values["do_train"] is True
        and both.defaults["logging_steps"] == 500
        and both.defaults["temperature"] == 0.95
    )


def test_what_is_off_or_changes_nothing_is_listed():
    result = import_text(
        SFT + "fp8: False\nppo_score_norm: true\nquantization_method: bnb\n"
        "enable_liger_kernel: true\nuse_liger_kernel: true\nuse_other_thing: false\ncache_dir: /tmp/x\ntemperature: 0.7"
    )
    assert {"fp8", "ppo_score_norm", "enable_liger_kernel"} <= {k for k, _, _ in result.left_out}
    assert result.values.keys() == {"model_name_or_path", "stage", "do_train", "finetuning_type", "dataset", "template"}


def test_what_a_command_leaves_out_is_llama_factorys_default():
    result = import_text(SFT + "learning_rate: 1e-4\nlora_rank: 16")
    config = validated(result.defaults | result.values)
    # from its own hparams and transformers' TrainingArguments, read by hand
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (8, 1)
    assert (config.lr_scheduler_type, config.logging_steps, config.save_steps) == ("linear", 500, 500)
    assert (config.cutoff_len, config.num_train_epochs, config.warmup_ratio) == (2048, 3.0, 0.0)
    assert (config.learning_rate, config.lora_rank, config.lora_alpha, config.lora_target) == (1e-4, 16, 32, "all")
    assert all(RunConfig.model_fields[key].default != value for key, value in result.defaults.items())
    assert import_text("lora_rank: 16").defaults == {}  # options of ours


def test_a_comment_with_a_command_does_not_hide_the_yaml():
    result = import_text("# llamafactory-cli train this.yaml --lora_rank 4\n" + SFT + "# --lora_rank 5\nlora_rank: 6")
    assert result.values["lora_rank"] == 6 and result.values["template"] == "llama3"


def test_variables_that_the_script_sets():
    text = (
        "export MODEL=/models/qwen\nOUT=${MODEL}/out\n\nCUDA_VISIBLE_DEVICES=1 llamafactory-cli train \\\n"
        "  --do_train --model_name_or_path $MODEL --dataset d --output_dir ${OUT}"
    )
    result = import_text(text)
    assert result.values["model_name_or_path"] == "/models/qwen" and result.values["output_dir"] == "/models/qwen/out"
    assert result.values["devices"] == "1" and result.left_out == []


def test_lists_and_two_names_of_one_option():
    result = import_text(COMMAND + " --report_to tensorboard wandb --max_length 99 --cutoff_len 512")
    assert result.values["report_to"] == "tensorboard,wandb" and result.values["cutoff_len"] == 512
    assert [(key, why) for key, _, why in result.left_out] == [("max_length", "cutoff_len is given, too, and counts")]


@pytest.mark.parametrize("text", ["2024-05-01", "007", "1.10", "0123456", "1e5", "12:30:45", "yes", "0x1F", "1_000"])
def test_text_options_keep_what_was_written(tmp_path, text):
    for key in ("run_name", "model_revision"):
        (tmp_path / "run.yaml").write_text(f"model_name_or_path: m\ndataset: d\n{key}: {text}\n")
        assert getattr(load_run_config(tmp_path / "run.yaml"), key) == text
        assert parse_overrides([f"{key}={text}"]) == {key: text}
    assert import_text(SFT + f"run_name: {text}").values["run_name"] == text


def test_overrides_of_text_with_a_colon_and_of_other_options():
    assert parse_overrides(["sample_prompts=Answer: who are you?"]) == {"sample_prompts": "Answer: who are you?"}
    assert parse_overrides(['run_name="quoted"', "lora_rank=16", "packing=true", "run_name="]) == {
        "run_name": None,
        "lora_rank": 16,
        "packing": True,
    }
    assert parse_overrides(["lora_target=[q_proj, v_proj]"]) == {"lora_target": ["q_proj", "v_proj"]}


def test_templates_that_llama_factory_knows_are_the_models_own():
    for name in ("baichuan2", "mistral", "Phi4", "exaone", "qwen3_5_nothink", "auto"):
        assert templates.read(name) is None and templates.is_own(name)
    assert templates.read("llama3") and not templates.is_own("llama3")
    with pytest.raises(UserError, match="no template 'lama3'"):
        templates.read("lama3")


# --- files for chatting and exporting


@pytest.mark.parametrize(
    "text",
    [
        "model_name_or_path: a/b\nadapter_name_or_path: saves/x\ntemplate: llama3\ninfer_backend: vllm\n"
        "quantization_bit: 4\nenable_thinking: false\nrope_scaling: dynamic\ntemperature: 0.3",
        "model_name_or_path: a/b\nadapter_name_or_path: saves/x\ntemplate: llama3\nfinetuning_type: lora\n"
        "quantization_bit: 4\nenable_thinking: no\nrope_scaling: dynamic\ntemperature: 0.3",
        "llamafactory-cli webchat --model_name_or_path a/b --adapter_name_or_path saves/x --template llama3"
        " --quantization_bit 4 --enable_thinking False --rope_scaling dynamic --temperature 0.3",
    ],
)
def test_a_file_for_chatting_becomes_settings_of_a_loaded_model(text):
    result = import_text(text)
    assert result.purpose == "chat" and result.lost == ["temperature"] and result.defaults == {}
    config = validated(result.values, EngineConfig)
    assert (config.model_name_or_path, config.adapter_name_or_path) == ("a/b", "saves/x")
    assert (config.template, config.quantization_bit) == ("llama3", 4)
    assert (config.enable_thinking, config.rope_scaling) == ("off", "dynamic")
    assert result.command().startswith("python -m workbench serve a/b --adapter saves/x --set ")


def test_a_file_for_exporting_becomes_a_merge():
    result = import_text(
        "model_name_or_path: a/b\nadapter_name_or_path: saves/x\ntemplate: llama3\nexport_dir: out/my model/\n"
        "export_size: 5\nexport_device: cpu\nexport_legacy_format: false\n"
    )
    assert (result.purpose, result.name, result.lost) == ("export", "my model", [])
    assert (
        result.command() == "python -m workbench export a/b --name 'my model' --adapter saves/x --set template=llama3"
    )


def test_the_switch_of_thinking_is_taken_over():
    for text, choice in (("true", "on"), ("false", "off"), ("null", "auto")):
        values = import_text(SFT + f"enable_thinking: {text}").values
        assert validated(values).enable_thinking == choice
    assert import_text(COMMAND + " --enable_thinking False").values["enable_thinking"] == "off"
    assert import_text(SFT).values.get("enable_thinking", "auto") == "auto"


def test_a_command_that_names_a_file_is_read_with_it():
    files = {"examples/x.yaml": SFT + "lora_rank: 8\nlearning_rate: 1e-4"}
    for command in (
        "llamafactory-cli train examples/x.yaml lora_rank=4 run_name=007",
        "#!/bin/bash\n# about\nCUDA_VISIBLE_DEVICES=0 accelerate launch --config_file a.yaml \\\n"
        "  src/train.py examples/x.yaml lora_rank=4 run_name=007",
    ):
        result = import_text(command, files.get)
        assert (result.values["lora_rank"], result.values["learning_rate"]) == (4, 1e-4)
        assert result.values["run_name"] == "007" and result.purpose == "train"
        launched = "accelerate" in command  # by a config that is not there, and which says on how many devices
        assert result.lost == (["config_file"] if launched else [])
        assert result.values.get("devices") == ("0" if launched else None)
    with pytest.raises(UserError, match=r"examples/y\.yaml"):
        import_text("llamafactory-cli train examples/y.yaml", files.get)


def test_what_changes_something_and_is_left_out_is_told_apart():
    result = import_text("#!/bin/bash\nset -x\n" + COMMAND + " --ddp_timeout 1 --lora_rnak 3")
    assert result.lost == ["lora_rnak"]
    assert [key for key, _, _ in result.left_out] == ["ddp_timeout", "lora_rnak"]
    vision = import_text(SFT.replace("llama3", "qwen2_vl"))
    assert vision.lost == ["template"] and "template" not in vision.values
    assert import_text(SFT + "use_kt: true\ncpu_infer: 32\nchunk_size: 8192\nkt_optimize_rule: x").lost == []


# --- files that say only a part of a run

ACCELERATE = """compute_environment: LOCAL_MACHINE
debug: false
distributed_type: FSDP
downcast_bf16: 'no'
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
machine_rank: 0
main_training_function: main
mixed_precision: bf16  # or fp16
num_machines: 1  # the number of nodes
num_processes: 2  # the number of GPUs in all nodes
rdzv_backend: static
same_network: true
tpu_env: []
use_cpu: false
"""  # LLaMA-Factory's examples/accelerate/fsdp2_config.yaml


def test_a_config_of_accelerate_says_on_which_devices():
    result = import_text(ACCELERATE)
    assert (result.purpose, result.values, result.lost) == ("train", {"bf16": True, "devices": "0,1"}, [])
    assert [key for key, *_ in result.left_out] == ["distributed_type"] and result.defaults == {}
    assert import_text(ACCELERATE.replace("use_cpu: false", "use_cpu: true")).values["devices"] == "cpu"
    assert import_text(ACCELERATE + "gpu_ids: 2, 3\n").values["devices"] == "2,3"
    assert "devices" not in import_text(ACCELERATE.replace("num_processes: 2", "num_processes: 1")).values
    more = import_text(ACCELERATE.replace("num_machines: 1", "num_machines: 2") + "new_key: 3\n")
    assert more.values == {"bf16": True} and more.lost == ["num_machines", "new_key"]
    kt = "kt_config:\n  enabled: true\n  kt_backend: "
    assert import_text(ACCELERATE + kt + "AMXBF16").lost == []
    assert import_text(ACCELERATE + kt + "AMXINT8").lost == ["kt_config"]
    zero = "distributed_type: DEEPSPEED\nnum_processes: 4\ndeepspeed_config:\n  gradient_accumulation_steps: 8\n"
    found = import_text(zero + "  gradient_clipping: auto\n  zero_stage: 3\n")
    assert found.values == {"devices": "0,1,2,3", "gradient_accumulation_steps": 8} and found.lost == []


def test_a_command_under_accelerate_takes_both_files():
    given = {"acc.yaml": ACCELERATE, "x.yaml": SFT + "bf16: true"}
    result = import_text("accelerate launch \\\n --config_file acc.yaml \\\n src/train.py x.yaml", given.get)
    assert (result.values["devices"], result.values["dataset"], result.lost) == ("0,1", "d", [])
    two = import_text(
        "CUDA_VISIBLE_DEVICES=4,5 accelerate launch --config_file=acc.yaml src/train.py x.yaml", given.get
    )
    assert two.values["devices"] == "4,5" and two.lost == []


def test_a_file_of_special_tokens_and_other_values_that_mean_the_same_here():
    tokens = import_text("# svg\n'<|START|>': 'Marks the beginning'\n'<|END|>': 'Marks the end'\n")
    assert tokens.values == {"add_special_tokens": "<|START|>,<|END|>"} and tokens.lost == []
    named = import_text(SFT + "new_special_tokens_config: t.yaml\ninit_special_tokens: desc_init")
    assert not named.lost and validated(named.values).init_special_tokens == "desc_init"
    for key in ("fa4", "flash_attention_4"):
        result = import_text(SFT + f"flash_attn: {key}")
        assert (result.values["flash_attn"], result.lost, result.left_out[0][:2]) == ("auto", [], ("flash_attn", key))
    chat = import_text("model_name_or_path: a/b\ntemplate: llama3\ninfer_backend: hf\nflash_attn: fa4")
    assert chat.values["flash_attn"] == "auto" and chat.lost == []
    asft = import_text(SFT.replace("lora", "full") + "use_asft_loss: true\nasft_alpha: 0.05")
    assert not asft.lost and validated(asft.defaults | asft.values).asft_alpha == 0.05


def test_a_model_alone_is_exported_as_it_is():
    for text in (
        "model_name_or_path: a/b\ntemplate: qwen\nexport_dir: out/it\nexport_size: 5\n",
        "llamafactory-cli export --model_name_or_path a/b --export_dir out/it --template qwen",
    ):
        result = import_text(text)
        assert (result.purpose, result.lost) == ("export", [])
        assert result.command() == "python -m workbench export a/b --name it --set template=qwen"
