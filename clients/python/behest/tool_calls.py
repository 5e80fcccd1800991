"""The calls of a tool server: each is one task that outlives the streams of those who wait for it.

Above it `behest.tool_service`, which answers by them in both modes; below it `behest.dedupe`, which remembers. A call
with a key goes on when its caller is gone, since the caller, or its successor, comes back with the same key; it stops
when it is cancelled by name. A call without a key belongs to its stream.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from types import TracebackType
from typing import Any, Self

from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from behest.dedupe import EVERY_ATTEMPT, HELD_KEYS, Dedupe, Entry, State
from behest.schema import Mismatch
from behest.tool_context import Context, Origin, ToolError
from behest.tool_functions import Function
from behest.tool_results import error_result, misfit_result, result_of
from behest.tracing import continued
from behest.v1.message_pb2 import ToolResult
from behest.v1.tool_pb2 import Progress, SideEffect
from behest.v1.tool_service_pb2 import CallToolRequest

_log = logging.getLogger("behest.tools")

PROGRESS_KEPT = 256
_REPEATABLE = {SideEffect.SIDE_EFFECT_PURE, SideEffect.SIDE_EFFECT_IDEMPOTENT}


class Refused(Exception):
    """Raised when a call is not made, also by a function that finds so late. `is_proof`: nothing was executed."""

    def __init__(self, code: str, reason: str, message: str, *, is_proof: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.is_proof = is_proof

    def status(self) -> Status:
        """Return it as every error of a call is written."""
        detail = AnyMessage()
        detail.Pack(ErrorInfo(reason=self.reason, domain="behest"))
        return Status(code=code_pb2.Code.Value(self.code), message=self.message, details=[detail])


class Running:
    """A call in progress: its latest progress, its outcome when it has one, and who waits for either."""

    def __init__(self, request: CallToolRequest) -> None:
        self.key = request.idempotency_key
        self.epoch = request.epoch
        self.digest = _digest(request)
        self.task: asyncio.Task[Any] | None = None
        self.has_begun = False
        self.outcome: ToolResult | Refused | None = None
        self._cancelled = threading.Event()
        self._shown: deque[Progress] = deque(maxlen=PROGRESS_KEPT)
        self._count = 0
        self._changed = asyncio.Event()

    @property
    def is_cancelled(self) -> bool:
        """Whether it was told to stop. Safe in threads."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Tell it to stop: an async function where it waits, since its task is set while it does; a plain one looks."""
        self._cancelled.set()
        if self.task is not None:
            self.task.cancel()

    def begin(self) -> None:
        """Note that it is being executed, or that its result is there already."""
        self.has_begun = True
        self._wake()

    def show(self, progress: Progress) -> None:
        """Show progress to all who wait; the oldest of more than 256 is dropped for those who have not read it."""
        if self.outcome is None:
            self._shown.append(progress)
            self._count += 1
            self._wake()

    def end(self, outcome: ToolResult | Refused) -> None:
        """Set the outcome. The first one counts."""
        self.outcome = self.outcome or outcome
        self.has_begun = self.has_begun or isinstance(self.outcome, ToolResult)
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
    """All calls of a server, from `async with` to its end. One owner, the loop of the server."""

    def __init__(self, dedupe: Dedupe, threads: int) -> None:
        self.dedupe = dedupe
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tool")
        self._group = asyncio.TaskGroup()
        self._running: dict[str, Running] = {}
        # What runs, each with its task.
        self._all: dict[Running, asyncio.Task[None]] = {}
        self._is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        # Keys whose result the daemon surely has. At most as many as are ever reported.
        self._taken: OrderedDict[str, None] = OrderedDict()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of all calls, because the server ends. What they did by then is not known."""
        if self._all:
            _log.warning("%d calls are cut short: the server stops", len(self._all))
        for task in list(self._all.values()):
            task.cancel()
        # Not told of the error: the group would wrap it, and its calls are stopped already.
        await self._group.__aexit__(None, None, None)
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self.dedupe.close()

    def drain(self) -> None:
        """Begin no more calls: they are refused, with proof. Those that run go on, and results are still given."""
        self._is_draining = True

    async def idle(self) -> None:
        """Wait until no call runs."""
        await self._idle.wait()

    async def held(self) -> list[tuple[str, bool]]:
        """Return the keys that may still be asked for, and whether each is done: at most 10,000, and all that run."""
        held = {key: state is State.DONE for key, state in await self.dedupe.held() if key not in self._taken}
        held |= dict.fromkeys(self._running, False)
        return list(held.items())

    def taken(self, key: str) -> None:
        """Note that the daemon has the result of a key, so that it is not reported any more."""
        self._taken[key] = None
        if len(self._taken) > HELD_KEYS:
            self._taken.popitem(last=False)

    def join(self, request: CallToolRequest, find: Callable[[CallToolRequest], Function], origin: Origin) -> Running:
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
        self._idle.clear()
        self._all[running] = self._group.create_task(self._make(running, request, find, origin))
        return running

    def cancel_key(self, key: str, epoch: int) -> bool:
        """Stop the call of a key: whether it is running and was told."""
        running = self._running.get(key)
        if running is None or running.outcome is not None or epoch < running.epoch:
            return False
        running.cancel()
        return True

    async def status(self, key: str, epoch: int, wait_seconds: float, attempt: int = 0) -> Running | Entry | None:
        """What became of a key: it runs, an entry, or None when this server cannot tell.

        A key that was never seen is buried before the answer: for the epoch with the attempt (0: with all) and for what
        came before. A later attempt is the call sent again, and is made.
        """
        entry = await self.dedupe.find(key)
        # Also a call that came while its entry was looked for.
        while (running := self._running.get(key)) is not None:
            try:
                async with asyncio.timeout(wait_seconds):
                    while running.outcome is None:
                        await running.change()
            except TimeoutError:
                return running
            entry = await self.dedupe.find(key)
        attempt = attempt or EVERY_ATTEMPT
        if entry is None or (entry.state is State.BURIED and (entry.epoch, entry.attempt) < (epoch, attempt)):
            entry = Entry(State.BURIED, epoch, attempt=attempt)
            await self.dedupe.put(key, entry)
        if entry.state is State.BURIED and not self.dedupe.is_durable:
            return None
        return entry

    async def _make(
        self, running: Running, request: CallToolRequest, find: Callable[[CallToolRequest], Function], origin: Origin
    ) -> None:
        """Make a call from start to end, and remember what came of it. The outcome is set whatever happens."""
        try:
            running.end(await self._outcome(running, request, find, origin))
        except Refused as exc:
            running.end(exc)
        except Exception:  # noqa: BLE001  one call must not end the others
            _log.exception("tool call failed")
            running.end(Refused("INTERNAL", "TOOL_FAILED", "the server failed", is_proof=False))
        finally:
            # A server that stops leaves the call as lost: what it did by then is not known.
            running.end(Refused("UNAVAILABLE", "TOOL_UNAVAILABLE", "the server is stopping", is_proof=False))
            self._running.pop(running.key, None)
            self._all.pop(running, None)
            if not self._all:
                self._idle.set()

    async def _outcome(
        self, running: Running, request: CallToolRequest, find: Callable[[CallToolRequest], Function], origin: Origin
    ) -> ToolResult:
        if running.key:
            entry = await self.dedupe.find(running.key)
            known = None if entry is None else _remembered(entry, request, find)
            if known is not None:
                return known
        if self._is_draining:
            raise Refused("UNAVAILABLE", "RUNTIME_DRAINING", "the server is stopping and begins no more calls")
        function = find(request)
        try:
            arguments = function.parameters.read(request.arguments_json)
        except Mismatch as exc:
            return misfit_result(request, exc)
        if running.key:
            await self.dedupe.put(running.key, Entry(State.RUNNING, request.epoch, running.digest))
        running.begin()
        try:
            result = await self._execute(function, arguments, running, request, origin)
        except Refused as exc:
            if running.key and exc.is_proof:
                # Nothing was begun after all: the key is as good as before this attempt.
                await self.dedupe.put(running.key, Entry(State.BURIED, request.epoch, attempt=request.attempt - 1))
            raise
        # What was cut short and may be repeated is not remembered: the next attempt begins anew.
        is_cut = running.is_cancelled and result.is_error and _is_repeatable(function, request)
        if running.key and not is_cut:
            done = Entry(State.DONE, running.epoch, running.digest, result.SerializeToString())
            await self.dedupe.put(running.key, done)
        return result

    async def _execute(
        self,
        function: Function,
        arguments: dict[str, Any],
        running: Running,
        request: CallToolRequest,
        origin: Origin,
    ) -> ToolResult:
        """Run the function; what it raises becomes an error result without a traceback. Raises Refused, as it does."""
        context = Context(request, running, asyncio.get_running_loop(), origin)
        if function.parameters.context:
            arguments[function.parameters.context] = context
        if running.is_cancelled:
            return error_result(request, "the call was cancelled before it began")
        try:
            if inspect.iscoroutinefunction(function.function):
                running.task = asyncio.current_task()
            with continued(origin.traceparent):
                value = await self._run(function, arguments, running)
            running.task = None
            return result_of(request, context.written, value)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not running.is_cancelled or task is None:
                raise
            task.uncancel()
            return error_result(request, "the call was cancelled; part of its work may have been done")
        except Refused:
            raise
        except ToolError as exc:
            return error_result(request, str(exc))
        except Exception as exc:  # noqa: BLE001  the border to code of others
            _log.exception("tool %s raised", function.tool.name)
            return error_result(request, f"{type(exc).__name__}: {exc}")
        finally:
            running.task = None

    async def _run(self, function: Function, arguments: dict[str, Any], running: Running) -> object:
        if inspect.iscoroutinefunction(function.function):
            return await function.function(**arguments)

        def work() -> object:
            if running.is_cancelled:
                raise ToolError("the call was cancelled before it began")
            return function.function(**arguments)

        return await asyncio.get_running_loop().run_in_executor(self._threads, contextvars.copy_context().run, work)


def _remembered(
    entry: Entry, request: CallToolRequest, find: Callable[[CallToolRequest], Function]
) -> ToolResult | None:
    """What a remembered key means for a request: its result, or None to execute it. Raises Refused."""
    if entry.state is State.BURIED:
        if (request.epoch, request.attempt) <= (entry.epoch, entry.attempt):
            text = f"the key is buried for epoch {entry.epoch} up to attempt {entry.attempt}, and for lower epochs"
            raise Refused("FAILED_PRECONDITION", "TOOL_START_EXPIRED", text)
        return None
    _check_same(entry, request)
    if entry.state is State.DONE:
        return ToolResult.FromString(entry.result)
    if _is_repeatable(find(request), request):
        return None
    text = "the server stopped while the call ran; whether it took effect is not known"
    raise Refused("ABORTED", "TOOL_OUTCOME_UNKNOWN", text, is_proof=False)


def _is_repeatable(function: Function, request: CallToolRequest) -> bool:
    """Whether a call may be executed again. Where the author says nothing, the operator's word counts."""
    return (function.tool.hints.side_effect or request.side_effect) in _REPEATABLE


def _check_same(entry: Entry, request: CallToolRequest) -> None:
    """Refuse a key that was used for something else, and an epoch that is over. Raises Refused."""
    if entry.digest != _digest(request):
        text = "the key was used with another tool or other arguments"
        raise Refused("ALREADY_EXISTS", "REQUEST_ID_REUSED", text, is_proof=False)
    if request.epoch < entry.epoch:
        text = f"epoch {entry.epoch} was seen for this key"
        raise Refused("ABORTED", "TOOL_OUTCOME_UNKNOWN", text, is_proof=False)


def _digest(request: CallToolRequest) -> bytes:
    return sha256(f"{request.tool_name}\0{request.arguments_json}".encode()).digest()
