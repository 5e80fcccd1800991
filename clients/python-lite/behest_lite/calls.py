"""The calls of a tool server: each is one task that outlives the streams of those who wait for it.

Above: `dialled` and `attached`, the two ways in which calls come. Below: `store`. A call with a key goes on when its
caller is gone, since the caller comes back with the same key; it stops when it is cancelled by name.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from grpclib.const import Status

from behest_lite import schema
from behest_lite.contract.behest.v1 import (
    CallState,
    CallToolRequest,
    CallToolResponse,
    GetCallStatusRequest,
    GetCallStatusResponse,
    Progress,
    SideEffect,
    Tool,
    ToolResult,
)
from behest_lite.results import CHUNK_BYTES, cut, failed, frames_of, made
from behest_lite.store import Entry, Store

_log = logging.getLogger("behest_lite")

PROGRESS_KEPT = 256
_MAX_ATTEMPT = 2**31 - 1
_REPEATABLE = (SideEffect.PURE, SideEffect.IDEMPOTENT)


class ToolError(Exception):
    """Raised by a tool to fail with a text of its own, which the model is told."""


class Refused(Exception):
    """Raised when a call is not made. `is_proof` promises that nothing was executed."""

    def __init__(self, status: Status, reason: str, message: str, *, is_proof: bool = True) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.is_proof = is_proof


@dataclass(frozen=True, slots=True)
class Function:
    """A registered function: the tool that it is, the schema of its arguments, and who gets the context."""

    tool: Tool
    function: Callable[..., Any]
    schema: schema.Schema
    context: str


class Context:
    """What a function may know of its call and tell about it: a parameter of this type gets it. Safe in threads."""

    def __init__(self, call: Call, loop: asyncio.AbstractEventLoop) -> None:
        self._call = call
        self._loop = loop

    @property
    def request(self) -> CallToolRequest:
        """The attempt: key, number, epoch, deadline, ids. To be read only."""
        return self._call.request

    @property
    def idempotency_key(self) -> str:
        """The key of the call: equal over all its attempts, different for different calls."""
        return self._call.request.idempotency_key

    @property
    def is_cancelled(self) -> bool:
        """Whether the call was cancelled. A plain function should look now and then; an async one is stopped."""
        return self._call.is_cancelled

    def progress(self, text: str = "", *, current: float | None = None, total: float | None = None) -> None:
        """Show how far the work is; also the sign of life of a tool with a heartbeat."""
        self._loop.call_soon_threadsafe(self._call.show, Progress(text=text, current=current, total=total))


class Call:
    """A call in progress: its progress, its outcome when it has one, and who waits for either."""

    def __init__(self, request: CallToolRequest) -> None:
        self.request = request
        self.epoch = request.epoch
        self.digest = digest_of(request)
        self.outcome: ToolResult | Refused | None = None
        self.is_cancelled = False
        self.has_begun = False
        self._work: asyncio.Task[Any] | None = None
        self._shown: list[Progress] = []
        self._dropped = 0
        self._changed = asyncio.Event()

    def show(self, progress: Progress) -> None:
        """Show progress; the oldest of more than 256 is dropped for those who have not read it."""
        if self.outcome is None:
            self._shown.append(progress)
            self._dropped += len(self._shown) > PROGRESS_KEPT
            del self._shown[:-PROGRESS_KEPT]
            self._wake()

    def end(self, outcome: ToolResult | Refused) -> None:
        """Set the outcome. The first one counts."""
        self.outcome = self.outcome or outcome
        self._wake()

    def begin(self) -> None:
        """Note that it is being executed, or was."""
        self.has_begun = True
        self._wake()

    def cancel(self) -> None:
        """Stop an async function where it waits; a plain one is told, and goes on."""
        self.is_cancelled = True
        if self._work is not None:
            self._work.cancel()

    async def changed(self) -> None:
        """Wait for progress or the outcome."""
        await self._changed.wait()

    async def run(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Run a function; an async one can be cancelled. Raises what it raises, and CancelledError."""
        if not inspect.iscoroutinefunction(function):
            return await asyncio.to_thread(function, **arguments)
        async with asyncio.TaskGroup() as group:
            self._work = group.create_task(_guarded(function, arguments))
        value, error = (None, asyncio.CancelledError()) if self._work.cancelled() else self._work.result()
        self._work = None
        if error is not None:
            raise error
        return value

    async def frames(self, limit_bytes: int = CHUNK_BYTES) -> AsyncGenerator[CallToolResponse, None]:
        """Yield an empty frame once it has begun, progress, then the result, its content in pieces. Raises Refused.

        Nothing ends at the deadline, which the tool knows: a late answer may still settle a doubt.
        """
        position, is_told = 0, False
        while True:
            if self.has_begun and not is_told:
                is_told = True
                yield CallToolResponse()
            position = max(position, self._dropped)
            fresh = self._shown[position - self._dropped :]
            position += len(fresh)
            for progress in fresh:
                yield CallToolResponse(progress=progress)
            if fresh:
                continue
            if self.outcome is not None:
                break
            await self.changed()
        if isinstance(self.outcome, Refused):
            raise self.outcome
        for frame in frames_of(self.outcome, limit_bytes):
            yield frame

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Calls:
    """All calls of a server. One owner, the loop of the server."""

    def __init__(self, functions: Mapping[str, Function], store: Store, group: asyncio.TaskGroup) -> None:
        self._functions = functions
        self._store = store
        self._group = group
        self._running: dict[str, Call] = {}
        self._tasks: dict[asyncio.Task[None], Call] = {}

    @property
    def is_durable(self) -> bool:
        """Whether calls are remembered over restarts."""
        return self._store.is_durable

    def find(self, name: str) -> Function:
        """Find a tool. Raises Refused, TOOL_NOT_FOUND."""
        function = self._functions.get(name)
        if function is None:
            raise Refused(Status.NOT_FOUND, "TOOL_NOT_FOUND", f"tool {name[:64]} not found")
        return function

    def begin(self, request: CallToolRequest) -> Call:
        """Begin a call, or join the one that runs with its key. Raises Refused."""
        running = self._running.get(request.idempotency_key)
        if running is not None:
            _check_same(Entry("running", running.epoch, digest=running.digest), request)
            running.epoch = request.epoch
            return running
        call = Call(request)
        if request.idempotency_key:
            self._running[request.idempotency_key] = call
        task = self._group.create_task(self._make(call))
        self._tasks[task] = call
        return call

    def cancel(self, key: str, epoch: int) -> bool:
        """Stop the call of a key: whether it was running and was told."""
        call = self._running.get(key)
        if call is None or call.outcome is not None or epoch < call.epoch:
            return False
        call.cancel()
        return True

    def stop(self) -> None:
        """Let go of all calls, because the server ends. What they did by then is not known."""
        for task in self._tasks:
            task.cancel()

    async def idle(self) -> None:
        """Wait until no call runs."""
        while self._tasks:
            await next(iter(self._tasks.values())).changed()

    async def held(self) -> list[tuple[str, bool]]:
        """Return the keys that run, and those that are done, with whether they are done."""
        done = await self._store.done()
        return [*((key, False) for key in self._running), *((key, True) for key in done if key not in self._running)]

    async def status(self, request: GetCallStatusRequest) -> GetCallStatusResponse:
        """Tell what became of a key; one that was never seen is buried first. Raises Refused."""
        key = request.idempotency_key
        call = self._running.get(key)
        if call is not None:
            seconds = request.wait.total_seconds() if request.wait is not None else 0.0
            try:
                async with asyncio.timeout(min(seconds, 30.0)):
                    while call.outcome is None:
                        await call.changed()
            except TimeoutError:
                return GetCallStatusResponse(state=CallState.RUNNING)
        entry = await self._store.find(key)
        attempt = request.attempt or _MAX_ATTEMPT
        if entry is None or (entry.state == "buried" and (entry.epoch, entry.attempt) < (request.epoch, attempt)):
            entry = Entry("buried", request.epoch, attempt)
            await self._store.put(key, entry)
        if entry.state == "buried":
            if not self._store.is_durable:
                text = "this server forgets its calls when it stops, and does not know this one"
                raise Refused(Status.UNIMPLEMENTED, "REQUEST_UNSUPPORTED", text, is_proof=False)
            return GetCallStatusResponse(state=CallState.NEVER_SEEN)
        if entry.state == "running":
            raise _lost()
        return GetCallStatusResponse(state=CallState.DONE, result=cut(ToolResult.FromString(entry.result)))

    async def _make(self, call: Call) -> None:
        """Make a call from start to end, and remember what came of it. The outcome is set whatever happens."""
        try:
            call.end(await self._outcome(call))
        except Refused as exc:
            call.end(exc)
        except Exception:  # noqa: BLE001  one call must not end the others
            _log.exception("tool call failed")
            call.end(Refused(Status.INTERNAL, "TOOL_FAILED", "the server failed", is_proof=False))
        finally:
            call.end(Refused(Status.UNAVAILABLE, "TOOL_UNAVAILABLE", "the server is stopping", is_proof=False))
            if self._running.get(call.request.idempotency_key) is call:
                del self._running[call.request.idempotency_key]
            task = asyncio.current_task()
            if task is not None:
                self._tasks.pop(task, None)

    async def _outcome(self, call: Call) -> ToolResult:
        request, key = call.request, call.request.idempotency_key
        entry = await self._store.find(key) if key else None
        if entry is not None and (known := self._remembered(entry, request)) is not None:
            call.begin()
            return known
        function = self._allowed(request)
        try:
            arguments = schema.read(function.schema, request.arguments_json)
        except schema.Misfit as exc:
            text = f"{exc.path or '/'}: {exc.message}"
            raise Refused(Status.INVALID_ARGUMENT, "TOOL_ARGUMENTS_INVALID", text) from exc
        if key:
            await self._store.put(key, Entry("running", request.epoch, request.attempt, call.digest))
        call.begin()
        result = await self._execute(call, function, arguments)
        # What was cut short and may be repeated is not remembered: the next attempt begins anew.
        is_cut = call.is_cancelled and result.is_error and _is_repeatable(function, request)
        if key and not is_cut:
            done = Entry("done", call.epoch, request.attempt, call.digest, bytes(result))
            await self._store.put(key, done)
        return result

    def _remembered(self, entry: Entry, request: CallToolRequest) -> ToolResult | None:
        """What a remembered key means for a request: its result, or None to execute it. Raises Refused."""
        if entry.state == "buried":
            if (request.epoch, request.attempt) <= (entry.epoch, entry.attempt):
                text = f"the key is buried for attempt {entry.attempt} of epoch {entry.epoch}"
                raise Refused(Status.FAILED_PRECONDITION, "TOOL_START_EXPIRED", text)
            return None
        _check_same(entry, request)
        if entry.state == "done":
            return ToolResult.FromString(entry.result)
        if _is_repeatable(self.find(request.tool_name), request):
            return None
        raise _lost()

    def _allowed(self, request: CallToolRequest) -> Function:
        """Find the function of a request that may begin now. Raises Refused, with proof."""
        function = self.find(request.tool_name)
        if request.tool_hash and request.tool_hash != function.tool.hash:
            text = f"tool {request.tool_name} is not what the caller pinned"
            raise Refused(Status.FAILED_PRECONDITION, "TOOL_CHANGED", text)
        if request.start_by is not None and request.start_by.timestamp() < time.time():
            raise Refused(Status.FAILED_PRECONDITION, "TOOL_START_EXPIRED", "the time to begin is over")
        return function

    async def _execute(self, call: Call, function: Function, arguments: dict[str, Any]) -> ToolResult:
        """Run the function; what it raises becomes an error result without a traceback."""
        if function.context:
            arguments[function.context] = Context(call, asyncio.get_running_loop())
        try:
            if call.is_cancelled:
                raise ToolError("the call was cancelled before it began")
            return made(call.request, await call.run(function.function, arguments))
        except asyncio.CancelledError:
            if not call.is_cancelled:
                raise
            return failed(call.request, "the call was cancelled; part of its work may have been done")
        except ToolError as exc:
            return failed(call.request, str(exc))
        except Exception as exc:  # noqa: BLE001  the border to code of others
            _log.exception("tool %s raised", function.tool.name)
            return failed(call.request, f"{type(exc).__name__}: {exc}")


