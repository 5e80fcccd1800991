"""The log over a store: grouped commits, live tails, waiters, and what happens when a commit is unknown."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from behestd import errors
from behestd.log import log as log_module
from behestd.log.log import Log
from behestd.log.memory import MemoryStore
from behestd.log.sqlite import SqliteStore
from behestd.log.store import (
    Change,
    Claim,
    Committed,
    CommitUnknown,
    DeleteRun,
    DeleteSession,
    Full,
    Item,
    Lost,
    Outcome,
    Store,
)
from behestd.log.tail import TAIL_BYTES, Page
from tests.log.items import NAMESPACE, Script, put, sequences


@asynccontextmanager
async def running(store: Store) -> AsyncIterator[Log]:
    """Run a log over a store until the block ends."""
    log = await Log.open(store)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        group.create_task(log.run())
        yield log
        log.close()


class HeldStore(MemoryStore):
    """A store whose commits wait to be let through, and may be told to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Sequence[Item]] = []
        self.gate = asyncio.Semaphore(0)
        self.asked = asyncio.Event()
        self.answer: list[Outcome] | CommitUnknown | None = None

    async def write(self, batch: Sequence[Item]) -> list[Outcome]:
        self.batches.append(batch)
        self.asked.set()
        await self.gate.acquire()
        if isinstance(self.answer, CommitUnknown):
            raise self.answer
        return self.answer or await super().write(batch)


# --- commits ---


async def test_concurrent_commits_share_few_transactions(store: Store) -> None:
    async with running(store) as log:
        before = store.statistics().commits
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(log.commit(Script(f"run_{n}", f"s_{n}").append())) for n in range(200)]
        assert [type(task.result()) for task in tasks] == [Committed] * 200
        assert store.statistics().commits - before <= 3
    assert log.statistics().largest_batch >= 100


async def test_what_arrives_during_a_commit_is_the_next_batch_and_batches_are_bounded() -> None:
    store = HeldStore()
    async with running(store) as log, asyncio.TaskGroup() as group:
        group.create_task(log.commit(Script("first").append()))
        await store.asked.wait()
        for number in range(9):
            group.create_task(log.commit(Script(f"run_{number}").append(100)))
        big = Script("big").append(padding=log_module.BATCH_BYTES)
        group.create_task(log.commit(big))
        group.create_task(log.commit(Script("last").append()))
        for _ in range(5):
            store.gate.release()
    sizes = [[item.row.run_id for item in batch] for batch in store.batches]  # type: ignore[union-attr]
    assert sizes == [["first"], [f"run_{n}" for n in range(6)], ["run_6", "run_7", "run_8", "big"], ["last"]]


async def test_nothing_is_seen_before_the_commit_and_then_watchers_come_before_the_caller() -> None:
    store = HeldStore()
    told: list[str] = []

    async def watch(log: Log, run: Script) -> None:
        tail = await log.tail(NAMESPACE, run.run_id)
        assert tail.head == 1
        told.append("waiting")
        await tail.wait()
        told.append(f"watcher {tail.head}")

    async def follow(log: Log) -> None:
        position = log.position
        await log.changes.wait()
        told.append(f"follower {log.position - position}")

    async def append(log: Log, run: Script) -> None:
        await log.commit(run.append())
        told.append("caller")

    async with running(store) as log, asyncio.TaskGroup() as group:
        store.gate.release()
        run = Script()
        await log.commit(run.append())
        group.create_task(watch(log, run))
        group.create_task(follow(log))
        store.asked.clear()
        group.create_task(append(log, run))
        await store.asked.wait()
        assert (told, (await log.tail(NAMESPACE, "run_1")).head) == (["waiting"], 1)
        store.gate.release()
    assert told == ["waiting", "watcher 2", "follower 1", "caller"]


async def test_outcomes_reach_their_own_callers(store: Store) -> None:
    async with running(store) as log, asyncio.TaskGroup() as group:
        rivals = [group.create_task(log.commit(Script().append())) for _ in range(20)]
        change = group.create_task(log.commit(Change(puts=(put("a"),))))
    assert [task.result() for task in rivals] == [Committed(1)] + [Lost(1, 1)] * 19
    assert change.result() == Committed(0, (1,))


async def test_a_full_disk_is_an_outcome() -> None:
    store = HeldStore()
    store.answer = [Full()]
    store.gate.release()
    async with running(store) as log:
        assert await log.commit(Script().append()) == Full()
        assert log.statistics().live_tails == 0


async def test_a_caller_that_goes_away_does_not_take_its_commit_along() -> None:
    store = HeldStore()
    async with running(store) as log:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(log.commit(Script().append()))
            await store.asked.wait()
            task.cancel()
        store.gate.release()
        store.gate.release()
        assert await log.commit(Script().attempt()) == Lost(1, 1)


