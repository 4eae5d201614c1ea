"""`/v1/responses`, with the answers that it has given kept in memory for `previous_response_id`."""

import time
import uuid
from collections import OrderedDict

from fastapi import Request
from pydantic import ValidationError

from workbench.engine.errors import ApiError, validation_error
from workbench.engine.service import Service
from workbench.engine.turns import Turn
from workbench.engine.turns_protocol import TurnRequest

MAX_KEPT = 500  # answers, the last ones
MAX_KEPT_CHARACTERS = 20_000_000  # of them and of what they answer


class Kept:
    """Answers with the conversations that they end, until there is no room: the oldest go first."""

    def __init__(self):
        self._turns: OrderedDict[str, tuple[dict, list[dict], int]] = OrderedDict()
        self._characters = 0

    def add(self, body: dict, messages: list[dict]) -> None:
        self.remove(body["id"])
        size = sum(len(str(message)) for message in messages)
        self._turns[body["id"]] = body, messages, size
        self._characters += size
        while len(self._turns) > MAX_KEPT or (self._characters > MAX_KEPT_CHARACTERS and len(self._turns) > 1):
            self._characters -= self._turns.popitem(last=False)[1][2]

    def get(self, name: str) -> tuple[dict, list[dict]] | None:
        """The answer and its conversation."""
        found = self._turns.get(name)
        return found[:2] if found else None

    def remove(self, name: str) -> bool:
        found = self._turns.pop(name, None)
        self._characters -= found[2] if found else 0
        return found is not None


class ResponseRoutes:
    """The handlers of the Responses API."""

    def __init__(self, service: Service):
        self._service, self._kept = service, Kept()

    async def create(self, body: TurnRequest, request: Request):
        before: list[dict] = []
        if body.previous_response_id is not None:
            kept = self._kept.get(body.previous_response_id)
            if kept is None:
                raise ApiError(
                    400,
                    f"Previous response with id '{body.previous_response_id[:100]}' not found. Send the conversation.",
                    code="previous_response_not_found",
                    param="previous_response_id",
                )
            before = kept[1]
        try:
            chat = body.chat(before)
        except ValidationError as error:
            raise validation_error(error.errors()) from None
        except ValueError as error:
            raise ApiError(400, f"{error}.", param="input") from None
        job = self._service.chat_job(chat)
        messages = [message.model_dump(exclude_none=True) for message in chat.messages]
        if body.instructions is not None:  # they are for this turn alone
            messages = messages[1:]
        turn = _Keeping(job, _shown(body, job), self._kept if body.store else None, messages, body.stream)
        return await self._service.answered([job], turn, body.stream, request)

    async def read(self, name: str):
        if (kept := self._kept.get(name)) is None:
            raise ApiError(404, f"There is no response '{name[:100]}' any more.", param="name")
        return kept[0]

    async def delete(self, name: str):
        if not self._kept.remove(name):
            raise ApiError(404, f"There is no response '{name[:100]}' any more.", param="name")
        return {"id": name, "object": "response", "deleted": True}


class _Keeping(Turn):
    """A turn that is kept when it ends."""

    def __init__(self, job, shown: dict, kept: Kept | None, messages: list[dict], piecewise: bool):
        super().__init__(job, shown, piecewise)
        self._kept, self._messages = kept, messages

    def closing(self) -> list[dict]:
        events = super().closing()
        self._keep(events[-1]["response"])
        return events

    def body(self) -> dict:
        body = super().body()
        self._keep(body)
        return body

    def _keep(self, body: dict) -> None:
        if self._kept is not None:
            self._kept.add(body, [*self._messages, self.message()])


def _shown(body: TurnRequest, job) -> dict:
    """What a response repeats of its request."""
    shown = body.model_dump(by_alias=True, include={"model", "instructions", "previous_response_id", "store"})
    shown |= body.model_dump(
        by_alias=True,
        include={"max_output_tokens", "tool_choice", "parallel_tool_calls", "truncation", "text", "tools"},
    )
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "created_at": int(time.time()),
        **shown,
        "temperature": job.sampling.temperature,
        "top_p": job.sampling.top_p,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "metadata": {},
    }
