"""Sessions as clients see them, through a daemon that lives in the test."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from behest.v1 import agent_pb2
from behest.v1 import session_service_pb2 as pb
from behest.v1.message_pb2 import Message
from behest.v1.session_pb2 import Session
from behestd.log.store import Change, Put, Record
from tests.daemons import Served, refused, rejection, serve, writes

INVALID = grpc.StatusCode.INVALID_ARGUMENT
TOO_MUCH = grpc.StatusCode.RESOURCE_EXHAUSTED


async def say(served: Served, session_id: str, *texts: str) -> list[str]:
    """Run an order after the other on a session, and return the answers."""
    return [(await served.client.stream(text, session_id=session_id).result()).text for text in texts]


async def texts(served: Served, session_id: str) -> list[str]:
    """What was said in a session, oldest first."""
    return [message.parts[0].text.text async for message in served.client.sessions.messages(session_id)]


async def busy(served: Served, session_id: str) -> Any:
    """Start a run that goes on until it is cancelled, and wait until it works."""
    handle = await served.client.run("/stall", session_id=session_id)
    async for update in handle.updates():
        if getattr(update, "WhichOneof", lambda _: "")("payload") == "model_requested":
            break
    return handle


# --- records ---


async def test_a_session_keeps_what_the_client_said_of_it(stored: Served) -> None:  # C110
    asked = Session(id="chat-1", title="Trip", labels={"team": "a"}, metadata_json='{"color": 1}', agent_id="default")
    made = await stored.client.sessions.create(asked)
    assert (made.id, made.title, made.labels["team"], made.metadata_json) == ("chat-1", "Trip", "a", '{"color": 1}')
    assert made.version == 1
    assert made.create_time == made.update_time
    assert await stored.client.sessions.get("chat-1") == made


async def test_a_taken_session_id_is_refused(stored: Served) -> None:  # C110
    await stored.client.sessions.create(Session(id="chat-1"))
    error = await refused(stored.client.sessions.create(Session(id="chat-1", title="other")))
    assert (error.reason, error.metadata) == ("SESSION_ID_TAKEN", {"sessionId": "chat-1"})


async def test_what_a_client_may_not_set_is_left_out(served: Served) -> None:  # C110
    asked = Session(is_archived=True, is_hidden=True, active_run_id="run_1", version=7, forked_from_session_id="x")
    made = await served.client.sessions.create(asked)
    assert not (made.is_archived or made.is_hidden or made.active_run_id or made.forked_from_session_id)
    assert made.version == 1


async def test_a_repeated_create_gives_the_first_session_and_another_request_is_refused(stored: Served) -> None:
    stub = stored.client.stubs.sessions
    request = pb.CreateSessionRequest(session=Session(title="a"), request_id="r1")
    first = await stub.CreateSession(request)
    again = await stub.CreateSession(request)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.session == first.session
    other = pb.CreateSessionRequest(session=Session(title="b"), request_id="r1")
    assert (await rejection(stub.CreateSession(other))).reason == "REQUEST_ID_REUSED"


async def test_repeats_at_the_same_time_make_one_session(stored: Served) -> None:
    stub = stored.client.stubs.sessions
    request = pb.CreateSessionRequest(session=Session(title="a"), request_id="r1")
    answers = await asyncio.gather(*(stub.CreateSession(request) for _ in range(8)))
    assert len({answer.session.id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1


async def test_sessions_are_listed_newest_first_in_pages_with_filters(stored: Served) -> None:  # C110
    client = stored.client
    for name, team in (("z", "a"), ("y", "b"), ("x", "a"), ("w", "a")):
        await client.sessions.create(Session(id=name, labels={"team": team, "n": name}))
    await client.sessions.update(Session(id="x", is_archived=True), ["is_archived"])

    async def ids(**filters: Any) -> list[str]:
        return [session.id async for session in client.sessions.list(pb.ListSessionsRequest(**filters))]

    assert await ids() == ["w", "y", "z"]
    assert await ids(page_size=1) == ["w", "y", "z"]
    assert await ids(include_archived=True, page_size=3) == ["w", "x", "y", "z"]
    assert await ids(labels={"team": "a"}) == ["w", "z"]
    assert await ids(labels={"team": "a", "n": "z"}, page_size=1) == ["z"]
    assert await ids(labels={"team": "c"}) == []


async def test_hidden_sessions_are_listed_only_when_asked(served: Served) -> None:
    record = Record("default", "session", "h", Session(id="h", is_hidden=True).SerializeToString(), create_time_ns=1)
    await served.daemon.log.commit(Change(puts=(Put(record),)))
    assert [one.id async for one in served.client.sessions.list()] == []
    shown = served.client.sessions.list(pb.ListSessionsRequest(include_hidden=True))
    assert [one.id async for one in shown] == ["h"]


async def test_a_long_list_stays_within_the_message_limit(served: Served) -> None:
    metadata = '{"a":"' + "x" * 60_000 + '"}'
    for number in range(70):
        await served.client.sessions.create(Session(id=f"s{number}", metadata_json=metadata))
    page = await served.client.stubs.sessions.ListSessions(pb.ListSessionsRequest(page_size=1000))
    assert 0 < len(page.sessions) < 70
    assert len([one async for one in served.client.sessions.list(pb.ListSessionsRequest(page_size=1000))]) == 70


async def test_an_update_changes_the_named_fields_alone(stored: Served) -> None:  # C110
    client = stored.client
    made = await client.sessions.create(Session(title="a", labels={"k": "v"}, metadata_json='{"a":1}'))
    after = await client.sessions.update(Session(id=made.id, title="b"), ["title"])
    assert (after.title, dict(after.labels), after.metadata_json) == ("b", {"k": "v"}, '{"a":1}')
    assert (after.version, after.create_time) == (2, made.create_time)
    after = await client.sessions.update(Session(id=made.id, labels={"x": "y"}, title="c"), ["labels"])
    assert (after.title, dict(after.labels), after.version) == ("b", {"x": "y"}, 3)
    after = await client.sessions.update(Session(id=made.id), ["labels", "metadata_json"])
    assert (dict(after.labels), after.metadata_json) == ({}, "")
    assert await client.sessions.get(made.id) == after


async def test_an_update_at_another_version_is_refused(stored: Served) -> None:  # C110
    made = await stored.client.sessions.create()
    await stored.client.sessions.update(Session(id=made.id, title="b", version=1), ["title"])
    error = await refused(stored.client.sessions.update(Session(id=made.id, title="c", version=1), ["title"]))
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "SESSION_VERSION_MISMATCH")
    assert error.metadata == {"version": "2"}


async def test_updates_at_the_same_time_lose_nothing(stored: Served) -> None:
    made = await stored.client.sessions.create()
    fields = [("title", Session(id=made.id, title="b")), ("metadata_json", Session(id=made.id, metadata_json="{}"))]
    fields.append(("labels", Session(id=made.id, labels={"a": "b"})))
    await asyncio.gather(*(stored.client.sessions.update(given, [field]) for field, given in fields))
    after = await stored.client.sessions.get(made.id)
    assert (after.title, after.metadata_json, dict(after.labels), after.version) == ("b", "{}", {"a": "b"}, 4)


async def test_an_agent_that_is_not_there_is_refused(served: Served) -> None:
    assert (await refused(served.client.sessions.create(Session(agent_id="nobody")))).reason == "AGENT_NOT_FOUND"
    made = await served.client.sessions.create()
    error = await refused(served.client.sessions.update(Session(id=made.id, agent_id="nobody"), ["agent_id"]))
    assert error.reason == "AGENT_NOT_FOUND"


# --- runs on sessions ---


async def test_a_run_on_an_archived_session_is_refused_until_it_is_taken_out_again(stored: Served) -> None:  # C110
    made = await stored.client.sessions.create()
    repeated = await stored.client.run("hello", session_id=made.id, request_id="r1")
    await repeated.result()
    await stored.client.sessions.update(Session(id=made.id, is_archived=True), ["is_archived"])
    error = await refused(stored.client.run("hello", session_id=made.id))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_ARCHIVED")
    again = await stored.client.run("hello", session_id=made.id, request_id="r1")
    assert again.run_id == repeated.run_id
    await stored.client.sessions.update(Session(id=made.id), ["is_archived"])
    assert await say(stored, made.id, "hello") == ["hello"]


async def test_a_run_on_an_unknown_session_is_refused(stored: Served) -> None:
    before = writes(stored)
    error = await refused(stored.client.run("hello", session_id="ses_none"))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")
    assert writes(stored) == before


async def test_a_run_that_names_no_agent_gets_that_of_its_session(served: Served) -> None:  # C099
    await served.client.agents.create(agent_pb2.Agent(id="writer"))
    made = await served.client.sessions.create(Session(agent_id="writer"))
    run = await served.client.run("hello", session_id=made.id)
    assert (await served.client.runs.get(run.run_id)).agent_id == "writer"
    other = await served.client.run("hello", session_id=made.id, agent_id="default")
    assert (await served.client.runs.get(other.run_id)).agent_id == "default"
    await other.result()


async def test_a_session_shows_its_active_and_its_queued_runs(served: Served) -> None:  # C110
    made = await served.client.sessions.create()
    first = await busy(served, made.id)
    second = await served.client.run("second", session_id=made.id)
    shown = await served.client.sessions.get(made.id)
    assert (shown.active_run_id, list(shown.queued_run_ids)) == (first.run_id, [second.run_id])
    await first.cancel()
    await second.result()
    shown = await served.client.sessions.get(made.id)
    assert (shown.active_run_id, list(shown.queued_run_ids)) == ("", [])


# --- deletion ---


async def test_a_session_takes_everything_of_it_along_when_it_is_deleted(stored: Served) -> None:  # C111 C109
    client = stored.client
    made, kept = await client.sessions.create(), await client.sessions.create()
    run = await client.run("hello", session_id=made.id, request_id="r1")
    await run.result()
    await client.session_data.set(made.id, "key", "1")
    await client.session_data.set(kept.id, "key", "2")
    gone = await client.artifacts.upload(b"gone", session_id=made.id)
    shared = await client.artifacts.upload(b"shared", session_id=made.id)
    also = await client.artifacts.upload(b"shared", session_id=kept.id)
    await client.sessions.delete(made.id)
    await client.sessions.delete(made.id)
    assert (await refused(client.sessions.get(made.id))).reason == "SESSION_NOT_FOUND"
    assert (await refused(client.runs.get(run.run_id))).reason == "RUN_NOT_FOUND"
    assert (await refused(client.session_data.get(made.id, "key"))).reason == "SESSION_NOT_FOUND"
    for artifact in (gone, shared):
        assert (await refused(client.artifacts.get(artifact.id))).reason == "ARTIFACT_NOT_FOUND"
    assert await client.artifacts.read(also.id) == b"shared"
    assert (await client.session_data.get(kept.id, "key")).value_json == "2"
    blobs = stored.daemon.house.blobs
    assert await blobs.size("default", also.sha256) == 6
    assert not await blobs.delete("default", gone.sha256)
    assert (await client.run("hello", request_id="r1")).run_id != run.run_id


async def test_a_busy_session_is_not_deleted(stored: Served) -> None:  # C111
    made = await stored.client.sessions.create()
    artifact = await stored.client.artifacts.upload(b"kept", session_id=made.id)
    run = await busy(stored, made.id)
    error = await refused(stored.client.sessions.delete(made.id))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SESSION_BUSY")
    assert error.metadata == {"sessionId": made.id, "activeRunId": run.run_id}
    assert await stored.client.artifacts.read(artifact.id) == b"kept"
    await run.cancel()
    async for _ in stored.client.watch(run.run_id).updates():
        pass
    await stored.client.sessions.delete(made.id)


# --- messages ---


async def test_messages_are_listed_oldest_first_in_pages_with_what_they_cost(stored: Served) -> None:  # C112
    made = await stored.client.sessions.create()
    await say(stored, made.id, "one", "two", "three")
    found: list[Message] = []
    token = ""
    while True:
        request = pb.ListMessagesRequest(session_id=made.id, page_size=2, page_token=token)
        page = await stored.client.stubs.sessions.ListMessages(request)
        found += page.messages
        assert len(page.messages) <= 2
        token = page.next_page_token
        if not token:
            break
    assert [message.parts[0].text.text for message in found] == ["one", "one", "two", "two", "three", "three"]
    assert len({message.id for message in found}) == 6
    times = [message.create_time.ToNanoseconds() for message in found]
    assert times == sorted(times)
    assert times[0]
    assert all(message.run_id for message in found)
    assert all(message.usage.output_tokens for message in found[1::2])
    assert [one.id for one in found] == [one.id async for one in stored.client.sessions.messages(made.id)]


async def test_a_fork_starts_with_the_messages_of_its_source_and_goes_its_own_way(stored: Served) -> None:  # C110 N13
    client = stored.client
    source = await client.sessions.create(Session(title="Trip", labels={"a": "b"}, metadata_json="{}"))
    await say(stored, source.id, "one", "two")
    fork = await client.sessions.fork(source.id)
    assert (fork.title, dict(fork.labels), fork.forked_from_session_id) == ("Trip", {"a": "b"}, source.id)
    assert await texts(stored, fork.id) == ["one", "one", "two", "two"]
    assert not {m.id async for m in client.sessions.messages(fork.id)} & {
        m.id async for m in client.sessions.messages(source.id)
    }
    await say(stored, fork.id, "three")
    await say(stored, source.id, "four")
    assert await texts(stored, fork.id) == ["one", "one", "two", "two", "three", "three"]
    assert await texts(stored, source.id) == ["one", "one", "two", "two", "four", "four"]
    dumped = await client.stream("/dump", session_id=fork.id).result()
    assert [one["role"] for one in json.loads(dumped.text)["messages"]] == ["ROLE_USER", "ROLE_ASSISTANT"] * 3 + [
        "ROLE_USER"
    ]
    await client.sessions.delete(source.id)
    assert (await texts(stored, fork.id))[:6] == ["one", "one", "two", "two", "three", "three"]


async def test_a_fork_takes_messages_up_to_the_one_that_is_named(stored: Served) -> None:  # C110
    source = await stored.client.sessions.create()
    await say(stored, source.id, "one", "two")
    ids = [message.id async for message in stored.client.sessions.messages(source.id)]
    fork = await stored.client.sessions.fork(source.id, upto_message_id=ids[1], title="half")
    assert (fork.title, await texts(stored, fork.id)) == ("half", ["one", "one"])
    other = await stored.client.sessions.create()
    error = await refused(stored.client.sessions.fork(other.id, upto_message_id=ids[1]))
    assert (error.reason, error.metadata) == ("SESSION_MESSAGE_NOT_FOUND", {"messageId": ids[1]})
    assert (await refused(stored.client.sessions.fork("ses_none"))).reason == "SESSION_NOT_FOUND"


async def test_a_fork_of_a_fork_has_all_messages(served: Served) -> None:
    source = await served.client.sessions.create()
    await say(served, source.id, "one")
    fork = await served.client.sessions.fork(source.id)
    await say(served, fork.id, "two")
    again = await served.client.sessions.fork(fork.id)
    assert await texts(served, again.id) == ["one", "one", "two", "two"]


async def test_a_repeated_fork_gives_the_first_one(stored: Served) -> None:
    source = await stored.client.sessions.create()
    stub = stored.client.stubs.sessions
    request = pb.ForkSessionRequest(source_session_id=source.id, request_id="r1")
    first, again = await stub.ForkSession(request), await stub.ForkSession(request)
    assert (again.session, again.replayed, first.replayed) == (first.session, True, False)


async def test_sessions_survive_a_restart(tmp_path: Path) -> None:
    async with serve("sqlite", tmp_path / "data") as served:
        made = await served.client.sessions.create(Session(id="chat", title="a"))
        await say(served, "chat", "one")
        fork = await served.client.sessions.fork("chat")
    async with serve("sqlite", tmp_path / "data") as served:
        assert await served.client.sessions.get("chat") == made
        assert await texts(served, fork.id) == ["one", "one"]


# --- bad requests ---

NOT_FOUND = grpc.StatusCode.NOT_FOUND


def creating(**fields: Any) -> pb.CreateSessionRequest:
    """A request for a session."""
    return pb.CreateSessionRequest(session=Session(**fields))


def updating(*paths: str, session_id: str = "a", **fields: Any) -> pb.UpdateSessionRequest:
    """A request to change a session."""
    return pb.UpdateSessionRequest(session=Session(id=session_id, **fields), update_mask=FieldMask(paths=paths))


BAD: list[tuple[str, Any, str]] = [
    ("CreateSession", creating(id="a b"), "session.id"),
    ("CreateSession", creating(id="x" * 65), "session.id"),
    ("CreateSession", pb.CreateSessionRequest(request_id="é"), "request_id"),
    ("CreateSession", creating(agent_id="/"), "session.agent_id"),
    ("CreateSession", creating(metadata_json="[]"), "session.metadata_json"),
    ("CreateSession", creating(labels={str(number): "" for number in range(33)}), "session.labels"),
    ("GetSession", pb.GetSessionRequest(), "session_id"),
    ("GetSession", pb.GetSessionRequest(session_id="x\0"), "session_id"),
    ("ListSessions", pb.ListSessionsRequest(page_size=-1), "page_size"),
    ("ListSessions", pb.ListSessionsRequest(page_token="made-up"), "page_token"),
    ("ListSessions", pb.ListSessionsRequest(labels={"": "x"}), "labels"),
    ("UpdateSession", pb.UpdateSessionRequest(), "session"),
    ("UpdateSession", updating("title", session_id=""), "session.id"),
    ("UpdateSession", updating(), "update_mask"),
    *(
        ("UpdateSession", updating(path), "update_mask")
        for path in ("id", "version", "is_hidden", "nothing", "", "title.x", "labels.a", "create_time.seconds")
    ),
    ("UpdateSession", updating("title", version=-1), "session.version"),
    ("UpdateSession", updating("metadata_json", metadata_json="{"), "session.metadata_json"),
    ("DeleteSession", pb.DeleteSessionRequest(), "session_id"),
    ("ForkSession", pb.ForkSessionRequest(), "source_session_id"),
    ("ForkSession", pb.ForkSessionRequest(source_session_id="a", upto_message_id="?"), "upto_message_id"),
    ("ListMessages", pb.ListMessagesRequest(), "session_id"),
    ("ListMessages", pb.ListMessagesRequest(session_id="a", page_size=-5), "page_size"),
    ("ListMessages", pb.ListMessagesRequest(session_id="a", page_token="x"), "page_token"),
]
TOO_LARGE: list[tuple[str, Any, str]] = [
    ("CreateSession", creating(metadata_json='{"a":"' + "x" * 65_536 + '"}'), "session.metadata_json"),
    ("CreateSession", creating(title="x" * 1025), "session.title"),
    ("ForkSession", pb.ForkSessionRequest(source_session_id="a", title="x" * 1025), "title"),
]
MISSING: list[tuple[str, Any]] = [
    ("GetSession", pb.GetSessionRequest(session_id="none")),
    ("UpdateSession", updating("title", session_id="none")),
    ("ListMessages", pb.ListMessagesRequest(session_id="none")),
]


async def test_bad_requests_are_refused_by_field_and_leave_nothing(served: Served) -> None:
    stub = served.client.stubs.sessions
    before = writes(served)
    for method, request, field in BAD:
        found = await rejection(getattr(stub, method)(request))
        assert (found.code, found.field) == (INVALID, field), (method, request)
        assert found.reason == ("REQUEST_PAGE_TOKEN_INVALID" if field == "page_token" else "REQUEST_INVALID")
    for method, request, field in TOO_LARGE:
        found = await rejection(getattr(stub, method)(request))
        assert (found.code, found.reason, found.field) == (TOO_MUCH, "REQUEST_TOO_LARGE", field)
    for method, request in MISSING:
        found = await rejection(getattr(stub, method)(request))
        assert (found.code, found.reason) == (NOT_FOUND, "SESSION_NOT_FOUND")
    found = await rejection(stub.CompactSession(pb.CompactSessionRequest(session_id="a")))
    assert (found.code, found.reason) == (NOT_FOUND, "SESSION_NOT_FOUND")
    assert writes(served) == before
