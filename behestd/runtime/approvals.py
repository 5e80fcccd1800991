"""Approvals of tool calls: the requests that are open, the record of those that were, and the words that decide them.

Above: ApprovalService. Below: the entries that are written with each commit of a run, and the supervisor, which has
every word judged by the core. What was decided first stays; a word is good for the call, the arguments and the
namespace that it names, once.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from behest.v1.approval_event_pb2 import ApprovalDecision
from behest.v1.approval_pb2 import Approval, ApprovalState
from behest.v1.run_pb2 import Run as RunMessage
from behestd.core.signals import Decision
from behestd.core.state import state_name
from behestd.core.times import nanoseconds
from behestd.errors import BehestError, Forbidden, InvalidRequest, NotFound, RunEnding, RunNotFound, WrongState
from behestd.log import views
from behestd.log.store import RunRow, Store
from behestd.runtime.supervisor import Supervisor

_AT_ONCE = 100
_TOO_LATE = frozenset({"APPROVAL_DECIDED", "APPROVAL_EXPIRED", "APPROVAL_NOT_FOUND", "RUN_ENDING"})
"""What a run says to a word that comes too late; the record then tells what came before it."""

Place = tuple[int, str]
"""(create time, call): where an approval stands in a list."""


class ApprovalNotFound(NotFound):
    """Raised when no approval was asked for the call."""

    def __init__(self, call_id: str) -> None:
        super().__init__("APPROVAL_NOT_FOUND", f"no approval was asked for call {call_id}", callId=call_id)


class ApprovalDecided(WrongState):
    """Raised when somebody decided otherwise before."""

    def __init__(self, call_id: str, decision: str, by: str) -> None:
        text = f"{by} decided about call {call_id} before: {decision}"
        super().__init__("APPROVAL_DECIDED", text, callId=call_id, decision=decision, by=by)


class ApprovalExpired(WrongState):
    """Raised when nobody decided in time."""

    def __init__(self, call_id: str, until: str) -> None:
        text = f"the request for call {call_id} expired at {until}"
        super().__init__("APPROVAL_EXPIRED", text, callId=call_id, until=until)


class ApprovalForbidden(Forbidden):
    """Raised when the caller may not decide about calls of its own runs."""

    def __init__(self, principal: str) -> None:
        text = f"{principal} ordered the run, and may not decide about its calls"
        super().__init__("APPROVAL_FORBIDDEN", text, principal=principal)


@dataclass(frozen=True, slots=True)
class Query:
    """Which approvals to list. Empty fields match everything; without states those that are pending."""

    namespace: str
    session_id: str = ""
    run_id: str = ""
    states: frozenset[int] = frozenset()

    @property
    def lanes(self) -> tuple[bool, ...]:
        """Which of the two orders are read: that of the pending ones (True), that of the others (False)."""
        pending = ApprovalState.APPROVAL_STATE_PENDING
        if not self.states:
            return (True,)
        return (True,) * (pending in self.states) + (False,) * bool(self.states - {pending})


class Approvals:
    """Reads approvals, and has them decided."""

    def __init__(self, store: Store, supervisor: Supervisor, *, allows_own: bool) -> None:
        """`allows_own`: whether whoever ordered a run may decide about its calls."""
        self._store = store
        self._supervisor = supervisor
        self._allows_own = allows_own

    def set_own(self, allows_own: bool) -> None:
        """Put another answer to that in force."""
        self._allows_own = allows_own

    async def get(self, namespace: str, call_id: str) -> Approval:
        """Get an approval by its call. Raises ApprovalNotFound."""
        entry = await self._store.entry(namespace, views.APPROVAL, call_id)
        if entry is None:
            raise ApprovalNotFound(call_id)
        return Approval.FromString(entry.body)

    # --- list ---

    async def walk(self, query: Query, after: Place | None) -> AsyncGenerator[Approval, None]:
        """Yield the approvals that match, oldest first, from behind a place on."""
        lanes = [self._lane(query, is_pending, after) for is_pending in query.lanes]
        try:
            heads = [await anext(lane, None) for lane in lanes]
            while any(head is not None for head in heads):
                _, chosen = min((place_of(head), at) for at, head in enumerate(heads) if head is not None)
                head, heads[chosen] = heads[chosen], await anext(lanes[chosen], None)
                if head is not None and (not query.states or head.state in query.states):
                    yield head
        finally:
            for lane in lanes:
                await lane.aclose()

    async def _lane(self, query: Query, is_pending: bool, after: Place | None) -> AsyncGenerator[Approval, None]:
        """Yield approvals of one order. Those of the same time are told apart by their calls."""
        create_ns, call_id = after or (0, "")
        last = (views.approval_position(create_ns, is_pending=is_pending), call_id)
        limit = _AT_ONCE
        while True:
            entries = await self._store.entries(
                query.namespace,
                views.APPROVAL,
                session_id=query.session_id,
                run_id=query.run_id,
                after=last[0] - 1,
                limit=limit,
            )
            due = [entry for entry in entries if (entry.position, entry.id) > last]
            for entry in due:
                if is_pending and entry.position >= views.ENDED:
                    return
                yield Approval.FromString(entry.body)
            if len(entries) < limit:
                return
            if due:
                last = (due[-1].position, due[-1].id)
            else:
                limit *= 2

    # --- decide ---

    async def decide(self, namespace: str, word: Decision) -> Approval:
        """Have a word committed, and get the approval after it. The same word again gets what the first one did.

        Raises ApprovalNotFound, ApprovalDecided, ApprovalExpired, ApprovalForbidden, RunEnding, InvalidRequest for the
        hash of other arguments and for new arguments that are refused, and what a commit raises.
        """
        approval = await self.get(namespace, word.call_id)
        if word.args_hash and word.args_hash != approval.args_hash:
            raise InvalidRequest("args_hash", "is not that of the arguments that are asked for")
        await self._refuse_own(namespace, approval, word.by)
        if approval.state == ApprovalState.APPROVAL_STATE_PENDING:
            refusal = await self._refusal(namespace, approval.run_id, word)
            approval = await self.get(namespace, word.call_id)
            if refusal is not None and approval.state == ApprovalState.APPROVAL_STATE_PENDING:
                raise refusal
        return await self._settled(namespace, approval, word)

    async def _refusal(self, namespace: str, run_id: str, word: Decision) -> BehestError | None:
        """Have a word committed, or say why it comes too late."""
        try:
            await self._supervisor.command(namespace, run_id, word)
        except (NotFound, WrongState) as error:
            if error.reason not in _TOO_LATE:
                raise
            return error
        return None

    async def _refuse_own(self, namespace: str, approval: Approval, principal: str) -> None:
        if self._allows_own:
            return
        run = RunMessage.FromString((await self._row(namespace, approval.run_id)).body)
        if run.principal == principal:
            raise ApprovalForbidden(principal)

    async def _row(self, namespace: str, run_id: str) -> RunRow:
        row = await self._store.run(namespace, run_id)
        if row is None:
            raise RunNotFound(run_id)
        return row

    async def _settled(self, namespace: str, approval: Approval, word: Decision) -> Approval:
        """The approval, when it is what the word says."""
        if approval.state == ApprovalState.APPROVAL_STATE_DECIDED:
            said = (approval.decision, approval.decided_by, approval.decided_arguments_json)
            if said == (word.decision, word.by, word.arguments_json):
                return approval
            decision = ApprovalDecision.Name(approval.decision).removeprefix("APPROVAL_DECISION_")
            raise ApprovalDecided(approval.call_id, decision, approval.decided_by)
        if approval.state == ApprovalState.APPROVAL_STATE_CANCELLED:
            row = await self._row(namespace, approval.run_id)
            raise RunEnding(row.run_id, state_name(row.state))
        raise ApprovalExpired(approval.call_id, approval.until.ToJsonString())


def place_of(approval: Approval) -> Place:
    """Where an approval stands in a list."""
    return nanoseconds(approval.create_time), approval.call_id
