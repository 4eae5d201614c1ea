"""Errors of the API in OpenAI's shape."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from workbench.messages.message import Message, stored


class ApiError(Exception):
    """An error in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ):
        """A `Message` is told in English, with its code and values in `told`, for a page in another language."""
        self.status = status
        self.body = {"error": {"message": str(message), "type": kind, "param": param, "code": code}}
        if isinstance(message, Message):
            self.body["error"]["told"] = stored(message)

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status)


def unexpected(error: Exception) -> ApiError:
    """An error of ours."""
    return ApiError(500, f"{type(error).__name__}: {error}", kind="server_error")


def validation_error(errors: Sequence[Any]) -> ApiError:
    """What a client is told of pydantic's errors: the first of them."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body" and not isinstance(part, int)) or "body"
    if first["type"] == "unknown_parameter":
        where = first["ctx"]["name"]
    message = first["msg"].removeprefix("Value error, ").encode(errors="replace").decode()
    return ApiError(400, f"{where}: {message}.", param=where)


def answer_errors(app: FastAPI) -> None:
    """Let `app` answer every error in OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def api_error(request, error: ApiError):
        return error.response()

    @app.exception_handler(Exception)
    async def any_error(request, error: Exception):
        return unexpected(error).response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request, error: RequestValidationError):
        return validation_error(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http_error(request, error: HTTPException):
        body = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}.").body
        return JSONResponse(body, error.status_code, error.headers)
