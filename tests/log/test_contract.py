"""What every store promises, run on each. A new store joins by one line in conftest."""

from __future__ import annotations

import pytest

from behest.v1 import run_state_pb2
from behestd.log.store import (
    Change,
    Claim,
    Committed,
    Delete,
    DeleteRun,
    DeleteSession,
    Fenced,
    Item,
    Lost,
    Outcome,
    RecordChanged,
    RecordIs,
    RequestTaken,
    RunQuery,
    SessionIsFree,
    SessionTaken,
    Store,
)
from tests.log.items import NAMESPACE, Script, entry, put, sequences

MANY = 1 << 30

NEWEST = [("a", "", 9), ("b", "p", 5), ("c", "", 7), ("d", "p", 7)]


async def one(store: Store, item: Item) -> Outcome:
    """Write a batch of one."""
    return (await store.write([item]))[0]


# --- appends ---


async def test_an_append_stores_the_chunk_and_the_row(store: Store) -> None:  # C083
    run = Script()
    first, second = run.append(2), run.append(1)
    outcomes = await store.write([first, second])
    assert [type(outcome) for outcome in outcomes] == [Committed, Committed]
    chunks = await store.chunks(NAMESPACE, "run_1", 0, MANY)
    assert [chunk.data for chunk in chunks] == [first.chunk.data, second.chunk.data]
    assert [(chunk.first_sequence, chunk.last_sequence) for chunk in chunks] == [(1, 2), (3, 3)]
    assert [chunk.position for chunk in chunks] == [outcome.position for outcome in outcomes]  # type: ignore[union-attr]
    assert await store.run(NAMESPACE, "run_1") == second.row
    assert await store.check() == []


async def test_one_of_two_appends_at_the_same_place_wins_and_the_loser_learns_where_the_run_is(store: Store) -> None:
    run = Script()
    await one(store, run.append())
    rival, winner = run.attempt(2), run.append()
    assert await store.write([winner, rival]) == [Committed(2), Lost(1, 2)]
    assert (await store.run(NAMESPACE, "run_1")) == winner.row
    assert len(await store.chunks(NAMESPACE, "run_1", 0, MANY)) == 2


async def test_an_append_of_an_older_epoch_is_fenced(store: Store) -> None:
    run = Script()
    await one(store, run.append())
    zombie = run.attempt()
    await one(store, run.append(epoch=2))
    assert await one(store, zombie) == Fenced(2)
    assert await one(store, run.append()) == Committed(3)


async def test_creating_a_run_that_exists_and_appending_to_one_that_does_not_are_lost(store: Store) -> None:
    run = Script()
    await one(store, run.append(2))
    assert await one(store, Script().attempt()) == Lost(1, 2)
    missing = Script("run_2", epoch=1, last=4)
    assert await one(store, missing.attempt()) == Lost(0, 0)


async def test_the_same_run_id_in_another_namespace_is_another_run(store: Store) -> None:
    await one(store, Script().append())
    assert isinstance(await one(store, Script(namespace="other").append()), Committed)
    assert len(await store.tail("other", 0, MANY)) == 1


async def test_an_ended_run_takes_no_more_events(store: Store) -> None:
    run = Script()
    await one(store, run.append(is_ended=True))
    assert await one(store, run.attempt()) == Lost(1, 1)


async def test_a_loser_leaves_the_others_of_its_batch_alone_and_outcomes_keep_their_order(store: Store) -> None:
    taken = Script("run_0")
    await one(store, taken.append())
    runs = [Script(f"run_{n}", f"session_{n}") for n in range(1, 100)]
    batch: list[Item] = []
    for number, run in enumerate(runs):
        batch.append(run.append(entries=(entry(f"m{number}", number),)))
        if number % 10 == 0:
            batch.append(Script("run_0").attempt(entries=(entry(f"lost{number}", number),)))
    outcomes = await store.write(batch)
    assert [type(outcome) for outcome in outcomes] == [
        Lost if item.row.run_id == "run_0" else Committed  # type: ignore[union-attr]
        for item in batch
    ]
    positions = [outcome.position for outcome in outcomes if isinstance(outcome, Committed)]
    assert positions == list(range(2, 101))
    assert len(await store.unended(1000)) == 100
    assert await store.entry(NAMESPACE, "message", "lost0") is None
    assert await store.check() == []


