"""Rows of any supported layout as one kind of object: conversations in the OpenAI form, with what belongs to them.

Layouts: LLaMA-Factory's alpaca and sharegpt, OpenAI's messages, TRL's prompt/completion and plain text; each also as
preference pairs (chosen, rejected) and with KTO labels. `detect` tells a layout from the fields of a row.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from workbench.data.readers import BadRow, named
from workbench.data.registry import COLUMNS, OPENAI_TAGS, SHAREGPT_TAGS, DatasetInfo
from workbench.errors import UserError
from workbench.messages.message import Message
from workbench.storage.files import parse_json

# the classes of problems; the first ones make a row unusable, the others should be looked at
BROKEN = ("json", "utf8", "type", "missing", "empty", "role", "order", "no_assistant", "tools", "template", "media")
NOTICED = (
    "control",
    "duplicate",
    "in_eval",
    "too_long",
    "left_system",
    "left_thought",
    "left_beside",
    "opened_thought",
    "closed_thought",
    "empty_thought",
)
ONCE = ("empty_thought",)  # what the template does to all rows: named with the first, counted for all
KINDS_OF_PROBLEMS = (*BROKEN, *NOTICED)

# what datasets and APIs call the thoughts before an answer
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_MEDIA = ("images", "videos", "audios", "image", "video", "audio")
_PLACEHOLDER = re.compile(r"<(image|video|audio)>")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")


@dataclass
class Example:
    """One row. `messages` is the conversation; of a preference pair, what comes before `chosen` and `rejected`.

    `text` stands for plain text that is trained without a template; then there are no messages. `label`: KTO's, true
    for a wanted answer.
    """

    messages: list[dict] = field(default_factory=list)
    tools: list[dict] | None = None
    text: str | None = None
    chosen: list[dict] | None = None
    rejected: list[dict] | None = None
    label: bool | None = None

    @property
    def conversation(self) -> list[dict]:
        """What is trained on: the whole conversation, of a pair the one with the chosen answer."""
        return self.messages + (self.chosen or [])

    def digest(self) -> int:
        """64 bits that are the same for rows with the same content."""
        content = [self.messages, self.tools, self.text, self.chosen, self.rejected, self.label]
        try:
            plain = orjson.dumps(content, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
        except TypeError:  # numbers beyond 64 bits, or nesting that is too deep
            plain = repr(content).encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(plain, digest_size=8).digest(), "big")


def to_example(row: dict, info: DatasetInfo) -> Example:
    """One row as `info` (with its layout known) says. Raises BadRow with the reason."""
    reader = {"alpaca": _alpaca, "prompt_completion": _prompt_completion, "text": _text}.get(info.formatting, _sharegpt)
    try:
        example = reader(row, info)
        _check_text(example)
        _check_media(row, info, example)
    except RecursionError:
        raise BadRow("type", "row_nested") from None
    if example.text is None:
        _check_turns(example.messages, ends_with_user=example.chosen is not None)
        for name, answer in (("chosen", example.chosen), ("rejected", example.rejected)):
            if answer is not None and (
                not answer or answer[0]["role"] != "assistant" or answer[-1]["role"] != "assistant"
            ):
                raise BadRow("order", "answer_role", name=name)
        if example.chosen is not None and example.chosen == example.rejected:
            raise BadRow("empty", "answers_same")
    return example


def notices(example: Example) -> list[BadRow]:
    """What should be looked at in a row that can be used: characters that do not belong into text."""
    for where, text in _texts(example):
        if match := _CONTROL.search(text):
            code = f"U+{ord(match[0]):04X}"
            what = Message("wrong_decoding") if match[0] == "\ufffd" else Message("control_character")
            return [BadRow("control", "contains_character", where=_place(where), code=code, what=what)]
    return []


def _texts(example: Example):
    if example.text is not None:
        yield (), example.text
    for turns in (example.messages, example.chosen or (), example.rejected or ()):
        for number, message in enumerate(turns, 1):
            yield (number, message["role"]), message["content"]


def _place(where: tuple) -> Message:
    """A text of `_texts` in words."""
    return Message("turn_of_role", number=where[0], role=where[1]) if where else Message("the_row_text")


def _check_media(row: dict, info: DatasetInfo, example: Example) -> None:
    """Raise BadRow for a row with images, videos or audio: their place in the text would be trained as a word."""
    for name in _MEDIA:
        value = row.get(info.columns.get(name) or name)
        if value in (None, "", [], {}):
            continue
        if name.endswith("s") or any(_PLACEHOLDER.search(text) for _, text in _texts(example)):
            raise BadRow("media", "has_media", name=name)


def _check_text(example: Example) -> None:
    for where, text in _texts(example):
        if _SURROGATE.search(text):
            raise BadRow("utf8", "where_not_utf8", where=_place(where))
    if (example.tools or any("tool_calls" in m for m in example.conversation)) and _SURROGATE.search(
        json.dumps(
            [example.tools, [m.get("tool_calls") for m in example.conversation]], ensure_ascii=False, default=str
        )
    ):
        raise BadRow("utf8", "tools_not_utf8")


# --- single fields


def _value(row: dict, info: DatasetInfo, column: str):
    name = info.columns.get(column, column)
    return row.get(name) if name else None


def parsed(value):
    """A list that a table keeps as JSON text, as that list; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            inner = parse_json(value)
        except UserError:
            return value
        return inner if isinstance(inner, list) else value
    return value