@pytest.mark.parametrize(
    "broken",
    [
        Script(last=3, epoch=1).append(last_sequence=9),
        Script(epoch=3).append(epoch=2),
    ],
)
async def test_an_append_that_would_break_its_log_is_refused_alone(broken: Item) -> None:
    async with running(MemoryStore()) as log:
        with pytest.raises(ValueError):
            await log.commit(broken)
        assert await log.commit(Script().append()) == Committed(1)


@pytest.mark.parametrize(
    "item",
    [
        Script("nul\0").append(),
        Change(puts=(put("nul\0"),)),
        Change(puts=(put("late", expire_time_ns=1 << 63),)),
        Change(claim=Claim(NAMESPACE, "\0", b"", "")),
    ],
)
async def test_names_and_times_that_no_store_can_hold_are_refused(item: Item) -> None:
    async with running(MemoryStore()) as log:
        with pytest.raises(errors.InvalidRequest):
            await log.commit(item)


async def test_an_unknown_commit_fails_everything_that_is_pending_and_ends_the_log() -> None:
    store = HeldStore()
    store.answer = CommitUnknown("disk")
    log = await Log.open(store)
    results: list[str] = []

    async def commit(number: int) -> None:
        try:
            await log.commit(Script(f"run_{number}").append())
        except errors.StorageFailed as error:
            results.append(error.reason)

    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.TaskGroup() as group:
            group.create_task(commit(0))
            await asyncio.sleep(0)
            async with asyncio.TaskGroup() as others:
                group.create_task(log.run())
                await store.asked.wait()
                others.create_task(commit(1))
                await asyncio.sleep(0)
                store.gate.release()
    assert raised.group_contains(CommitUnknown)
    assert results == ["STORAGE_FAILED", "STORAGE_FAILED"]
    with pytest.raises(errors.StorageFailed):
        await log.commit(Script().append())
    assert store.gate.locked(), "nothing more was written"


async def test_closing_commits_what_is_queued_and_takes_no_more() -> None:
    log = await Log.open(MemoryStore())
    async with asyncio.TaskGroup() as group:
        queued = group.create_task(log.commit(Script().append()))
        await asyncio.sleep(0)
        log.close()
        group.create_task(log.run())
    assert queued.result() == Committed(1)
    with pytest.raises(errors.StorageFailed):
        await log.commit(Script("run_2").append())


# --- tails ---


async def test_a_watcher_that_keeps_up_reads_nothing_from_the_store(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path, ballast_bytes=0)
    async with running(store) as log:
        before = store.statistics().reads
        run = Script()
        await log.commit(run.append(2))
        tail = await log.tail(NAMESPACE, "run_1")
        first = tail.read(0)
        await log.commit(run.append(is_ended=True))
        again = await log.tail(NAMESPACE, "run_1")
        assert again is tail
        second = tail.read(2)
        assert first is not None
        assert second is not None
        assert (sequences(first.data), first.last_sequence) == ([1, 2], 2)
        assert (sequences(second.data), second.last_sequence, tail.is_ended) == ([3], 3, True)
        assert tail.read(3) == Page(b"", 3)
        assert sequences(tail.read(1).data) == [2, 3]  # type: ignore[union-attr]
        assert store.statistics().reads == before
    await store.close()


async def test_a_watcher_far_behind_reads_the_store_until_memory_has_the_rest(store: Store) -> None:  # C085 C086
    async with running(store) as log:
        run = Script()
        for _ in range(40):
            await log.commit(run.append(3, padding=8_000))
        tail = await log.tail(NAMESPACE, "run_1")
        assert tail.memory_bytes <= TAIL_BYTES
        for after in (0, 1, 50, 119):
            seen, cursor, reads = [], after, 0
            while cursor < tail.head:
                page = tail.read(cursor)
                if page is None:
                    page = await tail.read_from(store, cursor, 100_000)
                    reads += 1
                seen += sequences(page.data)
                cursor = page.last_sequence
            assert seen == list(range(after + 1, 121))
            assert reads < 10


async def test_a_run_that_only_the_store_knows_is_watched_and_then_kept_up_to_date(store: Store) -> None:
    run, ended = Script(), Script("run_2")
    await store.write([run.append(5), ended.append(2, is_ended=True)])
    async with running(store) as log:
        tail = await log.tail(NAMESPACE, "run_1")
        assert (tail.head, tail.is_ended, tail.oldest, tail.read(0)) == (5, False, 1, None)
        assert sequences((await tail.read_from(store, 3)).data) == [4, 5]
        await log.commit(run.append(2))
        assert (tail.head, sequences(tail.read(5).data)) == (7, [6, 7])  # type: ignore[union-attr]
        assert await log.tail(NAMESPACE, "run_1") is tail
        late = await log.tail(NAMESPACE, "run_2")
        assert (late.head, late.is_ended) == (2, True)
        with pytest.raises(errors.RunNotFound):
            await log.tail("other", "run_1")


