"""Rows 1 to 15 of the failure matrix: the daemon dies at a named point, and what then must be so is so.

Each case proves first that its point was hit: the process died by SIGKILL, said the point's name, and left a log that
ends where the row says.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from behest.client import Client
from behest.runs import RunHandle
from behest.updates import Discarded, Update
from behest.v1.delta_pb2 import Delta
from behest.v1.event_pb2 import Event
from behest.v1.model_event_pb2 import SupersedeReason
from behest.v1.run_state_pb2 import RunState
from behest.v1.usage_pb2 import Usage
from tests.crash.conftest import Tools
from tests.crash.harness import PATIENCE, Site, Unready, site
from tests.crash.table import PLACE, Line, table
from tests.runs.scenes import check_pairs, kind_of, kinds, only

CLASSES = ("pure", "idempotent", "queryable", "payment")
EXPECTED_LINES = 34


@pytest.fixture(scope="module")
def lines() -> Iterator[list[Line]]:
    """What the tests of this module found."""
    found: list[Line] = []
    yield found


class Follower:
    """Everything that a client saw of one run, over all lives of the daemon."""

    def __init__(self, handle: RunHandle) -> None:
        self.handle = handle
        self.updates: list[Update] = []
        self._changed = asyncio.Condition()

    async def follow(self) -> None:
        """Follow to the end."""
        async for update in self.handle.updates():
            async with self._changed:
                self.updates.append(update)
                self._changed.notify_all()

    @property
    def events(self) -> list[Event]:
        """The events."""
        return [update for update in self.updates if isinstance(update, Event)]

    async def until(self, kind: str, count: int = 1) -> None:
        """Wait until there were so many events of a kind, or deltas, or deltas with a tool's progress."""
        async with asyncio.timeout(15), self._changed:
            await self._changed.wait_for(lambda: self.count(kind) >= count)

    def count(self, kind: str) -> int:
        """How many there were."""
        if kind in ("delta", "progress"):
            deltas = [update for update in self.updates if isinstance(update, Delta)]
            return sum(kind == "delta" or delta.HasField("tool_progress") for delta in deltas)
        return kinds(self.events).count(kind)


@asynccontextmanager
async def following(client: Client, said: str, run_id: str, **order: str) -> AsyncIterator[Follower]:
    """Order a run and follow it while the block runs."""
    follower = Follower(client.stream(said, run_id=run_id, **order))  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(follower.follow())
        yield follower
        task.cancel()


def check_log(place: Site, follower: Follower, run_id: str) -> None:
    """Check that what was seen is what is stored, byte for byte, without a gap."""
    stored = [event.SerializeToString() for event in place.remains().events(run_id)]
    seen = [event.SerializeToString() for event in follower.events]
    assert seen == stored[: len(seen)]
    assert [event.sequence for event in follower.events] == list(range(1, len(seen) + 1))


async def test_killed_before_its_creation_commits_a_run_does_not_exist(home: Path, lines: list[Line]) -> None:
    async with site(home) as place, asyncio.timeout(30):  # row 1
        daemon = await place.start("create.before_commit=kill,run=r1")
        async with place.client() as client:
            run = client.stream("hello", run_id="r1")
            async with asyncio.TaskGroup() as tasks:
                creating = tasks.create_task(run.create())
                (await daemon.dead()).assert_killed_at("create.before_commit")
                assert place.remains().run_ids() == []
                await place.start()
                assert await creating == "r1"
            assert not run.is_replayed
            assert (await run.result()).text == "hello"
        assert place.remains().run_ids() == ["r1"]
    lines.append(Line(1, "create.before_commit", "", "", "nothing", "the same request creates it; one run"))


