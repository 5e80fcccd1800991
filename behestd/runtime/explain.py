"""Why a run is not moving: a chain of causes, the nearest first. Pure but for what the shell knows now.

Above: ExplainRun. Below: the run's state, the supervisor, and what the house knows of models, tools, pauses and the
disk. Every run that has not ended has at least one cause.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from behest.v1.run_service_pb2 import ExplainRunResponse, RunObstacle
from behest.v1.run_state_pb2 import RunState, WaitReason
from behestd.core import pauses
from behestd.core.children import is_open as is_child_open
from behestd.core.lanes import view
from behestd.core.nodes import Nodes
from behestd.core.pauses import Pause
from behestd.core.questions import is_open
from behestd.core.state import TERMINAL, Call, Phase, Run, state_name
from behestd.core.times import timestamp
from behestd.core.turn import awaits
from behestd.log.store import RunRow
from behestd.runtime.house import House
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
_ON_THEIR_WAY = (Phase.STARTED, Phase.ASKING, Phase.BACKOFF)


def explain(row: RunRow, run: Run | None, supervisor: Supervisor, house: House) -> ExplainRunResponse:
    """Explain a run that this daemon drives, or one that nobody does."""
    if run is not None:
        obstacles = [*_explained(run, supervisor, house), *_of_daemon(run, supervisor, house)]
        return ExplainRunResponse(state=run.state, obstacles=obstacles)  # type: ignore[arg-type]  # an enum's number
    response = ExplainRunResponse(state=row.state)  # type: ignore[arg-type]  # an enum's number
    if row.state not in TERMINAL:
        problem = supervisor.unfit(row.namespace, row.run_id)
        text = problem.message if problem is not None else "no daemon has taken it up yet"
        kind = "no_owner" if problem is None else "unfit"
        response.obstacles.append(RunObstacle(kind=kind, subject=row.run_id, message=text))
    return response


def _explained(run: Run, supervisor: Supervisor, house: House) -> list[RunObstacle]:
    """What is in the way of the run itself, and of those below it."""
    if run.state == RunState.RUN_STATE_QUEUED:
        return [*_queued(run, supervisor), *_paused(run, house)]
    found: list[RunObstacle] = []
    if run.state == RunState.RUN_STATE_CANCELLING:
        since = timestamp(run.life.cancel.since_ns) if run.life.cancel is not None else None
        text = "it is about to end, and waits for calls in flight"
        found.append(RunObstacle(kind="cancelling", subject=run.id, message=text, since=since))
    else:
        found += _paused(run, house)
    asks = any(is_open(call) for call in run.calls)
    is_told = any(each.kind == "paused" for each in found)
    wait = run.life.wait
    if wait is not None and wait.reason in _WAITS and not asks and not (is_told and wait.subject):
        kind, text = _WAITS[wait.reason]  # type: ignore[index]  # an enum's number
        subject, since = wait.subject or run.id, timestamp(wait.since_ns) if wait.since_ns else None
        until = timestamp(wait.until_ns)
        found.append(RunObstacle(kind=kind, subject=subject, message=text, since=since, until=until))
    found += _of_summary(run, house)
    if run.nodes is None:
        found += _of_conversation(run, run.definition.models, supervisor, house)
    else:
        found += _of_nodes(run, run.nodes, supervisor, house)
    if not found:
        text = "what it decided is being committed"
        found.append(RunObstacle(kind="commit", subject=run.id, message=text))
    return found


def _of_nodes(run: Run, nodes: Nodes, supervisor: Supervisor, house: House) -> Iterator[RunObstacle]:
    """What the nodes of a graph wait for that are at work, in the order in which they began."""
    for lane in nodes.lanes.values():
        started = nodes.visit(lane.visit).started
        own = nodes.shape_of(started.scope).nodes[started.node.rpartition("/")[2]].model
        models = [own] if own else run.definition.models
        for obstacle in _of_conversation(view(run, lane), models, supervisor, house):
            obstacle.message = f"node {started.node}: {obstacle.message}"
            yield obstacle


def _of_conversation(run: Run, models: Sequence[str], supervisor: Supervisor, house: House) -> Iterator[RunObstacle]:
    """What a run, or one node of its graph, waits for: its models, then its calls."""
    yield from _of_model(run, models, house)
    for call in run.step.calls:
        if call.child is not None and is_child_open(call):
            yield from _of_child(run.created.namespace, call.child.child_run_id, supervisor, house)
        elif call.phase in _OF_CALL:
            yield from _of_call(run, call, house)


def _paused(run: Run, house: House) -> Iterator[RunObstacle]:
    """The pauses that hold the run, or something that it would do."""
    current = house.switch.current
    if not current:
        return
    whole = current.of_run(run)
    found = [whole] if whole is not None else list(_parts_paused(run, current))
    until = timestamp(run.life.wait.until_ns) if run.life.wait is not None and run.life.wait.subject else None
    for pause in dict.fromkeys(found):
        text = f"{pause.subject} is paused by {pause.principal}: {pause.reason}"
        since = timestamp(pause.since_ns) if pause.since_ns else None
        yield RunObstacle(kind="paused", subject=pause.subject, message=text, since=since, until=until)


def _parts_paused(run: Run, current: pauses.Pauses) -> Iterator[Pause]:
    wait = run.life.wait
    for model in (*run.definition.models, *(model.endpoint for model in run.definition.node_models)):
        pause = current.of_run_model(run, model)
        if pause is not None and wait is not None and wait.subject == pause.subject:
            yield pause
    for call in run.calls:
        pause = current.holds(run, call)
        if pause is not None:
            yield pause


# --- models ---


def _of_summary(run: Run, house: House) -> Iterator[RunObstacle]:
    """What the run's call for a summary waits for."""
    if run.compaction.open is not None:
        wish = run.compaction.open
        text = f"attempt {wish.number} at a summary of the conversation is with the model"
        until = timestamp(wish.deadline_ns)
        yield RunObstacle(kind="summary", subject=wish.endpoint, message=text, until=until)
        yield from _rate_limited(wish.endpoint, run.created.namespace, house)


