"""What the workbench says: every error and reason has a code of the catalogue, both texts, and their values."""

import ast
import copy
import json
import pickle
import re
import sys
from collections import Counter
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from workbench import messages
from workbench.cli import shared
from workbench.cli.main import main
from workbench.config.options import RunConfig
from workbench.config.run_config import validated
from workbench.config.type_errors import type_error
from workbench.data.dataset import with_layout
from workbench.data.pipeline import look
from workbench.data.readers import BadRow, Raw
from workbench.data.registry import DatasetInfo
from workbench.errors import Told, UserError
from workbench.messages.answers import messages_in, with_messages
from workbench.messages.message import _AREAS, CATALOGUE, SENTENCES, Message, restored, stored, told
from workbench.models.locate import locate_model
from workbench.runs import job
from workbench.runs.run import Run
from workbench.runs.state import ProcessState, StateDirectory
from workbench.storage.files import Unreadable
from workbench.ui.catalogue import say
from workbench.ui.notes import told as told_on_page

ROOT = Path(__file__).parents[2] / "workbench"
# the tabs raise what the page's catalogue says
ELSEWHERE = ("ui/tabs", "messages")
FILES = [p for p in sorted(ROOT.rglob("*.py")) if not p.relative_to(ROOT).as_posix().startswith(ELSEWHERE)]
# where the code, or a text, stands in a call
PLACE = {"UserError": 0, "NotFound": 0, "WrongEncoding": 0, "BadRow": 1, "Message": 0, "Unreadable": 1, "Problem": 2}
TAKES_CODE = {"UserError", "NotFound", "BadRow", "Message"}
CJK = re.compile(r"[\u4e00-\u9fff]")


