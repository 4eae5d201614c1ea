"""What the Data tab shows of rows, with a tokenizer: long ones, broken ones, any bytes."""

import json
import tempfile
from pathlib import Path

from hypothesis import given as example
from hypothesis import settings
from hypothesis import strategies as st

from tests.unit.test_editing import given, jsonl
from workbench.data.dataset import with_layout
from workbench.data.encode import Encoder
from workbench.data.preview import row_view
from workbench.data.registry import DatasetInfo
from workbench.data.row_index import Places
from workbench.data.worker import Worker
from workbench.errors import UserError
from workbench.models.vocabulary import Vocabulary
from workbench.storage.workspace import Workspace
from workbench.ui.tabs.data import view
from workbench.ui.tabs.data.view import rows_html


def test_a_very_long_row_is_shown_without_its_tokens(tokenizer, tmp_path):
    rows = [{"instruction": "q", "output": "long " * 300_000}, {"text": "words " * 3000}]
    encoder, vocabulary = Encoder(tokenizer, "chatml", cutoff_len=64), Vocabulary(tokenizer)
    views = []
    for row, formatting in zip(rows, ("alpaca", "text"), strict=True):
        info = with_layout(DatasetInfo("mine", given(tmp_path, json.dumps(row)), formatting=formatting))
        views.append(row_view(0, Places(info).page(0, 1)[0][1], info, encoder, vocabulary))
    assert views[0]["large"] and not views[0]["encoded"] and len(views[0]["turns"][1]["content"]) < 70_000
    assert not views[1]["large"] and len(views[1]["encoded"]) == 3 and views[1]["pieces"] > 100
    assert f"{views[1]['pieces'] - 3} more pieces" in rows_html(views[1:], ["tokens"], "en")
    assert "too large to be shown" in rows_html(views[:1], ["tokens"], "en")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8) | st.just("\ud83d"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value"]), inner, max_size=3)
    ),
    max_leaves=8,
)


ROWS = st.dictionaries(
    st.sampled_from(
        ["instruction", "output", "input", "messages", "conversations", "text", "tools", "chosen", "rejected", "label"]
    ),
    VALUES,
    max_size=5,
)


LINES = st.lists(
    st.binary(max_size=40)
    | ROWS.map(lambda row: json.dumps(row).encode())
    | VALUES.map(lambda v: json.dumps(v).encode()),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@example(LINES, st.sampled_from(["x.jsonl", "x.json", "x.csv"]))
def test_whatever_a_file_holds_can_be_looked_at(tiny_model, lines, name):
    """Preview, row and check of any bytes: an answer that can be sent to the browser, or one sentence."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(b"\n".join(lines))
        worker = Worker(Workspace(Path(folder) / "w").create(), lambda message: None, confined=False)
        config = {"model_name_or_path": str(tiny_model), "cutoff_len": 30, "template": "auto"}
        for ask in (
            lambda: view.rows_html(worker.preview(str(file), config)["rows"], list(view.PARTS), "en"),
            lambda: worker.row(str(file), config, 1),
            lambda: view.check_html(worker.check(str(file), config), "zh"),
            lambda: str(worker.count(str(file), config)),
        ):
            try:
                ask().encode()
            except UserError as error:
                assert str(error).endswith((".", "!", ")")) and len(str(error)) < 1000


def test_a_row_that_a_template_cannot_show_is_shown_as_conversation(tokenizer, tmp_path):
    turns = [
        ("human", "Weather?"),
        ("function_call", '{"name": "look", "arguments": {}}'),
        ("observation", "rain"),
        ("gpt", "It rains."),
    ]
    row = {
        "conversations": [{"from": role, "value": text} for role, text in turns],
        "tools": '[{"name": "look", "parameters": {}}]',
    }
    info = with_layout(DatasetInfo("mine", given(tmp_path, jsonl([row]))))
    view = row_view(0, Places(info).page(0, 1)[0][1], info, Encoder(tokenizer, "deepseek"), Vocabulary(tokenizer))
    assert [kind for kind, _ in view["problems"]] == ["template"] and not view["encoded"]
    assert [turn["role"] for turn in view["turns"]] == ["user", "assistant", "tool", "assistant"]
    shown = rows_html([view], ["conversation", "tokens"], "en")
    assert "It rains." in shown and "look" in shown and "leaves tools out" in shown
