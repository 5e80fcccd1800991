"""Why a run is not moving: a chain of causes, the nearest first. Pure but for what the supervisor knows."""

from __future__ import annotations

from behest.v1.run_service_pb2 import ExplainRunResponse, RunObstacle
from behest.v1.run_state_pb2 import RunState, WaitReason
from behestd.core.children import is_open as is_child_open
from behestd.core.questions import is_open
from behestd.core.state import TERMINAL, Call, Phase, Run, state_name
from behestd.core.times import timestamp
from behestd.log.store import RunRow
from behestd.runtime.supervisor import Supervisor

_WAITS = {
    WaitReason.WAIT_REASON_INPUT: ("input", "it waits for an input"),
    WaitReason.WAIT_REASON_BACKOFF: ("backoff", "it waits before the next attempt"),
    WaitReason.WAIT_REASON_QUOTA: ("quota", "the provider's quota is spent"),
    WaitReason.WAIT_REASON_PAUSED: ("paused", "an operator paused what it needs"),
}
_OF_CALL = {
    Phase.ASKED: ("approval", "a tool call waits for an approval"),
    Phase.UNKNOWN: ("outcome_unknown", "nobody can say whether a tool call took effect"),
    Phase.STARTED: ("tool_call", "a tool works"),
    Phase.ASKING: ("tool_call", "a tool's server is asked what became of a call"),
    Phase.BACKOFF: ("backoff", "a tool call waits before its next attempt"),
}


def explain(row: RunRow, run: Run | None, supervisor: Supervisor) -> ExplainRunResponse:
    """Explain a run that this daemon drives, or one that nobody does."""
    if run is None:
        response = ExplainRunResponse(state=row.state)  # type: ignore[arg-type]
        if row.state not in TERMINAL:
            problem = supervisor.unfit(row.namespace, row.run_id)
            text = problem.message if problem is not None else "no daemon has taken it up yet"
            kind = "no_owner" if problem is None else "unfit"
            response.obstacles.append(RunObstacle(kind=kind, subject=row.run_id, message=text))
        return response
    return _explained(run, supervisor)


def _explained(run: Run, supervisor: Supervisor) -> ExplainRunResponse:
    response = ExplainRunResponse(state=run.state)  # type: ignore[arg-type]
    if run.state == RunState.RUN_STATE_QUEUED:
        response.obstacles.extend(_queued(run, supervisor))
        return response
    if run.state == RunState.RUN_STATE_CANCELLING:
        since = timestamp(run.life.cancel.since_ns) if run.life.cancel is not None else None
        text = "it is about to end, and waits for calls in flight"
        response.obstacles.append(RunObstacle(kind="cancelling", subject=run.id, message=text, since=since))
    asks = any(is_open(call) for call in run.step.calls)
    if run.life.wait is not None and run.life.wait.reason in _WAITS and not asks:
        kind, text = _WAITS[run.life.wait.reason]  # type: ignore[index]
        until = timestamp(run.life.wait.until_ns)
        response.obstacles.append(RunObstacle(kind=kind, subject=run.id, message=text, until=until))
    if run.step.open is not None:
        attempt = run.step.open
        response.obstacles.append(
            RunObstacle(
                kind="model_call",
                subject=attempt.endpoint,
                message=f"attempt {attempt.number} of step {run.step.number} is with the model",
                until=timestamp(attempt.deadline_ns),
            )
        )
    if run.compaction.open is not None:
        wish = run.compaction.open
        response.obstacles.append(
            RunObstacle(
                kind="summary",
                subject=wish.endpoint,
                message=f"attempt {wish.number} at a summary of the conversation is with the model",
                until=timestamp(wish.deadline_ns),
            )
        )
    for call in run.step.calls:
        if call.child is not None and is_child_open(call):
            response.obstacles.extend(_of_child(run.created.namespace, call.child.child_run_id, supervisor))
        elif call.phase in _OF_CALL:
            response.obstacles.append(_of_call(call))
    return response


def _of_child(namespace: str, run_id: str, supervisor: Supervisor) -> list[RunObstacle]:
    """A child run that the run waits for, and behind it what that one waits for."""
    driver = supervisor.driver(namespace, run_id)
    if driver is None:
        return [RunObstacle(kind="child_run", subject=run_id, message="its child run is not at work here")]
    state = state_name(driver.run.state)
    here = RunObstacle(kind="child_run", subject=run_id, message=f"its child run is {state}")
    return [here, *_explained(driver.run, supervisor).obstacles]


def _of_call(call: Call) -> RunObstacle:
    kind, text = ("input", "the user is asked a question") if is_open(call) else _OF_CALL[call.phase]
    until = timestamp(call.due_ns) if call.due_ns else None
    obstacle = RunObstacle(kind=kind, subject=call.call.id, message=f"{text}: {call.call.name}", until=until)
    if call.phase is Phase.ASKED and call.asked is not None:
        obstacle.message += f", which rule {call.asked.rule} asks about"
        obstacle.since.CopyFrom(timestamp(call.asked_ns))
    return obstacle


def _queued(run: Run, supervisor: Supervisor) -> list[RunObstacle]:
    holder = supervisor.holder(run.created.namespace, run.created.session_id)
    if holder and holder != run.id:
        text = f"its session is held by run {holder}"
        return [RunObstacle(kind="session_busy", subject=holder, message=text)]
    text = "the daemon runs as many runs as it may"
    return [RunObstacle(kind="capacity", subject="active_runs", message=text)]
