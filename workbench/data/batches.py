"""The rows of a run as its collator gives them to the model, for people to look at."""

from workbench.config.options import RunConfig
from workbench.data.encode import IGNORE
from workbench.data.preview import tokens_view
from workbench.data.training_set import load_data
from workbench.models.demo import Progress
from workbench.models.vocabulary import Vocabulary
from workbench.storage.workspace import Workspace


def collator_of(config: RunConfig, tokenizer):
    """TRL's collator as its SFTTrainer makes it for these options: packed rows without padding, their places counted
    anew for each."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    joined = config.packs or config.preferences
    return DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id, padding_free=joined)


def sequences(
    config: RunConfig,
    workspace: Workspace,
    tokenizer,
    vocabulary: Vocabulary,
    progress: Progress,
    start: int,
    count: int,
) -> dict:
    """Training rows from number `start` on, in the order of the data (the trainer shuffles them), for JSON.

    Each has `tokens` as [id, text, 1 if trained], and `starts`: where a conversation begins, as the position ids that
    the model gets say.

    Raises:
        UserError: as `load_data`.
    """
    log: list[str] = []
    rows, _ = load_data(config, workspace, tokenizer, progress, log=log.append)
    collate, batches = collator_of(config, tokenizer), []
    for number in range(start, min(start + count, len(rows))):
        batch = collate([rows[number]])
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        places = batch["position_ids"][0].tolist() if "position_ids" in batch else range(len(ids))
        starts = [index for index, position in enumerate(places) if position == 0]
        trained = sum(label != IGNORE for label in labels)
        batches.append(
            {
                "number": number + 1,
                "length": len(ids),
                "trained": trained,
                "starts": starts,
                **tokens_view(ids, labels, vocabulary),
            }
        )
    return {"sequences": batches, "total": len(rows), "log": log}
