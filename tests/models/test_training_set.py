"""What a run reads and what it says of it."""

import json

from workbench.config.run_config import validated
from workbench.data.training_set import load_data


def log_of(workspace, tokenizer, folder, run, **values) -> list[str]:
    config = validated(
        {"model_name_or_path": "m", "dataset": "d", "dataset_dir": str(folder), "template": "chatml"} | values
    )
    lines: list[str] = []
    load_data(config, workspace, tokenizer, lambda *_: None, log=lines.append, folder=run)
    return lines


def data_folder(tmp_path, rows: list[dict]):
    folder = tmp_path / "rows"
    folder.mkdir(exist_ok=True)
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "dataset_info.json").write_text(json.dumps({"d": {"file_name": "d.jsonl"}}))
    return folder


def test_a_run_that_goes_on_with_changed_data_says_so(workspace, tokenizer, tmp_path):
    rows = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(4)]
    folder, run = data_folder(tmp_path, rows), tmp_path / "run"
    run.mkdir()
    assert not any("has changed" in line for line in log_of(workspace, tokenizer, folder, run))
    assert not any("has changed" in line for line in log_of(workspace, tokenizer, folder, run))
    # other settings are no other data
    assert not any("has changed" in line for line in log_of(workspace, tokenizer, folder, run, cutoff_len=64))
    data_folder(tmp_path, rows[:3])
    (warning,) = [line for line in log_of(workspace, tokenizer, folder, run) if "has changed" in line]
    assert warning.startswith("Warning: d has changed since this run read it last.")
    (run / "data.json").write_text("{broken")  # of a full disk, say
    assert not any("has changed" in line for line in log_of(workspace, tokenizer, folder, run))


def test_what_the_template_leaves_out_is_counted_in_the_log(workspace, tokenizer, tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "because"}]
    rows = [{"messages": turns}, {"messages": [{**turn, "reasoning_content": ""} for turn in turns]}]
    folder = data_folder(tmp_path, rows)
    (line,) = [line for line in log_of(workspace, tokenizer, folder, None) if "leaves out" in line]
    assert line.startswith("Warning: d: 1 rows of 2: the chat template leaves out thoughts")


def test_a_template_name_that_stands_for_the_models_own_is_named(workspace, tokenizer, tmp_path):
    folder = data_folder(tmp_path, [{"instruction": "q", "output": "a"}])
    lines = log_of(workspace, tokenizer, folder, None, template="baichuan2")
    assert lines[0] == "template baichuan2: the model's own chat template is used."
