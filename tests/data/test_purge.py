"""What is deleted is gone from the raw files too, and nothing else is."""

from __future__ import annotations

from pathlib import Path

from behest.v1.run_service_pb2 import DeleteRunRequest
from behestd.log import fsck
from tests import daemons
from tests.daemons import refused
from tests.data.scenes import Canaries, fill, found, put_agents, until, with_tools
from tests.runs.scenes import events_of


async def test_nothing_of_a_deleted_session_is_left_in_any_raw_file(tmp_path: Path) -> None:  # S22
    data = tmp_path / "data"
    gone, kept = Canaries("gone"), Canaries("kept")
    catalog, operator = with_tools(gone)
    async with daemons.serve("sqlite", data, tools=catalog, operator=operator) as served:
        await put_agents(served)
        await fill(served, kept, session_id="ses-kept", prefix="kept")
        await fill(served, gone)
        assert {path.split("/")[0] for path in found(data, gone.planted)} >= {"blobs", "behestd.db-wal"}
        planted = {canary for hits in found(data, gone.planted).values() for canary in hits}
        assert planted == set(gone.planted), "each was written"
        results = [canary for canary in gone.planted if "result" in canary]
        mine = [canary for canary in gone.planted if canary not in results]

        await served.client.sessions.delete("ses-full")

        await until(lambda: not found(data, mine))
        assert {canary for hits in found(data, kept.planted).values() for canary in hits} == set(kept.planted)
        await served.client.sessions.delete("ses-kept")
        await until(lambda: not found(data, [*gone.planted, *kept.planted]))
        usage = await served.client.usage.query()
        assert usage.total.usage.attempts >= 12, "what was used stays counted"
    assert found(data, [*gone.planted, *kept.planted]) == {}
    assert fsck.check_all(data).problems == ()
    assert fsck.check_all(data).dangling_blobs == 0


async def test_a_deleted_run_leaves_its_messages_and_nothing_else(tmp_path: Path) -> None:  # S22
    data = tmp_path / "data"
    canaries = Canaries("tomb")
    catalog, operator = with_tools(canaries)
    async with daemons.serve("sqlite", data, tools=catalog, operator=operator) as served:
        await put_agents(served)
        await fill(served, canaries)
        mine = [canary for canary in canaries.planted if canary.endswith(("run-label", "-reason", "-failed"))]
        label, reason, failed = mine
        for run_id in ("run-done", "run-asked", "run-bad"):
            await served.client.stubs.runs.DeleteRun(DeleteRunRequest(run_id=run_id))
        await until(lambda: not found(data, [label, reason]))
        assert found(data, [failed]), "what was said is a message of the session"
        said = [message async for message in served.client.sessions.messages("ses-full")]
        assert len(said) >= 10
        error = await refused(served.client.runs.get("run-done"))
        assert error.reason == "RUN_NOT_FOUND"
    assert fsck.check_all(data).problems == ()


async def test_a_definition_goes_with_the_last_run_that_is_pinned_to_it(tmp_path: Path) -> None:  # S22
    data = tmp_path / "data"
    async with daemons.serve("sqlite", data) as served:
        await put_agents(served)
        store = served.daemon.log.store
        for name in ("one", "two"):
            await events_of(await served.client.run("/say hi", run_id=name, agent_id="helper"))
        await events_of(await served.client.run("/say hi", run_id="other"))
        pinned = (await served.client.runs.get("one")).definition_hash
        other = (await served.client.runs.get("other")).definition_hash
        assert pinned != other
        await served.client.stubs.runs.DeleteRun(DeleteRunRequest(run_id="one"))
        assert await store.definition(pinned)
        session = (await served.client.runs.get("two")).session_id
        await served.client.sessions.delete(session)
        assert await store.definition(pinned) is None
        assert await store.definition(other)
        await events_of(await served.client.run("/say hi", run_id="three", agent_id="helper"))
        assert await store.definition(pinned), "and comes back with the next"
    assert fsck.check_all(data).problems == ()
