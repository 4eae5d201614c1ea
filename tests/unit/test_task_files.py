"""Tasks of lm-evaluation-harness: read as data; what would run code, or reach for a hub, is refused in a sentence."""

import pytest

from workbench.errors import UserError
from workbench.evaluation import harness
from workbench.evaluation.harness import Evaluation, keep, metrics, read
from workbench.evaluation.tasks import problem_of, read_task
from workbench.storage.workspace import Workspace

TASK = """task: tiny
dataset_path: json
dataset_kwargs:
  data_files: {test: rows.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_target: 0
metric_list:
  - metric: acc
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"q": "a"}\n')
    return tmp_path


def written(folder, text: str, name: str = "t.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def refused(name: str, workspace, **options) -> str:
    with pytest.raises(UserError) as error:
        read_task(name, workspace, **options)
    assert "\n" not in str(error.value)
    return error.value.message.code


def test_a_task_is_read_with_its_files_beside_it(folder, workspace):
    task = read_task(written(folder, TASK), workspace)
    assert (task.name, task.asks_chances) == ("tiny", True)
    assert task.values["dataset_kwargs"]["data_files"] == {"test": str(folder / "rows.jsonl")}
    assert not read_task(written(folder, TASK.replace("multiple_choice", "generate_until")), workspace).asks_chances


def test_included_files_are_read_and_looked_through(folder, workspace):
    written(folder, TASK, "base.yaml")
    task = read_task(written(folder, "include: base.yaml\ntask: other\n"), workspace)
    assert (task.name, task.values["doc_to_text"]) == ("other", "{{q}}")
    written(folder, TASK + "process_docs: !function utils.f\n", "base.yaml")
    assert refused(str(folder / "t.yaml"), workspace) == "task_function"
    written(folder, "include: t.yaml\n", "base.yaml")
    assert refused(str(folder / "t.yaml"), workspace) == "task_includes"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (("doc_to_target: 0", "doc_to_target: !function utils.f"), "task_function"),
        (("doc_to_target: 0", "doc_to_target: !!python/object/apply:os.system [ls]"), "task_tag"),
        (("test_split: test", "class: !function task.Own"), "task_function"),
        (("test_split: test", "unsafe_code: true"), "task_code"),
        (("test_split: test", "use_prompt: promptsource:*"), "task_code"),
        (("test_split: test", "custom_dataset: x"), "task_code"),
        (("metric: acc", "metric: ./evil"), "task_metric"),
        (("metric: acc", "metric: acc\n    hf_evaluate: true"), "task_metric"),
        (("dataset_path: json", "dataset_path: Rowan/hellaswag"), "task_hub"),
        (("dataset_path: json", "dataset_path: pandas"), "task_hub"),
        (("dataset_path: json", "dataset_path: ./loader.py"), "task_hub"),
        (("{test: rows.jsonl}", "https://example.com/x.jsonl"), "task_remote"),
        (("{test: rows.jsonl}", "hf://datasets/x/y"), "task_remote"),
        (("{test: rows.jsonl}", "gone.jsonl"), "task_file_missing"),
        (("  data_files: {test: rows.jsonl}", "  trust_remote_code: true\n  data_files: rows.jsonl"), "task_dataset_option"),
        (("dataset_kwargs:\n  data_files: {test: rows.jsonl}\n", ""), "task_no_files"),
        (("task: tiny", "group: g\ntask: [a, b]"), "task_group"),
        (("task: tiny\n", ""), "task_no_name"),
        (("task: tiny", "task: ["), "not_yaml"),
    ],
)  # fmt: skip
def test_what_a_task_may_not_do(folder, workspace, change, code):
    found = refused(written(folder, TASK.replace(*change)), workspace)
    assert found == code or code == "not_yaml"


def test_python_and_other_files_are_no_tasks(folder, workspace):
    assert refused(written(folder, "import os", "t.py"), workspace) == "task_python"
    assert refused(written(folder, "import os", "t.py"), workspace, trust=True) == "task_python"
    assert refused("hellaswag", workspace) == "task_not_yaml"
    assert refused(str(folder / "gone.yaml"), workspace) == "file_unreadable_name"


def test_a_page_reads_only_its_own_folders(folder, tmp_path):
    inside = Workspace(tmp_path / "w", confined=True).create()
    assert refused(written(folder, TASK), inside) == "path_outside"
    mine = inside.root / "tasks"
    mine.mkdir()
    written(mine, TASK.replace("rows.jsonl", str(folder / "rows.jsonl")))
    assert refused(str(mine / "t.yaml"), inside) == "path_outside"


def test_numbers_of_a_result_by_their_names():
    given = {
        "alias": "t",
        "acc,none": 0.5,
        "acc_stderr,none": "N/A",
        "exact_match,strict-match": 1,
        "f1,none": float("nan"),
    }
    assert metrics(given) == {"acc": 0.5, "exact_match,strict-match": 1.0}


def test_results_are_kept_and_the_last_of_the_same_stays(workspace):
    for acc, limit in ((0.1, None), (0.2, 5), (0.3, None)):
        file = keep(Evaluation("t", "m", metrics={"acc": acc}, limit=limit), workspace)
    assert [(one.limit, one.metrics["acc"]) for one in read(file)] == [(5, 0.2), (None, 0.3)]
    assert file == workspace.root / "predictions" / "m" / "evaluations.json"
    file.write_text(
        '{"evaluations": [7, {"task": "t"}, {"task": "t", "model": "m", "limit": []}, '
        '{"task": "t", "model": "m", "metrics": {"f1": 1}}]}'
    )
    assert [one.metrics for one in read(file)] == [{"f1": 1}]
    file.write_text("[")
    assert read(file) == []


def test_a_missing_harness_is_one_sentence(monkeypatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "lm_eval\[api\]"'):
        harness.check_installed()


def test_a_hub_that_cannot_be_reached_is_said_so():
    assert problem_of(ConnectionError("Couldn't reach 'x' on the Hub (OfflineModeIsEnabled)")).code == "task_no_network"
    assert problem_of(ValueError("no\nmore")) == "ValueError: no"


@pytest.mark.parametrize("trust", [False, True])
def test_a_task_nested_without_end_is_told_at_once(folder, workspace, trust):
    """A parser that looks for tags takes minutes for this one."""
    name = written(folder, "task: " + "[" * 200_000 + "!function os.system")
    with pytest.raises(UserError, match="nested more than 100 deep"):
        read_task(name, workspace, trust=trust)