def _parsed_turns(value):
    """As `parsed`, but only a list of turns: another list may be the text of an answer."""
    inner = parsed(value)
    turns = isinstance(inner, list) and inner and all(isinstance(turn, dict) for turn in inner)
    return inner if turns and ("role" in inner[0] or "from" in inner[0]) else value


def _field(row: dict, info: DatasetInfo, column: str, *, required: bool = False) -> str:
    name, value = info.columns.get(column) or column, _value(row, info, column)
    if value is None:
        if required:
            raise BadRow("missing", "row_field_missing", name=name)
        return ""
    if not isinstance(value, str):
        raise BadRow("type", "row_field_text", name=name, kind=named(value))
    if required and not value.strip():
        raise BadRow("empty", "row_field_empty", name=name)
    return value


def _label(row: dict, info: DatasetInfo) -> bool | None:
    name = info.columns.get("kto_tag")
    if not name:
        return None
    value = row.get(name)
    if isinstance(value, str) and value.strip().lower() in ("true", "1", "false", "0"):
        value = value.strip().lower() in ("true", "1")
    if value is None:
        raise BadRow("missing", "row_label_missing", name=name)
    if value not in (True, False, 0, 1):
        raise BadRow("type", "row_label_type", name=name, kind=named(value))
    return bool(value)


def _tools(row: dict, info: DatasetInfo) -> list[dict] | None:
    """Tool definitions in OpenAI's form; LLaMA-Factory keeps them as JSON text, with or without the `function`
    around."""
    value = _value(row, info, "tools")
    if value in (None, "", []):
        return None
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except UserError:
            raise BadRow("tools", "row_tools_json") from None
    tools = []
    for tool in value if isinstance(value, list) else [value]:
        inner = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
            raise BadRow("tools", "row_tools_object")
        tools.append({"type": "function", "function": inner})
    return tools or None