async def test_killed_after_its_creation_committed_a_run_is_found_by_its_request(home: Path, lines: list[Line]) -> None:
    async with site(home) as place, asyncio.timeout(30):  # row 2
        daemon = await place.start("create.after_commit=kill,run=r2")
        async with place.client() as client:
            run = client.stream("hello", run_id="r2")
            async with asyncio.TaskGroup() as tasks:
                creating = tasks.create_task(run.create())
                (await daemon.dead()).assert_killed_at("create.after_commit")
                last = place.remains().kinds("r2")[-1]
                await place.start()
                assert await creating == "r2"
            assert run.is_replayed
            assert (await run.result()).text == "hello"
        assert place.remains().run_ids() == ["r2"]
    lines.append(Line(2, "create.after_commit", "", "", last, "the retry is told of it, and it completes"))


async def test_killed_while_a_run_queues_it_is_claimed_in_the_order_of_its_session(
    home: Path, lines: list[Line]
) -> None:
    async with site(home) as place, asyncio.timeout(30):  # row 3
        daemon = await place.start("recover.mid=kill,run=r3-second")
        async with place.client() as client:
            first = await client.run("/delay 100 /say one two three", run_id="r3-first")
            session_id = (await first.get()).session_id
            await client.run("/say second", run_id="r3-second", session_id=session_id)
            await client.run("/say third", run_id="r3-third", session_id=session_id)
            (await daemon.dead()).assert_killed_at("recover.mid")
            assert place.remains().kinds("r3-first")[-1] == "run_completed"
            assert place.remains().kinds("r3-second") == ["run_created"]
            await place.start()
            for run_id, text in (("r3-second", "second"), ("r3-third", "third")):
                assert (await client.watch(run_id).result()).text == text
            indexes = [(await client.runs.get(f"r3-{name}")).session_index for name in ("first", "second", "third")]
            assert indexes == [1, 2, 3]
            ends = [(await client.runs.get(f"r3-{name}")).end_time.ToNanoseconds() for name in ("second", "third")]
            assert ends == sorted(ends)
    lines.append(Line(3, "recover.mid", "", "queued", "run_created", "claimed at the start, in its session's order"))


@pytest.mark.parametrize(("row", "point"), [(4, "model.before_send"), (6, "model.before_commit")])
async def test_a_model_call_that_a_crash_cut_is_superseded_and_made_again(
    home: Path, lines: list[Line], row: int, point: str
) -> None:
    run_id = f"r{row}"
    async with site(home) as place, asyncio.timeout(30):  # rows 4 and 6
        daemon = await place.start(f"{point}=kill,run={run_id}")
        async with place.client() as client, following(client, "/say the answer", run_id) as follower:
            (await daemon.dead()).assert_killed_at(point)
            last = place.remains().kinds(run_id)[-1]
            assert last == "model_requested"
            await place.start()
            await follower.until("run_completed")
        events = follower.events
        (superseded,) = only(events, "model_superseded")
        assert (superseded.attempt, superseded.reason) == (1, SupersedeReason.SUPERSEDE_REASON_CRASH)
        assert superseded.usage.input_tokens > 0
        assert [each.attempt for each in only(events, "model_requested")] == [1, 2]
        assert [each.attempt for each in only(events, "model_completed")] == [2]
        assert only(events, "run_completed")[0].output.text == "the answer"
        check_log(place, follower, run_id)
        assert check_usage(events).attempts == 2
    lines.append(Line(row, point, "", "running", last, "attempt 1 superseded and paid for, attempt 2 answers"))


def check_usage(events: list[Event]) -> Usage:
    """Add up what the attempts of a run consumed; superseded ones count by their estimate."""
    total = Usage()
    for kind in ("model_completed", "model_failed", "model_superseded"):
        for each in only(events, kind):
            total.input_tokens += each.usage.input_tokens
            total.attempts += each.usage.attempts
    return total


