"""What the Data tab shows is what the trainer's collator gives to the model; what it counts is what the run will
have."""

import itertools
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from workbench.config.run_config import validated
from workbench.data import preview
from workbench.data.encode import IGNORE
from workbench.data.mixing import split
from workbench.data.registry import select
from workbench.data.statistics import packed_count, statistics, steps_of
from workbench.data.token_cache import prepare
from workbench.data.training_set import encoder_of, load_data
from workbench.data.worker import Worker
from workbench.runs.run import create_run
from workbench.train.trainer import build_trainer

WORDS = ["你好", "tool", "naïve", "🙂", "a", "long-ish", "{x}"]


def conversations(count: int) -> list[dict]:
    """Conversations of 1 to 4 exchanges, some with a system text, in several scripts."""
    draw, rows = random.Random(0), []
    for number in range(count):
        turns = [{"role": "system", "content": "Be kind. 请简短。"}] if draw.random() < 0.4 else []
        for turn in range(draw.randint(1, 4)):
            for role in ("user", "assistant"):
                words = " ".join(draw.choices(WORDS, k=draw.randint(1, 6)))
                turns.append({"role": role, "content": f"{number}.{turn} {words}"})
        rows.append({"messages": turns})
    return rows


@pytest.fixture
def folder(tmp_path):
    rows = conversations(30)
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "Plain text. " * 40}))
    entries = {
        "talks": {"file_name": "talks.jsonl"},
        "texts": {"file_name": "texts.jsonl"},
        "few": {"file_name": "talks.jsonl", "num_samples": 7},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    return tmp_path


@pytest.fixture
def quiet():
    return {"progress": lambda phase, share: None, "log": lambda words: None}


def options(model, folder, **values) -> dict:
    """Options of a run, as the page sends them."""
    return {
        "model_name_or_path": str(model),
        "dataset": "talks,texts",
        "dataset_dir": str(folder),
        "output_dir": None,
        "cutoff_len": 600,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        **values,
    }


def conversations_of(trainer, batch) -> list[tuple]:
    """The (ids, trained) of each conversation in the micro-batches that a batch of rows is cut into."""
    found = []
    for part in trainer.step_strategy.arrange(trainer, [batch["rows"]]):
        ids, labels, positions = (part[name][0] for name in ("input_ids", "labels", "position_ids"))
        bounds = part["bounds"].tolist()
        assert bounds[0] == 0 and bounds[-1] == len(ids)
        for start, end in itertools.pairwise(bounds):
            assert positions[start:end].tolist() == list(range(end - start))
            one = ids[start:end].tolist(), labels[start:end].tolist()
            assert all(label in (IGNORE, id_) for id_, label in zip(*one, strict=True))
            found.append((tuple(one[0]), tuple(int(label != IGNORE) for label in one[1])))
    return found


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"cutoff_len": 90},
        {"packing": True},
        {"packing": True, "cutoff_len": 120},
        {"mask_history": True},
        {"train_on_prompt": True},
    ],
    ids=["plain", "cut", "packed", "packed and cut", "last answer", "prompts too"],
)
def test_what_is_shown_is_what_the_collator_yields(
    values, workspace, tiny_model, tokenizer, folder, quiet, monkeypatch
):
    monkeypatch.setattr(preview, "MOST_PIECES", 100)  # of a long text the page shows the first ones only
    config = options(tiny_model, folder, **values)
    worker = Worker(workspace, lambda message: None, confined=False)
    shown, said = [], []
    for name in ("talks", "texts"):
        for row in worker.preview(name, config, 0, 100)["rows"]:
            shown += [
                (tuple(t[0] for t in one["tokens"]), tuple(t[2] for t in one["tokens"])) for one in row["encoded"]
            ]
            said += [("".join(t[1] for t in one["tokens"]), one["text"]) for one in row["encoded"]]
    assert len(shown) > 30 and all(tokens == text for tokens, text in said)

    parsed = validated(config)
    rows, _ = load_data(parsed, workspace, tokenizer, **quiet)
    from transformers import AutoModelForCausalLM

    trainer = build_trainer(
        create_run(workspace, parsed),
        parsed,
        AutoModelForCausalLM.from_pretrained(tiny_model),
        tokenizer,
        rows,
        None,
        torch.float32,
        SimpleNamespace(requested=False),
    )
    yielded = [one for batch in trainer.get_train_dataloader() for one in conversations_of(trainer, batch)]
    assert sorted(yielded) == sorted(shown)

    sequences = worker.batches(config, 0, 1000)
    assert sequences["total"] == len(rows) == len(sequences["sequences"])
    parts = []
    for one in sequences["sequences"]:
        bounds = [*one["starts"], one["length"]]
        for start, end in itertools.pairwise(bounds):
            parts.append(tuple(zip(*((t[0], t[2]) for t in one["tokens"][start:end]), strict=True)))
    assert sorted(parts) == sorted(shown)
    assert bool(values.get("packing")) == any(len(one["starts"]) > 1 for one in sequences["sequences"])


