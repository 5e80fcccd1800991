"""Performs calls of agents: creates the child run that the log names, or finds it, and waits for its end.

Above: the performer. Below: the supervisor, which drives child runs as it drives all others. The child's id follows
from the call's key and its whole order from the parent's log, so that whoever owns the parent comes to the same child:
there is never a second one. A child outlives its parent's driver, but not its parent: it is cancelled with it.
"""

from __future__ import annotations

import time

import structlog
from google.rpc.error_details_pb2 import ErrorInfo

from behest.v1.message_pb2 import Part, TextPart
from behest.v1.run_event_pb2 import ParentRun
from behest.v1.run_pb2 import Run as RunMessage
from behest.v1.run_spec_pb2 import RunSpec
from behest.v1.run_state_pb2 import RunState
from behest.v1.tool_pb2 import Progress
from behestd.core.definition import Heritage
from behestd.core.signals import CallTool, CancelTool, ChildEnded, Signal, Wake
from behestd.core.state import Call, Run, state_name
from behestd.errors import BehestError, Draining, RunIdTaken, StorageFailed, StorageFull
from behestd.failpoint import failpoint
from behestd.log.spending import charged_session
from behestd.log.store import RunRow
from behestd.runtime.birth import Order
from behestd.runtime.children_orphans import cancel_of
from behestd.runtime.gate import Key
from behestd.runtime.house import House
from behestd.runtime.orders import Orders
from behestd.runtime.performer import Task
from behestd.runtime.supervisor import Supervisor
from behestd.runtime.tool_performer import ToolPerformer
from behestd.telemetry import w3c
from behestd.tools.subagent import answer_of, order_of

logger = structlog.get_logger(__name__)

_LOOK_AGAIN_SECONDS = 5.0
_RETRY_SECONDS = 1.0


