"""The client of a daemon.

    async with Client("127.0.0.1:7717") as client:
        run = client.stream("say hello")
        async for piece in run.text():
            ...
        output = await run.result()

Above: programs and the command line. Below: one channel, the services, `runs`, and `subscription` for handlers. A
client belongs to the event loop that it was made on; all its parts share one connection.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from behest.background import Background
from behest.calls import Calls, Patience
from behest.channel import default_address, default_token, open_channel, stubs_on
from behest.errors import BehestError
from behest.events import EventWatch
from behest.hooks import Executor
from behest.order import run_spec
from behest.runs import RunHandle
from behest.services.agents import Agents
from behest.services.approvals import Approvals
from behest.services.artifacts import Artifacts
from behest.services.chat import Chats
from behest.services.context import Context
from behest.services.daemon import Daemon
from behest.services.embeddings import Embeddings
from behest.services.graphs import Graphs
from behest.services.ids import new_request_id
from behest.services.models import Models
from behest.services.runs import Runs
from behest.services.servers import Servers
from behest.services.session_data import SessionData
from behest.services.sessions import Sessions
from behest.services.tools import ToolCalls, Tools
from behest.services.usage import UsageSums
from behest.subscription import RunEvents, Subscription, kinds_of
from behest.v1 import event_service_pb2, run_service_pb2
from behest.watch import Subject

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Self, Unpack

    import grpc

    from behest.channel import Stubs
    from behest.control import Control
    from behest.hooks import Hooks
    from behest.order import Input, OrderFields
    from behest.security import Tls
    from behest.subscription import Handler


class Client:
    """A connection to a daemon, with its services as attributes and the raw stubs as `stubs`.

    The address is HOST:PORT or unix:PATH; without one it is what BEHEST_ADDRESS says, else 127.0.0.1:7717, and the
    token is what BEHEST_TOKEN says. Nothing is connected before the first call. Without `tls`, or credentials of grpc,
    the connection is plain, and then a token is sent to this machine only: ValueError beyond.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str = "",
        tls: Tls | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        patience: Patience | None = None,
        options: Sequence[tuple[str, int | str]] = (),
    ) -> None:
        self.address = address or default_address()
        self.tls = tls
        shown = token or ("" if address else default_token())
        self._channel = open_channel(self.address, token=shown, tls=tls, credentials=credentials, options=options)
        self._calls = Calls(patience or Patience())
        self._background = Background()
        self._subscriptions: set[Subscription] = set()
        self.stubs: Stubs = stubs_on(self._channel)

    async def __aenter__(self) -> Self:
        await self._background.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._calls.close()
        await self._background.__aexit__(None, None, None)
        await self.close()

    async def close(self) -> None:
        """Close the connection. What is still open ends with ClientClosedError. Idempotent."""
        self._calls.close()
        await self._channel.close()

    def stream(self, said: Input = (), *, request_id: str = "", **order: Unpack[OrderFields]) -> RunHandle:
        """Order a run that is created and followed in one call, made when the handle is first used.

        With `graph`, `graph_id` or `strategy` it follows a reasoning graph: `client.stream("hello", strategy="react")`.
        """
        request = run_service_pb2.StreamRunRequest(
            spec=run_spec(said, order), request_id=request_id or new_request_id()
        )
        return RunHandle(self.stubs.runs, self._calls, Subject(request))

    async def run(self, said: Input = (), *, request_id: str = "", **order: Unpack[OrderFields]) -> RunHandle:
        """Create a run, and return once it is durable. Raises BehestError when it is refused."""
        handle = self.stream(said, request_id=request_id, **order)
        await handle.create()
        return handle

    def watch(self, run_id: str, *, after: int = 0) -> RunHandle:
        """Return the handle of a run that exists; its events begin after the given sequence."""
        return RunHandle(
            self.stubs.runs, self._calls, Subject(run_service_pb2.StreamRunRequest(), run_id), after_sequence=after
        )

    async def emit(
        self, said: Input = (), *, control: Control | None = None, request_id: str = "", **order: Unpack[OrderFields]
    ) -> RunHandle:
        """Order a run, and return its handle once the run is durable: `run = await client.emit("say hello")`.

        Handlers that were registered before see all its events. A control bounds it from outside, and may make it wait
        for a place. Raises BehestError when it is refused, ControlCancelledError.
        """
        with suppress(BehestError, TimeoutError):
            async with asyncio.timeout(self._calls.patience.repeat_seconds):
                for subscription in list(self._subscriptions):
                    await subscription.ready()
        if control is None:
            return await self.run(said, request_id=request_id, **order)
        await control.enter()
        try:
            run = await self.run(said, request_id=request_id, **control.bounded(order))
            self._background.start(control.keep(run))
        except BaseException:
            await control.leave()
            raise
        return run

    def on(
        self,
        kind: str | Iterable[str],
        handler: Handler,
        *,
        run_id: str = "",
        session_id: str = "",
        agent_id: str = "",
        after: str = "",
    ) -> Subscription:
        """Call a handler, plain or async, for events of a kind, of several, or of all (empty): one at a time, in order.

            client.on("run_failed", lambda event: print(event.run_failed.error.message))
            client.on("", handler, run_id=run.run_id)  # that run alone, from its start to its end

        Without a run: what happens from now on, or after the cursor of an earlier subscription with the same kinds and
        filters. Goes on over restarts of the daemon. Kinds are the names of the fields of `Event.payload`. Raises
        ValueError for an unknown kind, or a run together with other filters; RuntimeError outside of `async with`.
        """
        kinds = kinds_of(kind)
        if run_id and (session_id or agent_id or after):
            raise ValueError("the events of one run have no other filters, and begin at its start")
        source: RunEvents | EventWatch
        if run_id:
            source = RunEvents(lambda sequence: self.watch(run_id, after=sequence), self._calls.patience.pause_seconds)
        else:
            request = event_service_pb2.WatchEventsRequest(
                after_cursor=after,
                only_new=not after,
                session_ids=filter(None, [session_id]),
                agent_ids=filter(None, [agent_id]),
                kinds=sorted(kinds),
            )
            source = EventWatch(self.stubs.events, self._calls, request)
        subscription = Subscription(source, kinds, handler)
        task = self._background.start(subscription.run())
        subscription.started(task)
        self._subscriptions.add(subscription)
        task.add_done_callback(lambda _: self._subscriptions.discard(subscription))
        return subscription

    def use(
        self, hooks: Hooks, *, run_id: str = "", session_id: str = "", agent_id: str = "", after: str = ""
    ) -> Subscription:
        """Ask hooks about events, and carry out what they say; the filters are those of `on`. See `behest.hooks`."""
        handler = Executor(self, hooks).handle
        return self.on(hooks.kinds, handler, run_id=run_id, session_id=session_id, agent_id=agent_id, after=after)

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
    def graphs(self) -> Graphs:
        """Ways of reasoning that runs can follow."""
        return Graphs(self.stubs.reasoning, self._calls)

    @property
    def approvals(self) -> Approvals:
        """Tool calls that wait for somebody's word."""
        return Approvals(self.stubs.approvals, self._calls)

    @property
    def tools(self) -> Tools:
        """Tools, and direct calls of them."""
        return Tools(self.stubs.tools, self._calls)

    @property
    def usage(self) -> UsageSums:
        """What calls of models used and cost."""
        return UsageSums(self.stubs.usage, self._calls)

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
    def context(self) -> Context:
        """What models see beside an order."""
        return Context(self.stubs.context, self._calls)

    @property
    def artifacts(self) -> Artifacts:
        """Named bytes."""
        return Artifacts(self.stubs.artifacts, self._calls)

    @property
    def chat(self) -> Chats:
        """Single model calls."""
        return Chats(self.stubs.chat, self._calls)

    @property
    def embeddings(self) -> Embeddings:
        """Vectors for texts."""
        return Embeddings(self.stubs.embeddings, self._calls)

    @property
    def daemon(self) -> Daemon:
        """The daemon itself."""
        return Daemon(self.stubs.daemon, self._calls)
