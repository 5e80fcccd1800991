"""Every run that has not ended says why it is not moving: each state, and each thing that can be in its way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from behest.v1.agent_pb2 import Agent
from behest.v1.approval_event_pb2 import ApprovalDecision
from behest.v1.context_event_pb2 import ContextCompactionRequested
from behest.v1.context_pb2 import ContextSource, ContextSourceKind
from behest.v1.context_service_pb2 import ProvideContextRequest
from behest.v1.definition_pb2 import PermissionRule
from behest.v1.message_pb2 import Part, TextPart
from behest.v1.run_service_pb2 import RunObstacle
from behestd.context.catalog import Sources
from behestd.core.circuit import CircuitPolicy
from behestd.core.pauses import MODEL, Pause, Pauses
from behestd.core.questions import ASK_USER
from behestd.core.run import apply
from behestd.core.state import TERMINAL, Run
from behestd.core.times import SECOND, duration, timestamp
from behestd.log.store import RunRow
from behestd.providers.failure import ProviderFailure
from behestd.runtime.explain import explain
from behestd.runtime.model_limits import Allowance
from tests import daemons
from tests.core.stage import (
    ASK,
    NO,
    NON_IDEMPOTENT,
    NOT_SENT,
    QUERYABLE,
    QUOTA,
    T0,
    THROTTLED,
    TRANSIENT,
    UNKNOWN,
    Stage,
    definition,
    tool,
)
from tests.daemons import Served

ECHO = ["scripted/echo"]
LOOK = ("look", "{}")
FUNCTION = ContextSourceKind.CONTEXT_SOURCE_KIND_FUNCTION


def stage(*tools: object, **fields: object) -> Stage:
    """A run whose model is one that the daemon has."""
    return Stage(definition(*(tools or (tool(),)), models=ECHO, **fields))  # type: ignore[arg-type]


def why(served: Served, run: Run) -> Sequence[RunObstacle]:
    """What the daemon says of a run in that state."""
    row = RunRow("default", run.id, "ses_1", "", run.state, 0, 0, b"", 0, 0, b"", True, False, 0)
    daemon = served.daemon
    found = explain(row, run, daemon.rooms.supervisor, daemon.house)
    assert found.state == run.state
    return found.obstacles


def called(side_effect: int = NON_IDEMPOTENT, **fields: object) -> Stage:
    """A run with one call in flight."""
    made = stage(tool("look", side_effect), **fields)  # type: ignore[arg-type]
    made.model("", LOOK)
    return made


def queued() -> Stage:
    return Stage(definition(tool(), models=ECHO), begun=False)


def asked() -> Stage:
    return called(operator_permissions=[PermissionRule(tool="look", action=ASK)])


def approved() -> Stage:
    made = asked()
    made.decision(ApprovalDecision.APPROVAL_DECISION_APPROVED)
    return made


def doubtful() -> Stage:
    made = called()
    made.tool_breaks(executed=UNKNOWN)
    return made


def examined() -> Stage:
    made = called(QUERYABLE)
    made.tool_breaks(executed=UNKNOWN)
    return made


def curious() -> Stage:
    made = stage(tool(ASK_USER))
    made.model("", (ASK_USER, '{"question":"who?"}'))
    return made


def failed_call() -> Stage:
    made = called()
    made.tool_breaks(executed=NO, failure_class=NOT_SENT)
    return made


def throttled() -> Stage:
    made = stage()
    made.model_breaks(THROTTLED, retry_after_ns=3600 * SECOND)
    return made


def spent() -> Stage:
    made = stage()
    made.model_breaks(QUOTA, "PROVIDER_QUOTA")
    return made


def cancelled() -> Stage:
    made = called()
    made.cancel()
    return made


def summarised() -> Stage:
    made = stage()
    made.model_breaks(TRANSIENT)
    wish = ContextCompactionRequested(step=1, attempt=1, endpoint=ECHO[0], deadline=timestamp(made.now_ns + SECOND))
    made.commit([wish], apply(made.run, wish, made.now_ns))
    return made


@pytest.mark.parametrize(
    ("scene", "kinds"),
    [
        (queued, ["capacity"]),
        (stage, ["model_call"]),
        (throttled, ["backoff"]),
        (spent, ["quota"]),
        (summarised, ["summary"]),
        (called, ["tool_call", "server_away"]),
        (asked, ["approval"]),
        (approved, ["tool_call", "server_away"]),
        (doubtful, ["outcome_unknown"]),
        (curious, ["input"]),
        (examined, ["tool_call", "server_away"]),
        (failed_call, ["backoff", "server_away"]),
        (cancelled, ["cancelling", "tool_call", "server_away"]),
    ],
)
async def test_every_state_of_a_run_has_its_causes(scene: Callable[[], Stage], kinds: list[str]) -> None:  # N07
    async with daemons.serve() as served:
        made = scene()
        assert made.run.state not in TERMINAL
        found = why(served, made.run)
        assert [each.kind for each in found] == kinds
        assert all(each.subject and each.message for each in found)


async def test_a_pause_comes_before_all_else() -> None:  # N07, N17
    async with daemons.serve() as served:
        made = stage()
        pauses = Pauses({("default", MODEL, ECHO[0]): Pause(MODEL, ECHO[0], "an incident", "ann", T0)})
        made.givens["pauses"] = pauses
        made.model_breaks(TRANSIENT)
        made.wait_for_alarm()
        assert made.state == "WAITING"
        served.daemon.house.switch.current = pauses
        found = why(served, made.run)
        assert (found[0].kind, found[0].subject) == ("paused", f"model {ECHO[0]}")
        assert found[0].since == timestamp(T0)
        assert "paused by ann: an incident" in found[0].message


async def test_models_that_are_left_alone_are_named() -> None:  # N07
    async with daemons.serve() as served:
        endpoints = served.daemon.house.endpoints
        for _ in range(50):
            endpoints.fail(ECHO[0], ProviderFailure("PROVIDER_UNAVAILABLE", "it broke"), is_probe=False)
        made = stage()
        made.givens["health"] = served.daemon.house.health("default")
        made.now_ns = served.daemon.house.clock.now_ns()
        made.model_breaks(TRANSIENT)
        kinds = {each.kind: each for each in why(served, made.run)}
        assert kinds["circuit_open"].subject == ECHO[0]
        assert kinds["circuit_open"].HasField("until")


async def test_a_spent_budget_of_retries_is_named() -> None:  # N07
    async with daemons.serve(circuits=CircuitPolicy(failures=0, retries=1.0)) as served:
        endpoints = served.daemon.house.endpoints
        endpoints.begin(ECHO[0], is_retry=True)
        endpoints.begin(ECHO[0], is_retry=True)
        made = stage()
        made.now_ns = served.daemon.house.clock.now_ns()
        made.model_breaks(TRANSIENT)
        kinds = {each.kind: each for each in why(served, made.run)}
        assert kinds["retry_budget"].subject == ECHO[0]
        assert kinds["retry_budget"].HasField("until")


async def test_context_sources_that_are_asked_are_named() -> None:  # N07
    answer = asyncio.Event()

    async def news(request: ProvideContextRequest) -> str:
        await answer.wait()
        return "nothing new"

    asked = Sources([ContextSource(name="news", kind=FUNCTION, timeout=duration(60))])
    asked.add("news", news)
    async with daemons.serve(sources=asked) as served, asyncio.timeout(20):
        agent = await served.client.agents.create(Agent(context_sources=["news"]))
        run = await served.client.run("hello", agent_id=agent.id)
        while [each.kind for each in (await served.client.runs.explain(run.run_id)).obstacles] != ["context"]:
            await asyncio.sleep(0.02)
        answer.set()
        assert (await run.result()).text == "hello"


async def test_the_operators_limits_of_a_model_are_named() -> None:  # N07
    async with daemons.serve(model_limits={ECHO[0]: Allowance(calls=1, wait_seconds=60)}) as served:
        run = await served.client.run("/delay 50 /words 100000")
        second = await served.client.run("hello")
        async with asyncio.timeout(20):
            while True:
                found = (await served.client.runs.explain(second.run_id)).obstacles
                if [each.kind for each in found] == ["model_call", "rate_limit"]:
                    break
                await asyncio.sleep(0.02)
        assert found[1].subject == ECHO[0]
        for each in (run, second):
            await served.client.runs.cancel(each.run_id, force=True)


async def test_what_stands_in_the_way_of_the_whole_daemon_comes_last() -> None:  # N07
    async with daemons.serve() as served:
        made = stage()
        await served.daemon.rooms.supervisor.drain(0.0)
        assert [each.kind for each in why(served, made.run)] == ["model_call", "draining"]


async def test_a_run_that_ended_has_no_cause() -> None:
    async with daemons.serve() as served:
        run = await served.client.run([Part(text=TextPart(text="hello"))])
        async with asyncio.timeout(20):
            await run.result()
        assert list((await served.client.runs.explain(run.run_id)).obstacles) == []
