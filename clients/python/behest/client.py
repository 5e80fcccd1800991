"""The client of a daemon.

    async with Client("127.0.0.1:7717") as client:
        run = client.stream("say hello")
        async for piece in run.text():
            ...
        output = await run.result()

Above: programs and the command line. Below: one channel, the services, and `runs`. A client belongs to the event loop
that it was made on; all its parts share one connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from behest.calls import Calls, Patience
from behest.channel import default_address, open_channel, stubs_on
from behest.order import run_spec
from behest.runs import RunHandle
from behest.services.agents import Agents
from behest.services.artifacts import Artifacts
from behest.services.chat import Chats
from behest.services.daemon import Daemon
from behest.services.ids import new_request_id
from behest.services.models import Models
from behest.services.runs import Runs
from behest.services.servers import Servers
from behest.services.session_data import SessionData
from behest.services.sessions import Sessions
from behest.services.tools import ToolCalls, Tools
from behest.v1 import run_service_pb2
from behest.watch import Subject

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self, Unpack

    import grpc

    from behest.channel import Stubs
    from behest.order import Input, OrderFields


class Client:
    """A connection to a daemon, with its services as attributes and the raw stubs as `stubs`.

    The address is HOST:PORT or unix:PATH; without one it is what BEHEST_ADDRESS says, else 127.0.0.1:7717. Nothing is
    connected before the first call. Without credentials the connection is plain.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        patience: Patience | None = None,
        options: Sequence[tuple[str, int | str]] = (),
    ) -> None:
        self.address = address or default_address()
        self._channel = open_channel(self.address, credentials=credentials, options=options)
        self._calls = Calls(patience or Patience())
        self.stubs: Stubs = stubs_on(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. What is still open ends with ClientClosedError. Idempotent."""
        self._calls.close()
        await self._channel.close()

    def stream(self, said: Input, *, request_id: str = "", **order: Unpack[OrderFields]) -> RunHandle:
        """Order a run that is created and followed in one call, made when the handle is first used."""
        request = run_service_pb2.StreamRunRequest(
            spec=run_spec(said, order), request_id=request_id or new_request_id()
        )
        return RunHandle(self.stubs.runs, self._calls, Subject(request))

    async def run(self, said: Input, *, request_id: str = "", **order: Unpack[OrderFields]) -> RunHandle:
        """Create a run, and return once it is durable. Raises BehestError when it is refused."""
        handle = self.stream(said, request_id=request_id, **order)
        await handle.create()
        return handle

    def watch(self, run_id: str, *, after: int = 0) -> RunHandle:
        """Return the handle of a run that exists; its events begin after the given sequence."""
        return RunHandle(
            self.stubs.runs, self._calls, Subject(run_service_pb2.StreamRunRequest(), run_id), after_sequence=after
        )

    @property
    def runs(self) -> Runs:
        """Runs as records."""
        return Runs(self.stubs.runs, self._calls)

    @property
    def sessions(self) -> Sessions:
        """Conversations and their messages."""
        return Sessions(self.stubs.sessions, self._calls)

    @property
    def session_data(self) -> SessionData:
        """Scratch data of sessions."""
        return SessionData(self.stubs.session_data, self._calls)

    @property
    def agents(self) -> Agents:
        """Definitions of how runs are executed."""
        return Agents(self.stubs.agents, self._calls)

    @property
    def tools(self) -> Tools:
        """Tools, and direct calls of them."""
        return Tools(self.stubs.tools, self._calls)

    @property
    def tool_calls(self) -> ToolCalls:
        """Records of the tool calls of runs."""
        return ToolCalls(self.stubs.tool_calls, self._calls)

    @property
    def servers(self) -> Servers:
        """Registered remote processes."""
        return Servers(self.stubs.registry, self._calls)

    @property
    def models(self) -> Models:
        """Models and providers."""
        return Models(self.stubs.models, self._calls)

    @property
    def artifacts(self) -> Artifacts:
        """Named bytes."""
        return Artifacts(self.stubs.artifacts, self._calls)

    @property
    def chat(self) -> Chats:
        """Single model calls."""
        return Chats(self.stubs.chat, self._calls)

    @property
    def daemon(self) -> Daemon:
        """The daemon itself."""
        return Daemon(self.stubs.daemon, self._calls)