async def test_two_appends_of_a_run_in_one_batch_build_on_each_other(store: Store) -> None:
    run = Script()
    item = run.append()
    later, stale = run.append(3), run.attempt()
    again = run.append()
    outcomes = await store.write([item, later, stale, again])
    assert [type(outcome) for outcome in outcomes] == [Committed, Committed, Committed, Lost]
    assert (await store.run(NAMESPACE, "run_1")).last_sequence == 5  # type: ignore[union-attr]


async def test_a_definition_is_kept_once(store: Store) -> None:
    await store.write(
        [Script("a").append(definition=(b"hash", b"bytes")), Script("b").append(definition=(b"hash", b"no"))]
    )
    await one(store, Script("c").append(definition=(b"hash", b"no")))
    assert await store.definition(b"hash") == b"bytes"
    assert await store.definition(b"other") is None


# --- request ids, guards, records ---


async def test_a_request_id_is_taken_once_and_is_looked_up_before_the_run_id(store: Store) -> None:  # C058
    claim = Claim(NAMESPACE, "request", b"digest", "run_1")
    assert isinstance(await one(store, Script().append(claim=claim)), Committed)
    other = Claim(NAMESPACE, "request", b"another", "run_2")
    taken = RequestTaken("run_1", b"digest")
    assert await store.write([Script().append(claim=claim), Script("run_2").append(claim=other)]) == [taken, taken]
    assert await one(store, Change(claim=other)) == taken
    assert await store.request(NAMESPACE, "request") == claim
    assert await store.request("other", "request") is None
    assert await store.run(NAMESPACE, "run_2") is None


async def test_two_claims_of_a_request_id_in_one_batch_make_one_run(store: Store) -> None:
    claims = [Claim(NAMESPACE, "request", b"digest", f"run_{n}") for n in range(50)]
    outcomes = await store.write([Script(claim.target).append(claim=claim) for claim in claims])
    assert outcomes[0] == Committed(1)
    assert outcomes[1:] == [RequestTaken("run_0", b"digest")] * 49


async def test_the_session_gate_lets_one_run_in(store: Store) -> None:  # C062
    guard = SessionIsFree("session_1")
    first, second = Script("run_1"), Script("run_2")
    assert await store.write([first.append(guards=(guard,)), second.attempt(guards=(guard,))]) == [
        Committed(1),
        SessionTaken("run_1"),
    ]
    assert isinstance(await one(store, first.append(guards=(guard,))), Committed), (
        "its own run does not stand in the way"
    )
    assert await one(store, second.attempt(guards=(guard,))) == SessionTaken("run_1")
    elsewhere = Script("run_3", namespace="other").append(guards=(guard,))
    assert isinstance(await one(store, elsewhere), Committed)
    ended = first.append(is_ended=True)
    outcomes = await store.write([ended, second.append(guards=(guard,))])
    assert [type(outcome) for outcome in outcomes] == [Committed, Committed]
    change = Change(puts=(put("a"),), guards=(guard,))
    assert await one(store, change) == SessionTaken("run_2")
    assert await store.record(NAMESPACE, "agent", "a", 0) is None


async def test_a_guard_on_a_record_checks_that_it_is_there_in_that_version(store: Store) -> None:
    guard = RecordIs(NAMESPACE, "session", "session_1")
    assert await one(store, Script().append(guards=(guard,))) == RecordChanged("session", "session_1", 0)
    await one(store, Change(puts=(put("session_1", kind="session"),)))
    assert isinstance(await one(store, Script().append(guards=(guard,))), Committed)
    stale = RecordIs(NAMESPACE, "session", "session_1", 2)
    assert await one(store, Script("run_2").append(guards=(stale,))) == RecordChanged("session", "session_1", 1)


async def test_puts_count_versions_and_keep_the_create_time(store: Store) -> None:
    assert await one(store, Change(puts=(put("a", 0),))) == Committed(0, (1,))
    assert await one(store, Change(puts=(put("a", 0),))) == RecordChanged("agent", "a", 1)
    assert await one(store, Change(puts=(put("a", 1, body=b"new", create_time_ns=9),))) == Committed(0, (2,))
    assert await one(store, Change(puts=(put("a", 1),))) == RecordChanged("agent", "a", 2)
    assert await one(store, Change(puts=(put("a"), put("a")))) == Committed(0, (3, 4))
    record = await store.record(NAMESPACE, "agent", "a", 0)
    assert record is not None
    assert (record.version, record.create_time_ns, record.body) == (4, 5, b"agent a")


