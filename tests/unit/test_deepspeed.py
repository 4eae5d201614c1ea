"""`deepspeed` in LLaMA-Factory's files: a config of DeepSpeed becomes options, and notes."""

import importlib.util
import json

import pytest

from workbench.cli.imports import named_file
from workbench.config import deepspeed_file
from workbench.config.llamafactory import import_text
from workbench.config.run_config import validated
from workbench.config.zero import zero_of
from workbench.data.preflight import check_names
from workbench.errors import UserError
from workbench.runs.run import create_run
from workbench.storage.workspace import DEMO_MODEL
from workbench.train.estimates import record
from workbench.train.estimates.check import check_start
from workbench.train.estimates.outlook import outlook

RUN = "model_name_or_path: a/b\nstage: sft\ndo_train: true\nfinetuning_type: {}\ndataset: d\ntemplate: qwen\n"
LORA = RUN.format("lora")


def config(stage: int, **more) -> dict:
    """As LLaMA-Factory's `examples/deepspeed/ds_zN_config.json`."""
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "hysteresis": 2, "min_loss_scale": 1},
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": stage, "overlap_comm": False, "reduce_bucket_size": 5e8},
    } | more


def given(text: str, **files):
    """An import that finds these files, `z_json` as `z.json`."""
    there = {name.replace("_", "."): content for name, content in files.items()}
    return import_text(text, there.get)


def notes(result) -> dict[str, str]:
    return {key: why.code for key, _, why in result.left_out}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("method", ["lora", "oft", "freeze", "full"])
def test_zero_changes_nothing_but_where_things_are(stage, method):
    plain = import_text(RUN.format(method))
    result = given(RUN.format(method) + "deepspeed: z.json", z_json=json.dumps(config(stage)))
    spread = {}
    third = "why_zero_shared" if method in ("lora", "oft") else "why_one_gpu"
    code = {0: "why_zero_off", 3: third}.get(stage, "why_zero_whole")
    if method == "full" and stage:
        text = result.values["deepspeed"]
        assert zero_of(text)["stage"] == stage and validated(result.defaults | result.values).deepspeed == text
        spread = {"deepspeed": text}
    assert (result.values, result.defaults, result.lost) == (plain.values | spread, plain.defaults, [])
    if spread:
        assert notes(result) == {}
    else:
        assert notes(result) == {"deepspeed.zero_optimization.stage": code}


def test_full_tuning_takes_sizes_and_offloads_and_nothing_else():
    zero = {
        "stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True}, "reduce_bucket_size": "auto",
        "sub_group_size": 1e9, "overlap_comm": True, "stage3_gather_16bit_weights_on_model_save": True, "x": "/etc",
        "allgather_bucket_size": float("1e99"),
    }  # fmt: skip
    more = {"zero_optimization": zero, "tensorboard": {"output_path": "/etc"}, "optimizer": {"params": {"lr": 1e-5}}}
    result = given(RUN.format("full") + "deepspeed: z.json", z_json=json.dumps(config(3) | more))
    assert json.loads(result.values["deepspeed"]) == {
        "zero_optimization": {
            "stage": 3, "sub_group_size": 10**9, "reduce_bucket_size": "auto", "overlap_comm": True,
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
        }
    }  # fmt: skip
    assert result.values["learning_rate"] == 1e-5 and result.lost == []


@pytest.mark.parametrize(
    "more", ["use_galore: true", "optim: adafactor", "use_asft_loss: true", "neftune_noise_alpha: 5"]
)
def test_full_tuning_with_what_zero_cannot_do_is_as_before(more):
    result = given(RUN.format("full") + f"deepspeed: z.json\n{more}", z_json=json.dumps(config(3)))
    assert "deepspeed" not in result.values and result.lost == []
    assert notes(result)["deepspeed.zero_optimization.stage"] == "why_zero_full"
    nvme = {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/x"}}
    other = given(RUN.format("full") + "deepspeed: z.json", z_json=json.dumps({"zero_optimization": nvme}))
    assert "deepspeed" not in other.values and "deepspeed.zero_optimization.offload_param" in notes(other)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"finetuning_type": "lora"}, "finetuning_type: lora"),
        ({"stage": "dpo"}, "stage: dpo"),
        ({"optim": "adamw_8bit"}, "optim: adamw_8bit"),
        ({"use_muon": True}, "use_muon"),
        ({"sample_prompts": "Hello"}, "sample_prompts"),
        ({"device_map": "auto"}, "device_map: auto"),
        ({"deepspeed": "ds.json"}, "cannot be read"),
        ({"deepspeed": "{}"}, "is 1, 2 or 3, not 0"),
        ({"deepspeed": "[]"}, "deepspeed:"),
        ({"deepspeed": '{"zero_optimization": {"stage": "3"}}'}, "is 1, 2 or 3, not 3"),
        ({"deepspeed": '{"zero_optimization": []}'}, "is an object"),
        ({"deepspeed": '{"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}'}, "not to nvme"),
        ({"deepspeed": '{"x": ' * 200 + "1" + "}" * 200}, "cannot be read"),
    ],
)  # fmt: skip
def test_what_a_run_cannot_do_with_it_is_a_sentence(changes, words):
    values = {"model_name_or_path": "m", "dataset": "d", "finetuning_type": "full"}
    values |= {"deepspeed": json.dumps({"zero_optimization": {"stage": 3}})}
    validated(values)
    with pytest.raises(UserError, match=words):
        validated(values | changes)


