"""Files that are broken, whatever their bytes: each is told as unreadable, and nothing else stops working."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.chat import conversations, corrections
from workbench.chat.session import Session
from workbench.config.run_config import read_yaml
from workbench.data.registry import read_registry
from workbench.errors import UserError
from workbench.evaluation.results import ASKED, ROWS, TOTALS, Prediction, compared
from workbench.evaluation.tasks import read_task
from workbench.models.locate import check_folder, locate_adapter
from workbench.runs.metrics import MetricsReader, summary
from workbench.runs.run import Run, active_runs, delete_run, is_whole, list_states, run_named
from workbench.storage import files
from workbench.storage.workspace import Workspace
from workbench.train import devices, queue
from workbench.ui import monitor
from workbench.ui.tabs.chat.history import History
from workbench.ui.tabs.evaluate import view as predictions
from workbench.ui.tabs.runs import view
from workbench.uncertainty import probes

DEEP = [
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"state": ' + "[" * 500 + "]" * 500 + "}",
    "- " * 50_000,
    "? " * 50_000,
    "{a: " * 50_000,
]
ODD = ["", "\x00", "null", "[]", "3", '"x"', "{}", '{"state": null}', '{"state": "running", "pid": -1}', '{"state": "running", "pid": 99999999999999999999}',
       '{"state": "running", "pid": 1, "step": 1e999}', '{"state": "finished", "step": NaN}', '{"state": "running", "total_steps": -3, "step": 5, "created": 1}',
       '{"title": ["a"], "note": {"b": 1}}', '{"title": "x", "parent": "../.."}', "a: &x [1]\nb: [*x, *x]", "dataset: [[[1]]]", "1: 2", "{1: {2: 3}}",
       '{"checkpoint": 1}', "model_name_or_path: {a: b}", "devices: [1]", "﻿{}", '{"columns": null}', '{"columns": [[{"content": "x"}]]}',
       '{"current_steps": 1, "loss": "high", "elapsed_seconds": "x", "throughput": [1], "total_steps": {}}', '{"current_steps": 1e300, "loss": 1}',
       '{"prompt": 1, "current_steps": [], "answer": null}', '{"prompt": "p", "current_steps": 1, "answer": {}}']  # fmt: skip
RUN_FILES = (
    "state.json",
    "meta.json",
    "run.yaml",
    "trainer_log.jsonl",
    "samples.jsonl",
    "running_log.txt",
    "checkpoint-5/files.json",
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "state",
                    "pid",
                    "step",
                    "total_steps",
                    "title",
                    "parent",
                    "note",
                    "columns",
                    "role",
                    "content",
                    "tokens",
                    "logprob",
                    "branches",
                    "branch",
                    "after",
                    "loss",
                    "eval_loss",
                    "current_steps",
                    "elapsed_time",
                    "elapsed_seconds",
                    "lr",
                    "id",
                    "models",
                    "file_name",
                    "columns",
                    "top_logprobs",
                    "bytes",
                    "calls",
                    "difference",
                    "samples",
                    "system",
                    "reason",
                    "created",
                    "ended",
                    "position",
                    "devices",
                    "resume",
                    "model_name_or_path",
                    "dataset",
                    "results",
                    "set",
                    "time",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
contents = (
    st.binary(max_size=60)
    | st.sampled_from([text.encode() for text in (*DEEP, *ODD)])
    | json_values.map(lambda value: json.dumps(value).encode())
)
FEW = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def look_at_everything(workspace: Workspace) -> None:
    """What the page's lists, monitor and queue do, every second."""
    for item in list_states(workspace):
        run = item.run
        for lang in ("en", "zh"):
            assert monitor.status_html(run, lang) and monitor.chart_json(run, lang, True) is not None
        monitor.log_html(run)
        monitor.change_token(run, "en", False)
        view.checkpoints_html(run, "en")
        view.samples_html(run, "en")
        view.differences_html([("a", run.config_values()), ("b", {})], "en")
        run.checkpoints(), run.notes(), run.problems(), run_named(workspace, run.id)
    for sort in view.SORTS:
        for row in view.summaries(workspace, "x y", ["lost"], sort) + view.summaries(workspace, sort=sort):
            assert all(isinstance(cell, str) for cell in row.cells("zh"))
    view.runs_token(workspace)
    queue.queue(workspace), devices.busy_slots(workspace), active_runs(workspace)


