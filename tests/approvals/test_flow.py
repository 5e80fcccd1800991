"""Approvals from the call that asks to the word that counts, through the daemon and over its own port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from behest.errors import BehestError
from behest.v1.agent_pb2 import Agent
from behest.v1.approval_pb2 import Approval, ApprovalState
from behest.v1.approval_service_pb2 import DecideApprovalRequest, GetApprovalRequest, ListApprovalsRequest
from behest.v1.run_state_pb2 import RunState, WaitReason
from behestd.core.definition import Operator
from behestd.core.signals import Decision
from behestd.core.times import nanoseconds
from behestd.daemon import Daemon
from behestd.errors import BehestError as DaemonError
from behestd.log import views
from behestd.log.store import Change, Put, Record
from behestd.runtime.approvals import Approvals, Query
from behestd.runtime.clock import SystemClock
from behestd.runtime.house import Limits
from tests import daemons
from tests.approvals.scenes import (
    ALL_STATES,
    APPROVED,
    ASK,
    CAREFUL,
    DENIED,
    DENY,
    EXPIRED,
    asking,
    events_of,
    finished,
    listed,
    pay,
    payments,
    rule,
    until_kind,
)
from tests.daemons import Served, refused, rejection, serve
from tests.runs.scenes import kinds, only, put_agent, text_of

DAY = 86_400
Paid = list[tuple[str, int]]
Scene = tuple[Served, Paid]


@pytest.fixture(params=["memory", "sqlite"])
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    """A daemon on each store in turn, with what its tool paid."""
    paid: Paid = []
    async with serve(request.param, tools=payments(paid), operator=CAREFUL) as served:
        yield served, paid


async def test_a_principal_has_no_more_calls_waiting_than_the_limit_and_the_next_is_refused(  # C038
    tmp_path: Path,
) -> None:
    paid: Paid = []
    limits = Limits(pending_approvals=2)
    async with serve("sqlite", tools=payments(paid), operator=CAREFUL, limits=limits) as served:
        first, (asked,) = await asking(served.client, pay("ann", 1), session_id="")
        await asking(served.client, pay("bob", 2), session_id="")
        denied = await served.client.run(pay("eve", 3) + " /next /say too many")
        (refusal,) = only(await events_of(denied), "tool_denied")
        assert refusal.rule == "pending_approvals"
        assert (await denied.result()).text == "too many"
        assert len(await listed(served.client)) == 2

        await served.client.approvals.approve(asked)
        await first.result()
        third, (again,) = await asking(served.client, pay("eve", 4), session_id="")
        await served.client.approvals.approve(again)
        await third.result()
    assert paid == [("ann", 1), ("eve", 4)]


async def test_a_call_that_asks_parks_its_run_and_an_approval_sends_it(scene: Scene) -> None:  # C038
    served, paid = scene
    run, (asked,) = await asking(served.client, pay("ann", 5) + " /next /say thanks", session_id="")
    waiting = await run.get()
    assert (waiting.state, waiting.wait.reason) == (RunState.RUN_STATE_WAITING, WaitReason.WAIT_REASON_APPROVAL)
    assert waiting.pending_approvals[0].request.rule == asked.rule == "default"
    assert waiting.pending_approvals[0].call.arguments_json == asked.arguments_json == '{"to": "ann", "amount": 5}'
    assert asked.args_hash == sha256(asked.arguments_json.encode()).digest()
    assert (asked.run_id, asked.session_id, asked.tool_name) == (run.run_id, waiting.session_id, "pay")
    assert nanoseconds(asked.until) - nanoseconds(asked.create_time) == DAY * 10**9
    assert paid == []

    decided = await served.client.approvals.approve(asked, reason="it is due")
    assert (decided.state, decided.decision) == (ApprovalState.APPROVAL_STATE_DECIDED, APPROVED)
    events = await events_of(run)
    assert (await run.result()).text == "thanks"
    assert paid == [("ann", 5)]
    (started,) = only(events, "tool_started")
    assert (started.args_hash, started.allowed_by) == (asked.args_hash, "approval:local")
    assert kinds(events)[kinds(events).index("approval_requested") :][:5] == [
        "approval_requested",
        "run_waiting",
        "approval_decided",
        "run_resumed",
        "tool_started",
    ]


async def test_a_refusal_and_its_reason_reach_the_model(scene: Scene) -> None:  # C038
    served, paid = scene
    run, (asked,) = await asking(served.client, pay("ann", 5))
    await served.client.approvals.deny(asked.call_id, reason="too dear")
    ended = await finished(served.client, run.run_id)
    assert ended.state == RunState.RUN_STATE_COMPLETED
    result = ended.messages[2].parts[0].tool_result
    assert (result.is_error, result.parts[0].text.text) == (True, "the call was refused: too dear")
    assert "too dear" in text_of(ended.messages[3])
    assert paid == []


async def test_every_watch_shows_the_request_and_the_word(scene: Scene) -> None:  # C038
    served, _ = scene
    run, (asked,) = await asking(served.client, pay("ann", 5))
    late = served.client.watch(run.run_id)
    (requested,) = only(await until_kind(late, "run_waiting"), "approval_requested")
    assert (requested.call_id, requested.args_hash) == (asked.call_id, asked.args_hash)
    await served.client.approvals.deny(asked.call_id, reason="no")
    seen = await events_of(served.client.watch(run.run_id, after=4))
    (decided,) = only(seen, "approval_decided")
    assert (decided.call_id, decided.by, decided.decision, decided.reason) == (asked.call_id, "local", DENIED, "no")


async def test_explain_tells_whose_word_is_awaited(scene: Scene) -> None:  # C038
    served, _ = scene
    run, (asked,) = await asking(served.client, pay("ann", 5))
    (obstacle,) = (await served.client.runs.explain(run.run_id)).obstacles
    assert (obstacle.kind, obstacle.subject) == ("approval", asked.call_id)
    assert (obstacle.since, obstacle.until) == (asked.create_time, asked.until)
    assert "rule default" in obstacle.message


async def test_who_decided_what_when_and_why_can_be_asked_for(scene: Scene) -> None:  # C041
    served, _ = scene
    run, asked = await asking(served.client, f"{pay('ann', 1)} {pay('bob', 2)}", 2)
    first = await served.client.approvals.approve(asked[0], reason="fine")
    second = await served.client.approvals.deny(asked[1].call_id, reason="not him")
    await finished(served.client, run.run_id)
    record = await listed(served.client, states=[ApprovalState.APPROVAL_STATE_DECIDED], run_id=run.run_id)
    assert {each.call_id: each for each in record} == {first.call_id: first, second.call_id: second}
    assert (second.decided_by, second.reason, second.decision) == ("local", "not him", DENIED)
    assert nanoseconds(second.end_time) >= nanoseconds(second.create_time)
    assert await served.client.approvals.get(asked[0].call_id) == first
    assert await listed(served.client) == []
    assert await listed(served.client, states=[ApprovalState.APPROVAL_STATE_EXPIRED]) == []


async def test_the_same_word_again_gets_the_first_result_and_another_is_refused(scene: Scene) -> None:  # C041 S6
    served, paid = scene
    approvals = served.client.approvals
    run, (asked,) = await asking(served.client, pay("ann", 5))
    first = await approvals.approve(asked, reason="yes")
    assert await approvals.approve(asked, reason="yes, indeed") == first
    await finished(served.client, run.run_id)
    assert await approvals.approve(asked) == first
    for other in (approvals.deny(asked.call_id), approvals.approve(asked, arguments_json='{"to": "me", "amount": 5}')):
        error = await refused(other)
        assert (error.reason, error.metadata["decision"], error.metadata["by"]) == (
            "APPROVAL_DECIDED",
            "APPROVED",
            "local",
        )
    assert paid == [("ann", 5)]


async def test_of_two_words_at_once_one_counts(scene: Scene) -> None:  # C041 S6
    served, paid = scene
    run, (asked,) = await asking(served.client, pay("ann", 5))

    async def say(word: Any) -> Any:
        try:
            return await word
        except BehestError as error:
            return error.reason

    async with asyncio.TaskGroup() as tasks:
        said = [
            tasks.create_task(say(served.client.approvals.approve(asked))),
            tasks.create_task(say(served.client.approvals.deny(asked.call_id))),
        ]
    outcomes = [task.result() for task in said]
    assert outcomes.count("APPROVAL_DECIDED") == 1
    await finished(served.client, run.run_id)
    assert len(paid) == (outcomes[1] == "APPROVAL_DECIDED")


# --- bound to the very arguments ---


async def test_an_approval_is_for_the_arguments_that_were_looked_at(scene: Scene) -> None:  # N03 S6
    served, paid = scene
    _, (asked,) = await asking(served.client, pay("ann", 5))
    forged = type(asked)()
    forged.CopyFrom(asked)
    forged.args_hash = sha256(b'{"to": "ann", "amount": 4}').digest()
    error = await refused(served.client.approvals.approve(forged))
    assert (error.reason, error.violations[0][0]) == ("REQUEST_INVALID", "args_hash")
    assert await listed(served.client) == [asked]
    assert paid == []


async def test_edited_arguments_are_checked_again_and_are_what_is_sent(scene: Scene) -> None:  # N03 S6
    served, paid = scene
    run, (asked,) = await asking(served.client, pay("ann", 5))
    for bad in ('{"to": "ann"}', '{"to": "ann", "amount": 1, "amount": 2}', "[]", "{"):
        error = await refused(served.client.approvals.approve(asked, arguments_json=bad))
        assert error.reason == "TOOL_ARGUMENTS_INVALID"
    edited = '{"to": "ann", "amount": 3}'
    decided = await served.client.approvals.approve(asked, arguments_json=edited)
    assert (decided.arguments_json, decided.decided_arguments_json) == (asked.arguments_json, edited)
    (started,) = only(await events_of(run), "tool_started")
    assert (started.arguments_json, started.args_hash) == (edited, sha256(edited.encode()).digest())
    assert paid == [("ann", 3)]


async def test_edited_arguments_pass_no_rule_that_denies_them() -> None:  # N03 S6
    paid: Paid = []
    operator = Operator([rule(ASK, "pay"), rule(DENY, "pay", to="mallory")])
    async with serve(tools=payments(paid), operator=operator) as served:
        _, (asked,) = await asking(served.client, pay("ann", 5))
        for name in ("mallory", "m\u0430llory"):
            arguments = f'{{"to": "{name}", "amount": 5}}'
            error = await refused(served.client.approvals.approve(asked, arguments_json=arguments))
            assert error.reason == "TOOL_DENIED"
    assert paid == []


async def test_a_word_is_good_for_one_call_and_not_for_the_next_like_it(scene: Scene) -> None:  # N03 S6
    served, paid = scene
    run, (asked,) = await asking(served.client, f"{pay('ann', 5)} /next {pay('ann', 5)} /next /say done")
    await served.client.approvals.approve(asked)
    await until_kind(served.client.watch(run.run_id), "run_waiting", 2)
    (again,) = await listed(served.client)
    assert again.call_id != asked.call_id
    assert again.args_hash == asked.args_hash
    assert paid == [("ann", 5)]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"decision": APPROVED, "args_hash": b"x" * 32}, "call_id"),
        ({"call_id": "call_1", "args_hash": b"x" * 32}, "decision"),
        ({"call_id": "call_1", "decision": EXPIRED}, "decision"),
        ({"call_id": "call_1", "decision": 77}, "decision"),
        ({"call_id": "call_1", "decision": APPROVED}, "args_hash"),
        ({"call_id": "call_1", "decision": DENIED, "args_hash": b"x"}, "args_hash"),
        ({"call_id": "call_1", "decision": DENIED, "arguments_json": "{}"}, "arguments_json"),
        ({"call_id": "call_1", "decision": DENIED, "reason": "x" * 1025}, "reason"),
    ],
)
async def test_a_word_that_makes_no_sense_is_refused(served: Served, fields: dict[str, Any], field: str) -> None:
    found = await rejection(served.client.stubs.approvals.DecideApproval(DecideApprovalRequest(**fields)))
    expected = "REQUEST_TOO_LARGE" if field == "reason" else "REQUEST_INVALID"
    assert (found.reason, found.field) == (expected, field)


async def test_a_call_that_never_asked_has_no_approval(scene: Scene) -> None:
    served, _ = scene
    run = await served.client.run('/tool look {"what": "it"}')
    await run.result()
    (call,) = [call async for call in served.client.tool_calls.list()]
    stubs = served.client.stubs.approvals
    for call_id in (call.id, "call_unknown"):
        word = DecideApprovalRequest(call_id=call_id, decision=DENIED)
        for attempt in (stubs.GetApproval(GetApprovalRequest(call_id=call_id)), stubs.DecideApproval(word)):
            assert (await rejection(attempt)).reason == "APPROVAL_NOT_FOUND"


# --- the ends of requests ---


class AheadClock(SystemClock):
    """A clock that is ahead of the wall's."""

    def __init__(self, seconds: int) -> None:
        super().__init__()
        self._offset_ns += seconds * 10**9


