"""Every tool call is told from start to finish, however it ends, and its record says the same."""

from __future__ import annotations

from typing import Any

from behest.v1.definition_pb2 import PermissionAction, PermissionRule
from behest.v1.event_pb2 import Event
from behest.v1.tool_call_pb2 import ToolCallRecord, ToolCallState
from behest.v1.tool_call_service_pb2 import ListToolCallsRequest
from behest.v1.tool_pb2 import Executed, SideEffect, ToolPolicy, ToolTimeouts, ToolUnknownPolicy
from behestd.core.definition import Operator
from behestd.core.times import duration, duration_ns
from tests import daemons
from tests.runs.scenes import OPEN, PURE, Ledger, events_of, finished, kind_of, only, tools, until_kind

SHORT = ToolTimeouts(start_to_close=duration(0.2))
REPORT = ToolUnknownPolicy.TOOL_UNKNOWN_POLICY_REPORT_TO_MODEL
RULES = [
    PermissionRule(tool="*", action=PermissionAction.PERMISSION_ACTION_ALLOW),
    PermissionRule(tool="forbidden", action=PermissionAction.PERMISSION_ACTION_DENY, reason="not here"),
]


def policy(side_effect: SideEffect.ValueType, **more: Any) -> ToolPolicy:
    return ToolPolicy(side_effect=side_effect, timeouts=SHORT, max_attempts=1, **more)


def offered(ledger: Ledger) -> Any:
    """One tool for each way in which a call can end."""

    def fine() -> str:
        """Work."""
        return "fine"

    def long() -> str:
        """Say more than a model is told."""
        return "line\n" * 10_000

    def broken() -> str:
        """Break."""
        raise ValueError("no such thing")

    async def slow() -> str:
        """Look for too long."""
        return await ledger.work("slow")

    async def pay() -> str:
        """Pay for too long."""
        return await ledger.work("pay")

    def strict(number: int) -> str:
        """Take a number."""
        return str(number)

    def forbidden() -> str:
        """Do what no rule allows."""
        raise AssertionError("it is denied")

    return tools(
        (fine, PURE),
        (long, PURE),
        (broken, PURE),
        (slow, policy(SideEffect.SIDE_EFFECT_PURE)),
        (pay, policy(SideEffect.SIDE_EFFECT_NON_IDEMPOTENT, on_unknown=REPORT)),
        (strict, PURE),
        (forbidden, PURE),
    )


CALLS = ("fine {}", "long {}", "broken {}", "slow {}", "pay {}", 'strict {"number": "x"}', "forbidden {}", "no {}")
SAID = " ".join(f"/tool {call}" for call in CALLS)


def told_of(events: list[Event]) -> dict[str, list[tuple[str, Any]]]:
    """What was told of each tool, by its name: kinds with their events."""
    names = {
        part.tool_call.id: part.tool_call.name
        for completed in only(events, "model_completed")
        for part in completed.message.parts
        if part.HasField("tool_call")
    }
    told: dict[str, list[tuple[str, Any]]] = {name: [] for name in names.values()}
    for event in events:
        payload = getattr(event, kind_of(event))
        if kind_of(event).startswith("tool_"):
            told[names[payload.call_id]].append((kind_of(event), payload))
    return told