def broken_run(workspace: Workspace, name: str, content: bytes) -> Run:
    run = Run(workspace.runs / "20260101-000000-broken")
    (run.path / "checkpoint-5").mkdir(parents=True, exist_ok=True)
    for other in RUN_FILES:
        (run.path / other).unlink(missing_ok=True)
    (run.path / "run.yaml").write_text("model_name_or_path: m\ndataset: d\n")
    (run.path / name).write_bytes(content)
    return run


@pytest.mark.parametrize("name", RUN_FILES)
@pytest.mark.parametrize("content", [*DEEP, *ODD], ids=range(len(DEEP) + len(ODD)))
def test_a_run_with_one_broken_file(workspace, name, content):
    broken_run(workspace, name, content.encode())
    look_at_everything(workspace)


@FEW
@given(name=st.sampled_from(RUN_FILES), content=contents)
def test_a_run_with_any_bytes_in_a_file(tmp_path_factory, name, content):
    workspace = Workspace(tmp_path_factory.mktemp("f")).create()
    run = broken_run(workspace, name, content)
    look_at_everything(workspace)
    is_whole(run.path / "checkpoint-5")
    if not run.state().active:
        delete_run(run)
        assert not list_states(workspace)


def test_a_broken_run_says_why_and_leaves_the_others(workspace):
    broken_run(workspace, "state.json", DEEP[0].encode())
    good = Run(workspace.runs / "20260102-000000-good")
    good.path.mkdir()
    good.begin()
    states = {item.run.id: item.state for item in list_states(workspace)}
    assert states[good.id].state == "queued"
    broken = states["20260101-000000-broken"]
    assert broken.state == "lost" and "nested more than 100 deep" in broken.reason
    run = broken_run(workspace, "run.yaml", DEEP[3].encode())
    assert "run.yaml cannot be read: it is nested more than 100 deep" in monitor.status_html(run, "en")


@pytest.mark.parametrize("content", [*DEEP, *ODD], ids=range(len(DEEP) + len(ODD)))
def test_a_broken_conversation_is_listed_with_the_reason(workspace, content):
    fine = conversations.Conversation("20260101-aaaaaa", columns=[[{"role": "user", "content": "Hello"}]], models=["m"])
    conversations.save(workspace, fine)
    (workspace.conversations / "20260101-bbbbbb.json").write_text(content)
    history = History(workspace)
    assert (
        next(id_ for _, id_ in history.choices()) == fine.id
        and ("⚠ 20260101-bbbbbb", "20260101-bbbbbb") in history.choices()
    )
    assert [id_ for _, id_ in history.choices("hello")] == [fine.id]
    with pytest.raises(UserError, match="cannot be read") as error:
        conversations.load(workspace, "20260101-bbbbbb")
    assert len(str(error.value)) < 400
    assert conversations.unreadable(workspace)[0].problem == str(error.value)


@FEW
@given(content=contents)
def test_any_conversation_opens_or_says_why(tmp_path_factory, content):
    from workbench.chat import branches
    from workbench.ui.tabs.chat.examine import Examine

    workspace = Workspace(tmp_path_factory.mktemp("f")).create()
    (workspace.conversations / "20260101-bbbbbb.json").write_bytes(content)
    try:
        conversation = conversations.load(workspace, "20260101-bbbbbb")
    except UserError:
        return
    session = Session.opened(conversation)
    session.shown()
    branches.settle(session)
    Examine(None, None).look(session, None)
    conversations.as_jsonl(conversation), conversations.as_markdown(conversation), conversations.search(workspace, "x")


def test_conversations_that_nearly_fit(workspace):
    message = {"role": "assistant", "content": "x"}
    for wrong in (
        {"role": "root"},
        {"content": None},
        {"tokens": [{"logprob": "x"}]},
        {"tokens": [{"top_logprobs": [{"token": "a"}]}]},
        {"tokens": [{"top_logprobs": [{"logprob": 0.0, "bytes": [999]}]}]},
        {"branches": [{"content": "a"}], "branch": 3},
        {"branches": [{}]},
        {"samples": [1]},
        {"calls": ["x"]},
        {"difference": [[]]},
        {"system": [{}]},
        {"tokens": [{"logprob": float("nan")}]},
    ):
        (workspace.conversations / "20260101-bbbbbb.json").write_text(
            json.dumps({"id": "20260101-bbbbbb", "columns": [[message | wrong]]})
        )
        with pytest.raises(UserError, match="cannot be read"):
            conversations.load(workspace, "20260101-bbbbbb")


