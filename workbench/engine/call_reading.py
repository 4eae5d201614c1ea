"""How an answer's calls are read: a field `tool_calls` of a transformers `response_template`, made from the form in
which the model writes them."""

import ast
import json

import regex

from workbench.engine.call_forms import ID, NAME, NUMBER, CallForm

_FUNCTION = {"name": "{name}", "arguments": "{content}"}
_SPACES = r"\s{0,8}"  # before a mark; bounded, for a model may write nothing but line breaks for long
_SPACE = regex.compile(r"(\s+)")
_BEGINNING = (
    r"(?:\A|(?<=</think>))\s{0,16}(?:<\|python_tag\|>)?\s{0,16}"  # of an answer whose calls have no mark of their own
)


_MAX_PYTHON = 100_000  # characters
_SINK = {"close_pattern": r"(?=[\s\S])|\Z", "repeats": True}  # a field for marks that are nobody's text


def calls_fields(form: CallForm, names: list[str]) -> dict[str, dict]:
    """The fields for calls of the functions `names`: the calls, and the marks around all of them."""
    if form.pairs and form.quotes[0] and not _is_json_dialect(form):
        return {"tool_calls": {"open": form.begin.strip("[ "), "close": form.end.strip("] "), "repeats": True}}
    if not form.pairs and (whole := _outer_json(form)):
        return {"tool_calls": whole}
    fields = {"tool_calls": _pairs(form) if form.pairs else _inner_json(form, names)}
    marks = [mark for text in (form.begin, form.end, form.separator or "") if (mark := text.strip(" \n,;"))]
    if marks:
        fields["marks"] = {"open": sorted(set(marks))} | _SINK
    return fields


def python_calls(text: str, names: list[str]) -> list[dict]:
    """Calls that are written as in Python, `[f(a='x', b=2)]` (LFM2). Raises ValueError for what is none."""
    if len(text) > _MAX_PYTHON:
        raise ValueError("too long")
    for number, name in enumerate(names):
        if not name.isidentifier():
            text = text.replace(f"{name}(", f"Zfunction{number}(")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        found = tree.elts if isinstance(tree, ast.List) else [tree]
        calls = []
        for one in found:
            if not isinstance(one, ast.Call) or not isinstance(one.func, ast.Name) or one.args:
                raise ValueError("no call by name")
            name = one.func.id
            if name.startswith("Zfunction"):
                name = names[int(name.removeprefix("Zfunction"))]
            given = {str(keyword.arg): _literal(keyword.value) for keyword in one.keywords}
            calls.append({"type": "function", "function": {"name": name, "arguments": given}})
        return calls
    except (SyntaxError, RecursionError, MemoryError, IndexError) as error:
        raise ValueError(str(error)) from None


def _literal(node: ast.expr):
    """A value of a call: Python's literals, and JSON's three words."""
    words = {"true": True, "false": False, "null": None}
    if isinstance(node, ast.Name) and node.id in words:
        return words[node.id]
    if isinstance(node, ast.List):
        return [_literal(one) for one in node.elts]
    if isinstance(node, ast.Dict):
        return {
            ast.literal_eval(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True) if key
        }
    return ast.literal_eval(node)


def _is_json_dialect(form: CallForm) -> bool:
    """Whether arguments that stand by themselves are JSON but for its quotes, as Gemma 4's."""
    return form.opener.rpartition(NAME)[2].endswith("{") and form.closer.startswith("}")


def _flexible(text: str, name: str = r"[\w.-]+") -> str:
    """A pattern for a text of a form: any space where it has space, the function's name as a group."""
    pattern, named = "", False
    for piece in _SPACE.split(text):
        for number, part in enumerate(piece.split(NAME)):
            if number:
                pattern += r"(?P=name)" if named else f"(?P<name>{name})"
                named = True
            exact = regex.escape(part).replace(regex.escape(ID), r"\w+").replace(regex.escape(NUMBER), r"\d{1,6}")
            pattern += r"\s{0,16}" if part.isspace() else exact
    return pattern


def _outer_json(form: CallForm) -> dict | None:
    """For calls that are JSON as a whole: an object with name and arguments, or a list of such objects."""
    name, arguments = "Zname", {"Zkey": 1}
    text = form.begin + form.opener + json.dumps(arguments) + form.closer + form.end
    text = text.replace(NAME, name).replace(ID, "Zid").replace(NUMBER, "0")
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
    field |= (
        {"open_pattern": _SPACES + _flexible(before)} if before else {"open_pattern": _BEGINNING + r'(?=\{\s{0,16}")'}
    )
    if after:
        field["close_pattern"] = _flexible(after)
    return field | ({"transform_each": True} if listed else {})


def _inner_json(form: CallForm, names: list[str]) -> dict:
    """For calls whose name stands outside of the arguments' JSON."""
    opener, closer = form.opener.strip(), form.closer.strip()
    marked = form.begin.strip() or opener.replace(NAME, "").strip()
    known = "|".join(map(regex.escape, sorted(names, key=len, reverse=True))) or r"[\w.-]+"
    unmarked = _BEGINNING + _flexible(opener, known) + r"\s{0,16}(?=\{)"
    field = {"open_pattern": _SPACES + _flexible(opener) if marked else unmarked, "repeats": True, "content": "json"}
    field["transform"] = {"type": "function", "function": _FUNCTION}
    if closer:
        field["close_pattern"] = _flexible(closer)
    elif form.separator is not None and marked:  # up to the next call
        field["close_pattern"] = rf"(?={_flexible(opener.partition(NAME)[0] or marked)})"
    return field


def _pairs(form: CallForm) -> dict:
    """For calls whose arguments stand by themselves."""
    head = form.opener.rpartition(NAME)[0]
    field: dict = {"repeats": True, "transform": {"type": "function", "function": _FUNCTION}}
    if _is_json_dialect(form):
        opening, closing = _flexible(head.lstrip() + NAME), _flexible(form.closer[1:])
        field |= {"open_pattern": _SPACES + opening, "close_pattern": closing}
        dialect = {"string_delims": [list(form.quotes)], "unquoted_keys": True}
        return field | {"content": "json", "content_args": dialect}
    stop = value_end(form)
    key = form.joint[len(stop) :].strip()
    last = form.closer[len(stop) :].strip()
    value = rf"{_edge(form.middle)}(?P<value>.*?){_edge(stop, before=True)}"
    field["open_pattern"] = _SPACES + _flexible(head.lstrip() + NAME)
    field["close_pattern"] = _flexible(last)
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