async def test_the_text_of_a_stream_that_a_crash_cut_is_that_of_the_second_attempt(
    home: Path, lines: list[Line]
) -> None:
    async with site(home) as place, asyncio.timeout(30):  # row 5
        daemon = await place.start()
        async with place.client() as client, following(client, "/delay 50 /words 20", "r5") as follower:
            await follower.until("delta", 5)
            assert (await daemon.kill()).code == -signal.SIGKILL
            last = place.remains().kinds("r5")[-1]
            assert last == "model_requested"
            await place.start()
            await follower.until("run_completed")
        assert Discarded(1, 1) in follower.updates
        told = follower.updates[follower.updates.index(Discarded(1, 1)) :]
        text = only(follower.events, "run_completed")[0].output.text
        assert text == " ".join(f"word{number}" for number in range(1, 21))
        assert "".join(update.text for update in told if isinstance(update, Delta)) == text
        check_log(place, follower, "r5")
    outcome = "the client discards attempt 1; the text is that of attempt 2 alone"
    lines.append(Line(5, "SIGKILL mid stream", "", "running", last, outcome))


@pytest.mark.parametrize("tool", CLASSES)
async def test_calls_that_were_never_started_are_dispatched_without_asking_the_model_again(
    home: Path, lines: list[Line], tools: Tools, tool: str
) -> None:
    run_id = f"r7-{tool}"
    async with site(home, tools=tools.address, drain_seconds=5.0) as place, asyncio.timeout(30):  # row 7
        daemon = await place.start(f"tool.before_started=kill,run={run_id}")
        async with place.client() as client:
            said = f"/delay 100 /say let me see /tool {tool} {{}} /next /say done"
            async with following(client, said, run_id) as follower:
                await follower.until("delta")
                daemon.send(signal.SIGTERM)
                (await daemon.dead()).assert_killed_at("tool.before_started")
                last = place.remains().kinds(run_id)[-1]
                assert last == "model_completed"
                assert tools.ledger.count(run_id, "dispatch") == 0
                await place.start()
                await follower.until("run_completed")
        events = follower.events
        assert [each.attempt for each in only(events, "tool_started")] == [1]
        assert [each.step for each in only(events, "model_requested")] == [1, 2]
        sent, effects = tools.ledger.count(run_id, "dispatch"), tools.ledger.count(run_id, "effect")
        assert (sent, effects) == (1, 1)
        check_log(place, follower, run_id)
    outcome = "the call is sent for the first time; the model is not asked again"
    lines.append(Line(7, "tool.before_started", tool, "draining", last, outcome, sent, effects))


AFTER_CRASH = {
    # (point, class): what the ledger must show of dispatches and effects, and what becomes of the call.
    ("tool.before_send", "pure"): (1, 1, "sent again, attempt 2"),
    ("tool.before_send", "idempotent"): (1, 1, "sent again with the same key, attempt 2"),
    ("tool.before_send", "queryable"): (1, 1, "the server never saw it and forbids the old epoch; sent again"),
    ("tool.before_send", "payment"): (0, 0, "outcome unknown; the run waits for somebody's word"),
    ("tool.working", "pure"): (2, 2, "sent again, attempt 2"),
    ("tool.working", "idempotent"): (2, 1, "sent again with the same key, attempt 2"),
    ("tool.working", "queryable"): (1, 1, "the server is asked, and its result is taken"),
    ("tool.working", "payment"): (1, 1, "outcome unknown; the run waits for somebody's word"),
    ("tool.before_commit", "pure"): (2, 2, "sent again, attempt 2"),
    ("tool.before_commit", "idempotent"): (2, 1, "sent again with the same key, attempt 2"),
    ("tool.before_commit", "queryable"): (1, 1, "the server is asked, and its result is taken"),
    ("tool.before_commit", "payment"): (1, 1, "outcome unknown; the run waits for somebody's word"),
}
ROWS = {"tool.before_send": 8, "tool.working": 9, "tool.before_commit": 10}


