"""A real run: its estimate is kept, the measured peak beside it, and the next estimate is corrected."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny import make_tiny_data
from workbench.config.run_config import validated
from workbench.runs.run import list_runs
from workbench.storage.workspace import Workspace
from workbench.train.estimates import history, record
from workbench.train.estimates.outlook import outlook
from workbench.ui.monitor import estimate_line

ROOT = Path(__file__).parents[2]


@pytest.mark.process
def test_a_run_keeps_its_estimate_and_what_was_measured(tiny_model, tmp_path):
    values = {
        "model_name_or_path": str(tiny_model), "dataset": "small", "max_steps": 2, "cutoff_len": 64,
        "dataset_dir": str(make_tiny_data(tmp_path / "data")), "logging_steps": 1, "save_strategy": "no",
        "plot_loss": False, "devices": "cpu",
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    command = [
        sys.executable,
        "-m",
        "workbench",
        "train",
        str(tmp_path / "run.yaml"),
        "--workspace",
        str(tmp_path / "w"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    workspace = Workspace(tmp_path / "w")
    (run,) = list_runs(workspace)
    kept = record.read(run)
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert kept["measured"] == max(row["peak_memory"] for row in rows)
    assert kept["estimate"] == pytest.approx(kept["measured"], rel=0.15)  # nearly all of it is the process itself
    (one,) = history.read(workspace)
    assert (one.run, one.device, one.measured) == (run.id, "CPU", kept["measured"])
    assert one.estimate <= kept["estimate"]  # rows are counted by then
    words = estimate_line(run, "en")
    assert f"measured {kept['measured']:.2f} GiB" in words and "of the estimate" in words
    again = outlook(validated(values), workspace)
    assert again.corrected_by == 1 and again.factor == pytest.approx(one.ratio)
    assert again.rows.source == "counted" and again.duration is not None and again.duration.measured == 1
