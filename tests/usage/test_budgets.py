"""Budgets of sessions and namespaces: reserved before a call leaves, settled once, and never overspent."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from behest.v1.agent_pb2 import Agent
from behest.v1.chat_pb2 import Sampling
from behest.v1.chat_service_pb2 import Chat
from behest.v1.embedding_service_pb2 import EmbedRequest
from behest.v1.message_pb2 import Message, Part, Role, TextPart
from behest.v1.run_state_pb2 import RunState
from behest.v1.session_pb2 import Session
from behest.v1.usage_pb2 import Budget
from behest.v1.usage_service_pb2 import UsagePurpose
from behestd.core.route import RoutePolicy
from behestd.core.times import SECOND
from behestd.runtime.clock import SystemClock
from behestd.runtime.house import Limits
from tests import daemons
from tests.compaction import scenes as compaction
from tests.daemons import Served, rejection
from tests.runs.scenes import OPEN, events_of, only, put_agent
from tests.subagents.scenes import order
from tests.usage.books import MODEL, PURPOSE, calls, query, reasons, rules, until, used

RUNS = 200
BOUNDED = Sampling(max_output_tokens=20)
"""An answer is 20 tokens at most, so what is reserved is never less than what is used."""
SAID = "/delay 1 /usage 5 20 /say a b c"


async def outcome(served: Served, said: str, **order: object) -> str:
    """Why a run failed, empty when it did not."""
    return (await reasons(_run(served, said, **order)))[0]


async def _run(served: Served, said: str, **order: object) -> None:
    run = await served.client.run(said, **order)  # type: ignore[arg-type]
    await run.result()


def asked(text: str, model: str = "scripted/echo") -> Chat:
    message = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])
    return Chat(model=model, messages=[message], sampling=BOUNDED)


# --- many at once ---


@pytest.mark.parametrize("limits", [{"max_total_tokens": 3_000}, {"max_calls": 70}, {"max_cost_micro_usd": 4_000}])
async def test_200_parallel_runs_on_the_budget_of_a_namespace_never_overspend_it(limits: dict[str, int]) -> None:  # N10
    async with daemons.serve("sqlite", budgets=rules(**limits)) as served:
        runs = (_run(served, SAID, model="scripted/priced", sampling=BOUNDED) for _ in range(RUNS))
        found = await reasons(*runs)
        use, total = await used(served), (await query(served)).total

    assert 10 <= found.count("") < RUNS
    assert set(found) == {"", "RUNTIME_BUDGET"}
    tokens = total.usage.input_tokens + total.usage.output_tokens
    spent = {"max_total_tokens": tokens, "max_calls": total.usage.attempts}
    spent["max_cost_micro_usd"] = total.usage.cost_micro_usd
    for name, limit in limits.items():
        assert spent[name] <= limit
    assert (use.tokens, use.cost_micro_usd, use.calls) == (tokens, total.usage.cost_micro_usd, total.usage.attempts)
    assert (use.reserved_tokens, use.reserved_cost_micro_usd, use.reserved_calls) == (0, 0, 0), "settled, each of them"
    assert total.usage.attempts == found.count("") == use.calls, "settled once, and nothing was sent that was refused"


async def test_200_parallel_calls_on_the_budget_of_a_session_never_overspend_it(stored: Served) -> None:  # N10
    budget = Budget(max_total_tokens=500)
    session = await stored.client.sessions.create(Session(budget=budget))
    stub = stored.client.stubs.embeddings
    request = EmbedRequest(model="scripted/embed", inputs=["some words to embed"], session_id=session.id)
    answers = await asyncio.gather(*(stub.Embed(request) for _ in range(RUNS)), return_exceptions=True)
    use = (await stored.client.sessions.get(session.id)).budget_use
    total = (await query(stored, session_id=session.id)).total

    refused = [answer for answer in answers if isinstance(answer, BaseException)]
    assert 0 < len(refused) < RUNS
    assert use.tokens == total.usage.input_tokens <= 500
    assert (use.calls, use.reserved_tokens) == (RUNS - len(refused), 0)
    assert (await rejection(stub.Embed(request))).reason == "SESSION_BUDGET"


async def test_answers_that_nobody_bounds_overspend_by_one_call_in_flight_each() -> None:  # N10
    async with daemons.serve(budgets=rules(max_total_tokens=2_000)) as served:
        found = await reasons(*(_run(served, "/delay 20 /usage 5 400 /say a b c") for _ in range(RUNS)))
        use = await used(served)

    assert set(found) == {"", "RUNTIME_BUDGET"}
    assert use.tokens == 405 * found.count("")
    # At most as many were in flight as their estimated inputs let in.
    assert found.count("") <= 2_000 // 5
    assert use.reserved_tokens == 0


async def test_runs_with_child_runs_share_the_budget_of_the_session_that_was_asked() -> None:  # N10
    async with daemons.serve("sqlite", operator=OPEN, budgets=rules(max_calls=100)) as served:
        await put_agent(served, Agent(id="worker", description="Works.", sampling=BOUNDED))
        await put_agent(served, Agent(id="boss", sub_agents=["worker"], sampling=BOUNDED))
        session = await served.client.sessions.create(Session(budget=Budget(max_calls=4)))
        said = order("worker", *(f"/delay 1 /say {number}" for number in range(6)))
        run = await served.client.run(said, agent_id="boss", session_id=session.id)
        events = await events_of(run)
        use = (await served.client.sessions.get(session.id)).budget_use
        count = await calls(served)

    assert "SESSION_BUDGET" in str(only(events, "run_failed")[0].error)
    assert use.calls == count == 4
    assert use.reserved_calls == 0
    ends = [ended.state for ended in only(events, "child_run_ended")]
    assert ends.count(RunState.RUN_STATE_FAILED) == 3


# --- what is refused, and how ---


async def test_a_run_that_a_budget_refuses_sends_nothing_and_says_why(stored: Served) -> None:  # N10
    session = await stored.client.sessions.create(Session(budget=Budget(max_total_tokens=60)))
    assert await outcome(stored, "/usage 30 10 /say first", session_id=session.id) == ""
    run = await stored.client.run("/usage 30 10 /say second", session_id=session.id)
    events = await events_of(run)

    assert not only(events, "model_requested")
    failed = str(only(events, "run_failed")[0].error)
    assert "SESSION_BUDGET" in failed
    assert "max_total_tokens of 60 of the session would be passed" in failed
    assert (await stored.client.sessions.get(session.id)).budget_use.tokens == 40
    other = await stored.client.sessions.create()
    assert await outcome(stored, "/usage 30 10 /say third", session_id=other.id) == ""


async def test_a_budget_is_seen_by_each_attempt_of_a_run() -> None:  # N10
    quick = RoutePolicy((), base_seconds=0.0, cap_seconds=0.0)
    async with daemons.serve(budgets=rules(max_calls=2), retries=quick) as served:
        assert await outcome(served, "/fail UNAVAILABLE 9 /say late") == "RUNTIME_BUDGET"
        assert await outcome(served, "/say more") == "RUNTIME_BUDGET"
        assert await calls(served) == 2


async def test_a_budget_of_money_refuses_models_without_a_price(served: Served) -> None:  # N10 C116
    session = await served.client.sessions.create(Session(budget=Budget(max_cost_micro_usd=1_000_000)))
    found = await outcome(served, "hi", session_id=session.id, model="scripted/unpriced")
    assert found == "PROVIDER_PRICE_UNKNOWN"
    assert await outcome(served, "hi", session_id=session.id, model="scripted/priced") == ""


async def test_direct_calls_are_refused_before_they_leave() -> None:  # N10
    async with daemons.serve("sqlite", budgets=rules(max_total_tokens=100)) as served:
        await served.client.chat.complete(asked("/usage 40 5 /say a"))
        await served.client.chat.complete(asked("/usage 30 5 /say b"))
        error = await daemons.refused(served.client.chat.complete(asked("/usage 1 1 /say c")))
        embedding = served.client.stubs.embeddings.Embed(EmbedRequest(model="scripted/embed", inputs=["word " * 60]))
        refused = await rejection(embedding)

        assert error.reason == refused.reason == "RUNTIME_BUDGET"
        assert error.metadata["budget"] == "max_total_tokens"
        assert (error.metadata["limit"], error.metadata["reserved"]) == ("100", "0")
        assert (await used(served)).tokens == 80
        assert await calls(served) == 2


async def test_what_calls_that_go_on_have_set_aside_is_not_given_twice(served: Served) -> None:  # N10
    session = await served.client.sessions.create(Session(budget=Budget(max_calls=1)))
    run = await served.client.run("/stall", session_id=session.id)
    async with asyncio.timeout(20):
        async for event in run.events():
            if event.WhichOneof("payload") == "model_requested":
                break
    use = (await served.client.sessions.get(session.id)).budget_use
    request = EmbedRequest(model="scripted/embed", inputs=["x"], session_id=session.id)
    refused = await rejection(served.client.stubs.embeddings.Embed(request))
    await served.client.runs.cancel(run.run_id)
    await events_of(served.client.watch(run.run_id))
    after = (await served.client.sessions.get(session.id)).budget_use

    assert (use.calls, use.reserved_calls) == (0, 1)
    assert use.reserved_tokens > 0
    assert refused.reason == "SESSION_BUDGET"
    assert (after.calls, after.reserved_calls, after.reserved_tokens) == (1, 0, 0)
    assert after.tokens == use.reserved_tokens, "the estimate of what was lost"


async def test_a_direct_call_that_is_left_gives_back_what_was_set_aside() -> None:  # N10
    async with daemons.serve(budgets=rules(max_calls=5)) as served:
        waiting = asyncio.create_task(served.client.chat.complete(asked("/stall")))

        async def is_reserved() -> bool:
            return (await used(served)).reserved_calls == 1

        async def is_settled() -> bool:
            use = await used(served)
            return (use.reserved_calls, use.calls, await calls(served)) == (0, 1, 1)

        await until(is_reserved)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(is_settled)


# --- budgets that change ---


async def test_a_session_can_be_given_a_budget_another_one_and_none(stored: Served) -> None:  # N10
    session = await stored.client.sessions.create()
    assert await outcome(stored, "/usage 50 50 /say a", session_id=session.id) == ""

    async def give(budget: Budget | None) -> None:
        await stored.client.sessions.update(Session(id=session.id, budget=budget), ["budget"])

    await give(Budget(max_total_tokens=120))
    use = (await stored.client.sessions.get(session.id)).budget_use
    assert (use.budget.max_total_tokens, use.tokens, use.calls) == (120, 100, 1), "what was used before counts"
    assert await outcome(stored, "/usage 50 50 /say b", session_id=session.id) == "SESSION_BUDGET"
    await give(Budget(max_total_tokens=1_000))
    assert await outcome(stored, "/usage 50 50 /say c", session_id=session.id) == ""
    await give(None)
    assert await outcome(stored, "/usage 5000 50 /say d", session_id=session.id) == ""
    assert not (await stored.client.sessions.get(session.id)).HasField("budget_use")


async def test_a_run_that_goes_on_is_charged_to_a_budget_that_its_session_gets_meanwhile(served: Served) -> None:  # N10
    session = await served.client.sessions.create()
    run = await served.client.run("/stall", session_id=session.id)
    async with asyncio.timeout(20):
        async for event in run.events():
            if event.WhichOneof("payload") == "model_requested":
                break
    await served.client.sessions.update(Session(id=session.id, budget=Budget(max_calls=1)), ["budget"])
    before = (await served.client.sessions.get(session.id)).budget_use
    await served.client.runs.cancel(run.run_id)
    await events_of(served.client.watch(run.run_id))
    after = (await served.client.sessions.get(session.id)).budget_use

    assert (before.calls, before.reserved_calls) == (0, 1)
    assert (after.calls, after.reserved_calls) == (1, 0)
    assert await outcome(served, "hi", session_id=session.id) == "SESSION_BUDGET"


async def test_a_negative_budget_is_refused_and_a_fork_has_that_of_its_source(served: Served) -> None:  # N10
    wrong = await daemons.refused(served.client.sessions.create(Session(budget=Budget(max_calls=-1))))
    assert wrong.reason == "REQUEST_INVALID"
    source = await served.client.sessions.create(Session(budget=Budget(max_calls=0)))
    assert await outcome(served, "hi", session_id=source.id) == "SESSION_BUDGET"
    fork = await served.client.sessions.fork(source.id)
    assert fork.budget == Budget(max_calls=0)
    await served.client.sessions.delete(source.id)
    again = await served.client.sessions.create(Session(id=source.id))
    assert await outcome(served, "hi", session_id=again.id) == ""


class StepClock(SystemClock):
    """A clock that can be set forward."""

    ahead_ns = 0

    def now_ns(self) -> int:
        return super().now_ns() + self.ahead_ns


@pytest.mark.parametrize(("period", "days"), [("day", 1), ("month", 31)])
async def test_a_new_period_begins_with_nothing_used(period: str, days: int) -> None:  # N10
    clock = StepClock()
    async with daemons.serve(budgets=rules(period, max_calls=1), clock=clock) as served:  # type: ignore[arg-type]
        assert await outcome(served, "a") == ""
        assert await outcome(served, "b") == "RUNTIME_BUDGET"
        use = await used(served)
        clock.ahead_ns = use.end_time.ToNanoseconds() - SystemClock().now_ns() + SECOND
        assert await outcome(served, "c") == ""
        later = await used(served)

    begin, end = (datetime.fromtimestamp(time.seconds, UTC) for time in (use.start_time, use.end_time))
    assert (begin.hour, begin.minute, end.hour) == (0, 0, 0)
    assert 1 <= (end - begin).days <= days
    assert (later.start_time, later.calls) == (use.end_time, 1)


async def test_a_restart_finds_what_was_used(tmp_path: Path) -> None:  # N10
    async with daemons.serve("sqlite", tmp_path, budgets=rules(max_calls=2)) as served:
        session = await served.client.sessions.create(Session(budget=Budget(max_calls=2)))
        assert await outcome(served, "a", session_id=session.id) == ""
        before = await used(served)
    async with daemons.serve("sqlite", tmp_path, budgets=rules(max_calls=2)) as served:
        assert await used(served) == before
        assert (await served.client.sessions.get(session.id)).budget_use.calls == 1
        assert await outcome(served, "b", session_id=session.id) == ""
        assert await outcome(served, "c", session_id=session.id) == "SESSION_BUDGET"
        assert await outcome(served, "d") == "RUNTIME_BUDGET"


async def test_a_full_queue_of_one_session_spends_its_budget_and_no_more() -> None:  # N10
    async with daemons.serve(limits=Limits(session_queue=RUNS)) as served:
        session = await served.client.sessions.create(Session(budget=Budget(max_calls=30)))
        found = await reasons(*(_run(served, "hi", session_id=session.id) for _ in range(RUNS)))
        rows = (await query(served, MODEL, session_id=session.id)).rows

    assert found.count("") == 30
    assert found.count("SESSION_BUDGET") == RUNS - 30
    assert [row.usage.attempts for row in rows] == [30]


async def test_summaries_are_charged_to_the_budget_of_their_session(tmp_path: Path) -> None:  # N10 C073 C115
    async with compaction.serve("sqlite", tmp_path) as served:
        session_id = await compaction.begin(served)
        budget = Budget(max_calls=1_000)
        await served.client.sessions.update(Session(id=session_id, budget=budget), ["budget"])
        events = await compaction.fill(served, session_id, 16)
        use = (await served.client.sessions.get(session_id)).budget_use
        rows = {row.purpose: row.usage for row in (await query(served, PURPOSE, session_id=session_id)).rows}
        await served.client.sessions.update(Session(id=session_id, budget=Budget(max_calls=use.calls)), ["budget"])
        failed = only(await compaction.fill(served, session_id, 1), "run_failed")

    made = only(events, "context_compacted")
    assert made
    assert rows[UsagePurpose.USAGE_PURPOSE_COMPACTION].attempts == len(made)
    assert rows[UsagePurpose.USAGE_PURPOSE_COMPACTION].input_tokens == sum(each.usage.input_tokens for each in made)
    assert use.calls == len(made) + len(only(events, "model_completed")) + 1
    assert use.reserved_calls == 0
    assert "SESSION_BUDGET" in str(failed[0].error)
