"""The Data tab as a user clicks through it."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Page, open_part
from workbench.runs.run import list_runs
from workbench.storage.workspace import DEMO_MODEL, Workspace

pytestmark = [pytest.mark.browser, pytest.mark.process]


@pytest.fixture(scope="module")
def page(tmp_path_factory, demo_model, tiny_model):
    place = Workspace(tmp_path_factory.mktemp("data-page")).create()
    (place.models / DEMO_MODEL).symlink_to(demo_model)
    (place.models / "tiny").symlink_to(tiny_model)
    started = Page(place.root)
    yield started
    started.end()


@pytest.fixture
def opened(opened):
    """The page with the Data tab in front."""
    open_part(opened, "Data")
    expect(opened.locator("#data-rows .wb-row").first).to_be_visible()
    return opened


def choose(tab, name: str) -> None:
    tab.click("#data-set input")
    tab.keyboard.press("Control+A")
    tab.keyboard.type(name)  # key by key, as the list filters
    tab.keyboard.press("Enter")
    expect(tab.locator("#data-set input")).to_have_value(name)


def from_row(tab, number: int) -> None:
    tab.fill("#data-row input", str(number))
    tab.keyboard.press("Tab")
    expect(tab.locator("#data-rows .wb-row").first).to_have_attribute("data-row", str(number))


def upload(tab, file: Path, name: str) -> None:
    tab.set_input_files("#data-drop input[type=file]", str(file))
    expect(tab.locator("#data-uploaded")).to_contain_text(f"{name} is there")
    expect(tab.locator("#data-set input")).to_have_value(name)


def rows_file(tmp_path, name: str, count: int = 30, bad: bool = True) -> Path:
    """Rows with text that page and templates could misread; two broken ones, one twice."""
    lines = [json.dumps({"instruction": f"Q{i} {{x}} ${{y}} `z` <b>", "output": f"A{i}\nline"}) for i in range(count)]
    if bad:
        lines[7], lines[11], lines[12] = '{"instruction": "x"}', "{broken", lines[3]
    file = tmp_path / name
    file.write_text("\n".join(lines) + "\n")
    return file


def test_rows_as_conversation_tokens_and_exact_text(opened):
    choose(opened, "abilities")
    expect(opened.locator("#data-rows .wb-row")).to_have_count(5)
    expect(opened.locator("#data-about")).to_contain_text("238 rows")
    card = opened.locator("#data-rows .wb-row").first
    expect(card.locator(".wb-turn.assistant")).to_contain_text("No. I do not support tool calling")
    trained = "".join(card.locator(".tk.tr").all_text_contents())
    assert trained.startswith("No. I do not support") and trained.endswith("<|im_end|>")
    masked = "".join(card.locator(".tk.mk").all_text_contents())
    assert "Do you support tool calling?" in masked and "<|im_start|>assistant" in masked
    shown = "".join(card.locator(".tk").all_text_contents()).replace("⏎", "\n")
    assert card.locator(".wb-cell pre").text_content() == shown
    expect(card.locator(".tk").first).to_have_attribute("title", "1")  # <|im_start|>
    opened.get_by_role("checkbox", name="conversation").uncheck()
    expect(card.locator(".wb-turn")).to_have_count(0)
    opened.click("#data-on")
    expect(opened.locator("#data-rows .wb-row").first).to_have_attribute("data-row", "6")
    from_row(opened, 237)
    expect(opened.locator("#data-rows .wb-row")).to_have_count(2)
    opened.fill("#data-row input", "500")
    opened.keyboard.press("Tab")
    expect(opened.locator("#data-message")).to_contain_text("There is no row 500")


def test_a_whole_name_is_itself(opened, tmp_path):
    """Gradio's list takes the first entry that contains what was typed."""
    upload(opened, rows_file(tmp_path, "my-abilities-b.jsonl", bad=False), "my-abilities-b")
    choose(opened, "abilities")
    expect(opened.locator("#data-about")).to_contain_text("238 rows")


def test_a_dataset_that_cannot_be_read_is_listed_with_the_reason(opened):
    opened.click("#data-set input")
    opened.get_by_role("option", name="⚠ oaast_sft_zh").click()
    expect(opened.locator("#data-message")).to_contain_text("oaast_sft_zh.json does not exist")


