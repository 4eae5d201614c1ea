"""The rows of a run as token ids and labels, split into training and evaluation."""

from workbench.corpus.encode import Encoder
from workbench.corpus.formats import conversations
from workbench.corpus.registry import select
from workbench.errors import UserError
from workbench.models.demo import Progress
from workbench.options import RunConfig
from workbench.train.report import log
from workbench.workspace import Workspace, dataset_folder


def load_data(config: RunConfig, workspace: Workspace, tokenizer, progress: Progress):
    """`(training rows, evaluation rows or None)` as datasets with `input_ids` and `labels`.

    Raises:
        UserError: a broken row, or nothing left to train on.
    """
    encoder = Encoder(tokenizer, config.template, config.cutoff_len, config.train_on_prompt, config.mask_history)
    folder = dataset_folder(config.dataset_dir, workspace)
    progress("Tokenising", 0.0)
    rows = _encoded(config.dataset, folder, workspace, config, encoder)
    if not rows:
        raise UserError("No row of the dataset has anything to train on. Check the template, or raise cutoff_len.")
    if config.eval_dataset:
        held_out = _encoded(config.eval_dataset, folder, workspace, config, encoder)
    elif config.val_size:
        rows, held_out = _split(rows, config)
    else:
        held_out = []
    log(f"{len(rows):,} training rows" + (f", {len(held_out):,} evaluation rows." if held_out else "."))
    from datasets import Dataset

    return Dataset.from_list(rows), Dataset.from_list(held_out) if held_out else None


def _encoded(names: str, folder, workspace: Workspace, config: RunConfig, encoder: Encoder) -> list[dict]:
    rows, tokens, trained, shortened, skipped = [], 0, 0, 0, 0
    for info in select(names, folder, workspace):
        for place, messages in conversations(info, config.max_samples):
            try:
                encoded = encoder.encode(messages)
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
            shortened += bool(encoded.dropped_turns or encoded.cut_tokens)
            if not encoded.trained:
                skipped += 1
                continue
            tokens += len(encoded.input_ids)
            trained += encoded.trained
            rows.append({"input_ids": encoded.input_ids, "labels": encoded.labels})
    log(f"{names}: {len(rows):,} rows, {tokens:,} tokens, {trained:,} of them trained.")
    if shortened:
        log(
            f"{names}: {shortened:,} rows were longer than cutoff_len {config.cutoff_len} and lost their oldest turns or their end."
        )
    if skipped:
        log(f"{names}: {skipped:,} rows have no answer left within cutoff_len and are not used.")
    return rows


def _split(rows: list[dict], config: RunConfig) -> tuple[list[dict], list[dict]]:
    import random

    count = int(config.val_size) if config.val_size >= 1 else round(len(rows) * config.val_size)
    if not 0 < count < len(rows):
        raise UserError(
            f"val_size {config.val_size:g} leaves {len(rows) - count} training and {count} evaluation rows of {len(rows)}. Change it."
        )
    order = list(range(len(rows)))
    random.Random(config.seed).shuffle(order)
    held = set(order[:count])
    return [r for i, r in enumerate(rows) if i not in held], [rows[i] for i in sorted(held)]
