"""Decisions about tool calls: permission, dispatch, failure and doubt. Above: `decide`.

A call is dispatched again only where its side-effect class or a proof allows it; otherwise its outcome is unknown and
the operator's policy for the tool decides. Calls are dispatched in the order in which the model asked.
"""

from __future__ import annotations

import json
from hashlib import sha256

from behest.v1 import tool_event_pb2 as tools
from behest.v1.definition_pb2 import PermissionAction
from behest.v1.message_pb2 import ToolResult
from behest.v1.model_event_pb2 import FailureClass
from behest.v1.run_event_pb2 import RunFailed
from behest.v1.run_state_pb2 import RunState
from behest.v1.tool_pb2 import Executed, SideEffect, Tool, ToolErrorPolicy, ToolUnknownPolicy
from behestd.core import asking, children, pausing
from behestd.core.doom_loop import fingerprint
from behestd.core.draft import Draft, failure_status
from behestd.core.limits import WAIT_SECONDS, excess_of_calls, excess_of_history
from behestd.core.permission import Permission, permit
from behestd.core.places import next_place
from behestd.core.questions import is_question
from behestd.core.route import RoutePolicy, retry_due_ns
from behestd.core.signals import StatusKnown, ToolBroke, ToolEnded
from behestd.core.state import Call, Phase, Run
from behestd.core.step import is_queryable
from behestd.core.times import SECOND, duration, duration_ns, timestamp
from behestd.core.wanted import has_room, is_awaited

REDOABLE = (SideEffect.SIDE_EFFECT_PURE, SideEffect.SIDE_EFFECT_IDEMPOTENT)
_START_TO_CLOSE_NS = 30 * SECOND
_SCHEDULE_TO_CLOSE_NS = 300 * SECOND
_MAX_ATTEMPTS = 3
_DELAYS = RoutePolicy(())
_SETTLED = (
    FailureClass.FAILURE_CLASS_QUOTA,
    FailureClass.FAILURE_CLASS_PERMANENT,
    FailureClass.FAILURE_CLASS_LIMIT,
)


def progress(draft: Draft) -> None:
    """Judge the calls that are new, then send as many as may be in flight."""
    fresh = [call for call in draft.run.step.calls if call.phase is Phase.NEW]
    excess = excess_of_calls(draft.run, len(fresh)) or excess_of_history(draft.run)
    if excess is not None:
        message = f"{excess.name} of {excess.limit} would be passed: {excess.reached}"
        _fail_run(draft, excess.reason, message, budget=excess.name, limit=excess.limit, used=excess.reached)
        return
    allowed: dict[str, str] = {}
    for call in fresh:
        if rule := _judge(draft, call):
            allowed[call.call.id] = rule
        if draft.run.is_ended:
            return
    for call in draft.run.step.calls:
        if not _is_ready(draft, call, allowed) or pausing.hold_of(draft, call):
            continue
        if not has_room(draft.run, call):
            break
        if children.is_child(call) and call.child is None and _refuse_child(draft, call):
            continue
        send(draft, call, call.allowed_by or allowed.get(call.call.id, ""))


def _is_ready(draft: Draft, call: Call, allowed: dict[str, str]) -> bool:
    if call.phase is Phase.BACKOFF:
        return call.due_ns <= draft.given.now_ns
    return call.phase is Phase.ALLOWED or call.call.id in allowed


def _judge(draft: Draft, call: Call) -> str:
    """Refuse a call, ask about it, or name what allows it."""
    asked = call.call
    if call.tool is None:
        _refuse(draft, call, "TOOL_NOT_FOUND", json.dumps({"error": f"there is no tool {asked.name!r}"}))
        return ""
    problem = draft.given.validate(call.tool, asked.arguments_json)
    arguments = arguments_of(asked.arguments_json)
    if problem or arguments is None:
        _refuse(draft, call, "TOOL_ARGUMENTS_INVALID", problem or '{"error": "the arguments are not a JSON object"}')
        return ""
    answer = _permission(draft.run, call, call.tool, arguments)
    if answer.action == PermissionAction.PERMISSION_ACTION_ASK:
        answer = asking.ask(draft, call, answer.rule, args_hash(asked.arguments_json))
    if answer.action == PermissionAction.PERMISSION_ACTION_DENY:
        text = answer.reason or f"calling {asked.name} is not permitted"
        draft.note(tools.ToolDenied(call_id=asked.id, rule=answer.rule, message=text))
        fail_if_told(draft, call, "TOOL_DENIED", text)
        return ""
    return answer.rule if answer.action == PermissionAction.PERMISSION_ACTION_ALLOW else ""


