"""A daemon that is killed while a session is summarised: the session stays whole, one summary, and all is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from behest.client import Client
from behest.v1.agent_pb2 import Agent
from behest.v1.definition_pb2 import Compaction
from behest.v1.event_pb2 import Event
from behest.v1.model_event_pb2 import SupersedeReason
from behest.v1.session_pb2 import Session
from behest.v1.usage_service_pb2 import QueryUsageRequest, UsageDimension, UsagePurpose
from tests.compaction.scenes import FILLER, SMALL, begin, say, serve, summaries_of
from tests.crash.harness import site
from tests.runs.scenes import check_pairs, events_of, kinds, only

TURNS = 14
AGENT = Agent(id="keeper", model=SMALL, compaction=Compaction(instructions="/recall"))


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that is gone after the test: the reserve of each store is 64 MiB."""
    with TemporaryDirectory() as directory:
        yield Path(directory)


def said(turn: int) -> str:
    """What is said in a turn."""
    return f"turn {turn} {FILLER}" if turn else "fact city = Bern"


async def first_summarised() -> int:
    """The turn before which such a session is summarised."""
    async with serve() as served:
        session_id = await begin(served, said(0))
        for turn in range(1, TURNS):
            if "context_compacted" in kinds(await say(served, session_id, said(turn))):
                return turn
    raise AssertionError("never")


async def converse(client: Client, session_id: str) -> list[Event]:
    """Have all turns, over all lives of the daemon. Gives the events of each run."""
    found: list[Event] = []
    for turn in range(TURNS):
        run = await client.run(said(turn), session_id=session_id, agent_id="keeper", run_id=f"turn-{turn}")
        found += await events_of(run, seconds=60)
    return found


@pytest.mark.parametrize("point", ["summary.before_send", "summary.before_commit", "model.before_send"])
async def test_a_daemon_killed_while_it_summarises_leaves_a_whole_session_and_one_summary(
    home: Path, point: str
) -> None:
    turn = await first_summarised()
    async with site(home) as place, asyncio.TaskGroup() as group:
        daemon = await place.start(f"{point}=kill,run=turn-{turn}")
        async with place.client() as client:
            await client.agents.create(AGENT)
            await client.sessions.create(Session(id="long"))
            conversation = group.create_task(converse(client, "long"))
            (await daemon.dead(60)).assert_killed_at(point)
            left = place.remains().kinds(f"turn-{turn}")
            is_made = point == "model.before_send"
            assert left[-1] == ("model_requested" if is_made else "context_compaction_requested")
            await place.start()
            events = await conversation

            assert kinds(events).count("run_completed") == TURNS
            mine = [event for event in events if event.run_id == f"turn-{turn}"]
            assert kinds(mine).count("context_compacted") == 1
            lost = only(mine, "context_compaction_failed")
            assert [each.superseded for each in lost] == ([] if is_made else [SupersedeReason.SUPERSEDE_REASON_CRASH])
            assert all(each.usage.input_tokens for each in lost)
            messages = [each async for each in client.sessions.messages("long", include_summaries=True)]
            assert summaries_of(messages) == [
                "Notes on the conversation so far, whose oldest part is left out:\n\nfact city = Bern"
            ] * kinds(events).count("context_compacted")
            check_pairs(each for each in messages if not each.summary_upto_message_id)
            assert len({each.id for each in messages}) == len(messages)
            run = await client.runs.get(f"turn-{turn}")
            ends = ("model_completed", "model_superseded", "context_compacted", "context_compaction_failed")
            used = [payload.usage for kind in ends for payload in only(mine, kind)]
            assert run.usage.input_tokens == sum(usage.input_tokens for usage in used)
            assert run.usage.attempts == len(used) == 3
            request = QueryUsageRequest(run_id=run.id, group_by=[UsageDimension.USAGE_DIMENSION_PURPOSE])
            rows = {row.purpose: row for row in (await client.stubs.usage.QueryUsage(request)).rows}
            assert rows[UsagePurpose.USAGE_PURPOSE_COMPACTION].usage.attempts == 1 + len(lost)
            last = await client.run("/recall city", session_id="long", agent_id="keeper")
            assert (await last.result()).text == "fact city = Bern"
        assert place.remains().kinds(f"turn-{turn}") == kinds(mine)
