"""Handlers of the tabs, called as methods: no server, no browser, no model."""

import json
import shutil
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
from workbench.storage.workspace import DEMO_MODEL, Workspace
from workbench.train import queue
from workbench.ui.page import Page
from workbench.ui.tabs.chat.engine_panel import _MORE
from workbench.ui.tabs.data.files import Files, copied, held_out_rows, parted
from workbench.ui.tabs.data.jobs import Check, Statistics, report_file
from workbench.ui.tabs.data.shared import Data
from workbench.ui.tabs.record import Event, bind
from workbench.ui.tabs.train.base import Base, from_draft

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
    assert [id_ for id_ in labels if id_ in ("train", "data", "runs", "chat", "evaluate", "probes", "model")] == [
        "train", "data", "runs", "chat", "evaluate", "probes", "model",
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
    message, _, base, preset, about, drop, _, *contents = page.clone(run.id, ENGLISH)
    assert "wb-note ok" in message and run.id in message and run.id in about
    assert (base.kind, base.name, preset["value"], drop["interactive"]) == ("clone", run.id, None, False)
    assert option(page, contents, "lora_rank") == "24" and option(page, contents, "dataset") == ["d"]
    message, *rest = page.clone("../../etc", ENGLISH)
    assert "wb-note bad" in message and all(map(skipped, rest)) and len(rest) == 6 + len(page.train.form.names)


def test_corrections_go_on_from_the_adapter_that_was_chatted_with(page):
    assert "wb-note bad" in page.train_corrections(None, "m", "sft", ENGLISH)[0]
    corrections.correct(page.workspace, [{"role": "user", "content": "q"}], "bad", "good")
    run = create_run(page.workspace, validated(VALUES), state="finished")
    _, _, message, base, _, _, _, _, *contents = page.train_corrections(run.id, "m", "sft", CHINESE)
    assert (base.kind, base.name) == ("corrections", run.id)
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
    demo = {"model_name_or_path": DEMO_MODEL, "dataset": "abilities"}
    text, command, message, changed, kept, *_ = train.preview(ENGLISH, train.first, *filled(page, lora_rank=24, **demo))
    assert "lora_rank: 24" in text and "--set lora_rank=24" in command and "wb-note ok" in message
    for values, words in (  # what a start would say is told before it
        ({"model_name_or_path": "m"}, "There is no model"),
        ({"dataset": "nosuch"}, "nosuch"),
        ({"model_name_or_path": "/etc"}, "outside"),
        ({"model_name_or_path": "Qwen/Qwen3-0.6B"}, "Qwen/Qwen3-0.6B is not on this machine"),
    ):
        _, _, outlook, *_ = train.preview(ENGLISH, train.first, *filled(page, **demo | values))
        kind = "warn" if "Qwen" in words else "bad"
        assert f"wb-note {kind}" in outlook and words in outlook, outlook
    assert "data-reset='lora_rank'" in changed and "8 → 24" in changed and "#opt-lora_rank" in changed
    assert from_draft(kept) == (train.first, train.form.read(filled(page, lora_rank=24, **demo)))
    text, _, message, *_ = train.preview(ENGLISH, train.first, *filled(page, lora_rank=-1))
    assert "wb-note bad" in message and "lora_rank" in message and "lora_rank: -1" in text


@pytest.mark.parametrize(
    "kept",
    [
        None, "", "{", "[]", "[" * 5000, "x" * 300_000, 5, '{"base": 1, "values": {}}',
        '{"base": {"kind": "shell", "name": "x", "values": {}}, "values": {}}',
        '{"base": {"kind": "preset", "name": {}, "values": {}}, "values": {}}',
    ],
)  # fmt: skip
def test_a_form_that_no_page_has_kept_is_left_alone(page, kept):
    assert from_draft(kept) is None
    _, _, token, *form = page.train.arrive(kept, ENGLISH)
    assert token is None and "135M" in form[2] and all(map(skipped, form[5:]))


def test_a_kept_form_brings_options_alone(page):
    kept = {"base": {"kind": "import", "name": "<b>", "values": {"lora_rank": 4, "x": 1}}, "values": {"lora_rank": [1]}}
    base, values = from_draft(json.dumps(kept))
    assert (base.kind, base.values, values) == ("import", {"lora_rank": 4}, {})
    _, _, _, _, preset, about, *_ = page.train.arrive(json.dumps(kept), ENGLISH)
    assert preset["value"] is None and "&lt;b&gt;" in about


@pytest.mark.parametrize(
    "values", [{"lora_rank": "many"}, {"lora_rank": 1e999}, {"dataset": 5}, {"packing": "maybe"}, {"template": True}]
)
def test_values_that_do_not_fit_are_named_and_break_nothing(page, values):
    """Of a form that a browser kept, of a pasted YAML, of a run whose file was edited."""
    base, kept = from_draft(json.dumps({"base": {"kind": "import", "name": "x", "values": values}, "values": values}))
    _, command, message, *_ = page.train.preview(
        ENGLISH, base, *page.train.form.fill({"model_name_or_path": "m"} | kept)
    )
    assert "wb-note" in message and command == "python -m workbench train x.yaml"
    run = create_run(page.workspace, validated(VALUES), state="finished")
    (run.path / "run.yaml").write_text("dataset: [a, b]\nlora_rank: many\n")
    (
        _,
        _,
        base,
        *_,
    ) = page.clone(run.id, ENGLISH)
    *_, contents = [page.train.form.fill(base.values)]
    assert option(page, contents, "dataset") == ["a", "b"]
    assert "lora_rank: 'many' does not fit" in page.train.preview(ENGLISH, base, *contents)[2].replace("&#x27;", "'")


def test_a_preset_of_ones_own_is_kept_chosen_and_deleted(page):
    train = page.train
    message, base, preset, _, drop, _, *contents = train.save_preset("My first!", ENGLISH, *filled(page, lora_rank=24))
    assert "train my-first" in message and base.name == preset["value"] == "my-first" and drop["interactive"]
    assert option(page, contents, "lora_rank") == "24" and preset["choices"][0][0] == "★ my-first"
    for name in ("", "smollm2-demo"):
        refusal, *unchanged = train.save_preset(name, ENGLISH, *filled(page))
        assert "wb-note bad" in refusal and all(map(skipped, unchanged))
    _, _, _, preset, *contents = train.use_preset("my-first", ENGLISH)
    assert option(page, contents[3:], "lora_rank") == "24"
    shown = filled(page, lora_rank=24, seed=7)  # only what is another is sent: what is typed meanwhile stays
    fresh = dict(zip(train.form.names, train.use_preset("my-first", ENGLISH, *shown)[7:], strict=True))
    changed = {name: value for name, value in fresh.items() if not skipped(value)}
    assert changed == {"seed": str(train.form.config(filled(page)).seed)}
    for name in ("smollm2-demo", "../models/x", "my-first/.."):
        assert "wb-note bad" in train.delete_preset(name, ENGLISH)[0]
    message, base, *_ = train.delete_preset("my-first", ENGLISH)
    assert "wb-note ok" in message and base == train.first and not list(page.workspace.presets.iterdir())


def test_one_option_is_set_back_or_all(page):
    base = Base("preset", "x", {"lora_rank": 4, "dataset": "d"})
    one = page.train.reset(base, SimpleNamespace(_data={"reset": "lora_rank"}))
    assert option(page, one, "lora_rank") == "4" and skipped(option(page, one, "dataset"))
    everything = page.train.reset(base, SimpleNamespace(_data={"reset": "*"}))
    assert option(page, everything, "dataset") == ["d"] and not any(map(skipped, everything))


@pytest.mark.parametrize(
    ("words", "hit"), [("rank", "lora_rank"), ("学习率", "learning_rate"), ("LORA  dropout", "lora_dropout")]
)
def test_options_are_found_by_name_and_by_words_of_both_languages(page, words, hit):
    page.build()
    form = page.train.form
    line, *updates = page.train.search(words, ENGLISH)
    shown = [name for name, update in zip(form.names, updates[len(form.groups) :], strict=True) if update["visible"]]
    assert hit in shown and len(shown) < len(form.names) / 2 and str(len(shown)) in line
    line, *updates = page.train.search(" ", ENGLISH)
    assert line == "" and all(update["visible"] for update in updates)
    assert not any(update["open"] for update in updates[: len(form.groups)])
    assert "0 options" in page.train.search("nosuchword", ENGLISH)[0]


def test_an_imported_command_fills_the_form_and_tells_what_it_left_out(page):
    report, base, preset, about, _, _, *contents = page.train.use_import(
        "llamafactory-cli train --model_name_or_path m --dataset d --lora_rank 24 --no_such_key 5", ENGLISH
    )
    assert option(page, contents, "lora_rank") == "24"
    assert (base.kind, base.name, preset["value"]) == ("import", "m", None) and "m" in about
    assert "wb-note warn" in report and "no_such_key = 5" in report
    report, *contents = page.train.use_import("rm -rf /", CHINESE)
    assert "wb-note bad" in report and all(map(skipped, contents))


def test_files_that_an_import_names_are_given_with_it(page, tmp_path):
    zero, run = tmp_path / "ds_z3_config.json", tmp_path / "run.yaml"
    zero.write_text('{"zero_optimization": {"stage": 2}, "gradient_clipping": 0.25, "train_batch_size": "auto"}')
    text = (
        "model_name_or_path: m\nstage: sft\ndo_train: true\ndataset: d\ndeepspeed: examples/deepspeed/ds_z3_config.json"
    )
    run.write_text(text)
    report, base, *_, _, _, _ = page.train.use_import(text, ENGLISH)
    assert "wb-note warn" in report and "this config of DeepSpeed is not there" in report
    for pasted, given in (
        (text, [str(zero)]),
        ("", [str(zero), str(run)]),
        ("llamafactory-cli train x/run.yaml", [str(zero), str(run)]),
    ):
        report, base, *_ = page.train.use_import(pasted, ENGLISH, given)
        assert base.values["max_grad_norm"] == 0.25 and "zero_optimization.stage = 2" in report, pasted
    zero.write_text("{")
    report, *contents = page.train.use_import(text, CHINESE, [str(zero)])
    assert "wb-note bad" in report and "ds_z3_config.json" in report and all(map(skipped, contents))
    zero.unlink()
    assert "wb-note warn" in page.train.use_import(text, ENGLISH, [str(zero)])[0]
    assert "wb-note bad" in page.train.use_import("", ENGLISH, [str(zero), "/x/a.yaml", "/x/b.yaml"])[0]


def test_start_refuses_beside_the_button_and_makes_no_run(page, monkeypatch):
    message, choices, _ = page.train.begin(ENGLISH, page.train.first, "", *filled(page, learning_rate="fast"))
    assert "wb-note bad" in message and "learning_rate" in message and skipped(choices)

    def refuse(*args, **kwargs):
        raise UserError("There is no model m.")

    monkeypatch.setattr(DataWorker, "ask", refuse)
    message, choices, _ = page.train.begin(ENGLISH, page.train.first, "tries", *filled(page))
    assert "There is no model m." in message and skipped(choices) and not list_runs(page.workspace)
    panel = page.train.panel
    assert all(map(skipped, panel.end(None, "stop", ENGLISH))) and all(map(skipped, panel.end("x", "no", ENGLISH)))
    assert "wb-note bad" in panel.end("nope", "stop", ENGLISH)[0]


def test_a_run_joins_the_group_that_stands_beside_start(page, monkeypatch):
    monkeypatch.setattr(DataWorker, "ask", lambda *_, **__: None)
    monkeypatch.setattr(queue, "start_queued", lambda workspace: [])
    for group in ("  tries of \n rank ", " "):
        message, _, _ = page.train.begin(ENGLISH, page.train.first, group, *filled(page))
        assert "wb-note bad" not in message
    newest, first = sorted(list_runs(page.workspace), key=lambda run: bool(run.notes()))
    assert first.notes() == {"group": "tries of rank"} and newest.notes() == {}
    for run in (newest, first):
        shutil.rmtree(run.path)


# --- data


def test_train_on_a_split_takes_both_sides(page, data):
    files, contents = Files(data), filled(page)
    rows = json.dumps({"instruction": "q", "output": "a"}) + "\n"
    entries = {name: {"file_name": f"{name}.jsonl"} for name in ("mine-train", "mine-eval", "other-train")}
    for name in entries:
        (page.workspace.uploads / f"{name}.jsonl").write_text(rows)
    (page.workspace.uploads / "dataset_info.json").write_text(json.dumps(entries))
    assert files.train_on("mine-train", 9, ENGLISH, *contents)[1:] == (
        ["mine-train"], "mine-eval", "0", "epoch", "mine"
    )  # fmt: skip
    message, *used = files.train_on("other-train", 1000, ENGLISH, *filled(page, eval_strategy="steps"))
    assert "wb-note ok" in message and used == [["other-train"], "", "50", "steps", "other"]
    assert files.train_on("other-train", 30, ENGLISH, *contents)[3:5] == ("0", "no")
    assert [held_out_rows(rows) for rows in (0, 39, 40, 10**6)] == ["0.05", "0", "2", "200"]
    message, *unchanged = files.train_on("nothing", 0, ENGLISH, *contents)
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


def test_another_engine_is_loaded_from_the_chat_tab(page, tiny_model, monkeypatch):
    panel, loaded = page.chat.panel, []
    monkeypatch.setattr(page.workspace, "allowed", [*page.workspace.allowed, tiny_model])
    monkeypatch.setenv("PATH", "/nowhere")

    def load(request=ENGLISH, key="", **changed):
        values = {name: panel.defaults[name].default for name in _MORE} | changed
        return panel._load(request, str(tiny_model), "", 0, key, *values.values())[0]

    assert "vLLM is not installed here" in load(engine="vllm", tensor_parallel_size=4)
    assert "此处未安装 SGLang" in load(CHINESE, engine="sglang")
    for wrong in ("http://me:secret@host:8000", "file:///etc/passwd", "http://host/?key=1", "host:8000"):
        told = load(engine_url=wrong)
        assert "engine_url should be an address" in told and wrong not in told
    assert "engine_url 应为地址" in load(CHINESE, engine_url="x")
    assert "tensor_parallel_size: only with engine" in load(tensor_parallel_size=4)
    monkeypatch.setattr(panel.engine, "load", lambda *given: loaded.append(given))
    load(engine="vllm", engine_url="http://10.0.0.5:8000/v1", key="sesame", gpu_memory_utilization="", max_model_len="")
    ((config, adapter, key),) = loaded
    assert (config.engine, config.engine_url, adapter, key) == ("vllm", "http://10.0.0.5:8000/v1", "", "sesame")


def test_an_adapter_leaves_the_choice_of_the_engine_alone(page):
    run = create_run(page.workspace, validated(VALUES | {"template": "llama3"}), state="finished")
    with gr.Blocks():
        page.chat.panel.build()
    # the browser sends 0 for a number that is empty, which would be another value
    assert [
        name for name, part in page.chat.panel.more.items() if isinstance(part, gr.Number) and part.value is None
    ] == []
    take, *_ = page.chat.panel.take_adapter
    model, bits, *more = take(run.id)
    more = dict(zip(_MORE, more, strict=True))
    assert (model, bits, more["template"]) == ("m", 0, "llama3")
    assert {name for name, value in more.items() if skipped(value)} == {
        "engine", "engine_url", "tensor_parallel_size", "gpu_memory_utilization", "max_model_len", "devices",
    }  # fmt: skip


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
