"""The rows of a run as token ids and labels: datasets drawn from, mixed, split into training and evaluation, packed."""

import json
from dataclasses import asdict
from pathlib import Path

from workbench.config.option import split_names
from workbench.config.options import RunConfig
from workbench.data import templates
from workbench.data.encode import Encoder
from workbench.data.mixing import drawn, joined, mixed, split
from workbench.data.registry import DatasetInfo, select
from workbench.data.streaming import stream
from workbench.data.thinking import choice_in
from workbench.data.token_cache import Prepared, Progress, Summary, content_key, prepare
from workbench.data.tokenized import is_tokenized, read_tokenized, tokenized_folder, write_tokenized
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage.files import Unreadable, read_object, write_atomically
from workbench.storage.workspace import Workspace, dataset_folder

ROWS_OF_STAGES = {"dpo": "pairs", "rm": "pairs", "kto": "labeled"}


def encoder_of(config: RunConfig, tokenizer) -> Encoder:
    """The encoder that a run uses. Raises UserError: no such template, or a slow tokenizer."""
    kind = ROWS_OF_STAGES.get(config.stage, "conversations")
    return Encoder(
        tokenizer,
        config.template,
        config.cutoff_len,
        config.stage == "pt" or (config.train_on_prompt and kind == "conversations"),
        config.mask_history and config.stage != "pt",
        config.enable_thinking,
        kind,
    )


# what the log says of rows of which the template does not show everything
_LEFT_OUT = {
    "left_system": "the chat template leaves out the system text, so that it is not trained",
    "left_thought": "the chat template leaves out thoughts, so that they are not trained",
    "left_beside": "the chat template leaves out text beside tool calls, so that it is not trained",
    "opened_thought": "in chat the template opens a thought (<think>), but the last answer has none",
    "closed_thought": "in chat the prompt closes the thought before the answer, but the last answer has one",
    "empty_thought": "the chat template writes an empty thought before the last answer, and it is trained"
    " (enable_thinking: off leaves it to the prompt)",
}


def load_data(
    config: RunConfig, workspace: Workspace, tokenizer, progress: Progress, *, log=print, folder: Path | None = None
):
    """`(training rows, evaluation rows or None)` as datasets with `input_ids` and `labels`; packed ones and those of
    preferences with `seq_lengths`, too, and these with `wanted`.

    Args:
        log: takes one sentence.
        folder: the run's, for `data.json`: what each dataset came to.

    Raises:
        UserError: a broken row (unless `skip_broken_rows`), or nothing left to train on.
    """
    encoder = encoder_of(config, tokenizer)
    if config.template != "auto" and templates.is_own(config.template):
        log(f"template {config.template}: the model's own chat template is used.")
    if config.enable_thinking != "auto" and not choice_in(str(encoder.training_template)):
        log(f"enable_thinking {config.enable_thinking}: this chat template has no such switch, so it changes nothing.")
    kept = tokenized_folder(config, workspace)
    if kept is not None and is_tokenized(kept):
        if folder is not None:
            write_atomically(folder / "data.json", "{}")
        rows, held_out = read_tokenized(kept, len(tokenizer), log)
        if held_out is None and config.val_size:
            rows, held_out = split(rows, config)
        return _packed_where_asked(rows, config, log), held_out
    if not config.dataset:
        raise UserError("tokenized_missing", folder=kept)
    dataset_dir = dataset_folder(config.dataset_dir, workspace)
    progress(Message("tokenizing"), 0.0)
    summaries: dict[str, Summary] = {}
    contents: dict[str, str] = {}
    before = _known_contents(folder)

    def read(names: str | None) -> list:
        parts = []
        for info in select(names or "", dataset_dir, workspace):
            limit = config.max_samples if info.num_samples is None else None
            prepared = prepare(
                info, encoder, workspace, progress, limit=limit, workers=config.preprocessing_num_workers
            )
            summaries[info.name] = prepared.summary
            contents[info.name] = content_key(info)
            if folder is not None:
                known = {name: {**asdict(s), "content": contents[name]} for name, s in summaries.items()}
                write_atomically(folder / "data.json", json.dumps(known, ensure_ascii=False))
            if before.get(info.name, contents[info.name]) != contents[info.name]:
                log(
                    f"Warning: {info.name} has changed since this run read it last. It goes on with the new rows; what"
                    " it has learned from the old ones stays."
                )
            _report(info, prepared, config, log)
            parts.append(drawn(prepared.rows(), info, config))
        return [part for part in parts if len(part)]

    if config.streaming:
        if folder is not None:
            write_atomically(folder / "data.json", "{}")
        rows, held_out = stream(select(config.dataset or "", dataset_dir, workspace), encoder, config, log)
        return rows, joined(read(config.eval_dataset)) if config.eval_dataset else held_out
    rows = mixed(read(config.dataset), config)
    if rows is None:
        raise UserError("nothing_to_train")
    if encoder.kind == "labeled":
        _check_labels(rows)
    held_out = None
    if config.eval_dataset:
        parts = {name: read(name) for name in split_names(config.eval_dataset)}
        held_out = joined([part for one in parts.values() for part in one])
        if config.eval_on_each_dataset and held_out is not None:
            log(f"{len(held_out):,} evaluation rows.")
            held_out = {name: joined(one) for name, one in parts.items() if one}
    elif config.val_size:
        rows, held_out = split(rows, config)
    apart = isinstance(held_out, dict)
    log(f"{len(rows):,} training rows" + (f", {len(held_out):,} evaluation rows." if held_out and not apart else "."))
    if kept is not None and folder is not None:
        write_tokenized(kept, rows, joined(list(held_out.values())) if apart else held_out, log)
    return _packed_where_asked(rows, config, log), held_out