async def test_an_unanswered_request_expires_as_denied_and_shows_it(tmp_path: Path) -> None:  # C039 S6
    paid: Paid = []
    home, order = tmp_path / "data", pay("ann", 5) + " /next /say I see"
    async with serve("sqlite", home, tools=payments(paid), operator=CAREFUL) as served:
        run, (asked,) = await asking(served.client, order)
        plan = served.daemon.plan
    async with Daemon(plan, AheadClock(DAY + 60)) as daemon, daemons.Client(daemon.addresses[0]) as client:
        ended = await finished(client, run.run_id)
        expired = await client.approvals.get(asked.call_id)
        assert (expired.state, expired.decision) == (ApprovalState.APPROVAL_STATE_EXPIRED, EXPIRED)
        assert (expired.decided_by, expired.reason) == ("", "nobody answered in time")
        assert await listed(client, states=[ApprovalState.APPROVAL_STATE_EXPIRED]) == [expired]
        assert "nobody answered" in ended.messages[2].parts[0].tool_result.parts[0].text.text
        for word in (client.approvals.approve(asked), client.approvals.deny(asked.call_id)):
            error = await refused(word)
            assert (error.reason, error.metadata["until"]) == ("APPROVAL_EXPIRED", asked.until.ToJsonString())
    assert paid == []


