"""The process that looks at data for the page: answers, errors, death, long jobs and their end."""

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from workbench.data import worker_client
from workbench.data.worker import Worker
from workbench.data.worker_client import DataWorker
from workbench.errors import UserError
from workbench.storage.workspace import PROJECT, Workspace

pytestmark = pytest.mark.process


def options(model: Path, folder: Path | str = PROJECT / "data", **values) -> dict:
    return {
        "model_name_or_path": str(model),
        "dataset": "small",
        "dataset_dir": str(folder),
        "template": "auto",
        **values,
    }


@pytest.fixture
def place(tmp_path, tiny_model, tiny_data):
    """A workspace that may read the tiny model and data."""
    return Workspace(tmp_path / "workspace", allowed=[tiny_model, tiny_data]).create()


@pytest.fixture
def inside(place, tiny_model, tiny_data):
    """Options whose paths lie in the workspace, as a page's must."""
    (place.models / "tiny").symlink_to(tiny_model)
    (place.root / "data").symlink_to(tiny_data)
    return options("tiny", "data")


def test_it_answers_again_and_again_without_torch(place, inside):
    worker = DataWorker(place)
    try:
        first = worker.ask("preview", dataset="small", config=inside, start=3, count=2)
        assert [row["row"] for row in first["rows"]] == [4, 5] and first["layout"] == "alpaca" and not first["problem"]
        process = worker.processes[-1]
        assert worker.ask("count", dataset="small", config=inside) == 24
        assert worker.ask("preview", dataset="small", config=inside, start=30, count=2)["rows"] == []
        assert "Question 8?" in worker.ask("row", dataset="small", config=inside, number=9)
        assert worker.processes[-1] is process
        libraries = {Path(m.path).name for m in psutil.Process(process.pid).memory_maps()}
        assert any("tokenizers" in name for name in libraries) and not any(
            name.startswith("libtorch") for name in libraries
        )
    finally:
        worker.end()


def test_folders_that_the_page_may_read_can_be_read(place, tiny_model, tiny_data):
    worker = DataWorker(place)
    try:
        assert worker.ask("preview", dataset="small", config=options(tiny_model, tiny_data), count=1)["rows"][0][
            "encoded"
        ]
    finally:
        worker.end()
    looking = DataWorker(Workspace(place.root, read_only=True))
    with pytest.raises(UserError, match="read-only"):
        asyncio.run(looking.change("change", dataset="abilities", config={}, row=1, before="", after=None))


def test_one_dataset_is_looked_at_under_options_for_several(place, inside):
    worker = DataWorker(place)
    several = inside | {"dataset": "small,small", "mix_strategy": "interleave_under", "interleave_probs": "0.5,0.5"}
    try:
        assert len(worker.ask("preview", dataset="small", config=several, count=2)["rows"]) == 2
        assert worker.ask("count", dataset="small", config={"dataset_dir": "data", "cutoff_len": "many"}) == 24
        assert worker.ask("check", dataset="small", config=several)["rows"] == 24
        unknown = worker.ask("check", dataset="small", config={"dataset_dir": "data"})
        assert unknown["rows"] == 24 and "model_name_or_path is empty" in unknown["untokenized"]
        assert worker.ask("stats", dataset="small", config=several)["training_rows"] == 24
        with pytest.raises(UserError, match="names 2 datasets"):
            worker.ask("count", dataset="small,small", config=several)
    finally:
        worker.end()


def test_no_way_leads_out_of_the_workspace(place, tmp_path, monkeypatch):
    outside = tmp_path / "outside"
    (outside / "secret").mkdir(parents=True)
    (outside / "secret" / "s.jsonl").write_text('{"instruction": "secret", "output": "x"}\n')
    (outside / "secret" / "dataset_info.json").write_text('{"s": {"file_name": "s.jsonl"}}')
    monkeypatch.chdir(outside)
    worker = Worker(place, lambda message: None)
    for name, folder in (
        ("secret/", None),
        ("./secret/", None),
        ("secret/s.jsonl", None),
        ("s", "secret"),
        ("s", "./secret"),
        ("s", str(outside / "secret")),
    ):
        with pytest.raises(UserError, match="is outside the workspace"):
            worker.preview(name, {"dataset_dir": folder} if folder else {}, tokens=False)


def test_what_is_wrong_is_a_sentence_and_it_goes_on(place, inside):
    worker = DataWorker(place)
    try:
        for op, args, words in (
            ("row", {"dataset": "small", "number": 99}, "small has no row 99"),
            ("row", {"dataset": "small", "number": 0}, "small has no row 0"),
            ("preview", {"dataset": "nothing"}, "There is no dataset 'nothing'"),
            ("preview", {"dataset": "/etc/passwd"}, "is outside the workspace"),
            ("preview", {"dataset": "../../x.jsonl"}, "is outside the workspace"),
            ("split", {"dataset": "small", "share": 2000}, "leaves nothing for one side"),
        ):
            with pytest.raises(UserError, match=words):
                worker.ask(op, config=inside, **args)
        for changes, words in (
            ({"cutoff_len": "many"}, "cutoff_len"),
            ({"dataset_dir": "/etc"}, "is outside the workspace"),
            ({"model_name_or_path": "/etc"}, "is outside the workspace"),
        ):
            with pytest.raises(UserError, match=words):
                worker.ask("check", dataset="small", config=inside | changes)
        shown = worker.ask("preview", dataset="small", config=inside | {"model_name_or_path": "no-such-model"}, count=1)
        assert "There is no model 'no-such-model'" in shown["problem"] and shown["rows"][0]["turns"]
        worker.processes[-1].kill()
        worker.processes[-1].wait()
        assert worker.ask("count", dataset="small", config=inside) == 24
    finally:
        worker.end()


