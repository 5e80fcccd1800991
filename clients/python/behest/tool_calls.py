"""The calls of a tool server: each is one task that outlives the streams of those who wait for it.

Above it `behest.tools`, which speaks gRPC; below it `behest.dedupe`, which remembers. A call with a key goes on when
its caller is gone, since the caller, or its successor, comes back with the same key; it stops when it is cancelled by
name. A call without a key belongs to its stream.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any

from behest.dedupe import Dedupe, Entry, State
from behest.schema import Mismatch, Parameters, dump
from behest.v1.message_pb2 import JsonPart, Part, TextPart, ToolResult
from behest.v1.tool_pb2 import Progress, SideEffect, Tool
from behest.v1.tool_service_pb2 import CallToolRequest

_log = logging.getLogger("behest.tools")

PROGRESS_KEPT = 256
RESULT_LIMIT_BYTES = 16 * 1024 * 1024
_REPEATABLE = {SideEffect.SIDE_EFFECT_PURE, SideEffect.SIDE_EFFECT_IDEMPOTENT}


class ToolError(Exception):
    """Raised by a tool to fail with a text of its own, which the model is told."""


class Refused(Exception):
    """Raised when a call is not made. `is_proof` promises that nothing was executed."""

    def __init__(self, code: str, reason: str, message: str, *, is_proof: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.is_proof = is_proof


@dataclass(frozen=True, slots=True)
class Function:
    """A registered function: the tool that it is, and how its arguments are read."""

    tool: Tool
    function: Callable[..., Any]
    parameters: Parameters


class Context:
    """What a function may know of its call and tell about it: a parameter of this type gets it. Safe in threads."""

    def __init__(self, request: CallToolRequest, running: Running, loop: asyncio.AbstractEventLoop) -> None:
        self._request = request
        self._running = running
        self._loop = loop
        self._text: list[str] = []

    @property
    def key(self) -> str:
        """The idempotency key: equal over all attempts of the call, different for different calls."""
        return self._request.idempotency_key

    @property
    def attempt(self) -> int:
        """The number of the attempt, from 1."""
        return self._request.attempt

    @property
    def epoch(self) -> int:
        """The fencing token: of two attempts, the one with the lower epoch is stale."""
        return self._request.epoch

    @property
    def call_id(self) -> str:
        """Id of the call. Empty for a direct call."""
        return self._request.call_id

    @property
    def run_id(self) -> str:
        """Id of the run that calls. Empty for a direct call."""
        return self._request.run_id

    @property
    def session_id(self) -> str:
        """Id of the session of the run. Empty for a direct call."""
        return self._request.session_id

    @property
    def deadline(self) -> datetime | None:
        """When the result is no longer waited for."""
        if not self._request.HasField("deadline"):
            return None
        return self._request.deadline.ToDatetime(tzinfo=UTC)

    @property
    def is_cancelled(self) -> bool:
        """Whether the call was cancelled. A plain function should look now and then; an async one is stopped."""
        return self._running.cancelled.is_set()

    def progress(self, text: str = "", *, current: float | None = None, total: float | None = None) -> None:
        """Show how far the work is. It is also the sign of life of a tool with a heartbeat."""
        self._loop.call_soon_threadsafe(self._running.show, Progress(text=text, current=current, total=total))

    def write(self, text: str) -> None:
        """Add to the text of the result, before what the function returns. For results made piece by piece."""
        self._text.append(text)

    @property
    def written(self) -> str:
        """What was written so far."""
        return "".join(self._text)


class Running:
    """A call in progress: its latest progress, its outcome when it has one, and who waits for either."""

    def __init__(self, request: CallToolRequest) -> None:
        self.key = request.idempotency_key
        self.epoch = request.epoch
        self.digest = _digest(request)
        self.is_stoppable = False
        self.cancelled = threading.Event()
        self.outcome: ToolResult | Refused | None = None
        self.task: asyncio.Task[None] | None = None
        self._shown: deque[Progress] = deque(maxlen=PROGRESS_KEPT)
        self._count = 0
        self._changed = asyncio.Event()

    def show(self, progress: Progress) -> None:
        """Show progress to all who wait; the oldest of more than 256 is dropped for those who have not read it."""
        if self.outcome is None:
            self._shown.append(progress)
            self._count += 1
            self._wake()

    def end(self, outcome: ToolResult | Refused) -> None:
        """Set the outcome. The first one counts."""
        self.outcome = self.outcome or outcome
        self._wake()

    def since(self, position: int) -> tuple[int, list[Progress]]:
        """Progress after a position (0: from the start), and the position after it."""
        missed = min(self._count - position, len(self._shown))
        return self._count, list(self._shown)[len(self._shown) - missed :]

    async def change(self) -> None:
        """Wait for progress or the outcome."""
        await self._changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Calls:
    """All calls of a server. One owner, the loop of the server."""

    def __init__(self, group: asyncio.TaskGroup, dedupe: Dedupe, threads: ThreadPoolExecutor) -> None:
        self._group = group
        self._dedupe = dedupe
        self._threads = threads
        self._running: dict[str, Running] = {}
        self._all: set[Running] = set()

    def join(self, request: CallToolRequest, find: Callable[[CallToolRequest], Function]) -> Running:
        """Begin a call, or join the one that runs with its key. `find` finds the function, or raises Refused.

        Raises Refused for a stale epoch, and for a key that runs with other arguments.
        """
        running = self._running.get(request.idempotency_key)
        if running is not None:
            _check_same(Entry(State.RUNNING, running.epoch, running.digest), request)
            running.epoch = request.epoch
            return running
        running = Running(request)
        if running.key:
            self._running[running.key] = running
        self._all.add(running)
        running.task = self._group.create_task(self._make(running, request, find))
        return running

    def cancel(self, running: Running) -> None:
        """Stop a call: an async function where it waits; a plain one is told, and goes on."""
        running.cancelled.set()
        if running.is_stoppable and running.task is not None:
            running.task.cancel()

    def cancel_key(self, key: str, epoch: int) -> bool:
        """Stop the call of a key: whether it is running and was told."""
        running = self._running.get(key)
        if running is None or running.outcome is not None or epoch < running.epoch:
            return False
        self.cancel(running)
        return True

    def stop(self) -> None:
        """Let go of all calls, because the server ends. What they did by then is not known."""
        for running in self._all:
            if running.task is not None:
                running.task.cancel()

    async def status(self, key: str, epoch: int, wait_seconds: float) -> Running | Entry | None:
        """What became of a key: it runs, an entry, or None when this server cannot tell.

        A key that was never seen is buried for the epoch and all lower ones before the answer.
        """
        running = self._running.get(key)
        if running is not None:
            try:
                async with asyncio.timeout(wait_seconds):
                    while running.outcome is None:
                        await running.change()
            except TimeoutError:
                return running
        entry = await self._dedupe.find(key)
        if entry is None or (entry.state is State.BURIED and entry.epoch < epoch):
            entry = Entry(State.BURIED, epoch)
            await self._dedupe.put(key, entry)
        if entry.state is State.BURIED and not self._dedupe.is_durable:
            return None
        return entry

    async def _make(
        self, running: Running, request: CallToolRequest, find: Callable[[CallToolRequest], Function]
    ) -> None:
        """Make a call from start to end, and remember what came of it. The outcome is set whatever happens."""
        try:
            running.end(await self._outcome(running, request, find))
        except Refused as exc:
            running.end(exc)
        except Exception:  # noqa: BLE001  one call must not end the others
            _log.exception("tool call failed")
            running.end(Refused("INTERNAL", "TOOL_FAILED", "the server failed", is_proof=False))
        finally:
            # A server that stops leaves the call as lost: what it did by then is not known.
            running.end(Refused("UNAVAILABLE", "TOOL_UNAVAILABLE", "the server is stopping", is_proof=False))
            self._running.pop(running.key, None)
            self._all.discard(running)

    async def _outcome(
        self, running: Running, request: CallToolRequest, find: Callable[[CallToolRequest], Function]
    ) -> ToolResult:
        if running.key:
            entry = await self._dedupe.find(running.key)
            known = None if entry is None else _remembered(entry, request, find)
            if known is not None:
                return known
        function = find(request)
        try:
            arguments = function.parameters.read(request.arguments_json)
        except Mismatch as exc:
            return _misfit(request, exc)
        if running.key:
            await self._dedupe.put(running.key, Entry(State.RUNNING, request.epoch, running.digest))
        result = await self._execute(function, arguments, running, request)
        if running.key:
            done = Entry(State.DONE, running.epoch, running.digest, result.SerializeToString())
            await self._dedupe.put(running.key, done)
        return result

    async def _execute(
        self, function: Function, arguments: dict[str, Any], running: Running, request: CallToolRequest
    ) -> ToolResult:
        """Run the function; what it raises becomes an error result without a traceback."""
        context = Context(request, running, asyncio.get_running_loop())
        if function.parameters.context:
            arguments[function.parameters.context] = context
        if running.cancelled.is_set():
            return error_result(request, "the call was cancelled before it began")
        try:
            running.is_stoppable = inspect.iscoroutinefunction(function.function)
            value = await self._run(function, arguments)
            running.is_stoppable = False
            return _result(request, context.written, value)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not running.cancelled.is_set() or task is None:
                raise
            task.uncancel()
            running.is_stoppable = False
            return error_result(request, "the call was cancelled; part of its work may have been done")
        except ToolError as exc:
            return error_result(request, str(exc))
        except Exception as exc:  # noqa: BLE001  the border to code of others
            _log.exception("tool %s raised", function.tool.name)
            return error_result(request, f"{type(exc).__name__}: {exc}")

    async def _run(self, function: Function, arguments: dict[str, Any]) -> object:
        if inspect.iscoroutinefunction(function.function):
            return await function.function(**arguments)
        work = partial(contextvars.copy_context().run, function.function, **arguments)
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def error_result(request: CallToolRequest, text: str) -> ToolResult:
    """Make the result of a call that failed."""
    text = text[:2_000].encode(errors="replace").decode()
    return _of_parts(request, [Part(text=TextPart(text=text))], is_error=True)


def _of_parts(request: CallToolRequest, parts: list[Part], *, is_error: bool = False) -> ToolResult:
    return ToolResult(call_id=request.call_id, name=request.tool_name, parts=parts, is_error=is_error)


def _result(request: CallToolRequest, written: str, value: object) -> ToolResult:
    """Make the result of what a function wrote and returned: strings are text, everything else JSON."""
    texts = [written] if written else []
    parts: list[Part] = []
    if isinstance(value, ToolResult):
        return value
    if isinstance(value, Part):
        parts.append(value)
    elif isinstance(value, str):
        texts.append(value)
    elif value is not None or not written:
        parts.append(Part(json=JsonPart(json=dump(value))))
    if texts:
        text = "".join(texts).encode(errors="replace").decode()
        parts.insert(0, Part(text=TextPart(text=text)))
    result = _of_parts(request, parts)
    if result.ByteSize() > RESULT_LIMIT_BYTES:
        limit = f"the result of {result.ByteSize()} bytes exceeds the limit of {RESULT_LIMIT_BYTES} bytes"
        return error_result(request, limit)
    return result


def _remembered(
    entry: Entry, request: CallToolRequest, find: Callable[[CallToolRequest], Function]
) -> ToolResult | None:
    """What a remembered key means for a request: its result, or None to execute it. Raises Refused."""
    if entry.state is State.BURIED:
        if request.epoch <= entry.epoch:
            text = f"the key is buried for epoch {entry.epoch} and lower ones"
            raise Refused("FAILED_PRECONDITION", "TOOL_START_EXPIRED", text)
        return None
    _check_same(entry, request)
    if entry.state is State.DONE:
        return ToolResult.FromString(entry.result)
    if find(request).tool.hints.side_effect in _REPEATABLE:
        return None
    text = "the server stopped while the call ran; whether it took effect is not known"
    raise Refused("ABORTED", "TOOL_OUTCOME_UNKNOWN", text, is_proof=False)


def _check_same(entry: Entry, request: CallToolRequest) -> None:
    """Refuse a key that was used for something else, and an epoch that is over. Raises Refused."""
    if entry.digest != _digest(request):
        text = "the key was used with another tool or other arguments"
        raise Refused("ALREADY_EXISTS", "REQUEST_ID_REUSED", text, is_proof=False)
    if request.epoch < entry.epoch:
        text = f"epoch {entry.epoch} was seen for this key"
        raise Refused("ABORTED", "TOOL_OUTCOME_UNKNOWN", text, is_proof=False)


def _misfit(request: CallToolRequest, problem: Mismatch) -> ToolResult:
    """Make the result of a call whose arguments do not fit: JSON that lists what is wrong, and where."""
    errors = [{"path": path, "message": text} for path, text in problem.errors[:20]]
    document = {"error": "TOOL_ARGUMENTS_INVALID", "tool": request.tool_name, "errors": errors}
    return _of_parts(request, [Part(json=JsonPart(json=dump(document)))], is_error=True)


def _digest(request: CallToolRequest) -> bytes:
    return sha256(f"{request.tool_name}\0{request.arguments_json}".encode()).digest()
