"""One attached server: its registration, its last hello, its stream, and the window in which it may come back.

Above: `registry`, which keeps them, and `attached_streams`, which brings streams. Below: `tools.attached`. A server
whose stream is lost keeps its tools for the window, so that its calls go on where they were; when that is over its
tools are listed no more, and of its calls nobody can say whether they took effect.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

from behest.v1.model_pb2 import Model
from behest.v1.registry_service_pb2 import AttachDrain, AttachHello, AttachServerResponse
from behest.v1.server_pb2 import Server, ServerState
from behest.v1.tool_pb2 import Tool
from behestd.core.times import duration_ns, timestamp
from behestd.errors import BehestError, Draining, LostRace, ServerNotFound
from behestd.providers.attached import AttachedModels
from behestd.runtime.dialled import GRACE_SECONDS
from behestd.tools.attached import AttachedServer, Line
from behestd.tools.catalog import Standing

_NEVER_HELLO = AttachHello()


class StreamReplaced(LostRace):
    """Raised when another stream of the same server takes the place of one."""

    def __init__(self, name: str) -> None:
        super().__init__("TOOL_SERVER_REPLACED", f"another stream of server {name} took this one's place", name=name)


class Stream(Protocol):
    """The way to a server that is there."""

    def send(self, frame: AttachServerResponse) -> None:
        """Put a frame on its way."""
        ...

    def end(self, error: BehestError | None = None) -> None:
        """End the stream once everything is on its way. Idempotent: the first end counts."""
        ...


class Attached:
    """An attached server. `tool_names` and `model_ids` are as the catalogs have them, empty while not listed."""

    __slots__ = (
        "_is_closed",
        "_line",
        "_on_gone",
        "_seen_ns",
        "_state",
        "_stream",
        "_window",
        "answering",
        "error",
        "hello",
        "is_offered",
        "model_ids",
        "namespace",
        "registration",
        "remote",
        "tool_names",
        "tried",
    )

    def __init__(
        self,
        namespace: str,
        registration: Server,
        remote: AttachedServer,
        on_gone: Callable[[Attached], None],
        now_ns: Callable[[], int],
    ) -> None:
        """`on_gone` is called when its window is over."""
        self.namespace = namespace
        self.registration = registration
        self.remote = remote
        self.hello = _NEVER_HELLO
        """What is kept of its last hello."""
        self.answering = AttachedModels(remote, now_ns)
        self.is_offered = False
        """Whether the catalogs have all that it serves."""
        self.tool_names: tuple[str, ...] = ()
        self.model_ids: tuple[str, ...] = ()
        self.error: BehestError | None = None
        self.tried = asyncio.Event()
        """Set: nobody tries to reach it."""
        self.tried.set()
        self._on_gone = on_gone
        self._state = ServerState.SERVER_STATE_DISCONNECTED
        self._seen_ns = 0
        self._line: Line | None = None
        self._stream: Stream | None = None
        self._window: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def name(self) -> str:
        """The name, unique in the namespace."""
        return self.registration.name

    @property
    def tools(self) -> Sequence[Tool]:
        """The tools of its last hello."""
        return self.hello.tools

    @property
    def models(self) -> Sequence[Model]:
        """The models of its last hello."""
        return self.hello.models

    def offered(self) -> Server:
        """The registration as its tools are offered: of two retentions the smaller one counts."""
        if not self.hello.HasField("dedupe_retention"):
            return self.registration
        made = Server()
        made.CopyFrom(self.registration)
        said = self.hello.dedupe_retention
        if not made.HasField("dedupe_retention") or duration_ns(said) < duration_ns(made.dedupe_retention):
            made.dedupe_retention.CopyFrom(said)
        return made

    def listed(self) -> bytes:
        """What is recorded of what it serves."""
        return self.hello.SerializeToString()

    def remember(self, body: bytes) -> None:
        """Take up what was recorded: the server may come back to a new daemon as to the old one."""
        self.hello = AttachHello.FromString(body)
        self._state = ServerState.SERVER_STATE_RECONNECTING

    def standing(self) -> Standing:
        """How it does."""
        return Standing(
            is_there=self.remote.is_open,
            is_full=self.remote.is_full,
            in_flight=self.remote.counters.in_flight,
            lease_id=self.remote.line_name,
            rejoins=self._state != ServerState.SERVER_STATE_DISCONNECTED,
        )

    def report(self) -> Server:
        """The server as clients see it, but for its error."""
        told = Server()
        told.CopyFrom(self.registration)
        told.state = self._state
        told.tool_names.extend(self.tool_names)
        told.model_ids.extend(self.model_ids)
        if self._seen_ns:
            told.seen_time.CopyFrom(timestamp(self._seen_ns))
        return told

    # --- streams ---

    def connect(self, line: Line, stream: Stream, now_ns: int) -> None:
        """Take a stream; one that is there already ends with ABORTED. Nothing is called on it before `begin`."""
        self._stop_window()
        if self._stream is not None:
            self._stream.end(StreamReplaced(self.name))
        self._line, self._stream, self._seen_ns = line, stream, now_ns
        self._state, self.error = ServerState.SERVER_STATE_READY, None

    def begin(self, line: Line) -> None:
        """Join the calls that wait for the server, and send new ones."""
        self.remote.attach(line)

    def disconnect(self, line: Line, now_ns: int, window_seconds: float) -> None:
        """Take note that a stream is lost, and wait for another one, unless it has come already."""
        self.remote.detach(line)
        if self._line is not line:
            return
        self._line = self._stream = None
        self._seen_ns = now_ns
        self._state = ServerState.SERVER_STATE_RECONNECTING
        self.open_window(window_seconds)

    def missed(self, window_seconds: float) -> None:
        """Take note that a stream was lost before it was taken, and wait for another one, unless there is one."""
        if self._stream is None:
            self._state = ServerState.SERVER_STATE_RECONNECTING
            self.open_window(window_seconds)

    def stop_dispatch(self) -> None:
        """Send it no more calls: it is stopping."""
        self.remote.drain()
        self._state = ServerState.SERVER_STATE_DEGRADED

    def resume_dispatch(self) -> None:
        """Send it calls again."""
        self._state = ServerState.SERVER_STATE_READY

    def open_window(self, seconds: float) -> None:
        """Give it so long to come back. Nothing for one that is there, or that was not here when the daemon stopped."""
        self._stop_window()
        if self._is_closed:
            self._gone()
        elif self._state == ServerState.SERVER_STATE_RECONNECTING:
            self._window = asyncio.get_running_loop().call_later(seconds, self._gone)

    def _gone(self) -> None:
        self._state = ServerState.SERVER_STATE_DISCONNECTED
        self._on_gone(self)
        self.remote.give_up()

    def _stop_window(self) -> None:
        if self._window is not None:
            self._window.cancel()
            self._window = None

    # --- the end ---

    def drain(self) -> None:
        """Send no more calls, and ask the server to end its stream when it has none left."""
        self.remote.drain()
        if self._stream is not None:
            self._stream.send(AttachServerResponse(drain=AttachDrain()))

    async def retire(self, closing: asyncio.Event) -> None:
        """End a server that is registered no more, for good: at once when it is away, else once it has no calls."""
        self._is_closed = True
        self.remote.drain()
        self._stop_window()
        if self._stream is None:
            self.remote.give_up()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS), asyncio.TaskGroup() as tasks:
                waits = [tasks.create_task(self.remote.quiet()), tasks.create_task(_set(closing))]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()
        if self._stream is not None:
            self._stream.end(ServerNotFound(self.registration.id))

    async def close(self) -> None:
        """End the stream, or give up a server that has none. It attaches again elsewhere, or later."""
        self._is_closed = True
        self._stop_window()
        if self._stream is not None:
            self._stream.end(Draining())
        else:
            self.remote.give_up()


async def _set(event: asyncio.Event) -> None:
    await event.wait()
