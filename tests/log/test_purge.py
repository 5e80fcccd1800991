"""Every store deletes what has expired in bounded steps, and nothing else."""

from __future__ import annotations

from behestd.log.store import Change, Committed, Purge, Put, Record, Store


def record(name: str, expire_time_ns: int = 0, namespace: str = "default", kind: str = "session_data") -> Put:
    return Put(Record(namespace, kind, name, b"x", parent="s", create_time_ns=1, expire_time_ns=expire_time_ns))


async def kept(store: Store, namespace: str = "default", kind: str = "session_data") -> list[str]:
    """What is stored, expired or not."""
    return [found.id for found in await store.records(namespace, kind)]


async def test_what_has_expired_is_deleted_oldest_first_and_no_more_than_asked(store: Store) -> None:
    await store.write([Change(puts=tuple(record(f"r{n}", expire_time_ns=100 - n) for n in range(10)))])
    await store.write([Change(puts=(record("later", 500), record("for ever"), record("other", 50, "b", "agent")))])

    assert await store.write([Purge(now_ns=95, limit=4)]) == [Committed(deleted=4)]
    assert await kept(store, "b", "agent") == [], "of all namespaces, it expired first"
    assert await kept(store) == ["for ever", "later", *(f"r{n}" for n in range(7))]
    assert await store.write([Purge(now_ns=100, limit=100)]) == [Committed(deleted=7)]
    assert await kept(store) == ["for ever", "later"]
    assert await store.write([Purge(now_ns=100, limit=100)]) == [Committed(deleted=0)]


async def test_a_key_that_is_set_again_before_it_is_purged_lives(store: Store) -> None:
    await store.write([Change(puts=(record("a", 100),))])
    again = Put(Record("default", "session_data", "a", b"new", parent="s", create_time_ns=200), expected_version=0)
    outcomes = await store.write([Change(puts=(again,)), Purge(now_ns=300, limit=10)])

    assert outcomes == [Committed(versions=(1,)), Committed(deleted=0)]
    found = await store.record("default", "session_data", "a", 300)
    assert found is not None
    assert found.body == b"new"


async def test_a_key_that_is_set_again_in_the_batch_after_it_was_purged_begins_anew(store: Store) -> None:
    await store.write([Change(puts=(record("a", 100),)), Change(puts=(record("a", 100),))])
    again = Put(Record("default", "session_data", "a", b"new", parent="s", create_time_ns=200), expected_version=0)

    assert await store.write([Purge(now_ns=150, limit=10), Change(puts=(again,))]) == [
        Committed(deleted=1),
        Committed(versions=(1,)),
    ]


async def test_the_namespaces_with_records_are_told(store: Store) -> None:
    assert await store.namespaces() == []
    for namespace in ("b", "a", "c", "a"):
        await store.write([Change(puts=(record("x", namespace=namespace),))])

    assert await store.namespaces() == ["a", "b", "c"]