async def test_concurrent_writers_of_one_version_have_one_winner(store: Store) -> None:  # C096
    await one(store, Change(puts=(put("a"),)))
    outcomes = await store.write([Change(puts=(put("a", 1, body=bytes([n])),)) for n in range(20)])
    assert outcomes == [Committed(0, (2,))] + [RecordChanged("agent", "a", 2)] * 19
    assert (await store.record(NAMESPACE, "agent", "a", 0)).body == b"\0"  # type: ignore[union-attr]


async def test_a_change_is_all_or_nothing(store: Store) -> None:
    await one(store, Change(puts=(put("a"),)))
    change = Change(puts=(put("b"), put("a", 7)), deletes=(Delete(NAMESPACE, "agent", "a"),))
    assert await one(store, change) == RecordChanged("agent", "a", 1)
    assert await store.record(NAMESPACE, "agent", "b", 0) is None
    change = Change(puts=(put("b"),), deletes=(Delete(NAMESPACE, "agent", "a", 2),))
    assert await one(store, change) == RecordChanged("agent", "a", 1)
    assert await store.record(NAMESPACE, "agent", "b", 0) is None


async def test_an_append_writes_records_in_the_same_transaction(store: Store) -> None:
    run = Script()
    assert await one(store, run.append(puts=(put("x", 0, kind="session"),))) == Committed(1, (1,))
    refused = run.attempt(puts=(put("x", 0, kind="session"),))
    assert await one(store, refused) == RecordChanged("session", "x", 1)
    assert (await store.run(NAMESPACE, "run_1")).last_sequence == 1  # type: ignore[union-attr]


async def test_deleting_a_record_is_idempotent_and_it_starts_anew_at_version_1(store: Store) -> None:
    delete = Change(deletes=(Delete(NAMESPACE, "agent", "a", 1),))
    await one(store, Change(puts=(put("a"),)))
    assert await store.write([delete, delete]) == [Committed(), Committed()]
    assert await store.record(NAMESPACE, "agent", "a", 0) is None
    assert await one(store, Change(puts=(put("a", 0),))) == Committed(0, (1,))


async def test_an_expired_record_is_not_found_and_does_not_stand_in_the_way(store: Store) -> None:
    await one(store, Change(puts=(put("a", expire_time_ns=100), put("b"))))
    assert await store.record(NAMESPACE, "agent", "a", 99) is not None
    assert await store.record(NAMESPACE, "agent", "a", 100) is None
    assert [record.id for record in await store.records(NAMESPACE, "agent", now_ns=100)] == ["b"]
    assert await one(store, Change(puts=(put("a", 0, create_time_ns=99),))) == RecordChanged("agent", "a", 1)
    assert await one(store, Change(puts=(put("a", 0, create_time_ns=100),))) == Committed(0, (1,))
    assert (await store.record(NAMESPACE, "agent", "a", 100)).create_time_ns == 100  # type: ignore[union-attr]


async def test_records_are_listed_by_id_in_pages_and_by_parent(store: Store) -> None:
    names = ["a", "b", "ä", "c", "😀"]
    await one(store, Change(puts=tuple(put(name, parent="p" if name in "ab" else "") for name in names)))
    await one(store, Change(puts=(put("a", namespace="other"), put("z", kind="server"))))

    async def ids(**filters: object) -> list[str]:
        return [record.id for record in await store.records(NAMESPACE, "agent", **filters)]  # type: ignore[arg-type]

    assert await ids() == ["a", "b", "c", "ä", "😀"]
    assert await ids(limit=2) == ["a", "b"]
    assert await ids(after="b", limit=2) == ["c", "ä"]
    assert await ids(parent="p") == ["a", "b"]
    assert await ids(parent="") == ["c", "ä", "😀"]
    everywhere = await store.records("", "agent", limit=3)
    assert [(record.namespace, record.id) for record in everywhere] == [
        ("default", "a"),
        ("default", "b"),
        ("default", "c"),
    ]