async def test_the_operator_says_how_long_a_request_is_open() -> None:  # C039
    paid: Paid = []
    operator = Operator(default_permission=ASK, approval_seconds=0.2)
    async with serve(tools=payments(paid), operator=operator) as served:
        run = await served.client.run(pay("ann", 5) + " /next /say I see")
        events = await events_of(run)
        (decided,) = only(events, "approval_decided")
        assert (decided.decision, decided.by) == (EXPIRED, "")
        (expired,) = await listed(served.client, states=ALL_STATES)
        assert expired.state == ApprovalState.APPROVAL_STATE_EXPIRED
        assert nanoseconds(expired.until) - nanoseconds(expired.create_time) == 200_000_000
        assert nanoseconds(expired.end_time) >= nanoseconds(expired.until)
    assert paid == []


async def test_a_request_falls_away_with_its_run(scene: Scene) -> None:
    served, paid = scene
    run, (asked,) = await asking(served.client, pay("ann", 5))
    await run.cancel()
    await finished(served.client, run.run_id)
    gone = await served.client.approvals.get(asked.call_id)
    assert (gone.state, gone.decision) == (ApprovalState.APPROVAL_STATE_CANCELLED, 0)
    assert gone.HasField("end_time")
    assert await listed(served.client) == []
    assert (await refused(served.client.approvals.approve(asked))).reason == "RUN_ENDING"
    assert paid == []