def _calls(value, turn: int) -> list[dict]:
    """Tool calls in OpenAI's form, arguments as an object: what chat templates expect."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except UserError:
            raise BadRow("tools", "call_not_json", where=_turn(turn)) from None
    calls = []
    for number, call in enumerate(value if isinstance(value, list) else [value]):
        inner = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
            raise BadRow("tools", "call_not_object", where=_turn(turn))
        arguments = inner.get("arguments", inner.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = parse_json(arguments or "{}")
            except UserError:
                raise BadRow("tools", "call_arguments_json", where=_turn(turn), name=inner["name"]) from None
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            raise BadRow("tools", "call_arguments_object", where=_turn(turn), name=inner["name"])
        identity = call.get("id") if isinstance(call.get("id"), str) else f"call{number:05d}"
        calls.append({"type": "function", "id": identity, "function": {"name": inner["name"], "arguments": arguments}})
    if not calls:
        raise BadRow("tools", "call_missing", where=_turn(turn))
    return calls


# --- layouts


def _alpaca(row: dict, info: DatasetInfo) -> Example:
    messages = []
    if system := _field(row, info, "system"):
        messages.append({"role": "system", "content": system})
    history, name = parsed(_value(row, info, "history")), info.columns.get("history") or "history"
    if history not in (None, ""):
        if not isinstance(history, list):
            raise BadRow("type", "row_history", name=name)
        for pair in history:
            if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(x, str) for x in pair)):
                raise BadRow("type", "row_history", name=name)
            if not pair[0].strip() or not pair[1].strip():
                raise BadRow("empty", "row_history_empty", name=name)
            messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    query = _field(row, info, "query")
    prompt = _field(row, info, "prompt", required=not query.strip())
    messages.append({"role": "user", "content": "\n".join(part for part in (prompt, query) if part)})
    example = Example(messages, _tools(row, info))
    if info.ranking:
        for name in ("chosen", "rejected"):
            setattr(example, name, [{"role": "assistant", "content": _field(row, info, name, required=True)}])
        return example
    messages.append({"role": "assistant", "content": _field(row, info, "response", required=True)})
    example.label = _label(row, info)
    return example


def _prompt_completion(row: dict, info: DatasetInfo) -> Example:
    """TRL's layout: texts, or lists of messages. Texts become a user's and an assistant's turn, so that chat asks in
    the same way."""

    def turns(column: str, role: str) -> list[dict]:
        if isinstance(value := _parsed_turns(_value(row, info, column)), list):
            return _turns(value, OPENAI_TAGS, info.columns.get(column) or column)
        return [{"role": role, "content": _field(row, info, column, required=True)}]

    system = _field(row, info, "system")
    messages = [{"role": "system", "content": system}] if system else []
    if info.ranking:
        chosen, rejected = turns("chosen", "assistant"), turns("rejected", "assistant")
        whole = chosen[0]["role"] != "assistant" and rejected[0]["role"] != "assistant"
        if whole or _value(row, info, "prompt") is None:  # TRL's implicit prompt: what both begin with
            same = 0
            while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
                same += 1
            prompt, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
            if not prompt:
                raise BadRow("missing", "row_no_question")
        else:
            prompt = turns("prompt", "user")
        return Example(messages + prompt, _tools(row, info), chosen=chosen, rejected=rejected)
    messages += turns("prompt", "user") + turns("response", "assistant")
    return Example(messages, _tools(row, info), label=_label(row, info))


def _text(row: dict, info: DatasetInfo) -> Example:
    return Example(text=_field(row, info, "text", required=True))


def _sharegpt(row: dict, info: DatasetInfo) -> Example:
    name = info.columns.get("messages") or "messages"
    value = parsed(row.get(name))
    if value is None:
        raise BadRow("missing", "row_field_missing", name=name)
    messages = _turns(value, info.tags, name)
    system = _value(row, info, "system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    example = Example(messages, _tools(row, info))
    if info.ranking:
        for side in ("chosen", "rejected"):
            column = info.columns.get(side) or side
            value = _parsed_turns(row.get(column))
            if value in (None, "", []):
                raise BadRow("missing", "row_field_missing_or_empty", name=column)
            if isinstance(value, str):
                value = {info.tags["role_tag"]: info.tags["assistant_tag"], info.tags["content_tag"]: value}
            setattr(example, side, _turns(value if isinstance(value, list) else [value], info.tags, column))
        return example
    example.label = _label(row, info)
    return example


def _turn(number: int) -> Message:
    return Message("turn_place", number=number)


def _turns(turns, tags: dict, name: str) -> list[dict]:
    """A list of turns as messages in OpenAI's form."""
    if not isinstance(turns, list):
        raise BadRow("type", "row_turns_type", name=name, kind=named(turns))
    if not turns:
        raise BadRow("empty", "row_turns_empty", name=name)
    roles = {
        tags["user_tag"]: "user",
        tags["assistant_tag"]: "assistant",
        tags["system_tag"]: "system",
        tags["observation_tag"]: "tool",
        tags["function_tag"]: "call",
    }
    if tags["role_tag"] == "role":
        roles = {"developer": "system", "function": "tool", **roles}
    messages, called = [], []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise BadRow("type", "turn_not_object", where=_turn(number), kind=named(turn))
        role, content = turn.get(tags["role_tag"]), turn.get(tags["content_tag"])
        if role is None:
            raise BadRow("missing", "turn_without_role", where=_turn(number), name=tags["role_tag"])
        if not isinstance(role, str) or role not in roles:
            raise BadRow("role", "turn_unknown_role", where=_turn(number), role=str(role)[:40], roles=roles)
        message: dict[str, Any] = {"role": roles[role], "content": _content(content, number, tags["content_tag"])}
        if message["role"] == "call":
            if not isinstance(content, list | dict) and not message["content"].strip():
                raise BadRow("empty", "turn_without_text", where=_turn(number), role=role)
            message = {"role": "assistant", "content": "", "tool_calls": _calls(content, number)}
        elif turn.get("tool_calls") or turn.get("function_call"):
            message["tool_calls"] = _calls(turn.get("tool_calls") or turn["function_call"], number)
        elif not message["content"].strip() and message["role"] != "tool":  # a tool may answer nothing
            raise BadRow(
                "empty" if tags["content_tag"] in turn else "missing",
                "turn_without_text",
                where=_turn(number),
                role=role,
            )
        if calls := message.get("tool_calls"):
            called = list(calls)
        if message["role"] == "tool":
            call = called.pop(0) if called else None
            message["name"] = (
                turn["name"] if isinstance(turn.get("name"), str) else call["function"]["name"] if call else ""
            )
            identity = turn.get("tool_call_id")
            message["tool_call_id"] = identity if isinstance(identity, str) else call["id"] if call else ""
        if message["role"] == "assistant":
            if thought := next((turn[key] for key in _THOUGHTS if isinstance(turn.get(key), str) and turn[key]), ""):
                message["reasoning_content"] = thought
            if not _is_trained(turn, number):
                message["train"] = False
        messages.append(message)
    return messages


