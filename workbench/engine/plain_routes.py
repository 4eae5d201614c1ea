"""`POST /v1/completions`: prompts that go on, with their own tokens' log-probabilities where they are echoed."""

from fastapi import Request
from fastapi.responses import JSONResponse, StreamingResponse

from workbench.engine.answering import in_thread, said
from workbench.engine.backend import ContextOverflow, Job, Score, Token
from workbench.engine.errors import ApiError
from workbench.engine.protocol import DEFAULT_COMPLETION_TOKENS, MAX_MESSAGE_CHARACTERS, CompletionRequest
from workbench.engine.responses import Echo, Plain, head, with_usage
from workbench.engine.service import Service, too_many_characters
from workbench.errors import UserError


class PlainRoutes:
    """The handler of plain completions."""

    def __init__(self, service: Service):
        self._service = service

    async def complete(self, body: CompletionRequest, request: Request):
        if sum(map(len, body.prompts)) > MAX_MESSAGE_CHARACTERS:
            raise too_many_characters("prompt")
        wanted = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        jobs = []
        for prompt in body.prompts:
            sampling = self._service.sampling(body, max(1, wanted))
            sampling.logprobs = body.logprobs
            jobs.append(Job(self._service.adapter(body.model), [], sampling, prompt=prompt))
        echoes = None
        if body.echo or not wanted:
            echoes = [await self._echo(job, body, request) for job in jobs]
        answer = Plain(jobs, head(Plain.prefix, body.model), with_usage(body), echoes if body.echo else None)
        if wanted:
            return await self._service.answered(jobs, answer, body.stream, request)
        pieces = [piece for n in range(len(jobs) * body.n) for piece in answer.take(Token("", "length", n))]
        if body.stream:
            events = [answer.encode(piece) for piece in [*pieces, *answer.closing()]]
            return StreamingResponse(iter([*events, answer.last]), media_type="text/event-stream")
        return JSONResponse(answer.body())

    async def _echo(self, job: Job, body: CompletionRequest, request: Request) -> Echo:
        """A prompt and, with `logprobs`, what the model thinks of its tokens. Raises ApiError."""
        backend = self._service.backend
        measured = body.logprobs is not None and body.echo
        if not backend.capabilities.tokens:
            if measured or body.max_tokens == 0:
                raise ApiError(400, "This engine does not support logprobs of a prompt, or max_tokens: 0.")
            return Echo()
        try:
            ids = await in_thread(backend.tokenize, job)
        except UserError as error:
            raise said(error) from None
        if len(ids) + (body.max_tokens != 0) > backend.context:
            raise said(ContextOverflow(backend.context, len(ids), "prompt"))
        job.prompt_tokens = len(ids)
        if not measured:
            return Echo(job.prompt_text)
        scored = Score(job.adapter, [], ids[1:], body.logprobs or 0, prompt=ids[:1])
        infos = await self._service.scored(scored, request) if ids[1:] else []
        return Echo(job.prompt_text, [None, *infos])
