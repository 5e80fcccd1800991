"""What calls used, as QueryUsage tells it: a row for each attempt, and sums by whatever is asked for."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import grpc

from behest.v1 import usage_service_pb2 as pb
from behest.v1.agent_pb2 import Agent
from behest.v1.chat_service_pb2 import Chat
from behest.v1.embedding_service_pb2 import EmbedRequest
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behest.v1.usage_service_pb2 import UsagePurpose
from behestd.core.route import RoutePolicy
from behestd.log.store import Change
from behestd.log.usage import Spent
from tests import daemons
from tests.daemons import Served, rejection
from tests.runs.scenes import OPEN, events_of, only, put_agent
from tests.subagents.scenes import order
from tests.usage.books import AGENT, DAY, MODEL, NAMESPACE, PURPOSE, RUN, SESSION, calls, query, until

QUICK = RoutePolicy((), base_seconds=0.0, cap_seconds=0.0)


def asked(text: str, model: str = "scripted/priced") -> Chat:
    return Chat(model=model, messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])])


async def test_each_attempt_of_a_run_is_a_row_with_what_it_used_and_cost() -> None:  # C115
    async with daemons.serve("sqlite", retries=QUICK) as served:
        await put_agent(served, Agent(id="helper", model="scripted/priced"))
        run = await served.client.run("/fail UNAVAILABLE 2 /usage 1000 100 600 30 /say hi", agent_id="helper")
        await run.result()
        got = await run.get()
        found = await query(served, RUN, AGENT, MODEL, PURPOSE, SESSION, DAY, NAMESPACE)
        events = await events_of(served.client.watch(run.run_id))

    (row,) = found.rows
    assert (row.run_id, row.agent_id, row.session_id) == (run.run_id, "helper", got.session_id)
    assert (row.model, row.purpose, row.namespace) == ("scripted/priced", UsagePurpose.USAGE_PURPOSE_RUN, "default")
    assert row.day == datetime.fromtimestamp(got.end_time.seconds, UTC).date().isoformat()
    assert row.usage.attempts == 3
    assert row.estimated_calls == 2, "what failed told no figures"
    assert row.usage == got.usage == found.total.usage, "and so the sums are those of the run"
    failed = sum(event.usage.cost_micro_usd for event in only(events, "model_failed"))
    assert row.usage.cost_micro_usd == 400 + 60 + 200 + failed


async def test_an_attempt_that_is_given_up_is_counted_once_as_an_estimate(stored: Served) -> None:  # C115
    run = await stored.client.run("/stall", model="scripted/priced")
    async with asyncio.timeout(20):
        async for event in run.events():
            if event.WhichOneof("payload") == "model_requested":
                break
    await stored.client.runs.cancel(run.run_id)
    events = await events_of(stored.client.watch(run.run_id))
    found = await query(stored, MODEL)

    (superseded,) = only(events, "model_superseded")
    assert [(row.model, row.usage.attempts, row.estimated_calls) for row in found.rows] == [("scripted/priced", 1, 1)]
    assert found.total.usage == superseded.usage
    assert found.total.usage.input_tokens > 0


async def test_child_runs_count_once_and_for_the_session_that_they_were_started_from() -> None:  # C115 C117
    async with daemons.serve("sqlite", operator=OPEN) as served:
        await put_agent(served, Agent(id="worker", description="Works.", model="scripted/priced"))
        await put_agent(served, Agent(id="boss", model="scripted/priced", sub_agents=["worker"]))
        run = await served.client.run(order("worker", "/usage 70 7 /say done") + " /usage 50 5", agent_id="boss")
        await run.result()
        got = await run.get()
        by_agent = await query(served, AGENT)
        in_session = await query(served, RUN, session_id=got.session_id)
        own = await query(served, run_id=run.run_id)
        (child,) = [row for row in in_session.rows if row.run_id != run.run_id]
        of_child = await query(served, run_id=child.run_id)

    assert {row.agent_id: row.usage.attempts for row in by_agent.rows} == {"boss": 2, "worker": 1}
    assert in_session.total.usage == by_agent.total.usage == got.usage, "the run's own sum has its child's in it"
    assert child.usage.input_tokens == 70
    assert of_child.total.usage == child.usage
    assert own.total.usage.attempts == 2


async def test_direct_calls_and_embeddings_are_rows_of_their_purpose(stored: Served) -> None:  # C115
    await stored.client.chat.complete(asked("/usage 40 4 /say a"))
    async with asyncio.timeout(30):
        pieces = [piece async for piece in stored.client.chat.stream(asked("/usage 60 6 /say b"))]
    session = await stored.client.sessions.create()
    stub = stored.client.stubs.embeddings
    await stub.Embed(EmbedRequest(model="scripted/embed", inputs=["one two", "three"], session_id=session.id))
    found = await query(stored, PURPOSE, SESSION)

    assert pieces
    assert [(row.purpose, row.session_id, row.usage.attempts) for row in found.rows] == [
        (UsagePurpose.USAGE_PURPOSE_CHAT, "", 2),
        (UsagePurpose.USAGE_PURPOSE_EMBEDDING, session.id, 1),
    ]
    assert found.rows[0].usage.input_tokens == 100
    assert found.rows[0].usage.cost_micro_usd == 100 + 2 * 10


async def test_a_direct_call_that_fails_is_booked_with_each_attempt() -> None:  # C115
    async with daemons.serve(retries=QUICK) as served:
        await daemons.refused(served.client.chat.complete(asked("/fail UNAVAILABLE")))
        found = await query(served)

    assert found.total.usage.attempts == found.total.estimated_calls == 3


async def test_a_direct_call_whose_caller_leaves_is_booked_as_an_estimate(served: Served) -> None:  # C115
    async with aclosing(served.client.chat.stream(asked("/delay 1 /say some words /stall"))) as pieces:
        async with asyncio.timeout(30):
            await anext(pieces)

    async def is_booked() -> bool:
        return await calls(served) == 1

    await until(is_booked)
    found = await query(served)
    assert found.total.estimated_calls == 1
    assert found.total.usage.input_tokens > 0


async def test_the_pages_of_a_query_add_up_to_its_total_whatever_is_booked_meanwhile(stored: Served) -> None:  # C117
    rows = tuple(_row(f"p/m{number:02}", number) for number in range(25))
    await stored.daemon.log.commit(Change(usage=rows))
    request = pb.QueryUsageRequest(group_by=[MODEL, AGENT], page_size=4)
    found: list[pb.UsageRow] = []
    totals = []
    while True:
        page = await stored.client.usage.query(request)
        found += page.rows
        totals.append(page.total)
        await stored.daemon.log.commit(Change(usage=(_row("p/m07", 1_000), _row("p/zz", 1))))
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token

    assert [row.model for row in found] == [row.model for row in rows]
    assert sum(row.usage.cost_micro_usd for row in found) == totals[0].usage.cost_micro_usd == sum(range(25))
    assert all(total == totals[0] for total in totals)


def _row(model: str, cost: int | None, *, time: datetime | None = None, namespace: str = "default") -> Spent:
    time_ns = int((time or datetime.now(UTC)).timestamp() * 1_000_000) * 1_000
    return Spent(namespace, time_ns, "", "", "", model, UsagePurpose.USAGE_PURPOSE_CHAT, 10, 5, 4, 0, 0, cost, False)


async def test_a_range_of_time_takes_its_begin_and_leaves_its_end(stored: Served) -> None:  # C117
    noon = datetime(2025, 3, 1, 12, tzinfo=UTC)
    rows = tuple(_row("p/m", 1, time=noon + timedelta(hours=hours)) for hours in range(24))
    await stored.daemon.log.commit(Change(usage=rows))
    request = pb.QueryUsageRequest(group_by=[DAY])
    request.start_time.FromDatetime(noon)
    request.end_time.FromDatetime(noon + timedelta(hours=23))
    found = await stored.client.usage.query(request)

    assert [(row.day, row.usage.attempts) for row in found.rows] == [("2025-03-01", 12), ("2025-03-02", 11)]
    request.page_size = 1
    assert [row async for row in stored.client.usage.rows(request)] == list(found.rows)
    request.start_time.FromDatetime(noon + timedelta(days=9))
    wrong = await rejection(stored.client.stubs.usage.QueryUsage(request))
    assert (wrong.reason, wrong.field) == ("REQUEST_INVALID", "end_time")


async def test_unknown_costs_are_counted_and_are_not_0(stored: Served) -> None:  # C116
    await stored.daemon.log.commit(Change(usage=(_row("p/a", 5), _row("p/a", None), _row("p/b", None))))
    found = await query(stored, MODEL)
    priced, unpriced = found.rows

    assert (priced.usage.cost_micro_usd, priced.unpriced_calls) == (5, 1)
    assert not unpriced.usage.HasField("cost_micro_usd")
    assert (found.total.usage.cost_micro_usd, found.total.unpriced_calls) == (5, 2)


async def test_a_query_sees_its_own_namespace_and_an_operator_all_of_them(stored: Served) -> None:  # C117
    await stored.daemon.log.commit(Change(usage=(_row("p/a", 5), _row("p/a", 7, namespace="other"))))

    assert (await query(stored)).total.usage.cost_micro_usd == 5
    found = await query(stored, NAMESPACE)
    assert {row.namespace: row.usage.cost_micro_usd for row in found.rows} == {"default": 5, "other": 7}


async def test_what_makes_no_sense_is_refused(served: Served) -> None:  # C117
    stub = served.client.stubs.usage
    for request, field in (
        (pb.QueryUsageRequest(group_by=[MODEL, MODEL]), "group_by"),
        (pb.QueryUsageRequest(group_by=[99]), "group_by[0]"),  # type: ignore[list-item]
        (pb.QueryUsageRequest(group_by=[0]), "group_by[0]"),  # type: ignore[list-item]
        (pb.QueryUsageRequest(page_size=-1), "page_size"),
        (pb.QueryUsageRequest(run_id="no\nid"), "run_id"),
        (pb.QueryUsageRequest(page_token="made up"), "page_token"),
    ):
        found = await rejection(stub.QueryUsage(request))
        assert found.code is grpc.StatusCode.INVALID_ARGUMENT
        assert found.field == field


async def test_a_deleted_session_stays_counted_and_is_named_no_more(stored: Served) -> None:  # C115
    run = await stored.client.run("/usage 10 1 /say hi")
    await run.result()
    session_id = (await run.get()).session_id
    before = await query(stored)
    await stored.client.sessions.delete(session_id)
    found = await query(stored, SESSION, RUN)

    assert found.total == before.total
    assert [(row.session_id, row.run_id) for row in found.rows] == [("", "")]
    assert not (await query(stored, session_id=session_id)).rows


async def test_a_deleted_run_stays_counted(stored: Served) -> None:  # C115
    run = await stored.client.run("/usage 10 1 /say hi")
    await run.result()
    await stored.client.runs.delete(run.run_id)

    assert (await query(stored, run_id=run.run_id)).total.usage.input_tokens == 10