@pytest.mark.parametrize(("point", "tool"), AFTER_CRASH)
async def test_a_call_that_a_crash_left_open_is_settled_by_its_class(
    home: Path, lines: list[Line], tools: Tools, point: str, tool: str
) -> None:
    row, run_id = ROWS[point], f"r{ROWS[point]}-{tool}"
    sent, effects, outcome = AFTER_CRASH[point, tool]
    async with site(home, tools=tools.address) as place, asyncio.timeout(30):  # rows 8, 9 and 10
        daemon = await place.start(f"{point}=kill,run={run_id}")
        async with place.client() as client:
            async with following(client, f'/tool {tool} {{"ms": 30}} /next /say done', run_id) as follower:
                (await daemon.dead()).assert_killed_at(point)
                last = place.remains().kinds(run_id)[-1]
                assert last == "tool_started"
                await place.start()
                await follower.until("run_waiting" if tool == "payment" else "run_completed")
        check_log(place, follower, run_id)
    assert (tools.ledger.count(run_id, "dispatch"), tools.ledger.count(run_id, "effect")) == (sent, effects)
    events = follower.events
    assert len({each.key for each in only(events, "tool_started")}) == 1
    if tool == "payment":
        assert [each.attempt for each in only(events, "tool_started")] == [1]
        assert len(only(events, "tool_outcome_unknown")) == 1
    elif tool == "queryable" and point != "tool.before_send":
        assert [each.attempt for each in only(events, "tool_started")] == [1]
        assert only(events, "tool_resolved")[0].result.parts[0].text.text == "effect 1"
    else:
        assert [each.attempt for each in only(events, "tool_started")] == [1, 2]
    lines.append(Line(row, point, tool, "running", last, outcome, sent, effects))


async def test_results_that_were_there_are_kept_and_only_open_calls_are_made_again(
    home: Path, lines: list[Line], tools: Tools
) -> None:
    run_id = "r11"
    async with site(home, tools=tools.address) as place, asyncio.timeout(30):  # row 11
        daemon = await place.start()
        async with place.client() as client:
            calls = " ".join(
                f'/tool idempotent {{"n": {number}, "ms": {ms}}}' for number, ms in enumerate([1, 1, 600, 600, 600])
            )
            async with following(client, f"{calls} /next /say done", run_id) as follower:
                await follower.until("tool_completed", 2)
                assert (await daemon.kill()).code == -signal.SIGKILL
                stored = place.remains().events(run_id)
                finished = {each.call_id for each in only(stored, "tool_completed")}
                assert len(finished) == 2
                await place.start()
                await follower.until("run_completed")
            check_pairs((await client.runs.get(run_id)).messages)
        check_log(place, follower, run_id)
    started = [each.call_id for each in only(follower.events, "tool_started")]
    assert all(started.count(call_id) == 1 for call_id in finished)
    assert len(only(follower.events, "tool_completed")) == 5
    assert tools.ledger.count(run_id, "effect") == 5
    outcome = "2 results kept, 3 calls finished, none of 5 twice"
    lines.append(Line(11, "SIGKILL, 2 of 5 calls done", "idempotent", "running", "tool_completed", outcome, -1, 5))


@pytest.mark.parametrize("commit", range(4))
async def test_a_watcher_that_was_not_told_of_a_commit_gets_it_once_after_the_restart(
    home: Path, lines: list[Line], commit: int
) -> None:
    async with site(home) as place, asyncio.timeout(30):  # row 12
        daemon = await place.start(f"publish.before=kill,after:{commit}")
        async with place.client() as client, following(client, "/say all told", "r12") as follower:
            if (dead := await ended_or_killed(daemon.process, follower, "run_completed")) is not None:
                assert dead == -signal.SIGKILL
                (await daemon.dead()).assert_killed_at("publish.before")
                stored = place.remains().kinds("r12")
                seen = len(follower.events)
                assert seen < len(stored)
                await place.start()
                await follower.until("run_completed")
        assert [event.sequence for event in follower.events] == list(range(1, len(follower.events) + 1))
        assert kinds(follower.events)[-1] == "run_completed"
        check_log(place, follower, "r12")
    if dead is not None:
        outcome = "the watcher resumes and gets each event once, the end included"
        lines.append(Line(12, "publish.before", "", f"commit {commit + 1}", stored[-1], outcome))