async def test_the_record_goes_with_the_log_of_its_run(scene: Scene) -> None:
    served, _ = scene
    run, (asked,) = await asking(served.client, pay("ann", 5))
    await served.client.approvals.deny(asked.call_id)
    await finished(served.client, run.run_id)
    await served.client.runs.delete(run.run_id)
    assert (await refused(served.client.approvals.get(asked.call_id))).reason == "APPROVAL_NOT_FOUND"
    assert await listed(served.client, states=ALL_STATES) == []


# --- lists ---


async def test_a_list_goes_page_by_page_over_runs_and_sessions_oldest_first(scene: Scene) -> None:  # C038
    served, _ = scene
    await put_agent(served, Agent(id="other", tools=["pay"]))
    ids = []
    for number in range(5):
        order: dict[str, Any] = {"agent_id": "other"} if number % 2 else {}
        _, (asked,) = await asking(served.client, pay("ann", number), **order)
        ids.append(asked.call_id)
    await served.client.approvals.deny(ids[1])
    page = ListApprovalsRequest(page_size=2)
    found = []
    while True:
        response = await served.client.stubs.approvals.ListApprovals(page)
        assert len(response.approvals) <= 2
        found += [approval.call_id for approval in response.approvals]
        if not response.next_page_token:
            break
        page.page_token = response.next_page_token
    assert found == [ids[0], *ids[2:]]
    everything = await listed(served.client, page_size=1, states=ALL_STATES)
    assert [approval.call_id for approval in everything] == ids
    of_other = await listed(served.client, agent_id="other", states=ALL_STATES)
    assert [approval.call_id for approval in of_other] == [ids[1], ids[3]]
    one = everything[2]
    for filters in ({"run_id": one.run_id}, {"session_id": one.session_id}):
        assert await listed(served.client, **filters) == [one]
    assert await listed(served.client, decided_by="local", states=ALL_STATES) == [everything[1]]
    assert await listed(served.client, decided_by="ann", states=ALL_STATES) == []
    assert await listed(served.client, tool_name="look") == []


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_more_requests_of_one_instant_than_are_read_at_once_are_all_listed(store: str) -> None:
    async with serve(store) as served:
        asked = [
            Approval(call_id=f"call_{number:03}", run_id="run_1", session_id="ses_1", state=state, create_time=at)
            for number, (state, at) in enumerate((state, Timestamp(seconds=7)) for state in [*ALL_STATES[:2]] * 150)
        ]
        record = Record("default", "test", "one", b"")
        for page in range(0, len(asked), 100):
            entries = tuple(views.approval_entry(each) for each in asked[page : page + 100])
            await served.daemon.log.commit(Change(puts=(Put(record),), entries=entries))
        everything = await listed(served.client, states=ALL_STATES, page_size=70)
        assert [each.call_id for each in everything] == [each.call_id for each in asked]
        assert len(await listed(served.client, page_size=7)) == 150


