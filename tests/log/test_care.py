"""Every store takes runs that ended elsewhere, finds those that ended long ago, and lets go of what nobody needs."""

from __future__ import annotations

from behestd.log.store import (
    Change,
    Claim,
    Committed,
    DeleteRun,
    DeleteSession,
    Import,
    Lost,
    RecordChanged,
    RecordIs,
    Store,
)
from tests.log.items import NAMESPACE, Script, entry, put

DEFINITION = (b"hash", b"definition")


async def ended(store: Store, name: str, end_time_ns: int, session_id: str = "session_1") -> None:
    run = Script(name, session_id, create_time_ns=end_time_ns - 1)
    await store.write([run.append(2, definition=DEFINITION, claim=Claim(NAMESPACE, f"r-{name}", b"d", name))])
    await store.write([run.append(is_ended=True, end_time_ns=end_time_ns)])


async def found(store: Store, before_ns: int, limit: int = 10, after: tuple[int, str] = (0, "")) -> list[str]:
    return [row.run_id for row in await store.ended(NAMESPACE, before_ns, limit, after)]


async def test_runs_that_ended_are_found_by_their_end_and_only_while_their_log_is_there(store: Store) -> None:
    for name, end_time_ns in (("c", 30), ("a", 10), ("b", 20), ("d", 20)):
        await ended(store, name, end_time_ns)
    await store.write([Script("going").append(2)])

    assert await found(store, 30) == ["a", "b", "d"]
    assert await found(store, 31, limit=2) == ["a", "b"]
    assert await found(store, 31, after=(20, "b")) == ["d", "c"]
    assert await store.ended("other", 100, 10) == []
    await store.write([DeleteRun(NAMESPACE, "b")])
    assert await found(store, 100) == ["a", "d", "c"]
    row = await store.run(NAMESPACE, "b")
    assert row is not None
    assert (row.end_time_ns, row.first_sequence, row.last_sequence) == (20, 4, 3)
    of_session = await store.runs_of(NAMESPACE, "session_1", 10)
    assert [row.run_id for row in of_session] == ["a", "b", "d", "c", "going"]
    assert [row.run_id for row in await store.runs_of(NAMESPACE, "session_1", 2, (19, "b"))] == ["d", "c"]


async def test_a_request_id_stays_with_the_tombstone_unless_it_is_freed(store: Store) -> None:
    await ended(store, "a", 10)
    await ended(store, "b", 10)
    await store.write([DeleteRun(NAMESPACE, "a"), DeleteRun(NAMESPACE, "b", frees_request=True, is_leisurely=True)])
    assert await store.request(NAMESPACE, "r-a") is not None
    assert await store.request(NAMESPACE, "r-b") is None
    await store.write([DeleteRun(NAMESPACE, "a", frees_request=True)])
    assert await store.request(NAMESPACE, "r-a") is None


async def test_a_definition_goes_with_the_last_run_that_is_pinned_to_it(store: Store) -> None:  # S22
    for name, session in (("a", "s1"), ("b", "s2"), ("c", "s3")):
        await ended(store, name, 10, session)
    await store.write([DeleteRun(NAMESPACE, "a"), DeleteSession(NAMESPACE, "s2")])
    assert await store.definition(b"hash") == b"definition"
    again = Script("d", "s4")
    outcomes = await store.write([DeleteSession(NAMESPACE, "s3"), again.append(definition=DEFINITION)])
    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    assert await store.definition(b"hash") == b"definition", "deleted and written again in one batch"
    await store.write([again.append(is_ended=True)])
    await store.write([DeleteSession(NAMESPACE, "s4")])
    assert await store.definition(b"hash") is None
    more = Script("e", "s5")
    await store.write([more.append(definition=DEFINITION)])
    assert await store.definition(b"hash") == b"definition", "what is gone is written again"


def elsewhere(name: str) -> Import:
    """A run of three events in two commits, as another store had it."""
    run = Script(name)
    first, last = run.append(2), run.append(is_ended=True, end_time_ns=7)
    return Import(last.row, (first.chunk, last.chunk), (entry(f"m-{name}", 1, run_id=name),), DEFINITION)


async def test_a_run_that_ended_elsewhere_comes_whole_and_in_its_place(store: Store) -> None:  # C110
    here = Script("here")
    item = elsewhere("there")
    outcomes = await store.write([here.append(), item, here.append()])

    assert outcomes == [Committed(1), Committed(3), Committed(4)]
    chunks = await store.chunks(NAMESPACE, "there", 0, 1 << 20)
    assert [(chunk.first_sequence, chunk.last_sequence, chunk.position) for chunk in chunks] == [(1, 2, 2), (3, 3, 3)]
    assert [tail.chunk.position for tail in await store.tail(NAMESPACE, 0, 1 << 20)] == [1, 2, 3, 4]
    assert await store.run(NAMESPACE, "there") == item.row
    assert await store.entry(NAMESPACE, "message", "m-there") == item.entries[0]
    assert await store.definition(b"hash") == b"definition"
    assert await store.check() == []
    assert await store.write([elsewhere("there")]) == [Lost(1, 3)]
    await store.write([DeleteRun(NAMESPACE, "there")])
    assert await store.definition(b"hash") is None


async def test_a_tombstone_comes_without_a_log_and_an_import_needs_its_session(store: Store) -> None:  # C110
    row = elsewhere("there").row
    guard = RecordIs(NAMESPACE, "session", "session_1", 1)
    assert await store.write([Import(row, (), guards=(guard,))]) == [RecordChanged("session", "session_1", 0)]
    await store.write([Change(puts=(put("session_1", kind="session"),))])
    outcomes = await store.write([Import(row, (), guards=(guard,))])
    assert isinstance(outcomes[0], Committed)
    assert await store.run(NAMESPACE, "there") == row
    assert await store.last_session_index(NAMESPACE, "session_1") == 1