async def test_a_commit_during_the_lookup_of_a_tail_is_not_missed(tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path, ballast_bytes=0)
    run = Script()
    await store.write([run.append()])
    async with running(store) as log:
        for _ in range(15):
            async with asyncio.TaskGroup() as group:
                commit = group.create_task(log.commit(run.append()))
                lookups = [group.create_task(log.tail(NAMESPACE, "run_1")) for _ in range(3)]
            await commit
            assert {lookup.result().head for lookup in lookups} == {run.last}
            del lookups
            log._tails.live.clear()
            gc.collect()
    await store.close()


async def test_cursors_below_the_oldest_event_and_above_the_head_are_refused(store: Store) -> None:
    async with running(store) as log:
        run = Script()
        await log.commit(run.append(3, is_ended=True))
        tail = await log.tail(NAMESPACE, "run_1")
        for after in (0, 3):
            tail.check(after)
        with pytest.raises(errors.WatchAhead) as ahead:
            tail.check(4)
        assert ahead.value.metadata == {"headSequence": "3"}
        await log.commit(DeleteRun(NAMESPACE, "run_1"))
        for found in (tail, await log.tail(NAMESPACE, "run_1")):
            found.check(3)
            with pytest.raises(errors.WatchCompacted) as compacted:
                found.check(2)
            assert compacted.value.metadata == {"oldestSequence": "4"}
            with pytest.raises(errors.WatchCompacted):
                await found.read_from(store, 0)


async def test_the_tails_of_a_deleted_session_are_forgotten(store: Store) -> None:
    async with running(store) as log:
        run = Script()
        await log.commit(run.append(is_ended=True))
        watched = await log.tail(NAMESPACE, "run_1")
        await log.commit(DeleteSession(NAMESPACE, "session_1"))
        assert watched.memory_bytes == 0
        with pytest.raises(errors.RunNotFound):
            await log.tail(NAMESPACE, "run_1")
        await log.commit(Script().append(2))
        assert (await log.tail(NAMESPACE, "run_1")).head == 2


async def test_memory_holds_live_runs_and_a_bounded_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "RECENT_TAILS", 10)
    async with running(MemoryStore()) as log:
        watched = None
        for number in range(50):
            run = Script(f"run_{number}")
            await log.commit(run.append())
            watched = watched or await log.tail(NAMESPACE, run.run_id)
            await log.commit(run.append(is_ended=True))
        await log.commit(Script("live").append())
        counts = log.statistics()
        assert (counts.live_tails, counts.recent_tails, counts.watched_tails) == (1, 10, 12)
        monkeypatch.setattr(log_module, "RECENT_BYTES", 0)
        run = Script("last")
        await log.commit(run.append(is_ended=True))
        del watched
        counts = log.statistics()
        assert (counts.live_tails, counts.recent_tails, counts.watched_tails) == (1, 0, 1)
        assert counts.tail_bytes == log.live_tail(NAMESPACE, "live").memory_bytes  # type: ignore[union-attr]


async def test_a_pulse_wakes_watchers_without_a_commit_and_a_wait_can_end_by_time() -> None:
    async with running(MemoryStore()) as log:
        await log.commit(Script().append())
        tail = await log.tail(NAMESPACE, "run_1")
        async with asyncio.TaskGroup() as group:
            waits = [group.create_task(tail.wait(5)) for _ in range(3)]
            gone = group.create_task(tail.wait())
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.sleep(0)
            assert len(tail.waiters) == 3, "a cancelled one leaves nothing behind and harms no other"
            tail.pulse()
        assert [wait.result() for wait in waits] == [True] * 3
        assert await tail.wait(0.001) is False
        assert len(tail.waiters) == 0


async def test_a_hundred_watchers_of_fifty_live_runs_see_every_event_once(store: Store) -> None:  # C084 C085
    async def produce(log: Log, run: Script) -> None:
        for step in range(20):
            assert isinstance(await log.commit(run.append(1 + step % 3, is_ended=step == 19)), Committed)

    async def watch(log: Log, run_id: str, after: int) -> list[int]:
        tail = await log.tail(NAMESPACE, run_id)
        seen: list[int] = []
        cursor = min(after, tail.head)
        while not (tail.is_ended and cursor == tail.head):
            if cursor == tail.head:
                assert await tail.wait(5)
            page = tail.read(cursor) or await tail.read_from(store, cursor)
            seen += sequences(page.data)
            cursor = page.last_sequence
        return seen

    async with running(store) as log:
        runs = [Script(f"run_{n}", f"s_{n}") for n in range(50)]
        for run in runs:
            await log.commit(run.append())
        async with asyncio.TaskGroup() as group:
            watchers = [group.create_task(watch(log, run.run_id, after)) for run in runs for after in (0, 1)]
            for run in runs:
                group.create_task(produce(log, run))
        for number, watcher in enumerate(watchers):
            assert watcher.result() == list(range(1 + number % 2, runs[number // 2].last + 1))
    assert await store.check() == []
