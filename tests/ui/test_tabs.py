"""Handlers of the tabs, called as methods: no server, no browser, no model."""

import json
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from workbench.chat import corrections
from workbench.chat.session import Session
from workbench.config.run_config import validated
from workbench.data.worker_client import DataWorker
from workbench.engine.process import Engine
from workbench.errors import UserError
from workbench.runs.run import create_run, list_runs
from workbench.storage.workspace import Workspace
from workbench.ui.page import Page
from workbench.ui.tabs.chat.engine_panel import _MORE
from workbench.ui.tabs.data.files import Files, copied, parted
from workbench.ui.tabs.data.jobs import Check, Statistics, report_file
from workbench.ui.tabs.data.shared import Data
from workbench.ui.tabs.record import Event, bind

ENGLISH = SimpleNamespace(
    cookies={}, headers={"accept-language": "en"}, client=SimpleNamespace(host="h"), session_hash="s"
)
CHINESE = SimpleNamespace(
    cookies={}, headers={"accept-language": "zh-CN"}, client=SimpleNamespace(host="h"), session_hash="s"
)
VALUES = {"model_name_or_path": "m", "dataset": "d", "lora_rank": 24}


def skipped(value) -> bool:
    return isinstance(value, dict) and value == gr.skip()


@pytest.fixture
def page(workspace):
    return Page(workspace, Engine(workspace))


@pytest.fixture
def data(page):
    """The Data tab's parts with the Train form as a preset has it."""
    return Data(page.workspace, page.train.form, page.data.worker)


def filled(page, **values) -> list:
    return page.train.form.fill({"model_name_or_path": "m", "dataset": "d", **values})


def option(page, contents: list, name: str):
    return contents[page.train.form.names.index(name)]


# --- from tab to tab


def test_every_tab_is_built_once_and_tells_what_it_does_when_it_is_opened(page):
    blocks = page.build()
    labels = [b.id for b in blocks.blocks.values() if isinstance(b, gr.Tab) and b.elem_id and b.id]
    assert [id_ for id_ in labels if id_ in ("train", "data", "runs", "chat", "probes")] == [
        "train", "data", "runs", "chat", "probes",
    ]  # fmt: skip


def test_a_chain_is_wired_one_event_after_the_other():
    wired = []

    def trigger(handler, inputs, outputs, **options):
        wired.append((handler, inputs, outputs, options["js"]))
        return SimpleNamespace(then=trigger)

    bind(trigger, (Event(len, "a", "b", js="x"), Event(max, "c", "d")))
    assert wired == [(len, "a", "b", "x"), (max, "c", "d", None)]


def test_a_clone_has_the_options_of_the_run(page):
    run = create_run(page.workspace, validated(VALUES), state="finished")
    message, _, parent, *contents = page.clone(run.id, ENGLISH)
    assert "wb-note ok" in message and run.id in message and parent == run.id
    assert option(page, contents, "lora_rank") == "24" and option(page, contents, "dataset") == ["d"]
    message, *rest = page.clone("../../etc", ENGLISH)
    assert "wb-note bad" in message and all(map(skipped, rest)) and len(rest) == 2 + len(page.train.form.names)


def test_corrections_go_on_from_the_adapter_that_was_chatted_with(page):
    assert "wb-note bad" in page.train_corrections(None, "m", ENGLISH)[0]
    corrections.correct(page.workspace, [{"role": "user", "content": "q"}], "bad", "good")
    run = create_run(page.workspace, validated(VALUES), state="finished")
    _, _, message, *contents = page.train_corrections(run.id, "m", CHINESE)
    assert "1" in message and option(page, contents, "lora_rank") == "24"
    assert run.id in option(page, contents, "adapter_name_or_path")


def test_a_run_that_ended_is_told_once(page):
    run = create_run(page.workspace, validated(VALUES), state="finished")
    lines, active = page.tell({run.id: "running", "gone": "running"}, ENGLISH)
    assert [run.id in line for line in json.loads(lines)] == [True] and active == {}
    assert all(map(skipped, page.tell(active, ENGLISH)))


# --- train


def test_what_the_form_comes_to(page):
    train = page.train
    text, command, message = train.preview(ENGLISH, next(iter(train.presets)), "", *filled(page, lora_rank=24))
    assert "lora_rank: 24" in text and "--set lora_rank=24" in command and "wb-note ok" in message
    text, _, message = train.preview(ENGLISH, next(iter(train.presets)), "", *filled(page, lora_rank=-1))
    assert "wb-note bad" in message and "lora_rank" in message and "lora_rank: -1" in text


def test_an_imported_command_fills_the_form_and_tells_what_it_left_out(page):
    report, *contents = page.train.use_import(
        "llamafactory-cli train --model_name_or_path m --dataset d --lora_rank 24 --no_such_key 5", ENGLISH
    )
    assert option(page, contents, "lora_rank") == "24"
    assert "wb-note warn" in report and "no_such_key = 5" in report
    report, *contents = page.train.use_import("rm -rf /", CHINESE)
    assert "wb-note bad" in report and all(map(skipped, contents))


def test_start_refuses_beside_the_button_and_makes_no_run(page, monkeypatch):
    message, choices = page.train.begin(ENGLISH, "", *filled(page, learning_rate="fast"))
    assert "wb-note bad" in message and "learning_rate" in message and skipped(choices)

    def refuse(*args, **kwargs):
        raise UserError("There is no model m.")

    monkeypatch.setattr(DataWorker, "ask", refuse)
    message, choices = page.train.begin(ENGLISH, "", *filled(page))
    assert "There is no model m." in message and skipped(choices) and not list_runs(page.workspace)
    assert skipped(page.train.end(None)) and "wb-note bad" in page.train.end("nope")


