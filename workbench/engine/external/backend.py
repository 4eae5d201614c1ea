"""A `Backend` whose tokens come from vLLM or SGLang.

The prompt is made here, with the same template as everywhere, and sent as token ids; text, stop texts, thoughts and
calls are read here from the ids that come back. So everything behind the `Backend` interface stays as it is.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace

from workbench.engine.backend import Capabilities, ContextOverflow, Job, Sampling, Score, TokenInfo
from workbench.engine.batching.rows import row_sampling
from workbench.engine.detokenizer import AnswerRow, after_prompt
from workbench.engine.external.dialects import DIALECTS, Dialect, Measured, Seen
from workbench.engine.external.upstream import ODD, Served, Upstream
from workbench.engine.grammars import Plan
from workbench.engine.prompts import Prompts
from workbench.errors import UserError
from workbench.models.locate import check_folder, locate_adapter
from workbench.models.vocabulary import Vocabulary
from workbench.storage.workspace import Workspace

_SAMPLE = "The 3 quick brown foxes, naïve as ever, cost €27.50; 快速的狐狸。\n\tdef f(x): return x**2"


class ExternalBackend:
    """Requests on another server; each answer is a stream of its own there."""

    capabilities = Capabilities(
        adapters=True, score=True, logprobs=True, grammars=True, tokens=True, continue_final=True, batching=True
    )

    def __init__(
        self,
        upstream: Upstream,
        engine: str,
        tokenizer,
        ends: set[int],
        defaults: dict,
        workspace: Workspace,
        name: str,
    ):
        """`engine`: `vllm`, `sglang`, or `own` to find out which of them it is. `name`: of the model whose tokenizer
        this is.

        Raises:
            UserError: the server does not answer, is neither of them, or serves another model.
        """
        self.defaults, self._upstream, self._workspace = defaults, upstream, workspace
        self._tokenizer, self._ends = tokenizer, ends
        self._special = set(tokenizer.all_special_ids)
        self.prompts, self._read = Prompts(tokenizer, ends), Vocabulary(tokenizer).bytes
        served = upstream.wait(upstream.models())
        self._dialect = _dialect(engine, served, upstream)
        upstream.title = self._dialect.title
        base = _base(served, name, upstream)
        if base.context is None:
            raise UserError("engine_no_context", engine=upstream.title)
        self.model, self.context = base.name, base.context
        self.adapters = [one.name for one in served if one.parent]
        theirs = upstream.wait(upstream.tokens(self.model, _SAMPLE))
        if theirs is not None and theirs != self.prompts.tokens(_SAMPLE, special=False):
            raise UserError("engine_other_model", url=upstream.url, name=name, served=base.root or base.name)
        self._running: dict[int, Job] = {}
        self._counts = dict.fromkeys(("requests_total", "places_freed_total", "generated_tokens_total"), 0.0)

    def metrics(self) -> dict[str, float]:
        running = list(self._running.values())
        held = sum(job.prompt_tokens + job.completion_tokens for job in running)
        return self._counts | {"requests_running": len(running), "kv_tokens_used": held}

    def tokenize(self, job: Job) -> list[int]:
        return self.prompts.ids(job)

    def detokenize(self, tokens: list[int]) -> str:
        return self.prompts.text(tokens)

    def embed(self, adapter: str | None, tokens: list[int]) -> list[float]:
        raise NotImplementedError  # not among the capabilities

    def submit(self, job: Job) -> Job:
        going = asyncio.run_coroutine_threadsafe(self._answer(job), self._upstream.loop)
        going.add_done_callback(lambda _: job.events.put(None))  # also of one that is given up before it began
        job.cancelled = _Linked(job.cancelled, going.cancel)
        return job

    async def _answer(self, job: Job) -> None:
        """All answers of a request, side by side."""
        self._counts["requests_total"] += 1
        self._running[id(job)] = job
        try:
            job.strict = []  # the other engine knows no more of our grammars than JSON schemas
            prompt = await asyncio.to_thread(self.prompts.ids, job)
            job.prompt_tokens = len(prompt)
            room = self.context - len(prompt)
            if room < 1:
                raise ContextOverflow(self.context, len(prompt), "messages" if job.prompt is None else "prompt")
            if not prompt:
                raise UserError("prompt_empty")
            last = len(self._tokenizer) - 1
            if unknown := [token for token in job.sampling.logit_bias if not 0 <= token <= last]:
                raise UserError("bias_unknown", token=unknown[0], last=last)
            job.sampling = replace(job.sampling, grammar=self._schema(job.sampling))
            limit = min(job.sampling.max_tokens, room)
            async with asyncio.TaskGroup() as rows:
                for index in range(job.sampling.n):
                    rows.create_task(self._row(job, index, prompt, limit))
        except asyncio.CancelledError:
            pass  # the client went away; leaving the streams has told the server
        except ExceptionGroup as errors:
            job.events.put(errors.exceptions[0])
        except Exception as error:
            job.events.put(error)
        finally:
            self._running.pop(id(job), None)
            self._counts["places_freed_total"] += 1

    async def _row(self, job: Job, index: int, prompt: list[int], limit: int) -> None:
        """One answer, token by token. Raises UserError."""
        sampling, length = row_sampling(job, index), 0
        plain = job.response_template is None
        row = AnswerRow(index, self._tokenizer, sampling.stop, plain, prompt)
        ends = sorted(self._ends)
        body = self._dialect.request(self.model, job.adapter, prompt, sampling, limit, ends)
        events, seen = self._upstream.stream(self._dialect.stream_path, body), Seen(sampling.logprobs)
        try:
            async for event in events:
                try:
                    piece = self._dialect.read(event, seen)
                except ODD:
                    raise UserError("engine_answer_odd", engine=self._dialect.title) from None
                for place, (token, measured) in enumerate(zip(piece.ids, piece.measured, strict=True)):
                    finish = piece.finish if place == len(piece.ids) - 1 else None
                    # one that the model here does not count among its ends is no text either
                    end = token in self._ends or (finish == "stop" and token in self._special)
                    length += 1
                    job.completion_tokens += 1
                    self._counts["generated_tokens_total"] += 1
                    info = measured and self._info(token, measured)
                    full = length >= limit or finish == "length"
                    sent = row.add(token, info, end=end, ended=end or finish == "stop", full=full)
                    job.events.put(sent)
                    if sent.finish:
                        return
                if piece.finish:
                    job.events.put(row.close(piece.finish))
                    return
            raise UserError("engine_ended_midway")
        finally:
            await events.aclose()  # type: ignore[attr-defined]

    def _schema(self, sampling: Sampling) -> dict | None:
        """The JSON schema of what is asked for; both engines know no more of our grammars. Raises UserError."""
        plan = sampling.grammar
        if plan is None:
            return None
        if not isinstance(plan, Plan):  # of a plain prompt
            return plan if isinstance(plan, dict) else {"type": "object"}
        if plan.form or plan.schema is None:
            raise UserError("engine_no_calls", engine=self._dialect.title)
        if plan.thoughts and (plan.opened or plan.thoughts.answer):
            raise UserError("engine_no_form_after_thought", engine=self._dialect.title)
        return plan.schema

    def _info(self, token: int, measured: Measured) -> TokenInfo:
        top = [(id_, self._read(id_), logprob, id_ in self._ends) for id_, logprob in measured.top]
        return TokenInfo(token, "", self._read(token), measured.logprob, measured.rank, None, top)

    def score(self, request: Score) -> list[TokenInfo]:
        if request.cancelled.is_set():
            return []
        prompt = self.prompts.ids(
            Job(request.adapter, request.messages, Sampling(), request.prompt, template_values=request.template_values)
        )
        answer = request.answer
        given = self.prompts.tokens(answer, special=False) if isinstance(answer, str) else answer
        if any(not 0 <= token < len(self._tokenizer) for token in given):
            raise UserError("answer_ids")
        if len(prompt) + len(given) + 1 > self.context:  # vLLM does not measure without decoding one more
            raise ContextOverflow(self.context, len(prompt) + len(given) + 1)
        if not prompt or not given:
            return []
        body = self._dialect.score_request(self.model, request.adapter, prompt, given, request.top)
        found = self._upstream.wait(self._upstream.post(self._dialect.stream_path, body))
        try:
            measured = self._dialect.scores(found, given, request.top)
        except ODD:
            raise UserError("engine_answer_odd", engine=self._dialect.title) from None
        stream, infos = after_prompt(self._tokenizer, prompt, skip_special=False), []
        for token, figures in zip(given, measured, strict=True):
            info = self._info(token, figures)
            info.text = stream.step(self._tokenizer._tokenizer, token) or ""
            infos.append(info)
        return infos

    def add_adapter(self, name: str, path: str) -> None:
        if name in self.adapters:
            return
        folder = locate_adapter(path, self._workspace)
        check_folder(folder)
        try:
            body = {"lora_name": name, "lora_path": str(folder)}
            self._upstream.wait(self._upstream.command(self._dialect.load_path, body))
        except UserError as error:
            raise UserError(
                "engine_adapter_refused", engine=self._dialect.title, name=name, reason=error.message
            ) from None
        self.adapters = [*self.adapters, name]

    def merge_adapters(self, name: str, weights: dict[str, float]) -> None:
        raise UserError("engine_no_merge", engine=self._dialect.title)

    def remove_adapter(self, name: str) -> None:
        if name not in self.adapters:
            raise UserError("adapter_unknown", name=name, loaded=self.adapters or "–")
        if any(job.adapter == name for job in list(self._running.values())):
            raise UserError("adapter_in_use", name=name)
        self._upstream.wait(self._upstream.command(self._dialect.unload_path, {"lora_name": name}))
        self.adapters = [one for one in self.adapters if one != name]


class _Linked(threading.Event):
    """A request's `cancelled` that ends its work at once."""

    def __init__(self, before: threading.Event, cancel: Callable[[], object]):
        super().__init__()
        self._cancel = cancel
        if before.is_set():
            self.set()

    def set(self) -> None:
        super().set()
        self._cancel()


def _dialect(engine: str, served: list[Served], upstream: Upstream) -> Dialect:
    if engine in DIALECTS:
        return DIALECTS[engine]
    owners = {one.owner for one in served}
    found = [dialect for dialect in DIALECTS.values() if dialect.owner in owners]
    if not found:
        raise UserError("engine_unknown", url=upstream.url)
    return found[0]


def _base(served: list[Served], name: str, upstream: Upstream) -> Served:
    """The base model among those that a server lists: the only one, or the one of this name."""
    bases = [one for one in served if not one.parent]
    if not bases:
        raise UserError("engine_answer_odd", engine=upstream.title)
    for one in bases:
        if name in (one.name, one.name.split("/")[-1], one.root.rstrip("/").split("/")[-1]):
            return one
    if len({one.root or one.name for one in bases}) != 1:
        raise UserError("engine_several_models", url=upstream.url, served=[one.name for one in bases], name=name)
    return bases[0]