class _Refused(Exception):
    """Raised when a child run cannot be created: the error is that of the call."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Children:
    """Performs the calls of agents of all runs. `serve` is said once, before any run is driven."""

    def __init__(self, house: House, orders: Orders, tools: ToolPerformer) -> None:
        self._house = house
        self._orders = orders
        self._tools = tools
        self._supervisor: Supervisor | None = None

    def serve(self, supervisor: Supervisor) -> None:
        """Create child runs with this supervisor from here on."""
        self._supervisor = supervisor

    @property
    def _runs(self) -> Supervisor:
        assert self._supervisor is not None
        return self._supervisor

    async def call(self, effect: CallTool, task: Task) -> Signal | None:
        """Have the child run of a call, and wait for its end. None when somebody else is to wait for it.

        Raises HeldBack when what it needs was paused before it was there.
        """
        run, state = task.run, task.run.call(effect.call_id)
        assert state is not None
        assert state.child is not None
        begun = time.monotonic_ns()
        key = (run.created.namespace, state.child.child_run_id)
        try:
            if await self._house.log.store.run(*key) is None:
                self._house.switch.hold_call(run, state)
                await self._create(key, task, state)
            row = await self._end_of(key, effect, task)
        except Draining:
            return None
        except _Refused as refused:
            return ChildEnded(effect.call_id, effect.attempt, 0, reason=refused.reason, message=refused.message)
        return None if row is None else await self._ended(effect, task, row, time.monotonic_ns() - begun)

    # --- its beginning ---

    async def _pause(self, key: Key) -> None:
        """Wait before another try. Raises Draining."""
        if self._house.kin.is_draining:
            raise Draining
        await self._house.kin.change(key, _RETRY_SECONDS)

    async def _create(self, key: Key, task: Task, state: Call) -> None:
        """Create the child run, durably, unless the parent is about to end. Raises _Refused, Draining."""
        run = task.run
        failpoint("child.before_create", run.id)
        while True:
            if self._is_ending(run):
                raise _Refused("TOOL_CANCELLED", "the run ended before its child run began")
            try:
                await self._runs.create(await self._order(key, task, state))
                break
            except Draining:
                raise
            except RunIdTaken:
                break  # Whose it is is seen when it is looked at.
            except (StorageFull, StorageFailed):
                logger.warning("child run waits for the store", run_id=key[1])
                await self._pause(key)
            except BehestError as error:
                raise _Refused(error.reason, error.message) from error
        failpoint("child.after_create", run.id)
        # What was said to the parent meanwhile was said to nobody.
        if self._is_ending(run):
            self._cancel(key, run)

    async def _order(self, key: Key, task: Task, state: Call) -> Order:
        run, created, child = task.run, task.run.created, state.child
        assert state.tool is not None
        assert child is not None
        key_of_span = w3c.tool_key(state.started.key if state.started is not None else child.call_id, state.attempt)
        spec = RunSpec(
            agent_id=state.tool.agent_id,
            input=[Part(text=TextPart(text=order_of(state.call.arguments_json)))],
            budgets=child.budgets,
            timeout=child.timeout,
            labels=created.labels,
            run_id=child.child_run_id,
        )
        heritage = Heritage(
            scopes=tuple(tuple(scope.tools) for scope in run.definition.tool_scopes), parent=run.definition
        )
        return Order(
            namespace=key[0],
            principal=created.principal,
            run_id=key[1],
            session_id=f"ses_{key[1].removeprefix('run_')}",
            is_new_session=True,
            spec=spec,
            pinned=await self._orders.pin(key[0], spec, heritage),
            traceparent=w3c.under(w3c.of_run(created.traceparent, task.trace_id), key_of_span),
            parent=ParentRun(
                run_id=run.id,
                call_id=state.call.id,
                depth=created.parent.depth + 1,
                root_session_id=charged_session(run),
            ),
            parent_session_id=created.session_id,
        )

    # --- its life ---

    async def _end_of(self, key: Key, effect: CallTool, task: Task) -> RunRow | None:
        """Wait until a child run has ended, and say when it begins or ceases to wait. None: the daemon stops.

        Raises _Refused when the run of that id is none of the call's.
        """
        kin, told = self._house.kin, 0
        stretch = task.deltas.of_call(task.run, effect.call_id)
        while not kin.is_draining:
            driver = self._runs.driver(*key)
            row = await self._house.log.store.run(*key)
            if row is not None and not _is_of(row, effect, task.run):
                raise _Refused("RUN_ID_TAKEN", f"run id {key[1]} is taken")
            if row is not None and row.is_ended:
                return row
            until_ns = kin.rests_until_ns(*key)
            if until_ns != told and driver is not None:
                text = f"run {key[1]} is {state_name(driver.run.state)}"
                stretch.add_progress(effect.call_id, effect.attempt, Progress(text=text))
                task.deltas.pulse()
                told = until_ns
                task.tell(Wake())
            # What happened while the row was read is looked at first.
            if self._runs.driver(*key) is driver and not kin.is_draining:
                await kin.change(key, _LOOK_AGAIN_SECONDS)
        return None

    async def cancel(self, effect: CancelTool, run: Run) -> bool:
        """Cancel the child run of a call, and so all below it: whether it was told."""
        state = run.call(effect.call_id)
        if state is None or state.child is None:
            return False
        failpoint("child.before_cancel", run.id)
        try:
            await self._runs.command(run.created.namespace, state.child.child_run_id, cancel_of(run))
        except BehestError as error:
            logger.info("child run not cancelled", run_id=state.child.child_run_id, reason=error.reason)
            return False
        return True

    def _cancel(self, key: Key, run: Run) -> None:
        driver = self._runs.driver(*key)
        if driver is not None:
            driver.tell(cancel_of(run))

    def _is_ending(self, run: Run) -> bool:
        """Whether a run is about to end, or has ended, by now."""
        driver = self._runs.driver(run.created.namespace, run.id)
        return driver is None or driver.run.is_ended or driver.run.state == RunState.RUN_STATE_CANCELLING

    # --- its end ---

    async def _ended(self, effect: CallTool, task: Task, row: RunRow, elapsed_ns: int) -> Signal:
        """Tell the end of a child run: what it consumed, and its answer or why it has none."""
        failpoint("child.before_commit", task.run.id)
        child, state = RunMessage.FromString(row.body), task.run.call(effect.call_id)
        assert state is not None
        reason, text, result = "", "", None
        if row.state == RunState.RUN_STATE_COMPLETED and row.body:
            try:
                result = await self._tools.result(task.run, state, answer_of(child.output))
            except BehestError as error:
                reason, text = error.reason, error.message
        else:
            reason, text = _why(row, child)
        return ChildEnded(
            effect.call_id,
            effect.attempt,
            row.state,
            usage=child.usage,
            result=result,
            reason=reason,
            message=text,
            elapsed_ns=elapsed_ns,
        )


def _is_of(row: RunRow, effect: CallTool, run: Run) -> bool:
    """Whether a run is the child run of a call; of one whose record is deleted nobody can say otherwise."""
    if not row.body:
        return True
    parent = RunMessage.FromString(row.body).parent
    return (parent.run_id, parent.call_id) == (run.id, effect.call_id)


def _why(row: RunRow, child: RunMessage) -> tuple[str, str]:
    """Why a child run has no answer: a reason and a text for the model."""
    if not row.body:
        return "RUN_NOT_FOUND", f"run {row.run_id} is deleted, and its answer is lost"
    text = f"run {row.run_id} ended {state_name(row.state)}"
    if row.state == RunState.RUN_STATE_CANCELLED or not child.HasField("error"):
        return "TOOL_CANCELLED", text
    info = ErrorInfo()
    for detail in child.error.details:
        detail.Unpack(info)
    return info.reason, f"{text}: {child.error.message}"
