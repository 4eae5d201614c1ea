"""A reward model as a reward of GRPO: it scores whole conversations, as it saw them in its own training."""

import json
import math

import torch

from workbench.config.options import RunConfig
from workbench.data.encode import Encoder
from workbench.data.readers import BadRow
from workbench.data.training_set import encoder_of
from workbench.errors import UserError
from workbench.models.demo import Progress
from workbench.models.load import load_model, load_tokenizer
from workbench.models.new_tokens import grow
from workbench.models.reward import locate_reward_model, reward_model
from workbench.storage.workspace import Workspace
from workbench.train.rewards import texts
from workbench.train.stages.rm import score_in_forward

BUDGET = {"cuda": 16_384, "cpu": 2048}  # tokens of a forward pass, padding included


class AnswerScores:
    """Called as TRL calls a reward: scores of answers, one forward pass for as many as fit.

    Args:
        model: scores a conversation at its last token; transformers' model for sequence classification, or PEFT's
            around one.
        encoder: of the reward model's own template and tokenizer.
        dtype: what it computes in.
    """

    __name__ = "model"

    def __init__(self, model, encoder: Encoder, dtype: torch.dtype):
        self._model, self._encoder = model.eval().requires_grad_(False), encoder
        self._device = next(model.parameters()).device
        self._half = dtype in (torch.float16, torch.bfloat16) and self._device.type == "cuda"
        self._dtype = dtype
        score_in_forward(model.get_base_model() if hasattr(model, "get_base_model") else model)

    def __call__(self, prompts: list, completions: list, question: list[str], **columns) -> list[float]:
        """Args:
            question: JSON of each row's `messages` and `tools`.

        Raises:
            UserError: a score that is no number.
        """
        rows = []
        for asked, answer in zip(question, texts(completions), strict=True):
            known = json.loads(asked)
            rows.append(self._ids([*known["messages"], {"role": "assistant", "content": answer}], known["tools"]))
        return self.scores(rows)

    def _ids(self, messages: list[dict], tools) -> list[int]:
        try:
            return self._encoder.encode(messages, tools).input_ids
        except (BadRow, UserError):  # an answer that the template cannot mark, such as one with its own markers in it
            tokens = self._encoder.tokenizer(self._encoder.render(messages, tools), add_special_tokens=False)
            return tokens["input_ids"][-(self._encoder.cutoff_len or len(tokens["input_ids"])) :]

    @torch.no_grad()
    def scores(self, rows: list[list[int]]) -> list[float]:
        """The score of each conversation, given as token ids."""
        found = [0.0] * len(rows)
        for places in _batches([len(row) for row in rows], BUDGET[self._device.type]):
            longest = max(len(rows[place]) for place in places)
            ids = torch.zeros(len(places), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for number, place in enumerate(places):
                ids[number, : len(rows[place])] = torch.tensor(rows[place])
                mask[number, : len(rows[place])] = 1
            ends = mask.sum(1) - 1 + torch.arange(len(places)) * longest
            given = {"input_ids": ids, "attention_mask": mask, "ends": ends}
            with torch.autocast(self._device.type, self._dtype, enabled=self._half):
                scores = self._model(**{name: value.to(self._device) for name, value in given.items()}).logits
            for place, score in zip(places, scores.float().tolist(), strict=True):
                found[place] = score
        if not all(map(math.isfinite, found)):
            raise UserError("reward_not_finite")
        return found


def _batches(lengths: list[int], budget: int) -> list[list[int]]:
    """Places of rows that go through the model together, of like lengths."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batches and (len(batches[-1]) + 1) * lengths[place] <= budget:
            batches[-1].append(place)
        else:
            batches.append([place])
    return batches


def answer_scores(
    config: RunConfig, workspace: Workspace, dtype: torch.dtype, progress: Progress, log
) -> AnswerScores | None:
    """The reward model of a run; None where it has none. Raises UserError: it cannot be loaded, or scores nothing."""
    if not config.scores_answers:
        return None
    folder, options = locate_reward_model(config.reward_model or "", workspace)
    own = options.model_copy(update={"trust_remote_code": config.trust_remote_code})
    tokenizer = load_tokenizer(own, workspace, progress)
    if (folder / "adapter_config.json").is_file():
        from peft import PeftModel

        base = load_model(own, workspace, dtype=dtype, split=False, progress=progress, log=log)
        if own.new_tokens:
            grow(base, len(tokenizer), log)
        model = PeftModel.from_pretrained(reward_model(base, own.seed), str(folder))
    else:
        from transformers import AutoModelForSequenceClassification

        given = {"dtype": dtype, "trust_remote_code": own.trust_remote_code}
        model = AutoModelForSequenceClassification.from_pretrained(folder, **given)
        if not hasattr(model, "score") or model.config.num_labels != 1:
            raise UserError("reward_model_kind", name=config.reward_model)
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    log(f"Answers are scored by the reward model {config.reward_model}.")
    return AnswerScores(model, encoder_of(own, tokenizer), dtype)
