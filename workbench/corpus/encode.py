"""From a conversation to token ids and labels. The one code path for training and for looking at data.

A label is the token id where the model is trained on the token and -100 where not. By default that is every
assistant turn with its end token. Which characters those are comes from the template's generation markers; for a
model's own template without markers, from TRL's marked version of it, or else from rendering the conversation turn
by turn and taking what each assistant turn adds.
"""

from dataclasses import dataclass, field

from workbench.corpus import templates
from workbench.errors import UserError

IGNORE = -100


@dataclass
class Encoded:
    """One conversation as the model sees it; `labels` has the length of `input_ids`."""

    input_ids: list[int]
    labels: list[int]
    text: str
    dropped_turns: int = 0
    cut_tokens: int = 0

    @property
    def trained(self) -> int:
        """Number of tokens with loss."""
        return sum(label != IGNORE for label in self.labels)


@dataclass
class Encoder:
    """Renders and tokenises conversations with one tokenizer and one template.

    `cutoff_len` is in tokens, 0 for no limit. Longer conversations lose their oldest turns (the system text stays);
    a single turn that is still too long is cut at its end.
    """

    tokenizer: object
    template: str = "auto"
    cutoff_len: int = 0
    train_on_prompt: bool = False
    mask_history: bool = False
    _markers: bool = field(init=False)

    def __post_init__(self):
        if not getattr(self.tokenizer, "is_fast", True):
            raise UserError("This model has only a slow tokenizer, which cannot say where tokens lie in the text.")
        set_template(self.tokenizer, self.template)
        self._training_template, self._markers = _training_template(self.tokenizer)

    def render(self, messages: list[dict], *, add_generation_prompt: bool = False) -> str:
        """The exact text of a conversation."""
        return _render(self.tokenizer, messages, add_generation_prompt=add_generation_prompt)

    def encode(self, messages: list[dict]) -> Encoded:
        """Tokens and labels of a conversation.

        Raises:
            UserError: the template does not render this conversation (an unknown role, say).
        """
        encoded = self._encode(messages)
        limit = self.cutoff_len
        if not limit or len(encoded.input_ids) <= limit:
            return encoded
        system = messages[:1] if messages[0]["role"] == "system" else []
        turns, dropped = messages[len(system) :], 0
        while len(encoded.input_ids) > limit and len(turns) > 2:
            step = next((i for i in range(1, len(turns)) if turns[i]["role"] == "user"), 2)
            turns, dropped = turns[step:], dropped + step
            encoded = self._encode(system + turns)
        encoded.dropped_turns = dropped
        encoded.cut_tokens = max(0, len(encoded.input_ids) - limit)
        encoded.input_ids, encoded.labels = encoded.input_ids[:limit], encoded.labels[:limit]
        return encoded

    def _encode(self, messages: list[dict]) -> Encoded:
        text, spans = self._spans(messages)
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = tokens["input_ids"]
        if self.train_on_prompt:
            return Encoded(ids, list(ids), text)
        if self.mask_history:
            spans = spans[-1:]
        labels = [IGNORE] * len(ids)
        spans = iter(spans)
        start, end = next(spans, (len(text), len(text)))
        for index, (left, right) in enumerate(tokens["offset_mapping"]):
            while left >= end and start < len(text):
                start, end = next(spans, (len(text), len(text)))
            if start <= left < end and right > left:
                labels[index] = ids[index]
        return Encoded(ids, labels, text)

    def _spans(self, messages: list[dict]) -> tuple[str, list[tuple[int, int]]]:
        """The rendered text and the character ranges that the assistant wrote, in order."""
        if self._markers:
            from transformers.utils.chat_template_utils import render_jinja_template

            try:
                rendered, indices = render_jinja_template(
                    [messages], chat_template=self._training_template, return_assistant_tokens_mask=True,
                    **self.tokenizer.special_tokens_map)  # fmt: skip
            except Exception as error:  # Jinja raises many kinds
                raise UserError(f"The chat template cannot render this conversation: {error}.") from None
            return rendered[0], [tuple(span) for span in indices[0]]
        text, spans = self.render(messages), []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:index], add_generation_prompt=True)
            after = self.render(messages[: index + 1])
            if not (text.startswith(before) and text.startswith(after.rstrip())):
                raise UserError(
                    "The model's own chat template renders earlier turns differently later on, so its answers cannot be "
                    f"told from the rest. Choose a template: {', '.join(templates.names())}."
                )
            spans.append((len(before), len(after.rstrip())))
        return text, spans


def set_template(tokenizer, name: str) -> None:
    """Give `tokenizer` the named template; `auto` keeps the model's own.

    Raises:
        UserError: no such template, or `auto` for a model that has none.
    """
    text = templates.read(name)
    if text is not None:
        tokenizer.chat_template = text
    elif not tokenizer.chat_template:
        raise UserError(f"This model has no chat template of its own. Choose one: {', '.join(templates.names())}.")


def _training_template(tokenizer) -> tuple[str, bool]:
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    if has_generation_markers(tokenizer.chat_template):
        return tokenizer.chat_template, True
    try:
        marked = get_training_chat_template(tokenizer)
    except Exception:  # no marked version is known for this template
        return tokenizer.chat_template, False
    return (marked, True) if marked else (tokenizer.chat_template, False)


def _render(tokenizer, messages: list[dict], *, add_generation_prompt: bool) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # Jinja raises many kinds
        raise UserError(f"The chat template cannot render this conversation: {error}.") from None
