"""Asks context sources: all of a step at once, each within its own time. Never raises: a failure is an answer too.

Above: the performer, for runs, and ContextService, for previews and for other daemons. Below: the room `context`, and
the registry, which knows the servers. What becomes of the answers is decided in `core.sources`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Protocol

import structlog

from behest.v1.context_pb2 import ContextSource, ContextSourceKind
from behest.v1.context_service_pb2 import ProvideContextRequest
from behest.v1.definition_pb2 import RunDefinition
from behest.v1.message_pb2 import Message
from behest.v1.server_pb2 import ServerOffer
from behestd.context.catalog import Sources
from behestd.context.remote import RemoteSource
from behestd.context.source import DEFAULT_TIMEOUT_SECONDS, Source, SourceFailure, checked
from behestd.core.signals import AskContext, ContextGathered
from behestd.core.sources import Answer, asked, limit_tokens
from behestd.core.state import Run
from behestd.core.times import SECOND, duration_ns, timestamp
from behestd.errors import BehestError
from behestd.failpoint import failpoint
from behestd.runtime.clock import Clock
from behestd.runtime.dialled import Dialled
from behestd.runtime.registration import Registered

logger = structlog.get_logger(__name__)

MESSAGES_BYTES = 1024 * 1024
"""Most bytes of a run's messages that a source is shown."""
_CONTEXT = ServerOffer.SERVER_OFFER_CONTEXT
_MOST_TEXT = 500


class Servers(Protocol):
    """Knows the registered servers."""

    def named(self, namespace: str, name: str) -> Registered | None:
        """The server of that name."""
        ...


class NoServers:
    """Knows none."""

    def named(self, namespace: str, name: str) -> Registered | None:
        """Nobody."""
        return None


class Contexts:
    """Asks the sources of all runs."""

    __slots__ = ("_clock", "_servers", "_sources")

    def __init__(self, sources: Sources, clock: Clock) -> None:
        self._sources = sources
        self._clock = clock
        self._servers: Servers = NoServers()

    def serve(self, servers: Servers) -> None:
        """Take the servers that are registered."""
        self._servers = servers

    async def gather(self, effect: AskContext, run: Run) -> ContextGathered:
        """Ask the sources of a run's next step."""
        request = ProvideContextRequest(
            run_id=run.id,
            session_id=run.created.session_id,
            agent_id=run.definition.agent_id,
            step=effect.step,
            messages=_latest((*run.transcript, *run.step.inputs)),
        )
        failpoint("context.before_ask", run.id)
        answers = await self.ask(run.created.namespace, run.definition, request, effect.deadline_ns)
        return ContextGathered(effect.step, answers)

    async def ask(
        self, namespace: str, definition: RunDefinition, request: ProvideContextRequest, deadline_ns: int
    ) -> dict[str, Answer]:
        """Ask every source of a definition that must be asked, all at once, until a deadline at most."""
        limits = definition.model_limits[0] if definition.model_limits else None
        async with asyncio.TaskGroup() as group:
            tasks = {}
            for source in asked(definition):
                question = ProvideContextRequest()
                question.CopyFrom(request)
                question.max_tokens = limit_tokens(source, limits) if limits is not None else source.max_tokens
                tasks[source.name] = group.create_task(self._ask(namespace, source, question, deadline_ns))
        return {name: task.result() for name, task in tasks.items()}

    async def _ask(
        self, namespace: str, source: ContextSource, question: ProvideContextRequest, deadline_ns: int
    ) -> Answer:
        begun_ns = time.monotonic_ns()
        try:
            messages = await self.provide(namespace, source, question, deadline_ns)
            return Answer(messages, elapsed_ns=time.monotonic_ns() - begun_ns)
        except BehestError as error:
            reason, text = error.reason, error.message[:_MOST_TEXT]
            logger.info("context source failed", run_id=question.run_id, source=source.name, reason=reason)
        except Exception:
            logger.exception("context source failed by a fault", run_id=question.run_id, source=source.name)
            reason, text = "RUNTIME_INTERNAL", "a fault of the daemon"
        return Answer((), reason, text, time.monotonic_ns() - begun_ns)

    async def provide(
        self, namespace: str, source: ContextSource, question: ProvideContextRequest, deadline_ns: int = 0
    ) -> tuple[Message, ...]:
        """Ask one source, within its time and until a deadline (0: none). Raises SourceFailure, SourceNotFound."""
        seconds = duration_ns(source.timeout) / SECOND or DEFAULT_TIMEOUT_SECONDS
        now_ns = self._clock.now_ns()
        if deadline_ns:
            seconds = min(seconds, max(deadline_ns - now_ns, 0) / SECOND)
        question.source = source.remote_name or source.name
        question.deadline.CopyFrom(timestamp(now_ns + int(seconds * SECOND)))
        return checked(await self._found(namespace, source).provide(question, seconds))

    def _found(self, namespace: str, source: ContextSource) -> Source:
        """Who is asked. Raises SourceFailure for a server that is not there, SourceNotFound for a function."""
        if source.kind == ContextSourceKind.CONTEXT_SOURCE_KIND_FUNCTION:
            return self._sources.function(source.name)
        server = self._servers.named(namespace, source.server)
        if server is None or _CONTEXT not in server.registration.offers:
            raise SourceFailure(f"there is no server {source.server} that offers context")
        if not isinstance(server, Dialled) or server.remote is None:
            raise SourceFailure(f"server {source.server} cannot be dialled")
        return RemoteSource(server.remote.line)


def _latest(messages: Sequence[Message]) -> list[Message]:
    """The order, and the latest messages behind it, within the limit of bytes."""
    left = MESSAGES_BYTES - sum(message.ByteSize() for message in messages[:1])
    kept: list[Message] = []
    for message in reversed(messages[1:]):
        left -= message.ByteSize()
        if left < 0:
            break
        kept.append(message)
    return [*messages[:1], *reversed(kept)]