async def ended_or_killed(process: asyncio.subprocess.Process, follower: Follower, end: str) -> int | None:
    """Wait until the daemon is dead (its exit code) or the run has ended (None)."""
    async with asyncio.timeout(40):
        while process.returncode is None and not follower.count(end):
            await asyncio.sleep(0.005)
        return None if follower.count(end) else await process.wait()


CANCELLED = {
    "idempotent": "left in doubt",
    "queryable": "the server is asked, and its result is taken",
    "payment": "left in doubt",
}


@pytest.mark.parametrize("tool", CANCELLED)
@pytest.mark.parametrize("point", ["tool.before_commit", "SIGKILL after the cancel"])
async def test_a_cancelled_run_ends_cancelled_after_a_crash_and_sends_nothing_more(
    home: Path, lines: list[Line], tools: Tools, tool: str, point: str
) -> None:
    is_named = not point.startswith("SIGKILL")
    run_id = f"r13-{'point' if is_named else 'kill'}-{tool}"
    # The grace counts on over the restart; only who is to be asked must be asked within it.
    grace_seconds = 20.0 if tool == "queryable" else 2.0
    async with site(home, tools=tools.address, grace_seconds=grace_seconds) as place, asyncio.timeout(50):  # row 13
        daemon = await place.start(f"{point}=kill,run={run_id}" if is_named else "")
        async with place.client() as client:
            said = f'/tool {tool} {{"ms": {400 if is_named else 30000}, "stubborn": true}}'
            async with following(client, said, run_id) as follower:
                await follower.until("progress")
                await client.runs.cancel(run_id)
                dead = await daemon.dead() if is_named else await daemon.kill()
                if is_named:
                    dead.assert_killed_at(point)
                last = place.remains().kinds(run_id)[-1]
                assert last == "run_cancel_requested"
                await place.start()
                await follower.until("run_cancelled")
        check_log(place, follower, run_id)
    events = follower.events
    sent, effects = tools.ledger.count(run_id, "dispatch"), tools.ledger.count(run_id, "effect")
    assert (sent, effects) == (1, 1)
    after_cancel = kinds(events)[kinds(events).index("run_cancel_requested") :]
    assert not {"tool_started", "model_requested"} & set(after_cancel)
    (end,) = only(events, "run_cancelled")
    assert [receipt.in_doubt for receipt in end.receipts] == ([] if tool == "queryable" else [True])
    lines.append(Line(13, point, tool, "cancelling", last, f"cancelled; {CANCELLED[tool]}", sent, effects))


async def test_a_pure_call_is_dropped_by_the_cancel_and_a_crash_changes_nothing(
    home: Path, lines: list[Line], tools: Tools
) -> None:
    run_id = "r13-pure"
    async with site(home, tools=tools.address) as place, asyncio.timeout(30):  # row 13
        daemon = await place.start()
        async with place.client() as client:
            async with following(client, '/tool pure {"ms": 30000}', run_id) as follower:
                await follower.until("progress")
                await client.runs.cancel(run_id)
                assert (await daemon.kill()).code == -signal.SIGKILL
                last = place.remains().kinds(run_id)[-1]
                await place.start()
                await follower.until("run_cancelled")
        check_log(place, follower, run_id)
    assert last == "run_cancelled"
    sent, effects = tools.ledger.count(run_id, "dispatch"), tools.ledger.count(run_id, "effect")
    lines.append(Line(13, "SIGKILL after the cancel", "pure", "cancelled", last, "stays cancelled", sent, effects))


BYSTANDERS = 50