def names_in(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def calls(tree: ast.AST):
    """`(name, call)` of what makes a message."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in PLACE and len(node.args) > PLACE[name]:
                yield name, node


def is_text(node: ast.AST) -> bool:
    """Whether this is a text of our own, not a code or a name."""
    return isinstance(node, ast.JoinedStr | ast.BinOp) or (isinstance(node, ast.Constant) and " " in str(node.value))


def faults(source: str) -> list[str]:
    """What is wrong with the messages of a file: a text of our own, an unknown code, other values than the texts
    have."""
    found, tree = [], ast.parse(source)
    texts = {
        t.id
        for n in ast.walk(tree)
        if isinstance(n, ast.Assign) and is_text(n.value)
        for t in n.targets
        if isinstance(t, ast.Name)
    }
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):  # what goes into state.json
        told_words = [k.value for k in node.keywords if k.arg in ("reason", "phase", "warning")]
        if ast.unparse(node.func).endswith("progress"):
            told_words += node.args[:1]
        found += [f"line {node.lineno}: a text that is told" for words in told_words if is_text(words)]
    for name, call in calls(tree):
        given = call.args[PLACE[name]]
        for choice in (given.body, given.orelse) if isinstance(given, ast.IfExp) else (given,):
            if isinstance(choice, ast.JoinedStr | ast.BinOp) or (isinstance(choice, ast.Name) and choice.id in texts):
                found.append(f"line {call.lineno}: a text instead of a code")
            if not isinstance(choice, ast.Constant):
                continue
            if name not in TAKES_CODE or choice.value not in CATALOGUE:
                found.append(f"line {call.lineno}: no code: {choice.value!r}")
                continue
            values = {keyword.arg for keyword in call.keywords}
            wanted = names_in(CATALOGUE[choice.value][0])
            if not (values - {None} <= wanted if None in values else values == wanted):
                found.append(f"line {call.lineno}: {choice.value} has {sorted(wanted)}, not {sorted(map(str, values))}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_every_error_and_problem_names_a_code_with_its_values(file):
    assert faults(file.read_text(encoding="utf-8")) == []


def test_the_walk_finds_what_is_wrong():
    good = (
        'raise UserError("run_going", id=run.id)\nUserError("run_going" if x else "run_deleted", id=1)\nUserError(text)'
    )
    assert faults(good) == []
    for bad in (
        'raise UserError(f"The run {run.id} is still going.")',
        'raise UserError("The run is still going.")',
        'raise UserError("run_going")',
        'raise UserError("run_going", id=1, name=2)',
        'raise UserError("run_gone_wrong", id=1)',
        'raise UserError(prefix + "text")',
        'raise BadRow("type", "a row should be an object.")',
        'Problem(place, "type", f"{place} is broken.")',
        'Problem(place, "type", "row_nested")',
        'raise Unreadable(str(path), "it is empty.")',
        'raise files.Unreadable(str(path), f"{error}.")',
        'Message("run_going", **values, name=1)',
        'reason = f"{error} is broken."\nraise UserError(reason)',
        'run.update(state="failed", reason="It ended early.")',
        'self.progress(f"Reading {count} rows", 0.5)',
    ):
        assert len(faults(bad)) == 1, bad


def test_every_subclass_of_the_errors_is_walked():
    def below(kind):
        return {kind.__name__} | {name for sub in kind.__subclasses__() for name in below(sub)}

    # Impossible says nothing; ContextOverflow is told to clients of /v1 alone, in OpenAI's words
    ours = {kind for kind in below(Told) if kind not in ("Told", "Impossible", "ContextOverflow")}
    assert ours == set(PLACE) - {"Message", "Problem"}


def test_every_code_is_used():
    texts = [p.read_text(encoding="utf-8") for p in ROOT.rglob("*.py") if "messages" not in p.parts]
    used = {n.value for t in texts for n in ast.walk(ast.parse(t)) if isinstance(n, ast.Constant)}
    assert [code for code in CATALOGUE if code not in used and not code.startswith("type_")] == []


def test_codes_and_sentences_are_unique():
    assert len(CATALOGUE) == sum(len(area.SENTENCES) + len(getattr(area, "PARTS", {})) for area in _AREAS)
    assert len(_AREAS) == len([*Path(messages.__path__[0]).glob("*.py")]) - 3  # __init__, message, answers
    for index in (0, 1):
        twice = [text for text, count in Counter(pair[index] for pair in SENTENCES.values()).items() if count > 1]
        assert [text for text in twice if index == 0] == []


@pytest.mark.parametrize("code", CATALOGUE)
def test_both_texts_say_the_same_values_in_their_language(code):
    english, chinese = CATALOGUE[code]
    assert names_in(english) == names_in(chinese)
    assert not CJK.search(english)
    words = re.sub(r"\{[^{}]*\}", "", english)
    assert CJK.search(chinese) or not re.search("[A-Za-z]{2}", words), chinese
    assert not re.search(r"[\u4e00-\u9fff][,;:!?]|[,;:!?][\u4e00-\u9fff]", chinese), "full-width punctuation"
    if code in SENTENCES:
        command = r"(pip install|python -m) [\w .=-]+$"  # to be copied, so without a full stop
        assert re.search(r"([.?!]|\})$|: " + command, english), english
        assert re.search(r"([。？！]|\})$|：" + command, chinese), chinese


PYDANTIC = [
    (Annotated[float, Field(gt=0)], -1),
    (Annotated[int, Field(ge=2)], 1),
    (Annotated[float, Field(lt=1)], 1.5),
    (Annotated[float, Field(le=0.5)], 3),
    (Literal["a", "b"], "c"),
    (bool, "maybe"),
    (bool, []),
    (int, "x"),
    (int, "1" * 5000),
    (int, 1.5),
    (int, []),
    (float, "x"),
    (float, []),
    (Annotated[float, Field(allow_inf_nan=False)], float("inf")),
    (str, 1),
]


def test_pydantics_words_are_told_in_both_languages():
    found = set()
    for kind, value in PYDANTIC:
        with pytest.raises(ValidationError) as caught:
            TypeAdapter(kind).validate_python(value)
        (error,) = caught.value.errors()
        message = type_error(error)
        assert isinstance(message, Message) and message == error["msg"].replace("Input should", "it should"), error
        assert CJK.search(message.text("zh"))
        found.add(message.code)
    assert found == {code for code in CATALOGUE if code.startswith("type_")}
    assert told(type_error({"type": "new_kind", "msg": "Input should be new"}), "zh") == "it should be new"
    assert told(type_error({"type": "greater_than", "msg": "Reworded", "ctx": {"gt": 0}}), "zh") == "Reworded"


# --- a message


def test_a_message_is_its_english_text():
    message = Message("model_missing", name="x", known=["a", "b"])
    assert message == str(message) and type(str(message)) is str
    assert message.startswith("There is no model 'x'. Models here: a, b.")
    assert (
        message.text("zh")
        == "没有模型 'x'。此处的模型：a、b。也可给出文件夹，或 Hugging Face 上的 id，如 Qwen/Qwen3-8B。"
    )
    assert json.loads(json.dumps({"a": message})) == {"a": str(message)}
    with pytest.raises(KeyError):
        Message("model_missing", name="x")
    with pytest.raises(KeyError):
        Message("no_such_code")


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_messages_and_errors_survive_copies_and_pickle(again):
    message = Message("at_place", place="a.jsonl:3", problem=Message("row_field_missing", name="output"))
    assert again(message).text("zh") == "a.jsonl:3：缺少字段 'output'。"
    for error in (UserError(message), Unreadable("a.json", Message("not_json_object")), BadRow("type", "row_nested")):
        twin = again(error)
        assert type(twin) is type(error) and str(twin) == str(error) and vars(twin) == vars(error)
        assert CJK.search(twin.text("zh"))


def test_plain_text_goes_on_working():
    error = UserError("Something that a library says.")
    assert str(error) == error.text("zh") == "Something that a library says."
    assert told("plain", "zh") == told_on_page("plain", "zh") == told_on_page(ValueError("plain"), "zh") == "plain"
    assert told_on_page(UserError("read_only_is_no_code"), "zh") == "read_only_is_no_code"


def test_a_message_comes_back_from_json():
    message = Message("row_too_long", tokens=3000, cutoff=2048, lost=[Message("lost_turns", count=2)])
    kept = json.loads(json.dumps(stored(message)))
    assert kept["code"] == "row_too_long" and kept["values"]["lost"][0]["code"] == "lost_turns"
    back = restored(kept, str(message))
    assert back == message and told(back, "zh") == "共 3,000 个 token，cutoff_len 为 2,048：略去开头 2 轮。"


def nested(depth: int):
    message = Message("row_nested")
    for _ in range(depth):
        message = Message("at_place", place="x", problem=message)
    return message


HOSTILE = [
    None,
    7,
    [],
    "run_going",
    {},
    {"code": "run_going"},
    {"code": "run_going", "values": None},
    {"code": "run_going", "values": []},
    {"code": "run_going", "values": {}},
    {"code": "no_such_code", "values": {"id": "x"}},
    {"code": ["run_going"], "values": {"id": "x"}},
    {"code": "run_going", "values": {"id": "another run"}},
    {"code": "run_going", "values": {"id": {"code": "run_going"}}},
    {"code": "run_going", "values": {"id": "x" * 100_000}},
    {"code": "run_going", "values": {"id": list(range(100_000))}},
    {"code": "run_going", "values": {"code": "x", "self": "y", "id": "z"}},
    {"code": "row_too_long", "values": {"tokens": "many", "cutoff": 1, "lost": []}},
    {"code": "row_too_long", "values": {"tokens": 10**400, "cutoff": float("nan"), "lost": "x"}},
    {"code": "names_in_format", "values": {"id.__class__": "x"}},
]


@pytest.mark.parametrize("kept", HOSTILE, ids=lambda kept: str(kept)[:40])
def test_what_is_stored_wrongly_shows_the_english_text(kept):
    assert told(restored(kept, "The run x is still going."), "zh") == "The run x is still going."


def test_very_deep_messages_show_the_english_text():
    assert told(restored(stored(nested(3)), nested(3)), "zh") == nested(3).text("zh")
    deep = nested(50)
    assert told(restored(stored(deep), str(deep)), "zh") == str(deep)


# --- across processes


def test_answers_of_another_process_bring_their_messages(tmp_path):
    message = Message("row_missing", name="d", row=7)
    answer = {"error": message, "encoding": "", "rows": [{"problems": [["type", message]]}, ["plain"]]}
    line = json.loads(json.dumps(answer | messages_in(answer)))
    assert line["error"] == "d has no row 7." and len(line["messages"]) == 1
    back = with_messages(line)
    assert back == answer and back["error"].text("zh") == "d 没有第 7 行。"
    assert back["rows"][0]["problems"][0][1].text("zh") == "d 没有第 7 行。"
    assert messages_in({"result": [1, "x"]}) == {}
    for wrong in (None, 1, {"a": 1}, [1], [["x"]], [[1, 2]], [["d has no row 7.", {"code": "x"}]]):
        assert with_messages({"error": "d has no row 7.", "messages": wrong}) == {"error": "d has no row 7."}


def test_state_json_keeps_the_codes_beside_the_english_text(tmp_path):
    directory = StateDirectory(tmp_path)
    directory.begin()
    phase = Message("tokenizing_rows", name="d", rows=2000)
    directory.update(state="stopped", reason=Message("stopped_at", step=12), phase=phase)
    kept = json.loads((tmp_path / "state.json").read_text())
    assert kept["reason"] == "Stopped at step 12." and kept["messages"]["reason"]["values"] == {"step": 12}
    state = directory.state()
    assert told(state.reason, "zh") == "已在第 12 步停止。" and told(state.phase, "zh") == "正在分词 d：2,000 行"
    directory.update(step=13)  # what is not changed keeps its code, and what is changed loses the old one
    assert told(directory.state().reason, "zh") == "已在第 12 步停止。"
    directory.update(reason="something else", phase="")
    assert told(directory.state().reason, "zh") == "something else" and set(directory.state().messages()) == set()


@pytest.mark.parametrize("kept", [None, 1, "x", [], {"reason": 1}, {"reason": {"code": "stopped"}}, {"state": {}}])
def test_a_strange_state_json_reads_in_english(tmp_path, kept):
    (tmp_path / "state.json").write_text(json.dumps(vars(ProcessState(reason="Kept.")) | {"messages": kept}))
    assert told(StateDirectory(tmp_path).stored_state().reason, "zh") == "Kept."


# --- some of them whole


def zh(make) -> tuple[str, str]:
    """An error's two texts."""
    with pytest.raises(UserError) as caught:
        make()
    return str(caught.value), caught.value.text("zh")


def test_options_that_do_not_fit():
    values = {"model_name_or_path": "m", "dataset": "d", "learning_rate": -1, "lora_rnak": 3}
    english, chinese = zh(lambda: validated(values, RunConfig, where="run.yaml"))
    assert english.splitlines() == [
        "run.yaml: learning_rate: -1 does not fit: it should be greater than 0.",
        "Unknown option 'lora_rnak'. Did you mean 'lora_rank'? All options: docs/options.md.",
    ]
    assert chinese.splitlines() == [
        "run.yaml：learning_rate：-1 不合适：应大于 0。",
        "未知选项 'lora_rnak'。是否想写 'lora_rank'？全部选项见 docs/options.md。",
    ]
    english, chinese = zh(lambda: validated({"dataset": "d", "fp16": True, "bf16": True}))
    assert english == (
        "model_name_or_path is empty. Choose a model.\n"
        "fp16 and bf16 are both on. Keep one, or neither to let the device decide."
    )
    assert chinese == (
        "model_name_or_path 为空。请选择模型。\nfp16 和 bf16 同时开启。请只保留一个，或都不设，由设备决定。"
    )


def test_a_missing_model(workspace):
    english, chinese = zh(lambda: locate_model("no model", workspace))
    assert english.startswith("There is no model 'no model'. Models here: SmolLM2-135M-Instruct")
    assert chinese.startswith("没有模型 'no model'。此处的模型：SmolLM2-135M-Instruct")


def test_a_broken_row(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "hi"}, {"role": "wizard", "content": "x"}]}\n')
    info = with_layout(DatasetInfo("d", file))
    (problem,) = look(Raw("d.jsonl:1", file.read_bytes().strip()), info, None)[2]
    assert problem.reason.startswith("turn 2 has the unknown role 'wizard'. It can be developer, function, ")
    assert told(problem.reason, "zh").startswith("第 2 轮：未知的角色 'wizard'。可为 developer、function、")
    assert problem.as_json()["message"]["code"] == "turn_unknown_role"


