"""Following a run across every way a stream can end, over a real channel, against a scripted daemon."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import pytest

from behest.calls import Patience
from behest.client import Client
from behest.errors import (
    BehestError,
    ClientClosedError,
    RunCancelledError,
    RunFailedError,
    RunTimedOutError,
    UnreachableError,
    WatchOrderError,
)
from behest.updates import Discarded
from behest.v1 import delta_pb2, event_pb2
from tests.sdk.daemon import (
    BEGIN,
    DRAINING,
    END_CANCELLED,
    END_FAILED,
    END_TIMED_OUT,
    RESET,
    RUN_ID,
    STALLED,
    FakeDaemon,
    Plan,
    Script,
    completed,
    end_completed,
    requested,
    served,
    status,
    story,
    with_retry,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from google.rpc import status_pb2

    from behest.runs import RunHandle

FRAMES = len(story())
QUICK = Patience(call_seconds=3, repeat_seconds=1, watch_seconds=1, silence_seconds=0.3, pause_seconds=0.02)


@asynccontextmanager
async def client_of(daemon: FakeDaemon, patience: Patience = QUICK) -> AsyncGenerator[Client, None]:
    """Serve a daemon and connect to it."""
    async with asyncio.timeout(20), served(daemon) as port, Client(f"127.0.0.1:{port}", patience=patience) as client:
        yield client


async def seen_by(handle: RunHandle) -> tuple[list[int], dict[tuple[int, int], str]]:
    """Follow a run; return the sequences in order, and the text that is left of each model attempt."""
    sequences, texts = [], {}
    async for update in handle.updates():
        match update:
            case event_pb2.Event():
                sequences.append(update.sequence)
                if update.WhichOneof("payload") == "model_completed":
                    done = update.model_completed
                    shown = texts.get((done.step, done.attempt), "")
                    # I16 for a watch that was resumed: what was shown is a beginning of the committed text.
                    assert done.message.parts[0].text.text.startswith(shown)
            case delta_pb2.Delta() if update.WhichOneof("kind") == "text":
                key = (update.step, update.attempt)
                texts[key] = texts.get(key, "") + update.text
            case Discarded():
                del texts[update.step, update.attempt]
    return sequences, texts


async def test_an_unbroken_stream_brings_every_event_once_and_the_text_whole() -> None:
    daemon = FakeDaemon(story())
    async with client_of(daemon) as client:
        sequences, texts = await seen_by(client.stream("say hello"))
    assert sequences == list(range(1, 13))
    assert texts == {(1, 1): "Hello ", (2, 2): "world"}
    assert daemon.calls == ["StreamRun"]


# The client side of C085 and I15
@pytest.mark.parametrize("error", [DRAINING, STALLED, RESET, None], ids=["draining", "stalled", "reset", "early_ok"])
@pytest.mark.parametrize("frames", range(FRAMES + 1))
async def test_a_stream_cut_after_any_frame_is_resumed_without_gap_or_repeat(
    frames: int, error: status_pb2.Status | None
) -> None:
    daemon = FakeDaemon(story(), [Plan(frames, error)])
    async with client_of(daemon) as client:
        sequences, texts = await seen_by(client.stream("say hello"))
    assert sequences == list(range(1, 13))
    # An answer whose deltas were cut off is in its event alone; nothing else is left over.
    assert set(texts) <= {(1, 1), (2, 2)}


async def test_a_stream_cut_after_every_second_frame_is_resumed_until_the_end() -> None:
    daemon = FakeDaemon(story(), [Plan(2, RESET)] * FRAMES)
    async with client_of(daemon) as client:
        run = client.stream("say hello")
        sequences, texts = await seen_by(run)
        assert (await run.result()).text == "world"
    assert sequences == list(range(1, 13))
    # Each new stream sends the open step from its start, and each piece is shown once.
    assert texts == {(1, 1): "Hello ", (2, 2): "world"}
    assert [request.after_sequence for request in daemon.requests[1:3]] == [3, 4]


async def test_a_watch_that_falls_silent_is_opened_again() -> None:
    daemon = FakeDaemon(story(), [Plan(5, is_silent=True)])
    async with client_of(daemon) as client:
        sequences, _ = await seen_by(client.stream("say hello"))
    assert sequences == list(range(1, 13))
    assert daemon.calls == ["StreamRun", "WatchRun"]


async def test_an_order_whose_stream_broke_before_its_first_frame_is_sent_again_under_its_request_id() -> None:
    daemon = FakeDaemon(story(), [Plan(0, RESET), Plan(1, DRAINING)])
    async with client_of(daemon) as client:
        run = client.stream("say hello")
        sequences, _ = await seen_by(run)
        assert run.run_id == RUN_ID
        assert run.is_replayed
    assert sequences == list(range(1, 13))
    # The second stream brought a heartbeat and no event: the run is still not known.
    assert daemon.calls == ["StreamRun", "StreamRun", "StreamRun"]
    assert len({request.request_id for request in daemon.requests}) == 1


# The client side of N06
async def test_a_daemon_that_is_stopped_and_started_again_is_not_noticed_by_the_caller() -> None:
    first, second = FakeDaemon(story(), [Plan(4, is_silent=True)]), FakeDaemon(story())
    patience = Patience(watch_seconds=10, pause_seconds=0.05)
    async with asyncio.timeout(20):
        async with served(first) as port:
            client = Client(f"127.0.0.1:{port}", patience=patience)
            run = await client.run("say hello")
            updates = run.updates()
            begun = [await anext(updates) for _ in range(5)]
        second.reached, second.created_by = first.reached, first.created_by
        async with served(second, port), client:
            rest = [update async for update in updates]
    events = [update.sequence for update in [*begun, *rest] if isinstance(update, event_pb2.Event)]
    assert events == list(range(1, 13))
    assert [call for call in second.calls if call != "WatchRun"] == []


async def test_the_text_of_a_run_is_whole_though_its_stream_was_cut() -> None:
    ticks = Script().events(*BEGIN).events(requested(1, 1)).deltas("a", "b", "c")
    ticks.events(completed(1, 1, "abcdef"), end_completed("abcdef"))
    daemon = FakeDaemon(ticks.ticks, [Plan(4, RESET), Plan(2, DRAINING)])
    async with client_of(daemon) as client:
        run = client.stream("say hello")
        assert "".join([piece async for piece in run.text()]) == "abcdef"


async def test_pieces_of_a_given_up_attempt_are_taken_back_before_the_next_one_speaks() -> None:
    daemon = FakeDaemon(story())
    async with client_of(daemon) as client:
        updates = [update async for update in client.stream("say hello").updates()]
    taken_back = updates.index(Discarded(2, 1))
    failed = next(n for n, u in enumerate(updates) if isinstance(u, event_pb2.Event) and u.HasField("model_failed"))
    assert failed == taken_back + 1
    assert isinstance(updates[taken_back - 1], delta_pb2.Delta)


@pytest.mark.parametrize(("position", "received"), [(2, 5), (3, 3)], ids=["gap", "repeat"])
async def test_a_watch_out_of_order_is_an_error_and_not_resumed(position: int, received: int) -> None:
    ticks = story()
    commit = ticks[1]
    assert isinstance(commit[0], event_pb2.Event)
    commit[0].sequence = received
    daemon = FakeDaemon(ticks)
    async with client_of(daemon) as client:
        with pytest.raises(WatchOrderError) as caught:
            await seen_by(client.stream("say hello"))
    assert (caught.value.expected, caught.value.received) == (4, received)
    assert daemon.calls == ["StreamRun"]


async def test_an_event_after_the_terminal_one_is_an_error() -> None:
    ticks = Script().events(*BEGIN).events(end_completed("")).events(requested(1, 1)).ticks
    async with client_of(FakeDaemon(ticks)) as client:
        with pytest.raises(WatchOrderError):
            await seen_by(client.stream("say hello"))


async def test_the_result_of_a_completed_run_is_its_output_and_may_be_asked_for_twice() -> None:
    daemon = FakeDaemon(story(), [Plan(3, DRAINING)])
    async with client_of(daemon) as client:
        run = await client.run("say hello")
        assert (await run.result()).text == "world"
        assert (await run.result()).text == "world"
        assert run.sequence == 12
    assert daemon.calls == ["CreateRun", "WatchRun", "WatchRun"]


@pytest.mark.parametrize(
    ("end", "kind", "reason"),
    [
        (END_FAILED, RunFailedError, "RUN_STEP_LIMIT"),
        (END_CANCELLED, RunCancelledError, ""),
        (END_TIMED_OUT, RunTimedOutError, "RUN_DEADLINE_EXCEEDED"),
    ],
    ids=["failed", "cancelled", "timed_out"],
)
async def test_the_result_of_a_run_that_did_not_complete_is_raised(
    end: dict[str, object], kind: type[BehestError], reason: str
) -> None:
    async with client_of(FakeDaemon(Script().events(*BEGIN).events(end).ticks)) as client:
        with pytest.raises(kind) as caught:
            await client.stream("say hello").result()
    assert caught.value.reason == reason


# lessons 4
async def test_watching_an_ended_run_from_its_head_ends_at_once_and_its_result_is_known() -> None:
    daemon = FakeDaemon(story(), reached=FRAMES)
    async with client_of(daemon) as client:
        run = client.watch(RUN_ID, after=12)
        assert [update async for update in run.updates()] == []
        assert (await run.result()).text == "world"


async def test_a_watch_that_the_daemon_refuses_for_good_is_not_tried_again() -> None:
    refusal = status(grpc.StatusCode.OUT_OF_RANGE, "WATCH_COMPACTED", oldestSequence="7")
    daemon = FakeDaemon(story(), refusal=refusal)
    async with client_of(daemon) as client:
        with pytest.raises(BehestError) as caught:
            await seen_by(client.watch(RUN_ID, after=3))
    assert caught.value.reason == "WATCH_COMPACTED"
    assert caught.value.metadata == {"oldestSequence": "7"}
    assert daemon.calls == ["WatchRun"]


async def test_an_order_that_is_shed_is_the_callers_to_repeat() -> None:
    shed = with_retry(status(grpc.StatusCode.RESOURCE_EXHAUSTED, "RUNTIME_OVERLOADED", limit="1"), seconds=1)
    daemon = FakeDaemon(story(), refusal=shed)
    async with client_of(daemon) as client:
        with pytest.raises(BehestError) as caught:
            await seen_by(client.stream("say hello"))
    assert (caught.value.reason, caught.value.retry_seconds) == ("RUNTIME_OVERLOADED", 1.0)
    assert daemon.calls == ["StreamRun"]


async def test_a_watch_is_given_up_when_patience_is_over() -> None:
    daemon = FakeDaemon(story(), [Plan(0, RESET)] * 1000)
    patience = Patience(watch_seconds=0.2, pause_seconds=0.02)
    async with client_of(daemon, patience) as client:
        with pytest.raises(BehestError) as caught:
            await seen_by(client.watch(RUN_ID))
    assert caught.value.reason == "TRANSPORT_STREAM_BROKEN"
    assert len(daemon.calls) > 1


# C093, lessons 18
async def test_cancelling_an_order_asks_for_its_own_creation_first() -> None:
    daemon = FakeDaemon(story())
    async with client_of(daemon) as client:
        run = client.stream("say hello")
        await run.cancel(force=True, reason="enough")
    assert daemon.calls == ["CreateRun", "CancelRun"]
    assert daemon.requests[1].run_id == RUN_ID


async def test_closing_the_client_under_a_watch_raises_an_error_and_no_stray_cancellation() -> None:
    daemon = FakeDaemon(story(), [Plan(2, is_silent=True)])
    patience = Patience()
    async with client_of(daemon, patience) as client:
        updates = client.stream("say hello").updates()
        for _ in range(3):
            await anext(updates)
        async with asyncio.TaskGroup() as group:
            group.create_task(client.close())
            with pytest.raises(ClientClosedError):
                await anext(updates)


async def test_leaving_a_watch_early_cancels_its_call() -> None:
    gone = asyncio.Event()

    class Noticing(FakeDaemon):
        async def follow(self, after, context):  # type: ignore[no-untyped-def]
            context.add_done_callback(lambda _: gone.set())
            async for frame in super().follow(after, context):
                yield frame

    async with client_of(Noticing(story(), [Plan(2, is_silent=True)]), Patience()) as client:
        events = client.stream("say hello").events()
        await anext(events)
        await events.aclose()
        async with asyncio.timeout(30):
            await gone.wait()


async def test_a_daemon_that_is_not_there_is_unreachable_within_patience() -> None:
    async with Client("unix:/nonexistent/behestd.sock", patience=QUICK) as client:
        with pytest.raises(UnreachableError) as caught:
            await client.run("say hello")
    assert caught.value.reason == "TRANSPORT_UNAVAILABLE"
