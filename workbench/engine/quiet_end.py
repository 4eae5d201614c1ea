"""What uvicorn says when a server ends while clients listen: nothing that needs to be read."""

import asyncio
import logging


class _NoFault(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, asyncio.CancelledError) and "graceful shutdown exceeded" not in record.getMessage()


def end_quietly() -> None:
    """An answer that is broken off because the server ends (Ctrl-C beside an open page) is no error with a traceback.
    To be called after `uvicorn.Config`, which sets the logging up."""
    logging.getLogger("uvicorn.error").addFilter(_NoFault())