def _packed_where_asked(rows, config: RunConfig, log):
    if config.packs:
        rows = packed(rows, config)
        log(f"Packed into {len(rows):,} sequences of up to {config.cutoff_len:,} tokens; they do not see each other.")
    return rows


def _check_labels(rows) -> None:
    """Raise UserError for answers that are all wanted, or none of them."""
    from pyarrow import compute

    wanted = {
        value.as_py() for batch in rows.with_format("arrow").iter(1000) for value in compute.unique(batch["wanted"])
    }
    if len(wanted) == 1:
        raise UserError("one_label", label=str(wanted.pop()).lower())


def _known_contents(folder: Path | None) -> dict[str, str]:
    """Content keys of a run's datasets as it read them last; empty for a new run."""
    try:
        known = read_object(folder / "data.json") if folder else {}
    except (OSError, Unreadable):
        return {}
    return {name: entry["content"] for name, entry in known.items() if isinstance(entry, dict) and entry.get("content")}


def packed(rows, config: RunConfig):
    """Rows joined to sequences of up to `cutoff_len` tokens by TRL's best-fit-decreasing; `seq_lengths` tells them
    apart."""
    from trl import pack_dataset

    return pack_dataset(rows, config.cutoff_len, "bfd", {"num_proc": config.preprocessing_num_workers})


def conversation_lengths(rows) -> list[list[int]]:
    """Tokens of each conversation of each row; one that is not packed has one."""
    from pyarrow import compute

    if "seq_lengths" in rows.column_names:
        return [length for batch in rows.iter(1000) for length in batch["seq_lengths"]]
    batches = rows.with_format("arrow").iter(1000)
    return [[length] for batch in batches for length in compute.list_value_length(batch["input_ids"]).to_pylist()]


def together_in(rows) -> int:
    """How many conversations of a row have one loss together: two where rows are of preferences."""
    return 2 if "wanted" in rows.column_names else 1


def unit_lengths(lengths: list[list[int]], together: int) -> list[int]:
    """Tokens of what must stay in one micro-batch: of each conversation, or of a whole row of preferences."""
    return [sum(row) for row in lengths] if together > 1 else [length for row in lengths for length in row]


def longest_row(rows) -> int:
    """Tokens of the longest row."""
    from pyarrow import compute

    batches = rows.with_format("arrow").iter(1000)
    return max(compute.max(compute.list_value_length(batch["input_ids"])).as_py() for batch in batches)


def _report(info: DatasetInfo, prepared: Prepared, config: RunConfig, log) -> None:
    """Say what a dataset came to. Raises UserError where it has broken rows that are not to be skipped."""
    s = prepared.summary
    kind = ROWS_OF_STAGES.get(config.stage, "")
    if kind and not s.kept and not s.pairs and s.problems.get("missing"):
        lacking = "dataset_no_pairs" if kind == "pairs" else "dataset_no_labels"
        raise UserError(lacking, name=info.name, stage=config.stage)
    if s.broken:
        first = [Message("at_place", place=p.place, problem=p.reason) for p in s.broken_rows[:3]]
        first += [Message("and_more_problems", count=s.broken - 3)] if s.broken > 3 else []
        if not config.skip_broken_rows:
            word = Message("word_row" if s.broken == 1 else "word_rows")
            raise UserError("dataset_broken", name=info.name, broken=s.broken, word=word, rows=s.rows, first=first)
        log(f"{info.name}: {s.broken:,} broken rows of {s.rows:,} are skipped. {' '.join(first)}")
    log(f"{info.name}: {s.kept:,} rows, {s.tokens:,} tokens, {s.trained:,} of them trained.")
    if s.shortened:
        lost = s.full_tokens - s.tokens
        log(
            f"{info.name}: {s.shortened:,} rows were longer than cutoff_len {config.cutoff_len}; {lost:,} tokens of"
            " their older turns and longest texts are left out."
        )
    for kind, sentence in _LEFT_OUT.items():
        if count := s.problems.get(kind):
            log(f"Warning: {info.name}: {count:,} rows of {s.rows:,}: {sentence}.")
    if s.untrained:
        log(f"{info.name}: {s.untrained:,} rows have nothing to train on and are not used.")
    if s.pairs and not kind:
        log(f"{info.name}: {s.pairs:,} preference pairs; supervised fine-tuning uses the chosen answers only.")
    if s.unwanted and not kind:
        log(f"{info.name}: {s.unwanted:,} answers are labeled as not wanted and are not used.")
