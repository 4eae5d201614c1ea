"""The trainer as a user runs it: real processes on a tiny random model."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.process

BASE = {
    "dataset": "small", "quantization_bit": 4, "cutoff_len": 128, "per_device_train_batch_size": 4, "lora_rank": 4,
    "learning_rate": 1e-3, "logging_steps": 1, "max_steps": 6, "save_steps": 3, "plot_loss": False,
}  # fmt: skip


@pytest.fixture
def config(tiny_model, tiny_data):
    return BASE | {"model_name_or_path": str(tiny_model), "dataset_dir": str(tiny_data)}


def write(tmp_path, values) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def workbench(workspace, *arguments, **options):
    command = [sys.executable, "-m", "workbench", *map(str, arguments), "--workspace", str(workspace.root)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, **options)


def only_run(workspace) -> Path:
    (path,) = workspace.runs.iterdir()
    return path


def state_of(path) -> dict:
    return json.loads((path / "state.json").read_text())


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in (path / "trainer_log.jsonl").read_text().splitlines()]


def test_a_run_fills_its_directory_and_the_adapter_loads_in_plain_peft(workspace, config, tiny_model, tmp_path):
    values = config | {"val_size": 4, "eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 4}
    values["plot_loss"] = True
    done = workbench(workspace, "train", write(tmp_path, values))
    assert done.returncode == 0, done.stdout + done.stderr
    path = only_run(workspace)
    for name in (
        "run.yaml",
        "state.json",
        "running_log.txt",
        "trainer_log.jsonl",
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "chat_template.jinja",
        "training_loss.png",
        "all_results.json",
        "trainer_state.json",
        "checkpoint-3/trainer_state.json",
        "checkpoint-6/adapter_model.safetensors",
    ):
        assert (path / name).is_file(), name
    assert yaml.safe_load((path / "run.yaml").read_text()) == values
    state = state_of(path)
    assert (state["state"], state["step"], state["total_steps"], state["exit_code"]) == ("finished", 6, 6, 0)
    trained = [row for row in rows_of(path) if "loss" in row]
    assert [row["current_steps"] for row in trained] == [1, 2, 3, 4, 5, 6]
    assert {
        "current_steps",
        "total_steps",
        "loss",
        "lr",
        "grad_norm",
        "epoch",
        "percentage",
        "elapsed_time",
        "remaining_time",
        "throughput",
        "total_tokens",
        "peak_memory",
    } <= trained[-1].keys()
    assert [row["current_steps"] for row in rows_of(path) if "eval_loss" in row] == [3, 6]
    assert all(line[:2] == "20" and line[10] == " " for line in (path / "running_log.txt").read_text().splitlines())
    assert "eval_loss" in json.loads((path / "all_results.json").read_text())

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        before = model(ids).logits
        after = PeftModel.from_pretrained(model, path)(ids).logits
    assert not torch.equal(before, after)


@pytest.mark.parametrize("change", [{}, {"packing": True, "per_device_train_batch_size": 1}], ids=["padded", "packed"])
def test_same_config_and_seed_same_losses(workspace, config, tmp_path, change):
    file = write(tmp_path, config | change | {"max_steps": 3, "lora_dropout": 0.1})
    losses = []
    for _ in range(2):
        assert workbench(workspace, "train", file).returncode == 0
    for path in workspace.runs.iterdir():
        losses.append([row["loss"] for row in rows_of(path)])
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_options_have_their_effect(workspace, config, tmp_path):
    """Every kind of switch at once: what the article's command names and more; each leaves its trace."""
    values = config | {
        "fp16": True, "max_samples": 8, "plot_loss": False, "lora_target": "q_proj,v_proj", "lora_alpha": 16, "template": "deepseek",
        "flash_attn": "eager", "rope_scaling": "linear", "rope_factor": 4, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 2,
        "optim": "adamw_torch_fused", "neftune_noise_alpha": 5, "use_rslora": True, "save_strategy": "no", "num_train_epochs": 2.0,
        "max_steps": -1, "gradient_accumulation_steps": 2, "loraplus_lr_ratio": 4,
    }  # fmt: skip
    done = workbench(workspace, "train", write(tmp_path, values))
    assert done.returncode == 0, done.stdout + done.stderr
    path = only_run(workspace)
    adapter = json.loads((path / "adapter_config.json").read_text())
    assert sorted(adapter["target_modules"]) == ["q_proj", "v_proj"]
    assert adapter["lora_alpha"] == 16 and adapter["use_rslora"] is True
    assert not (path / "training_loss.png").exists() and not list(path.glob("checkpoint-*"))
    rows = rows_of(path)
    assert rows[-1]["total_steps"] == 2  # 8 rows, batch 4, 2 accumulated, 2 epochs
    assert [row["lr"] for row in rows] == [0.0, 5e-4]
    log = (path / "running_log.txt").read_text()
    assert "RoPE scaling linear × 4" in log and "8 training rows" in log and "computes in float32" in log
    assert "User: " in (path / "chat_template.jinja").read_text()


