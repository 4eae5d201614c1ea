"""The table of a run's files: in the docs as in the code, and enough to clear a folder."""

from pathlib import Path

from workbench.config.run_config import validated
from workbench.runs.files import is_run_file, run_files_table
from workbench.runs.run import Run, create_run, delete_run

ROOT = Path(__file__).parents[2]
CONFIG = {"model_name_or_path": "m", "dataset": "d", "output_dir": "saves/x"}
# a finished run's folder, listed from one (LoRA, samples, probes, TensorBoard, one resume)
FILES = [
    ".reserve", ".lock", "README.md", "adapter_config.json", "adapter_model.safetensors", "all_results.json", "chat_template.jinja", "data.json",
    "run.yaml", "run-until-20.yaml", "state.json", "meta.json", "tokenizer.json", "tokenizer_config.json", "trainer_log.jsonl", "trainer_state.json",
    "training_args.bin", "training_loss.png", "running_log.txt", "samples.jsonl", "checkpoint-20/trainer_state.json", "superseded/x/trainer_log.jsonl",
    "probes/abilities.json", "generated_predictions.jsonl", "predict_results.json", "predict.json", ".predict.lock",
    "predictions/small/predict.json", "evaluations.json", "runs/Nov25/events.out", ".saving/checkpoint-3/a",
]  # fmt: skip


def fill(folder: Path) -> None:
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    (folder / "my notes.txt").write_text("mine")


def test_the_docs_have_the_table():
    assert run_files_table() in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_deleting_a_run_in_a_folder_of_the_users_leaves_only_what_is_not_the_runs(workspace):
    run = create_run(workspace, validated(CONFIG), state="finished")
    folder = run.path.resolve()
    fill(folder)
    run.update(state="finished")
    delete_run(run)
    assert [p.name for p in folder.iterdir()] == ["my notes.txt"]


def test_overwriting_a_run_leaves_nothing_of_the_old_one(workspace):
    folder = create_run(workspace, validated(CONFIG)).path.resolve()
    fill(folder)
    Run(folder).update(state="finished")
    create_run(workspace, validated(CONFIG | {"overwrite_output_dir": True}))
    assert {p.name for p in folder.iterdir()} == {"my notes.txt", "run.yaml", "state.json", ".reserve"}


def test_what_is_not_a_runs_stays():
    assert not any(map(is_run_file, ["my notes.txt", "data", ".git", ".env", "readme.txt", "run.yml"]))
