"""Direct calls of tools: those that a client makes, which belong to no run. One attempt each; who calls may repeat it.

Above: ToolService. Below: the tools' catalog and executors, `direct_call`, `direct_journal`. A call with a key is a
task that outlives the streams of those who wait for it; a repeat of the key joins it or gets its answer, also after a
restart. A key that is not known is buried before it is said to be unexecuted; where the store forgets, nothing is said.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import structlog

from behest.v1.definition_pb2 import PermissionAction, RunDefinition
from behest.v1.model_event_pb2 import FailureClass
from behest.v1.tool_pb2 import Executed, SideEffect, Tool
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
from behestd.runtime.direct_call import DirectCall, digest_of, lost, restored, sent_key
from behestd.runtime.direct_errors import arguments_refused, error_of, hold, proved
from behestd.runtime.direct_journal import Entry, Journal, Key, Stage
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
_EVERY_ATTEMPT = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Statistics:
    """Calls in flight, and calls remembered."""

    in_flight: int
    remembered: int


class DirectCalls:
    """All direct calls. `run` is its life; everything else may be called while that goes on."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._journal = Journal(house.log, house.clock)
        self._open: dict[Key, DirectCall] = {}
        self._done: OrderedDict[Key, DirectCall] = OrderedDict()
        self._done_bytes = 0
        self._buried: OrderedDict[Key, tuple[int, int]] = OrderedDict()
        """The last (epoch, attempt) that must not be executed."""
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
        if request.idempotency_key:
            await self._recall((namespace, request.idempotency_key))
        call = self._join(namespace, request) or self._begin(namespace, request, trace)
        try:
            yield call
        finally:
            if not call.is_kept and call.outcome is None:
                self._start(self._stop(call))

    async def cancel(self, namespace: str, key: str, epoch: int) -> bool:
        """Ask that a call be stopped: whether it runs and was told."""
        call = self._open.get((namespace, key))
        if call is None or call.executor is None or epoch < call.epoch:
            return False
        # Before the server is asked: the answer may be here first.
        call.is_cancelled = True
        return not call.is_sent or await call.executor.cancel(call.sent.key, call.epoch)

    async def status(self, namespace: str, key: str, epoch: int, wait_seconds: float, *, attempt: int = 0) -> Status:
        """Tell what became of a key, waiting a while for a call that runs. One that is not known is buried.

        Raises Unsupported for that all the same where the store forgets, as it proves nothing; LostRace when nobody can
        say; ToolFailure as an error when the tool's server does not answer.
        """
        name = (namespace, key)
        await self._recall(name)
        call = self._open.get(name)
        if call is not None:
            try:
                async with asyncio.timeout(wait_seconds):
                    await call.end()
            except TimeoutError:
                return Running()
        call = call or self._done.get(name)
        if call is None or call.is_undone:
            return await self._never_seen(name, epoch, attempt)
        if isinstance(call.outcome, Answer):
            return Done(call.outcome, call.call_id, call.sent.name)
        return await self._ask(call, epoch, wait_seconds, attempt)

    async def _never_seen(self, name: Key, epoch: int, attempt: int) -> NeverSeen:
        """Bury a key: in memory at once, so that no call comes between, then durably."""
        self._bury(name, epoch, attempt or _EVERY_ATTEMPT)
        await self._journal.put(name, Entry(Stage.BURIED, *self._buried[name]))
        if not self._journal.is_durable:
            raise Unsupported("REQUEST_UNSUPPORTED", "the daemon does not know this key", feature="GetCallStatus")
        return NeverSeen()

    async def _ask(self, call: DirectCall, epoch: int, wait_seconds: float, attempt: int) -> Status:
        """Ask the tool's server about a call of unknown outcome; what it promises holds here, as its key is ours.

        A server whose memory does not count is not believed when it says that it never saw a key.
        """
        sent = call.sent
        try:
            executor = call.executor or self._executor(call)
            status = await executor.status(sent.key, epoch, wait_seconds, attempt)
        except ToolFailure as failure:
            raise error_of(failure, sent.name) from failure
        is_forgetful = sent.side_effect == SideEffect.SIDE_EFFECT_NON_IDEMPOTENT
        if isinstance(status, CannotTell) or (isinstance(status, NeverSeen) and is_forgetful):
            raise lost(sent.name)
        if isinstance(status, NeverSeen):
            self._forget(call.key)
            return await self._never_seen(call.key, epoch, attempt)
        if isinstance(status, Done):
            self._forget(call.key)
            call.outcome = status.answer
            self._remember(call)
            await self._journal.put(call.key, call.entry(Stage.DONE))
            return Done(status.answer, call.call_id, call.sent.name)
        return status

    def _executor(self, call: DirectCall) -> Executor:
        """Who was sent a call before a restart. Raises ToolFailure."""
        tools = self._house.tools.snapshot(call.sent.namespace)
        return tools.route_to(call.sent.name, call.sent.tool_hash, call.server_id).executor

    async def _recall(self, name: Key) -> None:
        """Bring what the journal knows of a key into memory, unless it is there; a call that was cut is in doubt."""
        if name in self._open or name in self._done:
            return
        entry = await self._journal.find(name)
        if entry is None or name in self._open or name in self._done:
            return
        if entry.stage is Stage.BURIED:
            self._bury(name, entry.epoch, entry.attempt)
        else:
            self._remember(restored(name, entry))

    def _join(self, namespace: str, request: CallToolRequest) -> DirectCall | None:
        """The call that a key stands for, None when it is to be made. Raises AlreadyExists and LostRace."""
        name = (namespace, request.idempotency_key)
        if not request.idempotency_key:
            return None
        if name in self._buried and (request.epoch, max(request.attempt, 1)) <= self._buried[name]:
            epoch, attempt = self._buried[name]
            text = f"the key is buried for epoch {epoch} up to attempt {attempt}, and for lower epochs"
            raise proved(WrongState("TOOL_START_EXPIRED", text, tool=request.tool_name))
        known = self._open.get(name) or self._done.get(name)
        if known is None:
            return None
        if known.digest != digest_of(request):
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
            raise proved(error_of(failure, request.tool_name)) from failure
        except BehestError as error:
            raise proved(error) from None
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
        house.switch.refuse_tool(namespace, tool.name)
        if request.tool_hash and request.tool_hash != tool.hash:
            raise WrongState("TOOL_CHANGED", f"tool {tool.name} is not what the caller pinned", tool=tool.name)
        now_ns = house.clock.now_ns()
        if request.HasField("start_by") and nanoseconds(request.start_by) < now_ns:
            raise WrongState("TOOL_START_EXPIRED", "the time to begin is over", tool=tool.name)
        arguments_json = request.arguments_json or "{}"
        self._permit(tool, arguments_json)
        key = (namespace, request.idempotency_key or house.ids.make("key"))
        limits = _limits(tool, request, now_ns)
        sent = Call(
            namespace=namespace,
            run_id="",
            session_id="",
            call_id=house.ids.make("call"),
            name=tool.name,
            arguments_json=arguments_json,
            key=sent_key(key),
            attempt=max(request.attempt, 1),
            epoch=request.epoch,
            side_effect=tool.policy.side_effect,
            tool_hash=tool.hash,
            deadline_ns=now_ns + int(limits.start_to_close_seconds * SECOND),
            start_by_ns=nanoseconds(request.start_by) if request.HasField("start_by") else 0,
            traceparent=trace,
            timeouts=limits,
        )
        route = tools.route(tool.name, tool.hash, sent.key)
        return DirectCall(key, request, sent, executor=route.executor, server_id=route.server_id)

    def _permit(self, tool: Tool, arguments_json: str) -> None:
        """Refuse arguments that break the schema, and a call that a rule denies, or asks about: nobody could wait."""
        problem = self._house.validate(tool, arguments_json)
        arguments = arguments_of(arguments_json)
        if problem or arguments is None:
            raise arguments_refused(tool.name, problem)
        operator = self._house.operator
        rules = RunDefinition(operator_permissions=operator.permissions, default_permission=operator.default_permission)
        answer = permit(rules, tool, arguments)
        if answer.action != PermissionAction.PERMISSION_ACTION_ALLOW:
            text = answer.reason or f"calling {tool.name} directly is not permitted"
            raise Forbidden("TOOL_DENIED", text, tool=tool.name, rule=answer.rule)

    async def _make(self, call: DirectCall) -> None:
        """Make the one attempt. Whatever happens, the call has an outcome in the end."""
        try:
            call.settle(await self._attempt(call))
        except ToolFailure as failure:
            call.settle(error_of(failure, call.sent.name))
        except BehestError as error:
            call.settle(error)
        except Exception:
            # The other calls share a task group with this one.
            logger.exception("tool call failed by a fault", tool=call.sent.name)
            call.settle(Internal("RUNTIME_INTERNAL", "a fault of the daemon; its log says more"))
        finally:
            call.settle(Unavailable("TOOL_UNAVAILABLE", "the daemon is stopping", tool=call.sent.name))
            del self._open[call.key]
            self._remember(call)

    async def _attempt(self, call: DirectCall) -> Answer:
        """Make the attempt between its two entries in the journal, which pure tools and calls without a key need not.

        Raises ToolFailure, and StorageFull and StorageFailed with proof, as nothing was sent.
        """
        assert call.executor is not None
        if not call.is_kept or call.sent.side_effect == SideEffect.SIDE_EFFECT_PURE:
            return await self._sent(call, call.executor)
        try:
            await self._journal.put(call.key, call.entry(Stage.BEGUN))
        except BehestError as error:
            raise proved(error) from None
        try:
            answer = await self._sent(call, call.executor)
        except ToolFailure as failure:
            if failure.executed == Executed.EXECUTED_NO and call.sent.side_effect not in REDOABLE:
                # The key is as good as before this attempt.
                await self._journal.put(call.key, Entry(Stage.BURIED, call.epoch, call.sent.attempt - 1))
            raise
        if call.is_cut_by(answer):
            return answer
        try:
            await self._journal.put(call.key, call.entry(Stage.DONE, answer))
        except BehestError as error:
            # It took effect, and who waits is told so; after a restart it is in doubt.
            logger.warning("answer of a direct call not recorded", tool=call.sent.name, reason=error.reason)
        return answer

    async def _sent(self, call: DirectCall, executor: Executor) -> Answer:
        """Send a call, unless it was told to stop by now. Raises ToolFailure."""
        if call.is_cancelled:
            permanent, no = FailureClass.FAILURE_CLASS_PERMANENT, Executed.EXECUTED_NO
            raise ToolFailure(permanent, no, "TOOL_CANCELLED", "the call was told to stop before it was sent")
        hold(self._house.switch, call.sent)
        call.is_sent = True
        return await executor.call(call.sent, call.show)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        assert self._tasks is not None
        task = self._tasks.create_task(work)
        self._made.add(task)
        task.add_done_callback(self._made.discard)

    async def _stop(self, call: DirectCall) -> None:
        if call.executor is not None:
            await call.executor.cancel(call.sent.key, call.epoch)

    # --- memory ---

    def _remember(self, call: DirectCall) -> None:
        """Remember what a repeat of the key must be told: nothing of one that was not executed, or cut short."""
        is_proof = isinstance(call.outcome, BehestError) and call.outcome.not_executed
        if is_proof or not call.is_kept or call.is_cut_by(call.outcome):
            return
        self._done[call.key] = call
        self._done_bytes += call.size_bytes
        while len(self._done) > REMEMBERED or self._done_bytes > REMEMBERED_BYTES:
            self._forget(next(iter(self._done)))

    def _forget(self, key: Key) -> None:
        call = self._done.pop(key, None)
        if call is not None:
            self._done_bytes -= call.size_bytes

    def _bury(self, key: Key, epoch: int, attempt: int) -> None:
        self._buried[key] = max((epoch, attempt), self._buried.pop(key, (0, 0)))
        if len(self._buried) > REMEMBERED:
            self._buried.popitem(last=False)


def _limits(tool: Tool, request: CallToolRequest, now_ns: int) -> Timeouts:
    """The limits of the tool, or what is left until the caller's deadline. Raises WrongState when that is over."""
    limits = timeouts(tool.policy)
    if not request.HasField("deadline"):
        return limits
    left_seconds = (nanoseconds(request.deadline) - now_ns) / SECOND
    if left_seconds <= 0:
        raise WrongState("TOOL_START_EXPIRED", "the deadline of the call is over", tool=tool.name)
    return replace(limits, start_to_close_seconds=min(limits.start_to_close_seconds, left_seconds))
