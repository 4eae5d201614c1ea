"""Predictions and evaluations as processes: killed and gone on with, behind a training, on an engine of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench.config.run_config import validated
from workbench.evaluation import harness
from workbench.evaluation.results import Prediction, compared
from workbench.runs import job
from workbench.runs.run import Run, create_run, list_runs
from workbench.runs.state import process_of
from workbench.storage.workspace import Workspace

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.process


def started(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "workbench", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def called(*arguments, code: int = 0) -> tuple[str, str]:
    process = started(*arguments)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors[-3000:]
    return out, errors


def wait_for(condition, process, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr and process.stderr.read()[-3000:]
        time.sleep(0.02)


def many(folder: Path, count: int) -> Path:
    file = folder / "many.jsonl"
    file.write_text(
        "".join(json.dumps({"instruction": f"Question {i}?", "output": f"{i}"}) + "\n" for i in range(count))
    )
    return file


def answering(model: Path, file: Path, tokens: int, out: Path, workspace: Path) -> list:
    """The arguments of a prediction."""
    places = ["--output", out, "--workspace", workspace]
    return ["predict", model, "--dataset", file, "--max-new-tokens", tokens, *places]


def test_killed_it_goes_on_where_it_was(tiny_model, tmp_path):
    """SIGKILL while rows are answered: the same command answers the others, and the first are as they were."""
    file, out = many(tmp_path, 400), tmp_path / "out"
    command = answering(tiny_model, file, 40, out, tmp_path / "w")
    process = started(*command)
    prediction = Prediction(out)
    wait_for(lambda: sum(1 for _ in prediction.rows()) >= 20, process)
    process.kill()
    process.communicate()
    first = {row["row"]: row for row in prediction.rows()}
    assert 20 <= len(first) < 400 and not prediction.done
    said, _ = called(*command)
    rows = {row["row"]: row for row in prediction.rows()}
    assert list(rows) == list(range(1, 401)) and all(rows[number] == row for number, row in first.items())
    assert prediction.totals()["predict_samples"] == 400 and "400 rows answered" in said


def test_ctrl_c_is_a_sentence_and_the_rest_can_be_answered(tiny_model, tmp_path):
    file, out = many(tmp_path, 1000), tmp_path / "out"
    command = answering(tiny_model, file, 100, out, tmp_path)
    for _ in range(2):  # it met the engine's thread in a step most of the times
        before = sum(1 for _ in Prediction(out).rows())
        # a shell starts what is in the background with SIGINT ignored, and children inherit that
        process = started(*command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        wait_for(lambda before=before: sum(1 for _ in Prediction(out).rows()) >= before + 3, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130 and "the same command goes on with the rest" in errors
        assert "terminate called" not in errors and "Traceback" not in errors
    assert not Prediction(out).done


def test_a_job_of_the_page_waits_for_the_device_of_a_run(tiny_model, tmp_path):
    """A run holds the device while another process lives; a run that is queued behind the job starts at its end."""
    space = Workspace(tmp_path / "w").create()
    holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run = create_run(space, validated({"model_name_or_path": str(tiny_model), "dataset": "d"}))
    run.update(state="running", devices="cpu", pid=holder.pid, pid_started=process_of(holder.pid))
    arguments = [tiny_model, "--dataset", many(tmp_path, 3), "--max-new-tokens", 4, "--workspace", space.root]
    directory = job.start_job(space, "predict", "it", "workbench", "predict", *arguments)
    deadline = time.monotonic() + 120
    while not directory.state().phase:
        assert directory.state().active and time.monotonic() < deadline, directory.log.read_text()
        time.sleep(0.05)
    assert directory.state().phase == f"waits for {run.id}" and not directory.state().devices
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    short = {"max_steps": 1, "save_strategy": "no", "plot_loss": False, "report_to": "none"}
    values = {"model_name_or_path": str(tiny_model), "dataset": str(tmp_path / "rows.jsonl")} | short
    behind = create_run(space, validated(values))
    holder.kill()
    holder.wait()
    run.update(state="stopped")
    while directory.state().active and time.monotonic() < deadline:
        begun, held = behind.state().state != "queued", directory.state().devices
        assert not (begun and held)
        time.sleep(0.05)
    assert directory.state().state == "finished" and "3 rows answered" in directory.state().reason
    while behind.state().active and time.monotonic() < deadline:
        time.sleep(0.05)
    assert behind.state().state == "finished", behind.log.read_text()


def test_a_run_trains_and_then_predicts_and_is_compared_with_its_base(tiny_model, tiny_data, tmp_path):
    """Stopped while it predicts it says so, and Resume goes on with the predictions alone."""
    space = tmp_path / "w"
    data = many(tiny_data, 300)
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model_name_or_path: {tiny_model}\ndataset: small\ndataset_dir: {tiny_data}\neval_dataset: {data}\nmax_steps: 2\n"
        "learning_rate: 0.05\ndo_predict: true\npredict_with_generate: true\nmax_new_tokens: 40\nsave_strategy: 'no'\n"
    )
    process = started("train", config, "--workspace", space)
    prediction = lambda: Prediction(list_runs(Workspace(space))[0].path)  # noqa: E731
    wait_for(lambda: list_runs(Workspace(space)) and sum(1 for _ in prediction().rows()) >= 10, process)
    (run,) = list_runs(Workspace(space))
    assert run.state().state == "running" and run.has_adapter
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    state = run.state()
    assert (state.state, state.reason.code, process.returncode) == ("stopped", "predict_stopped", 0), (
        run.log.read_text()[-3000:]
    )
    first = {row["row"]: row for row in prediction().rows()}
    assert 10 <= len(first) < 300
    stamp = (run.path / "adapter_model.safetensors").stat().st_mtime_ns

    called("train", run.path, "--workspace", space)
    assert (run.path / "adapter_model.safetensors").stat().st_mtime_ns == stamp, "it was trained again"
    rows = {row["row"]: row for row in prediction().rows()}
    assert list(rows) == list(range(1, 301)) and all(rows[number] == row for number, row in first.items())
    state = run.state()
    assert (state.state, state.reason.code) == ("finished", "predict_done")
    assert prediction().asked().adapter == run.id

    called("predict", tiny_model, "--dataset", data, "--max-new-tokens", 40, "--max-samples", 30, "--workspace", space)
    name = f"predictions/tiny-llama/{next((space / 'predictions' / 'tiny-llama').iterdir()).name}"
    out, _ = called("compare", name, run.id, "--json", "--workspace", space)
    found = json.loads(out)
    base = Prediction(space / name)
    assert sum(found["changes"][key] for key in ("better", "worse", "same")) == 30
    assert found["rows"] and len(found["rows"]) == min(20, sum(pair.differs for pair in compared(base, prediction())))
    shown, _ = called("compare", name, run.id, "--show", "all", "--limit", 2, "--workspace", space)
    assert "30 rows:" in shown.splitlines()[-1]


def test_a_run_that_only_predicts_fails_in_one_sentence(tiny_model, tmp_path):
    config = tmp_path / "run.yaml"
    file = tmp_path / "plain.jsonl"
    file.write_text('{"text": "Plain text."}\n')
    config.write_text(f"model_name_or_path: {tiny_model}\ndo_train: false\ndo_predict: true\neval_dataset: {file}\n")
    _, errors = called("train", config, "--workspace", tmp_path / "w", code=2)
    (run,) = list_runs(Workspace(tmp_path / "w"))
    state = run.state()
    assert (state.state, state.reason.code) == ("failed", "predict_none_askable")
    assert "Traceback" not in Run(run.path).log.read_text() and "Plain" not in errors


def test_errors_of_the_command_line_are_one_sentence(tiny_model, tmp_path):
    space = ("--workspace", tmp_path / "w")
    for arguments, words in (
        (("predict", "no-model", "--dataset", "abilities"), "no-model"),
        (("predict", tiny_model, "--dataset", "no-such"), "no-such"),
        (("predict", tiny_model, "--dataset", "abilities", "--set", "engine=vllm"), "own engine"),
        (("evaluate", tiny_model, "--task", "gone.yaml"), "gone.yaml"),
        (("compare", "a", "b"), "no predictions"),
        (("compare", "a", "b", "--sort", "x"), "--sort is one of"),
    ):
        _, errors = called(*arguments, *space, code=2)
        assert words in errors and len(errors.strip().splitlines()[-1].split(". ")) < 6 and "Traceback" not in errors


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A multiple-choice task and one of generation, with their rows beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"q": f"Question {i}?", "a": " yes", "b": " no", "t": i % 2} for i in range(3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = (
        "dataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\ndoc_to_text: '{{q}}'\n"
    )
    (folder / "choice.yaml").write_text(
        f"task: tiny_choice\n{common}output_type: multiple_choice\ndoc_to_choice: '{{{{[a, b]}}}}'\n"
        "doc_to_target: t\ntarget_delimiter: ''\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
        "metadata: {version: 1.5}\n"
    )
    (folder / "free.yaml").write_text(
        f"task: tiny_free\n{common}output_type: generate_until\ndoc_to_target: '{{{{a}}}}'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 6, do_sample: false}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    (folder / "evil.yaml").write_text(
        (folder / "choice.yaml").read_text().replace("'{{q}}'", "'{{ q.__class__.__mro__[1].__subclasses__() }}'")
    )
    return folder


def test_tasks_of_the_harness_on_an_engine_of_ours(tiny_model, tasks, tmp_path):
    """The accuracy is what transformers' own log-likelihoods say; nothing of a task's template is run."""
    pytest.importorskip("lm_eval")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    space = tmp_path / "w"
    files = [option for name in ("choice", "free") for option in ("--task", tasks / f"{name}.yaml")]
    out, _ = called("evaluate", tiny_model, *files, "--limit", 2, "--json", "--workspace", space)
    choice, free = json.loads(out)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)

    def chance(question: str, answer: str) -> float:
        before, ids = tokenizer(question)["input_ids"], tokenizer(question + answer)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(logits[place - 1, ids[place]].item() for place in range(len(before), len(ids)))

    # of the first row the first answer is right, of the second the other one
    right = sum((chance(f"Question {i}?", " yes") < chance(f"Question {i}?", " no")) == bool(i) for i in range(2))
    assert choice["metrics"]["acc"] == pytest.approx(right / 2)
    assert (choice["samples"], choice["limit"], choice["version"], choice["way"]) == (2, 2, "1.5", "completions")
    assert (free["task"], free["way"], free["metrics"]["exact_match"]) == ("tiny_free", "chat", 0.0)
    kept = harness.read(space / "predictions" / "tiny-llama" / "evaluations.json")
    assert [one.task for one in kept] == ["tiny_choice", "tiny_free"] and kept[0].lm_eval

    _, errors = called("evaluate", tiny_model, "--task", tasks / "evil.yaml", "--workspace", space, code=2)
    assert "SecurityError" in errors.splitlines()[-1] and "Traceback" not in errors


def test_no_process_is_left_behind(tiny_model, tasks, tmp_path):
    """Killed, an evaluation takes its engine with it."""
    pytest.importorskip("lm_eval")
    space = Workspace(tmp_path / "w").create()
    process = started("evaluate", tiny_model, "--task", tasks / "choice.yaml", "--workspace", space.root)
    engines = lambda: [json.loads(f.read_text()).get("pid") for f in space.engines.glob("*/state.json")]  # noqa: E731
    wait_for(lambda: any(engines()), process)
    (pid,) = engines()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists() or os.waitpid(pid, os.WNOHANG)