def _is_trained(turn: dict, number: int) -> bool:
    """Whether a turn's own weight lets it be trained: `weight`, `train` or `loss`, 1 or 0."""
    for key in ("weight", "loss_weight", "train", "loss"):
        value = turn.get(key)
        if isinstance(value, str) and value.strip().lower() in ("0", "1", "true", "false"):
            value = value.strip().lower() in ("1", "true")
        if value in (0, 1):
            return bool(value)
        if value is not None and "weight" in key:
            raise BadRow("type", "turn_weight", where=_turn(number), value=str(value)[:40])
    return True


def _content(content, number: int, name: str) -> str:
    """A turn's text; OpenAI's list of parts is joined."""
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(p, dict) for p in content) and content:
        kinds = {str(part.get("type")) for part in content} - {"text"}
        if kinds and any("type" in part for part in content):
            raise BadRow("type", "turn_part", where=_turn(number), kind=sorted(kinds)[0])
        texts = [part.get("text", part.get("value")) for part in content]  # `value` in LLaMA-Factory's newer files
        if all(isinstance(text, str) for text in texts):
            return "".join(texts)
    if isinstance(content, dict | list):
        return ""  # a function call as an object
    if not isinstance(content, str):
        raise BadRow("type", "turn_field_text", where=_turn(number), name=name, kind=named(content))
    return content


