"""No payment twice, none silently lost: daemon, shop and link are cut down at every step of a call, for every class.

The witness is the ledger that the shop writes, outside the daemon.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from behest.client import Client
from behest.v1.event_pb2 import Event
from behest.v1.server_pb2 import ServerState
from behest.v1.tool_pb2 import Executed
from tests.payment.stage import CLASSES, Stage, settled, stage
from tests.payment.table import Line, table
from tests.runs.scenes import kinds, only

pytestmark = pytest.mark.timeout(300)

MODES = ("dialled", "attached")
DAEMON_POINTS = ("tool.before_send", "tool.after_send", "tool.working", "tool.before_commit")
SHOP_PLACES = ("before_effect", "after_effect", "after_result")
LINK_MARKS = {"the request": b"the-mark-of-", "the progress": b"working", "the result": b"effects: "}


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that is gone after the test: the reserve of each store is 64 MiB."""
    with TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def lines() -> Iterator[list[Line]]:
    """What the tests of this module found. BEHEST_PAYMENT_TABLE names a file to write it to."""
    found: list[Line] = []
    yield found
    if place := os.environ.get("BEHEST_PAYMENT_TABLE"):
        Path(place).write_text(table(found))


def _order(tool: str, run_id: str, arguments: str = "") -> str:
    more = f", {arguments}" if arguments else ""
    return f'/tool {tool} {{"mark": "the-mark-of-{run_id}"{more}}} /next /say done'


def _fate(events: list[Event]) -> str:
    """What became of the one call of a run, as its log says."""
    for kind in reversed(kinds(events)):
        if kind in ("tool_completed", "tool_resolved", "tool_outcome_unknown", "tool_failed"):
            if kind == "tool_resolved" and not only(events, kind)[-1].HasField("result"):
                continue
            return kind
    return "nothing"


def _check(place: Stage, run_id: str, tool: str, events: list[Event]) -> tuple[int, int, str]:
    """Check the promises on one call, and give its dispatches, its effects and its fate."""
    ledger = place.ledger()
    sent, effects, fate = ledger.count(run_id, "dispatch"), ledger.count(run_id, "effect"), _fate(events)
    keys = {line["key"] for line in ledger.lines(run_id)}
    assert keys <= {started.key for started in only(events, "tool_started")}
    assert len(keys) <= 1
    assert effects <= 1 or tool == "pure", (run_id, effects, kinds(events))
    if tool == "payment":
        assert sent <= 1, (run_id, sent, kinds(events))
    if fate == "tool_completed":
        assert effects >= 1, (run_id, kinds(events))
    elif fate == "tool_failed":
        failed = only(events, "tool_failed")[-1]
        assert failed.is_final, (run_id, kinds(events))
        # A failure that says that nothing was done is true; one that says nothing of it hides nothing.
        assert failed.executed != Executed.EXECUTED_NO or effects == 0, (run_id, kinds(events))
    else:
        # What nobody knows is visible: the run waits for somebody's word, or took it from the shop's own.
        assert fate in ("tool_outcome_unknown", "tool_resolved"), (run_id, fate, kinds(events))
    if fate == "tool_outcome_unknown":
        assert kinds(events)[-1] == "run_waiting", (run_id, kinds(events))
    return sent, effects, fate


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("point", DAEMON_POINTS)
async def test_a_daemon_killed_at_any_step_pays_once_or_says_that_it_does_not_know(
    home: Path, lines: list[Line], point: str, mode: str
) -> None:  # N02
    run_ids = {tool: f"{mode}-{point.replace('.', '-')}-{tool}" for tool in CLASSES}
    async with stage(mode, home) as place, place.place.client() as client:
        await place.place.running[-1].kill()
        daemon = await place.place.start(f"{point}=kill,run={run_ids['pure']}")
        # Each daemon finishes what killed the one before it, and is killed by the next call.
        for tool, following in zip(CLASSES, [*[*CLASSES][1:], ""], strict=True):
            run_id = run_ids[tool]
            await _ready(place)
            await client.run(_order(tool, run_id, '"work_ms": 30'), run_id=run_id)
            (await daemon.dead(60.0)).assert_killed_at(point)
            daemon = await place.place.start(f"{point}=kill,run={run_ids[following]}" if following else "")
            events = await settled(client, run_id)
            sent, effects, fate = _check(place, run_id, tool, events)
            lines.append(Line(mode, "daemon", point, tool, sent, effects, fate))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("where", SHOP_PLACES)
async def test_a_shop_killed_at_any_step_is_paid_once_or_the_doubt_is_visible(
    home: Path, lines: list[Line], where: str, mode: str
) -> None:  # N02
    async with stage(mode, home) as place, place.place.client() as client:
        for tool in CLASSES:
            run_id = f"{mode}-{where}-{tool}"
            await _ready(place)
            await client.run(_order(tool, run_id, f'"die": "{where}"'), run_id=run_id)
            await place.shop_died()
            events = await settled(client, run_id)
            sent, effects, fate = _check(place, run_id, tool, events)
            lines.append(Line(mode, "shop", where, tool, sent, effects, fate))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", LINK_MARKS)
async def test_a_link_cut_at_any_step_loses_no_payment_and_doubles_none(
    home: Path, lines: list[Line], what: str, mode: str
) -> None:  # N02
    async with stage(mode, home) as place, place.place.client() as client:
        assert place.link is not None
        for tool in CLASSES:
            run_id = f"{mode}-{what.split()[1]}-{tool}"
            await _ready(place)
            place.link.cut_at(LINK_MARKS[what])
            await client.run(_order(tool, run_id, '"work_ms": 300'), run_id=run_id)
            async with asyncio.timeout(60):
                await place.link.was_cut.wait()
            events = await settled(client, run_id)
            sent, effects, fate = _check(place, run_id, tool, events)
            lines.append(Line(mode, "link", what, tool, sent, effects, fate))


async def _ready(place: Stage) -> None:
    """Wait until the daemon has the shop, again."""
    async with place.place.client() as client, asyncio.timeout(60):
        while not await _is_ready(client):
            await asyncio.sleep(0.02)


async def _is_ready(client: Client) -> bool:
    servers = [server async for server in client.servers.list()]
    return any(server.state == ServerState.SERVER_STATE_READY for server in servers)