def test_the_train_tabs_options_decide_what_is_shown(opened):
    choose(opened, "abilities")
    open_part(opened, "Train")
    opened.fill("#opt-cutoff_len input, #opt-cutoff_len textarea", "40")
    open_part(opened, "Data")
    expect(opened.locator("#data-about")).to_contain_text("cutoff_len 40")
    from_row(opened, 4)
    card = opened.locator("#data-rows .wb-row").first
    expect(card).to_contain_text("40 of 50 tokens")
    expect(card.locator(".wb-cut")).to_contain_text("✂ 10")
    expect(card).to_contain_text("The answer loses its end")
    from_row(opened, 231)  # two exchanges, the first of which is left out
    expect(opened.locator("#data-rows .wb-row").first.locator(".wb-cut").first).to_contain_text(
        "2 earlier turns are left out here"
    )
    open_part(opened, "Train")
    opened.fill("#opt-model_name_or_path input", "no-such-model")
    opened.keyboard.press("Enter")
    open_part(opened, "Data")
    expect(opened.locator("#data-message")).to_contain_text("There is no model 'no-such-model'")
    expect(opened.locator("#data-rows .wb-turn").first).to_be_visible()  # the conversation needs no model


def test_upload_check_report_edit_delete(opened, page, tmp_path):
    upload(opened, rows_file(tmp_path, "bad.jsonl"), "bad")
    expect(opened.locator("#data-about")).to_contain_text("30 rows")
    expect(opened.locator("#data-rows .wb-turn.user").first).to_contain_text("Q0 {x} ${y} `z` <b>")
    open_part(opened, "Check")
    expect(opened.locator("#data-report")).to_be_disabled()  # nothing was checked yet
    expect(opened.locator("#data-check-stop")).to_be_disabled()
    opened.click("#data-check")
    expect(opened.locator("#data-checked .bad").first).to_contain_text(
        "30 rows: 2 broken, which would stop a run; 1 to look at"
    )
    rows = opened.locator("#problem-table tr:has(td)")
    expect(rows).to_have_count(3)
    cells = [row.locator("td").all_text_contents() for row in rows.all()]
    assert [texts[:3] for texts in cells] == [
        ["8", "bad.jsonl:8", "missing field"],
        ["12", "bad.jsonl:12", "unreadable"],
        ["13", "bad.jsonl:13", "duplicate"],
    ]
    with opened.expect_download() as download:
        opened.click("#data-report")
    report = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert [problem["row"] for problem in report] == [8, 12, 13]
    expect(opened.locator("#data-check-stop")).to_be_disabled()
    opened.click("#problem-table [data-look='12']")
    card = opened.locator("#data-rows .wb-row[data-row='12']")
    expect(card).to_contain_text("unreadable: not valid JSON")
    card.locator("[data-edit]").click()
    expect(opened.locator("#data-source textarea")).to_have_value("{broken")
    opened.fill("#data-source textarea", '{"instruction": "q", "output": ""}')
    opened.click("#data-save")
    expect(opened.locator("#data-edited")).to_contain_text("Row 12 is not saved: the field 'output' is empty")
    opened.fill("#data-source textarea", '{"instruction": "mended?",\n "output": "yes"}')
    opened.click("#data-save")
    expect(opened.locator("#data-edited")).to_contain_text("Row 12 is saved")
    expect(card.locator(".wb-turn.user")).to_contain_text("mended?")
    questions = []

    def answer(dialog):
        questions.append(dialog.message)
        (dialog.accept if len(questions) > 1 else dialog.dismiss)()

    opened.on("dialog", answer)
    opened.click("#data-delete")  # no
    opened.click("#data-delete")  # yes
    expect(opened.locator("#data-edited")).to_contain_text("Row 12 is deleted; 29 rows are left")
    expect(opened.locator("#data-about")).to_contain_text("29 rows")
    assert len(questions) == 2 and len((page.workspace / "uploads" / "bad.jsonl").read_text().splitlines()) == 29
    # what is bundled is never changed
    choose(opened, "abilities")
    expect(opened.locator("#data-about")).to_contain_text("never changed")
    from_row(opened, 1)
    opened.locator("#data-rows [data-edit='1']").click()
    expect(opened.locator("#data-source textarea")).to_have_value(re.compile("tool calling"))
    opened.click("#data-save")
    expect(opened.locator("#data-edited")).to_contain_text(
        "abilities is not a dataset of the workspace. Copy it there first"
    )


def test_uploads_on_a_slow_machine_are_as_many_chains_that_end(opened, tmp_path):
    """A chain that started itself again, under load, sent requests for good and wiped what had been checked."""
    cdp = opened.context.new_cdp_session(opened)
    cdp.send("Emulation.setCPUThrottlingRate", {"rate": 4})
    config = opened.evaluate("window.gradio_config.dependencies.map((d) => [d.id, d.targets.map((t) => t[1])])")
    ticks = {id_ for id_, events in config if "tick" in events}
    sent = []

    def count(request):
        body = request.post_data if request.method == "POST" and "/gradio_api/" in request.url else ""
        if body and body.startswith("{") and json.loads(body).get("fn_index") not in ticks:
            sent.append(json.loads(body).get("fn_index"))

    opened.on("request", count)
    for number in range(10):
        upload(opened, rows_file(tmp_path, f"many-{number}.jsonl", count=6, bad=False), f"many-{number}")
    expect(opened.locator("#data-about")).to_contain_text("6 rows")
    open_part(opened, "Check")
    opened.click("#data-check")
    expect(opened.locator("#data-checked")).to_contain_text("6 rows")
    opened.wait_for_timeout(3000)
    assert len(sent) <= 10 * 5, sent  # the button to stop it, the upload, its rows, their number, and one to spare
    settled = len(sent)
    opened.wait_for_timeout(3000)
    assert len(sent) == settled
    expect(opened.locator("#data-checked")).to_contain_text("6 rows")