async def test_every_call_is_told_from_start_to_finish_however_it_ends() -> None:  # C032
    operator = Operator(RULES, PermissionAction.PERMISSION_ACTION_ALLOW)
    async with daemons.serve(tools=offered(Ledger()), operator=operator) as served:
        run = await served.client.run(f"{SAID} /next /say done")
        events = await events_of(run)
        records = {
            record.tool_name: record
            async for record in served.client.tool_calls.list(ListToolCallsRequest(run_id=run.run_id))
        }

    told = told_of(events)
    assert {name: [kind for kind, _ in what] for name, what in told.items()} == {
        "fine": ["tool_started", "tool_completed"],
        "long": ["tool_started", "tool_completed"],
        "broken": ["tool_started", "tool_completed"],
        "slow": ["tool_started", "tool_failed"],
        "pay": ["tool_started", "tool_outcome_unknown"],
        "strict": ["tool_failed"],
        "forbidden": ["tool_denied"],
        "no": ["tool_failed"],
    }
    ends = {name: what[-1][1] for name, what in told.items()}
    for name in ("fine", "long", "broken", "slow", "pay"):
        assert duration_ns(ends[name].elapsed) > 0, name
    assert {name: ends[name].truncated for name in ("fine", "long")} == {"fine": False, "long": True}
    assert ends["fine"].result.parts[0].text.text == "fine"
    assert {name: ends[name].is_error for name in ("fine", "broken")} == {"fine": False, "broken": True}
    assert {name: ends[name].reason for name in ("slow", "pay", "strict", "no")} == {
        "slow": "TOOL_TIMEOUT",
        "pay": "TOOL_TIMEOUT",
        "strict": "TOOL_ARGUMENTS_INVALID",
        "no": "TOOL_NOT_FOUND",
    }
    assert (ends["forbidden"].rule, ends["forbidden"].message) == ("operator:1:forbidden", "not here")
    for name, record in records.items():
        check_record(record, was_sent=told[name][0][0] == "tool_started")
    assert {name: ToolCallState.Name(record.state)[16:] for name, record in records.items()} == {
        "fine": "COMPLETED",
        "long": "COMPLETED",
        "broken": "COMPLETED",
        "slow": "TIMED_OUT",
        "pay": "OUTCOME_UNKNOWN",
        "strict": "FAILED",
        "forbidden": "DENIED",
        "no": "FAILED",
    }
    assert records["pay"].attempts[0].error.details, "why its attempt brought no answer"


def check_record(record: ToolCallRecord, *, was_sent: bool) -> None:
    """Check that the record of an ended call tells its end, and its time where it was sent."""
    assert record.HasField("end_time"), record.tool_name
    assert len(record.attempts) == was_sent, record.tool_name
    if was_sent:
        assert duration_ns(record.elapsed) > 0, record.tool_name
        assert duration_ns(record.attempts[0].elapsed) > 0, record.tool_name
    else:
        assert record.executed == Executed.EXECUTED_NO, record.tool_name


async def test_a_call_that_somebody_refuses_or_that_a_cancel_ends_is_told_to_its_end() -> None:  # C032
    ledger = Ledger()

    async def ponder() -> str:
        """Ponder."""
        return await ledger.work("ponder")

    async with daemons.serve(tools=tools((ponder, PURE)), operator=OPEN) as served:
        run = await served.client.run("/tool ponder {}")
        await until_kind(served.client.watch(run.run_id), "tool_started")
        await run.cancel()
        events = await events_of(served.client.watch(run.run_id))
        (record,) = [each async for each in served.client.tool_calls.list(ListToolCallsRequest(run_id=run.run_id))]

    assert [kind for kind, _ in told_of(events)["ponder"]] == ["tool_started", "tool_failed"]
    assert only(events, "tool_failed")[0].reason == "TOOL_CANCELLED"
    assert record.state == ToolCallState.TOOL_CALL_STATE_CANCELLED


async def test_the_reason_of_who_settles_a_doubt_is_in_the_event_and_the_record() -> None:
    ledger = Ledger()

    async def pay() -> str:
        """Pay for too long."""
        return await ledger.work("pay")

    waits = policy(SideEffect.SIDE_EFFECT_NON_IDEMPOTENT)
    async with daemons.serve("sqlite", tools=tools((pay, waits)), operator=OPEN) as served:
        run = await served.client.run("/tool pay {} /next /say done")
        (unknown,) = only(await until_kind(run, "run_waiting"), "tool_outcome_unknown")
        shown = await served.client.tool_calls.resolve(
            unknown.call_id, Executed.EXECUTED_YES, reason="it is on the statement of May"
        )
        await finished(served.client, run.run_id)
        events = await events_of(served.client.watch(run.run_id))
        record = await served.client.tool_calls.get(unknown.call_id)

    (resolved,) = only(events, "tool_resolved")
    assert (resolved.by, resolved.reason) == ("local", "it is on the statement of May")
    assert (shown.resolved_by, shown.resolved_reason) == ("local", "it is on the statement of May")
    assert record.resolved_reason == "it is on the statement of May"