@pytest.mark.parametrize(
    "values",
    [
        {}, {"cutoff_len": 90}, {"packing": True, "cutoff_len": 256}, {"val_size": 0.2}, {"dataset": "few,texts", "packing": True},
        {"mix_strategy": "interleave_over", "interleave_probs": "0.7,0.3", "packing": True, "cutoff_len": 200},
        {"max_samples": 5, "val_size": 2},
    ],
)  # fmt: skip
def test_statistics_count_what_the_run_has(values, workspace, tiny_model, tokenizer, folder, quiet):
    config = options(tiny_model, folder, **values)
    found = Worker(workspace, lambda message: None, confined=False).stats(config)
    parsed = validated(config)
    rows, _ = load_data(parsed, workspace, tokenizer, **quiet)
    assert found["sequences"] == len(rows)
    assert found["tokens"] == sum(len(row["input_ids"]) for row in rows)
    from transformers import AutoModelForCausalLM

    trainer = build_trainer(
        create_run(workspace, parsed),
        parsed,
        AutoModelForCausalLM.from_pretrained(tiny_model),
        tokenizer,
        rows,
        None,
        torch.float32,
        SimpleNamespace(requested=False),
    )
    args = trainer.args
    assert found["steps"] == trainer.set_initial_training_values(args, trainer.get_train_dataloader())[1]
    assert sum(found["counts"]) == found["training_rows"]


def test_the_share_that_is_lost_is_that_of_the_tokens(workspace, tiny_model, tokenizer, folder, quiet):
    found = {
        cutoff: (
            Worker(workspace, lambda message: None, confined=False).stats(
                options(tiny_model, folder, dataset="talks", cutoff_len=cutoff)
            )
        )
        for cutoff in (0, 90)
    }
    whole, cut = found[0], found[90]
    encoder = encoder_of(validated(options(tiny_model, folder, cutoff_len=0)), tokenizer)
    lengths = [len(encoder.encode(row["messages"]).input_ids) for row in conversations(30)]
    assert whole["longest"] == cut["longest"] == max(lengths) and whole["share_tokens_lost"] == 0
    assert cut["full_tokens"] == whole["tokens"] == sum(lengths)
    assert cut["rows_cut"] == sum(n > 90 for n in lengths) > 3
    assert (
        cut["share_tokens_lost"] == pytest.approx(1 - cut["tokens"] / sum(lengths)) and cut["share_tokens_lost"] > 0.1
    )
    assert cut["percentiles"]["50"] == int(np.percentile(lengths, 50, method="higher"))


def test_a_run_takes_over_what_statistics_have_tokenized(workspace, tiny_model, tokenizer, folder, quiet, monkeypatch):
    config = options(tiny_model, folder)
    found = Worker(workspace, lambda message: None, confined=False).stats(config)
    monkeypatch.setattr("workbench.data.token_cache._write", lambda *_: pytest.fail("tokenized again"))
    rows, _ = load_data(validated(config), workspace, tokenizer, **quiet)
    assert len(rows) == found["training_rows"]


@pytest.mark.parametrize("longest", [40, 130, 300])
def test_packed_rows_are_counted_as_trl_packs_them(longest):
    from datasets import Dataset
    from trl import pack_dataset

    draw = random.Random(longest)
    lengths = [draw.randint(1, longest) for _ in range(2500)]
    rows = Dataset.from_dict({"input_ids": [[1] * n for n in lengths]})
    assert packed_count(np.array(lengths), 128) == len(pack_dataset(rows, 128, "bfd"))


def test_suggestions_follow_the_lengths(workspace, tiny_model, tokenizer, tmp_path):
    def suggested(rows, **values) -> dict:
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl"}}))
        config = validated(
            options(
                tiny_model,
                tmp_path,
                dataset="rows",
                per_device_train_batch_size=1,
                gradient_accumulation_steps=1,
                **values,
            )
        )
        encoder = encoder_of(config, tokenizer)
        parts = [(info, prepare(info, encoder, workspace, lambda *_: None)) for info in select("rows", tmp_path)]
        return dict(statistics(parts, config, workspace).suggestions)

    short = [{"prompt": f"{i}", "completion": "yes"} for i in range(1600)]
    assert suggested(short, cutoff_len=512)["packing_on"]["rows"] == 1600
    assert suggested(short, cutoff_len=512)["cutoff_lower"]["cutoff_len"] == 256
    assert suggested(short[:60], cutoff_len=1024, packing=True)["packing_off"]["steps"] < 50
    long = [{"prompt": f"{i}", "completion": "x" * 900} for i in range(60)]
    assert suggested(long, cutoff_len=256)["cutoff"] == {"cutoff_len": 1024, "kept": 1.0}
    assert suggested(long, cutoff_len=1024) == {}


def test_steps_are_those_of_an_epoch():
    config = validated(
        {"model_name_or_path": "m", "dataset": "d", "per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}
    )
    assert [steps_of(n, config) for n in (1, 12, 13, 24, 25)] == [1, 1, 2, 2, 3]


def test_lengths_split_as_the_rows_do():
    from datasets import Dataset

    config = validated({"model_name_or_path": "m", "dataset": "d", "val_size": 0.3})
    train, held = split(Dataset.from_dict({"n": list(range(50))}), config)
    assert len(held) == 15 and sorted([*train["n"], *held["n"]]) == list(range(50))