async def test_a_run_that_kills_the_daemon_each_time_is_condemned_and_no_other(home: Path, lines: list[Line]) -> None:
    async with site(home) as place, asyncio.timeout(55):  # row 14
        points = "model.before_send=kill,run=r14-killer"
        daemon = await place.start(points)
        async with place.client() as client:
            async with asyncio.TaskGroup() as tasks:
                for number in range(BYSTANDERS):
                    said = "/delay 60 /say b c d e f"
                    tasks.create_task(client.run(said, run_id=f"r14-bystander-{number:02}"))
            async with following(client, "/say bang", "r14-killer") as killer:
                (await daemon.dead()).assert_killed_at("model.before_send")
                opened = [place.remains().kinds(f"r14-bystander-{number:02}")[-1] for number in range(BYSTANDERS)]
                assert opened == ["model_requested"] * BYSTANDERS
                deaths = 1
                while await is_killed_again(place, points, killer):
                    deaths += 1
            assert deaths == 3
            (failed,) = only(killer.events, "run_failed")
            assert "RUN_RECOVERY_LIMIT" in str(failed.error)
            for number in range(BYSTANDERS):
                output = await client.watch(f"r14-bystander-{number:02}").result()
                assert output.text == "b c d e f"
    outcome = f"the third recovery fails it, RUN_RECOVERY_LIMIT; {BYSTANDERS} others complete"
    lines.append(Line(14, "model.before_send", "", "each time", "model_requested", outcome))


async def is_killed_again(place: Site, points: str, follower: Follower) -> bool:
    """Start a daemon; whether it dies, or else the run fails."""
    try:
        daemon = await place.start(points)
    except Unready as died:
        assert died.code == -signal.SIGKILL
        return True
    return await ended_or_killed(daemon.process, follower, "run_failed") is not None


@pytest.mark.parametrize("restarts", [5, pytest.param(100, marks=pytest.mark.proof)])
async def test_recovery_that_is_killed_again_and_again_comes_to_the_same(
    home: Path, lines: list[Line], restarts: int
) -> None:
    patience = replace(PATIENCE, watch_seconds=30.0 + 3 * restarts)
    async with site(home) as place, asyncio.timeout(patience.watch_seconds):  # row 15
        daemon = await place.start()
        async with place.client(patience) as client, following(client, "/delay 20 /say here it is", "r15") as follower:
            await follower.until("delta")
            await daemon.kill()
            before = place.remains().events("r15")
            for _ in range(restarts):
                (await place.start_to_die("recover.mid=kill,run=r15")).assert_killed_at("recover.mid")
                assert place.remains().events("r15") == before
            await place.start()
            await follower.until("run_completed")
        assert [each.attempt for each in only(follower.events, "model_requested")] == [1, 2]
        assert kinds(follower.events).count("run_claimed") == 2
    outcome = "nothing is written before the claim; the next start recovers"
    lines.append(Line(15, "recover.mid", "", "recovering", kind_of(before[-1]), outcome))


def test_the_table_in_the_docs_is_what_was_found(lines: list[Line]) -> None:  # N09
    if len(set(lines)) < EXPECTED_LINES:
        pytest.skip("only a part of the matrix was run")
    found = table(lines)
    if os.environ.get("BEHEST_WRITE_TABLE"):
        PLACE.write_text(found)
    assert PLACE.read_text() == found


async def test_the_state_of_a_waiting_payment_is_told(home: Path, tools: Tools) -> None:  # N02 N07
    async with site(home, tools=tools.address) as place, asyncio.timeout(30):
        daemon = await place.start("tool.working=kill,run=n2")
        async with place.client() as client:
            async with following(client, "/tool payment {}", "n2") as follower:
                (await daemon.dead()).assert_killed_at("tool.working")
                await place.start()
                await follower.until("run_waiting")
            run = await client.runs.get("n2")
            obstacles = (await client.runs.explain("n2")).obstacles
    assert run.state == RunState.RUN_STATE_WAITING
    assert [obstacle.kind for obstacle in obstacles] == ["outcome_unknown"]
