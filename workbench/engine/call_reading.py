"""How an answer's calls are read: a field `tool_calls` of a transformers `response_template`, made from the form in
which the model writes them."""

import json

import regex

from workbench.engine.call_forms import ID, NAME, CallForm

_FUNCTION = {"name": "{name}", "arguments": "{content}"}
_SPACE = regex.compile(r"(\s+)")
_BEGINNING = r"(?:\A|(?<=</think>))\s*(?:<\|python_tag\|>)?\s*"  # of an answer whose calls have no mark of their own


def calls_field(form: CallForm, names: list[str]) -> dict:
    """The field for calls of the functions `names`."""
    if form.pairs:
        return _pairs(form)
    return _outer_json(form) or _inner_json(form, names)


def _flexible(text: str, name: str = r"[\w.-]+") -> str:
    """A pattern for a text of a form: any space where it has space, the function's name as a group."""
    pattern, named = "", False
    for piece in _SPACE.split(text):
        for number, part in enumerate(piece.split(NAME)):
            if number:
                pattern += r"(?P=name)" if named else f"(?P<name>{name})"
                named = True
            pattern += r"\s*" if part.isspace() else regex.escape(part).replace(regex.escape(ID), r"\w+")
    return pattern


def _outer_json(form: CallForm) -> dict | None:
    """For calls that are JSON as a whole: an object with name and arguments, or a list of such objects."""
    name, arguments = "Zname", {"Zkey": 1}
    text = form.begin + form.opener + json.dumps(arguments) + form.closer + form.end
    text = text.replace(NAME, name).replace(ID, "Zid")
    for start, letter in enumerate(text):
        if letter not in "{[":
            continue
        try:
            found, end = json.JSONDecoder().raw_decode(text, start)
        except ValueError:
            continue
        call, within = (found[0] if isinstance(found, list) and found else found), ""
        if isinstance(call, dict) and isinstance(call.get("function"), dict):
            call, within = call["function"], "function."
        keys = {str(value): key for key, value in call.items()} if isinstance(call, dict) else {}
        if name in keys and str(arguments) in keys:
            return _json_field(text[:start].strip(), text[end:].strip(), isinstance(found, list), within, keys)
    return None


def _json_field(before: str, after: str, listed: bool, within: str, keys: dict) -> dict:
    place = "" if listed else "content."
    function = {
        "name": f"{{{place}{within}{keys['Zname']}}}",
        "arguments": f"{{{place}{within}{keys[str({'Zkey': 1})]}}}",
    }
    field = {"repeats": True, "content": "json", "transform": {"type": "function", "function": function}}
    field |= {"open_pattern": r"\s*" + _flexible(before)} if before else {"open_pattern": _BEGINNING + r'(?=\{\s*")'}
    if after:
        field["close_pattern"] = _flexible(after)
    return field | ({"transform_each": True} if listed else {})


def _around(form: CallForm) -> tuple[str, str]:
    """Patterns for what may stand before and behind a call's own texts."""
    begin = rf"(?:{_flexible(form.begin.strip())}\s*)?" if form.begin.strip() else ""
    end = rf"(?:\s*{_flexible(form.end.strip())})?" if form.end.strip() else ""
    return r"\s*" + begin, end


def _inner_json(form: CallForm, names: list[str]) -> dict:
    """For calls whose name stands outside of the arguments' JSON."""
    begin, end = _around(form)
    opener, closer = form.opener.strip(), form.closer.strip()
    marked = form.begin.strip() or opener.replace(NAME, "").strip()
    known = "|".join(map(regex.escape, sorted(names, key=len, reverse=True))) or r"[\w.-]+"
    unmarked = _BEGINNING + _flexible(opener, known) + r"\s*(?=\{)"
    field = {"open_pattern": begin + _flexible(opener) if marked else unmarked, "repeats": True, "content": "json"}
    field["transform"] = {"type": "function", "function": _FUNCTION}
    if closer:
        field["close_pattern"] = _flexible(closer) + end
    elif form.separator is not None and marked:  # up to the next call
        field["close_pattern"] = rf"(?={_flexible(opener.partition(NAME)[0] or marked)})|\Z"
    return field


def _pairs(form: CallForm) -> dict:
    """For calls whose arguments stand by themselves."""
    begin, end = _around(form)
    head, _, tail = form.opener.rpartition(NAME)
    field: dict = {"repeats": True, "transform": {"type": "function", "function": _FUNCTION}}
    if tail.endswith("{") and form.closer.startswith("}"):  # Gemma 4: JSON, but for its quotes
        field |= {
            "open_pattern": begin + _flexible(head.lstrip() + NAME),
            "close_pattern": _flexible(form.closer[1:]) + end,
        }
        dialect = {"string_delims": [list(form.quotes)], "unquoted_keys": True}
        return field | {"content": "json", "content_args": dialect}
    if form.quotes[0]:  # LFM2: calls as in Python, which TRL reads
        from trl.chat_template_utils import lfm2_2_5_template

        return lfm2_2_5_template["fields"]["tool_calls"]
    stop = value_end(form)
    key = form.joint[len(stop) :].strip()
    last = form.closer[len(stop) :].strip()
    value = rf"{_edge(form.middle)}(?P<value>.*?){_edge(stop, before=True)}"
    field["open_pattern"] = begin + _flexible(head.lstrip() + NAME)
    field["close_pattern"] = _flexible(last) + end
    pattern = _flexible(key) + r"(?P<key>[^<>\"]+?)" + value
    return field | {
        "content": "xml-inline",
        "content_args": {"tag_pattern": pattern, "value_parser": {"name": "text", "args": {"strip": False}}},
    }


def _edge(mark: str, before: bool = False) -> str:
    """A mark beside a value: the line break that belongs to the mark is not the value's."""
    text = regex.escape(mark.strip())
    if not any(letter in mark for letter in "\n "):
        return text
    return (
        rf"(?:\n)?{text}"
        if before and mark[0].isspace()
        else rf"{text}(?:\n)?"
        if not before and mark[-1].isspace()
        else text
    )


def value_end(form: CallForm) -> str:
    """What ends a value without quotes, after the last one as after the others: the first tag that both have."""
    same = ""
    for one, other in zip(form.joint, form.closer, strict=False):
        if one != other:
            break
        same += one
        if same.strip() and one == ">":
            break
    return same