def _check_turns(messages: list[dict], *, ends_with_user: bool) -> None:
    """User (or tool) and assistant take turns after an optional system text. Raises BadRow."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not turns:
        raise BadRow("empty", "only_system")
    if not ends_with_user and not any(m["role"] == "assistant" for m in turns):
        raise BadRow("no_assistant", "no_assistant")
    if (turns[-1]["role"] == "assistant") == ends_with_user:
        should = Message("the_question") if ends_with_user else Message("the_answer")
        raise BadRow("order", "wrong_end", role=turns[-1]["role"], should=should)
    shift = len(messages) - len(turns) + 1
    before = None
    for index, message in enumerate(turns):
        role = message["role"]
        fine = {
            "user": before is None or before["role"] == "assistant",
            "assistant": before is not None and before["role"] != "assistant",
            "tool": before is not None and (before["role"] == "tool" or "tool_calls" in before),
            "system": False,
        }[role]
        if not fine:
            after = Message("after_turn", role=before["role"]) if before else Message("at_beginning")
            raise BadRow("order", "turn_order", number=index + shift, role=role, after=after)
        before = message


# --- which layout


def detect(row: dict, info: DatasetInfo) -> DatasetInfo:
    """`info` with its layout: as it says, and where it does not say, as the fields of a row tell.

    Raises:
        UserError: no layout has these fields.
    """
    given, named = info.columns, bool(info.columns)
    if info.formatting:
        return _complete(info, row, named=named)
    if "messages" in given:
        return _complete(replace(info, formatting="sharegpt"), row, named=named)
    answers = {given.get("response", "output"), given.get("chosen", "chosen"), given.get("rejected", "rejected")}
    if given.keys() == {"prompt"} and isinstance(row.get(given["prompt"]), str) and not answers & row.keys():
        # how LLaMA-Factory's registry names the text of pre-training
        return _complete(replace(info, formatting="text", columns={"text": given["prompt"]}), row)
    if any(column in given for column in ("prompt", "query", "response", "history")):
        return _complete(replace(info, formatting="alpaca"), row, named=named)
    fields = {name for name, value in row.items() if value is not None}
    ranking = info.ranking or {"chosen", "rejected"} <= fields
    columns = {"kto_tag": tag} if (tag := _kto_column(row, fields)) else {}
    if {"chosen_messages", "rejected_messages"} <= fields and not ranking:
        ranking, columns = True, {"chosen": "chosen_messages", "rejected": "rejected_messages", **columns}
    for name in ("conversations", "conversation", "messages"):
        turns = parsed(row.get(name))
        if ranking and name == "messages" and _is_conversation(parsed(row.get("chosen"))):
            break  # the pair holds the whole conversation (as ultrafeedback's), and messages repeats the chosen one
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            role = "from" if "from" in turns[0] else "role"
            kind = "sharegpt" if role == "from" else "openai"
            return _complete(
                replace(info, formatting=kind, ranking=ranking, columns={"messages": name, **columns, **given}), row
            )
    if "instruction" in fields and ("output" in fields or ranking):
        return _complete(replace(info, formatting="alpaca", ranking=ranking, columns=columns | given), row)
    if ranking and fields & {"question", "input"} and "prompt" not in fields:
        columns["prompt"] = "question" if "question" in fields else "input"
    if ranking:
        return _complete(replace(info, formatting="prompt_completion", ranking=True, columns=columns | given), row)
    for prompt, answer in (
        ("prompt", "completion"),
        ("prompt", "response"),
        ("question", "answer"),
        ("query", "response"),
        ("input", "output"),
        ("instruction", "response"),
    ):
        if prompt in fields and answer in fields:
            columns_found = {"prompt": prompt, "response": answer, **columns}
            return _complete(replace(info, formatting="prompt_completion", columns=columns_found | given), row)
    for name in ("text", "content"):
        if isinstance(row.get(name), str):
            return _complete(replace(info, formatting="text", columns={"text": name} | given), row)
    if "instruction" in fields or not fields:
        return _complete(replace(info, formatting="alpaca"), row)
    raise UserError("layout_unknown", name=info.name, fields=", ".join(map(str, sorted(fields, key=str)))[:200])


def _kto_column(row: dict, fields: set) -> str:
    """The column that says whether an answer is wanted. `label` is a common name for other things: it counts beside a
    prompt and a completion (TRL's layout), with true or false in it."""
    if "kto_tag" in fields:
        return "kto_tag"
    label = row.get("label")
    wanted = isinstance(label, bool) or (isinstance(label, str) and label.strip().lower() in ("true", "false"))
    return "label" if wanted and {"prompt", "completion"} <= fields else ""


def _is_conversation(turns) -> bool:
    """Whether this is a list of turns that begins with a question."""
    first = turns[0] if isinstance(turns, list) and turns else None
    return isinstance(first, dict) and (first.get("role") or first.get("from")) in ("user", "human", "system")


# columns that a row may have or not: unnamed beside named ones, they are not used
_OPTIONAL = ("query", "history", "system", "tools", "kto_tag")


def _complete(info: DatasetInfo, row: dict, *, named: bool = False) -> DatasetInfo:
    """With the defaults of its formatting for role names and columns that are not given. `named`: somebody has named
    columns, so that the optional ones among the others are none."""
    columns = COLUMNS[info.formatting] | (dict.fromkeys(_OPTIONAL, "") if named else {}) | info.columns
    if (
        info.formatting == "openai"
        and "messages" not in info.columns
        and "messages" not in row
        and "conversations" in row
    ):
        columns["messages"] = "conversations"
    tags = OPENAI_TAGS if info.formatting == "openai" else SHAREGPT_TAGS
    turns = parsed(row.get(columns.get("messages", "")))
    first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
    if not info.tags and info.formatting == "sharegpt" and "role" in first and "from" not in first:
        tags = OPENAI_TAGS
    return replace(info, columns=columns, tags=tags | info.tags)
