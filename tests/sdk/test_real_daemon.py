"""The client against real daemon processes that stop, crash and come back on the same port."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from behest.calls import Patience
from behest.client import Client
from behest.errors import BehestError, RunCancelledError, from_rpc
from behest.runs import RunHandle
from behest.updates import Discarded, Speech
from behest.v1.delta_pb2 import Delta
from behest.v1.event_pb2 import Event
from behest.v1.run_service_pb2 import WatchRunRequest
from behest.v1.run_state_pb2 import RunState
from tests.daemon_process import DaemonProcess, running

QUICK_STOP = "[limits]\ndrain_seconds = 0.1\n"
# The daemon gives up a reader soon, and a reader takes little at once.
STRICT_WRITES = "[server]\nwrite_seconds = 0.2\n"
NARROW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
SLOW = "/delay 25 /words 80"
ENDLESS = "/delay 20 /words 100000"
PATIENCE = Patience(pause_seconds=0.5)

Ending = Callable[[DaemonProcess], Awaitable[int]]


def is_text(update: object) -> bool:
    """Whether an update is a piece of an answer."""
    return isinstance(update, Delta) and update.WhichOneof("kind") == "text"


async def restarted(daemon: DaemonProcess, ending: Ending) -> int:
    """End a daemon and start it again on the same port and data. Gives the exit code of the old one."""
    code = await ending(daemon)
    await daemon.start()
    return code


async def logged(address: str, run_id: str) -> list[bytes]:
    """Read the whole log of a run, as bytes, over a connection of its own."""
    async with Client(address) as client:
        return [event.SerializeToString() async for event in client.watch(run_id).events()]


async def followed(handle: RunHandle, on_text: Callable[[int], None]) -> tuple[list[Event], str, list[Discarded]]:
    """Follow a run to its end: its events, the text as it stood at the end of each attempt, what was taken back."""
    events: list[Event] = []
    taken_back: list[Discarded] = []
    said, pieces = "", 0
    speech = Speech()
    async with asyncio.timeout(20), aclosing(handle.updates()) as updates:
        async for update in updates:
            said += speech.take(update)
            if isinstance(update, Event):
                events.append(update)
            elif isinstance(update, Discarded):
                taken_back.append(update)
                said = ""
            elif is_text(update):
                pieces += 1
                on_text(pieces)
    return events, said, taken_back


@pytest.mark.parametrize(("ending", "code"), [(DaemonProcess.terminate, 0), (DaemonProcess.kill, -9)])
async def test_streams_go_on_over_a_restart_without_a_lost_or_repeated_event(
    ending: Ending, code: int, tmp_path: Path
) -> None:  # C081, C083, C085
    words = " ".join(f"word{number}" for number in range(1, 81))
    async with running(tmp_path, config=QUICK_STOP) as daemon, Client(daemon.address, patience=PATIENCE) as client:
        handles = [client.stream(SLOW) for _ in range(8)]
        all_speak = asyncio.Semaphore(0)

        def speaks(pieces: int) -> None:
            if pieces == 3:
                all_speak.release()

        async with asyncio.TaskGroup() as tasks:
            follows = [tasks.create_task(followed(handle, speaks)) for handle in handles]
            async with asyncio.timeout(30):
                for _ in handles:
                    await all_speak.acquire()
            assert await restarted(daemon, ending) == code
        for handle, follow in zip(handles, follows, strict=True):
            events, said, taken_back = follow.result()
            assert [event.sequence for event in events] == list(range(1, len(events) + 1))
            assert [event.SerializeToString() for event in events] == await logged(daemon.address, handle.run_id)
            assert len({event.epoch for event in events if event.epoch}) == 2
            assert (await handle.result()).text == said == words
            assert taken_back


async def test_two_restarts_in_one_run_are_one_stream(tmp_path: Path) -> None:  # C085
    async with running(tmp_path, config=QUICK_STOP) as daemon, Client(daemon.address, patience=PATIENCE) as client:
        handle = client.stream(SLOW)
        endings: list[Ending] = [DaemonProcess.kill, DaemonProcess.terminate]
        events = []
        async with asyncio.timeout(20), aclosing(handle.updates()) as updates:
            async for update in updates:
                if isinstance(update, Event):
                    events.append(update.SerializeToString())
                elif is_text(update) and endings:
                    await restarted(daemon, endings.pop())
        assert events == await logged(daemon.address, handle.run_id)
        assert len((await handle.result()).text.split()) == 80


async def test_an_order_whose_reply_a_crash_took_is_one_run(tmp_path: Path) -> None:  # C058
    daemon = DaemonProcess(tmp_path, env={"BEHEST_FP": "create.after_commit=kill"})
    await daemon.start()
    async with Client(daemon.address, patience=PATIENCE) as client, asyncio.TaskGroup() as tasks:
        ordering = tasks.create_task(client.run("hello"))
        async with asyncio.timeout(30):
            assert await daemon.ended() == -9
        async with running(tmp_path, address=daemon.address):
            async with asyncio.timeout(15):
                handle = await ordering
                assert (await handle.result()).text == "hello"
            assert handle.is_replayed
            assert [run.id async for run in client.runs.list()] == [handle.run_id]
    assert "failpoint create.after_commit" in daemon.log


async def test_an_order_is_carried_out_once_however_often_it_is_given(tmp_path: Path) -> None:  # C058, C093
    request_id = str(uuid4())
    async with running(tmp_path) as daemon, Client(daemon.address, patience=PATIENCE) as client:
        first = await client.run("hello", request_id=request_id)
        again = await client.run("hello", request_id=request_id)
        assert (again.run_id, first.is_replayed, again.is_replayed) == (first.run_id, False, True)
        with pytest.raises(BehestError) as refusal:
            await client.run("something else", request_id=request_id)
        assert refusal.value.reason == "REQUEST_ID_REUSED"
        assert (await first.result()).text == "hello"
        await restarted(daemon, DaemonProcess.kill)
        streamed = client.stream("hello", request_id=request_id)
        events = [event.SerializeToString() async for event in streamed.events()]
        assert streamed.is_replayed
        assert events == await logged(daemon.address, first.run_id)
        assert (await client.watch(first.run_id).result()).text == "hello"


async def test_a_cancelled_run_ends_and_says_so_to_who_follows_and_who_asks(tmp_path: Path) -> None:  # C056
    async with running(tmp_path) as daemon, Client(daemon.address) as client:
        handle = client.stream(ENDLESS)
        kinds = []
        async with asyncio.timeout(30), aclosing(handle.updates()) as updates:
            async for update in updates:
                if is_text(update):
                    await handle.cancel(reason="enough")
                elif isinstance(update, Event):
                    kinds.append(update.WhichOneof("payload"))
        assert kinds[-1] == "run_cancelled"
        assert kinds.count("run_cancel_requested") == 1
        for asked in (handle, client.watch(handle.run_id)):
            with pytest.raises(RunCancelledError):
                await asked.result()
        assert (await handle.cancel()).state == RunState.RUN_STATE_CANCELLED


async def test_a_cancel_outlives_the_crash_that_follows_it(tmp_path: Path) -> None:  # C056
    async with running(tmp_path) as daemon, Client(daemon.address, patience=PATIENCE) as client:
        handle = client.stream(ENDLESS)
        async with asyncio.timeout(20), aclosing(handle.updates()) as updates:
            async for update in updates:
                if is_text(update):
                    await handle.cancel()
                    await restarted(daemon, DaemonProcess.kill)
                    break
            with pytest.raises(RunCancelledError):
                await handle.result()


async def test_a_reader_that_stalls_is_let_go_holds_nobody_up_and_loses_nothing(tmp_path: Path) -> None:  # C087
    async with (
        running(tmp_path, config=STRICT_WRITES) as daemon,
        Client(daemon.address, options=NARROW, patience=PATIENCE) as stalled,
        Client(daemon.address) as client,
    ):
        handle = stalled.stream("/words 100000")
        async with aclosing(handle.updates()) as updates:
            events = [await anext(updates)]
            raw = aiter(stalled.stubs.runs.WatchRun(WatchRunRequest(run_id=handle.run_id)))
            await anext(raw)
            assert (await client.watch(handle.run_id).result()).text
            # As long as this run lasts, the two streams that are not read stand still.
            assert (await (await client.run("/delay 500 /words 3")).result()).text
            with pytest.raises(grpc.aio.AioRpcError) as error:
                async for _ in raw:
                    pass
            assert from_rpc(error.value).reason == "WATCH_STALLED"
            async with asyncio.timeout(30):
                events += [update async for update in updates if isinstance(update, Event)]
        seen = [event.SerializeToString() for event in events if isinstance(event, Event)]
        assert seen == await logged(daemon.address, handle.run_id)
