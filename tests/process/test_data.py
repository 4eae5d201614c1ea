"""The data commands, as processes."""

import json

import pytest

from tests.process.test_train import BASE, workbench
from workbench.config import validated
from workbench.train.data import load_data

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


@pytest.mark.parametrize("cutoff", [128, 60])
def test_preview_shows_what_the_trainers_rows_hold(workspace, tiny_model, tiny_data, tokenizer, cutoff):
    arguments = ["--model", tiny_model, "--dataset-dir", tiny_data, "--cutoff-len", cutoff, "--rows", 24, "--json"]
    done = workbench(workspace, "data", "preview", "small", *arguments)
    assert done.returncode == 0, done.stderr
    shown = [row for line in done.stdout.splitlines() for row in json.loads(line)["rows"]]
    values = BASE | {"model_name_or_path": str(tiny_model), "dataset_dir": str(tiny_data), "cutoff_len": cutoff}
    rows, _ = load_data(validated(values), workspace, tokenizer, lambda phase, share: None)
    assert [(r["input_ids"], r["labels"]) for r in shown] == [(r["input_ids"], r["labels"]) for r in rows]
    assert len(shown) == 24 and all(tokenizer.decode(r["input_ids"]) == r["text"] for r in shown)