async def test_records_are_listed_newest_first_and_counted(store: Store) -> None:
    puts = [put(name, parent=parent, create_time_ns=time) for name, parent, time in NEWEST]
    await one(store, Change(puts=(*puts, put("z", kind="server"), put("y", namespace="other"))))

    async def ids(parent: str | None = None, before: tuple[int, str] | None = None, limit: int = 9) -> list[str]:
        found = await store.newest_records(NAMESPACE, "agent", parent=parent, before=before, limit=limit)
        return [record.id for record in found]

    assert await ids() == ["a", "d", "c", "b"]
    assert await ids(limit=2) == ["a", "d"]
    assert await ids(before=(7, "d")) == ["c", "b"]
    assert await ids(parent="p") == ["d", "b"]
    assert await store.count_records(NAMESPACE, "agent", "p", 0) == 2
    await one(store, Change(puts=(put("e", parent="p", expire_time_ns=100),)))
    assert await store.count_records(NAMESPACE, "agent", "p", 99) == 3
    assert await store.count_records(NAMESPACE, "agent", "p", 100) == 2


async def test_a_change_writes_entries_that_go_with_their_session(store: Store) -> None:
    said = entry("m1", 1, run_id="")
    await one(store, Change(puts=(put("session_1", kind="session"),), entries=(said, entry("m2", 2, run_id=""))))
    await one(store, Change(puts=(put("a", 9),), entries=(entry("m3", 3, run_id=""),)))
    assert [found.id for found in await store.entries(NAMESPACE, "message", session_id="session_1")] == ["m1", "m2"]
    assert await store.entry(NAMESPACE, "message", "m1") == said
    await one(store, DeleteSession(NAMESPACE, "session_1"))
    assert await store.entries(NAMESPACE, "message", session_id="session_1") == []


# --- reads of runs and views ---


async def test_entries_are_listed_by_position_and_replaced_by_id(store: Store) -> None:
    run = Script()
    await one(store, run.append(entries=(entry("c", 3), entry("a", 1), entry("t", 1, "tool_call"))))
    await one(store, run.append(entries=(entry("b", 2), entry("c", 5, body=b"replaced"))))
    await one(store, Script("run_2").append(entries=(entry("d", 4, run_id="run_2"),)))

    def names(entries: list) -> list[str]:  # type: ignore[type-arg]
        return [found.id for found in entries]

    assert names(await store.entries(NAMESPACE, "message", session_id="session_1")) == ["a", "b", "d", "c"]
    assert names(await store.entries(NAMESPACE, "message", run_id="run_1")) == ["a", "b", "c"]
    assert names(await store.entries(NAMESPACE, "message", session_id="session_1", after=1, limit=2)) == ["b", "d"]
    assert names(await store.last_entries(NAMESPACE, "message", "session_1", 5, 2)) == ["b", "d"]
    assert names(await store.entries(NAMESPACE, "tool_call", session_id="session_1")) == ["t"]
    assert (await store.entry(NAMESPACE, "message", "c")).body == b"replaced"  # type: ignore[union-attr]
    assert await store.entry("other", "message", "c") is None


async def test_chunks_come_in_pages_and_a_cursor_may_stand_inside_one(store: Store) -> None:
    run = Script()
    items = [run.append(2) for _ in range(10)]
    await store.write(items)
    size = len(items[0].chunk.data)
    page = await store.chunks(NAMESPACE, "run_1", 0, 2 * size)
    assert [chunk.first_sequence for chunk in page] == [1, 3]
    page = await store.chunks(NAMESPACE, "run_1", 3, 1)
    assert [chunk.first_sequence for chunk in page] == [3], "at least one, and the one that the cursor stands in"
    assert [chunk.first_sequence for chunk in await store.chunks(NAMESPACE, "run_1", 4, MANY)] == [
        5,
        7,
        9,
        11,
        13,
        15,
        17,
        19,
    ]
    assert await store.chunks(NAMESPACE, "run_1", 20, MANY) == []
    assert await store.chunks(NAMESPACE, "nobody", 0, MANY) == []