def test_a_package_that_is_missing_is_told_before_anything_is_loaded(workspace, tmp_path, monkeypatch):
    (workspace.models / "m").mkdir()
    (workspace.models / "m" / "config.json").write_text("{}")
    values = {"model_name_or_path": "m", "dataset": "d", "finetuning_type": "full"}
    spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else spec(name))
    with pytest.raises(UserError) as caught:
        check_names(validated(values | {"deepspeed": '{"zero_optimization": {"stage": 1}}'}), workspace)
    assert caught.value.message.code == "deepspeed_missing"


def test_offloads_are_told():
    zero = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "nvme"}}
    found = notes(given(LORA + "deepspeed: z.json", z_json=json.dumps(config(3, zero_optimization=zero))))
    assert found["deepspeed.zero_optimization.offload_optimizer"] == "why_zero_optimizer"
    assert found["deepspeed.zero_optimization.offload_param"] == "why_zero_weights"


def test_values_of_a_run_are_taken_over_where_the_run_has_none():
    own = config(
        2,
        train_micro_batch_size_per_gpu=3,
        gradient_accumulation_steps=4,
        gradient_clipping=0.5,
        train_batch_size=24,
        bf16={"enabled": True},
        optimizer={"type": "AdamW", "params": {"lr": 3e-4, "betas": [0.8, 0.99], "eps": 1e-8, "weight_decay": "auto"}},
        scheduler={"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": "auto", "warmup_num_steps": 7}},
    )
    command = "deepspeed --num_gpus 2 src/train.py --stage sft --do_train --model_name_or_path a/b --dataset d "
    result = given(command + "--deepspeed z.json", z_json=json.dumps(own))
    wanted = {
        "per_device_train_batch_size": 3, "gradient_accumulation_steps": 4, "max_grad_norm": 0.5, "bf16": True,
        "learning_rate": 3e-4, "adam_beta1": 0.8, "adam_beta2": 0.99, "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 7, "devices": "0,1",
    }  # fmt: skip
    assert result.values.items() >= wanted.items() and result.lost == []
    assert not wanted.keys() & result.defaults.keys()
    assert validated(result.defaults | result.values).warmup_steps == 7
    other = given(command + "--deepspeed z.json", z_json=json.dumps(own | {"train_batch_size": 23}))
    assert other.lost == ["deepspeed.train_batch_size"]
    two = given(
        LORA + "bf16: true\nper_device_train_batch_size: 3\nmax_grad_norm: 1.0\ndeepspeed: z.json",
        z_json=json.dumps(own),
    )
    assert two.values["max_grad_norm"] == 1.0
    assert [key for key in two.lost if key != "deepspeed.train_batch_size"] == ["deepspeed.gradient_clipping"]


def test_what_is_not_known_is_named():
    own = config(
        2,
        optimizer={"type": "OneBitAdam", "params": {"freeze_step": 9, "lr": "quick"}},
        compression_training={"weight_quantization": {}},
        zero_optimization={"stage": 2, "zero_quantized_gradients": True},
    )
    lost = given(LORA + "deepspeed: z.json", z_json=json.dumps(own)).lost
    assert set(lost) == {
        "deepspeed.optimizer.params.lr",
        "deepspeed.zero_optimization.zero_quantized_gradients",
        "deepspeed.optimizer.type",
        "deepspeed.optimizer.params.freeze_step",
        "deepspeed.compression_training",
    }
    many = given(LORA + "deepspeed: z.json", z_json=json.dumps(config(2, **{f"key{n}": n for n in range(9999)})))
    assert len(many.left_out) == deepspeed_file.LISTED + 2 and many.left_out[-1][2].values["count"] == 9999 - 50


