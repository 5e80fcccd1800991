"""Direct calls of tools: those that a client makes, which belong to no run. One attempt each; who calls may repeat it.

Above: ToolService. Below: the tools' catalog and executors. A call with a key is a task that outlives the streams of
those who wait for it; a repeat of the key joins it or gets its answer. Keys are remembered in memory alone, so a key
that is not known here is never said to be unexecuted: only the tool's server can promise that, under its own key.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from hashlib import sha256

import structlog

from behest.v1.definition_pb2 import PermissionAction, RunDefinition
from behest.v1.tool_pb2 import Progress, Tool
from behest.v1.tool_service_pb2 import CallToolRequest
from behestd.core.calls import REDOABLE, arguments_of
from behestd.core.permission import permit
from behestd.core.times import SECOND, nanoseconds
from behestd.errors import (
    AlreadyExists,
    BehestError,
    Draining,
    Forbidden,
    Internal,
    LostRace,
    Overloaded,
    ToolNotFound,
    Unavailable,
    Unsupported,
    WrongState,
)
from behestd.log.waiters import Waiters
from behestd.runtime.direct_errors import arguments_refused, error_of
from behestd.runtime.house import House
from behestd.tools.policy import timeouts
from behestd.tools.tool import (
    Answer,
    Call,
    CannotTell,
    Done,
    Executor,
    NeverSeen,
    Running,
    Status,
    Timeouts,
    ToolFailure,
)

logger = structlog.get_logger(__name__)

REMEMBERED = 10_000
REMEMBERED_BYTES = 32 * 1024 * 1024
"""Most calls that are remembered after their end, and most bytes of their answers; the oldest are forgotten first."""
_PROGRESS_KEPT = 256

Key = tuple[str, str]
"""(namespace, the key as the client gave it)."""


class DirectCall:
    """A call in progress, or its outcome. Written by `DirectCalls` alone; everybody else reads and waits."""

    __slots__ = ("_count", "_shown", "_waiters", "digest", "epoch", "executor", "is_kept", "key", "outcome", "sent")

    def __init__(self, key: Key, request: CallToolRequest, executor: Executor, sent: Call) -> None:
        self.key = key
        self.is_kept = bool(request.idempotency_key)
        """Whether somebody may come back for the outcome."""
        self.digest = _digest(request)
        self.executor = executor
        self.sent = sent
        self.epoch = sent.epoch
        self.outcome: Answer | BehestError | None = None
        self._shown: deque[Progress] = deque(maxlen=_PROGRESS_KEPT)
        self._count = 0
        self._waiters = Waiters()

    @property
    def size_bytes(self) -> int:
        """Bytes of the answer."""
        return sum(part.ByteSize() for part in self.outcome.parts) if isinstance(self.outcome, Answer) else 0

    async def progress(self) -> AsyncGenerator[Progress, None]:
        """Yield progress until there is an outcome; of a reader that lags the latest 256 are kept."""
        position = 0
        while True:
            missed = min(self._count - position, len(self._shown))
            position = self._count
            for shown in list(self._shown)[len(self._shown) - missed :]:
                yield shown
            if self._count > position:
                continue
            if self.outcome is not None:
                return
            await self._waiters.wait()

    async def end(self) -> None:
        """Wait for the outcome."""
        while self.outcome is None:
            await self._waiters.wait()

    def show(self, progress: Progress) -> None:
        """Take progress."""
        self._shown.append(progress)
        self._count += 1
        self._waiters.wake()

    def settle(self, outcome: Answer | BehestError) -> None:
        """Take the outcome. The first one counts."""
        self.outcome = self.outcome or outcome
        self._waiters.wake()


@dataclass(frozen=True, slots=True)
class Statistics:
    """Calls in flight, and calls remembered."""

    in_flight: int
    remembered: int


class DirectCalls:
    """All direct calls. `run` is its life; everything else may be called while that goes on."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._rules = RunDefinition(
            operator_permissions=house.operator.permissions, default_permission=house.operator.default_permission
        )
        self._open: dict[Key, DirectCall] = {}
        self._done: OrderedDict[Key, DirectCall] = OrderedDict()
        self._done_bytes = 0
        self._buried: OrderedDict[Key, int] = OrderedDict()
        self._tasks: asyncio.TaskGroup | None = None
        self._made: set[asyncio.Task[None]] = set()
        self._is_refusing = False
        self._closing = asyncio.Event()

    # --- life ---

    async def run(self) -> None:
        """Keep the calls going until `drain` is over, then let go of the rest: what they did by then is not known."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await self._closing.wait()
            for task in self._made:
                task.cancel()

    def refuse(self) -> None:
        """Take no more calls. Idempotent."""
        self._is_refusing = True

    async def drain(self, seconds: float) -> None:
        """Take no more calls, let those in flight end within a time, and let go of the rest. Idempotent."""
        self.refuse()
        try:
            async with asyncio.timeout(seconds):
                for call in list(self._open.values()):
                    await call.end()
        except TimeoutError:
            logger.warning("direct calls are cut", in_flight=len(self._open))
        self._closing.set()

    def statistics(self) -> Statistics:
        """Counts."""
        return Statistics(len(self._open), len(self._done))

    # --- calls ---

    @asynccontextmanager
    async def following(self, namespace: str, request: CallToolRequest, trace: str) -> AsyncIterator[DirectCall]:
        """Begin a call, or join the one of its key. A call without a key is stopped when nobody follows it any more.

        Raises what stands in the way; `not_executed` is set on errors that prove that nothing was executed.
        """
        call = self._join(namespace, request) or self._begin(namespace, request, trace)
        try:
            yield call
        finally:
            if not call.is_kept and call.outcome is None:
                self._start(self._stop(call))

    async def cancel(self, namespace: str, key: str, epoch: int) -> bool:
        """Ask that a call be stopped: whether it runs and was told."""
        call = self._open.get((namespace, key))
        if call is None or epoch < call.epoch:
            return False
        return await call.executor.cancel(call.sent.key, call.epoch)

    async def status(self, namespace: str, key: str, epoch: int, wait_seconds: float) -> Status:
        """Tell what became of a key, waiting a while for a call that runs. One that is not known is buried.

        Raises Unsupported for it all the same, since what is in memory alone proves nothing; LostRace when nobody can
        say; ToolFailure as an error when the tool's server does not answer.
        """
        name = (namespace, key)
        call = self._open.get(name)
        if call is not None:
            try:
                async with asyncio.timeout(wait_seconds):
                    await call.end()
            except TimeoutError:
                return Running()
        call = call or self._done.get(name)
        if call is None:
            self._bury(name, epoch)
            raise Unsupported("REQUEST_UNSUPPORTED", "the daemon does not know this key", feature="GetCallStatus")
        if isinstance(call.outcome, Answer):
            return Done(call.outcome)
        return await self._ask(call, epoch, wait_seconds)

    async def _ask(self, call: DirectCall, epoch: int, wait_seconds: float) -> Status:
        """Ask the tool's server about a call of unknown outcome; what it promises holds here, as its key is ours."""
        try:
            status = await call.executor.status(call.sent.key, epoch, wait_seconds)
        except ToolFailure as failure:
            raise error_of(failure, call.sent.name) from failure
        match status:
            case CannotTell():
                text = "nobody can say whether the tool took effect"
                raise LostRace("TOOL_OUTCOME_UNKNOWN", text, tool=call.sent.name)
            case NeverSeen():
                self._forget(call.key)
                self._bury(call.key, epoch)
            case Done(answer):
                self._forget(call.key)
                call.outcome = answer
                self._remember(call)
            case Running():
                pass
        return status

    def _join(self, namespace: str, request: CallToolRequest) -> DirectCall | None:
        """The call that a key stands for, None when it is to be made. Raises AlreadyExists and LostRace."""
        name = (namespace, request.idempotency_key)
        if not request.idempotency_key:
            return None
        if name in self._buried and request.epoch <= self._buried[name]:
            text = f"the key is buried for epoch {self._buried[name]} and lower ones"
            raise _proved(WrongState("TOOL_START_EXPIRED", text, tool=request.tool_name))
        known = self._open.get(name) or self._done.get(name)
        if known is None:
            return None
        if known.digest != _digest(request):
            text = "the key was used with another tool or other arguments"
            raise AlreadyExists("REQUEST_ID_REUSED", text, requestId=request.idempotency_key)
        if request.epoch < known.epoch:
            text = f"epoch {known.epoch} was seen for this key"
            raise LostRace("TOOL_OUTCOME_UNKNOWN", text, tool=request.tool_name)
        if isinstance(known.outcome, BehestError) and known.sent.side_effect in REDOABLE:
            self._forget(name)
            return None
        known.epoch = request.epoch
        return known

    def _begin(self, namespace: str, request: CallToolRequest, trace: str) -> DirectCall:
        """Check a call and start it. Whatever is raised proves that nothing was executed."""
        try:
            call = self._checked(namespace, request, trace)
        except ToolFailure as failure:
            raise _proved(error_of(failure, request.tool_name)) from failure
        except BehestError as error:
            raise _proved(error) from None
        self._open[call.key] = call
        self._start(self._make(call))
        return call

    def _checked(self, namespace: str, request: CallToolRequest, trace: str) -> DirectCall:
        house = self._house
        if self._is_refusing:
            raise Draining
        if len(self._open) >= house.limits.tool_calls:
            raise Overloaded("direct calls of tools", house.limits.tool_calls)
        tools = house.tools.snapshot(namespace)
        tool = tools.tools.get(request.tool_name)
        if tool is None:
            raise ToolNotFound(request.tool_name)
        if request.tool_hash and request.tool_hash != tool.hash:
            raise WrongState("TOOL_CHANGED", f"tool {tool.name} is not what the caller pinned", tool=tool.name)
        now_ns = house.clock.now_ns()
        if request.HasField("start_by") and nanoseconds(request.start_by) < now_ns:
            raise WrongState("TOOL_START_EXPIRED", "the time to begin is over", tool=tool.name)
        arguments_json = request.arguments_json or "{}"
        self._permit(tool, arguments_json)
        key = (namespace, request.idempotency_key or house.ids.make("key"))
        sent = Call(
            namespace=namespace,
            run_id="",
            session_id="",
            call_id=house.ids.make("call"),
            name=tool.name,
            arguments_json=arguments_json,
            key=_sent_key(key),
            attempt=max(request.attempt, 1),
            epoch=request.epoch,
            side_effect=tool.policy.side_effect,
            tool_hash=tool.hash,
            deadline_ns=nanoseconds(request.deadline),
            traceparent=trace,
            timeouts=_limits(tool, request, now_ns),
        )
        executor = tools.route(tool.name, tool.hash, sent.key).executor
        return DirectCall(key, request, executor, sent)

    def _permit(self, tool: Tool, arguments_json: str) -> None:
        """Refuse arguments that break the schema, and a call that a rule denies, or asks about: nobody could wait."""
        problem = self._house.validate(tool, arguments_json)
        arguments = arguments_of(arguments_json)
        if problem or arguments is None:
            raise arguments_refused(tool.name, problem)
        answer = permit(self._rules, tool, arguments)
        if answer.action != PermissionAction.PERMISSION_ACTION_ALLOW:
            text = answer.reason or f"calling {tool.name} directly is not permitted"
            raise Forbidden("TOOL_DENIED", text, tool=tool.name, rule=answer.rule)

    async def _make(self, call: DirectCall) -> None:
        """Make the one attempt. Whatever happens, the call has an outcome in the end."""
        try:
            call.settle(await call.executor.call(call.sent, call.show))
        except ToolFailure as failure:
            call.settle(error_of(failure, call.sent.name))
        except Exception:
            # The other calls share a task group with this one.
            logger.exception("tool call failed by a fault", tool=call.sent.name)
            call.settle(Internal("RUNTIME_INTERNAL", "a fault of the daemon; its log says more"))
        finally:
            call.settle(Unavailable("TOOL_UNAVAILABLE", "the daemon is stopping", tool=call.sent.name))
            del self._open[call.key]
            self._remember(call)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        assert self._tasks is not None
        task = self._tasks.create_task(work)
        self._made.add(task)
        task.add_done_callback(self._made.discard)

    async def _stop(self, call: DirectCall) -> None:
        await call.executor.cancel(call.sent.key, call.epoch)

    # --- memory ---

    def _remember(self, call: DirectCall) -> None:
        """Remember what a repeat of the key must be told: not of a call that was proved not to be executed."""
        is_undone = isinstance(call.outcome, BehestError) and call.outcome.not_executed
        if is_undone or not call.is_kept:
            return
        self._done[call.key] = call
        self._done_bytes += call.size_bytes
        while len(self._done) > REMEMBERED or self._done_bytes > REMEMBERED_BYTES:
            self._forget(next(iter(self._done)))

    def _forget(self, key: Key) -> None:
        call = self._done.pop(key, None)
        if call is not None:
            self._done_bytes -= call.size_bytes

    def _bury(self, key: Key, epoch: int) -> None:
        self._buried[key] = max(epoch, self._buried.pop(key, 0))
        if len(self._buried) > REMEMBERED:
            self._buried.popitem(last=False)


def _proved(error: BehestError) -> BehestError:
    error.not_executed = True
    return error


def _limits(tool: Tool, request: CallToolRequest, now_ns: int) -> Timeouts:
    """The limits of the tool, or what is left until the caller's deadline. Raises WrongState when that is over."""
    limits = timeouts(tool.policy)
    if not request.HasField("deadline"):
        return limits
    left_seconds = (nanoseconds(request.deadline) - now_ns) / SECOND
    if left_seconds <= 0:
        raise WrongState("TOOL_START_EXPIRED", "the deadline of the call is over", tool=tool.name)
    return replace(limits, start_to_close_seconds=min(limits.start_to_close_seconds, left_seconds))


def _digest(request: CallToolRequest) -> bytes:
    return sha256(f"{request.tool_name}\0{request.arguments_json or '{}'}".encode()).digest()


def _sent_key(key: Key) -> str:
    """The key under which a tool's server knows the call: no client can choose that of a run, or of a stranger."""
    return sha256("\0".join(("direct", *key)).encode()).hexdigest()