def test_what_is_no_data_is_refused(opened, page, tmp_path):
    (tmp_path / "notes.pdf").write_text("hello")
    opened.set_input_files("#data-drop input[type=file]", str(tmp_path / "notes.pdf"))
    expect(opened.locator("#data-uploaded")).to_contain_text("notes.pdf: files of this kind cannot be read")
    (tmp_path / "log.jsonl").write_text("not\njson\n")
    opened.set_input_files("#data-drop input[type=file]", str(tmp_path / "log.jsonl"))
    expect(opened.locator("#data-uploaded")).to_contain_text("None of the first rows can be used")
    assert not (page.workspace / "uploads" / "log.jsonl").exists()


def test_a_file_in_gb18030_is_named_and_read(opened, page, tmp_path):
    (tmp_path / "gbk.csv").write_bytes("instruction,output\n今天天气怎么样？,今天是晴天。\n".encode("gb18030"))
    opened.set_input_files("#data-drop input[type=file]", str(tmp_path / "gbk.csv"))
    expect(opened.locator("#data-uploaded")).to_contain_text("is read as gb18030")
    expect(opened.locator("#data-rows")).to_contain_text("今天是晴天。")
    open_part(opened, "Split, copy, layout")
    opened.click("#data-layout button")
    expect(opened.locator("#data-encoding input")).to_have_value("gb18030")
    entries = json.loads((page.workspace / "uploads" / "dataset_info.json").read_text())
    assert entries["gbk"] == {"file_name": "gbk.csv", "encoding": "gb18030"}


def test_a_dataset_in_big5_is_read_by_a_click(opened, page):
    text = "instruction,output\n請問台北今天的天氣如何？,今天台北是晴天，謝謝你的問題。\n"
    file = page.workspace / "uploads" / "weather.csv"
    file.write_bytes(text.encode("big5"))
    names = (
        json.loads((file.parent / "dataset_info.json").read_text())
        if (file.parent / "dataset_info.json").is_file()
        else {}
    )
    (file.parent / "dataset_info.json").write_text(json.dumps(names | {"weather": {"file_name": "weather.csv"}}))
    choose(opened, "weather")
    expect(opened.locator("#data-message")).to_contain_text("It looks like Big5")
    opened.get_by_role("button", name="Read it as Big5").click()
    expect(opened.locator("#data-rows .wb-row").first).to_contain_text("請問台北今天的天氣如何？")
    expect(opened.locator("#data-uploaded")).to_contain_text("It is read as Big5 now")
    expect(opened.locator("#data-read-as")).to_be_hidden()
    assert json.loads((file.parent / "dataset_info.json").read_text())["weather"]["encoding"] == "big5"


def test_statistics_and_what_they_suggest(opened):
    choose(opened, "abilities")
    open_part(opened, "Statistics")
    opened.click("#data-stats")
    tiles = opened.locator("#stats-tiles")
    expect(tiles).to_contain_text("226", timeout=60_000)
    expect(opened.locator("#data-counted")).to_contain_text(
        "abilities: 238 rows, of them 12 held out by val_size, 0 broken"
    )
    expect(tiles).to_contain_text("known after the first run of this model")
    expect(opened.locator("#data-chart .bars path").first).to_be_attached()
    expect(opened.locator("#data-chart .annotation")).to_contain_text("cutoff_len 256")
    expect(opened.locator("#data-counted .warn")).to_contain_text("Packing off")
    opened.click("#data-apply")
    expect(opened.locator("#data-applied")).to_contain_text("packing: false")
    open_part(opened, "Train")
    expect(opened.locator("#run-yaml")).not_to_contain_text("packing")
    open_part(opened, "Data")
    opened.click("#data-set input")
    opened.get_by_role("option", name="⚠ oaast_sft_zh").click()  # what was counted of another dataset is gone
    expect(tiles).to_have_count(0)
    expect(opened.locator("#data-chart .bars")).to_have_count(0)


