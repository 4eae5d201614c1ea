"""Questions for a stage that answers them itself, with the dataset's answers beside."""

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
    `answer`, its text. A question that is longer than `cutoff_len` is left out.

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
    broken, long, seen, with_tools = [], 0, 0, 0
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
            prompt, answer = example.conversation[:-1], example.conversation[-1]["content"]
            rendered = encoder.render(prompt, example.tools, add_generation_prompt=True)
        except (BadRow, UserError) as error:
            broken.append(Message("at_place", place=raw.place, problem=error.message))
            continue
        tokens = encoder.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        if config.cutoff_len and len(tokens) > config.cutoff_len:
            long += 1
            continue
        with_tools += bool(example.tools or any("tool_calls" in message for message in prompt))
        rows.append({"prompt": [{"role": m["role"], "content": m["content"]} for m in prompt], "answer": answer})
    if broken and not config.skip_broken_rows:
        word = Message("word_row" if len(broken) == 1 else "word_rows")
        raise UserError("dataset_broken", name=info.name, broken=len(broken), word=word, rows=seen, first=broken[:3])
    if with_tools:
        log(f"Warning: {info.name}: {with_tools:,} questions come with tools or calls; they are asked without.")
    if long:
        log(f"{info.name}: {long:,} questions are longer than cutoff_len {config.cutoff_len} and are not used.")
    return rows