async def test_the_tail_has_all_runs_of_a_namespace_in_commit_order(store: Store) -> None:  # C088
    a, b, other = Script("a"), Script("b"), Script("a", namespace="other")
    order = [a, b, other, a, a, b]
    outcomes = await store.write([run.append() for run in order])
    positions = [outcome.position for outcome in outcomes if isinstance(outcome, Committed)]
    assert positions == sorted(set(positions))
    found = await store.tail(NAMESPACE, 0, MANY)
    assert [(part.run_id, part.chunk.position) for part in found] == [
        (run.run_id, position) for run, position in zip(order, positions, strict=True) if run is not other
    ]
    assert [sequences(part.chunk.data) for part in found] == [[1], [1], [2], [3], [2]]
    assert (found[0].session_id, found[0].agent_id) == ("session_1", "agent_1")
    page = await store.tail(NAMESPACE, positions[1], 1)
    assert [part.chunk.position for part in page] == [positions[3]]
    assert await store.positions() == (positions[0], positions[-1])


async def test_runs_are_listed_newest_first_with_every_filter(store: Store) -> None:  # C059
    assert await store.runs(RunQuery(NAMESPACE, 10)) == []
    for number in range(9):
        run = Script(
            f"run_{number}", f"session_{number % 2}", agent_id=f"agent_{number % 3}", create_time_ns=number // 2
        )
        await one(store, run.append(is_ended=number > 6))
    await one(store, Script("run_9", namespace="other").append())

    async def ids(limit: int = 100, **filters: object) -> str:
        return "".join(row.run_id[-1] for row in await store.runs(RunQuery(NAMESPACE, limit, **filters)))  # type: ignore[arg-type]

    assert await ids() == "876543210"
    assert await ids(session_id="session_1") == "7531"
    assert await ids(agent_id="agent_0") == "630"
    assert await ids(states=(run_state_pb2.RUN_STATE_COMPLETED,)) == "87"
    both = (run_state_pb2.RUN_STATE_COMPLETED, run_state_pb2.RUN_STATE_RUNNING)
    assert await ids(states=both, agent_id="agent_1", session_id="session_1") == "71"
    assert await ids(created_after_ns=2, created_before_ns=4) == "7654"
    assert await ids(4) == "8765"
    assert await ids(3, before=(2, "run_5")) == "432"


async def test_unended_and_session_runs_leave_ended_ones_out(store: Store) -> None:
    runs = [Script(f"run_{n}", f"session_{n % 2}", create_time_ns=10 - n) for n in range(6)]
    await store.write([run.append(session_index=n) for n, run in enumerate(runs)])
    await one(store, runs[2].append(is_ended=True, session_index=2))
    await one(store, Script("run_0", namespace="another").append())
    assert [row.run_id for row in await store.unended(3)] == ["run_0", "run_0", "run_1"]
    assert [row.run_id for row in await store.unended(9, ("default", "run_1"))] == ["run_3", "run_4", "run_5"]
    assert [row.run_id for row in await store.session_runs(NAMESPACE, "session_0")] == ["run_4", "run_0"]
    assert await store.last_session_index(NAMESPACE, "session_0") == 4
    assert await store.last_session_index(NAMESPACE, "nobody") == 0


# --- deleting ---


async def test_deleting_a_run_keeps_its_messages_and_a_tombstone(store: Store) -> None:  # C060
    run = Script()
    claim = Claim(NAMESPACE, "request", b"digest", "run_1")
    kinds = ("message", "tool_call")
    await one(store, run.append(3, claim=claim, entries=tuple(entry(kind, 1, kind) for kind in kinds)))
    delete = DeleteRun(NAMESPACE, "run_1")
    assert await one(store, delete) == Lost(1, 3), "it has not ended"
    await one(store, run.append(is_ended=True, session_index=7))
    other = Script("run_2")
    await one(store, other.append())
    assert await store.write([delete, delete, DeleteRun(NAMESPACE, "nobody")]) == [Committed(), Committed(), Lost()]
    row = await store.run(NAMESPACE, "run_1")
    assert row is not None
    assert (row.first_sequence, row.last_sequence, row.body, row.log_bytes) == (5, 4, b"", 0)
    assert await store.chunks(NAMESPACE, "run_1", 0, MANY) == []
    assert [row.run_id for row in await store.runs(RunQuery(NAMESPACE, 10))] == ["run_2"]
    assert [(await store.entry(NAMESPACE, kind, kind)) is not None for kind in kinds] == [True, False]
    assert await store.request(NAMESPACE, "request") == claim
    assert await store.last_session_index(NAMESPACE, "session_1") == 7
    assert await one(store, Script().attempt()) == Lost(1, 4), "its id is not given again"
    assert [part.run_id for part in await store.tail(NAMESPACE, 0, MANY)] == ["run_2"]
    assert await store.check() == []


