import json

import pytest

from workbench.runs.metrics import MOST_DATASETS, MetricsReader, Series, dataset_of, losses_of_each, smoothed, tail
from workbench.ui.charts import loss_chart, panel_chart


def line(step, **values):
    return json.dumps({"current_steps": step, "total_steps": 100, **values}) + "\n"


def test_follows_a_growing_file_and_waits_for_half_lines(tmp_path):
    file = tmp_path / "trainer_log.jsonl"
    reader = MetricsReader(file)
    assert not reader.update()
    file.write_text(line(1, loss=3.0) + line(2, loss=2.0)[:20])
    assert reader.update() and reader.series["loss"].y == [3.0]
    file.write_text(line(1, loss=3.0) + line(2, loss=2.0) + "broken {\n" + line(3, eval_loss=1.5))
    assert reader.update()
    assert reader.series["loss"].y == [3.0, 2.0] and reader.series["eval_loss"].x == [3]
    assert reader.last["eval_loss"] == 1.5 and not reader.update()


def test_a_replaced_file_is_read_anew(tmp_path):
    file = tmp_path / "trainer_log.jsonl"
    file.write_text(line(1, loss=3.0) + line(2, loss=2.0))
    reader = MetricsReader(file)
    reader.update()
    file.unlink()
    assert reader.update() and not reader.series["loss"].x
    file.write_text(line(1, loss=9.0))
    reader.update()
    assert reader.series["loss"].y == [9.0]


def test_null_loss_is_no_point(tmp_path):
    file = tmp_path / "trainer_log.jsonl"
    file.write_text(line(1, loss=None) + line(2, loss=1.0))
    reader = MetricsReader(file)
    reader.update()
    assert reader.series["loss"].x == [2]


def test_series_stay_small_and_keep_their_shape():
    series = Series()
    for step in range(100_000):
        series.add(step, 1 + step / 100_000)
    assert 250 <= len(series.x) <= 601
    assert series.x == sorted(series.x)
    assert all(abs(y - (1 + x / 100_000)) < 0.01 for x, y in zip(series.x, series.y, strict=True))


def test_resumed_steps_replace_the_old_ones():
    series = Series()
    for step in [1, 2, 3, 4, 5, 3, 4]:
        series.add(step, step * 10.0)
    assert series.x == [1, 2, 3, 4]


def test_a_huge_file_is_sampled_with_all_its_evaluations(tmp_path):
    file = tmp_path / "trainer_log.jsonl"
    with open(file, "w") as out:
        for step in range(1, 60_001):
            out.write(
                line(step, loss=1 / step, lr=1e-4, grad_norm=1.0, epoch=0.1, percentage=1.0, elapsed_time="0:00:00")
            )
            if step % 10_000 == 0:
                out.write(line(step, eval_loss=step / 1e4))
    reader = MetricsReader(file)
    reader.update()
    assert reader.series["eval_loss"].y == [1, 2, 3, 4, 5, 6]
    assert 300 < len(reader.series["loss"].x) <= 1200 and reader.last["current_steps"] == 60_000
    with open(file, "a") as out:
        out.write(line(60_001, loss=0.5))
    assert reader.update() and reader.last["current_steps"] == 60_001


def test_smoothing_is_unbiased_at_the_start():
    assert smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert smoothed([]) == []


def test_tail_of_a_long_log(tmp_path):
    file = tmp_path / "running_log.txt"
    file.write_bytes(b"".join(b"line %d\n" % i for i in range(100_000)) + "中文\n".encode() + b"\xff\xfe")
    text = tail(file, lines=5)
    assert text.splitlines()[:4] == ["line 99997", "line 99998", "line 99999", "中文"]
    assert tail(tmp_path / "none") == ""


def test_several_devices_have_figures_of_their_own(tmp_path):
    from workbench.runs.metrics import by_device
    from workbench.train.metrics_log import figures_of

    cards = [{"peak_memory": 3.0, "gpu_utilization": 90, "power": 300.0}, {"peak_memory": 5.0, "gpu_utilization": 70}]
    together, split = figures_of(cards, processes=2), figures_of(cards)
    assert (together["peak_memory"], split["peak_memory"]) == (5.0, 8.0)  # of one card, and of the model in all
    assert together["power"] == 300.0 and (together["gpu_utilization_0"], together["gpu_utilization_1"]) == (90, 70)
    assert figures_of(cards[:1]) == cards[0]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"current_steps": s, "total_steps": 2} | together) + "\n" for s in (1, 2)))
    reader = MetricsReader(log)
    reader.update()
    assert by_device("gpu_utilization", reader.series) == ("gpu_utilization_0", "gpu_utilization_1")
    assert reader.series["peak_memory_1"].y == [5.0, 5.0]
    assert by_device("vram_reserved", reader.series) == ("vram_reserved",)


def test_losses_of_each_evaluation_dataset_are_followed(tmp_path):
    log = tmp_path / "trainer_log.jsonl"
    row = {
        "current_steps": 5,
        "eval_loss": 2.0,
        "eval_a_loss": 1.0,
        "eval_<b>_loss": 3.0,
        "eval_c_loss": "x",
        "eval__loss": 1,
    }
    log.write_text("".join(json.dumps(row | {"current_steps": step}) + "\n" for step in (5, 10)))
    reader = MetricsReader(log)
    reader.update()
    assert losses_of_each(reader.series) == ["eval_a_loss", "eval_<b>_loss"]
    assert reader.series["eval_<b>_loss"].x == [5, 10] and reader.series["eval_a_loss"].y == [1.0, 1.0]
    assert dataset_of("eval_<b>_loss") == "<b>" and not dataset_of("eval_loss") and not dataset_of("loss")
    many = {"current_steps": 15} | {f"eval_{number}_loss": 1.0 for number in range(1000)}
    with open(log, "a") as file:
        file.write(json.dumps(many) + "\n")
    reader.update()
    assert len(losses_of_each(reader.series)) == MOST_DATASETS


def test_the_chart_has_a_line_for_each_evaluation_dataset(tmp_path):
    log = tmp_path / "trainer_log.jsonl"
    rows = [
        {"current_steps": s, "loss": 3.0, "eval_loss": 2.0, "eval_a_loss": 1.0, "eval_<b>_loss": 3.0} for s in (1, 2)
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = MetricsReader(log)
    reader.update()
    words = {"step": "step", "empty": "none", "log_scale": False, "run_id": "r"}
    figure = json.loads(loss_chart(reader.series, ("loss", "smooth", "eval"), **words))
    lines = {trace["name"]: trace["y"] for trace in figure["data"]}
    assert lines["eval: a"] == [1.0, 1.0] and lines["eval: &lt;b&gt;"] == [3.0, 3.0] and lines["eval"] == [2.0, 2.0]
    panels = [("Eval", ("eval_loss", *losses_of_each(reader.series)))]
    names = [trace["name"] for trace in json.loads(panel_chart(reader.series, panels, run_id="r"))["data"]]
    assert names == ["eval_loss", "eval_a_loss", "eval_&lt;b&gt;_loss"]
