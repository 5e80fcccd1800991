"""The client of a daemon: order runs, follow them, take their results.

    async with Client("127.0.0.1:7717") as client:
        run = client.stream("say hello")
        async for piece in run.text():
            ...
        output = await run.result()

Above: programs. Below: `follow`. What is not wrapped is at `client.channel`, for the stubs of `contract.behest.v1`.
"""

from __future__ import annotations

import ipaddress
import ssl
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from grpclib.client import Channel

from behest_lite.contract.behest.v1 import (
    CancelRunRequest,
    CreateRunRequest,
    Event,
    Part,
    Run,
    RunOutput,
    RunServiceStub,
    RunSpec,
    RunState,
    StreamRunRequest,
    TextPart,
)
from behest_lite.errors import BehestError, RunEndedError, StatusCodec, translated
from behest_lite.follow import Backoff, Following, NodeChange, Speech, Subject, change_of, kind_of

CALL_SECONDS = 30.0


def bearer(token: str, address: str, tls: ssl.SSLContext | None) -> dict[str, str] | None:
    """Return the metadata that shows a token, None without one.

    Raises ValueError when it would leave this machine in the clear.
    """
    if not token:
        return None
    if tls is None and not _is_local(address):
        raise ValueError(f"a token is sent only over TLS or to this machine, and {address} is neither")
    return {"authorization": f"Bearer {token}"}


def _is_local(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix:") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def open_channel(address: str, tls: ssl.SSLContext | None = None) -> Channel:
    """Open a channel to HOST:PORT or unix:PATH; connecting begins with the first call."""
    codec = StatusCodec()
    if tls is not None:
        # Without it gRPC servers refuse the handshake, and an SSLContext has none by itself.
        tls.set_alpn_protocols(["h2"])
    if address.startswith("unix:"):
        return Channel(path=address.removeprefix("unix:"), ssl=tls, status_details_codec=codec)
    host, _, port = address.rpartition(":")
    return Channel(host.strip("[]"), int(port), ssl=tls, status_details_codec=codec)


class Client:
    """A connection to a daemon. `patience_seconds` is how long an absent daemon is waited for.

    A token is sent over TLS, or to this machine; ValueError else.
    """

    def __init__(
        self, address: str, *, token: str = "", tls: ssl.SSLContext | None = None, patience_seconds: float = 60.0
    ) -> None:
        metadata = bearer(token, address, tls)
        self.channel = open_channel(address, tls)
        self._runs = RunServiceStub(self.channel, metadata=metadata)
        self._patience_seconds = patience_seconds

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.channel.close()

    def stream(self, text: str, **spec: Any) -> RunHandle:
        """Order a run that is created and followed in one call, made when the handle is first used.

        Other fields of RunSpec are given by name, as `model="scripted/echo"` or `graph=Graph(…)`.
        """
        said = RunSpec(input=[Part(text=TextPart(text=text))], **spec)
        order = StreamRunRequest(spec=said, request_id=str(uuid.uuid4()))
        return RunHandle(self._runs, Subject(order), 0, self._patience_seconds)

    async def run(self, text: str, **spec: Any) -> RunHandle:
        """Create a run, and return once it is durable. Raises BehestError when it is refused."""
        handle = self.stream(text, **spec)
        await handle.create()
        return handle

    def watch(self, run_id: str, *, after: int = 0) -> RunHandle:
        """Return the handle of a run that exists; its events begin after the given sequence."""
        return RunHandle(self._runs, Subject(None, run_id), after, self._patience_seconds)


class RunHandle:
    """A run, known by its id or ordered under a request_id. Nothing is sent before the first method is awaited."""

    def __init__(self, stub: RunServiceStub, subject: Subject, after_sequence: int, patience_seconds: float) -> None:
        self._stub = stub
        self._subject = subject
        self._after_sequence = after_sequence
        self._patience_seconds = patience_seconds
        self._terminal: Event | None = None

    @property
    def run_id(self) -> str:
        """The run's id; empty until the daemon has told it."""
        return self._subject.run_id

    async def create(self) -> str:
        """Make sure that the run exists, and return its id. Idempotent. Raises BehestError when it is refused."""
        subject = self._subject
        backoff = Backoff(self._patience_seconds)
        while not subject.run_id and subject.order is not None:
            request = CreateRunRequest(spec=subject.order.spec, request_id=subject.order.request_id)
            try:
                with translated():
                    response = await self._stub.create_run(request, timeout=CALL_SECONDS)
                subject.run_id = (response.run or Run()).id
            except BehestError as exc:
                if not exc.is_undecided:
                    raise
                await backoff.pause(exc)
        return subject.run_id

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the committed events, in order, each once, until the run has ended. Raises BehestError."""
        async with aclosing(self._updates()) as updates:
            async for update in updates:
                if isinstance(update, Event):
                    yield update

    async def nodes(self) -> AsyncGenerator[NodeChange, None]:
        """Yield how the nodes of the run's graph fare, in order, until the run has ended. Raises BehestError."""
        async with aclosing(self.events()) as events:
            async for event in events:
                if change := change_of(event):
                    yield change

    async def text(self) -> AsyncGenerator[str, None]:
        """Yield the text of the answers as it comes, whole once the run has ended. Raises BehestError.

        When an attempt is given up after some of its text was shown, that of the next one follows from its start.
        """
        speech = Speech()
        async with aclosing(self._updates()) as updates:
            async for update in updates:
                if piece := speech.take(update):
                    yield piece

    async def result(self) -> RunOutput:
        """Wait for the end of the run and return its output. Raises RunEndedError when it did not complete."""
        if self._terminal is None:
            async with aclosing(self._updates()) as updates:
                async for _ in updates:
                    pass
        if self._terminal is None:
            return _of_run(await self.get())
        return _of_event(self._terminal)

    async def get(self) -> Run:
        """Return the run as it is now. Raises BehestError."""
        await self.create()
        return await Following(self._stub, self._subject, 0, self._patience_seconds).get()

    async def cancel(self) -> None:
        """Cancel the run: a promise that it will end. Idempotent. Raises BehestError."""
        request = CancelRunRequest(run_id=await self.create())
        with translated():
            await self._stub.cancel_run(request, timeout=CALL_SECONDS)

    async def _updates(self) -> AsyncGenerator[Any, None]:
        following = Following(self._stub, self._subject, self._after_sequence, self._patience_seconds)
        async with aclosing(following.updates()) as updates:
            async for update in updates:
                self._terminal = following.terminal or self._terminal
                yield update


def _of_event(event: Event) -> RunOutput:
    if event.run_completed is not None:
        return event.run_completed.output or RunOutput()
    ended = event.run_failed or event.run_cancelled or event.run_timed_out
    raise RunEndedError(kind_of(event), None if ended is None else ended.error)


def _of_run(run: Run) -> RunOutput:
    if run.state == RunState.COMPLETED:
        return run.output or RunOutput()
    raise RunEndedError(f"run_{(RunState(run.state).name or 'unknown').lower()}", run.error)