def test_a_config_within_the_text_and_alone():
    inline = import_text(LORA + "deepspeed: {zero_optimization: {stage: 2}, gradient_clipping: 2}")
    assert inline.values["max_grad_norm"] == 2 and notes(inline) == {
        "deepspeed.zero_optimization.stage": "why_zero_whole"
    }
    text = import_text(f"llamafactory-cli train --stage sft --do_train --deepspeed '{json.dumps(config(0))}'")
    assert notes(text) == {"deepspeed.zero_optimization.stage": "why_zero_off"}
    alone = import_text(json.dumps(config(3, gradient_accumulation_steps=6), indent=1))
    assert alone.values == {"gradient_accumulation_steps": 6} and alone.defaults == {}
    for off in ("", "null", "false"):
        assert import_text(LORA + f"deepspeed: {off}").left_out == []


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_mapping_of_yaml_may_hold_what_json_cannot(method):
    odd = "{zero_optimization: {stage: 2, 2020-01-01: 2020-01-01, 7: .nan}, 5: 2020-01-01, null: x}"
    result = import_text(RUN.format(method) + f"deepspeed: {odd}")
    assert result.lost == ["deepspeed.5", "deepspeed.None"]


def test_accelerate_and_v1_name_one_too():
    zero = "distributed_type: DEEPSPEED\nnum_processes: 2\ndeepspeed_config:\n  deepspeed_config_file: z.json\n"
    found = given(zero, z_json=json.dumps(config(2, gradient_clipping=0.3)))
    assert found.values == {"devices": "0,1", "max_grad_norm": 0.3} and found.lost == []
    assert given(zero).lost == ["deepspeed_config.deepspeed_config_file"]
    block = given(
        "distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stage: 2\n  offload_param_device: cpu\n  x: 1\n"
    )
    assert notes(block) == {
        "deepspeed_config.x": "why_memory",
        "deepspeed_config.zero_optimization.stage": "why_zero_whole",
        "deepspeed_config.zero_optimization.offload_param": "why_zero_weights",
    }
    v1 = "model: a/b\ntrain_dataset: d.yaml\ndist_config: {name: deepspeed, config_file: z.json}\n"
    result = given(v1, z_json=json.dumps(config(3, bf16={"enabled": True})))
    assert zero_of(result.values["deepspeed"])["stage"] == 3


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "cannot_be_read"),
        ("[1]", "import_deepspeed"),
        ("7", "import_deepspeed"),
        ('{"zero_optimization": 3}', "import_deepspeed"),
        ('{"zero_optimization": {"stage": 4}}', "import_deepspeed"),
        ('{"zero_optimization": {"stage": true}}', "import_deepspeed"),
        ('{"zero_optimization": {"offload_param": "cpu"}}', "import_deepspeed"),
        ('{"fp16": [1]}', "import_deepspeed"),
        ('{"optimizer": {"params": 3}}', "import_deepspeed"),
        ('{"x": ' * 300 + "1" + "}" * 300, "cannot_be_read"),
        ('{"x": ' * 100_000, "cannot_be_read"),
        ('{"x": "' + "a" * (1 << 20) + '"}', "cannot_be_read"),
        ('{"gradient_clipping": ' + "9" * 9999 + "}", "cannot_be_read"),
    ],
)  # fmt: skip
def test_a_broken_config_is_one_sentence(text, code):
    with pytest.raises(UserError) as caught:
        given(LORA + "deepspeed: z.json", z_json=text)
    assert caught.value.message.code == code and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("value", ["NaN", "1e999", '"many"', "-1", "[]", "{}"])
def test_a_number_that_is_none_is_named(value):
    result = given(LORA + "deepspeed: z.json", z_json='{"gradient_accumulation_steps": ' + value + "}")
    assert "gradient_accumulation_steps" not in result.values
    assert result.lost == ["deepspeed.gradient_accumulation_steps"]


def test_the_file_is_found_beside_the_text_and_above_it(tmp_path):
    folder = tmp_path / "examples" / "train_lora"
    folder.mkdir(parents=True)
    (folder / "run.yaml").write_text(LORA)
    (tmp_path / "examples" / "z.json").write_text(json.dumps(config(2, gradient_clipping=0.7)))

    def read(name: str):
        return named_file(name, str(folder / "run.yaml"))

    assert import_text(LORA + "deepspeed: examples/z.json", read).values["max_grad_norm"] == 0.7
    for name in ("no.json", "/dev/zero", str(tmp_path), "a" * 5000, "a\\0b", "../" * 40):
        assert import_text(LORA + f'deepspeed: "{name}"', read).lost == ["deepspeed"]
    (tmp_path / "examples" / "bytes.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError) as caught:
        import_text(LORA + "deepspeed: examples/bytes.json", read)
    assert caught.value.message.code == "file_not_text"


def test_estimates_say_that_a_device_holds_less(workspace):
    values = {"model_name_or_path": DEMO_MODEL, "dataset": "d", "finetuning_type": "full"}
    config_ = validated(values | {"deepspeed": '{"zero_optimization": {"stage": 3}}'})
    found = outlook(config_, workspace, with_changes=False)
    assert "cost_zero" in [note.code for note in found.notes] and check_start(config_, workspace) == []
    run = create_run(workspace, config_)
    record.begin(run, config_, workspace, "cpu")
    assert record.read(run) == {}
