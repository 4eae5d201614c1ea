"""Questions for a stage that answers them itself, with the dataset's answers beside."""

import json

from workbench.config.options import RunConfig
from workbench.data.dataset import raw_rows, with_layout
from workbench.data.encode import Encoder
from workbench.data.formats import to_example
from workbench.data.readers import BadRow
from workbench.data.registry import DatasetInfo, select
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.models.demo import Progress
from workbench.storage.workspace import Workspace, dataset_folder


def load_prompts(config: RunConfig, workspace: Workspace, encoder: Encoder, progress: Progress, log) -> tuple:
    """`(rows to train on, rows to evaluate or None)`: datasets with `prompt`, the messages up to the last answer, and
    `answer`, its text; of an answer that calls a tool, the call as the template writes it. `rendered` is the question
    as the model sees it, `question` is JSON of its whole `messages` and `tools`. A question that is longer than
    `cutoff_len` is left out.

    Raises:
        UserError: a broken row (unless `skip_broken_rows`), or nothing left.
    """
    from datasets import Dataset

    folder = dataset_folder(config.dataset_dir, workspace)

    def read(names: str | None) -> list[dict]:
        rows: list[dict] = []
        for info in select(names or "", folder, workspace):
            rows += _prompts_of(info, config, encoder, progress, log)
        return rows

    rows, held_out = read(config.dataset), read(config.eval_dataset)
    if not rows:
        raise UserError("nothing_to_train")
    dataset, evaluated = Dataset.from_list(rows), Dataset.from_list(held_out) if held_out else None
    if config.val_size and evaluated is None:
        size = config.val_size if config.val_size < 1 else int(config.val_size)
        parts = dataset.train_test_split(test_size=size, seed=config.seed)
        dataset, evaluated = parts["train"], parts["test"]
    log(f"{len(dataset):,} questions" + (f", {len(evaluated):,} for evaluation." if evaluated else "."))
    return dataset, evaluated


def _prompts_of(info: DatasetInfo, config: RunConfig, encoder: Encoder, progress: Progress, log) -> list[dict]:
    rows: list[dict] = []
    broken, long, seen = [], 0, 0
    info = with_layout(info)
    for raw in raw_rows(info):
        seen += 1
        if config.max_samples and seen > config.max_samples:
            break
        if seen % 500 == 0:
            progress(Message("tokenizing_rows", name=info.name, rows=seen), 0.0)
        try:
            example = to_example(raw.row(), info)
            if example.text is not None:
                raise BadRow("missing", "row_no_question")
            prompt, last = example.conversation[:-1], example.conversation[-1]
            rendered = encoder.render(prompt, example.tools, add_generation_prompt=True)
            answer = last["content"] or ""
            if last.get("tool_calls"):
                answer = _as_written(encoder, example.conversation, example.tools, rendered)
        except (BadRow, UserError) as error:
            broken.append(Message("at_place", place=raw.place, problem=error.message))
            continue
        tokens = encoder.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        if config.cutoff_len and len(tokens) > config.cutoff_len:
            long += 1
            continue
        shown = [{"role": m["role"], "content": m["content"] or ""} for m in prompt]
        question = json.dumps({"messages": prompt, "tools": example.tools}, ensure_ascii=False)
        rows.append({"prompt": shown, "answer": answer, "rendered": rendered, "question": question})
    if broken and not config.skip_broken_rows:
        word = Message("word_row" if len(broken) == 1 else "word_rows")
        raise UserError("dataset_broken", name=info.name, broken=len(broken), word=word, rows=seen, first=broken[:3])
    if long:
        log(f"{info.name}: {long:,} questions are longer than cutoff_len {config.cutoff_len} and are not used.")
    return rows


def _as_written(encoder: Encoder, messages: list[dict], tools, rendered: str) -> str:
    """The last answer of a conversation as the model would have to write it, without its end token."""
    whole = encoder.render(messages, tools)
    written = whole.removeprefix(rendered) if whole.startswith(rendered) else str(messages[-1]["content"] or "")
    tokens = encoder.tokenizer(written, add_special_tokens=False)["input_ids"]
    return encoder.tokenizer.decode(tokens, skip_special_tokens=True).strip()