def test_stop_saves_a_checkpoint_and_a_second_start_resumes(workspace, config, tmp_path):
    file = write(tmp_path, config | {"max_steps": 2000, "save_steps": 100_000})
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", "train", str(file), "--workspace", str(workspace.root)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 3/"):
            break
    path = only_run(workspace)
    stopping = workbench(workspace, "stop", path.name)
    assert "saves a checkpoint" in stopping.stdout
    process.stdout.read()
    assert process.wait(60) == 0
    state = state_of(path)
    step = state["step"]
    assert state["state"] == "stopped" and 3 <= step < 2000
    assert (path / f"checkpoint-{step}" / "trainer_state.json").is_file()
    assert "has ended already" in workbench(workspace, "stop", path.name).stdout

    (path / "run.yaml").write_text(yaml.safe_dump(config | {"max_steps": step + 2, "save_steps": 100_000}))
    again = workbench(workspace, "train", path)
    assert again.returncode == 0, again.stdout + again.stderr
    steps = [row["current_steps"] for row in rows_of(path)]
    assert steps == sorted(set(steps)) and steps[-1] == step + 2
    assert state_of(path)["state"] == "finished"


@pytest.mark.parametrize("victim", ["trainer", "supervisor"])
def test_a_killed_process_leaves_a_true_state_and_no_orphan(workspace, config, tmp_path, victim):
    import psutil

    file = write(tmp_path, config | {"max_steps": 5000})
    process = subprocess.Popen(
        [sys.executable, "-m", "workbench", "train", str(file), "--workspace", str(workspace.root)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step 2/"):
            break
    (trainer,) = psutil.Process(process.pid).children()
    os.kill(trainer.pid if victim == "trainer" else process.pid, signal.SIGKILL)
    process.stdout.read()
    process.wait(60)
    trainer.wait(60)
    path = only_run(workspace)
    listed = json.loads(workbench(workspace, "runs", "--json").stdout)[0]
    if victim == "trainer":
        assert process.returncode == 1 and listed["state"] == "failed" and "killed (SIGKILL)" in listed["reason"]
    else:  # the trainer noticed, saved and stopped
        assert listed["state"] == "stopped" and list(path.glob("checkpoint-*"))


BAD = [
    ({"model_name_or_path": "/no/such/model"}, "There is no model '/no/such/model'"),
    ({"model_name_or_path": "DATA"}, "holds no model"),
    ({"dataset": "smal"}, "Did you mean 'small'"),
    ({"dataset_dir": "/nowhere"}, "no dataset folder"),
    ({"adapter_name_or_path": "/nowhere"}, "holds no adapter"),
    ({"template": "nope"}, "There is no template"),
    ({"lora_rnk": 3}, "Did you mean 'lora_rank'"),
    ({"fp16": True, "bf16": True}, "both on"),
    ({"report_to": "swanlab"}, "pip install swanlab"),
    (
        {"lora_target": "q_proj,w_proj"},
        "w_proj matches no module of this model (tiny-llama). It has: down_proj, gate_proj",
    ),
]


@pytest.mark.parametrize(
    ("change", "words"), BAD, ids=[next(iter(change)) + str(i) for i, (change, _) in enumerate(BAD)]
)
def test_bad_input_is_one_sentence_and_nothing_is_left(workspace, config, tmp_path, tiny_data, change, words):
    change = {k: str(tiny_data) if v == "DATA" else v for k, v in change.items()}
    done = workbench(workspace, "train", write(tmp_path, config | change))
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr + done.stdout
    assert list(workspace.runs.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flash_attn": "fa2"}, "flash_attention_2 is not installed here"),
        ({"resume_from_checkpoint": "true"}, "no whole checkpoint yet"),
        ({"val_size": 1000}, "val_size 1000 leaves"),
    ],
)
def test_what_only_the_model_can_tell_ends_the_run_as_failed(workspace, config, tmp_path, change, words):
    done = workbench(workspace, "train", write(tmp_path, config | change))
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr + done.stdout
    state = state_of(only_run(workspace))
    assert state["state"] == "failed" and words in state["reason"]


def test_mixture_of_experts_with_everything(workspace, config, tmp_path, tiny_moe):
    """4-bit experts, LoRA on them, the balance loss, packing: one run, whose adapter plain PEFT loads."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    values = config | {
        "model_name_or_path": str(tiny_moe), "lora_target": "all", "moe_aux_loss_coef": 0.01, "packing": True,
        "per_device_train_batch_size": 1, "max_steps": 4, "save_steps": 2, "gradient_accumulation_steps": 2,
    }  # fmt: skip
    done = workbench(workspace, "train", write(tmp_path, values))
    assert done.returncode == 0, done.stdout + done.stderr
    path = only_run(workspace)
    rows = rows_of(path)
    assert all(0.9 < row["aux_loss"] < 4 for row in rows if "loss" in row)
    base = AutoModelForCausalLM.from_pretrained(tiny_moe, dtype=torch.float32)
    ids = torch.arange(4, 40)[None]
    with torch.no_grad():
        before = base(ids).logits
        tuned = PeftModel.from_pretrained(base, path)
        assert any("experts" in name for name, _ in tuned.named_parameters() if "lora_" in name)
        assert (tuned(ids).logits - before).abs().max() > 1e-4


def test_balance_loss_is_for_mixtures_only(workspace, config, tmp_path):
    done = workbench(workspace, "train", write(tmp_path, config | {"moe_aux_loss_coef": 0.01}))
    assert done.returncode == 2 and "this model (llama) has no routers to balance" in done.stderr


def test_attention_falls_back_only_when_told(workspace, config, tmp_path):
    done = workbench(
        workspace, "train", write(tmp_path, config | {"flash_attn": "fa3", "attn_fallback": True, "max_steps": 1})
    )
    assert done.returncode == 0 and "using sdpa instead" in done.stdout


def test_a_broken_row_is_named(workspace, config, tmp_path, tiny_data):
    with open(tiny_data / "small.jsonl", "w") as file:
        file.write('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n')
    (tiny_data / "dataset_info.json").write_text(json.dumps({"small": {"file_name": "small.jsonl"}}))
    done = workbench(workspace, "train", write(tmp_path, config))
    assert done.returncode == 2 and "small.jsonl:2: the field 'output' is missing" in done.stderr
    assert "skip_broken_rows: true" in done.stderr


def test_broken_rows_behind_the_first_ones_stop_a_run_unless_skipped(workspace, config, tmp_path, tiny_data):
    """Interleaved with another dataset, too; what was tokenized is taken from the cache by the second run."""
    good = [json.dumps({"prompt": f"Question {i}?", "completion": f"Answer {i}."}) for i in range(1100)]
    (tiny_data / "mixed.jsonl").write_text("\n".join([*good, "{broken", "{}"]))
    (tiny_data / "dataset_info.json").write_text(
        json.dumps({"mixed": {"file_name": "mixed.jsonl"}, "small": {"file_name": "small.json", "num_samples": 30}})
    )
    both = {"dataset": "mixed,small", "mix_strategy": "interleave_once", "interleave_probs": "0.5,0.5", "max_steps": 1}
    values = config | both | {"preprocessing_num_workers": 1}
    done = workbench(workspace, "train", write(tmp_path, values))
    assert done.returncode == 2 and "mixed has 2 broken rows of 1,102" in done.stdout + done.stderr
    assert "mixed.jsonl:1101: not valid JSON" in done.stdout + done.stderr
    (first,) = workspace.runs.iterdir()
    made = {p: p.stat().st_mtime_ns for p in (workspace.cache / "tokens").glob("*/rows.arrow")}
    done = workbench(workspace, "train", write(tmp_path, values | {"skip_broken_rows": True}))
    assert done.returncode == 0, done.stdout + done.stderr
    (second,) = set(workspace.runs.iterdir()) - {first}
    log = (second / "running_log.txt").read_text()
    assert "mixed: 2 broken rows of 1,102 are skipped" in log and "1,130 training rows" in log
    assert state_of(second)["skipped_rows"] == 2
    assert json.loads((second / "data.json").read_text())["mixed"]["broken"] == 2
    now = {p: p.stat().st_mtime_ns for p in (workspace.cache / "tokens").glob("*/rows.arrow")}
    assert made.items() <= now.items() and len(now) == 2


def test_continue_an_adapter(workspace, config, tmp_path):
    assert workbench(workspace, "train", write(tmp_path, config | {"max_steps": 2})).returncode == 0
    first = only_run(workspace)

    done = workbench(workspace, "train", write(tmp_path, config | {"max_steps": 2, "adapter_name_or_path": first.name}))
    assert done.returncode == 0, done.stdout + done.stderr
    (second,) = set(workspace.runs.iterdir()) - {first}
    assert json.loads((second / "adapter_config.json").read_text())["r"] == 4


@pytest.mark.parametrize("name", ["yaml", "json"])
def test_import_command_reads_files(workspace, tmp_path, name):
    file = tmp_path / f"config.{name}"
    file.write_text("model_name_or_path: a/b\nnope: 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "workbench", "import", str(file)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout == "model_name_or_path: a/b\n" and "Not taken over: nope" in done.stderr


@pytest.mark.parametrize("size", [1, 7])
def test_the_evaluation_loss_is_the_mean_over_trained_tokens(workspace, config, tiny_model, tiny_data, tmp_path, size):
    """Rows of very different lengths; the right value from the base model alone, as one step changes next to nothing."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from workbench.data.encode import IGNORE, Encoder

    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "small.json").write_text((tiny_data / "small.json").read_text())
    held = [{"instruction": "Q" * n, "output": "answer " * n} for n in (1, 9, 2, 12, 1, 3, 10, 1)]
    (folder / "held.json").write_text(json.dumps(held))
    entries = {name: {"file_name": f"{name}.json"} for name in ("small", "held")}
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    values = config | {
        "dataset_dir": str(folder), "eval_dataset": "held", "eval_strategy": "steps", "eval_steps": 1, "max_steps": 1,
        "learning_rate": 1e-9, "quantization_bit": None, "per_device_eval_batch_size": size,
    }  # fmt: skip
    done = workbench(workspace, "train", write(tmp_path, values))
    assert done.returncode == 0, done.stderr
    (loss,) = [row["eval_loss"] for row in rows_of(only_run(workspace)) if "eval_loss" in row]

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    encoder, total, tokens = Encoder(AutoTokenizer.from_pretrained(tiny_model), cutoff_len=128), 0.0, 0
    for row in held:
        turns = [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        encoded = encoder.encode(turns)
        count = sum(label != IGNORE for label in encoded.labels)
        with torch.no_grad():
            out = model(torch.tensor([encoded.input_ids]), labels=torch.tensor([encoded.labels]))
        total, tokens = total + float(out.loss) * count, tokens + count
    assert abs(loss - total / tokens) < 2e-4


@pytest.mark.parametrize("model", ["tiny_model", "tiny_moe"])
def test_weights_in_host_memory_train_the_same_adapter(model, workspace, config, tmp_path, request):
    from safetensors.torch import load_file

    values = config | {"model_name_or_path": str(request.getfixturevalue(model)), "lora_target": "all"}
    found = []
    for place in ("card", "host"):
        folder = f"runs/{place}"
        done = workbench(
            workspace, "train", write(tmp_path, values | {"output_dir": folder}), "--set", f"weights_on={place}"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        path = workspace.root / folder
        found.append(([row["loss"] for row in rows_of(path) if "loss" in row], path))
        log = (path / "running_log.txt").read_text()
        assert ("are in host memory; " in log and "GB/s" in log) == (place == "host")
        warned = [message.get("code") for message in state_of(path).get("messages", {}).values()]
        assert ("weights_from_host" in warned) == (place == "host")
    assert found[0][0] == found[1][0] and len(found[0][0]) == 6
    ours, theirs = (load_file(path / "adapter_model.safetensors") for _, path in found)
    assert ours.keys() == theirs.keys() and all((ours[key] - theirs[key]).abs().max() < 1e-6 for key in ours)


def test_weights_on_host_with_what_it_does_not_go_with_is_one_sentence(workspace, config, tmp_path):
    done = workbench(workspace, "train", write(tmp_path, config), "--set", "weights_on=host", "--set", "use_dora=true")
    assert done.returncode == 2 and "weights_on: host does not work with use_dora" in done.stdout + done.stderr
    assert not list(workspace.runs.iterdir())