def arguments_of(arguments_json: str) -> dict[str, object] | None:
    """The arguments as rules see them; None when they cannot be read, or can in two ways, as with a key given twice."""
    try:
        arguments = json.loads(arguments_json, object_pairs_hook=_distinct)
    except (ValueError, RecursionError):
        return None
    return arguments if isinstance(arguments, dict) else None


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is given twice")
    return made


def _permission(run: Run, call: Call, tool: Tool, arguments: dict[str, object]) -> Permission:
    answer = permit(run.definition, tool, arguments)
    doubtful = fingerprint(call.call.name, call.call.arguments_json) in run.turns.doubtful
    if doubtful and answer.action == PermissionAction.PERMISSION_ACTION_ALLOW:
        return Permission(PermissionAction.PERMISSION_ACTION_ASK, "outcome_unknown")
    return answer


def _refuse(draft: Draft, call: Call, reason: str, message: str) -> None:
    """Answer a call that makes no sense; it never leaves."""
    draft.note(
        tools.ToolFailed(
            call_id=call.call.id,
            failure_class=FailureClass.FAILURE_CLASS_MALFORMED,
            executed=Executed.EXECUTED_NO,
            reason=reason,
            message=message,
            is_final=True,
        )
    )


def _refuse_child(draft: Draft, call: Call) -> bool:
    """Refuse a call whose child run would pass a limit; whether that is so."""
    excess = children.excess(draft.run)
    if excess is None:
        return False
    limit, no = FailureClass.FAILURE_CLASS_LIMIT, Executed.EXECUTED_NO
    text = f"{excess.name} of {excess.limit} would be passed: {excess.reached}"
    record_failure(draft, call, ToolBroke(call.call.id, 0, limit, no, excess.reason, text), 0, is_final=True)
    fail_if_told(draft, call, excess.reason, text)
    return True


def args_hash(arguments_json: str) -> bytes:
    """SHA-256 of the exact bytes of a call's arguments: what an approval is bound to."""
    return sha256(arguments_json.encode()).digest()


def key_of(run: Run, call_id: str) -> str:
    """The idempotency key of a call: the same over attempts, replicas and restarts."""
    return sha256(f"{run.created.namespace}\0{run.id}\0{call_id}".encode()).hexdigest()


def _limit_ns(tool: Tool, name: str, default_ns: int) -> int:
    timeouts = tool.policy.timeouts
    return duration_ns(getattr(timeouts, name)) if timeouts.HasField(name) else default_ns  # type: ignore[arg-type]


def _last_end_ns(call: Call, tool: Tool, now_ns: int) -> int:
    return (call.first_start_ns or now_ns) + _limit_ns(tool, "schedule_to_close", _SCHEDULE_TO_CLOSE_NS)


def send(draft: Draft, call: Call, allowed_by: str) -> None:
    """Dispatch the next attempt of a call."""
    tool, now_ns = call.tool, draft.given.now_ns
    assert tool is not None
    ends = [now_ns + _limit_ns(tool, "start_to_close", _START_TO_CLOSE_NS), _last_end_ns(call, tool, now_ns)]
    if children.is_child(call):
        ends = []  # A child run has a deadline of its own.
    deadlines = [*ends, draft.run.life.deadline_ns] if draft.run.life.deadline_ns else ends
    if is_question(call):
        deadlines = [now_ns + int(WAIT_SECONDS * SECOND)]
    key = key_of(draft.run, call.call.id)
    place = next_place(draft.given.places, draft.run.created.namespace, call, tool, key)
    draft.note(
        tools.ToolStarted(
            call_id=call.call.id,
            attempt=call.attempt + 1,
            key=key,
            tool_hash=tool.hash,
            side_effect=tool.policy.side_effect or SideEffect.SIDE_EFFECT_NON_IDEMPOTENT,
            args_hash=args_hash(call.call.arguments_json),
            endpoint=place.server_id,
            lease_id=place.lease_id,
            deadline=timestamp(min(deadlines)),
            allowed_by=allowed_by or (call.started.allowed_by if call.started is not None else ""),
            name=call.call.name,
            arguments_json=call.call.arguments_json,
        )
    )
    sent = draft.run.call(call.call.id)
    if sent is not None and children.is_child(sent) and sent.child is None:
        draft.note(children.started(draft.run, sent, now_ns))


# --- outcomes ---


