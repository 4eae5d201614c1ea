import pytest

from workbench.config.options import EngineConfig, RunConfig
from workbench.config.run_config import changed_values, load_run_config, parse_overrides, parse_yaml, to_yaml, validated
from workbench.errors import UserError

BASE = {"model_name_or_path": "m", "dataset": "d"}


def problem(values: dict, model=RunConfig) -> str:
    with pytest.raises(UserError) as error:
        validated(values, model)
    return str(error.value)


def test_values_from_a_shell_get_their_types():
    config = validated(
        BASE
        | {
            "quantization_bit": "4",
            "learning_rate": "5e-05",
            "fp16": "True",
            "lora_alpha": "None",
            "dataset": ["a", "b"],
        }
    )
    assert (config.quantization_bit, config.learning_rate, config.fp16, config.lora_alpha) == (4, 5e-5, True, None)
    assert config.dataset == "a,b"


def test_yaml_no_is_the_word_no():
    assert validated(BASE | parse_yaml("eval_strategy: no")).eval_strategy == "no"


def test_unknown_key_names_the_nearest():
    assert "Did you mean 'lora_rank'?" in problem(BASE | {"lora_rnk": 8})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cutoff_len": "abc"}, "cutoff_len: 'abc'"),
        ({"quantization_bit": 3}, "it should be 4 or 8"),
        ({"lora_dropout": 1.5}, "lora_dropout: 1.5"),
        ({"stage": "ppo"}, "stage: 'ppo'"),
        ({"fp16": True, "bf16": True}, "fp16 and bf16 are both on"),
        ({"finetuning_type": "full", "quantization_bit": None, "fp16": True, "pure_bf16": True}, "fp16 and bf16"),
        ({"pure_bf16": True}, "adapters are trained in float32"),
        ({"packing": True, "cutoff_len": 0}, "packing needs a length"),
        ({"neat_packing": True, "cutoff_len": 0}, "packing needs a length"),
        ({"finetuning_type": "full", "quantization_bit": 4}, "cannot be trained in full"),
        ({"finetuning_type": "full", "adapter_name_or_path": "a"}, "finetuning_type full"),
        ({"train_on_prompt": True, "mask_history": True}, "exclude each other"),
        ({"val_size": 0.1, "eval_dataset": "e"}, "val_size and eval_dataset are both set"),
        ({"eval_strategy": "steps"}, "nothing to evaluate on"),
        ({"warmup_steps": 10, "warmup_ratio": 0.1}, "warmup_steps and warmup_ratio"),
        ({"report_to": "neptune"}, "unknown 'neptune'"),
        ({"devices": "gpu0"}, "devices: 'gpu0'"),
        ({"do_train": False}, "nothing to do"),
        ({"dataset": ""}, "dataset is empty"),
    ],
)
def test_wrong_values_and_combinations(values, words):
    assert words in problem(BASE | values)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"finetuning_type": "freeze", "quantization_bit": 8}, "freeze_quantized"),
        ({"finetuning_type": "freeze", "adapter_name_or_path": "a"}, "freeze_adapter"),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 0}, "freeze_nothing"),
        ({"finetuning_type": "oft", "use_llama_pro": True}, "llama_pro_method"),
        ({"finetuning_type": "oft", "oft_rank": 4, "oft_block_size": 16}, "oft_both_sizes"),
        ({"finetuning_type": "oft", "oft_block_size": 0}, "oft_no_size"),
        ({"finetuning_type": "full", "loraplus_lr_ratio": 16}, "loraplus_method"),
        ({"finetuning_type": "oft", "pissa_init": True}, "pissa_method"),
        ({"pissa_init": True, "use_dora": True}, "pissa_dora"),
        ({"pissa_init": True, "adapter_name_or_path": "a"}, "pissa_adapter"),
        ({"create_new_adapter": True}, "new_adapter_of_none"),
        ({"finetuning_type": "oft", "adapter_name_or_path": "a,b"}, "new_adapter_method"),
        ({"create_new_adapter": True, "adapter_name_or_path": "a", "use_dora": True}, "new_adapter_dora"),
        ({"adapter_name_or_path": "a,b", "quantization_bit": 4}, "adapters_quantized"),
        ({"adapter_name_or_path": "a", "create_new_adapter": True, "quantization_bit": 4}, "adapters_quantized"),
    ],
)
def test_ways_of_tuning_that_cannot_be(values, code):
    with pytest.raises(UserError) as caught:
        validated(BASE | values)
    assert [one.code for one in caught.value.message.values["problems"]] == [code]


def test_ways_of_tuning_that_can():
    for values in (
        {"finetuning_type": "oft", "quantization_bit": 4, "adapter_name_or_path": "a"},
        {"finetuning_type": "oft", "oft_rank": 4},
        {"finetuning_type": "freeze", "freeze_trainable_layers": -3, "use_muon": True},
        {"adapter_name_or_path": "a,b", "create_new_adapter": True, "pissa_init": True},
        {"use_llama_pro": True, "quantization_bit": 4},
        {
            "eval_strategy": "steps",
            "val_size": 0.1,
            "eval_steps": 0.1,
            "save_steps": 0.2,
            "load_best_model_at_end": True,
        },
    ):
        validated(BASE | values)
    assert validated(BASE | {"save_steps": 0.3}).every("save_steps", 10) == 3
    assert validated(BASE).every("eval_steps", 10) == 5  # as often as it logs


def test_adapter_without_its_base():
    assert "without its base" in problem({"dataset": "d", "adapter_name_or_path": "a"})
    assert "Choose a model" in problem({}, EngineConfig)


def test_all_problems_are_named_at_once():
    text = problem(BASE | {"lora_rnk": 1, "cutoff_len": -1, "seed": "x"})
    assert len(text.splitlines()) == 3


@pytest.mark.parametrize("text", ["a: [1", "- a\n- b", "just words", "a: b: c", "\t- x", "a: 2024-13-45"])
def test_broken_yaml_is_one_sentence(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_run_config(file)
    assert "run.yaml" in str(error.value) and "Traceback" not in str(error.value)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        load_run_config(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as text"):
        load_run_config(tmp_path / "b.yaml")


def test_round_trip_through_yaml():
    config = validated(BASE | {"lora_rank": 16, "learning_rate": 1e-4, "eval_strategy": "no", "run_name": "名字"})
    again = validated(parse_yaml(to_yaml(config.model_dump())))
    assert again == config
    assert validated(changed_values(config)) == config


def test_overrides():
    assert parse_overrides(["lora_rank=16", "report_to=none", "run_name="]) == {
        "lora_rank": 16,
        "report_to": "none",
        "run_name": None,
    }
    with pytest.raises(UserError, match="key=value"):
        parse_overrides(["lora_rank"])


def test_a_yaml_tag_is_not_executed():
    with pytest.raises(UserError, match="not valid YAML"):
        parse_yaml("a: !!python/object/apply:os.system ['true']")


def test_data_files_named_by_the_page_lie_in_the_workspace(workspace, tmp_path):
    outside = tmp_path / "secret.jsonl"
    outside.write_text('{"text": "x"}')
    for name in ("dataset", "eval_dataset"):
        with pytest.raises(UserError, match="outside the workspace"):
            workspace.confine(RunConfig(**{name: f"abilities,{outside}"}))
    workspace.confine(RunConfig(dataset="abilities,org/name"))