def test_a_stopped_run(tmp_path):
    (tmp_path / "run.yaml").write_text("a: [")
    (problem,) = Run(tmp_path).problems()
    assert problem.startswith("run.yaml cannot be read: it is not valid YAML in line 2")
    assert problem.text("zh").startswith("run.yaml：无法读取，第 2 行不是有效的 YAML")
    assert say("run_ended", "zh", id="r", state="s", reason=Message("stopped_at", step=3)).endswith("已在第 3 步停止。")


def spoken(capsys, monkeypatch, *arguments: str) -> str:
    """What the command line says on stderr before it exits with code 2."""
    monkeypatch.setattr(shared, "_language", "en")  # and back, for other tests
    monkeypatch.setattr(sys, "argv", ["workbench", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    return capsys.readouterr().err.strip()


def test_the_command_line_speaks_both_languages(capsys, monkeypatch, tmp_path):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    command = ("train", "smollm2-demo", "--set", "learning_rate=-1", "--workspace", str(tmp_path))
    english = "learning_rate: -1 does not fit: it should be greater than 0."
    chinese = "learning_rate：-1 不合适：应大于 0。"
    for before, locale, words in (
        ((), "", english),
        (("--lang", "zh"), "", chinese),
        ((), "zh_CN.UTF-8", chinese),
        (("--lang", "en"), "zh_CN.UTF-8", english),
        ((), "de_DE.UTF-8", english),
    ):
        monkeypatch.setenv("LANG", locale)
        said = spoken(capsys, monkeypatch, *before, *command)
        assert said.endswith(words) and said.startswith("错误：" if words == chinese else "Error: ")


def test_children_print_english_into_their_logs():
    assert job.command("workbench", "train", "x")[2:5] == ["workbench", "--lang", "en"]
    assert "--lang" not in job.command("workbench.train.main", "x")