def ended(draft: Draft, signal: ToolEnded) -> None:
    """Record a result; a late one settles a call whose outcome is unknown."""
    call = draft.run.call(signal.call_id)
    if call is None or call.attempt != signal.attempt:
        return
    if call.phase is Phase.UNKNOWN:
        resolve(draft, call, "late_reply", Executed.EXECUTED_YES, signal.result)
    elif call.phase in (Phase.STARTED, Phase.ASKING):
        result = signal.result
        draft.note(
            tools.ToolCompleted(
                call_id=signal.call_id,
                attempt=signal.attempt,
                result=result,
                is_error=result.is_error,
                truncated=result.truncated,
                elapsed=duration(signal.elapsed_ns / SECOND),
            )
        )
    else:
        return
    _heed_error(draft, call, signal.result)


def _heed_error(draft: Draft, call: Call, result: ToolResult) -> None:
    if result.is_error:
        fail_if_told(draft, call, "TOOL_FAILED", f"tool {call.call.name} failed")


def resolve(
    draft: Draft, call: Call, by: str, executed: Executed.ValueType, result: ToolResult | None, *, reason: str = ""
) -> None:
    """Record what is known from here on; without a result the call is sent again."""
    draft.note(tools.ToolResolved(call_id=call.call.id, by=by, executed=executed, result=result, reason=reason))


def broke(draft: Draft, signal: ToolBroke) -> None:
    """Record a failed attempt, and decide by class and proof: again, ask, doubt, or tell the model."""
    call = draft.run.call(signal.call_id)
    if call is None or call.attempt != signal.attempt or call.started is None:
        return
    if call.phase is Phase.ASKING:
        doubt(draft, call, signal)
    if call.phase is not Phase.STARTED:
        return
    cancelling = draft.run.state == RunState.RUN_STATE_CANCELLING
    in_doubt = signal.executed not in (Executed.EXECUTED_NO, Executed.EXECUTED_YES)
    if in_doubt and not is_queryable(call) and (cancelling or call.started.side_effect not in REDOABLE):
        doubt(draft, call, signal)
        return
    due_ns = 0 if cancelling else _redo_due_ns(draft, call, signal)
    is_lost = signal.executed == Executed.EXECUTED_YES and not _is_settled(signal)
    asks = is_queryable(call) and (in_doubt or is_lost)
    record_failure(draft, call, signal, due_ns, is_final=not (due_ns or asks))
    if not (due_ns or asks):
        fail_if_told(draft, call, signal.reason, signal.message)


def _is_settled(signal: ToolBroke) -> bool:
    """Whether asking or sending again cannot help: it would come to the same."""
    return signal.failure_class in _SETTLED


def _redo_due_ns(draft: Draft, call: Call, signal: ToolBroke) -> int:
    """When the call may be sent again, 0 never."""
    tool, now_ns = call.tool, draft.given.now_ns
    if tool is None or call.started is None or _is_settled(signal):
        return 0
    redoable = signal.executed == Executed.EXECUTED_NO or call.started.side_effect in REDOABLE
    if not redoable or not _has_attempts(call, tool):
        return 0
    retried = FailureClass.FAILURE_CLASS_TRANSIENT
    due_ns = retry_due_ns(_DELAYS, retried, call.attempt, signal.retry_after_ns, (now_ns, draft.given.random))
    return due_ns if due_ns < _last_end_ns(call, tool, now_ns) else 0


def _has_attempts(call: Call, tool: Tool) -> bool:
    most = tool.policy.max_attempts if tool.policy.HasField("max_attempts") else _MAX_ATTEMPTS
    return call.attempt - call.held < most


def _may_go_again(call: Call, now_ns: int) -> bool:
    tool = call.tool
    return tool is not None and _has_attempts(call, tool) and now_ns < _last_end_ns(call, tool, now_ns)


def record_failure(draft: Draft, call: Call, signal: ToolBroke, due_ns: int, *, is_final: bool) -> None:
    """Record a failed attempt as it is; `due_ns` 0 means that it is not sent again by time."""
    draft.note(
        tools.ToolFailed(
            call_id=call.call.id,
            attempt=signal.attempt,
            failure_class=signal.failure_class,
            executed=signal.executed,
            reason=signal.reason,
            message=signal.message,
            retry_time=timestamp(due_ns) if due_ns else None,
            is_final=is_final,
            elapsed=duration(signal.elapsed_ns / SECOND),
        )
    )


def _policy(call: Call) -> ToolUnknownPolicy.ValueType:
    if call.tool is not None and call.tool.policy.on_unknown:
        return call.tool.policy.on_unknown
    return ToolUnknownPolicy.TOOL_UNKNOWN_POLICY_ASK


