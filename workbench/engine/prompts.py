"""From a request to the tokens that the model goes on from, and to what the answer has to look like: the chat template
is rendered here, thoughts and calls are given their form."""

import json
import threading

from workbench.engine.backend import Job
from workbench.engine.call_forms import NUMBER, PROBE_TOOLS, CallForm, call_form
from workbench.engine.call_ids import named, nine, with_ids
from workbench.engine.grammars import Plan, Tool, mark
from workbench.engine.limits import time_limit
from workbench.engine.reply_parser import response_template
from workbench.engine.thoughts import left_open, may_think, thoughts_of
from workbench.errors import UserError
from workbench.models.ends import END_OF_TURN

TEMPLATE_SECONDS = 20.0  # that a chat template may take for one conversation: others wait meanwhile
_QUESTION = [{"role": "user", "content": "Zq1kW"}]


class Prompts:
    """Renders requests with one tokenizer; used from any thread. `ends`: ids of the tokens that end an answer."""

    def __init__(self, tokenizer, ends: set[int]):
        self.tokenizer, self.ends = tokenizer, tuple(sorted(ends))
        self._forms: dict[str, CallForm | None] = {}
        self._ways: dict[str, str] = {}
        self._one = threading.Lock()  # a fast tokenizer is not for two threads at a time

    def ids(self, job: Job) -> list[int]:
        """The tokens to go on from. Leaves on the job their text, how the model writes thoughts and calls, and the
        grammar of what was asked for.

        Raises:
            UserError: the template cannot render the conversation, or has no place for its tools; unknown token ids.
        """
        if job.prompt is not None:
            return self._plain(job)
        template = str(self.tokenizer.get_chat_template(tools=job.tools))
        job.prompt_text = self._conversation(job, template)
        layout = thoughts_of(template)
        given = str(job.messages[-1].get("content") or "") if job.continue_final else None
        job.thinking = bool(layout) and left_open(layout, job.prompt_text, given)
        form = self._form(template) if job.tools else None
        own = getattr(self.tokenizer, "response_template", None)
        names = [tool["function"]["name"] for tool in job.tools or ()]
        job.response_template = response_template(template, own, form, names)
        self._plan(job, form, layout, given)
        return self.tokens(job.prompt_text, special=False)

    def tokens(self, text: str, special: bool) -> list[int]:
        """The ids of a text, with the tokens that the tokenizer puts around one or without."""
        with self._one:
            return self.tokenizer(text, add_special_tokens=special)["input_ids"]

    def text(self, ids: list[int]) -> str:
        """The text of tokens. Raises UserError for ids that there are not."""
        self._check(ids)
        with self._one:
            return self.tokenizer.decode(ids)

    def _check(self, ids: list[int]) -> None:
        if any(not 0 <= token < len(self.tokenizer) for token in ids):
            raise UserError("prompt_ids", last=len(self.tokenizer) - 1)

    def _plain(self, job: Job) -> list[int]:
        if isinstance(job.prompt, str):
            job.prompt_text = job.prompt
            return self.tokens(job.prompt, special=job.special_tokens)
        ids = list(job.prompt or ())
        job.prompt_text = self.text(ids)
        return ids

    def _plan(self, job: Job, form: CallForm | None, layout, given: str | None) -> None:
        """The grammar of a request, in `job.sampling.grammar`."""
        wanted = job.sampling.grammar
        strict = form is not None and wanted is None and not job.forced and _is_strict(job, form)
        if not job.forced and wanted is None and not strict:
            return
        plan = Plan(ends=self.ends)
        if layout and (job.thinking or may_think(layout, job.prompt_text, given)):
            plan.thoughts, plan.opened = layout, job.thinking
        if job.forced and form is None:
            raise UserError("tool_choice_unknown")
        if form and job.tools:
            plan.form, plan.several = form, job.several_calls
            known = {tool["function"]["name"]: tool["function"].get("parameters") for tool in job.tools}
            loose = set(known).difference(job.strict) if strict else ()
            schemas = {name: {"type": "object"} if name in loose else _arguments(known[name] or {}) for name in known}
            plan.tools = [Tool(name, schemas[name]) for name in job.forced or known]
        if strict:
            plan.free = True
        elif not job.forced:
            plan.schema = wanted if isinstance(wanted, dict) else {"type": "object"}
        job.sampling.grammar = plan

    def _conversation(self, job: Job, template: str) -> str:
        if "reasoning_effort" in job.template_values and "reasoning_effort" not in template:
            raise UserError("reasoning_unsupported")
        values = {"add_generation_prompt": not job.continue_final, "continue_final_message": job.continue_final}
        values |= job.template_values
        messages, tools = job.messages, job.tools
        if tools and self._place_for_tools(template) == "system":
            messages, tools = _in_system(messages, tools), None
        called = any(message.get("tool_calls") for message in messages)
        if called and tools and (form := self._form(template)) and NUMBER in form.opener:
            messages = with_ids(messages, named)
        try:
            return self._render(messages, tools, **values)
        except UserError:
            if not called:
                raise
        try:
            return self._render(with_ids(messages, nine), tools, **values)  # Mistral's want ids of nine letters
        except UserError:
            return self._render(_as_text(messages), tools, **values)  # DeepSeek's want the arguments as JSON text

    def _place_for_tools(self, template: str) -> str:
        """`argument`, or `system` for templates that show the tools of a system message (Phi-4-mini).

        Raises UserError where there is no place.
        """
        if template not in self._ways:
            self._ways[template] = next((way for way in ("argument", "system") if self._shows(way)), "")
        if not self._ways[template]:
            raise UserError("no_place_for_tools")
        return self._ways[template]

    def _shows(self, way: str) -> bool:
        messages, tools = (_QUESTION, PROBE_TOOLS) if way == "argument" else (_in_system(_QUESTION, PROBE_TOOLS), None)
        try:
            return PROBE_TOOLS[0]["function"]["name"] in self._render(messages, tools, add_generation_prompt=True)
        except UserError:
            return False

    def _form(self, template: str) -> CallForm | None:
        if template not in self._forms:
            ends = (*self.tokenizer.convert_ids_to_tokens(list(self.ends)), *END_OF_TURN)

            def render(messages: list[dict], add_generation_prompt: bool = False) -> str:
                tools = PROBE_TOOLS if self._place_for_tools(template) == "argument" else None
                return self._render(messages, tools, add_generation_prompt=add_generation_prompt)

            self._forms[template] = call_form(render, template, tuple(filter(None, ends)))
        return self._forms[template]

    def _render(self, messages: list[dict], tools: list[dict] | None, **values) -> str:
        try:
            with time_limit(TEMPLATE_SECONDS):
                return self.tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **values)
        except TimeoutError:
            raise UserError("template_slow", seconds=TEMPLATE_SECONDS) from None
        except Exception as error:  # Jinja raises many kinds
            raise UserError("template_cannot_render", reason=str(error)[:300]) from None