def _of_model(run: Run, models: Sequence[str], house: House) -> Iterator[RunObstacle]:
    """What the calls of models of a run, or of a node, wait for."""
    namespace, step = run.created.namespace, run.step
    if step.open is not None:
        attempt = step.open
        text = f"attempt {attempt.number} of step {step.number} is with the model"
        until = timestamp(attempt.deadline_ns)
        yield RunObstacle(kind="model_call", subject=attempt.endpoint, message=text, until=until)
        yield from _rate_limited(attempt.endpoint, namespace, house)
    if step.open is not None or run.compaction.open is not None or any(call.phase < Phase.DONE for call in step.calls):
        return
    failure = step.failures[-1] if step.failures else None
    if failure is not None and run.life.wait is None and failure.due_ns > house.clock.now_ns():
        text = f"the next attempt waits, as the last one failed with {failure.reason}"
        until = timestamp(failure.due_ns)
        yield RunObstacle(kind="backoff", subject=failure.endpoint, message=text, until=until)
    if run.state == RunState.RUN_STATE_RUNNING and awaits(run):
        yield RunObstacle(kind="context", subject=run.id, message="its context sources are asked")
    yield from _left_alone(run, models, house)


def _rate_limited(model: str, namespace: str, house: House) -> Iterator[RunObstacle]:
    found = house.models.of(namespace).models.get(model)
    waiting = house.endpoints.waiting(found.endpoint) if found is not None else 0
    if waiting:
        text = f"{waiting} calls wait for the operator's limits of the model"
        yield RunObstacle(kind="rate_limit", subject=model, message=text)


def _left_alone(run: Run, models: Sequence[str], house: House) -> Iterator[RunObstacle]:
    """The models that are left alone for what happened to other calls."""
    health, now_ns = house.health(run.created.namespace), house.clock.now_ns()
    for model in models:
        open_ns, spent_ns = health.open_until_ns.get(model, 0), health.spent_until_ns.get(model, 0)
        if open_ns > now_ns:
            text = "its circuit is open: it failed too often a moment ago"
            yield RunObstacle(kind="circuit_open", subject=model, message=text, until=timestamp(open_ns))
        elif spent_ns > now_ns and any(failure.endpoint == model for failure in run.step.failures):
            text = "its budget of retries is spent: too many of its calls fail"
            yield RunObstacle(kind="retry_budget", subject=model, message=text, until=timestamp(spent_ns))


# --- calls ---


def _of_child(namespace: str, run_id: str, supervisor: Supervisor, house: House) -> list[RunObstacle]:
    """A child run that the run waits for, and behind it what that one waits for."""
    driver = supervisor.driver(namespace, run_id)
    if driver is None:
        return [RunObstacle(kind="child_run", subject=run_id, message="its child run is not at work here")]
    state = state_name(driver.run.state)
    here = RunObstacle(kind="child_run", subject=run_id, message=f"its child run is {state}")
    return [here, *_explained(driver.run, supervisor, house)]


def _of_call(run: Run, call: Call, house: House) -> Iterator[RunObstacle]:
    if house.switch.current.holds(run, call) is not None:
        return
    kind, text = ("input", "the user is asked a question") if is_open(call) else _OF_CALL[call.phase]
    until = timestamp(call.due_ns) if call.due_ns else None
    obstacle = RunObstacle(kind=kind, subject=call.call.id, message=f"{text}: {call.call.name}", until=until)
    if call.phase is Phase.ASKED and call.asked is not None:
        obstacle.message += f", which rule {call.asked.rule} asks about"
        obstacle.since.CopyFrom(timestamp(call.asked_ns))
    yield obstacle
    if call.phase in _ON_THEIR_WAY and call.tool is not None and not is_open(call):
        offered = house.tools.snapshot(run.created.namespace).tools
        if call.call.name not in offered:
            text = f"nobody serves tool {call.call.name} at present"
            yield RunObstacle(kind="server_away", subject=call.tool.server_id or call.call.name, message=text)


# --- the daemon ---


def _queued(run: Run, supervisor: Supervisor) -> list[RunObstacle]:
    holder = supervisor.holder(run.created.namespace, run.created.session_id)
    if holder and holder != run.id:
        text = f"its session is held by run {holder}"
        return [RunObstacle(kind="session_busy", subject=holder, message=text)]
    text = "the daemon runs as many runs as it may, or as many of its namespace"
    return [RunObstacle(kind="capacity", subject="active_runs", message=text)]


def _of_daemon(run: Run, supervisor: Supervisor, house: House) -> Iterator[RunObstacle]:
    """What keeps every run from beginning anything new."""
    if house.log.store.is_degraded:
        yield RunObstacle(
            kind="storage_full", subject=house.replica, message="the disk is full, and space is waited for"
        )
    if supervisor.is_draining:
        yield RunObstacle(kind="draining", subject=house.replica, message="the daemon stops, and begins nothing new")
