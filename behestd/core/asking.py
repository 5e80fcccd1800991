"""Asking about calls: a request for somebody's approval, unless too many wait for one already. Above: `calls`.

How many a principal may have waiting over all its runs is the operator's limit, as whoever can order runs could bury
the requests of others. A call beyond it is refused, and the model told so; nothing waits for a place.
"""

from __future__ import annotations

from behest.v1.approval_event_pb2 import ApprovalRequested
from behest.v1.definition_pb2 import PermissionAction
from behestd.core.draft import Draft
from behestd.core.limits import WAIT_SECONDS
from behestd.core.permission import Permission
from behestd.core.state import Call, Phase, Run
from behestd.core.times import SECOND, duration_ns, timestamp

FULL = "pending_approvals"
"""The rule of a refusal because too many calls wait."""


def ask(draft: Draft, call: Call, rule: str, args_hash: bytes) -> Permission:
    """Record that a call waits for an approval, which is bound to its arguments, or return its refusal."""
    created, kin = draft.run.created, draft.given.kin
    waiting = asked(draft.run) + kin.asked(created.namespace, created.principal, draft.run.id)
    if kin.most_asked and waiting >= kin.most_asked:
        text = f"{waiting} calls wait for an approval, of {kin.most_asked} that may: try again when some are decided"
        return Permission(PermissionAction.PERMISSION_ACTION_DENY, FULL, text)
    until = timestamp(draft.given.now_ns + _approval_ns(draft.run))
    draft.note(ApprovalRequested(call_id=call.call.id, args_hash=args_hash, until=until, rule=rule))
    return Permission(PermissionAction.PERMISSION_ACTION_ASK, rule)


def asked(run: Run) -> int:
    """How many calls of a run wait for an approval."""
    return sum(call.phase is Phase.ASKED for call in run.calls)


def _approval_ns(run: Run) -> int:
    pinned = run.definition
    return duration_ns(pinned.approval_timeout) if pinned.HasField("approval_timeout") else int(WAIT_SECONDS * SECOND)
