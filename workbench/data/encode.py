"""From a conversation to token ids and labels. The one code path for training and for looking at data.

A label is the token id where the model is trained on the token and -100 where not. By default that is every
assistant turn with its end token. Which characters those are comes from the template's generation markers; for a
model's own template without markers, from TRL's marked version of it, or else from rendering the conversation turn
by turn and taking what each assistant turn adds.
"""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.data import templates
from workbench.data.chat_template import Habits, habits, in_their_form, joined, training_template
from workbench.data.formats import Example
from workbench.data.left_out import KINDS, NEEDED, Piece, left_out, long_texts, signature
from workbench.data.thinking import with_choice
from workbench.errors import UserError
from workbench.messages.message import Message

IGNORE = -100
MAX_RENDERED = 32 << 20  # characters of a conversation
_EMPTY_THOUGHT = re.compile(r"\s*(?:<think>)?\s*</think>\s*")
_STRUCTURES = 10_000  # of conversations whose dropped pieces are remembered
_ENDS = 8  # tokens that stay at each end of a text that is shortened


@dataclass
class Encoded:
    """One training row as the model sees it; `labels` has the length of `input_ids`, `text` is what those tokens say.

    `full_length`: tokens before anything was cut. `dropped_turns` are missing before the turn whose text begins with
    token `dropped_at`. `cuts`: (index into `input_ids`, tokens that are missing before it). `answer_cut`: the last
    answer did not fit, so that its end token is there but not trained. `notices`: (kind of problem, message) about
    what the template did to the row.
    """

    input_ids: list[int]
    labels: list[int]
    text: str
    full_length: int = 0
    dropped_turns: int = 0
    dropped_at: int = 0
    cuts: list[tuple[int, int]] = field(default_factory=list)
    answer_cut: bool = False
    notices: list[tuple[str, Message]] = field(default_factory=list)

    @property
    def cut_tokens(self) -> int:
        """Tokens that are missing within the turns that are left."""
        return sum(count for _, count in self.cuts)

    @property
    def trained(self) -> int:
        """Number of tokens with loss."""
        return sum(label != IGNORE for label in self.labels)


