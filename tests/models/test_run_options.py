"""Options of a run that change its steps: when it logs, evaluates and saves, the order of rows, tokenized rows."""

import json
from itertools import islice

import pytest
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.trained import losses, ready
from workbench.config.run_config import validated
from workbench.data.preflight import check_names
from workbench.data.training_set import load_data
from workbench.errors import UserError
from workbench.train.fast.strategy import PlainStep


def test_shares_of_all_steps(values, workspace):
    more = {"logging_steps": 0.25, "save_steps": 0.3, "eval_steps": 0.1, "eval_strategy": "steps", "val_size": 4}
    trainer, _, run = ready(values, workspace, **more, save_strategy="steps")
    trainer.train()
    logged = [row["step"] for row in trainer.state.log_history if "loss" in row]
    assert {1, 5, 10, 15, 20} <= set(logged)
    assert [row["step"] for row in trainer.state.log_history if "eval_loss" in row] == list(range(2, 21, 2))
    assert sorted(int(path.name.split("-")[1]) for path in run.checkpoints()) == [6, 12, 18, 20]


def test_the_best_checkpoint_is_what_is_saved_at_the_end(values, workspace):
    best = {
        "load_best_model_at_end": True,
        "val_size": 4,
        "eval_strategy": "steps",
        "eval_steps": 0.2,
        "save_steps": 0.4,
    }
    trainer, _, run = ready(
        values, workspace, **best, save_strategy="steps", learning_rate=0.2
    )  # so that it gets worse
    trainer.train()
    trainer.save_model(str(run.path))
    evaluated = {row["step"]: row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row}
    saved = {step: loss for step, loss in evaluated.items() if step % 8 == 0 or step == 20}
    step = min(saved, key=saved.__getitem__)
    assert step != 20 and trainer.state.best_model_checkpoint == str(run.path / f"checkpoint-{step}")
    ours, kept = (
        load_file(folder / "adapter_model.safetensors") for folder in (run.path, run.path / f"checkpoint-{step}")
    )
    assert all(torch.equal(ours[key], kept[key]) for key in kept)


def test_rows_in_their_order(values, workspace):
    trainer, rows, _ = ready(values, workspace, disable_shuffling=True)
    assert list(trainer._get_train_sampler()) == list(range(len(rows)))
    shuffled, _, _ = ready(values, workspace)
    assert sorted(order := list(shuffled._get_train_sampler())) == list(range(len(rows))) != order


def test_a_loss_for_each_evaluation_dataset(values, workspace, tmp_path):
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    for name, text in (("a", "x"), ("b", "yy" * 9)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": "Q", "completion": text}) + "\n")
        info[name] = {"file_name": f"{name}.jsonl"}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    each = {"eval_dataset": "a,b", "eval_strategy": "steps", "eval_steps": 10, "early_stopping_steps": 1}
    trainer, _, run = ready(values, workspace, **each, eval_on_each_dataset=True, learning_rate=0.5)
    together, _, _ = ready(values, workspace, **each, learning_rate=0.5)
    for one in (trainer, together):
        one.train()
    rows = [row for row in map(json.loads, run.metrics.read_text().splitlines()) if "eval_loss" in row]
    assert {"eval_a_loss", "eval_b_loss"} <= rows[0].keys() and rows[0]["eval_a_loss"] != rows[0]["eval_b_loss"]
    ours, theirs = (
        [row["eval_loss"] for row in t.state.log_history if "eval_loss" in row] for t in (trainer, together)
    )
    assert ours == pytest.approx(theirs, abs=1e-5)


def test_tokenized_rows_are_written_once_and_read_again(values, workspace, tmp_path):
    lines: list[str] = []

    def load(**more):
        config = validated(values | {"tokenized_path": "kept/rows"} | more)
        (workspace.root / "kept").mkdir(exist_ok=True)
        tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path)
        return load_data(config, workspace, tokenizer, lambda *_: None, log=lines.append, folder=tmp_path)

    rows, held_out = load(val_size=4)
    assert "are kept in" in lines[-1] and isinstance(load_from_disk(str(workspace.root / "kept/rows")), DatasetDict)
    (tmp_path / "rows.jsonl").unlink()
    again, again_out = load(dataset=None)
    assert (again["input_ids"], again["labels"]) == (rows["input_ids"], rows["labels"])
    assert again_out["labels"] == held_out["labels"]
    assert len(load(packing=True)[0]) < len(rows)


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"text": ["a"]}, "tokenized_columns"),
        ({"input_ids": [[1, 2]], "labels": [[1]]}, "tokenized_lengths"),
        ({"input_ids": [[1, 99999]], "labels": [[1, 2]]}, "tokenized_vocabulary"),
        ({"input_ids": [[1, -5]], "labels": [[1, 2]]}, "tokenized_vocabulary"),
        ({"input_ids": [[1, 2]], "labels": [[1, 2]], "position_ids": [[0, 0]]}, "tokenized_packed"),
        ({"input_ids": [[1, 2]], "labels": [[1, 2]], "attention_mask": [[1, 2]]}, "tokenized_packed"),
    ],
)
def test_tokenized_rows_that_do_not_fit_are_refused(columns, code, values, workspace, tmp_path):
    Dataset.from_dict(columns).save_to_disk(str(tmp_path / "kept"))
    config = validated(values | {"tokenized_path": str(tmp_path / "kept")})
    tokenizer = AutoTokenizer.from_pretrained(config.model_name_or_path)
    with pytest.raises(UserError) as caught:
        load_data(config, workspace, tokenizer, lambda *_: None, log=lambda line: None)
    assert caught.value.message.code == code