async def test_a_list_is_read_from_the_store_and_not_from_the_daemon_that_asked(tmp_path: Path) -> None:  # C040
    paid: Paid = []
    home = tmp_path / "data"
    settings: dict[str, Any] = {"tools": payments(paid), "operator": CAREFUL}
    async with serve("sqlite", home, **settings) as served:
        run, (asked,) = await asking(served.client, pay("ann", 5) + " /next /say thanks")
    async with serve("sqlite", home, **settings) as served:
        assert await listed(served.client) == [asked]
        await served.client.approvals.approve(asked)
        assert (await finished(served.client, run.run_id)).output.text == "thanks"
    assert paid == [("ann", 5)]


# --- who may ---


def inside(served: Served, *, allows_own: bool = True) -> Approvals:
    """The daemon's approvals, for a caller of any namespace."""
    return Approvals(served.daemon.log.store, served.daemon.rooms.supervisor, allows_own=allows_own)


async def test_approvals_of_another_namespace_are_as_unknown_as_those_that_never_were(scene: Scene) -> None:  # S5
    served, paid = scene
    run, (asked,) = await asking(served.client, pay("ann", 5))
    approvals = inside(served)
    for call_id in (asked.call_id, "call_unknown"):
        word = Decision(call_id, APPROVED, "mallory", args_hash=asked.args_hash)
        for attempt in (approvals.get("other", call_id), approvals.decide("other", word)):
            with pytest.raises(DaemonError) as raised:
                await attempt
            assert (raised.value.reason, raised.value.metadata) == ("APPROVAL_NOT_FOUND", {"callId": call_id})
    for query in (Query("other"), Query("other", run_id=run.run_id), Query("other", session_id=asked.session_id)):
        assert [found async for found in approvals.walk(query, None)] == []
    assert await listed(served.client) == [asked]
    assert paid == []


async def test_whoever_ordered_a_run_decides_about_it_only_where_that_is_allowed(scene: Scene) -> None:  # S6
    served, paid = scene
    run, (asked,) = await asking(served.client, pay("ann", 5))
    approvals = inside(served, allows_own=False)
    for decision in (APPROVED, DENIED):
        with pytest.raises(DaemonError) as raised:
            await approvals.decide("default", Decision(asked.call_id, decision, "local", args_hash=asked.args_hash))
        assert (raised.value.reason, raised.value.metadata) == ("APPROVAL_FORBIDDEN", {"principal": "local"})
    assert await listed(served.client) == [asked]
    await approvals.decide("default", Decision(asked.call_id, APPROVED, "ann", args_hash=asked.args_hash))
    await finished(served.client, run.run_id)
    assert paid == [("ann", 5)]
    assert (await served.client.approvals.get(asked.call_id)).decided_by == "ann"
    error = await refused(served.client.approvals.approve(asked))
    assert (error.reason, error.metadata["by"]) == ("APPROVAL_DECIDED", "ann")
