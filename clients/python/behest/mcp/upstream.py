"""One MCP server, connected again whenever it is lost: its tools as they change, and calls of them.

Above: `bridge`. Below: `transports` and the client of the MCP SDK. Guarantees: a call that did not reach the server is
refused with the proof of that; one that may have reached it and was not answered is refused without, so that the
daemon decides by the class that the operator set; a call that is cancelled is cancelled there too.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import anyio
from mcp import Client, InputRequiredRoundsExceededError, MCPError, types
from mcp.client.subscriptions import SubscriptionLost
from mcp.types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from behest.calls import Backoff
from behest.errors import broken_stream
from behest.mcp.transports import KEY, Dial
from behest.services.ids import new_request_id
from behest.tool_calls import Refused
from behest.tool_context import Context, ToolError

_log = logging.getLogger("behest.mcp")

CONNECT_SECONDS = 30.0
"""How long a handshake with the list of tools may take, and each later list."""
WAIT_SECONDS = 5.0
"""How long a call waits for a server that is being connected again."""
PAUSE_SECONDS = 5.0
"""The longest pause between two attempts to connect."""
LOST_SECONDS = 2.0
"""How long the client of the MCP SDK may take to give up its calls once their connection is over."""
MAX_PAGES = 100

OnTools = Callable[[list[types.Tool]], None]


class _Connection:
    """One connection while it lives, and what there is to do for it."""

    def __init__(self) -> None:
        self.is_over = False
        self.has_changed = False
        self.calls: set[anyio.CancelScope] = set()
        self._news = asyncio.Event()

    def end(self) -> None:
        """Note that it is over; calls that are left open on it are abandoned a little later."""
        if not self.is_over:
            asyncio.get_running_loop().call_later(LOST_SECONDS, self._abandon)
        self.is_over = True
        self._news.set()

    def _abandon(self) -> None:
        for call in self.calls:
            call.cancel()

    def change(self) -> None:
        """Note that the tools are others."""
        self.has_changed = True
        self._news.set()

    async def news(self) -> None:
        """Wait for either."""
        await self._news.wait()
        self._news.clear()


class Upstream:
    """The connection to one MCP server. `on_tools` gets all tools after each connection and each change of them."""

    def __init__(self, dial: Dial, on_tools: OnTools) -> None:
        self._dial = dial
        self._on_tools = on_tools
        # Both set while there is a connection that is not known to be over.
        self._client: Client | None = None
        self._connected = asyncio.Event()
        # The calls at work by their keys: whether they may have reached the server; of failed ones what is proved.
        self._sent: dict[str, bool] = {}
        self._failed: dict[str, bool] = {}
        self._current: _Connection | None = None
        self._failure = ""

    @property
    def failure(self) -> str:
        """What the last connection failed with. Empty: nothing has failed since it was there."""
        return self._failure

    async def run(self) -> None:
        """Connect, and connect again, until cancelled."""
        backoff = Backoff(PAUSE_SECONDS)
        task = asyncio.current_task()
        assert task is not None
        # A transport that fails while it is cancelled tells of its failure alone.
        while not task.cancelling():
            failure = "it ended the connection"
            try:
                await self._serve(backoff)
            except Exception as exc:  # noqa: BLE001  the border to code of others: transports raise what they like
                failure = _leaf(exc)
            if failure != self._failure:
                _log.warning("the MCP server is not connected: %s", failure)
            self._failure = failure
            await backoff.pause(broken_stream(failure), give_up_seconds=math.inf)

    async def call(self, name: str, arguments: dict[str, Any], context: Context) -> types.CallToolResult:
        """Call a tool. Raises Refused, and ToolError for an error that the server answers."""
        client, connection = await self._live()
        key = context.idempotency_key or new_request_id()
        meta = {KEY: key, **({"traceparent": context.traceparent} if context.traceparent else {})}

        async def show(progress: float, total: float | None, message: str | None) -> None:
            context.progress(message or "", current=progress, total=total)

        lost = anyio.CancelScope()
        connection.calls.add(lost)
        self._sent[key] = False
        try:
            with lost:
                answer = await client.call_tool(name, arguments, progress_callback=show, meta=meta)  # type: ignore[arg-type]
                # Progress that came before the answer is still on its way through the loop.
                await asyncio.sleep(0)
                return answer
            raise self._lost(key)
        except MCPError as exc:
            raise self._told(exc, key) from exc
        except InputRequiredRoundsExceededError as exc:
            raise ToolError("the MCP server asks for input that nobody gives") from exc
        except (ValidationError, RuntimeError) as exc:
            # What the SDK raises for an answer that breaks the protocol or the tool's own schema.
            text = f"the answer of the MCP server cannot be used: {_leaf(exc)}"
            raise Refused("INTERNAL", "TOOL_RESULT_INVALID", text, is_proof=False) from exc
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise self._lost(key) from exc
        finally:
            connection.calls.discard(lost)
            self._sent.pop(key, None)
            self._failed.pop(key, None)

    async def _live(self) -> tuple[Client, _Connection]:
        """The live connection, waited for if need be. Raises Refused, with proof."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while self._client is None or self._current is None:
                    await self._connected.wait()
        except TimeoutError as exc:
            raise Refused("UNAVAILABLE", "TOOL_UNAVAILABLE", "the MCP server is not connected") from exc
        return self._client, self._current

    def _told(self, error: MCPError, key: str) -> Exception:
        """What an error of the protocol means for a call."""
        if key in self._failed or error.code == types.CONNECTION_CLOSED:
            return self._lost(key)
        return ToolError(f"the MCP server refused the call: {error.message}")

    def _lost(self, key: str) -> Refused:
        """The refusal of a call whose server was lost or failed."""
        is_proof = self._failed.get(key, not self._sent[key])
        text = "the MCP server cannot be reached" if is_proof else "the MCP server was lost during the call"
        return Refused("UNAVAILABLE", "TOOL_UNAVAILABLE", text, is_proof=is_proof)

    async def _serve(self, backoff: Backoff) -> None:
        """Keep one connection until it is lost. Raises what transports raise."""
        connection = _Connection()

        async def heard(message: Any) -> None:
            if isinstance(message, types.ToolListChangedNotification):
                connection.change()

        dialled = self._dial(lambda: self._lose(connection), self._note_sent, self._note)
        async with (
            asyncio.timeout(CONNECT_SECONDS) as patience,
            Client(dialled, message_handler=heard, cache=None) as client,
            anyio.create_task_group() as group,
        ):
            self._on_tools(await _listed(client))
            patience.reschedule(None)
            since = time.monotonic()
            if not connection.is_over:
                self._client, self._current, self._failure = client, connection, ""
                self._connected.set()
            group.start_soon(_listen, client, connection)
            try:
                while not connection.is_over:
                    await connection.news()
                    if connection.has_changed:
                        connection.has_changed = False
                        await self._list_again(client)
            finally:
                self._lose(connection)
                group.cancel_scope.cancel()
                if time.monotonic() - since > PAUSE_SECONDS:
                    # One that ends as soon as it stands is not connected again at once.
                    backoff.heard(progress=True)

    async def _list_again(self, client: Client) -> None:
        try:
            self._on_tools(await _listed(client))
        except (MCPError, RuntimeError, TimeoutError) as exc:
            _log.warning("the MCP server does not list its tools, those before stay: %s", _leaf(exc))

    def _lose(self, connection: _Connection) -> None:
        connection.end()
        if self._current is connection:
            self._client = self._current = None
            self._connected.clear()

    def _note_sent(self, key: str) -> None:
        if key in self._sent:
            self._sent[key] = True

    def _note(self, key: str, is_proof: bool) -> None:
        if key in self._sent:
            self._failed[key] = is_proof


