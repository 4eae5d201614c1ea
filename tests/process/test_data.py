"""The data commands, as processes."""

import json

import pytest

from tests.process.test_train import BASE, workbench
from workbench.config.run_config import validated
from workbench.data.training_set import load_data

pytestmark = pytest.mark.process


def test_check_names_broken_rows_and_fails(workspace, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n{broken\n')
    done = workbench(workspace, "data", "check", file)
    assert done.returncode == 2
    assert done.stdout.splitlines()[0] == "rows.jsonl:2: missing: the field 'output' is missing."
    assert "rows.jsonl:3: json: not valid JSON" in done.stdout and "3 rows, 2 broken" in done.stdout
    found = json.loads(workbench(workspace, "data", "check", file, "--json").stdout)
    assert found["broken"] == 2 and [p["kind"] for p in found["problems"]] == ["missing", "json"]
    assert workbench(workspace, "data", "check", "abilities").returncode == 0


@pytest.mark.parametrize(("cutoff", "option"), [(128, {}), (60, {}), (128, {"train_on_prompt": True})])
def test_preview_shows_what_the_trainers_rows_hold(workspace, tiny_model, tiny_data, tokenizer, cutoff, option):
    arguments = ["--model", tiny_model, "--dataset-dir", tiny_data, "--cutoff-len", cutoff, "--rows", 24, "--json"]
    arguments += [part for name, value in option.items() for part in ("--set", f"{name}={value}")]
    done = workbench(workspace, "data", "preview", "small", *arguments)
    assert done.returncode == 0, done.stderr
    shown = [row for line in done.stdout.splitlines() for row in json.loads(line)["rows"]]
    values = (
        BASE | {"model_name_or_path": str(tiny_model), "dataset_dir": str(tiny_data), "cutoff_len": cutoff} | option
    )
    rows, _ = load_data(validated(values), workspace, tokenizer, lambda phase, share: None)
    assert [(r["input_ids"], r["labels"]) for r in shown] == [(r["input_ids"], r["labels"]) for r in rows]
    assert len(shown) == 24 and all(tokenizer.decode(r["input_ids"]) == r["text"] for r in shown)


def test_statistics_and_sequences_on_the_command_line(workspace, tiny_model, tiny_data):
    where = ["--dataset-dir", tiny_data]
    done = workbench(workspace, "data", "stats", "small", "--model", tiny_model, "--cutoff-len", 40, *where)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("24 rows, 0 broken; 24 training rows") and "24 sequences" in done.stdout
    found = json.loads(
        workbench(
            workspace, "data", "stats", "small", "--model", tiny_model, *where, "--set", "packing=true", "--json"
        ).stdout
    )
    assert found["sequences"] == 1 and found["seconds"] is None
    config = workspace.root / "run.yaml"
    config.write_text(
        f"model_name_or_path: {tiny_model}\ndataset: small\ndataset_dir: {tiny_data}\npacking: true\ntemplate: auto\n"
    )
    done = workbench(workspace, "data", "sequences", config, "--rows", 1)
    assert done.returncode == 0, done.stderr
    assert "=== sequence 1 of 1" in done.stdout and "--- conversation 24" in done.stdout
    wrong = workbench(workspace, "data", "stats", "nothing", "--model", tiny_model, *where)
    assert wrong.returncode == 2 and "There is no dataset 'nothing'" in wrong.stderr


def test_the_time_of_an_epoch_comes_from_runs_of_the_same_model(workspace, tiny_model, tiny_data):
    for name, values, speeds in (
        ("a", {"quantization_bit": 4}, [100, 900]),
        ("b", {}, [400, 500, 600]),
        ("c", {"model_name_or_path": "other"}, [1]),
    ):
        run = workspace.runs / f"2026010{1 if name == 'a' else 2}-000000-{name}"
        run.mkdir()
        values = {"model_name_or_path": str(tiny_model), "dataset": "small"} | values
        (run / "run.yaml").write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
        lines = [
            {"current_steps": i, "total_steps": 9, "loss": 1.0, "throughput": speed}
            for i, speed in enumerate(speeds, 1)
        ]
        (run / "trainer_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "state.json").write_text(json.dumps({"state": "finished"}))
    arguments = ["small", "--model", tiny_model, "--dataset-dir", tiny_data, "--json"]
    found = json.loads(workbench(workspace, "data", "stats", *arguments).stdout)
    assert found["throughput"] == 500 and found["throughput_of"].endswith("-b")
    assert found["seconds"] == pytest.approx(found["tokens"] / 500)
    found = json.loads(workbench(workspace, "data", "stats", *arguments, "--set", "quantization_bit=4").stdout)
    assert found["throughput"] == 500 and found["throughput_of"].endswith("-a")  # the median of 100 and 900


def test_the_workspaces_datasets_on_the_command_line(workspace, tmp_path):
    file = tmp_path / "mine.jsonl"
    lines = [json.dumps({"instruction": f"q{i}", "output": f"a{i}"}) for i in range(10)]
    file.write_text("\n".join([*lines[:4], "{broken", *lines[4:]]))

    def data(*arguments, code: int = 0) -> str:
        done = workbench(workspace, "data", *arguments)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
        return (done.stdout if code == 0 else done.stderr).strip()

    assert data("add", file) == "mine" and file.is_file()
    assert data("add", file, "--name", "other") == "other"
    assert data("edit", "mine", 5) == "{broken"
    assert "Row 5 is not saved" in data("edit", "mine", 5, "--to", "{}", code=2)
    data("edit", "mine", 5, "--to", '{"instruction": "new", "output": "better"}')
    assert data("drop", "mine", 1, 11) == "9 rows of mine are left."
    assert workbench(workspace, "data", "check", "mine").returncode == 0
    assert data("split", "mine", "--share", 2) == "mine-train: 7 rows. mine-eval: 2 rows."
    assert data("copy", "mine-eval") == "mine-eval-copy"
    assert data("layout", "mine", "--columns", '{"prompt": "output", "response": "instruction"}') == "alpaca"
    assert "--columns should be a JSON object" in data("layout", "mine", "--columns", "[", code=2)
    assert data("remove", "mine", "--yes") == "mine is removed."
    assert "not a dataset of the workspace" in data("drop", "abilities", 1, code=2)
    assert "There is no file" in data("add", tmp_path / "absent.jsonl", code=2)
    names = {entry["name"] for entry in json.loads(workbench(workspace, "datasets", "--json").stdout)}
    assert {"other", "mine-train", "mine-eval", "mine-eval-copy"} <= names and "mine" not in names