async def test_deleting_a_session_takes_everything_of_it_and_nothing_else(store: Store) -> None:  # C111
    mine, other = Script("run_1"), Script("run_2", "session_2")
    twin = Script("run_1", namespace="other")
    for run in (mine, other, twin):
        space = run.namespace
        claims = Claim(space, f"for {run.run_id}", b"digest", run.run_id)
        view = entry(f"of {run.run_id}", 1, run_id=run.run_id, session_id=run.session_id)
        await one(store, run.append(claim=claims, entries=(view,)))
        session = put(run.session_id, kind="session", namespace=space)
        child = put(f"artifact of {run.run_id}", kind="artifact", parent=run.session_id, namespace=space)
        for target in (run.session_id, child.record.id):
            await one(store, Change(claim=Claim(space, f"for {target}", b"digest", target)))
        await one(store, Change(puts=(session, child)))
    delete = DeleteSession(NAMESPACE, "session_1")
    assert await one(store, delete) == Lost(1, 1), "a run has not ended"
    await one(store, mine.append(is_ended=True))
    assert await store.write([delete, delete]) == [Committed(), Committed()]

    async def left(run: Script) -> list[bool]:
        space = run.namespace
        return [
            await store.run(space, run.run_id) is not None,
            await store.chunks(space, run.run_id, 0, MANY) != [],
            await store.entry(space, "message", f"of {run.run_id}") is not None,
            await store.record(space, "session", run.session_id, 0) is not None,
            await store.record(space, "artifact", f"artifact of {run.run_id}", 0) is not None,
            await store.request(space, f"for {run.run_id}") is not None,
            await store.request(space, f"for {run.session_id}") is not None,
            await store.request(space, f"for artifact of {run.run_id}") is not None,
        ]

    assert await left(mine) == [False] * 8
    assert await left(other) == [True] * 8
    assert await left(twin) == [True] * 8
    assert await one(store, Script().append()) == Committed(5), "the id may be used again, the position not"


async def test_deletions_and_appends_of_one_batch_are_applied_in_order(store: Store) -> None:
    run = Script()
    await one(store, run.append())
    end = run.append(is_ended=True)
    again = Script()
    outcomes = await store.write(
        [DeleteSession(NAMESPACE, "session_1"), end, DeleteSession(NAMESPACE, "session_1"), again.append()]
    )
    assert outcomes == [Lost(1, 1), Committed(2), Committed(), Committed(3)]
    assert (await store.run(NAMESPACE, "run_1")).last_sequence == 1  # type: ignore[union-attr]


async def test_the_newest_position_outlives_its_chunk(store: Store) -> None:
    run = Script()
    assert await store.positions() == (0, 0)
    await store.write([run.append(), run.append(is_ended=True)])
    await one(store, DeleteRun(NAMESPACE, "run_1"))
    assert await store.positions() == (0, 2)


@pytest.mark.parametrize("name", ["quote ' \" \\", "ünïcödé 😀", "%_*?", "[1]", "{}"])
async def test_names_may_hold_any_character(store: Store, name: str) -> None:
    claim = Claim(name, name, b"\0\xff", name)
    run = Script(name, name, name)
    first = run.append(claim=claim, guards=(SessionIsFree(name),), puts=(put(name, 0, kind=name, namespace=name),))
    assert isinstance(await one(store, first), Committed)
    assert await one(store, Script(name, name, name).append()) == Lost(1, 1)
    assert await one(store, Change(claim=claim)) == RequestTaken(name, b"\0\xff")
    assert await one(store, Script("x", name, name).append(guards=(SessionIsFree(name),))) == SessionTaken(name)
    assert await one(store, Change(puts=(put(name, 0, kind=name, namespace=name),))) == RecordChanged(name, name, 1)
    assert isinstance(await one(store, run.append()), Committed)
