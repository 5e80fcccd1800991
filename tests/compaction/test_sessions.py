"""Sessions that grow too long, on a whole daemon: summaries, the circuit, the manual way, what lists and forks show."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from behest.errors import BehestError
from behest.v1.agent_pb2 import Agent
from behest.v1.definition_pb2 import Compaction, Pruning
from behest.v1.message_pb2 import Message
from behest.v1.run_service_pb2 import ListRunsRequest
from behest.v1.session_service_pb2 import CompactSessionRequest
from behest.v1.usage_service_pb2 import QueryUsageRequest, UsageDimension, UsagePurpose
from behestd.core.compaction_call import HEADING
from behestd.core.times import duration
from tests.compaction.scenes import (
    FILLER,
    SMALL,
    answer,
    begin,
    fill,
    messages,
    say,
    serve,
    summaries_of,
)
from tests.daemons import Served, refused, writes
from tests.runs.scenes import PURE, check_pairs, events_of, kinds, only, put_agent, text_of, tools, until_kind

LONG = f"fact city = Bern {FILLER}"


async def compacted(served: Served, turns: int = 14) -> str:
    """A session that was summarised once, by itself."""
    session_id = await begin(served)
    events = await fill(served, session_id, turns)
    assert kinds(events).count("context_compacted") == 1
    return session_id


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_session_is_summarised_once_and_knows_by_its_summary_what_was_told(store: str) -> None:  # C070 C112
    async with serve(store) as served:
        session_id = await compacted(served)

        assert "context_compaction_requested" not in kinds(await say(served, session_id, "and now?"))
        assert await answer(served, session_id, "/recall city") == "fact city = Bern"
        assert summaries_of(await messages(served, session_id, summaries=True)) == [f"{HEADING}fact city = Bern"]
        shown = await messages(served, session_id)
        assert summaries_of(shown) == []
        assert text_of(shown[0]) == "fact city = Bern"
        check_pairs(shown)


async def test_a_run_that_is_taken_back_from_the_store_sees_the_summary_too(tmp_path: Path) -> None:
    async with serve("sqlite", tmp_path / "data") as served:
        session_id = await compacted(served)
    async with serve("sqlite", tmp_path / "data") as served:
        assert await answer(served, session_id, "/recall city") == "fact city = Bern"
        events = await fill(served, session_id, 14)
        assert only(events, "context_compacted")
        assert await answer(served, session_id, "/recall city") == "fact city = Bern"


async def test_what_a_summary_costs_is_in_its_run_and_in_the_books() -> None:  # C073 C115
    async with serve(model="scripted/priced") as served:
        session_id = await begin(served)
        events = await fill(served, session_id, 14)
        (made,) = only(events, "context_compacted")
        assert made.endpoint == "scripted/priced"
        assert made.usage.cost_micro_usd == made.usage.input_tokens + 2 * made.usage.output_tokens > 0
        by = [UsageDimension.USAGE_DIMENSION_MODEL, UsageDimension.USAGE_DIMENSION_PURPOSE]
        rows = (await served.client.stubs.usage.QueryUsage(QueryUsageRequest(group_by=by))).rows
        (row,) = (row for row in rows if row.purpose == UsagePurpose.USAGE_PURPOSE_COMPACTION)
        assert row.model == "scripted/priced"
        assert row.usage.cost_micro_usd == made.usage.cost_micro_usd
        request = ListRunsRequest(session_id=session_id)
        (run,) = [run async for run in served.client.runs.list(request) if run.usage.cost_micro_usd]
        assert run.usage.cost_micro_usd == made.usage.cost_micro_usd
        assert run.usage.attempts == 2


async def test_a_summary_that_takes_too_long_is_given_up_and_the_run_goes_on() -> None:  # C073
    async with serve(instructions="/stall", timeout=duration(0.2)) as served:
        session_id = await begin(served)
        events = await fill(served, session_id, 14)
        failed = only(events, "context_compaction_failed")
        assert {failure.reason for failure in failed} == {"PROVIDER_TIMEOUT"}
        assert kinds(events).count("run_completed") == 14


# --- refused calls ---


async def test_a_call_that_its_provider_refuses_for_length_is_made_again_with_a_summary() -> None:  # C071
    async with serve() as served:
        session_id = await begin(served, LONG)
        await fill(served, session_id, 3)
        events = await say(served, session_id, "/fail CONTEXT_TOO_LONG 1 /recall city")

        assert [kind for kind in kinds(events) if kind.startswith(("model", "context_comp", "run_c"))] == [
            "run_created",
            "run_claimed",
            "model_requested",
            "model_failed",
            "context_compaction_requested",
            "context_compacted",
            "model_requested",
            "model_completed",
            "run_completed",
        ]
        assert only(events, "run_completed")[0].output.text == "fact city = Bern"


async def test_a_call_that_is_refused_for_length_with_nothing_to_summarise_fails_at_once() -> None:  # C071
    async with serve() as served:
        run = await served.client.run("/fail CONTEXT_TOO_LONG", model=SMALL)
        async with asyncio.timeout(20):
            with pytest.raises(BehestError) as caught:
                await run.result()
        assert caught.value.reason == "PROVIDER_CONTEXT_TOO_LONG"
        assert (await run.get()).usage.attempts == 1


async def test_a_run_that_waits_for_a_summary_says_so_and_can_be_cancelled() -> None:
    async with serve(instructions="/stall") as served:
        session_id = await begin(served, LONG)
        await fill(served, session_id, 3)
        run = await served.client.run("/fail CONTEXT_TOO_LONG", session_id=session_id, model=SMALL)
        await until_kind(run, "context_compaction_requested")

        (obstacle,) = (await served.client.runs.explain(run.run_id)).obstacles

        assert (obstacle.kind, obstacle.subject) == ("summary", SMALL)
        await run.cancel()
        assert kinds(await events_of(served.client.watch(run.run_id)))[-2:] == [
            "context_compaction_failed",
            "run_cancelled",
        ]


# --- the circuit ---


async def test_three_failures_over_three_turns_open_the_circuit_which_is_shown_and_can_be_closed(
    tmp_path: Path,
) -> None:  # C075
    home = tmp_path / "data"
    async with serve("sqlite", home, instructions="/fail UNAVAILABLE") as served:
        session_id = await begin(served)
        events = await fill(served, session_id, 18)

        assert kinds(events).count("run_completed") == 18
        assert kinds(events).count("context_compaction_failed") == 3
        (opened,) = only(events, "compaction_circuit_opened")
        circuit = (await served.client.sessions.get(session_id)).compaction_circuit
        assert (circuit.failures, circuit.reason, circuit.open_until) == (3, "PROVIDER_UNAVAILABLE", opened.until)

    async with serve("sqlite", home) as served:
        assert (await served.client.sessions.get(session_id)).compaction_circuit == circuit
        assert "context_compaction_requested" not in kinds(await say(served, session_id, f"more {FILLER}"))
        request = CompactSessionRequest(session_id=session_id, only_reset_circuit=True)
        await served.client.stubs.sessions.CompactSession(request)
        assert not (await served.client.sessions.get(session_id)).HasField("compaction_circuit")
        before = writes(served)
        await served.client.stubs.sessions.CompactSession(request)
        assert writes(served) == before
        assert "context_compacted" in kinds(await say(served, session_id, f"more {FILLER}"))

    async with serve("sqlite", home) as served:
        assert not (await served.client.sessions.get(session_id)).HasField("compaction_circuit")


async def test_the_circuit_of_one_session_is_not_that_of_another_and_goes_with_its_session() -> None:  # C075
    async with serve(failures=1, instructions="/fail UNAVAILABLE") as served:
        session = await served.client.sessions.create()
        for number in range(14):
            await say(served, session.id, f"turn {number} {FILLER}")
        assert (await served.client.sessions.get(session.id)).compaction_circuit.failures == 1
        other = await begin(served)
        assert not (await served.client.sessions.get(other)).HasField("compaction_circuit")
        await served.client.sessions.delete(session.id)
        assert served.daemon.house.circuits.shown("default", session.id) is None


# --- on request ---


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_session_is_summarised_on_request(store: str) -> None:  # C077
    async with serve(store) as served:
        session_id = await begin(served, LONG)
        await fill(served, session_id, 4)
        version = (await served.client.sessions.get(session_id)).version

        made = await served.client.sessions.compact(session_id, model="scripted/priced")

        assert 0 < made.tokens_after < made.tokens_before
        assert made.usage.cost_micro_usd > 0
        found = await messages(served, session_id, summaries=True)
        assert found[-1].id == made.summary_message_id
        assert summaries_of(found) == [f"{HEADING}fact city = Bern"]
        assert (await served.client.sessions.get(session_id)).version == version + 1
        assert await answer(served, session_id, "/recall city") == "fact city = Bern"
        run = await served.client.run("/dump", session_id=session_id, model=SMALL)
        assert (await run.result()).text.count("ROLE_USER") < 6
        request = QueryUsageRequest(group_by=[UsageDimension.USAGE_DIMENSION_PURPOSE], session_id=session_id)
        rows = {row.purpose: row for row in (await served.client.stubs.usage.QueryUsage(request)).rows}
        assert rows[UsagePurpose.USAGE_PURPOSE_COMPACTION].usage.cost_micro_usd == made.usage.cost_micro_usd


async def test_a_second_summary_on_request_is_made_of_the_first_and_what_came_since() -> None:  # C072 C077
    async with serve() as served:
        session_id = await begin(served, LONG)
        await fill(served, session_id, 3)
        await served.client.sessions.compact(session_id)
        await say(served, session_id, f"fact river = Aare {FILLER}")
        await fill(served, session_id, 3)
        await served.client.sessions.compact(session_id)

        assert summaries_of(await messages(served, session_id, summaries=True)) == [
            f"{HEADING}fact city = Bern",
            f"{HEADING}fact city = Bern\nfact river = Aare",
        ]
        assert await answer(served, session_id, "/recall") == "fact city = Bern\nfact river = Aare"


async def test_nothing_is_written_where_nothing_can_be_summarised() -> None:  # C077
    async with serve() as served:
        session = await served.client.sessions.create()
        before = writes(served)
        made = await served.client.sessions.compact(session.id)
        assert (made.summary_message_id, made.tokens_before, made.tokens_after) == ("", 0, 0)
        assert writes(served) == before


async def test_a_session_with_an_active_run_is_not_summarised_on_request() -> None:  # C077
    async with serve() as served:
        session_id = await begin(served, LONG)
        run = await served.client.run("/stall", session_id=session_id)
        await until_kind(run, "model_requested")
        error = await refused(served.client.sessions.compact(session_id))
        assert (error.reason, error.metadata["activeRunId"]) == ("SESSION_BUSY", run.run_id)
        await run.cancel()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("/fail QUOTA", "PROVIDER_QUOTA"),
        ("/tool look {}", "PROVIDER_MALFORMED_OUTPUT"),
        ("/words 9999", "PROVIDER_MALFORMED_OUTPUT"),
    ],
)
async def test_a_summary_on_request_that_fails_says_why_and_is_booked(script: str, reason: str) -> None:  # C077
    async with serve(instructions=script) as served:
        session_id = await begin(served, LONG)
        await fill(served, session_id, 3)
        assert (await refused(served.client.sessions.compact(session_id))).reason == reason
        assert summaries_of(await messages(served, session_id, summaries=True)) == []
        request = QueryUsageRequest(group_by=[UsageDimension.USAGE_DIMENSION_PURPOSE])
        rows = (await served.client.stubs.usage.QueryUsage(request)).rows
        assert UsagePurpose.USAGE_PURPOSE_COMPACTION in {row.purpose for row in rows}


@pytest.mark.parametrize(
    ("session_id", "model", "reason"),
    [
        ("ses_none", "", "SESSION_NOT_FOUND"),
        ("", "", "REQUEST_INVALID"),
        (None, "scripted/none", "PROVIDER_MODEL_NOT_FOUND"),
    ],
)
async def test_a_request_that_names_what_is_not_there_is_refused(
    session_id: str | None, model: str, reason: str
) -> None:  # C077
    async with serve() as served:
        known = await begin(served)
        name = known if session_id is None else session_id
        assert (await refused(served.client.sessions.compact(name, model=model))).reason == reason


# --- forks, agents, pruning ---


async def test_a_fork_takes_the_summary_over_with_what_it_stands_for() -> None:
    async with serve() as served:
        session_id = await compacted(served)
        fork = await served.client.sessions.fork(session_id)
        assert await answer(served, fork.id, "/recall city") == "fact city = Bern"
        mine, theirs = (
            await messages(served, session_id, summaries=True),
            await messages(served, fork.id, summaries=True),
        )
        ids = {message.id for message in theirs}
        summary = next(message for message in theirs if message.summary_upto_message_id)
        assert summary.summary_upto_message_id in ids
        assert ids.isdisjoint({message.id for message in mine})
        events = await fill(served, fork.id, 1)
        (built,) = only(events, "context_built")
        assert built.messages < 20


async def test_an_agent_decides_for_itself_whether_and_how_it_is_summarised() -> None:  # C073
    async with serve() as served:
        own = Compaction(enabled=False)
        await put_agent(served, Agent(id="never", model=SMALL, compaction=own))
        session_id = await begin(served, agent_id="never", model="")
        events = await fill(served, session_id, 16, agent_id="never", model="")
        assert "context_compaction_requested" not in kinds(events)
        assert only(events, "context_built")[-1].trimmed_messages > 0


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"compaction": Compaction(threshold=1.5)}, "agent.compaction.threshold"),
        ({"compaction": Compaction(tail_tokens=0)}, "agent.compaction.tail_tokens"),
        ({"compaction": Compaction(timeout=duration(0))}, "agent.compaction.timeout"),
        ({"compaction": Compaction(model="no/such")}, "agent.compaction.model"),
        ({"compaction": Compaction(instructions="x" * 20_000)}, "agent.compaction.instructions"),
        ({"pruning": Pruning(block_turns=0)}, "agent.pruning.block_turns"),
        ({"pruning": Pruning(keep_turns=-1)}, "agent.pruning.keep_turns"),
    ],
)
async def test_a_policy_that_makes_no_sense_is_refused(
    served: Served, fields: dict[str, Compaction | Pruning], field: str
) -> None:
    error = await refused(served.client.agents.create(Agent(id="odd", **fields)))  # type: ignore[arg-type]
    assert error.reason in ("REQUEST_INVALID", "REQUEST_TOO_LARGE")
    assert field in (error.metadata.get("field"), *(violation[0] for violation in error.violations))


def pages(count: int) -> str:
    """Print so many pages."""
    return "page " * count


async def test_old_outputs_of_tools_are_left_out_and_can_be_read_all_the_same() -> None:  # C076
    policy = Pruning(keep_turns=2, block_turns=2, output_bytes=1000)
    async with serve(pruning=policy, tools=tools((pages, PURE))) as served:
        await put_agent(served, Agent(id="reader", model="scripted/echo", tools=["pages"]))
        session_id = await begin(served, '/tool pages {"count": 400} /next /say read', agent_id="reader", model="")
        sizes = [
            sum(
                only(await say(served, session_id, "hm", agent_id="reader", model=""), "context_built")[
                    0
                ].tokens_by_source.values()
            )
            for _ in range(5)
        ]
        assert min(sizes[3:]) < sizes[0] - 300, sizes
        shown: list[Message] = await messages(served, session_id)
        result = shown[2].parts[0].tool_result
        assert text_of(Message(parts=result.parts)) == "page " * 400