def test_the_runs_own_sequences_packed(opened):
    open_part(opened, "As the run gets it")
    opened.click("#data-batches")
    expect(opened.locator("#data-sequences .wb-row")).to_have_count(3, timeout=90_000)
    expect(opened.locator("#data-sequences")).to_contain_text("conversations that do not see each other")
    assert opened.locator("#data-sequences .wb-row").first.locator(".wb-start").count() >= 2


def test_split_copy_download_layout_remove(opened, page, tmp_path):
    upload(opened, rows_file(tmp_path, "whole.jsonl", bad=False), "whole")
    open_part(opened, "Split, copy, layout")
    opened.wait_for_timeout(700)  # what is opened sets its fields once more
    opened.fill("#data-share input", "0.2")
    opened.keyboard.press("Tab")
    opened.wait_for_timeout(700)  # the field tells its value when it is left
    expect(opened.locator("#data-share input")).to_have_value("0.2")
    opened.click("#data-split")
    expect(opened.locator("#data-filed")).to_contain_text("whole-train has 24 rows, whole-eval has 6")
    expect(opened.locator("#data-set input")).to_have_value("whole-train")
    opened.click("#data-use")  # leads to the Train tab
    expect(opened.locator("#start")).to_be_visible()
    for line in ("dataset: whole-train", "eval_dataset: whole-eval"):
        expect(opened.locator("#run-yaml")).to_contain_text(line)
    expect(opened.locator("#run-yaml")).not_to_contain_text("val_size")
    open_part(opened, "Data")
    expect(opened.locator("#data-used")).to_contain_text(
        "The Train form uses whole-train, and whole-eval to evaluate on"
    )
    with opened.expect_download() as download:
        opened.click("#data-download")
    assert download.value.suggested_filename == "whole-train.jsonl"
    assert len(Path(download.value.path()).read_text().splitlines()) == 24
    opened.click("#data-layout button")
    opened.wait_for_timeout(700)  # the panel slides open and sets its fields once more
    opened.fill("#data-columns-json textarea", "[1]")
    opened.keyboard.press("Tab")
    opened.click("#data-layout-save")
    expect(opened.locator("#data-filed")).to_contain_text("columns should be a JSON object of texts")
    opened.fill("#data-columns-json textarea", '{"prompt": "output", "response": "instruction"}')
    opened.click("#data-layout-save")
    expect(opened.locator("#data-filed")).to_contain_text("The rows are read as alpaca")
    open_part(opened, "Preview")
    expect(opened.locator("#data-rows .wb-turn.user").first).to_contain_text(re.compile(r"A\d+"))
    open_part(opened, "Split, copy, layout")
    opened.on("dialog", lambda dialog: dialog.accept())
    opened.click("#data-remove")
    expect(opened.locator("#data-filed")).to_contain_text("whole-train is removed")
    assert not (page.workspace / "uploads" / "whole-train.jsonl").exists()
    choose(opened, "abilities")
    opened.click("#data-copy")
    expect(opened.locator("#data-filed")).to_contain_text("Copied as abilities-copy")
    expect(opened.locator("#data-set input")).to_have_value("abilities-copy")


def test_skipped_rows_are_on_the_runs_card(opened, page, tmp_path):
    upload(opened, rows_file(tmp_path, "skipped.jsonl"), "skipped")
    opened.click("#data-use")
    expect(opened.locator("#start")).to_be_visible()
    expect(opened.locator("#train-message")).to_contain_text("valid")
    opened.fill("#opt-model_name_or_path input", "tiny")
    opened.keyboard.press("Enter")
    opened.click("#start")
    expect(opened.locator("#train-message")).to_contain_text("skipped.jsonl:8: the field 'output' is missing")
    opened.click("#group-data button")
    opened.check("#opt-skip_broken_rows input")
    expect(opened.locator("#run-yaml")).to_contain_text("skip_broken_rows: true")
    opened.click("#start")
    expect(opened.locator("#run-status")).to_contain_text("2 broken rows of the data are skipped", timeout=90_000)
    expect(opened.locator("#run-status .wb-badge")).to_have_text("finished", timeout=180_000)
    run = list_runs(Workspace(page.workspace))[0]
    assert run.state().skipped_rows == 2 and "skipped: 2 broken rows of 30 are skipped" in run.log.read_text()


def test_the_tab_speaks_chinese(chromium, page):
    context = chromium.new_context(viewport={"width": 1280, "height": 1000}, locale="zh-CN")
    tab = context.new_page()
    tab.goto(page.url)
    open_part(tab, "数据")
    expect(tab.locator("#data-rows .wb-row").first).to_be_visible(timeout=30_000)
    expect(tab.locator("#data-rows")).to_contain_text("参与训练")
    open_part(tab, "检查")
    tab.click("#data-check")
    expect(tab.locator("#data-checked .wb-note")).to_contain_text("238 行", timeout=30_000)
    context.close()