@dataclass
class Encoder:
    """Renders and tokenizes conversations with one tokenizer and one template.

    `cutoff_len` is in tokens, 0 for no limit. Longer conversations lose their oldest turns; the system text and the
    last turns stay. What is too long even then loses the middle of its longest question or tool result, and at last the
    end of the answer, but never the end token.
    """

    tokenizer: Any  # a fast tokenizer of transformers
    template: str = "auto"
    cutoff_len: int = 0
    train_on_prompt: bool = False
    mask_history: bool = False
    enable_thinking: str = "auto"  # on, off, or as the template has it
    kind: str = "conversations"  # of training rows; or "pairs" (two answers), "labeled" (wanted or not)
    training_template: str = field(init=False)  # the one with markers, where there is one
    _markers: bool = field(init=False)
    _habits: Habits = field(init=False)
    _dropped: dict[str, list[Piece]] = field(init=False, default_factory=dict)

    def __post_init__(self):
        if not getattr(self.tokenizer, "is_fast", True):
            raise UserError("tokenizer_slow")
        set_template(self.tokenizer, self.template, self.enable_thinking)
        self.training_template, self._markers = training_template(self.tokenizer)
        self._habits = habits(self._rendered, self.training_template)

    def render(
        self, messages: list[dict], tools: list[dict] | None = None, *, add_generation_prompt: bool = False
    ) -> str:
        """The exact text of a conversation."""
        return self._rendered(in_their_form(messages), tools, add_generation_prompt=add_generation_prompt)

    def _rendered(self, messages: list[dict], tools: list[dict] | None = None, *, add_generation_prompt=False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except MemoryError:
            raise UserError("template_memory") from None
        except Exception as error:  # Jinja raises many kinds
            raise UserError("template_failed", problem=str(error)[:300]) from None
        return _bounded(text)

    def encode_example(self, example: Example) -> list[Encoded]:
        """The training rows of one row of data: one, or several of a plain text that is longer than `cutoff_len`.

        A preference pair gives its chosen answer; with `kind` pairs, both of its conversations. Raises UserError as
        `encode`.
        """
        if example.text is not None:
            return self.pieces(example.text)
        if self.kind == "pairs":
            return self.encode_pair(example)
        if self.kind == "labeled":
            return [self.encode(only_last_trained(example.conversation), example.tools)]
        return [self.encode(example.conversation, example.tools)]

    def encode(self, messages: list[dict], tools: list[dict] | None = None) -> Encoded:
        """Tokens and labels of a conversation.

        Raises:
            UserError: the template does not render this conversation (an unknown role, say), or leaves its tools out.
        """
        messages = self._habits.with_thoughts(messages)
        encoded, layout = self._encode(messages, tools)
        notices = self._look(messages, tools, encoded.text)
        if tokens := self._empty_thought(messages, encoded, layout):
            notices.append(("empty_thought", Message("thought_empty", tokens=tokens)))
        limit, full = self.cutoff_len, len(encoded.input_ids)
        if limit and full > limit:
            encoded = self._shortened(messages, self._kept_from(messages, tools, limit), tools, limit)
        encoded.full_length, encoded.notices = full, notices
        return _first_untrained(encoded)

    def encode_pair(self, example: Example) -> list[Encoded]:
        """The conversations with the chosen and the rejected answer of a preference pair. Only the answers are trained.

        What is left out of a question that is too long is the same in both. Raises UserError as `encode`.
        """
        asked = [message | {"train": False} for message in example.messages]
        sides = [asked + answer for answer in (example.chosen or [], example.rejected or [])]
        encoded = [self.encode(messages, example.tools) for messages in sides]
        limit, longest = self.cutoff_len, max(one.full_length for one in encoded)
        if not limit or longest <= limit:
            return encoded
        sides = [self._habits.with_thoughts(messages) for messages in sides]
        longer = sides[encoded[1].full_length > encoded[0].full_length]
        start = self._kept_from(longer, example.tools, limit)
        most = max(len(self._encode(_from(messages, start), example.tools)[0].input_ids) for messages in sides)
        shortened = [self._shortened(messages, start, example.tools, limit, most - limit) for messages in sides]
        for short, whole in zip(shortened, encoded, strict=True):
            short.full_length, short.notices = whole.full_length, whole.notices
        return [_first_untrained(one) for one in shortened]

    def _look(self, messages: list[dict], tools, text: str) -> list[tuple[str, Message]]:
        """`(kind, sentence)` about what the template leaves out.

        Raises:
            UserError: it leaves out what the conversation does not make sense without.
        """
        known = signature(messages, tools)
        dropped = self._dropped.get(known)
        if dropped is None or not all(part in text for part in long_texts(messages)):  # or this row is a special one
            dropped = left_out(messages, tools, text, lambda *marked: self._text(*marked))
            if len(self._dropped) < _STRUCTURES:
                self._dropped.setdefault(known, dropped)
        if missing := [piece for piece in dropped if piece.kind in NEEDED]:
            first = missing[0]
            piece = Message(KINDS[first.kind])
            what, them = ("out_texts", "them_texts") if first.kind == "text" else ("out_tools", "them_tools")
            raise UserError(
                "template_leaves_needed",
                what=Message(what),
                piece=Message("piece_of_turn", piece=piece, turn=first.turn) if first.turn else piece,
                them=Message(them),
            )
        notices = []
        for kind in ("system", "thought", "beside"):
            if turns := sorted({piece.turn for piece in dropped if piece.kind == kind}):
                numbers = turns if len(turns) < 6 else Message("and_more", numbers=turns[:5])
                left = Message("template_leaves", piece=Message(KINDS[kind]), numbers=numbers)
                notices.append((f"left_{kind}", left))
        thinks = self._habits.has_thought(messages[-1])
        if self._habits.opens_thought and not thinks:
            notices.append(("opened_thought", Message("thought_opened")))
        if self._habits.closes_thought and thinks:
            notices.append(("closed_thought", Message("thought_closed")))
        return notices

    def _empty_thought(self, messages: list[dict], encoded: Encoded, layout: "_Layout") -> int:
        """Trained tokens of the empty thought that the template puts before the last answer."""
        if not layout.spans or self._habits.has_thought(messages[-1]):
            return 0
        start, end = layout.spans[-1]
        written = _EMPTY_THOUGHT.match(layout.text, start, end)
        if written is None:
            return 0
        tokens = layout.tokens_within(start, written.end())
        return sum(label != IGNORE for label in encoded.labels[tokens.start : tokens.stop])

    def _text(self, messages: list[dict], tools) -> str:
        """What a run trains on of a conversation, as text."""
        return self._marked(messages, tools)[0] if self._markers else self.render(messages, tools)

    def prompt(self, messages: list[dict], tools: list[dict] | None = None) -> tuple[str, list[int], str]:
        """`(text, token ids, label)` to ask a conversation's last question with: the text as chat asks, and the last
        answer as a run trains it, without special tokens. Of a conversation that ends with its question the label is
        empty. Nothing is cut.

        Raises:
            UserError: as `encode`.
        """
        messages = self._habits.with_thoughts(messages)
        answered = messages[-1]["role"] == "assistant"
        text, spans = self._spans(messages, tools) if answered else (self._text(messages, tools), [])
        self._look(messages, tools, text)
        asked = self.render(messages[:-1] if answered else messages, tools, add_generation_prompt=True)
        ids = self.tokenizer(asked, add_special_tokens=False, verbose=False)["input_ids"]
        if not spans:
            return asked, ids, ""
        start, end = joined(spans, text)[-1]
        answer = self.tokenizer(text[start:end], add_special_tokens=False, verbose=False)["input_ids"]
        label = self.tokenizer.decode(answer, skip_special_tokens=True)
        said = messages[-1]["content"].strip()
        if said and not messages[-1].get("tool_calls") and (at := label.rfind(said)) >= 0:
            label = label[: at + len(said)]  # an end of turn that is no token of this tokenizer
        return asked, ids, label

    def pieces(self, text: str) -> list[Encoded]:
        """Plain text, trained whole, with an end token; in pieces of about equal length where it is longer than
        `cutoff_len`."""
        tokens = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        ids, offsets, end = tokens["input_ids"], tokens["offset_mapping"], self.tokenizer.eos_token_id
        begin = self.tokenizer.bos_token_id
        if begin is not None and ids[:2] == [begin, begin]:  # the text brings its own
            ids, offsets = ids[1:], offsets[1:]
        if end is not None and ids[-1:] != [end]:
            ids, offsets = [*ids, end], [*offsets, (len(text), len(text))]
        places = np.array(offsets, dtype=np.int64).reshape(-1, 2)
        count = -(-len(ids) // self.cutoff_len) if self.cutoff_len else 1
        size, rows, start = max(1, -(-len(ids) // max(1, count))), [], 0
        while start < len(ids):
            stop = min(start + size, len(ids))
            stop = _boundary(places, stop, -1) if _boundary(places, stop, -1) > start else stop
            piece_text = text[places[start, 0] : places[start:stop, 1].max()]
            rows.append(_first_untrained(Encoded(ids[start:stop], ids[start:stop], piece_text, stop - start)))
            start = stop
        if end is not None and offsets[-1] == (len(text), len(text)):
            rows[-1].text += self.tokenizer.eos_token
        return rows

    def _encode(self, messages: list[dict], tools) -> tuple[Encoded, "_Layout"]:
        text, spans = self._spans(messages, tools)
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids = tokens["input_ids"]
        spans = self._chosen(spans, messages, text)
        layout = _Layout(text, np.array(tokens["offset_mapping"], dtype=np.int64).reshape(-1, 2), spans)
        labels = np.array(ids, dtype=np.int64)
        if not self.train_on_prompt:
            labels[~layout.trained()] = IGNORE
        return Encoded(ids, labels.tolist(), text, len(ids)), layout

    def _chosen(self, spans: list[tuple[int, int]], messages: list[dict], text: str) -> list[tuple[int, int]]:
        """The spans of the turns that are to be trained. Raises UserError: spans and turns do not belong together."""
        wanted = [message.get("train", True) for message in messages if message["role"] == "assistant"]
        if self.mask_history:
            wanted = [*[False] * (len(wanted) - 1), wanted[-1]]
        if all(wanted):
            return spans
        spans = joined(spans, text)
        if len(spans) != len(wanted):
            raise UserError("template_unmarked", names=templates.names())
        return [span for span, train in zip(spans, wanted, strict=True) if train]

    def _marked(self, messages: list[dict], tools) -> tuple[str, list[tuple[int, int]]]:
        """The text of the marked template, and the character ranges that it marks."""
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered, indices = render_jinja_template(  # type: ignore[str-unpack]
                [in_their_form(messages)],
                tools=tools,
                chat_template=self.training_template,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        except MemoryError:
            raise UserError("template_memory") from None
        except Exception as error:  # Jinja raises many kinds
            raise UserError("template_failed", problem=str(error)[:300]) from None
        return _bounded(rendered[0]), [(int(span[0]), int(span[1])) for span in indices[0]]

    def _kept_from(self, messages: list[dict], tools, limit: int) -> int:
        """The first turn behind the system text from which on a conversation fits, or its last question."""
        system = _system(messages)
        turns = messages[len(system) :]
        starts = [index for index, message in enumerate(turns) if message["role"] == "user"] or [0]
        low, high = 1, len(starts) - 1  # the first start from which on it fits, or the last
        while low < high:
            middle = (low + high) // 2
            if len(self._encode(system + turns[starts[middle] :], tools)[0].input_ids) <= limit:
                high = middle
            else:
                low = middle + 1
        return starts[high] if high > 0 else starts[0]

    def _shortened(self, messages: list[dict], start: int, tools, limit: int, over: int | None = None) -> Encoded:
        """The conversation from turn `start` on, cut where it is too long even then. `over`: tokens that its questions
        should lose, if not as many as it is too long."""
        system, kept = _system(messages), _from(messages, start)
        encoded, layout = self._encode(kept, tools)
        if start:
            encoded.dropped_at = layout.first_token_of(kept[len(system)]["content"].strip(), system)
        if len(encoded.input_ids) > limit or (over or 0) > 0:
            encoded = _cut(encoded, layout, kept, limit, over)
        encoded.dropped_turns = start
        return encoded

    def _spans(self, messages: list[dict], tools) -> tuple[str, list[tuple[int, int]]]:
        """The rendered text and the character ranges that the assistant wrote, in order."""
        if self._markers:
            text, spans = self._marked(messages, tools)
            return text, self._habits.trimmed(spans, text)
        text, spans = self.render(messages, tools), []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:index], tools, add_generation_prompt=True)
            after = self.render(messages[: index + 1], tools)
            if not (text.startswith(before) and text.startswith(after.rstrip())):
                raise UserError("template_changes", names=templates.names())
            spans.append((len(before), len(after.rstrip())))
        return text, spans


@dataclass
class _Layout:
    """Where tokens lie in a text (`offsets`, shape [tokens, 2]), and the ranges that the assistant wrote."""

    text: str
    offsets: np.ndarray
    spans: list[tuple[int, int]]

    def trained(self) -> np.ndarray:
        """For each token whether it begins in one of the spans."""
        left, right = self.offsets[:, 0], self.offsets[:, 1]
        mask = np.zeros(len(left), dtype=bool)
        for start, end in self.spans:
            mask |= (left >= start) & (left < end)
        return mask & (right > left)

    def first_token_of(self, content: str, system: list[dict]) -> int:
        """Where a turn's content begins, behind the system text; 0 if it is not to be found."""
        behind = self.text.find(system[0]["content"].strip()) + len(system[0]["content"].strip()) if system else 0
        position = self.text.find(content, max(0, behind))
        return self.tokens_within(position, position + 1).start if position >= 0 else 0

    def tokens_within(self, start: int, end: int) -> range:
        """The tokens that lie wholly within characters `start` to `end`."""
        first = int(np.searchsorted(self.offsets[:, 0], start, side="left"))
        last = int(np.searchsorted(self.offsets[:, 1], end, side="right"))
        return range(first, max(first, last))


def only_last_trained(messages: list[dict]) -> list[dict]:
    """The conversation with marks by which only its last turn is trained."""
    return [*(message | {"train": False} for message in messages[:-1]), messages[-1] | {"train": True}]


def _system(messages: list[dict]) -> list[dict]:
    return messages[:1] if messages[0]["role"] == "system" else []


def _from(messages: list[dict], start: int) -> list[dict]:
    """The system text, and the turns from `start` on."""
    system = _system(messages)
    return system + messages[len(system) + start :]


def _cut(
    encoded: Encoded, layout: _Layout, messages: list[dict], limit: int, over_questions: int | None = None
) -> Encoded:
    """The last exchange, which alone is too long: without the middle of its longest texts, and at last the end of its
    answer. `over_questions`: tokens that texts before the answer should lose, if not as many as it is too long."""
    regions, at = [], 0  # (role, tokens of the content) in order
    for message in messages:
        content = message["content"].strip()
        position = layout.text.find(content, at) if content else -1
        if position >= 0:
            at = position + len(content)
            regions.append((message["role"], layout.tokens_within(position, at)))
    over = len(encoded.input_ids) - limit if over_questions is None else over_questions
    gone: list[range] = []
    ordered = sorted((r for r in regions if r[0] in ("user", "tool")), key=lambda r: -len(r[1]))
    for _, tokens in ordered + [r for r in regions if r[0] == "system"]:
        take = min(over, len(tokens) - 2 * _ENDS)
        if take > 0:
            middle = tokens.start + (len(tokens) - take) // 2
            part = range(_boundary(layout.offsets, middle, -1), _boundary(layout.offsets, middle + take, 1))
            gone.append(part)
            over -= len(part)
    over, answer_cut = len(encoded.input_ids) - sum(map(len, gone)) - limit, False
    answer = regions[-1][1] if regions and regions[-1][0] == "assistant" else range(0)
    take = min(over, len(answer) - 1)
    if take > 0:
        part = range(max(answer.start, _boundary(layout.offsets, answer.stop - take, -1)), answer.stop)
        gone.append(part)
        over, answer_cut = over - len(part), True
    if over > 0:  # nothing of it could be told apart: the end, with the end token, stays
        gone, answer_cut = [range(0, len(encoded.input_ids) - limit)], False
    keep = np.ones(len(encoded.input_ids), dtype=bool)
    for tokens in gone:
        keep[tokens.start : tokens.stop] = False
    labels = np.array(encoded.labels)
    if answer_cut:  # the model must not learn to stop where only the cutoff did
        labels[gone[-1].stop :] = IGNORE
    cuts, text, at = [], "", 0
    for tokens in sorted(gone, key=lambda r: r.start):
        cuts.append((int(keep[: tokens.start].sum()), len(tokens)))
        text += layout.text[at : int(layout.offsets[tokens.start, 0])]
        at = int(layout.offsets[tokens.stop - 1, 1])
    ids = np.array(encoded.input_ids)[keep]
    dropped_at = int(keep[: encoded.dropped_at].sum())
    return Encoded(
        ids.tolist(),
        labels[keep].tolist(),
        text + layout.text[at:],
        dropped_at=dropped_at,
        cuts=cuts,
        answer_cut=answer_cut,
    )


def _boundary(offsets: np.ndarray, index: int, step: int) -> int:
    """The next place from `index` on (`step`: 1 up, -1 down) that does not lie between tokens of one character."""
    while 0 < index < len(offsets) and offsets[index, 0] < offsets[index - 1, 1]:
        index += step
    return index


def _first_untrained(encoded: Encoded) -> Encoded:
    """Itself, its first token without a label: nothing comes before from which it could be predicted."""
    if encoded.labels:
        encoded.labels[0] = IGNORE
    return encoded


def _bounded(text: str) -> str:
    """A rendered text. Raises UserError when a template has made far too much of it."""
    if len(text) > MAX_RENDERED:
        raise UserError("template_too_long", count=len(text))
    return text


def set_template(tokenizer, name: str, enable_thinking: str = "auto") -> None:
    """Give `tokenizer` the named template; `auto` keeps the model's own. `enable_thinking`: `on` or `off` becomes the
    default of its switch, if it has one.

    Raises:
        UserError: no such template, or `auto` for a model that has none.
    """
    text = templates.read(name)
    if text is not None:
        tokenizer.chat_template = text
    elif not tokenizer.chat_template:
        raise UserError("template_none", names=templates.names())
    if enable_thinking == "auto":
        return
    own = tokenizer.chat_template
    if isinstance(own, dict):
        tokenizer.chat_template = {key: with_choice(text, enable_thinking) for key, text in own.items()}
    else:
        tokenizer.chat_template = with_choice(own, enable_thinking)