@FEW
@given(content=contents)
def test_other_readers(tmp_path_factory, content):
    workspace = Workspace(tmp_path_factory.mktemp("f")).create()
    for path in (
        workspace.corrections / "corrections.jsonl",
        workspace.corrections / "votes.jsonl",
        workspace.uploads / "dataset_info.json",
        workspace.root / "probes" / "m-abilities.json",
        workspace.root / "probes" / "set.jsonl",
        workspace.root / "x.yaml",
        workspace.models / "m" / "config.json",
        workspace.models / "m" / "tokenizer.json",
        workspace.models / "a" / "adapter_config.json",
        workspace.models / "a" / "adapter_model.safetensors",
        workspace.root / "log.jsonl",
        *(workspace.root / "predictions" / "m" / "d" / name for name in (ROWS, TOTALS, ASKED)),
        workspace.root / "predictions" / "m" / "evaluations.json",
        workspace.root / "tasks" / "t.yaml",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (
        corrections.rows(workspace),
        corrections.votes(workspace),
        probes.kept("abilities", "m", workspace),
        workspace.model_folders(),
    )
    reader = MetricsReader(workspace.root / "log.jsonl")
    reader.update(), summary(workspace.root / "log.jsonl")
    prediction = Prediction(workspace.root / "predictions" / "m" / "d")
    compared(prediction, prediction), predictions.choices(workspace), predictions.token(workspace)
    predictions.totals_html({"x": prediction}, "en")
    predictions.evaluations_html(predictions.evaluations(workspace), "en")
    for read in (
        lambda: read_registry(workspace.uploads, workspace),
        lambda: probes.read_set("set", workspace),
        lambda: read_yaml(workspace.root / "x.yaml"),
        lambda: read_task(str(workspace.root / "tasks" / "t.yaml"), workspace),
        lambda: check_folder(workspace.models / "m"),
        lambda: locate_adapter(str(workspace.models / "a"), workspace),
        lambda: files.read_json(workspace.root / "x.yaml"),
        lambda: files.read_text(workspace.root / "x.yaml"),
    ):
        try:
            read()
        except UserError as error:
            assert str(error) and len(str(error)) < 1000


def test_corrections_that_cannot_be_read_are_not_overwritten(workspace):
    (workspace.corrections / "corrections.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        corrections.correct(workspace, [{"role": "user", "content": "q"}], "a", "b")
    assert (workspace.corrections / "corrections.jsonl").read_bytes() == b"\xff\xfe"


@pytest.mark.parametrize(
    "text", ["a: &x [1, 2]\nb: [*x, *x]", "x: " + "[" * 1000, "- " * 5000, "a: " + "x" * (2 << 20)]
)
def test_pasted_yaml_that_would_blow_up(text):
    from workbench.config.llamafactory import import_text

    with pytest.raises(UserError) as error:
        import_text(text)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    "values", [{"lora_rank": {"a": [1] * 100_000}}, {"lora_rank": "x" * 100_000}, {"x" * 100_000: 1}]
)
def test_a_wrong_value_is_shown_short(values):
    from workbench.config.run_config import validated

    with pytest.raises(UserError) as error:
        validated({"model_name_or_path": "m", "dataset": "d"} | values)
    assert len(str(error.value)) < 1000


def test_predictions_that_nearly_fit(workspace):
    """Values of other kinds are left out, or shown; none takes the view down."""
    prediction = Prediction(workspace.root / "predictions" / "m" / "d")
    prediction.path.mkdir(parents=True)
    good = {"prompt": "p", "predict": "a", "label": "b", "row": 1, "rouge-l": 1.0, "exact_match": 0.0}
    for wrong in (
        {},
        {"rouge-l": "x"},
        {"exact_match": None},
        {"row": True},
        {"rouge-l": 10**400},
        {"predict": []},
        {"tokens": {}},
    ):
        (prediction.path / ROWS).write_text(json.dumps(good | wrong) + "\n")
        (prediction.path / TOTALS).write_text(json.dumps({"predict_rouge-l": next(iter(wrong.values()), 1)}))
        for asked in (
            {"model": "m", "dataset": "d"},
            {"model": []},
            {"model": "m", "max_samples": "x"},
            {"model": "m", "loading": 7},
        ):
            (prediction.path / ASKED).write_text(json.dumps(asked))
            pairs = compared(prediction, prediction)
            predictions.pairs_html(pairs, ("a", "b"), "en"), predictions.totals_html({"x": prediction}, "zh")
            predictions.choices(workspace)