# --- data


def test_train_on_a_split_takes_both_sides(page, data):
    files, contents = Files(data), filled(page)
    rows = json.dumps({"instruction": "q", "output": "a"}) + "\n"
    entries = {name: {"file_name": f"{name}.jsonl"} for name in ("mine-train", "mine-eval", "other-train")}
    for name in entries:
        (page.workspace.uploads / f"{name}.jsonl").write_text(rows)
    (page.workspace.uploads / "dataset_info.json").write_text(json.dumps(entries))
    assert files.train_on("mine-train", ENGLISH, *contents)[1:] == (["mine-train"], "mine-eval", "0")
    message, dataset, *unchanged = files.train_on("other-train", ENGLISH, *contents)
    assert "wb-note ok" in message and dataset == ["other-train"] and all(map(skipped, unchanged))
    message, *unchanged = files.train_on("nothing", ENGLISH, *contents)
    assert "wb-note bad" in message and all(map(skipped, unchanged))
    assert files.layout_of("nothing", contents) == ("", "", False, "", "")


def test_what_has_no_file_is_not_given_out(page, data):
    (page.workspace.uploads / "dataset_info.json").write_text(json.dumps({"far": {"hf_hub_url": "a/b"}}))
    path, message = Files(data).give_out("far", ENGLISH, *filled(page))
    assert skipped(path) and "wb-note bad" in message


def test_messages_of_copies_and_splits():
    assert copied(("new", 0), "en")[1] == "new" and "2" in copied(("new", 2), "en")[0]
    message, chosen = parted({"train": ("a-train", 1900), "eval": ("a-eval", 100), "left_out": 3}, "en")
    assert chosen == "a-train" and "1,900" in message and "100" in message and "3" in message


def test_suggestions_are_taken_over_and_named(data):
    part, found = Statistics(data), [("cutoff_lower", {"cutoff_len": 512}), ("packing_on", {})]
    message, cutoff, packing = part.take_over((("d", 2), found), "d", 2, ENGLISH)
    assert (cutoff, packing) == ("512", True) and "cutoff_len: 512, packing: true" in message
    for stale in (None, (("d", 1), found), (("other", 2), found)):  # of other rows, of another dataset
        message, *unchanged = part.take_over(stale, "d", 2, ENGLISH)
        assert "wb-note warn" in message and all(map(skipped, unchanged))


def test_a_report_is_given_out_after_a_check_alone(data, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    path, message = Check(data).report("d", ENGLISH)
    assert skipped(path) and "wb-note warn" in message
    file = report_file(data.workspace, "d")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}\n")
    path, message = Check(data).report("d", ENGLISH)
    assert Path(path).read_text() == "{}\n" and skipped(message)
    assert report_file(data.workspace, "../../x").parent == file.parent


def test_nothing_changes_in_a_read_only_workspace(page, data):
    data.workspace = Workspace(page.workspace.root, read_only=True)

    async def drop(request, name):
        raise AssertionError("not reached")

    import asyncio

    message, *unchanged = asyncio.run(data.changing(drop)(ENGLISH, 1, "d"))
    assert "wb-note bad" in message and all(map(skipped, unchanged))


# --- chat


def test_a_question_opens_a_turn_and_an_empty_one_none(page):
    chat, talk = page.chat, Session()
    assert skipped(chat.ask("  ", talk)[0]) and talk.left == []
    assert chat.ask(" hello ", talk)[0] == "" and talk.left == [{"role": "user", "content": "hello"}]
    talk.columns[0] = [*talk.left, {"role": "assistant", "content": "hi"}]
    chat.drop_answer(talk)
    assert talk.left == [{"role": "user", "content": "hello"}]
    old = talk.id
    chat.wipe(talk)
    assert talk.left == [] and talk.id != old


@pytest.mark.parametrize("text", ["{", '{"type": "function"}', "[1]", "[" * 200])
def test_tools_that_are_none_are_refused_with_a_sentence(page, text):
    with pytest.raises(UserError):
        page.chat.request_tools(text, "en")
    assert page.chat.request_tools("  ", "en") == {}


# --- probes


def test_probes_that_never_ran_say_so(page):
    message, table = page.probes.show_last("article", ["none"], False, "", ENGLISH)
    assert "wb-note warn" in message and table == ""


def test_an_import_for_chatting_goes_to_the_chat_tab(page):
    text = (
        "model_name_or_path: a/b\nadapter_name_or_path: saves/x\ntemplate: llama3\ninfer_backend: vllm\n"
        "quantization_bit: 4\nenable_thinking: false"
    )
    report, *contents = page.train.use_import(text, ENGLISH)
    assert "python -m workbench serve a/b --adapter saves/x" in report and all(map(skipped, contents))
    model, adapter, bits, *more, weights, name = page.import_for_chat(text)
    more = dict(zip(_MORE, more, strict=True))
    assert (model, adapter, bits, more["template"], more["enable_thinking"]) == ("a/b", "saves/x", 4, "llama3", "off")
    assert skipped(weights) and skipped(name)
    exporting = "model_name_or_path: a/b\nadapter_name_or_path: saves/x\nexport_dir: out/merged"
    assert page.import_for_chat(exporting)[-2:] == ["saves/x = 1", "merged"]
    for other in ("", "rm -rf /", "llamafactory-cli train --model_name_or_path m --dataset d"):
        assert all(map(skipped, page.import_for_chat(other)))