def drop(draft: Draft, call: Call, text: str = "the run ended during the call") -> None:
    """Let go of a call in flight that has no effect, or of one that would be sent again."""
    dropped = ToolBroke(
        call.call.id,
        call.attempt,
        FailureClass.FAILURE_CLASS_PERMANENT,
        Executed.EXECUTED_NO if is_question(call) else Executed.EXECUTED_UNKNOWN,
        "TOOL_CANCELLED",
        text,
    )
    record_failure(draft, call, dropped, 0, is_final=True)


def abandon(draft: Draft) -> None:
    """Let go of every call in flight of a run that fails; those that may have an effect are left in doubt."""
    for call in draft.run.calls:
        if is_awaited(call):
            leave_in_doubt(draft, call)
        elif call.phase is Phase.STARTED:
            drop(draft, call)


def leave_in_doubt(draft: Draft, call: Call) -> None:
    """Let go of a call that may have an effect; nobody is asked about it."""
    draft.note(tools.ToolOutcomeUnknown(call_id=call.call.id, attempt=call.attempt, policy=_policy(call)))


def doubt(draft: Draft, call: Call, broke: ToolBroke | None = None) -> None:
    """Say that nobody knows whether the call took effect, and do what the operator's policy says.

    `broke` is how its attempt ended, None when nobody saw it.
    """
    policy = _policy(call)
    waits = policy == ToolUnknownPolicy.TOOL_UNKNOWN_POLICY_ASK and draft.run.state == RunState.RUN_STATE_RUNNING
    until = timestamp(draft.given.now_ns + int(WAIT_SECONDS * SECOND)) if waits else None
    unknown = tools.ToolOutcomeUnknown(call_id=call.call.id, attempt=call.attempt, policy=policy, until=until)
    if broke is not None:
        unknown.reason = broke.reason
        if broke.elapsed_ns:
            unknown.elapsed.CopyFrom(duration(broke.elapsed_ns / SECOND))
    draft.note(unknown)
    if policy == ToolUnknownPolicy.TOOL_UNKNOWN_POLICY_FAIL_RUN:
        text = f"nobody can say whether {call.call.name} took effect"
        _fail_run(draft, "TOOL_OUTCOME_UNKNOWN", text, tool=call.call.name, callId=call.call.id)


def fail_if_told(draft: Draft, call: Call, reason: str, message: str) -> None:
    on_error = call.tool.policy.on_error if call.tool is not None else 0
    if on_error == ToolErrorPolicy.TOOL_ERROR_POLICY_FAIL_RUN:
        _fail_run(draft, reason, message, tool=call.call.name, callId=call.call.id)


def _fail_run(draft: Draft, reason: str, message: str, **metadata: object) -> None:
    if draft.run.state in (RunState.RUN_STATE_RUNNING, RunState.RUN_STATE_WAITING):
        abandon(draft)
        draft.note(RunFailed(error=failure_status(reason, message, **metadata)))


def status_known(draft: Draft, signal: StatusKnown) -> None:
    """Record what the server says of a call: its result, or that it never saw this attempt and never will.

    A call that was never seen is sent again with the same key, as another attempt, for as long as it has attempts and
    time left.
    """
    call = draft.run.call(signal.call_id)
    if call is None or call.attempt != signal.attempt or call.phase is not Phase.ASKING:
        return
    if signal.result is not None:
        resolve(draft, call, "status_query", Executed.EXECUTED_YES, signal.result)
        _heed_error(draft, call, signal.result)
    elif draft.run.state == RunState.RUN_STATE_CANCELLING:
        _was_never_executed(draft, call, "TOOL_CANCELLED", "the call was not executed")
    elif _may_go_again(call, draft.given.now_ns):
        resolve(draft, call, "status_query", Executed.EXECUTED_NO, None)
    else:
        text = f"none of {call.attempt} attempts reached the tool; the call was not executed"
        _was_never_executed(draft, call, "TOOL_UNAVAILABLE", text)
        fail_if_told(draft, call, "TOOL_UNAVAILABLE", text)


def _was_never_executed(draft: Draft, call: Call, reason: str, message: str) -> None:
    """End a call that its server never saw."""
    permanent, no = FailureClass.FAILURE_CLASS_PERMANENT, Executed.EXECUTED_NO
    record_failure(draft, call, ToolBroke(call.call.id, call.attempt, permanent, no, reason, message), 0, is_final=True)