async def _guarded(function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[Any, Exception | None]:
    """Run a function and return what it raised, which a group would wrap."""
    try:
        return await function(**arguments), None
    except Exception as exc:  # noqa: BLE001  the border to code of others
        return None, exc


def _is_repeatable(function: Function, request: CallToolRequest) -> bool:
    """Whether a call may be executed again. Where the author says nothing, the operator's word counts."""
    hints = function.tool.hints
    claimed = SideEffect.UNSPECIFIED if hints is None else hints.side_effect
    return (claimed or request.side_effect) in _REPEATABLE


def digest_of(request: CallToolRequest) -> bytes:
    """Tell one request from another: tool and arguments."""
    return hashlib.sha256(f"{request.tool_name}\0{request.arguments_json}".encode()).digest()


def _check_same(entry: Entry, request: CallToolRequest) -> None:
    if entry.digest != digest_of(request):
        text = "the key was used with another tool or other arguments"
        raise Refused(Status.ALREADY_EXISTS, "REQUEST_ID_REUSED", text, is_proof=False)
    if request.epoch < entry.epoch:
        text = f"epoch {entry.epoch} was seen for this key"
        raise Refused(Status.ABORTED, "TOOL_OUTCOME_UNKNOWN", text, is_proof=False)


def _lost() -> Refused:
    text = "the server stopped while the call ran; whether it took effect is not known"
    return Refused(Status.ABORTED, "TOOL_OUTCOME_UNKNOWN", text, is_proof=False)
