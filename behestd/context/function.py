"""Context functions: code of extensions, trusted, inside the daemon. See `source` for the promises.

An async function takes a `ProvideContextRequest` and gives a text, a message, a list of both, or None for nothing to
say. It is cancelled when its time is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from behest.v1.context_service_pb2 import ProvideContextRequest
from behest.v1.message_pb2 import Message
from behestd.context.source import SourceFailure, message_of

_log = structlog.get_logger(__name__)

Given = str | Message | Sequence[str | Message] | None
Function = Callable[[ProvideContextRequest], Awaitable[Given]]


class FunctionSource:
    """One function as a source."""

    def __init__(self, name: str, function: Function) -> None:
        self._name = name
        self._function = function

    async def provide(self, request: ProvideContextRequest, timeout_seconds: float) -> Sequence[Message]:
        """Run the function once. Raises SourceFailure."""
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(timeout_seconds):
                return _messages(await self._function(request))
        except TimeoutError as exc:
            raise SourceFailure(f"no answer within {timeout_seconds:g} s") from exc
        except asyncio.CancelledError:
            if task is None or task.cancelling():
                raise
            raise SourceFailure("the function was cancelled from within") from None
        except SourceFailure:
            raise
        except Exception as exc:
            # Not the text, which may hold what people wrote.
            _log.warning("context function raised", source=self._name, error=type(exc).__name__)
            raise SourceFailure(f"the function raised {type(exc).__name__}") from exc


def _messages(given: Given) -> list[Message]:
    if given is None:
        return []
    several = [given] if isinstance(given, str | Message) else list(given)
    made = [message_of(each) if isinstance(each, str) else each for each in several if each != ""]
    if not all(isinstance(each, Message) for each in made):
        raise SourceFailure("the function returned what is neither text nor message")
    return made
