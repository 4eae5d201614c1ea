"""`/v1/embeddings`, `/v1/tokenize` and `/v1/detokenize`."""

import base64
import struct

from workbench.engine.answering import in_thread, said
from workbench.engine.backend import Job, Sampling
from workbench.engine.errors import ApiError
from workbench.engine.own_protocol import DetokenizeRequest, EmbeddingRequest, TokenizeRequest
from workbench.engine.protocol import MAX_MESSAGE_CHARACTERS
from workbench.engine.service import Service, plain_messages, too_many_characters
from workbench.errors import UserError


class TextRoutes:
    """The handlers of what is done with texts beside going on with them."""

    def __init__(self, service: Service):
        self._service = service

    async def embed(self, body: EmbeddingRequest):
        """The mean of the last hidden states over a text's tokens."""
        backend, adapter = self._service.backend, self._service.adapter(body.model)
        if not backend.capabilities.embeddings:
            raise ApiError(404, "This engine gives no embeddings. Ask a server with an embedding model.")
        data, read = [], 0
        try:
            _bounded(sum(map(len, body.inputs)), "input")
            for number, text in enumerate(body.inputs):
                ids = await in_thread(backend.tokenize, Job(adapter, [], Sampling(), prompt=text))
                vector = await in_thread(backend.embed, adapter, ids)
                shown = vector if body.encoding_format == "float" else _packed(vector)
                data.append({"object": "embedding", "index": number, "embedding": shown})
                read += len(ids)
        except UserError as error:
            raise said(error) from None
        usage = {"prompt_tokens": read, "total_tokens": read}
        return {"object": "list", "model": body.model, "data": data, "usage": usage}

    async def tokenize(self, body: TokenizeRequest):
        backend = self._service.backend
        job = Job(self._service.adapter(body.model), [], Sampling(), template_values=body.chat_template_kwargs)
        if body.messages is not None:
            job.messages = plain_messages(body.messages)
            job.tools = [tool.model_dump() for tool in body.tools] if body.tools else None
        else:
            _bounded(len(body.prompt or ""), "prompt")
            job.prompt, job.special_tokens = body.prompt, body.add_special_tokens
        self._can_tell()
        try:
            ids = await in_thread(backend.tokenize, job)
        except UserError as error:
            raise said(error) from None
        return {"count": len(ids), "max_model_len": backend.context, "tokens": ids}

    async def detokenize(self, body: DetokenizeRequest):
        self._service.adapter(body.model)
        self._can_tell()
        try:
            return {"prompt": await in_thread(self._service.backend.detokenize, body.tokens)}
        except UserError as error:
            raise said(error) from None

    def _can_tell(self) -> None:
        if not self._service.backend.capabilities.tokens:
            raise ApiError(404, "This engine does not tell tokens. Load the model with another engine.")


def _bounded(characters: int, what: str) -> None:
    if characters > MAX_MESSAGE_CHARACTERS:
        raise too_many_characters(what)


def _packed(vector: list[float]) -> str:
    """Numbers as OpenAI's base64: 32 bits each, the low byte first."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
