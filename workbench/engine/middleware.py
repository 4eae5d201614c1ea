"""What every request to the API passes first."""

from starlette.datastructures import Headers

from workbench.engine.door import Door, host_name, same_origin
from workbench.engine.errors import ApiError

MAX_BODY = 8 << 20  # bytes of a request


class Names:
    """Answers only to its own names, and to no page of another site but those that may call it."""

    def __init__(self, app, door: Door, cors: tuple[str, ...]):
        self.app, self.door, self.cors = app, door, cors

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and (message := self._refusal(scope)):
            refused = ApiError(403, message, code="forbidden_host")
            await refused.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, scope) -> str:
        headers = Headers(scope=scope)
        name, origin = host_name(headers.get("host", "")), headers.get("origin")
        if not name or not self.door.knows(name, (scope.get("server") or ("", 0))[0]):
            return (
                f"Without --api-key this server does not answer to the name {name[:100]!r}, only to 127.0.0.1 and"
                " localhost."
            )
        if origin is None or "*" in self.cors or origin in self.cors:
            return ""
        site = headers.get("sec-fetch-site", "")
        mine = same_origin(origin, scope["scheme"], headers.get("host", ""), by_browser=site == "same-origin")
        return (
            "" if mine else "Pages of other sites may not use this server. Start it with --cors ORIGIN to let one in."
        )


class BodyLimit:
    """Refuses requests that are too large."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        messages, read = [], 0
        while True:  # the whole body first: what comes after it is only the client's going away
            message = await receive()
            messages.append(message)
            read += len(message.get("body", b""))
            if read > MAX_BODY:
                refused = ApiError(413, f"The request is larger than {MAX_BODY >> 20} MiB.")
                await refused.response()(scope, receive, send)
                return
            if message["type"] != "http.request" or not message.get("more_body"):
                break
        messages.reverse()

        async def replay():
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)