async def _listed(client: Client) -> list[types.Tool]:
    """All tools, page after page. Raises MCPError, TimeoutError, and RuntimeError for pages without an end."""
    tools: list[types.Tool] = []
    cursor: str | None = None
    with anyio.fail_after(CONNECT_SECONDS):
        for _ in range(MAX_PAGES):
            page = await client.list_tools(cursor=cursor)
            tools += page.tools
            cursor = page.next_cursor
            if not cursor:
                return tools
    raise RuntimeError(f"the list of tools has more than {MAX_PAGES} pages")


async def _listen(client: Client, connection: _Connection) -> None:
    """Note changes of the tools where they must be asked for; servers of earlier versions of MCP tell by themselves."""
    offers = client.server_capabilities.tools
    if client.protocol_version not in MODERN_PROTOCOL_VERSIONS or not (offers and offers.list_changed):
        return
    backoff = Backoff(PAUSE_SECONDS)
    while True:
        try:
            async with client.listen(tools_list_changed=True) as events:
                backoff.heard(progress=True)
                # What changed before this is not told.
                connection.change()
                async for _ in events:
                    connection.change()
        except SubscriptionLost:
            _log.debug("the MCP server ended the stream of changes")
        except MCPError as exc:
            _log.warning("the MCP server tells no changes of its tools: %s", exc.message[:300])
            return
        await backoff.pause(broken_stream("the stream of changes ended"), give_up_seconds=math.inf)


def _leaf(error: BaseException) -> str:
    """The first error of a group, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