def test_a_folder_that_is_no_dataset_and_none_at_all(values, workspace, tmp_path):
    DatasetDict({"test": Dataset.from_dict({"input_ids": [[1]], "labels": [[1]]})}).save_to_disk(
        str(tmp_path / "other")
    )
    config = validated(values | {"tokenized_path": str(tmp_path / "other")})
    with pytest.raises(UserError) as caught:
        load_data(config, workspace, AutoTokenizer.from_pretrained(config.model_name_or_path), lambda *_: None)
    assert caught.value.message.code == "tokenized_empty"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "dataset_dict.json").write_text("[")
    config = validated(values | {"tokenized_path": str(tmp_path / "broken")})
    with pytest.raises(UserError) as caught:
        load_data(config, workspace, AutoTokenizer.from_pretrained(config.model_name_or_path), lambda *_: None)
    assert caught.value.message.code == "tokenized_unreadable"
    nothing = {key: value for key, value in values.items() if key != "dataset"} | {"tokenized_path": "not/there"}
    with pytest.raises(UserError) as caught:
        check_names(validated(nothing), workspace)
    assert caught.value.message.code == "tokenized_missing"


def test_a_pages_user_reads_and_writes_tokenized_rows_in_the_workspace_only(values, workspace, tmp_path):
    values = values | {"dataset_dir": "data", "model_name_or_path": "a/b"}
    page = workspace.seen(confined=True)
    page.confine(validated(values | {"tokenized_path": "kept"}))
    for path in ("/etc", "../elsewhere", str(tmp_path / "outside")):
        with pytest.raises(UserError) as caught:
            page.confine(validated(values | {"tokenized_path": path}))
        assert caught.value.message.code == "path_outside"


def test_rows_are_read_while_the_run_trains(values, workspace, tmp_path):
    one = {"streaming": True, "disable_shuffling": True}
    trainer, rows, run = ready(values, workspace, **one)
    assert type(trainer.step_strategy) is PlainStep and run.state().warning.startswith("Steps run as transformers")
    whole, kept, _ = ready(values, workspace, disable_shuffling=True)
    assert [row["input_ids"] for row in islice(rows, 80)] == 2 * list(kept["input_ids"])
    trainer.train()
    whole.train()
    assert torch.allclose(losses(trainer), losses(whole), rtol=0, atol=1e-5)
    shuffled, rows, _ = ready(values, workspace, streaming=True, buffer_size=8, val_size=4, eval_strategy="steps")
    seen = {tuple(row["input_ids"]) for row in islice(rows, 100)}
    assert seen == set(map(tuple, kept["input_ids"][4:]))
    shuffled.train()
    assert "eval_loss" in shuffled.evaluate()


def test_a_streamed_run_goes_on_where_it_was(values, workspace):
    one = {"streaming": True, "buffer_size": 8}
    whole, _, _ = ready(values, workspace, **one)
    whole.train()
    first, _, run = ready(values, workspace, **one, save_strategy="steps", save_steps=13)
    first.args.max_steps = 13
    first.train()
    again, _, _ = ready(values, workspace, **one)
    again.train(resume_from_checkpoint=str(run.path / "checkpoint-13"))
    assert torch.allclose(losses(again)[-7:], losses(whole)[-7:], rtol=0, atol=1e-5)


def test_a_streamed_row_that_is_broken_ends_the_run(values, workspace, tmp_path):
    with open(tmp_path / "rows.jsonl", "a") as file:
        file.write("{broken\n")
    with pytest.raises(UserError) as caught:
        ready(values, workspace, streaming=True)[0].train()
    assert caught.value.message.code == "streaming_broken"
    _, rows, _ = ready(values, workspace, streaming=True, skip_broken_rows=True, disable_shuffling=True)
    first = [row["input_ids"] for row in islice(rows, 40)]
    assert first[39] == first[0] != first[38]  # one of 40 is broken now
    with pytest.raises(UserError) as caught:
        ready(values, workspace, streaming=True, skip_broken_rows=True, val_size=40)
    assert caught.value.message.code == "streaming_held_out"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"max_steps": -1}, "streaming_steps"),
        ({"packing": True}, "streaming_packing"),
        ({"tokenized_path": "x"}, "streaming_tokenized"),
        ({"val_size": 0.1}, "streaming_share"),
    ],
)
def test_what_streaming_cannot_do(options, code, values):
    with pytest.raises(UserError) as caught:
        validated(values | {"streaming": True} | options)
    assert [problem.code for problem in caught.value.message.values["problems"]] == [code]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"save_steps": 2.5}, "steps_not_whole"),
        ({"eval_on_each_dataset": True, "eval_dataset": "a", "eval_strategy": "steps"}, "each_of_several"),
        ({"load_best_model_at_end": True}, "best_without_evaluation"),
        ({"load_best_model_at_end": True, "val_size": 2, "eval_strategy": "epoch"}, "best_strategies"),
        ({"load_best_model_at_end": True, "val_size": 2, "eval_strategy": "steps", "eval_steps": 3, "save_steps": 10}, "best_steps"),
        ({"load_best_model_at_end": True, "val_size": 2, "eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 10}, "best_steps"),
    ],
)  # fmt: skip
def test_steps_that_do_not_fit_are_refused(options, code, values):
    values = {key: value for key, value in values.items() if key != "save_strategy"}
    with pytest.raises(UserError) as caught:
        validated(values | options)
    assert [problem.code for problem in caught.value.message.values["problems"]] == [code]