def _is_strict(job: Job, form: CallForm) -> bool:
    """Whether calls that the model decides on are bound to their schemas: a function asks for that, and it can be
    told where a call begins. Where arguments stand by themselves, all have to be known."""
    every = all(tool["function"]["name"] in job.strict for tool in job.tools or ())
    return bool(job.strict) and bool(mark(form)) and (every or not form.pairs)


def _arguments(schema: dict) -> dict:
    """The schema of a function's arguments: an object, with the parameters that it declares and no others."""
    declared = {"additionalProperties": False} if "properties" in schema and "patternProperties" not in schema else {}
    return {"type": "object"} | declared | schema


def _in_system(messages: list[dict], tools: list[dict]) -> list[dict]:
    """The tools on the system message."""
    first = messages[0] if messages and messages[0]["role"] == "system" else {"role": "system", "content": ""}
    rest = messages[1:] if first in messages[:1] else messages
    return [{**first, "tools": json.dumps([tool["function"] for tool in tools], ensure_ascii=False)}, *rest]


def _json_text(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _as_text(messages: list[dict]) -> list[dict]:
    """Messages with the arguments of calls as JSON text."""
    return [
        {
            **message,
            "tool_calls": [
                {**call, "function": {**call["function"], "arguments": _json_text(call["function"]["arguments"])}}
                for call in message["tool_calls"]
            ],
        }
        if message.get("tool_calls")
        else message
        for message in messages
    ]
