"""The progress of tools as watchers get it: each piece once, with its number, also when only the latest is kept."""

from __future__ import annotations

import asyncio

from behest.v1.delta_pb2 import Delta
from behest.v1.run_service_pb2 import WatchRunResponse
from behest.v1.tool_pb2 import Progress
from behestd.runtime.live import PROGRESS_LIMIT_BYTES, Place, Stretch
from behestd.tools.function import Context
from tests import daemons
from tests.runs.scenes import PURE, tools, updates_of

LARGE = 64 * 1024


def taken(place: Place) -> list[Delta]:
    """Take what is new at a place."""
    return list(WatchRunResponse.FromString(place.take()).deltas)


def test_progress_is_numbered_and_told_once() -> None:
    stretch = Stretch(1, 0, 1)
    early, late = Place(stretch), Place(stretch)
    told = []
    for number in range(3):
        stretch.add_progress(f"call_{number % 2}", 1, Progress(text=str(number)))
        told += taken(early)
    assert [(delta.index, delta.tool_progress.text) for delta in told] == [(0, "0"), (1, "1"), (2, "2")]
    assert taken(late) == told
    assert taken(early) == taken(late) == []


def test_progress_beyond_the_limit_is_told_as_the_latest_of_each_call() -> None:
    stretch = Stretch(1, 0, 1)
    early, late = Place(stretch), Place(stretch)
    stretch.add_progress("quiet", 1, Progress(text="quiet"))
    told = taken(early)
    count = 2 * PROGRESS_LIMIT_BYTES // LARGE
    for number in range(count):
        stretch.add_progress("loud", 1, Progress(text=f"{number} " + "x" * LARGE))
        told += taken(early)
    assert [delta.index for delta in told] == list(range(count + 1))
    caught_up = taken(late)
    assert (caught_up[0].call_id, caught_up[-1]) == ("quiet", told[-1])
    assert len(caught_up) < count


async def test_a_client_is_shown_every_step_of_a_tool() -> None:
    async def climb(context: Context) -> str:
        """Climb."""
        for step in range(5):
            context.progress(f"step {step}")
            await asyncio.sleep(0.02)
        return "up"

    async with daemons.serve(tools=tools((climb, PURE))) as served:
        updates = await updates_of(served.client.stream("/delay 1 /tool climb {}"))
    shown = [update.tool_progress.text for update in updates if isinstance(update, Delta) and update.call_id]
    assert shown == [f"step {step}" for step in range(5)]