def test_one_that_has_gone_to_sleep_is_started_anew(place, inside, monkeypatch):
    worker = DataWorker(place)
    arguments = worker_client._arguments
    monkeypatch.setattr(worker_client, "_arguments", lambda *given: [*arguments(*given), "--idle", "0.2"])
    try:
        for _ in range(2):
            assert worker.ask("count", dataset="small", config=inside) == 24
            assert worker.processes[-1].wait(20) == 0
    finally:
        worker.end()


def test_a_question_does_not_wait_for_good(place, inside, monkeypatch):
    monkeypatch.setattr(worker_client, "_PATIENCE", 0.2)
    worker = DataWorker(place)
    try:
        worker.ask("count", dataset="small", config=inside)
        psutil.Process(worker.processes[-1].pid).suspend()
        waiting = threading.Thread(target=lambda: worker.ask("count", dataset="small", config=inside))
        waiting.start()
        with pytest.raises(UserError, match="still being read for another question"):
            while True:  # the thread may not have asked yet
                (
                    worker.ask("count", dataset="small", config=inside)
                    if (lock := worker._asking.get("")) and lock.held.locked()
                    else None
                )
        psutil.Process(worker.processes[-1].pid).resume()
        waiting.join(20)
        assert not waiting.is_alive()
    finally:
        worker.end()


def test_a_death_in_the_middle_of_an_answer_is_a_sentence(place, inside):
    worker = DataWorker(place)
    try:
        worker.ask("count", dataset="small", config=inside)
        psutil.Process(worker.processes[-1].pid).suspend()  # it will not answer before it is killed
        threading.Timer(0.3, worker.processes[-1].kill).start()
        with pytest.raises(UserError, match="was killed"):
            worker.ask("count", dataset="small", config=inside)
        assert worker.ask("count", dataset="small", config=inside) == 24
    finally:
        worker.end()


def test_a_job_tells_its_progress_and_ends_with_its_listener(place, inside):
    with open(place.uploads / "big.jsonl", "w") as out:
        for number in range(10_000):
            out.write(json.dumps({"instruction": f"Question {number}?", "output": "word " * 100}) + "\n")
    (place.uploads / "dataset_info.json").write_text(json.dumps({"big": {"file_name": "big.jsonl"}}))
    worker = DataWorker(place)
    report = place.cache / "reports" / "big.jsonl"
    args = {"dataset": "big", "config": inside | {"cutoff_len": 64}, "report": str(report)}

    async def listen(until: int) -> list[dict]:
        found, job = [], worker.job("check", **args)
        async for answer in job:
            found.append(answer)
            if len(found) == until:
                break
        await job.aclose()
        return found

    told = asyncio.run(listen(2))
    assert [list(answer) for answer in told] == [["progress"], ["progress"]] and 0 < told[0]["progress"][1] < told[1][
        "progress"
    ][1] < 1
    mine = {p.pid for p in psutil.Process().children(recursive=True)}
    left = [p for p in psutil.process_iter(["cmdline"]) if "workbench.data.worker" in " ".join(p.info["cmdline"] or [])]
    assert not [p for p in left if p.pid in mine] and not report.exists()

    async def both():
        return await asyncio.gather(listen(10_000), listen(10_000))

    (*_, first), (*_, second) = asyncio.run(both())  # two tabs ask the same
    result = first["result"]
    assert result == second["result"] and not list(report.parent.glob(".*"))
    assert result["rows"] == 10_000 and result["counts"] == {"too_long": 10_000} and len(result["problems"]) == 500
    assert result["problems"][7][:2] == [8, "big.jsonl:8"] and len(report.read_text().splitlines()) == 10_000


def test_a_job_that_fails_is_a_sentence(place, inside):
    worker = DataWorker(place)

    async def go():
        async for _ in worker.job("stats", config=inside | {"model_name_or_path": "no-such-model"}):
            pass

    with pytest.raises(UserError, match="There is no model"):
        asyncio.run(go())


def test_it_ends_with_the_page(place, inside):
    code = (
        "import sys, os; from workbench.data.worker_client import DataWorker; from workbench.storage.workspace import"
        f" Workspace\nw = DataWorker(Workspace({str(place.root)!r}, {list(map(str, place.allowed))!r}));"
        f" print(w.ask('count', dataset='small', config={inside!r}), w.processes[-1].pid,"
        " flush=True)\nos.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    count, pid = map(int, done.stdout.split())
    assert count == 24
    if psutil.pid_exists(pid):
        psutil.Process(pid).wait(10)


def test_marked_templates_are_the_same_without_torch(tiny_model):
    """TRL's marked versions of models' own templates, found in a process without torch and in one with it."""
    code = (
        "import sys, json\nif sys.argv[1] == 'without':\n    from workbench.data.chat_template import without_torch;"
        " without_torch()\nfrom transformers import AutoTokenizer; from pathlib import Path; import trl\nfrom"
        " workbench.data.chat_template import training_template\ntokenizer, found ="
        " AutoTokenizer.from_pretrained(sys.argv[2]), {}\nfor name in ('qwen3', 'llama3', 'deepseekv3', 'qwen2_5',"
        " 'phi3', 'gemma'):\n    file = Path(trl.__file__).parent / 'chat_templates' / f'{name}.jinja'\n    if"
        " file.is_file():\n        tokenizer.chat_template = file.read_text(); found[name] ="
        " training_template(tokenizer)\nprint(json.dumps([found, 'torch' in sys.modules]))"
    )
    results = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", code, how, str(tiny_model)],
                cwd=PROJECT,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for how in ("without", "with")
    ]
    assert results[0][0] == results[1][0] and len(results[0][0]) >= 4
    assert all(marked for _, marked in results[0][0].values())
    assert results[0][1] is False
