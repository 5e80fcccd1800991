"""A session of thousands of turns: it stays in its model's window, keeps its facts, and no turn costs more for its age.

Cost is counted, not timed: what a run reads of the store, and what it sends to its model.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import pytest

from behestd.log.store import Entry
from behestd.providers.scripted import SMALL_TOKENS
from tests.compaction.scenes import answer, messages, say, serve, summaries_of
from tests.runs.scenes import kinds, only, text_of

FACTS = {"city": "Bern", "river": "Aare", "bear": "Finn"}
SAYING = "and so it went on " * 8
READS_A_RUN = 3
"""The session, its agent's record or none, and its history."""
MESSAGES_READ_A_RUN = 128


@pytest.mark.parametrize("turns", [200, pytest.param(2000, marks=pytest.mark.proof)])
async def test_a_session_of_many_turns_stays_in_the_window_and_keeps_its_facts_at_a_flat_cost(
    turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:  # C070 C072
    async with serve("sqlite") as served:
        store = served.daemon.log.store
        read: list[int] = []
        real: Any = store.last_entries

        async def counted(*args: Any) -> Sequence[Entry]:
            found: Sequence[Entry] = await real(*args)
            read[-1] += len(found)
            return found

        monkeypatch.setattr(store, "last_entries", counted)
        session = await served.client.sessions.create()
        read.append(0)
        for key, value in FACTS.items():
            await say(served, session.id, f"fact {key} = {value}")
        reads, sent, made = list[int](), list[int](), 0
        for turn in range(len(FACTS), turns - len(FACTS)):
            read.append(0)
            before = store.statistics().reads
            events = await say(served, session.id, f"turn {turn} {SAYING}")
            reads.append(store.statistics().reads - before)
            assert kinds(events)[-1] == "run_completed"
            sent += [request.reserve.input_tokens for request in only(events, "model_requested")]
            made += kinds(events).count("context_compacted")
            assert "context_compaction_failed" not in kinds(events)

        assert len(sent) == turns - 2 * len(FACTS), "one call a turn, none refused"
        assert max(sent) <= SMALL_TOKENS * 0.8
        # The daemon looks for missed work every few seconds, which is a read of nobody's run.
        assert median(reads[len(reads) // 2 :]) == median(reads[: len(reads) // 2]) <= READS_A_RUN
        assert max(read) <= MESSAGES_READ_A_RUN
        # A summary makes room for many turns.
        assert 1 < made < turns / 10
        for key, value in FACTS.items():
            assert await answer(served, session.id, f"/recall {key}") == f"fact {key} = {value}"
        assert text_of((await messages(served, session.id))[0]) == "fact city = Bern"
        summaries = summaries_of(await messages(served, session.id, summaries=True))
        assert len(summaries) >= made
        assert all("fact city = Bern" in summary for summary in summaries)
